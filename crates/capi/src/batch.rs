//! Many requests at once, each by itself.

use std::ffi::{CString, c_char, c_void};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use api::report::{Answered, Reads};
use engine::ConversationKey;
use engine::generate::FinishReason;
use engine::scheduler::{Listener, Request, RequestEvent, RequestHandle, Scheduler, SchedulerOptions};
use engine::text::ReplyTurn;
use serde_json::{Value, json};

use crate::border::{slice, text};
use crate::cancel::{CancelHandle, Stop};
use crate::generate::{Prepared, named, prepare, remember, result};
use crate::model::{ModelHandle, Shared, with_model};
use crate::status::{
    Failure, Status, TIDEMILL_CANCELLED, TIDEMILL_MEMORY, TIDEMILL_OK, tidemill_status_name,
};

/// Told how the request `index` ended. `result_json` is the object of `tidemill_generate`, or `{"error": {"code", "message"}}`, and
/// lives until the function returns. Not 0 stops the batch. It runs on the calling thread, and must neither throw nor `longjmp`.
pub type OnResult = Option<
    unsafe extern "C" fn(user: *mut c_void, index: usize, status: Status, result_json: *const c_char) -> i32,
>;

/// How often a batch looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Requests that are prepared for each that runs, so that no place is ever empty.
const AHEAD: usize = 2;

/// Answers `count` requests, each as `tidemill_generate` would in a session of its own; as many at once as the model was opened
/// for (`sessions`), without those that live. `on` is called once for each, in the order in which they end, never twice at the same
/// time. A request that is wrong fails by itself. Stopped by `cancel`, those that have not ended are `CANCELLED`; stopped by
/// `on`, nothing more is told of them. Any thread.
/// Errors: `INVALID_REQUEST`, `MEMORY` where sessions have all places, `CANCELLED`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_batch(
    model: *mut ModelHandle,
    requests_json: *const *const c_char,
    count: usize,
    on: OnResult,
    user: *mut c_void,
    cancel: *const CancelHandle,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    with_model("tidemill_batch", model, error, |shared| {
        let requests = slice(requests_json, count, "requests_json")?;
        if requests.is_empty() {
            return Ok(());
        }
        shared.check_free()?;
        // Two at once would take each other's places.
        let _alone = loop {
            match shared.batch.try_lock() {
                Ok(alone) => break alone,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if stop.is_set() => return Err(Failure::cancelled()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
        };
        let (_, parallel) = shared.model.free_states();
        if parallel == 0 {
            let message = "sessions have all places of the model: free some, or open it with more `sessions`";
            return Err(Failure::new(TIDEMILL_MEMORY, message));
        }
        let scheduler = Scheduler::start(
            shared.model.clone(),
            shared.tokenizer.clone(),
            SchedulerOptions::new(parallel),
        )?;
        let (sender, events) = channel();
        let batch =
            Batch { shared, scheduler, caller: Caller { on, user }, stop, sender, running: Vec::new() };
        let ended = batch.run(requests, parallel * AHEAD, &events);
        shared.flush();
        ended
    })
}

/// Whom results are told to.
struct Caller {
    on: OnResult,
    user: *mut c_void,
}

impl Caller {
    /// False stops the batch.
    fn tell(&self, index: usize, status: Status, result: &Value) -> bool {
        let Some(on) = self.on else { return true };
        // JSON has no NUL.
        let text = CString::new(result.to_string()).unwrap_or_default();
        // SAFETY: the caller's function, with the caller's pointer, on the caller's thread.
        unsafe { on(self.user, index, status, text.as_ptr()) == 0 }
    }

    fn tell_failure(&self, index: usize, failure: &Failure) -> bool {
        // SAFETY: names of statuses live as long as the program.
        let code = unsafe { std::ffi::CStr::from_ptr(tidemill_status_name(failure.status)) };
        let error = json!({"code": code.to_string_lossy(), "message": failure.message});
        self.tell(index, failure.status, &json!({"error": error}))
    }
}

/// A request on its way.
struct Running {
    index: usize,
    handle: RequestHandle,
    turn: ReplyTurn,
    conversation: Option<ConversationKey>,
    seed: Option<u64>,
    ignored: Vec<String>,
}

struct Batch<'a> {
    shared: &'a Arc<Shared>,
    scheduler: Scheduler,
    caller: Caller,
    stop: Stop,
    sender: Sender<(usize, Option<RequestEvent>)>,
    running: Vec<Running>,
}

/// Sends what becomes of a request to who waits for all of them.
struct Ear {
    index: usize,
    sender: Sender<(usize, Option<RequestEvent>)>,
}

impl Listener for Ear {
    fn hear(&self, event: RequestEvent) -> bool {
        matches!(event, RequestEvent::Prompt { .. }) || self.sender.send((self.index, Some(event))).is_ok()
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let _ = self.sender.send((self.index, None)); // who does not listen any more need not hear it
    }
}

impl Batch<'_> {
    fn run(
        mut self,
        requests: &[*const c_char],
        most: usize,
        events: &Receiver<(usize, Option<RequestEvent>)>,
    ) -> Result<(), Failure> {
        let mut waiting = requests.iter().enumerate();
        loop {
            while !self.stop.is_set() && self.running.len() < most {
                let Some((index, request)) = waiting.next() else { break };
                if !self.begin(index, *request) {
                    return self.give_up();
                }
            }
            if self.stop.is_set() {
                break;
            }
            if self.running.is_empty() {
                return Ok(());
            }
            match events.recv_timeout(LOOK) {
                Ok((index, event)) => {
                    if !self.take(index, event) {
                        return self.give_up();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()), // it has a sender of its own
            }
        }
        while let Ok((index, event)) = events.try_recv() {
            if !self.take(index, event) {
                return self.give_up();
            }
        }
        if self.running.is_empty() && waiting.len() == 0 {
            return Ok(());
        }
        let failure = Failure::cancelled();
        let mut left: Vec<usize> = self.running.iter().map(|running| running.index).collect();
        left.sort_unstable();
        for index in left.into_iter().chain(waiting.map(|(index, _)| index)) {
            if !self.caller.tell_failure(index, &failure) {
                break;
            }
        }
        self.give_up()
    }

    fn give_up(self) -> Result<(), Failure> {
        self.running.iter().for_each(|running| running.handle.cancel());
        Err(Failure::cancelled())
    }

    /// Prepares a request and hands it to the scheduler; false stops the batch.
    fn begin(&mut self, index: usize, request: *const c_char) -> bool {
        let prepared = text(request, &format!("requests_json[{index}]"))
            .and_then(|request| prepare(self.shared, request))
            .and_then(|prepared| self.submit(index, prepared));
        match prepared {
            Ok(running) => {
                self.running.push(running);
                true
            }
            Err(failure) => self.caller.tell_failure(index, &failure),
        }
    }

    fn submit(&self, index: usize, prepared: Prepared) -> Result<Running, Failure> {
        let Prepared { made, options, conversation, ignored } = prepared;
        let seed = options.sampling.seed_in_use();
        let request = Request {
            prompt: made.tokens,
            borders: made.borders,
            cache: true,
            options,
            priority: 0,
            client: 0,
            deadline: None,
        };
        let ear = Arc::new(Ear { index, sender: self.sender.clone() });
        let handle = self.scheduler.submit_to(request, ear)?;
        Ok(Running { index, handle, turn: ReplyTurn::default(), conversation, seed, ignored })
    }

    /// Takes what has become of a request; false stops the batch.
    fn take(&mut self, index: usize, event: Option<RequestEvent>) -> bool {
        let Some(at) = self.running.iter().position(|running| running.index == index) else { return true };
        let ended = match event {
            Some(RequestEvent::Reply(event)) => {
                self.running[at].turn.take(&named(self.shared, event));
                return true;
            }
            Some(RequestEvent::Begun { .. } | RequestEvent::Prompt { .. }) => return true,
            Some(RequestEvent::Ended(ended)) => ended.map_err(Failure::from),
            None => Err(Failure::new(crate::status::TIDEMILL_INTERNAL, "the engine has ended")),
        };
        let Running { turn, conversation, seed, ignored, .. } = self.running.swap_remove(at);
        let generated = match ended {
            Ok(generated) => generated,
            Err(failure) => return self.caller.tell_failure(index, &failure),
        };
        if let Some(before) = conversation {
            remember(self.shared, before, &turn, &generated.tokens);
        }
        let status = match generated.finish {
            FinishReason::Cancelled => TIDEMILL_CANCELLED,
            _ => TIDEMILL_OK,
        };
        // What the drive did cannot be told apart.
        let answered = Answered { turn, generated, reads: Reads::default(), seed };
        self.caller.tell(index, status, &result(self.shared, &answered, &ignored))
    }
}
