//! The CPU backend.
//!
//! Results do not depend on the number of threads nor on how rows are batched: an item of the pool computes whole
//! outputs, and each output's float sum runs in one fixed order whatever else is computed beside it.
//! [`Precision::Exact`] multiplies decoded weights with f32 activations; [`Precision::Fast`] multiplies the weights'
//! integers with activations that are quantised to signed bytes, in blocks of 32 or, for k-quants, of 256. Routers,
//! norms, softmax, the delta rule and the weights that are plain floats take f32 in both.

// Kernels run over registers by index, in loops that the compiler unrolls; iterators of arrays do not unroll.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod int8;
mod isa;
mod math;
mod matmul;
mod mixer;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pool;
mod portable;
mod roof;
mod scalar;
mod scratch;
mod shared;
mod simd;
mod urgency;
mod wide;

use std::ops::Range;
use std::sync::Mutex;

use files::Result;

pub use isa::Isa;
pub use roof::read_all;

use crate::buffer::{Block, Buffer, Tensor, Weight};
use crate::ops::{
    AttentionSpec, Backend, DeltaInput, DeltaSpec, DeviceInfo, ExpertBatch, KvCache, KvFormat, MlpWeights,
    PAGE, Precision, Product, RopeSpec, RouteBuffers, RouteSpec, Routes, Segment, SharedOutput, WindowRow,
    rows_of,
};
use crate::{check, host, reference};
use int8::{Activations, Ways, Workspace};
use matmul::Target;
use mixer::rows_in;
pub(crate) use pool::Pool;
use scratch::Scratch;
use shared::Parts;

/// Values below which an element-wise op is not worth a fork-join.
const FORK_VALUES: usize = 1 << 15;
/// Values of router logits that are held at a time.
const LOGITS: usize = 1 << 20;

/// What a [`Cpu`] is made for.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads that compute; `None` for as many as this process may use.
    pub threads: Option<usize>,
    /// How activations are held and multiplied.
    pub precision: Precision,
}

/// The CPU as a backend. Ops have finished when they return.
#[derive(Debug)]
pub struct Cpu {
    info: DeviceInfo,
    isa: Isa,
    pool: Pool,
    scratch: Scratch<Vec<f32>>,
    partials: Scratch<Vec<f32>>,
    quantised: Scratch<Activations>,
    /// One for each thread.
    workspaces: Vec<Mutex<Workspace>>,
}

/// One for each thread.
fn workspaces(threads: usize, ways: Ways) -> Vec<Mutex<Workspace>> {
    (0..threads).map(|_| Mutex::new(Workspace::new(ways))).collect()
}

impl Cpu {
    /// The most that ops hold beside their arguments, whatever the number of rows: quantised rows for gate and for up,
    /// inner activations of MLPs and logits of routers. Part of the memory plan.
    pub const SCRATCH_BYTES_MAX: usize = 36 << 20;

    /// The CPU with the best instructions it has.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] for no threads or absurdly many; [`files::ErrorKind::Device`] when the
    /// system starts no more threads.
    pub fn new(options: CpuOptions) -> Result<Self> {
        Self::with_isa(options, Isa::detect())
    }

    /// The CPU with one of [`Isa::available`]: for tests and comparisons.
    ///
    /// # Errors
    /// As [`Cpu::new`]; [`files::ErrorKind::InvalidRequest`] for instructions that this machine lacks.
    pub fn with_isa(options: CpuOptions, isa: Isa) -> Result<Self> {
        if !Isa::available().contains(&isa) {
            return Err(files::Error::invalid(format!("this machine has no {}", isa.name())));
        }
        let threads =
            options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        if !(1..=1024).contains(&threads) {
            return Err(files::Error::invalid(format!("{threads} threads: expected 1 to 1024")));
        }
        let info = DeviceInfo {
            name: format!("CPU ({})", isa.name()),
            precision: options.precision,
            buffer_bytes_max: usize::MAX,
            mapped_bytes_max: None,
            unified_memory: true,
            pins_memory: false,
            gives_back: host::GIVES_BACK,
            threads,
            staging_bytes: 0,
            looks_up_experts: false,
        };
        Ok(Self {
            info,
            isa,
            pool: Pool::new(threads)?,
            scratch: Scratch::default(),
            partials: Scratch::default(),
            quantised: Scratch::default(),
            workspaces: workspaces(threads, Ways { pairs: isa.pairs(), tiles: isa.tiles() }),
        })
    }

    /// The same, with two vectors of weight rows sharing the loads of x, or not, and with matrix tiles for many rows or
    /// not, if this machine has them: for tests and comparisons. The bits are the same.
    #[must_use]
    pub fn with_ways(mut self, pairs: bool, tiles: bool) -> Self {
        let (pairs, tiles) = (pairs && self.isa.has_pairs(), tiles && self.isa.tiles());
        self.workspaces = workspaces(self.info.threads, Ways { pairs, tiles });
        self
    }

    /// Whether attention over a cache of this format multiplies values of bf16: twice as many at a time, where processors
    /// do so.
    fn rounds(&self, format: KvFormat) -> bool {
        format == KvFormat::F16 && self.info.precision == Precision::Fast
    }

    /// Calls `f` with ranges of `rows` that together cover all of them: one range for little work.
    fn split(&self, rows: usize, cols: usize, f: impl Fn(Range<usize>) + Sync) -> Result<()> {
        let ranges = (rows * cols).div_ceil(FORK_VALUES).clamp(1, rows.max(1));
        let size = rows.div_ceil(ranges).max(1);
        self.pool.run(rows.div_ceil(size), |i| {
            f(i * size..rows.min((i + 1) * size));
            Ok(())
        })
    }
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc_shared(&self, bytes: usize) -> Result<Buffer> {
        host::alloc_shared(bytes)
    }

    fn publish(&self, _buffer: &Buffer, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<Block> {
        host::alloc(bytes)
    }

    fn write(&self, block: &mut Block, offset: usize, data: &[u8]) -> Result<()> {
        host::write(block, offset, data)
    }

    fn read(&self, block: &Block, offset: usize, out: &mut [u8]) -> Result<()> {
        host::read(block, offset, out)
    }

    fn copy(&self, from: &Block, from_range: Range<usize>, to: &mut Block, to_at: usize) -> Result<()> {
        host::copy(from, from_range, to, to_at)
    }

    fn copy_within(&self, block: &mut Block, range: Range<usize>, to_at: usize) -> Result<()> {
        host::copy_within(block, range, to_at)
    }

    fn clear(&self, block: &mut Block, range: Range<usize>) -> Result<()> {
        host::clear(block, range)
    }

    fn give_back(&self, block: &mut Block, range: Range<usize>) -> Result<()> {
        host::give_back(block, range)
    }

    fn embed(&self, table: &Weight, ids: &[u32], out: &mut Tensor) -> Result<()> {
        check::embed(table, ids, out)?;
        reference::embed(&table.host()?, ids, out.host_mut()?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()> {
        check::rms_norm(x, weight, out)?;
        let (rows, cols) = (x.rows(), x.cols());
        let (x, weight, out) = (x.host()?, weight.host()?, Parts::new(out.host_mut()?));
        self.split(rows, cols, |r| {
            // SAFETY: each range of rows is visited once.
            let out = unsafe { out.part(r.start * cols, r.len() * cols) };
            portable::rms_norm(self.isa, &x[r.start * cols..r.end * cols], weight, eps, out);
        })
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &mut Tensor) -> Result<()> {
        self.linears(x, &mut [Product { weight: w, bias, out }])
    }

    fn linears(&self, x: &Tensor, products: &mut [Product<'_>]) -> Result<()> {
        let mut all = Vec::with_capacity(products.len());
        for Product { weight, bias, out } in products {
            check::linear(x, weight, *bias, out)?;
            let bias = bias.map(Tensor::host).transpose()?;
            all.push(Target { weight: weight.host()?, bias, out: Parts::new(out.host_mut()?) });
        }
        self.products(x.host()?, x.cols(), &all)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        check::add(x, y)?;
        let (rows, cols) = (x.rows(), x.cols());
        let (x, y) = (Parts::new(x.host_mut()?), y.host()?);
        self.split(rows, cols, |r| {
            // SAFETY: each range of rows is visited once.
            let x = unsafe { x.part(r.start * cols, r.len() * cols) };
            portable::add(self.isa, x, &y[r.start * cols..r.end * cols]);
        })
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        check::gather_rows(x, rows, out)?;
        reference::gather_rows(x.host()?, x.cols(), rows, out.host_mut()?);
        Ok(())
    }

    fn best(&self, x: &Tensor, out: &mut Tensor) -> Result<()> {
        check::best(x, out)?;
        reference::best(x.host()?, x.cols(), out.host_mut()?);
        Ok(())
    }

    fn norm_rope(
        &self,
        x: &mut Tensor,
        segments: &[Segment],
        spec: &RopeSpec,
        frequencies: &Tensor,
        norm: Option<(&Tensor, f32)>,
    ) -> Result<()> {
        check::norm_rope(x, segments, spec, frequencies, norm)?;
        let norm = norm.map(|(w, eps)| Ok::<_, files::Error>((w.host()?, eps))).transpose()?;
        let (cols, frequencies) = (x.cols(), frequencies.host()?);
        let x = Parts::new(x.host_mut()?);
        self.split(rows_of(segments), cols, |r| {
            for (row, position, _) in rows_in(segments, r) {
                // SAFETY: each row is visited once.
                let row = unsafe { x.part(row * cols, cols) };
                portable::norm_rope(self.isa, row, position, spec, frequencies, norm);
            }
        })
    }

    fn kv_append(&self, k: &Tensor, v: &Tensor, segments: &[Segment], cache: &mut KvCache) -> Result<()> {
        check::kv_append(k, v, segments, cache)?;
        let (cols, rounds) = (k.cols(), self.rounds(cache.format));
        let append = portable::Append::new([k.host()?, v.host()?], cache, rounds)?;
        self.split(rows_of(segments), 2 * cols, |r| {
            for (row, position, segment) in rows_in(segments, r) {
                let page = segment.pages[position / PAGE];
                // SAFETY: each row is visited once, and no page that is written belongs to two segments; the check saw
                // that all are the cache's.
                unsafe { portable::append(self.isa, append, row, position, page) };
            }
        })
    }

    fn attention(
        &self,
        q: &Tensor,
        segments: &[Segment],
        cache: &KvCache,
        spec: &AttentionSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        check::attention(q, segments, cache, spec, out)?;
        let work = portable::Attention {
            isa: self.isa,
            q: q.host()?,
            spec,
            cache,
            out: Parts::new(out.host_mut()?),
            rounds: self.rounds(cache.format),
            scratch: &self.scratch,
            partials: &self.partials,
        };
        portable::attention(&self.pool, work, segments)
    }

    fn short_conv(
        &self,
        x: &Tensor,
        weight: &Tensor,
        segments: &[Segment],
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        check::short_conv(x, weight, segments, state, out)?;
        let (channels, kernel) = (x.cols(), weight.cols());
        let each = (kernel - 1) * channels;
        let (x, weight) = (x.host()?, weight.host()?);
        let (state, out) = (Parts::new(state.host_mut()?), Parts::new(out.host_mut()?));
        let blocks = channels.div_ceil(portable::CONV_CHANNELS);
        let average = rows_of(segments) / segments.len().max(1);
        // One without rows has no state, whatever its slot says.
        let segments: Vec<&Segment> = segments.iter().filter(|segment| !segment.rows.is_empty()).collect();
        self.split(segments.len() * blocks, portable::CONV_CHANNELS * kernel * average.max(1), |items| {
            for item in items {
                let (segment, start) = (segments[item / blocks], item % blocks * portable::CONV_CHANNELS);
                let rows = segment.rows.start * channels..segment.rows.end * channels;
                let conv = portable::Conv {
                    x: &x[rows.clone()],
                    weight,
                    kernel,
                    channels,
                    state: state.sub(segment.slot as usize * each, each),
                    out: out.sub(rows.start, rows.len()),
                };
                let len = portable::CONV_CHANNELS.min(channels - start);
                // SAFETY: no two segments share rows or a slot, and each range of channels is visited once.
                unsafe { portable::short_conv(self.isa, conv, start, len) };
            }
        })
    }

    fn delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        check::delta_rule(input, spec, state, out)?;
        self.delta_rules(input, spec, state.host_mut()?, out.host_mut()?)
    }

    fn gated_norm(&self, x: &mut Tensor, z: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        check::gated_norm(x, z, weight)?;
        let (rows, cols) = (x.rows(), x.cols());
        let (x, z, weight) = (Parts::new(x.host_mut()?), z.host()?, weight.host()?);
        self.split(rows, 4 * cols, |r| {
            // SAFETY: each range of rows is visited once.
            let x = unsafe { x.part(r.start * cols, r.len() * cols) };
            portable::gated_norm(self.isa, x, &z[r.start * cols..r.end * cols], weight, eps);
        })
    }

    fn mlp(&self, x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()> {
        check::mlp(x, weights, out)?;
        self.dense_mlp(x.host()?, weights, out.host_mut()?)
    }

    fn route(&self, x: &Tensor, router: &Weight, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()> {
        check::route(x, router, spec, out)?;
        let (router, cols, k) = (router.host()?, x.cols(), spec.top_k);
        let (ids, weights) = (out.ids.host_mut::<u32>()?, out.weights.host_mut()?);
        let rows_at_once = (LOGITS / router.rows).max(1);
        for (i, x) in x.host()?.chunks(rows_at_once * cols).enumerate() {
            let rows = x.len() / cols;
            let range = i * rows_at_once * k..(i * rows_at_once + rows) * k;
            let (ids, weights) = (Parts::new(&mut ids[range.clone()]), Parts::new(&mut weights[range]));
            self.scratch.with(|logits| {
                if logits.len() < rows * router.rows {
                    logits.resize(rows * router.rows, 0.0);
                }
                let logits = &mut logits[..rows * router.rows];
                self.float_product(x, router, logits)?;
                let logits = &*logits;
                self.split(rows, 8 * router.rows, |r| {
                    for r in r {
                        // SAFETY: each row is visited once.
                        let (ids, weights) = unsafe { (ids.part(r * k, k), weights.part(r * k, k)) };
                        portable::choose(&logits[r * router.rows..][..router.rows], spec, ids, weights);
                    }
                })
            })?;
        }
        Ok(())
    }

    fn read_routes(&self, routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes> {
        reference::read_routes(self, routes, rows, spec)
    }

    fn expert_mlp(&self, x: &Tensor, experts: &[ExpertBatch<'_>], parts: &mut Tensor) -> Result<()> {
        check::expert_mlp(x, experts, parts)?;
        self.routed_mlp(x.host()?, experts, parts.host_mut()?)
    }

    fn combine(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        out: &mut Tensor,
    ) -> Result<()> {
        check::combine(parts, routes, spec, shared, out)?;
        let (rows, cols, k) = (out.rows(), out.cols(), spec.top_k);
        let (parts, weights) = (parts.host()?, routes.weights.host()?);
        let shared = host_shared(shared)?;
        let out = Parts::new(out.host_mut()?);
        self.split(rows, cols * (k + 1), |r| {
            for r in r {
                // SAFETY: each row is visited once.
                let out = unsafe { out.part(r * cols, cols) };
                portable::begin_sum(shared.map(|shared| shared.of_row(r, cols)), out);
                portable::add_parts(
                    self.isa,
                    &parts[r * k * cols..][..k * cols],
                    &weights[r * k..][..k],
                    out,
                );
            }
        })
    }

    fn begin_sum(&self, shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()> {
        check::begin_sum(shared, sum)?;
        let (rows, cols) = (sum.rows(), sum.cols());
        let shared = host_shared(shared)?;
        let sum = Parts::new(sum.host_mut()?);
        self.split(rows, cols, |r| {
            for r in r {
                // SAFETY: each row is visited once.
                let sum = unsafe { sum.part(r * cols, cols) };
                portable::begin_sum(shared.map(|shared| shared.of_row(r, cols)), sum);
            }
        })
    }

    fn add_window(
        &self,
        parts: &Tensor,
        weights: &[f32],
        rows: &[WindowRow],
        sum: &mut Tensor,
    ) -> Result<()> {
        check::add_window(parts, weights, rows, sum)?;
        let cols = sum.cols();
        let outputs: usize = rows.iter().map(|row| row.count as usize).sum();
        let (parts, sum) = (parts.host()?, Parts::new(sum.host_mut()?));
        self.split(rows.len(), cols * (1 + outputs / rows.len().max(1)), |r| {
            for &WindowRow { row, first, count } in &rows[r] {
                let (first, count) = (first as usize, count as usize);
                // SAFETY: no row comes twice.
                let sum = unsafe { sum.part(row as usize * cols, cols) };
                let parts = &parts[first * cols..][..count * cols];
                portable::add_parts(self.isa, parts, &weights[first..][..count], sum);
            }
        })
    }
}

/// A shared expert's output and gate, where the host reads them.
#[derive(Clone, Copy)]
struct HostShared<'a> {
    output: &'a [f32],
    gate: &'a [f32],
}

impl<'a> HostShared<'a> {
    /// What multiplies the output of row `r`, and the output.
    fn of_row(&self, r: usize, cols: usize) -> (f32, &'a [f32]) {
        (math::sigmoid(self.gate[r]), &self.output[r * cols..][..cols])
    }
}

fn host_shared(shared: Option<SharedOutput<'_>>) -> Result<Option<HostShared<'_>>> {
    Ok(match shared {
        Some(shared) => Some(HostShared { output: shared.output.host()?, gate: shared.gate.host()? }),
        None => None,
    })
}
