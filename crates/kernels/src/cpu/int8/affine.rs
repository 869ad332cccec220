//! MLX affine formats: packed values, and scales and biases in parts of their own.

use std::mem::MaybeUninit;
use std::ops::Range;

use files::ScaleType;

use super::{BLOCK, CHUNK, Emit, Order, Source, Unpack, nibbles};
use crate::cpu::simd::{Simd, array};

/// 2 bits: four values a byte.
#[derive(Clone, Copy)]
pub(super) struct Affine2;
/// 4 bits: two values a byte, the even one low.
#[derive(Clone, Copy)]
pub(super) struct Affine4;
/// 8 bits.
#[derive(Clone, Copy)]
pub(super) struct Affine8;
/// 3, 5 or 6 bits: a bit stream.
#[derive(Clone, Copy)]
pub(super) struct AffineStream<const BITS: usize>;

/// Scales and biases of a chunk, a vector a group.
struct Groups<S: Simd> {
    d: [MaybeUninit<S::F>; CHUNK],
    m: [MaybeUninit<S::F>; CHUNK],
    first: usize,
    shift: u32,
}

impl<S: Simd> Groups<S> {
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    unsafe fn new(source: &Source, blocks: &Range<usize>) -> Self {
        let shift = (source.group / BLOCK).trailing_zeros();
        let first = blocks.start >> shift;
        let count = ((blocks.end - 1) >> shift) + 1 - first;
        // SAFETY: as the caller promises.
        unsafe {
            let none = [MaybeUninit::uninit(); CHUNK];
            let mut groups = Self { d: none, m: none, first, shift };
            for (part, values) in [(1, &mut groups.d), (2, &mut groups.m)] {
                let from = source.rows[part].add(first * source.scale.bytes());
                let step = 16 / source.scale.bytes();
                for (i, values) in values.chunks_exact_mut(step).take(count.div_ceil(step)).enumerate() {
                    let x = S::load16(from.add(16 * i), source.strides[part]);
                    widen::<S>(source.scale, x, values);
                }
            }
            groups
        }
    }

    /// # Safety
    /// The block is one of those given to [`Groups::new`].
    #[inline(always)]
    unsafe fn of(&self, block: usize) -> (S::F, S::F) {
        // Within bounds as it is; the mask tells the compiler.
        let i = ((block >> self.shift) - self.first) % CHUNK;
        // SAFETY: `new` filled the groups of its blocks.
        unsafe { (self.d[i].assume_init(), self.m[i].assume_init()) }
    }
}

/// Four dwords of scales as floats.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn widen<S: Simd>(ty: ScaleType, x: [S::I; 4], out: &mut [MaybeUninit<S::F>]) {
    // SAFETY: as the caller promises.
    unsafe {
        match ty {
            ScaleType::F32 => {
                for (out, x) in out.iter_mut().zip(x) {
                    out.write(S::bits_to_f(x));
                }
            }
            ScaleType::F16 => {
                for (out, x) in out.chunks_exact_mut(2).zip(x) {
                    out[0].write(S::half_to_f(x));
                    out[1].write(S::half_to_f(S::shr(x, 16)));
                }
            }
            ScaleType::BF16 => {
                for (out, x) in out.chunks_exact_mut(2).zip(x) {
                    out[0].write(S::bits_to_f(S::shl(x, 16)));
                    out[1].write(S::bits_to_f(S::and(x, S::splat(0xffff_0000_u32 as i32))));
                }
            }
        }
    }
}

impl Unpack for Affine4 {
    const BITS: u32 = 4;
    const MIN: bool = true;
    const ORDER: Order = Order::EvenOdd;
    const WHOLE: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let groups = Groups::<S>::new(source, &blocks);
            for b in blocks {
                let (d, m) = groups.of(b);
                emit.block(b, nibbles::<S>(source.load::<S>(16 * b)), d, m);
            }
        }
    }
}

impl Unpack for Affine8 {
    const BITS: u32 = 8;
    const MIN: bool = true;
    const WHOLE: usize = 1;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let groups = Groups::<S>::new(source, &blocks);
            for b in blocks {
                let (d, m) = groups.of(b);
                emit.block(b, source.load_two::<S>(32 * b), d, m);
            }
        }
    }
}

/// Four values of each byte of two dwords.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn quads<S: Simd>(x: [S::I; 2]) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe { array!(i < 8 => S::and(S::shr(x[i / 4], 2 * (i as u32 % 4)), S::splat(0x0303_0303))) }
}

impl Unpack for Affine2 {
    const BITS: u32 = 2;
    const MIN: bool = true;
    const ORDER: Order = Order::Quads;
    const WHOLE: usize = 2;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let groups = Groups::<S>::new(source, &blocks);
            for b in blocks.clone().step_by(2) {
                let x = source.load::<S>(8 * b);
                let (d, m) = groups.of(b);
                emit.block(b, quads::<S>([x[0], x[1]]), d, m);
                if b + 1 < blocks.end {
                    let (d, m) = groups.of(b + 1);
                    emit.block(b + 1, quads::<S>([x[2], x[3]]), d, m);
                }
            }
        }
    }
}

impl<const BITS: usize> Unpack for AffineStream<BITS> {
    const BITS: u32 = BITS as u32;
    const MIN: bool = true;
    const WHOLE: usize = 0;

    #[inline(always)]
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E) {
        // SAFETY: as the caller promises.
        unsafe {
            let groups = Groups::<S>::new(source, &blocks);
            for b in blocks {
                // A block has BITS dwords.
                let x = source.load::<S>(4 * BITS * b);
                let mut dwords = [x[0], x[1], x[2], x[3], x[3], x[3]];
                if BITS > 4 {
                    let y = source.load::<S>(4 * BITS * b + 16);
                    (dwords[4], dwords[5]) = (y[0], y[1]);
                }
                let w = array!(i < 8 => stream::<S, BITS>(&dwords, 4 * i));
                let (d, m) = groups.of(b);
                emit.block(b, w, d, m);
            }
        }
    }
}

/// Values `first .. first + 4` of a stream of `BITS`-bit values, one a byte.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn stream<S: Simd, const BITS: usize>(dwords: &[S::I; 6], first: usize) -> S::I {
    let (at, shift) = (first * BITS / 32, (first * BITS % 32) as u32);
    // SAFETY: as the caller promises.
    unsafe {
        let mut x = S::shr(dwords[at], shift);
        if shift as usize + 4 * BITS > 32 {
            x = S::or(x, S::shl(dwords[at + 1], 32 - shift));
        }
        // Value i moves from bit BITS * i to bit 8 * i.
        let mask = (1i32 << BITS) - 1;
        let [a, b, c, d] =
            array!(i < 4 => S::and(S::shl(x, ((8 - BITS) * i) as u32), S::splat(mask << (8 * i))));
        S::or(S::or(a, b), S::or(c, d))
    }
}
