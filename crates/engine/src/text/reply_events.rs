//! What a reply is taken apart into.

use super::chat::{ToolCall, ToolSpec};
use super::stop::StopStrings;
use crate::sample::Logprobs;

/// What to look for in a reply.
#[derive(Clone, Debug, Default)]
pub struct ReplyOptions {
    /// The prompt left the model inside a `<think>` block: see [`ChatPrompt::opens_thinking`].
    ///
    /// [`ChatPrompt::opens_thinking`]: super::prompt::ChatPrompt::opens_thinking
    pub opens_thinking: bool,
    /// A reply that is nothing but JSON is a call: see [`ChatPrompt::json_calls`].
    ///
    /// [`ChatPrompt::json_calls`]: super::prompt::ChatPrompt::json_calls
    pub json_calls: bool,
    /// The tools that were offered; their schemas type the arguments. Without any, `<tool_call>` is text.
    pub tools: Vec<ToolSpec>,
    /// Texts that end the answer.
    pub stop: StopStrings,
}

/// A piece of a reply. Adjacent pieces of text or thinking belong together.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplyEvent {
    /// Part of the answer. After a call, text that follows other text begins with a line end.
    Text(String),
    /// Part of the thoughts before the answer.
    Thinking(String),
    /// All text so far was a thought: it ended with a `</think>` that had no beginning.
    TextWasThinking,
    /// A call has begun, and its name is known. `index` counts the calls of the reply from 0.
    ToolCallStart {
        /// Which call.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of the arguments of the call that was begun last, as JSON text. All pieces joined are the text of the whole
    /// call's arguments, byte for byte; at least one comes before the `ToolCall`. Without it they are no whole JSON.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The next piece.
        text: String,
    },
    /// A call is complete.
    ToolCall {
        /// Which call.
        index: usize,
        /// The call; its id is `call_<index>`.
        call: ToolCall,
    },
    /// What looked like a call is none; a `Text` with all of it follows. Nothing else was told of it.
    MalformedToolCall {
        /// Which call; the next one gets the same index.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A call whose beginning was told is none, most often because the reply ends inside it. Nothing more of it comes.
    BrokenToolCall {
        /// Which call; the next one gets the next index.
        index: usize,
        /// What is wrong with it.
        reason: String,
        /// All of it, with its markup.
        text: String,
    },
    /// The tokens that the `Text` before is made of, as far as no `Text` before that has told them already. Only where
    /// [`GenerateOptions::top_logprobs`](crate::generate::GenerateOptions) asks for it.
    Logprobs(Vec<Logprobs>),
}
