//! The step of the next token, recorded before that token is known, most often while a device is busy with the one before.
//!
//! Where a device looks up experts itself it is asked nothing between layers, and what it is told depends on a token in
//! nothing but its id: positions are known, and all that earlier tokens left is in the device's memory. So the host has the
//! next step ready when the logits come that say which token it is for.

use std::sync::Arc;

use files::Result;
use kernels::Backend;
use kernels::ops::Recorded;

use crate::scratch::Activation;

/// What the step before left to the one that has the turn.
#[derive(Default)]
pub(crate) struct Turn {
    /// Whose step was the last: sessions that alternate have no use for steps recorded ahead.
    last: Option<Arc<()>>,
    ahead: Option<Ahead>,
}

/// A step of one token of the last session, which waits for its token.
pub(crate) struct Ahead {
    /// Where in the sequence.
    pub(crate) position: usize,
    /// Up to the logits.
    pub(crate) recorded: Recorded,
    /// `[1, vocab]`, once it has run.
    pub(crate) logits: Activation,
}

impl Turn {
    /// Begins a step of a session: what was recorded for it, if that is of this position, and whether its step was the last.
    pub(crate) fn begin(&mut self, session: &Arc<()>, position: usize) -> (Option<Ahead>, bool) {
        let again = self.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, session));
        self.last = Some(session.clone());
        (self.ahead.take().filter(|ahead| again && ahead.position == position), again)
    }

    /// Leaves a step for the session's next one.
    pub(crate) fn leave(&mut self, ahead: Option<Ahead>) {
        self.ahead = ahead;
    }

    /// Forgets a session.
    pub(crate) fn end(&mut self, session: &Arc<()>) {
        if self.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, session)) {
            *self = Self::default();
        }
    }
}

impl Ahead {
    /// Starts it; its logits, which the device still computes.
    pub(crate) fn run(self, backend: &dyn Backend, token: u32) -> Result<Activation> {
        backend.run_recorded(self.recorded, &[token])?;
        Ok(self.logits)
    }
}
