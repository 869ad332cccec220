//! What an adapter is and how fast it is before any kernel runs: for reports.

use std::time::Instant;

use files::Result;

use super::staging::STAGING_BYTES;
use super::{Gpu, folded, memory_of, source};
use crate::Tensor;
use crate::ops::Backend as _;

/// Rates of the device itself.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes that a kernel reads in a second, of a buffer that no cache holds.
    pub read_bytes_per_s: f64,
    /// Bytes that a copy reads and writes, together, in a second.
    pub copy_bytes_per_s: f64,
    /// Bytes that reach the device from the host's memory in a second, in one large copy.
    pub upload_bytes_per_s: f64,
    /// The same for the weights of an expert, when the host waits for each.
    pub upload_expert_bytes_per_s: f64,
    /// Bytes that the host writes into free staging memory in a second: the part of a copy that it works on itself.
    pub upload_fill_bytes_per_s: f64,
    /// Time of a dispatch that waits for the one before it.
    pub dispatch_s: f64,
    /// Time from a submission of next to nothing until the host knows that it is done.
    pub submit_and_wait_s: f64,
}

impl Rates {
    /// The better of both: what a kernel can hope for.
    pub fn stream_bytes_per_s(&self) -> f64 {
        self.read_bytes_per_s.max(self.copy_bytes_per_s)
    }
}

/// Vectors of 16 bytes that a thread of `stream.wgsl` takes.
const EACH: u32 = 8;
/// Most bytes of a large copy from the host, and those of an expert of a large model.
const UPLOAD_BYTES: usize = 256 << 20;
const EXPERT_BYTES: usize = 7 << 20;
/// Streams, dispatches and waits in a measurement.
const STREAMS: usize = 100;
const DISPATCHES: usize = 500;
const WAITS: usize = 50;

impl Gpu {
    /// Measures the device with buffers of `bytes` bytes.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] or [`files::ErrorKind::Memory`] when the device fails.
    pub fn rates(&self, bytes: usize) -> Result<Rates> {
        let read_bytes_per_s = bytes as f64 / self.stream(bytes, false)?;
        let copy_bytes_per_s = 2.0 * bytes as f64 / self.stream(bytes, true)?;
        let [upload_bytes_per_s, upload_expert_bytes_per_s, upload_fill_bytes_per_s] = self.uploads(bytes)?;
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
            read_bytes_per_s,
            copy_bytes_per_s,
            upload_bytes_per_s,
            upload_expert_bytes_per_s,
            upload_fill_bytes_per_s,
            dispatch_s: dispatched.max(0.0) / DISPATCHES as f64,
            submit_and_wait_s,
        })
    }

    /// Bytes in a second of one large copy from the host, of an expert's, and into staging memory alone.
    fn uploads(&self, bytes: usize) -> Result<[f64; 3]> {
        let host = vec![1u8; bytes.min(UPLOAD_BYTES)];
        let mut block = self.alloc(host.len())?;
        // Seconds until the host may go on, and until the bytes are there.
        let mut upload = |bytes: &[u8]| -> Result<[f64; 2]> {
            let start = Instant::now();
            self.write(&mut block, 0, bytes)?;
            let filled = start.elapsed();
            self.read(&block, 0, &mut [0; 4])?;
            Ok([filled, start.elapsed()].map(|time| time.as_secs_f64().max(1e-9)))
        };
        upload(&host)?; // makes the staging memory
        let [_, large] = upload(&host)?;
        let free = &host[..host.len().min(STAGING_BYTES)];
        let [fill, _] = upload(free)?;
        let (mut expert, mut sent) = (0.0, 0);
        for part in host.chunks(EXPERT_BYTES) {
            expert += upload(part)?[1];
            sent += part.len();
        }
        Ok([host.len() as f64 / large, sent as f64 / expert, free.len() as f64 / fill])
    }

    /// Seconds of one pass over a buffer of `bytes` bytes, of many enqueued.
    fn stream(&self, bytes: usize, copy: bool) -> Result<f64> {
        let vectors = (bytes / 16).max(1);
        let (x, out) = (self.alloc(vectors * 16)?, self.alloc(if copy { vectors * 16 } else { 16 })?);
        let bindings = [memory_of(x.buffer())?.binding(), memory_of(out.buffer())?.binding()];
        let groups = folded(vectors.div_ceil((source::STREAM.threads * EACH) as usize), 1);
        let passes = |count: usize| -> Result<f64> {
            let start = Instant::now();
            for _ in 0..count {
                let constants = [EACH, u32::from(copy)];
                self.simple(&source::STREAM, &constants, &bindings, &[vectors as u32], groups)?;
            }
            self.read(&out, 0, &mut [0; 4])?;
            Ok(start.elapsed().as_secs_f64())
        };
        passes(2)?;
        let once = passes(1)?;
        Ok(((passes(STREAMS)? - once) / (STREAMS - 1) as f64).max(1e-9))
    }
}
