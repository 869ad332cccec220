//! THE list: what a device must be able to do to run the models. Coarse, object-safe, and nothing else.
//!
//! An op may *enqueue*: when it returns, its result need not exist yet, but every later op on the same backend
//! sees it. Only [`Backend::read_routes`] and [`Backend::read`] wait. Shapes are `[rows, cols]`, row-major f32;
//! `rows` are the tokens of a step. An op checks its shapes and answers a mismatch with
//! [`files::ErrorKind::InvalidRequest`]; other errors are [`files::ErrorKind::Device`], or
//! [`files::ErrorKind::Corrupt`] where weights make the numbers not finite.

mod device;
mod experts;
mod recorded;
mod segment;

use std::any::Any;
use std::ops::Range;

use files::{Error, Result};

pub use device::{DeviceCounts, DeviceInfo, KernelTime, Precision};
pub use experts::{
    ExpertBatch, ExpertTable, MlpWeights, RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput, RoutedRow,
    Routes, SharedOutput, WindowRow,
};
pub use recorded::Recorded;
pub use segment::{PAGE, Segment, rows_of};

use crate::buffer::{Block, Buffer, Tensor, Weight};
use crate::check;

/// How the KV cache stores its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// IEEE single, for [`Precision::Exact`].
    F32,
    /// IEEE half.
    F16,
    /// Signed bytes in blocks of [`KvFormat::BLOCK`] values along a head, each block with a scale, the largest
    /// magnitude / 127 as IEEE half: value = byte * scale. A block with a value that is not finite has the scale NaN.
    Q8,
}

impl KvFormat {
    /// Values that share a scale in [`KvFormat::Q8`].
    pub const BLOCK: usize = 32;

    /// Bytes of one head at one position: its values; for [`KvFormat::Q8`] the bytes of all blocks, then their
    /// scales, then padding to a multiple of 4.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_dim,
            KvFormat::F16 => 2 * head_dim,
            KvFormat::Q8 => (head_dim + 2 * (head_dim / Self::BLOCK)).next_multiple_of(4),
        }
    }

    /// Whether heads of `head_dim` values can be stored like this.
    ///
    /// # Errors
    /// [`files::ErrorKind::Unsupported`] when they are no whole number of blocks.
    pub fn check(self, head_dim: usize) -> Result<()> {
        if self == KvFormat::Q8 && !head_dim.is_multiple_of(Self::BLOCK) {
            return Err(Error::unsupported(format!(
                "an 8-bit KV cache needs heads of a multiple of {} values; this model's have {head_dim}",
                Self::BLOCK
            )));
        }
        Ok(())
    }
}

/// Where the heads lie in a row, and how positions rotate them.
#[derive(Clone, Debug)]
pub struct RopeSpec {
    /// Heads in a row.
    pub heads: usize,
    /// Values of a head that are normed and rotated.
    pub head_dim: usize,
    /// Values from the start of one head to the start of the next; `>= head_dim`.
    pub head_stride: usize,
    /// The first `rotary_dim` values of a head rotate; even.
    pub rotary_dim: usize,
    /// Pairs are adjacent (`2i, 2i+1`) instead of halves (`i, i + rotary_dim/2`).
    pub interleaved: bool,
    /// Factor on cos and sin (1 except for yarn).
    pub amplitude: f32,
}

/// Keys and values of all sequences in one layer: `[pages, kv_heads, PAGE]` heads each, as [`KvFormat::head_bytes`] says.
#[derive(Debug)]
pub struct KvCache {
    /// Keys, rotated.
    pub keys: Block,
    /// Values.
    pub values: Block,
    /// Heads that keys and values have.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Pages that fit.
    pub pages: usize,
    /// Number format of both.
    pub format: KvFormat,
}

impl KvCache {
    /// Bytes of a page, keys and values together.
    pub fn page_bytes(kv_heads: usize, head_dim: usize, format: KvFormat) -> usize {
        2 * kv_heads * PAGE * format.head_bytes(head_dim)
    }

    /// The number of the head `kv_head` of position `position`, among all of keys or of values.
    pub fn head(&self, pages: &[u32], kv_head: usize, position: usize) -> usize {
        (pages[position / PAGE] as usize * self.kv_heads + kv_head) * PAGE + position % PAGE
    }
}

/// The shape of an attention op.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Query heads; a multiple of the cache's KV heads.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Each head of the query row is followed by as many gate values; the output is multiplied by their sigmoid.
    pub gated: bool,
    /// Factor on the scores, usually `head_dim^-1/2`.
    pub scale: f32,
}

/// The shape of a gated delta rule op.
#[derive(Clone, Debug)]
pub struct DeltaSpec {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Values of a query or key head.
    pub key_head_dim: usize,
    /// Values of a value head.
    pub value_head_dim: usize,
    /// Value head `h` uses key head `h % key_heads` (GGUF order) instead of `h / (value_heads / key_heads)`.
    pub tiled: bool,
}

impl DeltaSpec {
    /// The key head of a value head.
    pub fn key_head(&self, value_head: usize) -> usize {
        if self.tiled {
            value_head % self.key_heads
        } else {
            value_head / (self.value_heads / self.key_heads)
        }
    }

    /// Channels of the convolution: queries, keys, values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_head_dim + self.value_heads * self.value_head_dim
    }
}

/// One of several products with the same x: [`Backend::linears`].
#[derive(Debug)]
pub struct Product<'a> {
    /// `[n, k]`
    pub weight: &'a Weight,
    /// `[1, n]`
    pub bias: Option<&'a Tensor>,
    /// `[rows, n]`
    pub out: &'a mut Tensor,
}

/// What [`Backend::linears_conv`] does with its first product; the fields are arguments of [`Backend::short_conv`].
pub struct Convolution<'a> {
    /// `[channels, kernel]`
    pub weight: &'a Tensor,
    /// The tokens.
    pub segments: &'a [Segment],
    /// `[slots, (kernel - 1) * channels]`
    pub state: &'a mut Tensor,
    /// `[rows, channels]`
    pub out: &'a mut Tensor,
}

/// A residual stream that an op adds to, and the norm that reads it next: `x += what the op computes`, then
/// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`.
#[derive(Debug)]
pub struct Residual<'a> {
    /// `[rows, cols]`
    pub x: &'a mut Tensor,
    /// `[1, cols]`
    pub weight: &'a Tensor,
    /// What keeps the division finite.
    pub eps: f32,
    /// `[rows, cols]`
    pub out: &'a mut Tensor,
}

/// Queries, keys and values of a step's rows, for [`Backend::norm_rope_append`].
#[derive(Debug)]
pub struct Heads<'a> {
    /// As `x` of [`Backend::norm_rope`].
    pub q: &'a mut Tensor,
    /// As `x` of [`Backend::norm_rope`].
    pub k: &'a mut Tensor,
    /// As in [`Backend::kv_append`].
    pub v: &'a Tensor,
}

/// How queries or keys are normed and rotated.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Where the heads lie.
    pub spec: &'a RopeSpec,
    /// Weight `[1, head_dim]` and epsilon.
    pub norm: Option<(&'a Tensor, f32)>,
}

/// A device that runs the models' operations.
pub trait Backend: Send + Sync {
    /// What this device is.
    fn info(&self) -> &DeviceInfo;

    /// What the device offers and the kernels know how to use, as name and value, for people.
    fn features(&self) -> Vec<(&'static str, String)> {
        vec![("threads", self.info().threads.to_string())]
    }

    /// What the device was asked to do so far; `None` where ops finish before they return.
    fn counts(&self) -> Option<DeviceCounts> {
        None
    }

    /// Begins to time dispatches anew, or stops; false where the device cannot. Timing makes the host wait.
    fn profile(&self, on: bool) -> bool {
        !on
    }

    /// What was timed since [`Backend::profile`], the largest first.
    fn profiled(&self) -> Vec<KernelTime> {
        Vec::new()
    }

    // --- memory ---------------------------------------------------------------------------------------------

    /// Zeroed device memory, visible to the host and page-aligned there, for weights that the store reads.
    fn alloc_shared(&self, bytes: usize) -> Result<Buffer>;

    /// Makes bytes that the host wrote into `range` of shared memory visible to the ops enqueued from now on.
    /// No op still enqueued may read the range, and nobody may be writing the words (4 bytes) at its two ends.
    fn publish(&self, buffer: &Buffer, range: Range<usize>) -> Result<()>;

    /// Copies host bytes to byte `at` of device memory, where ops enqueued from now on see them; both in whole words of 4
    /// bytes. No op that is enqueued and not yet submitted may use that memory. The bytes are the caller's again at once.
    ///
    /// # Errors
    /// [`files::ErrorKind::Unsupported`] where ops read the host's memory.
    fn upload(&self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<()> {
        let _ = (to, at, bytes);
        Err(Error::unsupported("upload: this device has no memory of its own"))
    }

    /// Drops `held` (a lease on expert slots, say) once the memory that the ops enqueued so far read may be written and
    /// published again: at once where ops finish before they return, with the next submission where they read copies,
    /// and some time after they ran where a device reads the host's memory.
    fn release(&self, held: Box<dyn Any + Send>) {
        drop(held);
    }

    /// Submits what is enqueued, and returns when something that was [released](Self::release) is dropped, if anything
    /// is left.
    fn reclaim(&self) -> Result<()> {
        self.submit()
    }

    /// Starts what is enqueued, and does not wait for it. Ops that nobody submits start when somebody reads.
    fn submit(&self) -> Result<()> {
        Ok(())
    }

    /// Keeps what `enqueue` enqueues for one [`Self::run_recorded`] instead of handing it to the device, so that the host
    /// can prepare a step while the device is busy with another. Ops of other threads are not affected; those of `enqueue`
    /// may not be waited for, nor submitted. `None` if nothing was recorded: always where ops finish before they return, and
    /// `enqueue` is not called then.
    ///
    /// # Errors
    /// What `enqueue` answers, [`files::ErrorKind::Unsupported`] if it waits. Nothing of it is kept then.
    fn record(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recorded>> {
        let _ = enqueue;
        Ok(None)
    }

    /// Notes what it takes to run what `enqueue` enqueues, and runs nothing of it: values of its tensors stay as they are.
    /// Nothing in it may be read, written or recorded.
    ///
    /// # Errors
    /// What `enqueue` answers.
    fn rehearse(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = enqueue;
        Ok(())
    }

    /// Makes ready what rehearsals have noted, so that no step waits for it. May take seconds; other threads may allocate
    /// and fill memory meanwhile.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when a driver refuses.
    fn prepare(&self) -> Result<()> {
        Ok(())
    }

    /// Enqueues and submits what was recorded, with `ids` for those of its [`Self::embed`]; it finds the tensors of its ops as
    /// they are now.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] for fewer or more ids, or one beyond the table.
    fn run_recorded(&self, recorded: Recorded, ids: &[u32]) -> Result<()> {
        let _ = (recorded, ids);
        Err(Error::unsupported("this device records nothing"))
    }

    /// Zeroed device memory for activations and states.
    fn alloc(&self, bytes: usize) -> Result<Block>;

    /// Copies `data` to `block`, from byte `offset`.
    fn write(&self, block: &mut Block, offset: usize, data: &[u8]) -> Result<()>;

    /// Copies from `block`, from byte `offset`, to `out`. Waits for all ops before it.
    fn read(&self, block: &Block, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Copies the bytes `from_range` of `from` to `to`, from byte `to_at` on; all in whole words of 4 bytes.
    fn copy(&self, from: &Block, from_range: Range<usize>, to: &mut Block, to_at: usize) -> Result<()>;

    /// Copies the bytes `range` of `block` to its bytes from `to_at` on; both in whole words of 4 bytes, and apart.
    fn copy_within(&self, block: &mut Block, range: Range<usize>, to_at: usize) -> Result<()>;

    /// Makes the bytes `range` of `block` zero, whole words of 4 bytes.
    fn clear(&self, block: &mut Block, range: Range<usize>) -> Result<()>;

    /// Gives the memory of the bytes `range` of `block` back to the system, as far as it is in whole pages. They read as zero
    /// from then on, and get memory page by page when they are written. Does nothing where [`DeviceInfo::gives_back`] is
    /// false.
    fn give_back(&self, block: &mut Block, range: Range<usize>) -> Result<()> {
        let _ = (block, range);
        Ok(())
    }

    // --- dense ops ------------------------------------------------------------------------------------------

    /// `out[r] = table[ids[r]]`; table `[vocab, hidden]`, out `[rows, hidden]`.
    fn embed(&self, table: &Weight, ids: &[u32], out: &mut Tensor) -> Result<()>;

    /// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`; weight `[1, cols]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()>;

    /// `out[r, n] = sum_k x[r, k] * w[n, k] + bias[n]`; x `[rows, k]`, out `[rows, n]`, bias `[1, n]`.
    fn linear(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &mut Tensor) -> Result<()>;

    /// Several [`Backend::linear`] with the same x, whose fork-joins or dispatches a backend may share.
    fn linears(&self, x: &Tensor, products: &mut [Product<'_>]) -> Result<()> {
        products.iter_mut().try_for_each(|p| self.linear(x, p.weight, p.bias, p.out))
    }

    /// [`Backend::linears`], and [`Backend::short_conv`] of the first product, of whose own tensor it is undefined what it
    /// holds afterwards.
    fn linears_conv(&self, x: &Tensor, products: &mut [Product<'_>], conv: Convolution<'_>) -> Result<()> {
        check::linears_conv(x, products, &conv)?;
        self.linears(x, products)?;
        self.short_conv(products[0].out, conv.weight, conv.segments, conv.state, conv.out)
    }

    /// `x += y`, same shape.
    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()>;

    /// [`Backend::add`] of `y` to the residual stream and [`Backend::rms_norm`] of the sum.
    fn add_norm(&self, y: &Tensor, to: Residual<'_>) -> Result<()> {
        self.add(to.x, y)?;
        self.rms_norm(to.x, to.weight, to.eps, to.out)
    }

    /// `out[i] = x[rows[i]]`.
    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()>;

    /// The column of the greatest value of each row of x, the lowest of equals, as a float; -1 for a row of which a value is
    /// infinite or no number. x has less than 2^24 columns; out `[rows, 1]`.
    fn best(&self, x: &Tensor, out: &mut Tensor) -> Result<()>;

    // --- attention ------------------------------------------------------------------------------------------

    /// Norms (over `head_dim`, if `norm` = weight `[1, head_dim]` and eps) and rotates the heads of the segments'
    /// rows in place: the pair `(a, b)` number `i` at position `p` becomes
    /// `(a cos t - b sin t, b cos t + a sin t)` with `t = p * frequencies[i]`; frequencies `[1, rotary_dim / 2]`.
    fn norm_rope(
        &self,
        x: &mut Tensor,
        segments: &[Segment],
        spec: &RopeSpec,
        frequencies: &Tensor,
        norm: Option<(&Tensor, f32)>,
    ) -> Result<()>;

    /// Stores the segments' rows of `k` and `v`, `[rows, kv_heads * head_dim]`, at their positions. No page that is written
    /// belongs to two segments.
    fn kv_append(&self, k: &Tensor, v: &Tensor, segments: &[Segment], cache: &mut KvCache) -> Result<()>;

    /// [`Backend::norm_rope`] of queries and of keys, with the same `frequencies`, and [`Backend::kv_append`];
    /// what the keys' tensor holds afterwards is undefined.
    fn norm_rope_append(
        &self,
        heads: Heads<'_>,
        segments: &[Segment],
        turns: [Turn<'_>; 2],
        frequencies: &Tensor,
        cache: &mut KvCache,
    ) -> Result<()> {
        let [q, k] = turns;
        self.norm_rope(heads.q, segments, q.spec, frequencies, q.norm)?;
        self.norm_rope(heads.k, segments, k.spec, frequencies, k.norm)?;
        self.kv_append(heads.k, heads.v, segments, cache)
    }

    /// Causal attention of the segments' rows over the cache, which already holds them: for position p and head h,
    /// `softmax_j<=p(scale * q . keys[j]) . values[j]`, times `sigmoid(gate)` if gated.
    /// q `[rows, heads * head_dim * (1 + gated)]`, out `[rows, heads * head_dim]`.
    fn attention(
        &self,
        q: &Tensor,
        segments: &[Segment],
        cache: &KvCache,
        spec: &AttentionSpec,
        out: &mut Tensor,
    ) -> Result<()>;

    // --- gated delta rule -----------------------------------------------------------------------------------

    /// Causal depthwise convolution and SiLU over each segment's rows; `weight` `[channels, kernel]`, `state`
    /// `[slots, (kernel - 1) * channels]` holds the inputs before each segment, oldest first, and is advanced. No two
    /// segments have the same slot.
    fn short_conv(
        &self,
        x: &Tensor,
        weight: &Tensor,
        segments: &[Segment],
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()>;

    /// The gated delta rule (Yang et al. 2024) over each segment's rows, one token after the other, per value head
    /// with state `S [key_head_dim, value_head_dim]`:
    /// `S *= exp(g)`, `S += k (beta (v - S^T k))^T`, `out = S^T q`, where `beta = sigmoid(b)`,
    /// `g = decay * softplus(a + dt_bias)`, and q, k are divided by their norm, q also by `sqrt(key_head_dim)`.
    /// qkv `[rows, channels]` (queries, keys, values), a and b `[rows, value_heads]`, decay (negative) and dt_bias
    /// `[1, value_heads]`, state `[slots, value_heads * key_head_dim * value_head_dim]`, where no two segments have the
    /// same slot,
    /// out `[rows, value_heads * value_head_dim]`.
    fn delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()>;

    /// [`Backend::delta_rule`] over all rows of the step, and [`Backend::gated_norm`] of its answer.
    fn gated_delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        gate: Gate<'_>,
        out: &mut Tensor,
    ) -> Result<()> {
        check::gated_delta_rule(input, spec, state, gate, out)?;
        self.delta_rule(input, spec, state, out)?;
        self.gated_norm(out, gate.z, gate.weight, gate.eps)
    }

    /// `x[r, h] = rms_norm(x[r, h]) * weight * silu(z[r, h])` per head of `weight`'s length, in place.
    fn gated_norm(&self, x: &mut Tensor, z: &Tensor, weight: &Tensor, eps: f32) -> Result<()>;

    // --- mixture of experts ---------------------------------------------------------------------------------

    /// A gated MLP over all rows.
    fn mlp(&self, x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()>;

    /// Router: logits `x . router^T` with f32 activations always, softmax over all experts, the `top_k` largest
    /// (the lower id first on a tie), in ascending order of their ids.
    fn route(&self, x: &Tensor, router: &Weight, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()>;

    /// The first `rows` rows of the router's answer. Waits for all ops before it.
    ///
    /// # Errors
    /// [`files::ErrorKind::Corrupt`] when a weight is not finite: broken weights must not pick experts.
    fn read_routes(&self, routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes>;

    /// `parts[p] = mlp(x[row])` for every expert and each of its rows. All experts of a call share one shape.
    fn expert_mlp(&self, x: &Tensor, experts: &[ExpertBatch<'_>], parts: &mut Tensor) -> Result<()>;

    /// Prepares all `experts` of a layer, in the order of their ids, for [`Self::routed_mlp`]: they stay as they are as
    /// long as the table lives. `None` where the host looks experts up.
    fn expert_table(&self, experts: &[&MlpWeights]) -> Result<Option<ExpertTable>> {
        let _ = experts;
        Ok(None)
    }

    /// As [`Self::expert_mlp`] with the rows that `routes` says, without asking the host:
    /// `parts[r * top_k + c] = mlp_(ids[r, c])(x[r])`. The ids must come from a router over the table's experts.
    fn routed_mlp(
        &self,
        x: &Tensor,
        table: &ExpertTable,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        parts: &mut Tensor,
    ) -> Result<()> {
        let _ = (x, table, routes, spec, parts);
        Err(Error::unsupported("this device does not look up experts"))
    }

    /// `out[r] = sigmoid(shared.gate[r]) * shared.output[r] + sum_c weights[r, c] * parts[r * top_k + c]`, summed in this
    /// order: the order in which experts arrived never shows.
    fn combine(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        out: &mut Tensor,
    ) -> Result<()>;

    /// `sum[r] = sigmoid(shared.gate[r]) * shared.output[r]`, or 0: what [`Self::add_window`] adds to.
    fn begin_sum(&self, shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()>;

    /// `sum[row] += weights[p] * parts[p]` for the outputs p of each of `rows`, one after the other; no row twice. Windows
    /// that follow each other by ascending expert give the bits of [`Self::combine`] where ops do not depend on how they
    /// are cut.
    fn add_window(&self, parts: &Tensor, weights: &[f32], rows: &[WindowRow], sum: &mut Tensor)
    -> Result<()>;

    /// [`Backend::combine`] with the residual stream and the norm after it; `to.out` holds the sum in between.
    fn combine_norm(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        to: Residual<'_>,
    ) -> Result<()> {
        self.combine(parts, routes, spec, shared, to.out)?;
        self.add(to.x, to.out)?;
        self.rms_norm(to.x, to.weight, to.eps, to.out)
    }

    /// [`Backend::route`], [`Backend::routed_mlp`], and the shared expert's [`Backend::mlp`] and gate, all of x.
    fn routed_layer(&self, x: &Tensor, layer: &RoutedLayer<'_>, to: RoutedOutput<'_>) -> Result<()> {
        self.route(x, layer.router, layer.spec, to.routes)?;
        self.routed_mlp(x, layer.table, to.routes, layer.spec, to.parts)?;
        let (Some((mlp, gate_weight)), Some((output, gate))) = (layer.shared, to.shared) else {
            return Ok(());
        };
        self.mlp(x, mlp, output)?;
        self.linear(x, gate_weight, None, gate)
    }
}

/// The inputs of [`Backend::delta_rule`].
#[derive(Clone, Debug)]
pub struct DeltaInput<'a> {
    /// The tokens.
    pub segments: &'a [Segment],
    /// `[rows, channels]`
    pub qkv: &'a Tensor,
    /// `[rows, value_heads]`
    pub a: &'a Tensor,
    /// `[rows, value_heads]`
    pub b: &'a Tensor,
    /// `[1, value_heads]`: `-exp(A_log)`
    pub decay: &'a Tensor,
    /// `[1, value_heads]`
    pub dt_bias: &'a Tensor,
}

/// What norms and gates an answer, head by head: [`Backend::gated_norm`].
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// `[rows, heads * head_dim]`
    pub z: &'a Tensor,
    /// `[1, head_dim]`
    pub weight: &'a Tensor,
    /// What keeps the division finite.
    pub eps: f32,
}
