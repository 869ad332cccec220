//! Recording: one encoder with one compute pass is open at a time; it is submitted when somebody must wait, when
//! the host writes what it may read, when the engine says so, or when much is recorded that nobody needs to see.

use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use files::{Error, Result};

use super::device::{AdapterKind, Device, device_error};
use super::memory::{GpuMemory, Graveyard};
use super::pipelines::{IMMEDIATE_BYTES_MAX, Pipeline};
use super::profile::Profile;
use super::staging::Staging;
use crate::ops::{DeviceCounts, Recorded};

/// Most buffers of a dispatch.
pub(super) const BINDINGS_MAX: usize = 20;
/// First size of the buffer for ids and tables.
const UPLOAD_WORDS: usize = 1 << 18;
/// Smaller copies go through the queue's own staging memory, if nothing waits in ours, whose buffers come back one by
/// one.
const SMALL_COPY_BYTES: usize = 64 << 10;
/// From so many dispatches on, recording more would let the device idle: 5 us to record one, 9 us to run it.
const DISPATCHES_MAX: usize = 64;
/// The same after a read-back, when the device waits for the first of them.
const DISPATCHES_FIRST: usize = 32;
/// Submissions that the device may have before it. Enough that it never waits for the host; a host that is further ahead, as
/// in a prompt where nothing is read back, would report progress long before it is made and could not be interrupted.
const SUBMISSIONS_AHEAD: usize = 4;
/// Answers that take so long are worth staying awake for: shorter ones come with experts that other threads read.
const AWAKE: RangeInclusive<Duration> = Duration::from_micros(500)..=Duration::from_millis(5);
/// With fewer processors those threads need them.
const AWAKE_THREADS_MIN: usize = 4;

/// What a bind group is made of.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct BindKey {
    layout: usize,
    ids: [u64; BINDINGS_MAX],
}

/// A buffer of a dispatch.
pub(super) type Binding<'a> = (u64, &'a wgpu::Buffer);

/// What has been recorded and not submitted.
#[derive(Default)]
struct Open {
    encoder: Option<(wgpu::CommandEncoder, Option<wgpu::ComputePass<'static>>)>,
    /// Words for the upload buffer, copied there when the encoder is submitted: a submission sees one state of it.
    uploads: Vec<u32>,
    /// Dropped when the encoder has been submitted, or never will be.
    held: Vec<Box<dyn Any + Send>>,
    /// Dispatches in the encoder.
    dispatches: usize,
    /// If it is kept for later.
    kept: Option<Kept>,
}

/// What goes with commands that are kept.
struct Kept {
    /// The buffer for uploads, as it was when recording began.
    upload_buffer: (u64, wgpu::Buffer),
    /// Which of the uploads are ids of `embed`.
    ids: Range<usize>,
    /// Rows of its table.
    id_bound: usize,
}

/// What [`Recorder::end_keeping`] made.
struct Commands {
    commands: wgpu::CommandBuffer,
    uploads: Vec<u32>,
    held: Vec<Box<dyn Any + Send>>,
    kept: Kept,
}

/// What is kept until the device is done with a submission.
struct Lent {
    submission: wgpu::SubmissionIndex,
    _held: Vec<Box<dyn Any + Send>>,
}

/// The open encoder and what goes with it.
pub(super) struct Recorder {
    /// Of the thread that called last: the one that keeps, or all others.
    open: Open,
    /// Of the others.
    parked: Open,
    /// The thread that keeps what it records.
    keeper: Option<ThreadId>,
    bind_groups: HashMap<BindKey, wgpu::BindGroup>,
    graveyard: Graveyard,
    upload_buffer: (u64, wgpu::Buffer),
    answers: Option<wgpu::Buffer>,
    /// How long the last of them took to come.
    last_wait: Duration,
    /// Whether a thread that waits may keep its processor.
    stays_awake: bool,
    /// Copies to the device that run before the open encoder.
    staging: Staging,
    /// The last submissions, of which the device may not have finished any.
    ahead: VecDeque<wgpu::SubmissionIndex>,
    /// The last of all.
    last: Option<wgpu::SubmissionIndex>,
    /// Whether what ops read is the host's memory, which is lent until they ran. Else it is the host's again with their
    /// submission: later writes go through the queue, after it.
    lends: bool,
    /// In the order of their submissions.
    lent: VecDeque<Lent>,
    /// Dispatches that are worth a submission.
    enough: usize,
    /// Times the dispatches, if somebody wants to know.
    pub(super) profile: Option<Profile>,
    /// What was done so far, for reports.
    pub(super) counts: DeviceCounts,
}

impl Recorder {
    pub(super) fn new(device: &Device, upload_id: u64, graveyard: &Graveyard) -> Self {
        Self {
            open: Open::default(),
            parked: Open::default(),
            keeper: None,
            bind_groups: HashMap::new(),
            graveyard: graveyard.clone(),
            upload_buffer: (upload_id, upload_buffer(device, UPLOAD_WORDS)),
            answers: None,
            last_wait: Duration::ZERO,
            // A processor that shares its power with the GPU has better things to do.
            last: None,
            lends: device.sharing.is_some(),
            lent: VecDeque::new(),
            stays_awake: device.summary.kind == AdapterKind::Discrete
                && std::thread::available_parallelism().is_ok_and(|n| n.get() >= AWAKE_THREADS_MIN),
            staging: Staging::default(),
            ahead: VecDeque::new(),
            enough: DISPATCHES_FIRST,
            profile: None,
            counts: DeviceCounts::default(),
        }
    }

    /// Keeps `held` until what is recorded has been submitted, or until the device is done with it.
    pub(super) fn hold(&mut self, held: Box<dyn Any + Send>) {
        if self.open.encoder.is_some() || self.lends {
            self.open.held.push(held);
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

    /// Makes room for `words` words of uploads in the open submission.
    pub(super) fn reserve(
        &mut self,
        device: &Device,
        words: usize,
        new_id: impl FnOnce() -> u64,
    ) -> Result<()> {
        let upload_words = |recorder: &Self| recorder.uploads_to().1.size() as usize / 4;
        if self.open.uploads.len() + words > upload_words(self) {
            self.submit(device)?;
        }
        if words > upload_words(self) {
            let words = words.next_power_of_two();
            if words * 4 > device.buffer_bytes_max {
                return Err(Error::invalid(format!("{words} words of ids and tables in one step")));
            }
            self.forget(self.upload_buffer.0);
            self.upload_buffer = (new_id(), upload_buffer(device, words));
        }
        Ok(())
    }

    /// Appends words that [`Recorder::reserve`] made room for; the index of the first.
    pub(super) fn upload(&mut self, words: impl IntoIterator<Item = u32>) -> u32 {
        let first = self.open.uploads.len() as u32;
        self.open.uploads.extend(words);
        first
    }

    /// The buffer that shaders see uploads in.
    pub(super) fn upload_binding(&self) -> (u64, wgpu::Buffer) {
        self.uploads_to().clone()
    }

    /// Records one dispatch. `immediates` are the fields of the shader's `Params`.
    pub(super) fn dispatch(
        &mut self,
        device: &Device,
        pipeline: &Pipeline,
        bindings: &[Binding<'_>],
        immediates: &[u32],
        groups: [u32; 3],
    ) {
        if groups.contains(&0) {
            return;
        }
        let mut key = BindKey { layout: pipeline.layout_id, ids: [u64::MAX; BINDINGS_MAX] };
        key.ids.iter_mut().zip(bindings).for_each(|(slot, (id, _))| *slot = *id);
        let group = self.bind_groups.entry(key).or_insert_with(|| bind_group(device, pipeline, bindings));
        let (encoder, pass) = self
            .open
            .encoder
            .get_or_insert_with(|| (device.device.create_command_encoder(&Default::default()), None));
        let pass =
            pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &*group, &[]);
        debug_assert!(size_of_val(immediates) <= IMMEDIATE_BYTES_MAX as usize);
        let mut all = [0u32; IMMEDIATE_BYTES_MAX as usize / 4];
        all[..immediates.len()].copy_from_slice(immediates);
        pass.set_immediates(0, bytemuck::cast_slice(&all));
        if let Some(profile) = &self.profile {
            profile.before(pass);
        }
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        if let Some(profile) = &mut self.profile {
            profile.after(pass, pipeline.name);
        }
        self.open.dispatches += 1;
    }

    /// The open encoder, between two passes.
    fn between(&mut self, device: &Device) -> &mut wgpu::CommandEncoder {
        let open = || (device.device.create_command_encoder(&Default::default()), None);
        let (encoder, pass) = self.open.encoder.get_or_insert_with(open);
        *pass = None;
        encoder
    }

    /// Records a copy of a whole buffer to another as large.
    pub(super) fn copy(&mut self, device: &Device, from: &GpuMemory, to: &GpuMemory) {
        let encoder = self.between(device);
        encoder.copy_buffer_to_buffer(&from.buffer, 0, &to.buffer, 0, from.buffer.size());
    }

    /// Records that a whole buffer becomes zero.
    pub(super) fn clear(&mut self, device: &Device, memory: &GpuMemory) {
        self.between(device).clear_buffer(&memory.buffer, 0, None);
    }

    /// Copies host bytes into a buffer: after all that was submitted, before what is recorded, copies in their own order.
    /// Offset and length are multiples of 4. The bytes are the caller's again at once.
    pub(super) fn copy_in(
        &mut self,
        device: &Device,
        buffer: &wgpu::Buffer,
        mut offset: usize,
        mut bytes: &[u8],
    ) -> Result<()> {
        self.counts.copies += 1;
        self.counts.copied_bytes += bytes.len() as u64;
        // The queue's own copies run before all of the next submission, so they must not overtake one of ours.
        if bytes.len() < SMALL_COPY_BYTES && !self.staging.waits() {
            device.queue.write_buffer(buffer, offset as u64, bytes);
            return device.check();
        }
        while !bytes.is_empty() {
            match self.staging.take(device, buffer, offset, bytes)? {
                Some(taken) => {
                    bytes = &bytes[taken..];
                    offset += taken;
                }
                None => drop(self.queue(device, None)),
            }
        }
        device.check()
    }

    /// Hands copies that wait to the device, and what was recorded after them.
    fn queue(&mut self, device: &Device, recorded: Option<wgpu::CommandBuffer>) -> wgpu::SubmissionIndex {
        let copies = self.staging.encode(device);
        let index = device.queue.submit(copies.into_iter().chain(recorded));
        self.staging.submitted(&index);
        self.last = Some(index.clone());
        self.counts.submissions += 1;
        index
    }

    /// What is open is the calling thread's from here on.
    pub(super) fn turn_to_caller(&mut self) {
        let Some(keeper) = self.keeper else { return };
        if self.open.kept.is_some() != (thread::current().id() == keeper) {
            std::mem::swap(&mut self.open, &mut self.parked);
        }
    }

    /// From now on keeps what this thread records, until [`Recorder::end_keeping`]; false if another thread does so.
    pub(super) fn begin_keeping(&mut self) -> bool {
        if self.keeper.is_some() {
            return false;
        }
        self.keeper = Some(thread::current().id());
        self.parked = std::mem::take(&mut self.open);
        self.open.kept = Some(Kept { upload_buffer: self.upload_buffer.clone(), ids: 0..0, id_bound: 0 });
        true
    }

    /// Says which uploads are ids, below `bound`, in case what is recorded is kept.
    pub(super) fn are_ids(&mut self, ids: Range<usize>, bound: usize) {
        if let Some(kept) = &mut self.open.kept {
            (kept.ids, kept.id_bound) = (ids, bound);
        }
    }

    /// What was recorded since [`Recorder::begin_keeping`].
    pub(super) fn end_keeping(&mut self, device: &Device) -> Result<Option<Recorded>> {
        self.keeper = None;
        let open = std::mem::replace(&mut self.open, std::mem::take(&mut self.parked));
        let (Some(kept), Some((encoder, pass))) = (open.kept, open.encoder) else { return Ok(None) };
        drop(pass);
        let (uploads, held) = (open.uploads, open.held);
        let commands = Commands { commands: encoder.finish(), uploads, held, kept };
        device.check()?;
        Ok(Some(Recorded::new(commands)))
    }

    /// Submits what was kept, with these ids.
    pub(super) fn run(&mut self, device: &Device, recorded: Recorded, ids: &[u32]) -> Result<()> {
        let foreign = || Error::invalid("this was recorded by another backend");
        let Commands { commands, mut uploads, held, kept } = recorded.into_commands().ok_or_else(foreign)?;
        if kept.ids.len() != ids.len() {
            return Err(Error::invalid(format!("{} ids for a step of {}", ids.len(), kept.ids.len())));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= kept.id_bound) {
            return Err(Error::invalid(format!("id {id} of a table of {} rows", kept.id_bound)));
        }
        self.submit(device)?;
        uploads[kept.ids].copy_from_slice(ids);
        self.hand_over(device, commands, &kept.upload_buffer.1, &uploads);
        self.let_go(held);
        device.check()
    }

    fn uploads_to(&self) -> &(u64, wgpu::Buffer) {
        self.open.kept.as_ref().map_or(&self.upload_buffer, |kept| &kept.upload_buffer)
    }

    fn may_submit(&self) -> Result<()> {
        match self.open.kept {
            None => Ok(()),
            Some(_) => Err(Error::unsupported("what is only recorded cannot be waited for")),
        }
    }

    /// Submits what is recorded if that is much, and waits while the device has too much before it.
    pub(super) fn submit_much(&mut self, device: &Device) -> Result<()> {
        if self.open.kept.is_some() || self.open.dispatches < self.enough {
            return Ok(());
        }
        self.enough = DISPATCHES_MAX;
        self.submit(device)?;
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
        if let Some((encoder, pass)) = self.open.encoder.take() {
            drop(pass);
            self.send(device, encoder)?;
        } else if self.staging.waits() {
            self.queue(device, None);
        }
        let held = std::mem::take(&mut self.open.held);
        self.let_go(held);
        self.take_back(device, false)?;
        device.check()
    }

    fn send(&mut self, device: &Device, mut encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        self.open.dispatches = 0;
        if let Some(profile) = &self.profile {
            profile.resolve(&mut encoder);
        }
        let mut uploads = std::mem::take(&mut self.open.uploads);
        let (_, upload_buffer) = self.upload_buffer.clone();
        let index = self.hand_over(device, encoder.finish(), &upload_buffer, &uploads);
        uploads.clear();
        self.open.uploads = uploads;
        if let Some(profile) = &mut self.profile {
            profile.collect(device, index.clone())?;
        }
        Ok(index)
    }

    /// Submits commands and, before them, what they find in the buffer for uploads.
    fn hand_over(
        &mut self,
        device: &Device,
        commands: wgpu::CommandBuffer,
        upload_buffer: &wgpu::Buffer,
        uploads: &[u32],
    ) -> wgpu::SubmissionIndex {
        if !uploads.is_empty() {
            device.queue.write_buffer(upload_buffer, 0, bytemuck::cast_slice(uploads));
            self.counts.copied_bytes += uploads.len() as u64 * 4;
        }
        let index = self.queue(device, Some(commands));
        self.ahead.push_back(index.clone());
        self.bury();
        index
    }

    /// Submits what is recorded and reads ranges of buffers after it, in one wait. A range is (buffer, first byte, where
    /// its bytes go), in multiples of 4.
    pub(super) fn read_back(
        &mut self,
        device: &Device,
        ranges: &mut [(&wgpu::Buffer, usize, &mut [u8])],
    ) -> Result<()> {
        self.may_submit()?;
        let total: usize = ranges.iter().map(|(_, _, out)| out.len()).sum();
        let staging = self.answers(device, total.max(4))?;
        let (mut encoder, pass) = match self.open.encoder.take() {
            Some(open) => open,
            None => (device.device.create_command_encoder(&Default::default()), None),
        };
        drop(pass);
        let mut at = 0;
        for (buffer, offset, out) in ranges.iter() {
            encoder.copy_buffer_to_buffer(buffer, *offset as u64, &staging, at, out.len() as u64);
            at += out.len() as u64;
        }
        let index = self.send(device, encoder)?;
        self.counts.readbacks += 1;
        self.ahead.clear();
        self.enough = DISPATCHES_FIRST;
        let slice = staging.slice(..total as u64);
        slice.map_async(wgpu::MapMode::Read, |_| ());
        self.wait_for_answer(device, index)?;
        device.check()?;
        // All that was submitted before has run too.
        self.open.held.clear();
        self.lent.clear();
        let mapped = slice
            .get_mapped_range()
            .map_err(|e| device_error("cannot read the device's answer").with_source(e))?;
        let mut rest: &[u8] = &mapped;
        for (_, _, out) in ranges {
            let (head, tail) = rest.split_at(out.len());
            out.copy_from_slice(head);
            rest = tail;
        }
        drop(mapped);
        staging.unmap();
        Ok(())
    }

    /// Waits for an answer. Waking up takes the host longer than a card takes for a layer, so it stays awake where the
    /// last answer took no longer than a token of a model in the card's memory.
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
            size: (bytes as u64).next_power_of_two().max(4096),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        device.check()?;
        self.answers = Some(staging.clone());
        Ok(staging)
    }

    /// Drops the bind groups of buffers that are gone: they would keep the memory alive.
    fn bury(&mut self) {
        // A poisoned list of ids is still a list of ids.
        let mut dead = self.graveyard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !dead.is_empty() {
            let ids: HashSet<u64> = dead.drain(..).collect();
            self.bind_groups.retain(|key, _| !key.ids.iter().any(|id| ids.contains(id)));
        }
    }

    fn forget(&mut self, id: u64) {
        self.bind_groups.retain(|key, _| !key.ids.contains(&id));
    }
}

impl GpuMemory {
    /// This buffer in a dispatch.
    pub(super) fn binding(&self) -> Binding<'_> {
        (self.id, &self.buffer)
    }
}

fn upload_buffer(device: &Device, words: usize) -> wgpu::Buffer {
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("ids and tables"),
        size: words as u64 * 4,
        usage: super::shared::USAGE,
        mapped_at_creation: false,
    })
}

fn bind_group(device: &Device, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
    let entries: Vec<_> = bindings
        .iter()
        .enumerate()
        .map(|(i, (_, buffer))| wgpu::BindGroupEntry {
            binding: i as u32,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    device.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries,
    })
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
