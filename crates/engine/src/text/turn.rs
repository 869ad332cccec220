//! A reply put together again: what its events say so far, and the turn of the conversation that it makes.

use super::chat::{Content, Message, Role, ToolCall};
use super::reply::ReplyEvent;

/// What has come of a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplyTurn {
    /// The answer.
    pub text: String,
    /// The thoughts before it.
    pub thinking: String,
    /// The calls it makes.
    pub calls: Vec<ToolCall>,
}

impl ReplyTurn {
    /// Takes the next event.
    pub fn take(&mut self, event: &ReplyEvent) {
        match event {
            ReplyEvent::Text(text) => self.text.push_str(text),
            ReplyEvent::Thinking(text) => self.thinking.push_str(text),
            ReplyEvent::TextWasThinking => self.thinking = std::mem::take(&mut self.text),
            ReplyEvent::ToolCall { call, .. } => self.calls.push(call.clone()),
            ReplyEvent::BrokenToolCall { text, .. } => self.text.push_str(text),
            ReplyEvent::ToolCallStart { .. }
            | ReplyEvent::ToolCallArguments { .. }
            | ReplyEvent::MalformedToolCall { .. }
            | ReplyEvent::Logprobs(_) => {}
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty()
    }

    /// As a turn of the conversation.
    pub fn message(&self) -> Message {
        let mut message = Message::new(Role::Assistant, self.text.clone());
        if self.text.is_empty() && !self.calls.is_empty() {
            message.content = Some(Content::Text(String::new()));
        }
        message.reasoning_content = Some(self.thinking.clone()).filter(|t| !t.is_empty());
        message.tool_calls.clone_from(&self.calls);
        message
    }
}
