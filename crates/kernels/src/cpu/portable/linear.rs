//! Matrix products with f32 activations: a weight row is decoded once and multiplied with every row of x.

use std::ops::Range;

use files::Result;

use crate::buffer::HostWeight;
use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{dots, silu};
use crate::cpu::shared::Parts;
use crate::ops::RoutedRow;

/// The rows of an activation matrix that a product works on, and the rows of the output that take the results.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Rows<'a> {
    /// `[_, cols]`
    pub x: &'a [f32],
    pub cols: usize,
    pub pick: Pick<'a>,
}

/// Which rows.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum Pick<'a> {
    /// So many consecutive rows: from row `.0` of the input, to row `.1` of the output.
    Consecutive(usize, usize, usize),
    /// From each `row` to each `part`.
    Routed(&'a [RoutedRow]),
    /// From each `row` to consecutive rows that start at `.1`.
    Gathered(&'a [RoutedRow], usize),
    /// From consecutive rows that start at `.1` to each `part`.
    Scattered(&'a [RoutedRow], usize),
}

impl<'a> Pick<'a> {
    /// The same input rows, with results in consecutive rows from `start`.
    pub(in crate::cpu) fn into_scratch(self, start: usize) -> Self {
        match self {
            Pick::Consecutive(from, _, n) => Pick::Consecutive(from, start, n),
            Pick::Routed(r) | Pick::Gathered(r, _) => Pick::Gathered(r, start),
            Pick::Scattered(r, from) => Pick::Consecutive(from, start, r.len()),
        }
    }

    /// Consecutive input rows from `start`, with results where these have theirs.
    pub(in crate::cpu) fn out_of_scratch(self, start: usize) -> Self {
        match self {
            Pick::Consecutive(_, to, n) => Pick::Consecutive(start, to, n),
            Pick::Routed(r) | Pick::Scattered(r, _) => Pick::Scattered(r, start),
            Pick::Gathered(r, to) => Pick::Consecutive(start, to, r.len()),
        }
    }
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(in crate::cpu) fn len(&self) -> usize {
        match self.pick {
            Pick::Consecutive(_, _, n) => n,
            Pick::Routed(r) | Pick::Gathered(r, _) | Pick::Scattered(r, _) => r.len(),
        }
    }

    /// Input row number `i` of these.
    #[inline(always)]
    pub(in crate::cpu) fn source(&self, i: usize) -> usize {
        match self.pick {
            Pick::Consecutive(from, _, _) => from + i,
            Pick::Routed(r) | Pick::Gathered(r, _) => r[i].row as usize,
            Pick::Scattered(_, from) => from + i,
        }
    }

    /// Output row number `i` of these.
    #[inline(always)]
    pub(in crate::cpu) fn target(&self, i: usize) -> usize {
        match self.pick {
            Pick::Consecutive(_, to, _) => to + i,
            Pick::Routed(r) | Pick::Scattered(r, _) => r[i].part as usize,
            Pick::Gathered(_, to) => to + i,
        }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [f32] {
        &self.x[self.source(i) * self.cols..][..self.cols]
    }
}

for_each_isa! {
    /// `sums[i] = x[i] . w` for every row.
    fn products(x: Rows<'_>, w: &[f32], sums: &mut [f32]) {
        let whole = x.len() - x.len() % 4;
        for i in (0..whole).step_by(4) {
            sums[i..i + 4].copy_from_slice(&dots([x.row(i), x.row(i + 1), x.row(i + 2), x.row(i + 3)], w));
        }
        for (i, sum) in sums.iter_mut().enumerate().skip(whole) {
            *sum = dots([x.row(i)], w)[0];
        }
    }
}

/// Columns `outputs` of `out = x . w^T + bias`; `out` has `w.rows` columns.
///
/// # Errors
/// As [`files::quant::decode`].
///
/// # Safety
/// Nobody else accesses these columns of the target rows.
pub(in crate::cpu) unsafe fn linear(
    isa: Isa,
    x: Rows<'_>,
    w: &HostWeight<'_>,
    bias: Option<&[f32]>,
    outputs: Range<usize>,
    out: Parts<'_, f32>,
) -> Result<()> {
    let mut row = vec![0.0; w.cols];
    let mut sums = vec![0.0; x.len()];
    for n in outputs {
        w.decode_row(n, &mut row)?;
        products(isa, x, &row, &mut sums);
        for (i, sum) in sums.iter().enumerate() {
            let value = bias.map_or(*sum, |b| sum + b[n]);
            // SAFETY: column `n` of target rows belongs to this call, as the caller promises.
            unsafe { out.set(x.target(i) * w.rows + n, value) };
        }
    }
    Ok(())
}

/// Columns `outputs` of `out = silu(x . gate^T) * (x . up^T)`.
///
/// # Errors
/// As [`files::quant::decode`].
///
/// # Safety
/// As [`linear`].
pub(in crate::cpu) unsafe fn gate_up(
    isa: Isa,
    x: Rows<'_>,
    gate: &HostWeight<'_>,
    up: &HostWeight<'_>,
    outputs: Range<usize>,
    out: Parts<'_, f32>,
) -> Result<()> {
    let mut row = vec![0.0; gate.cols];
    let (mut gates, mut ups) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for n in outputs {
        gate.decode_row(n, &mut row)?;
        products(isa, x, &row, &mut gates);
        up.decode_row(n, &mut row)?;
        products(isa, x, &row, &mut ups);
        for (i, (g, u)) in gates.iter().zip(&ups).enumerate() {
            // SAFETY: as in `linear`.
            unsafe { out.set(x.target(i) * gate.rows + n, silu(*g) * u) };
        }
    }
    Ok(())
}
