//! Which instructions the kernels use: found once, when a [`super::Cpu`] is made.

#[cfg(target_arch = "aarch64")]
use super::neon::{Neon, NeonDot, NeonI8mm};
#[cfg(target_arch = "x86_64")]
use super::{
    avx2::{Avx2, Avx2Vnni},
    avx512::Avx512,
};
use super::{
    scalar::Scalar,
    simd::{Kernel, Simd},
};

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the instruction sets' own
pub enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Self {
        let best = *Self::available().last().unwrap_or(&Isa::Portable);
        // Intel's take four times as long for a product of pairs as for a multiply-add, two of which do the same.
        #[cfg(target_arch = "x86_64")]
        if best == Isa::Avx512Bf16 && amd_family().is_none() {
            return Isa::Avx512;
        }
        best
    }

    /// All that this machine has, each with more than the one before.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(Isa::Avx2);
            }
            if avx2 && is_x86_feature_detected!("avxvnni") {
                all.push(Isa::Avx2Vnni);
            }
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx2 && avx512 {
                all.push(Isa::Avx512);
            }
            if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") {
                all.push(Isa::Avx512Bf16);
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            let neon = has!("neon");
            let dot = neon && has!("dotprod");
            if neon {
                all.push(Isa::Neon);
            }
            if dot {
                all.push(Isa::NeonDot);
            }
            if dot && has!("i8mm") {
                all.push(Isa::NeonI8mm);
            }
        }
        all
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => "AVX2 VNNI",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "AVX-512 VNNI BF16",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => "NEON dotprod",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => "NEON i8mm",
        }
    }

    /// The same without bf16: pairs of [`super::wide::Wide`] are exact.
    pub(super) fn exact_pairs(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512,
            other => other,
        }
    }

    /// Whether this processor is faster if two vectors of weight rows share the loads of x. One that takes a vector of
    /// AVX-512 in two halves has time enough for them.
    pub(super) fn pairs(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => amd_family() != Some(0x19),
            _ => false,
        }
    }

    /// Whether kernels exist that multiply two vectors of weight rows together.
    pub(super) fn has_pairs(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// Whether many rows of x are multiplied by matrix tiles, where formats allow it.
    pub(super) fn tiles(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => super::amx::available(),
            _ => false,
        }
    }

    /// Weight rows that integer kernels work on together.
    pub(super) fn lanes(self) -> usize {
        match self {
            Isa::Portable => Scalar::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx2Vnni => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot | Isa::NeonI8mm => Neon::LANES,
        }
    }

    /// What is subtracted from wide bytes; see [`Simd::WIDE_BASE`].
    pub(super) fn wide_base(self) -> i32 {
        match self {
            Isa::Portable => Scalar::WIDE_BASE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::WIDE_BASE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Vnni => Avx2Vnni::WIDE_BASE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Avx512::WIDE_BASE,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::WIDE_BASE,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => NeonDot::WIDE_BASE,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => NeonI8mm::WIDE_BASE,
        }
    }

    /// Runs a kernel, compiled for these instructions.
    ///
    /// # Safety
    /// What the kernel asks for.
    pub(super) unsafe fn enter<K: Kernel>(self, kernel: K) {
        // SAFETY: an `Isa` other than portable exists only where its features were detected; the rest is the
        // caller's promise.
        unsafe {
            match self {
                Isa::Portable => super::scalar::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => super::avx2::enter(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2Vnni => super::avx2::enter_vnni(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => super::avx512::enter(kernel),
                #[cfg(target_arch = "aarch64")]
                Isa::Neon => super::neon::enter(kernel),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonDot => super::neon::enter_dot(kernel),
                #[cfg(target_arch = "aarch64")]
                Isa::NeonI8mm => super::neon::enter_i8mm(kernel),
            }
        }
    }
}

/// The family of a processor by AMD: 19h is Zen 3 and 4, of which the latter have AVX-512.
#[cfg(target_arch = "x86_64")]
fn amd_family() -> Option<u32> {
    use std::arch::x86_64::__cpuid;
    let vendor = __cpuid(0);
    let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    let version = __cpuid(1).eax;
    // The base and, where it is all ones, the extension.
    let (base, extension) = (version >> 8 & 15, version >> 20 & 255);
    amd.then_some(base + if base == 15 { extension } else { 0 })
}

/// Compiles a plain function once for every instruction set; the first argument of the result picks one.
///
/// The compiler vectorises the same f32 operations, in the same order, ever wider: the results are the same bits.
/// Everything that the body calls must be `#[inline(always)]` to take part.
macro_rules! for_each_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::cpu::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match isa {
                $crate::cpu::isa::Isa::Portable => body($($arg),*),
                // SAFETY: an `Isa` other than portable exists only where its features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Isa::Avx2 | $crate::cpu::isa::Isa::Avx2Vnni => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::isa::Isa::Avx512 | $crate::cpu::isa::Isa::Avx512Bf16 => unsafe { avx512($($arg),*) },
                // Plain code has NEON anyway, and integer dot products are no part of it.
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::isa::Isa::Neon
                | $crate::cpu::isa::Isa::NeonDot
                | $crate::cpu::isa::Isa::NeonI8mm => body($($arg),*),
            }
        }
    };
}
pub(crate) use for_each_isa;
