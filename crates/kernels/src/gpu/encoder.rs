//! Recording: one encoder with one compute pass is open at a time; it is submitted ([`super::submit`]) when somebody must
//! wait, when the host writes what it may read, when the engine says so, when much is recorded that nobody needs to see,
//! or when it would keep the device for longer than a system allows ([`super::work`]).

use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use files::{Error, Result};

use super::device::{AdapterKind, Device};
use super::memory::{GpuMemory, Graveyard};
use super::pipelines::{IMMEDIATE_BYTES_MAX, Pipeline};
use super::profile::Profile;
use super::staging::Staging;
use super::submit::{DISPATCHES_FIRST, Lent, Lost};
use super::tally::{Event, Tally};
use super::uploads::Uploads;
use crate::ops::{DeviceCounts, Recorded};

/// Most buffers of a dispatch.
pub(super) const BINDINGS_MAX: usize = 20;
/// First size of the buffer for ids and tables.
const UPLOAD_WORDS: usize = 1 << 18;
/// Smaller copies go through the queue's own staging memory, if nothing waits in ours, whose buffers come back one by
/// one.
const SMALL_COPY_BYTES: usize = 64 << 10;
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
pub(super) struct Open {
    pub(super) encoder: Option<(wgpu::CommandEncoder, Option<wgpu::ComputePass<'static>>)>,
    /// What the encoder does to the words of the tally.
    pub(super) events: Vec<Event>,
    /// Whether the encoder copies something that it has no mark for.
    unmarked: bool,
    /// Words for the upload buffer, copied there when the encoder is submitted.
    pub(super) uploads: Uploads,
    /// Dropped when the encoder has been submitted, or never will be.
    pub(super) held: Vec<Box<dyn Any + Send>>,
    /// Dispatches in the encoder.
    pub(super) dispatches: usize,
    /// Seconds that they take a slow device of this kind.
    pub(super) seconds: f64,
    /// If it is kept for later.
    pub(super) kept: Option<Kept>,
}

/// What one submission runs.
pub(super) struct Commands {
    pub(super) buffer: wgpu::CommandBuffer,
    pub(super) events: Vec<Event>,
}

/// What goes with commands that are kept.
pub(super) struct Kept {
    /// The buffer for uploads, as it was when recording began.
    pub(super) upload_buffer: (u64, wgpu::Buffer),
    /// Which of the uploads are ids of `embed`.
    pub(super) ids: Range<usize>,
    /// Rows of its table.
    pub(super) id_bound: usize,
    /// What is recorded, a submission each.
    pub(super) parts: Vec<Commands>,
}

/// What [`Recorder::end_keeping`] made.
pub(super) struct KeptCommands {
    pub(super) uploads: Vec<u32>,
    pub(super) held: Vec<Box<dyn Any + Send>>,
    pub(super) kept: Kept,
}

/// The open encoder and what goes with it.
pub(super) struct Recorder {
    /// Of the thread that called last: the one that keeps, or all others.
    pub(super) open: Open,
    /// Of the others.
    parked: Open,
    /// The thread that keeps what it records.
    keeper: Option<ThreadId>,
    bind_groups: HashMap<BindKey, wgpu::BindGroup>,
    pub(super) graveyard: Graveyard,
    pub(super) upload_buffer: (u64, wgpu::Buffer),
    pub(super) answers: Option<wgpu::Buffer>,
    /// How long the last of them took to come.
    pub(super) last_wait: Duration,
    /// Whether a thread that waits may keep its processor.
    pub(super) stays_awake: bool,
    /// Copies to the device that run before the open encoder.
    pub(super) staging: Staging,
    /// The last submissions, of which the device may not have finished any.
    pub(super) ahead: VecDeque<wgpu::SubmissionIndex>,
    /// The last of all.
    pub(super) last: Option<wgpu::SubmissionIndex>,
    /// Whether what ops read is the host's memory, which is lent until they ran. Else it is the host's again with their
    /// submission: later writes go through the queue, after it.
    pub(super) lends: bool,
    /// In the order of their submissions.
    pub(super) lent: VecDeque<Lent>,
    /// Dispatches that are worth a submission.
    pub(super) enough: usize,
    /// What the device must have run.
    pub(super) tally: Tally,
    counts_passes: Arc<Pipeline>,
    /// Whether the queue has copies that go before its next submission.
    pub(super) wrote: bool,
    /// What is to be lost, for tests.
    pub(super) lost: Option<Lost>,
    /// Times the dispatches, if somebody wants to know.
    pub(super) profile: Option<Profile>,
    /// What was done so far, for reports.
    pub(super) counts: DeviceCounts,
}

impl Recorder {
    /// `counts_passes` is the pipeline of `tally.wgsl`; the ids are of buffers.
    pub(super) fn new(
        device: &Device,
        [upload_id, tally_id]: [u64; 2],
        graveyard: &Graveyard,
        counts_passes: Arc<Pipeline>,
    ) -> Self {
        Self {
            open: Open::default(),
            parked: Open::default(),
            keeper: None,
            bind_groups: HashMap::new(),
            graveyard: graveyard.clone(),
            upload_buffer: (upload_id, upload_buffer(device, UPLOAD_WORDS.min(device.buffer_bytes_max / 4))),
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
            tally: Tally::new(device, tally_id),
            counts_passes,
            wrote: false,
            lost: None,
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
            self.open.uploads.clear();
        }
        if words > upload_words(self) {
            if words > device.buffer_bytes_max / 4 {
                return Err(Error::invalid(format!("{words} words of ids and tables in one step")));
            }
            let words = words.next_power_of_two().min(device.buffer_bytes_max / 4);
            self.forget(self.upload_buffer.0);
            self.upload_buffer = (new_id(), upload_buffer(device, words));
        }
        Ok(())
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
        (groups, seconds): ([u32; 3], f64),
    ) {
        if groups.contains(&0) {
            return;
        }
        self.mark();
        let mut key = BindKey { layout: pipeline.layout_id, ids: [u64::MAX; BINDINGS_MAX] };
        key.ids.iter_mut().zip(bindings).for_each(|(slot, (id, _))| *slot = *id);
        let group = self.bind_groups.entry(key).or_insert_with(|| bind_group(device, pipeline, bindings));
        let (encoder, pass) = self.open.encoder.get_or_insert_with(|| open_encoder(device));
        let pass = pass.get_or_insert_with(|| open_pass(encoder));
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
        self.open.seconds += seconds;
    }

    /// Makes room for a dispatch that takes a slow device so many seconds: what is recorded goes first if both together
    /// would keep it too long. Uploads stay where they are.
    pub(super) fn make_room(&mut self, device: &Device, seconds: f64) -> Result<()> {
        if self.open.dispatches == 0 || self.open.seconds + seconds <= device.slow.submission_s {
            return Ok(());
        }
        let Some(commands) = self.finish(device) else { return Ok(()) };
        if let Some(kept) = &mut self.open.kept {
            kept.parts.push(commands);
            return Ok(());
        }
        self.send(device, commands)?;
        self.fall_back(device)
    }

    /// Ends the open encoder with a pass that counts.
    pub(super) fn finish(&mut self, device: &Device) -> Option<Commands> {
        self.open.encoder.as_ref()?;
        self.end_pass(device);
        self.seal()
    }

    /// Ends the open encoder as it is.
    pub(super) fn seal(&mut self) -> Option<Commands> {
        let (mut encoder, pass) = self.open.encoder.take()?;
        drop(pass);
        if let Some(profile) = self.profile.as_ref().filter(|_| self.open.kept.is_none()) {
            profile.resolve(&mut encoder);
        }
        self.open.dispatches = 0;
        self.open.seconds = 0.0;
        Some(Commands { buffer: encoder.finish(), events: std::mem::take(&mut self.open.events) })
    }

    /// Ends the pass of the encoder, which counts itself; without one, a pass that counts what was copied.
    pub(super) fn end_pass(&mut self, device: &Device) {
        self.mark();
        let (mut encoder, pass) = self.open.encoder.take().unwrap_or_else(|| open_encoder(device));
        let mut pass = pass.unwrap_or_else(|| open_pass(&mut encoder));
        self.count(device, &mut pass);
        drop(pass);
        self.open.encoder = Some((encoder, None));
        self.open.events.push(Event::Counted);
    }

    /// Commands that do nothing but count.
    pub(super) fn counting(&mut self, device: &Device) -> Commands {
        let (mut encoder, _) = open_encoder(device);
        self.count(device, &mut open_pass(&mut encoder));
        Commands { buffer: encoder.finish(), events: vec![Event::Counted] }
    }

    /// The dispatch that counts a pass.
    fn count(&mut self, device: &Device, pass: &mut wgpu::ComputePass<'static>) {
        let (pipeline, words) = (&self.counts_passes, (self.tally.id, &self.tally.words));
        let mut key = BindKey { layout: pipeline.layout_id, ids: [u64::MAX; BINDINGS_MAX] };
        key.ids[0] = words.0;
        let group = self.bind_groups.entry(key).or_insert_with(|| bind_group(device, pipeline, &[words]));
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &*group, &[]);
        pass.set_immediates(0, &[0; IMMEDIATE_BYTES_MAX as usize]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Marks copies that have no mark.
    fn mark(&mut self) {
        if let Some((encoder, _)) = self.open.encoder.as_mut().filter(|_| self.open.unmarked) {
            self.open.events.push(self.tally.mark(encoder));
            self.open.unmarked = false;
        }
    }

    /// The open encoder, between two passes, for copies.
    fn between(&mut self, device: &Device) -> &mut wgpu::CommandEncoder {
        if matches!(self.open.encoder, Some((_, Some(_)))) {
            self.end_pass(device);
        }
        self.open.unmarked = true;
        &mut self.open.encoder.get_or_insert_with(|| open_encoder(device)).0
    }

    /// Records a copy of a range of a buffer to another buffer, in whole words.
    pub(super) fn copy(
        &mut self,
        device: &Device,
        from: &GpuMemory,
        range: Range<usize>,
        to: &GpuMemory,
        to_at: usize,
    ) {
        if !range.is_empty() {
            let [at, to_at, bytes] = [range.start, to_at, range.len()].map(|n| n as u64);
            self.between(device).copy_buffer_to_buffer(&from.buffer, at, &to.buffer, to_at, bytes);
        }
    }

    /// Records that a range of a buffer becomes zero, in whole words.
    pub(super) fn clear(&mut self, device: &Device, memory: &GpuMemory, range: Range<usize>) {
        if !range.is_empty() {
            let [at, bytes] = [range.start, range.len()].map(|n| n as u64);
            self.between(device).clear_buffer(&memory.buffer, at, Some(bytes));
        }
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
            self.wrote = true;
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
        let upload_buffer = self.upload_buffer.clone();
        self.open.kept = Some(Kept { upload_buffer, ids: 0..0, id_bound: 0, parts: Vec::new() });
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
        let last = self.finish(device);
        let open = std::mem::replace(&mut self.open, std::mem::take(&mut self.parked));
        let Some(mut kept) = open.kept else { return Ok(None) };
        kept.parts.extend(last);
        device.check()?;
        let (uploads, held) = (open.uploads.into_words(), open.held);
        Ok((!kept.parts.is_empty()).then(|| Recorded::new(KeptCommands { uploads, held, kept })))
    }

    fn uploads_to(&self) -> &(u64, wgpu::Buffer) {
        self.open.kept.as_ref().map_or(&self.upload_buffer, |kept| &kept.upload_buffer)
    }

    /// Drops the bind groups of buffers that are gone: they would keep the memory alive.
    pub(super) fn bury(&mut self) {
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

fn open_encoder(device: &Device) -> (wgpu::CommandEncoder, Option<wgpu::ComputePass<'static>>) {
    (device.device.create_command_encoder(&Default::default()), None)
}

fn open_pass(encoder: &mut wgpu::CommandEncoder) -> wgpu::ComputePass<'static> {
    encoder.begin_compute_pass(&Default::default()).forget_lifetime()
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
