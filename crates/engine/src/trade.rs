//! Pages of sequences and expert slots trade memory under one ceiling: what no sequence needs now holds experts.
//!
//! A page that is needed and not free takes the place of what is kept for others, then of expert slots down to the plan's
//! fewest; only then it is short. When sequences end, slots come back.

use files::Result;
use store::plan::Plan;

use crate::pool::ExpertPool;
use crate::state::{Room, StatePool};

/// Pages move in so many parts of all that may: often enough to waste little, seldom enough to cost nothing.
const PARTS: usize = 16;

/// How pages and slots share memory.
#[derive(Clone, Debug)]
pub(crate) struct Trade {
    plan: Plan,
    page_bytes: u64,
    /// Pages that move at a time.
    part: usize,
}

impl Trade {
    /// For what the plan leaves to states, and the `room` that they have there.
    pub(crate) fn new(plan: &Plan, room: &Room) -> Self {
        Self { plan: *plan, page_bytes: room.page_bytes, part: room.pages.len().div_ceil(PARTS).max(1) }
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

    /// Expert slots beside `more` pages.
    fn slots(&self, more: usize) -> usize {
        self.plan.slots_beside(more as u64 * self.page_bytes) as usize
    }
}
