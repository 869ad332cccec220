//! Reads that nobody waits for: guesses, and what will be wanted for certain.

use super::ExpertStore;
use crate::disk::Priority;
use crate::key::{ExpertId, ExpertKey, LayerId};
use crate::mask::ExpertMask;

impl ExpertStore {
    /// Says what will probably be wanted soon, the likeliest first. Starts reads behind all demand reads, in at most a
    /// quarter of the slots, and only while nothing wanted waits for a slot; the rest of the hint is dropped. Never
    /// fails: unknown experts are ignored, and a read that fails is tried again when it is wanted.
    pub fn hint(&mut self, layer: LayerId, experts: impl IntoIterator<Item = ExpertId>) {
        self.collect();
        self.start_queued();
        let experts: Vec<_> = experts.into_iter().collect();
        let named: ExpertMask = experts.iter().copied().collect();
        for expert in experts {
            let key = ExpertKey { layer, expert };
            let known = self.layout(key).is_some() && self.pool.find(key).is_none();
            if !known || !self.want.queued.is_empty() {
                continue;
            }
            let room = self.hints_on_their_way() < self.pool.limit() / 4;
            let named = |k: ExpertKey| k.layer == layer && named.contains(k.expert);
            if !room || !self.make_room(|coming, key| !is_coming(coming, key) && !named(key)) {
                return;
            }
            self.speculate(key);
        }
    }

    /// Says what will be wanted for certain after the current want, in this order; replaces what was said before.
    /// [`read_ahead`](Self::read_ahead) reads it, and what is here of it is the last to be evicted.
    pub fn set_coming(&mut self, coming: Vec<(LayerId, ExpertMask)>) {
        self.coming = coming;
    }

    /// Starts as many reads of what is coming as have room, behind all demand reads and in at most half of the slots. Worth
    /// calling whenever slots may have come free.
    pub fn read_ahead(&mut self) {
        self.collect();
        self.start_queued();
        let coming = std::mem::take(&mut self.coming);
        let keys = coming
            .iter()
            .flat_map(|(layer, experts)| experts.iter().map(|expert| ExpertKey { layer: *layer, expert }));
        for key in keys {
            if self.layout(key).is_none() || self.pool.find(key).is_some() {
                continue;
            }
            let room = self.want.queued.is_empty() && self.hints_on_their_way() < self.pool.limit() / 2;
            if !room || !self.make_room(|_, key| !is_coming(&coming, key)) || !self.speculate(key) {
                break;
            }
        }
        self.coming = coming;
    }

    pub(super) fn hints_on_their_way(&self) -> usize {
        self.hinted.values().flatten().count()
    }

    /// Starts a speculative read into an empty slot, if there is one.
    pub(super) fn speculate(&mut self, key: ExpertKey) -> bool {
        let Some((ticket, request)) = self.request(key, Priority::Speculative) else { return false };
        self.hinted.insert(key, Some(ticket));
        self.stats.layers[key.layer.0 as usize].hinted += 1;
        self.disk.submit(vec![request]);
        true
    }
}

pub(super) fn is_coming(coming: &[(LayerId, ExpertMask)], key: ExpertKey) -> bool {
    coming.iter().any(|(layer, experts)| *layer == key.layer && experts.contains(key.expert))
}
