//! One sequence: feeds tokens in chunks, goes back to prefixes, and survives failed steps.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use files::{Error, ErrorKind, Result};
use kernels::ops::{Routes, Segment};
use store::LayerId;

use crate::ahead::Ahead;
use crate::limits::LOGIT_ROWS;
use crate::lookahead::Guess;
use crate::model::Model;
use crate::pool::ExpertPool;
use crate::scratch::Activation;
use crate::state::{self, Checkpoints, SequenceState};
use crate::step::{Experts, SequenceRows, Step, go_on};

/// Called while tokens are fed with how many of them are done, a fraction within the running chunk, and how many
/// there are; may break off.
pub type FeedProgress<'a> = &'a mut dyn FnMut(f64, usize) -> ControlFlow<()>;

/// Takes the logits of one position, `[vocab]`.
type LogitSink<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// What the routers of one step chose.
#[derive(Clone, Debug)]
pub struct RouteRecord {
    /// The layer.
    pub layer: LayerId,
    /// Position of the step's first token.
    pub position: usize,
    /// Its choices, one row a token.
    pub routes: Routes,
}

/// What becomes of tokens when not all of them could be computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unfinished {
    /// The sequence is as before.
    Drop,
    /// What was computed stays.
    KeepChunks,
}

/// A sequence of tokens and what the model remembers of it.
///
/// The tokens are the truth and the state follows them: when a step fails half way, the state goes back to the last
/// snapshot and the next call computes the rest again, so no error costs more than time.
pub struct Session {
    model: Arc<Model>,
    /// What tells it from others.
    identity: Arc<()>,
    state: SequenceState,
    tokens: Vec<u32>,
    checkpoints: Checkpoints,
    /// Of the first `logits_at` tokens; empty when those are no longer the first.
    logits: Vec<f32>,
    logits_at: usize,
    /// Memory that logits are read into.
    read: Vec<f32>,
    routes: Option<Vec<RouteRecord>>,
}

impl Session {
    /// An empty sequence.
    ///
    /// # Errors
    /// `Memory` when its state cannot be allocated, or the model's budget has no room for another.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        Ok(Self {
            state: model.new_state()?,
            model: model.clone(),
            identity: Arc::default(),
            tokens: Vec::new(),
            checkpoints: Checkpoints::default(),
            logits: Vec::new(),
            logits_at: 0,
            read: Vec::new(),
            routes: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The logits after the last token, `[vocab]`; empty before the first.
    pub fn logits(&self) -> &[f32] {
        if self.logits_at == self.tokens.len() { &self.logits } else { &[] }
    }

    /// From now on keeps what the routers choose, for [`Self::take_routes`].
    pub fn record_routes(&mut self) {
        self.routes = Some(Vec::new());
    }

    /// What was recorded since the last call.
    pub fn take_routes(&mut self) -> Vec<RouteRecord> {
        self.routes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Forgets all tokens.
    ///
    /// # Errors
    /// `Device` when the device fails.
    pub fn reset(&mut self) -> Result<()> {
        self.tokens.clear();
        self.logits.clear();
        self.checkpoints.forget_after(0);
        self.state.reset()
    }

    /// Makes `prompt` the sequence, and computes only what differs from the tokens so far. Returns how many tokens
    /// were reused.
    ///
    /// # Errors
    /// As [`Self::append`]; when computing fails or is interrupted, the tokens that are the same and the chunks that
    /// were finished remain, so that the same call goes on from there.
    pub fn set_prompt(&mut self, prompt: &[u32], progress: FeedProgress<'_>) -> Result<usize> {
        check_tokens(prompt, self.model.meta.vocab_size)?;
        self.check_context(prompt.len())?;
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        if same == prompt.len() && same == self.tokens.len() && !self.logits().is_empty() {
            return Ok(same);
        }
        // At least one token is computed, since the logits are wanted.
        let kept = same.min(prompt.len().saturating_sub(1));
        self.shorten(kept)?;
        let reused = self.state.position();
        self.extend(&prompt[kept..], progress, Unfinished::KeepChunks)?;
        Ok(reused)
    }

    /// Feeds `tokens` after those so far; then [`Self::logits`] has the last one's.
    ///
    /// # Errors
    /// `InvalidRequest` for no tokens or one outside the vocabulary, `ContextFull` when they do not fit, `Cancelled` when
    /// `progress` broke off, and what the drive or device reports. The sequence is then as before the call.
    pub fn append(&mut self, tokens: &[u32], progress: FeedProgress<'_>) -> Result<()> {
        self.extend(tokens, progress, Unfinished::Drop)
    }

    fn extend(&mut self, tokens: &[u32], progress: FeedProgress<'_>, unfinished: Unfinished) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("there are no tokens to compute"));
        }
        check_tokens(tokens, self.model.meta.vocab_size)?;
        let before = self.tokens.len();
        self.check_context(before + tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        let end = self.tokens.len();
        let fed = self.feed(end - 1..end, progress, &mut |_, _| Ok(()));
        if let Err(e) = fed {
            let computed = self.state.position().max(before);
            self.shorten(if unfinished == Unfinished::KeepChunks { computed } else { before })?;
            return Err(e);
        }
        // Only the last position's were read.
        std::mem::swap(&mut self.logits, &mut self.read);
        self.logits_at = end;
        if tokens.len() > 1 && self.state.is_recurrent() {
            self.checkpoints.keep(&self.state)?;
        }
        Ok(())
    }

    /// Feeds `tokens` after those so far and hands the logits of each of their positions, `[vocab]`, to `each`.
    ///
    /// # Errors
    /// As [`Self::append`], and whatever `each` answers.
    pub fn score(
        &mut self,
        tokens: &[u32],
        progress: FeedProgress<'_>,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        check_tokens(tokens, self.model.meta.vocab_size)?;
        let before = self.tokens.len();
        self.check_context(before + tokens.len())?;
        self.tokens.extend_from_slice(tokens);
        let fed = self.feed(before..self.tokens.len(), progress, each);
        self.read = Vec::new(); // of many positions
        if fed.is_err() {
            self.shorten(before)?;
        }
        fed
    }

    /// Goes back to the first `len` tokens.
    ///
    /// # Errors
    /// `InvalidRequest` when there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.tokens.len() {
            return Err(Error::invalid(format!("cannot keep {len} of {} tokens", self.tokens.len())));
        }
        self.shorten(len)
    }

    /// Writes tokens and state to a file, for [`Self::load`].
    ///
    /// # Errors
    /// `Io` naming the file; an older file at `path` is untouched then.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.feed(0..0, &mut |_, _| ControlFlow::Continue(()), &mut |_, _| Ok(()))?; // after a failed step
        state::save(&self.state, &self.tokens, self.model.fingerprint(), path)
    }

    /// Replaces the sequence by a saved one.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Corrupt`, or `InvalidRequest` for one of another model. The sequence is empty then.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.reset()?;
        let vocab = self.model.meta.vocab_size;
        self.tokens = state::load(&mut self.state, vocab, self.model.fingerprint(), path)?;
        if self.state.is_recurrent() { self.checkpoints.keep(&self.state) } else { Ok(()) }
    }

    /// Brings the state to the tokens, chunk by chunk; the logits of positions in `wanted` go to `sink`.
    fn feed(&mut self, wanted: Range<usize>, progress: FeedProgress<'_>, sink: LogitSink<'_>) -> Result<()> {
        let model = self.model.clone();
        let (start, total) = (self.state.position(), self.tokens.len());
        while self.state.position() < total {
            let from = self.state.position();
            let to = total.min(from + model.chunk_tokens());
            if to - from > 1 && self.state.is_recurrent() {
                self.checkpoints.roll(&self.state)?;
            }
            let layers = model.meta.layers as f64;
            let mut between = |done: usize| {
                let rows = (to - from) as f64 * done as f64 / layers;
                progress((from - start) as f64 + rows, total - start)
            };
            let run = self.step(&model, from..to, &wanted, &mut between, sink);
            if let Err(e) = run {
                self.go_back(from)?;
                return Err(e);
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        model: &Model,
        range: Range<usize>,
        wanted: &Range<usize>,
        between_layers: &mut dyn FnMut(usize) -> ControlFlow<()>,
        sink: LogitSink<'_>,
    ) -> Result<()> {
        let rows = range.len();
        self.state.check_room(rows)?;
        let mut turn = model.wait_for_turn();
        let mut pool = model.lock_pool();
        let decodes = rows == 1;
        let (ahead, again) = turn.begin(&self.identity, range.start);
        let runs_ahead = decodes && wanted.contains(&range.start) && self.looks_up(pool.as_deref());
        if let Some(ahead) = ahead.filter(|_| runs_ahead) {
            go_on(between_layers(0))?;
            let logits = ahead.run(model.backend.as_ref(), self.tokens[range.start])?;
            if let Some(pool) = &mut pool {
                pool.count_recorded(model.top_k());
            }
            turn.leave(self.record_ahead(model, pool.as_deref_mut(), range.end)?);
            read_logits(model, &logits, range.clone(), &mut self.read, sink)?;
            self.state.advance(rows);
            return go_on(between_layers(model.meta.layers));
        }
        let experts = pool.as_deref_mut().zip(model.slabs()).map(|(pool, slabs)| {
            let more_follows = range.end < self.tokens.len();
            let guess = if decodes { pool.lookahead.begin() } else { Guess::None };
            Experts { pool, slabs, sweep: None, more_follows, guess, runs: true }
        });
        let started = Instant::now();
        let mut recorded = Vec::new();
        let segment = Segment { rows: 0..rows, position: range.start };
        let mut step = Step {
            tokens: &self.tokens[range.clone()],
            sequences: vec![SequenceRows { segment, state: &mut self.state }],
            backend: model.backend.as_ref(),
            experts,
            scratch: &model.scratch,
            rehearsal: None,
            routes: self.routes.is_some().then_some(&mut recorded),
            between_layers,
        };
        let x = model.decoder.forward(&mut step)?;
        let first = wanted.start.max(range.start) - range.start;
        let last = wanted.end.min(range.end).saturating_sub(range.start);
        emit_logits(model, &step, &x, first..last.max(first), range.start, &mut self.read, sink)?;
        drop(step);
        if let Some(pool) = &mut pool {
            // Weights that are written while they are read are no weights.
            pool.store.check_unchanged()?;
        }
        if let Some(pool) = pool.as_deref_mut().filter(|_| decodes) {
            pool.lookahead.end(started.elapsed());
        }
        self.state.advance(rows);
        if decodes && again && self.looks_up(pool.as_deref()) {
            turn.leave(self.record_ahead(model, pool.as_deref_mut(), range.end)?);
        }
        if let Some(routes) = &mut self.routes {
            let position = range.start;
            routes.extend(recorded.into_iter().map(|(layer, routes)| RouteRecord {
                layer,
                position,
                routes,
            }));
        }
        Ok(())
    }

    /// Whether the device has no questions between layers.
    fn looks_up(&self, pool: Option<&ExpertPool>) -> bool {
        self.routes.is_none() && pool.is_none_or(ExpertPool::all_resident)
    }

    /// Records the step of a token at `position`; `None` where that cannot be.
    fn record_ahead(
        &mut self,
        model: &Model,
        pool: Option<&mut ExpertPool>,
        position: usize,
    ) -> Result<Option<Ahead>> {
        if position == self.state.capacity() {
            return Ok(None);
        }
        let experts = pool.zip(model.slabs()).map(|(pool, slabs)| Experts {
            pool,
            slabs,
            sweep: None,
            more_follows: false,
            guess: Guess::None,
            runs: false,
        });
        let segment = Segment { rows: 0..1, position };
        let mut step = Step {
            tokens: &[0],
            sequences: vec![SequenceRows { segment, state: &mut self.state }],
            backend: model.backend.as_ref(),
            experts,
            scratch: &model.scratch,
            rehearsal: None,
            routes: None,
            between_layers: &mut |_| ControlFlow::Continue(()),
        };
        let mut logits = None;
        let recorded = model.backend.record(&mut || {
            let x = model.decoder.forward(&mut step)?;
            logits = Some(model.decoder.logits(&step, &x, &[0])?);
            Ok(())
        });
        match recorded {
            Ok(recorded) => {
                let ahead = recorded.zip(logits);
                Ok(ahead.map(|(recorded, logits)| Ahead { position, recorded, logits }))
            }
            // A layer that is no longer resident, or no room: the step itself will do without.
            Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Memory) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeps the first `len` tokens, and nothing that was computed of those after them.
    fn shorten(&mut self, len: usize) -> Result<()> {
        self.tokens.truncate(len);
        if self.logits_at > len {
            self.logits.clear();
        }
        self.rewind(len)
    }

    /// Goes back to at most `position` tokens: exactly there if no layer is recurrent, else to the last snapshot
    /// before; the next feed computes what is between.
    fn rewind(&mut self, position: usize) -> Result<()> {
        self.checkpoints.forget_after(position);
        if position >= self.state.position() { Ok(()) } else { self.go_back(position) }
    }

    /// As [`Self::rewind`], also when the state is at `position`: after a step that broke off, recurrent layers
    /// before the break have moved on.
    fn go_back(&mut self, position: usize) -> Result<()> {
        if !self.state.is_recurrent() {
            return self.state.truncate(position);
        }
        match self.checkpoints.last_until(position) {
            Some(snapshot) => self.state.restore(snapshot),
            None => self.state.reset(),
        }
    }

    fn check_context(&self, len: usize) -> Result<()> {
        if len <= self.state.capacity() {
            return Ok(());
        }
        let capacity = self.state.capacity();
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

impl Drop for Session {
    fn drop(&mut self) {
        self.model.session_ended(&self.identity);
    }
}

fn emit_logits(
    model: &Model,
    step: &Step<'_>,
    x: &Activation,
    rows: Range<usize>,
    position: usize,
    host: &mut Vec<f32>,
    sink: LogitSink<'_>,
) -> Result<()> {
    for start in rows.clone().step_by(LOGIT_ROWS) {
        let tile = start..rows.end.min(start + LOGIT_ROWS);
        let rows: Vec<u32> = tile.clone().map(|row| row as u32).collect();
        let logits = model.decoder.logits(step, x, &rows)?;
        read_logits(model, &logits, position + tile.start..position + tile.end, host, sink)?;
    }
    Ok(())
}

/// Waits for the logits of some positions.
fn read_logits(
    model: &Model,
    logits: &Activation,
    positions: Range<usize>,
    host: &mut Vec<f32>,
    sink: LogitSink<'_>,
) -> Result<()> {
    host.resize(logits.len(), 0f32);
    model.backend.read(logits.block(), 0, bytemuck::cast_slice_mut(host))?;
    for (at, values) in positions.zip(host.chunks_exact(model.meta.vocab_size)) {
        check_finite(values, at)?;
        sink(at, values)?;
    }
    Ok(())
}

/// Refuses logits of position `at` that no model in order answers.
pub(crate) fn check_finite(logits: &[f32], at: usize) -> Result<()> {
    // A loop without an exit, which the compiler makes vectors of; who it was is asked when there is one.
    if logits.iter().fold(true, |all, logit| all & logit.is_finite()) {
        return Ok(());
    }
    let id = logits.iter().position(|logit| !logit.is_finite()).unwrap_or_default();
    Err(Error::corrupt(format!(
        "the logit of token {id} at position {at} is {}: weights are damaged, `tidemill inspect --check` finds where",
        logits[id]
    )))
}

fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => Err(Error::invalid(format!("token {id} is outside the model's vocabulary of {vocab}"))),
        None => Ok(()),
    }
}
