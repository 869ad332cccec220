//! One sequence: its tokens, and what the model remembers of them. No loop, no lock.

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::ops::Routes;
use store::LayerId;

use crate::model::Model;
use crate::state::{Checkpoints, SequenceState, StatePool};

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
pub struct Sequence {
    model: Arc<Model>,
    id: SequenceId,
    tokens: Vec<u32>,
    pub(crate) state: SequenceState,
    checkpoints: Checkpoints,
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
            checkpoints: Checkpoints::default(),
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
        self.checkpoints.forget_after(len);
        if len >= self.state.position() {
            return Ok(());
        }
        let model = self.model.clone();
        self.go_back(&mut model.lock_step().states, len)
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
        let position = len.min(self.state.position());
        let states = &mut self.model.lock_step().states;
        if !self.state.is_recurrent() {
            fork.state.share(states, &self.state, position, None)?;
        } else if position == self.state.position() {
            let here = self.state.snapshot(states, None)?;
            fork.state.share(states, &self.state, position, Some(&here))?;
        } else if let Some(snapshot) = self.checkpoints.last_until(position) {
            fork.state.share(states, &self.state, snapshot.position(), Some(snapshot))?;
        }
        Ok(fork)
    }

    /// How many of its first `len` tokens [`Self::fork`] need not compute again.
    pub fn reusable(&self, len: usize) -> usize {
        match len >= self.state.position() {
            true => self.state.position(),
            false if !self.state.is_recurrent() => len,
            false => self.checkpoints.last_until(len).map_or(0, |snapshot| snapshot.position()),
        }
    }

    /// Replaces tokens and state by saved ones. The sequence is empty after an error.
    ///
    /// # Errors
    /// As [`crate::Session::load`].
    pub(crate) fn load(&mut self, path: &std::path::Path) -> Result<()> {
        self.truncate(0)?;
        let model = self.model.clone();
        let states = &mut model.lock_step().states;
        let vocab = model.meta.vocab_size;
        self.tokens = crate::state::load(states, &mut self.state, vocab, model.fingerprint(), path)?;
        self.keep_end(states)
    }

    /// Writes tokens and state to a file; all are computed.
    ///
    /// # Errors
    /// As [`crate::Session::save`].
    pub(crate) fn save(&self, path: &std::path::Path) -> Result<()> {
        let states = &self.model.lock_step().states;
        crate::state::save(states, &self.state, &self.tokens, self.model.fingerprint(), path)
    }

    /// Makes ready for a step of the first `rows` pending tokens.
    pub(crate) fn prepare(&mut self, states: &mut StatePool, rows: usize) -> Result<()> {
        if rows > 1 && self.state.is_recurrent() {
            self.checkpoints.roll(states, &self.state)?;
        }
        self.state.prepare(states, rows)
    }

    /// Holds the state here, the end of a prompt, to go back to.
    pub(crate) fn keep_end(&mut self, states: &StatePool) -> Result<()> {
        if self.state.is_recurrent() { self.checkpoints.keep(states, &self.state) } else { Ok(()) }
    }

    /// Goes back to at most `position` computed tokens: exactly there if no layer is recurrent, else to the last snapshot
    /// before. Also where the state is already: after a step that broke off, recurrent layers before the break have moved
    /// on.
    pub(crate) fn go_back(&mut self, states: &mut StatePool, position: usize) -> Result<()> {
        if !self.state.is_recurrent() {
            return self.state.truncate(position);
        }
        match self.checkpoints.last_until(position) {
            Some(snapshot) => self.state.restore(states, snapshot)?,
            None => self.state.reset(),
        }
        Ok(())
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
