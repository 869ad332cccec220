//! Experts that the device looks up itself: all of a layer are in its memory, so the router's ids need not be read.

use std::sync::Arc;

use files::{Error, Result};

use super::blocks::{Chosen, Halved};
use super::encoder::{BINDINGS_MAX, Binding};
use super::memory::GpuMemory;
use super::moe::{ACT_BYTES_MAX, Group, Parts, Routed, TILE_WORDS, TableAt};
use super::product::{Job, alignment};
use super::source::Wide;
use super::{Call, GROUPS_MAX, Gpu, State, binding, items, memory_of, source};
use crate::buffer::Tensor;
use crate::ops::{ExpertTable, MlpWeights, RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput};

/// Words of an expert in the lookup; `expert_tiles.wgsl` says which.
const LOOKUP_WORDS: usize = 10;

/// Most experts among which every workgroup of a pass chooses for itself. An H100 needs 1 us for 256, and 8 us for a dispatch
/// that chooses for all workgroups.
const RANKED_MOST: usize = 256;
/// And rows of such a pass: they multiply its workgroups.
const RANKED_ROWS_MAX: usize = 4;

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
        let alignment = alignment(parts.iter().flat_map(Parts::placed));
        let memory = self.memory(words.len() * 4, false)?;
        let bytes = bytemuck::cast_slice(&words);
        self.lock().recorder.copy_in(&self.device, &memory.buffer, 0, bytes)?;
        let experts: Vec<MlpWeights> = experts.iter().copied().cloned().collect();
        let held = ACT_BYTES_MAX / 4 / experts.first().map_or(1, |e| e.gate.rows().max(1));
        // Tiles of four are a dimension of a dispatch, and each expert may leave one partly empty.
        let parts_max = held.saturating_sub(1).min(2 * GROUPS_MAX as usize);
        ExpertTable::new(experts, parts_max, Box::new(Lookup { groups, alignment, words: memory }))
    }

    pub(super) fn look_up(
        &self,
        x: &Tensor,
        table: &ExpertTable,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        parts: &mut Tensor,
    ) -> Result<()> {
        let lookup = lookup_of(table, x, spec)?;
        let (experts, count) = (table.experts(), x.rows() * spec.top_k);
        let mut state = self.lock();
        let integers = experts.first().is_some_and(|e| self.multiplies_integers(e, lookup.alignment));
        if self.sorts(x.rows(), integers) {
            let ids = memory_of(routes.ids.buffer())?.binding();
            self.sorted(&mut state, x, table, (ids, spec.top_k), binding(parts)?, &mut Halved::default())?;
            return state.recorder.submit_much(&self.device);
        }
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
            let own = Parts::of(&experts[first])?;
            let group = lookup.group(&own, &experts[first], x, binding(parts)?)?;
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

    /// The experts that a router chose for many rows, sorted by the device: what [`Self::experts`] computes.
    fn sorted(
        &self,
        state: &mut State,
        x: &Tensor,
        table: &ExpertTable,
        (ids, top_k): (Binding<'_>, usize),
        out: Binding<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        let lookup: &Lookup = table.device().ok_or_else(foreign)?;
        let experts = table.experts();
        let chosen = Chosen {
            ids,
            rows: x.rows(),
            top_k,
            experts: experts.len(),
            lookup: lookup.words.binding(),
            groups: lookup.groups.len(),
        };
        for sorted in self.sort(state, &chosen)? {
            for (g, &first) in lookup.groups.iter().enumerate() {
                let own = Parts::of(&experts[first])?;
                let mut group = lookup.group(&own, &experts[first], x, out)?;
                (group.tokens, group.blocks) = (sorted.rows(), sorted.blocks());
                self.expert_tiles(state, &group, &sorted.at(g), halved)?;
            }
        }
        Ok(())
    }

    /// [`crate::Backend::routed_layer`] in three dispatches, where few rows, one format and one set of buffers allow.
    pub(super) fn whole_layer(
        &self,
        x: &Tensor,
        layer: &RoutedLayer<'_>,
        to: RoutedOutput<'_>,
    ) -> Result<()> {
        let lookup = lookup_of(layer.table, x, layer.spec)?;
        let (experts, rows, count) = (layer.table.experts(), x.rows(), x.rows() * layer.spec.top_k);
        let groups = lookup.groups.len();
        let RoutedOutput { routes, parts, shared: outputs } = to;
        let mut state = self.lock();
        let logits = self.logits(&mut state, x, layer.router)?;
        let mut jobs = vec![Job { weight: layer.router, bias: None, out: logits.binding() }];
        if let (Some((_, weight)), Some((_, gate))) = (layer.shared, &outputs) {
            jobs.push(Job { weight, bias: None, out: binding(gate)? });
        }
        let mut halved = Halved::default();
        self.products(&mut state, x, &jobs, &mut halved)?;
        let integers = experts.first().is_some_and(|e| self.multiplies_integers(e, lookup.alignment));
        if self.sorts(rows, integers) {
            self.pick(&mut state, logits.binding(), [rows, experts.len()], layer.spec, routes, None)?;
            let chosen = (memory_of(routes.ids.buffer())?.binding(), layer.spec.top_k);
            self.sorted(&mut state, x, layer.table, chosen, binding(parts)?, &mut halved)?;
            state.recorder.submit_much(&self.device)?;
            drop(state);
            return match (layer.shared, outputs) {
                (Some((weights, _)), Some((output, _))) => self.dense_mlp(x, weights, output),
                _ => Ok(()),
            };
        }
        let tiles = self.scratch(&mut state, "tiles", count * (groups * TILE_WORDS + 2) * 4)?;
        let ranks = rows <= RANKED_ROWS_MAX
            && experts.len() <= RANKED_MOST
            && self.device.bindings_max >= BINDINGS_MAX;
        if !ranks {
            let made = (lookup.words.binding(), groups, tiles.binding());
            self.pick(&mut state, logits.binding(), [rows, experts.len()], layer.spec, routes, Some(made))?;
        }
        let shared_parts = layer.shared.map(|(weights, _)| Parts::of(weights)).transpose()?;
        let mut shared_done = false;
        for (g, &first) in lookup.groups.iter().enumerate() {
            let own = Parts::of(&experts[first])?;
            let mut group = lookup.group(&own, &experts[first], x, binding(parts)?)?;
            let (ids, weights) = (memory_of(routes.ids.buffer())?.binding(), binding(&routes.weights)?);
            group.routed = ranks.then(|| Routed {
                bindings: [logits.binding(), lookup.words.binding(), ids, weights],
                lookup_at: (g * experts.len() * LOOKUP_WORDS) as u32,
                experts: experts.len() as u32,
                spec: layer.spec,
            });
            if let (false, Some((weights, _)), Some(shared), Some((output, _))) =
                (shared_done, layer.shared, &shared_parts, &outputs)
                && lookup.takes(&own, &experts[first], shared, weights)
            {
                group.shared = Some((shared, binding(output)?));
                shared_done = true;
            }
            let table = TableAt {
                buffer: tiles.binding(),
                tiles_at: (g * count * TILE_WORDS) as u32,
                entries_at: (groups * count * TILE_WORDS) as u32,
                tiles: count as u32,
                entries: count,
            };
            self.expert_rows(&mut state, &group, &table)?;
        }
        state.recorder.submit_much(&self.device)?;
        drop(state);
        match (layer.shared, outputs) {
            (Some((weights, _)), Some((output, _))) if !shared_done => self.dense_mlp(x, weights, output),
            _ => Ok(()),
        }
    }
}

/// What this backend put into a table, if x is not too much for it.
fn lookup_of<'a>(table: &'a ExpertTable, x: &Tensor, spec: &RouteSpec) -> Result<&'a Lookup> {
    if x.rows() * spec.top_k > table.parts_max() {
        return Err(Error::invalid(format!("routed_mlp: {} rows are too many", x.rows())));
    }
    table.device().ok_or_else(foreign)
}

fn foreign() -> Error {
    Error::invalid("routed_mlp: this table is of another backend")
}

impl Lookup {
    /// The passes over the experts that share buffers with `weights`, whose parts are `own`.
    fn group<'a>(
        &self,
        own: &'a Parts<'a>,
        weights: &MlpWeights,
        x: &'a Tensor,
        out: Binding<'a>,
    ) -> Result<Group<'a>> {
        Ok(Group {
            parts: own,
            x: binding(x)?,
            out,
            rows: x.rows(),
            hidden: weights.gate.cols(),
            intermediate: weights.gate.rows(),
            tokens: 1,
            blocks: false,
            alignment: self.alignment,
            shared: None,
            routed: None,
        })
    }

    /// Whether the pipeline of a group serves a shared expert too.
    fn takes(&self, own: &Parts<'_>, expert: &MlpWeights, shared: &Parts<'_>, weights: &MlpWeights) -> bool {
        let same_shape =
            expert.gate.rows() == weights.gate.rows() && expert.gate.cols() == weights.gate.cols();
        // It must be loadable like the experts, and multiplied like them when it is alone: the order of its sums must
        // not depend on who else is there.
        let alone = alignment(shared.placed());
        let in_steps_of_32 = |format, alignment| source::wide(format, alignment) != Wide::Not;
        let same_steps =
            own.formats.iter().all(|&f| in_steps_of_32(f, alone) == in_steps_of_32(f, self.alignment));
        same_shape && same_steps && alone >= self.alignment.min(16) && own.formats == shared.formats
    }
}
