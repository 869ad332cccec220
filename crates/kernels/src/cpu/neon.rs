//! [`Simd`] for NEON: 8 rows in two vectors, with the dot products that the processor has.
//!
//! `SDOT` and `USDOT` are written in assembly: their intrinsics are not in stable Rust. `SMMLA` is not used: it wants
//! eight consecutive values of two rows in a vector where lanes here hold four of one, and rearranging costs what it
//! saves. What i8mm adds is `USDOT`, which takes unsigned bytes as they are. "Instruction requires: dotprod" from the
//! compiler means that a kernel calls [`Simd::dot`] where it is not inlined: from a closure, say.
//!
//! All three are tested under an emulator of the processors that have them; none has been timed on one.

use std::arch::aarch64::*;
use std::arch::asm;

use super::simd::{Kernel, Simd, array};

/// What every 64-bit Arm processor has.
#[derive(Clone, Copy)]
pub(super) struct Neon;

/// With `SDOT`: from Cortex-A75, Neoverse N1 and Apple's A11 on.
#[derive(Clone, Copy)]
pub(super) struct NeonDot;

/// With `USDOT`: from Neoverse V1 and N2, Cortex-A710 and Apple's M2 on.
#[derive(Clone, Copy)]
pub(super) struct NeonI8mm;

/// Runs a kernel that is compiled for NEON.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "neon")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<Neon>() }
}

/// Runs a kernel that is compiled for NEON with dot products.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn enter_dot<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<NeonDot>() }
}

/// Runs a kernel that is compiled for NEON with dot products of mixed signs.
///
/// # Safety
/// The features are present; and what the kernel asks for.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn enter_i8mm<K: Kernel>(kernel: K) {
    // SAFETY: the features are those of this function; the rest is the caller's promise.
    unsafe { kernel.run::<NeonI8mm>() }
}

/// An operation on unsigned dwords.
macro_rules! unsigned {
    ($op:ident($a:expr $(, $b:expr)*)) => {
        vreinterpretq_s32_u32($op(vreinterpretq_u32_s32($a) $(, $b)*))
    };
}

/// Four rows of four dwords each, transposed.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(row: [int32x4_t; 4]) -> [int32x4_t; 4] {
    let (a, b) = (vtrn1q_s32(row[0], row[1]), vtrn1q_s32(row[2], row[3]));
    let (c, d) = (vtrn2q_s32(row[0], row[1]), vtrn2q_s32(row[2], row[3]));
    let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
    let (c, d) = (vreinterpretq_s64_s32(c), vreinterpretq_s64_s32(d));
    [
        vreinterpretq_s32_s64(vtrn1q_s64(a, b)),
        vreinterpretq_s32_s64(vtrn1q_s64(c, d)),
        vreinterpretq_s32_s64(vtrn2q_s64(a, b)),
        vreinterpretq_s32_s64(vtrn2q_s64(c, d)),
    ]
}

/// Where each byte of `spread` comes from, and which of its bits is meant.
#[inline]
#[target_feature(enable = "neon")]
fn spread_masks(n: usize) -> (uint8x16_t, uint8x16_t) {
    let lanes = vcombine_u32(vcreate_u32(0x0404_0404_0000_0000), vcreate_u32(0x0c0c_0c0c_0808_0808));
    let from = vaddq_u8(vreinterpretq_u8_u32(lanes), vdupq_n_u8((n / 2) as u8));
    let each = if n.is_multiple_of(2) { 0x0804_0201 } else { 0x8040_2010 };
    (from, vreinterpretq_u8_u32(vdupq_n_u32(each)))
}

/// Four products a lane, of signed bytes: the second in -127..=127, so that two products stay within 16 bits.
#[inline]
#[target_feature(enable = "neon")]
fn dot_by_products(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let (low, high) = (vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
    vpadalq_s16(sum, vpaddq_s16(low, high))
}

/// The same with the instruction for it.
///
/// # Safety
/// The processor has dotprod, and the function that this one is inlined into enables it.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the caller promises the feature; registers alone are read and written.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Four products a lane, of unsigned with signed bytes.
///
/// # Safety
/// The processor has i8mm, and the function that this one is inlined into enables it.
#[inline(always)]
unsafe fn usdot(mut sum: int32x4_t, unsigned: uint8x16_t, signed: int8x16_t) -> int32x4_t {
    // SAFETY: the caller promises the feature; registers alone are read and written.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) unsigned, b = in(vreg) signed,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

macro_rules! neon {
    ($name:ident, $base:expr, |$sum:ident, $unsigned:ident, $signed:ident, $wide:ident| $dot:expr) => {
        // SAFETY: the methods need what the trait's contract promises: the features, and valid pointers.
        unsafe impl Simd for $name {
            const LANES: usize = 8;
            // 32 registers: integer and float sums take 24.
            const X_ROWS: usize = 6;
            const WIDE_BASE: i32 = $base;
            type I = [int32x4_t; 2];
            type F = [float32x4_t; 2];

            #[inline(always)]
            unsafe fn load16(from: *const u8, stride: usize) -> [Self::I; 4] {
                // SAFETY: as above.
                unsafe {
                    let [a, b] = array!(half < 2 => {
                        let from = from.add(4 * half * stride);
                        transpose([
                            vreinterpretq_s32_u8(vld1q_u8(from)),
                            vreinterpretq_s32_u8(vld1q_u8(from.add(stride))),
                            vreinterpretq_s32_u8(vld1q_u8(from.add(2 * stride))),
                            vreinterpretq_s32_u8(vld1q_u8(from.add(3 * stride))),
                        ])
                    });
                    [[a[0], b[0]], [a[1], b[1]], [a[2], b[2]], [a[3], b[3]]]
                }
            }

            #[inline(always)]
            unsafe fn splat(x: i32) -> Self::I {
                // SAFETY: as above.
                unsafe { [vdupq_n_s32(x); 2] }
            }

            #[inline(always)]
            unsafe fn load(from: *const i32) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vld1q_s32(from.add(4 * i))) }
            }

            #[inline(always)]
            unsafe fn load_words(from: *const u8) -> Self::I {
                // SAFETY: as above.
                unsafe {
                    let words = vld1q_u16(from.cast());
                    let (low, high) = (vmovl_u16(vget_low_u16(words)), vmovl_high_u16(words));
                    [vreinterpretq_s32_u32(low), vreinterpretq_s32_u32(high)]
                }
            }

            #[inline(always)]
            unsafe fn store(x: Self::I, to: *mut i32) {
                // SAFETY: as above.
                unsafe {
                    vst1q_s32(to, x[0]);
                    vst1q_s32(to.add(4), x[1]);
                }
            }

            #[inline(always)]
            unsafe fn and(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vandq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn or(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vorrq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn xor(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => veorq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn add(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vaddq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn sub(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vsubq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn mul_low(a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vmulq_s32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn dot_words(sum: Self::I, a: Self::I, b: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe {
                    array!(i < 2 => {
                        let (a, b) = (vreinterpretq_s16_s32(a[i]), vreinterpretq_s16_s32(b[i]));
                        let (low, high) = (vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
                        vaddq_s32(sum[i], vpaddq_s32(low, high))
                    })
                }
            }

            // Shifts by a vector: a constant one becomes a shift by an immediate.
            #[inline(always)]
            unsafe fn shr(a: Self::I, n: u32) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => unsigned!(vshlq_u32(a[i], vdupq_n_s32(-(n as i32))))) }
            }

            #[inline(always)]
            unsafe fn shl(a: Self::I, n: u32) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vshlq_s32(a[i], vdupq_n_s32(n as i32))) }
            }

            #[inline(always)]
            unsafe fn sar(a: Self::I, n: u32) -> Self::I {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vshlq_s32(a[i], vdupq_n_s32(-(n as i32)))) }
            }

            #[inline(always)]
            unsafe fn lookup(table: &[u8; 16], index: Self::I) -> Self::I {
                // SAFETY: as above; the table has 16 bytes.
                unsafe {
                    let table = vld1q_u8(table.as_ptr());
                    array!(i < 2 => vreinterpretq_s32_u8(vqtbl1q_u8(table, vreinterpretq_u8_s32(index[i]))))
                }
            }

            #[inline(always)]
            unsafe fn spread(bits: Self::I, n: usize) -> Self::I {
                // SAFETY: as above.
                unsafe {
                    let (from, each) = spread_masks(n);
                    array!(i < 2 => {
                        let set = vtstq_u8(vqtbl1q_u8(vreinterpretq_u8_s32(bits[i]), from), each);
                        vreinterpretq_s32_u8(vandq_u8(set, vdupq_n_u8(16)))
                    })
                }
            }

            #[inline(always)]
            unsafe fn dot<const $wide: bool>(sum: Self::I, unsigned: Self::I, signed: Self::I) -> Self::I {
                // SAFETY: as above.
                unsafe {
                    array!(i < 2 => {
                        let ($sum, $unsigned) = (sum[i], vreinterpretq_u8_s32(unsigned[i]));
                        let $signed = vreinterpretq_s8_s32(signed[i]);
                        $dot
                    })
                }
            }

            #[inline(always)]
            unsafe fn splat_f(x: f32) -> Self::F {
                // SAFETY: as above.
                unsafe { [vdupq_n_f32(x); 2] }
            }

            #[inline(always)]
            unsafe fn load_f(from: *const f32) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vld1q_f32(from.add(4 * i))) }
            }

            #[inline(always)]
            unsafe fn store_f(x: Self::F, to: *mut f32) {
                // SAFETY: as above.
                unsafe {
                    vst1q_f32(to, x[0]);
                    vst1q_f32(to.add(4), x[1]);
                }
            }

            #[inline(always)]
            unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vmulq_f32(a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vfmaq_f32(c[i], a[i], b[i])) }
            }

            #[inline(always)]
            unsafe fn to_f(x: Self::I) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vcvtq_f32_s32(x[i])) }
            }

            #[inline(always)]
            unsafe fn bits_to_f(x: Self::I) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vreinterpretq_f32_s32(x[i])) }
            }

            #[inline(always)]
            unsafe fn half_to_f(x: Self::I) -> Self::F {
                // SAFETY: as above.
                unsafe { array!(i < 2 => vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(x[i])))) }
            }

            #[inline(always)]
            unsafe fn prefetch(at: *const u8) {
                // SAFETY: a prefetch of any address is harmless.
                unsafe {
                    asm!("prfm pldl2keep, [{at}]", at = in(reg) at.addr(), options(nomem, nostack, preserves_flags));
                }
            }
        }
    };
}

/// Unsigned bytes as signed ones: those that may exceed 127 are lowered by 128.
macro_rules! lowered {
    ($wide:ident, $unsigned:ident) => {
        vreinterpretq_s8_u8(if $wide { veorq_u8($unsigned, vdupq_n_u8(0x80)) } else { $unsigned })
    };
}

neon!(Neon, 128, |sum, unsigned, signed, WIDE| dot_by_products(sum, lowered!(WIDE, unsigned), signed));
neon!(NeonDot, 128, |sum, unsigned, signed, WIDE| sdot(sum, lowered!(WIDE, unsigned), signed));
neon!(NeonI8mm, 0, |sum, unsigned, signed, WIDE| usdot(sum, unsigned, signed));
