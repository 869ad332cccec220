//! OpenAI's Chat Completions and Completions.

mod replies;
mod requests;

use serde_json::{Value, json};
use tidemill_api::openai::{chat_request, completion_request};
use tidemill_api::{ApiError, Parsed, Request};

use crate::support::limits;

pub(super) fn parsed(body: &Value) -> Result<Parsed, ApiError> {
    chat_request(body.to_string().as_bytes(), &limits())
}

pub(super) fn taken(body: Value) -> Request {
    parsed(&body).unwrap().request
}

/// A chat's body with these fields besides.
pub(super) fn with(fields: Value) -> Value {
    merged(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}), fields)
}

pub(super) fn merged(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

pub(super) fn plain(fields: Value) -> Value {
    merged(json!({"prompt": "Once"}), fields)
}

pub(super) fn completion(fields: Value) -> Result<Parsed, ApiError> {
    completion_request(plain(fields).to_string().as_bytes(), &limits())
}

pub(super) fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}
