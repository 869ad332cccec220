//! [`Simd`] for AVX-512 with VNNI: 16 rows, `vpdpbusd`.

use std::arch::x86_64::*;

use super::simd::{Kernel, Simd, array};

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// Runs a kernel that is compiled for AVX-512.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<Avx512>() }
}

// SAFETY: the methods need what the trait's contract promises: the features, and valid pointers.
unsafe impl Simd for Avx512 {
    const LANES: usize = 16;
    const X_ROWS: usize = 6;
    const PAIRS: bool = true;
    const WIDE_BASE: i32 = 0;
    type I = __m512i;
    type F = __m512;

    #[inline(always)]
    unsafe fn load16(from: *const u8, stride: usize) -> [__m512i; 4] {
        // SAFETY: as above.
        unsafe {
            // Lane l of vector i: row 4 l + i. The transpose within lanes then leaves the rows in order.
            let mut row = [_mm_setzero_si128(); 16];
            for (i, row) in row.iter_mut().enumerate() {
                *row = _mm_loadu_si128(from.add(i * stride).cast());
            }
            let low =
                array!(i < 4 => _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row[i]), row[4 + i]));
            let high = array!(i < 4 => _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row[8 + i]), row[12 + i]));
            let [a, b, c, d] =
                array!(i < 4 => _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low[i]), high[i]));
            let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab0, cd0),
                _mm512_unpackhi_epi64(ab0, cd0),
                _mm512_unpacklo_epi64(ab1, cd1),
                _mm512_unpackhi_epi64(ab1, cd1),
            ]
        }
    }

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const u8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(x: __m512i, to: *mut i32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }

    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_and_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_xor_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sub_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_low(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn dot_words(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }

    #[inline(always)]
    unsafe fn shr(a: __m512i, n: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }

    #[inline(always)]
    unsafe fn shl(a: __m512i, n: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sll_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }

    #[inline(always)]
    unsafe fn sar(a: __m512i, n: u32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_sra_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], index: __m512i) -> __m512i {
        // SAFETY: as above; the table has 16 bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, index)
        }
    }

    #[inline(always)]
    unsafe fn spread(bits: __m512i, n: usize) -> __m512i {
        let byte = (n / 2) as i32 * 0x0101_0101;
        let each = if n.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 };
        // SAFETY: as above.
        unsafe {
            let pick = _mm512_add_epi32(
                _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c)),
                _mm512_set1_epi32(byte),
            );
            let set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(bits, pick), _mm512_set1_epi32(each));
            _mm512_maskz_set1_epi8(set, 16)
        }
    }

    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: __m512i, unsigned: __m512i, signed: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_dpbusd_epi32(sum, unsigned, signed) }
    }

    #[inline(always)]
    unsafe fn splat_f(x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load_f(from: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_f(x: __m512, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn to_f(x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn bits_to_f(x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(x) }
    }

    #[inline(always)]
    unsafe fn half_to_f(x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: as above; a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
