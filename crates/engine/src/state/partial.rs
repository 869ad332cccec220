//! Chunks of prompts that broke off between two layers, kept for whoever asks for the same tokens again: clients that lost
//! patience try again. They go first when their memory is needed.

use std::sync::{Arc, Weak};

use files::Result;

use super::ledger::Page;
use super::{Found, SequenceState, Snapshot, StatePool};
use crate::scratch::Activation;

/// Rows of one sequence after some layers of a step.
pub(crate) struct PartialChunk {
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

impl PartialChunk {
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
    pub(crate) fn resume(&mut self, states: &mut StatePool, chunk: &PartialChunk) -> Result<()> {
        let PartialChunk { position, ref pages, ref snapshot, .. } = *chunk;
        self.adopt(states, &Found { position, pages: pages.clone(), snapshot: snapshot.clone() })?;
        self.claimed = chunk.tokens.len();
        Ok(())
    }
}

/// A chunk that a sequence may go on with, if it is still there when its step begins.
#[derive(Clone)]
pub(crate) struct Resume {
    chunk: Weak<PartialChunk>,
    /// Tokens after it.
    pub(crate) end: usize,
    /// Chunks of the same number can share a step.
    pub(crate) layers_done: usize,
}

impl Resume {
    /// Whether it is still there.
    pub(crate) fn is_there(&self) -> bool {
        self.chunk.strong_count() > 0
    }
}

/// All that are kept.
#[derive(Default)]
pub(crate) struct PartialChunks {
    kept: Vec<Arc<PartialChunk>>,
}

impl PartialChunks {
    /// Keeps one.
    pub(crate) fn keep(&mut self, chunk: PartialChunk) {
        self.kept.retain(|other| other.tokens != chunk.tokens);
        self.kept.push(Arc::new(chunk));
    }

    /// What saves most for a sequence of `tokens`, and more than the `position` that it has.
    pub(crate) fn find(&self, tokens: &[u32], position: usize, layers: usize) -> Option<Resume> {
        let saves = |chunk: &&Arc<PartialChunk>| chunk.saves(layers);
        let fits = self.kept.iter().filter(|chunk| tokens.starts_with(&chunk.tokens));
        let best = fits.max_by_key(saves).filter(|chunk| saves(chunk) > position)?;
        let (end, layers_done) = (best.tokens.len(), best.layers_done);
        Some(Resume { chunk: Arc::downgrade(best), end, layers_done })
    }

    /// Takes one out; `None` where it is gone.
    pub(crate) fn take(&mut self, resume: &Resume) -> Option<PartialChunk> {
        let wanted = resume.chunk.upgrade()?;
        self.kept.retain(|chunk| !Arc::ptr_eq(chunk, &wanted));
        Arc::into_inner(wanted)
    }

    /// Bytes of their rows.
    pub(crate) fn x_bytes(&self) -> usize {
        self.kept.iter().map(|chunk| chunk.x.block().bytes()).sum()
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
