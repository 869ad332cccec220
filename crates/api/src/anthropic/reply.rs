//! The answer: blocks one after another, each with its deltas.

use engine::text::Json;
use serde_json::{Map, Value, json};

use crate::body::lossy;
use crate::{ApiError, Ending, Event, EventKind, Frame, ReplyHead, ReplyWriter, Request, Usage};

/// What a thought is signed with. Clients bring it back and do not look into it.
const SIGNATURE: &str = "dGlkZW1pbGw=";

/// The writer of its answer.
pub fn reply(head: ReplyHead, _request: &Request) -> Box<dyn ReplyWriter> {
    Box::new(Reply {
        id: head.id,
        request_id: head.request_id,
        model: head.model,
        usage: None,
        blocks: Vec::new(),
        open: None,
        has_calls: false,
        ending: None,
    })
}

/// The answer of `/v1/messages/count_tokens`.
pub fn counted(tokens: usize) -> Value {
    json!({"input_tokens": tokens})
}

struct Reply {
    id: String,
    request_id: String,
    model: String,
    /// Of the prompt, from when it is begun; then of all.
    usage: Option<Usage>,
    /// The blocks that are complete.
    blocks: Vec<Value>,
    /// The one that is being written.
    open: Option<Block>,
    has_calls: bool,
    ending: Option<Ending>,
}

/// A block that is being written.
enum Block {
    Thinking(String),
    Text(String),
    Call { index: usize, id: String, name: String, arguments: String },
}

impl ReplyWriter for Reply {
    /// The message begins when it is known how much of its prompt is computed.
    fn begin(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn event(&mut self, event: &Event) -> Vec<Frame> {
        let mut frames = Vec::new();
        match &event.kind {
            EventKind::Started { prompt_tokens, cached_tokens } => {
                self.start(*prompt_tokens, *cached_tokens, &mut frames);
            }
            EventKind::Progress { .. } => {}
            EventKind::Thinking(text) => self.thinking(text, &mut frames),
            EventKind::Text { text, .. } => self.text(text, &mut frames),
            EventKind::CallStart { index, id, name } => {
                let (id, name) = (format!("toolu_{id}"), name.clone());
                self.open(Block::Call { index: *index, id, name, arguments: String::new() }, &mut frames);
            }
            EventKind::CallArguments { index, text } => self.arguments(*index, text, &mut frames),
            EventKind::CallEnd { index } => {
                if matches!(&self.open, Some(Block::Call { index: open, .. }) if open == index) {
                    self.has_calls = true;
                    self.close(&mut frames);
                }
            }
            EventKind::Ended { ending, usage, .. } => {
                self.start(usage.prompt_tokens, usage.cached_tokens, &mut frames);
                self.close(&mut frames);
                self.usage = Some(*usage);
                self.ending = Some(ending.clone());
            }
        }
        frames
    }

    fn ping(&mut self) -> Vec<Frame> {
        vec![frame("ping", json!({}))]
    }

    fn end(&mut self) -> Vec<Frame> {
        if matches!(self.ending, None | Some(Ending::Cancelled)) {
            return self.fail(&ApiError::cancelled());
        }
        let (reason, stop_sequence) = self.stop();
        let body = json!({
            "delta": {"stop_reason": reason, "stop_sequence": stop_sequence},
            "usage": self.usage_json(),
        });
        vec![frame("message_delta", body), frame("message_stop", json!({}))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        vec![Frame::Data { event: Some("error"), data: error.anthropic(&self.request_id).to_string() }]
    }

    fn whole(&mut self) -> Value {
        let (reason, stop_sequence) = self.stop();
        self.message(&self.blocks, reason, stop_sequence)
    }
}

impl Reply {
    fn start(&mut self, prompt_tokens: usize, cached_tokens: usize, frames: &mut Vec<Frame>) {
        if self.usage.is_some() {
            return;
        }
        self.usage = Some(Usage { prompt_tokens, cached_tokens, ..Usage::default() });
        frames.push(frame("message_start", json!({"message": self.message(&[], None, None)})));
    }

    fn thinking(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if text.is_empty() {
            return;
        }
        if !matches!(self.open, Some(Block::Thinking(_))) {
            self.open(Block::Thinking(String::new()), frames);
        }
        if let Some(Block::Thinking(all)) = &mut self.open {
            all.push_str(text);
            frames.push(self.delta(json!({"type": "thinking_delta", "thinking": text})));
        }
    }

    fn text(&mut self, text: &str, frames: &mut Vec<Frame>) {
        if text.is_empty() {
            return;
        }
        if !matches!(self.open, Some(Block::Text(_))) {
            self.open(Block::Text(String::new()), frames);
        }
        if let Some(Block::Text(all)) = &mut self.open {
            all.push_str(text);
            frames.push(self.delta(json!({"type": "text_delta", "text": text})));
        }
    }

    fn arguments(&mut self, call: usize, text: &str, frames: &mut Vec<Frame>) {
        let Some(Block::Call { index, arguments, .. }) = &mut self.open else { return };
        if *index != call || text.is_empty() {
            return;
        }
        arguments.push_str(text);
        frames.push(self.delta(json!({"type": "input_json_delta", "partial_json": text})));
    }

    /// Ends the block before it and begins `block`.
    fn open(&mut self, block: Block, frames: &mut Vec<Frame>) {
        self.start(0, 0, frames);
        self.close(frames);
        let content_block = match &block {
            Block::Thinking(_) => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Block::Text(_) => json!({"type": "text", "text": ""}),
            Block::Call { id, name, .. } => json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
        };
        let body = json!({"index": self.blocks.len(), "content_block": content_block});
        frames.push(frame("content_block_start", body));
        self.open = Some(block);
    }

    fn close(&mut self, frames: &mut Vec<Frame>) {
        let Some(block) = self.open.take() else { return };
        let whole = match block {
            Block::Thinking(text) => {
                frames.push(self.delta(json!({"type": "signature_delta", "signature": SIGNATURE})));
                json!({"type": "thinking", "thinking": text, "signature": SIGNATURE})
            }
            Block::Text(text) => json!({"type": "text", "text": text}),
            Block::Call { id, name, arguments, .. } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": input(&arguments)})
            }
        };
        frames.push(frame("content_block_stop", json!({"index": self.blocks.len()})));
        self.blocks.push(whole);
    }

    fn delta(&self, delta: Value) -> Frame {
        frame("content_block_delta", json!({"index": self.blocks.len(), "delta": delta}))
    }

    fn message(&self, blocks: &[Value], reason: Option<&str>, stop_sequence: Option<&str>) -> Value {
        json!({
            "id": format!("msg_{}", self.id),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": stop_sequence,
            "usage": self.usage_json(),
        })
    }

    /// Why it ended, and the stop sequence that ended it.
    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        match &self.ending {
            None | Some(Ending::Cancelled) => (None, None),
            Some(Ending::Length) => (Some("max_tokens"), None),
            Some(Ending::Context) => (Some("model_context_window_exceeded"), None),
            Some(Ending::Stop | Ending::StopString(_)) if self.has_calls => (Some("tool_use"), None),
            Some(Ending::Stop) => (Some("end_turn"), None),
            Some(Ending::StopString(text)) => (Some("stop_sequence"), Some(text)),
        }
    }

    /// What is computed and what is not are apart; their sum is the prompt.
    fn usage_json(&self) -> Value {
        let usage = self.usage.unwrap_or_default();
        json!({
            "input_tokens": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        })
    }
}

fn frame(name: &'static str, body: Value) -> Frame {
    let mut event = Map::from_iter([("type".to_owned(), Value::from(name))]);
    if let Value::Object(body) = body {
        event.extend(body);
    }
    Frame::Data { event: Some(name), data: Value::Object(event).to_string() }
}

/// The arguments of a call as an object; of a call that was cut off, nothing.
fn input(arguments: &str) -> Value {
    match Json::parse(arguments) {
        Ok(Json::Object(map)) => lossy(&Json::Object(map)),
        _ => json!({}),
    }
}
