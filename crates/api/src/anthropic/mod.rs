//! Anthropic's Messages.

mod input;
mod reply;
mod request;

pub use reply::{counted, reply};
pub use request::{FIELDS, request};
