//! Bytes when they are needed: expert slots, disk engines, eviction, resident weights and the memory plan.
//!
//! This crate knows files by number, byte ranges, layers and experts by id. It knows no models and no kernels:
//! the memory it fills is handed over by the caller ([`SlabMemory`]), what the bytes mean is the caller's affair.
//!
//! * [`disk`]: one trait ([`disk::Disk`]), several engines. A read owns the memory it fills ([`Window`]) until it
//!   completes, so memory in flight can neither be freed nor reused.
//! * [`ExpertStore`]: `want(mask)`, then `next()` until it is exhausted; a dropped [`Lease`] is a reusable slot.
//! * [`resident`]: the weights that are always needed. [`plan`]: how the memory budget is divided.
//! * [`governor`]: how many of the planned slots are used while other programs want memory too.

pub mod disk;
mod experts;
pub mod governor;
mod key;
mod mask;
mod memory;
pub mod plan;
pub mod policy;
pub mod resident;
mod slab;
mod slots;
mod stats;
mod urgency;

pub use experts::{ExpertStore, StoreOptions};
pub use key::{ExpertId, ExpertKey, ExpertLayout, LayerId, Range, slot_bytes};
pub use mask::ExpertMask;
pub use memory::AnonymousMemory;
pub use slab::{GiveBack, PAGE_BYTES, SlabMemory, Window};
pub use slots::{Lease, LeasePart};
pub use stats::{LayerStats, ReadStats};
