//! The answer of a chat, whole and as a stream.

use serde_json::{Map, Value, json};

use super::figures::{Tally, data, end, failure, heading, is_cut, milliseconds, token_logprob};
use crate::{ApiError, Ending, Event, EventKind, Frame, ReplyHead, ReplyWriter, Request};

/// The writer of a chat's answer.
pub fn chat_reply(head: ReplyHead, request: &Request) -> Box<dyn ReplyWriter> {
    let choices = request.choices.max(1);
    Box::new(Reply {
        head,
        include_usage: request.include_usage,
        progress: request.progress,
        logprobs: request.top_logprobs.is_some(),
        choices: (0..choices).map(|_| Choice::default()).collect(),
        tally: Tally::new(choices),
    })
}

struct Reply {
    head: ReplyHead,
    include_usage: bool,
    progress: bool,
    logprobs: bool,
    choices: Vec<Choice>,
    tally: Tally,
}

/// What one answer says.
#[derive(Default)]
struct Choice {
    thoughts: String,
    text: String,
    calls: Vec<Call>,
    logprobs: Vec<Value>,
    ending: Option<Ending>,
}

struct Call {
    id: String,
    name: String,
    arguments: String,
    complete: bool,
}

impl Call {
    fn value(&self) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}

impl Choice {
    fn finish_reason(&self) -> Option<&'static str> {
        let ending = self.ending.as_ref()?;
        // A call that was cut off is none: whoever ran it would run something else.
        if !self.calls.is_empty() && self.calls.iter().all(|call| call.complete) {
            return Some("tool_calls");
        }
        Some(match ending {
            Ending::Stop | Ending::StopString(_) => "stop",
            Ending::Length | Ending::Context | Ending::Cancelled => "length",
        })
    }

    /// The logprobs' object, `null` where none were asked for.
    fn logprobs_value(content: Option<Vec<Value>>) -> Value {
        content.map_or(Value::Null, |content| json!({"content": content, "refusal": null}))
    }

    fn message(&self) -> Value {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        let silent = self.text.is_empty() && !self.calls.is_empty();
        message.insert("content".into(), if silent { Value::Null } else { self.text.as_str().into() });
        message.insert("refusal".into(), Value::Null);
        if !self.thoughts.is_empty() {
            message.insert("reasoning_content".into(), self.thoughts.as_str().into());
        }
        if !self.calls.is_empty() {
            message.insert("tool_calls".into(), self.calls.iter().map(Call::value).collect());
        }
        Value::Object(message)
    }

    /// Takes an event; the deltas that it makes, with their log-probabilities.
    fn take(&mut self, kind: &EventKind) -> Option<(Value, Option<Vec<Value>>)> {
        match kind {
            EventKind::Text { text, logprobs } => {
                let logprobs: Vec<Value> = logprobs.iter().map(token_logprob).collect();
                self.text.push_str(text);
                self.logprobs.extend(logprobs.iter().cloned());
                let is_empty = text.is_empty() && logprobs.is_empty();
                (!is_empty).then(|| (json!({"content": text}), Some(logprobs)))
            }
            EventKind::Thinking(text) => {
                self.thoughts.push_str(text);
                (!text.is_empty()).then(|| (json!({"reasoning_content": text}), None))
            }
            EventKind::CallStart { index, id, name } => {
                let call = Call {
                    id: format!("call_{id}"),
                    name: name.clone(),
                    arguments: String::new(),
                    complete: false,
                };
                let mut delta = call.value();
                delta["index"] = json!(index);
                self.calls.push(call);
                Some((json!({"tool_calls": [delta]}), None))
            }
            EventKind::CallArguments { index, text } => self.arguments(*index, text),
            EventKind::CallEnd { index } => {
                let call = self.calls.get_mut(*index)?;
                call.complete = true;
                if call.arguments.is_empty() { self.arguments(*index, "{}") } else { None }
            }
            EventKind::Started { .. } | EventKind::Progress { .. } | EventKind::Ended { .. } => None,
        }
    }

    fn arguments(&mut self, index: usize, text: &str) -> Option<(Value, Option<Vec<Value>>)> {
        self.calls.get_mut(index)?.arguments.push_str(text);
        let delta = json!({"index": index, "function": {"arguments": text}});
        (!text.is_empty()).then(|| (json!({"tool_calls": [delta]}), None))
    }
}

impl Reply {
    /// A chunk with `choices`; usage is `null` in all but the last where it was asked for.
    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let mut chunk = heading(&self.head, "chatcmpl-", "chat.completion.chunk");
        chunk.insert("choices".into(), choices);
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn delta(
        &self,
        choice: usize,
        delta: &Value,
        logprobs: Option<Vec<Value>>,
        reason: Option<&str>,
    ) -> Map<String, Value> {
        let logprobs = Choice::logprobs_value(logprobs.filter(|_| self.logprobs));
        self.chunk(json!([{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]))
    }

    /// The end of one answer. The last one has the times, unless a chunk with the usage follows.
    fn ended(&self, choice: usize, reason: &str) -> Map<String, Value> {
        let mut chunk = self.delta(choice, &json!({}), None, Some(reason));
        if !self.include_usage && self.tally.ended() == self.choices.len() {
            chunk.insert("timings".into(), self.tally.timings());
        }
        chunk
    }
}

impl ReplyWriter for Reply {
    fn begin(&mut self) -> Vec<Frame> {
        let first = json!({"role": "assistant", "content": ""});
        (0..self.choices.len()).map(|choice| data(self.delta(choice, &first, None, None))).collect()
    }

    fn event(&mut self, event: &Event) -> Vec<Frame> {
        let Some(choice) = self.choices.get_mut(event.choice) else { return Vec::new() };
        match &event.kind {
            EventKind::Progress { done_tokens, total_tokens, cached_tokens, elapsed } if self.progress => {
                let mut chunk = self.chunk(json!([]));
                chunk.insert(
                    "prompt_progress".into(),
                    json!({
                        "total": total_tokens,
                        "cache": cached_tokens,
                        "processed": done_tokens,
                        "time_ms": milliseconds(*elapsed),
                    }),
                );
                vec![data(chunk)]
            }
            EventKind::Ended { ending, usage, timings } => {
                choice.ending = Some(ending.clone());
                let reason = choice.finish_reason().filter(|_| *ending != Ending::Cancelled);
                self.tally.add(event.choice, *usage, *timings);
                reason.map(|reason| data(self.ended(event.choice, reason))).into_iter().collect()
            }
            kind => {
                let delta = choice.take(kind);
                let frame = |(delta, logprobs)| data(self.delta(event.choice, &delta, logprobs, None));
                delta.map(frame).into_iter().collect()
            }
        }
    }

    fn ping(&mut self) -> Vec<Frame> {
        vec![Frame::Comment("ping")]
    }

    fn end(&mut self) -> Vec<Frame> {
        if self.choices.iter().any(|choice| is_cut(choice.ending.as_ref())) {
            return failure(&ApiError::cancelled());
        }
        end(self.include_usage.then(|| self.chunk(json!([]))), &self.tally)
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        failure(error)
    }

    fn whole(&mut self) -> Value {
        let choices: Vec<Value> = self
            .choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs = self.logprobs.then(|| choice.logprobs.clone());
                json!({
                    "index": index,
                    "message": choice.message(),
                    "logprobs": Choice::logprobs_value(logprobs),
                    "finish_reason": choice.finish_reason(),
                })
            })
            .collect();
        let mut whole = heading(&self.head, "chatcmpl-", "chat.completion");
        whole.insert("choices".into(), choices.into());
        self.tally.add_to(&mut whole);
        Value::Object(whole)
    }
}
