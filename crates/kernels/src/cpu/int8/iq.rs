//! Formats whose nibbles are indices into a table.

use std::ops::Range;

use files::quant::{IQ4_VALUES, MXFP4_VALUES};

use super::legacy::{Pairs, pair18};
use super::{Emit, Order, Source, Unpack, field, nibbles};
use crate::cpu::simd::{Simd, array, unrolled};

#[derive(Clone, Copy)]
pub(super) struct IQ4NL;
#[derive(Clone, Copy)]
pub(super) struct IQ4XS;
/// The smallest exponent, 2^-127, reads as zero.
#[derive(Clone, Copy)]
pub(super) struct Mxfp4;

/// A table raised until no value is negative.
const fn raised(table: [i8; 16], by: i32) -> [u8; 16] {
    let mut out = [0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (table[i] as i32 + by) as u8;
        i += 1;
    }
    out
}

static IQ4_TABLE: [u8; 16] = raised(IQ4_VALUES, 128);
static MXFP4_TABLE: [u8; 16] = raised(MXFP4_VALUES, 12);

/// The table's values for nibbles.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn look<S: Simd>(table: &[u8; 16], q: [S::I; 4]) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe {
        let q = nibbles::<S>(q);
        array!(i < 8 => S::lookup(table, q[i]))
    }
}

impl Unpack for IQ4NL {
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;
    const ORDER: Order = Order::Rotated16;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = S::splat_f(0.0);
            for b in blocks.clone().step_by(8) {
                let mut pairs = Pairs::<S>::new(source, 18 * b);
                unrolled!(i in [0, 1, 2, 3] => {
                    let [first, second] = pair18::<S>(pairs.pair(source, 18 * b, i));
                    if b + 2 * i < blocks.end {
                        emit.block(b + 2 * i, look::<S>(&IQ4_TABLE, first.1), first.0, none);
                    }
                    if b + 2 * i + 1 < blocks.end {
                        emit.block(b + 2 * i + 1, look::<S>(&IQ4_TABLE, second.1), second.0, none);
                    }
                });
            }
        }
    }
}

impl Unpack for IQ4XS {
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;
    const WHOLE: usize = 8;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = S::splat_f(0.0);
            for b in blocks.step_by(8) {
                let at = b / 8 * 136;
                let [head, lows, _, _] = source.load::<S>(at);
                let d = S::half_to_f(head);
                unrolled!(j in [0, 1, 2, 3, 4, 5, 6, 7] => {
                    let high = S::shl(field::<S>(head, 16 + 2 * j, 3), 4);
                    let scale = S::sub(S::or(field::<S>(lows, 4 * j, 15), high), S::splat(32));
                    let scale = S::mul(d, S::to_f(scale));
                    let q = source.load::<S>(at + 8 + 16 * j);
                    emit.block(b + j, look::<S>(&IQ4_TABLE, q), scale, none);
                });
            }
        }
    }
}

impl Unpack for Mxfp4 {
    const BITS: u32 = 8;
    const OFFSET: i32 = 12;
    const WHOLE: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = S::splat_f(0.0);
            for b in blocks {
                let exponent = field::<S>(source.load::<S>(17 * b)[0], 0, 255);
                let d = S::mul(S::bits_to_f(S::shl(exponent, 23)), S::splat_f(0.5));
                let q = source.load::<S>(17 * b + 1);
                emit.block(b, look::<S>(&MXFP4_TABLE, q), d, none);
            }
        }
    }
}
