//! Requests and replies of the public APIs: OpenAI's Chat Completions, Completions and Responses, Anthropic's Messages.
//!
//! Types and functions: no HTTP, no files, no async. Nothing here computes with a model. Every API's request becomes one [`Request`], and every
//! answer is one stream of [`Event`]s, which each API writes in its own shape ([`ReplyWriter`]). A program's own requests
//! are [`program`]s, which have reports ([`report`]) for answers. The server, the C API and batches share it.

mod errors;
mod event;
mod reply;
mod request;

pub mod anthropic;
pub mod body;
mod constraint;
pub mod drive;
pub mod effort;
pub mod fields;
pub mod ids;
pub mod messages;
pub mod openai;
pub mod prepare;
pub mod program;
pub mod prompts;
pub mod report;
pub mod responses;
pub mod schema;
pub mod tools;

pub use errors::{ApiError, ErrorClass};
pub use event::{Ending, Event, EventKind, Timings, TokenLogprob, Usage};
pub use reply::{Frame, ReplyHead, ReplyWriter};
pub use request::{Chat, Constraint, Limits, Parsed, Prompt, Request, TextPrompt, ToolChoice};
