//! What the memory plan is made from: the sizes of a bound model, of what its sequences remember, and of its steps.

use files::{Error, Meta, Result};
use kernels::ops::DeviceInfo;
use store::ExpertLayout;
use store::plan::{Plan, PlanInput, default_budget_bytes, machine_memory, plan};

use crate::limits::{self, CHUNK_TOKENS, CHUNK_TOKENS_MIN, CHUNK_TOKENS_MODEST, LOGIT_ROWS};
use crate::mapped::Mapped;
use crate::model::{CacheKind, OpenOptions};
use crate::models::Decoder;
use crate::overhead::Overhead;
use crate::state::{LayerShape, Room};

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

    /// The plan and the chunk size: the largest chunk that leaves room for the fewest slots.
    pub(crate) fn plan(
        &self,
        options: &OpenOptions,
        meta: &Meta,
        device: &DeviceInfo,
    ) -> Result<(Plans, usize)> {
        // Prompts share a chunk.
        let positions = self.context.saturating_mul(self.sessions);
        let most = options.chunk_tokens.unwrap_or(CHUNK_TOKENS).clamp(1, positions);
        let least = options.chunk_tokens.unwrap_or(CHUNK_TOKENS_MIN).clamp(1, positions);
        let modest = least.max(CHUNK_TOKENS_MODEST);
        let much = |plan: &Plan| plan.scratch_bytes > plan.budget_bytes / 8;
        let mut chunk = most;
        loop {
            match self.plan_chunk(options, meta, chunk, device) {
                Err(_) if chunk > least => chunk = (chunk / 2).max(least),
                Ok(plans) if plans.all().any(much) && chunk > modest => chunk /= 2,
                Ok(plans) => return Ok((plans, chunk)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Of a step with a chunk of a prompt, and where there are several sequences of a step of answers between its layers.
    fn scratch_bytes(&self, chunk: usize) -> u64 {
        let rows = limits::step_rows(chunk, self.sessions);
        let step = self.decoder.scratch_bytes(rows, limits::logit_places(chunk, self.sessions));
        match self.sessions {
            1 => step,
            answers => step + self.decoder.scratch_bytes(answers, answers.min(LOGIT_ROWS)),
        }
    }

    fn plan_chunk(
        &self,
        options: &OpenOptions,
        meta: &Meta,
        chunk: usize,
        device: &DeviceInfo,
    ) -> Result<Plans> {
        let logit_rows = LOGIT_ROWS.min(chunk);
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
        let pages_bytes = options.pages_bytes.unwrap_or(given / limits::PAGES_SHARE);
        let room_for = |(kept_bytes, pages_bytes)| {
            Room::new(self.states, self.sessions, self.context, kept_bytes, pages_bytes)
        };
        let input = PlanInput {
            budget_bytes: mapped.as_ref().map(|m| m.budget_bytes).or(options.memory_bytes),
            available_bytes,
            resident_bytes: self.resident_bytes,
            state_bytes: 0,
            scratch_bytes: self.scratch_bytes(chunk),
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
            let input = PlanInput { state_bytes: room.bytes, ..input };
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
        let kept_bytes = limits::kept_bytes(given, options.kept_bytes).into_iter();
        // The floor has pages for one sequence of the largest size.
        let rooms = kept_bytes.map(|kept_bytes| (kept_bytes, pages_bytes)).chain([(None, 0)]);
        let mut rooms = rooms.map(room_for).peekable();
        let (room, (memory, vram)) = loop {
            let room = rooms.next().ok_or_else(|| Error::invalid("nothing to plan"))?;
            match divide(&room) {
                Err(_) if rooms.peek().is_some() => {}
                divided => break (room, divided?),
            }
        };
        let asked = mapped.filter(|_| options.memory_bytes.is_some()).or(mapped_vram);
        Ok(Plans { memory, room, vram, note: asked.map(|mapped| mapped.note()) })
    }
}
