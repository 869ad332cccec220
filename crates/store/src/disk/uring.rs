//! The Linux engine: one io_uring and one thread that keeps a deep queue of reads in the kernel.
//!
//! The thread owns the ring. Clients put pieces into the queue and ring a bell (an eventfd that the ring polls) when
//! the thread waits with room to spare. Sources: `io_uring_setup(2)`, `io_uring_enter(2)`, `eventfd(2)`.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use files::{Error, ErrorKind, Result};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::exact::{ExactRead, Source};
use super::file::{OpenFile, describe_mode};
use super::job::{Piece, PieceQueue, cut};
use super::{Disk, ReadRequest, Ticket};
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
    queue: Mutex<Queue>,
    bell: std::fs::File,
}

#[derive(Default)]
struct Queue {
    pieces: PieceQueue,
    /// The thread waits in the kernel and could take more.
    hungry: bool,
    stop: bool,
}

impl UringDisk {
    /// Opens `paths`, which are then files 0, 1, …
    ///
    /// # Errors
    /// `Unsupported` when the kernel has no io_uring or refuses it to this process (containers often do): another
    /// engine will work. `NotFound` or `Io` naming the file that does not open.
    pub fn open(paths: &[PathBuf], options: &UringOptions) -> Result<Self> {
        let files = paths.iter().map(|p| OpenFile::open(p, options.direct)).collect::<Result<Vec<_>>>()?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(refused)?;
        let shared = Arc::new(Shared { files, queue: Mutex::default(), bell: bell.into() });
        let depth = options.depth.clamp(1, 4096);
        let piece_bytes = options.piece_bytes.clamp(1, 1 << 30).next_multiple_of(PAGE_BYTES) as u64;
        let (ready, opened) = channel();
        let of_thread = shared.clone();
        let run = move || run(of_thread, depth, ready);
        let thread = std::thread::Builder::new().name("io-uring".into()).stack_size(256 << 10).spawn(run);
        let thread = thread.map_err(|e| Error::io("reading thread", e))?;
        match opened.recv() {
            Ok(Ok(())) => {
                Ok(Self { shared, thread: Some(thread), tickets: AtomicU64::new(0), piece_bytes, depth })
            }
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(refused(io::ErrorKind::Other)),
        }
    }

    /// Whether file number `file` is read past the page cache.
    pub fn is_direct(&self, file: u32) -> bool {
        self.shared.files.get(file as usize).is_some_and(Source::direct)
    }
}

fn refused(error: impl Into<io::Error>) -> Error {
    let error = error.into();
    Error::new(ErrorKind::Unsupported, format!("this system offers no io_uring: {error}")).with_source(error)
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

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    fn submit(&self, requests: Vec<ReadRequest>) {
        let cut: Vec<_> = requests.into_iter().map(|r| (r.priority, cut(r, self.piece_bytes))).collect();
        let mut queue = self.shared.lock();
        for (priority, pieces) in cut {
            queue.pieces.push(priority, pieces);
        }
        self.shared.wake(queue);
    }

    fn cancel(&self, tickets: &[Ticket]) {
        // Dropping the pieces sends the completion: outside of the lock.
        let removed = self.shared.lock().pieces.remove(tickets);
        drop(removed);
    }

    fn promote(&self, tickets: &[Ticket]) {
        let mut queue = self.shared.lock();
        queue.pieces.promote(tickets);
        self.shared.wake(queue);
    }
}

impl Drop for UringDisk {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop = true;
        let pieces = std::mem::take(&mut queue.pieces);
        self.shared.wake(queue);
        drop(pieces);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings the bell if the thread would not look into the queue by itself.
    fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        if std::mem::take(&mut queue.hungry) {
            drop(queue);
            // It fails only when the counter is full: then the bell is ringing already.
            let _ = (&self.bell).write(&1u64.to_ne_bytes());
        }
    }
}

/// User data of the bell; reads have their slot's number.
const BELL: u64 = u64::MAX;

/// A piece that the kernel is reading.
struct Flight {
    piece: Piece,
    read: ExactRead,
    guess: bool,
}

/// The thread's side.
struct Ring {
    ring: IoUring,
    shared: Arc<Shared>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    guesses: usize,
    bell_armed: bool,
}

fn run(shared: Arc<Shared>, depth: usize, ready: Sender<io::Result<()>>) {
    match build(depth) {
        Ok(ring) => {
            // The opener waits for this message.
            let _ = ready.send(Ok(()));
            let flights = (0..depth).map(|_| None).collect();
            let free = (0..depth).rev().collect();
            Ring { ring, shared, flights, free, guesses: 0, bell_armed: false }.run();
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}

/// A ring for `depth` reads and the bell: with completions taken in on our own thread only where the kernel can
/// (6.1), and as any kernel can (5.6) otherwise.
fn build(depth: usize) -> io::Result<IoUring> {
    let entries = (depth as u32 + 1).next_power_of_two();
    let fast = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    let ring = fast.or_else(|_| IoUring::new(entries))?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !(probe.is_supported(opcode::Read::CODE) && probe.is_supported(opcode::PollAdd::CODE)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(ring)
}

impl Ring {
    fn run(&mut self) {
        while self.take_work() || self.in_flight() > 0 {
            if !self.bell_armed {
                let bell = types::Fd(self.shared.bell.as_raw_fd());
                let readable = rustix::event::PollFlags::IN.bits().into();
                self.push(&opcode::PollAdd::new(bell, readable).build().user_data(BELL));
                self.bell_armed = true;
            }
            self.wait();
            self.reap();
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Starts as many pieces as fit; false when it is time to stop. Guesses get half of the depth: enough to
    /// keep a drive busy with them alone, and a demand finds the drive's own queue half empty.
    fn take_work(&mut self) -> bool {
        let guesses_max = self.flights.len().div_ceil(2);
        loop {
            let shared = self.shared.clone();
            let mut queue = shared.lock();
            if queue.stop {
                return false;
            }
            let room = !self.free.is_empty();
            let next = if room { queue.pieces.pop(self.guesses < guesses_max) } else { None };
            let Some((piece, guess)) = next else {
                queue.hungry = room;
                return true;
            };
            drop(queue);
            match shared.files.get(piece.file as usize) {
                Some(file) => self.start(piece, file, guess),
                None => {
                    let number = piece.file;
                    piece.end(Err(Error::invalid(format!("there is no file {number}"))));
                }
            }
        }
    }

    fn start(&mut self, piece: Piece, file: &OpenFile, guess: bool) {
        if !piece.begin() {
            return;
        }
        let Some(slot) = self.free.pop() else {
            return piece.end(Err(Error::new(ErrorKind::Cancelled, "the queue is full")));
        };
        let (_, read) = piece.memory(file.direct());
        self.guesses += usize::from(guess);
        self.flights[slot] = Some(Flight { piece, read, guess });
        self.issue(slot);
    }

    /// Queues the next call of a flight.
    fn issue(&mut self, slot: usize) {
        let Some(Flight { piece, read, .. }) = &self.flights[slot] else { return };
        let Some(file) = self.shared.files.get(piece.file as usize) else { return };
        let (part, offset, direct) = read.call();
        let (memory, _) = piece.memory(direct);
        // SAFETY: `call` stays inside of the memory that the piece has.
        let first = unsafe { memory.cast::<u8>().add(part.start) };
        let fd = types::Fd(file.handle(direct).as_raw_fd());
        let entry = opcode::Read::new(fd, first.as_ptr(), part.len() as u32).offset(offset);
        self.push(&entry.build().user_data(slot as u64));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the memory of a read is its piece's alone, and the piece stays in `flights`, which outlives
            // the read: a slot is emptied by its completion only, and `drop` waits for all of them. The files
            // and the bell live in `shared`, which this thread keeps.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0);
        }
    }

    /// Tells the kernel what is queued and waits for a completion.
    fn wait(&mut self) {
        self.enter(1);
    }

    fn enter(&mut self, completions: usize) {
        if let Err(error) = self.ring.submit_and_wait(completions)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // Out of some resource for now (EAGAIN, EBUSY): reads under way end all the same.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn reap(&mut self) {
        let done: Vec<(u64, i32)> = self.ring.completion().map(|c| (c.user_data(), c.result())).collect();
        for (name, result) in done {
            if name == BELL {
                self.bell_armed = false;
                // Nothing to read means that it was read before.
                let _ = (&self.shared.bell).read(&mut [0; 8]);
            } else {
                self.finish(name as usize, result);
            }
        }
    }

    fn finish(&mut self, slot: usize, result: i32) {
        let Some(Flight { piece, mut read, guess }) = self.flights.get_mut(slot).and_then(Option::take)
        else {
            return;
        };
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        let outcome = match self.shared.files.get(piece.file as usize) {
            Some(file) => read.done(file, result),
            None => Ok(Some(0)), // it was started, so its file is there
        };
        let end = match outcome {
            Ok(None) => {
                self.flights[slot] = Some(Flight { piece, read, guess });
                return self.issue(slot);
            }
            Ok(Some(bytes)) => Ok(bytes),
            Err(error) => Err(error),
        };
        self.free.push(slot);
        self.guesses -= usize::from(guess);
        piece.end(end);
    }
}

impl Drop for Ring {
    /// The kernel writes into the memory of what is in flight: it must end before that memory is given back.
    fn drop(&mut self) {
        while self.flights.iter().any(Option::is_some) {
            self.wait();
            self.reap();
        }
    }
}
