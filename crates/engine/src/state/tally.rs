//! How much is kept of what sequences have computed, for whoever counts it while steps run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is kept of ended sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptCounts {
    /// Beginnings that are in memory.
    pub beginnings: u64,
    /// Their bytes; pages that several share count once.
    pub memory_bytes: u64,
    /// Bytes of the state directory, others' folders included; 0 without one.
    pub disk_bytes: u64,
    /// Beginnings that made way for others.
    pub evicted: u64,
}

/// The same as it is counted; all copies are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptTally(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    beginnings: AtomicU64,
    memory_bytes: AtomicU64,
    disk_bytes: AtomicU64,
    evicted: AtomicU64,
}

impl KeptTally {
    /// So many beginnings of so many bytes are in memory now.
    pub(super) fn set_memory(&self, beginnings: u64, bytes: u64) {
        self.0.beginnings.store(beginnings, Ordering::Relaxed);
        self.0.memory_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The state directory has so many bytes now.
    pub(crate) fn set_disk(&self, bytes: u64) {
        self.0.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// So many more made way.
    pub(super) fn evicted(&self, more: u64) {
        self.0.evicted.fetch_add(more, Ordering::Relaxed);
    }

    /// All of it.
    pub(crate) fn counts(&self) -> KeptCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        KeptCounts {
            beginnings: of(&self.0.beginnings),
            memory_bytes: of(&self.0.memory_bytes),
            disk_bytes: of(&self.0.disk_bytes),
            evicted: of(&self.0.evicted),
        }
    }
}
