//! Sixteen floats at a time, for the kernels that the compiler does not vectorise well by itself: sums that stay in
//! registers over a loop.
//!
//! Every implementation does the same operations in the same order, so all give the same bits: a sum's lane `i` holds
//! the values `i`, `i + 16`, .., and lanes are summed as [`super::math::tree_sum`] does. What a kernel calls must be
//! `#[inline(always)]`, and closures are left out: neither would be compiled for the instruction set.

#[cfg(target_arch = "x86_64")]
mod zmm;

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::f16;
#[cfg(target_arch = "x86_64")]
pub(super) use zmm::Zmm;

use super::math::{tree_sum, widen};
#[cfg(target_arch = "aarch64")]
use super::simd::array;

/// Lanes of a [`Wide`].
pub(super) const LANES: usize = 16;

/// Sixteen floats.
///
/// # Safety
/// All methods: the instruction set's features are present. Pointers are valid for the sixteen values that a method
/// reads or writes, at any alignment.
pub(super) unsafe trait Wide: Copy {
    /// A tile of so many rows and columns of sums fits the registers.
    const TILE: usize;

    unsafe fn splat(x: f32) -> Self;
    /// One half, widened.
    unsafe fn splat_half(from: *const f16) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_half(from: *const f16) -> Self;
    unsafe fn load_bytes(from: *const i8) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to the nearest half.
    unsafe fn store_half(self, to: *mut f16);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The sums of the lanes of four vectors.
    unsafe fn sums(x: [Self; 4]) -> [f32; 4];
    /// Asks for a cache line, at any address.
    unsafe fn prefetch(at: *const u8);

    /// Sixteen pairs of floats. Where [`Self::PAIR`] is 1 they are two bf16 in a word, rounded if they must be; else they
    /// are as exact as what they are made of.
    type Pair: Copy;
    /// Words of a pair. Stored, sixteen of one word lie in their order; of two, all even ones before all odd ones.
    const PAIR: usize;
    unsafe fn pair(even: Self, odd: Self) -> Self::Pair;
    unsafe fn load_pair(from: *const f32) -> Self::Pair;
    unsafe fn store_pair(pair: Self::Pair, to: *mut f32);
    /// One pair for all lanes, the odd one `APART` words after the even one if it is two words.
    unsafe fn splat_pair<const APART: usize>(from: *const f32) -> Self::Pair;
    /// `c + a.odd * b.odd`, and to that `a.even * b.even`, each rounded once: what VDPBF16PS does.
    unsafe fn fma_pair(a: Self::Pair, b: Self::Pair, c: Self) -> Self;
}

/// Pairs as two vectors.
macro_rules! pairs_of_two {
    () => {
        type Pair = (Self, Self);
        const PAIR: usize = 2;

        #[inline(always)]
        unsafe fn pair(even: Self, odd: Self) -> (Self, Self) {
            (even, odd)
        }

        #[inline(always)]
        unsafe fn load_pair(from: *const f32) -> (Self, Self) {
            // SAFETY: the caller promises both.
            unsafe { (Self::load(from), Self::load(from.add(LANES))) }
        }

        #[inline(always)]
        unsafe fn store_pair((even, odd): (Self, Self), to: *mut f32) {
            // SAFETY: the caller promises room for both.
            unsafe {
                even.store(to);
                odd.store(to.add(LANES));
            }
        }

        #[inline(always)]
        unsafe fn splat_pair<const APART: usize>(from: *const f32) -> (Self, Self) {
            // SAFETY: the caller promises both.
            unsafe { (Self::splat(*from), Self::splat(*from.add(APART))) }
        }

        #[inline(always)]
        unsafe fn fma_pair(a: (Self, Self), b: (Self, Self), c: Self) -> Self {
            // SAFETY: the caller's promise.
            unsafe { a.0.fma(b.0, a.1.fma(b.1, c)) }
        }
    };
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

// SAFETY: no features are needed, and pointers are used as the trait says.
unsafe impl Wide for Plain {
    const TILE: usize = 1;
    pairs_of_two!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: the caller promises a half there.
        Self([widen(unsafe { from.read_unaligned() }); LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises sixteen values there.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: the caller promises sixteen values there.
        let halves = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = widen(halves[i]);
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: the caller promises sixteen values there.
        let bytes = unsafe { from.cast::<[i8; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = f32::from(bytes[i]);
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises room for sixteen values.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f16) {
        let mut out = [f16::ZERO; LANES];
        for i in 0..LANES {
            out[i] = f16::from_f32(self.0[i]);
        }
        // SAFETY: the caller promises room for sixteen values.
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(out) }
    }

    #[inline(always)]
    unsafe fn add(mut self, b: Self) -> Self {
        for i in 0..LANES {
            self.0[i] += b.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn mul(mut self, b: Self) -> Self {
        for i in 0..LANES {
            self.0[i] *= b.0[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn fma(mut self, b: Self, c: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = self.0[i].mul_add(b.0[i], c.0[i]);
        }
        self
    }

    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        [tree_sum(x[0].0), tree_sum(x[1].0), tree_sum(x[2].0), tree_sum(x[3].0)]
    }

    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
}

/// Two vectors of AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Ymm(__m256, __m256);

// SAFETY: the methods need what the trait's contract promises: AVX2, FMA and F16C, and valid pointers.
#[cfg(target_arch = "x86_64")]
unsafe impl Wide for Ymm {
    const TILE: usize = 2;
    pairs_of_two!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned()));
            Self(x, x)
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: as above.
        unsafe {
            let (low, high) = (_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast()));
            let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low));
            Self(low, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f16) {
        // SAFETY: as above.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }

    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above; the array has eight values.
        unsafe {
            let (a, b) = (_mm256_add_ps(x[0].0, x[0].1), _mm256_add_ps(x[1].0, x[1].1));
            let (c, d) = (_mm256_add_ps(x[2].0, x[2].1), _mm256_add_ps(x[3].0, x[3].1));
            let (p, q) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
            let ab = _mm256_add_ps(p, q);
            let (p, q) = (_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
            let cd = _mm256_add_ps(p, q);
            let p = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let q = _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd);
            // a a c c in the low half, b b d d in the high one.
            let sums = _mm256_add_ps(p, q);
            let sums = _mm256_add_ps(sums, _mm256_permute_ps::<0b10_11_00_01>(sums));
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), sums);
            [out[0], out[4], out[2], out[6]]
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// Four vectors of NEON.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(super) struct Quad([float32x4_t; 4]);

// SAFETY: the methods need what the trait's contract promises: NEON, and valid pointers.
#[cfg(target_arch = "aarch64")]
unsafe impl Wide for Quad {
    const TILE: usize = 2;
    pairs_of_two!();

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self([vdupq_n_f32(x); 4]) }
    }

    #[inline(always)]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe {
            let half = vdup_n_u16(from.cast::<u16>().read_unaligned());
            Self([vcvt_f32_f16(vreinterpret_f16_u16(half)); 4])
        }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { Self(array!(i < 4 => vld1q_f32(from.add(4 * i)))) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe { Self(array!(i < 4 => vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.add(4 * i).cast()))))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: as above.
        unsafe {
            let bytes = vld1q_s8(from);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let dwords = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            Self(array!(i < 4 => vcvtq_f32_s32(dwords[i])))
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for i in 0..4 {
            // SAFETY: as above.
            unsafe { vst1q_f32(to.add(4 * i), self.0[i]) };
        }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f16) {
        for i in 0..4 {
            // SAFETY: as above.
            unsafe { vst1_u16(to.add(4 * i).cast(), vreinterpret_u16_f16(vcvt_f16_f32(self.0[i]))) };
        }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(array!(i < 4 => vaddq_f32(self.0[i], b.0[i]))) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(array!(i < 4 => vmulq_f32(self.0[i], b.0[i]))) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(array!(i < 4 => vfmaq_f32(c.0[i], self.0[i], b.0[i]))) }
    }

    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above; the array has four values.
        unsafe {
            let four = array!(n < 4 => {
                let [a, b, c, d] = x[n].0;
                vreinterpretq_f64_f32(vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d)))
            });
            let two = array!(n < 2 => {
                let (a, b) = (four[2 * n], four[2 * n + 1]);
                vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
            });
            let mut out = [0.0; 4];
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(two[0], two[1]));
            out
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe {
            std::arch::asm!(
                "prfm pldl1keep, [{at}]", at = in(reg) at.addr(), options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Compiles a kernel over a [`Wide`] once for every instruction set; the first argument of the result picks one.
macro_rules! for_each_width {
    ($(#[$meta:meta])* $vis:vis unsafe fn $name:ident<$wide:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis unsafe fn $name(isa: $crate::cpu::isa::Isa, $($arg: $ty),*) {
            #[inline(always)]
            unsafe fn body<$wide: $crate::cpu::wide::Wide>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) {
                // SAFETY: the features are those of this function; the rest is the caller's promise.
                unsafe { body::<$crate::cpu::wide::Ymm>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            unsafe fn avx512($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { body::<$crate::cpu::wide::Zmm<false>>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16"
            )]
            unsafe fn avx512_bf16($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { body::<$crate::cpu::wide::Zmm<true>>($($arg),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon")]
            unsafe fn neon($($arg: $ty),*) {
                // SAFETY: as above.
                unsafe { body::<$crate::cpu::wide::Quad>($($arg),*) }
            }
            // SAFETY: an `Isa` other than portable exists only where its features were detected; the rest is the
            // caller's promise.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx2 | $crate::cpu::isa::Isa::Avx2Vnni => avx2($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::cpu::isa::Isa::Avx512Bf16 => avx512_bf16($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    $crate::cpu::isa::Isa::Neon
                    | $crate::cpu::isa::Isa::NeonDot
                    | $crate::cpu::isa::Isa::NeonI8mm => neon($($arg),*),
                    $crate::cpu::isa::Isa::Portable => body::<$crate::cpu::wide::Plain>($($arg),*),
                }
            }
        }
    };
}
pub(super) use for_each_width;
