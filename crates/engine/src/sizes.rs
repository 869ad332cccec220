//! What the memory plan is made from: the sizes of a bound model, of what its sequences remember, and of its steps.

use files::{Error, Meta, Result, TensorIndex};
use kernels::ops::DeviceInfo;
use store::ExpertLayout;
use store::plan::{Plan, PlanInput, default_budget_bytes, machine_memory, plan};

use crate::limits::{self, LOGIT_ROWS};
use crate::mapped::Mapped;
use crate::model::{CacheKind, OpenOptions};
use crate::models::Bound;
use crate::overhead::{Overhead, serving_bytes, tokenizer_bytes};
use crate::state::{LayerShape, Room, RoomFor};
use crate::widths::Widths;

/// How both kinds of memory are divided.
pub(crate) struct Plans {
    pub(crate) memory: Plan,
    /// What sequences may remember.
    pub(crate) room: Room,
    /// Of a GPU's memory, where that has a ceiling.
    pub(crate) vram: Option<Plan>,
    /// Why a ceiling that was given is not the plan's.
    pub(crate) note: Option<String>,
}

impl Plans {
    fn all(&self) -> impl Iterator<Item = &Plan> {
        [&self.memory].into_iter().chain(&self.vram)
    }
}

/// How a prompt is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRows {
    /// Rows of a step.
    pub(crate) chunk: usize,
    /// Rows of it that go through norms and mixers together.
    pub(crate) block: usize,
    /// Rows of a step between its layers; 0 where there is nobody for one.
    pub(crate) between: usize,
}

/// What the plan is made from: of a model that is bound to its tensors, or of a published shape.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// For messages.
    pub(crate) name: String,
    /// What a row takes.
    pub(crate) widths: Widths,
    /// What the layers remember.
    pub(crate) states: Vec<LayerShape>,
    /// Positions of a sequence.
    pub(crate) context: usize,
    /// One expert slot; 0 for a dense model.
    pub(crate) slot_bytes: u64,
    /// Weights that every token needs.
    pub(crate) resident_bytes: u64,
    /// Sequences that live at once.
    pub(crate) sessions: usize,
    /// All else.
    pub(crate) overhead: Overhead,
}

/// One expert slot for `experts`, layer by layer; 0 where there are none.
///
/// # Errors
/// As [`store::slot_bytes`].
fn slot_bytes(experts: &[Vec<ExpertLayout>]) -> Result<u64> {
    let mut all = experts.iter().flatten().peekable();
    if all.peek().is_some() { Ok(store::slot_bytes(all)? as u64) } else { Ok(0) }
}

impl Sizes {
    /// Of a model that is bound to its tensors, on `device`.
    ///
    /// # Errors
    /// `InvalidRequest` for options that the model cannot have.
    pub(crate) fn of(
        bound: &Bound,
        index: &TensorIndex,
        meta: &Meta,
        options: &OpenOptions,
        device: &DeviceInfo,
    ) -> Result<Self> {
        let kv_format = limits::kv_format(device.precision, options.kv_format)?;
        let sessions = options.sessions.unwrap_or(1);
        let logits_bytes =
            (options.logits_per_session * sessions * meta.vocab_size * size_of::<f32>()) as u64;
        let serving_bytes = if options.serves { serving_bytes(meta.vocab_size) } else { 0 };
        Ok(Self {
            name: meta.name.clone().unwrap_or_else(|| meta.arch.clone()),
            widths: bound.decoder.widths(),
            states: bound.decoder.state_shapes(kv_format)?,
            context: limits::context(meta.context, options.context)?,
            slot_bytes: slot_bytes(&bound.experts)?,
            resident_bytes: bound.arena.bytes(),
            sessions,
            overhead: Overhead {
                threads: device.threads,
                staging_bytes: device.staging_bytes,
                tensors: index.iter().count(),
                experts: bound.experts.iter().map(|layer| layer.len() as u64).sum(),
                tokenizer_bytes: tokenizer_bytes(meta) + serving_bytes,
                beside_bytes: options.beside_bytes + logits_bytes,
                vocab: meta.vocab_size,
            },
        })
    }

    /// The plan, and the rows of chunks and blocks: the largest chunk that leaves room for the fewest slots.
    pub(crate) fn plan(&self, options: &OpenOptions, device: &DeviceInfo) -> Result<(Plans, ChunkRows)> {
        let resident = self.plan_chunks(options, device, false);
        let all_fit = |plan: &Plan| plan.slots >= self.overhead.experts;
        if resident.as_ref().is_ok_and(|(plans, _)| plans.all().all(all_fit)) {
            return resident;
        }
        self.plan_chunks(options, device, true)
    }

    fn plan_chunks(
        &self,
        options: &OpenOptions,
        device: &DeviceInfo,
        streams: bool,
    ) -> Result<(Plans, ChunkRows)> {
        let much = |plan: &Plan| plan.scratch_bytes > plan.budget_bytes / 8;
        let mut chunks = self.chunks(options, streams).peekable();
        loop {
            let rows = chunks.next().ok_or_else(|| Error::invalid("nothing to plan"))?;
            match self.plan_chunk(options, rows, device) {
                Err(_) if chunks.peek().is_some() => {}
                Ok(plans)
                    if plans.all().any(much)
                        && rows.chunk > limits::CHUNK_TOKENS_MODEST
                        && chunks.peek().is_some() => {}
                planned => return planned.map(|plans| (plans, rows)),
            }
        }
    }

    /// Ways to cut a prompt, the longest chunks first.
    fn chunks(&self, options: &OpenOptions, streams: bool) -> impl Iterator<Item = ChunkRows> + use<> {
        let block = limits::block_rows(options.block_tokens, streams);
        // Prompts share a chunk.
        let positions = self.context.saturating_mul(self.sessions);
        let sessions = self.sessions;
        limits::chunks(positions, options.chunk_tokens, streams).map(move |chunk| {
            let between = limits::between_rows(chunk, sessions, streams);
            ChunkRows { chunk, block, between }
        })
    }

    /// The least budget that has a plan.
    pub(crate) fn floor_bytes(&self, options: &OpenOptions, device: &DeviceInfo) -> u64 {
        let room = self.rooms(options, 0, device).last();
        let least = |rows| {
            let input = self.input(options, rows, device);
            let state_bytes = room.as_ref().map_or(0, |room| room.bytes + room.more_bytes_min);
            let slots_bytes = input.min_slots.min(input.total_experts) * self.slot_bytes;
            self.resident_bytes + state_bytes + input.scratch_bytes + input.overhead_bytes + slots_bytes
        };
        [false, true]
            .into_iter()
            .flat_map(|streams| self.chunks(options, streams))
            .map(least)
            .min()
            .unwrap_or(0)
    }

    /// Of a step with a chunk of a prompt, and where there are several sequences of a step of others between its layers. And
    /// what of the former is lent where that can be: all but for one block.
    fn scratch_bytes(&self, ChunkRows { chunk, block, between }: ChunkRows, lends: bool) -> (u64, u64) {
        let widths = self.widths;
        let step = |chunk: usize| {
            let rows = limits::step_rows(chunk, self.sessions);
            widths.bytes(rows, block, limits::logit_places(chunk, self.sessions))
        };
        let always = step(if lends { chunk.min(block) } else { chunk });
        let between = match between {
            0 => 0,
            rows => widths.bytes(rows, block, self.sessions.min(LOGIT_ROWS)),
        };
        (always + between, step(chunk).saturating_sub(always))
    }

    /// Whether expert slots have memory that others need not now. Without experts nothing would.
    fn trades(&self, device: &DeviceInfo) -> bool {
        device.gives_back && self.overhead.experts > 0
    }

    /// Room for what sequences remember where `budget_bytes` are given, the best first; the last is the floor, which has
    /// pages for one sequence of the largest size.
    fn rooms(
        &self,
        options: &OpenOptions,
        budget_bytes: u64,
        device: &DeviceInfo,
    ) -> impl Iterator<Item = Room> + '_ {
        let trades = self.trades(device);
        let share = if trades { limits::TRADED_PAGES_SHARE } else { limits::PAGES_SHARE };
        let pages_bytes = options.pages_bytes.unwrap_or(budget_bytes / share);
        let kept_bytes = limits::kept_bytes(budget_bytes, options.kept_bytes).into_iter();
        let wanted = kept_bytes.map(move |kept_bytes| (kept_bytes, pages_bytes)).chain([(None, 0)]);
        let (sequences, context) = (self.sessions, self.context);
        wanted.map(move |(kept_bytes, pages_bytes)| {
            Room::new(&self.states, RoomFor { sequences, context, kept_bytes, pages_bytes, trades })
        })
    }

    /// What is planned with, but for the budget and the states.
    fn input(&self, options: &OpenOptions, rows: ChunkRows, device: &DeviceInfo) -> PlanInput {
        let (in_use, total_experts) = (self.widths.top_k as u64, self.overhead.experts);
        let slots_max = match options.cache {
            CacheKind::Slots => options.slots_max.map_or(total_experts, |n| n as u64),
            CacheKind::Os => 2 * in_use,
        };
        let (scratch_bytes, lent_bytes) = self.scratch_bytes(rows, self.trades(device));
        PlanInput {
            resident_bytes: self.resident_bytes,
            scratch_bytes,
            lent_bytes,
            overhead_bytes: self.overhead.bytes(LOGIT_ROWS.min(rows.chunk)),
            slot_bytes: self.slot_bytes,
            total_experts: total_experts.min(slots_max),
            min_slots: in_use.min(slots_max),
            ..PlanInput::default()
        }
    }

    fn plan_chunk(&self, options: &OpenOptions, rows: ChunkRows, device: &DeviceInfo) -> Result<Plans> {
        let available_bytes = match options.memory_bytes {
            Some(_) => 0,
            None => machine_memory()?.available_bytes,
        };
        let named = |e: Error| e.context(&self.name);
        let input = self.input(options, rows, device);
        let unified = device.mapped_bytes_max.filter(|_| device.unified_memory);
        let given = options.memory_bytes.unwrap_or_else(|| default_budget_bytes(available_bytes));
        let mapped = Mapped::below(given, unified, input.overhead_bytes);
        let input = PlanInput {
            budget_bytes: mapped.as_ref().map(|m| m.budget_bytes).or(options.memory_bytes),
            available_bytes,
            ..input
        };
        let limited = |mapped: &Option<Mapped>, e: Error| match mapped {
            Some(mapped) => e.context(mapped.limit()),
            None => e,
        };
        let given_vram = options.vram_bytes.filter(|_| !device.unified_memory);
        let mapped_vram = given_vram.and_then(|given| Mapped::below(given, device.mapped_bytes_max, 0));
        let divide = |room: &Room| {
            let input = PlanInput {
                state_bytes: room.bytes,
                state_more_bytes: room.more_bytes(),
                state_more_bytes_min: room.more_bytes_min,
                ..input
            };
            let memory = plan(&input).map_err(|e| named(limited(&mapped, e)))?;
            // The same parts lie in a GPU's memory, but for the overhead, and expert slots of its own.
            let vram = given_vram.map(|vram_bytes| {
                let budget_bytes = Some(mapped_vram.as_ref().map_or(vram_bytes, |m| m.budget_bytes));
                plan(&PlanInput {
                    budget_bytes,
                    overhead_bytes: 0,
                    total_experts: self.overhead.experts,
                    min_slots: self.widths.top_k as u64,
                    ..input
                })
                .map_err(|e| named(limited(&mapped_vram, e).context("a GPU's memory")))
            });
            Ok((memory, vram.transpose()?))
        };
        let mut rooms = self.rooms(options, given, device).peekable();
        let (room, (memory, vram)) = loop {
            let room = rooms.next().ok_or_else(|| Error::invalid("nothing to plan"))?;
            match divide(&room) {
                Err(_) if rooms.peek().is_some() => {}
                divided => break (room, divided?),
            }
        };
        let asked = mapped.filter(|_| options.memory_bytes.is_some()).or(mapped_vram);
        let room = room.with_more(memory.state_more_bytes);
        Ok(Plans { memory, room, vram, note: asked.map(|mapped| mapped.note()) })
    }
}
