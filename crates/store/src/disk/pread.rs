//! The portable engine: a pool of threads that read at offsets, direct or through the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use files::{Error, Result};

use super::exact::Source;
use super::job::{PieceQueue, cut};
use super::{Disk, ReadRequest, Ticket};
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
        Self { workers: 8, direct: true, piece_bytes: 1 << 20 }
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
            let worker = builder.spawn(move || shared.work()).map_err(|e| Error::io("reading thread", e))?;
            disk.workers.push(worker);
        }
        Ok(disk)
    }

    /// Whether file number `file` is read past the page cache.
    pub fn is_direct(&self, file: u32) -> bool {
        self.shared.files.get(file as usize).is_some_and(Source::direct)
    }
}

impl Disk for PreadDisk {
    fn describe(&self) -> String {
        let direct = self.shared.files.iter().filter(|f| f.direct()).count();
        let mode = match direct {
            0 => "buffered",
            n if n == self.shared.files.len() => "direct",
            _ => "direct and buffered",
        };
        format!("pread, {} workers, {mode}", self.workers.len())
    }

    fn files(&self) -> u32 {
        self.shared.files.len() as u32
    }

    fn file_name(&self, file: u32) -> String {
        self.shared.files.get(file as usize).map_or_else(|| format!("file {file}"), Source::name)
    }

    fn file_bytes(&self, file: u32) -> Option<u64> {
        self.shared.files.get(file as usize).map(|f| f.bytes)
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
            let Some(piece) = queue.pieces.pop() else {
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            match self.files.get(piece.file as usize) {
                Some(file) => piece.read(file),
                None => {
                    let number = piece.file;
                    piece.fail(Error::invalid(format!("there is no file {number}")));
                }
            }
            queue = self.lock();
        }
    }
}

/// A file with a buffered handle, and a direct one where the file system gives it.
struct OpenFile {
    path: PathBuf,
    bytes: u64,
    buffered: File,
    direct: Option<File>,
    direct_refused: AtomicBool,
}

impl OpenFile {
    fn open(path: &PathBuf, direct: bool) -> Result<Self> {
        let named = |e| Error::io(path.display(), e);
        let buffered = File::open(path).map_err(named)?;
        let meta = buffered.metadata().map_err(named)?;
        if !meta.is_file() {
            return Err(Error::invalid(format!("{}: not a regular file", path.display())));
        }
        let direct = if direct { open_direct(path) } else { None };
        let direct_refused = AtomicBool::new(false);
        Ok(Self { path: path.clone(), bytes: meta.len(), buffered, direct, direct_refused })
    }
}

impl Source for OpenFile {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn direct(&self) -> bool {
        self.direct.is_some() && !self.direct_refused.load(Ordering::Relaxed)
    }

    fn refuse_direct(&self) {
        self.direct_refused.store(true, Ordering::Relaxed);
    }

    fn read_at(&self, memory: &mut [u8], offset: u64, direct: bool) -> io::Result<usize> {
        let file = self.direct.as_ref().filter(|_| direct).unwrap_or(&self.buffered);
        read_at(file, memory, offset)
    }
}

#[cfg(unix)]
fn read_at(file: &File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, memory, offset)
}

#[cfg(windows)]
fn read_at(file: &File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, memory, offset)
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(target_os = "linux")]
fn open_direct(path: &PathBuf) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).custom_flags(flag).open(path).ok()
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(target_vendor = "apple")]
fn open_direct(path: &PathBuf) -> Option<File> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    rustix::fs::fcntl_nocache(&file, true).ok()?;
    Some(file)
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn open_direct(_path: &PathBuf) -> Option<File> {
    let _ = OpenOptions::new;
    None
}
