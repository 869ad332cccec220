//! The slots of the expert pool and the leases on them.
//!
//! A slot is empty, being read into (its window is with the disk), or ready; a ready slot is pinned while anybody
//! but the pool holds its [`Filled`]. A failed or cancelled read empties its slot again. Slots from the pool's limit
//! on are retired when they are empty: their memory goes back to the system until the limit rises.

use std::collections::HashMap;
use std::sync::Arc;

use crate::disk::Ticket;
use crate::key::{ExpertId, ExpertKey, KeyMap};
use crate::slab::{GiveBack, Window};

/// Index of a slot in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SlotId(u32);

/// The memory of a ready slot. Whoever holds a clone of the pool's `Arc` pins the content.
#[derive(Debug)]
pub(crate) struct Filled {
    key: ExpertKey,
    window: Window,
}

enum State {
    Empty(Window),
    /// The disk has the window. `kept` is false when nobody wants the bytes any more.
    Reading {
        ticket: Ticket,
        key: ExpertKey,
        kept: bool,
    },
    Ready(Arc<Filled>),
    /// Empty, above the limit, and without memory.
    Retired(Window),
    /// Between two states, inside one method.
    Moving,
}

/// What lowering the limit needs next.
pub(crate) enum Settling {
    /// Nothing: no slot above the limit holds anything that could go.
    Done,
    /// An empty slot below the limit, for an expert above it.
    NeedsRoom,
}

/// What the pool knows about an expert.
pub(crate) enum Held {
    /// Its bytes are in memory; the value pins them.
    Ready(Arc<Filled>),
    /// They are being read.
    Reading(Ticket),
}

/// All slots, and which expert is where.
pub(crate) struct SlotPool {
    states: Vec<State>,
    /// Slots below the limit that can be read into.
    empty: Vec<SlotId>,
    limit: usize,
    retired: usize,
    give_back: Option<GiveBack>,
    by_key: KeyMap<SlotId>,
    by_ticket: HashMap<Ticket, SlotId>,
}

impl SlotPool {
    /// A pool of these windows, all empty. `give_back` takes the memory of retired slots.
    pub(crate) fn new(windows: Vec<Window>, give_back: Option<GiveBack>) -> Self {
        Self {
            limit: windows.len(),
            retired: 0,
            give_back,
            // The last one goes first: reversed, so that slots fill in ascending order.
            empty: (0..windows.len() as u32).rev().map(SlotId).collect(),
            states: windows.into_iter().map(State::Empty).collect(),
            by_key: KeyMap::default(),
            by_ticket: HashMap::new(),
        }
    }

    /// How many slots may be used.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many slots there is address space for.
    pub(crate) fn most(&self) -> usize {
        self.states.len()
    }

    /// Slots that hold an expert or are being read into.
    pub(crate) fn used(&self) -> usize {
        self.states.len() - self.retired - self.empty.len()
    }

    /// The experts in memory.
    pub(crate) fn ready(&self) -> Vec<ExpertKey> {
        let key = |state: &State| if let State::Ready(filled) = state { Some(filled.key) } else { None };
        self.states.iter().filter_map(key).collect()
    }

    /// Lets only the first `limit` slots be used. Those above that still hold something need [`Self::settle`].
    pub(crate) fn set_limit(&mut self, limit: usize) {
        let limit = limit.clamp(1, self.states.len());
        self.limit = limit;
        self.empty.retain(|slot| (slot.0 as usize) < limit);
        for (i, state) in self.states.iter_mut().enumerate() {
            match std::mem::replace(state, State::Moving) {
                State::Empty(window) if i >= limit => {
                    *state = State::Retired(give_back(&mut self.give_back, window));
                    self.retired += 1;
                }
                State::Retired(window) if i < limit => {
                    *state = State::Empty(window);
                    self.retired -= 1;
                    // Beneath the others: memory that is there already is used first.
                    self.empty.insert(0, SlotId(i as u32));
                }
                other => *state = other,
            }
        }
    }

    /// Whether slots above the limit are still in use.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.states.len() - self.limit > self.retired
    }

    /// Moves unpinned experts from above the limit into empty slots below it.
    pub(crate) fn settle(&mut self) -> Settling {
        for from in self.limit..self.states.len() {
            let State::Ready(filled) = &self.states[from] else { continue };
            if Arc::strong_count(filled) > 1 {
                continue;
            }
            let Some(to) = self.empty.pop() else { return Settling::NeedsRoom };
            self.relocate(SlotId(from as u32), to);
        }
        Settling::Done
    }

    /// Copies the content of a ready, unpinned slot into an empty one, and retires it.
    fn relocate(&mut self, from: SlotId, to: SlotId) {
        let source = std::mem::replace(&mut self.states[from.0 as usize], State::Moving);
        let target = std::mem::replace(&mut self.states[to.0 as usize], State::Moving);
        match (source, target) {
            (State::Ready(filled), State::Empty(mut window)) => match Arc::try_unwrap(filled) {
                Ok(Filled { key, window: source, .. }) => {
                    window.copy_from(&source);
                    self.states[to.0 as usize] = ready(key, window);
                    self.by_key.insert(key, to);
                    self.put_empty(from, source);
                }
                Err(filled) => {
                    self.states[from.0 as usize] = State::Ready(filled);
                    self.put_empty(to, window);
                }
            },
            (source, target) => {
                self.states[from.0 as usize] = source;
                self.states[to.0 as usize] = target;
            }
        }
    }

    /// Slot `slot` holds nothing any more.
    fn put_empty(&mut self, slot: SlotId, window: Window) {
        let state = &mut self.states[slot.0 as usize];
        if (slot.0 as usize) < self.limit {
            *state = State::Empty(window);
            self.empty.push(slot);
        } else {
            *state = State::Retired(give_back(&mut self.give_back, window));
            self.retired += 1;
        }
    }

    /// Whether a read can start at once.
    pub(crate) fn has_empty(&self) -> bool {
        !self.empty.is_empty()
    }

    /// Whether and how `key` is held.
    pub(crate) fn find(&self, key: ExpertKey) -> Option<Held> {
        match &self.states[self.by_key.get(key)?.0 as usize] {
            State::Ready(filled) => Some(Held::Ready(filled.clone())),
            State::Reading { ticket, .. } => Some(Held::Reading(*ticket)),
            State::Empty(_) | State::Retired(_) | State::Moving => None,
        }
    }

    /// Gives an empty slot to `key`, number `home` if that is one: its window goes into read `ticket`. `None` when no
    /// slot is empty.
    pub(crate) fn start(&mut self, key: ExpertKey, ticket: Ticket, home: Option<u32>) -> Option<Window> {
        let at = home.and_then(|home| self.empty.iter().rposition(|slot| slot.0 == home));
        let slot = match at {
            Some(at) => self.empty.remove(at),
            None => self.empty.pop()?,
        };
        let state = &mut self.states[slot.0 as usize];
        match std::mem::replace(state, State::Moving) {
            State::Empty(window) => {
                *state = State::Reading { ticket, key, kept: true };
                self.by_key.insert(key, slot);
                self.by_ticket.insert(ticket, slot);
                Some(window)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// Gives up the bytes of a running read: its slot becomes empty when it ends, whatever its result.
    pub(crate) fn abandon(&mut self, ticket: Ticket) {
        let Some(slot) = self.by_ticket.get(&ticket) else { return };
        if let State::Reading { key, kept, .. } = &mut self.states[slot.0 as usize]
            && *kept
        {
            *kept = false;
            self.by_key.remove(*key);
        }
    }

    /// The end of a read: the slot becomes ready if its bytes are `good` and were not given up, else empty.
    /// Returns the expert, and whether it was given up.
    pub(crate) fn finish(&mut self, ticket: Ticket, window: Window, good: bool) -> Option<(ExpertKey, bool)> {
        let slot = self.by_ticket.remove(&ticket)?;
        let State::Reading { key, kept, .. } = self.states[slot.0 as usize] else { return None };
        if kept && good {
            self.states[slot.0 as usize] = ready(key, window);
        } else {
            self.put_empty(slot, window);
            if kept {
                self.by_key.remove(key);
            }
        }
        Some((key, !kept))
    }

    /// Whether `key` is ready and nobody pins it. Only the pool hands out pins, so a yes stays true.
    pub(crate) fn evictable(&self, key: ExpertKey) -> bool {
        let state = self.by_key.get(key).map(|slot| &self.states[slot.0 as usize]);
        matches!(state, Some(State::Ready(filled)) if Arc::strong_count(filled) == 1)
    }

    /// Empties the slot of an evictable expert; false if it is not evictable.
    pub(crate) fn evict(&mut self, key: ExpertKey) -> bool {
        let Some(&slot) = self.by_key.get(key) else { return false };
        let state = &mut self.states[slot.0 as usize];
        match std::mem::replace(state, State::Moving) {
            // `try_unwrap` orders the last holder's reads of the bytes before whatever is written to them next.
            State::Ready(filled) => match Arc::try_unwrap(filled) {
                Ok(filled) => {
                    self.put_empty(slot, filled.window);
                    self.by_key.remove(key);
                    true
                }
                Err(filled) => {
                    *state = State::Ready(filled);
                    false
                }
            },
            other => {
                *state = other;
                false
            }
        }
    }
}

/// A slot that has just got these bytes.
fn ready(key: ExpertKey, window: Window) -> State {
    State::Ready(Arc::new(Filled { key, window }))
}

/// Lets the owner of the memory give it back to the system; the pool alone holds the window meanwhile.
fn give_back(hook: &mut Option<GiveBack>, window: Window) -> Window {
    if let Some(hook) = hook {
        hook(window.slab(), window.offset()..window.offset() + window.bytes());
    }
    window
}

/// The bytes of one part of a leased expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePart {
    /// First byte, within the slab; at the alignment that it has in the file.
    pub offset: usize,
    /// Length.
    pub bytes: usize,
}

/// The right to read one expert's bytes. Dropping it, on any thread, lets the store reuse the slot.
#[derive(Debug)]
pub struct Lease {
    /// The expert.
    pub expert: ExpertId,
    /// The expert with its layer.
    pub key: ExpertKey,
    /// Index of the slab that holds it, among those the store was given.
    pub slab: usize,
    /// Its parts, in the order of its [`crate::ExpertLayout`].
    pub parts: Vec<LeasePart>,
    filled: Arc<Filled>,
}

impl Lease {
    /// `parts` are offsets within the slot, and bytes.
    pub(crate) fn new(
        key: ExpertKey,
        filled: Arc<Filled>,
        parts: impl Iterator<Item = (usize, usize)>,
    ) -> Self {
        let (slab, base) = (filled.window.slab(), filled.window.offset());
        let parts = parts.map(|(at, bytes)| LeasePart { offset: base + at, bytes }).collect();
        Self { expert: key.expert, key, slab, parts, filled }
    }

    /// Where its slot begins in the slab.
    pub fn slot_offset(&self) -> usize {
        self.filled.window.offset()
    }

    /// All of its parts and what lies between them, in whole words of 4 bytes: where they begin in the slot, and the
    /// bytes.
    pub fn span(&self) -> (usize, &[u8]) {
        let slot = self.slot_offset();
        let starts = self.parts.iter().map(|part| part.offset - slot);
        let ends = self.parts.iter().map(|part| part.offset - slot + part.bytes);
        let (start, end) = (starts.min().unwrap_or(0) & !3, ends.max().unwrap_or(0).next_multiple_of(4));
        (start, self.filled.window.as_slice().get(start..end).unwrap_or_default())
    }

    /// The bytes of one part; empty for a part that does not exist.
    pub fn bytes(&self, part: usize) -> &[u8] {
        let window = &self.filled.window;
        let Some(part) = self.parts.get(part) else { return &[] };
        let start = part.offset.wrapping_sub(window.offset());
        window.as_slice().get(start..start.wrapping_add(part.bytes)).unwrap_or_default()
    }
}
