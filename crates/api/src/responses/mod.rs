//! OpenAI's Responses.

mod input;
mod reply;
mod request;
mod thread;
mod tools;

pub use reply::reply;
pub use request::{FIELDS, request};
pub use thread::{Conversation, Thread, no_previous, resume};

// The document names them too.
pub(crate) use input::RECORDS;
