//! The memory plan of a model that nobody has opened: [`Sizes::plan`], as [`crate::Model::open`] has it.

use std::fmt;

use files::{Meta, Result, TensorIndex};
use kernels::ops::DeviceInfo;
use store::plan::Plan;

use super::work::Work;
use crate::device::open_device;
use crate::limits;
use crate::model::OpenOptions;
use crate::models::Bound;
use crate::overhead::{Overhead, shape_tokenizer_bytes};
use crate::sizes::Sizes;
use crate::state::{KvShape, LayerShape, RecurrentShape};
use crate::synth::{Layout, Shape, SynthSizes};
use crate::widths::Widths;

/// What the plan of a model is made from.
#[derive(Clone)]
pub struct Memory {
    sizes: Sizes,
    options: OpenOptions,
    device: DeviceInfo,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sizes.fmt(f)
    }
}

/// What a plan says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// Tokens of a prompt chunk.
    pub(super) chunk_tokens: usize,
    /// Expert slots.
    pub(super) slots: u64,
    /// Those that a long prompt leaves when it borrows their memory.
    pub(super) slots_beside_prompt: u64,
}

impl Planned {
    fn new(chunk_tokens: usize, plan: &Plan) -> Self {
        let slots_beside_prompt = plan.slots_beside(plan.lent_bytes);
        Self { chunk_tokens, slots: plan.slots, slots_beside_prompt }
    }
}

impl Memory {
    /// Of a model that is bound to its tensors.
    pub(super) fn of_model(
        bound: &Bound,
        index: &TensorIndex,
        meta: &Meta,
        options: &OpenOptions,
    ) -> Result<Self> {
        let device = open_device(options)?.backend.info().clone();
        let sizes = Sizes::of(bound, index, meta, options, &device)?;
        Ok(Self { sizes, options: options.clone(), device })
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
        let device = open_device(options)?.backend.info().clone();
        let format = limits::kv_format(device.precision, options.kv_format)?;
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
        let parts = if layout == Layout::Mlx4Bit { 9 } else { 3 };
        let sizes = Sizes {
            name: shape.name.to_owned(),
            widths: widths(work),
            states,
            context,
            // Pages that its parts begin or end in the midst of.
            slot_bytes: found.expert_bytes + parts * (4096 + 2048),
            resident_bytes: found.resident_bytes,
            sessions: options.sessions.unwrap_or(1),
            overhead: Overhead {
                threads: device.threads,
                staging_bytes: device.staging_bytes,
                tensors: found.tensors,
                experts: (shape.layers * shape.experts) as u64,
                tokenizer_bytes: shape_tokenizer_bytes(shape.vocab_size),
                beside_bytes: 0,
                vocab: shape.vocab_size,
            },
        };
        Ok(Self { sizes, options: options.clone(), device })
    }

    /// The same with a context that a prompt of `tokens` fits into.
    pub(super) fn for_prompt(&self, tokens: usize) -> Self {
        let mut other = self.clone();
        other.sizes.context = other.sizes.context.max(tokens);
        other
    }

    /// The same when a token uses `top_k` experts of a layer.
    pub(super) fn with_top_k(&self, top_k: usize) -> Self {
        let mut other = self.clone();
        other.sizes.widths.top_k = top_k;
        other
    }

    /// Routed experts in all layers.
    pub(super) fn total_experts(&self) -> u64 {
        self.sizes.overhead.experts
    }

    /// The least that runs.
    pub(super) fn floor_bytes(&self) -> u64 {
        self.sizes.floor_bytes(&self.options, &self.device)
    }

    /// The plan of a model that is opened with the options as they are.
    pub(super) fn plan_as_opened(&self) -> Result<Plan> {
        Ok(self.sizes.plan(&self.options, &self.device)?.0.memory)
    }

    /// How a budget is divided; `None` below the floor.
    pub(super) fn plan(&self, budget_bytes: u64) -> Option<Planned> {
        let options = OpenOptions { memory_bytes: Some(budget_bytes), ..self.options.clone() };
        let (plans, rows) = self.sizes.plan(&options, &self.device).ok()?;
        Some(Planned::new(rows.chunk, &plans.memory))
    }
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

    use kernels::ops::KvFormat;

    use super::*;
    use crate::doctor::Demand;
    use crate::model::Model;
    use crate::state::{Room, RoomFor};
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
            let memory = &demand.memory;
            let floor_bytes = memory.floor_bytes();
            let open = |bytes| {
                let options = OpenOptions { memory_bytes: Some(bytes), ..options.clone() };
                Model::open(&made.path, &options, &mut |_, _| ControlFlow::Continue(()))
            };
            assert_eq!(open(floor_bytes - 1).err().unwrap().kind(), files::ErrorKind::Memory);
            for more_bytes in [0, 1 << 20, 5 << 20, 100 << 20] {
                let bytes = floor_bytes + more_bytes;
                let model = open(bytes).unwrap();
                let planned = Some(Planned::new(model.chunk_tokens(), model.plan()));
                assert_eq!(memory.plan(bytes), planned, "{more_bytes} above the floor");
            }
            let of_shape = Demand::of_shape(shape, Layout::Mlx4Bit, &options).unwrap().memory;
            let ([of_shape, memory], near) =
                ([&of_shape.sizes, &memory.sizes], |a: u64, b: u64| a.abs_diff(b) * 10 <= b);
            assert_eq!(of_shape.context, memory.context);
            assert!(near(of_shape.slot_bytes, memory.slot_bytes), "{of_shape:?} {memory:?}");
            for rows in [1, 128, 2048, 10_000] {
                let [a, b] = [of_shape, memory].map(|sizes| sizes.widths.bytes(rows, 512, 1));
                assert_eq!(a, b, "{rows} rows");
            }
            let state_bytes =
                |sizes: &Sizes| Room::new(&sizes.states, RoomFor::one(sizes.context, None)).bytes;
            assert_eq!(state_bytes(of_shape), state_bytes(memory));
        }
    }
}
