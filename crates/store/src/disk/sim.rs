//! The simulated drive: files in memory, and a seed that decides the order, the latency, the short reads and the
//! faults. It has no threads: it works when a client waits, so one seed gives one run. Time is virtual.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use files::Error;

use super::exact::Source;
use super::job::{Piece, PieceQueue, cut};
use super::{Disk, ReadRequest, Ticket};
use crate::key::Range;
use crate::slab::PAGE_BYTES;

/// How a [`SimDisk`] behaves.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Decides everything that is random.
    pub seed: u64,
    /// Serve pieces of the same priority in random order, else in order of submission.
    pub reorder: bool,
    /// Let read calls return fewer bytes than asked for, or be interrupted.
    pub short_reads: bool,
    /// Read aligned supersets, as direct I/O does; misaligned calls are refused.
    pub direct: bool,
    /// Largest single read, rounded up to whole pages.
    pub piece_bytes: usize,
    /// Virtual time of one piece: random up to twice this.
    pub latency: Duration,
}

impl Default for SimOptions {
    fn default() -> Self {
        let latency = Duration::from_micros(100);
        Self { seed: 0, reorder: true, short_reads: true, direct: true, piece_bytes: 64 << 10, latency }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The drive reports an I/O error (EIO).
    Io,
    /// The piece stays under way for this (virtual) time, and cannot be cancelled meanwhile.
    Stall(Duration),
}

/// A fault that meets every piece that touches `range`, `times` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub range: Range,
    /// What.
    pub kind: FaultKind,
    /// How often; `u32::MAX` is always.
    pub times: u32,
}

/// A [`Disk`] on files in memory, deterministic by seed when one thread uses it.
pub struct SimDisk {
    files: Vec<SimFile>,
    state: Mutex<State>,
    tickets: AtomicU64,
    options: SimOptions,
}

struct SimFile {
    name: String,
    bytes: u64,
    content: RwLock<Vec<u8>>,
    direct: AtomicBool,
}

struct State {
    random: u64,
    now: Duration,
    queue: PieceQueue,
    stalled: Vec<(Duration, Piece)>,
    faults: Vec<Fault>,
    pieces_read: u64,
}

impl SimDisk {
    /// A drive that holds `files`, called `sim-0`, `sim-1`, …
    pub fn new(files: Vec<Vec<u8>>, options: SimOptions) -> Self {
        let file = |(i, content): (usize, Vec<u8>)| SimFile {
            name: format!("sim-{i}"),
            bytes: content.len() as u64,
            content: RwLock::new(content),
            direct: AtomicBool::new(options.direct),
        };
        let files = files.into_iter().enumerate().map(file).collect();
        let state = State {
            random: options.seed,
            now: Duration::ZERO,
            queue: PieceQueue::default(),
            stalled: Vec::new(),
            faults: Vec::new(),
            pieces_read: 0,
        };
        Self { files, state: Mutex::new(state), tickets: AtomicU64::new(0), options }
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Ends all faults.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Cuts a file, as if another program did while we run. The length it was opened with stays.
    pub fn truncate(&self, file: u32, bytes: usize) {
        if let Some(file) = self.files.get(file as usize) {
            file.content.write().unwrap_or_else(PoisonError::into_inner).truncate(bytes);
        }
    }

    /// The virtual time that the reads so far have taken.
    pub fn elapsed(&self) -> Duration {
        self.lock().now
    }

    /// Pieces read so far; a piece is what one worker of a real engine would read at a time.
    pub fn pieces_read(&self) -> u64 {
        self.lock().pieces_read
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece to serve: of the queue if it holds one, else, for one who waits, that whose stall ends first.
    fn next_piece(&self, state: &mut State, blocking: bool) -> Option<Piece> {
        let latency = state.below(2 * self.options.latency.as_nanos() as u64 + 1);
        state.now += Duration::from_nanos(latency);
        loop {
            if let Some(due) = state.stalled.iter().position(|s| s.0 <= state.now) {
                return Some(state.stalled.swap_remove(due).1);
            }
            let pick = if self.options.reorder { state.below(1 << 32) as usize } else { 0 };
            let Some(piece) = state.queue.pop_any(pick) else { break };
            match state.fault(piece.file, piece.span(), |k| matches!(k, FaultKind::Stall(_))) {
                Some(FaultKind::Stall(time)) => {
                    let until = state.now + time;
                    state.stalled.push((until, piece));
                }
                _ => return Some(piece),
            }
        }
        let first = (0..state.stalled.len()).filter(|_| blocking).min_by_key(|&i| state.stalled[i].0)?;
        let (until, piece) = state.stalled.swap_remove(first);
        state.now = state.now.max(until);
        Some(piece)
    }
}

impl State {
    /// A random number below `bound` (splitmix64, Steele et al. 2014).
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    /// The first fault of the wanted kind on these bytes; it is then used up once.
    fn fault(&mut self, file: u32, span: (u64, u64), kind: impl Fn(FaultKind) -> bool) -> Option<FaultKind> {
        let meets = |r: &Range| r.file == file && r.offset < span.1 && r.end().is_none_or(|end| span.0 < end);
        let fault = self.faults.iter_mut().find(|f| f.times > 0 && kind(f.kind) && meets(&f.range))?;
        if fault.times != u32::MAX {
            fault.times -= 1;
        }
        Some(fault.kind)
    }
}

impl Disk for SimDisk {
    fn describe(&self) -> String {
        format!("simulated, seed {}", self.options.seed)
    }

    fn files(&self) -> u32 {
        self.files.len() as u32
    }

    fn file_name(&self, file: u32) -> String {
        self.files.get(file as usize).map_or_else(|| format!("file {file}"), |f| f.name.clone())
    }

    fn file_bytes(&self, file: u32) -> Option<u64> {
        self.files.get(file as usize).map(|f| f.bytes)
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    fn submit(&self, requests: Vec<ReadRequest>) {
        let piece_bytes = self.options.piece_bytes.max(1).next_multiple_of(PAGE_BYTES) as u64;
        // A request that does not fit completes here: outside of the lock.
        let cut: Vec<_> = requests.into_iter().map(|r| (r.priority, cut(r, piece_bytes))).collect();
        let mut state = self.lock();
        for (priority, pieces) in cut {
            state.queue.push(priority, pieces);
        }
    }

    fn cancel(&self, tickets: &[Ticket]) {
        let removed = self.lock().queue.remove(tickets);
        drop(removed);
    }

    fn promote(&self, tickets: &[Ticket]) {
        self.lock().queue.promote(tickets);
    }

    fn progress(&self, blocking: bool) -> bool {
        let mut state = self.lock();
        if !blocking && state.below(2) == 0 {
            return false;
        }
        let Some(piece) = self.next_piece(&mut state, blocking) else { return false };
        state.pieces_read += 1;
        let failed = state.fault(piece.file, piece.span(), |k| k == FaultKind::Io).is_some();
        drop(state);
        let Some(file) = self.files.get(piece.file as usize) else {
            let number = piece.file;
            piece.end(Err(Error::invalid(format!("there is no file {number}"))));
            return true;
        };
        if failed {
            let cause = io::Error::other("simulated I/O error");
            let at = piece.span().0;
            piece.end(Err(Error::io(format!("{}: reading at byte {at}", file.name), cause)));
        } else {
            piece.read(&View { disk: self, file });
        }
        true
    }
}

/// A file together with the dice.
struct View<'a> {
    disk: &'a SimDisk,
    file: &'a SimFile,
}

impl Source for View<'_> {
    fn name(&self) -> String {
        self.file.name.clone()
    }

    fn direct(&self) -> bool {
        self.file.direct.load(Ordering::Relaxed)
    }

    fn refuse_direct(&self) {
        self.file.direct.store(false, Ordering::Relaxed);
    }

    fn read_at(&self, memory: &mut [u8], offset: u64, direct: bool) -> io::Result<usize> {
        let aligned = |n: u64| n.is_multiple_of(PAGE_BYTES as u64);
        let misaligned =
            !aligned(offset) || !aligned(memory.len() as u64) || !aligned(memory.as_ptr() as u64);
        if direct && misaligned {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut limit = memory.len() as u64;
        if self.disk.options.short_reads {
            let mut state = self.disk.lock();
            match state.below(8) {
                0 => return Err(io::ErrorKind::Interrupted.into()),
                1..=3 => limit = 1 + state.below(limit),
                _ => {}
            }
        }
        let content = self.file.content.read().unwrap_or_else(PoisonError::into_inner);
        let rest = content.get(offset as usize..).unwrap_or_default();
        let bytes = rest.len().min(limit as usize);
        memory[..bytes].copy_from_slice(&rest[..bytes]);
        Ok(bytes)
    }
}
