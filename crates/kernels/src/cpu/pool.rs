//! A pool for hundreds of short fork-joins a token.
//!
//! Workers look for the next job in a bounded spin and then park. Items are handed out one by one, to each thread from a
//! range of its own first, so that it reads on where it stopped, and then from those of the others. The caller works
//! along, and a join waits only for workers that took part: a worker that the system does not run costs nothing
//! but its help. What a thread writes for each job lies in a cache line of its own, which only the caller reads: a line
//! that all write goes from core to core as often as there are threads. A worker that loses its core in the middle of an item does cost: the join waits until the system
//! runs it again, for milliseconds. When that, or the loss of the caller's own core, costs more time than the workers
//! save, the machine has less cores to spare than the pool has threads, and the caller works alone for a while:
//! [`Rest`].

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use super::urgency;

/// A ticket's lowest bit says that the job is open; the others number the jobs.
const OPEN: u64 = 1;
const JOB: u64 = 2;
/// No ticket.
const OUTSIDE: u64 = 0;

/// The spin before a thread parks. Longer than the gaps between the ops of a token: waking a thread takes longer than
/// many an op.
const SPIN: Duration = Duration::from_micros(200);
/// Time lost in a job that only the loss of a core explains.
const PREEMPTED: Duration = Duration::from_micros(400);
/// More time than this must have been lost than workers have saved before the caller works alone. A thread that reads
/// from the drive takes a core for less, and often.
const DEBT_MAX: Duration = Duration::from_micros(2500);
/// The first rest after the loss of a core, and the longest.
const REST_MIN: Duration = Duration::from_millis(8);
const REST_MAX: Duration = Duration::from_millis(512);

/// The most ranges that items are cut into; with more threads than that, several share one.
const RANGES_MAX: usize = 16;

/// Takes the number of a thread and that of an item.
type Item<'a> = dyn Fn(usize, usize) -> Result<()> + Sync + 'a;

/// What a worker needs to know of a job.
#[derive(Clone, Copy)]
struct Job {
    run: *const Item<'static>,
    items: usize,
}

/// Something with a cache line to itself, and with the one that is fetched along.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    ticket: Apart<AtomicU64>,
    job: UnsafeCell<Option<Job>>,
    /// Items taken of each range.
    taken: Vec<Apart<AtomicUsize>>,
    /// The ticket that each worker works on, or [`OUTSIDE`].
    inside: Vec<Apart<AtomicU64>>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    stop: AtomicBool,
    caller_waits: AtomicBool,
    caller: Mutex<Option<Thread>>,
    sleeping: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the caller alone, while the ticket is closed and every worker that entered it is outside
// again; workers read it only after they entered an open ticket, which was published after the write. To enter, a worker
// writes the ticket into `inside` and then finds it open; the caller closes it and then looks into `inside`. All four
// are sequentially consistent, so a worker that the caller does not see finds the ticket closed, and stays outside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is used only between the opening and the join of its ticket, while `Pool::run`
// keeps what it points to borrowed.
unsafe impl Send for Shared {}

/// Persistent threads that share the items of one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: ops that are called from several threads take turns.
    turn: Mutex<Rest>,
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
            ticket: Apart::default(),
            job: UnsafeCell::new(None),
            taken: (0..threads.min(RANGES_MAX)).map(|_| Apart::default()).collect(),
            inside: (0..helpers).map(|_| Apart::default()).collect(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
            caller_waits: AtomicBool::new(false),
            caller: Mutex::new(None),
            sleeping: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(helpers), turn: Mutex::default() };
        // More threads than cores: a spinning worker would hold the core that another one needs.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = if threads > cores { Duration::ZERO } else { SPIN };
        for index in 0..helpers {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("tidemill-{index}"))
                .spawn(move || {
                    urgency::raise();
                    work(&shared, index, spin);
                })
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
        self.run_numbered(items, |_, item| run(item))
    }

    /// [`Pool::run`], where `run` also takes the number of the thread, below [`Pool::threads`], that it runs on: the
    /// caller's is 0.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub(crate) fn run_numbered(
        &self,
        items: usize,
        run: impl Fn(usize, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        if self.workers.is_empty() || items <= 1 {
            return (0..items).try_for_each(|item| attempt(&run, 0, item));
        }
        let mut rest = lock(&self.turn);
        let start = Instant::now();
        if rest.until.is_some_and(|until| start < until) {
            return (0..items).try_for_each(|item| attempt(&run, 0, item));
        }
        let cpu_start = thread_cpu_time();
        self.open(items, &run);
        let done = drain(&self.shared, &run, items, 0);
        let drained = Instant::now();
        let mut lost = Duration::ZERO;
        // The system takes some time to tell, and a short job has lost little.
        if drained - start > PREEMPTED {
            let ran = cpu_start.zip(thread_cpu_time()).map(|(start, end)| end.saturating_sub(start));
            lost = ran.map_or(Duration::ZERO, |ran| (drained - start).saturating_sub(ran));
        }
        self.join();
        let now = Instant::now();
        // The last item of a worker may have begun just before the caller's last one ended, and be a long one.
        let item = (drained - start) / u32::try_from(done.max(1)).unwrap_or(u32::MAX);
        let overdue = (now - drained).saturating_sub(4 * item);
        rest.judge(now, now - start, lost.max(overdue), self.threads());
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
        shared.taken.iter().for_each(|range| range.0.store(0, Ordering::Relaxed));
        shared.failed.store(false, Ordering::Relaxed);
        let job = shared.ticket.0.load(Ordering::Relaxed) & !OPEN;
        // Pairs with the worker that marks itself asleep and then looks at the ticket again.
        set(&shared.ticket.0, job.wrapping_add(JOB) | OPEN);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping).take(items - 1) {
            if sleeping.load(Ordering::SeqCst) && sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// Closes the job and waits for the workers that entered it.
    fn join(&self) {
        let shared = &*self.shared;
        let ticket = shared.ticket.0.load(Ordering::Relaxed);
        set(&shared.ticket.0, ticket & !OPEN);
        let done = || shared.inside.iter().all(|place| place.0.load(Ordering::SeqCst) != ticket);
        let mut clock = Clock::new(SPIN);
        while !done() {
            if clock.tick() {
                continue;
            }
            *lock(&shared.caller) = Some(std::thread::current());
            shared.caller_waits.swap(true, Ordering::SeqCst); // as `set`
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

/// Stores what the other side must see before this one looks at what the other side stored. A swap, which on x86 is the same
/// instruction: QEMU 7.2 lets a load overtake a sequentially consistent store of an ARM program, and a wake-up is lost.
fn set(place: &AtomicU64, value: u64) {
    place.swap(value, Ordering::SeqCst);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can leave its value half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the caller works alone, because another program wants the cores.
#[derive(Debug, Default)]
struct Rest {
    until: Option<Instant>,
    length: Duration,
    /// Time lost in the last jobs beyond what the workers saved.
    debt: Duration,
}

impl Rest {
    /// Learns from a job that took `elapsed` how much of that was lost with cores; in the rest the other threads saved
    /// time. Rests grow while cores are lost, so that what trying again costs becomes small, and shrink when that has
    /// not happened for some time.
    fn judge(&mut self, now: Instant, elapsed: Duration, lost: Duration, threads: usize) {
        let lost = if lost > PREEMPTED { lost } else { Duration::ZERO };
        // One thread alone comes close to the memory's rate, so the others save about half of their time.
        let saved = elapsed.saturating_sub(lost) * (threads as u32 - 1) / (2 * threads as u32);
        self.debt = (self.debt + lost).saturating_sub(saved);
        if self.debt > DEBT_MAX {
            self.debt = Duration::ZERO;
            self.length = (2 * self.length).clamp(REST_MIN, REST_MAX);
            self.until = Some(now + self.length);
        } else if self.until.is_some_and(|until| now > until + self.length) {
            self.length /= 2;
            self.until = (self.length >= REST_MIN).then_some(now);
        }
    }
}

/// For how long this thread ran; `None` where no call tells: then only an overdue join says that a core was lost.
fn thread_cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Some(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }
    #[cfg(not(unix))]
    None
}

/// Takes items until none is left, as thread number `thread`. Returns how many.
fn drain(shared: &Shared, run: &Item<'_>, items: usize, thread: usize) -> usize {
    let mut done = 0;
    let ranges = shared.taken.len();
    for range in (0..ranges).map(|i| (thread + i) % ranges) {
        let (start, end) = (range * items / ranges, (range + 1) * items / ranges);
        while !shared.failed.load(Ordering::Relaxed) {
            let taken = &shared.taken[range].0;
            // A look leaves the line with the others, who all come here in the end.
            if start + taken.load(Ordering::Relaxed) >= end {
                break;
            }
            let item = start + taken.fetch_add(1, Ordering::Relaxed);
            if item >= end {
                break;
            }
            done += 1;
            if let Err(error) = attempt(run, thread, item) {
                shared.failed.store(true, Ordering::Relaxed);
                lock(&shared.failure).get_or_insert(error);
            }
        }
    }
    done
}

/// Runs an item; a panic becomes an error.
fn attempt(run: &Item<'_>, thread: usize, item: usize) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| run(thread, item))).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Error::new(ErrorKind::Device, format!("a kernel panicked: {text}"))
}

/// The life of a worker.
fn work(shared: &Shared, index: usize, spin: Duration) {
    let mut seen = OUTSIDE;
    while let Some(ticket) = wait(shared, index, seen, spin) {
        seen = ticket;
        // SAFETY: this worker entered the ticket while it was open, so the caller wrote the job before and does
        // not touch it, nor let go of what it points to, until this worker is outside.
        let job = unsafe { *shared.job.get() };
        if let Some(job) = job {
            // SAFETY: as above.
            drain(shared, unsafe { &*job.run }, job.items, index + 1);
        }
        set(&shared.inside[index].0, OUTSIDE);
        leave(shared);
    }
}

/// A worker is outside: a caller that waits for it may want to know.
fn leave(shared: &Shared) {
    if shared.caller_waits.load(Ordering::SeqCst)
        && let Some(caller) = &*lock(&shared.caller)
    {
        caller.unpark();
    }
}

/// Enters the next open job and returns its ticket; `None` when the pool stops.
fn wait(shared: &Shared, index: usize, seen: u64, spin: Duration) -> Option<u64> {
    let mut clock = Clock::new(spin);
    loop {
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        let ticket = shared.ticket.0.load(Ordering::SeqCst);
        if ticket & OPEN != 0 && ticket != seen {
            let inside = &shared.inside[index].0;
            set(inside, ticket);
            if shared.ticket.0.load(Ordering::SeqCst) == ticket {
                return Some(ticket);
            }
            set(inside, OUTSIDE);
            leave(shared);
            continue;
        }
        if clock.tick() {
            continue;
        }
        // Marked anew before each look: whoever wakes this worker clears the mark.
        shared.sleeping[index].swap(true, Ordering::SeqCst); // as `set`
        if !shared.stop.load(Ordering::SeqCst) && !news(shared, seen) {
            std::thread::park();
        }
        shared.sleeping[index].store(false, Ordering::SeqCst);
        // The job that it was woken for may be over, but where one was, more will come.
        clock = Clock::new(spin);
    }
}

fn news(shared: &Shared, seen: u64) -> bool {
    let ticket = shared.ticket.0.load(Ordering::SeqCst);
    ticket & OPEN != 0 && ticket != seen
}

/// Measures a spin.
struct Clock {
    end: Instant,
    ticks: u32,
}

impl Clock {
    fn new(spin: Duration) -> Self {
        Self { end: Instant::now() + spin, ticks: 0 }
    }

    /// Pauses a moment; false when the spin is over.
    fn tick(&mut self) -> bool {
        std::hint::spin_loop();
        self.ticks += 1;
        !self.ticks.is_multiple_of(16) || Instant::now() < self.end
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

    /// Workers that come late find the next job open, or none; more threads than cores, so that many do.
    #[test]
    fn late_workers_do_not_touch_a_job_that_is_over() {
        let pool = Pool::new(12).unwrap();
        for job in 0..3000usize {
            // Gone when `run` returns: who still worked on it would write where the next one is.
            let seen: [AtomicUsize; 3] = Default::default();
            pool.run(3, |i| {
                seen[i].fetch_add(job + 1, Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            assert_eq!(seen.map(AtomicUsize::into_inner), [job + 1; 3]);
        }
    }

    #[test]
    fn rests_grow_while_cores_are_lost_and_end_when_they_are_not() {
        let (mut rest, mut now, ms) = (Rest::default(), Instant::now(), Duration::from_millis);
        rest.judge(now, ms(2), Duration::ZERO, 2);
        assert_eq!((rest.until, rest.length), (None, Duration::ZERO));
        for _ in 0..10 {
            now = rest.until.unwrap_or(now);
            rest.judge(now, ms(7), ms(6), 2);
        }
        assert_eq!((rest.until, rest.length), (Some(now + REST_MAX), REST_MAX));
        rest.judge(now + REST_MAX, ms(2), Duration::ZERO, 2);
        assert_eq!(rest.length, REST_MAX, "one good job proves little");
        for _ in 0..10 {
            now += 4 * REST_MAX;
            rest.judge(now, ms(2), Duration::ZERO, 2);
        }
        assert_eq!(rest.until, None);
    }

    #[test]
    fn a_core_that_is_lost_now_and_then_is_worth_having() {
        let (mut rest, now, us) = (Rest::default(), Instant::now(), Duration::from_micros);
        for job in 0..1000 {
            // A reading thread takes 600 us of every fifth millisecond.
            let lost = if job % 10 == 0 { us(600) } else { Duration::ZERO };
            rest.judge(now, us(500) + lost, lost, 2);
            assert_eq!(rest.until, None);
        }
    }

    #[test]
    fn another_program_that_computes_without_end_is_left_a_core() {
        let (mut rest, us) = (Rest::default(), Duration::from_micros);
        let (start, mut now, mut rested) = (Instant::now(), Instant::now(), Duration::ZERO);
        // It takes a slice of 3 ms from one of the threads each time that they have computed for 4 ms.
        for job in 0..20_000 {
            let lost = if job % 80 == 79 { us(3000) } else { Duration::ZERO };
            now += us(50) + lost;
            rest.judge(now, us(50) + lost, lost, 2);
            if let Some(until) = rest.until.filter(|until| *until > now) {
                rested += until - now;
                now = until;
            }
        }
        let share = rested.as_secs_f64() / (now - start).as_secs_f64();
        assert!(share > 0.9, "rested {share} of the time");
    }

    #[test]
    fn workers_that_parked_wake_up() {
        let pool = Pool::new(2).unwrap();
        let here = std::thread::current().id();
        // On a busy machine the worker may come too late, or the pool may rest, but not every time.
        let helped = (0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(2));
            // Over before the worker is awake; it must hear of the next job all the same.
            pool.run(2, |_| Ok(())).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            let others = AtomicUsize::new(0);
            pool.run(64, |_| {
                let end = Instant::now() + Duration::from_micros(100);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                others.fetch_add(usize::from(std::thread::current().id() != here), Ordering::Relaxed);
                Ok(())
            })
            .unwrap();
            others.load(Ordering::Relaxed) > 0
        });
        assert!(helped, "no worker helped in 200 jobs");
    }

    #[test]
    fn errors_and_panics_reach_the_caller_and_the_pool_stays_usable() {
        let resting = Pool::new(3).unwrap();
        lock(&resting.turn).until = Some(Instant::now() + Duration::from_secs(3600));
        for pool in [Pool::new(3).unwrap(), Pool::new(1).unwrap(), resting] {
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
