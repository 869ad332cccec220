//! AVX-512.

use std::arch::x86_64::*;

use half::f16;

use super::{LANES, Wide};

/// A vector of AVX-512, with pairs as two vectors or as bf16.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Zmm<const BF16: bool>(__m512);

// SAFETY: the methods need what the trait's contract promises: AVX-512 F, DQ and BW, with `BF16` that too, and valid
// pointers.
unsafe impl<const BF16: bool> Wide for Zmm<BF16> {
    const TILE: usize = 4;
    /// Of bf16 the first has both.
    type Pair = (__m512, __m512);
    const PAIR: usize = if BF16 { 1 } else { 2 };

    #[inline(always)]
    unsafe fn pair(even: Self, odd: Self) -> Self::Pair {
        if !BF16 {
            return (even.0, odd.0);
        }
        // SAFETY: the trait's contract.
        unsafe {
            // All even ones and then all odd ones, which take turns from here on.
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd.0, even.0));
            let turns = _mm512_set_epi32(
                0x1f_000f, 0x1e_000e, 0x1d_000d, 0x1c_000c, 0x1b_000b, 0x1a_000a, 0x19_0009, 0x18_0008,
                0x17_0007, 0x16_0006, 0x15_0005, 0x14_0004, 0x13_0003, 0x12_0002, 0x11_0001, 0x10_0000,
            );
            (_mm512_castsi512_ps(_mm512_permutexvar_epi16(turns, both)), _mm512_undefined_ps())
        }
    }

    #[inline(always)]
    unsafe fn load_pair(from: *const f32) -> Self::Pair {
        // SAFETY: as above.
        unsafe {
            let odd = if BF16 { _mm512_undefined_ps() } else { _mm512_loadu_ps(from.add(LANES)) };
            (_mm512_loadu_ps(from), odd)
        }
    }

    #[inline(always)]
    unsafe fn store_pair(pair: Self::Pair, to: *mut f32) {
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_ps(to, pair.0);
            if !BF16 {
                _mm512_storeu_ps(to.add(LANES), pair.1);
            }
        }
    }

    #[inline(always)]
    unsafe fn splat_pair<const APART: usize>(from: *const f32) -> Self::Pair {
        // SAFETY: as above.
        unsafe {
            let odd = if BF16 { _mm512_undefined_ps() } else { _mm512_set1_ps(*from.add(APART)) };
            (_mm512_set1_ps(*from), odd)
        }
    }

    #[inline(always)]
    unsafe fn fma_pair(a: Self::Pair, b: Self::Pair, c: Self) -> Self {
        // SAFETY: as above; where pairs are bf16 this instruction set is there.
        unsafe {
            if BF16 {
                let [a, b] = [a.0, b.0].map(|x| std::mem::transmute::<__m512, __m512bh>(x));
                Self(_mm512_dpbf16_ps(c.0, a, b))
            } else {
                Self(_mm512_fmadd_ps(a.0, b.0, _mm512_fmadd_ps(a.1, b.1, c.0)))
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn splat_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned()))) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn load_half(from: *const f16) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bytes(from: *const i8) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn store_half(self, to: *mut f16) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_add_ps(self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_mul_ps(self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above; the array has four values.
        unsafe {
            let p = _mm512_shuffle_f32x4::<0b01_00_01_00>(x[0].0, x[1].0);
            let ab = _mm512_add_ps(p, _mm512_shuffle_f32x4::<0b11_10_11_10>(x[0].0, x[1].0));
            let p = _mm512_shuffle_f32x4::<0b01_00_01_00>(x[2].0, x[3].0);
            let cd = _mm512_add_ps(p, _mm512_shuffle_f32x4::<0b11_10_11_10>(x[2].0, x[3].0));
            // A quarter for each of the four.
            let p = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            let sums = _mm512_add_ps(p, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
            let sums = _mm512_add_ps(sums, _mm512_permute_ps::<0b01_00_11_10>(sums));
            let sums = _mm512_add_ps(sums, _mm512_permute_ps::<0b10_11_00_01>(sums));
            let first = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(first, sums)));
            out
        }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
