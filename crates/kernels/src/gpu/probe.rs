//! What an adapter is and how fast it is before any kernel runs: for reports.

use std::time::Instant;

use files::Result;

use super::{Gpu, source};
use crate::Tensor;
use crate::ops::Backend as _;

/// Rates of the device itself.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes that `x += y` over large tensors reads and writes, together, in a second.
    pub stream_bytes_per_s: f64,
    /// Time of a dispatch that waits for the one before it.
    pub dispatch_s: f64,
    /// Time from a submission of next to nothing until the host knows that it is done.
    pub submit_and_wait_s: f64,
}

/// Streams, dispatches and waits in a measurement.
const STREAMS: usize = 40;
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
        let len = bytes / 4;
        let (mut large, addend) =
            (Tensor::new(self.alloc(len * 4)?, 1, len)?, Tensor::new(self.alloc(len * 4)?, 1, len)?);
        let mut stream = |count: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..count {
                self.add(&mut large, &addend)?;
            }
            self.read(large.block(), 0, &mut [0; 4])?;
            Ok(start.elapsed().as_secs_f64())
        };
        stream(1)?;
        let streamed = stream(STREAMS)? - stream(1)?;
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
            stream_bytes_per_s: 3.0 * bytes as f64 * (STREAMS - 1) as f64 / streamed.max(1e-9),
            dispatch_s: dispatched.max(0.0) / DISPATCHES as f64,
            submit_and_wait_s,
        })
    }
}
