//! A prompt in, text out, token by token.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use files::{ErrorKind, Result};

use crate::sample::{SampleParams, Sampler};
use crate::session::Session;
use crate::text::{Detokenizer, StopStrings, Tokenizer};

/// How to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// Most tokens to generate; `None` until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it. They are looked for in all that is generated: a caller that
    /// takes replies apart gives them to [`ReplyOptions`](crate::text::ReplyOptions) instead.
    pub stop: Vec<String>,
    /// Go on after the model's own end tokens, to measure speed.
    pub ignore_end: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, by an end token or by the beginning of another's turn, or a stop string did.
    Stop,
    /// `max_tokens`.
    Length,
    /// The context is full.
    Context,
    /// The caller broke off.
    Cancelled,
}

/// What happens while an answer is made.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateEvent<'a> {
    /// The prompt is being read: tokens done, with fractions within a chunk, of those to compute.
    Prompt {
        /// Done so far.
        done_tokens: f64,
        /// To be done.
        total_tokens: usize,
    },
    /// More text. Never splits a character, never contains part of a stop string.
    Text(&'a str),
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

/// Control tokens with which a turn begins. A model that writes one has ended its own turn: what would follow is made
/// up, another's words. (`<|start|>` of gpt-oss is none of them: its own messages begin so.)
const TURN_STARTS: [&str; 14] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|header_start|>",
    "<start_of_turn>",
    "<|turn>",
    "<|start_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|user|>",
    "<|system|>",
    "<|observation|>",
    "<|im_user|>",
    "<|im_system|>",
    "<｜User｜>",
    "]~b]",
];

/// Those of them that the tokenizer has.
fn turn_starts(tokenizer: &Tokenizer) -> Vec<u32> {
    let known = TURN_STARTS.iter().filter_map(|name| tokenizer.token_id(name));
    known.filter(|id| tokenizer.is_special(*id)).collect()
}

/// Makes `prompt` the session's sequence and generates after it. `on` may break off at any event; the tokens so far
/// stay in the session.
///
/// # Errors
/// `InvalidRequest` for sampling values out of range, `ContextFull` for a prompt that does not fit, and what the
/// drive or device reports.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    on: &mut dyn FnMut(GenerateEvent<'_>) -> ControlFlow<()>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut sampler = Sampler::new(&options.sampling)?;
    let mut stops = StopStrings::new(options.stop.clone())?;
    let mut detokenizer = Detokenizer::new(tokenizer);
    let mut answer = Generated {
        finish: FinishReason::Length,
        prompt_tokens: prompt.len(),
        reused_tokens: 0,
        tokens: Vec::new(),
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
            answer.finish = FinishReason::Cancelled;
            answer.prompt_tokens = session.tokens().len();
            answer.reused_tokens = prompt.len().saturating_sub(to_compute).min(answer.prompt_tokens);
            answer.prefill = start.elapsed();
            return Ok(answer);
        }
        Err(e) => return Err(e),
    }
    answer.prefill = start.elapsed();
    let tokens = || (tokenizer.end_tokens(), turn_starts(tokenizer));
    let (ends, starts) = if options.ignore_end { Default::default() } else { tokens() };
    let most = options.max_tokens.unwrap_or(usize::MAX);
    let mut decode_start = Instant::now();
    while answer.tokens.len() < most {
        let token = sampler.sample(session.logits(), session.tokens())?;
        if answer.tokens.is_empty() {
            answer.time_to_first_token = start.elapsed();
            decode_start = Instant::now();
        }
        // A template that does not begin the model's turn leaves that to the model, as its first token.
        if ends.contains(&token) || (!answer.tokens.is_empty() && starts.contains(&token)) {
            answer.finish = FinishReason::Stop;
            break;
        }
        answer.tokens.push(token);
        let text = stops.push(&detokenizer.push(token));
        if !text.is_empty() && on(GenerateEvent::Text(&text)).is_break() {
            answer.finish = FinishReason::Cancelled;
            break;
        }
        if stops.hit().is_some() {
            answer.finish = FinishReason::Stop;
            break;
        }
        if session.tokens().len() == session.model().context() {
            answer.finish = FinishReason::Context;
            break;
        }
        if answer.tokens.len() < most {
            session.append(&[token], &mut |_, _| ControlFlow::Continue(()))?;
        }
    }
    answer.decode = decode_start.elapsed();
    if stops.hit().is_none() {
        let rest = stops.push(&detokenizer.finish()) + &stops.finish();
        if !rest.is_empty() && on(GenerateEvent::Text(&rest)).is_break() {
            answer.finish = FinishReason::Cancelled;
        }
    }
    Ok(answer)
}
