//! The operations that models are made of, for every device, each with a scalar twin.
//!
//! [`ops::Backend`] is the whole list. [`mod@reference`] is the plain truth of each op, never optimised;
//! the other backends are judged against it, op by op and format by format. This crate knows rows and number
//! formats; it knows no layers and no files.

pub mod buffer;
pub mod check;
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod host;
pub mod ops;
pub mod reference;
pub mod selftest;

pub use buffer::{Block, Buffer, DeviceMemory, HostWeight, Tensor, View, Weight};
pub use ops::Backend;
