//! Rows of x as signed bytes, in the order in which a format's bytes come.
//!
//! The error of a block's products is a part of its scale, and the few blocks with the largest values (some channels of
//! trained models) make a large part of a row's error. What rounding leaves of those is quantised once more, 254 times
//! finer: the *residues*, blocks of their own after the row's.

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

/// A block has a residue if the square of its scale exceeds so many times the row's mean: 2 % of the blocks of a
/// trained model, and never more than one in so many.
const OUTSTANDING: usize = 9;
/// Steps of a residue in a step of its block: from half a step down to half a step up in signed bytes.
const FINER: f32 = 254.0;

/// What goes with 32 quantised values.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(in crate::cpu) struct Meta {
    /// `x = scale * q`
    pub(super) scale: f32,
    /// Of a block: where in its row the residues of the blocks after it begin. Of a residue: its block.
    pub(super) link: u32,
    /// What the integer sums start with.
    pub(super) start: [i32; 2],
    /// `scale * sum(q)`
    pub(super) sum: [f32; 2],
}

/// Quantised rows, `[rows, cols]`, each followed by room for residues.
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
        let blocks = rows * self.row_blocks();
        if self.meta.len() < blocks {
            self.q.resize(blocks * BLOCK, 0);
            self.meta.resize(blocks, Meta::default());
        }
    }

    /// From a row to the next.
    pub(in crate::cpu) fn row_blocks(&self) -> usize {
        let blocks = self.cols / BLOCK;
        blocks + blocks / OUTSTANDING
    }

    /// The memory, to fill.
    pub(in crate::cpu) fn parts_mut(&mut self) -> (&mut [i8], &mut [Meta]) {
        (&mut self.q, &mut self.meta)
    }
}

for_each_isa! {
    /// Quantises one row, with its residues.
    pub(in crate::cpu) fn quantise(x: &[f32], layout: Layout, q: &mut [i8], meta: &mut [Meta]) {
        let count = x.len() / BLOCK;
        let (q, residues_q) = q.split_at_mut(x.len());
        let (meta, residues) = meta.split_at_mut(count);
        let mut squares = 0.0;
        let blocks = x.chunks_exact(BLOCK).zip(q.chunks_exact_mut(BLOCK)).zip(&mut *meta).enumerate();
        for (b, ((x, q), meta)) in blocks {
            let (inverse, scale) = scale_of(x);
            let (natural, sums) = bytes_of(x, inverse);
            permute(layout.order, b, &natural, q);
            *meta = meta_of(scale, sums, layout);
            squares += scale * scale;
        }
        let limit = OUTSTANDING as f32 * (squares / count as f32);
        let mut used = 0;
        let blocks = x.chunks_exact(BLOCK).zip(&mut *meta).enumerate();
        for (b, (x, meta)) in blocks {
            if meta.scale * meta.scale > limit && used < residues.len() {
                // The bytes once more, which may lie in another order.
                let (inverse, scale) = scale_of(x);
                let (natural, _) = bytes_of(x, inverse);
                let mut rest = [0.0; BLOCK];
                for ((rest, x), q) in rest.iter_mut().zip(x).zip(&natural) {
                    *rest = x - scale * f32::from(*q);
                }
                let (natural, sums) = bytes_of(&rest, FINER * inverse);
                permute(layout.order, b, &natural, &mut residues_q[used * BLOCK..][..BLOCK]);
                residues[used] = Meta { link: b as u32, ..meta_of(scale / FINER, sums, layout) };
                used += 1;
            }
            meta.link = (count + used) as u32;
        }
    }
}

#[inline(always)]
fn meta_of(scale: f32, sums: [i32; 2], layout: Layout) -> Meta {
    let sums = if layout.halves { sums } else { [sums[0] + sums[1]; 2] };
    Meta {
        scale,
        link: 0,
        start: [layout.correction * sums[0], layout.correction * sums[1]],
        sum: [scale * sums[0] as f32, scale * sums[1] as f32],
    }
}

/// Steps in one and the size of a step, for 32 values.
#[inline(always)]
fn scale_of(x: &[f32]) -> (f32, f32) {
    const INFINITE: u32 = 0x7f80_0000;
    // As integers, magnitudes have the order of numbers, and the compiler knows how to find the largest of a vector.
    let mut largest = [0u32; 16];
    for x in x.chunks_exact(16) {
        for (largest, x) in largest.iter_mut().zip(x) {
            *largest = (x.to_bits() & 0x7fff_ffff).max(*largest);
        }
    }
    let largest = largest.into_iter().fold(0, u32::max);
    let max = f32::from_bits(largest);
    // What is not finite must not vanish: it poisons the scale.
    (if max > 0.0 { 127.0 / max } else { 0.0 }, if largest < INFINITE { max / 127.0 } else { f32::NAN })
}

/// 32 values in steps, and the sums of the halves.
#[inline(always)]
fn bytes_of(x: &[f32], inverse: f32) -> ([i8; BLOCK], [i32; 2]) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let mut steps = [0i32; BLOCK];
    for (steps, x) in steps.iter_mut().zip(x) {
        let rounded = ((x * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        // What is not finite has no byte; any will do, in the sums too.
        *steps = rounded << 24 >> 24;
    }
    let mut q = [0i8; BLOCK];
    for (q, steps) in q.iter_mut().zip(&steps) {
        *q = *steps as i8;
    }
    let (low, high) = steps.split_at(BLOCK / 2);
    (q, [low, high].map(|half| half.iter().sum()))
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
