//! Development tasks: the style laws, test data, comparisons with peers.
#![forbid(unsafe_code)]

pub mod fetch;
pub mod tidy;
