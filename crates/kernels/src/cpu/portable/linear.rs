//! Matrix products with f32 activations: a weight row is decoded once and multiplied with every row of x.

use std::ops::Range;

use files::{Format, Result};
use half::{bf16, f16};

use crate::buffer::HostWeight;
use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{dots, silu, widen};

/// Weight rows that are decoded at a time.
const DECODED: usize = 4;

for_each_isa! {
    /// `sums[n, i] = x[rows[i]] . w[n]` for `DECODED` rows of w; the dot products run four at a time.
    fn products(x: &[f32], rows: &[u32], w: &[f32], cols: usize, sums: &mut [f32]) {
        let row = |i: usize| &x[rows[i] as usize * cols..][..cols];
        let weight = |n: usize| &w[n * cols..][..cols];
        let (n, whole) = (rows.len(), rows.len() - rows.len() % 4);
        for (w, sums) in w.chunks_exact(cols).zip(sums.chunks_exact_mut(n)) {
            for i in (0..whole).step_by(4) {
                sums[i..i + 4].copy_from_slice(&dots([row(i), row(i + 1), row(i + 2), row(i + 3)], w));
            }
        }
        for i in whole..n {
            let four = dots([weight(0), weight(1), weight(2), weight(3)], row(i));
            for (j, value) in four.into_iter().enumerate() {
                sums[j * n + i] = value;
            }
        }
    }
}

for_each_isa! {
    fn widen_f16(x: &[u8], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x.chunks_exact(2)) {
            *o = widen(f16::from_le_bytes([x[0], x[1]]));
        }
    }
}

for_each_isa! {
    fn widen_bf16(x: &[u8], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x.chunks_exact(2)) {
            *o = f32::from(bf16::from_le_bytes([x[0], x[1]]));
        }
    }
}

for_each_isa! {
    fn copy_f32(x: &[u8], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x.chunks_exact(4)) {
            *o = f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
        }
    }
}

fn decode(isa: Isa, w: &HostWeight<'_>, row: usize, out: &mut [f32]) -> Result<()> {
    match w.format {
        Format::F32 => copy_f32(isa, w.row(0, row), out),
        Format::F16 => widen_f16(isa, w.row(0, row), out),
        Format::BF16 => widen_bf16(isa, w.row(0, row), out),
        _ => return w.decode_row(row, out),
    }
    Ok(())
}

/// Calls `take(i, n, sums)`, where `sums` are `x[rows[i]] . w[n ..]`, until all rows have all `outputs`.
///
/// # Errors
/// As [`files::quant::decode`].
pub(in crate::cpu) fn products_of(
    isa: Isa,
    x: &[f32],
    rows: &[u32],
    w: &HostWeight<'_>,
    outputs: Range<usize>,
    mut take: impl FnMut(usize, usize, &[f32]),
) -> Result<()> {
    let mut decoded = vec![0.0; DECODED * w.cols];
    let mut sums = vec![0.0; DECODED * rows.len()];
    for first in outputs.clone().step_by(DECODED) {
        let count = DECODED.min(outputs.end - first);
        for (n, row) in decoded.chunks_exact_mut(w.cols).take(count).enumerate() {
            decode(isa, w, first + n, row)?;
        }
        products(isa, x, rows, &decoded, w.cols, &mut sums);
        for i in 0..rows.len() {
            let of_row: [f32; DECODED] = std::array::from_fn(|n| sums[n * rows.len() + i]);
            take(i, first, &of_row[..count]);
        }
    }
    Ok(())
}

for_each_isa! {
    /// `gate = silu(gate) * up`
    pub(in crate::cpu) fn silu_mul(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = silu(*gate) * up;
        }
    }
}
