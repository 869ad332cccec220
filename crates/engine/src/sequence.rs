//! One sequence: its tokens, and what the model remembers of them. No loop, no lock.

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::ops::Routes;
use store::LayerId;

use crate::batch::Pause;
use crate::model::Model;
use crate::state::{Found, PartialChunk, Resume, SequenceState, Snapshot, StatePool};

/// What tells a sequence from others.
#[derive(Clone, Debug, Default)]
pub(crate) struct SequenceId(Arc<()>);

impl PartialEq for SequenceId {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What the routers of one step chose for a sequence.
#[derive(Clone, Debug)]
pub struct RouteRecord {
    /// The layer.
    pub layer: LayerId,
    /// Position of the first token.
    pub position: usize,
    /// Its choices, one row a token.
    pub routes: Routes,
}

/// A sequence of tokens and what the model remembers of it.
///
/// The tokens are the truth and the state follows them: those that are not computed yet are *pending*, and a
/// [`Batch`](crate::Batch) computes them. When a step fails half way, the state goes back to the last snapshot and more
/// tokens are pending, so no error costs more than time.
///
/// What it has computed at its [borders](Self::name_borders) stays in the model's memory for sequences that begin alike,
/// also after its end, as long as there is room.
pub struct Sequence {
    model: Arc<Model>,
    id: SequenceId,
    tokens: Vec<u32>,
    pub(crate) state: SequenceState,
    /// Where the step that runs began, to go back there when it fails; layers that only forget need none.
    start: Option<Arc<Snapshot>>,
    /// Positions whose state others may want, rising; those after [`Self::position`].
    borders: Vec<usize>,
    /// A chunk of the same tokens that broke off, with which its next step may go on.
    pub(crate) resumes: Option<Resume>,
    departs: Option<usize>,
    /// Whether it takes over what others have computed, and leaves its own to them.
    pub(crate) shares: bool,
    pub(crate) routes: Option<Vec<RouteRecord>>,
}

impl Sequence {
    /// An empty sequence.
    ///
    /// # Errors
    /// `Memory` when as many live as the model was opened for.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        Ok(Self {
            state: model.new_state()?,
            model: model.clone(),
            id: SequenceId::default(),
            tokens: Vec::new(),
            start: None,
            borders: Vec::new(),
            resumes: None,
            departs: None,
            shares: true,
            routes: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What tells it from others.
    pub(crate) fn id(&self) -> &SequenceId {
        &self.id
    }

    /// All its tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many of its tokens the nearest sequence in memory had too that was kept when it looked for one (see [`Self::reuse`]),
    /// if it departs from that one.
    pub fn departs(&self) -> Option<usize> {
        self.departs
    }

    /// Tokens that are computed: the first so many.
    pub fn position(&self) -> usize {
        self.state.position()
    }

    /// Tokens that are not computed yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.state.position()
    }

    /// From now on keeps what the routers choose, for [`Self::take_routes`].
    pub fn record_routes(&mut self) {
        self.routes = Some(Vec::new());
    }

    /// What was recorded since the last call.
    pub fn take_routes(&mut self) -> Vec<RouteRecord> {
        self.routes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Adds tokens to compute.
    ///
    /// # Errors
    /// `InvalidRequest` for one outside the vocabulary, `ContextFull` when they do not fit. Nothing is added then.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        check_tokens(tokens, self.model.meta.vocab_size)?;
        self.check_context(self.tokens.len() + tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// Keeps the first `len` tokens, and nothing that was computed of those after them. Waits for a running step.
    ///
    /// # Errors
    /// `InvalidRequest` when there are fewer, `Device` when the device fails.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.tokens.len() {
            return Err(Error::invalid(format!("cannot keep {len} of {} tokens", self.tokens.len())));
        }
        self.tokens.truncate(len);
        self.borders.retain(|border| *border <= len);
        self.resumes = self.resumes.take().filter(|resume| resume.end <= len);
        if len >= self.state.position() {
            return Ok(());
        }
        let model = self.model.clone();
        self.go_back(&mut model.lock_step().states, len)
    }

    /// Names positions whose state others may want: where prompts to come are likely to differ from this one. Their states
    /// are kept when a step has passed them. Where layers are recurrent, a coarse grid in what is pending comes to them, for
    /// prompts that part where nobody knew, or are broken off.
    pub fn name_borders(&mut self, positions: impl IntoIterator<Item = usize>) {
        if !self.shares {
            return;
        }
        let (position, len) = (self.position(), self.tokens.len());
        let grid = self.state.grid(len - position);
        let grid = (position..len).filter(|at| grid > 0 && at.is_multiple_of(grid));
        let named = positions.into_iter().chain(grid);
        self.borders.extend(named.filter(|border| *border > position && *border <= len));
        self.borders.sort_unstable();
        self.borders.dedup();
    }

    /// Keeps what is computed so far for sequences that begin alike. Waits for a running step.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub fn keep(&self) -> Result<()> {
        let position = self.position();
        let states = &mut self.model.lock_step().states;
        let known = states.prefixes.holds(&self.tokens[..position]);
        if position == 0 || !self.shares || known || !states.prefixes.has_room(self.state.is_recurrent()) {
            return Ok(());
        }
        let snapshot = self.state.snapshot(states)?;
        self.keep_at(states, position, snapshot);
        self.model.states_kept();
        Ok(())
    }

    /// Keeps the state after `position` tokens, with the snapshot of there.
    pub(crate) fn keep_at(&self, states: &mut StatePool, position: usize, snapshot: Option<Arc<Snapshot>>) {
        self.state.keep(states, &self.tokens, position, snapshot);
    }

    /// Takes over what others have computed of its tokens, and what the state directory holds, as far as that is more than
    /// it has; the last token is never taken over, since its logits are wanted. Returns how many of its tokens are computed
    /// now. Where a chunk of the same tokens broke off between two layers, the next step goes on with that. Waits for a running
    /// step.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub fn reuse(&mut self) -> Result<usize> {
        if !self.shares {
            return Ok(self.position());
        }
        let model = self.model.clone();
        let tokens = &self.tokens[..self.tokens.len().saturating_sub(1)];
        let directory = model.state_directory();
        let states = &mut model.lock_step().states;
        let position = self.state.position();
        let mut found;
        (found, self.departs) = states.prefixes.nearest(&self.tokens);
        if let Some(mut directory) = directory {
            model.make_room(states, crate::state::pages(tokens.len()));
            let known = found.as_ref().map_or(0, |found| found.position).max(position);
            if directory.fetch(states, tokens, known) {
                (found, _) = states.prefixes.nearest(&self.tokens);
            }
        }
        self.take_over(states, found)?;
        // Who wants to see all that routers choose has all layers computed.
        if self.routes.is_none() {
            let position = self.state.position();
            self.resumes = states.partial_chunks.find(&self.tokens, position, model.meta.layers);
        }
        Ok(self.state.position())
    }

    /// As [`Self::reuse`], while a step of others pauses: what the state directory holds, and what broke off, is left.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn reuse_between(&mut self, pause: &mut Pause<'_>) -> Result<usize> {
        if self.shares {
            let found;
            (found, self.departs) = pause.states.prefixes.nearest(&self.tokens);
            self.take_over(pause.states, found)?;
        }
        Ok(self.state.position())
    }

    fn take_over(&mut self, states: &mut StatePool, found: Option<Found>) -> Result<()> {
        if let Some(found) = found.filter(|found| found.position > self.state.position()) {
            self.state.adopt(states, &found)?;
            self.start = None;
        }
        Ok(())
    }

    /// A sequence with the first `len` tokens of this one, which shares what is computed of them: keys and values lie in the
    /// same pages until one of both writes there. Where a layer is recurrent, what is after the last snapshot before `len`
    /// is pending. Waits for a running step.
    ///
    /// # Errors
    /// `InvalidRequest` when there are fewer tokens, `Memory` when as many sequences live as the model was opened for.
    pub fn fork(&self, len: usize) -> Result<Self> {
        if len > self.tokens.len() {
            return Err(Error::invalid(format!("cannot fork {len} of {} tokens", self.tokens.len())));
        }
        let mut fork = Self::new(&self.model)?;
        fork.tokens.extend_from_slice(&self.tokens[..len]);
        let states = &mut self.model.lock_step().states;
        if len >= self.position() {
            fork.state.become_same(states, &self.state)?;
        } else if let Some(found) = self.before(states, len) {
            fork.state.adopt(states, &found)?;
        }
        Ok(fork)
    }

    /// The last state at or before `position` that can be gone back to; `None` is the empty one.
    fn before(&self, states: &mut StatePool, position: usize) -> Option<Found> {
        if !self.state.is_recurrent() {
            return Some(self.state.found(position, None));
        }
        let start = self.start.as_ref().filter(|start| start.position() <= position);
        let start = start.map(|start| self.state.found(start.position(), Some(start.clone())));
        let kept = states.prefixes.longest(&self.tokens[..position]);
        [start, kept].into_iter().flatten().max_by_key(|found| found.position)
    }

    /// Replaces tokens and state by saved ones. The sequence is empty after an error.
    ///
    /// # Errors
    /// As [`crate::Session::load`].
    pub(crate) fn load(&mut self, path: &std::path::Path) -> Result<()> {
        self.truncate(0)?;
        self.start = None; // its memory is needed
        let model = self.model.clone();
        let states = &mut model.lock_step().states;
        let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
        model.make_room(states, states.pages_in_bytes(bytes));
        let (tokens, found) = crate::state::load(states, model.meta.vocab_size, model.fingerprint(), path)?;
        self.state.adopt(states, &found)?;
        self.tokens = tokens;
        self.start = found.into_snapshot();
        Ok(())
    }

    /// Writes tokens and state to a file; all are computed.
    ///
    /// # Errors
    /// As [`crate::Session::save`].
    pub(crate) fn save(&mut self, path: &std::path::Path) -> Result<()> {
        let states = &mut self.model.lock_step().states;
        self.start = None; // its memory is needed
        self.start = self.state.snapshot(states)?;
        let found = self.state.found(self.position(), self.start.clone());
        crate::state::save(states, &found, &self.tokens, self.model.fingerprint(), path)
    }

    /// Makes ready for a step of the first `rows` pending tokens.
    pub(crate) fn prepare(&mut self, states: &mut StatePool, rows: usize) -> Result<()> {
        let position = self.position();
        let held = self.start.as_ref().is_some_and(|start| start.position() == position);
        if rows > 1 && self.state.is_recurrent() && !held {
            self.start = None; // its memory is needed
            let kept = states.prefixes.longest(&self.tokens[..position]);
            self.start = match kept.filter(|kept| kept.position == position) {
                Some(kept) => kept.into_snapshot(),
                None if position == 0 => None,
                None => self.state.snapshot(states)?,
            };
        }
        self.state.prepare(states, rows)
    }

    /// Makes ready for a step that goes on with `chunk`, whose tokens are its own. Where the step fails, it goes back to where it
    /// was.
    pub(crate) fn prepare_to_resume(&mut self, states: &mut StatePool, chunk: &PartialChunk) -> Result<()> {
        let position = self.position();
        let held = self.start.as_ref().is_some_and(|start| start.position() == position);
        if self.state.is_recurrent() && !held && position > 0 {
            self.start = self.state.snapshot(states)?;
        }
        self.state.resume(states, chunk)
    }

    /// Borders that a step of `rows` of its tokens passes or ends at.
    pub(crate) fn borders(&self, rows: usize) -> impl Iterator<Item = usize> + '_ {
        let position = self.position();
        self.borders.iter().copied().filter(move |border| (position + 1..=position + rows).contains(border))
    }

    /// Gives back all that it has but its tokens, which are pending then.
    pub(crate) fn release(&mut self) {
        self.state.reset();
        self.start = None;
        self.resumes = None;
        self.borders.clear();
    }

    /// Counts `rows` tokens that a step has computed.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.resumes = None; // it began where the sequence was
        self.state.advance(rows);
        let position = self.position();
        self.borders.retain(|border| *border > position);
    }

    /// Goes back to at most `position` computed tokens: exactly there if no layer is recurrent, else to the last snapshot
    /// before. Also where the state is already: after a step that broke off, recurrent layers before the break have moved
    /// on.
    pub(crate) fn go_back(&mut self, states: &mut StatePool, position: usize) -> Result<()> {
        let gone_back = match self.before(states, position) {
            Some(found) => self.state.adopt(states, &found),
            None => {
                self.state.reset();
                Ok(())
            }
        };
        // What follows may be other tokens.
        self.start = self.start.take().filter(|start| start.position() <= position);
        gone_back
    }

    /// A clear error where `len` tokens do not fit.
    ///
    /// # Errors
    /// `ContextFull`.
    pub(crate) fn check_context(&self, len: usize) -> Result<()> {
        let capacity = self.state.capacity();
        if len <= capacity {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ContextFull,
            format!(
                "{len} tokens exceed the context of {capacity}; shorten the prompt, start over, or raise --ctx \
                 (the model allows {})",
                self.model.meta.context
            ),
        ))
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.model.sequence_ended(&self.id);
    }
}

pub(crate) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::invalid(format!("token {id} is outside the model's vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

/// How many first tokens are the same.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
