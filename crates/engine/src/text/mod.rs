//! Text in, text out: tokenizer, chat template, streaming detokeniser, and the markup of replies.
//!
//! Nothing here knows a model. Files are untrusted, and so is every string of a request: a control token
//! that a user types stays text (see [`prompt`]).

mod bpe;
pub mod chat;
pub mod detokenize;
mod encoded;
mod format;
pub mod grammar;
mod jinja;
pub mod json;
mod pre;
pub mod prompt;
pub mod reply;
mod reply_events;
pub(crate) mod spans;
mod special;
mod spm;
pub mod stop;
mod strftime;
pub mod template;
mod templates;
pub mod tokenizer;
mod tool_markup;
mod tool_stream;
mod turn;
mod vocab;
mod written;

pub use chat::{Content, Message, Role, ToolCall, ToolSpec};
pub use detokenize::Detokenizer;
pub(crate) use encoded::Encoded;
pub use format::CallFormat;
pub use grammar::{AnswerForm, CallRules, Constraint, ConstraintRequest, ToolChoice};
pub use json::{Json, JsonMap, KEY_TWICE};
pub use prompt::{ChatPrompt, ChatRequest};
pub use reply::{ReplyEvent, ReplyOptions, ReplyParser};
pub use stop::StopStrings;
pub use strftime::CivilTime;
pub use template::Template;
pub use templates::Templates;
pub use tokenizer::{Specials, Tokenizer};
pub use turn::ReplyTurn;
pub use vocab::TokenKind;
