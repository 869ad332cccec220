//! Ctrl-C: stops the work that is going on, not the program; with no work, or pressed twice, it ends the program.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::{Error, ErrorKind};

use crate::failure::Result;

const IDLE: u8 = 0;
const WORKING: u8 = 1;
const STOPPING: u8 = 2;

/// Where the program is. A signal handler can reach nothing but a global.
static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// Exit code of a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: i32 = 130;

/// Takes Ctrl-C over.
///
/// # Errors
/// `Io` when the operating system refuses.
pub(crate) fn install() -> Result<()> {
    let on_signal = || {
        if STATE.compare_exchange(WORKING, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            std::process::exit(INTERRUPTED);
        }
    };
    ctrlc::set_handler(on_signal)
        .map_err(|e| Error::new(ErrorKind::Io, "cannot listen for Ctrl-C").with_source(e).into())
}

/// As if Ctrl-C had been pressed while something works.
pub(crate) fn stop() {
    let _ = STATE.compare_exchange(WORKING, STOPPING, Ordering::SeqCst, Ordering::SeqCst); // nothing works: nothing stops
}

/// Work that Ctrl-C stops, for as long as this value lives.
pub(crate) struct Work(());

impl Work {
    /// From now on Ctrl-C is noted, see [`Work::flow`].
    pub(crate) fn begin() -> Self {
        STATE.store(WORKING, Ordering::SeqCst);
        Self(())
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn is_interrupted(&self) -> bool {
        STATE.load(Ordering::SeqCst) == STOPPING
    }

    /// `Break` once Ctrl-C was pressed.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
