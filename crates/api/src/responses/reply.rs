//! The answer: items one after another, each with its events, numbered without gaps.

use std::collections::BTreeMap;

use engine::text::Message;
use serde_json::{Map, Value, json};

use super::input;
use crate::openai::token_logprob;
use crate::{
    ApiError, Ending, ErrorClass, Event, EventKind, Frame, Prompt, ReplyHead, ReplyWriter, Request,
    TokenLogprob, Usage,
};

/// The writer of its answer.
pub fn reply(head: ReplyHead, request: &Request) -> Box<dyn ReplyWriter> {
    let (repeated, namespaced) = match &request.prompt {
        Prompt::Chat(chat) => (chat.repeated.clone(), chat.namespaced.clone()),
        Prompt::Texts(_) => Default::default(),
    };
    Box::new(Reply {
        id: head.id,
        created_unix_s: head.created_unix_s,
        model: head.model,
        repeated,
        namespaced,
        sequence: 0,
        output: Vec::new(),
        open: None,
        ended: None,
    })
}

struct Reply {
    id: String,
    created_unix_s: u64,
    model: String,
    repeated: Map<String, Value>,
    namespaced: BTreeMap<String, (String, String)>,
    /// Of the next event.
    sequence: u64,
    /// The items that are complete.
    output: Vec<Value>,
    /// The one that is being written.
    open: Option<Item>,
    ended: Option<(Ending, Usage)>,
}

/// An item that is being written.
enum Item {
    Reasoning { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<Value> },
    Call { index: usize, id: String, name: String, arguments: String },
}

/// How far an item has come, as its `status` says.
#[derive(Clone, Copy)]
enum Status {
    InProgress,
    Completed,
    Incomplete,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

impl ReplyWriter for Reply {
    fn begin(&mut self) -> Vec<Frame> {
        vec![self.lifecycle("response.created"), self.lifecycle("response.in_progress")]
    }

    fn event(&mut self, event: &Event) -> Vec<Frame> {
        let mut frames = Vec::new();
        match &event.kind {
            EventKind::Started { .. } | EventKind::Progress { .. } => {}
            EventKind::Thinking(text) => self.thinking(text, &mut frames),
            EventKind::Text { text, logprobs } => self.text(text, logprobs, &mut frames),
            EventKind::CallStart { index, id, name } => {
                let (id, name) = (id.clone(), name.clone());
                self.open(Item::Call { index: *index, id, name, arguments: String::new() }, &mut frames);
            }
            EventKind::CallArguments { index, text } => self.arguments(*index, text, &mut frames),
            EventKind::CallEnd { index } => self.call_end(*index, &mut frames),
            EventKind::Ended { ending, usage, .. } => {
                let whole = matches!(ending, Ending::Stop | Ending::StopString(_));
                self.cut(if whole { Status::Completed } else { Status::Incomplete }, &mut frames);
                self.ended = Some((ending.clone(), *usage));
            }
        }
        frames
    }

    /// Not a comment: some clients count events, and give up on a stream that has none for minutes.
    fn ping(&mut self) -> Vec<Frame> {
        vec![self.lifecycle("response.in_progress")]
    }

    fn end(&mut self) -> Vec<Frame> {
        let name = match self.ending() {
            Some(Ending::Stop | Ending::StopString(_)) => "response.completed",
            Some(Ending::Length | Ending::Context) => "response.incomplete",
            Some(Ending::Cancelled) | None => "response.failed",
        };
        vec![self.lifecycle(name)]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        // Its last events are not sent, and so have no numbers.
        if let Some(item) = self.open.take() {
            self.output.push(item.json(Status::Incomplete, &self.namespaced));
        }
        let mut response = self.response("failed");
        response["error"] = error_json(error);
        vec![self.frame("response.failed", json!({"response": response}))]
    }

    fn whole(&mut self) -> Value {
        self.response(self.status())
    }

    fn answer(&self) -> Vec<Message> {
        input::answer(&self.output)
    }
}

impl Reply {
    fn thinking(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if text.is_empty() {
            return;
        }
        if !matches!(self.open, Some(Item::Reasoning { .. })) {
            let id = self.item_id("rs");
            self.open(Item::Reasoning { id, text: String::new() }, frames);
        }
        let output_index = self.output.len();
        if let Some(Item::Reasoning { id, text: all }) = &mut self.open {
            all.push_str(text);
            let body =
                json!({"item_id": id, "output_index": output_index, "content_index": 0, "delta": text});
            frames.push(self.frame("response.reasoning_text.delta", body));
        }
    }

    fn text(&mut self, text: &str, logprobs: &[TokenLogprob], frames: &mut Vec<Frame>) {
        if text.is_empty() && logprobs.is_empty() {
            return;
        }
        if !matches!(self.open, Some(Item::Message { .. })) {
            let id = self.item_id("msg");
            self.open(Item::Message { id, text: String::new(), logprobs: Vec::new() }, frames);
        }
        let output_index = self.output.len();
        if let Some(Item::Message { id, text: all, logprobs: kept }) = &mut self.open {
            let logprobs: Vec<Value> = logprobs.iter().map(token_logprob).collect();
            all.push_str(text);
            kept.extend(logprobs.iter().cloned());
            let body = json!({
                "item_id": id, "output_index": output_index, "content_index": 0, "delta": text, "logprobs": logprobs,
            });
            frames.push(self.frame("response.output_text.delta", body));
        }
    }

    fn arguments(&mut self, call: usize, text: &str, frames: &mut Vec<Frame>) {
        let output_index = self.output.len();
        let Some(Item::Call { index, id, arguments, .. }) = &mut self.open else { return };
        if *index != call || text.is_empty() {
            return;
        }
        arguments.push_str(text);
        let body = json!({"item_id": format!("fc_{id}"), "output_index": output_index, "delta": text});
        frames.push(self.frame("response.function_call_arguments.delta", body));
    }

    fn call_end(&mut self, call: usize, frames: &mut Vec<Frame>) {
        let Some(Item::Call { index, arguments, .. }) = &self.open else { return };
        if *index != call {
            return;
        }
        if arguments.is_empty() {
            self.arguments(call, "{}", frames);
        }
        self.close(Status::Completed, frames);
    }

    /// Ends the item before it and begins `item`.
    fn open(&mut self, item: Item, frames: &mut Vec<Frame>) {
        self.cut(Status::Completed, frames);
        let output_index = self.output.len();
        let shown = item.json(Status::InProgress, &self.namespaced);
        frames.push(
            self.frame("response.output_item.added", json!({"output_index": output_index, "item": shown})),
        );
        if let Item::Message { id, .. } = &item {
            let body = json!({
                "item_id": id, "output_index": output_index, "content_index": 0, "part": text_part("", &[]),
            });
            frames.push(self.frame("response.content_part.added", body));
        }
        self.open = Some(item);
    }

    /// Ends the item that is open; a call that had no end of its own is incomplete.
    fn cut(&mut self, status: Status, frames: &mut Vec<Frame>) {
        let is_call = matches!(self.open, Some(Item::Call { .. }));
        self.close(if is_call { Status::Incomplete } else { status }, frames);
    }

    fn close(&mut self, status: Status, frames: &mut Vec<Frame>) {
        let Some(item) = self.open.take() else { return };
        let output_index = self.output.len();
        let place = |id: &str| json!({"item_id": id, "output_index": output_index});
        let content = |id: &str| json!({"item_id": id, "output_index": output_index, "content_index": 0});
        let shown = item.json(status, &self.namespaced);
        match &item {
            Item::Reasoning { id, text } => {
                let body = with(content(id), "text", json!(text));
                frames.push(self.frame("response.reasoning_text.done", body));
            }
            Item::Message { id, text, logprobs } => {
                let body = with(with(content(id), "text", json!(text)), "logprobs", json!(logprobs));
                frames.push(self.frame("response.output_text.done", body));
                let body = with(content(id), "part", text_part(text, logprobs));
                frames.push(self.frame("response.content_part.done", body));
            }
            Item::Call { id, arguments, .. } => {
                let body = with(place(&format!("fc_{id}")), "name", shown["name"].clone());
                let body = with(body, "arguments", json!(arguments));
                frames.push(self.frame("response.function_call_arguments.done", body));
            }
        }
        let body = json!({"output_index": output_index, "item": shown});
        self.output.push(shown);
        frames.push(self.frame("response.output_item.done", body));
    }

    fn item_id(&self, prefix: &str) -> String {
        let at = self.output.len() + usize::from(self.open.is_some());
        format!("{prefix}_{}_{at}", self.id)
    }

    fn ending(&self) -> Option<&Ending> {
        self.ended.as_ref().map(|(ending, _)| ending)
    }

    fn status(&self) -> &'static str {
        match self.ending() {
            Some(Ending::Stop | Ending::StopString(_)) => "completed",
            Some(Ending::Length | Ending::Context) => "incomplete",
            Some(Ending::Cancelled) => "failed",
            None => "in_progress",
        }
    }

    /// An event with the whole response as it stands.
    fn lifecycle(&mut self, name: &'static str) -> Frame {
        let status = if name == "response.failed" { "failed" } else { self.status() };
        let body = json!({"response": self.response(status)});
        self.frame(name, body)
    }

    fn frame(&mut self, name: &'static str, body: Value) -> Frame {
        let mut event = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        if let (Value::Object(event), Value::Object(body)) = (&mut event, body) {
            event.extend(body);
        }
        Frame::Data { event: Some(name), data: event.to_string() }
    }

    /// The response object. Only a response that has ended shows its output.
    fn response(&self, status: &str) -> Value {
        let ending = self.ending();
        let error = (status == "failed").then(|| error_json(&ApiError::cancelled()));
        let incomplete = matches!(ending, Some(Ending::Length | Ending::Context))
            .then(|| json!({"reason": "max_output_tokens"}));
        let output = if status == "in_progress" { &[][..] } else { &self.output };
        let mut response = json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created_unix_s,
            "status": status,
            "background": false,
            "error": error,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": output,
            "usage": self.ended.as_ref().map(|(_, usage)| usage_json(usage)),
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.repeated.clone());
        }
        response
    }
}

impl Item {
    /// The item as the API shows it; at first without content.
    fn json(&self, status: Status, namespaced: &BTreeMap<String, (String, String)>) -> Value {
        let begun = matches!(status, Status::InProgress);
        let status = status.name();
        let content = |part: Value| if begun { json!([]) } else { json!([part]) };
        match self {
            Self::Reasoning { id, text } => json!({
                "id": id, "type": "reasoning", "status": status, "summary": [],
                "content": content(json!({"type": "reasoning_text", "text": text})),
            }),
            Self::Message { id, text, logprobs } => json!({
                "id": id, "type": "message", "status": status, "role": "assistant",
                "content": content(text_part(text, logprobs)),
            }),
            Self::Call { id, name, arguments, .. } => {
                let (namespace, name) = match namespaced.get(name) {
                    Some((namespace, name)) => (Some(namespace), name),
                    None => (None, name),
                };
                let item = json!({
                    "id": format!("fc_{id}"), "type": "function_call", "status": status,
                    "call_id": format!("call_{id}"), "name": name, "arguments": arguments,
                });
                match namespace {
                    Some(namespace) => with(item, "namespace", json!(namespace)),
                    None => item,
                }
            }
        }
    }
}

/// `object` with one member more.
fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Value::Object(members) = &mut object {
        members.insert(key.to_owned(), value);
    }
    object
}

fn text_part(text: &str, logprobs: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

fn usage_json(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// Clients tell by the code whether the same request may succeed later.
fn error_json(error: &ApiError) -> Value {
    let code = error.code.unwrap_or(match error.class {
        ErrorClass::QueueFull => "rate_limit_exceeded",
        ErrorClass::Unavailable | ErrorClass::Server => "server_error",
        _ => "invalid_prompt",
    });
    json!({"code": code, "message": error.message})
}
