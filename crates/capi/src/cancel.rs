//! Tokens that stop calls.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::border::guard_value;

/// Stops calls from another thread, or from a signal handler. It stays set.
pub struct CancelHandle(Arc<AtomicBool>);

/// A new token that is not set.
#[unsafe(no_mangle)]
pub extern "C" fn tidemill_cancel_new() -> *mut CancelHandle {
    let new = || Box::into_raw(Box::new(CancelHandle(Arc::default())));
    guard_value("tidemill_cancel_new", std::ptr::null_mut(), new)
}

/// Stops the calls that have this token, and those that get it later. From any thread, also from a signal handler.
///
/// # Safety
/// `cancel` is NULL or was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_cancel_set(cancel: *mut CancelHandle) {
    guard_value("tidemill_cancel_set", (), || {
        // SAFETY: it is NULL or alive, as the caller promises.
        if let Some(cancel) = unsafe { cancel.as_ref() } {
            cancel.0.store(true, Ordering::Release);
        }
    });
}

/// Frees a token, also while a call that has it still runs.
///
/// # Safety
/// `cancel` is NULL or was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_cancel_free(cancel: *mut CancelHandle) {
    guard_value("tidemill_cancel_free", (), || {
        if !cancel.is_null() {
            // SAFETY: it came from `tidemill_cancel_new` and was not freed, as the caller promises.
            drop(unsafe { Box::from_raw(cancel) });
        }
    });
}

/// What a call asks whether it goes on. It outlives the token.
#[derive(Clone, Default)]
pub(crate) struct Stop(Option<Arc<AtomicBool>>);

impl Stop {
    /// Of a token, or of none.
    pub(crate) fn of(cancel: *const CancelHandle) -> Self {
        // SAFETY: it is NULL or alive when the call begins, as the header asks.
        Self(unsafe { cancel.as_ref() }.map(|cancel| cancel.0.clone()))
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.as_ref().is_some_and(|set| set.load(Ordering::Acquire))
    }

    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
