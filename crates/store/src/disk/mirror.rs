//! Two copies of the same files on two drives, read as one drive that has the rates of both.
//!
//! Reads are cut into pieces, and each drive is handed the next piece when it runs dry, so the faster one takes
//! more. A piece that one copy cannot deliver is read from the other.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use super::job::check;
use super::{Completion, Disk, Fill, Priority, ReadRequest, Reply, Ticket};
use crate::key::Range;
use crate::slab::{PAGE_BYTES, Window};

/// Largest piece that goes to one drive.
const PIECE_BYTES: u64 = 1 << 20;

/// What a drive has in hand is worth this time at its rate, in seconds: long enough to never run dry, short enough
/// that both end together.
const AHEAD_S: f64 = 0.004;

/// Pieces that a drive has in hand at least.
const PIECES_MIN: u64 = 4;

/// A [`Disk`] over two copies.
pub struct MirrorDisk {
    drives: [Drive; 2],
    line: Arc<Line>,
    tickets: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Drive {
    disk: Arc<dyn Disk>,
    bytes_per_s: f64,
    /// Most that it has in hand.
    hand_bytes: u64,
}

/// What waits and what is under way. Replies hold it, so it does not hold the drives.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    demand: VecDeque<Piece>,
    speculative: VecDeque<Piece>,
    in_hand: [u64; 2],
    reads: HashMap<Ticket, Whole>,
    stop: bool,
}

/// A client's read.
struct Whole {
    reply: Reply,
    /// Start and size of its window, and a part of it that no piece fills.
    offset: usize,
    bytes: usize,
    rest: Window,
    /// The other parts that have come back, and how many are still away.
    back: Vec<Window>,
    away: usize,
    bytes_read: u64,
    error: Option<Error>,
    started: Option<Instant>,
    /// Tickets of its pieces at the drives.
    pieces: Vec<(usize, Ticket)>,
}

/// A part of a read with the part of the window that it fills.
struct Piece {
    read: Ticket,
    window: Window,
    fill: Fill,
    /// The drive that failed on it.
    failed: Option<usize>,
}

impl MirrorDisk {
    /// Reads from both `disks`, which hold the same files in the same order; `bytes_per_s` are their rates as probed.
    ///
    /// # Errors
    /// `InvalidRequest` when the copies differ in number or length of files, naming the file, or a rate is not a
    /// positive number.
    pub fn new(disks: [Arc<dyn Disk>; 2], bytes_per_s: [f64; 2]) -> Result<Self> {
        let [first, second] = &disks;
        if first.files() != second.files() {
            return Err(Error::invalid(format!(
                "the copies have {} and {} files",
                first.files(),
                second.files()
            )));
        }
        for file in 0..first.files() {
            if first.file_bytes(file) != second.file_bytes(file) {
                return Err(Error::invalid(format!(
                    "{} and its copy {} differ in length",
                    first.file_name(file),
                    second.file_name(file)
                )));
            }
        }
        if bytes_per_s.iter().any(|r| !(*r > 0.0 && r.is_finite())) {
            return Err(Error::invalid(format!("drives with {bytes_per_s:?} bytes/s make no mirror")));
        }
        let drive = |disk, bytes_per_s: f64| {
            let hand_bytes = ((bytes_per_s * AHEAD_S) as u64).max(PIECES_MIN * PIECE_BYTES);
            Drive { disk, bytes_per_s, hand_bytes }
        };
        let [first, second] = disks;
        let drives = [drive(first, bytes_per_s[0]), drive(second, bytes_per_s[1])];
        let line = Arc::new(Line::default());
        let (of_thread, to_drives) = (line.clone(), drives.clone());
        let builder = std::thread::Builder::new().name("mirror".into()).stack_size(256 << 10);
        let thread = builder.spawn(move || {
            crate::urgency::raise();
            of_thread.run(&to_drives);
        });
        let thread = thread.map_err(|e| Error::io("mirror thread", e))?;
        Ok(Self { drives, line, tickets: AtomicU64::new(0), thread: Some(thread) })
    }
}

impl Disk for MirrorDisk {
    fn describe(&self) -> String {
        let [first, second] = &self.drives;
        let share = 100.0 * second.bytes_per_s / (first.bytes_per_s + second.bytes_per_s);
        format!("{}; {share:.0} % from a copy: {}", first.disk.describe(), second.disk.describe())
    }

    fn files(&self) -> u32 {
        self.drives[0].disk.files()
    }

    fn file_name(&self, file: u32) -> String {
        self.drives[0].disk.file_name(file)
    }

    fn file_bytes(&self, file: u32) -> Option<u64> {
        self.drives[0].disk.file_bytes(file)
    }

    fn is_direct(&self, file: u32) -> bool {
        self.drives.iter().all(|drive| drive.disk.is_direct(file))
    }

    fn forget_cached(&self, ranges: &[Range]) {
        self.drives.iter().for_each(|drive| drive.disk.forget_cached(ranges));
    }

    fn check_unchanged(&self) -> Result<()> {
        self.drives.iter().try_for_each(|drive| drive.disk.check_unchanged())
    }

    fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    fn submit(&self, requests: Vec<ReadRequest>) {
        let mut state = self.line.lock();
        let mut ended = Vec::new();
        for request in requests {
            match check(&request.fills, request.window.bytes()) {
                Ok(()) if request.fills.iter().any(|f| f.range.bytes > 0) => state.enter(request),
                Ok(()) => ended.push((request, Ok(0))),
                Err(error) => ended.push((request, Err(error))),
            }
        }
        drop(state);
        ended.into_iter().for_each(|(request, result)| request.end(result));
        self.line.wake.notify_all();
    }

    fn cancel(&self, tickets: &[Ticket]) {
        let mut state = self.line.lock();
        let mut removed = take(&mut state.demand, tickets);
        removed.extend(take(&mut state.speculative, tickets));
        let pieces: Vec<_> =
            tickets.iter().filter_map(|t| state.reads.get(t)).flat_map(|w| &w.pieces).collect();
        let of = |drive| pieces.iter().filter(|p| p.0 == drive).map(|p| p.1).collect::<Vec<_>>();
        let at_drives = [of(0), of(1)];
        drop(pieces);
        let ended: Vec<_> = removed
            .into_iter()
            .filter_map(|piece| state.settle(piece.read, piece.window, Err(cancelled()), None))
            .collect();
        drop(state);
        ended.into_iter().for_each(|(ticket, whole)| whole.end(ticket));
        for (drive, tickets) in self.drives.iter().zip(at_drives) {
            drive.disk.cancel(&tickets);
        }
    }

    fn promote(&self, tickets: &[Ticket]) {
        let mut state = self.line.lock();
        let promoted = take(&mut state.speculative, tickets);
        state.demand.extend(promoted);
        // Those in hand are few, and begun or next in line.
    }
}

impl Drop for MirrorDisk {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.stop = true;
        let tickets: Vec<_> = state.reads.keys().copied().collect();
        drop(state);
        self.cancel(&tickets);
        self.line.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the read was cancelled")
}

fn take(queue: &mut VecDeque<Piece>, tickets: &[Ticket]) -> Vec<Piece> {
    let (taken, kept): (Vec<_>, Vec<_>) = queue.drain(..).partition(|p| tickets.contains(&p.read));
    *queue = kept.into();
    taken
}

impl State {
    /// Cuts a request whose fills fit into pieces that own their part of the window.
    fn enter(&mut self, request: ReadRequest) {
        let ReadRequest { ticket, priority, window, mut fills, reply } = request;
        let (offset, bytes) = (window.offset(), window.bytes());
        fills.retain(|f| f.range.bytes > 0);
        fills.sort_by_key(|f| f.at);
        let (mut rest, mut back, mut away) = (window, Vec::new(), 0);
        for fill in fills {
            let mut done = 0;
            while done < fill.range.bytes {
                let mut range = fill.range;
                range.offset += done;
                range.bytes = (PIECE_BYTES - range.offset % PIECE_BYTES).min(fill.range.bytes - done);
                let at = fill.at + done as usize;
                let first = at - at % PAGE_BYTES;
                let last = (at + range.bytes as usize).next_multiple_of(PAGE_BYTES);
                // Supersets are disjoint and ascend, so each cut lies in what is left of the window.
                let (gap, tail) = rest.split(offset + first);
                let (window, tail) = tail.split(offset + last);
                rest = tail;
                back.push(gap);
                away += 1;
                let fill = Fill { range, at: at - first };
                self.class(priority).push_back(Piece { read: ticket, window, fill, failed: None });
                done += range.bytes;
            }
        }
        let whole = Whole {
            reply,
            offset,
            bytes,
            rest,
            back,
            away,
            bytes_read: 0,
            error: None,
            started: None,
            pieces: Vec::new(),
        };
        self.reads.insert(ticket, whole);
    }

    fn class(&mut self, priority: Priority) -> &mut VecDeque<Piece> {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Speculative => &mut self.speculative,
        }
    }

    /// The next piece, for the drive that will be done with it first, if that drive has a hand free.
    fn next(&mut self, drives: &[Drive; 2]) -> Option<(usize, Piece, Priority)> {
        let priority = if self.demand.is_empty() { Priority::Speculative } else { Priority::Demand };
        let piece = self.class(priority).front()?;
        let (bytes, failed) = (piece.window.bytes() as u64, piece.failed);
        let fits = |d: &usize| self.in_hand[*d] + bytes <= drives[*d].hand_bytes;
        let end = |d: &usize| (self.in_hand[*d] + bytes) as f64 / drives[*d].bytes_per_s;
        let drive = match failed {
            Some(failed) => 1 - failed,
            None => (0..2).filter(fits).min_by(|a, b| end(a).total_cmp(&end(b)))?,
        };
        let piece = self.class(priority).pop_front()?;
        self.in_hand[drive] += bytes;
        Some((drive, piece, priority))
    }

    /// Takes back a piece's window and its result; the read, if that was the last piece.
    fn settle(
        &mut self,
        read: Ticket,
        window: Window,
        result: Result<u64>,
        started: Option<Instant>,
    ) -> Option<(Ticket, Whole)> {
        let whole = self.reads.get_mut(&read)?;
        whole.back.push(window);
        whole.away -= 1;
        whole.started = [whole.started, started].into_iter().flatten().min();
        match result {
            Ok(bytes) => whole.bytes_read += bytes,
            Err(error) => drop(whole.error.get_or_insert(error)),
        }
        if whole.away > 0 { None } else { self.reads.remove_entry(&read) }
    }
}

impl Whole {
    fn end(self, ticket: Ticket) {
        let finished = Instant::now();
        let started = self.started.unwrap_or(finished);
        let window = self.rest.join(self.back, self.offset, self.bytes);
        let result = self.error.map_or(Ok(self.bytes_read), Err);
        self.reply.send(Completion { ticket, window, result, started, finished });
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a piece at a drive.
    fn arrive(&self, drive: usize, piece: (Ticket, Fill, Option<usize>), completion: Completion) {
        let (read, fill, failed) = piece;
        let Completion { window, result, started, .. } = completion;
        let mut state = self.lock();
        state.in_hand[drive] -= window.bytes() as u64;
        let broken = matches!(&result, Err(e) if e.kind() != ErrorKind::Cancelled);
        let ended = if broken && failed.is_none() && !state.stop {
            state.demand.push_front(Piece { read, window, fill, failed: Some(drive) });
            None
        } else {
            state.settle(read, window, result, Some(started))
        };
        drop(state);
        self.wake.notify_all();
        if let Some((ticket, whole)) = ended {
            whole.end(ticket);
        }
    }

    /// The thread: keeps both drives busy until stopped and empty.
    fn run(self: Arc<Self>, drives: &[Drive; 2]) {
        let mut state = self.lock();
        while !(state.stop && state.reads.is_empty()) {
            match state.next(drives) {
                Some((drive, piece, priority)) => {
                    let disk = &drives[drive].disk;
                    let ticket = disk.ticket();
                    let Piece { read, window, fill, failed } = piece;
                    if let Some(whole) = state.reads.get_mut(&read) {
                        whole.pieces.push((drive, ticket));
                    }
                    drop(state);
                    let line = self.clone();
                    let reply = Reply::new(move |done| line.arrive(drive, (read, fill, failed), done));
                    disk.submit(vec![ReadRequest { ticket, priority, window, fills: vec![fill], reply }]);
                }
                None => {
                    drop(state);
                    while drives.iter().any(|d| d.disk.progress(true)) {}
                    // Notified when there is something to do; engines without threads of their own hold pieces
                    // back now and then, so look again.
                    let wait = Duration::from_millis(20);
                    let idle = |s: &mut State| {
                        s.demand.is_empty() && s.speculative.is_empty() && !(s.stop && s.reads.is_empty())
                    };
                    let locked = self.lock();
                    drop(self.wake.wait_timeout_while(locked, wait, idle));
                }
            }
            state = self.lock();
        }
    }
}
