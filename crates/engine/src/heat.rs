//! What a model's experts do, for who looks on: which were chosen how often, and which are in memory. Nobody who looks waits
//! for a step, and no step waits for who looks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use store::{ExpertKey, LayerId};

use crate::bridge::Slabs;
use crate::model::Model;
use crate::pool::ExpertPool;
use crate::vram::DeviceSlots;

/// How often each expert was chosen since the model was opened, counted for each token. Experts that a GPU with room for
/// all of them looks up itself are not counted: nobody else knows which they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertHeat {
    /// Layers of the model; those without experts have a row too.
    pub layers: usize,
    /// Experts of the layer that has most.
    pub experts: usize,
    /// `[layers, experts]`
    pub uses: Vec<u64>,
}

/// What the experts' memory holds and what was read into it, as of the last layer or the last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertMemory {
    /// Wanted experts that were in memory.
    pub hits: u64,
    /// Wanted experts that had to be read.
    pub misses: u64,
    /// Bytes read from the drive for experts.
    pub read_bytes: u64,
    /// Expert slots in use.
    pub slots: usize,
    /// Whether each expert is in memory, `[layers, experts]`.
    pub held: Vec<bool>,
}

/// The counters behind both, shared by the model and its pool.
pub(crate) struct Heat {
    layers: usize,
    experts: usize,
    uses: Vec<AtomicU64>,
    /// Whether somebody wants to see the pool, which a step has.
    asked: AtomicBool,
    seen: Mutex<ExpertMemory>,
}

impl Heat {
    /// For a model with so many `experts` in each layer.
    pub(crate) fn new(experts: &[u32]) -> Self {
        let (layers, most) = (experts.len(), experts.iter().max().map_or(0, |&n| n as usize));
        let mut uses = Vec::new();
        uses.resize_with(layers * most, AtomicU64::default);
        let seen = ExpertMemory { held: vec![false; uses.len()], ..ExpertMemory::default() };
        Self { layers, experts: most, uses, asked: AtomicBool::new(false), seen: Mutex::new(seen) }
    }

    fn place(&self, key: ExpertKey) -> Option<usize> {
        let (layer, expert) = (usize::from(key.layer.0), usize::from(key.expert.0));
        (layer < self.layers && expert < self.experts).then(|| layer * self.experts + expert)
    }

    /// Counts what rows have chosen in a layer.
    pub(crate) fn count(&self, layer: LayerId, chosen: &[u32]) {
        let start = usize::from(layer.0) * self.experts;
        let Some(uses) = self.uses.get(start..start + self.experts) else { return };
        for &expert in chosen {
            if let Some(uses) = uses.get(expert as usize) {
                uses.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Shows the pool to whoever has asked. Costs a load where nobody has.
    pub(crate) fn show(&self, pool: &ExpertPool, slabs: &Slabs) {
        if self.asked.load(Ordering::Relaxed) {
            self.look_at(pool, slabs);
        }
    }

    fn look_at(&self, pool: &ExpertPool, slabs: &Slabs) {
        self.asked.store(false, Ordering::Relaxed);
        let (total, mut held) = (pool.store.stats().total(), vec![false; self.uses.len()]);
        let on_device = slabs.device.as_ref().map(DeviceSlots::held).unwrap_or_default();
        for place in pool.store.held().into_iter().chain(on_device).filter_map(|key| self.place(key)) {
            held[place] = true;
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = ExpertMemory {
            hits: total.hits,
            misses: total.misses,
            read_bytes: total.read_bytes,
            slots: pool.store.slots(),
            held,
        };
    }
}

impl Model {
    /// How often each expert was chosen. Never waits.
    pub fn expert_heat(&self) -> ExpertHeat {
        let heat = &self.heat;
        let uses = heat.uses.iter().map(|uses| uses.load(Ordering::Relaxed)).collect();
        ExpertHeat { layers: heat.layers, experts: heat.experts, uses }
    }

    /// What the experts' memory holds. Never waits: while a step runs it is what was seen last, and the step shows the next
    /// who asks what it had in a layer after this call.
    pub fn expert_memory(&self) -> ExpertMemory {
        let heat = &self.heat;
        if let Some((pool, slabs)) = self.try_pool() {
            heat.look_at(&pool, slabs);
        } else {
            heat.asked.store(true, Ordering::Relaxed);
        }
        heat.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_expert_is_not_counted() {
        let heat = Heat::new(&[2, 0, 3]);
        heat.count(LayerId(2), &[2, 0, 2, 3]);
        heat.count(LayerId(3), &[0]);
        heat.count(LayerId(0), &[1]);
        let uses: Vec<u64> = heat.uses.iter().map(|uses| uses.load(Ordering::Relaxed)).collect();
        assert_eq!(uses, [0, 1, 0, 0, 0, 0, 1, 0, 2]);
    }
}
