//! Who computes next: requests in, answers out, all in one stream of steps.
//!
//! A thread owns the order of the steps. Every step has a token of each answer that is being made, and as much of the
//! waiting prompts as it has room for: an expert that is read is read for all of them. Where a step fails, its requests
//! run alone once, and only those that fail again have failed.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use crate::batch::{Batch, Logits, Part};
use crate::generate::Generated;
use crate::generation::{FinishReason, GenerateOptions, Generation};
use crate::model::Model;
use crate::sequence::Sequence;
use crate::text::{ReplyEvent, Tokenizer};

/// How requests share steps.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOptions {
    /// Requests that run at once; others wait. At most what the model was opened for.
    pub parallel: usize,
    /// Most rows of prompts in a step that also has tokens of answers: what an answer waits for a prompt.
    pub prompt_rows_beside_answers: usize,
}

/// A prompt that wants an answer.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Positions of it whose state prompts to come may want: see [`Sequence::name_borders`].
    pub borders: Vec<usize>,
    /// How the answer is made.
    pub options: GenerateOptions,
    /// Higher ones are begun first.
    pub priority: i32,
    /// When it is given up.
    pub deadline: Option<Instant>,
}

/// What becomes of a request, in this order; `Ended` is the last.
#[derive(Debug)]
pub enum RequestEvent {
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

/// A request on its way. Dropped, it is cancelled.
pub struct Ticket {
    events: Receiver<RequestEvent>,
    cancel: Arc<AtomicBool>,
}

impl Ticket {
    /// Waits for the next event; `None` after the last.
    pub fn next_event(&self) -> Option<RequestEvent> {
        self.events.recv().ok()
    }

    /// Gives the request up: a step of nobody else ends before its next layer, another one without it.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
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
}

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
    events: Sender<RequestEvent>,
    cancel: Arc<AtomicBool>,
}

impl Waiting {
    /// Ends it before anything was computed.
    fn give_up(self) {
        let answer = Generated {
            finish: FinishReason::Cancelled,
            prompt_tokens: 0,
            reused_tokens: 0,
            tokens: Vec::new(),
            time_to_first_token: self.arrived.elapsed(),
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        // Who does not listen any more need not hear it.
        let _ = self.events.send(RequestEvent::Ended(Ok(answer)));
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
        if options.prompt_rows_beside_answers == 0 {
            return Err(Error::invalid("prompts need at least one row of a step"));
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
            running: Vec::new(),
            batch: Batch::default(),
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
        let (events, received) = channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let waiting = Waiting { request, arrived: Instant::now(), events, cancel: cancel.clone() };
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send(waiting).is_ok());
        match sent {
            true => Ok(Ticket { events: received, cancel }),
            false => Err(Error::new(ErrorKind::Device, "the scheduler has ended")),
        }
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
            // A panic there has been printed; the requests saw their channels end.
            let _ = thread.join();
        }
    }
}

/// A request that runs.
struct Running {
    sequence: Sequence,
    generation: Generation<Arc<Tokenizer>>,
    events: Sender<RequestEvent>,
    cancel: Arc<AtomicBool>,
    deadline: Option<Instant>,
    prompt_tokens: usize,
    /// Those that another sequence had computed.
    reused_tokens: usize,
    /// When it arrived, when its prompt was begun, and when its first token came.
    arrived: Instant,
    begun: Instant,
    first: Option<Instant>,
    /// Its step failed, and the next one is its own.
    alone: bool,
}

impl Running {
    fn answers(&self) -> bool {
        !self.generation.tokens().is_empty()
    }

    fn is_over(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.deadline.is_some_and(|at| Instant::now() >= at)
    }

    /// Says something; nobody may be there to hear it.
    fn say(&self, event: RequestEvent) {
        if self.events.send(event).is_err() {
            self.cancel.store(true, Ordering::Release);
        }
    }

    /// Says how it ended; what it computed is still of use.
    fn end(mut self, why: Result<()>) -> Sequence {
        if let Err(e) = why {
            self.say(RequestEvent::Ended(Err(e)));
            return self.sequence;
        }
        for event in self.generation.end(FinishReason::Cancelled) {
            self.say(RequestEvent::Reply(event));
        }
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        self.say(RequestEvent::Ended(Ok(Generated {
            finish: self.generation.finish().unwrap_or(FinishReason::Cancelled),
            prompt_tokens: self.prompt_tokens.min(self.sequence.position()),
            reused_tokens: self.reused_tokens.min(self.sequence.position()),
            tokens: self.generation.tokens().to_vec(),
            time_to_first_token: first - self.arrived,
            prefill: first - self.begun,
            decode: if self.first.is_some() { now - first } else { Duration::ZERO },
        })));
        self.sequence
    }

    /// Takes the logits of its last token: the next token, or the end. Whether it goes on.
    fn accept(&mut self, logits: &[f32], context: usize) -> Result<bool> {
        self.first.get_or_insert_with(Instant::now);
        let events = self.generation.accept(logits, self.sequence.tokens(), context)?;
        for event in events {
            self.say(RequestEvent::Reply(event));
        }
        match self.generation.next_token() {
            Some(token) => self.sequence.extend(&[token]).map(|()| true),
            None => Ok(false),
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
    running: Vec<Running>,
    batch: Batch,
    counts: Arc<Mutex<SchedulerCounts>>,
}

impl Work {
    fn run(mut self) {
        while self.listen() {
            self.drop_what_is_over();
            self.begin();
            if !self.running.is_empty() {
                self.step();
            }
            self.publish(|_| ());
        }
    }

    /// Takes what has arrived; waits for it where nothing else is to be done. False when nothing more will come.
    fn listen(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.arrivals.recv() {
                Ok(arrived) => self.waiting.push(arrived),
                Err(_) => return false,
            }
        }
        loop {
            match self.arrivals.try_recv() {
                Ok(arrived) => self.waiting.push(arrived),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    return !(self.running.is_empty() && self.waiting.is_empty());
                }
            }
        }
    }

    fn drop_what_is_over(&mut self) {
        let now = Instant::now();
        let given_up = self.waiting.extract_if(.., |waiting| {
            waiting.cancel.load(Ordering::Acquire) || waiting.request.deadline.is_some_and(|at| now >= at)
        });
        let unheard = given_up.map(|waiting| waiting.give_up()).count();
        self.publish(|counts| counts.ended += unheard as u64);
        let over: Vec<Running> = self.running.extract_if(.., |running| running.is_over()).collect();
        for running in over {
            self.end(running, Ok(()));
        }
    }

    /// Ends a request, and keeps what it computed.
    fn end(&mut self, running: Running, why: Result<()>) {
        // A copy that fails is one less to begin with.
        let _ = running.end(why).keep();
        self.publish(|counts| counts.ended += 1);
    }

    /// A sequence with the tokens of `prompt`, and how many of them somebody has computed.
    fn sequence(&mut self, request: &Request) -> Result<(Sequence, usize)> {
        let mut sequence = Sequence::new(&self.model)?;
        sequence.extend(&request.prompt)?;
        let reused = sequence.reuse()?;
        sequence.name_borders(request.borders.iter().copied());
        Ok((sequence, reused))
    }

    /// Begins requests while there is room: the highest priority first, of equals the oldest.
    fn begin(&mut self) {
        self.waiting.sort_by_key(|waiting| (Reverse(waiting.request.priority), waiting.arrived));
        while self.running.len() < self.options.parallel && !self.waiting.is_empty() {
            let Waiting { request, arrived, events, cancel } = self.waiting.remove(0);
            let begun = Generation::new(self.tokenizer.clone(), &request.options)
                .and_then(|generation| Ok((generation, self.sequence(&request)?)));
            match begun {
                Ok((generation, (sequence, reused_tokens))) => self.running.push(Running {
                    sequence,
                    generation,
                    events,
                    cancel,
                    deadline: request.deadline,
                    prompt_tokens: request.prompt.len(),
                    reused_tokens,
                    arrived,
                    begun: Instant::now(),
                    first: None,
                    alone: false,
                }),
                Err(e) => {
                    // Who does not listen any more need not hear it.
                    let _ = events.send(RequestEvent::Ended(Err(e)));
                    self.publish(|counts| counts.ended += 1);
                }
            }
        }
    }

    /// Rows that each request has in the next step.
    fn rows(&self) -> Vec<usize> {
        if let Some(alone) = self.running.iter().position(|running| running.alone) {
            let rows = self.running[alone].sequence.pending().min(self.model.chunk_tokens());
            return (0..self.running.len()).map(|i| if i == alone { rows } else { 0 }).collect();
        }
        let answers = self.running.iter().filter(|running| running.answers()).count();
        // The plan has memory for so many rows, and each answer has one.
        let mut room = self.model.chunk_tokens().min(self.model.step_rows_max() - answers);
        if answers > 0 {
            room = room.min(self.options.prompt_rows_beside_answers);
        }
        let rows = |running: &Running| match running.sequence.pending() {
            1 if running.answers() => 1,
            pending => {
                let rows = pending.min(room);
                room -= rows;
                rows
            }
        };
        self.running.iter().map(rows).collect()
    }

    fn step(&mut self) {
        let rows = self.rows();
        let cancels: Vec<_> = self
            .running
            .iter()
            .zip(&rows)
            .filter(|(_, rows)| **rows > 0)
            .map(|(r, _)| r.cancel.clone())
            .collect();
        let before: Vec<f64> = self.running.iter().map(|r| r.sequence.position() as f64).collect();
        let layers = self.model.meta().layers as f64;
        let mut logits = vec![None; self.running.len()];
        let (mut who, mut parts, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (running, &rows)) in
            self.running.iter_mut().zip(&rows).enumerate().filter(|(_, (_, rows))| **rows > 0)
        {
            who.push(i);
            let wanted = if rows == running.sequence.pending() { Logits::Last } else { Logits::None };
            if running.generation.tokens().is_empty() {
                prompts.push((running.events.clone(), before[i], rows as f64, running.prompt_tokens));
            }
            parts.push(Part { sequence: &mut running.sequence, rows, logits: wanted });
        }
        let mut between = |done: usize| {
            for (events, before, rows, total_tokens) in &prompts {
                let done_tokens = before + rows * done as f64 / layers;
                // Who does not listen any more cancels by that.
                let _ = events.send(RequestEvent::Prompt { done_tokens, total_tokens: *total_tokens });
            }
            match cancels.iter().all(|cancel| cancel.load(Ordering::Acquire)) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let ran = self.batch.run(&self.model, &mut parts, &mut between, &mut |part, _, values| {
            logits[who[part]] = Some(values.to_vec());
            Ok(())
        });
        drop(parts);
        match ran {
            Ok(()) => self.stepped(&rows, logits),
            // Those who were in it are over, and go before the next step.
            Err(e) if e.kind() == ErrorKind::Cancelled => {}
            Err(e) => self.failed(&who, e),
        }
    }

    fn stepped(&mut self, rows: &[usize], logits: Vec<Option<Vec<f32>>>) {
        let answer_tokens: usize = self
            .running
            .iter()
            .zip(rows)
            .filter(|(running, _)| running.answers())
            .map(|(_, rows)| rows)
            .sum();
        let all: usize = rows.iter().sum();
        self.publish(|counts| {
            counts.steps += 1;
            counts.answer_tokens += answer_tokens as u64;
            counts.prompt_tokens += (all - answer_tokens) as u64;
        });
        let context = self.model.context();
        let all = std::mem::take(&mut self.running);
        for ((mut running, rows), logits) in all.into_iter().zip(rows).zip(logits) {
            running.alone &= *rows == 0 || running.sequence.pending() > 0;
            let Some(logits) = logits else {
                self.running.push(running);
                continue;
            };
            match running.accept(&logits, context) {
                Ok(true) => self.running.push(running),
                Ok(false) => self.end(running, Ok(())),
                Err(e) => self.end(running, Err(e)),
            }
        }
    }

    /// A step that failed is tried again by each of its requests alone; who fails then has failed.
    fn failed(&mut self, who: &[usize], error: Error) {
        if let [one] = who
            && self.running[*one].alone
        {
            let running = self.running.remove(*one);
            return self.end(running, Err(error));
        }
        for &i in who {
            self.running[i].alone = true;
        }
    }

    fn publish(&self, change: impl FnOnce(&mut SchedulerCounts)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        (counts.running, counts.waiting) = (self.running.len(), self.waiting.len());
    }
}
