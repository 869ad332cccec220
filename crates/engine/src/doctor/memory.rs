//! The parts of the memory plan before there is a model, as [`crate::Model::open`] finds them.

use files::{Meta, Result, TensorIndex};
use kernels::ops::{KvFormat, Precision};

use super::work::Work;
use crate::device::open_device;
use crate::limits::{self, CHUNK_TOKENS_MODEST, LOGIT_ROWS};
use crate::model::OpenOptions;
use crate::models::Bound;
use crate::overhead::{Overhead, shape_tokenizer_bytes, tokenizer_bytes};
use crate::state::{KvShape, LayerShape, RecurrentShape, Room, RoomFor};
use crate::synth::{Layout, Shape, SynthSizes};
use crate::widths::Widths;

/// What a model keeps in memory besides its resident weights.
#[derive(Clone, Debug)]
pub struct Memory {
    /// What one sequence of the full context remembers, and the least that is kept for its next turn.
    pub state_bytes: u64,
    states: Vec<LayerShape>,
    context: usize,
    kept_bytes: Option<u64>,
    /// Whether expert slots have the memory of pages that nobody has written.
    trades: bool,
    /// One expert slot.
    pub slot_bytes: u64,
    /// Routed experts in all layers.
    pub total_experts: u64,
    /// Chunks of a prompt that the plan may take, the largest first; never empty. Where experts are in memory, and where they
    /// are read.
    chunks: [Vec<Chunk>; 2],
}

/// A prompt chunk's part of the plan.
#[derive(Clone, Debug)]
struct Chunk {
    rows: usize,
    scratch_bytes: u64,
    overhead_bytes: u64,
}

impl Memory {
    /// Of a model that is bound to its tensors.
    pub(super) fn of_model(
        bound: &Bound,
        index: &TensorIndex,
        meta: &Meta,
        context: usize,
        options: &OpenOptions,
    ) -> Result<Self> {
        let total_experts = bound.experts.iter().map(|layer| layer.len() as u64).sum();
        let slot_bytes = match total_experts {
            0 => 0,
            _ => store::slot_bytes(bound.experts.iter().flatten())? as u64,
        };
        let tensors = index.iter().count();
        let (overhead, gives_back) =
            overhead(options, tensors, total_experts, tokenizer_bytes(meta), meta.vocab_size)?;
        let states = bound.decoder.state_shapes(kv_format(options)?)?;
        let widths = bound.decoder.widths();
        Ok(Self {
            state_bytes: floor_bytes(&states, context, options),
            states,
            context,
            kept_bytes: options.kept_bytes,
            trades: gives_back && total_experts > 0,
            slot_bytes,
            total_experts,
            chunks: [false, true].map(|streams| chunks(context, &overhead, &widths, streams)),
        })
    }

    /// Of a published shape: what its files will add to that is estimated.
    pub(super) fn of_shape(
        shape: &Shape,
        layout: Layout,
        work: &Work,
        found: &SynthSizes,
        context: usize,
        options: &OpenOptions,
    ) -> Result<Self> {
        let format = kv_format(options)?;
        format.check(shape.head_dim)?;
        let attention =
            LayerShape::Kv(KvShape { kv_heads: shape.kv_heads, head_dim: shape.head_dim, format });
        let mut states = vec![attention; work.attention_layers];
        if let (Some((layers, spec)), Some(delta)) = (&work.delta, shape.delta) {
            let layer = LayerShape::Recurrent(RecurrentShape {
                conv_rows: delta.conv_kernel - 1,
                channels: spec.channels(),
                value_heads: spec.value_heads,
                head_state: spec.key_head_dim * spec.value_head_dim,
            });
            states.extend(std::iter::repeat_n(layer, *layers));
        }
        let total_experts = (shape.layers * shape.experts) as u64;
        let tokenizer_bytes = shape_tokenizer_bytes(shape.vocab_size);
        let (overhead, gives_back) =
            overhead(options, found.tensors, total_experts, tokenizer_bytes, shape.vocab_size)?;
        let widths = widths(work);
        let parts = if layout == Layout::Mlx4Bit { 9 } else { 3 };
        Ok(Self {
            state_bytes: floor_bytes(&states, context, options),
            states,
            context,
            kept_bytes: options.kept_bytes,
            trades: gives_back && total_experts > 0,
            // Pages that its parts begin or end in the midst of.
            slot_bytes: found.expert_bytes + parts * (4096 + 2048),
            total_experts,
            chunks: [false, true].map(|streams| chunks(context, &overhead, &widths, streams)),
        })
    }

    /// The least that runs, when a token uses `top_k` experts of a layer.
    pub(super) fn floor_bytes(&self, top_k: usize) -> u64 {
        self.chunks.iter().flatten().map(|chunk| self.fixed_bytes(chunk)).min().unwrap_or(0)
            + self.slots_min_bytes(top_k)
    }

    /// The rows of a chunk and the expert slots that the plan takes with `left_bytes` of a budget besides the resident
    /// weights; `None` below the floor.
    pub(super) fn divide(&self, budget_bytes: u64, left_bytes: u64, top_k: usize) -> Option<(usize, u64)> {
        let modest =
            |chunk: &Chunk| chunk.scratch_bytes <= budget_bytes / 8 || chunk.rows <= CHUNK_TOKENS_MODEST;
        let slots_min_bytes = self.slots_min_bytes(top_k);
        let kept = limits::kept_bytes(budget_bytes, self.kept_bytes).into_iter();
        let wanted = |kept| RoomFor { trades: self.trades, ..RoomFor::one(self.context, kept) };
        let rooms: Vec<Room> = kept.map(|kept| Room::new(&self.states, wanted(kept))).collect();
        let divided = |chunks: &Vec<Chunk>| {
            chunks.iter().filter(|chunk| modest(chunk)).find_map(|chunk| {
                let fixed = |room: &Room| room.bytes + chunk.scratch_bytes + chunk.overhead_bytes;
                let fits = |room: &&Room| fixed(room) + room.more_bytes_min + slots_min_bytes <= left_bytes;
                let room = rooms.iter().find(fits)?;
                let slots = (left_bytes - fixed(room)).checked_div(self.slot_bytes).unwrap_or(0);
                Some((chunk.rows, slots.min(self.total_experts)))
            })
        };
        let [resident, streamed] = self.chunks.each_ref().map(divided);
        resident.filter(|(_, slots)| *slots >= self.total_experts).or(streamed)
    }

    fn fixed_bytes(&self, chunk: &Chunk) -> u64 {
        self.state_bytes + chunk.scratch_bytes + chunk.overhead_bytes
    }

    fn slots_min_bytes(&self, top_k: usize) -> u64 {
        (top_k as u64).min(self.total_experts) * self.slot_bytes
    }
}

/// The least for what one sequence remembers.
fn floor_bytes(states: &[LayerShape], context: usize, options: &OpenOptions) -> u64 {
    let kept = limits::kept_bytes(0, options.kept_bytes);
    kept.into_iter().map(|kept| Room::new(states, RoomFor::one(context, kept)).bytes).min().unwrap_or(0)
}

fn kv_format(options: &OpenOptions) -> Result<KvFormat> {
    let precision = if options.exact { Precision::Exact } else { Precision::Fast };
    limits::kv_format(precision, options.kv_format)
}

/// What the device adds; and whether it gives memory back.
fn overhead(
    options: &OpenOptions,
    tensors: usize,
    experts: u64,
    tokenizer_bytes: u64,
    vocab: usize,
) -> Result<(Overhead, bool)> {
    let backend = open_device(options)?.backend;
    let info = backend.info();
    let (threads, staging_bytes) = (info.threads, info.staging_bytes);
    let overhead = Overhead { threads, staging_bytes, tensors, experts, tokenizer_bytes, vocab };
    Ok((overhead, info.gives_back))
}

/// All chunk sizes.
fn chunks(context: usize, overhead: &Overhead, widths: &Widths, streams: bool) -> Vec<Chunk> {
    let block = limits::block_rows(None, streams);
    let chunk = |rows: usize| {
        let scratch_bytes = widths.bytes(rows, block, limits::logit_places(rows, 1));
        Chunk { rows, scratch_bytes, overhead_bytes: overhead.bytes(LOGIT_ROWS.min(rows)) }
    };
    limits::chunks(context, None, streams).map(chunk).collect()
}

/// As `Decoder::widths`.
fn widths(work: &Work) -> Widths {
    let [queries, keys] = [work.heads, work.kv_heads].map(|heads| heads * work.head_dim);
    let attention = queries * (2 + usize::from(work.is_gated())) + 2 * keys;
    let delta = work
        .delta
        .as_ref()
        .map_or(0, |(_, spec)| 2 * spec.channels() + 2 * spec.value_heads * (1 + spec.value_head_dim));
    let mixer = work.hidden_size + attention.max(delta);
    Widths { hidden: work.hidden_size, mixer, top_k: work.top_k, vocab: work.vocab_size }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::doctor::Demand;
    use crate::model::Model;
    use crate::synth::{SynthOptions, synth};

    #[test]
    fn a_model_gets_the_plan_that_was_foretold() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape::find("qwen3.5-moe-tiny").unwrap();
        let mut go = |_, _| ControlFlow::Continue(());
        let made = synth(&SynthOptions::new(shape, Layout::Mlx4Bit), dir.path(), &mut go).unwrap();
        for (kv_format, context) in [(None, 4096), (Some(KvFormat::Q8), 4096), (None, 1)] {
            let options = OpenOptions { kv_format, context: Some(context), ..OpenOptions::default() };
            let demand = Demand::of_model(&made.path, &options).unwrap();
            let (memory, top_k) = (&demand.memory, demand.top_k);
            let floor_bytes = demand.resident_bytes + memory.floor_bytes(top_k);
            let open = |bytes| {
                let options = OpenOptions { memory_bytes: Some(bytes), ..options.clone() };
                Model::open(&made.path, &options, &mut |_, _| ControlFlow::Continue(()))
            };
            assert_eq!(open(floor_bytes - 1).err().unwrap().kind(), files::ErrorKind::Memory);
            for more_bytes in [0, 1 << 20, 5 << 20, 100 << 20] {
                let bytes = floor_bytes + more_bytes;
                let model = open(bytes).unwrap();
                let seen = memory.divide(bytes, bytes - demand.resident_bytes, top_k);
                assert_eq!(
                    seen,
                    Some((model.chunk_tokens(), model.plan().slots)),
                    "{more_bytes} above the floor"
                );
            }
            let of_shape = Demand::of_shape(shape, Layout::Mlx4Bit, &options).unwrap().memory;
            assert_eq!(of_shape.state_bytes, memory.state_bytes);
            let near = |a: u64, b: u64| a.abs_diff(b) * 10 <= b;
            assert!(near(of_shape.slot_bytes, memory.slot_bytes), "{of_shape:?} {memory:?}");
            for (a, b) in of_shape.chunks.iter().flatten().zip(memory.chunks.iter().flatten()) {
                assert_eq!((a.rows, a.scratch_bytes), (b.rows, b.scratch_bytes));
            }
        }
    }
}
