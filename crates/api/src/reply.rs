//! How an API writes an answer: whole, or as frames of a stream.

use engine::text::Message;
use serde_json::Value;

use crate::{ApiError, Event};

/// What every answer is headed by.
#[derive(Clone, Debug)]
pub struct ReplyHead {
    /// Unguessable, without a prefix: each API puts its own before it.
    pub id: String,
    /// The request's own id, as its answer's header has it.
    pub request_id: String,
    /// When it was asked for, seconds since 1970.
    pub created_unix_s: u64,
    /// The model's real name.
    pub model: String,
    /// Of the model and its precision.
    pub fingerprint: String,
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `data:` lines, with an `event:` line before them where the API names its events.
    Data {
        /// The event's name.
        event: Option<&'static str>,
        /// One line.
        data: String,
    },
    /// A comment, which clients skip.
    Comment(&'static str),
}

/// Writes one answer. The frames of a stream and the whole answer come from the same events, so they cannot differ.
pub trait ReplyWriter: Send {
    /// Frames before any event.
    fn begin(&mut self) -> Vec<Frame>;
    /// Takes an event; its frames.
    fn event(&mut self, event: &Event) -> Vec<Frame>;
    /// A sign of life in a silent stream.
    fn ping(&mut self) -> Vec<Frame>;
    /// Frames after the last event.
    fn end(&mut self) -> Vec<Frame>;
    /// Frames of a failure in the midst of a stream; nothing follows them.
    fn fail(&mut self, error: &ApiError) -> Vec<Frame>;
    /// The answer as one object, after its last event. [`Self::event`] has seen all of them, and its frames were dropped.
    fn whole(&mut self) -> Value;
    /// The answer as turns of a conversation, after its last event, where the API can go on from it (Responses).
    fn answer(&self) -> Vec<Message> {
        Vec::new()
    }
}
