//! GGML's 32-value blocks: one f16 scale, in the `_1` formats also an f16 minimum.
//!
//! 4-bit values lie in `qs` with value `j` in the low nibble of byte `j` and value `j + 16` in the high nibble;
//! the fifth bit of value `j` is bit `j` of the little-endian `qh`. Source: the `gguf` package's dequantiser.
//! The encoders give the same bytes as the `gguf` package's.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::block::{Block, extreme, inverse, range};

/// `w = d * (q - 8)`, q in 0..16.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)] // the format's own name
pub struct Q4_0 {
    /// Scale.
    pub d: f16,
    /// Nibbles.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<Q4_0>() == 18 && align_of::<Q4_0>() == 2);

/// `w = d * q + m`, q in 0..16.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct Q4_1 {
    /// Scale.
    pub d: f16,
    /// Minimum.
    pub m: f16,
    /// Nibbles.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<Q4_1>() == 20 && align_of::<Q4_1>() == 2);

/// `w = d * (q - 16)`, q in 0..32.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct Q5_0 {
    /// Scale.
    pub d: f16,
    /// Fifth bits, little-endian.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<Q5_0>() == 22 && align_of::<Q5_0>() == 2);

/// `w = d * q + m`, q in 0..32.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct Q5_1 {
    /// Scale.
    pub d: f16,
    /// Minimum.
    pub m: f16,
    /// Fifth bits, little-endian.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}
const _: () = assert!(size_of::<Q5_1>() == 24 && align_of::<Q5_1>() == 2);

/// `w = d * q`, q a signed byte; value `j` is `qs[j]`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[allow(non_camel_case_types)]
pub struct Q8_0 {
    /// Scale.
    pub d: f16,
    /// Values.
    pub qs: [i8; 32],
}
const _: () = assert!(size_of::<Q8_0>() == 34 && align_of::<Q8_0>() == 2);

/// Nibble `j` of 32 in half-split order: low nibbles are values 0..16, high nibbles 16..32.
#[inline]
pub fn nibble(qs: &[u8; 16], j: usize) -> u8 {
    if j < 16 { qs[j] & 15 } else { qs[j - 16] >> 4 }
}

/// [`nibble`] with its fifth bit from `qh`.
#[inline]
pub fn five_bits(qs: &[u8; 16], qh: [u8; 4], j: usize) -> u8 {
    nibble(qs, j) | ((u32::from_le_bytes(qh) >> j & 1) << 4) as u8
}

/// Packs 32 values of at most 5 bits: nibbles and fifth bits.
pub(super) fn pack(q: impl Iterator<Item = u8>) -> ([u8; 16], [u8; 4]) {
    let (mut qs, mut qh) = ([0; 16], 0u32);
    for (j, q) in q.take(32).enumerate() {
        qs[j % 16] |= (q & 15) << (4 * (j / 16));
        qh |= ((q >> 4 & 1) as u32) << j;
    }
    (qs, qh.to_le_bytes())
}

/// Symmetric quantisation to `0..2 * half`, the extreme value hit by the end that has one code more.
fn symmetric(values: &[f32], half: f32) -> (f16, impl Iterator<Item = u8>) {
    let d = extreme(values) / -half;
    let id = inverse(d);
    let q = values.iter().map(move |&x| ((x * id + (half + 0.5)) as u8).min(2 * half as u8 - 1));
    (f16::from_f32(d), q)
}

/// Quantisation of the range `min..=max` to `0..=top`.
fn offset(values: &[f32], top: f32) -> (f16, f16, impl Iterator<Item = u8>) {
    let (min, max) = range(values);
    let d = (max - min) / top;
    let id = inverse(d);
    let q = values.iter().map(move |&x| (((x - min) * id + 0.5) as u8).min(top as u8));
    (f16::from_f32(d), f16::from_f32(min), q)
}

impl Block for Q4_0 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let d = self.d.to_f32();
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * (nibble(&self.qs, j) as i32 - 8) as f32;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, q) = symmetric(values, 8.0);
        Self { d, qs: pack(q).0 }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block for Q4_1 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * nibble(&self.qs, j) as f32 + m;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, m, q) = offset(values, 15.0);
        Self { d, m, qs: pack(q).0 }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl Block for Q5_0 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let d = self.d.to_f32();
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * (five_bits(&self.qs, self.qh, j) as i32 - 16) as f32;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, q) = symmetric(values, 16.0);
        let (qs, qh) = pack(q);
        Self { d, qh, qs }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}

impl Block for Q5_1 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let (d, m) = (self.d.to_f32(), self.m.to_f32());
        for (j, o) in out.iter_mut().enumerate() {
            *o = d * five_bits(&self.qs, self.qh, j) as f32 + m;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let (d, m, q) = offset(values, 31.0);
        let (qs, qh) = pack(q);
        Self { d, m, qh, qs }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite() && self.m.is_finite()
    }
}

impl Block for Q8_0 {
    const VALUES: usize = 32;

    fn decode(&self, out: &mut [f32]) {
        assert_eq!(out.len(), 32);
        let d = self.d.to_f32();
        for (o, &q) in out.iter_mut().zip(&self.qs) {
            *o = d * q as f32;
        }
    }

    fn encode(values: &[f32]) -> Self {
        let d = extreme(values).abs() / 127.0;
        let id = inverse(d);
        let mut qs = [0; 32];
        for (q, &x) in qs.iter_mut().zip(values) {
            *q = (x * id).round() as i8;
        }
        Self { d: f16::from_f32(d), qs }
    }

    fn is_finite(&self) -> bool {
        self.d.is_finite()
    }
}
