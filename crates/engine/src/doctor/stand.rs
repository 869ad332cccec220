//! A generated token and a prompt chunk, timed through the model's own code: layers of the model's sizes, as many as
//! caches do not hold.
//!
//! Ops that are timed one by one find their activations in a cache and the other threads awake, and nobody counts what
//! is between them: the store's answers, the memory of activations, the rows' way to their experts, the logits' to the
//! sampler.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use files::{Format, Result};
use kernels::ops::{AttentionSpec, DeltaSpec, KvFormat, MlpWeights, RouteSpec, Segment};
use store::disk::{SimDisk, SimOptions};
use store::policy::PolicyKind;
use store::{ExpertLayout, ExpertStore, StoreOptions};

use super::work::{Bench, Formats};
use crate::batch::check_finite;
use crate::bridge::{ExpertShape, MatrixShape, Slabs};
use crate::heat::Heat;
use crate::layers::{Attention, Delta, FeedForward, Mixer, Mlp, Moe, Rope, SharedExpert};
use crate::limits::CHUNK_TOKENS;
use crate::models::{Block, Decoder};
use crate::pool::ExpertPool;
use crate::round::RowBlock;
use crate::sample::{SampleParams, Sampler};
use crate::scratch::Scratch;
use crate::state::{Room, RoomFor, SequenceState, StatePool};
use crate::step::{Experts, Linear, Norm, Step, Sweep};

/// Weights and activations to go through, in bytes: larger than caches, if the model is.
const WEIGHT_BYTES: u64 = 128 << 20;

/// A prompt chunk's activations and the experts of one layer take no more than this, in bytes: else fewer rows and as
/// much fewer experts stand for it.
const CHUNK_BYTES: u64 = 256 << 20;
/// Not fewer: products go by blocks of rows.
const CHUNK_ROWS_MIN: usize = 16;

/// Embeddings that differ.
const VARIED: usize = 512;

/// Inputs of the convolution, as in all released models.
const TAPS: usize = 4;

/// A step to time.
#[derive(Clone, Copy)]
struct Rows {
    count: usize,
    /// Of the first.
    position: usize,
    /// Experts of a layer that they use: those are in memory.
    experts: usize,
}

/// A row that no expert works on.
const ONE_ROW: Rows = Rows { count: 1, position: 0, experts: 0 };

/// Layers of one kind on a CPU. The activations of a single row are zero, whatever the weights, so the routers choose the
/// first experts; those of many rows are random, and the routers choose from the first experts, as many as are there.
pub(super) struct Stand<'a> {
    bench: &'a Bench<'a>,
    /// Matrices made so far.
    made: Cell<usize>,
    random: Cell<u64>,
}

impl<'a> Stand<'a> {
    pub(super) fn new(bench: &'a Bench<'a>) -> Self {
        Self { bench, made: 0.into(), random: 7.into() }
    }

    /// Seconds of a token after `position` others, with all experts in memory.
    pub(super) fn token_s(&self, position: usize) -> Result<f64> {
        let token = Rows { count: 1, position, experts: self.bench.work.top_k };
        Ok(self.head_s()? + self.layers_s(|_| Ok(token))?)
    }

    /// The same for one of a prompt of `prompt_tokens`, in chunks of `chunk`.
    pub(super) fn prompt_s(&self, prompt_tokens: usize, chunk: usize) -> Result<f64> {
        let layers_s = self.layers_s(|delta| self.chunk(delta, prompt_tokens, chunk))?;
        Ok(layers_s + self.head_s()? / prompt_tokens.max(1) as f64)
    }

    /// Seconds of all layers for one of the rows that `rows` says for each kind of layer.
    fn layers_s(&self, rows: impl Fn(Option<&DeltaSpec>) -> Result<Rows>) -> Result<f64> {
        let work = self.bench.work;
        let attention = (work.attention_layers > 0).then_some((work.attention_layers, None));
        let delta = work.delta.as_ref().map(|(layers, spec)| (*layers, Some(spec)));
        let mut seconds = 0.0;
        for (layers, delta) in attention.into_iter().chain(delta) {
            let rows = rows(delta)?;
            seconds += layers as f64 * self.layer_s(delta, layers, rows)? / rows.count as f64;
        }
        Ok(seconds)
    }

    /// What stands for a chunk in the middle of a prompt: a whole one, if there is memory for it.
    fn chunk(&self, delta: Option<&DeltaSpec>, prompt_tokens: usize, chunk: usize) -> Result<Rows> {
        let work = self.bench.work;
        let mut decoder = self.decoder(self.no_head()?)?;
        decoder.layers.push(self.block(delta, 0)?);
        let expert_bytes = decoder.layers.first().map(expert).transpose()?.flatten().map_or(0, |e| bytes(&e));
        // Each expert has as many rows as in a whole chunk.
        let experts = |count: usize| {
            let as_many = (work.experts * count / chunk).max(2 * work.top_k);
            as_many.min(work.experts).min(count * work.top_k)
        };
        let much = |count| {
            decoder.widths().bytes(count, count, 1) + experts(count) as u64 * expert_bytes > CHUNK_BYTES
        };
        let mut count = chunk.min(CHUNK_TOKENS);
        while count > CHUNK_ROWS_MIN && much(count) {
            count /= 2;
        }
        Ok(Rows { count, position: prompt_tokens.saturating_sub(count) / 2, experts: experts(count) })
    }

    /// From the last layer's answer to the next token.
    fn head_s(&self) -> Result<f64> {
        let work = self.bench.work;
        let format = usable(work.head_format, work.hidden_size);
        let row_bytes = format.whole_row_bytes(work.hidden_size)?;
        let rows = (WEIGHT_BYTES as usize / row_bytes.max(1)).clamp(1, work.vocab_size.max(1));
        let decoder = self.decoder(self.bench.weight(format, rows, work.hidden_size)?)?;
        let mut logits = vec![0f32; rows];
        let mut sampler = Sampler::new(&SampleParams::greedy())?;
        let one = self.run(&decoder, None, ONE_ROW, |step, x| {
            let out = decoder.logits(step, x, &[0])?;
            self.bench.backend.read(out.block(), 0, bytemuck::cast_slice_mut(&mut logits))?;
            check_finite(&logits, 0)?;
            std::hint::black_box(sampler.sample(&logits, &[])?);
            Ok(())
        })?;
        Ok(one * work.vocab_size as f64 / rows as f64)
    }

    /// Seconds that `rows` take in a layer with the delta rule of `delta`, or with attention, of which the model has `most`.
    fn layer_s(&self, delta: Option<&DeltaSpec>, most: usize, rows: Rows) -> Result<f64> {
        let (mut decoder, mut layouts) = (self.decoder(self.no_head()?)?, Vec::new());
        let (before, mut expert_bytes) = (self.bench.bytes(), 0);
        let weight_bytes = |layers: usize, experts: usize, expert_bytes: u64| {
            (self.bench.bytes() - before) as u64 + (layers * experts) as u64 * expert_bytes
        };
        // The next token has other experts: a small model's caches do not hold those of one, but of all its tokens.
        let mut all_bytes = u64::MAX;
        while weight_bytes(decoder.layers.len(), rows.experts, expert_bytes) < all_bytes {
            let block = self.block(delta, rows.experts)?;
            if let Some(expert) = expert(&block)? {
                expert_bytes = expert_bytes.max(bytes(&expert));
                layouts.push(vec![expert; rows.experts]);
            }
            decoder.layers.push(block);
            if decoder.layers.len() == 1 {
                let model = most as u64 * weight_bytes(1, self.bench.work.experts, expert_bytes);
                all_bytes =
                    model.min(WEIGHT_BYTES.saturating_sub(decoder.widths().bytes(rows.count, rows.count, 1)));
            }
        }
        decoder.link();
        let mut experts = match layouts.is_empty() {
            true => None,
            false => Some(self.experts(layouts, expert_bytes)?),
        };
        let all = self.run(&decoder, experts.as_mut(), rows, |_, _| Ok(()))?;
        Ok(all / decoder.layers.len() as f64)
    }

    /// The time of a step of `rows`, and of what `then` does with its answer.
    fn run(
        &self,
        decoder: &Decoder,
        mut experts: Option<&mut (ExpertPool, Slabs)>,
        rows: Rows,
        mut then: impl FnMut(&Step<'_>, &crate::scratch::Activation) -> Result<()>,
    ) -> Result<f64> {
        let (backend, Rows { count, position, .. }) = (self.bench.backend, rows);
        let scratch = Scratch::new(backend.clone(), decoder.widths().bytes(count, count, 1) as usize);
        let shapes = decoder.state_shapes(KvFormat::F16)?;
        let room = Room::new(&shapes, RoomFor::one(position + count, None));
        let mut states = StatePool::new(backend.clone(), &shapes, &room)?;
        let mut state = SequenceState::new(states.ledger())?;
        // Memory that nobody wrote is one page of zeros, which lies in a cache.
        state.prepare(&mut states, position + count)?;
        states.fill_with_zeros()?;
        let segments = [Segment { position, ..state.segment(0..count) }];
        let blocks = [RowBlock::whole(&segments)];
        // Zeros for one row, else what differs.
        let tokens: Vec<u32> =
            (0..count).map(|row| if count == 1 { 0 } else { 1 + row % VARIED } as u32).collect();
        self.bench.time(&mut self.bench.tensor(1, 1)?, |_, _| {
            let experts = experts.as_deref_mut().map(|(pool, slabs)| Experts::new(pool, slabs));
            let mut step = Step {
                tokens: &tokens,
                blocks: &blocks,
                snapshots: &mut [],
                states: &mut states,
                backend: backend.as_ref(),
                experts,
                scratch: &scratch,
                rehearsal: None,
                routes: None,
                between_layers: &mut |_| ControlFlow::Continue(()),
                partial: None,
            };
            let x = decoder.forward(&mut step)?;
            then(&step, &x[0])
        })
    }

    /// The first experts of some layers, all in memory.
    fn experts(&self, layouts: Vec<Vec<ExpertLayout>>, bytes: u64) -> Result<(ExpertPool, Slabs)> {
        let backend = self.bench.backend;
        let sim = SimOptions { reorder: false, short_reads: false, direct: false, ..SimOptions::default() };
        let disk = Arc::new(SimDisk::new(vec![vec![0x11; bytes as usize]], sim));
        let counts: Vec<u32> = layouts.iter().map(|layer| layer.len() as u32).collect();
        let slots = counts.iter().sum::<u32>() as usize;
        let slot_bytes = store::slot_bytes(layouts.iter().flatten())?;
        let most = counts.first().map_or(0, |count| *count as usize);
        let (slabs, memory) = Slabs::allocate(backend.as_ref(), slots, slot_bytes, most, None)?;
        let policy = Some(PolicyKind::default().policy(slots));
        let options = StoreOptions { slot_bytes, policy, give_back: None };
        let store = ExpertStore::new(disk, layouts, memory, options)?;
        let heat = Arc::new(Heat::new(&counts));
        Ok((ExpertPool::new(store, backend.clone(), None, None, &counts, heat), slabs))
    }

    /// No layers yet, between an embedding and `head`.
    fn decoder(&self, head: kernels::Weight) -> Result<Decoder> {
        let hidden = self.bench.work.hidden_size;
        let mut values = vec![0f32; (1 + VARIED) * hidden];
        values[hidden..].fill_with(|| self.random());
        values[hidden..].iter_mut().step_by(hidden).for_each(|first| *first = 2.0);
        let embedding = self.floats(1 + VARIED, hidden, &values)?;
        let head = Linear { weight: head, bias: None };
        Ok(Decoder { embedding, layers: Vec::new(), norm: self.norm()?, head })
    }

    fn no_head(&self) -> Result<kernels::Weight> {
        self.bench.weight(Format::F32, 1, self.bench.work.hidden_size)
    }

    /// From -1 to 1.
    fn random(&self) -> f32 {
        let mut state = self.random.get(); // xorshift64, Marsaglia 2003
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random.set(state);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A matrix of these values.
    fn floats(&self, rows: usize, cols: usize, values: &[f32]) -> Result<kernels::Weight> {
        let mut block = self.bench.backend.alloc(size_of_val(values))?;
        self.bench.backend.write(&mut block, 0, bytemuck::cast_slice(values))?;
        kernels::Weight::new(Format::F32, rows, cols, vec![block.freeze()])
    }

    /// A router that chooses from the first `experts`: the others dislike the first channel, which all but zeros have.
    fn router(&self, experts: usize) -> Result<kernels::Weight> {
        let work = self.bench.work;
        let mut values = vec![0f32; work.experts * work.hidden_size];
        for (expert, row) in values.chunks_exact_mut(work.hidden_size.max(1)).enumerate() {
            if expert >= experts {
                row[0] = -1000.0;
                continue;
            }
            // Some experts are liked more: a half of them gets from 0.45 to 1.4 of the mean's rows, as in models.
            let liked = 1.0 + 0.4 * self.random();
            // Without a sum: what all channels have in common, as weights of one value give it, makes no expert better.
            let (half, rest) = row.split_at_mut(work.hidden_size / 2);
            for (value, against) in half.iter_mut().zip(rest).skip(1) {
                *value = liked * self.random();
                *against = -*value;
            }
        }
        self.floats(work.experts, work.hidden_size, &values)
    }

    fn norm(&self) -> Result<Norm> {
        self.norm_of(self.bench.work.hidden_size)
    }

    fn norm_of(&self, cols: usize) -> Result<Norm> {
        let mut weight = self.bench.tensor(1, cols)?;
        self.bench.backend.write(weight.block_mut(), 0, bytemuck::cast_slice(&vec![1f32; cols]))?;
        Ok(Norm { weight, eps: 1e-6 })
    }

    /// The format of the next matrix of `cols` columns: in the long run as many have each as `formats` say.
    fn format(&self, formats: &Formats, cols: usize) -> Format {
        let made = self.made.replace(self.made.get() + 1);
        let mut at = (made as f64 * 0.618_034).fract();
        let found = formats.iter().find(|(_, share)| {
            at -= share;
            at < 0.0
        });
        usable(found.or(formats.last()).map_or(Format::F16, |(format, _)| *format), cols)
    }

    fn matrix(&self, rows: usize, cols: usize) -> Result<kernels::Weight> {
        self.bench.weight(self.format(&self.bench.work.resident_formats, cols), rows, cols)
    }

    fn linear(&self, rows: usize, cols: usize) -> Result<Linear> {
        Ok(Linear { weight: self.matrix(rows, cols)?, bias: None })
    }

    fn attention(&self) -> Result<Attention> {
        let work = self.bench.work;
        let (hidden, head_dim) = (work.hidden_size, work.head_dim);
        let [queries, keys] = [work.heads, work.kv_heads].map(|heads| heads * head_dim);
        // Where there are experts, queries and keys are normed.
        let norm = || (work.moe_layers > 0).then(|| self.norm_of(head_dim)).transpose();
        let frequencies = self.bench.tensor(1, head_dim / 2)?;
        Ok(Attention {
            q: self.linear(queries * (1 + usize::from(work.is_gated())), hidden)?,
            k: self.linear(keys, hidden)?,
            v: self.linear(keys, hidden)?,
            out: self.linear(hidden, queries)?,
            q_norm: norm()?,
            k_norm: norm()?,
            kv_heads: work.kv_heads,
            spec: AttentionSpec { heads: work.heads, head_dim, gated: work.is_gated(), scale: 1.0 },
            rope: Arc::new(Rope {
                frequencies,
                rotary_dim: head_dim / 2 * 2,
                interleaved: false,
                amplitude: 1.0,
            }),
        })
    }

    fn delta(&self, spec: &DeltaSpec) -> Result<Delta> {
        let hidden = self.bench.work.hidden_size;
        let values = spec.value_heads * spec.value_head_dim;
        Ok(Delta {
            qkv: self.linear(spec.channels(), hidden)?,
            z: self.linear(values, hidden)?,
            a: self.linear(spec.value_heads, hidden)?,
            b: self.linear(spec.value_heads, hidden)?,
            conv: self.bench.tensor(spec.channels(), TAPS)?,
            decay: self.bench.tensor(1, spec.value_heads)?,
            dt_bias: self.bench.tensor(1, spec.value_heads)?,
            norm: self.norm_of(spec.value_head_dim)?,
            out: self.linear(hidden, values)?,
            spec: spec.clone(),
        })
    }

    /// A layer with the delta rule of `delta` or with attention, whose router chooses from the first `experts`.
    fn block(&self, delta: Option<&DeltaSpec>, experts: usize) -> Result<Block> {
        let mixer = match delta {
            Some(spec) => Mixer::Delta(self.delta(spec)?),
            None => Mixer::Attention(self.attention()?),
        };
        Ok(Block {
            mixer_norm: self.norm()?,
            mixer,
            mlp_norm: self.norm()?,
            mlp: self.feed_forward(experts)?,
        })
    }

    fn feed_forward(&self, experts: usize) -> Result<FeedForward> {
        let work = self.bench.work;
        let hidden = work.hidden_size;
        // Norms and the like are no shared expert.
        let width = work.mlp_width() / 32 * 32;
        let mlp = |width| {
            let (gate, up) = (self.matrix(width, hidden)?, self.matrix(width, hidden)?);
            Ok::<_, files::Error>(Mlp { weights: MlpWeights::new(gate, up, self.matrix(hidden, width)?)? })
        };
        if work.moe_layers == 0 {
            return Ok(FeedForward::Dense(mlp(width.max(32))?));
        }
        let shared = match width {
            0 => None,
            _ => Some(SharedExpert { mlp: mlp(width)?, gate: self.bench.weight(Format::F32, 1, hidden)? }),
        };
        let matrix = |rows, cols| MatrixShape { format: self.format(&work.expert_formats, cols), rows, cols };
        let width = work.expert_width;
        Ok(FeedForward::Moe(Box::new(Moe {
            router: self.router(experts)?,
            spec: RouteSpec { top_k: work.top_k, normalise: true },
            expert: ExpertShape {
                gate: matrix(width, hidden),
                up: matrix(width, hidden),
                down: matrix(hidden, width),
            },
            shared,
            next: Sweep::default(),
            is_last: false,
        })))
    }
}

/// `format`, or one that has rows of so many columns.
fn usable(format: Format, cols: usize) -> Format {
    let fits = |format: &Format| format.whole_row_bytes(cols).is_ok();
    [format, Format::Q8_0].into_iter().find(fits).unwrap_or(Format::F16)
}

/// Where an expert of `block` lies in a file that begins with it.
fn expert(block: &Block) -> Result<Option<ExpertLayout>> {
    match &block.mlp {
        FeedForward::Moe(moe) => layout(&moe.expert).map(Some),
        FeedForward::Dense(_) => Ok(None),
    }
}

fn bytes(expert: &ExpertLayout) -> u64 {
    expert.parts.iter().map(|part| part.bytes).sum()
}

/// An expert from the beginning of a file.
fn layout(shape: &ExpertShape) -> Result<ExpertLayout> {
    let (mut parts, mut offset) = (Vec::new(), 0);
    for MatrixShape { format, rows, cols } in [shape.gate, shape.up, shape.down] {
        for part in 0..format.parts() {
            let bytes = (format.row_bytes(part, cols)? * rows) as u64;
            parts.push(store::Range { file: 0, offset, bytes });
            offset += bytes;
        }
    }
    Ok(ExpertLayout { parts })
}

#[cfg(test)]
mod tests {
    use super::super::work::Work;
    use super::*;
    use crate::device::open_device;
    use crate::model::OpenOptions;
    use crate::synth::{Layout, Shape, SynthOptions, sizes};

    #[test]
    fn what_stands_for_a_chunk_takes_little_memory_and_gives_experts_as_many_rows() {
        let shape = Shape::find("qwen3.5-35b-a3b").unwrap();
        let parameters = sizes(&SynthOptions::new(shape, Layout::GgufQ4_0)).unwrap().parameters;
        let work = Work::of_shape(shape, Layout::GgufQ4_0, parameters);
        let backend = open_device(&OpenOptions::default()).unwrap().backend;
        let bench = Bench::new(&backend, &work);
        let stand = Stand::new(&bench);
        for (prompt_tokens, chunk) in [(40, 40), (2048, 2048), (20_000, 2048), (20_000, 8192)] {
            let rows = stand.chunk(None, prompt_tokens, chunk).unwrap();
            let each = |rows: usize, experts: usize| (rows * work.top_k) as f64 / experts as f64;
            assert!(rows.count == chunk || rows.count < chunk && rows.count >= CHUNK_ROWS_MIN);
            let off = each(rows.count, rows.experts) / each(chunk, work.experts);
            assert!((0.9..1.1).contains(&off), "{prompt_tokens}: {off} times as many rows an expert");
            assert_eq!(2 * rows.position + rows.count, prompt_tokens, "in the middle");
            let expert_bytes = 3 * shape.expert_intermediate_size * shape.hidden_size * 18 / 32;
            let parts_bytes = 4 * rows.count * work.top_k * shape.hidden_size;
            assert!(((parts_bytes + rows.experts * expert_bytes) as u64) < CHUNK_BYTES);
        }
    }

    #[test]
    fn many_rows_go_to_experts_that_are_there_and_not_to_the_same() {
        let shape = Shape::find("qwen3.5-moe-tiny").unwrap();
        let parameters = sizes(&SynthOptions::new(shape, Layout::Mlx4Bit)).unwrap().parameters;
        let work = Work::of_shape(shape, Layout::Mlx4Bit, parameters);
        let backend = open_device(&OpenOptions::default()).unwrap().backend;
        let bench = Bench::new(&backend, &work);
        let stand = Stand::new(&bench);
        let (x, spec) = (
            stand.decoder(stand.no_head().unwrap()).unwrap().embedding,
            RouteSpec { top_k: work.top_k, normalise: true },
        );
        let tokens: Vec<u32> = (0..=VARIED as u32).collect();
        let mut rows = bench.tensor(tokens.len(), work.hidden_size).unwrap();
        backend.embed(&x, &tokens, &mut rows).unwrap();
        for there in [work.top_k + 1, work.experts / 2] {
            let ids = backend.alloc(4 * tokens.len() * work.top_k).unwrap();
            let weights = bench.tensor(tokens.len(), work.top_k).unwrap();
            let mut routes = kernels::ops::RouteBuffers { ids, weights };
            backend.route(&rows, &stand.router(there).unwrap(), &spec, &mut routes).unwrap();
            let routes = backend.read_routes(&routes, tokens.len(), &spec).unwrap();
            let mut counts = vec![0; work.experts];
            routes.ids[work.top_k..].iter().for_each(|&id| counts[id as usize] += 1);
            let (here, absent) = counts.split_at(there);
            assert!(
                here.iter().all(|&count| count > 0) && absent.iter().all(|&count| count == 0),
                "{counts:?}"
            );
            assert_ne!(here.iter().max(), here.iter().min(), "uneven: {counts:?}");
        }
        let token = stand.router(work.top_k).unwrap();
        let mut routes = kernels::ops::RouteBuffers {
            ids: backend.alloc(4 * work.top_k).unwrap(),
            weights: bench.tensor(1, work.top_k).unwrap(),
        };
        let zeros = bench.tensor(1, work.hidden_size).unwrap();
        backend.route(&zeros, &token, &spec, &mut routes).unwrap();
        let ids = backend.read_routes(&routes, 1, &spec).unwrap().ids;
        assert!(ids.iter().all(|&id| (id as usize) < work.top_k), "the first: {ids:?}");
    }
}
