//! From what the scheduler says of a sequence to what the APIs say of an answer. Pure: the time and the counts are given.

use std::time::Duration;

use api::{Ending, Event, EventKind, Timings, TokenLogprob, Usage};
use engine::generate::{FinishReason, Generated};
use engine::sample::Logprobs;
use engine::scheduler::{RequestEvent, SchedulerCounts};
use engine::text::ReplyEvent;

/// What is known when an event comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Moment {
    /// Since the request came.
    pub(crate) elapsed: Duration,
    /// Of all requests together; only where an answer begins or ends.
    pub(crate) counts: SchedulerCounts,
}

/// What the answers of a request have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// Whether the model has experts.
    pub(crate) has_experts: bool,
    /// The stop strings, in the order in which the engine has them.
    pub(crate) stop: Vec<String>,
    /// Whether texts come with log-probabilities of their tokens.
    pub(crate) logprobs: bool,
}

/// What an event is made with.
pub(crate) struct Tools<'a> {
    /// Makes ids of calls.
    pub(crate) id: &'a dyn Fn() -> String,
    /// The bytes of a token.
    pub(crate) token_bytes: &'a dyn Fn(u32) -> Vec<u8>,
}

/// One answer's part of the way.
#[derive(Debug)]
pub(crate) struct Mapping {
    choice: usize,
    expected: Expected,
    /// What the answer begins with.
    echo: Option<String>,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// When its prompt was begun.
    before: SchedulerCounts,
    /// A text whose log-probabilities may follow.
    text: Option<String>,
    /// The call that is being told.
    call: Option<usize>,
}

impl Mapping {
    /// For the answer `choice`, which begins with `echo`.
    pub(crate) fn new(choice: usize, expected: Expected, echo: Option<String>) -> Self {
        Self {
            choice,
            expected,
            echo,
            prompt_tokens: 0,
            cached_tokens: 0,
            before: SchedulerCounts::default(),
            text: None,
            call: None,
        }
    }

    /// The events that this one makes.
    ///
    /// # Errors
    /// What the engine failed of.
    pub(crate) fn map(
        &mut self,
        event: RequestEvent,
        moment: &Moment,
        tools: &Tools<'_>,
    ) -> engine::Result<Vec<Event>> {
        let mut kinds = Vec::new();
        match event {
            RequestEvent::Begun { prompt_tokens, reused_tokens, .. } => {
                (self.prompt_tokens, self.cached_tokens) = (prompt_tokens, reused_tokens);
                self.before = moment.counts;
                kinds.push(EventKind::Started { prompt_tokens, cached_tokens: reused_tokens });
                kinds.extend(self.echo.take().map(plain_text));
            }
            RequestEvent::Prompt { done_tokens, total_tokens } => kinds.push(EventKind::Progress {
                done_tokens: (done_tokens as usize).max(self.cached_tokens).min(total_tokens),
                total_tokens,
                cached_tokens: self.cached_tokens,
                elapsed: moment.elapsed,
            }),
            RequestEvent::Reply(event) => self.reply(event, tools, &mut kinds),
            RequestEvent::Ended(ended) => {
                kinds.extend(self.text.take().map(plain_text));
                kinds.push(self.end(&ended?, moment));
            }
        }
        Ok(kinds.into_iter().map(|kind| Event { choice: self.choice, kind }).collect())
    }

    fn reply(&mut self, event: ReplyEvent, tools: &Tools<'_>, kinds: &mut Vec<EventKind>) {
        if let ReplyEvent::Logprobs(list) = event {
            let text = self.text.take().unwrap_or_default();
            let logprobs = list.iter().map(|of| token_logprob(of, tools.token_bytes)).collect();
            return kinds.push(EventKind::Text { text, logprobs });
        }
        kinds.extend(self.text.take().map(plain_text));
        match event {
            ReplyEvent::Text(text) if self.expected.logprobs => self.text = Some(text),
            ReplyEvent::Text(text) => kinds.push(plain_text(text)),
            ReplyEvent::Thinking(text) => kinds.push(EventKind::Thinking(text)),
            ReplyEvent::ToolCallStart { index, name } => {
                self.call = Some(index);
                kinds.push(EventKind::CallStart { index, id: (tools.id)(), name });
            }
            ReplyEvent::ToolCallArguments { index, text } => {
                kinds.push(EventKind::CallArguments { index, text });
            }
            ReplyEvent::ToolCall { index, call } => {
                // One that was recognised only when it was whole.
                if self.call.take() != Some(index) {
                    kinds.push(EventKind::CallStart { index, id: (tools.id)(), name: call.name });
                    kinds.push(EventKind::CallArguments { index, text: call.arguments.to_string() });
                }
                kinds.push(EventKind::CallEnd { index });
            }
            // What was told of it stays told, and it has no end.
            ReplyEvent::BrokenToolCall { .. } => self.call = None,
            // A text that was sent stays a text.
            ReplyEvent::TextWasThinking | ReplyEvent::MalformedToolCall { .. } | ReplyEvent::Logprobs(_) => {}
        }
    }

    fn end(&self, answer: &Generated, moment: &Moment) -> EventKind {
        let hit = answer.stop_hit.and_then(|at| self.expected.stop.get(at));
        let ending = match (answer.finish, hit) {
            (FinishReason::Stop, Some(text)) => Ending::StopString(text.clone()),
            (FinishReason::Stop, None) => Ending::Stop,
            (FinishReason::Length, _) => Ending::Length,
            (FinishReason::Context, _) => Ending::Context,
            (FinishReason::Cancelled, _) => Ending::Cancelled,
        };
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: answer.tokens.len(),
            reasoning_tokens: answer.thought_tokens,
        };
        let (now, before) = (&moment.counts, &self.before);
        let hits = now.expert_hits.saturating_sub(before.expert_hits);
        let wanted = hits + now.expert_misses.saturating_sub(before.expert_misses);
        let rate = if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 };
        let timings = Timings {
            prompt: answer.prefill,
            predicted: answer.decode,
            expert_hit_rate: self.expected.has_experts.then_some(rate),
            drive_read_bytes: now.read_bytes.saturating_sub(before.read_bytes),
        };
        EventKind::Ended { ending, usage, timings }
    }
}

fn plain_text(text: String) -> EventKind {
    EventKind::Text { text, logprobs: Vec::new() }
}

fn token_logprob(of: &Logprobs, bytes: &dyn Fn(u32) -> Vec<u8>) -> TokenLogprob {
    let one = |id, logprob| TokenLogprob { id, bytes: bytes(id), logprob, top: Vec::new() };
    let top = of.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect();
    TokenLogprob { top, ..one(of.token, of.chosen) }
}

#[cfg(test)]
mod tests {
    use engine::text::ToolCall;
    use serde_json::json;

    use super::*;

    fn kinds(logprobs: bool, events: Vec<ReplyEvent>) -> Vec<EventKind> {
        let expected = Expected { logprobs, ..Expected::default() };
        let mut mapping = Mapping::new(3, expected, None);
        let tools = Tools { id: &|| "ID".into(), token_bytes: &|id| vec![id as u8] };
        let events = events.into_iter().map(RequestEvent::Reply);
        let mapped = events.flat_map(|event| mapping.map(event, &Moment::default(), &tools).unwrap());
        mapped.inspect(|event| assert_eq!(event.choice, 3)).map(|event| event.kind).collect()
    }

    #[test]
    fn a_call_is_told_as_it_is_written_or_when_it_is_whole() {
        let call =
            |name: &str| ToolCall { id: String::new(), name: name.into(), arguments: json!({"a": 1}).into() };
        let told = kinds(
            false,
            vec![
                ReplyEvent::ToolCallStart { index: 0, name: "f".into() },
                ReplyEvent::ToolCallArguments { index: 0, text: "{\"a\": 1}".into() },
                ReplyEvent::ToolCall { index: 0, call: call("f") },
                ReplyEvent::ToolCall { index: 1, call: call("g") },
                ReplyEvent::ToolCallStart { index: 2, name: "h".into() },
                ReplyEvent::BrokenToolCall { index: 2, reason: String::new(), text: String::new() },
            ],
        );
        let start = |index, name: &str| EventKind::CallStart { index, id: "ID".into(), name: name.into() };
        let whole = call("g").arguments.to_string();
        let expected = [
            start(0, "f"),
            EventKind::CallArguments { index: 0, text: "{\"a\": 1}".into() },
            EventKind::CallEnd { index: 0 },
            start(1, "g"),
            EventKind::CallArguments { index: 1, text: whole },
            EventKind::CallEnd { index: 1 },
            start(2, "h"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn texts_have_the_log_probabilities_that_follow_them() {
        let of = |token| Logprobs { token, chosen: -1.0, top: vec![(token, -1.0), (9, -2.0)] };
        let told = kinds(
            true,
            vec![
                ReplyEvent::Text("a".into()),
                ReplyEvent::Logprobs(vec![of(1), of(2)]),
                ReplyEvent::Text("b".into()),
                ReplyEvent::Text("c".into()),
                ReplyEvent::Logprobs(vec![of(3)]),
            ],
        );
        let told: Vec<(String, Vec<u32>)> = told
            .into_iter()
            .map(|kind| match kind {
                EventKind::Text { text, logprobs } => (text, logprobs.iter().map(|of| of.id).collect()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [("a".into(), vec![1, 2]), ("b".into(), vec![]), ("c".into(), vec![3])]);
    }

    #[test]
    fn an_end_says_why_and_what_it_cost() {
        let expected = Expected { has_experts: true, stop: vec!["x".into(), "y".into()], logprobs: false };
        let mut mapping = Mapping::new(0, expected, Some("echo".into()));
        let tools = Tools { id: &String::new, token_bytes: &|_| Vec::new() };
        let counts = |hits, misses, read_bytes| SchedulerCounts {
            expert_hits: hits,
            expert_misses: misses,
            read_bytes,
            ..SchedulerCounts::default()
        };
        let at = |counts| Moment { counts, ..Moment::default() };
        let begun = RequestEvent::Begun { prompt_tokens: 9, reused_tokens: 4, departs: None };
        let begun = mapping.map(begun, &at(counts(10, 10, 100)), &tools).unwrap();
        assert_eq!(begun[1].kind, plain_text("echo".into()));
        let generated = Generated {
            finish: FinishReason::Stop,
            prompt_tokens: 9,
            reused_tokens: 4,
            tokens: vec![1, 2, 3],
            thought_tokens: 2,
            stop_hit: Some(1),
            time_to_first_token: Duration::ZERO,
            prefill: Duration::from_secs(1),
            decode: Duration::from_secs(2),
        };
        let ended =
            mapping.map(RequestEvent::Ended(Ok(generated)), &at(counts(13, 11, 150)), &tools).unwrap();
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, completion_tokens: 3, reasoning_tokens: 2 };
        let timings = Timings {
            prompt: Duration::from_secs(1),
            predicted: Duration::from_secs(2),
            expert_hit_rate: Some(0.75),
            drive_read_bytes: 50,
        };
        let expected = EventKind::Ended { ending: Ending::StopString("y".into()), usage, timings };
        assert_eq!(ended[0].kind, expected);
    }
}
