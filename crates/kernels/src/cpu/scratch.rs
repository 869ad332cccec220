//! Memory that ops use and forget, kept so that the next op need not ask the system for it.

use std::sync::{Mutex, PoisonError};

/// A few buffers that grow to what was needed.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Scratch {
    /// Lends `len` values of undefined content to `f`.
    pub(super) fn with<R>(&self, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
        let mut buffer = self.lock().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        let result = f(&mut buffer[..len]);
        self.lock().push(buffer);
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        // A vector of free buffers is whole at any time.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
