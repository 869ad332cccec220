//! A prompt in, text out, token by token: a [`Generation`] over one [`Session`].

use std::ops::{ControlFlow, Deref};
use std::time::{Duration, Instant};

use files::{ErrorKind, Result};

pub use crate::generation::{FinishReason, GenerateOptions, Generation};
use crate::session::Session;
use crate::text::{ReplyEvent, Tokenizer};

/// What happens while an answer is made.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateEvent {
    /// The prompt is being read: tokens done, with fractions within a chunk, of those to compute.
    Prompt {
        /// Done so far.
        done_tokens: f64,
        /// To be done.
        total_tokens: usize,
    },
    /// A token of the answer is being computed.
    Token,
    /// More of the reply. Text never splits a character, never contains part of a stop string.
    Reply(ReplyEvent),
}

/// An answer's numbers.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt; when it was broken off, those that were done.
    pub prompt_tokens: usize,
    /// Those of them that the session still remembered.
    pub reused_tokens: usize,
    /// The tokens of the answer, without the end token.
    pub tokens: Vec<u32>,
    /// How many of them were thoughts, with the markers around these.
    pub thought_tokens: usize,
    /// Which of [`GenerateOptions::stop`] ended it, if one did.
    pub stop_hit: Option<usize>,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// Computing the prompt.
    pub prefill: Duration,
    /// Computing the tokens after the first.
    pub decode: Duration,
}

impl Generated {
    /// Prompt tokens computed per second; 0 when none was.
    pub fn prefill_tokens_per_s(&self) -> f64 {
        rate(self.prompt_tokens - self.reused_tokens, self.prefill)
    }

    /// Tokens generated per second after the first.
    pub fn decode_tokens_per_s(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    if tokens == 0 || time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}

/// Makes `prompt` the session's sequence and generates after it. `on` may break off at any event; the tokens so far
/// stay in the session.
///
/// # Errors
/// `InvalidRequest` for sampling values out of range, `ContextFull` for a prompt that does not fit, and what the
/// drive or device reports.
pub fn generate(
    session: &mut Session,
    tokenizer: impl Deref<Target = Tokenizer>,
    prompt: &[u32],
    options: &GenerateOptions,
    on: &mut dyn FnMut(GenerateEvent) -> ControlFlow<()>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut generation = Generation::new(tokenizer, options)?;
    let mut answer = Generated {
        finish: FinishReason::Cancelled,
        prompt_tokens: prompt.len(),
        reused_tokens: 0,
        tokens: Vec::new(),
        thought_tokens: 0,
        stop_hit: None,
        time_to_first_token: Duration::ZERO,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let mut to_compute = prompt.len();
    let mut progress = |done_tokens, total_tokens| {
        to_compute = total_tokens;
        on(GenerateEvent::Prompt { done_tokens, total_tokens })
    };
    match session.set_prompt(prompt, &mut progress) {
        Ok(reused) => answer.reused_tokens = reused,
        Err(e) if e.kind() == ErrorKind::Cancelled => {
            answer.prompt_tokens = session.tokens().len();
            answer.reused_tokens = prompt.len().saturating_sub(to_compute).min(answer.prompt_tokens);
            answer.prefill = start.elapsed();
            return Ok(answer);
        }
        Err(e) => return Err(e),
    }
    answer.prefill = start.elapsed();
    let mut decode_start = Instant::now();
    let context = session.model().context();
    while generation.finish().is_none() {
        let first = generation.tokens().is_empty();
        let events = generation.accept(session.logits(), session.tokens(), context)?;
        if first {
            answer.time_to_first_token = start.elapsed();
            decode_start = Instant::now();
        }
        if !show(events, on) {
            show(generation.end(FinishReason::Cancelled), on);
            break;
        }
        if let Some(token) = generation.next_token() {
            match session.append(&[token], &mut |_, _| on(GenerateEvent::Token)) {
                Err(e) if e.kind() == ErrorKind::Cancelled => {
                    show(generation.end(FinishReason::Cancelled), on);
                    break;
                }
                appended => appended?,
            }
        }
    }
    answer.decode = decode_start.elapsed();
    // The token that ended the answer has not been computed.
    let missing = (prompt.len() + generation.tokens().len()).saturating_sub(session.tokens().len());
    if session.tokens().len() < context && missing > 0 {
        session.extend(&generation.tokens()[generation.tokens().len() - missing..])?;
    }
    answer.finish = generation.finish().unwrap_or(FinishReason::Cancelled);
    answer.tokens = generation.tokens().to_vec();
    answer.thought_tokens = generation.thought_tokens();
    answer.stop_hit = generation.stop_hit();
    Ok(answer)
}

/// Hands on events, all of them, since they are part of the answer; false if somebody broke off.
fn show(events: Vec<ReplyEvent>, on: &mut dyn FnMut(GenerateEvent) -> ControlFlow<()>) -> bool {
    let mut goes_on = true;
    for event in events {
        goes_on &= on(GenerateEvent::Reply(event)).is_continue();
    }
    goes_on
}
