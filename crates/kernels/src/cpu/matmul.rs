//! Cuts matrix products and MLPs into items for the pool.

use files::Result;

use super::Cpu;
use super::portable::{self, Pick, Rows};
use super::shared::Parts;
use crate::buffer::HostWeight;
use crate::ops::{ExpertBatch, MlpWeights};

/// Bytes of scratch that hold an MLP's inner activations; more rows are worked on in several passes.
const INNER_BYTES: usize = 16 << 20;

/// One MLP and its rows.
#[derive(Clone, Copy)]
struct Job<'a> {
    weights: &'a MlpWeights,
    pick: Pick<'a>,
    rows: usize,
}

impl Cpu {
    /// Outputs of one item, for a product that has `outputs` in all: several items a thread, whole tiles.
    fn tile(&self, outputs: usize) -> usize {
        (outputs / (8 * self.pool.threads())).clamp(16, 128) / 16 * 16
    }

    /// `out = x . w^T + bias` for all rows.
    pub(super) fn product(
        &self,
        x: &[f32],
        w: &HostWeight<'_>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<()> {
        let rows = Rows { x, cols: w.cols, pick: Pick::Consecutive(0, 0, x.len() / w.cols) };
        let tile = self.tile(w.rows);
        let out = Parts::new(out);
        self.pool.run(w.rows.div_ceil(tile), |item| {
            let outputs = item * tile..w.rows.min((item + 1) * tile);
            // SAFETY: each item has its own columns.
            unsafe { portable::linear(self.isa, rows, w, bias, outputs, out) }
        })
    }

    /// One MLP over all rows.
    pub(super) fn dense_mlp(&self, x: &[f32], weights: &MlpWeights, out: &mut [f32]) -> Result<()> {
        let rows = x.len() / weights.gate.cols();
        let pass = rows_of_pass(weights.gate.rows());
        for from in (0..rows).step_by(pass) {
            let n = pass.min(rows - from);
            self.pass(x, &[Job { weights, pick: Pick::Consecutive(from, from, n), rows: n }], out)?;
        }
        Ok(())
    }

    /// Several experts, each over its own rows.
    pub(super) fn routed_mlp(&self, x: &[f32], experts: &[ExpertBatch<'_>], parts: &mut [f32]) -> Result<()> {
        let Some(first) = experts.first() else { return Ok(()) };
        let pass = rows_of_pass(first.weights.gate.rows());
        let (mut jobs, mut rows) = (Vec::new(), 0);
        for expert in experts {
            for routed in expert.rows.chunks(pass) {
                if rows + routed.len() > pass {
                    self.pass(x, &jobs, parts)?;
                    (jobs, rows) = (Vec::new(), 0);
                }
                rows += routed.len();
                jobs.push(Job { weights: expert.weights, pick: Pick::Routed(routed), rows: routed.len() });
            }
        }
        self.pass(x, &jobs, parts)
    }

    /// The jobs, together: all gates and ups, then all downs.
    fn pass(&self, x: &[f32], jobs: &[Job<'_>], out: &mut [f32]) -> Result<()> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let (inner, hidden) = (first.weights.gate.rows(), first.weights.gate.cols());
        let weights = jobs
            .iter()
            .map(|job| Ok([job.weights.gate.host()?, job.weights.up.host()?, job.weights.down.host()?]))
            .collect::<Result<Vec<_>>>()?;
        let starts: Vec<usize> = jobs
            .iter()
            .scan(0, |sum, job| {
                *sum += job.rows;
                Some(*sum - job.rows)
            })
            .collect();
        let rows: usize = jobs.iter().map(|job| job.rows).sum();
        self.scratch.with(rows * inner, |values| {
            let tile = self.tile(inner * jobs.len());
            let tiles = inner.div_ceil(tile);
            let target = Parts::new(values);
            self.pool.run(jobs.len() * tiles, |item| {
                let (j, from) = (item / tiles, item % tiles * tile);
                let rows = Rows { x, cols: hidden, pick: jobs[j].pick.into_scratch(starts[j]) };
                let [gate, up, _] = &weights[j];
                // SAFETY: each item has its own columns of its job's rows.
                unsafe { portable::gate_up(self.isa, rows, gate, up, from..inner.min(from + tile), target) }
            })?;
            let tile = self.tile(hidden * jobs.len());
            let tiles = hidden.div_ceil(tile);
            let (values, out) = (&*values, Parts::new(out));
            self.pool.run(jobs.len() * tiles, |item| {
                let (j, from) = (item / tiles, item % tiles * tile);
                let rows = Rows { x: values, cols: inner, pick: jobs[j].pick.out_of_scratch(starts[j]) };
                let outputs = from..hidden.min(from + tile);
                // SAFETY: each item has its own columns of its job's rows; a part belongs to one routed row.
                unsafe { portable::linear(self.isa, rows, &weights[j][2], None, outputs, out) }
            })
        })
    }
}

/// Rows whose inner activations fit the scratch.
fn rows_of_pass(inner: usize) -> usize {
    (INNER_BYTES / 4 / inner.max(1)).max(1)
}
