//! Rows of x as signed bytes, in the order in which a format's bytes come.

use super::BLOCK;
use crate::cpu::isa::for_each_isa;

/// Where the values of a block of 32 lie among the unpacked bytes of a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cpu) enum Order {
    /// In order.
    #[default]
    Natural,
    /// The even ones, then the odd ones: nibbles side by side.
    EvenOdd,
    /// Of each 16: every fourth from the first, then from the second, ..: four values a byte.
    Quads,
    /// In even blocks each half starts with its last two values; odd blocks in order: blocks whose bytes start in
    /// the middle of a dword.
    Rotated16,
    /// In even blocks the last two values come first.
    Rotated32,
}

/// How a format wants its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cpu) struct Layout {
    pub(in crate::cpu) order: Order,
    /// What an integer sum starts with, for each unit of the sum of x.
    pub(in crate::cpu) correction: i32,
    /// Sums of 16 values instead of 32.
    pub(in crate::cpu) halves: bool,
}

/// What goes with 32 quantised values.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(in crate::cpu) struct Meta {
    /// `x = scale * q`
    pub(super) scale: f32,
    /// What the integer sums start with.
    pub(super) start: [i32; 2],
    /// `scale * sum(q)`
    pub(super) sum: [f32; 2],
}

/// Quantised rows, `[rows, cols]`.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Activations {
    pub(super) q: Vec<i8>,
    pub(super) meta: Vec<Meta>,
    pub(super) cols: usize,
    pub(super) layout: Layout,
}

impl Activations {
    /// Makes room for `rows` rows of undefined content.
    pub(in crate::cpu) fn resize(&mut self, rows: usize, cols: usize, layout: Layout) {
        (self.cols, self.layout) = (cols, layout);
        if self.q.len() < rows * cols {
            self.q.resize(rows * cols, 0);
            self.meta.resize(rows * cols / BLOCK, Meta::default());
        }
    }

    /// The memory, to fill.
    pub(in crate::cpu) fn parts_mut(&mut self) -> (&mut [i8], &mut [Meta]) {
        (&mut self.q, &mut self.meta)
    }
}

for_each_isa! {
    /// Quantises one row.
    pub(in crate::cpu) fn quantise(x: &[f32], layout: Layout, q: &mut [i8], meta: &mut [Meta]) {
        let blocks = x.chunks_exact(BLOCK).zip(q.chunks_exact_mut(BLOCK)).zip(meta).enumerate();
        for (b, ((x, q), meta)) in blocks {
            let (natural, scale, sums) = quantise_block(x);
            permute(layout.order, b, &natural, q);
            let sums = if layout.halves { sums } else { [sums[0] + sums[1]; 2] };
            *meta = Meta {
                scale,
                start: sums.map(|s| layout.correction * s),
                sum: sums.map(|s| scale * s as f32),
            };
        }
    }
}

/// The bytes of 32 values, their scale, and the sums of the halves.
#[inline(always)]
fn quantise_block(x: &[f32]) -> ([i8; BLOCK], f32, [i32; 2]) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let mut max = [0.0f32; 16];
    let mut poison = [0.0f32; 16];
    for x in x.chunks_exact(16) {
        for ((max, poison), x) in max.iter_mut().zip(&mut poison).zip(x) {
            let x_abs = x.abs();
            *max = if x_abs > *max { x_abs } else { *max };
            // What is not finite must not vanish: it poisons the scale.
            *poison += x * 0.0;
        }
    }
    let mut n = 8;
    while n > 0 {
        for i in 0..n {
            max[i] = if max[i + n] > max[i] { max[i + n] } else { max[i] };
            poison[i] += poison[i + n];
        }
        n /= 2;
    }
    let inverse = if max[0] > 0.0 { 127.0 / max[0] } else { 0.0 };
    let mut q = [0i8; BLOCK];
    let mut sums = [0i32; 2];
    for ((q, x), sum) in q.chunks_exact_mut(16).zip(x.chunks_exact(16)).zip(&mut sums) {
        let mut total = 0;
        for (q, x) in q.iter_mut().zip(x) {
            let rounded = ((x * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            *q = rounded as i8;
            total += i32::from(rounded as i8);
        }
        *sum = total;
    }
    (q, max[0] / 127.0 + poison[0], sums)
}

#[inline(always)]
fn permute(order: Order, block: usize, q: &[i8; BLOCK], out: &mut [i8]) {
    match order {
        Order::EvenOdd => {
            for i in 0..16 {
                (out[i], out[16 + i]) = (q[2 * i], q[2 * i + 1]);
            }
        }
        Order::Quads => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = q[i / 16 * 16 + i % 4 * 4 + i / 4 % 4];
            }
        }
        Order::Rotated16 if block.is_multiple_of(2) => {
            for (q, out) in q.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
                out[..2].copy_from_slice(&q[14..]);
                out[2..].copy_from_slice(&q[..14]);
            }
        }
        Order::Rotated32 if block.is_multiple_of(2) => {
            out[..2].copy_from_slice(&q[30..]);
            out[2..].copy_from_slice(&q[..30]);
        }
        Order::Natural | Order::Rotated16 | Order::Rotated32 => out.copy_from_slice(q),
    }
}
