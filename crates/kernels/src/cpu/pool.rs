//! A pool for hundreds of short fork-joins a token.
//!
//! Workers look for the next job in a bounded spin and then park. The spin shrinks when a worker notices that it
//! lost its core in the middle of it (the machine is oversubscribed) and grows back when spinning pays. Items are
//! handed out one by one, the caller works along, and a join waits only for workers that took part: a worker
//! that the system does not run costs nothing but its help.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

/// A ticket's low half counts the workers that entered; then comes the flag that says the job is open; the upper
/// half numbers the jobs.
const OPEN: u64 = 1 << 31;
const ENTERED: u64 = OPEN - 1;
const JOB: u64 = 1 << 32;

/// The longest spin before a worker parks: about the longest gap between two ops of a token.
const SPIN_MAX: Duration = Duration::from_micros(60);
/// The shortest; a pool that found the machine busy recovers from here.
const SPIN_MIN: Duration = Duration::from_micros(1);
/// A pause in a spin that only the loss of the core explains.
const PREEMPTED: Duration = Duration::from_micros(300);

type Item<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// What a worker needs to know of a job.
#[derive(Clone, Copy)]
struct Job {
    run: *const Item<'static>,
    items: usize,
}

struct Shared {
    ticket: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next: AtomicUsize,
    finished: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    stop: AtomicBool,
    caller_waits: AtomicBool,
    caller: Mutex<Option<Thread>>,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the caller alone, while the ticket is closed and every worker that entered has
// finished; workers read it only after they entered an open ticket, which was published after the write.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only between the opening and the join of its ticket, while `Pool::run`
// keeps what it points to borrowed.
unsafe impl Send for Shared {}

/// Persistent threads that share the items of one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: ops that are called from several threads take turns.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's included.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] when the system starts no more threads.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
            caller_waits: AtomicBool::new(false),
            caller: Mutex::new(None),
            sleeping: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(helpers), turn: Mutex::new(()) };
        // More threads than cores: a spinning worker would hold the core that another one needs.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = if threads > cores { Duration::ZERO } else { SPIN_MAX };
        for index in 0..helpers {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("tidemill-{index}"))
                .spawn(move || work(&shared, index, spin))
                .map_err(|e| Error::new(ErrorKind::Device, "cannot start a thread").with_source(e))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `run` once for each of `items` numbers, on all threads, and returns when all are done.
    ///
    /// # Errors
    /// The first error that an item returned; [`ErrorKind::Device`] when one panicked. The other items may then
    /// not have run.
    pub(crate) fn run(&self, items: usize, run: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        if self.workers.is_empty() || items <= 1 {
            return (0..items).try_for_each(run);
        }
        let _turn = lock(&self.turn);
        self.open(items, &run);
        drain(&self.shared, &run, items);
        self.join();
        match lock(&self.shared.failure).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn open(&self, items: usize, run: &Item<'_>) {
        let shared = &*self.shared;
        let run = std::ptr::from_ref(run);
        // SAFETY: only the lifetime changes; `run` of the pool outlives the job, because it joins before it returns.
        let run: *const Item<'static> = unsafe { std::mem::transmute::<*const Item<'_>, _>(run) };
        // SAFETY: the last join closed the ticket and saw every worker that entered finish; `turn` is held.
        unsafe { *shared.job.get() = Some(Job { run, items }) };
        shared.next.store(0, Ordering::Relaxed);
        shared.finished.store(0, Ordering::Relaxed);
        shared.failed.store(false, Ordering::Relaxed);
        let job = shared.ticket.load(Ordering::Relaxed) & !(OPEN | ENTERED);
        // SeqCst pairs with the worker that marks itself asleep and then looks at the ticket again.
        shared.ticket.store(job.wrapping_add(JOB) | OPEN, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping).take(items - 1) {
            if sleeping.load(Ordering::SeqCst) && sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Closes the job and waits for the workers that entered it.
    fn join(&self) {
        let shared = &*self.shared;
        let entered = shared.ticket.fetch_and(!OPEN, Ordering::SeqCst) & ENTERED;
        let done = || shared.finished.load(Ordering::SeqCst) == entered;
        let mut clock = Clock::new(SPIN_MAX);
        while !done() {
            if clock.tick() {
                continue;
            }
            *lock(&shared.caller) = Some(std::thread::current());
            shared.caller_waits.store(true, Ordering::SeqCst);
            while !done() {
                std::thread::park();
            }
            shared.caller_waits.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its items, so there is nothing to learn here.
            let _ = worker.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can leave its value half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes items until none is left.
fn drain(shared: &Shared, run: &Item<'_>, items: usize) {
    while !shared.failed.load(Ordering::Relaxed) {
        let item = shared.next.fetch_add(1, Ordering::Relaxed);
        if item >= items {
            return;
        }
        let error = match catch_unwind(AssertUnwindSafe(|| run(item))) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(panic) => panicked(&*panic),
        };
        shared.failed.store(true, Ordering::Relaxed);
        lock(&shared.failure).get_or_insert(error);
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Device, format!("a kernel panicked: {text}"))
}

/// The life of a worker.
fn work(shared: &Shared, index: usize, spin: Duration) {
    let mut spin_now = spin;
    let mut seen = 0;
    while let Some(ticket) = wait(shared, index, seen, spin, &mut spin_now) {
        seen = ticket / JOB;
        // SAFETY: this worker entered the ticket while it was open, so the caller wrote the job before and does
        // not touch it, nor let go of what it points to, until `finished` counts this worker.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: as above.
            drain(shared, unsafe { &*job.run }, job.items);
        }
        shared.finished.fetch_add(1, Ordering::SeqCst);
        if shared.caller_waits.load(Ordering::SeqCst)
            && let Some(caller) = &*lock(&shared.caller)
        {
            caller.unpark();
        }
    }
}

/// Enters the next open job and returns its ticket; `None` when the pool stops.
fn wait(shared: &Shared, index: usize, seen: u64, spin: Duration, spin_now: &mut Duration) -> Option<u64> {
    let mut clock = Clock::new(*spin_now);
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        let ticket = shared.ticket.load(Ordering::SeqCst);
        if ticket & OPEN != 0 && ticket / JOB != seen {
            let entry =
                shared.ticket.compare_exchange_weak(ticket, ticket + 1, Ordering::SeqCst, Ordering::Relaxed);
            if entry.is_ok() {
                *spin_now = if clock.preempted { *spin_now / 2 } else { *spin_now * 2 };
                *spin_now = (*spin_now).clamp(SPIN_MIN.min(spin), spin);
                return Some(ticket);
            }
            continue;
        }
        if clock.tick() {
            continue;
        }
        *spin_now = (*spin_now / 2).max(SPIN_MIN.min(spin));
        shared.sleeping[index].store(true, Ordering::SeqCst);
        while !shared.stop.load(Ordering::SeqCst) && !news(shared, seen) {
            std::thread::park();
        }
        shared.sleeping[index].store(false, Ordering::SeqCst);
    }
}

fn news(shared: &Shared, seen: u64) -> bool {
    let ticket = shared.ticket.load(Ordering::SeqCst);
    ticket & OPEN != 0 && ticket / JOB != seen
}

/// Measures a spin, and whether it was interrupted.
struct Clock {
    end: Instant,
    last: Instant,
    ticks: u32,
    preempted: bool,
}

impl Clock {
    fn new(spin: Duration) -> Self {
        let now = Instant::now();
        Self { end: now + spin, last: now, ticks: 0, preempted: false }
    }

    /// Pauses a moment; false when the spin is over.
    fn tick(&mut self) -> bool {
        std::hint::spin_loop();
        self.ticks += 1;
        if !self.ticks.is_multiple_of(16) {
            return true;
        }
        let now = Instant::now();
        self.preempted |= now - self.last > PREEMPTED;
        self.last = now;
        now < self.end && !self.preempted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once_in_many_jobs() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            for items in (0..300).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
                .unwrap();
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} {items}");
            }
        }
    }

    #[test]
    fn workers_that_parked_wake_up() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(5));
            let (here, others) = (std::thread::current().id(), AtomicUsize::new(0));
            pool.run(64, |_| {
                std::thread::sleep(Duration::from_micros(200));
                others.fetch_add(usize::from(std::thread::current().id() != here), Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            assert!(others.load(Ordering::Relaxed) > 0, "no worker helped");
        }
    }

    #[test]
    fn errors_and_panics_reach_the_caller_and_the_pool_stays_usable() {
        let pool = Pool::new(3).unwrap();
        let error = pool.run(100, |i| if i == 57 { Err(Error::invalid("item 57")) } else { Ok(()) });
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidRequest);
        let error = pool.run(100, |i| {
            assert!(i != 31, "thirty-one");
            Ok(())
        });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("thirty-one"), "{error}");
        pool.run(100, |_| Ok(())).unwrap();
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        let add = |i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                            Ok(())
                        };
                        pool.run(20, add).unwrap();
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 50 * 190);
    }
}
