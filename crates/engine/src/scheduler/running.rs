//! A request that runs: its sequence, its answer, and who listens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use files::Result;

use super::{Listener, RequestEvent};
use crate::batch::Answer;
use crate::generate::Generated;
use crate::generation::{FinishReason, Generation};
use crate::sequence::Sequence;
use crate::text::Tokenizer;

/// A request that runs.
pub(super) struct Running {
    pub(super) sequence: Sequence,
    pub(super) generation: Generation<Arc<Tokenizer>>,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) deadline: Option<Instant>,
    pub(super) client: u64,
    pub(super) prompt_tokens: usize,
    /// Those that another sequence had computed.
    pub(super) reused_tokens: usize,
    /// When it arrived, when its prompt was begun, and when its first token came.
    pub(super) arrived: Instant,
    pub(super) begun: Instant,
    pub(super) first: Option<Instant>,
    /// Borders of the prompt that were named.
    pub(super) borders: Vec<usize>,
    /// It was set aside, and somebody may have computed some of its tokens meanwhile.
    pub(super) resumed: bool,
    /// Its step failed, and the next one is its own.
    pub(super) alone: bool,
}

impl Running {
    pub(super) fn answers(&self) -> bool {
        !self.generation.tokens().is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    /// Says something; nobody may be there to hear it.
    pub(super) fn say(&self, event: RequestEvent) {
        if !self.listener.hear(event) {
            self.cancel.store(true, Ordering::Release);
        }
    }

    /// Says how it ended; what it computed is still of use.
    pub(super) fn end(mut self, why: Result<()>) -> Sequence {
        if let Err(e) = why {
            self.say(RequestEvent::Ended(Err(e)));
            return self.sequence;
        }
        for event in self.generation.end(FinishReason::Cancelled) {
            self.say(RequestEvent::Reply(event));
        }
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        self.say(RequestEvent::Ended(Ok(Generated {
            finish: self.generation.finish().unwrap_or(FinishReason::Cancelled),
            prompt_tokens: self.prompt_tokens.min(self.sequence.position()),
            reused_tokens: self.reused_tokens.min(self.sequence.position()),
            tokens: self.generation.tokens().to_vec(),
            thought_tokens: self.generation.thought_tokens(),
            stop_hit: self.generation.stop_hit(),
            time_to_first_token: first - self.arrived,
            prefill: first - self.begun,
            decode: if self.first.is_some() { now - first } else { Duration::ZERO },
        })));
        self.sequence
    }

    /// Begins again after it was set aside, with what others have computed of its tokens. No step may run.
    pub(super) fn begin_again(&mut self) {
        self.resumed = false;
        // What fails here is computed.
        let _ = self.sequence.reuse();
        self.sequence.name_borders(self.borders.iter().copied());
    }

    /// Whether its answer waits for its reader.
    pub(super) fn is_held(&self) -> bool {
        self.decodes() && self.listener.is_behind()
    }

    /// Whether all that it waits for is its next token.
    pub(super) fn decodes(&self) -> bool {
        self.answers() && self.sequence.pending() == 1 && !self.alone
    }

    /// Takes the answer about its last token: the next token, or the end. Whether it goes on.
    pub(super) fn accept(&mut self, answer: Answer<'_>, context: usize) -> Result<bool> {
        self.first.get_or_insert_with(Instant::now);
        let tokens = self.sequence.tokens();
        let events = match answer {
            Answer::Logits(logits) => self.generation.accept(logits, tokens, context)?,
            Answer::Best(token) => self.generation.accept_token(token, tokens, context)?,
        };
        for event in events {
            self.say(RequestEvent::Reply(event));
        }
        match self.generation.next_token() {
            Some(token) => self.sequence.extend(&[token]).map(|()| true),
            None => Ok(false),
        }
    }
}
