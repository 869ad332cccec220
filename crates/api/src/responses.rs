//! OpenAI's Responses.

use crate::{ApiError, Limits, Parsed, ReplyHead, ReplyWriter, Request};

/// Reads the body of `POST /v1/responses`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn request(_body: &[u8], _limits: &Limits) -> Result<Parsed, ApiError> {
    Err(ApiError::invalid(None, "not built"))
}

/// The writer of its answer.
pub fn reply(_head: ReplyHead, _request: &Request) -> Box<dyn ReplyWriter> {
    unreachable!()
}
