//! What all GGUF block formats have in common.

use bytemuck::Pod;
use half::f16;

#[cfg(target_endian = "big")]
compile_error!("block structs are read in place: they need a little-endian machine");

/// A GGUF block: a fixed number of values with their scales, in one struct that has the file's exact layout.
///
/// Structs are at most 2-byte aligned. `bytemuck::try_cast_slice` turns aligned bytes into `&[Self]`;
/// `bytemuck::pod_read_unaligned` copies one out of any bytes.
pub trait Block: Pod {
    /// Values in a block.
    const VALUES: usize;

    /// Writes the block's values, in f32, each product and sum rounded, in the order of the `gguf` package.
    ///
    /// Panics if `out` is not [`Block::VALUES`] long.
    fn decode(&self, out: &mut [f32]);

    /// A simple round-to-nearest encoder of [`Block::VALUES`] finite values.
    fn encode(values: &[f32]) -> Self;

    /// Whether every value decodes to a finite number; looks at the scales alone where they decide it.
    fn is_finite(&self) -> bool;
}

pub(super) fn decode<B: Block>(bytes: &[u8], out: &mut [f32]) {
    for (block, values) in bytes.chunks_exact(size_of::<B>()).zip(out.chunks_exact_mut(B::VALUES)) {
        bytemuck::pod_read_unaligned::<B>(block).decode(values);
    }
}

pub(super) fn encode<B: Block>(values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() / B::VALUES * size_of::<B>());
    for block in values.chunks_exact(B::VALUES) {
        bytes.extend_from_slice(bytemuck::bytes_of(&B::encode(block)));
    }
    bytes
}

pub(super) fn first_bad<B: Block>(bytes: &[u8]) -> Option<usize> {
    let mut blocks = bytes.chunks_exact(size_of::<B>());
    blocks.position(|block| !bytemuck::pod_read_unaligned::<B>(block).is_finite())
}

/// The value of largest magnitude, with its sign; the first of equals. 0 for all zeros.
pub(super) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |best: f32, &x| if x.abs() > best.abs() { x } else { best })
}

/// `(min, max)` of finite values.
pub(super) fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &x| (lo.min(x), hi.max(x)))
}

/// `1 / d`, or 0 where all values are 0.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Rounds `x` to the nearest integer in `lo..=hi`.
pub(super) fn nearest(x: f32, lo: i32, hi: i32) -> i32 {
    // A NaN (0/0 of an all-zero block) casts to 0.
    (x.round_ties_even() as i32).clamp(lo, hi)
}

/// The f16 a scale is stored as, and what it reads back as: encoders must round values against the latter.
pub(super) fn stored(d: f32) -> (f16, f32) {
    let half = f16::from_f32(d);
    (half, half.to_f32())
}
