//! What programs are told of an answer and of a model: the objects of `run --json`.

use engine::generate::{FinishReason, Generated};
use engine::text::ReplyTurn;
use engine::{Model, ReadStats};
use serde_json::{Map, Value, json};

/// Counts of the expert store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reads {
    /// Bytes read from files.
    pub bytes: u64,
    /// Seconds in which a read was under way.
    pub busy_s: f64,
    /// Seconds in which nothing could be computed before more had been read.
    pub wait_s: f64,
    /// Wanted experts that were in memory, 0 to 1; `None` for a dense model.
    pub hit_rate: Option<f64>,
}

impl Reads {
    /// Of a model between two looks at its counts; whoever else uses the model counts too.
    pub fn between(before: Option<&ReadStats>, after: Option<&ReadStats>) -> Self {
        let Some(after) = after else { return Self::default() };
        let (first, last) = (before.map(ReadStats::total).unwrap_or_default(), after.total());
        let busy = before.map_or(after.busy, |before| after.busy.saturating_sub(before.busy));
        // Who sets the counts to zero meanwhile makes them too small.
        let (hits, misses) = (last.hits.saturating_sub(first.hits), last.misses.saturating_sub(first.misses));
        Self {
            bytes: last.read_bytes.saturating_sub(first.read_bytes),
            busy_s: busy.as_secs_f64(),
            wait_s: last.wait.saturating_sub(first.wait).as_secs_f64(),
            hit_rate: Some(if hits + misses == 0 { 1.0 } else { hits as f64 / (hits + misses) as f64 }),
        }
    }

    /// The drive's rate while it worked.
    pub fn bytes_per_s(&self) -> f64 {
        if self.busy_s > 0.0 { self.bytes as f64 / self.busy_s } else { 0.0 }
    }
}

/// An answer and its numbers.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The answer, taken apart.
    pub turn: ReplyTurn,
    /// Times and counts.
    pub generated: Generated,
    /// What the drive did for it.
    pub reads: Reads,
    /// The seed, where tokens were drawn.
    pub seed: Option<u64>,
}

impl Answered {
    /// Tokens that were computed: read or generated.
    pub fn computed_tokens(&self) -> usize {
        self.generated.prompt_tokens - self.generated.reused_tokens + self.generated.tokens.len()
    }

    /// Why it ended, in one word.
    fn finish(&self) -> &'static str {
        match self.generated.finish {
            FinishReason::Stop if !self.turn.calls.is_empty() => "tool_calls",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Cancelled => "cancelled",
        }
    }

    /// The answer and the numbers.
    pub fn json(&self) -> Map<String, Value> {
        let g = &self.generated;
        let per_token = self.reads.bytes as f64 / self.computed_tokens().max(1) as f64;
        let rows = [
            ("text", json!(self.turn.text)),
            ("thinking", json!(Some(&self.turn.thinking).filter(|t| !t.is_empty()))),
            ("tool_calls", json!(self.turn.calls)),
            ("finish_reason", json!(self.finish())),
            ("prompt_tokens", json!(g.prompt_tokens)),
            ("reused_tokens", json!(g.reused_tokens)),
            ("answer_tokens", json!(g.tokens.len())),
            ("seed", json!(self.seed)),
            ("prefill_tokens_per_s", json!(g.prefill_tokens_per_s())),
            ("decode_tokens_per_s", json!(g.decode_tokens_per_s())),
            ("time_to_first_token_s", json!(g.time_to_first_token.as_secs_f64())),
            ("read_bytes_per_token", json!(per_token)),
            ("drive_bytes_per_s", json!(self.reads.bytes_per_s())),
            ("expert_hit_rate", json!(self.reads.hit_rate)),
            ("stall_s", json!(self.reads.wait_s)),
        ];
        rows.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// What every object says about the model, which is called `name`, and how it runs.
pub fn of_model(model: &Model, name: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("model".into(), json!(name));
    map.insert("device".into(), json!(model.describe()));
    if model.top_k() > 0 {
        map.insert("experts_per_token".into(), json!(model.top_k()));
        map.insert("lossy".into(), json!(is_lossy(model)));
    }
    map.insert("plan_bytes".into(), json!(model.plan().total_bytes));
    map.insert("rss_peak_bytes".into(), json!(engine::rss_peak_bytes()));
    map
}

/// Whether a token uses another number of experts than the model was made for.
pub fn is_lossy(model: &Model) -> bool {
    model.meta().moe.as_ref().is_some_and(|moe| moe.top_k != model.top_k())
}
