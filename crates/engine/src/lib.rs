//! Numbers to text: the models, their sessions, tokenizers and chat.
//!
//! A [`Model`] is opened from a path within a memory budget. A [`Session`] is one sequence of tokens over it.
//! [`generate::generate`] reads a prompt and makes text, token by token, and calls back for each piece.
//!
//! ```no_run
//! use std::ops::ControlFlow::Continue;
//! use std::path::Path;
//!
//! use tidemill_engine::generate::{GenerateEvent, GenerateOptions, generate};
//! use tidemill_engine::text::{ReplyEvent, Specials, Tokenizer};
//! use tidemill_engine::{Model, OpenOptions, Session};
//!
//! # fn main() -> tidemill_engine::Result<()> {
//! let options = OpenOptions { memory_bytes: Some(12 << 30), ..OpenOptions::default() };
//! let model = Model::open(Path::new("model.gguf"), &options, &mut |_done, _total| Continue(()))?;
//! let tokenizer = Tokenizer::of_model(model.meta())?;
//! let prompt = tokenizer.encode("Once upon a time", Specials::Parse)?;
//! let mut session = Session::new(&model)?;
//! let limits = GenerateOptions { max_tokens: Some(100), ..GenerateOptions::default() };
//! let answer = generate(&mut session, &tokenizer, &prompt, &limits, &mut |event| {
//!     if let GenerateEvent::Reply(ReplyEvent::Text(text)) = event {
//!         print!("{text}");
//!     }
//!     Continue(())
//! })?;
//! println!("\n{:.1} tokens/s", answer.decode_tokens_per_s());
//! # Ok(())
//! # }
//! ```
//!
//! Conversations go through [`text::ChatPrompt`] and a [`text::Template`]; replies are taken apart by
//! [`text::ReplyParser`]. Nothing here prints, reads the environment, or keeps state outside of its values.

mod ahead;
mod answers;
mod batch;
mod bound;
mod bridge;
mod device;
pub mod doctor;
pub mod drive;
pub mod eval;
pub mod generate;
mod generation;
mod heat;
pub mod inspect;
mod keeper;
mod layers;
mod limits;
mod lookahead;
mod mapped;
mod marks;
mod model;
mod models;
mod overhead;
mod part;
mod pool;
mod rehearsal;
mod resume;
mod round;
pub mod sample;
pub mod scheduler;
mod scratch;
mod sequence;
mod session;
mod sizes;
mod state;
mod step;
pub mod synth;
pub mod text;
mod trace;
mod trade;
mod vram;
mod widths;

pub use answers::ConversationKey;
pub use batch::{Answer, Batch, BetweenLayers, LogitSink, Logits, Part, Pause};
pub use bound::{Bound, LayerTime};
pub use device::Device;
pub use files::{Dialect, Error, ErrorKind, Meta, Result};
pub use heat::{ExpertHeat, ExpertMemory};
pub use kernels::ops::{DeviceCounts, KernelTime, KvFormat};
pub use kernels::selftest;
pub use lookahead::Guess;
pub use model::{CacheKind, LoadProgress, Model, OpenOptions};
pub use models::ARCHITECTURES;
pub use part::is_part_of_model;
pub use sequence::{RouteRecord, Sequence};
pub use session::{FeedProgress, Session};
pub use state::KeptCounts;
pub use store::plan::{Plan, rss_bytes, rss_peak_bytes};
pub use store::policy::{PolicyKind, Replay, Trace, TraceReplay, replay_all};
pub use store::{LayerStats, ReadStats};
pub use trace::trace_of;
