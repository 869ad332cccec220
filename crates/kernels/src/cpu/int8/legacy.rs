//! GGML's 32-value blocks. Their sizes are even but seldom multiples of four: eight blocks are always a whole number
//! of 16-byte loads, and in every second block the dwords hold neighbours in a rotated order, which x shares.

use std::ops::Range;

use super::{Emit, Order, Source, Unpack, nibbles};
use crate::cpu::simd::{Simd, array, unrolled};

/// `d`, nibbles: 18 bytes.
#[derive(Clone, Copy)]
pub(super) struct Q4_0;
/// `d`, `m`, nibbles: 20 bytes.
#[derive(Clone, Copy)]
pub(super) struct Q4_1;
/// `d`, fifth bits, nibbles: 22 bytes.
#[derive(Clone, Copy)]
pub(super) struct Q5_0;
/// `d`, `m`, fifth bits, nibbles: 24 bytes.
#[derive(Clone, Copy)]
pub(super) struct Q5_1;
/// `d`, bytes: 34 bytes.
#[derive(Clone, Copy)]
pub(super) struct Q8_0;

/// The high half of `a` and, above it, the low half of `b` stay where they are in memory order:
/// the last two bytes of what starts at `a`'s second half end up low, as [`Order`] says.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn wrap<S: Simd>(head: S::I, tail: S::I) -> S::I {
    // SAFETY: as the caller promises.
    unsafe { S::or(S::and(head, S::splat(0xffff_0000_u32 as i32)), S::and(tail, S::splat(0x0000_ffff))) }
}

/// Nine dwords of two 18-byte blocks: `(d, nibbles)` of both.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn pair18<S: Simd>(x: [S::I; 9]) -> [(S::F, [S::I; 4]); 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let (first, second) = (S::half_to_f(x[0]), S::half_to_f(S::shr(x[4], 16)));
        [(first, [wrap::<S>(x[0], x[4]), x[1], x[2], x[3]]), (second, [x[5], x[6], x[7], x[8]])]
    }
}

/// Eight 18-byte blocks at `at`, as four pairs of nine dwords, each read when it is asked for: `next` holds what the
/// last load of the pair before had left.
#[derive(Clone, Copy)]
pub(super) struct Pairs<S: Simd> {
    next: [S::I; 4],
}

impl<S: Simd> Pairs<S> {
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    pub(super) unsafe fn new(source: &Source, at: usize) -> Self {
        // SAFETY: as the caller promises.
        Self { next: unsafe { source.load::<S>(at) } }
    }

    /// Pair `i`, after the pairs before it.
    ///
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    pub(super) unsafe fn pair(&mut self, source: &Source, at: usize, i: usize) -> [S::I; 9] {
        // SAFETY: as the caller promises.
        unsafe {
            let (x, y) = (self.next, source.load_two::<S>(at + 16 * (2 * i + 1)));
            self.next = [y[4], y[5], y[6], y[7]];
            array!(n < 9 => if i + n < 4 { x[i + n] } else { y[i + n - 4] })
        }
    }
}

impl Unpack for Q4_0 {
    const BITS: u32 = 4;
    const OFFSET: i32 = 8;
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
                        emit.block(b + 2 * i, nibbles::<S>(first.1), first.0, none);
                    }
                    if b + 2 * i + 1 < blocks.end {
                        emit.block(b + 2 * i + 1, nibbles::<S>(second.1), second.0, none);
                    }
                });
            }
        }
    }
}

impl Unpack for Q4_1 {
    const BITS: u32 = 4;
    const MIN: bool = true;
    const WHOLE: usize = 4;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for b in blocks.clone().step_by(4) {
                let x = array!(i < 5 => source.load::<S>(20 * b + 16 * i));
                unrolled!(i in [0, 1, 2, 3] => {
                    if b + i < blocks.end {
                        let [dm, q @ ..] = array!(n < 5 => x[(5 * i + n) / 4][(5 * i + n) % 4]);
                        let (d, m) = both_halves::<S>(dm);
                        emit.block(b + i, nibbles::<S>(q), d, m);
                    }
                });
            }
        }
    }
}

/// Nibbles with their fifth bits; bit `j` of `bits` belongs to value `j`.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn fifth<S: Simd>(q: [S::I; 4], bits: S::I) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe {
        let w = nibbles::<S>(q);
        array!(i < 8 => S::or(w[i], S::spread(bits, i)))
    }
}

impl Unpack for Q5_0 {
    const BITS: u32 = 5;
    const OFFSET: i32 = 16;
    const ORDER: Order = Order::Rotated16;
    const WHOLE: usize = 2;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = S::splat_f(0.0);
            for b in blocks.clone().step_by(2) {
                // 44 bytes: the last load starts early, and its first dword is known already.
                let (x, y) = (source.load::<S>(22 * b), source.load::<S>(22 * b + 16));
                let z = source.load::<S>(22 * b + 28);
                let bits = S::or(S::shr(x[0], 16), S::shl(x[1], 16));
                // Each half's bits turn by two, as its nibbles do.
                let turned = S::or(
                    S::and(S::shl(bits, 2), S::splat(0xfffc_fffc_u32 as i32)),
                    S::and(S::shr(bits, 14), S::splat(0x0003_0003)),
                );
                let q = [wrap::<S>(x[1], y[1]), x[2], x[3], y[0]];
                emit.block(b, fifth::<S>(q, turned), S::half_to_f(x[0]), none);
                if b + 1 < blocks.end {
                    let d = S::half_to_f(S::shr(y[1], 16));
                    emit.block(b + 1, fifth::<S>(z, y[2]), d, none);
                }
            }
        }
    }
}

/// Both halves of a dword as floats.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn both_halves<S: Simd>(x: S::I) -> (S::F, S::F) {
    // SAFETY: as the caller promises.
    unsafe { (S::half_to_f(x), S::half_to_f(S::shr(x, 16))) }
}

impl Unpack for Q5_1 {
    const BITS: u32 = 5;
    const MIN: bool = true;
    const WHOLE: usize = 2;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            for b in blocks.clone().step_by(2) {
                let [x, y, z] = array!(i < 3 => source.load::<S>(24 * b + 16 * i));
                let (d, m) = both_halves::<S>(x[0]);
                emit.block(b, fifth::<S>([x[2], x[3], y[0], y[1]], x[1]), d, m);
                if b + 1 < blocks.end {
                    let (d, m) = both_halves::<S>(y[2]);
                    emit.block(b + 1, fifth::<S>(z, y[3]), d, m);
                }
            }
        }
    }
}

impl Unpack for Q8_0 {
    const BITS: u32 = 8;
    const OFFSET: i32 = 128;
    const ORDER: Order = Order::Rotated32;
    const WHOLE: usize = 2;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let none = S::splat_f(0.0);
            let sign = S::splat(0x8080_8080_u32 as i32);
            for b in blocks.clone().step_by(2) {
                let (x, y) = (source.load_two::<S>(34 * b), source.load_two::<S>(34 * b + 36));
                let middle = source.load::<S>(34 * b + 24);
                let w = [wrap::<S>(x[0], middle[2]), x[1], x[2], x[3], x[4], x[5], x[6], x[7]];
                let d = S::half_to_f(x[0]);
                emit.block(b, array!(i < 8 => S::xor(w[i], sign)), d, none);
                if b + 1 < blocks.end {
                    let d = S::half_to_f(S::shr(middle[2], 16));
                    emit.block(b + 1, array!(i < 8 => S::xor(y[i], sign)), d, none);
                }
            }
        }
    }
}
