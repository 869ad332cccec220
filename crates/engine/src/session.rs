//! A batch of one: feeds tokens in chunks, goes back to prefixes, and survives failed steps.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use files::{Error, Result};

use crate::batch::{Batch, Logits, Part, Pause};
use crate::model::Model;
use crate::resume;
use crate::sequence::{RouteRecord, Sequence, check_tokens, common};

/// Called while tokens are fed with how many of them are done, a fraction within the running chunk, and how many
/// there are; may break off.
pub type FeedProgress<'a> = &'a mut dyn FnMut(f64, usize) -> ControlFlow<()>;

/// Takes the logits of one position, `[vocab]`.
type LogitSink<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// What becomes of tokens when not all of them could be computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unfinished {
    /// The sequence is as before.
    Drop,
    /// What was computed stays.
    KeepChunks,
    /// All stay; who comes next computes those that are left.
    KeepTokens,
}

/// One [`Sequence`] whose tokens are always computed, chunk by chunk, before a call returns.
pub struct Session {
    sequence: Sequence,
    batch: Batch,
    /// Of the first `logits_at` tokens; empty when those are no longer the first.
    logits: Vec<f32>,
    logits_at: usize,
    /// Memory for the next.
    next: Vec<f32>,
    /// Of the next prompt.
    borders: Vec<usize>,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// `Memory` when as many sequences live as the model was opened for.
    pub fn new(model: &Arc<Model>) -> Result<Self> {
        let sequence = Sequence::new(model)?;
        let batch = Batch::default();
        Ok(Self { sequence, batch, logits: Vec::new(), logits_at: 0, next: Vec::new(), borders: Vec::new() })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.sequence.model()
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// The logits after the last token, `[vocab]`; empty before the first.
    pub fn logits(&self) -> &[f32] {
        if self.logits_at == self.tokens().len() { &self.logits } else { &[] }
    }

    /// From now on keeps what the routers choose, for [`Self::take_routes`].
    pub fn record_routes(&mut self) {
        self.sequence.record_routes();
    }

    /// What was recorded since the last call.
    pub fn take_routes(&mut self) -> Vec<RouteRecord> {
        self.sequence.take_routes()
    }

    /// Forgets all tokens.
    ///
    /// # Errors
    /// `Device` when the device fails.
    pub fn reset(&mut self) -> Result<()> {
        self.shorten(0)
    }

    /// Makes `prompt` the sequence, and computes only what differs from the tokens so far. Returns how many tokens
    /// were reused.
    ///
    /// # Errors
    /// As [`Self::append`]; when computing fails or is interrupted, the tokens that are the same and the chunks that
    /// were finished remain, so that the same call goes on from there.
    pub fn set_prompt(&mut self, prompt: &[u32], progress: FeedProgress<'_>) -> Result<usize> {
        if prompt.is_empty() {
            return Err(Error::invalid("there are no tokens to compute"));
        }
        check_tokens(prompt, self.model().meta.vocab_size)?;
        self.sequence.check_context(prompt.len())?;
        let same = common(self.tokens(), prompt);
        if same == prompt.len() && same == self.tokens().len() && !self.logits().is_empty() {
            return Ok(same);
        }
        // At least one token is computed, since the logits are wanted.
        let kept = same.min(prompt.len() - 1);
        self.shorten(kept)?;
        self.sequence.extend(&prompt[kept..])?;
        let reused = self.sequence.reuse()?;
        self.compute(kept, progress, Unfinished::KeepChunks)?;
        Ok(reused)
    }

    /// Names positions whose state prompts to come may want, for the next [`Self::set_prompt`]: those within its prompt.
    pub fn name_borders(&mut self, positions: &[usize]) {
        self.borders = positions.to_vec();
    }

    /// Keeps what is computed so far for prompts that begin alike, of this session and of others.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub fn keep(&self) -> Result<()> {
        self.sequence.keep()
    }

    /// Feeds `tokens` after those so far; then [`Self::logits`] has the last one's.
    ///
    /// # Errors
    /// `InvalidRequest` for no tokens or one outside the vocabulary, `ContextFull` when they do not fit, `Cancelled` when
    /// `progress` broke off, and what the drive or device reports. The sequence is then as before the call.
    pub fn append(&mut self, tokens: &[u32], progress: FeedProgress<'_>) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid("there are no tokens to compute"));
        }
        let before = self.tokens().len();
        self.sequence.extend(tokens)?;
        self.compute(before, progress, Unfinished::Drop)
    }

    /// Computes what is pending, most of it after the first `before` tokens.
    fn compute(&mut self, before: usize, progress: FeedProgress<'_>, unfinished: Unfinished) -> Result<()> {
        let end = self.tokens().len();
        if end - before > 1 {
            let named = std::mem::take(&mut self.borders);
            self.sequence.name_borders(named.into_iter().chain([end]));
        }
        let mut next = std::mem::take(&mut self.next);
        let fed = self.feed(end - 1..end, progress, &mut |_, values| {
            next.clear();
            next.extend_from_slice(values);
            Ok(())
        });
        self.next = next;
        if let Err(e) = fed {
            match unfinished {
                Unfinished::Drop => self.shorten(before)?,
                Unfinished::KeepChunks => self.shorten(self.sequence.position().max(before))?,
                Unfinished::KeepTokens => {}
            }
            return Err(e);
        }
        std::mem::swap(&mut self.logits, &mut self.next);
        self.logits_at = end;
        Ok(())
    }

    /// Adds tokens that the next call which needs them computes.
    ///
    /// # Errors
    /// `InvalidRequest` for one outside the vocabulary, `ContextFull` when they do not fit.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<()> {
        self.sequence.extend(tokens)
    }

    /// Computes the last token again if its logits are not at hand, as after [`Self::truncate`] and [`Self::load`].
    ///
    /// # Errors
    /// As [`Self::append`], and `InvalidRequest` without tokens. The tokens stay.
    pub fn compute_logits(&mut self, progress: FeedProgress<'_>) -> Result<()> {
        let Some((last, before)) = self.tokens().split_last().map(|(last, before)| (*last, before.len()))
        else {
            return Err(Error::invalid("there are no logits before the first token"));
        };
        if !self.logits().is_empty() {
            return Ok(());
        }
        let shortened = if self.sequence.pending() > 0 { Ok(()) } else { self.shorten(before) };
        if self.tokens().len() == before {
            self.sequence.extend(&[last])?;
        }
        shortened?;
        self.compute(before, progress, Unfinished::KeepTokens)
    }

    /// Feeds `tokens` after those so far and hands the logits of each of their positions, `[vocab]`, to `each`. Then
    /// [`Self::logits`] has the last one's.
    ///
    /// # Errors
    /// As [`Self::append`], and whatever `each` answers.
    pub fn score(
        &mut self,
        tokens: &[u32],
        progress: FeedProgress<'_>,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let before = self.tokens().len();
        self.sequence.extend(tokens)?;
        let end = self.tokens().len();
        let mut next = std::mem::take(&mut self.next);
        let fed = self.feed(before..end, progress, &mut |position, values| {
            if position + 1 == end {
                next.clear();
                next.extend_from_slice(values);
            }
            each(position, values)
        });
        self.next = next;
        self.batch = Batch::default(); // its memory is of many positions
        if fed.is_err() {
            self.shorten(before)?;
        } else if end > before {
            std::mem::swap(&mut self.logits, &mut self.next);
            self.logits_at = end;
        }
        fed
    }

    /// Goes back to the first `len` tokens.
    ///
    /// # Errors
    /// `InvalidRequest` when there are fewer.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.shorten(len)
    }

    /// Writes tokens and state to a file, for [`Self::load`].
    ///
    /// # Errors
    /// `Io` naming the file; an older file at `path` is untouched then.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.feed(0..0, &mut |_, _| ControlFlow::Continue(()), &mut |_, _| Ok(()))?; // after a failed step
        self.sequence.save(path)
    }

    /// Replaces the sequence by a saved one.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Corrupt`, or `InvalidRequest` for one of another model. The sequence is empty then.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        self.reset()?;
        self.sequence.load(path)
    }

    /// Computes what is pending, chunk by chunk; the logits of positions in `wanted`, the last ones, go to `sink`.
    fn feed(&mut self, wanted: Range<usize>, progress: FeedProgress<'_>, sink: LogitSink<'_>) -> Result<()> {
        let model = self.model().clone();
        let (start, total) = (self.sequence.position(), self.tokens().len());
        while self.sequence.pending() > 0 {
            let from = self.sequence.position();
            let rows = resume::pack([Some(&self.sequence)].into_iter(), model.chunk_tokens())[0];
            let logits = if wanted.is_empty() { Logits::None } else { Logits::From(wanted.start) };
            let layers = model.meta.layers as f64;
            let mut between = |pause: &mut Pause<'_>| {
                if pause.is_within_layer() {
                    return ControlFlow::Continue(()); // what ends between layers can go on there
                }
                let done_rows = rows as f64 * pause.layers_done() as f64 / layers;
                progress((from - start) as f64 + done_rows, total - start)
            };
            let mut parts = [Part { sequence: &mut self.sequence, rows, logits }];
            self.batch.run(&model, &mut parts, &mut between, &mut |_, position, answer| {
                sink(position, answer.logits())
            })?;
        }
        Ok(())
    }

    /// Keeps the first `len` tokens, and nothing that was computed of those after them.
    fn shorten(&mut self, len: usize) -> Result<()> {
        if self.logits_at > len {
            self.logits.clear();
        }
        self.sequence.truncate(len)
    }
}
