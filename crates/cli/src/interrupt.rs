//! Ctrl-C: stops the work that is going on, not the program; with no work, or pressed twice, it ends the program.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::{Error, ErrorKind};

use crate::failure::Result;

const IDLE: u8 = 0;
const WORKING: u8 = 1;
/// The work that goes on is to stop.
const STOPPING: u8 = 2;
/// So is all work that comes after it.
const ENDING: u8 = 3;

/// Where the program is. A signal handler can reach nothing but a global.
static STATE: State = State(AtomicU8::new(IDLE));

/// Exit code of a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: i32 = 130;

struct State(AtomicU8);

impl State {
    /// Goes from one state to another, if it is in the first.
    fn change(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn begin(&self) {
        // A program that ends begins nothing.
        self.change(IDLE, WORKING);
    }

    fn end(&self) {
        let _ = self.change(WORKING, IDLE) || self.change(STOPPING, IDLE); // one that ends stays so
    }

    fn stop(&self) {
        self.0.store(ENDING, Ordering::SeqCst);
    }

    fn is_interrupted(&self) -> bool {
        matches!(self.0.load(Ordering::SeqCst), STOPPING | ENDING)
    }
}

/// Takes Ctrl-C over.
///
/// # Errors
/// `Io` when the operating system refuses.
pub(crate) fn install() -> Result<()> {
    let on_signal = || {
        if !STATE.change(WORKING, STOPPING) {
            std::process::exit(INTERRUPTED);
        }
    };
    ctrlc::set_handler(on_signal)
        .map_err(|e| Error::new(ErrorKind::Io, "cannot listen for Ctrl-C").with_source(e).into())
}

/// Stops the work that goes on, and all that is begun after it.
pub(crate) fn stop() {
    STATE.stop();
}

/// Work that Ctrl-C stops, for as long as this value lives.
pub(crate) struct Work(());

impl Work {
    /// From now on Ctrl-C is noted, see [`Work::flow`].
    pub(crate) fn begin() -> Self {
        STATE.begin();
        Self(())
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_interrupted(&self) -> bool {
        STATE.is_interrupted()
    }

    /// `Break` once Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        STATE.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_stops_the_work_that_goes_on() {
        let state = State(AtomicU8::new(IDLE));
        state.begin();
        assert!(!state.is_interrupted());
        assert!(state.change(WORKING, STOPPING) && state.is_interrupted());
        state.end();
        state.begin();
        assert!(!state.is_interrupted());
    }

    /// A server may be told to end between two tries to open a model, or before the first.
    #[test]
    fn an_end_stops_work_that_is_not_begun() {
        let state = State(AtomicU8::new(IDLE));
        state.stop();
        for _ in 0..2 {
            state.begin();
            assert!(state.is_interrupted());
            state.end();
        }
    }
}
