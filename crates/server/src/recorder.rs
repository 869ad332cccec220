//! Remembers answers to conversations, so that their next turns begin with the tokens that were sampled.

use std::sync::Arc;

use api::{Event, EventKind};
use engine::{ConversationKey, Model};

/// Hears an answer as its client does.
pub(crate) struct Recorder {
    model: Arc<Model>,
    before: ConversationKey,
    text: String,
    calls: Vec<String>,
}

impl Recorder {
    /// For an answer to the conversation `before`.
    pub(crate) fn new(model: &Arc<Model>, before: ConversationKey) -> Self {
        Self { model: model.clone(), before, text: String::new(), calls: Vec::new() }
    }

    /// What the client is told.
    pub(crate) fn hear(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Text { text, .. } => self.text.push_str(text),
            EventKind::CallStart { id, .. } => self.calls.push(id.clone()),
            _ => {}
        }
    }

    /// The answer has ended, with these tokens.
    pub(crate) fn end(self, tokens: &[u32]) {
        if !tokens.is_empty() {
            self.model.remember(self.before, &self.text, &self.calls, tokens);
        }
    }
}
