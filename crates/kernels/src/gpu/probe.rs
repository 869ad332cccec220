//! What an adapter is and how fast it is before any kernel runs: for reports.

use std::time::Instant;

use files::Result;

use super::{Gpu, source};
use crate::ops::Backend as _;
use crate::{Tensor, gpu::device::device_error};

/// Rates of the device itself.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes that a copy within device memory reads and writes, together, in a second.
    pub copy_bytes_per_s: f64,
    /// Time of a dispatch that waits for the one before it.
    pub dispatch_s: f64,
    /// Time from a submission of next to nothing until the host knows that it is done.
    pub submit_and_wait_s: f64,
}

/// Copies, dispatches and waits in a measurement.
const COPIES: usize = 20;
const DISPATCHES: usize = 500;
const WAITS: usize = 50;

impl Gpu {
    /// What the adapter supports, as name and value.
    pub fn features(&self) -> Vec<(&'static str, String)> {
        let d = &self.device;
        vec![
            ("kind", format!("{:?}", d.summary.kind)),
            ("subgroups", d.subgroups.to_string()),
            ("subgroup_threads_min", d.subgroup_threads.to_string()),
            ("buffer_bytes_max", d.buffer_bytes_max.to_string()),
            ("device_features", format!("{:?}", d.device.features())),
            ("kernels", source::KERNELS.len().to_string()),
        ]
    }

    /// Measures the device with buffers of `bytes` bytes.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] or [`files::ErrorKind::Memory`] when the device fails.
    pub fn rates(&self, bytes: usize) -> Result<Rates> {
        let (from, to) = (self.memory(bytes, false)?, self.memory(bytes, false)?);
        let copy = |count: usize| -> Result<f64> {
            let start = Instant::now();
            let mut encoder = self.device.device.create_command_encoder(&Default::default());
            for _ in 0..count {
                encoder.copy_buffer_to_buffer(&from.buffer, 0, &to.buffer, 0, bytes as u64 / 4 * 4);
            }
            let index = self.device.queue.submit([encoder.finish()]);
            let waited = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
            self.device.device.poll(waited).map_err(|e| {
                device_error(format!("{}: waiting failed", self.device.summary.name)).with_source(e)
            })?;
            Ok(start.elapsed().as_secs_f64())
        };
        copy(1)?;
        let copied = copy(COPIES)? - copy(1)?;
        let mut x = Tensor::new(self.alloc(256)?, 1, 64)?;
        let y = Tensor::new(self.alloc(256)?, 1, 64)?;
        let mut dispatch = |count: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..count {
                self.add(&mut x, &y)?;
            }
            self.read(x.block(), 0, &mut [0; 4])?;
            Ok(start.elapsed().as_secs_f64())
        };
        dispatch(1)?;
        let start = Instant::now();
        for _ in 0..WAITS {
            dispatch(1)?;
        }
        let submit_and_wait_s = start.elapsed().as_secs_f64() / WAITS as f64;
        let dispatched = dispatch(DISPATCHES)? - submit_and_wait_s;
        self.device.check()?;
        Ok(Rates {
            copy_bytes_per_s: 2.0 * bytes as f64 * (COPIES - 1) as f64 / copied.max(1e-9),
            dispatch_s: dispatched.max(0.0) / DISPATCHES as f64,
            submit_and_wait_s,
        })
    }
}
