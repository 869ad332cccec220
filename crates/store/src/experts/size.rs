//! How many slots a store uses, while it is in use.

use super::ExpertStore;
use crate::slots::Settling;

impl ExpertStore {
    /// How many experts fit.
    pub fn slots(&self) -> usize {
        self.pool.limit()
    }

    /// How many would fit at most: the slots that the store was made with.
    pub fn slots_max(&self) -> usize {
        self.pool.most()
    }

    /// Slots that hold an expert or are being read into; the others may have no memory behind them yet.
    pub fn slots_used(&self) -> usize {
        self.pool.used()
    }

    /// Uses `slots` slots from now on, at least one and at most those that the store was made with. When that is
    /// fewer than before, the policy evicts experts, what remains moves together, and the memory of the other
    /// slots goes back to the system; slots that are leased or being read follow with a later want. Never changes
    /// which bytes a lease has.
    pub fn resize(&mut self, slots: usize) {
        let slots = slots.clamp(1, self.pool.most());
        self.collect();
        self.pool.set_limit(slots);
        self.policy.resize(slots);
        self.settle();
    }

    /// Waits until the memory of all slots above the limit is the system's; false where leases hold some.
    pub fn finish_resize(&mut self) -> bool {
        self.collect();
        self.settle();
        while self.pool.is_unsettled() {
            // Of the slots that are left, reads have some.
            let Some(completion) = self.inbox.wait(self.disk.as_ref()) else { return false };
            self.finish(completion);
            self.settle();
        }
        true
    }

    /// Empties the slots above the limit, as far as nobody holds them.
    pub(super) fn settle(&mut self) {
        while let Settling::NeedsRoom = self.pool.settle() {
            if !self.give_up(&|_, _| true) {
                return;
            }
        }
    }
}
