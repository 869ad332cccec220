//! Pages of sequences, activations of long prompts and expert slots trade memory under one ceiling: what nobody needs now holds
//! experts.
//!
//! A page that is needed and not free takes the place of what is kept for others, then of expert slots down to the plan's
//! fewest; only then it is short. When sequences end, slots come back. A chunk of a long prompt borrows memory of slots for the
//! rows that are more than one block; the next short step gives it back.

use std::sync::atomic::{AtomicBool, Ordering};

use files::{Error, Result};
use store::plan::Plan;

use crate::pool::ExpertPool;
use crate::scratch::Scratch;
use crate::state::{Room, StatePool};

/// Pages move in so many parts of all that may: often enough to waste little, seldom enough to cost nothing.
const PARTS: usize = 16;

/// How pages and slots share memory.
#[derive(Debug)]
pub(crate) struct Trade {
    plan: Plan,
    page_bytes: u64,
    /// Pages that move at a time.
    part: usize,
    /// A step of more rows borrows.
    rows_max: usize,
    /// Whether the plan's `lent_bytes` are lent; changed by who has the step.
    is_lent: AtomicBool,
}

impl Trade {
    /// For what the plan leaves to states, the `room` that they have there, and steps of `rows_max` rows that borrow nothing.
    pub(crate) fn new(plan: &Plan, room: &Room, rows_max: usize) -> Self {
        let part = room.pages.len().div_ceil(PARTS).max(1);
        Self { plan: *plan, page_bytes: room.page_bytes, part, rows_max, is_lent: AtomicBool::new(false) }
    }

    /// Lends a step of `rows` rows what it needs besides, or takes it back.
    ///
    /// # Errors
    /// `Memory` when leases hold the slots.
    pub(crate) fn lend(
        &self,
        rows: usize,
        states: &StatePool,
        pool: Option<&mut ExpertPool>,
        scratch: &Scratch,
    ) -> Result<()> {
        let (lends, lent) = (rows > self.rows_max, self.is_lent.load(Ordering::Acquire));
        let Some(pool) = pool.filter(|_| self.plan.lent_bytes > 0 && lends != lent) else { return Ok(()) };
        let bytes = |lent| self.plan.scratch_bytes + if lent { self.plan.lent_bytes } else { 0 };
        if !lends && !scratch.set_limit(bytes(false) as usize) {
            return Ok(()); // somebody still has a long prompt's rows
        }
        self.is_lent.store(lends, Ordering::Release);
        let given = pool.allow(self.slots(states.ledger().more_pages()));
        if lends && !given {
            self.is_lent.store(false, Ordering::Release);
            pool.allow(self.slots(states.ledger().more_pages()));
            return Err(Error::memory("expert slots are held that a long prompt needs"));
        }
        scratch.set_limit(bytes(lends) as usize);
        Ok(())
    }

    /// Takes memory of expert slots for pages; false when they have all that they may, or a step holds the slots.
    pub(crate) fn add_pages(&self, states: &mut StatePool, pool: Option<&mut ExpertPool>) -> bool {
        let (Some(pool), more) = (pool, states.ledger().more_pages()) else { return false };
        let part = self.part.min(states.ledger().pages_without_memory());
        if part == 0 {
            return false;
        }
        let given = pool.allow(self.slots(more + part));
        match given {
            true => states.add_pages(part),
            false => drop(pool.allow(self.slots(more))),
        }
        given
    }

    /// Gives expert slots the memory that no living sequence needs any more.
    ///
    /// # Errors
    /// `Device` when the backend refuses.
    pub(crate) fn remove_pages(&self, states: &mut StatePool, pool: Option<&mut ExpertPool>) -> Result<()> {
        // One part stays for what comes next.
        let spare = states.spare_pages() / self.part * self.part;
        if let Some(pool) = pool
            && spare > self.part
            && states.remove_pages(spare - self.part)? > 0
        {
            pool.allow(self.slots(states.ledger().more_pages()));
        }
        Ok(())
    }

    /// Expert slots beside `more` pages, and what is lent.
    fn slots(&self, more: usize) -> usize {
        let lent_bytes = if self.is_lent.load(Ordering::Acquire) { self.plan.lent_bytes } else { 0 };
        self.plan.slots_beside(more as u64 * self.page_bytes + lent_bytes) as usize
    }
}
