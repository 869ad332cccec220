//! Takes a model's reply apart while it streams: thoughts, answer, tool calls.
//!
//! What a reply means where its markup does not say it:
//! * `</think>` without a beginning: all before it was a thought, as vLLM and SGLang read it, since templates of models
//!   that always think may have opened the thought, and models forget to. Not where the text speaks of `<think>`, nor
//!   where a backtick stands before the marker: that text is about markup.
//! * A call without its `<tool_call>`, in XML and of a tool that was offered, is a call.
//! * A stop string ends the answer. Thoughts and calls are not the answer: what they hold ends nothing.
//!
//! A call of an offered tool is told while it is written. What was told cannot be taken back, so a call that breaks after
//! its beginning was told stays one that was never finished: [`ReplyEvent::BrokenToolCall`].

use std::ops::Range;

use super::chat::{ToolCall, ToolSpec};
use super::format::{CALL, CALL_END, FUNCTION};
pub use super::reply_events::{ReplyEvent, ReplyOptions};
use super::spans::{Placed, PlacedText};
use super::tool_markup::{Bare, Call, Defect, bare_call, json_reply, may_be_json_reply, parse};
use super::tool_stream::CallStream;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";

/// The markers that replies are made of. Some tokenizers declare them as control tokens.
pub const MARKUP: [&str; 6] = [THINK, THINK_END, CALL, CALL_END, "<tool_response>", "</tool_response>"];

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing but white space so far: a `<think>` may come, or a call in JSON.
    Start,
    /// Inside a thought. `begun` once something of it has been seen.
    Thinking { begun: bool },
    /// The answer. `fresh` right after a block, whose line ends are not the answer's.
    Text { fresh: bool },
    /// Inside a call, of which `scanned` bytes hold no end marker that counts.
    Call { scanned: usize },
    /// The buffer begins with `<function=`; `scanned` bytes of it hold no end of a function.
    Bare { scanned: usize },
    /// Right after a call that had no `<tool_call>`: its `</tool_call>` may come all the same.
    AfterBare,
    /// The reply is JSON so far.
    Json,
    /// A stop string has been seen.
    Stopped,
}

/// Where in a reply a parser stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyPlace {
    /// Inside a thought.
    Thought,
    /// After the marker that begins a call.
    Call,
    /// Anywhere else.
    Text,
}

/// The streaming parser. The events do not depend on how the reply is cut into chunks, apart from how text is
/// cut; no part of a marker ever shows up as text.
///
/// White space next to a marker belongs to the markup and is dropped; nothing else is.
pub struct ReplyParser {
    tools: Vec<ToolSpec>,
    shown: PlacedText,
    json_calls: bool,
    state: State,
    buffer: String,
    /// Bytes of the reply so far.
    bytes: usize,
    /// How many of them were thoughts, with their markers.
    thought_bytes: usize,
    /// Where each `Text` stands that the last call gave.
    spans: Vec<Vec<Range<usize>>>,
    /// What is told of the current call while it is written.
    stream: CallStream,
    /// White space before the current call, given back if it turns out to be none.
    space: String,
    calls: usize,
    /// Where the current call could end, if nothing later shows that its last value goes on.
    open_end: Option<usize>,
    /// Whether `</think>` alone can still end a thought.
    may_think: bool,
    /// Text has been shown.
    spoke: bool,
    /// The last character of the text so far.
    last: Option<char>,
    /// The last thing shown was a call.
    after_call: bool,
}

impl ReplyParser {
    /// A parser at the beginning of a reply.
    pub fn new(options: ReplyOptions) -> Self {
        Self {
            json_calls: options.json_calls && !options.tools.is_empty(),
            tools: options.tools,
            shown: PlacedText::new(options.stop),
            state: if options.opens_thinking { State::Thinking { begun: false } } else { State::Start },
            buffer: String::new(),
            bytes: 0,
            thought_bytes: 0,
            spans: Vec::new(),
            stream: CallStream::default(),
            space: String::new(),
            calls: 0,
            open_end: None,
            may_think: true,
            spoke: false,
            last: None,
            after_call: false,
        }
    }

    /// Takes the next chunk of the reply.
    pub fn push(&mut self, chunk: &str) -> Vec<ReplyEvent> {
        self.buffer.push_str(chunk);
        self.bytes += chunk.len();
        self.spans.clear();
        let mut events = Vec::new();
        while self.advance(&mut events) {}
        events
    }

    /// Whether a stop string has ended the answer. What follows it is dropped.
    pub fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Which stop string has ended the answer, by its index.
    pub fn stop_hit(&self) -> Option<usize> {
        self.shown.hit()
    }

    /// How many bytes of the reply so far were thoughts, with their markers; they are its first ones.
    pub fn thought_bytes(&self) -> usize {
        if matches!(self.state, State::Thinking { .. }) { self.bytes } else { self.thought_bytes }
    }

    /// Where the reply stands now.
    pub(crate) fn place(&self) -> ReplyPlace {
        match self.state {
            State::Thinking { .. } => ReplyPlace::Thought,
            State::Call { .. } => ReplyPlace::Call,
            _ => ReplyPlace::Text,
        }
    }

    /// What was not shown yet: inside a call, all that follows its marker.
    pub(crate) fn pending(&self) -> &str {
        &self.buffer
    }

    /// Where in the reply each `Text` stands that the last call gave, in their order.
    pub(crate) fn take_spans(&mut self) -> Vec<Vec<Range<usize>>> {
        std::mem::take(&mut self.spans)
    }

    /// Ends the reply where the model ended it: what was held back becomes text, and an unclosed but whole call a call.
    pub fn finish(&mut self) -> Vec<ReplyEvent> {
        self.end(false)
    }

    /// Ends the reply in the midst: what was held back becomes text, and nobody knows how an unclosed call would go on.
    pub fn cut(&mut self) -> Vec<ReplyEvent> {
        self.end(true)
    }

    fn end(&mut self, cut: bool) -> Vec<ReplyEvent> {
        self.spans.clear();
        let mut events = Vec::new();
        loop {
            match self.state {
                State::Call { .. } => self.end_call(cut, &mut events),
                State::Bare { .. } => self.end_bare(&mut events),
                State::Json => match json_reply(&self.buffer, &self.tools) {
                    Some(calls) => self.complete(calls, self.buffer.len(), false, &mut events),
                    None => self.state = State::Text { fresh: false },
                },
                _ => break,
            }
            // What followed a rejected call may hold another one.
            while self.advance(&mut events) {}
        }
        let rest = std::mem::take(&mut self.buffer);
        let (text, end) = match self.state {
            State::Thinking { begun } => {
                let rest = if begun { rest.trim_end() } else { rest.trim() };
                self.flush(&mut events);
                emit(&mut events, ReplyEvent::Thinking, rest);
                ("", 0)
            }
            State::Text { fresh: true } | State::AfterBare if self.calls > 0 => {
                let whole = rest.trim_end();
                (whole.trim_start_matches(['\n', '\r']), self.bytes - (rest.len() - whole.len()))
            }
            State::Text { fresh: true } => (rest.trim_start_matches(['\n', '\r']), self.bytes),
            State::Stopped => ("", 0),
            _ => (rest.as_str(), self.bytes),
        };
        self.say(text, end, &mut events);
        self.flush(&mut events);
        events
    }

    /// One step on the buffer; false when it needs more of the reply.
    fn advance(&mut self, events: &mut Vec<ReplyEvent>) -> bool {
        match self.state {
            State::Start => self.start(),
            State::Thinking { begun } => self.thinking(begun, events),
            State::Text { fresh } => self.text(fresh, events),
            State::Call { scanned } => self.call(scanned, events),
            State::Bare { scanned } => self.bare(scanned, events),
            State::AfterBare => self.after_bare(),
            State::Json => self.json(),
            State::Stopped => {
                self.buffer.clear();
                false
            }
        }
    }

    fn start(&mut self) -> bool {
        let seen = self.buffer.trim_start();
        if let Some(rest) = seen.strip_prefix(THINK) {
            self.buffer = rest.to_owned();
            self.state = State::Thinking { begun: false };
        } else if THINK.starts_with(seen) {
            return false;
        } else if self.json_calls && seen.starts_with('{') {
            self.state = State::Json;
        } else {
            self.state = State::Text { fresh: false };
        }
        true
    }

    fn json(&mut self) -> bool {
        let may = may_be_json_reply(&self.buffer);
        if !may {
            self.state = State::Text { fresh: false };
        }
        !may
    }

    fn thinking(&mut self, begun: bool, events: &mut Vec<ReplyEvent>) -> bool {
        if !begun {
            let seen = self.buffer.trim_start();
            // Some models repeat the marker that the prompt has opened already.
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
            self.end_thought();
            return true;
        }
        let sure = self.buffer[..settled(&self.buffer, THINK_END)].trim_end().len();
        emit(events, ReplyEvent::Thinking, &self.buffer[..sure]);
        self.buffer.drain(..sure);
        false
    }

    /// The buffer begins right after a thought.
    fn end_thought(&mut self) {
        self.thought_bytes = self.bytes - self.buffer.len();
        self.state = State::Text { fresh: true };
        self.may_think = false;
    }

    /// The markers that text can hold, as things are.
    fn markers(&self) -> impl Iterator<Item = &'static str> {
        let calls = [CALL, FUNCTION].into_iter().filter(|_| !self.tools.is_empty());
        calls.chain([THINK, THINK_END].into_iter().filter(|_| self.may_think))
    }

    fn text(&mut self, fresh: bool, events: &mut Vec<ReplyEvent>) -> bool {
        if fresh {
            let lines = self.buffer.len() - self.buffer.trim_start_matches(['\n', '\r']).len();
            self.buffer.drain(..lines);
        }
        let found = self.markers().filter_map(|marker| Some((self.buffer.find(marker)?, marker))).min();
        let Some((at, marker)) = found else {
            let open = self.markers().map(|marker| settled(&self.buffer, marker)).min();
            let sure = self.buffer[..open.unwrap_or(self.buffer.len())].trim_end().len();
            if sure > 0 {
                self.state = State::Text { fresh: false };
                self.say_front(sure, events);
            }
            return false;
        };
        let before = self.buffer[..at].chars().next_back().or(self.last);
        if marker == THINK || (marker == THINK_END && before == Some('`')) {
            // Text about markup.
            self.may_think = false;
            return true;
        }
        let text = self.buffer[..at].trim_end().len();
        let space = self.buffer[text..at].to_owned();
        self.state = State::Text { fresh: false };
        self.say_front(text, events);
        if self.state == State::Stopped {
            return true;
        }
        if marker == THINK_END {
            self.flush(events);
            if self.spoke {
                events.push(ReplyEvent::TextWasThinking);
            }
            self.spoke = false;
            self.buffer.drain(..space.len() + THINK_END.len());
            self.end_thought();
            return true;
        }
        self.buffer.drain(..space.len());
        self.space = space;
        self.may_think = false;
        if marker == CALL {
            self.buffer.drain(..CALL.len());
            self.open_end = None;
            self.stream = CallStream::default();
            self.state = State::Call { scanned: 0 };
        } else {
            self.state = State::Bare { scanned: 0 };
        }
        true
    }

    fn call(&mut self, scanned: usize, events: &mut Vec<ReplyEvent>) -> bool {
        let found = self.buffer[scanned..].find(CALL_END).map(|at| scanned + at);
        let sure = found.unwrap_or_else(|| settled(&self.buffer, CALL_END).max(scanned));
        self.tell(self.open_end.unwrap_or(sure), events);
        let Some(at) = found else {
            self.state = State::Call { scanned: sure };
            return false;
        };
        let end = at + CALL_END.len();
        let later = State::Call { scanned: end };
        let parsed = parse(&self.buffer[..at], &self.tools);
        if self.open_end.is_some_and(|open| self.buffer[open..at].contains(CALL)) {
            // Another call began in between.
            self.reject_or_end(Defect::Unfinished, end, events);
            return true;
        }
        match parsed {
            Ok(block) if block.open_ended => {
                // The last value may hold the marker. Another call, or the end, says that it does not.
                let after = self.buffer[end..].trim_start();
                if after.starts_with(CALL) {
                    self.complete(block.calls, end, false, events);
                    return true;
                }
                let wait = CALL.starts_with(after);
                self.open_end.get_or_insert(at);
                self.state = if wait { self.state } else { later };
                return !wait;
            }
            Ok(block) => self.complete(block.calls, end, false, events),
            // The marker belongs to a value; the call ends at a later one.
            Err(Defect::Unfinished) => self.state = later,
            Err(defect) => self.reject_or_end(defect, end, events),
        }
        true
    }

    /// Tells what the first `sure` bytes of the buffer say of the current call.
    fn tell(&mut self, sure: usize, events: &mut Vec<ReplyEvent>) {
        let named = self.stream.name().is_some();
        let text = self.stream.advance(&self.buffer[..sure], &self.tools).to_owned();
        let index = self.calls;
        if !named && let Some(name) = self.stream.name().map(str::to_owned) {
            self.flush(events);
            events.push(ReplyEvent::ToolCallStart { index, name });
        }
        emit(events, |text| ReplyEvent::ToolCallArguments { index, text }, &text);
    }

    /// The reply ends inside a call.
    fn end_call(&mut self, cut: bool, events: &mut Vec<ReplyEvent>) {
        let whole = self.buffer.trim_end();
        let closed = whole.strip_suffix(CALL_END);
        let body = closed.unwrap_or(whole);
        let end = self.buffer.len();
        let parsed = if cut && closed.is_none() { Err(Defect::Unfinished) } else { parse(body, &self.tools) };
        match parsed {
            Ok(block) => self.complete(block.calls, end, false, events),
            Err(defect) => self.reject_or_end(defect, end, events),
        }
    }

    /// A call that cannot go on ends where it could have ended, or is none: not in the first `end` bytes of the buffer.
    fn reject_or_end(&mut self, defect: Defect, end: usize, events: &mut Vec<ReplyEvent>) {
        let earlier =
            self.open_end.take().and_then(|at| Some((at, parse(&self.buffer[..at], &self.tools).ok()?)));
        match earlier {
            Some((at, block)) => self.complete(block.calls, at + CALL_END.len(), false, events),
            None => self.reject(defect, end, events),
        }
    }

    fn bare(&mut self, scanned: usize, events: &mut Vec<ReplyEvent>) -> bool {
        match bare_call(&self.buffer, &self.tools, false, scanned) {
            Bare::More { scanned } => {
                self.state = State::Bare { scanned };
                false
            }
            Bare::Call(call, end) => {
                self.complete(vec![call], end, true, events);
                true
            }
            Bare::No => {
                self.not_bare(events);
                true
            }
        }
    }

    fn end_bare(&mut self, events: &mut Vec<ReplyEvent>) {
        match bare_call(&self.buffer, &self.tools, true, 0) {
            Bare::Call(call, end) => self.complete(vec![call], end, true, events),
            _ => self.not_bare(events),
        }
    }

    /// What looked like a call without a block is text.
    fn not_bare(&mut self, events: &mut Vec<ReplyEvent>) {
        let text = std::mem::take(&mut self.space) + FUNCTION;
        self.buffer.drain(..FUNCTION.len());
        self.state = State::Text { fresh: false };
        self.say(&text, self.bytes - self.buffer.len(), events);
    }

    fn after_bare(&mut self) -> bool {
        let seen = self.buffer.trim_start();
        if let Some(rest) = seen.strip_prefix(CALL_END) {
            self.buffer = rest.to_owned();
        } else if CALL_END.starts_with(seen) {
            return false;
        }
        self.state = State::Text { fresh: true };
        true
    }

    /// The first `end` bytes of the buffer are `calls` with their markup.
    fn complete(&mut self, calls: Vec<Call>, end: usize, bare: bool, events: &mut Vec<ReplyEvent>) {
        let stream = std::mem::take(&mut self.stream);
        let first = calls.first().map(|(name, arguments)| (name.as_str(), arguments.to_string()));
        let as_told =
            |name: &str| first.as_ref().is_some_and(|(n, a)| *n == name && a.starts_with(stream.told()));
        if stream.name().is_some_and(|name| !as_told(name)) {
            // Never a call that is another than the one that was told.
            self.stream = stream;
            return self.reject(Defect::Malformed("it ends as another call".into()), end, events);
        }
        self.flush(events);
        let mut told = stream.name().map(|_| stream.told().len());
        for (name, arguments) in calls {
            let index = self.calls;
            if told.is_none() {
                events.push(ReplyEvent::ToolCallStart { index, name: name.clone() });
            }
            let mut text = arguments.to_string();
            text.drain(..told.take().unwrap_or(0));
            emit(events, |text| ReplyEvent::ToolCallArguments { index, text }, &text);
            let call = ToolCall { id: format!("call_{index}"), name, arguments };
            events.push(ReplyEvent::ToolCall { index, call });
            self.calls += 1;
        }
        self.end_block(end, bare);
    }

    /// The first `end` bytes of the buffer are done with.
    fn end_block(&mut self, end: usize, bare: bool) {
        self.buffer.drain(..end);
        self.space.clear();
        self.open_end = None;
        self.after_call = true;
        self.state = if bare { State::AfterBare } else { State::Text { fresh: true } };
    }

    /// The call is none. If nothing was told of it, its opening marker becomes text, and what follows is read as text
    /// again; else it is broken as far as `end`, or as the next call begins.
    fn reject(&mut self, defect: Defect, end: usize, events: &mut Vec<ReplyEvent>) {
        let reason = match defect {
            Defect::Unfinished => "the reply ends inside the call".to_owned(),
            Defect::Malformed(reason) => reason,
        };
        self.flush(events);
        let (index, mut text) = (self.calls, std::mem::take(&mut self.space) + CALL);
        if std::mem::take(&mut self.stream).name().is_some() {
            let end = self.buffer[..end].find(CALL).unwrap_or(end);
            text.push_str(&self.buffer[..end]);
            events.push(ReplyEvent::BrokenToolCall { index, reason, text });
            self.calls += 1;
            return self.end_block(end, false);
        }
        events.push(ReplyEvent::MalformedToolCall { index, reason });
        self.state = State::Text { fresh: false };
        self.say(&text, self.bytes - self.buffer.len(), events);
    }

    /// Shows the first `bytes` of the buffer as text.
    fn say_front(&mut self, bytes: usize, events: &mut Vec<ReplyEvent>) {
        let text: String = self.buffer.drain(..bytes).collect();
        self.say(&text, self.bytes - self.buffer.len(), events);
    }

    /// Shows text that ends before byte `end` of the reply, as far as no stop string may have begun in it.
    fn say(&mut self, text: &str, end: usize, events: &mut Vec<ReplyEvent>) {
        if text.is_empty() || self.state == State::Stopped {
            return;
        }
        if self.after_call && self.spoke && !text.starts_with('\n') {
            let border = self.shown.push_border("\n");
            self.emit_text(border, events);
        }
        let sure = self.shown.push(text, end);
        (self.spoke, self.after_call, self.last) = (true, false, text.chars().next_back());
        self.emit_text(sure, events);
        if self.shown.hit().is_some() {
            self.state = State::Stopped;
        }
    }

    /// Shows what was held back for a stop string, which does not reach across other things.
    fn flush(&mut self, events: &mut Vec<ReplyEvent>) {
        let held = self.shown.finish();
        self.emit_text(held, events);
    }

    fn emit_text(&mut self, (text, spans): Placed, events: &mut Vec<ReplyEvent>) {
        if !text.is_empty() {
            events.push(ReplyEvent::Text(text));
            self.spans.push(spans);
        }
    }
}

fn emit(events: &mut Vec<ReplyEvent>, kind: impl Fn(String) -> ReplyEvent, text: &str) {
    if !text.is_empty() {
        events.push(kind(text.to_owned()));
    }
}

/// How much of `text` cannot be the beginning of `marker`.
pub(super) fn settled(text: &str, marker: &str) -> usize {
    let longest = marker.len().min(text.len() + 1);
    let held = (1..longest).rev().find(|n| text.as_bytes().ends_with(&marker.as_bytes()[..*n]));
    text.len() - held.unwrap_or(0)
}
