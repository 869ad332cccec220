//! Who may wait, and the answers of a request as they come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use api::{ApiError, ErrorClass, Event};
use engine::scheduler::{Listener, Request, RequestEvent, RequestHandle, SchedulerCounts};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::events::{Mapping, Moment, Tools};
use crate::metrics::Record;
use crate::outline::Outline;
use crate::recorder::Recorder;
use crate::state::Ready;

/// Events that wait for a reader until its answer is held.
const HELD_EVENTS: usize = 64;

/// Counts the sequences that run or wait.
#[derive(Debug)]
pub(crate) struct Queue {
    inside: Arc<AtomicUsize>,
    most: usize,
}

/// Places in the queue, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Places {
    inside: Arc<AtomicUsize>,
    held: usize,
}

impl Queue {
    /// For so many that run, and so many more that wait.
    pub(crate) fn new(parallel: usize, waiting: usize) -> Self {
        Self { inside: Arc::default(), most: parallel + waiting }
    }

    /// Places for a request of `sequences`. Who comes while there is one left is let in whole: a request for more answers
    /// than there are places could never be.
    ///
    /// # Errors
    /// `QueueFull`.
    pub(crate) fn enter(&self, sequences: usize) -> Result<Places, ApiError> {
        let places = Places { inside: self.inside.clone(), held: sequences };
        if self.inside.fetch_add(sequences, Ordering::AcqRel) < self.most {
            return Ok(places);
        }
        let most = self.most;
        let message =
            format!("{most} requests run or wait already; try again later, or start the server with --queue");
        Err(ApiError::new(ErrorClass::QueueFull, message))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.inside.fetch_sub(self.held, Ordering::AcqRel);
    }
}

/// Hears of one sequence, and says so when the scheduler has lost it.
struct Ear {
    choice: usize,
    /// Whether anybody wants to know how far the prompt is.
    progress: bool,
    unread: Arc<AtomicUsize>,
    events: UnboundedSender<(usize, Option<RequestEvent>)>,
}

impl Listener for Ear {
    fn hear(&self, event: RequestEvent) -> bool {
        if !self.progress && matches!(event, RequestEvent::Prompt { .. }) {
            return true;
        }
        self.unread.fetch_add(1, Ordering::AcqRel);
        self.events.send((self.choice, Some(event))).is_ok()
    }

    fn is_behind(&self) -> bool {
        self.unread.load(Ordering::Acquire) >= HELD_EVENTS
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        // Who does not listen any more need not hear it.
        let _ = self.events.send((self.choice, None));
    }
}

/// One of the answers, as it is asked for.
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) mapping: Mapping,
    pub(crate) recorder: Option<Recorder>,
    /// Of the first answer to a prompt.
    pub(crate) outline: Option<Outline>,
}

/// One of the answers.
struct Answer {
    /// Until it is submitted.
    request: Option<Request>,
    unread: Arc<AtomicUsize>,
    handle: Option<RequestHandle>,
    mapping: Mapping,
    recorder: Option<Recorder>,
    outline: Option<Outline>,
    /// Whether its last event has come.
    ended: bool,
}

/// The answers of a request. Dropped, all that is under way for it is given up.
pub(crate) struct Answers {
    ready: Arc<Ready>,
    record: Arc<Record>,
    answers: Vec<Answer>,
    sender: UnboundedSender<(usize, Option<RequestEvent>)>,
    events: UnboundedReceiver<(usize, Option<RequestEvent>)>,
    /// Whether anybody wants to know how far prompts are.
    progress: bool,
    /// Answers to each prompt. The first computes the prompt, and the others begin when it has.
    per_prompt: usize,
    pending: VecDeque<Event>,
    arrived: Instant,
    /// Held as long as it lives.
    _places: Places,
}

impl Answers {
    /// Begins `requests`, of which each `per_prompt` have the same prompt.
    ///
    /// # Errors
    /// What the scheduler refuses.
    pub(crate) fn begin(
        ready: Arc<Ready>,
        record: Arc<Record>,
        requests: Vec<Asked>,
        per_prompt: usize,
        progress: bool,
        places: Places,
    ) -> Result<Self, ApiError> {
        let (sender, events) = unbounded_channel();
        let answer = |Asked { request, mapping, recorder, outline }| Answer {
            request: Some(request),
            unread: Arc::default(),
            handle: None,
            mapping,
            recorder,
            outline,
            ended: false,
        };
        let answers = requests.into_iter().map(answer).collect();
        let arrived = record.arrived();
        let mut all = Self {
            ready,
            record,
            answers,
            sender,
            events,
            progress,
            per_prompt,
            pending: VecDeque::new(),
            arrived,
            _places: places,
        };
        for choice in 0..all.answers.len() {
            // Without a cache nobody gains from waiting.
            let first = choice.is_multiple_of(per_prompt);
            if first || all.answers[choice].request.as_ref().is_some_and(|request| !request.cache) {
                all.submit(choice)?;
            }
        }
        Ok(all)
    }

    fn submit(&mut self, choice: usize) -> Result<(), ApiError> {
        let answer = &mut self.answers[choice];
        if let Some(request) = answer.request.take() {
            let (unread, events) = (answer.unread.clone(), self.sender.clone());
            let ear = Arc::new(Ear { choice, progress: self.progress, unread, events });
            let submitted = self.ready.scheduler.submit_to(request, ear);
            answer.handle = Some(submitted.map_err(|e| ApiError::of_engine(&e))?);
        }
        Ok(())
    }

    /// The next event; `None` after the last.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, ApiError>>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.answers.iter().all(|answer| answer.ended) {
                return Poll::Ready(None);
            }
            let taken = match ready!(self.events.poll_recv(context)) {
                Some((choice, Some(event))) => self.take(choice, event),
                Some((choice, None)) if self.answers[choice].ended => Ok(()),
                Some((_, None)) | None => Err(ApiError::new(ErrorClass::Server, "the engine has ended")),
            };
            if let Err(e) = taken {
                return Poll::Ready(Some(Err(e)));
            }
        }
    }

    fn take(&mut self, choice: usize, event: RequestEvent) -> Result<(), ApiError> {
        let answer = &mut self.answers[choice];
        // The scheduler holds it no longer, and sleeps if it has nothing else to do.
        if answer.unread.fetch_sub(1, Ordering::AcqRel) == HELD_EVENTS
            && let Some(handle) = &answer.handle
        {
            handle.wake();
        }
        let in_prompt = matches!(event, RequestEvent::Begun { .. } | RequestEvent::Prompt { .. });
        let mut moment = Moment { elapsed: self.arrived.elapsed(), counts: SchedulerCounts::default() };
        let mut ended = None;
        match &event {
            RequestEvent::Begun { departs, .. } => {
                moment.counts = self.ready.scheduler.counts();
                if let Some((at, outline)) = departs.zip(answer.outline.take()) {
                    self.record.departs(outline.place(&self.ready.tokenizer, at));
                }
            }
            RequestEvent::Ended(generated) => {
                moment.counts = self.ready.scheduler.counts();
                if let Ok(generated) = generated {
                    self.record.answered(generated, choice.is_multiple_of(self.per_prompt));
                    self.ready.metrics.answered(generated);
                }
                let tokens = |recorder| Some((recorder, generated.as_ref().ok()?.tokens.clone()));
                ended = answer.recorder.take().and_then(tokens);
                answer.ended = true;
            }
            RequestEvent::Prompt { .. } | RequestEvent::Reply(_) => {}
        }
        let (ids, tokenizer) = (&self.ready.ids, &self.ready.tokenizer);
        let tools = Tools { id: &|| ids.next(), token_bytes: &|id| tokenizer.token_bytes(id).to_vec() };
        let events = answer.mapping.map(event, &moment, &tools).map_err(|e| ApiError::of_engine(&e))?;
        if let Some(event) = events.last().filter(|_| answer.ended) {
            self.record.ended(event);
        }
        let recorder = answer.recorder.as_mut().or(ended.as_mut().map(|(recorder, _)| recorder));
        if let Some(recorder) = recorder {
            events.iter().for_each(|event| recorder.hear(event));
        }
        if let Some((recorder, tokens)) = ended {
            recorder.end(&tokens);
        }
        self.pending.extend(events);
        if !in_prompt && choice.is_multiple_of(self.per_prompt) {
            for sibling in choice + 1..choice + self.per_prompt {
                self.submit(sibling)?;
            }
        }
        Ok(())
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.answers.iter().filter_map(|answer| answer.handle.as_ref()).for_each(RequestHandle::cancel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_late_is_refused_until_somebody_leaves() {
        let queue = Queue::new(2, 1);
        let places: Vec<Places> = (0..2).map(|_| queue.enter(1).unwrap()).collect();
        let many = queue.enter(8).unwrap();
        assert_eq!(queue.enter(1).unwrap_err().status(), 429);
        drop(many);
        assert!(queue.enter(1).is_ok());
        drop(places);
        assert_eq!(queue.inside.load(Ordering::Acquire), 0);
    }
}
