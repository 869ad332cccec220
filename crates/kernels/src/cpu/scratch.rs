//! Memory that ops use and forget, kept so that the next op need not ask the system for it.

use std::sync::{Mutex, PoisonError};

/// Buffers that grow to what was needed, as many as ops ever use at the same time.
#[derive(Debug, Default)]
pub(super) struct Scratch<T> {
    free: Mutex<Vec<T>>,
}

impl<T: Default> Scratch<T> {
    /// Lends a buffer of undefined content to `f`.
    pub(super) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut buffer = self.lock().pop().unwrap_or_default();
        let result = f(&mut buffer);
        self.lock().push(buffer);
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        // A vector of free buffers is whole at any time.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
