//! How whoever asked hears of a request, and how it is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::Thread;

use super::RequestEvent;

/// Who hears what becomes of a request. It is called by the thread that runs the steps, which must not be kept waiting.
pub trait Listener: Send + Sync {
    /// Takes an event; false where nobody listens any more, which gives the request up.
    fn hear(&self, event: RequestEvent) -> bool;

    /// Whether there is so much to read that the answer is held, until [`RequestHandle::wake`] is called and this says no.
    /// Nobody else notices.
    fn is_behind(&self) -> bool {
        false
    }
}

/// A channel without an end: what is not read waits in memory.
pub(super) struct Unbounded(pub(super) Sender<RequestEvent>);

impl Listener for Unbounded {
    fn hear(&self, event: RequestEvent) -> bool {
        self.0.send(event).is_ok()
    }
}

/// Gives a request up, or lets it go on.
#[derive(Clone, Debug)]
pub struct RequestHandle {
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) scheduler: Thread,
}

impl RequestHandle {
    /// Gives the request up: a step of nobody else ends before its next layer, another one without it.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        self.wake();
    }

    /// Its [`Listener`] is no longer behind.
    pub fn wake(&self) {
        self.scheduler.unpark();
    }
}

/// A request on its way. Dropped, it is cancelled.
pub struct Ticket {
    pub(super) events: Receiver<RequestEvent>,
    pub(super) handle: RequestHandle,
}

impl Ticket {
    /// Waits for the next event; `None` after the last.
    pub fn next_event(&self) -> Option<RequestEvent> {
        self.events.recv().ok()
    }

    /// As [`RequestHandle::cancel`].
    pub fn cancel(&self) {
        self.handle.cancel();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel();
    }
}
