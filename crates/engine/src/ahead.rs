//! The step of the next tokens, recorded before they are known, most often while a device is busy with the step before.
//!
//! Where a device looks up experts itself it is asked nothing between layers, and what it is told depends on tokens in
//! nothing but their ids: positions are known, and all that earlier tokens left is in the device's memory. So the host has
//! the next step ready when the logits come that say which tokens it is for.

use files::Result;
use kernels::Backend;
use kernels::ops::{Recorded, Segment};

use crate::scratch::Activation;
use crate::sequence::SequenceId;
use crate::state::StatePool;

/// Whose tokens a step has, one each, and at which positions.
pub(crate) type Places = Vec<(SequenceId, usize)>;

/// What one step uses and leaves to the next: held while a step runs.
pub(crate) struct StepLock {
    /// What all sequences remember.
    pub(crate) states: StatePool,
    /// Where the last step left its sequences: those that alternate have no use for steps recorded ahead.
    last: Places,
    ahead: Option<Ahead>,
}

/// A step of one token of each of some sequences, which waits for the tokens.
pub(crate) struct Ahead {
    /// Where the sequences' states were when it was recorded: they may be elsewhere now.
    pub(crate) segments: Vec<Segment>,
    /// Up to the logits.
    pub(crate) recorded: Recorded,
    /// `[sequences, vocab]`, once it has run, and the greatest of each if somebody asks for that.
    pub(crate) logits: (Activation, Option<Activation>),
}

impl StepLock {
    /// Nothing has run yet.
    pub(crate) fn new(states: StatePool) -> Self {
        Self { states, last: Vec::new(), ahead: None }
    }

    /// Begins a step at `places`: what was recorded for it, if anything, and whether it goes on where the last one ended.
    pub(crate) fn begin(&mut self, places: &Places) -> (Option<Ahead>, bool) {
        let again = !places.is_empty() && self.last == *places;
        self.last.clear();
        (self.ahead.take().filter(|_| again), again)
    }

    /// Ends a step whose sequences go on at `places`, with what was recorded for that.
    pub(crate) fn end(&mut self, places: Places, ahead: Option<Ahead>) {
        (self.last, self.ahead) = (places, ahead);
    }

    /// Forgets a sequence that has ended: what was recorded for it would keep memory.
    pub(crate) fn forget(&mut self, id: &SequenceId) {
        if self.last.iter().any(|(other, _)| other == id) {
            self.last.clear();
            self.ahead = None;
        }
    }
}

impl Ahead {
    /// Starts it; its logits, which the device still computes.
    pub(crate) fn run(
        self,
        backend: &dyn Backend,
        tokens: &[u32],
    ) -> Result<(Activation, Option<Activation>)> {
        backend.run_recorded(self.recorded, tokens)?;
        Ok(self.logits)
    }
}
