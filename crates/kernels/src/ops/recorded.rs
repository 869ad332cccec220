//! Ops that wait for somebody to run them.

use std::any::Any;

/// Ops that are ready for a device: [`crate::Backend::record`].
pub struct Recorded(Box<dyn Any + Send>);

impl Recorded {
    /// Of what a backend keeps for them.
    pub fn new(commands: impl Any + Send) -> Self {
        Self(Box::new(commands))
    }

    /// What a backend kept, if that is a `T`.
    pub fn into_commands<T: Any>(self) -> Option<T> {
        self.0.downcast().ok().map(|commands| *commands)
    }
}
