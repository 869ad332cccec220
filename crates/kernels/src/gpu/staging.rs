//! Copies of host memory into the device's, through a few buffers that live as long as the backend.
//!
//! `Queue::write_buffer` takes fresh memory for each copy, whose pages the system must make first, and fills it with
//! one thread: a tenth of what the bus takes. These buffers are mapped again and again, and filled by several threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use files::Result;

use super::device::{Device, device_error};
use super::submit::wait;
use super::tally::Tally;
use crate::cpu::Pool;

/// Bytes of a buffer: many times what a submission costs, few enough that the device begins early.
const BUFFER_BYTES: usize = 16 << 20;
/// So many buffers: one is filled, the others are on their way. A host that is further ahead waits.
const BUFFERS: usize = 4;
/// Most threads that fill them: as many as a bus needs, each of which copies 5 to 10 GB/s.
const THREADS_MAX: usize = 8;
/// What a thread takes at a time, in bytes.
const PIECE_BYTES: usize = 512 << 10;
/// A buffer's copies begin at multiples of this, in bytes: a cache line, which is also what memory behind a bus takes.
const ALIGN_BYTES: usize = 64;

/// Host memory that this takes at most.
pub(super) const STAGING_BYTES: usize = BUFFERS * BUFFER_BYTES;

/// The states of a mapping that was asked for.
const ASKED: u8 = 0;
const MAPPED: u8 = 1;
const REFUSED: u8 = 2;

/// A copy that is in a buffer and waits for its submission.
struct Copy {
    to: wgpu::Buffer,
    at: u64,
    from: u64,
    bytes: u64,
}

/// A buffer that the host writes.
struct Filling {
    // Dropped before the buffer is unmapped.
    view: wgpu::BufferViewMut,
    buffer: wgpu::Buffer,
    used: usize,
}

/// A buffer that the device reads.
struct Away {
    buffer: wgpu::Buffer,
    submission: wgpu::SubmissionIndex,
    mapping: Arc<AtomicU8>,
}

/// The buffers.
#[derive(Default)]
pub(super) struct Staging {
    threads: Option<Pool>,
    filling: Option<Filling>,
    copies: Vec<Copy>,
    /// Recorded by [`Self::encode`], not yet submitted.
    leaving: Option<wgpu::Buffer>,
    /// In the order of their submissions.
    away: VecDeque<Away>,
    buffers: usize,
}

impl Staging {
    /// Whether copies wait for [`Self::encode`].
    pub(super) fn waits(&self) -> bool {
        !self.copies.is_empty()
    }

    /// Takes the first of `bytes`, as many as there is room for, on their way to byte `at` of `to`. `None` when the
    /// buffer is full and must be submitted first.
    pub(super) fn take(
        &mut self,
        device: &Device,
        to: &wgpu::Buffer,
        at: usize,
        bytes: &[u8],
    ) -> Result<Option<usize>> {
        if self.filling.is_none() {
            let buffer = self.mapped(device)?;
            let view = buffer.get_mapped_range_mut(..).map_err(|e| unmapped().with_source(e))?;
            // The first word is for the tally.
            self.filling = Some(Filling { view, buffer, used: size_of::<u32>() });
        }
        let (Some(filling), pieces) = (&mut self.filling, bytes.len().div_ceil(PIECE_BYTES)) else {
            return Ok(None);
        };
        let from = filling.used.next_multiple_of(ALIGN_BYTES);
        let taken = bytes.len().min((filling.buffer.size() as usize).saturating_sub(from));
        if taken == 0 {
            return Ok(None);
        }
        let bytes = &bytes[..taken];
        let mut target = filling.view.slice(from..from + taken);
        if pieces == 1 {
            target.copy_from_slice(bytes);
        } else {
            let threads = match &self.threads {
                Some(threads) => threads,
                None => self.threads.insert(Pool::new(threads_of(cores()))?),
            };
            fill(threads, Target(target.as_raw_element_ptr().as_ptr()), bytes)?;
        }
        filling.used = from + taken;
        let [at, from, bytes] = [at, from, taken].map(|n| n as u64);
        self.copies.push(Copy { to: to.clone(), at, from, bytes });
        Ok(Some(taken))
    }

    /// Records the copies that wait, for a submission that [`Self::submitted`] is told of.
    pub(super) fn encode(&mut self, device: &Device, tally: &mut Tally) -> Option<wgpu::CommandBuffer> {
        let Filling { mut view, buffer, .. } = self.filling.take_if(|_| !self.copies.is_empty())?;
        let (number, counted_at) = tally.next_copies();
        view.slice(..size_of::<u32>()).copy_from_slice(&number.to_ne_bytes());
        drop(view);
        buffer.unmap();
        let mut encoder = device.device.create_command_encoder(&Default::default());
        for copy in self.copies.drain(..) {
            encoder.copy_buffer_to_buffer(&buffer, copy.from, &copy.to, copy.at, copy.bytes);
        }
        encoder.copy_buffer_to_buffer(&buffer, 0, &tally.words, counted_at, size_of::<u32>() as u64);
        self.leaving = Some(buffer);
        Some(encoder.finish())
    }

    /// Asks for the buffer back that was recorded last, once the device has read it.
    pub(super) fn submitted(&mut self, submission: &wgpu::SubmissionIndex) {
        let Some(buffer) = self.leaving.take() else { return };
        let mapping = Arc::new(AtomicU8::new(ASKED));
        let answer = mapping.clone();
        buffer.map_async(wgpu::MapMode::Write, .., move |mapped| {
            answer.store(if mapped.is_ok() { MAPPED } else { REFUSED }, Ordering::Release);
        });
        self.away.push_back(Away { buffer, submission: submission.clone(), mapping });
    }

    /// A buffer that the host may write: one that has come back, a new one, or the next one to come back.
    fn mapped(&mut self, device: &Device) -> Result<wgpu::Buffer> {
        let state = |away: &Away| away.mapping.load(Ordering::Acquire);
        if self.buffers < BUFFERS && self.away.front().is_none_or(|oldest| state(oldest) == ASKED) {
            let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("staging"),
                size: (BUFFER_BYTES as u64).min(device.buffer_bytes_max as u64 / 16 * 16),
                usage: wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            });
            device.check()?;
            self.buffers += 1;
            return Ok(buffer);
        }
        let oldest = self.away.pop_front().ok_or_else(unmapped)?;
        if state(&oldest) == ASKED {
            wait(device, oldest.submission.clone())?;
        }
        if state(&oldest) != MAPPED {
            self.buffers -= 1;
            return Err(unmapped());
        }
        Ok(oldest.buffer)
    }
}

fn unmapped() -> files::Error {
    device_error("the device does not give its staging memory back")
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that fill, where there are `cores`: the drive and the system need some too.
fn threads_of(cores: usize) -> usize {
    (cores / 2).clamp(1, THREADS_MAX)
}

/// Mapped memory that threads write.
#[derive(Clone, Copy)]
struct Target(*mut u8);

// SAFETY: an address alone; `fill` says who writes where.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The address of byte `at`, which the memory must have.
    fn byte(self, at: usize) -> *mut u8 {
        self.0.wrapping_add(at)
    }
}

/// Copies `bytes` to `to`, which has room for as many and is nobody else's meanwhile.
fn fill(threads: &Pool, to: Target, bytes: &[u8]) -> Result<()> {
    threads.run(bytes.len().div_ceil(PIECE_BYTES), |piece| {
        let at = piece * PIECE_BYTES;
        let piece = &bytes[at..bytes.len().min(at + PIECE_BYTES)];
        // SAFETY: `to` has room for `bytes.len()` bytes, of which each item writes its own; `run` returns when all
        // are done, before the caller's borrow of the mapping ends; a slice of ours is no mapped memory.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), to.byte(at), piece.len()) };
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_write_every_byte_of_any_length() {
        let threads = Pool::new(3).unwrap();
        for len in [1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 5] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut to = vec![0u8; len + 1];
            fill(&threads, Target(to.as_mut_ptr()), &bytes).unwrap();
            assert_eq!((&to[..len], to[len]), (&bytes[..], 0));
        }
    }

    #[test]
    fn some_cores_are_left_to_others() {
        assert_eq!([1, 2, 4, 16, 128].map(threads_of), [1, 1, 2, 8, 8]);
    }
}
