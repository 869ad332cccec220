//! Chunks of prompts that broke off between two layers, kept for whoever asks for the same tokens again: clients that lost
//! patience try again. They go first when their memory is needed.

use std::sync::{Arc, Weak};

use files::Result;

use super::ledger::Page;
use super::{Found, SequenceState, Snapshot, StatePool};
use crate::scratch::Activation;

/// Rows of one sequence after some layers of a step.
pub(crate) struct Midway {
    /// All tokens up to the last row's.
    pub(crate) tokens: Vec<u32>,
    /// Position of the first row.
    pub(crate) position: usize,
    /// Layers that are done.
    pub(crate) layers_done: usize,
    /// The residual stream there, `[rows, hidden]`.
    pub(crate) x: Activation,
    /// Borders within the rows, with their snapshots as far as layers are done.
    pub(crate) marks: Vec<(usize, Option<Snapshot>)>,
    pages: Vec<Page>,
    /// Recurrent states: of layers that are done after the rows, of others before them.
    snapshot: Option<Arc<Snapshot>>,
}

impl Midway {
    /// Of a sequence in `state`, whose step has the rows of the last of `tokens`.
    ///
    /// # Errors
    /// `Memory` without a snapshot, `Device` when copying fails.
    pub(crate) fn new(
        state: &SequenceState,
        states: &mut StatePool,
        tokens: Vec<u32>,
        layers_done: usize,
        x: Activation,
        marks: Vec<(usize, Option<Snapshot>)>,
    ) -> Result<Self> {
        let snapshot = state.snapshot(states)?;
        let Found { pages, .. } = state.found(tokens.len(), None);
        Ok(Self { tokens, position: state.position(), layers_done, x, marks, pages, snapshot })
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.x.rows()
    }

    /// Tokens that need not be computed for it, of a model with `layers` layers, about.
    fn saves(&self, layers: usize) -> usize {
        self.position + self.rows() * self.layers_done / layers.max(1)
    }
}

impl SequenceState {
    /// Becomes that of a step after some of its layers.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn go_on(&mut self, states: &mut StatePool, midway: &Midway) -> Result<()> {
        let Midway { position, ref pages, ref snapshot, .. } = *midway;
        self.adopt(states, &Found { position, pages: pages.clone(), snapshot: snapshot.clone() })?;
        self.claimed = midway.tokens.len();
        Ok(())
    }
}

/// A chunk that a sequence may go on with, if it is still there when its step begins.
#[derive(Clone)]
pub(crate) struct GoOn {
    midway: Weak<Midway>,
    /// Tokens after it.
    pub(crate) end: usize,
    /// Chunks of the same number can share a step.
    pub(crate) layers_done: usize,
}

impl GoOn {
    /// Whether it is still there.
    pub(crate) fn is_there(&self) -> bool {
        self.midway.strong_count() > 0
    }
}

/// All that are kept.
#[derive(Default)]
pub(crate) struct Midways {
    kept: Vec<Arc<Midway>>,
}

impl Midways {
    /// Keeps one.
    pub(crate) fn keep(&mut self, midway: Midway) {
        self.kept.retain(|other| other.tokens != midway.tokens);
        self.kept.push(Arc::new(midway));
    }

    /// What saves most for a sequence of `tokens`, and more than the `position` that it has.
    pub(crate) fn find(&self, tokens: &[u32], position: usize, layers: usize) -> Option<GoOn> {
        let saves = |midway: &&Arc<Midway>| midway.saves(layers);
        let fits = self.kept.iter().filter(|midway| tokens.starts_with(&midway.tokens));
        let best = fits.max_by_key(saves).filter(|midway| saves(midway) > position)?;
        let (end, layers_done) = (best.tokens.len(), best.layers_done);
        Some(GoOn { midway: Arc::downgrade(best), end, layers_done })
    }

    /// Takes one out; `None` where it is gone.
    pub(crate) fn take(&mut self, go_on: &GoOn) -> Option<Midway> {
        let wanted = go_on.midway.upgrade()?;
        self.kept.retain(|midway| !Arc::ptr_eq(midway, &wanted));
        Arc::into_inner(wanted)
    }

    /// Bytes of their rows.
    pub(crate) fn x_bytes(&self) -> usize {
        self.kept.iter().map(|midway| midway.x.block().bytes()).sum()
    }

    /// Gives the oldest up; false if there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let some = !self.kept.is_empty();
        self.kept.drain(..usize::from(some));
        some
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }
}
