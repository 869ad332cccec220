//! Cuts matrix products and MLPs into items for the pool.

use std::ops::Range;
use std::sync::PoisonError;

use files::{Format, Result};

use super::int8::{self, Activations, BLOCK, Item, Layout};
use super::shared::Parts;
use super::{Cpu, portable};
use crate::buffer::HostWeight;
use crate::ops::{ExpertBatch, MlpWeights, Precision};

/// Bytes of scratch that hold an MLP's inner activations, in the processor's cache; more rows are worked on in several
/// passes.
const INNER_BYTES: usize = 2 << 20;
/// Items of a product for each thread, if it has as many outputs as they need.
const ITEMS: usize = 16;
/// Outputs of an item are a multiple of this: whole tiles of every instruction set.
const TILE: usize = 32;
/// Values of x that are quantised at a time.
const QUANTISED: usize = 8 << 20;

/// The activations of a product, as its weight's format wants them.
#[derive(Clone, Copy)]
enum Input<'a> {
    Float(&'a [f32]),
    Bytes(&'a Activations),
}

/// A product: the weight `[n, k]`, the bias `[n]`, and where the results `[rows, n]` go.
pub(super) struct Target<'a> {
    pub(super) weight: HostWeight<'a>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: Parts<'a, f32>,
}

/// One MLP and its rows: of the input, and of the output.
struct Job<'a> {
    weights: [HostWeight<'a>; 3],
    from: Vec<u32>,
    to: Vec<u32>,
}

/// A row of a weight: where a thread will probably go on.
type Next<'a> = Option<(HostWeight<'a>, usize)>;

impl Cpu {
    /// Outputs of one item, for a product that has `outputs` in all: many items a thread, so that both end together,
    /// in whole tiles.
    fn tile(&self, outputs: usize) -> usize {
        (outputs / (ITEMS * self.pool.threads())).clamp(TILE, 1024) / TILE * TILE
    }

    fn layout(&self, format: Format, cols: usize) -> Option<Layout> {
        let fast = self.info.precision == Precision::Fast && cols.is_multiple_of(BLOCK);
        if fast { int8::layout(self.isa, format) } else { None }
    }

    /// Quantises the rows of `x` for weights in `format`, if they want that, and calls `f`.
    fn with_input<R>(
        &self,
        x: &[f32],
        cols: usize,
        format: Format,
        f: impl FnOnce(Input<'_>) -> Result<R>,
    ) -> Result<R> {
        let Some(layout) = self.layout(format, cols) else { return f(Input::Float(x)) };
        self.quantised.with(|bytes| {
            let rows = x.len() / cols;
            bytes.resize(rows, cols, layout);
            let each = bytes.row_blocks();
            let (q, meta) = bytes.parts_mut();
            let (q, meta) = (Parts::new(q), Parts::new(meta));
            self.split(rows, cols, |r| {
                for r in r {
                    // SAFETY: each row is visited once.
                    let (q, meta) =
                        unsafe { (q.part(r * each * BLOCK, each * BLOCK), meta.part(r * each, each)) };
                    int8::quantise(self.isa, &x[r * cols..][..cols], layout, q, meta);
                }
            })?;
            f(Input::Bytes(bytes))
        })
    }

    /// `out = x . w^T + bias` for all rows of x, `[rows, cols]`, and all targets: one job for those that want x alike.
    pub(super) fn products(&self, x: &[f32], cols: usize, targets: &[Target<'_>]) -> Result<()> {
        let layout = |target: &Target<'_>| self.layout(target.weight.format, cols);
        let pass = (QUANTISED / cols).max(1);
        for (i, target) in targets.iter().enumerate() {
            if targets[..i].iter().any(|before| layout(before) == layout(target)) {
                continue;
            }
            let alike: Vec<_> = targets[i..].iter().filter(|other| layout(other) == layout(target)).collect();
            for (p, x) in x.chunks(pass * cols).enumerate() {
                self.with_input(x, cols, target.weight.format, |input| {
                    self.products_of(input, p * pass..p * pass + x.len() / cols, &alike)
                })?;
            }
        }
        Ok(())
    }

    /// `out = x . w^T` with f32 activations in every mode, for routers.
    pub(super) fn float_product(&self, x: &[f32], weight: HostWeight<'_>, out: &mut [f32]) -> Result<()> {
        let target = Target { weight, bias: None, out: Parts::new(out) };
        self.products_of(Input::Float(x), 0..x.len() / weight.cols, &[&target])
    }

    /// The rows of `input`, which are rows `to` of the outputs.
    fn products_of(&self, input: Input<'_>, to: Range<usize>, targets: &[&Target<'_>]) -> Result<()> {
        let rows: Vec<u32> = (0..to.len() as u32).collect();
        let tile = self.tile(targets.iter().map(|target| target.weight.rows).sum());
        let mut items = Vec::new();
        for &target in targets {
            let outputs = target.weight.rows;
            items.extend((0..outputs).step_by(tile).map(|n| (target, n..outputs.min(n + tile))));
        }
        self.pool.run_numbered(items.len(), |thread, item| {
            let (target, outputs) = &items[item];
            let next = items.get(item + 1).map(|(target, outputs)| (target.weight, outputs.start));
            self.outputs(thread, input, &rows, &target.weight, outputs.clone(), next, |i, n, sums| {
                // SAFETY: each item has its own columns.
                let out = unsafe { target.out.part((to.start + i) * target.weight.rows + n, sums.len()) };
                out.copy_from_slice(sums);
                if let Some(bias) = target.bias {
                    out.iter_mut().zip(&bias[n..]).for_each(|(out, bias)| *out += bias);
                }
            })
        })
    }

    /// Calls `take(i, n, sums)`, where `sums` are `x[rows[i]] . w[n ..]`, until all rows have all `outputs`.
    #[allow(clippy::too_many_arguments)] // what is multiplied, by whom, and where it goes
    fn outputs(
        &self,
        thread: usize,
        input: Input<'_>,
        rows: &[u32],
        w: &HostWeight<'_>,
        outputs: Range<usize>,
        next: Next<'_>,
        mut take: impl FnMut(usize, usize, &[f32]),
    ) -> Result<()> {
        match input {
            Input::Float(x) => portable::products_of(self.isa, x, rows, w, outputs, take),
            Input::Bytes(x) => {
                let item = Item { weight: *w, outputs, next };
                // Only its thread asks for it. What a panic leaves there is as good as what is always left.
                let mut work = self.workspaces[thread].lock().unwrap_or_else(PoisonError::into_inner);
                int8::products(self.isa, &item, x, rows, &mut work, &mut take);
                Ok(())
            }
        }
    }

    /// One MLP over all rows.
    pub(super) fn dense_mlp(&self, x: &[f32], weights: &MlpWeights, out: &mut [f32]) -> Result<()> {
        let hidden = weights.gate.cols();
        let pass = rows_of_pass(weights.gate.rows()).min((QUANTISED / hidden).max(1));
        let weights = host(weights)?;
        for (x, out) in x.chunks(pass * hidden).zip(out.chunks_mut(pass * hidden)) {
            let rows: Vec<u32> = (0..(x.len() / hidden) as u32).collect();
            self.passes(x, vec![Job { weights, from: rows.clone(), to: rows }], out)?;
        }
        Ok(())
    }

    /// Several experts, each over its own rows.
    pub(super) fn routed_mlp(&self, x: &[f32], experts: &[ExpertBatch<'_>], parts: &mut [f32]) -> Result<()> {
        let mut jobs = Vec::with_capacity(experts.len());
        for expert in experts.iter().filter(|expert| !expert.rows.is_empty()) {
            let from = expert.rows.iter().map(|r| r.row).collect();
            let to = expert.rows.iter().map(|r| r.part).collect();
            jobs.push(Job { weights: host(expert.weights)?, from, to });
        }
        // Mixed quantisations give an expert here and there another format.
        let formats = |job: &Job<'_>| job.weights.map(|w| w.format);
        while let Some(first) = jobs.first().map(formats) {
            let (now, later) = jobs.into_iter().partition(|job| formats(job) == first);
            self.passes(x, now, parts)?;
            jobs = later;
        }
        Ok(())
    }

    /// Cuts the jobs into passes whose inner activations fit the scratch.
    fn passes(&self, x: &[f32], jobs: Vec<Job<'_>>, out: &mut [f32]) -> Result<()> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let [gate, up, _] = first.weights;
        let pass = rows_of_pass(gate.rows);
        let mut run = |gates: Input<'_>, ups: Input<'_>| {
            let (mut now, mut rows) = (Vec::new(), 0);
            for job in &jobs {
                for (from, to) in job.from.chunks(pass).zip(job.to.chunks(pass)) {
                    if rows + from.len() > pass {
                        self.pass(gates, ups, &std::mem::take(&mut now), out)?;
                        rows = 0;
                    }
                    rows += from.len();
                    now.push(Job { weights: job.weights, from: from.to_vec(), to: to.to_vec() });
                }
            }
            self.pass(gates, ups, &now, out)
        };
        self.with_input(x, gate.cols, gate.format, |gates| {
            if self.layout(gate.format, gate.cols) == self.layout(up.format, up.cols) {
                return run(gates, gates);
            }
            self.with_input(x, up.cols, up.format, |ups| run(gates, ups))
        })
    }

    /// The jobs, together: all gates and ups, then all downs. All have the shape and the formats of the first.
    fn pass(&self, gates: Input<'_>, ups: Input<'_>, jobs: &[Job<'_>], out: &mut [f32]) -> Result<()> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let (inner, hidden) = (first.weights[0].rows, first.weights[0].cols);
        let down_format = first.weights[2].format;
        let mut starts = vec![0];
        for job in jobs {
            starts.push(starts[starts.len() - 1] + job.from.len());
        }
        let rows = starts[jobs.len()];
        let all: Vec<u32> = (0..rows as u32).collect();
        self.scratch.with(|values| {
            if values.len() < rows * inner {
                values.resize(rows * inner, 0.0);
            }
            let values = &mut values[..rows * inner];
            let target = Parts::new(values);
            let tile = self.tile(inner * jobs.len());
            let tiles = inner.div_ceil(tile);
            self.pool.run_numbered(jobs.len() * tiles, |thread, item| {
                let (j, from) = (item / tiles, item % tiles * tile);
                let gate = Gate { jobs, j, outputs: from..inner.min(from + tile), start: starts[j] };
                // SAFETY: each item has its own columns of its job's rows.
                unsafe { self.gate_up(thread, [gates, ups], &gate, target) }
            })?;
            let values = &*values;
            self.with_input(values, inner, down_format, |input| {
                let out = Parts::new(out);
                let tile = self.tile(hidden * jobs.len());
                let tiles = hidden.div_ceil(tile);
                self.pool.run_numbered(jobs.len() * tiles, |thread, item| {
                    let (j, from) = (item / tiles, item % tiles * tile);
                    let (job, outputs) = (&jobs[j], from..hidden.min(from + tile));
                    let next = after(jobs, j, 2, outputs.end);
                    let rows = &all[starts[j]..starts[j + 1]];
                    self.outputs(thread, input, rows, &job.weights[2], outputs, next, |i, n, sums| {
                        // SAFETY: each item has its own columns of its job's rows; no row is in two jobs.
                        let out = unsafe { out.part(job.to[i] as usize * hidden + n, sums.len()) };
                        out.copy_from_slice(sums);
                    })
                })
            })
        })
    }

    /// The inner activations of an item.
    ///
    /// # Safety
    /// Nobody else accesses them.
    unsafe fn gate_up(
        &self,
        thread: usize,
        [gates, ups]: [Input<'_>; 2],
        item: &Gate<'_, '_>,
        target: Parts<'_, f32>,
    ) -> Result<()> {
        let Gate { jobs, j, ref outputs, start } = *item;
        let (job, [gate, up, _]) = (&jobs[j], &jobs[j].weights);
        let inner = gate.rows;
        // SAFETY: as the caller promises, here and below.
        let part = |i: usize, n: usize, len: usize| unsafe { target.part((start + i) * inner + n, len) };
        let next = Some((*up, outputs.start));
        self.outputs(thread, gates, &job.from, gate, outputs.clone(), next, |i, n, sums| {
            part(i, n, sums.len()).copy_from_slice(sums);
        })?;
        let next = after(jobs, j, 0, outputs.end);
        self.outputs(thread, ups, &job.from, up, outputs.clone(), next, |i, n, sums| {
            portable::silu_mul(self.isa, part(i, n, sums.len()), sums);
        })
    }
}

/// Some columns of a job's inner activations, which begin at row `start`.
struct Gate<'a, 'b> {
    jobs: &'a [Job<'b>],
    j: usize,
    outputs: Range<usize>,
    start: usize,
}

/// Where a thread goes on that has come to row `row` of a matrix of job `j`.
fn after<'a>(jobs: &[Job<'a>], j: usize, matrix: usize, row: usize) -> Next<'a> {
    let weight = jobs[j].weights[matrix];
    if row < weight.rows { Some((weight, row)) } else { Some((jobs.get(j + 1)?.weights[matrix], 0)) }
}

fn host(weights: &MlpWeights) -> Result<[HostWeight<'_>; 3]> {
    Ok([weights.gate.host()?, weights.up.host()?, weights.down.host()?])
}

/// Rows whose inner activations fit the scratch.
fn rows_of_pass(inner: usize) -> usize {
    (INNER_BYTES / 4 / inner.max(1)).max(1)
}
