//! Writes what sequences keep to the state directory, behind everybody's back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use files::{Error, Result};

use crate::model::Model;
use crate::state::{KeptCounts, StateDirectory};

/// A state directory and the thread that fills it.
pub(crate) struct Keeper {
    directory: Mutex<StateDirectory>,
    /// Threads that want to read; who writes makes way.
    readers: AtomicUsize,
    /// Why nothing more is written.
    failed: Mutex<Option<Error>>,
    stopped: AtomicBool,
    news: Sender<()>,
}

impl Keeper {
    /// Starts the thread, which ends with the model.
    ///
    /// # Errors
    /// `Io` when there is no thread to be had.
    pub(crate) fn start(directory: StateDirectory, model: &Arc<Model>) -> Result<Self> {
        let (news, inbox) = channel();
        let model = Arc::downgrade(model);
        let write = move || write_behind(&model, &inbox);
        let started = std::thread::Builder::new().name("states".into()).spawn(write);
        started.map_err(|e| Error::io("a thread that stores states", e))?;
        Ok(Self {
            directory: Mutex::new(directory),
            readers: AtomicUsize::new(0),
            failed: Mutex::new(None),
            stopped: AtomicBool::new(false),
            news,
        })
    }

    /// There is something new to store.
    pub(crate) fn wake(&self) {
        let _ = self.news.send(()); // a thread that has ended has a reason
    }

    /// The directory; whoever writes to it makes way.
    pub(crate) fn directory(&self) -> MutexGuard<'_, StateDirectory> {
        self.readers.fetch_add(1, Ordering::AcqRel);
        let directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        self.readers.fetch_sub(1, Ordering::AcqRel);
        directory
    }

    /// Stores all that is kept, on the thread of the caller. Why that failed, now or before.
    pub(crate) fn flush(&self, model: &Model) -> Option<Error> {
        self.store_answers(model);
        while self.store_next(model, &|| true) {}
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stores the answers that are in no file yet.
    fn store_answers(&self, model: &Model) {
        if !self.stopped.load(Ordering::Acquire) {
            let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
            let stored = directory.store_answers(model.answers());
            model.kept.set_disk(directory.bytes());
            stored.unwrap_or_else(|e| self.stop(e));
        }
    }

    /// Writes nothing more.
    fn stop(&self, why: Error) {
        self.stopped.store(true, Ordering::Release);
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Stores what is kept and not stored yet, one beginning; false when there is none. Breaks off, to try again, when `goes`
    /// says no.
    fn store_next(&self, model: &Model, goes: &dyn Fn() -> bool) -> bool {
        if self.stopped.load(Ordering::Acquire) {
            return false;
        }
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(id) = model.lock_step().states.prefixes.unstored() else { return false };
        let stored = directory.store(id, &|| model.lock_step(), goes);
        model.kept.set_disk(directory.bytes());
        match stored {
            // What was given up, or has no room, is not tried again.
            Ok(_) => model.lock_step().states.prefixes.set_stored(id),
            Err(_) if !goes() => {}
            Err(e) => self.stop(e),
        }
        true
    }
}

impl Model {
    /// What is kept of ended sequences now. Waits for no step.
    pub fn kept_counts(&self) -> KeptCounts {
        self.kept.counts()
    }

    /// Forgets what ended sequences have computed; the state directory keeps it. Waits for a running step.
    pub fn forget_kept(&self) {
        let states = &mut self.lock_step().states;
        states.prefixes.clear();
        states.partial_chunks.clear();
    }

    /// Waits until all that sequences keep is in the state directory. Why the directory is no longer written, if so.
    pub fn flush_states(&self) -> Option<Error> {
        self.keeper()?.flush(self)
    }
}

fn write_behind(model: &Weak<Model>, inbox: &Receiver<()>) {
    while inbox.recv().is_ok() {
        loop {
            let Some(model) = model.upgrade() else { return };
            let Some(keeper) = model.keeper() else { return };
            keeper.store_answers(&model);
            let goes = || keeper.readers.load(Ordering::Acquire) == 0;
            if !keeper.store_next(&model, &goes) {
                break;
            }
            if !goes() {
                std::thread::sleep(Duration::from_millis(1)); // a lock is nobody's turn
            }
        }
    }
}
