//! Takes a model's reply apart while it streams: thoughts, answer, tool calls.

use super::chat::{ToolCall, ToolSpec};
use super::tool_markup::{Defect, early_name, parse};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALL_END: &str = "</tool_call>";

/// The markers that replies are made of. Some tokenizers declare them as control tokens.
pub const MARKUP: [&str; 6] = [THINK, THINK_END, CALL, CALL_END, "<tool_response>", "</tool_response>"];

/// What to look for in a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyOptions {
    /// The prompt left the model inside a `<think>` block: see [`ChatPrompt::opens_thinking`].
    ///
    /// [`ChatPrompt::opens_thinking`]: super::prompt::ChatPrompt::opens_thinking
    pub opens_thinking: bool,
    /// The tools that were offered; their schemas type the arguments. Without any, `<tool_call>` is text.
    pub tools: Vec<ToolSpec>,
}

/// A piece of a reply. Adjacent pieces of text or thinking belong together.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// Part of the answer.
    Text(String),
    /// Part of the thoughts before the answer.
    Thinking(String),
    /// A call has begun, and its name is known. `index` counts the calls of the reply from 0.
    ToolCallStart {
        /// Which call.
        index: usize,
        /// The tool.
        name: String,
    },
    /// A call is complete.
    ToolCall {
        /// Which call.
        index: usize,
        /// The call; its id is `call_<index>`.
        call: ToolCall,
    },
    /// What looked like a call is none; a `Text` with all of it follows.
    MalformedToolCall {
        /// Which call; the next one gets the same index.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing but white space so far: a `<think>` may come.
    Start,
    /// Inside a thought. `begun` once something of it has been seen.
    Thinking { begun: bool },
    /// The answer. `fresh` right after a block, whose line ends are not the answer's.
    Text { fresh: bool },
    /// Inside a call, of which `scanned` bytes hold no end marker.
    Call { scanned: usize, named: bool },
}

/// The streaming parser. The events do not depend on how the reply is cut into chunks, apart from how text is
/// cut; no part of a marker ever shows up as text.
///
/// White space next to a marker belongs to the markup and is dropped; nothing else is.
pub struct ReplyParser {
    tools: Vec<ToolSpec>,
    state: State,
    buffer: String,
    /// White space before the current call, given back if it turns out to be none.
    space: String,
    calls: usize,
}

impl ReplyParser {
    /// A parser at the beginning of a reply.
    pub fn new(options: ReplyOptions) -> Self {
        let state = if options.opens_thinking { State::Thinking { begun: false } } else { State::Start };
        Self { tools: options.tools, state, buffer: String::new(), space: String::new(), calls: 0 }
    }

    /// Takes the next chunk of the reply.
    pub fn push(&mut self, chunk: &str) -> Vec<ReplyEvent> {
        self.buffer.push_str(chunk);
        let mut events = Vec::new();
        while self.advance(&mut events) {}
        events
    }

    /// Ends the reply: what was held back becomes text, and an unclosed but whole call a call.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        let mut events = Vec::new();
        while let State::Call { .. } = self.state {
            match parse(&self.buffer, &self.tools) {
                Ok((name, arguments)) => {
                    let end = self.buffer.len();
                    self.complete(name, arguments, end, end, &mut events);
                }
                Err(defect) => self.reject(defect, &mut events),
            }
            // What followed a rejected call may hold another one.
            while self.advance(&mut events) {}
        }
        let rest = std::mem::take(&mut self.buffer);
        match self.state {
            State::Thinking { begun: false } => emit(&mut events, ReplyEvent::Thinking, rest.trim()),
            State::Thinking { begun: true } => emit(&mut events, ReplyEvent::Thinking, rest.trim_end()),
            State::Text { fresh: true } if self.calls > 0 => {
                emit(&mut events, ReplyEvent::Text, rest.trim_end())
            }
            State::Text { fresh: true } => emit(&mut events, ReplyEvent::Text, rest.trim_start_matches('\n')),
            _ => emit(&mut events, ReplyEvent::Text, &rest),
        }
        events
    }

    /// One step on the buffer; false when it needs more of the reply.
    fn advance(&mut self, events: &mut Vec<ReplyEvent>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Thinking { begun } => self.thinking(begun, events),
            State::Text { fresh } => self.text(fresh, events),
            State::Call { scanned, named } => self.call(scanned, named, events),
        }
    }

    fn start(&mut self) -> bool {
        let seen = self.buffer.trim_start();
        if let Some(rest) = seen.strip_prefix(THINK) {
            self.buffer = rest.to_owned();
            self.state = State::Thinking { begun: false };
        } else if THINK.starts_with(seen) {
            return false;
        } else {
            self.state = State::Text { fresh: false };
        }
        true
    }

    fn thinking(&mut self, begun: bool, events: &mut Vec<ReplyEvent>) -> bool {
        if !begun {
            let seen = self.buffer.trim_start();
            // A model may open the block that the prompt has opened already.
            if let Some(rest) = seen.strip_prefix(THINK) {
                self.buffer = rest.to_owned();
                return true;
            }
            if THINK.starts_with(seen) {
                return false;
            }
            self.buffer = seen.to_owned();
            self.state = State::Thinking { begun: true };
        }
        if let Some(at) = self.buffer.find(THINK_END) {
            emit(events, ReplyEvent::Thinking, self.buffer[..at].trim_end());
            self.buffer.drain(..at + THINK_END.len());
            self.state = State::Text { fresh: true };
            return true;
        }
        let sure = self.buffer[..settled(&self.buffer, THINK_END)].trim_end().len();
        emit(events, ReplyEvent::Thinking, &self.buffer[..sure]);
        self.buffer.drain(..sure);
        false
    }

    fn text(&mut self, fresh: bool, events: &mut Vec<ReplyEvent>) -> bool {
        if fresh {
            let lines = self.buffer.len() - self.buffer.trim_start_matches('\n').len();
            self.buffer.drain(..lines);
        }
        let calls = !self.tools.is_empty();
        if let Some(at) = self.buffer.find(CALL).filter(|_| calls) {
            let text = self.buffer[..at].trim_end().len();
            emit(events, ReplyEvent::Text, &self.buffer[..text]);
            self.space = self.buffer[text..at].to_owned();
            self.buffer.drain(..at + CALL.len());
            self.state = State::Call { scanned: 0, named: false };
            return true;
        }
        let open = if calls { settled(&self.buffer, CALL) } else { self.buffer.len() };
        let sure = self.buffer[..open].trim_end().len();
        if sure > 0 {
            emit(events, ReplyEvent::Text, &self.buffer[..sure]);
            self.buffer.drain(..sure);
            self.state = State::Text { fresh: false };
        }
        false
    }

    fn call(&mut self, scanned: usize, named: bool, events: &mut Vec<ReplyEvent>) -> bool {
        if !named && let Some(name) = early_name(&self.buffer) {
            let (index, name) = (self.calls, name.to_owned());
            events.push(ReplyEvent::ToolCallStart { index, name });
            self.state = State::Call { scanned, named: true };
            return true;
        }
        let Some(at) = self.buffer[scanned..].find(CALL_END).map(|at| scanned + at) else {
            let scanned = settled(&self.buffer, CALL_END).max(scanned);
            self.state = State::Call { scanned, named };
            return false;
        };
        match parse(&self.buffer[..at], &self.tools) {
            Ok((name, arguments)) => {
                self.complete(name, arguments, at, at + CALL_END.len(), events);
            }
            // The marker belongs to a value; the call ends at a later one.
            Err(Defect::Unfinished) => {
                self.state = State::Call { scanned: at + CALL_END.len(), named };
            }
            Err(defect) => self.reject(defect, events),
        }
        true
    }

    /// The first `body` bytes of the buffer are a call; `end` includes the marker.
    fn complete(
        &mut self,
        name: String,
        arguments: serde_json::Value,
        body: usize,
        end: usize,
        events: &mut Vec<ReplyEvent>,
    ) {
        let index = self.calls;
        let announced = early_name(&self.buffer[..body]).is_some();
        if !announced {
            events.push(ReplyEvent::ToolCallStart { index, name: name.clone() });
        }
        let call = ToolCall { id: format!("call_{index}"), name, arguments };
        events.push(ReplyEvent::ToolCall { index, call });
        self.calls += 1;
        self.buffer.drain(..end);
        self.space.clear();
        self.state = State::Text { fresh: true };
    }

    /// The call is none: its opening marker becomes text, and what follows is read as text again.
    fn reject(&mut self, defect: Defect, events: &mut Vec<ReplyEvent>) {
        let reason = match defect {
            Defect::Unfinished => "the reply ends inside the call".to_owned(),
            Defect::Malformed(reason) => reason,
        };
        events.push(ReplyEvent::MalformedToolCall { index: self.calls, reason });
        emit(events, ReplyEvent::Text, &format!("{}{CALL}", std::mem::take(&mut self.space)));
        self.state = State::Text { fresh: false };
    }
}

fn emit(events: &mut Vec<ReplyEvent>, kind: fn(String) -> ReplyEvent, text: &str) {
    if !text.is_empty() {
        events.push(kind(text.to_owned()));
    }
}

/// How much of `text` cannot be the beginning of `marker`.
fn settled(text: &str, marker: &str) -> usize {
    let longest = marker.len().min(text.len() + 1);
    let held = (1..longest).rev().find(|n| text.as_bytes().ends_with(&marker.as_bytes()[..*n]));
    text.len() - held.unwrap_or(0)
}
