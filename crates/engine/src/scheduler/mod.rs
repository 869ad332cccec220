//! Who computes next: requests in, answers out, all in one stream of steps.
//!
//! A thread owns the order of the steps. A step has a token of each answer that is being made, or as much of the prompts as
//! it has room for: an expert that is read is read for all of them. A step of prompts pauses between layers for steps of
//! answers, so that nobody waits for a chunk that takes a drive half a minute. Where a step fails, its requests run alone
//! once, and only those that fail again have failed.

mod running;
mod steps;
mod ticket;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use crate::batch::{Batch, Pause};
use crate::generate::Generated;
use crate::generation::{FinishReason, GenerateOptions, Generation};
use crate::model::Model;
use crate::sequence::Sequence;
use crate::text::{ReplyEvent, Tokenizer};
use running::Running;
use ticket::Unbounded;

pub use ticket::{Listener, RequestHandle, Ticket};

/// How requests share steps.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOptions {
    /// Requests that run at once; others wait. At most what the model was opened for.
    pub parallel: usize,
    /// What answers get of the time in which prompts are computed, 0 to 0.9.
    pub answers_share: f64,
}

impl SchedulerOptions {
    /// For `parallel` requests at once. While a prompt is computed, answers get half of the time: each goes on at about half
    /// of its rate, and the prompt takes twice as long.
    pub fn new(parallel: usize) -> Self {
        Self { parallel, answers_share: 0.5 }
    }
}

/// A prompt that wants an answer.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Positions of it whose state prompts to come may want: see [`Sequence::name_borders`].
    pub borders: Vec<usize>,
    /// Whether what others have computed of the prompt may be used, and what is computed is kept for others.
    pub cache: bool,
    /// How the answer is made.
    pub options: GenerateOptions,
    /// Higher ones are begun first.
    pub priority: i32,
    /// Who asks, as the caller numbers them. Of equal priority, clients take turns: one with many requests keeps no other
    /// from its own.
    pub client: u64,
    /// When it is given up.
    pub deadline: Option<Instant>,
}

/// What becomes of a request, in this order; `Ended` is the last.
#[derive(Debug)]
pub enum RequestEvent {
    /// Its turn has come: the prompt is begun.
    Begun {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Those of them that others have computed.
        reused_tokens: usize,
        /// Where it departs from the nearest prompt that is kept, if it does: see [`Sequence::departs`].
        departs: Option<usize>,
    },
    /// Tokens of the prompt that are computed, with fractions within a step, of all.
    Prompt {
        /// Done so far.
        done_tokens: f64,
        /// To be done.
        total_tokens: usize,
    },
    /// More of the reply.
    Reply(ReplyEvent),
    /// The numbers of the answer, or why there is none.
    Ended(Result<Generated>),
}

/// What was done so far, between two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerCounts {
    /// Steps that ran.
    pub steps: u64,
    /// Prompt tokens computed in them.
    pub prompt_tokens: u64,
    /// Tokens of answers computed in them.
    pub answer_tokens: u64,
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that have ended.
    pub ended: u64,
    /// How often one was set aside for want of memory, to be computed again.
    pub set_aside: u64,
    /// Steps of at most 1, 2, 4, 8 … rows that are no steps of fewer; the last entry has all that are larger.
    pub steps_by_rows: [u64; ROW_CLASSES],
    /// Wanted experts that were in memory.
    pub expert_hits: u64,
    /// Wanted experts that had to be read.
    pub expert_misses: u64,
    /// Bytes read from the drive for experts.
    pub read_bytes: u64,
    /// Expert slots in use.
    pub slots: usize,
}

/// Clients whose last turn is remembered.
const TURNS_MAX: usize = 1024;

/// Classes of steps by their rows.
pub const ROW_CLASSES: usize = 16;

/// Runs requests on a model.
pub struct Scheduler {
    requests: Option<Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Mutex<SchedulerCounts>>,
    vocab_size: usize,
    context: usize,
}

/// A request before its turn.
struct Waiting {
    request: Request,
    arrived: Instant,
    listener: Arc<dyn Listener>,
    cancel: Arc<AtomicBool>,
    /// Too long to be begun while the step of others pauses.
    is_long: bool,
}

impl Waiting {
    /// Ends it before anything was computed.
    fn give_up(self) {
        let answer = Generated {
            finish: FinishReason::Cancelled,
            prompt_tokens: 0,
            reused_tokens: 0,
            tokens: Vec::new(),
            thought_tokens: 0,
            stop_hit: None,
            time_to_first_token: self.arrived.elapsed(),
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        // Who does not listen any more need not hear it.
        let _ = self.listener.hear(RequestEvent::Ended(Ok(answer)));
    }

    fn is_over(&self) -> bool {
        let late = self.request.deadline.is_some_and(|at| Instant::now() >= at);
        late || self.cancel.load(Ordering::Acquire)
    }
}

impl Scheduler {
    /// Starts the thread, which ends with the last request once this is dropped.
    ///
    /// # Errors
    /// `InvalidRequest` for options out of range, `Io` when no thread can be started.
    pub fn start(model: Arc<Model>, tokenizer: Arc<Tokenizer>, options: SchedulerOptions) -> Result<Self> {
        // A step has a row of each.
        let most = model.sequences_max().min(model.step_rows_max());
        if options.parallel == 0 || options.parallel > most {
            let asked = options.parallel;
            return Err(Error::invalid(format!("{asked} requests at once: the model is open for {most}")));
        }
        if !(0.0..=0.9).contains(&options.answers_share) {
            let share = options.answers_share;
            return Err(Error::invalid(format!("answers cannot have {share} of the time: 0 to 0.9")));
        }
        let (requests, arrivals) = channel();
        let counts = Arc::new(Mutex::default());
        let (vocab_size, context) = (model.meta().vocab_size, model.context());
        let work = Work {
            model,
            tokenizer,
            options,
            arrivals,
            waiting: Vec::new(),
            turns: HashMap::new(),
            begun: 0,
            running: Vec::new(),
            stepping: Vec::new(),
            left: Vec::new(),
            aside: Vec::new(),
            batch: Batch::default(),
            batch_between: Batch::default(),
            counts: Arc::clone(&counts),
        };
        let builder = thread::Builder::new().name("scheduler".into());
        let thread = builder.spawn(move || work.run()).map_err(|e| Error::io("scheduler thread", e))?;
        Ok(Self { requests: Some(requests), thread: Some(thread), counts, vocab_size, context })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// `InvalidRequest` for an empty prompt, a token outside the vocabulary or sampling values out of range,
    /// `ContextFull` for a prompt that can never fit.
    pub fn submit(&self, request: Request) -> Result<Ticket> {
        let (events, received) = channel();
        let handle = self.submit_to(request, Arc::new(Unbounded(events)))?;
        Ok(Ticket { events: received, handle })
    }

    /// Queues a request of which `listener` hears. It is not cancelled when the handle is dropped.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_to(&self, request: Request, listener: Arc<dyn Listener>) -> Result<RequestHandle> {
        if request.prompt.is_empty() {
            return Err(Error::invalid("the prompt is empty"));
        }
        crate::sequence::check_tokens(&request.prompt, self.vocab_size)?;
        if request.prompt.len() > self.context {
            let (len, context) = (request.prompt.len(), self.context);
            let message =
                format!("{len} tokens exceed the context of {context}; shorten the prompt, or raise --ctx");
            return Err(Error::new(ErrorKind::ContextFull, message));
        }
        request.options.sampling.check()?;
        let cancel = Arc::new(AtomicBool::new(false));
        let waiting =
            Waiting { request, arrived: Instant::now(), listener, cancel: cancel.clone(), is_long: false };
        let ended = || Error::new(ErrorKind::Device, "the scheduler has ended");
        let (Some(requests), Some(thread)) = (&self.requests, &self.thread) else { return Err(ended()) };
        requests.send(waiting).map_err(|_| ended())?;
        let handle = RequestHandle { cancel, scheduler: thread.thread().clone() };
        handle.wake();
        Ok(handle)
    }

    /// What was done; never waits for a step.
    pub fn counts(&self) -> SchedulerCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there has been printed; the requests saw their channels end.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Work {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    options: SchedulerOptions,
    arrivals: Receiver<Waiting>,
    waiting: Vec<Waiting>,
    /// When each client was begun last, counted in requests.
    turns: HashMap<u64, u64>,
    begun: u64,
    /// Those of the step that runs are not among them.
    running: Vec<Running>,
    /// Whose these are: their clients.
    stepping: Vec<u64>,
    /// Those that ended while a step ran, to be kept after it.
    left: Vec<Sequence>,
    /// Those for whose pages there was no room, the oldest first; they go on when another has ended.
    aside: Vec<Running>,
    batch: Batch,
    /// Of the steps between its layers.
    batch_between: Batch,
    counts: Arc<Mutex<SchedulerCounts>>,
}

impl Work {
    fn run(mut self) {
        while self.listen() {
            self.drop_what_is_over();
            self.keep_left();
            self.begin();
            self.running.iter_mut().filter(|running| running.resumed).for_each(Running::begin_again);
            self.publish(|_| ());
            if !self.running.is_empty() {
                self.step();
            }
            self.keep_left();
            self.publish_reads();
        }
    }

    /// Takes what has arrived; waits for it where nothing else is to be done. False when nothing more will come.
    fn listen(&mut self) -> bool {
        loop {
            loop {
                match self.arrivals.try_recv() {
                    Ok(arrived) => self.waiting.push(arrived),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) if self.is_idle() => return false,
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            if self.has_work() {
                return true;
            }
            self.publish(|_| ());
            // Whoever sends, cancels, reads on or drops the scheduler wakes this thread after it has done so.
            match self.next_deadline() {
                Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.aside.is_empty()
    }

    /// Whether somebody can go on, begin or end.
    fn has_work(&self) -> bool {
        let going = self.running.iter().any(|running| !running.is_held() || running.is_over());
        let room = self.aside.is_empty() && self.running.len() < self.options.parallel;
        let resumes = !self.aside.is_empty() && self.running.is_empty();
        let begins = room && !self.waiting.is_empty();
        let ends = self.waiting.iter().any(Waiting::is_over) || self.aside.iter().any(Running::is_over);
        going || begins || resumes || ends
    }

    fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.waiting.iter().filter_map(|waiting| waiting.request.deadline);
        let begun = self.running.iter().chain(&self.aside).filter_map(|running| running.deadline);
        waiting.chain(begun).min()
    }

    fn drop_what_is_over(&mut self) {
        let given_up = self.waiting.extract_if(.., |waiting| waiting.is_over());
        let unheard = given_up.map(|waiting| waiting.give_up()).count();
        self.publish(|counts| counts.ended += unheard as u64);
        let mut over: Vec<Running> = self.running.extract_if(.., |running| running.is_over()).collect();
        over.extend(self.aside.extract_if(.., |running| running.is_over()));
        over.into_iter().for_each(|running| self.end(running, Ok(())));
    }

    /// Ends a request; what it computed is kept before the next step.
    fn end(&mut self, running: Running, why: Result<()>) {
        self.left.push(running.end(why));
        self.publish(|counts| counts.ended += 1);
        self.resume();
    }

    /// Lets the oldest go on of those that were set aside.
    fn resume(&mut self) {
        if !self.aside.is_empty() {
            self.running.push(Running { resumed: true, ..self.aside.remove(0) });
        }
    }

    fn keep_left(&mut self) {
        for sequence in self.left.drain(..) {
            let _ = sequence.keep(); // a copy that fails is one less to begin with
        }
    }

    /// A sequence with the prompt's tokens, and how many of them somebody has computed. While a step pauses, only for a short
    /// prompt.
    fn sequence(
        &mut self,
        request: &Request,
        pause: Option<&mut Pause<'_>>,
    ) -> Result<Option<(Sequence, usize)>> {
        let mut sequence = Sequence::new(&self.model)?;
        sequence.extend(&request.prompt)?;
        sequence.shares = request.cache;
        let is_between = pause.is_some();
        let reused = match pause {
            None => sequence.reuse()?,
            Some(pause) => sequence.reuse_between(pause)?,
        };
        if is_between && sequence.pending() > self.model.between_rows_max() {
            return Ok(None);
        }
        sequence.name_borders(request.borders.iter().copied());
        Ok(Some((sequence, reused)))
    }

    /// Whose turn it is of those that wait: of the highest priority the client's with the fewest that run, then whose last turn
    /// is longest ago, then the oldest.
    fn next_waiting(&self) -> Option<usize> {
        let clients =
            || self.running.iter().map(|running| running.client).chain(self.stepping.iter().copied());
        let running_of = |client| clients().filter(|other| *other == client).count();
        let turn = |waiting: &Waiting| {
            let request = &waiting.request;
            let last_turn = self.turns.get(&request.client).copied();
            (Reverse(request.priority), running_of(request.client), last_turn, waiting.arrived)
        };
        let able = (0..self.waiting.len()).filter(|at| !self.waiting[*at].is_long);
        able.min_by_key(|at| turn(&self.waiting[*at]))
    }

    /// Begins requests while there is room.
    fn begin(&mut self) {
        if self.running.is_empty() {
            self.resume();
        }
        self.waiting.iter_mut().for_each(|waiting| waiting.is_long = false);
        self.begin_those(None);
    }

    /// While a step pauses, begins what has arrived, if it is short.
    fn begin_between(&mut self, pause: &mut Pause<'_>) {
        self.waiting.extend(self.arrivals.try_iter());
        self.begin_those(Some(pause));
    }

    fn begin_those(&mut self, mut pause: Option<&mut Pause<'_>>) {
        // Who was set aside comes first.
        while self.aside.is_empty()
            // Those that have left have their places until the step is over.
            && self.running.len() + self.stepping.len() + self.left.len() < self.options.parallel
            && let Some(next) = self.next_waiting()
        {
            let mut waiting = self.waiting.remove(next);
            match self.sequence(&waiting.request, pause.as_deref_mut()) {
                Ok(Some(made)) => self.begin_one(waiting, made),
                Ok(None) => {
                    waiting.is_long = true;
                    self.waiting.push(waiting);
                }
                Err(e) => self.refuse(&waiting, e),
            }
        }
    }

    fn begin_one(&mut self, waiting: Waiting, (sequence, reused_tokens): (Sequence, usize)) {
        let generation = match Generation::new(self.tokenizer.clone(), &waiting.request.options) {
            Ok(generation) => generation,
            Err(e) => return self.refuse(&waiting, e),
        };
        let Waiting { request, arrived, listener, cancel, .. } = waiting;
        self.count_turn(request.client);
        let prompt_tokens = request.prompt.len();
        let running = Running {
            sequence,
            generation,
            listener,
            cancel,
            deadline: request.deadline,
            client: request.client,
            prompt_tokens,
            reused_tokens,
            arrived,
            begun: Instant::now(),
            first: None,
            borders: request.borders,
            resumed: false,
            alone: false,
        };
        let departs = running.sequence.departs();
        running.say(RequestEvent::Begun { prompt_tokens, reused_tokens, departs });
        self.running.push(running);
    }

    /// Ends a request that cannot be begun.
    fn refuse(&self, waiting: &Waiting, why: Error) {
        // Who does not listen any more need not hear it.
        let _ = waiting.listener.hear(RequestEvent::Ended(Err(why)));
        self.publish(|counts| counts.ended += 1);
    }

    /// A client is begun. Of those that have gone nothing is remembered for long.
    fn count_turn(&mut self, client: u64) {
        if self.turns.len() >= TURNS_MAX {
            let there: HashSet<u64> = self.waiting.iter().map(|waiting| waiting.request.client).collect();
            self.turns.retain(|client, _| there.contains(client));
        }
        self.begun += 1;
        self.turns.insert(client, self.begun);
    }

    fn publish(&self, change: impl FnOnce(&mut SchedulerCounts)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        counts.running = self.running.len() + self.stepping.len();
        counts.waiting = self.waiting.len() + self.aside.len();
    }

    /// Publishes what the expert store has counted. No step may run.
    fn publish_reads(&self) {
        let (total, slots) = (self.model.read_stats().map(|stats| stats.total()), self.model.slots());
        self.publish(|counts| {
            if let Some(total) = total {
                (counts.expert_hits, counts.expert_misses) = (total.hits, total.misses);
                counts.read_bytes = total.read_bytes;
            }
            counts.slots = slots;
        });
    }
}
