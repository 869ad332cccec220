//! Development tasks: the style laws, test data, comparisons with peers.
#![forbid(unsafe_code)]

pub mod compare;
pub mod fetch;
pub mod goldens;
pub mod speed;
pub mod tidy;
pub mod twin;
