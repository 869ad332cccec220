//! Handing what is recorded to the device, and waiting for it.
//!
//! Every submission ends with a pass that counts itself, and every answer brings the count along ([`super::tally`]).

use std::any::Any;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use files::{Error, Result};

use super::device::{Device, device_error};
use super::encoder::{Commands, KeptCommands, Recorder};
use crate::ops::Recorded;

/// From so many dispatches on, recording more would let the device idle: 5 us to record one, 9 us to run it.
const DISPATCHES_MAX: usize = 64;
/// The same after a read-back, when the device waits for the first of them.
pub(super) const DISPATCHES_FIRST: usize = 32;
/// Submissions that the device may have before it. Enough that it never waits for the host; a host that is further ahead, as
/// in a prompt where nothing is read back, would report progress long before it is made and could not be interrupted.
const SUBMISSIONS_AHEAD: usize = 4;
/// Answers that take so long are worth staying awake for: shorter ones come with experts that other threads read.
const AWAKE: RangeInclusive<Duration> = Duration::from_micros(500)..=Duration::from_millis(5);

/// Work that a driver may drop without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Dispatches, and copies between them.
    Commands,
    /// Copies of host memory through staging buffers.
    Copies,
    /// Copies of host memory through the queue: ids, tables, and small writes.
    Writes,
}

/// What is kept until the device is done with a submission.
pub(super) struct Lent {
    submission: wgpu::SubmissionIndex,
    _held: Vec<Box<dyn Any + Send>>,
}

impl Recorder {
    fn may_submit(&self) -> Result<()> {
        match self.open.kept {
            None => Ok(()),
            Some(_) => Err(Error::unsupported("what is only recorded cannot be waited for")),
        }
    }

    /// After a submission: what it needed is the host's again, or lent.
    fn let_go(&mut self, held: Vec<Box<dyn Any + Send>>) {
        if let Some(submission) = self.last.clone().filter(|_| self.lends && !held.is_empty()) {
            self.lent.push_back(Lent { submission, _held: held });
        }
    }

    /// Drops what the device is done with, in turn; waits for the first if `wait` says so.
    fn take_back(&mut self, device: &Device, wait: bool) -> Result<()> {
        let mut timeout = if wait { None } else { Some(Duration::ZERO) };
        while let Some(oldest) = self.lent.front() {
            let submission_index = Some(oldest.submission.clone());
            match device.device.poll(wgpu::PollType::Wait { submission_index, timeout }) {
                Ok(_) => drop(self.lent.pop_front()),
                Err(wgpu::PollError::Timeout) => break,
                Err(e) => return Err(waiting_failed(device, e)),
            }
            timeout = Some(Duration::ZERO);
        }
        Ok(())
    }

    /// Submits what is recorded, and waits until something that was lent is back.
    pub(super) fn reclaim(&mut self, device: &Device) -> Result<()> {
        self.submit(device)?;
        self.take_back(device, true)
    }

    /// Submits what is recorded if that is much, and waits while the device has too much before it.
    pub(super) fn submit_much(&mut self, device: &Device) -> Result<()> {
        if self.open.kept.is_some() || self.open.dispatches < self.enough {
            return Ok(());
        }
        self.enough = DISPATCHES_MAX;
        self.submit(device)?;
        self.fall_back(device)
    }

    /// Waits while the device has too much before it.
    pub(super) fn fall_back(&mut self, device: &Device) -> Result<()> {
        while self.ahead.len() > SUBMISSIONS_AHEAD
            && let Some(oldest) = self.ahead.pop_front()
        {
            wait(device, oldest)?;
        }
        Ok(())
    }

    /// Submits what is recorded.
    pub(super) fn submit(&mut self, device: &Device) -> Result<()> {
        self.may_submit()?;
        if let Some(commands) = self.finish(device) {
            self.send(device, commands)?;
        } else if self.staging.waits() {
            self.queue(device, None);
        }
        let held = std::mem::take(&mut self.open.held);
        self.let_go(held);
        self.take_back(device, false)?;
        device.check()
    }

    /// Submits commands with the uploads that they find.
    pub(super) fn send(&mut self, device: &Device, commands: Commands) -> Result<wgpu::SubmissionIndex> {
        let mut uploads = std::mem::take(&mut self.open.uploads);
        let (_, upload_buffer) = self.upload_buffer.clone();
        self.write_uploads(device, &upload_buffer, uploads.send());
        self.open.uploads = uploads;
        let index = self.hand_over(device, commands);
        if let Some(profile) = &mut self.profile {
            profile.collect(device, index.clone())?;
        }
        Ok(index)
    }

    /// Writes words to the upload buffer, from the word `first` on.
    fn write_uploads(
        &mut self,
        device: &Device,
        upload_buffer: &wgpu::Buffer,
        (first, uploads): (usize, &[u32]),
    ) {
        if uploads.is_empty() {
            return;
        }
        if self.lost != Some(Lost::Writes) {
            device.queue.write_buffer(upload_buffer, first as u64 * 4, bytemuck::cast_slice(uploads));
        }
        self.wrote = true;
        self.counts.copied_bytes += uploads.len() as u64 * 4;
    }

    /// Submits commands.
    fn hand_over(&mut self, device: &Device, commands: Commands) -> wgpu::SubmissionIndex {
        let index = self.queue(device, Some(commands));
        self.ahead.push_back(index.clone());
        self.bury();
        index
    }

    /// Hands copies that wait to the device, and what was recorded after them.
    pub(super) fn queue(&mut self, device: &Device, commands: Option<Commands>) -> wgpu::SubmissionIndex {
        // Else the next pass would count too late for some of the copies.
        let commands = commands.or_else(|| self.tally.is_full().then(|| self.counting(device)));
        if std::mem::take(&mut self.wrote) {
            let (number, at) = self.tally.next_copies();
            if self.lost.take_if(|lost| *lost == Lost::Writes).is_none() {
                device.queue.write_buffer(&self.tally.words, at, bytemuck::bytes_of(&number));
            }
        }
        let mut copies = self.staging.encode(device, &mut self.tally);
        let mut events = Vec::new();
        let mut buffer = commands.map(|commands| {
            events = commands.events;
            commands.buffer
        });
        if copies.is_some() && self.lost.take_if(|lost| *lost == Lost::Copies).is_some() {
            copies = None;
        }
        if buffer.is_some() && self.lost.take_if(|lost| *lost == Lost::Commands).is_some() {
            buffer = None;
        }
        let index = device.queue.submit(copies.into_iter().chain(buffer));
        self.tally.submitted(&events);
        self.staging.submitted(&index);
        self.last = Some(index.clone());
        self.counts.submissions += 1;
        index
    }

    /// Submits what was kept, with these ids.
    pub(super) fn run(&mut self, device: &Device, recorded: Recorded, ids: &[u32]) -> Result<()> {
        let foreign = || Error::invalid("this was recorded by another backend");
        let KeptCommands { mut uploads, held, kept } = recorded.into_commands().ok_or_else(foreign)?;
        if kept.ids.len() != ids.len() {
            return Err(Error::invalid(format!("{} ids for a step of {}", ids.len(), kept.ids.len())));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= kept.id_bound) {
            return Err(Error::invalid(format!("id {id} of a table of {} rows", kept.id_bound)));
        }
        self.submit(device)?;
        self.open.uploads.clear();
        uploads[kept.ids].copy_from_slice(ids);
        self.write_uploads(device, &kept.upload_buffer.1, (0, &uploads));
        for commands in kept.parts {
            self.hand_over(device, commands);
        }
        self.let_go(held);
        device.check()
    }

    /// Submits what is recorded and reads ranges of buffers after it, in one wait. A range is (buffer, first byte, where
    /// its bytes go), in multiples of 4.
    ///
    /// # Errors
    /// `Device` also when the device did not run all that was submitted before.
    pub(super) fn read_back(
        &mut self,
        device: &Device,
        ranges: &mut [(&wgpu::Buffer, usize, &mut [u8])],
    ) -> Result<()> {
        self.may_submit()?;
        let total: usize = ranges.iter().map(|(_, _, out)| out.len()).sum();
        let staging = self.answers(device, total + 4)?;
        self.end_pass(device);
        let Some((encoder, _)) = &mut self.open.encoder else {
            return Err(device_error("no encoder is open"));
        };
        let mut at = 0;
        for (buffer, offset, out) in ranges.iter() {
            encoder.copy_buffer_to_buffer(buffer, *offset as u64, &staging, at, out.len() as u64);
            at += out.len() as u64;
        }
        // Last, so that it is there only if all of the answer is.
        encoder.copy_buffer_to_buffer(&self.tally.words, 0, &staging, at, 4);
        let commands = self.seal().ok_or_else(|| device_error("no encoder is open"))?;
        let index = self.send(device, commands)?;
        self.counts.readbacks += 1;
        self.ahead.clear();
        self.enough = DISPATCHES_FIRST;
        let slice = staging.slice(..total as u64 + 4);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        self.wait_for_answer(device, index)?;
        device.check()?;
        // All that was submitted before has run too.
        self.open.held.clear();
        self.lent.clear();
        let mapped = slice
            .get_mapped_range()
            .map_err(|e| device_error("cannot read the device's answer").with_source(e))?;
        let (answer, sum) = mapped.split_at(total);
        let complete = self.tally.check(device, bytemuck::pod_read_unaligned(sum));
        if complete.is_ok() {
            let mut rest = answer;
            for (_, _, out) in ranges {
                let (head, tail) = rest.split_at(out.len());
                out.copy_from_slice(head);
                rest = tail;
            }
        }
        drop(mapped);
        staging.unmap();
        complete
    }

    /// Waits for an answer. Waking up takes the host longer than a discrete GPU takes for a layer, so it stays awake where
    /// the last answer took no longer than a token of a model in VRAM.
    fn wait_for_answer(&mut self, device: &Device, index: wgpu::SubmissionIndex) -> Result<()> {
        let start = Instant::now();
        if self.stays_awake && AWAKE.contains(&self.last_wait) {
            while start.elapsed() < 2 * self.last_wait {
                let status = device.device.poll(wgpu::PollType::Poll);
                if status.is_err() || status.is_ok_and(|status| status.is_queue_empty()) {
                    break;
                }
                std::hint::spin_loop();
            }
        }
        wait(device, index)?;
        self.last_wait = start.elapsed();
        Ok(())
    }

    /// A mappable buffer of at least `bytes`.
    fn answers(&mut self, device: &Device, bytes: usize) -> Result<wgpu::Buffer> {
        if let Some(answers) = self.answers.as_ref().filter(|a| a.size() >= bytes as u64) {
            return Ok(answers.clone());
        }
        let staging = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: (bytes as u64).next_power_of_two().max(4096).min(device.device.limits().max_buffer_size),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        device.check()?;
        self.answers = Some(staging.clone());
        Ok(staging)
    }
}

/// Waits for a submission and all before it.
pub(super) fn wait(device: &Device, index: wgpu::SubmissionIndex) -> Result<()> {
    device
        .device
        .poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None })
        .map(|_| ())
        .map_err(|e| waiting_failed(device, e))
}

fn waiting_failed(device: &Device, error: wgpu::PollError) -> Error {
    device_error(format!("{}: waiting failed", device.summary.name)).with_source(error)
}
