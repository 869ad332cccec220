//! Ops that are recorded and kept until somebody runs them.

use files::Result;

use super::Gpu;
use crate::ops::Recorded;

/// Ends the recording of this thread if nothing else has, so that a panic in its ops leaves none behind.
struct Recording<'a> {
    gpu: &'a Gpu,
    ended: bool,
}

impl Recording<'_> {
    fn end(mut self) -> Result<Option<Recorded>> {
        self.ended = true;
        self.gpu.lock().recorder.end_keeping(&self.gpu.device)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // What it answers is of no use to anybody.
            let _ = self.gpu.lock().recorder.end_keeping(&self.gpu.device);
        }
    }
}

impl Gpu {
    /// See [`crate::Backend::record`].
    pub(super) fn keep(&self, enqueue: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recorded>> {
        {
            let recorder = &mut self.lock().recorder;
            // Times are collected with each submission.
            if recorder.profile.is_some() || !recorder.begin_keeping() {
                return Ok(None);
            }
        }
        let recording = Recording { gpu: self, ended: false };
        enqueue()?;
        recording.end()
    }
}
