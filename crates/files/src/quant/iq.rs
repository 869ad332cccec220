//! GGML's non-linear 4-bit formats: a nibble is an index into a fixed table of 16 values.
//!
//! Source: the `gguf` package's dequantiser. The encoders take the extreme value as the scale: right, and a
//! little less precise than a searching quantiser.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::block::{Block, extreme, inverse, nearest, stored};
use super::legacy::{nibble, pack};

/// The table of IQ4_NL and IQ4_XS.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 values: `w = d * IQ4_VALUES[q]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IQ4NL {
    /// Scale.
    pub d: f16,
    /// Nibbles: value `j` is the low nibble of byte `j`, value `j + 16` the high nibble.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<IQ4NL>() == 18 && align_of::<IQ4NL>() == 2);

/// 8 sub-blocks of 32: `w = d * (scale - 32) * IQ4_VALUES[q]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct IQ4XS {
    /// Super-scale.
    pub d: f16,
    /// Sub-block `j`: high two bits of its scale are bits `2 j ..`.
    pub scales_h: u16,
    /// Sub-block `j`: low four bits of its scale are nibble `j % 2` of byte `j / 2`.
    pub scales_l: [u8; 4],
    /// Sub-block `j` has bytes `16 j ..`, split as in [`IQ4NL::qs`].
    pub qs: [[u8; 16]; 8],
}
const _: () = assert!(size_of::<IQ4XS>() == 136 && align_of::<IQ4XS>() == 2);

impl IQ4XS {
    /// Scale of sub-block `j` of 8, -32..32.
    #[inline]
    pub fn scale(&self, j: usize) -> i8 {
        let low = self.scales_l[j / 2] >> (4 * (j % 2)) & 15;
        let high = (self.scales_h >> (2 * j) & 3) as u8;
        (low | high << 4) as i8 - 32
    }
}

/// Index of the table value nearest to `x`; the lower of two equally near.
fn nearest_code(x: f32) -> u8 {
    let error = |q: usize| (IQ4_VALUES[q] as f32 - x).abs();
    (1..16).fold(0, |best, q| if error(q) < error(best) { q } else { best }) as u8
}

impl Block for IQ4NL {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let d = self.d.to_f32();
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * IQ4_VALUES[nibble(&self.qs, j) as usize] as f32;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, d32) = stored(extreme(values) / IQ4_VALUES[0] as f32);
        let id = inverse(d32);
        Self { d, qs: pack(values.iter().map(|x| nearest_code(x * id))).0 }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block for IQ4XS {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let d = self.d.to_f32();
        for (j, values) in out.chunks_exact_mut(32).enumerate() {
            let scale = d * self.scale(j) as f32;
            for (b, o) in values.iter_mut().enumerate() {
                *o = scale * IQ4_VALUES[nibble(&self.qs[j], b) as usize] as f32;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let sub = |j: usize| &values[32 * j..32 * (j + 1)];
        let scales: [f32; 8] = std::array::from_fn(|j| extreme(sub(j)) / IQ4_VALUES[0] as f32);
        let (d, d32) = stored(extreme(&scales) / -32.0);
        let mut block = Self { d, scales_h: 0, scales_l: [0; 4], qs: [[0; 16]; 8] };
        for (j, scale) in scales.into_iter().enumerate() {
            let scale = nearest(scale / d32, -32, 31);
            let id = inverse(d32 * scale as f32);
            let bits = (scale + 32) as u8;
            block.scales_l[j / 2] |= (bits & 15) << (4 * (j % 2));
            block.scales_h |= ((bits >> 4) as u16) << (2 * j);
            block.qs[j] = pack(sub(j).iter().map(|x| nearest_code(x * id))).0;
        }
        block
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}
