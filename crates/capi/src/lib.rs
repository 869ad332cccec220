//! The C API: a border around the engine. What may grow is JSON, what is hot is typed, and nothing here computes.
//!
//! `include/tidemill.h` is made of this crate by `cargo xtask header`; what users must know stands in the comments of the
//! functions, which go into it.

mod batch;
mod border;
mod cancel;
mod generate;
mod model;
mod options;
mod sampler;
mod session;
mod status;
mod text;

pub use batch::*;
pub use cancel::*;
pub use generate::*;
pub use model::*;
pub use sampler::*;
pub use session::*;
pub use status::*;
pub use text::*;

#[cfg(test)]
mod tests;
