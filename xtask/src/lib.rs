//! Development tasks: the style laws, test data, comparisons with peers.
#![forbid(unsafe_code)]

pub mod check;
pub mod compare;
pub mod dist;
pub mod fetch;
pub mod goldens;
pub mod header;
pub mod licences;
pub mod soak;
pub mod speed;
pub mod steps;
pub mod tidy;
pub mod twin;
