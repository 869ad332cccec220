//! OpenAI's Chat Completions and Completions, with the fields that vLLM and llama.cpp added to them.

mod chat;
mod completion;
mod conversation;
mod fields;
mod figures;
mod request;

pub use chat::chat_reply;
pub use completion::completion_reply;
pub use fields::{CHAT_FIELDS, COMPLETION_FIELDS, SAMPLING_FIELDS};
pub use request::{chat_request, completion_request, sampling};

// The others have these too.
pub(crate) use fields::{ENDS, FORM, count, joined};
pub(crate) use figures::token_logprob;
pub(crate) use request::{PROMPTS_MAX, chat, common, max_tokens, mode, stops, tokens};
