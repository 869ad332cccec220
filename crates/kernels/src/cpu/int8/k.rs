//! GGML's k-quants: 256-value super-blocks of small integer scales under f16 super-scales.

use std::ops::Range;

use super::{Emit, Source, Unpack, field, high, low};
use crate::cpu::simd::{Simd, array, unrolled};

#[derive(Clone, Copy)]
pub(super) struct Q2K;
#[derive(Clone, Copy)]
pub(super) struct Q3K;
#[derive(Clone, Copy)]
pub(super) struct Q4K;
#[derive(Clone, Copy)]
pub(super) struct Q5K;
#[derive(Clone, Copy)]
pub(super) struct Q6K;

/// Both halves of a dword as floats, the second negated: a scale and a minimum to subtract.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn scale_and_min<S: Simd>(x: S::I) -> (S::F, S::F) {
    // SAFETY: as the caller promises.
    unsafe { (S::half_to_f(x), S::mul(S::half_to_f(S::shr(x, 16)), S::splat_f(-1.0))) }
}

/// `super_scale * x`, for both halves of a block alike.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn scaled<S: Simd>(super_scale: S::F, x: S::I) -> S::F {
    // SAFETY: as the caller promises.
    unsafe { S::mul(super_scale, S::to_f(x)) }
}

/// Scale and minimum of sub-block `j` of 8 in the layout of [`files::quant::scale_min`]; `s` holds the 12 bytes.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn six_bits<S: Simd>(s: [S::I; 3], j: usize) -> (S::I, S::I) {
    // SAFETY: as the caller promises.
    unsafe {
        if j < 4 {
            (field::<S>(s[0], 8 * j, 63), field::<S>(s[1], 8 * j, 63))
        } else {
            let at = 8 * (j - 4);
            let scale = S::or(field::<S>(s[2], at, 15), field::<S>(s[0], at + 2, 0x30));
            (scale, S::or(field::<S>(s[2], at + 4, 15), field::<S>(s[1], at + 2, 0x30)))
        }
    }
}

#[inline(always)]
fn join<I: Copy>(a: [I; 4], b: [I; 4]) -> [I; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

impl Unpack for Q4K {
    const BITS: u32 = 4;
    const MIN: bool = true;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for b in blocks.step_by(8) {
                let at = b / 8 * 144;
                let [dd, s0, s1, s2] = source.load::<S>(at);
                let (d, dmin) = scale_and_min::<S>(dd);
                unrolled!(c in [0, 1, 2, 3] => {
                    let x = source.load::<S>(at + 16 + 32 * c);
                    let y = source.load::<S>(at + 32 + 32 * c);
                    let (scale, min) = six_bits::<S>([s0, s1, s2], 2 * c);
                    let (scale, min) = (scaled::<S>(d, scale), scaled::<S>(dmin, min));
                    emit.block(b + 2 * c, join(low::<S>(x), low::<S>(y)), [scale; 2], [min; 2]);
                    let (scale, min) = six_bits::<S>([s0, s1, s2], 2 * c + 1);
                    let (scale, min) = (scaled::<S>(d, scale), scaled::<S>(dmin, min));
                    emit.block(b + 2 * c + 1, join(high::<S>(x), high::<S>(y)), [scale; 2], [min; 2]);
                });
            }
        }
    }
}

/// Bit `s` of each byte as bit `to`.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn bit<S: Simd>(x: S::I, s: usize, to: usize) -> S::I {
    // SAFETY: as the caller promises.
    unsafe {
        let moved = if s < to { S::shl(x, (to - s) as u32) } else { S::shr(x, (s - to) as u32) };
        S::and(moved, S::splat(0x0101_0101 << to))
    }
}

/// `x` with bit `s` of `bits` above it, at bit `to`.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn with_bit<S: Simd>(x: [S::I; 8], bits: &[S::I; 8], s: usize, to: usize) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe { array!(i < 8 => S::or(x[i], bit::<S>(bits[i], s, to))) }
}

impl Unpack for Q5K {
    const BITS: u32 = 5;
    const MIN: bool = true;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for b in blocks.step_by(8) {
                let at = b / 8 * 176;
                let [dd, s0, s1, s2] = source.load::<S>(at);
                let (d, dmin) = scale_and_min::<S>(dd);
                let bits = source.load_two::<S>(at + 16);
                unrolled!(c in [0, 1, 2, 3] => {
                    let x = source.load::<S>(at + 48 + 32 * c);
                    let y = source.load::<S>(at + 64 + 32 * c);
                    let q = [join(low::<S>(x), low::<S>(y)), join(high::<S>(x), high::<S>(y))];
                    unrolled!(n in [0, 1] => {
                        let j = 2 * c + n;
                        let (scale, min) = six_bits::<S>([s0, s1, s2], j);
                        let (scale, min) = (scaled::<S>(d, scale), scaled::<S>(dmin, min));
                        emit.block(b + j, with_bit::<S>(q[n], &bits, j, 4), [scale; 2], [min; 2]);
                    });
                });
            }
        }
    }
}

/// Bits `2 s ..` of each byte, moved to bits `to ..`.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn two_bits<S: Simd>(x: [S::I; 8], s: usize, to: usize) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe {
        array!(i < 8 => {
            let moved = if 2 * s < to {
                S::shl(x[i], (to - 2 * s) as u32)
            } else {
                S::shr(x[i], (2 * s - to) as u32)
            };
            S::and(moved, S::splat(0x0303_0303 << to))
        })
    }
}

impl Unpack for Q6K {
    const BITS: u32 = 6;
    const HALVES: bool = true;
    const OFFSET: i32 = 32;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = [S::splat_f(0.0); 2];
            for b in blocks.step_by(8) {
                let at = b / 8 * 210;
                let scales = source.load::<S>(at + 192);
                let d = S::half_to_f(S::shr(source.load::<S>(at + 194)[3], 16));
                unrolled!(h in [0, 1] => {
                    let bits = source.load_two::<S>(at + 128 + 32 * h);
                    // The nibbles of values 0 to 31 and 64 to 95, and those of the others.
                    let x = array!(n < 4 => source.load::<S>(at + 64 * h + 16 * n));
                    unrolled!(s in [0, 1, 2, 3] => {
                        let (x, y) = (x[s % 2 * 2], x[s % 2 * 2 + 1]);
                        let q = if s < 2 {
                            join(low::<S>(x), low::<S>(y))
                        } else {
                            join(high::<S>(x), high::<S>(y))
                        };
                        let t = two_bits::<S>(bits, s, 4);
                        let w = array!(i < 8 => S::or(q[i], t[i]));
                        let i = 4 * h + s;
                        let d = array!(j < 2 => {
                            let at = 2 * i + j;
                            scaled::<S>(d, S::sar(S::shl(scales[at / 4], 24 - 8 * (at as u32 % 4)), 24))
                        });
                        emit.block(b + i, w, d, none);
                    });
                });
            }
        }
    }
}

impl Unpack for Q2K {
    const BITS: u32 = 2;
    const HALVES: bool = true;
    const MIN: bool = true;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for b in blocks.step_by(8) {
                let at = b / 8 * 84;
                let scales = source.load::<S>(at);
                let (d, dmin) = scale_and_min::<S>(source.load::<S>(at + 68)[3]);
                unrolled!(h in [0, 1] => {
                    let q = source.load_two::<S>(at + 16 + 32 * h);
                    unrolled!(s in [0, 1, 2, 3] => {
                        let i = 4 * h + s;
                        let (from, at) = (scales[i / 2], 16 * (i % 2));
                        let d = array!(j < 2 => scaled::<S>(d, field::<S>(from, at + 8 * j, 15)));
                        let m = array!(j < 2 => scaled::<S>(dmin, field::<S>(from, at + 8 * j + 4, 15)));
                        emit.block(b + i, two_bits::<S>(q, s, 0), d, m);
                    });
                });
            }
        }
    }
}

/// Scale `j` of 16 of a Q3_K block, whose 12 bytes of scales are `s`.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn six_bits_less_32<S: Simd>(s: [S::I; 3], j: usize) -> S::I {
    // SAFETY: as the caller promises.
    unsafe {
        let low = field::<S>(s[j % 8 / 4], 8 * (j % 4) + 4 * (j / 8), 15);
        let high = field::<S>(s[2], 8 * (j % 4) + 2 * (j / 4), 3);
        S::sub(S::or(low, S::shl(high, 4)), S::splat(32))
    }
}

impl Unpack for Q3K {
    const BITS: u32 = 3;
    const HALVES: bool = true;
    const OFFSET: i32 = 4;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = [S::splat_f(0.0); 2];
            for b in blocks.step_by(8) {
                let at = b / 8 * 110;
                let bits = source.load_two::<S>(at);
                // The last 16 bytes: two of the values, twelve of scales, d.
                let x = source.load::<S>(at + 94);
                let words = array!(i < 3 => S::or(S::shr(x[i], 16), S::shl(x[i + 1], 16)));
                let d = S::half_to_f(S::shr(x[3], 16));
                unrolled!(h in [0, 1] => {
                    let q = source.load_two::<S>(at + 32 + 32 * h);
                    unrolled!(s in [0, 1, 2, 3] => {
                        let i = 4 * h + s;
                        let w = with_bit::<S>(two_bits::<S>(q, s, 0), &bits, i, 2);
                        let d = array!(j < 2 => scaled::<S>(d, six_bits_less_32::<S>(words, 2 * i + j)));
                        emit.block(b + i, w, d, none);
                    });
                });
            }
        }
    }
}
