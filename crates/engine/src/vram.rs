//! Slots in the memory of a device of its own: a cache of experts beside the store's.
//!
//! The store's slots are in the host's memory, as many as that has room for; these are in the device's, as many as that
//! has room for. An expert is copied here when it is used, and the host's slot is then free for another one. An expert
//! that is here is not asked of the store, whose policy forgets it in time: so the two hold different experts for the
//! most part. Nobody need be told when a slot of the store gets other bytes, since those of an expert never change.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use files::{Error, Result};
use kernels::{Backend, Buffer};
use store::policy::Policy;
use store::{ExpertId, ExpertKey, ExpertMask, LayerId, Lease};

/// How a device's slots lie in buffers.
pub(crate) struct Cut {
    /// Slots of every buffer but the last.
    pub(crate) most: usize,
    slots: usize,
    slot_bytes: usize,
}

impl Cut {
    /// `slots` slots in as few buffers as the device allows. A buffer holds a multiple of `layer` slots if it holds as
    /// many, so that the experts of a layer that has its own slots are in one.
    pub(crate) fn new(backend: &dyn Backend, slots: usize, slot_bytes: usize, layer: usize) -> Result<Self> {
        let limit = backend.info().buffer_bytes_max;
        let most = limit / slot_bytes;
        if most == 0 {
            return Err(Error::memory(format!(
                "an expert slot of {slot_bytes} bytes exceeds the device's buffer limit of {limit}"
            )));
        }
        let most = if (1..=most).contains(&layer) { most / layer * layer } else { most };
        Ok(Self { most, slots, slot_bytes })
    }

    /// The bytes of each buffer.
    pub(crate) fn bytes(&self) -> impl Iterator<Item = usize> {
        let &Self { most, slots, slot_bytes } = self;
        (0..slots).step_by(most).map(move |first| most.min(slots - first) * slot_bytes)
    }
}

/// The slots.
pub(crate) struct DeviceSlots {
    buffers: Vec<Buffer>,
    cut: Cut,
    /// Where everything fits: the slot of each layer's first expert.
    homes: Option<Vec<usize>>,
    state: Mutex<State>,
}

struct State {
    free: Vec<usize>,
    held: HashMap<ExpertKey, Arc<Placed>>,
    policy: Box<dyn Policy>,
}

/// An expert in a device's slot. It stays there while anybody but its [`DeviceSlots`] holds this.
pub(crate) struct Placed {
    pub(crate) expert: ExpertId,
    /// The buffer that the slot is in.
    pub(crate) buffer: Buffer,
    /// The expert's parts in it, in the order of its layout.
    pub(crate) parts: Vec<Range<usize>>,
    slot: usize,
}

impl DeviceSlots {
    /// Slots of a device for a model that has `experts` in each layer.
    pub(crate) fn new(
        backend: &dyn Backend,
        cut: Cut,
        experts: &[u32],
        policy: Box<dyn Policy>,
    ) -> Result<Self> {
        let mut total = 0;
        let mut first_of = |&experts: &u32| {
            let first = total;
            total += experts as usize;
            first
        };
        let firsts: Vec<usize> = experts.iter().map(&mut first_of).collect();
        let buffers = cut.bytes().map(|bytes| Ok(backend.alloc(bytes)?.freeze().buffer().clone()));
        Ok(Self {
            buffers: buffers.collect::<Result<_>>()?,
            homes: (total <= cut.slots).then_some(firsts),
            state: Mutex::new(State {
                // The last one goes first.
                free: (0..cut.slots).rev().collect(),
                held: HashMap::new(),
                policy,
            }),
            cut,
        })
    }

    /// How many experts fit.
    pub(crate) fn slots(&self) -> usize {
        self.cut.slots
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic leaves is at worst a slot that nobody uses.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of a layer's wanted experts that are here, which stay, and the others.
    pub(crate) fn want(&self, layer: LayerId, experts: &ExpertMask) -> (Vec<Arc<Placed>>, ExpertMask) {
        let (mut state, mut here) = (self.lock(), Vec::new());
        let missing = experts.iter().filter(|&expert| {
            let key = ExpertKey { layer, expert };
            state.policy.touch(key);
            here.extend(state.held.get(&key).cloned());
            !state.held.contains_key(&key)
        });
        let missing = missing.collect();
        (here, missing)
    }

    /// Those of `experts` that are not here.
    pub(crate) fn missing(&self, layer: LayerId, experts: impl Iterator<Item = ExpertId>) -> Vec<ExpertId> {
        let state = self.lock();
        experts.filter(|&expert| !state.held.contains_key(&ExpertKey { layer, expert })).collect()
    }

    /// The experts that are here.
    pub(crate) fn held(&self) -> Vec<ExpertKey> {
        self.lock().held.keys().copied().collect()
    }

    /// All of a layer's `experts`, if all are here; they stay.
    pub(crate) fn layer(&self, layer: LayerId, experts: usize) -> Option<Vec<Arc<Placed>>> {
        let state = self.lock();
        let all = (0..experts).map(|e| ExpertKey { layer, expert: ExpertId(e as u16) });
        all.map(|key| state.held.get(&key).cloned()).collect()
    }

    /// A leased expert in a slot, copied there unless it was. An expert that no op reads whose leader is still to be
    /// submitted gives way; if all are read by such ops, these are submitted.
    pub(crate) fn put(&self, backend: &dyn Backend, lease: &Lease) -> Result<Arc<Placed>> {
        let state = &mut *self.lock();
        if let Some(placed) = state.held.get(&lease.key) {
            return Ok(placed.clone());
        }
        let home = self.home(lease.key);
        let slot = match state.room(home) {
            Some(slot) => slot,
            None => {
                // Copies that follow run after what is submitted.
                backend.submit()?;
                let full = || Error::memory(format!("all {} slots of the device are in use", self.slots()));
                state.room(home).ok_or_else(full)?
            }
        };
        let buffer = &self.buffers[slot / self.cut.most];
        let start = slot % self.cut.most * self.cut.slot_bytes;
        let (at, bytes) = lease.span();
        if let Err(error) = backend.upload(buffer, start + at, bytes) {
            state.free.push(slot);
            return Err(error);
        }
        let part = |part: &store::LeasePart| {
            let first = start + (part.offset - lease.slot_offset());
            first..first + part.bytes
        };
        let parts = lease.parts.iter().map(part).collect();
        let placed = Arc::new(Placed { expert: lease.expert, buffer: buffer.clone(), parts, slot });
        state.held.insert(lease.key, placed.clone());
        state.policy.insert(lease.key);
        Ok(placed)
    }

    fn home(&self, key: ExpertKey) -> Option<usize> {
        let first = self.homes.as_ref()?.get(key.layer.0 as usize)?;
        Some(first + key.expert.0 as usize)
    }
}

impl State {
    /// A slot without an expert, number `home` if that is one; if need be, one gives up its own.
    fn room(&mut self, home: Option<usize>) -> Option<usize> {
        if let Some(at) = home.and_then(|home| self.free.iter().rposition(|&slot| slot == home)) {
            return Some(self.free.remove(at));
        }
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let held = &self.held;
        let unused = |key: ExpertKey| held.get(&key).is_some_and(|placed| Arc::strong_count(placed) == 1);
        let victim = self.policy.evict(&unused)?;
        self.held.remove(&victim).map(|placed| placed.slot)
    }
}
