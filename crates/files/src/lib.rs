//! What is in a model file: names, shapes, number formats and byte ranges.
//!
//! This crate turns paths into a [`TensorIndex`] and a [`Meta`] without reading weights. It has no I/O policy
//! and no threads: it opens files, reads their headers and says where everything is.
//! Every header is treated as hostile input: what it claims is checked against the file's size before it is
//! believed, so memory stays proportional to the bytes that are really there.
#![forbid(unsafe_code)]

mod affine;
mod error;
pub mod gguf;
mod index;
pub mod meta;
mod open;
pub mod quant;
pub mod safetensors;
pub mod write;

pub use error::{Error, ErrorKind, Result};
pub use index::{FileId, Foreign, Span, Tensor, TensorIndex};
pub use meta::{Dialect, GgufVocab, Meta, TokenizerSource};
pub use quant::{Format, ScaleType};
