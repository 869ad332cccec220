//! OpenAI's Chat Completions and Completions.

use crate::{ApiError, Limits, Parsed, ReplyHead, ReplyWriter, Request};

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn chat_request(_body: &[u8], _limits: &Limits) -> Result<Parsed, ApiError> {
    Err(ApiError::invalid(None, "not built"))
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn completion_request(_body: &[u8], _limits: &Limits) -> Result<Parsed, ApiError> {
    Err(ApiError::invalid(None, "not built"))
}

/// The writer of a chat's answer.
pub fn chat_reply(_head: ReplyHead, _request: &Request) -> Box<dyn ReplyWriter> {
    unreachable!()
}

/// The writer of a plain completion.
pub fn completion_reply(_head: ReplyHead, _request: &Request) -> Box<dyn ReplyWriter> {
    unreachable!()
}
