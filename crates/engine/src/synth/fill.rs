//! Random bytes of a tensor, any part of it at any time: every 64-bit word is a hash of the seed, the tensor's name
//! and the word's number, so what a chunk holds depends on nothing that was written before.
//!
//! Codes are drawn uniformly and scales from four values, never by quantising floats. Every format has a mean of
//! exactly zero (a code range with one value more on one side gets a random sign): a mean of a hundredth of a
//! standard deviation would add up over thousands of columns and make all tokens alike.

use std::ops::Range;

use files::{Format, ScaleType};
use half::{bf16, f16};

/// What the values of a tensor look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Mean 0, this standard deviation.
    Matrix { sigma: f32 },
    /// As a matrix, but the first `common` columns of every row are positive: what all tokens have in common.
    Embedding { sigma: f32, common: usize },
    /// As a matrix, but the first `common` columns of row `e` are shifted by `shift` times expert `e`'s popularity,
    /// a standard normal number.
    Router { sigma: f32, common: usize, shift: f32 },
    /// Uniform in `mean ± spread`.
    Vector { mean: f32, spread: f32 },
    /// A decay rate in 1..8: its logarithm, or its negative.
    Decay { logarithm: bool },
}

/// Standard deviations of uniform codes: 16, 32, 64 and 256 of them.
const STD_16: f32 = 4.609_772;
const STD_32: f32 = 9.233_093;
const STD_64: f32 = 18.472_953;
const STD_256: f32 = 73.900_38;

/// Scales relative to their root mean square.
const SCALES: [f32; 4] = [0.68, 0.88, 1.07, 1.27];

/// A random-access stream of 64-bit words.
#[derive(Clone, Copy)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream of a seed and a name.
    pub(super) fn new(seed: u64, name: &str) -> Self {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(mix(name.bytes().fold(mix(seed ^ 0xcbf2_9ce4_8422_2325), fnv)))
    }

    /// Another stream of the same tensor.
    fn fork(self, number: u64) -> Self {
        Self(mix(self.0 ^ number.wrapping_mul(0xa076_1d64_78bd_642f)))
    }

    /// Word `i`: SplitMix64 (Steele, Lea, Flood 2014) at position `i`.
    fn word(self, i: u64) -> u64 {
        mix(self.0.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Fills `out` with words from number `first` on.
    fn fill(self, first: u64, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        let mut i = first;
        for word in &mut words {
            word.copy_from_slice(&self.word(i).to_le_bytes());
            i += 1;
        }
        let rest = words.into_remainder();
        rest.copy_from_slice(&self.word(i).to_le_bytes()[..rest.len()]);
    }

    /// Uniform in 0..1.
    fn unit(self, i: u64) -> f32 {
        (self.word(i) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Nearly standard normal: the sum of eight uniform numbers.
    pub(super) fn normal(self, i: u64) -> f32 {
        let lanes = |word: u64| (0..4).map(move |lane| (word >> (16 * lane) & 0xffff) as f32 / 65536.0);
        let sum: f32 = lanes(self.word(2 * i)).chain(lanes(self.word(2 * i + 1))).sum();
        (sum - 4.0) * 1.224_744_9
    }

    /// The scale's number, 0..4, of group or block `i`.
    fn scale_index(self, i: u64) -> usize {
        (self.word(i / 32) >> (2 * (i % 32)) & 3) as usize
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// `x` with four significant bits, so that a product with 7.5 is exact in bf16 and f16.
fn round_to_four_bits(x: f32) -> f32 {
    let unit = 2f32.powi(x.abs().log2().floor() as i32 - 3);
    (x / unit).round() * unit
}

/// The four scales that give codes of deviation `code_std` the deviation `sigma`.
fn scales(sigma: f32, code_std: f32) -> [f32; 4] {
    SCALES.map(|factor| round_to_four_bits(factor * sigma / code_std))
}

/// The tensor's streams and sizes.
#[derive(Clone, Copy)]
pub(super) struct Filler {
    /// Number format.
    pub(super) format: Format,
    /// What the values look like.
    pub(super) fill: Fill,
    /// Values in a row.
    pub(super) cols: usize,
    /// Random words of this tensor.
    pub(super) stream: Stream,
}

impl Filler {
    /// Writes rows `rows` of part `part` to `out`, which has exactly their length.
    pub(super) fn rows(&self, part: usize, rows: Range<usize>, out: &mut [u8]) {
        match self.format {
            Format::Affine { bits: 4, group, .. } => self.affine4(part, group.into(), rows, out),
            Format::Affine { group, .. } => self.affine8(part, group.into(), rows, out),
            Format::Q4_0 => self.q4_0(rows, out),
            Format::Q5_0 => self.q5_0(rows, out),
            Format::Q8_0 => self.q8_0(rows, out),
            Format::Q4K => self.q4_k(rows, out),
            Format::Q6K => self.q6_k(rows, out),
            Format::BF16 => {
                self.floats(rows, out, 2, |x, to| to.copy_from_slice(&bf16::from_f32(x).to_le_bytes()));
            }
            _ => self.floats(rows, out, 4, |x, to| to.copy_from_slice(&x.to_le_bytes())),
        }
    }

    fn sigma(&self) -> f32 {
        match self.fill {
            Fill::Matrix { sigma } | Fill::Embedding { sigma, .. } | Fill::Router { sigma, .. } => sigma,
            Fill::Vector { spread, .. } => spread,
            Fill::Decay { .. } => 1.0,
        }
    }

    /// Columns that are positive in every row.
    fn positive_cols(&self) -> usize {
        if let Fill::Embedding { common, .. } = self.fill { common } else { 0 }
    }

    /// What is added to the first columns of a row, and to how many.
    fn row_shift(&self, row: usize) -> (f32, usize) {
        match self.fill {
            Fill::Router { common, shift, .. } => (shift * self.stream.fork(3).normal(row as u64), common),
            _ => (0.0, 0),
        }
    }

    fn affine4(&self, part: usize, group: usize, rows: Range<usize>, out: &mut [u8]) {
        if part > 0 {
            let per_code = if part == 1 { 1.0 } else { -7.5 };
            let table = scales(self.sigma(), STD_16).map(|s| bf16::from_f32(s * per_code).to_le_bytes());
            let first = rows.start * (self.cols / group);
            for (i, to) in out.chunks_exact_mut(ScaleType::BF16.bytes()).enumerate() {
                to.copy_from_slice(&table[self.stream.fork(1).scale_index((first + i) as u64)]);
            }
            return;
        }
        let row_bytes = self.cols / 2;
        self.stream.fill((rows.start * row_bytes / 8) as u64, out);
        let positive = self.positive_cols() / 2;
        if positive > 0 {
            out.chunks_exact_mut(row_bytes)
                .for_each(|row| row[..positive].iter_mut().for_each(|b| *b |= 0x88));
        }
    }

    /// Only for the small matrices that choose: one scale, the router's shift in the biases.
    fn affine8(&self, part: usize, group: usize, rows: Range<usize>, out: &mut [u8]) {
        // A power of two times 127.5 is exact in bf16.
        let scale = 2f32.powi((self.sigma() / STD_256).log2().round() as i32);
        match part {
            0 => self.stream.fill((rows.start * self.cols / 8) as u64, out),
            1 => {
                let scale = bf16::from_f32(scale).to_le_bytes();
                out.chunks_exact_mut(2).for_each(|to| to.copy_from_slice(&scale));
            }
            _ => {
                let groups = self.cols / group;
                for (row, biases) in rows.zip(out.chunks_exact_mut(2 * groups)) {
                    let (shift, common) = self.row_shift(row);
                    for (g, to) in biases.chunks_exact_mut(2).enumerate() {
                        let shift = if g * group < common { shift } else { 0.0 };
                        to.copy_from_slice(&bf16::from_f32(shift - 127.5 * scale).to_le_bytes());
                    }
                }
            }
        }
    }

    /// Fills blocks of `B` bytes: `data` of them random, then `finish(block's number, column, header word, block)`.
    fn blocks<const B: usize>(
        &self,
        rows: Range<usize>,
        out: &mut [u8],
        data: Range<usize>,
        finish: impl Fn(usize, u64, &mut [u8; B]),
    ) {
        let values = self.format.block().0;
        let per_row = self.cols / values;
        let first = rows.start * per_row;
        let words = data.len().div_ceil(8) as u64;
        let headers = self.stream.fork(1);
        let (blocks, _) = out.as_chunks_mut::<B>();
        for (i, block) in blocks.iter_mut().enumerate() {
            let number = (first + i) as u64;
            self.stream.fill(number * words, &mut block[data.clone()]);
            finish(i % per_row * values, headers.word(number), block);
        }
    }

    fn q4_0(&self, rows: Range<usize>, out: &mut [u8]) {
        let table = scales(self.sigma(), STD_16).map(f16::from_f32);
        let positive = self.positive_cols();
        self.blocks::<18>(rows, out, 2..18, |col, header, block| {
            let d = table[(header & 3) as usize];
            if col < positive {
                block[2..].iter_mut().for_each(|b| *b |= 0x88);
                block[..2].copy_from_slice(&d.to_le_bytes());
            } else {
                block[..2].copy_from_slice(&signed(d, header).to_le_bytes());
            }
        });
    }

    fn q5_0(&self, rows: Range<usize>, out: &mut [u8]) {
        let table = scales(self.sigma(), STD_32).map(f16::from_f32);
        let positive = self.positive_cols();
        self.blocks::<22>(rows, out, 2..22, |col, header, block| {
            let d = table[(header & 3) as usize];
            if col < positive {
                block[2..6].fill(0xff);
                block[..2].copy_from_slice(&d.to_le_bytes());
            } else {
                block[..2].copy_from_slice(&signed(d, header).to_le_bytes());
            }
        });
    }

    fn q8_0(&self, rows: Range<usize>, out: &mut [u8]) {
        let table = scales(self.sigma(), STD_256).map(f16::from_f32);
        self.blocks::<34>(rows, out, 2..34, |_, header, block| {
            let d = signed(table[(header & 3) as usize], header);
            block[..2].copy_from_slice(&d.to_le_bytes());
        });
    }

    fn q4_k(&self, rows: Range<usize>, out: &mut [u8]) {
        // Sub-block scales stay small so that the super-scale is no f16 subnormal, which some devices flush.
        const STEPS: [u8; 4] = [7, 9, 11, 13];
        let d = round_to_four_bits(self.sigma() / (STD_16 * 10.247));
        let (d, dmin) = (f16::from_f32(d).to_le_bytes(), f16::from_f32(d * 7.5).to_le_bytes());
        let positive = self.positive_cols();
        self.blocks::<144>(rows, out, 16..144, |col, header, block| {
            // One 6-bit number for the scales and mins of all eight sub-blocks; below 16 it has no high bits.
            let step = STEPS[(header & 3) as usize];
            block[..2].copy_from_slice(&d);
            block[2..4].copy_from_slice(&dmin);
            block[4..12].fill(step);
            block[12..16].fill(step | step << 4);
            // Values 64 c .. 64 c + 64 are the bytes 32 c .. 32 c + 32.
            let positive = positive.saturating_sub(col).min(256) / 2;
            block[16..16 + positive].iter_mut().for_each(|b| *b |= 0x88);
        });
    }

    fn q6_k(&self, rows: Range<usize>, out: &mut [u8]) {
        let d = f16::from_f32(self.sigma() / (STD_64 * 4.637)).to_le_bytes();
        self.blocks::<210>(rows, out, 0..192, |_, header, block| {
            for (j, scale) in block[192..208].iter_mut().enumerate() {
                let bits = header >> (3 * j);
                let step = 3 + (bits & 3) as i8;
                *scale = if bits & 4 == 0 { step } else { -step } as u8;
            }
            block[208..].copy_from_slice(&d);
        });
    }

    fn floats(&self, rows: Range<usize>, out: &mut [u8], bytes: usize, put: impl Fn(f32, &mut [u8])) {
        for (row, out) in rows.zip(out.chunks_exact_mut(bytes * self.cols)) {
            let (shift, common) = self.row_shift(row);
            for (col, to) in out.chunks_exact_mut(bytes).enumerate() {
                let unit = self.stream.unit((row * self.cols + col) as u64);
                let value = match self.fill {
                    Fill::Vector { mean, spread } => mean + spread * (2.0 * unit - 1.0),
                    Fill::Decay { logarithm: true } => (1.0 + 7.0 * unit).ln(),
                    Fill::Decay { logarithm: false } => -(1.0 + 7.0 * unit),
                    // A uniform number of deviation 1 lies in ± sqrt(3).
                    _ => self.sigma() * 1.732_050_8 * (2.0 * unit - 1.0),
                };
                put(if col < common { value + shift } else { value }, to);
            }
        }
    }
}

/// `d` with the sign in the header's top bit.
fn signed(d: f16, header: u64) -> f16 {
    if header >> 63 == 0 { d } else { -d }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Format; 9] = [
        Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 },
        Format::Affine { bits: 8, group: 64, scale: ScaleType::BF16 },
        Format::Q4_0,
        Format::Q5_0,
        Format::Q8_0,
        Format::Q4K,
        Format::Q6K,
        Format::BF16,
        Format::F32,
    ];

    fn values(filler: &Filler, rows: usize) -> Vec<f32> {
        let fill = |part| {
            let mut bytes = vec![0; rows * filler.format.row_bytes(part, filler.cols).unwrap()];
            filler.rows(part, 0..rows, &mut bytes);
            bytes
        };
        let parts: Vec<Vec<u8>> = (0..filler.format.parts()).map(fill).collect();
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; rows * filler.cols];
        files::quant::decode(filler.format, &slices, &mut out).unwrap();
        out
    }

    fn filler(format: Format, fill: Fill) -> Filler {
        Filler { format, fill, cols: 512, stream: Stream::new(7, "layer.weight") }
    }

    #[test]
    fn every_format_has_mean_zero_and_the_deviation_asked_for() {
        for format in FORMATS {
            let values = values(&filler(format, Fill::Matrix { sigma: 0.02 }), 400);
            let n = values.len() as f32;
            let mean = values.iter().sum::<f32>() / n;
            let std = (values.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
            // Five standard errors of the mean; a scale rounds to a power of two at the coarsest (8 bits).
            assert!(mean.abs() < 5.0 * 0.02 / n.sqrt() * 1.4, "{format}: mean {mean}");
            let off = if matches!(format, Format::Affine { bits: 8, .. }) { 1.42 } else { 1.05 };
            assert!((0.02 / off..0.02 * off).contains(&std), "{format}: deviation {std}");
        }
    }

    #[test]
    fn rows_do_not_depend_on_what_was_written_before() {
        for format in FORMATS {
            let filler = filler(format, Fill::Matrix { sigma: 0.02 });
            for part in 0..format.parts() {
                let row_bytes = format.row_bytes(part, 512).unwrap();
                let mut whole = vec![0; 9 * row_bytes];
                filler.rows(part, 0..9, &mut whole);
                let mut tail = vec![0; 4 * row_bytes];
                filler.rows(part, 5..9, &mut tail);
                assert!(whole[5 * row_bytes..] == tail, "{format} part {part}");
                let first = format.parts() == 1 || part == 0;
                assert!(!first || whole[..row_bytes] != whole[row_bytes..2 * row_bytes], "{format}");
            }
        }
    }

    #[test]
    fn embeddings_share_their_first_columns() {
        for format in [FORMATS[0], Format::Q4_0, Format::Q5_0, Format::Q4K] {
            let values = values(&filler(format, Fill::Embedding { sigma: 1.0, common: 64 }), 400);
            let column = |c: usize| values.iter().skip(c).step_by(512).sum::<f32>() / 400.0;
            let common = (0..64).map(column).sum::<f32>() / 64.0;
            assert!((0.7..0.95).contains(&common), "{format}: {common}");
            assert!((64..512).all(|c| column(c).abs() < 0.3), "{format}");
        }
    }

    #[test]
    fn a_router_prefers_some_experts() {
        for format in [FORMATS[1], Format::F32] {
            let fill = Fill::Router { sigma: 0.02, common: 64, shift: 0.1 };
            let values = values(&filler(format, fill), 64);
            let row = |r: usize| values[r * 512..r * 512 + 64].iter().sum::<f32>() / 64.0;
            let spread = ((0..64).map(|r| row(r) * row(r)).sum::<f32>() / 64.0).sqrt();
            assert!((0.06..0.14).contains(&spread), "{format}: {spread}");
            let rest = values[64..512].iter().sum::<f32>() / 448.0;
            assert!(rest.abs() < 0.01, "{format}: {rest}");
        }
    }
}
