//! Reading byte ranges into memory: one trait, several engines.
//!
//! A read owns its destination ([`Window`]) and comes back exactly once as a [`Completion`] that returns it, also
//! when it failed or was cancelled. Nothing is ever written into a window after its completion was sent.
//! Sources: `open(2)` on `O_DIRECT` (offset, length and memory aligned to the logical block size).

mod cached;
mod exact;
mod file;
mod inbox;
mod job;
mod mirror;
mod pread;
mod probe;
mod same;
mod sim;
mod throttle;
#[cfg(target_os = "linux")]
mod uring;

use std::time::Instant;

use files::Result;

pub use inbox::Inbox;
pub use mirror::MirrorDisk;
pub use pread::{PreadDisk, PreadOptions};
pub use probe::{
    DiskChoice, DriveProbe, DriveRate, Engine, PROBE_FILE_BYTES_MIN, choose, chosen_rate, drive_key, measure,
    open, open_exactly, probe,
};
pub use same::same_content;
pub use sim::{Fault, FaultKind, SimDisk, SimOptions};
pub use throttle::{ThrottleOptions, ThrottledDisk};
#[cfg(target_os = "linux")]
pub use uring::{UringDisk, UringOptions};

use crate::key::Range;
use crate::slab::Window;

/// A read's name within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Which reads go first. Demand reads pass all speculative ones that have not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    Demand,
    /// A hint: nobody waits for it yet.
    Speculative,
}

/// Puts the bytes of `range` at byte `at` of the window. `at` and `range.offset` must be equal modulo
/// [`crate::PAGE_BYTES`], and the page-aligned superset must lie inside the window and overlap no other fill:
/// its rim is overwritten with the neighbouring bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// What to read.
    pub range: Range,
    /// Where its first byte goes, counted from the start of the window.
    pub at: usize,
}

/// One read of several ranges into one window.
#[derive(Debug)]
pub struct ReadRequest {
    /// From [`Disk::ticket`] of the same engine.
    pub ticket: Ticket,
    /// Its class in the queue.
    pub priority: Priority,
    /// The memory to fill; returned by the completion.
    pub window: Window,
    /// What goes where.
    pub fills: Vec<Fill>,
    /// Where the completion goes.
    pub reply: Reply,
}

/// Takes the completion of one read. Engines call it once, on any of their threads or the client's, and hold no
/// lock meanwhile; it must be quick.
pub struct Reply(Box<dyn FnOnce(Completion) + Send + Sync>);

impl Reply {
    /// A function to call.
    pub fn new(take: impl FnOnce(Completion) + Send + Sync + 'static) -> Self {
        Self(Box::new(take))
    }

    /// Hands the completion over.
    pub fn send(self, completion: Completion) {
        (self.0)(completion);
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

impl ReadRequest {
    /// Bytes of the page-aligned supersets, which is what a drive transfers; at most those of the window.
    pub(crate) fn superset_bytes(&self) -> u64 {
        let page = crate::slab::PAGE_BYTES as u64;
        let pages = |f: &Fill| (f.range.offset % page).saturating_add(f.range.bytes).div_ceil(page);
        let all = self
            .fills
            .iter()
            .filter(|f| f.range.bytes > 0)
            .fold(0, |sum: u64, f| sum.saturating_add(pages(f)));
        all.saturating_mul(page).min(self.window.bytes() as u64)
    }

    /// Ends a read that no engine has seen.
    pub(crate) fn end(self, result: Result<u64>) {
        let now = Instant::now();
        let Self { ticket, window, reply, .. } = self;
        reply.send(Completion { ticket, window, result, started: now, finished: now });
    }
}

/// The end of a read.
#[derive(Debug)]
pub struct Completion {
    /// The read.
    pub ticket: Ticket,
    /// Its memory. After an error its content is undefined (but initialised).
    pub window: Window,
    /// Bytes read from files, or the first error: `Corrupt` for a file that ends too early, `Io`, `Cancelled`, or
    /// `InvalidRequest` for fills that do not fit the window.
    pub result: Result<u64>,
    /// When the first of its bytes were asked for.
    pub started: Instant,
    /// When it ended.
    pub finished: Instant,
}

/// A set of open files that can be read from in the background. Completions come in any order.
pub trait Disk: Send + Sync {
    /// What this engine is, for reports: `pread, 8 workers, direct`.
    fn describe(&self) -> String;

    /// How many files it has; they are numbered from 0.
    fn files(&self) -> u32;

    /// Name of a file for messages. Any number is allowed.
    fn file_name(&self, file: u32) -> String;

    /// Length of a file when it was opened, in bytes; `None` for a number that is not a file.
    fn file_bytes(&self, file: u32) -> Option<u64>;

    /// A name for a new read, different from all earlier ones.
    fn ticket(&self) -> Ticket;

    /// Queues reads, in this order within their priority. Never blocks on the drive. Every mistake in a request
    /// is reported by its completion.
    fn submit(&self, requests: Vec<ReadRequest>);

    /// Gives up reads as far as they have not started. Their completions still arrive: `Cancelled`, or the normal
    /// end of a read that had started as a whole. Unknown tickets are ignored.
    fn cancel(&self, tickets: &[Ticket]);

    /// Turns speculative reads into demand reads. Unknown tickets are ignored.
    fn promote(&self, tickets: &[Ticket]);

    /// Whether a file is read past the page cache.
    fn is_direct(&self, file: u32) -> bool {
        let _ = file;
        true
    }

    /// Drops ranges from the page cache, as far as they are read through it and the system lets go of them.
    fn forget_cached(&self, ranges: &[Range]) {
        let _ = ranges;
    }

    /// Whether all files are as they were when they were opened, by length and time of the last write.
    ///
    /// # Errors
    /// `Corrupt` naming the file that was written to.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// Lets an engine without threads of its own work on the caller's thread: when `blocking`, at least one
    /// read ahead. Returns whether it did something, so that looking for completions again is worthwhile;
    /// `false` means that completions come from elsewhere. Called by [`Inbox`].
    fn progress(&self, blocking: bool) -> bool {
        let _ = blocking;
        false
    }
}
