//! [`Simd`] for AVX2 with FMA: 8 rows, `vpmaddubsw` and `vpmaddwd`, or the VNNI instruction where there is one.

use std::arch::x86_64::*;

use super::simd::{Kernel, Simd, array};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// The same with AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Avx2Vnni;

/// Runs a kernel that is compiled for AVX2.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<Avx2>() }
}

/// Runs a kernel that is compiled for AVX2 with AVX-VNNI.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn enter_vnni<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<Avx2Vnni>() }
}

macro_rules! avx2 {
    ($name:ident, $base:expr, $folds:expr, |$sum:ident, $unsigned:ident, $signed:ident, $wide:ident| $dot:expr) => {
        // SAFETY: the methods need what the trait's contract promises: the features, and valid pointers.
        unsafe impl Simd for $name {
            const LANES: usize = 8;
            const X_ROWS: usize = 4;
            const WIDE_BASE: i32 = $base;
            type I = __m256i;
            type F = __m256;

            #[inline(always)]
            unsafe fn load16(from: *const u8, stride: usize) -> [__m256i; 4] {
                // SAFETY: as above.
                unsafe {
                    let row = array!(i < 8 => _mm_loadu_si128(from.add(i * stride).cast()));
                    let [a, b, c, d] = array!(i < 4 => {
                        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row[i]), row[4 + i])
                    });
                    let (ab0, ab1) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                    let (cd0, cd1) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                    [
                        _mm256_unpacklo_epi64(ab0, cd0),
                        _mm256_unpackhi_epi64(ab0, cd0),
                        _mm256_unpacklo_epi64(ab1, cd1),
                        _mm256_unpackhi_epi64(ab1, cd1),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn splat(x: i32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_set1_epi32(x) }
            }

            #[inline(always)]
            unsafe fn load(from: *const i32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_loadu_si256(from.cast()) }
            }

            #[inline(always)]
            unsafe fn load_words(from: *const u8) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) }
            }

            #[inline(always)]
            unsafe fn store(x: __m256i, to: *mut i32) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_si256(to.cast(), x) }
            }

            #[inline(always)]
            unsafe fn and(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_and_si256(a, b) }
            }

            #[inline(always)]
            unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_or_si256(a, b) }
            }

            #[inline(always)]
            unsafe fn xor(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_xor_si256(a, b) }
            }

            #[inline(always)]
            unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_add_epi32(a, b) }
            }

            #[inline(always)]
            unsafe fn sub(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_sub_epi32(a, b) }
            }

            #[inline(always)]
            unsafe fn mul_low(a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_mullo_epi32(a, b) }
            }

            #[inline(always)]
            unsafe fn dot_words(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
            }

            #[inline(always)]
            unsafe fn shr(a: __m256i, n: u32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
            }

            #[inline(always)]
            unsafe fn shl(a: __m256i, n: u32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_sll_epi32(a, _mm_cvtsi32_si128(n as i32)) }
            }

            #[inline(always)]
            unsafe fn sar(a: __m256i, n: u32) -> __m256i {
                // SAFETY: as above.
                unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(n as i32)) }
            }

            #[inline(always)]
            unsafe fn lookup(table: &[u8; 16], index: __m256i) -> __m256i {
                // SAFETY: as above; the table has 16 bytes.
                unsafe {
                    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
                    _mm256_shuffle_epi8(table, index)
                }
            }

            #[inline(always)]
            unsafe fn spread(bits: __m256i, n: usize) -> __m256i {
                let byte = (n / 2) as i32 * 0x0101_0101;
                let each = if n.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 };
                // SAFETY: as above.
                unsafe {
                    let lanes = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
                    let pick = _mm256_add_epi32(_mm256_broadcastsi128_si256(lanes), _mm256_set1_epi32(byte));
                    let each = _mm256_set1_epi32(each);
                    let bits = _mm256_and_si256(_mm256_shuffle_epi8(bits, pick), each);
                    _mm256_and_si256(_mm256_cmpeq_epi8(bits, each), _mm256_set1_epi8(16))
                }
            }

            #[inline(always)]
            unsafe fn dot<const $wide: bool>($sum: __m256i, $unsigned: __m256i, $signed: __m256i) -> __m256i {
                // SAFETY: as above.
                unsafe { $dot }
            }

            const FOLDS: bool = $folds;

            // Eight products of up to 31 * 127 fit 16 bits, so one widening serves four dwords.
            #[inline(always)]
            unsafe fn dot_four(sum: __m256i, unsigned: [__m256i; 4], signed: [__m256i; 4]) -> __m256i {
                // SAFETY: as above.
                unsafe {
                    let pairs = array!(c < 4 => _mm256_maddubs_epi16(unsigned[c], signed[c]));
                    let pairs = _mm256_add_epi16(
                        _mm256_add_epi16(pairs[0], pairs[1]),
                        _mm256_add_epi16(pairs[2], pairs[3]),
                    );
                    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                }
            }

            #[inline(always)]
            unsafe fn splat_f(x: f32) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_set1_ps(x) }
            }

            #[inline(always)]
            unsafe fn load_f(from: *const f32) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_loadu_ps(from) }
            }

            #[inline(always)]
            unsafe fn store_f(x: __m256, to: *mut f32) {
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(to, x) }
            }

            #[inline(always)]
            unsafe fn mul(a: __m256, b: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_mul_ps(a, b) }
            }

            #[inline(always)]
            unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_fmadd_ps(a, b, c) }
            }

            #[inline(always)]
            unsafe fn to_f(x: __m256i) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_cvtepi32_ps(x) }
            }

            #[inline(always)]
            unsafe fn bits_to_f(x: __m256i) -> __m256 {
                // SAFETY: as above.
                unsafe { _mm256_castsi256_ps(x) }
            }

            #[inline(always)]
            unsafe fn half_to_f(x: __m256i) -> __m256 {
                // SAFETY: as above.
                unsafe {
                    let low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
                    let pairs = _mm256_packus_epi32(low, low);
                    let eight = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(pairs));
                    _mm256_cvtph_ps(eight)
                }
            }

            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                // SAFETY: as above; a prefetch of any address is harmless.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
            }
        }
    };
}

// Bytes up to 127: a pair of products stays below 2^15. Wide ones become signed; their sign moves to x.
avx2!(Avx2, 128, true, |sum, unsigned, signed, WIDE| {
    let (u, s) = if WIDE {
        let centred = _mm256_xor_si256(unsigned, _mm256_set1_epi8(-128));
        (_mm256_abs_epi8(centred), _mm256_sign_epi8(signed, centred))
    } else {
        (unsigned, signed)
    };
    let pairs = _mm256_maddubs_epi16(u, s);
    _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
});

avx2!(Avx2Vnni, 0, false, |sum, unsigned, signed, WIDE| _mm256_dpbusd_avx_epi32(sum, unsigned, signed));
