//! The step of the next token, recorded while a device is busy with the one before.
//!
//! Where a device looks up experts itself it is asked nothing between layers, and what it is told depends on a token in
//! nothing but its id: positions are known, and all that earlier tokens left is in the device's memory. So the host has the
//! next step ready when the logits come that say which token it is for.

use std::sync::Arc;

use files::Result;
use kernels::Backend;
use kernels::ops::Recorded;

use crate::pool::ExpertPool;
use crate::scratch::Activation;

/// A step of one token that waits for its token.
pub(crate) struct Ahead {
    /// Whose token.
    pub(crate) session: Arc<()>,
    /// Where in the sequence.
    pub(crate) position: usize,
    /// [`ExpertPool::epoch`] before it was recorded.
    pub(crate) epoch: u64,
    /// Up to the logits.
    pub(crate) recorded: Recorded,
    /// `[1, vocab]`, once it has run.
    pub(crate) logits: Activation,
}

impl Ahead {
    /// Whether it is the step at `position` of a session, and its experts are still where they were.
    pub(crate) fn is_for(&self, session: &Arc<()>, position: usize, pool: Option<&ExpertPool>) -> bool {
        let epoch = pool.map_or(0, ExpertPool::epoch);
        Arc::ptr_eq(&self.session, session) && self.position == position && self.epoch == epoch
    }

    /// Starts it; its logits, which the device still computes.
    pub(crate) fn run(self, backend: &dyn Backend, token: u32) -> Result<Activation> {
        backend.run_recorded(self.recorded, &[token])?;
        Ok(self.logits)
    }
}
