//! Who has which page and which slot. Sequences give theirs back when they end, whatever a step is doing meanwhile.

use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, Result};

/// What is free.
#[derive(Debug)]
struct Free {
    pages: Vec<u32>,
    slots: Vec<u32>,
}

/// The pages and slots of a model's states.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    free: Arc<Mutex<Free>>,
    /// Positions that a sequence may have.
    pub(super) context: usize,
    /// Sequences that there is room for.
    sequences: usize,
    /// Whether a sequence that goes back needs a snapshot: some layer cannot simply forget.
    pub(super) recurrent: bool,
}

/// A page of keys and values of every attention layer. Clones share it; it is free when the last of them is gone.
#[derive(Clone, Debug)]
pub(crate) struct Page(Arc<PageOwner>);

#[derive(Debug)]
struct PageOwner {
    id: u32,
    ledger: Ledger,
}

/// A recurrent state of every such layer.
#[derive(Debug)]
pub(crate) struct Slot {
    id: u32,
    ledger: Ledger,
}

impl Ledger {
    /// All of `pages` pages and `slots` slots are free; the lowest are taken first.
    pub(super) fn new(pages: usize, slots: usize, context: usize, recurrent: bool) -> Self {
        let all = |count: usize| (0..count as u32).rev().collect();
        let free = Arc::new(Mutex::new(Free { pages: all(pages), slots: all(slots) }));
        Self { free, context, sequences: slots, recurrent }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        // Lists of what is free are whole at any time.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages and slots that are free.
    pub(crate) fn free(&self) -> (usize, usize) {
        let free = self.lock();
        (free.pages.len(), free.slots.len())
    }

    /// A free page.
    ///
    /// # Errors
    /// `Memory` when there is none.
    pub(super) fn page(&self) -> Result<Page> {
        let id = self.lock().pages.pop();
        let id = id.ok_or_else(|| Error::memory("all pages of keys and values are in use"))?;
        Ok(Page(Arc::new(PageOwner { id, ledger: self.clone() })))
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

    /// Whether another sequence has it too.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Slot {
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for PageOwner {
    fn drop(&mut self) {
        self.ledger.lock().pages.push(self.id);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.ledger.lock().slots.push(self.id);
    }
}
