//! What a model's layers compute, and how long a device takes for it: on a GPU op by op in the model's own sizes, on a CPU
//! layer by layer (`stand`).
//!
//! One rate for all products would be too hopeful: experts get few rows each, small matrices cost their fork-joins, and
//! attention, the delta rule, routing and sums are no products of weights at all.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::quant::ScaleType;
use files::{Format, Meta, Result, TensorIndex};
use kernels::ops::{
    AttentionSpec, DeltaInput, DeltaSpec, ExpertBatch, KvCache, KvFormat, MlpWeights, PAGE, Residual,
    RouteBuffers, RouteSpec, RoutedRow, Segment,
};
use kernels::{Backend, Tensor, Weight};

use super::stand::Stand;
use crate::limits::CHUNK_TOKENS;
use crate::synth::{Layout, Shape};

/// Number formats, and which part of the weights each has.
pub(super) type Formats = Vec<(Format, f64)>;

/// A format with less of the weights is not worth its time.
const SHARE_MIN: f64 = 0.04;

/// The sizes of a model's layers.
#[derive(Clone, Debug)]
pub struct Work {
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) vocab_size: usize,
    /// Of the routed experts.
    pub(super) expert_formats: Formats,
    /// Of the other weights.
    pub(super) resident_formats: Formats,
    /// Of the output head.
    pub(super) head_format: Format,
    /// Weights that each token is multiplied with, without the experts and the head.
    pub(super) resident_weights: u64,
    pub(super) moe_layers: usize,
    pub(super) experts: usize,
    pub(super) top_k: usize,
    pub(super) expert_width: usize,
    pub(super) attention_layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) delta: Option<(usize, DeltaSpec)>,
}

impl Work {
    /// Of a model, whose meta data passed its check.
    pub(super) fn of_model(index: &TensorIndex, meta: &Meta) -> Self {
        let weights = |t: &&files::Tensor| t.rows() as u64 * t.cols() as u64;
        // The names of all three dialects.
        let named = |t: &files::Tensor, parts: &[&str]| parts.iter().any(|part| t.name.contains(part));
        let is_expert = |t: &&files::Tensor| named(t, &["_exps.", ".switch_mlp.", ".experts."]);
        let is_head = |t: &&files::Tensor| t.name == "output.weight" || named(t, &["lm_head."]);
        let is_table = |t: &&files::Tensor| is_head(t) || named(t, &["token_embd.", "embed_tokens."]);
        let resident = |t: &&files::Tensor| !is_expert(t) && !is_table(t);
        // The head is the table that is not the embedding, where there are two.
        let head = index.iter().filter(is_table).max_by_key(is_head);
        let moe = meta.moe.clone().unwrap_or_default();
        let delta = meta.delta.as_ref();
        let attention_layers =
            delta.map_or(meta.layers, |d| d.full_attention.iter().filter(|full| **full).count());
        Self {
            hidden_size: meta.hidden_size,
            layers: meta.layers,
            vocab_size: meta.vocab_size,
            expert_formats: shares(index.iter().filter(is_expert)),
            resident_formats: shares(index.iter().filter(resident)),
            head_format: head.map_or(Format::F16, |t| t.format),
            resident_weights: index.iter().filter(resident).map(|t| weights(&t)).sum(),
            moe_layers: moe.sparse_layers.iter().filter(|sparse| **sparse).count(),
            experts: moe.experts,
            top_k: moe.top_k,
            expert_width: moe.intermediate_size,
            attention_layers,
            heads: meta.heads,
            kv_heads: meta.kv_heads,
            head_dim: meta.head_dim,
            delta: delta_spec(meta).map(|spec| (meta.layers - attention_layers, spec)),
        }
    }

    /// Of a published shape with `parameters` weights in all.
    pub(super) fn of_shape(shape: Shape, layout: Layout, parameters: u64) -> Self {
        let affine = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };
        let (format, head_format) = match layout {
            Layout::Mlx4Bit => (affine, affine),
            Layout::GgufQ4K => (Format::Q4K, Format::Q6K),
            Layout::GgufQ4_0 => (Format::Q4_0, Format::Q6K),
        };
        let attention_layers = (0..shape.layers).filter(|l| shape.is_full_attention(*l)).count();
        let size = |parts: [usize; 4]| parts.iter().map(|p| *p as u64).product::<u64>();
        let experts =
            size([3 * shape.layers, shape.experts, shape.expert_intermediate_size, shape.hidden_size]);
        let tables = size([2, shape.vocab_size, shape.hidden_size, 1]);
        let delta = shape.delta.map(|d| {
            let (key_head_dim, value_head_dim) = (d.head_dim, d.head_dim);
            let (key_heads, value_heads) = (d.key_heads, d.value_heads);
            let spec = DeltaSpec { key_heads, value_heads, key_head_dim, value_head_dim, tiled: false };
            (shape.layers - attention_layers, spec)
        });
        Self {
            hidden_size: shape.hidden_size,
            layers: shape.layers,
            vocab_size: shape.vocab_size,
            expert_formats: vec![(format, 1.0)],
            resident_formats: vec![(format, 1.0)],
            head_format,
            resident_weights: parameters.saturating_sub(experts + tables),
            moe_layers: shape.layers,
            experts: shape.experts,
            top_k: shape.top_k,
            expert_width: shape.expert_intermediate_size,
            attention_layers,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            delta,
        }
    }

    /// Whether attention has an output gate: as far as is known, where its layers stand between those of the delta rule.
    pub(super) fn is_gated(&self) -> bool {
        self.delta.is_some()
    }

    /// Rows of each layer's dense MLP or shared expert: what mixers and routers leave of the weights.
    pub(super) fn mlp_width(&self) -> usize {
        let [queries, keys] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
        let attention = queries * (2 + usize::from(self.is_gated())) + 2 * keys;
        let delta = self.delta.as_ref().map_or(0, |(layers, spec)| {
            layers * (spec.channels() + 2 * spec.value_heads * (spec.value_head_dim + 1))
        });
        let rows = self.attention_layers * attention + delta + self.moe_layers * self.experts;
        let left = self.resident_weights.saturating_sub((rows * self.hidden_size) as u64);
        left as usize / (3 * self.hidden_size * self.layers).max(1)
    }
}

/// The formats of some tensors.
fn shares<'a>(tensors: impl Iterator<Item = &'a files::Tensor>) -> Formats {
    let mut found: Formats = Vec::new();
    for tensor in tensors {
        let weights = tensor.rows() as f64 * tensor.cols() as f64;
        match found.iter_mut().find(|(format, _)| *format == tensor.format) {
            Some((_, sum)) => *sum += weights,
            None => found.push((tensor.format, weights)),
        }
    }
    let sum = |found: &Formats| found.iter().map(|(_, weights)| weights).sum::<f64>().max(1.0);
    let all = sum(&found);
    found.retain(|(_, weights)| *weights >= SHARE_MIN * all);
    let kept = sum(&found);
    found.into_iter().map(|(format, weights)| (format, weights / kept)).collect()
}

/// The mean of what `time` says of each format.
fn mean(formats: &Formats, time: impl Fn(Format) -> Result<f64>) -> Result<f64> {
    formats.iter().map(|(format, share)| Ok(share * time(*format)?)).sum()
}

fn delta_spec(meta: &Meta) -> Option<DeltaSpec> {
    meta.delta.as_ref().map(|d| DeltaSpec {
        key_heads: d.key_heads,
        value_heads: d.value_heads,
        key_head_dim: d.key_head_dim,
        value_head_dim: d.value_head_dim,
        tiled: d.tiled_value_heads,
    })
}

/// Seconds that a device computes for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Without its routed experts.
    pub resident_s: f64,
    /// Its routed experts.
    pub experts_s: f64,
}

impl Times {
    /// Both.
    pub fn all_s(self) -> f64 {
        self.resident_s + self.experts_s
    }

    /// On a device that is so many times as fast.
    pub(super) fn faster(self, by: f64) -> Self {
        Self { resident_s: self.resident_s / by, experts_s: self.experts_s / by }
    }

    /// When half as many experts are used.
    pub(super) fn with_half_the_experts(self) -> Self {
        Self { experts_s: self.experts_s / 2.0, ..self }
    }

    /// Of layers that take `all_s`, `experts_s` of it for experts.
    fn of_all(all_s: f64, experts_s: f64) -> Self {
        let experts_s = experts_s.min(all_s);
        Self { resident_s: all_s - experts_s, experts_s }
    }
}

/// Rows that stand for a chunk in everything but experts: enough for full blocks, little memory.
const ROWS: usize = 256;
/// Weights to measure with, in bytes: larger than caches, if the model is.
const WEIGHT_BYTES: usize = 128 << 20;
/// Rows of experts' work in one call.
const EXPERT_ROWS: usize = 2048;
/// Each op is timed this long, and three times ...
const OP_TIME: Duration = Duration::from_millis(120);
/// ... unless that takes longer: then noise is a small part of it.
const OP_TIME_MAX: Duration = Duration::from_secs(1);

/// Times a device in the sizes of `work`, for a token after `position` others. Takes about two seconds and 500 MB.
pub(super) fn token_times(backend: &Arc<dyn Backend>, work: &Work, position: usize) -> Result<Times> {
    let bench = Bench::new(backend, work);
    let experts = (work.moe_layers * work.top_k) as f64;
    let experts_s = experts * mean(&work.expert_formats, |format| bench.experts(format, 1, work.top_k))?;
    if backend.info().threads > 0 {
        return Ok(Times::of_all(Stand::new(&bench).token_s(position)?, experts_s));
    }
    let head_rows = work.vocab_size.clamp(1, 32768);
    let heads = work.vocab_size as f64 / head_rows as f64;
    let head_s = heads * bench.linear(work.head_format, head_rows, 1)?;
    let resident_s = bench.resident(1)? + bench.mixers(1, position)? + bench.small(1)?;
    Ok(Times { resident_s: resident_s + head_s, experts_s })
}

/// The same for a token of a prompt of `prompt_tokens`, in chunks of at most `chunk`.
pub(super) fn prompt_times(
    backend: &Arc<dyn Backend>,
    work: &Work,
    prompt_tokens: usize,
    chunk: usize,
) -> Result<Times> {
    let bench = Bench::new(backend, work);
    let chunk = prompt_tokens.clamp(1, chunk.max(1));
    let experts = (work.moe_layers * work.top_k) as f64;
    let each = (chunk * work.top_k / work.experts.max(1)).clamp(1, EXPERT_ROWS);
    let rows_of = |format| bench.experts(format, each, (EXPERT_ROWS / each).max(1));
    let experts_s = experts * mean(&work.expert_formats, rows_of)?;
    if backend.info().threads > 0 {
        return Ok(Times::of_all(Stand::new(&bench).prompt_s(prompt_tokens, chunk)?, experts_s));
    }
    let rows = chunk.min(ROWS);
    let layers_s = bench.resident(rows)? + bench.mixers(rows, prompt_tokens / 2)?;
    // Sums of experts are memory's work, so of many rows.
    let many = chunk.min(CHUNK_TOKENS);
    let resident_s = layers_s / rows as f64 + bench.small(many)? / many as f64;
    Ok(Times { resident_s, experts_s })
}

/// Times ops; all answers are seconds, those of mixers for all layers that have them.
pub(super) struct Bench<'a> {
    pub(super) backend: &'a Arc<dyn Backend>,
    pub(super) work: &'a Work,
    /// Bytes of all weights so far.
    allocated: Cell<usize>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(backend: &'a Arc<dyn Backend>, work: &'a Work) -> Self {
        Self { backend, work, allocated: 0.into() }
    }

    /// Bytes of all weights that were made so far.
    pub(super) fn bytes(&self) -> usize {
        self.allocated.get()
    }

    /// `[rows, cols]` of zeros.
    pub(super) fn tensor(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(self.backend.alloc(4 * rows.max(1) * cols.max(1))?, rows, cols)
    }

    /// A matrix of some numbers: untouched memory would be one page of zeros, which lies in a cache.
    pub(super) fn weight(&self, format: Format, rows: usize, cols: usize) -> Result<Weight> {
        let made = weight(self.backend, format, rows, cols)?;
        self.allocated.set(self.allocated.get() + made.bytes());
        Ok(made)
    }

    /// The median time of `op`, which is told how often it ran; `seen` is something that it writes.
    pub(super) fn time(
        &self,
        seen: &mut Tensor,
        mut op: impl FnMut(usize, &mut Tensor) -> Result<()>,
    ) -> Result<f64> {
        op(0, seen)?; // pages, threads, clocks
        self.backend.read(seen.block(), 0, &mut [0; 4])?; // waits for a device that is still at work
        let (start, mut times) = (Instant::now(), Vec::new());
        let least = |done: usize| {
            if done == 0 {
                Duration::MAX
            } else if done < 3 {
                OP_TIME_MAX
            } else {
                OP_TIME
            }
        };
        while start.elapsed() < least(times.len()) {
            let before = Instant::now();
            op(times.len() + 1, seen)?;
            self.backend.read(seen.block(), 0, &mut [0; 4])?;
            times.push(before.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2].as_secs_f64())
    }

    /// The resident matrices but the head, with `rows` rows.
    fn resident(&self, rows: usize) -> Result<f64> {
        let work = self.work;
        let matrix_rows = (work.resident_weights as f64 / (work.layers as f64).max(1.0) / 4.0) as usize;
        let matrix_rows = (matrix_rows / work.hidden_size.max(1)).clamp(64, 8192);
        let matrices = work.resident_weights as f64 / (matrix_rows * work.hidden_size).max(1) as f64;
        let each = mean(&work.resident_formats, |format| self.linear(format, matrix_rows, rows))?;
        Ok(matrices * each)
    }

    /// Attention and the delta rule.
    fn mixers(&self, rows: usize, position: usize) -> Result<f64> {
        Ok(self.attention(rows, position)? + self.delta(rows)?)
    }

    /// A product of `rows` rows with one matrix of `matrix_rows` rows.
    fn linear(&self, format: Format, matrix_rows: usize, rows: usize) -> Result<f64> {
        let cols = self.work.hidden_size;
        let first = self.weight(format, matrix_rows, cols)?;
        let count = (WEIGHT_BYTES / first.bytes().max(1)).clamp(1, if rows == 1 { 256 } else { 4 });
        let mut weights = vec![first];
        for _ in 1..count {
            weights.push(self.weight(format, matrix_rows, cols)?);
        }
        let x = self.tensor(rows, cols)?;
        let mut out = self.tensor(rows, matrix_rows)?;
        let all = self.time(&mut out, |_, out| {
            weights.iter().try_for_each(|w| self.backend.linear(&x, w, None, out))
        })?;
        Ok(all / count as f64)
    }

    /// One row of one expert, when each of `count` experts has `rows` rows.
    fn experts(&self, format: Format, rows: usize, count: usize) -> Result<f64> {
        let work = self.work;
        if work.moe_layers == 0 {
            return Ok(0.0);
        }
        let (hidden, width) = (work.hidden_size, work.expert_width);
        let matrix = |rows, cols| self.weight(format, rows, cols);
        let expert =
            || MlpWeights::new(matrix(width, hidden)?, matrix(width, hidden)?, matrix(hidden, width)?);
        let first = expert()?;
        let bytes = first.gate.bytes() + first.up.bytes() + first.down.bytes();
        let all = (WEIGHT_BYTES / bytes.max(1)).min(work.experts * work.moe_layers).max(1);
        let mut pool = vec![first];
        for _ in 1..all {
            pool.push(expert()?);
        }
        // Results go where nothing of them is in a cache, as in a layer of a whole chunk.
        let total = if rows == 1 { count } else { CHUNK_TOKENS * work.top_k };
        let inputs = (total / work.top_k.max(1)).max(1);
        let x = self.tensor(inputs, hidden)?;
        let mut parts = self.tensor(total, hidden)?;
        // Routers are not even: from an eighth of the mean to nearly twice.
        let uneven = |e: usize| if rows == 1 { 1 } else { (rows * (2 * (e % 8) + 1) / 8).max(1) };
        let all_rows: usize = (0..count).map(uneven).sum();
        let all = self.time(&mut parts, |run, parts| {
            let mut part = run * all_rows % total;
            let mut next = || {
                part = (part + 1) % total;
                RoutedRow { row: (part / work.top_k.max(1)) as u32, part: part as u32 }
            };
            let routed: Vec<Vec<_>> = (0..count).map(|e| (0..uneven(e)).map(|_| next()).collect()).collect();
            let weights = pool.iter().cycle().skip(run * count % pool.len());
            let batches: Vec<_> =
                weights.zip(&routed).map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
            self.backend.expert_mlp(&x, &batches, parts)
        })?;
        Ok(all / all_rows as f64)
    }

    /// Attention of `rows` rows after `position` others.
    fn attention(&self, rows: usize, position: usize) -> Result<f64> {
        let Work { heads, kv_heads, head_dim, attention_layers, .. } = *self.work;
        if attention_layers == 0 {
            return Ok(0.0);
        }
        let (pages, format) = ((position + rows).div_ceil(PAGE), KvFormat::F16);
        let half = pages * KvCache::page_bytes(kv_heads, head_dim, format) / 2;
        let (keys, values) = (self.backend.alloc(half)?, self.backend.alloc(half)?);
        let mut cache = KvCache { keys, values, kv_heads, head_dim, pages, format };
        let segment =
            |position| [Segment { rows: 0..rows, position, pages: (0..pages as u32).collect(), slot: 0 }];
        let new = self.tensor(rows, kv_heads * head_dim)?;
        for position in (0..position).step_by(rows).chain([position]) {
            self.backend.kv_append(&new, &new, &segment(position), &mut cache)?;
        }
        let q = self.tensor(rows, heads * head_dim)?;
        let spec = AttentionSpec { heads, head_dim, gated: false, scale: 1.0 };
        let segments = segment(position);
        let mut out = self.tensor(rows, heads * head_dim)?;
        let one = self.time(&mut out, |_, out| self.backend.attention(&q, &segments, &cache, &spec, out))?;
        Ok(one * attention_layers as f64)
    }

    /// The delta rule and its convolution.
    fn delta(&self, rows: usize) -> Result<f64> {
        let Some((layers, spec)) = &self.work.delta else { return Ok(0.0) };
        let segments = [Segment { rows: 0..rows, ..Segment::default() }];
        let (mut qkv, raw) = (self.tensor(rows, spec.channels())?, self.tensor(rows, spec.channels())?);
        let (a, decay) = (self.tensor(rows, spec.value_heads)?, self.tensor(1, spec.value_heads)?);
        let (taps, mut before) = (self.tensor(spec.channels(), 4)?, self.tensor(1, 3 * spec.channels())?);
        // As many states as one row finds none of in a cache.
        let state = || self.tensor(1, spec.value_heads * spec.key_head_dim * spec.value_head_dim);
        let mut states = (0..*layers).map(|_| state()).collect::<Result<Vec<_>>>()?;
        let mut out = self.tensor(rows, spec.value_heads * spec.value_head_dim)?;
        let one = self.time(&mut out, |run, out| {
            self.backend.short_conv(&raw, &taps, &segments, &mut before, &mut qkv)?;
            let input =
                DeltaInput { segments: &segments, qkv: &qkv, a: &a, b: &a, decay: &decay, dt_bias: &decay };
            let state = run % states.len();
            self.backend.delta_rule(&input, spec, &mut states[state], out)
        })?;
        Ok(one * *layers as f64)
    }

    /// Norms, the router and the sums of experts.
    fn small(&self, rows: usize) -> Result<f64> {
        let Work { hidden_size, layers, moe_layers, experts, top_k, .. } = *self.work;
        let (y, weight) = (self.tensor(rows, hidden_size)?, self.tensor(1, hidden_size)?);
        let (mut x, mut h) = (self.tensor(rows, hidden_size)?, self.tensor(rows, hidden_size)?);
        let norm = self.time(&mut h, |_, out| {
            self.backend.add_norm(&y, Residual { x: &mut x, weight: &weight, eps: 1e-6, out })
        })?;
        if moe_layers == 0 {
            return Ok(2.0 * norm * layers as f64);
        }
        let router = self.weight(Format::F32, experts, hidden_size)?;
        let spec = RouteSpec { top_k, normalise: true };
        let ids = self.backend.alloc(4 * rows * top_k)?;
        let mut routes = RouteBuffers { ids, weights: self.tensor(rows, top_k)? };
        let parts = self.tensor(rows * top_k, hidden_size)?;
        let moe = self.time(&mut h, |_, out| {
            self.backend.route(&y, &router, &spec, &mut routes)?;
            self.backend.read_routes(&routes, rows, &spec)?;
            let to = Residual { x: &mut x, weight: &weight, eps: 1e-6, out };
            self.backend.combine_norm(&parts, &routes, &spec, None, to)
        })?;
        Ok(norm * layers as f64 + moe * moe_layers as f64)
    }
}

/// A matrix of some numbers.
pub(super) fn weight(backend: &Arc<dyn Backend>, format: Format, rows: usize, cols: usize) -> Result<Weight> {
    let part = |part| {
        let bytes = format.row_bytes(part, cols)? * rows;
        let mut block = backend.alloc(bytes)?;
        let some = vec![0x11; (1 << 20).min(bytes)];
        for at in (0..bytes).step_by(some.len().max(1)) {
            backend.write(&mut block, at, &some[..some.len().min(bytes - at)])?;
        }
        Ok(block.freeze())
    };
    Weight::new(format, rows, cols, (0..format.parts()).map(part).collect::<Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::open_device;
    use crate::model::OpenOptions;

    #[test]
    fn a_model_and_its_shape_ask_for_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::find("qwen3.5-moe-tiny").unwrap();
        let options = crate::synth::SynthOptions::new(shape, Layout::Mlx4Bit);
        let mut go = |_, _| std::ops::ControlFlow::Continue(());
        let made = crate::synth::synth(&options, dir.path(), &mut go).unwrap();
        let of_shape =
            Work::of_shape(shape, Layout::Mlx4Bit, crate::synth::sizes(&options).unwrap().parameters);
        let (index, meta) = TensorIndex::open(&made.path).unwrap();
        let of_model = Work::of_model(&index, &meta);
        let sizes = |w: &Work| {
            [
                w.layers,
                w.moe_layers,
                w.experts,
                w.top_k,
                w.expert_width,
                w.attention_layers,
                w.heads,
                w.head_dim,
            ]
        };
        assert_eq!(sizes(&of_model), sizes(&of_shape));
        assert_eq!(of_model.resident_weights, of_shape.resident_weights);
        assert_eq!(of_model.expert_formats, of_shape.expert_formats);
        assert_eq!(of_model.delta.is_some(), of_shape.delta.is_some());
        // But for norms, taps and the like.
        let width = shape.shared_intermediate_size.unwrap();
        assert!((width..width + width / 4).contains(&of_model.mlp_width()), "{}", of_model.mlp_width());
        let backend: Arc<dyn Backend> = open_device(&OpenOptions::default()).unwrap().backend;
        let token = token_times(&backend, &of_model, 40).unwrap();
        let prompt = prompt_times(&backend, &of_model, 40, 30).unwrap();
        let all = [token.resident_s, token.experts_s, prompt.resident_s, prompt.experts_s];
        assert!(all.iter().all(|s| *s > 0.0 && *s < 10.0), "{token:?} {prompt:?}");
        assert_eq!(token.faster(2.0).experts_s, token.experts_s / 2.0);
    }
}
