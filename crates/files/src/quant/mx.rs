//! MXFP4: 32 values of 4-bit floats (E2M1) under one power-of-two scale (E8M0).
//!
//! Sources: OCP Microscaling Formats v1.0; GGML's block layout as the `gguf` package dequantises it.

use bytemuck::{Pod, Zeroable};

use super::block::{Block, extreme};
use super::legacy::{nibble, pack};

/// The E2M1 values, doubled so that they are integers: sign in bit 3. [`e8m0_half`] takes the two out of the scale.
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `w = 2^(e - 127) / 2 * MXFP4_VALUES[q]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MXFP4 {
    /// The shared exponent. 255 means NaN to OCP; GGML reads it as 2^128.
    pub e: u8,
    /// Nibbles: value `j` is the low nibble of byte `j`, value `j + 16` the high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<MXFP4>() == 17 && align_of::<MXFP4>() == 1);

/// `2^(e - 127) / 2`; the two smallest are subnormal.
#[inline]
pub fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e as u32 - 1) << 23 })
}

impl Block for MXFP4 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let d = e8m0_half(self.e);
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * MXFP4_VALUES[nibble(&self.qs, j) as usize] as f32;
        }
    }

    /// The scale puts the extreme value in 4..8, as OCP says; above 6 it saturates.
    fn encode(values: &[f32]) -> Self {
        let amax = extreme(values).abs();
        // Exponent of a normal f32; a block of subnormals is below every MXFP4 scale but the smallest.
        let e = ((amax.to_bits() >> 23) as u8).saturating_sub(2);
        let d = e8m0_half(e);
        let q = values.iter().map(|&x| {
            let error = |q: usize| (d * MXFP4_VALUES[q] as f32 - x).abs();
            (1..16).fold(0, |best, q| if error(q) < error(best) { q } else { best }) as u8
        });
        Self { e, qs: pack(q).0 }
    }

    fn is_finite(&self) -> bool {
        // Up to 2^125 / 2 * 12 fits f32; above, some codes overflow.
        if self.e <= 252 {
            return true;
        }
        let mut out = [0.0; 32];
        self.decode(&mut out);
        self.e != 255 && out.iter().all(|x| x.is_finite())
    }
}
