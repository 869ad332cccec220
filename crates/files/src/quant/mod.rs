//! The number formats of weights: block layouts, sizes, and the scalar decode that is the truth of each.
//!
//! A matrix `[rows, cols]` is stored row by row; a row is a whole number of blocks. GGUF formats are one byte
//! range a matrix. MLX affine matrices are three ranges (*parts*): packed values, scales, biases.

mod affine;
mod block;
mod float;
mod iq;
mod k;
mod legacy;
mod mx;

pub use affine::{AffineRow, affine_value};
pub use block::Block;
pub use float::value as float_value;
pub use iq::{IQ4_VALUES, IQ4NL, IQ4XS};
pub use k::{Q2K, Q3K, Q4K, Q5K, Q6K, four_bits, one_bit, q3k_scale, q6k_low, scale_min, two_bits};
pub use legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, five_bits, nibble};
pub use mx::{MXFP4, MXFP4_VALUES, e8m0_half};

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

    /// Whether the parameters of an affine format are ones that exist.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Unsupported`] for other bit widths or group sizes.
    pub fn supported(self) -> Result<()> {
        match self {
            Format::Affine { bits: 2..=6 | 8, group: 32 | 64 | 128, .. } => Ok(()),
            Format::Affine { .. } => Err(Error::unsupported(format!("{self}: no such affine format"))),
            _ => Ok(()),
        }
    }

    /// Bytes of one row of `cols` values in all parts together.
    ///
    /// # Errors
    /// As [`Format::row_bytes`].
    pub fn whole_row_bytes(self, cols: usize) -> Result<usize> {
        (0..self.parts()).map(|part| self.row_bytes(part, cols)).sum()
    }

    /// Bytes of one row of `cols` values in part `part`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Corrupt`] when a row is not a whole number of blocks, or the size overflows;
    /// [`crate::ErrorKind::Unsupported`] as [`Format::supported`] says.
    pub fn row_bytes(self, part: usize, cols: usize) -> Result<usize> {
        self.supported()?;
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

/// Calls the generic block function `$f` for the block struct of a GGUF format.
macro_rules! for_block {
    ($format:expr, $f:ident($($arg:expr),*), float: $ty:ident => $float:expr, affine: $affine:expr) => {
        match $format {
            Format::F32 => { let $ty = ScaleType::F32; $float }
            Format::F16 => { let $ty = ScaleType::F16; $float }
            Format::BF16 => { let $ty = ScaleType::BF16; $float }
            Format::Affine { .. } => $affine,
            Format::Q4_0 => block::$f::<Q4_0>($($arg),*),
            Format::Q4_1 => block::$f::<Q4_1>($($arg),*),
            Format::Q5_0 => block::$f::<Q5_0>($($arg),*),
            Format::Q5_1 => block::$f::<Q5_1>($($arg),*),
            Format::Q8_0 => block::$f::<Q8_0>($($arg),*),
            Format::Q2K => block::$f::<Q2K>($($arg),*),
            Format::Q3K => block::$f::<Q3K>($($arg),*),
            Format::Q4K => block::$f::<Q4K>($($arg),*),
            Format::Q5K => block::$f::<Q5K>($($arg),*),
            Format::Q6K => block::$f::<Q6K>($($arg),*),
            Format::IQ4NL => block::$f::<IQ4NL>($($arg),*),
            Format::IQ4XS => block::$f::<IQ4XS>($($arg),*),
            Format::MXFP4 => block::$f::<MXFP4>($($arg),*),
        }
    };
}

/// Fails unless `parts` are exactly the byte ranges of `cols` values.
fn check_sizes(format: Format, parts: &[&[u8]], cols: usize) -> Result<()> {
    if parts.len() != format.parts() {
        return Err(Error::corrupt(format!("{format}: {} parts, not {}", parts.len(), format.parts())));
    }
    for (i, part) in parts.iter().enumerate() {
        let expected = format.row_bytes(i, cols)?;
        if part.len() != expected {
            return Err(Error::corrupt(format!(
                "{format}: part {i} of {cols} values has {} bytes, not {expected}",
                part.len()
            )));
        }
    }
    Ok(())
}

/// The three parts of an affine row, or `None` for a plain format. The sizes have been checked.
fn affine_row<'a>(format: Format, parts: &[&'a [u8]]) -> Option<AffineRow<'a>> {
    match (format, parts) {
        (Format::Affine { bits, group, scale }, &[packed, scales, biases]) => {
            Some(AffineRow { bits, group, scale, packed, scales, biases })
        }
        _ => None,
    }
}

/// Decodes one row, or any whole number of blocks, into `out`: the scalar truth of every format.
///
/// All arithmetic is f32 with each product and sum rounded; GGUF formats give bit for bit what the `gguf`
/// package gives, affine gives `q * scale + bias`. A non-finite scale decodes to non-finite values.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] when `parts` are not the byte ranges of `out.len()` values, or as
/// [`Format::row_bytes`] says.
pub fn decode(format: Format, parts: &[&[u8]], out: &mut [f32]) -> Result<()> {
    check_sizes(format, parts, out.len())?;
    for_block!(format, decode(parts[0], out),
        float: ty => float::decode(ty, parts[0], out),
        affine: if let Some(row) = affine_row(format, parts) { row.decode(out) });
    Ok(())
}

/// Encodes a whole number of blocks, rounding to nearest; returns the parts. For tests and synthetic models.
///
/// Affine, Q4_0 .. Q8_0 and MXFP4 give the same bytes as `mlx.core.quantize` and the `gguf` package.
///
/// # Errors
/// [`crate::ErrorKind::InvalidRequest`] when a value is not finite or a scale overflows its type, or as
/// [`Format::row_bytes`] says.
pub fn encode(format: Format, values: &[f32]) -> Result<Vec<Vec<u8>>> {
    format.row_bytes(0, values.len())?;
    if let Some(i) = values.iter().position(|x| !x.is_finite()) {
        return Err(Error::invalid(format!("{format}: cannot encode {} at {i}", values[i])));
    }
    let parts = if let Format::Affine { bits, group, scale } = format {
        affine::encode(bits, group, scale, values)
    } else {
        vec![for_block!(format, encode(values),
            float: ty => {
                let mut bytes = Vec::with_capacity(values.len() * ty.bytes());
                values.iter().for_each(|&x| float::push(ty, x, &mut bytes));
                bytes
            },
            affine: Vec::new())]
    };
    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    check(format, &slices)
        .map_err(|e| Error::invalid(format!("{format}: values too large to encode")).with_source(e))?;
    Ok(parts)
}

/// Looks for scales (or plain floats) that are not finite. For resident weights, once, on load.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] naming the first bad block, or when the parts' sizes do not belong together.
pub fn check(format: Format, parts: &[&[u8]]) -> Result<()> {
    format.supported()?;
    let (values, bytes) = format.block();
    let blocks = parts.first().map_or(0, |part| part.len() / bytes);
    check_sizes(format, parts, blocks * values)?;
    let bad = for_block!(format, first_bad(parts[0]),
        float: ty => (0..blocks).find(|&i| !float::value(ty, parts[0], i).is_finite()),
        affine: affine_row(format, parts).and_then(|row| row.first_bad()));
    match bad {
        Some(i) => Err(Error::corrupt(format!("{format}: block {i} is not finite"))),
        None => Ok(()),
    }
}
