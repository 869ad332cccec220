//! Experts that the device looks up itself: all of a layer are in its memory, so the router's ids need not be read.

use std::sync::Arc;

use files::{Error, Result};

use super::memory::GpuMemory;
use super::moe::{ACT_BYTES_MAX, Group, Parts, TILE_WORDS, TableAt};
use super::product::{alignment, tokens_for};
use super::{Call, GROUPS_MAX, Gpu, binding, items, memory_of, source};
use crate::buffer::Tensor;
use crate::ops::{ExpertTable, MlpWeights, RouteBuffers, RouteSpec};

/// Words of an expert in the lookup; `expert_tiles.wgsl` says which.
const LOOKUP_WORDS: usize = 10;

/// Where each expert's weights are.
struct Lookup {
    /// For each group of experts whose weights share buffers: the first of them.
    groups: Vec<usize>,
    /// What every base of packed values is a multiple of.
    alignment: u32,
    /// `[groups, experts, LOOKUP_WORDS]`
    words: GpuMemory,
}

impl Gpu {
    pub(super) fn table(&self, experts: &[&MlpWeights]) -> Result<ExpertTable> {
        let parts = experts.iter().map(|e| Parts::of(e)).collect::<Result<Vec<_>>>()?;
        let mut groups: Vec<usize> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            if !groups.iter().any(|&first| parts[first].same_dispatch(part)) {
                groups.push(i);
            }
        }
        let mut words = Vec::with_capacity(groups.len() * parts.len() * LOOKUP_WORDS);
        for &first in &groups {
            for part in &parts {
                // The bases of another group's expert would leave this group's buffers; those of its own do not.
                let here = part.same_dispatch(&parts[first]);
                words.extend(if here { part.bases } else { parts[first].bases });
                words.push(u32::from(here));
            }
        }
        let alignment = alignment(parts.iter().flat_map(|part| part.bases.into_iter().step_by(3)));
        let memory = self.memory(words.len() * 4, false)?;
        let bytes = bytemuck::cast_slice(&words);
        self.lock().recorder.copy_in(&self.device, &memory.buffer, 0, bytes)?;
        let experts = experts.iter().copied().cloned().collect();
        ExpertTable::new(experts, Box::new(Lookup { groups, alignment, words: memory }))
    }

    pub(super) fn look_up(
        &self,
        x: &Tensor,
        table: &ExpertTable,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        parts: &mut Tensor,
    ) -> Result<()> {
        let lookup: &Lookup =
            table.device().ok_or_else(|| Error::invalid("routed_mlp: this table is of another backend"))?;
        let (experts, count) = (table.experts(), x.rows() * spec.top_k);
        let (hidden, intermediate) = (experts[0].gate.cols(), experts[0].gate.rows());
        if count > GROUPS_MAX as usize || count * intermediate * 4 > ACT_BYTES_MAX {
            return Err(Error::invalid(format!("routed_mlp: {} rows are too many", x.rows())));
        }
        let mut state = self.lock();
        let tiles: Arc<GpuMemory> = self.scratch(&mut state, "tiles", count * (TILE_WORDS + 2) * 4)?;
        for (g, &first) in lookup.groups.iter().enumerate() {
            let at = g * experts.len() * LOOKUP_WORDS;
            self.run(
                &mut state,
                &Call {
                    kernel: &source::EXPERT_TILES,
                    formats: &[],
                    constants: &[],
                    bindings: &[
                        memory_of(routes.ids.buffer())?.binding(),
                        lookup.words.binding(),
                        tiles.binding(),
                    ],
                    params: &[count as u32, spec.top_k as u32, experts.len() as u32, at as u32],
                    groups: items(&source::EXPERT_TILES, count),
                },
            )?;
            let group = Group {
                parts: &Parts::of(&experts[first])?,
                x: binding(x)?,
                out: binding(parts)?,
                hidden,
                intermediate,
                tokens: tokens_for(1) as usize,
                alignment: lookup.alignment,
            };
            let table = TableAt {
                buffer: tiles.binding(),
                tiles_at: 0,
                entries_at: (count * TILE_WORDS) as u32,
                tiles: count as u32,
                entries: count,
            };
            self.expert_rows(&mut state, &group, &table)?;
        }
        state.recorder.submit_much(&self.device)
    }
}
