//! Snapshots of requests and replies, without a model.
