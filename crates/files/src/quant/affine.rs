//! MLX affine quantisation: `w = q * scale + bias`, one scale and one bias for each group along a row.
//!
//! Values are `bits` wide and packed low bits first into a little-endian bit stream. For 2, 4 and 8 bits that
//! is the same as `32 / bits` values in each little-endian `u32` word; 3, 5 and 6 bits straddle bytes
//! (8 values in 3 or 5 bytes, 4 values in 3 bytes). A group is always a whole number of `u32` words.
//! Source: the documentation of `mlx.core.quantize`; checked against its output.

use super::{ScaleType, float};

/// One matrix row's (or any whole number of groups') three parts, with how to read them.
#[derive(Clone, Copy, Debug)]
pub struct AffineRow<'a> {
    /// Bits of a value: 2, 3, 4, 5, 6 or 8.
    pub bits: u8,
    /// Values that share a scale and a bias: 32, 64 or 128.
    pub group: u8,
    /// The type of scales and biases.
    pub scale: ScaleType,
    /// The bit stream, `values * bits / 8` bytes.
    pub packed: &'a [u8],
    /// One scale a group.
    pub scales: &'a [u8],
    /// One bias a group.
    pub biases: &'a [u8],
}

/// Value `i` of a packed little-endian bit stream of `bits`-bit values, `bits <= 8`.
///
/// Panics if the stream is shorter than that: the caller has checked its sizes.
#[inline]
pub fn affine_value(bits: u8, packed: &[u8], i: usize) -> u8 {
    let bits = bits as usize;
    let (byte, shift) = (i * bits / 8, i * bits % 8);
    // A value straddles two bytes at most; the second is read only if needed, as the last may not exist.
    let mut wide = packed[byte] as u16;
    if shift + bits > 8 {
        wide |= (packed[byte + 1] as u16) << 8;
    }
    ((wide >> shift) & ((1 << bits) - 1)) as u8
}

/// Writes value `i` of a packed bit stream whose bits there are still zero.
fn put_value(bits: u8, packed: &mut [u8], i: usize, q: u8) {
    let bits = bits as usize;
    let (byte, shift) = (i * bits / 8, i * bits % 8);
    let wide = (q as u16) << shift;
    packed[byte] |= wide as u8;
    if shift + bits > 8 {
        packed[byte + 1] |= (wide >> 8) as u8;
    }
}

impl AffineRow<'_> {
    /// Scale and bias of group `g`.
    #[inline]
    pub fn scale_bias(&self, g: usize) -> (f32, f32) {
        (float::value(self.scale, self.scales, g), float::value(self.scale, self.biases, g))
    }

    pub(super) fn decode(&self, out: &mut [f32]) {
        let group = self.group as usize;
        for (g, values) in out.chunks_exact_mut(group).enumerate() {
            let (scale, bias) = self.scale_bias(g);
            let value = |q: u8| q as f32 * scale + bias;
            let bytes = &self.packed[g * group * self.bits as usize / 8..];
            // The exact mode decodes these two widths all day long; without bit positions the loops vectorise.
            match self.bits {
                4 => values.chunks_exact_mut(2).zip(bytes).for_each(|(pair, byte)| {
                    (pair[0], pair[1]) = (value(byte & 15), value(byte >> 4));
                }),
                8 => values.iter_mut().zip(bytes).for_each(|(o, byte)| *o = value(*byte)),
                bits => (0..).zip(values).for_each(|(j, o)| *o = value(affine_value(bits, bytes, j))),
            }
        }
    }

    /// The first group whose smallest or largest possible value is not finite.
    pub(super) fn first_bad(&self) -> Option<usize> {
        let top = ((1u32 << self.bits) - 1) as f32;
        (0..self.scales.len() / self.scale.bytes()).find(|&g| {
            let (scale, bias) = self.scale_bias(g);
            !(scale.is_finite() && bias.is_finite() && (top * scale + bias).is_finite())
        })
    }
}

/// Quantises groups as `mlx.core.quantize` does: the edge of larger magnitude is hit exactly, and zero is
/// representable. Values are rounded with the unrounded f32 scale; scale and bias are rounded when stored.
pub(super) fn encode(bits: u8, group: u8, scale_type: ScaleType, values: &[f32]) -> Vec<Vec<u8>> {
    let group = group as usize;
    let mut packed = vec![0; values.len() * bits as usize / 8];
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    let top = ((1u32 << bits) - 1) as f32;
    for (g, w) in values.chunks_exact(group).enumerate() {
        let min = w.iter().copied().fold(f32::INFINITY, f32::min);
        let max = w.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let low_edge = min.abs() > max.abs();
        let step = ((max - min) / top).max(1e-7);
        let mut scale = if low_edge { step } else { -step };
        let edge = if low_edge { min } else { max };
        let q0 = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if q0 != 0.0 {
            scale = edge / q0;
            bias = edge;
        }
        float::push(scale_type, scale, &mut scales);
        float::push(scale_type, bias, &mut biases);
        for (j, &x) in w.iter().enumerate() {
            let q = ((x - bias) / scale).round_ties_even().clamp(0.0, top) as u8;
            put_value(bits, &mut packed, g * group + j, q);
        }
    }
    vec![packed, scales, biases]
}
