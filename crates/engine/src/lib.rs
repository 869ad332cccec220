//! Numbers to text: the models, their sessions, tokenizers and chat. The only crate that knows architectures.

mod ahead;
mod bridge;
mod device;
pub mod doctor;
pub mod drive;
pub mod eval;
pub mod generate;
pub mod inspect;
mod layers;
mod limits;
mod lookahead;
mod model;
mod models;
mod overhead;
mod pool;
pub mod sample;
mod scratch;
mod session;
mod state;
mod step;
pub mod synth;
pub mod text;
mod trace;
mod vram;

pub use device::Device;
pub use files::{Dialect, Error, ErrorKind, Meta, Result};
pub use kernels::ops::{DeviceCounts, KernelTime, KvFormat};
pub use kernels::selftest;
pub use lookahead::Guess;
pub use model::{CacheKind, LoadProgress, Model, OpenOptions};
pub use models::ARCHITECTURES;
pub use session::{FeedProgress, RouteRecord, Session};
pub use store::plan::rss_peak_bytes;
pub use store::policy::{PolicyKind, Replay, Trace, TraceReplay, replay_all};
pub use store::{LayerStats, ReadStats};
pub use trace::trace_of;
