//! GGML's k-quants: 256-value super-blocks of sub-blocks, whose small integer scales share f16 super-scales.
//!
//! Source: the `gguf` package's dequantiser. The encoders here are simple (sub-block range, then rounding
//! against the stored scales): right, and a little less precise than a searching quantiser.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::block::{Block, extreme, nearest, range, stored};

/// 16 sub-blocks of 16: `w = d * scale * q - dmin * min`, q in 0..4.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q2K {
    /// Sub-block `i`: scale in the low nibble, min in the high nibble.
    pub scales: [u8; 16],
    /// Value `128 h + 32 s + b` is bits `2 s ..` of byte `32 h + b`.
    pub qs: [u8; 64],
    /// Super-scale of the scales.
    pub d: f16,
    /// Super-scale of the mins.
    pub dmin: f16,
}
const _: () = assert!(size_of::<Q2K>() == 84 && align_of::<Q2K>() == 2);

/// 16 sub-blocks of 16: `w = d * (scale - 32) * q`, q in -4..4.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q3K {
    /// Value `32 s + b`: bit `s` of byte `b`; a clear bit subtracts 4.
    pub hmask: [u8; 32],
    /// Low two bits, as in [`Q2K::qs`].
    pub qs: [u8; 64],
    /// Packed 6-bit scales, see [`q3k_scale`].
    pub scales: [u8; 12],
    /// Super-scale.
    pub d: f16,
}
const _: () = assert!(size_of::<Q3K>() == 110 && align_of::<Q3K>() == 2);

/// 8 sub-blocks of 32: `w = d * scale * q - dmin * min`, q in 0..16.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q4K {
    /// Super-scale of the scales.
    pub d: f16,
    /// Super-scale of the mins.
    pub dmin: f16,
    /// Packed 6-bit scales and mins, see [`scale_min`].
    pub scales: [u8; 12],
    /// Value `64 c + 32 n + b` is nibble `n` (0 = low) of byte `32 c + b`.
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<Q4K>() == 144 && align_of::<Q4K>() == 2);

/// 8 sub-blocks of 32: `w = d * scale * q - dmin * min`, q in 0..32.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q5K {
    /// Super-scale of the scales.
    pub d: f16,
    /// Super-scale of the mins.
    pub dmin: f16,
    /// Packed 6-bit scales and mins, see [`scale_min`].
    pub scales: [u8; 12],
    /// Value `32 s + b`: its fifth bit is bit `s` of byte `b`.
    pub qh: [u8; 32],
    /// Low nibbles, as in [`Q4K::qs`].
    pub qs: [u8; 128],
}
const _: () = assert!(size_of::<Q5K>() == 176 && align_of::<Q5K>() == 2);

/// 16 sub-blocks of 16: `w = d * scale * (q - 32)`, q in 0..64.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Q6K {
    /// Value `128 h + 64 n + b`: its low four bits are nibble `n` of byte `64 h + b`.
    pub ql: [u8; 128],
    /// Value `128 h + 32 s + b`: its high two bits are bits `2 s ..` of byte `32 h + b`.
    pub qh: [u8; 64],
    /// Sub-block scales.
    pub scales: [i8; 16],
    /// Super-scale.
    pub d: f16,
}
const _: () = assert!(size_of::<Q6K>() == 210 && align_of::<Q6K>() == 2);

/// Scale and min (6 bits each) of sub-block `j` of 8 in [`Q4K`] and [`Q5K`]. The first four lie in the low six
/// bits of bytes `j` and `j + 4`; the others have nibbles in byte `j + 4` and two high bits above the former.
#[inline]
pub fn scale_min(scales: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        let low = scales[j + 4];
        ((low & 15) | (scales[j - 4] >> 6 << 4), (low >> 4) | (scales[j] >> 6 << 4))
    }
}

/// Inverse of [`scale_min`] for all sub-blocks.
fn pack_scale_min(pairs: [(u8, u8); 8]) -> [u8; 12] {
    let mut scales = [0; 12];
    for (j, (scale, min)) in pairs.into_iter().enumerate() {
        if j < 4 {
            scales[j] |= scale;
            scales[j + 4] |= min;
        } else {
            scales[j + 4] = (scale & 15) | (min & 15) << 4;
            scales[j - 4] |= scale >> 4 << 6;
            scales[j] |= min >> 4 << 6;
        }
    }
    scales
}

/// Scale of sub-block `j` of 16 in [`Q3K`], -32..32: low nibbles in bytes 0..8, two high bits in bytes 8..12.
#[inline]
pub fn q3k_scale(scales: &[u8; 12], j: usize) -> i8 {
    let low = scales[j % 8] >> (4 * (j / 8)) & 15;
    let high = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// Value `i` of 256 two-bit values, in the order of [`Q2K::qs`] and [`Q6K::qh`].
#[inline]
pub fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// Value `i` of 256 nibbles, in the order of [`Q4K::qs`].
#[inline]
pub fn four_bits(qs: &[u8; 128], i: usize) -> u8 {
    qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// Bit of value `i` of 256, in the order of [`Q3K::hmask`] and [`Q5K::qh`].
#[inline]
pub fn one_bit(qh: &[u8; 32], i: usize) -> u8 {
    qh[i % 32] >> (i / 32) & 1
}

fn pack_two_bits(q: &[u8; 256]) -> [u8; 64] {
    let mut qs = [0; 64];
    for (i, q) in q.iter().enumerate() {
        qs[i / 128 * 32 + i % 32] |= (q & 3) << (i % 128 / 32 * 2);
    }
    qs
}

fn pack_four_bits(q: &[u8; 256]) -> [u8; 128] {
    let mut qs = [0; 128];
    for (i, q) in q.iter().enumerate() {
        qs[i / 64 * 32 + i % 32] |= (q & 15) << (i % 64 / 32 * 4);
    }
    qs
}

fn pack_one_bit(bits: impl Iterator<Item = u8>) -> [u8; 32] {
    let mut qh = [0; 32];
    for (i, bit) in bits.take(256).enumerate() {
        qh[i % 32] |= (bit & 1) << (i / 32);
    }
    qh
}

/// Quantisation with sub-block scales and mins, `N` sub-blocks, scales in `0..=scale_top`, values in `0..=top`.
struct Ranged<const N: usize> {
    d: f16,
    dmin: f16,
    pairs: [(u8, u8); N],
    q: [u8; 256],
}

fn ranged<const N: usize>(values: &[f32], scale_top: f32, top: f32) -> Ranged<N> {
    let size = 256 / N;
    // The min is stored as a non-negative amount to subtract, so the range always holds zero.
    let spans = std::array::from_fn::<(f32, f32), N, _>(|j| {
        let (min, max) = range(&values[j * size..(j + 1) * size]);
        let min = min.min(0.0);
        ((max.max(0.0) - min) / top, -min)
    });
    let (d, d32) = stored(spans.iter().fold(0.0, |m: f32, s| m.max(s.0)) / scale_top);
    let (dmin, dmin32) = stored(spans.iter().fold(0.0, |m: f32, s| m.max(s.1)) / scale_top);
    let pairs = spans.map(|(scale, min)| {
        (nearest(scale / d32, 0, scale_top as i32) as u8, nearest(min / dmin32, 0, scale_top as i32) as u8)
    });
    let q = std::array::from_fn(|i| {
        let (scale, min) = pairs[i / size];
        nearest((values[i] + dmin32 * min as f32) / (d32 * scale as f32), 0, top as i32) as u8
    });
    Ranged { d, dmin, pairs, q }
}

/// Symmetric quantisation, `N` sub-blocks: scales in `-half_scale..half_scale`, values in `-half..half`,
/// returned shifted to `0..2 * half`.
fn symmetric<const N: usize>(values: &[f32], half_scale: i32, half: i32) -> (f16, [i8; N], [u8; 256]) {
    let size = 256 / N;
    let scales: [f32; N] =
        std::array::from_fn(|j| extreme(&values[j * size..(j + 1) * size]) / -(half as f32));
    let (d, d32) = stored(extreme(&scales) / -(half_scale as f32));
    let scales = scales.map(|s| nearest(s / d32, -half_scale, half_scale - 1) as i8);
    let q = std::array::from_fn(|i| {
        let x = values[i] / (d32 * scales[i / size] as f32);
        (nearest(x, -half, half - 1) + half) as u8
    });
    (d, scales, q)
}

impl Block for Q2K {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, values) in out.chunks_exact_mut(16).enumerate() {
            let scale = d * (self.scales[j] & 15) as f32;
            let min = dmin * (self.scales[j] >> 4) as f32;
            for (b, o) in values.iter_mut().enumerate() {
                *o = scale * two_bits(&self.qs, 16 * j + b) as f32 - min;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let r = ranged::<16>(values, 15.0, 3.0);
        let scales = r.pairs.map(|(scale, min)| scale | min << 4);
        Self { scales, qs: pack_two_bits(&r.q), d: r.d, dmin: r.dmin }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Block for Q3K {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let d = self.d.to_f32();
        for (j, values) in out.chunks_exact_mut(16).enumerate() {
            let scale = d * q3k_scale(&self.scales, j) as f32;
            for (b, o) in values.iter_mut().enumerate() {
                let i = 16 * j + b;
                let q = (two_bits(&self.qs, i) | one_bit(&self.hmask, i) << 2) as i32 - 4;
                *o = scale * q as f32;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, sub, q) = symmetric::<16>(values, 32, 4);
        let mut scales = [0; 12];
        for (j, s) in sub.into_iter().enumerate() {
            let s = (s + 32) as u8;
            scales[j % 8] |= (s & 15) << (4 * (j / 8));
            scales[8 + j % 4] |= (s >> 4) << (2 * (j / 4));
        }
        Self { hmask: pack_one_bit(q.iter().map(|q| q >> 2)), qs: pack_two_bits(&q), scales, d }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block for Q4K {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, values) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_min(&self.scales, j);
            let (scale, min) = (d * scale as f32, dmin * min as f32);
            for (b, o) in values.iter_mut().enumerate() {
                *o = scale * four_bits(&self.qs, 32 * j + b) as f32 - min;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let r = ranged::<8>(values, 63.0, 15.0);
        Self { d: r.d, dmin: r.dmin, scales: pack_scale_min(r.pairs), qs: pack_four_bits(&r.q) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

impl Block for Q5K {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, values) in out.chunks_exact_mut(32).enumerate() {
            let (scale, min) = scale_min(&self.scales, j);
            let (scale, min) = (d * scale as f32, dmin * min as f32);
            for (b, o) in values.iter_mut().enumerate() {
                let i = 32 * j + b;
                let q = four_bits(&self.qs, i) | one_bit(&self.qh, i) << 4;
                *o = scale * q as f32 - min;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let r = ranged::<8>(values, 63.0, 31.0);
        let qh = pack_one_bit(r.q.iter().map(|q| q >> 4));
        Self { d: r.d, dmin: r.dmin, scales: pack_scale_min(r.pairs), qh, qs: pack_four_bits(&r.q) }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.dmin.is_finite()
    }
}

/// Low four bits of value `i`, in the order of [`Q6K::ql`].
#[inline]
pub fn q6k_low(ql: &[u8; 128], i: usize) -> u8 {
    ql[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15
}

impl Block for Q6K {
    const VALUES: usize = 256;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 256);
        let d = self.d.to_f32();
        for (j, values) in out.chunks_exact_mut(16).enumerate() {
            let scale = d * self.scales[j] as f32;
            for (b, o) in values.iter_mut().enumerate() {
                let i = 16 * j + b;
                let q = (q6k_low(&self.ql, i) | two_bits(&self.qh, i) << 4) as i32 - 32;
                *o = scale * q as f32;
            }
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, scales, q) = symmetric::<16>(values, 128, 32);
        let mut ql = [0; 128];
        for (i, q) in q.iter().enumerate() {
            ql[i / 128 * 64 + i % 64] |= (q & 15) << (i % 128 / 64 * 4);
        }
        Self { ql, qh: pack_two_bits(&q.map(|q| q >> 4)), scales, d }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}
