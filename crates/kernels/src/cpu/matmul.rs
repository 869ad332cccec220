//! Cuts matrix products and MLPs into items for the pool.

use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

use files::{Format, Result};

use super::int8::{self, Activations, BLOCK, Item, Layout, OUTPUTS, Workspace};
use super::shared::{Parts, Sums};
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
/// The same where x is not quantised: a router has few outputs, and all threads are to have some.
const FLOAT_TILE: usize = 4;
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
    /// in whole tiles of `least`.
    fn tile(&self, outputs: usize, least: usize) -> usize {
        (outputs / (ITEMS * self.pool.threads())).clamp(least, 1024) / least * least
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
            let quantised = bytes.rows_mut();
            self.split(rows, cols, |r| {
                for r in r {
                    // SAFETY: each row is visited once.
                    unsafe { quantised.quantise(self.isa, r, &x[r * cols..][..cols]) };
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
        let to: Vec<u32> = (to.start as u32..to.end as u32).collect();
        let outputs = targets.iter().map(|target| target.weight.rows).sum();
        let least = match input {
            Input::Float(_) => FLOAT_TILE,
            Input::Bytes(_) => TILE,
        };
        let tile = self.tile(outputs, least);
        let mut items = Vec::new();
        for &target in targets {
            let outputs = target.weight.rows;
            items.extend((0..outputs).step_by(tile).map(|n| (target, n..outputs.min(n + tile))));
        }
        self.pool.run_numbered(items.len(), |thread, item| {
            let (target, outputs) = &items[item];
            let next = items.get(item + 1).map(|(target, outputs)| (target.weight, outputs.start));
            let item = Item { weight: target.weight, outputs: outputs.clone(), next };
            let sums = Sums { values: target.out, rows: &to, width: target.weight.rows, base: 0 };
            // SAFETY: each item has its own columns.
            unsafe {
                self.outputs(thread, input, &rows, &item, sums)?;
                if let Some(bias) = target.bias {
                    for i in 0..rows.len() {
                        let out = sums.part(i, outputs.start, outputs.len());
                        out.iter_mut().zip(&bias[outputs.start..]).for_each(|(out, bias)| *out += bias);
                    }
                }
            }
            Ok(())
        })
    }

    /// `x[rows[i]] . w[n]`, to the sums of row i, for all rows and all outputs n of the item.
    ///
    /// # Safety
    /// Nobody else accesses these sums. Rows of x have theirs for themselves.
    unsafe fn outputs(
        &self,
        thread: usize,
        input: Input<'_>,
        rows: &[u32],
        item: &Item<'_>,
        sums: Sums<'_>,
    ) -> Result<()> {
        match input {
            Input::Float(x) => {
                portable::products_of(
                    self.isa,
                    x,
                    rows,
                    &item.weight,
                    item.outputs.clone(),
                    |i, n, values| {
                        // SAFETY: as the caller promises.
                        unsafe { sums.part(i, n, values.len()) }.copy_from_slice(values);
                    },
                )
            }
            Input::Bytes(x) => {
                let mut work = self.workspace(thread);
                // SAFETY: as the caller promises.
                unsafe { int8::products(self.isa, item, x, rows, &mut work, sums) };
                Ok(())
            }
        }
    }

    fn workspace(&self, thread: usize) -> MutexGuard<'_, Workspace> {
        // Only its thread asks for it. What a panic leaves there is as good as what is always left.
        self.workspaces[thread].lock().unwrap_or_else(PoisonError::into_inner)
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
            if jobs.iter().map(|job| job.from.len()).sum::<usize>() <= pass {
                return self.pass(gates, ups, &jobs, out);
            }
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
            let tile = self.tile(inner * jobs.len(), TILE);
            let tiles = inner.div_ceil(tile);
            self.pool.run_numbered(jobs.len() * tiles, |thread, item| {
                let (j, from) = (item / tiles, item % tiles * tile);
                let rows = &all[starts[j]..starts[j + 1]];
                let gate = Gate { jobs, j, outputs: from..inner.min(from + tile) };
                let sums = Sums { values: target, rows, width: inner, base: 0 };
                // SAFETY: each item has its own columns of its job's rows.
                unsafe { self.gate_up(thread, [gates, ups], &gate, sums) }
            })?;
            let values = &*values;
            self.with_input(values, inner, down_format, |input| {
                let out = Parts::new(out);
                let tile = self.tile(hidden * jobs.len(), TILE);
                let tiles = hidden.div_ceil(tile);
                self.pool.run_numbered(jobs.len() * tiles, |thread, item| {
                    let (j, from) = (item / tiles, item % tiles * tile);
                    let (job, outputs) = (&jobs[j], from..hidden.min(from + tile));
                    let next = after(jobs, j, 2, outputs.end);
                    let rows = &all[starts[j]..starts[j + 1]];
                    let item = Item { weight: job.weights[2], outputs, next };
                    let sums = Sums { values: out, rows: &job.to, width: hidden, base: 0 };
                    // SAFETY: each item has its own columns of its job's rows; no row is in two jobs.
                    unsafe { self.outputs(thread, input, rows, &item, sums) }
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
        sums: Sums<'_>,
    ) -> Result<()> {
        let Gate { jobs, j, ref outputs } = *item;
        let (job, [gate, up, _]) = (&jobs[j], jobs[j].weights);
        // A row alone goes through memory as it lies; what several rows make of a tile stays in the first caches.
        let step = if job.from.len() == 1 { outputs.len() } else { OUTPUTS };
        let own: Vec<u32> = (0..job.from.len() as u32).collect();
        let mut ups_here = std::mem::take(&mut self.workspace(thread).ups);
        ups_here.resize(own.len() * step, 0.0);
        for n in outputs.clone().step_by(step) {
            let here = n..outputs.end.min(n + step);
            let other = Sums { values: Parts::new(&mut ups_here), rows: &own, width: step, base: n };
            let next =
                if here.end < outputs.end { Some((gate, here.end)) } else { after(jobs, j, 0, here.end) };
            let gate = Item { weight: gate, outputs: here.clone(), next: Some((up, n)) };
            let up = Item { weight: up, outputs: here.clone(), next };
            // SAFETY: as the caller promises; the others are this thread's.
            unsafe {
                self.outputs(thread, gates, &job.from, &gate, sums)?;
                self.outputs(thread, ups, &job.from, &up, other)?;
                for i in 0..own.len() {
                    let ups = other.part(i, n, here.len());
                    portable::silu_mul(self.isa, sums.part(i, n, here.len()), ups);
                }
            }
        }
        self.workspace(thread).ups = ups_here;
        Ok(())
    }
}

/// Some columns of a job's inner activations.
struct Gate<'a, 'b> {
    jobs: &'a [Job<'b>],
    j: usize,
    outputs: Range<usize>,
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
