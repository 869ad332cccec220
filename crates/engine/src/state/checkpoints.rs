//! The snapshots that a sequence of a recurrent model keeps to go back to.

use files::Result;

use super::{SequenceState, Snapshot, StatePool};

/// Ends of prompts that are remembered.
const ENDS: usize = 2;

/// A few snapshots: the ends of the last prompts, where the next one is likely to differ, and the start of the
/// chunk that is being fed, where a failed step goes back to. None is held twice, and none of the empty state.
#[derive(Default)]
pub(crate) struct Checkpoints {
    /// By rising position.
    ends: Vec<Snapshot>,
    rolling: Option<Snapshot>,
}

impl Checkpoints {
    /// The most snapshots that are held at once, also while one is being taken.
    pub(crate) const MOST: usize = ENDS + 1;

    /// Holds the state here until the next call, in the memory of the one before.
    pub(crate) fn roll(&mut self, states: &StatePool, state: &SequenceState) -> Result<()> {
        if self.holds(state.position()) {
            return Ok(());
        }
        let old = self.rolling.take();
        self.rolling = Some(state.snapshot(states, old)?);
        Ok(())
    }

    /// Holds the state here, the end of a prompt, in place of the oldest such.
    pub(crate) fn keep(&mut self, states: &StatePool, state: &SequenceState) -> Result<()> {
        let rolled = self.rolling.take_if(|s| s.position() == state.position());
        if rolled.is_none() && self.holds(state.position()) {
            return Ok(());
        }
        let oldest = (self.ends.len() == ENDS).then(|| self.ends.remove(0));
        self.ends.push(rolled.map_or_else(|| state.snapshot(states, oldest), Ok)?);
        Ok(())
    }

    /// The last one at or before `position`; `None` is the empty state.
    pub(crate) fn last_until(&self, position: usize) -> Option<&Snapshot> {
        let here = self.ends.iter().chain(&self.rolling).filter(|s| s.position() <= position);
        here.max_by_key(|s| s.position())
    }

    /// Frees those after `position`.
    pub(crate) fn forget_after(&mut self, position: usize) {
        self.ends.retain(|s| s.position() <= position);
        self.rolling.take_if(|s| s.position() > position);
    }

    fn holds(&self, position: usize) -> bool {
        position == 0 || self.last_until(position).is_some_and(|s| s.position() == position)
    }
}
