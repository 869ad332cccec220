//! GGML's k-quants: 256-value super-blocks of small integer scales under f16 super-scales.

use std::ops::Range;

use super::supers::{EmitSuper, MINS, UnpackSuper};
use super::{Source, field, high, low};
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

/// Byte `j` of a row of bytes, four a dword.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn byte<S: Simd, const N: usize>(x: &[S::I; N], j: usize) -> S::I {
    // SAFETY: as the caller promises.
    unsafe { field::<S>(x[j / 4], 8 * (j % 4), 255) }
}

/// Bytes 0 and 2 of a dword as its words, and bytes 1 and 3.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn words<S: Simd>(x: S::I) -> [S::I; 2] {
    // SAFETY: as the caller promises.
    unsafe { [S::and(x, S::splat(0x00ff_00ff)), S::and(S::shr(x, 8), S::splat(0x00ff_00ff))] }
}

/// Scales and minimums of the 8 sub-blocks as bytes, of the layout in [`files::quant::scale_min`]; `s` holds the 12
/// bytes.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn six_bits<S: Simd>(s: [S::I; 3]) -> ([S::I; 2], [S::I; 2]) {
    // SAFETY: as the caller promises.
    unsafe {
        let (low, six) = (S::splat(0x0f0f_0f0f), S::splat(0x3f3f_3f3f));
        let top = |x: S::I| S::and(S::shr(x, 2), S::splat(0x3030_3030));
        let last = [S::and(s[2], low), S::and(S::shr(s[2], 4), low)];
        ([S::and(s[0], six), S::or(last[0], top(s[0]))], [S::and(s[1], six), S::or(last[1], top(s[1]))])
    }
}

/// The minimums of 8 sub-blocks for [`EmitSuper::end`].
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn eight_mins<S: Simd>(mins: [S::I; 2]) -> [S::I; MINS] {
    // SAFETY: as the caller promises.
    unsafe {
        let ([a, b], [c, d], none) = (words::<S>(mins[0]), words::<S>(mins[1]), S::splat(0));
        [a, b, c, d, none, none, none, none]
    }
}

#[inline(always)]
fn join<I: Copy>(a: [I; 4], b: [I; 4]) -> [I; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

impl UnpackSuper for Q4K {
    const BITS: u32 = 4;
    const PARTS: usize = 8;
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in supers {
                let at = s * 144;
                let [dd, s0, s1, s2] = source.load::<S>(at);
                let (d, m) = scale_and_min::<S>(dd);
                let (scales, mins) = six_bits::<S>([s0, s1, s2]);
                unrolled!(c in [0, 1, 2, 3] => {
                    let x = source.load::<S>(at + 16 + 32 * c);
                    let y = source.load::<S>(at + 32 + 32 * c);
                    let scale = byte::<S, 2>(&scales, 2 * c);
                    emit.block(2 * c, join(low::<S>(x), low::<S>(y)), [scale; 2]);
                    let scale = byte::<S, 2>(&scales, 2 * c + 1);
                    emit.block(2 * c + 1, join(high::<S>(x), high::<S>(y)), [scale; 2]);
                });
                emit.end(d, m, eight_mins::<S>(mins));
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

impl UnpackSuper for Q5K {
    const BITS: u32 = 5;
    const PARTS: usize = 8;
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in supers {
                let at = s * 176;
                let [dd, s0, s1, s2] = source.load::<S>(at);
                let (d, m) = scale_and_min::<S>(dd);
                let (scales, mins) = six_bits::<S>([s0, s1, s2]);
                let bits = source.load_two::<S>(at + 16);
                unrolled!(c in [0, 1, 2, 3] => {
                    let x = source.load::<S>(at + 48 + 32 * c);
                    let y = source.load::<S>(at + 64 + 32 * c);
                    let q = [join(low::<S>(x), low::<S>(y)), join(high::<S>(x), high::<S>(y))];
                    unrolled!(n in [0, 1] => {
                        let j = 2 * c + n;
                        let scale = byte::<S, 2>(&scales, j);
                        emit.block(j, with_bit::<S>(q[n], &bits, j, 4), [scale; 2]);
                    });
                });
                emit.end(d, m, eight_mins::<S>(mins));
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

/// What formats without minimums have in their place.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn no_mins<S: Simd>() -> [S::I; MINS] {
    // SAFETY: as the caller promises.
    unsafe { [S::splat(0); MINS] }
}

impl UnpackSuper for Q6K {
    const BITS: u32 = 6;
    const PARTS: usize = 16;
    const OFFSET: i32 = 32;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in supers {
                let at = s * 210;
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
                        let scales = array!(j < 2 => {
                            let at = 2 * i + j;
                            S::sar(S::shl(scales[at / 4], 24 - 8 * (at as u32 % 4)), 24)
                        });
                        emit.block(i, w, scales);
                    });
                });
                emit.end(d, d, no_mins::<S>());
            }
        }
    }
}

impl UnpackSuper for Q2K {
    const BITS: u32 = 2;
    const PARTS: usize = 16;
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in supers {
                let at = s * 84;
                let x = source.load::<S>(at);
                let (scales, mins) = (low::<S>(x), high::<S>(x));
                let (d, m) = scale_and_min::<S>(source.load::<S>(at + 68)[3]);
                unrolled!(h in [0, 1] => {
                    let q = source.load_two::<S>(at + 16 + 32 * h);
                    unrolled!(s in [0, 1, 2, 3] => {
                        let i = 4 * h + s;
                        let scales = array!(j < 2 => byte::<S, 4>(&scales, 2 * i + j));
                        emit.block(i, two_bits::<S>(q, s, 0), scales);
                    });
                });
                let m4 = array!(i < 4 => words::<S>(mins[i]));
                emit.end(d, m, array!(i < MINS => m4[i / 2][i % 2]));
            }
        }
    }
}

/// The scales of a Q3_K block, whose 12 bytes of scales are `s`, as bytes: four a dword, 32 too large.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn six_bits_raised<S: Simd>(s: [S::I; 3]) -> [S::I; 4] {
    // SAFETY: as the caller promises.
    unsafe {
        let low = S::splat(0x0f0f_0f0f);
        array!(i < 4 => {
            let nibbles = S::and(S::shr(s[i % 2], 4 * (i as u32 / 2)), low);
            let moved = if i < 2 { S::shl(s[2], 4 - 2 * i as u32) } else { S::shr(s[2], 2 * i as u32 - 4) };
            S::or(nibbles, S::and(moved, S::splat(0x3030_3030)))
        })
    }
}

impl UnpackSuper for Q3K {
    const BITS: u32 = 3;
    const PARTS: usize = 16;
    const OFFSET: i32 = 4;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in supers {
                let at = s * 110;
                let bits = source.load_two::<S>(at);
                // The last 16 bytes: two of the values, twelve of scales, d.
                let x = source.load::<S>(at + 94);
                let scales =
                    six_bits_raised::<S>(array!(i < 3 => S::or(S::shr(x[i], 16), S::shl(x[i + 1], 16))));
                let d = S::half_to_f(S::shr(x[3], 16));
                unrolled!(h in [0, 1] => {
                    let q = source.load_two::<S>(at + 32 + 32 * h);
                    unrolled!(s in [0, 1, 2, 3] => {
                        let i = 4 * h + s;
                        let w = with_bit::<S>(two_bits::<S>(q, s, 0), &bits, i, 2);
                        let scales =
                            array!(j < 2 => S::sub(byte::<S, 4>(&scales, 2 * i + j), S::splat(32)));
                        emit.block(i, w, scales);
                    });
                });
                emit.end(d, d, no_mins::<S>());
            }
        }
    }
}
