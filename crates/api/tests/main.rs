//! Snapshots of requests and replies, without a model.

// The name that other crates know it by.
extern crate tidemill_api as api;

mod anthropic;
mod errors;
mod fields;
mod messages;
mod openai;
mod responses;
mod support;
