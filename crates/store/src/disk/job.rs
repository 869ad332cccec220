//! A request on its way: cut into pieces that workers read in any order, completed when the last piece is gone.

use std::collections::{HashSet, VecDeque};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use files::{Error, ErrorKind, Result};

use super::exact::{ExactRead, Source};
use super::{Completion, Fill, Priority, ReadRequest, Reply, Ticket};
use crate::slab::{PAGE_BYTES, Window};

/// What all pieces of a request share. Dropping the last reference sends the completion, so a piece that is
/// thrown away (cancelled, or lost with a queue or a worker) can never leave its client waiting.
pub(super) struct Job {
    ticket: Ticket,
    window: Option<Window>,
    /// Address of the window.
    memory: NonNull<u8>,
    reply: Option<Reply>,
    pieces: usize,
    state: Mutex<JobState>,
}

// SAFETY: the address is that of the window, which may itself be sent and shared.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

#[derive(Default)]
struct JobState {
    pieces_done: usize,
    bytes_read: u64,
    error: Option<Error>,
    started: Option<Instant>,
}

/// One contiguous part of a request: bytes `start..end` of `file`, `start` landing at byte `at` of the window.
pub(super) struct Piece {
    job: Arc<Job>,
    pub(super) file: u32,
    start: u64,
    end: u64,
    at: usize,
}

/// Cuts a request into pieces of at most `piece_bytes` (a multiple of the page size), in the order of its fills.
/// A request whose fills do not fit completes with an error, and gives no pieces.
pub(super) fn cut(request: ReadRequest, piece_bytes: u64) -> Vec<Piece> {
    let ReadRequest { ticket, priority: _, window, fills, reply } = request;
    let checked = check(&fills, window.bytes());
    let mut spans = Vec::new();
    for fill in fills.iter().filter(|f| f.range.bytes > 0 && checked.is_ok()) {
        let (first, last) = (fill.range.offset, fill.range.offset + fill.range.bytes);
        let mut start = first;
        while start < last {
            // Inner borders fall on multiples of the piece size, so the supersets of two pieces never overlap.
            let end = (start / piece_bytes + 1).saturating_mul(piece_bytes).min(last);
            spans.push((fill.range.file, start, end, fill.at + (start - first) as usize));
            start = end;
        }
    }
    let state = Mutex::new(JobState { error: checked.err(), ..JobState::default() });
    let memory = window.as_ptr();
    let job = Arc::new(Job {
        ticket,
        memory,
        window: Some(window),
        reply: Some(reply),
        pieces: spans.len(),
        state,
    });
    spans.into_iter().map(|(file, start, end, at)| Piece { job: job.clone(), file, start, end, at }).collect()
}

/// The contract of [`Fill`], which the raw memory access of [`Piece::read`] relies on.
pub(super) fn check(fills: &[Fill], window_bytes: usize) -> Result<()> {
    let mut supersets = Vec::with_capacity(fills.len());
    for fill in fills {
        let page = PAGE_BYTES as u64;
        let shift = fill.range.offset % page;
        let first = (fill.at as u64).checked_sub(shift).filter(|f| f.is_multiple_of(page));
        let bytes = fill.range.bytes.checked_add(shift).and_then(|b| b.checked_next_multiple_of(page));
        let span = first.zip(bytes).and_then(|(first, bytes)| Some((first, first.checked_add(bytes)?)));
        match span.filter(|s| s.1 <= window_bytes as u64 && fill.range.end().is_some()) {
            Some(span) => supersets.push(span),
            None => {
                return Err(Error::invalid(format!(
                    "{:?} does not fit a window of {window_bytes} bytes",
                    fill
                )));
            }
        }
    }
    supersets.sort_unstable();
    if supersets.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(Error::invalid("the ranges of a read overlap in its window"));
    }
    Ok(())
}

impl Job {
    fn state(&self) -> std::sync::MutexGuard<'_, JobState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Piece {
    /// The read it belongs to.
    pub(super) fn ticket(&self) -> Ticket {
        self.job.ticket
    }

    /// The bytes of the file it covers.
    pub(super) fn span(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    /// Whether it must be read: false if another piece of the same request has failed.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.job.state();
        state.started.get_or_insert_with(Instant::now);
        state.error.is_none()
    }

    /// Reads it from `file`, or skips it if another piece of the same request has failed.
    pub(super) fn read(self, file: &dyn Source) {
        if self.begin() {
            let (mut memory, read) = self.memory(file.direct());
            // SAFETY: by `memory` these bytes are this piece's alone for as long as it lives.
            let result = read.run(file, unsafe { memory.as_mut() });
            self.end(result);
        }
    }

    /// Its result: bytes read, or an error, which ends the whole request.
    pub(super) fn end(self, result: Result<u64>) {
        let mut state = self.job.state();
        match result {
            Ok(bytes) => {
                state.pieces_done += 1;
                state.bytes_read += bytes;
            }
            Err(error) => {
                state.error.get_or_insert(error);
            }
        }
    }

    /// The memory to fill (the page-aligned superset) and the read that fills it. Nothing else touches this memory
    /// until the piece is gone.
    pub(super) fn memory(&self, direct: bool) -> (NonNull<[u8]>, ExactRead) {
        let lead = (self.start % PAGE_BYTES as u64) as usize;
        let needed = lead + (self.end - self.start) as usize;
        let superset = needed.next_multiple_of(PAGE_BYTES);
        let read = ExactRead::new(direct, self.start - lead as u64, lead, needed, superset);
        // SAFETY: `check` has shown that the aligned superset of each fill lies inside the window and that they
        // are disjoint; pieces of one fill meet at page borders. So this piece alone accesses these bytes, and
        // the job keeps the window, which nobody else can reach, until all pieces are gone.
        let first = unsafe { self.job.memory.add(self.at - lead) };
        (NonNull::slice_from_raw_parts(first, superset), read)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let Some(window) = self.window.take() else { return };
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let finished = Instant::now();
        let result = match state.error.take() {
            Some(error) => Err(error),
            None if state.pieces_done == self.pieces => Ok(state.bytes_read),
            None => Err(Error::new(ErrorKind::Cancelled, "the read was cancelled")),
        };
        let started = state.started.unwrap_or(finished);
        if let Some(reply) = self.reply.take() {
            reply.send(Completion { ticket: self.ticket, window, result, started, finished });
        }
    }
}

/// Two queues of pieces, demand before speculative, first come first served within each.
#[derive(Default)]
pub(super) struct PieceQueue {
    demand: VecDeque<Piece>,
    speculative: VecDeque<Piece>,
}

impl PieceQueue {
    /// Appends.
    pub(super) fn push(&mut self, priority: Priority, pieces: impl IntoIterator<Item = Piece>) {
        self.class(priority).extend(pieces);
    }

    /// The first demand in line, else, if `speculate`, the first guess; says whether it is a guess.
    pub(super) fn pop(&mut self, speculate: bool) -> Option<(Piece, bool)> {
        if let Some(piece) = self.demand.pop_front() {
            return Some((piece, false));
        }
        let piece = if speculate { self.speculative.pop_front() } else { None };
        Some((piece?, true))
    }

    /// Takes a piece out of turn: number `pick` (modulo their count) of the first class that has any.
    pub(super) fn pop_any(&mut self, pick: usize) -> Option<Piece> {
        let class = if self.demand.is_empty() { &mut self.speculative } else { &mut self.demand };
        let index = pick.checked_rem(class.len())?;
        class.remove(index)
    }

    /// Takes out all pieces of these reads; dropping them may complete the reads.
    pub(super) fn remove(&mut self, tickets: &[Ticket]) -> Vec<Piece> {
        let mut removed = take(&mut self.demand, tickets);
        removed.extend(take(&mut self.speculative, tickets));
        removed
    }

    /// Moves the pieces of these reads to the demand queue.
    pub(super) fn promote(&mut self, tickets: &[Ticket]) {
        let promoted = take(&mut self.speculative, tickets);
        self.demand.extend(promoted);
    }

    fn class(&mut self, priority: Priority) -> &mut VecDeque<Piece> {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Speculative => &mut self.speculative,
        }
    }
}

/// Takes the pieces of `tickets` out of a queue, both in order.
fn take(queue: &mut VecDeque<Piece>, tickets: &[Ticket]) -> Vec<Piece> {
    if tickets.is_empty() || queue.is_empty() {
        return Vec::new();
    }
    let named: HashSet<Ticket> = tickets.iter().copied().collect();
    let (taken, kept): (Vec<_>, Vec<_>) = queue.drain(..).partition(|p| named.contains(&p.ticket()));
    *queue = kept.into();
    taken
}
