//! From what the scheduler says of a sequence to what the APIs say of an answer. Pure: the time and the counts are given.

use std::time::Duration;

use api::{Ending, Event, EventKind, Timings, Usage};
use engine::generate::{FinishReason, Generated};
use engine::scheduler::{RequestEvent, SchedulerCounts};
use engine::text::ReplyEvent;

/// What is known when an event comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    /// Since the request came.
    pub(crate) elapsed: Duration,
    /// Of all requests together.
    pub(crate) counts: SchedulerCounts,
}

/// One answer's part of the way.
#[derive(Debug)]
pub(crate) struct Mapping {
    choice: usize,
    has_experts: bool,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// When its prompt was begun.
    before: SchedulerCounts,
    /// What it has been told so far is the model's, and nothing of it waits.
    generated: usize,
}

impl Mapping {
    /// For the answer `choice` of a model with experts or without.
    pub(crate) fn new(choice: usize, has_experts: bool) -> Self {
        let before = SchedulerCounts::default();
        Self { choice, has_experts, prompt_tokens: 0, cached_tokens: 0, before, generated: 0 }
    }

    /// The events that this one makes. `id` makes ids of calls.
    ///
    /// # Errors
    /// What the engine failed of.
    pub(crate) fn map(
        &mut self,
        event: RequestEvent,
        moment: &Moment,
        id: &mut dyn FnMut() -> String,
    ) -> engine::Result<Vec<Event>> {
        let kinds = match event {
            RequestEvent::Begun { prompt_tokens, reused_tokens } => {
                (self.prompt_tokens, self.cached_tokens) = (prompt_tokens, reused_tokens);
                self.before = moment.counts;
                vec![EventKind::Started { prompt_tokens, cached_tokens: reused_tokens }]
            }
            RequestEvent::Prompt { done_tokens, total_tokens } => vec![EventKind::Progress {
                done_tokens: (done_tokens as usize).clamp(self.cached_tokens, total_tokens),
                total_tokens,
                cached_tokens: self.cached_tokens,
                elapsed: moment.elapsed,
            }],
            RequestEvent::Reply(event) => reply(event, id),
            RequestEvent::Ended(ended) => vec![self.end(&ended?, moment)],
        };
        Ok(kinds.into_iter().map(|kind| Event { choice: self.choice, kind }).collect())
    }

    fn end(&mut self, answer: &Generated, moment: &Moment) -> EventKind {
        self.generated = answer.tokens.len();
        let ending = match answer.finish {
            FinishReason::Stop => Ending::Stop,
            FinishReason::Length => Ending::Length,
            FinishReason::Context => Ending::Context,
            FinishReason::Cancelled => Ending::Cancelled,
        };
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: answer.tokens.len(),
            reasoning_tokens: 0,
        };
        let (now, before) = (&moment.counts, &self.before);
        let hits = now.expert_hits.saturating_sub(before.expert_hits);
        let wanted = hits + now.expert_misses.saturating_sub(before.expert_misses);
        let rate = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
        let timings = Timings {
            prompt: answer.prefill,
            predicted: answer.decode,
            expert_hit_rate: self.has_experts.then_some(rate),
            drive_read_bytes: now.read_bytes.saturating_sub(before.read_bytes),
        };
        EventKind::Ended { ending, usage, timings }
    }
}

/// A call is told when it is whole: what looked like one may turn out to be text.
fn reply(event: ReplyEvent, id: &mut dyn FnMut() -> String) -> Vec<EventKind> {
    match event {
        ReplyEvent::Text(text) => vec![EventKind::Text { text, logprobs: Vec::new() }],
        ReplyEvent::Thinking(text) => vec![EventKind::Thinking(text)],
        ReplyEvent::ToolCall { index, call } => vec![
            EventKind::CallStart { index, id: id(), name: call.name },
            EventKind::CallArguments { index, text: call.arguments.to_string() },
            EventKind::CallEnd { index },
        ],
        // What was shown as text stays text: nothing that was sent is taken back.
        ReplyEvent::TextWasThinking
        | ReplyEvent::ToolCallStart { .. }
        | ReplyEvent::MalformedToolCall { .. } => Vec::new(),
    }
}
