//! The Linux engine: one io_uring that keeps a deep queue of reads in the kernel.
//!
//! Whoever asks for reads tells the kernel at once, on its own thread: a thread that had to be woken for it would wait
//! for a core while all of them compute, and the drive would wait too. Completions are taken in by whoever looks for
//! them, and by a thread of the engine, so that the queue does not run dry while nobody looks. The queue lies in a
//! mutex; the kernel is entered with or without it. Sources: `io_uring_setup(2)`, `io_uring_enter(2)`.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use files::{Error, ErrorKind, Result};
use io_uring::{IoUring, opcode, squeue, types};

use super::exact::{ExactRead, Source};
use super::file::{self, OpenFile, describe_mode};
use super::job::{Piece, PieceQueue, cut};
use super::{Disk, ReadRequest, Ticket};
use crate::key::Range;
use crate::slab::PAGE_BYTES;

/// How a [`UringDisk`] reads.
#[derive(Clone, Debug)]
pub struct UringOptions {
    /// Reads in flight, 1 to 4096.
    pub depth: usize,
    /// Read past the page cache on file systems that can; others are read through it all the same.
    pub direct: bool,
    /// Largest single read, rounded up to whole pages, at most 1 GiB.
    pub piece_bytes: usize,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self { depth: 16, direct: true, piece_bytes: 2 << 20 }
    }
}

/// A [`Disk`] on real files through io_uring. Its thread ends when it is dropped.
pub struct UringDisk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    tickets: AtomicU64,
    piece_bytes: u64,
    depth: usize,
}

struct Shared {
    files: Vec<OpenFile>,
    /// Its two queues are touched only by who holds `queue`.
    ring: IoUring,
    queue: Mutex<Queue>,
    /// Told when no caller waits in the kernel any more.
    alone: Condvar,
}

struct Queue {
    pieces: PieceQueue,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    guesses: usize,
    /// Callers that wait in the kernel: completions are theirs.
    callers: usize,
    stop: bool,
}

/// A piece that the kernel is reading.
struct Flight {
    piece: Piece,
    read: ExactRead,
    guess: bool,
}

/// Pieces that are over. Ending them sends completions, for which no lock may be held.
type Ended = Vec<(Piece, Result<u64>)>;

/// User data of the call that wakes the thread; reads have their flight's number.
const WAKE: u64 = u64::MAX;

/// A caller that waits looks this often whether the thread has taken in what it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl UringDisk {
    /// Opens `paths`, which are then files 0, 1, …
    ///
    /// # Errors
    /// `Unsupported` when the kernel has no io_uring or refuses it to this process (containers often do): another
    /// engine will work. `NotFound` or `Io` naming the file that does not open.
    pub fn open(paths: &[PathBuf], options: &UringOptions) -> Result<Self> {
        let files = paths.iter().map(|p| OpenFile::open(p, options.direct)).collect::<Result<Vec<_>>>()?;
        let depth = options.depth.clamp(1, 4096);
        let piece_bytes = options.piece_bytes.clamp(1, 1 << 30).next_multiple_of(PAGE_BYTES) as u64;
        let queue = Queue {
            pieces: PieceQueue::default(),
            flights: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            guesses: 0,
            callers: 0,
            stop: false,
        };
        let ring = build(depth).map_err(refused)?;
        let shared = Arc::new(Shared { files, ring, queue: Mutex::new(queue), alone: Condvar::new() });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("io-uring".into()).stack_size(256 << 10);
        let thread = thread.spawn(move || of_thread.run()).map_err(|e| Error::io("reading thread", e))?;
        Ok(Self { shared, thread: Some(thread), tickets: AtomicU64::new(0), piece_bytes, depth })
    }
}

fn refused(error: io::Error) -> Error {
    Error::new(ErrorKind::Unsupported, format!("this system offers no io_uring: {error}")).with_source(error)
}

/// A ring for `depth` reads and a call that wakes, on any kernel that can read through one (5.6).
fn build(depth: usize) -> io::Result<IoUring> {
    let ring = IoUring::new((depth as u32 + 1).next_power_of_two())?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !probe.is_supported(opcode::Read::CODE) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(ring)
}

impl Disk for UringDisk {
    fn describe(&self) -> String {
        format!("io_uring, depth {}, {}", self.depth, describe_mode(&self.shared.files))
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
        self.shared
            .with(|queue| cut.into_iter().for_each(|(priority, pieces)| queue.pieces.push(priority, pieces)));
    }

    fn cancel(&self, tickets: &[Ticket]) {
        let removed = self.shared.lock().pieces.remove(tickets);
        drop(removed); // outside of the lock
    }

    fn promote(&self, tickets: &[Ticket]) {
        if !tickets.is_empty() {
            self.shared.with(|queue| queue.pieces.promote(tickets));
        }
    }

    fn progress(&self, blocking: bool) -> bool {
        self.shared.progress(blocking)
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let removed = {
            let mut queue = self.shared.lock();
            queue.stop = true;
            self.shared.push(&opcode::Nop::new().build().user_data(WAKE));
            std::mem::take(&mut queue.pieces)
        };
        self.shared.enter(0);
        drop(removed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the queue, then lets the kernel have what fits. Returns whether pieces ended.
    fn with(&self, change: impl FnOnce(&mut Queue)) -> bool {
        let mut ended = Ended::new();
        let mut queue = self.lock();
        change(&mut queue);
        self.reap(&mut queue, &mut ended);
        self.take_work(&mut queue, &mut ended);
        // SAFETY: only who holds the queue uses this end of the ring.
        if !unsafe { self.ring.submission_shared() }.is_empty() {
            self.enter(0);
        }
        drop(queue);
        let any = !ended.is_empty();
        ended.into_iter().for_each(|(piece, result)| piece.end(result));
        any
    }

    /// The thread: takes in completions as they come, unless a caller does. Ends when it is time to stop and the kernel
    /// writes into no memory any more.
    fn run(&self) {
        loop {
            self.enter(1);
            let mut queue = self.lock();
            while queue.callers > 0 {
                queue = self.alone.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            drop(queue);
            let mut over = false;
            self.with(|queue| over = queue.stop);
            if over && self.lock().in_flight() == 0 {
                return;
            }
        }
    }

    /// See [`Disk::progress`].
    fn progress(&self, blocking: bool) -> bool {
        let ended = self.with(|queue| queue.callers += usize::from(blocking));
        if !blocking {
            return ended;
        }
        let idle = self.lock().in_flight() == 0;
        if !ended && !idle {
            // The thread may have taken in the very completion that the caller needs, so this wait has an end.
            let wait = types::Timespec::from(LOOK_EVERY);
            let args = types::SubmitArgs::new().timespec(&wait);
            // Its time being over is no error; others are met by the next call.
            let _ = self.ring.submitter().submit_with_args(1, &args);
        }
        let more = self.with(|queue| queue.callers -= 1);
        self.alone.notify_one();
        // Where nothing is in flight, what is missing has been sent, or is about to be.
        ended || more || !idle
    }

    /// Starts as many pieces as fit. Guesses get a third of the depth: enough to keep a drive busy with them alone, while
    /// little is begun that the router then refutes, and a demand finds the drive's own queue nearly empty.
    fn take_work(&self, queue: &mut Queue, ended: &mut Ended) {
        let guesses_max = queue.flights.len().div_ceil(3);
        while !queue.stop && !queue.free.is_empty() {
            let Some((piece, guess)) = queue.pieces.pop(queue.guesses < guesses_max) else { return };
            let Some(file) = self.files.get(piece.file as usize) else {
                let error = Error::invalid(format!("there is no file {}", piece.file));
                ended.push((piece, Err(error)));
                continue;
            };
            let slot = if piece.begin() { queue.free.pop() } else { None };
            let Some(slot) = slot else {
                let error = Error::new(ErrorKind::Cancelled, "another part of the read has failed");
                ended.push((piece, Err(error)));
                continue;
            };
            let (_, read) = piece.memory(file.direct());
            queue.guesses += usize::from(guess);
            self.issue(slot, queue.flights[slot].insert(Flight { piece, read, guess }));
        }
    }

    /// Queues the next call of a flight.
    fn issue(&self, slot: usize, flight: &Flight) {
        let Some(file) = self.files.get(flight.piece.file as usize) else { return };
        let (part, offset, direct) = flight.read.call();
        let (memory, _) = flight.piece.memory(direct);
        // SAFETY: `call` stays inside of the memory that the piece has.
        let first = unsafe { memory.cast::<u8>().add(part.start) };
        let fd = types::Fd(file.handle(direct).as_raw_fd());
        let mut entry = opcode::Read::new(fd, first.as_ptr(), part.len() as u32).offset(offset).build();
        if !direct {
            // What lies in the page cache would be copied before the call returns.
            entry = entry.flags(squeue::Flags::ASYNC);
        }
        self.push(&entry.user_data(slot as u64));
    }

    /// Hands a call to the ring. Its caller holds the queue.
    fn push(&self, entry: &squeue::Entry) {
        // SAFETY: only who holds the queue uses this end of the ring. The memory of a read is its piece's alone, and
        // the piece stays in `flights` until its completion; the thread keeps `self` until all have arrived.
        let full = || unsafe { self.ring.submission_shared().push(entry) }.is_err();
        while full() {
            self.enter(0); // never, as there is room for all flights: but then this makes some
        }
    }

    /// Takes in the completions that are there.
    fn reap(&self, queue: &mut Queue, ended: &mut Ended) {
        // SAFETY: only who holds the queue uses this end of the ring.
        let done: Vec<(u64, i32)> =
            unsafe { self.ring.completion_shared() }.map(|c| (c.user_data(), c.result())).collect();
        for (slot, result) in done {
            self.finish(queue, slot as usize, result, ended);
        }
    }

    fn finish(&self, queue: &mut Queue, slot: usize, result: i32, ended: &mut Ended) {
        let Some(mut flight) = queue.flights.get_mut(slot).and_then(Option::take) else { return };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        let outcome = match self.files.get(flight.piece.file as usize) {
            Some(file) => flight.read.done(file, result),
            None => Ok(Some(0)), // it was started, so its file is there
        };
        let end = match outcome {
            Ok(None) => return self.issue(slot, queue.flights[slot].insert(flight)),
            Ok(Some(bytes)) => Ok(bytes),
            Err(error) => Err(error),
        };
        queue.free.push(slot);
        queue.guesses -= usize::from(flight.guess);
        ended.push((flight.piece, end));
    }

    /// Tells the kernel what is queued, and waits for that many completions.
    fn enter(&self, completions: usize) {
        if let Err(error) = self.ring.submitter().submit_and_wait(completions)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // Out of some resource for now (EAGAIN, EBUSY): reads under way end all the same, and who comes next
            // tells the kernel again.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Queue {
    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }
}
