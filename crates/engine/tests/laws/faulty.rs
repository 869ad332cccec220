//! A CPU whose memory ops can be watched, and fail when a test says so.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use files::{Error, ErrorKind, Result};
use kernels::cpu::{Cpu, CpuOptions};
use kernels::ops::{
    AttentionSpec, DeltaInput, DeltaSpec, DeviceInfo, ExpertBatch, KvCache, MlpWeights, Precision, Product,
    RopeSpec, RouteBuffers, RouteSpec, Routes, Segment, SharedOutput, WindowRow,
};
use kernels::{Backend, Block, Buffer, Tensor, Weight};
use tidemill_engine::OpenOptions;

/// An op on a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Alloc,
    Copy,
    CopyWithin,
    Clear,
    Read,
}

/// Called before each of these ops; an error is the op's.
type Watch = Arc<dyn Fn(Op) -> Result<()> + Send + Sync>;

/// The CPU, in exact precision. Its pages have memory from the beginning, as those of a GPU.
pub(crate) struct Faulty {
    cpu: Cpu,
    info: DeviceInfo,
    watch: Mutex<Option<Watch>>,
}

impl Faulty {
    pub(crate) fn new() -> Arc<Self> {
        let options = CpuOptions { threads: Some(2), precision: Precision::Exact };
        let cpu = Cpu::new(options).expect("a CPU");
        let info = DeviceInfo { gives_back: false, ..cpu.info().clone() };
        Arc::new(Self { cpu, info, watch: Mutex::default() })
    }

    /// `options` with this CPU.
    pub(crate) fn with(self: &Arc<Self>, options: OpenOptions) -> OpenOptions {
        OpenOptions { backend: Some(self.clone()), exact: true, ..options }
    }

    /// Has `watch` called from now on.
    pub(crate) fn watch(&self, watch: impl Fn(Op) -> Result<()> + Send + Sync + 'static) {
        *self.watch.lock().expect("no panic") = Some(Arc::new(watch));
    }

    /// Nobody is told any more.
    pub(crate) fn unwatch(&self) {
        *self.watch.lock().expect("no panic") = None;
    }

    /// Lets `nth` of these ops pass, and fails the next one, once. How many were seen.
    pub(crate) fn fail(&self, which: Op, nth: usize) -> Arc<AtomicUsize> {
        let seen = Arc::new(AtomicUsize::new(0));
        let counts = seen.clone();
        self.watch(move |op| match op == which && counts.fetch_add(1, Ordering::Relaxed) == nth {
            true => Err(lost()),
            false => Ok(()),
        });
        seen
    }

    fn before(&self, op: Op) -> Result<()> {
        // Not under the lock: who watches may wait for others.
        let watch = self.watch.lock().expect("no panic").clone();
        watch.map_or(Ok(()), |watch| watch(op))
    }
}

/// What a device says that is gone.
pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Device, "the device was lost, as the test wants it")
}

/// Hands ops on as they are.
macro_rules! hand_on {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $answer { self.cpu.$name($($arg),*) })*
    };
}

/// Tells the watch, then hands on.
macro_rules! watched {
    ($($op:ident: $name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $type),*) -> $answer {
            self.before(Op::$op)?;
            self.cpu.$name($($arg),*)
        })*
    };
}

impl Backend for Faulty {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    watched! {
        Alloc: alloc(bytes: usize) -> Result<Block>;
        Read: read(block: &Block, offset: usize, out: &mut [u8]) -> Result<()>;
        Copy: copy(from: &Block, range: Range<usize>, to: &mut Block, at: usize) -> Result<()>;
        CopyWithin: copy_within(block: &mut Block, range: Range<usize>, at: usize) -> Result<()>;
        Clear: clear(block: &mut Block, range: Range<usize>) -> Result<()>;
    }

    hand_on! {
        alloc_shared(bytes: usize) -> Result<Buffer>;
        publish(buffer: &Buffer, range: Range<usize>) -> Result<()>;
        write(block: &mut Block, offset: usize, data: &[u8]) -> Result<()>;
        embed(table: &Weight, ids: &[u32], out: &mut Tensor) -> Result<()>;
        rms_norm(x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()>;
        linear(x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &mut Tensor) -> Result<()>;
        linears(x: &Tensor, products: &mut [Product<'_>]) -> Result<()>;
        add(x: &mut Tensor, y: &Tensor) -> Result<()>;
        best(x: &Tensor, out: &mut Tensor) -> Result<()>;
        begin_sum(shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()>;
        add_window(parts: &Tensor, weights: &[f32], rows: &[WindowRow], sum: &mut Tensor) -> Result<()>;
        gather_rows(x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()>;
        norm_rope(
            x: &mut Tensor, segments: &[Segment], spec: &RopeSpec, frequencies: &Tensor,
            norm: Option<(&Tensor, f32)>
        ) -> Result<()>;
        kv_append(k: &Tensor, v: &Tensor, segments: &[Segment], cache: &mut KvCache) -> Result<()>;
        attention(
            q: &Tensor, segments: &[Segment], cache: &KvCache, spec: &AttentionSpec, out: &mut Tensor
        ) -> Result<()>;
        short_conv(
            x: &Tensor, weight: &Tensor, segments: &[Segment], state: &mut Tensor, out: &mut Tensor
        ) -> Result<()>;
        delta_rule(
            input: &DeltaInput<'_>, spec: &DeltaSpec, state: &mut Tensor, out: &mut Tensor
        ) -> Result<()>;
        gated_norm(x: &mut Tensor, z: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;
        mlp(x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()>;
        route(x: &Tensor, router: &Weight, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()>;
        read_routes(routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes>;
        expert_mlp(x: &Tensor, experts: &[ExpertBatch<'_>], parts: &mut Tensor) -> Result<()>;
        combine(
            parts: &Tensor, routes: &RouteBuffers, spec: &RouteSpec, shared: Option<SharedOutput<'_>>,
            out: &mut Tensor
        ) -> Result<()>;
    }
}
