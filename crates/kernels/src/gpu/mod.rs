//! The ops on a GPU, in WGSL through wgpu: Metal on Apple, Vulkan on Linux and Windows.
//!
//! Ops enqueue; only [`Backend::read`] and [`Backend::read_routes`] wait, and a host that is too far ahead. A shader file holds one op, written once
//! for all number formats: `source` puts the decoder of a format in front of it. Activations are f32 and so are all
//! sums; weights are decoded exactly as the reference does.

mod agree;
mod blocks;
mod device;
mod dispatch;
mod encoder;
mod kept;
mod lookup;
mod memory;
mod mixer;
mod moe;
mod pipelines;
mod prepare;
mod probe;
mod product;
mod profile;
mod segments;
mod shared;
pub mod source;
mod staging;
mod stand_in;
mod stored;
mod submit;
mod tally;
mod units;
mod uploads;
mod work;

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use files::{Error, Format, Result};

pub use device::{AdapterKind, AdapterSummary, GpuOptions, adapters, likely};
pub use probe::Rates;
pub use stand_in::{Dispatch, StandIn};
pub use submit::Lost;

use crate::buffer::{Block, Buffer, Tensor, Weight};
use crate::check;
use crate::ops::{
    AttentionSpec, Backend, Convolution, DeltaInput, DeltaSpec, DeviceCounts, DeviceInfo, ExpertBatch,
    ExpertTable, Gate, Heads, KernelTime, KvCache, MlpWeights, Product, Recorded, Residual, RopeSpec,
    RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput, Routes, Segment, SharedOutput, Turn, WindowRow,
};
use blocks::Halved;
use device::{Device, device_error};
use dispatch::{Call, GROUPS_MAX, State, binding, few_rows, folded, fours, items, memory_of, weight_parts};
use encoder::{Binding, Recorder};
use memory::{GpuMemory, Graveyard};
use pipelines::{Pipelines, variant};
use prepare::Noted;
use product::jobs;
use source::Kernel;
use stored::Stored;
use work::Work;

/// What a copy within a buffer takes at a time, in bytes.
const MOVED_BYTES: usize = 4 << 20;

/// A GPU.
pub struct Gpu {
    device: Device,
    info: DeviceInfo,
    next_id: AtomicU64,
    graveyard: Graveyard,
    /// [`GpuOptions::compiles_ahead`]
    compiles_ahead: Option<bool>,
    state: Mutex<State>,
    /// What runs dispatches in the device's place, in tests.
    stand_in: Option<Box<dyn StandIn>>,
}

impl Gpu {
    /// Opens a GPU.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when there is none, or it does not open.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        Self::of(Device::open(options)?, options, None)?.checked()
    }

    fn of(device: Device, options: &GpuOptions, stand_in: Option<Box<dyn StandIn>>) -> Result<Self> {
        let info = DeviceInfo {
            name: format!("{} ({})", device.summary.name, device.summary.driver.trim()),
            precision: options.precision,
            buffer_bytes_max: device.buffer_bytes_max,
            unified_memory: device.sharing.is_some(),
            mapped_bytes_max: device.mapped_bytes_max,
            pins_memory: device.sharing.is_some() && device.summary.kind != AdapterKind::Software,
            gives_back: false,
            threads: 0,
            staging_bytes: staging::STAGING_BYTES,
            looks_up_experts: true,
        };
        let graveyard = Graveyard::default();
        let stored = Stored::open(&device, &device.adapter, options.cache_dir.as_deref());
        let mut pipelines = Pipelines::new(stored);
        let counts_passes = pipelines.get(&device, &source::TALLY, variant(&source::TALLY, &[], &[]))?;
        let recorder = Recorder::new(&device, [0, 1], &graveyard, counts_passes);
        let (scratch, work, noted) = (HashMap::new(), Work::default(), Noted::default());
        let state = Mutex::new(State { recorder, pipelines, scratch, work, noted });
        device.check()?;
        let (next_id, compiles_ahead) = (AtomicU64::new(2), options.compiles_ahead);
        Ok(Self { device, info, next_id, graveyard, compiles_ahead, state, stand_in })
    }

    /// The adapter underneath.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.device.summary
    }

    /// All that the device was opened with.
    pub(crate) fn wgpu_features(&self) -> wgpu::Features {
        self.device.device.features()
    }

    /// Compiles one shader, to see whether the driver takes it.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] with the driver's message when it does not.
    pub fn compile(&self, kernel: &'static Kernel, formats: &[Format], constants: &[u32]) -> Result<()> {
        let variant = variant(kernel, formats, constants);
        self.lock().pipelines.get(&self.device, kernel, variant).map(|_| ())
    }

    /// Loses the next work of a kind, as a driver that says nothing does: for tests.
    #[doc(hidden)]
    pub fn lose(&self, what: Lost) {
        self.lock().recorder.lost = Some(what);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything in it can panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recorder.turn_to_caller();
        state
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn memory(&self, bytes: usize, shadowed: bool) -> Result<GpuMemory> {
        if bytes > self.device.buffer_bytes_max {
            return Err(Error::memory(format!(
                "{}: a buffer of {bytes} bytes is over the device's limit of {}",
                self.device.summary.name, self.device.buffer_bytes_max
            )));
        }
        let memory = GpuMemory::new(self.new_id(), &self.device, bytes, shadowed, &self.graveyard)?;
        self.device.check().map_err(|e| e.context(format!("allocating {bytes} bytes")))?;
        Ok(memory)
    }
}

impl Backend for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn features(&self) -> Vec<(&'static str, String)> {
        self.device.features()
    }

    fn counts(&self) -> Option<DeviceCounts> {
        let state = self.lock();
        Some(DeviceCounts { pipelines: state.pipelines.count() as u64, ..state.recorder.counts })
    }

    fn profile(&self, on: bool) -> bool {
        let mut state = self.lock();
        state.recorder.profile = if on { profile::Profile::new(&self.device) } else { None };
        state.recorder.profile.is_some() == on
    }

    fn profiled(&self) -> Vec<KernelTime> {
        self.lock().recorder.profile.as_ref().map_or_else(Vec::new, profile::Profile::times)
    }

    fn alloc_shared(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::new(self.memory(bytes, true)?))
    }

    fn publish(&self, buffer: &Buffer, range: Range<usize>) -> Result<()> {
        if range.start > range.end || range.end > buffer.bytes() {
            return Err(Error::invalid(format!("publish {range:?} of {} bytes", buffer.bytes())));
        }
        let memory = memory_of(buffer)?;
        if memory.in_place {
            return Ok(());
        }
        let host = buffer.host().ok_or_else(|| device_error("publish needs shared memory"))?;
        let start = range.start & !3;
        let len = range.end.next_multiple_of(4) - start;
        // SAFETY: the shadow is page-aligned and whole pages long, so the rounded range lies in it; the caller has
        // finished writing the range, and shares no word at its ends with a writer, as `publish` demands.
        let bytes = unsafe { std::slice::from_raw_parts(host.as_ptr().add(start), len) };
        self.lock().recorder.copy_in(&self.device, &memory.buffer, start, bytes)
    }

    fn upload(&self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        let inside = at.checked_add(bytes.len()).is_some_and(|end| end <= to.bytes());
        if !inside || !at.is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
            return Err(Error::invalid(format!("upload {} bytes to {at} of {}", bytes.len(), to.bytes())));
        }
        self.lock().recorder.copy_in(&self.device, &memory_of(to)?.buffer, at, bytes)
    }

    fn release(&self, held: Box<dyn Any + Send>) {
        self.lock().recorder.hold(held);
    }

    fn reclaim(&self) -> Result<()> {
        self.lock().recorder.reclaim(&self.device)
    }

    fn submit(&self) -> Result<()> {
        self.lock().recorder.submit(&self.device)
    }

    fn record(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recorded>> {
        self.keep(enqueue)
    }

    fn rehearse(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.prepares() { self.note_all(enqueue) } else { Ok(()) }
    }

    fn prepare(&self) -> Result<()> {
        self.compile_noted()
    }

    fn run_recorded(&self, recorded: Recorded, ids: &[u32]) -> Result<()> {
        self.lock().recorder.run(&self.device, recorded, ids)
    }

    fn alloc(&self, bytes: usize) -> Result<Block> {
        Block::new(Buffer::new(self.memory(bytes, false)?))
    }

    fn write(&self, block: &mut Block, offset: usize, data: &[u8]) -> Result<()> {
        within(block, offset, data.len())?;
        let start = offset & !3;
        let end = (offset + data.len()).next_multiple_of(4);
        let mut whole = Vec::new();
        let aligned = if (start, end) == (offset, offset + data.len()) {
            data
        } else {
            whole.resize(end - start, 0);
            self.read_words(block, start, &mut whole)?;
            whole[offset - start..][..data.len()].copy_from_slice(data);
            &whole
        };
        let mut state = self.lock();
        // Copies run before what is recorded, so that must be submitted first.
        state.recorder.submit(&self.device)?;
        state.recorder.copy_in(&self.device, &memory_of(block.buffer())?.buffer, start, aligned)
    }

    fn read(&self, block: &Block, offset: usize, out: &mut [u8]) -> Result<()> {
        within(block, offset, out.len())?;
        let start = offset & !3;
        if start == offset && out.len().is_multiple_of(4) {
            return self.read_words(block, start, out);
        }
        let mut whole = vec![0; (offset + out.len()).next_multiple_of(4) - start];
        self.read_words(block, start, &mut whole)?;
        out.copy_from_slice(&whole[offset - start..][..out.len()]);
        Ok(())
    }

    fn copy(&self, from: &Block, from_range: Range<usize>, to: &mut Block, to_at: usize) -> Result<()> {
        check::copy(from, &from_range, to, to_at)?;
        let (from, to) = (memory_of(from.buffer())?, memory_of(to.buffer())?);
        self.lock().recorder.copy(&self.device, from, from_range, to, to_at);
        Ok(())
    }

    fn copy_within(&self, block: &mut Block, range: Range<usize>, to_at: usize) -> Result<()> {
        check::copy_within(block, &range, to_at)?;
        self.move_within(memory_of(block.buffer())?, range, to_at)
    }

    fn clear(&self, block: &mut Block, range: Range<usize>) -> Result<()> {
        check::words("clear", &range, block.bytes())?;
        let memory = memory_of(block.buffer())?;
        self.lock().recorder.clear(&self.device, memory, range);
        Ok(())
    }

    fn embed(&self, table: &Weight, ids: &[u32], out: &mut Tensor) -> Result<()> {
        check::embed(table, ids, out)?;
        let mut state = self.lock();
        let ((id, uploads), first) = self.upload(&mut state, ids)?;
        state.recorder.are_ids(first as usize..first as usize + ids.len(), table.rows());
        let (parts, base) = weight_parts(table)?;
        let mut bindings = vec![(id, &uploads), binding(out)?];
        bindings.extend(parts);
        let cols = table.cols();
        let eights = cols.div_ceil(8);
        self.run(
            &mut state,
            &Call {
                kernel: &source::EMBED,
                formats: &[table.format()],
                constants: &[],
                bindings: &bindings,
                params: &[base[0], base[1], base[2], first, cols as u32, eights as u32, ids.len() as u32],
                groups: items(&source::EMBED, ids.len() * eights),
            },
        )
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()> {
        check::rms_norm(x, weight, out)?;
        let bindings = [binding(x)?, binding(weight)?, binding(out)?];
        let params = [x.cols() as u32, x.rows() as u32, eps.to_bits()];
        self.simple(&source::RMS_NORM, &[fours(x.cols())], &bindings, &params, folded(x.rows(), 1))
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &mut Tensor) -> Result<()> {
        check::linear(x, w, bias, out)?;
        let mut state = self.lock();
        state.work += few_rows(x, w);
        self.product(&mut state, x, w, bias, binding(out)?, &mut Halved::default())
    }

    fn linears(&self, x: &Tensor, products: &mut [Product<'_>]) -> Result<()> {
        let mut state = self.lock();
        products.iter().for_each(|p| state.work += few_rows(x, p.weight));
        self.products(&mut state, x, &jobs(x, products)?, &mut Halved::default())
    }

    fn linears_conv(&self, x: &Tensor, products: &mut [Product<'_>], conv: Convolution<'_>) -> Result<()> {
        check::linears_conv(x, products, &conv)?;
        {
            let mut state = self.lock();
            products.iter().for_each(|p| state.work += few_rows(x, p.weight));
        }
        self.products_and_conv(x, products, conv)
    }

    fn add_norm(&self, y: &Tensor, to: Residual<'_>) -> Result<()> {
        check::add(to.x, y)?;
        check::rms_norm(to.x, to.weight, to.out)?;
        let bindings = [binding(y)?, binding(to.weight)?, binding(to.x)?, binding(to.out)?];
        let params = [y.cols() as u32, y.rows() as u32, to.eps.to_bits()];
        self.simple(&source::ADD_NORM, &[fours(y.cols())], &bindings, &params, folded(y.rows(), 1))
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        check::add(x, y)?;
        let bindings = [binding(x)?, binding(y)?];
        self.simple(&source::ADD, &[], &bindings, &[x.len() as u32], items(&source::ADD, x.len()))
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        check::gather_rows(x, rows, out)?;
        let mut state = self.lock();
        let ((id, uploads), first) = self.upload(&mut state, rows)?;
        self.run(
            &mut state,
            &Call {
                kernel: &source::GATHER_ROWS,
                formats: &[],
                constants: &[],
                bindings: &[binding(x)?, (id, &uploads), binding(out)?],
                params: &[first, x.cols() as u32, out.len() as u32],
                groups: items(&source::GATHER_ROWS, out.len()),
            },
        )
    }

    fn best(&self, x: &Tensor, out: &mut Tensor) -> Result<()> {
        check::best(x, out)?;
        let params = [x.cols() as u32, x.rows() as u32];
        self.simple(&source::BEST, &[], &[binding(x)?, binding(out)?], &params, folded(x.rows(), 1))
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
        self.rotate(x, segments, spec, frequencies, norm)
    }

    fn norm_rope_append(
        &self,
        heads: Heads<'_>,
        segments: &[Segment],
        turns: [Turn<'_>; 2],
        frequencies: &Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let [q, k] = turns;
        check::norm_rope(heads.q, segments, q.spec, frequencies, q.norm)?;
        check::norm_rope(heads.k, segments, k.spec, frequencies, k.norm)?;
        check::kv_append(heads.k, heads.v, segments, cache)?;
        if self.rotate_and_append(&heads, segments, turns, frequencies, cache)? {
            return Ok(());
        }
        self.rotate(heads.q, segments, q.spec, frequencies, q.norm)?;
        self.rotate(heads.k, segments, k.spec, frequencies, k.norm)?;
        self.append(heads.k, heads.v, segments, cache)
    }

    fn kv_append(&self, k: &Tensor, v: &Tensor, segments: &[Segment], cache: &mut KvCache) -> Result<()> {
        check::kv_append(k, v, segments, cache)?;
        self.append(k, v, segments, cache)
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
        self.attend(q, segments, cache, spec, out)
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
        self.convolve(x, weight, segments, state, out)
    }

    fn delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        check::delta_rule(input, spec, state, out)?;
        self.delta(input, spec, state, None, out)
    }

    fn gated_delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        gate: Gate<'_>,
        out: &mut Tensor,
    ) -> Result<()> {
        check::gated_delta_rule(input, spec, state, gate, out)?;
        self.delta(input, spec, state, Some(gate), out)
    }

    fn gated_norm(&self, x: &mut Tensor, z: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        check::gated_norm(x, z, weight)?;
        let heads = x.len() / weight.len();
        let bindings = [binding(x)?, binding(z)?, binding(weight)?];
        let params = [weight.len() as u32, heads as u32, eps.to_bits()];
        self.simple(&source::GATED_NORM, &[], &bindings, &params, folded(heads, 1))
    }

    fn mlp(&self, x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()> {
        check::mlp(x, weights, out)?;
        self.dense_mlp(x, weights, out)
    }

    fn route(&self, x: &Tensor, router: &Weight, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()> {
        check::route(x, router, spec, out)?;
        self.choose(x, router, spec, out)
    }

    fn read_routes(&self, routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes> {
        self.chosen(routes, rows, spec)
    }

    fn expert_mlp(&self, x: &Tensor, experts: &[ExpertBatch<'_>], parts: &mut Tensor) -> Result<()> {
        check::expert_mlp(x, experts, parts)?;
        self.experts(x, experts, parts)
    }

    fn expert_table(&self, experts: &[&MlpWeights]) -> Result<Option<ExpertTable>> {
        self.table(experts).map(Some)
    }

    fn routed_mlp(
        &self,
        x: &Tensor,
        table: &ExpertTable,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        parts: &mut Tensor,
    ) -> Result<()> {
        check::routed_mlp(x, table, routes, spec, parts)?;
        self.look_up(x, table, routes, spec, parts)
    }

    fn routed_layer(&self, x: &Tensor, layer: &RoutedLayer<'_>, to: RoutedOutput<'_>) -> Result<()> {
        check::routed_layer(x, layer, &to)?;
        self.whole_layer(x, layer, to)
    }

    fn begin_sum(&self, shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()> {
        check::begin_sum(shared, sum)?;
        self.start_sum(shared, sum)
    }

    fn add_window(
        &self,
        parts: &Tensor,
        weights: &[f32],
        rows: &[WindowRow],
        sum: &mut Tensor,
    ) -> Result<()> {
        check::add_window(parts, weights, rows, sum)?;
        self.add_outputs(parts, weights, rows, sum)
    }

    fn combine_norm(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        to: Residual<'_>,
    ) -> Result<()> {
        check::combine(parts, routes, spec, shared, to.x)?;
        check::rms_norm(to.x, to.weight, to.out)?;
        self.weigh_and_norm(parts, routes, spec, shared, to)
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
        self.weigh(parts, routes, spec, shared, out)
    }
}

impl Gpu {
    /// Copies within a buffer, through another: WebGPU has no other way.
    fn move_within(&self, memory: &GpuMemory, range: Range<usize>, to_at: usize) -> Result<()> {
        let mut state = self.lock();
        if state.rehearses() {
            return Ok(());
        }
        let between = self.scratch(&mut state, "moved", range.len().min(MOVED_BYTES))?;
        for at in range.clone().step_by(MOVED_BYTES) {
            let bytes = MOVED_BYTES.min(range.end - at);
            state.recorder.copy(&self.device, memory, at..at + bytes, &between, 0);
            state.recorder.copy(&self.device, &between, 0..bytes, memory, to_at + at - range.start);
        }
        Ok(())
    }

    /// Reads whole words.
    fn read_words(&self, block: &Block, offset: usize, out: &mut [u8]) -> Result<()> {
        let buffer = &memory_of(block.buffer())?.buffer;
        self.lock().recorder.read_back(&self.device, &mut [(buffer, offset, out)])
    }
}

fn within(block: &Block, offset: usize, len: usize) -> Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= block.bytes()) {
        return Ok(());
    }
    Err(Error::invalid(format!("{len} bytes at {offset} leave a block of {}", block.bytes())))
}
