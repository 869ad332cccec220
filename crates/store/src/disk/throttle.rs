//! A slower drive than the one there is: a rate and a latency around any engine.
//!
//! Time is that of a virtual drive which serves one read after the other at the rate, demand before speculation. A
//! read is handed to the inner engine shortly before the virtual drive comes to it, and its completion is held back
//! until the virtual drive is done. Errors in timing never add up: the virtual drive's clock runs by itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use super::{Completion, Disk, Priority, ReadRequest, Reply, Ticket};
use crate::key::Range;

/// What a [`ThrottledDisk`] pretends to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThrottleOptions {
    /// Rate of all reads together.
    pub bytes_per_s: f64,
    /// Added to each read; reads in line overlap in it.
    pub latency: Duration,
}

/// How far ahead of the virtual drive the inner one reads.
const AHEAD: Duration = Duration::from_millis(4);

/// A [`Disk`] that is at most as fast as its options say. It is faithful as long as the inner engine is faster.
pub struct ThrottledDisk {
    inner: Arc<dyn Disk>,
    line: Arc<Line>,
    options: ThrottleOptions,
    thread: Option<JoinHandle<()>>,
}

/// What waits, and what the inner engine reads. Replies hold it, so it does not hold the inner engine.
#[derive(Default)]
struct Line {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    demand: VecDeque<(Instant, ReadRequest)>,
    speculative: VecDeque<(Instant, ReadRequest)>,
    flights: HashMap<Ticket, Flight>,
    /// When the virtual drive is done with all that it was given.
    free: Option<Instant>,
    stop: bool,
}

/// A read of the inner engine.
struct Flight {
    started: Instant,
    due: Instant,
    reply: Reply,
    arrived: Option<Completion>,
}

impl ThrottledDisk {
    /// Slows `inner` down.
    ///
    /// # Errors
    /// `InvalidRequest` for a rate that is not a positive number; `Io` when no thread can be started.
    pub fn new(inner: Arc<dyn Disk>, options: &ThrottleOptions) -> Result<Self> {
        if !(options.bytes_per_s > 0.0 && options.bytes_per_s.is_finite()) {
            return Err(Error::invalid(format!(
                "a drive cannot be throttled to {} bytes/s",
                options.bytes_per_s
            )));
        }
        let line = Arc::new(Line::default());
        let mut disk = Self { inner, line, options: *options, thread: None };
        let (inner, line, options) = (disk.inner.clone(), disk.line.clone(), disk.options);
        let builder = std::thread::Builder::new().name("throttle".into()).stack_size(256 << 10);
        let thread = builder.spawn(move || line.run(inner.as_ref(), &options));
        disk.thread = Some(thread.map_err(|e| Error::io("throttling thread", e))?);
        Ok(disk)
    }
}

impl Disk for ThrottledDisk {
    fn describe(&self) -> String {
        format!("{}, at most {:.2} GB/s", self.inner.describe(), self.options.bytes_per_s / 1e9)
    }

    fn files(&self) -> u32 {
        self.inner.files()
    }

    fn file_name(&self, file: u32) -> String {
        self.inner.file_name(file)
    }

    fn file_bytes(&self, file: u32) -> Option<u64> {
        self.inner.file_bytes(file)
    }

    fn is_direct(&self, file: u32) -> bool {
        self.inner.is_direct(file)
    }

    fn forget_cached(&self, ranges: &[Range]) {
        self.inner.forget_cached(ranges);
    }

    fn check_unchanged(&self) -> Result<()> {
        self.inner.check_unchanged()
    }

    fn ticket(&self) -> Ticket {
        self.inner.ticket()
    }

    fn submit(&self, requests: Vec<ReadRequest>) {
        let now = Instant::now();
        let mut state = self.line.lock();
        for request in requests {
            state.class(request.priority).push_back((now, request));
        }
        drop(state);
        self.line.wake.notify_all();
    }

    fn cancel(&self, tickets: &[Ticket]) {
        let mut state = self.line.lock();
        let named = |r: &(Instant, ReadRequest)| tickets.contains(&r.1.ticket);
        let mut given_up = take(&mut state.demand, named);
        given_up.extend(take(&mut state.speculative, named));
        drop(state);
        given_up.into_iter().for_each(|(_, request)| request.end(Err(cancelled())));
        self.inner.cancel(tickets);
    }

    fn promote(&self, tickets: &[Ticket]) {
        let mut state = self.line.lock();
        let promoted = take(&mut state.speculative, |r| tickets.contains(&r.1.ticket));
        state.demand.extend(promoted);
        drop(state);
        self.inner.promote(tickets);
    }
}

impl Drop for ThrottledDisk {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.stop = true;
        let waiting = [std::mem::take(&mut state.demand), std::mem::take(&mut state.speculative)];
        let flights: Vec<_> = state.flights.keys().copied().collect();
        drop(state);
        waiting.into_iter().flatten().for_each(|(_, request)| request.end(Err(cancelled())));
        self.inner.cancel(&flights);
        self.line.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the read was cancelled")
}

/// Takes the named requests out of a queue, both in order.
fn take(
    queue: &mut VecDeque<(Instant, ReadRequest)>,
    named: impl Fn(&(Instant, ReadRequest)) -> bool,
) -> Vec<(Instant, ReadRequest)> {
    let (taken, kept): (Vec<_>, Vec<_>) = queue.drain(..).partition(named);
    *queue = kept.into();
    taken
}

impl State {
    fn class(&mut self, priority: Priority) -> &mut VecDeque<(Instant, ReadRequest)> {
        match priority {
            Priority::Demand => &mut self.demand,
            Priority::Speculative => &mut self.speculative,
        }
    }

    /// The next read, if the virtual drive comes to it soon, on its way to the inner engine.
    fn admit(&mut self, line: &Arc<Line>, options: &ThrottleOptions, now: Instant) -> Option<ReadRequest> {
        if self.free.is_some_and(|free| free > now + AHEAD) {
            return None;
        }
        let (queued, mut request) = self.demand.pop_front().or_else(|| self.speculative.pop_front())?;
        let started = self.free.map_or(queued, |free| free.max(queued));
        let service = request.superset_bytes() as f64 / options.bytes_per_s;
        // A century at most: the clock must not overflow.
        let free = started + Duration::from_secs_f64(service.min(3e9));
        self.free = Some(free);
        let (line, ticket) = (line.clone(), request.ticket);
        let arrive = move |completion: Completion| line.arrive(ticket, completion);
        let reply = std::mem::replace(&mut request.reply, Reply::new(arrive));
        self.flights.insert(ticket, Flight { started, due: free + options.latency, reply, arrived: None });
        Some(request)
    }

    /// Reads that have arrived and are due; an error is due at once.
    fn due(&mut self, now: Instant) -> Vec<Flight> {
        let stop = self.stop;
        let ends = |f: &Flight| f.arrived.as_ref().is_some_and(|c| stop || f.due <= now || c.result.is_err());
        self.flights.extract_if(|_, f| ends(f)).map(|(_, f)| f).collect()
    }

    /// When something happens by itself.
    fn next_event(&self) -> Option<Instant> {
        let waiting = !(self.demand.is_empty() && self.speculative.is_empty());
        let admission = self.free.filter(|_| waiting).map(|free| free - AHEAD);
        let arrived = self.flights.values().filter(|f| f.arrived.is_some()).map(|f| f.due);
        arrived.chain(admission).min()
    }
}

impl Flight {
    fn deliver(self) {
        let Some(mut completion) = self.arrived else { return };
        if completion.result.is_ok() {
            completion.finished = completion.finished.max(self.due);
            completion.started = self.started;
        }
        self.reply.send(completion);
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, ticket: Ticket, completion: Completion) {
        if let Some(flight) = self.lock().flights.get_mut(&ticket) {
            flight.arrived = Some(completion);
        }
        self.wake.notify_all();
    }

    /// The thread: admits and delivers in time until stopped and empty.
    fn run(self: Arc<Self>, inner: &dyn Disk, options: &ThrottleOptions) {
        let mut state = self.lock();
        while !(state.stop && state.flights.is_empty()) {
            let now = Instant::now();
            let due = state.due(now);
            let mut admitted = Vec::new();
            while let Some(request) = state.admit(&self, options, now) {
                admitted.push(request);
            }
            if due.is_empty() && admitted.is_empty() {
                let wait = state.next_event().map(|at| at.saturating_duration_since(now));
                // An inner engine without threads may hold back a read for a while: look again soon.
                let wait = wait.unwrap_or(Duration::from_millis(50)).min(Duration::from_millis(50));
                state = self.wake.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
            } else {
                drop(state);
                due.into_iter().for_each(Flight::deliver);
                if !admitted.is_empty() {
                    inner.submit(admitted);
                }
                state = self.lock();
            }
            drop(state);
            while inner.progress(true) {}
            state = self.lock();
        }
    }
}
