//! Who has which page, slot and snapshot. Sequences give theirs back when they end, whatever a step is doing meanwhile.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, Result};
use kernels::Block;
use kernels::ops::PAGE;

/// What is free.
#[derive(Debug)]
struct Free {
    /// Pages that have memory; the lowest are taken first, so that the highest may lose theirs.
    pages: BTreeSet<u32>,
    /// Pages without memory.
    without_memory: BTreeSet<u32>,
    slots: Vec<u32>,
    /// Memory of snapshots that are gone, of each recurrent layer.
    snapshots: Vec<SnapshotLayers>,
    /// Snapshots that may still be made besides.
    unmade_snapshots: usize,
}

/// Of the device, as the states themselves: of each layer that is recurrent.
pub(super) type SnapshotLayers = Vec<Option<[Block; 2]>>;

/// The pages, slots and snapshots of a model's states.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    free: Arc<Mutex<Free>>,
    /// Pages that always have memory, up to those that there may be.
    pages: Range<usize>,
    /// Positions that a sequence may have.
    pub(super) context: usize,
    /// Sequences that there is room for.
    pub(super) sequences: usize,
    /// Whether a sequence that goes back needs a snapshot: some layer cannot simply forget.
    pub(crate) recurrent: bool,
    /// Snapshots besides one for each sequence.
    pub(super) kept_snapshots: usize,
}

/// A page of keys and values of every attention layer. Clones share it; it is free when the last of them is gone.
#[derive(Clone, Debug)]
pub(crate) struct Page(Arc<PageOwner>);

#[derive(Debug)]
struct PageOwner {
    id: u32,
    /// Positions that somebody has written, or is about to: whoever shares the page goes on here without a copy, if nobody
    /// else has.
    written: AtomicUsize,
    ledger: Ledger,
}

/// A recurrent state of every such layer.
#[derive(Debug)]
pub(crate) struct Slot {
    id: u32,
    ledger: Ledger,
}

/// A copy of one sequence's recurrent states, whose memory is used again when it is gone.
#[derive(Debug)]
pub(crate) struct SnapshotMemory {
    pub(super) layers: SnapshotLayers,
    ledger: Ledger,
}

impl Ledger {
    /// All of `pages.end` pages, of which the first `pages.start` always have memory, and `slots` slots are free; there may
    /// be `snapshots` snapshots.
    pub(super) fn new(
        pages: Range<usize>,
        slots: usize,
        snapshots: usize,
        context: usize,
        recurrent: bool,
    ) -> Self {
        let free = Free {
            pages: (0..pages.start as u32).collect(),
            without_memory: (pages.start as u32..pages.end as u32).collect(),
            slots: (0..slots as u32).rev().collect(),
            snapshots: Vec::new(),
            unmade_snapshots: snapshots,
        };
        let kept_snapshots = snapshots.saturating_sub(slots);
        Self { free: Arc::new(Mutex::new(free)), pages, context, sequences: slots, recurrent, kept_snapshots }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        // Lists of what is free are whole at any time.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages and slots that are free.
    pub(crate) fn free(&self) -> (usize, usize) {
        let free = self.lock();
        (free.pages.len() + free.without_memory.len(), free.slots.len())
    }

    /// Pages that have memory besides those that always have.
    pub(crate) fn more_pages(&self) -> usize {
        self.pages.len() - self.lock().without_memory.len()
    }

    /// Pages that may yet get memory.
    pub(crate) fn pages_without_memory(&self) -> usize {
        self.lock().without_memory.len()
    }

    /// Pages that somebody has.
    pub(super) fn pages_in_use(&self) -> usize {
        let free = self.lock();
        self.pages.end - free.pages.len() - free.without_memory.len()
    }

    /// So many pages more may be used.
    pub(super) fn add_pages(&self, count: usize) {
        let free = &mut *self.lock();
        free.pages.extend((0..count).map_while(|_| free.without_memory.pop_first()));
    }

    /// Up to so many free pages may not be used any more: those.
    pub(super) fn remove_pages(&self, count: usize) -> Vec<u32> {
        let free = &mut *self.lock();
        let first = self.pages.start as u32;
        let removed: Vec<u32> = free.pages.range(first..).rev().take(count).copied().collect();
        for page in &removed {
            free.pages.remove(page);
            free.without_memory.insert(*page);
        }
        removed
    }

    /// A free page.
    pub(super) fn page(&self) -> Option<Page> {
        let id = self.lock().pages.pop_first()?;
        Some(Page(Arc::new(PageOwner { id, written: AtomicUsize::new(0), ledger: self.clone() })))
    }

    /// Memory for a snapshot: used again, or made by `make`.
    pub(super) fn snapshot(
        &self,
        make: impl FnOnce() -> Result<SnapshotLayers>,
    ) -> Result<Option<SnapshotMemory>> {
        let found = {
            let mut free = self.lock();
            match free.snapshots.pop() {
                Some(layers) => Some(layers),
                None if free.unmade_snapshots == 0 => return Ok(None),
                None => {
                    free.unmade_snapshots -= 1;
                    None
                }
            }
        };
        let layers = match found.map_or_else(make, Ok) {
            Ok(layers) => layers,
            Err(e) => {
                self.lock().unmade_snapshots += 1;
                return Err(e);
            }
        };
        Ok(Some(SnapshotMemory { layers, ledger: self.clone() }))
    }

    /// A free slot.
    ///
    /// # Errors
    /// `Memory` when there is none.
    pub(super) fn slot(&self) -> Result<Slot> {
        let id = self.lock().slots.pop();
        let id = id.ok_or_else(|| {
            Error::memory(format!(
                "{} sequences live, and the budget has no room for the state of another: end one, open the model for \
                 more of them, or give more memory",
                self.sequences
            ))
        })?;
        Ok(Slot { id, ledger: self.clone() })
    }
}

impl Page {
    pub(super) fn id(&self) -> u32 {
        self.0.id
    }

    /// How many have it.
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether another sequence has it too, or a kept beginning.
    pub(super) fn is_shared(&self) -> bool {
        self.holders() > 1
    }

    /// Positions of it that somebody has written.
    pub(super) fn written(&self) -> usize {
        self.0.written.load(Ordering::Relaxed)
    }

    /// Says that its first so many positions are written; under the lock of the step.
    pub(super) fn set_written(&self, positions: usize) {
        self.0.written.store(positions.min(PAGE), Ordering::Relaxed);
    }
}

impl Slot {
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for PageOwner {
    fn drop(&mut self) {
        self.ledger.lock().pages.insert(self.id);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.ledger.lock().slots.push(self.id);
    }
}

impl Drop for SnapshotMemory {
    fn drop(&mut self) {
        let layers = std::mem::take(&mut self.layers);
        self.ledger.lock().snapshots.push(layers);
    }
}
