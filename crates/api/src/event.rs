//! What becomes of a request, whichever API shows it.

use std::time::Duration;

/// Something that happened to one of the answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which answer: prompt times choices per prompt, plus choice.
    pub choice: usize,
    /// What.
    pub kind: EventKind,
}

/// What can happen. Per answer: `Started`, any `Progress`, then texts, thoughts and calls, then `Ended`.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// Its prompt is begun.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that need not be computed.
        cached_tokens: usize,
    },
    /// The prompt is being read.
    Progress {
        /// Tokens done, cached ones included.
        done_tokens: usize,
        /// All.
        total_tokens: usize,
        /// Those that were cached.
        cached_tokens: usize,
        /// Since the request came.
        elapsed: Duration,
    },
    /// More of the answer. Whole characters; may be empty where a token that makes no text has log-probabilities.
    Text {
        /// The text.
        text: String,
        /// Of the tokens that made it, where asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// More of the thoughts before it.
    Thinking(String),
    /// A call begins.
    CallStart {
        /// Counts the calls of this answer from 0.
        index: usize,
        /// Unguessable; without a prefix, 24 letters and digits. Each API puts its own before it.
        id: String,
        /// The function.
        name: String,
    },
    /// More of its arguments, as JSON text.
    CallArguments {
        /// Which call.
        index: usize,
        /// The text. All of a call's joined are a JSON object.
        text: String,
    },
    /// The call is complete.
    CallEnd {
        /// Which call.
        index: usize,
    },
    /// The answer is complete.
    Ended {
        /// Why.
        ending: Ending,
        /// Its tokens.
        usage: Usage,
        /// Its times.
        timings: Timings,
    },
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it.
    Stop,
    /// This stop string did.
    StopString(String),
    /// `max_tokens`.
    Length,
    /// The context is full.
    Context,
    /// Cancelled from outside.
    Cancelled,
}

/// Tokens of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, cached ones included.
    pub prompt_tokens: usize,
    /// Those of the prompt that were not computed.
    pub cached_tokens: usize,
    /// Of the answer: thoughts, text and calls.
    pub completion_tokens: usize,
    /// Of the thoughts.
    pub reasoning_tokens: usize,
}

/// Times of an answer, and what the experts cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Computing the prompt.
    pub prompt: Duration,
    /// Computing the answer after its first token.
    pub predicted: Duration,
    /// Wanted experts that were in memory while it ran, 0 to 1; `None` for a dense model.
    pub expert_hit_rate: Option<f64>,
    /// Bytes that the drive read while it ran.
    pub drive_read_bytes: u64,
}

/// A token's natural log-probability, and those of the likeliest at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token's id.
    pub id: u32,
    /// Its bytes; they need not be UTF-8 by themselves.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest at its place, falling; among equals the chosen one is first. Their own `top` is empty.
    pub top: Vec<TokenLogprob>,
}
