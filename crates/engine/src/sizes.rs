//! What the memory plan is made from: the sizes of a bound model, of what its sequences remember, and of its steps.

use files::{Error, Meta, Result};
use kernels::ops::DeviceInfo;
use store::ExpertLayout;
use store::plan::{Plan, PlanInput, default_budget_bytes, machine_memory, plan};

use crate::limits::{self, LOGIT_ROWS};
use crate::mapped::Mapped;
use crate::model::{CacheKind, OpenOptions};
use crate::models::Decoder;
use crate::overhead::Overhead;
use crate::state::{LayerShape, Room, RoomFor};

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
}

/// What the plan is made from.
pub(crate) struct Sizes<'a> {
    decoder: &'a Decoder,
    states: &'a [LayerShape],
    context: usize,
    slot_bytes: u64,
    resident_bytes: u64,
    sessions: usize,
    overhead: Overhead,
}

impl<'a> Sizes<'a> {
    pub(crate) fn new(
        decoder: &'a Decoder,
        states: &'a [LayerShape],
        experts: &[Vec<ExpertLayout>],
        resident_bytes: u64,
        overhead: Overhead,
        context: usize,
        sessions: usize,
    ) -> Result<Self> {
        let slot_bytes = if overhead.experts == 0 { 0 } else { store::slot_bytes(experts.iter().flatten())? };
        Ok(Self {
            decoder,
            states,
            context,
            slot_bytes: slot_bytes as u64,
            resident_bytes,
            sessions,
            overhead,
        })
    }

    /// The plan, and the rows of chunks and blocks: the largest chunk that leaves room for the fewest slots.
    pub(crate) fn plan(
        &self,
        options: &OpenOptions,
        meta: &Meta,
        device: &DeviceInfo,
    ) -> Result<(Plans, ChunkRows)> {
        let resident = self.plan_chunks(options, meta, device, false);
        let all_fit = |plan: &Plan| plan.slots >= self.overhead.experts;
        if resident.as_ref().is_ok_and(|(plans, _)| plans.all().all(all_fit)) {
            return resident;
        }
        self.plan_chunks(options, meta, device, true)
    }

    fn plan_chunks(
        &self,
        options: &OpenOptions,
        meta: &Meta,
        device: &DeviceInfo,
        streams: bool,
    ) -> Result<(Plans, ChunkRows)> {
        let block = limits::block_rows(options.block_tokens, streams);
        let much = |plan: &Plan| plan.scratch_bytes > plan.budget_bytes / 8;
        // Prompts share a chunk.
        let positions = self.context.saturating_mul(self.sessions);
        let mut chunks = limits::chunks(positions, options.chunk_tokens, streams).peekable();
        loop {
            let chunk = chunks.next().ok_or_else(|| Error::invalid("nothing to plan"))?;
            let rows = ChunkRows { chunk, block };
            match self.plan_chunk(options, meta, rows, device) {
                Err(_) if chunks.peek().is_some() => {}
                Ok(plans)
                    if plans.all().any(much)
                        && chunk > limits::CHUNK_TOKENS_MODEST
                        && chunks.peek().is_some() => {}
                planned => return planned.map(|plans| (plans, rows)),
            }
        }
    }

    /// Of a step with a chunk of a prompt, and where there are several sequences of a step of answers between its layers.
    fn scratch_bytes(&self, ChunkRows { chunk, block }: ChunkRows) -> u64 {
        let (rows, widths) = (limits::step_rows(chunk, self.sessions), self.decoder.widths());
        let step = widths.bytes(rows, block, limits::logit_places(chunk, self.sessions));
        match self.sessions {
            1 => step,
            answers => step + widths.bytes(answers, block, answers.min(LOGIT_ROWS)),
        }
    }

    /// Room for what sequences remember where `budget_bytes` are given, the best first; the last is the floor, which has
    /// pages for one sequence of the largest size.
    fn rooms(
        &self,
        options: &OpenOptions,
        budget_bytes: u64,
        device: &DeviceInfo,
    ) -> impl Iterator<Item = Room> + '_ {
        // Without experts nothing would have the memory instead.
        let trades = device.gives_back && self.overhead.experts > 0;
        let share = if trades { limits::TRADED_PAGES_SHARE } else { limits::PAGES_SHARE };
        let pages_bytes = options.pages_bytes.unwrap_or(budget_bytes / share);
        let kept_bytes = limits::kept_bytes(budget_bytes, options.kept_bytes).into_iter();
        let wanted = kept_bytes.map(move |kept_bytes| (kept_bytes, pages_bytes)).chain([(None, 0)]);
        let (sequences, context) = (self.sessions, self.context);
        wanted.map(move |(kept_bytes, pages_bytes)| {
            Room::new(self.states, RoomFor { sequences, context, kept_bytes, pages_bytes, trades })
        })
    }

    fn plan_chunk(
        &self,
        options: &OpenOptions,
        meta: &Meta,
        rows: ChunkRows,
        device: &DeviceInfo,
    ) -> Result<Plans> {
        let logit_rows = LOGIT_ROWS.min(rows.chunk);
        let available_bytes = match options.memory_bytes {
            Some(_) => 0,
            None => machine_memory()?.available_bytes,
        };
        let (in_use, total_experts) = (self.decoder.top_k() as u64, self.overhead.experts);
        let slots_max = match options.cache {
            CacheKind::Slots => options.slots_max.map_or(total_experts, |n| n as u64),
            CacheKind::Os => 2 * in_use,
        };
        let named = |e: Error| e.context(meta.name.as_deref().unwrap_or(&meta.arch));
        let overhead_bytes = self.overhead.bytes(logit_rows);
        let unified = device.mapped_bytes_max.filter(|_| device.unified_memory);
        let given = options.memory_bytes.unwrap_or_else(|| default_budget_bytes(available_bytes));
        let mapped = Mapped::below(given, unified, overhead_bytes);
        let input = PlanInput {
            budget_bytes: mapped.as_ref().map(|m| m.budget_bytes).or(options.memory_bytes),
            available_bytes,
            resident_bytes: self.resident_bytes,
            state_bytes: 0,
            state_more_bytes: 0,
            state_more_bytes_min: 0,
            scratch_bytes: self.scratch_bytes(rows),
            overhead_bytes,
            slot_bytes: self.slot_bytes,
            total_experts: total_experts.min(slots_max),
            min_slots: in_use.min(slots_max),
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
                    total_experts,
                    min_slots: in_use,
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
