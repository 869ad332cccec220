//! What the answers of a request cost, and log-probabilities.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::{ApiError, Ending, Frame, ReplyHead, Timings, TokenLogprob, Usage};

/// In place of minus infinity, which JSON does not have.
const LEAST_LOGPROB: f32 = -9999.0;

/// Tokens and times of the answers that have ended.
#[derive(Debug)]
pub(super) struct Tally {
    choices_per_prompt: usize,
    ended: BTreeMap<usize, (Usage, Timings)>,
}

impl Tally {
    pub(super) fn new(choices_per_prompt: usize) -> Self {
        Self { choices_per_prompt: choices_per_prompt.max(1), ended: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, choice: usize, usage: Usage, timings: Timings) {
        self.ended.insert(choice, (usage, timings));
    }

    /// How many answers have ended.
    pub(super) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// All together. The answers to one prompt share it: it counts once, and what the first of them computed was computed.
    fn total(&self) -> Usage {
        let mut prompts: BTreeMap<usize, Usage> = BTreeMap::new();
        for (choice, (usage, _)) in &self.ended {
            let first = Usage { completion_tokens: 0, reasoning_tokens: 0, ..*usage };
            let total = prompts.entry(choice / self.choices_per_prompt).or_insert(first);
            total.prompt_tokens = total.prompt_tokens.max(usage.prompt_tokens);
            total.cached_tokens = total.cached_tokens.min(usage.cached_tokens);
            total.completion_tokens += usage.completion_tokens;
            total.reasoning_tokens += usage.reasoning_tokens;
        }
        prompts.values().fold(Usage::default(), |sum, usage| Usage {
            prompt_tokens: sum.prompt_tokens + usage.prompt_tokens,
            cached_tokens: sum.cached_tokens + usage.cached_tokens,
            completion_tokens: sum.completion_tokens + usage.completion_tokens,
            reasoning_tokens: sum.reasoning_tokens + usage.reasoning_tokens,
        })
    }

    /// Puts what the answers cost into the last object of an answer.
    pub(super) fn add_to(&self, object: &mut Map<String, Value>) {
        object.insert("usage".into(), self.usage());
        object.insert("timings".into(), self.timings());
    }

    fn usage(&self) -> Value {
        let total = self.total();
        json!({
            "prompt_tokens": total.prompt_tokens,
            "completion_tokens": total.completion_tokens,
            "total_tokens": total.prompt_tokens + total.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": total.reasoning_tokens},
        })
    }

    /// Under llama.cpp's names, and what the experts cost. Answers are made at the same time, so the longest counts.
    pub(super) fn timings(&self) -> Value {
        let total = self.total();
        let times = || self.ended.values().map(|(_, timings)| timings);
        let prompt = times().map(|timings| timings.prompt).max().unwrap_or_default();
        let predicted = times().map(|timings| timings.predicted).max().unwrap_or_default();
        let computed = total.prompt_tokens.saturating_sub(total.cached_tokens);
        // The first token of an answer comes out of its prompt, before its time begins.
        let firsts = self.ended.values().filter(|(usage, _)| usage.completion_tokens > 0).count();
        let rates: Vec<f64> = times().filter_map(|timings| timings.expert_hit_rate).collect();
        let hit_rate = (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64);
        json!({
            "cache_n": total.cached_tokens,
            "prompt_n": computed,
            "prompt_ms": milliseconds(prompt),
            "prompt_per_second": rate(computed, prompt),
            "predicted_n": total.completion_tokens,
            "predicted_ms": milliseconds(predicted),
            "predicted_per_second": rate(total.completion_tokens.saturating_sub(firsts), predicted),
            "expert_hit_rate": hit_rate,
            "drive_read_bytes": times().map(|timings| timings.drive_read_bytes).max().unwrap_or_default(),
        })
    }
}

/// A frame of a stream.
pub(super) fn data(chunk: Map<String, Value>) -> Frame {
    Frame::Data { event: None, data: Value::Object(chunk).to_string() }
}

/// Whether an answer has no end of its own.
pub(super) fn is_cut(ending: Option<&Ending>) -> bool {
    matches!(ending, None | Some(Ending::Cancelled))
}

/// The end of a stream; before it `usage`, a chunk without choices, where it was asked for.
pub(super) fn end(usage: Option<Map<String, Value>>, tally: &Tally) -> Vec<Frame> {
    let usage = usage.map(|mut chunk| {
        tally.add_to(&mut chunk);
        data(chunk)
    });
    usage.into_iter().chain([Frame::Data { event: None, data: "[DONE]".into() }]).collect()
}

/// A failure in the midst of a stream. No end follows it.
pub(super) fn failure(error: &ApiError) -> Vec<Frame> {
    vec![Frame::Data { event: None, data: error.openai().to_string() }]
}

/// To a microsecond.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn rate(count: usize, time: Duration) -> f64 {
    match time.as_secs_f64() {
        0.0 => 0.0,
        seconds => (count as f64 / seconds * 1000.0).round() / 1000.0,
    }
}

/// What each object of an answer begins with.
pub(super) fn heading(head: &ReplyHead, prefix: &str, object: &str) -> Map<String, Value> {
    let rows = [
        ("id", json!(format!("{prefix}{}", head.id))),
        ("object", json!(object)),
        ("created", json!(head.created_unix_s)),
        ("model", json!(head.model)),
        ("system_fingerprint", json!(head.fingerprint)),
    ];
    rows.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A token as text; one that is no UTF-8 by itself as its bytes.
pub(super) fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

/// A log-probability that JSON can hold.
pub(super) fn logprob_value(logprob: f32) -> f64 {
    // What is no number is not above it either.
    f64::from(if logprob > LEAST_LOGPROB { logprob.min(0.0) } else { LEAST_LOGPROB })
}

/// In Chat's shape.
pub(crate) fn token_logprob(token: &TokenLogprob) -> Value {
    let entry = |token: &TokenLogprob| json!({"token": token_text(&token.bytes), "logprob": logprob_value(token.logprob), "bytes": token.bytes});
    let mut value = entry(token);
    value["top_logprobs"] = token.top.iter().map(entry).collect();
    value
}
