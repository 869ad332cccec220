//! A generated token, timed through the model's own code: layers of the model's sizes, as many as caches do not hold.
//!
//! Ops that are timed one by one find their activations in a cache and the other threads awake, and nobody counts what
//! is between them: the store's answers, the memory of activations, the logits' way to the sampler.

use std::ops::ControlFlow;
use std::sync::Arc;

use files::{Format, Result};
use kernels::ops::{AttentionSpec, DeltaSpec, KvFormat, MlpWeights, RouteSpec, Segment};
use store::disk::{SimDisk, SimOptions};
use store::policy::PolicyKind;
use store::{ExpertLayout, ExpertStore, StoreOptions};

use super::work::{Bench, Formats};
use crate::bridge::{ExpertShape, MatrixShape, Slabs};
use crate::layers::{Attention, Delta, FeedForward, Mixer, Mlp, Moe, Rope, SharedExpert};
use crate::lookahead::Guess;
use crate::models::{Block, Decoder};
use crate::pool::ExpertPool;
use crate::sample::{SampleParams, Sampler};
use crate::scratch::Scratch;
use crate::session::check_finite;
use crate::state::{LayerState, SequenceState};
use crate::step::{Experts, Linear, Norm, SequenceRows, Step, Sweep};

/// Weights to go through, in bytes: larger than caches, if the model is.
const WEIGHT_BYTES: usize = 128 << 20;

/// Inputs of the convolution, as in all released models.
const TAPS: usize = 4;

/// Layers of one kind on a CPU. All activations are zero, whatever the weights: so the routers choose the first experts,
/// and no others need be there.
pub(super) struct Stand<'a> {
    bench: &'a Bench<'a>,
    /// Matrices made so far.
    made: std::cell::Cell<usize>,
}

impl<'a> Stand<'a> {
    pub(super) fn new(bench: &'a Bench<'a>) -> Self {
        Self { bench, made: 0.into() }
    }

    /// Seconds of a token after `position` others, with all of its experts in memory.
    pub(super) fn token_s(&self, position: usize) -> Result<f64> {
        let work = self.bench.work;
        let mut seconds = self.head_s()?;
        if work.attention_layers > 0 {
            seconds += work.attention_layers as f64 * self.layer_s(None, work.attention_layers, position)?;
        }
        if let Some((layers, spec)) = &work.delta {
            seconds += *layers as f64 * self.layer_s(Some(spec), *layers, position)?;
        }
        Ok(seconds)
    }

    /// From the last layer's answer to the next token.
    fn head_s(&self) -> Result<f64> {
        let work = self.bench.work;
        let format = usable(work.head_format, work.hidden_size);
        let row_bytes = format.whole_row_bytes(work.hidden_size)?;
        let rows = (WEIGHT_BYTES / row_bytes.max(1)).clamp(1, work.vocab_size.max(1));
        let decoder = self.decoder(Vec::new(), self.bench.weight(format, rows, work.hidden_size)?)?;
        let mut logits = vec![0f32; rows];
        let mut sampler = Sampler::new(&SampleParams::greedy())?;
        let one = self.run(&decoder, None, 0, |step, x| {
            let out = decoder.logits(step, x, &[0])?;
            self.bench.backend.read(out.block(), 0, bytemuck::cast_slice_mut(&mut logits))?;
            check_finite(&logits, 0)?;
            std::hint::black_box(sampler.sample(&logits, &[])?);
            Ok(())
        })?;
        Ok(one * work.vocab_size as f64 / rows as f64)
    }

    /// A layer with the delta rule of `delta`, or with attention, of which the model has `most`.
    fn layer_s(&self, delta: Option<&DeltaSpec>, most: usize, position: usize) -> Result<f64> {
        let work = self.bench.work;
        // The next token has other experts: a small model's caches do not hold those of one, but of all its tokens.
        let most = most * (work.experts / work.top_k.max(1)).max(1);
        let (mut blocks, mut layouts) = (Vec::new(), Vec::new());
        let (mut bytes, mut expert_bytes) = (0, 0);
        while blocks.is_empty() || blocks.len() < most && bytes < WEIGHT_BYTES {
            let before = self.bench.bytes();
            let mixer = match delta {
                Some(spec) => Mixer::Delta(self.delta(spec)?),
                None => Mixer::Attention(self.attention()?),
            };
            let mlp = self.feed_forward()?;
            if let FeedForward::Moe(moe) = &mlp {
                let layout = layout(&moe.expert)?;
                expert_bytes = expert_bytes.max(layout.parts.iter().map(|part| part.bytes).sum());
                bytes += work.top_k * expert_bytes as usize;
                layouts.push(vec![layout; work.top_k]);
            }
            bytes += self.bench.bytes() - before;
            blocks.push(Block { mixer_norm: self.norm()?, mixer, mlp_norm: self.norm()?, mlp });
        }
        let layers = blocks.len();
        let decoder = self.decoder(blocks, self.bench.weight(Format::F32, 1, work.hidden_size)?)?;
        let mut experts = match layouts.is_empty() {
            true => None,
            false => Some(self.experts(layouts, expert_bytes)?),
        };
        let all = self.run(&decoder, experts.as_mut(), position, |_, _| Ok(()))?;
        Ok(all / layers as f64)
    }

    /// The time of a step of one row at `position`, and of what `then` does with its answer.
    fn run(
        &self,
        decoder: &Decoder,
        mut experts: Option<&mut (ExpertPool, Slabs)>,
        position: usize,
        mut then: impl FnMut(&Step<'_>, &crate::scratch::Activation) -> Result<()>,
    ) -> Result<f64> {
        let backend = self.bench.backend;
        let scratch = Scratch::new(backend.clone(), decoder.scratch_bytes(1, 1) as usize);
        let mut state =
            SequenceState::new(backend.clone(), &decoder.state_shapes(KvFormat::F16)?, position + 1)?;
        state.reset()?; // memory that nobody wrote is one page of zeros, which lies in a cache
        for layer in 0..decoder.layers.len() {
            if let LayerState::Kv(cache) = state.layer_mut(layer)? {
                for block in [&mut cache.keys, &mut cache.values] {
                    let zeros = vec![0; block.bytes() / 4 * 4];
                    backend.write(block, 0, &zeros)?;
                }
            }
        }
        self.bench.time(&mut self.bench.tensor(1, 1)?, |_, _| {
            let segment = Segment { rows: 0..1, position };
            let experts = experts.as_deref_mut().map(|(pool, slabs)| Experts {
                pool,
                slabs,
                sweep: None,
                more_follows: false,
                guess: Guess::None,
            });
            let mut step = Step {
                tokens: &[0],
                sequences: vec![SequenceRows { segment, state: &mut state }],
                backend: backend.as_ref(),
                experts,
                scratch: &scratch,
                routes: None,
                between_layers: &mut |_| ControlFlow::Continue(()),
            };
            let x = decoder.forward(&mut step)?;
            then(&step, &x)
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
        Ok((ExpertPool::new(store, backend.clone(), None, None, &counts), slabs))
    }

    /// An embedding of zeros above `layers`.
    fn decoder(&self, layers: Vec<Block>, head: kernels::Weight) -> Result<Decoder> {
        let hidden = self.bench.work.hidden_size;
        let table = vec![self.bench.backend.alloc(4 * hidden)?.freeze()];
        let embedding = kernels::Weight::new(Format::F32, 1, hidden, table)?;
        let head = Linear { weight: head, bias: None };
        let mut decoder = Decoder { embedding, layers, norm: self.norm()?, head };
        decoder.link();
        Ok(decoder)
    }

    fn norm(&self) -> Result<Norm> {
        self.norm_of(self.bench.work.hidden_size)
    }

    fn norm_of(&self, cols: usize) -> Result<Norm> {
        Ok(Norm { weight: self.bench.tensor(1, cols)?, eps: 1e-6 })
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

    fn feed_forward(&self) -> Result<FeedForward> {
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
            router: self.bench.weight(Format::F32, work.experts, hidden)?,
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
