//! The number formats of weights: block layouts, sizes, and the scalar decode that is the truth of each.
//!
//! A matrix `[rows, cols]` is stored row by row; a row is a whole number of blocks. GGUF formats are one byte
//! range a matrix. MLX affine matrices are three ranges (*parts*): packed values, scales, biases.

use crate::{Error, Result};

/// How the scales and biases of an affine matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScaleType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
}

impl ScaleType {
    /// Bytes of one scale.
    pub fn bytes(self) -> usize {
        match self {
            ScaleType::F32 => 4,
            ScaleType::F16 | ScaleType::BF16 => 2,
        }
    }
}

/// The number format of a weight matrix.
///
/// Sources: GGML block formats as the `gguf` package documents and dequantises them; MLX affine quantisation
/// (`w = q * scale + bias` over groups along a row, values packed little-endian into `u32` words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the formats' own
pub enum Format {
    F32,
    F16,
    BF16,
    /// MLX affine: `bits` in 2, 3, 4, 5, 6, 8; `group` in 32, 64, 128; parts: packed, scales, biases.
    Affine {
        bits: u8,
        group: u8,
        scale: ScaleType,
    },
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
}

impl Format {
    /// The GGUF block formats and plain floats: every format but the affine family.
    pub const PLAIN: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::IQ4NL,
        Format::IQ4XS,
        Format::MXFP4,
    ];

    /// Every format: the plain ones, and affine in all bit widths and groups with bfloat16 scales (and one each
    /// with f16 and f32 scales).
    pub fn all() -> Vec<Format> {
        let mut all = Self::PLAIN.to_vec();
        for bits in [2, 3, 4, 5, 6, 8] {
            for group in [32, 64, 128] {
                all.push(Format::Affine { bits, group, scale: ScaleType::BF16 });
            }
        }
        all.push(Format::Affine { bits: 4, group: 64, scale: ScaleType::F16 });
        all.push(Format::Affine { bits: 4, group: 64, scale: ScaleType::F32 });
        all
    }

    /// `(values, bytes)` of one block of the first part. An affine block is one group.
    pub fn block(self) -> (usize, usize) {
        match self {
            Format::F32 => (1, 4),
            Format::F16 | Format::BF16 => (1, 2),
            Format::Affine { bits, group, .. } => (group as usize, group as usize * bits as usize / 8),
            Format::Q4_0 | Format::IQ4NL => (32, 18),
            Format::Q4_1 => (32, 20),
            Format::Q5_0 => (32, 22),
            Format::Q5_1 => (32, 24),
            Format::Q8_0 => (32, 34),
            Format::Q2K => (256, 84),
            Format::Q3K => (256, 110),
            Format::Q4K => (256, 144),
            Format::Q5K => (256, 176),
            Format::Q6K => (256, 210),
            Format::IQ4XS => (256, 136),
            Format::MXFP4 => (32, 17),
        }
    }

    /// How many byte ranges hold a matrix: 3 for affine (packed values, scales, biases), else 1.
    pub fn parts(self) -> usize {
        if let Format::Affine { .. } = self { 3 } else { 1 }
    }

    /// Bytes of one row of `cols` values in part `part`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when a row is not a whole number of blocks, or the size overflows.
    pub fn row_bytes(self, part: usize, cols: usize) -> Result<usize> {
        let (values, bytes) = self.block();
        if !cols.is_multiple_of(values) {
            return Err(Error::corrupt(format!(
                "{self}: a row of {cols} values is not a multiple of {values}"
            )));
        }
        let blocks = cols / values;
        let block_bytes = match self {
            Format::Affine { scale, .. } if part > 0 => scale.bytes(),
            _ => bytes,
        };
        blocks
            .checked_mul(block_bytes)
            .ok_or_else(|| Error::corrupt(format!("{self}: a row of {cols} overflows")))
    }

    /// Bits per weight, scales included.
    pub fn bits_per_weight(self) -> f64 {
        let (values, bytes) = self.block();
        let scales = match self {
            Format::Affine { scale, .. } => 2 * scale.bytes(),
            _ => 0,
        };
        (bytes + scales) as f64 * 8.0 / values as f64
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Format::Affine { bits, group, .. } => write!(f, "affine-{bits} (group {group})"),
            Format::Q2K => f.write_str("Q2_K"),
            Format::Q3K => f.write_str("Q3_K"),
            Format::Q4K => f.write_str("Q4_K"),
            Format::Q5K => f.write_str("Q5_K"),
            Format::Q6K => f.write_str("Q6_K"),
            Format::IQ4NL => f.write_str("IQ4_NL"),
            Format::IQ4XS => f.write_str("IQ4_XS"),
            other => write!(f, "{other:?}"),
        }
    }
}
