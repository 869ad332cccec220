//! Conversations that go on from an earlier answer (`previous_response_id`).

use std::sync::Arc;

use engine::text::{Message, Role};

use super::input::check_outputs;
use crate::body::shown;
use crate::messages::settle;
use crate::{ApiError, Chat};

/// What a request adds to a conversation, and what it is kept as.
#[derive(Clone, Debug, Default)]
pub struct Thread {
    /// The answer that the input goes on from; [`resume`] must be called with it before anything else.
    pub previous: Option<String>,
    /// Whether the answer may be gone on from later.
    pub keep: bool,
    /// What stands before the conversation, in this request and in no later one.
    instructions: Option<String>,
    /// The conversation up to the answer. Turns are shared by all that is kept of one conversation.
    turns: Conversation,
}

/// The turns of a conversation, without the instructions of any request.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    turns: Vec<Arc<Message>>,
    bytes: usize,
}

/// What a turn takes besides its text.
const TURN_BYTES: usize = 256;

impl Conversation {
    /// The same with these turns after it.
    fn with(mut self, turns: Vec<Message>) -> Self {
        for turn in turns {
            self.bytes += TURN_BYTES + serde_json::to_string(&turn).map_or(0, |text| text.len());
            self.turns.push(Arc::new(turn));
        }
        self
    }

    /// About what its turns take in memory, those included that it shares with others.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Thread {
    pub(super) fn new(
        previous: Option<String>,
        keep: bool,
        instructions: Option<String>,
        input: Vec<Message>,
    ) -> Self {
        Self { previous, keep, instructions, turns: Conversation::default().with(input) }
    }

    /// What is kept under the answer's id: the conversation, and `answer` as the writer hands it out.
    pub fn after(&self, answer: Vec<Message>) -> Conversation {
        self.turns.clone().with(answer)
    }
}

/// Goes on from what was kept: puts its turns before the input's.
///
/// # Errors
/// `Invalid` where the input holds the output of a call that is nowhere.
pub fn resume(chat: &mut Chat, kept: &Conversation) -> Result<(), ApiError> {
    let Some(thread) = &mut chat.thread else { return Ok(()) };
    thread.turns.turns.splice(..0, kept.turns.iter().cloned());
    thread.turns.bytes += kept.bytes;
    check_outputs(thread.turns.turns.iter().map(AsRef::as_ref))?;
    let instructions = thread.instructions.iter().map(|text| Message::new(Role::System, text.as_str()));
    let turns = thread.turns.turns.iter().map(|turn| Message::clone(turn));
    chat.messages = settle(instructions.chain(turns).collect());
    Ok(())
}

/// The error where nothing is kept under `id`.
pub fn no_previous(id: &str) -> ApiError {
    let mut error = ApiError::invalid(
        "previous_response_id".to_owned(),
        format!(
            "Previous response with id '{}' not found. Only the latest answers are kept, in memory: send the whole \
             conversation as `input` instead.",
            shown(id)
        ),
    );
    error.code = Some("previous_response_not_found");
    error
}
