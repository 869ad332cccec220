//! The portable engine: a pool of threads that read at offsets, direct or through the page cache.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use files::{Error, Result};

use super::exact::Source;
use super::file::{self, OpenFile, describe_mode};
use super::job::{PieceQueue, cut};
use super::{Disk, ReadRequest, Ticket};
use crate::key::Range;
use crate::slab::PAGE_BYTES;

/// How a [`PreadDisk`] reads.
#[derive(Clone, Debug)]
pub struct PreadOptions {
    /// Threads, so reads in flight; at least 1.
    pub workers: usize,
    /// Read past the page cache (`O_DIRECT`, on Apple `F_NOCACHE`) on file systems that can; others are read
    /// through it all the same.
    pub direct: bool,
    /// Largest single read, rounded up to whole pages.
    pub piece_bytes: usize,
}

impl Default for PreadOptions {
    fn default() -> Self {
        Self { workers: 8, direct: true, piece_bytes: 2 << 20 }
    }
}

/// A [`Disk`] on real files with a pool of reading threads, which end when it is dropped.
pub struct PreadDisk {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    tickets: AtomicU64,
    piece_bytes: u64,
}

struct Shared {
    files: Vec<OpenFile>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    pieces: PieceQueue,
    stop: bool,
}

impl PreadDisk {
    /// Opens `paths`, which are then files 0, 1, …
    ///
    /// # Errors
    /// `NotFound` or `Io` naming the file that does not open; `Io` when no thread can be started.
    pub fn open(paths: &[PathBuf], options: &PreadOptions) -> Result<Self> {
        let files = paths.iter().map(|p| OpenFile::open(p, options.direct)).collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared { files, queue: Mutex::default(), wake: Condvar::new() });
        let piece_bytes = options.piece_bytes.max(1).next_multiple_of(PAGE_BYTES) as u64;
        let mut disk = Self { shared, workers: Vec::new(), tickets: AtomicU64::new(0), piece_bytes };
        for i in 0..options.workers.max(1) {
            let shared = disk.shared.clone();
            let builder = std::thread::Builder::new().name(format!("read-{i}")).stack_size(256 << 10);
            let worker = builder.spawn(move || {
                crate::urgency::raise();
                shared.work();
            });
            let worker = worker.map_err(|e| Error::io("reading thread", e))?;
            disk.workers.push(worker);
        }
        Ok(disk)
    }
}

impl Disk for PreadDisk {
    fn describe(&self) -> String {
        format!("pread, {} workers, {}", self.workers.len(), describe_mode(&self.shared.files))
    }

    fn files(&self) -> u32 {
        self.shared.files.len() as u32
    }

    fn file_name(&self, file: u32) -> String {
        self.shared.files.get(file as usize).map_or_else(|| format!("file {file}"), Source::name)
    }

    fn file_bytes(&self, file: u32) -> Option<u64> {
        self.shared.files.get(file as usize).map(OpenFile::bytes)
    }

    fn is_direct(&self, file: u32) -> bool {
        self.shared.files.get(file as usize).is_some_and(Source::direct)
    }

    fn forget_cached(&self, ranges: &[Range]) {
        file::forget_cached(&self.shared.files, ranges);
    }

    fn check_unchanged(&self) -> Result<()> {
        self.shared.files.iter().try_for_each(OpenFile::check_unchanged)
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    fn submit(&self, requests: Vec<ReadRequest>) {
        let cut: Vec<_> = requests.into_iter().map(|r| (r.priority, cut(r, self.piece_bytes))).collect();
        let mut queue = self.shared.lock();
        for (priority, pieces) in cut {
            queue.pieces.push(priority, pieces);
        }
        drop(queue);
        self.shared.wake.notify_all();
    }

    fn cancel(&self, tickets: &[Ticket]) {
        // Dropping the pieces sends the completion: outside of the lock.
        let removed = self.shared.lock().pieces.remove(tickets);
        drop(removed);
    }

    fn promote(&self, tickets: &[Ticket]) {
        self.shared.lock().pieces.promote(tickets);
    }
}

impl Drop for PreadDisk {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop = true;
        let pieces = std::mem::take(&mut queue.pieces);
        drop(queue);
        drop(pieces);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked has dropped its piece, which told the client.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        while !queue.stop {
            let Some((piece, _)) = queue.pieces.pop(true) else {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            match self.files.get(piece.file as usize) {
                Some(file) => piece.read(file),
                None => {
                    let number = piece.file;
                    piece.end(Err(Error::invalid(format!("there is no file {number}"))));
                }
            }
            queue = self.lock();
        }
    }
}
