//! What is in a model file: names, shapes, number formats and byte ranges.
//!
//! This crate turns paths into a [`TensorIndex`] and a [`Meta`] without reading weights. It has no I/O policy
//! and no threads: it opens files, reads their headers and says where everything is.
//! Every header is treated as hostile input.
#![forbid(unsafe_code)]

mod error;
pub mod quant;

pub use error::{Error, ErrorKind, Result};
pub use quant::{Format, ScaleType};
