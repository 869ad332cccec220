//! Hands the kernels' memory to the store as slabs, and the store's bytes to the kernels as weights.
//! The only unsafe file of this crate.
//!
//! The promises made here rest on two facts. A buffer given to the store is never touched by an op except through
//! views made in this file. Views of an expert are reachable only through the [`LeasedExpert`] that holds its
//! lease, and views of resident weights only through a model, which exists only after loading has ended.

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, Format, Result, Span};
use kernels::ops::{ExpertTable, MlpWeights};
use kernels::{Backend, Buffer, View, Weight};
use store::disk::Disk;
use store::resident::{self, Placement};
use store::{ExpertId, GiveBack, Lease, PAGE_BYTES, SlabMemory};

/// Buffers of resident weights are this large unless one tensor needs more, in bytes. Untouched pages cost nothing.
const ARENA_BUFFER_BYTES: usize = 256 << 20;

/// The largest pages that anonymous memory comes in, in bytes.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Every part of a resident weight starts at a multiple of this, in bytes: a cache line, and what GPUs bind at.
const PART_ALIGN_BYTES: usize = 256;

/// Bytes of each part that go into the sample which tells one training from another.
const SAMPLE_BYTES: usize = 64;

/// Parts from this size on are placed so that the drive can write them in place where their file allows.
const IN_PLACE_BYTES: usize = 256 << 10;

fn slab_memory(buffer: &Buffer) -> Result<SlabMemory> {
    let pointer = buffer
        .host()
        .ok_or_else(|| Error::new(files::ErrorKind::Device, "the store cannot reach this device's memory"))?;
    // SAFETY: the allocation is zeroed, lives as long as the handle kept here, and by the module's rule nobody
    // but the store writes it, and readers come through leases or after loading.
    unsafe { SlabMemory::from_raw(pointer, buffer.bytes(), Arc::new(buffer.clone())) }
}

/// The memory of the expert slots, as the kernels see it.
pub(crate) struct Slabs {
    buffers: Vec<Buffer>,
    slot_bytes: usize,
    /// For each slot of each buffer: which of its fillings the device has seen, 0 for none.
    published: Mutex<Vec<Vec<u64>>>,
}

impl Slabs {
    /// Allocates `slots` slots of `slot_bytes` in as few buffers as the device allows, and the same memory for the
    /// store to fill. A buffer holds a multiple of `layer` slots if it holds as many, so that the experts of a layer
    /// that has its own slots are in one.
    pub(crate) fn allocate(
        backend: &dyn Backend,
        slots: usize,
        slot_bytes: usize,
        layer: usize,
    ) -> Result<(Self, Vec<SlabMemory>)> {
        let most = backend.info().buffer_bytes_max / slot_bytes;
        if most == 0 {
            let limit = backend.info().buffer_bytes_max;
            return Err(Error::memory(format!(
                "an expert slot of {slot_bytes} bytes exceeds the device's buffer limit of {limit}"
            )));
        }
        let most = if (1..=most).contains(&layer) { most / layer * layer } else { most };
        let mut buffers = Vec::new();
        let mut left = slots;
        while left > 0 {
            let here = left.min(most);
            buffers.push(backend.alloc_shared(here * slot_bytes)?);
            left -= here;
        }
        let memory = buffers.iter().map(slab_memory).collect::<Result<_>>()?;
        let published = buffers.iter().map(|b| vec![0; b.bytes() / slot_bytes]).collect();
        Ok((Self { buffers, slot_bytes, published: Mutex::new(published) }, memory))
    }

    /// Publishes a leased slot, unless the device has seen these bytes already. In one piece: what lies between two
    /// parts is less than another copy costs.
    fn publish(&self, backend: &dyn Backend, lease: &Lease) -> Result<()> {
        let start = lease.parts.iter().map(|part| part.offset).min();
        let end = lease.parts.iter().map(|part| part.offset + part.bytes).max();
        let (Some(start), Some(end)) = (start, end) else { return Ok(()) };
        // What a panic leaves is at worst a slot that counts as unseen.
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut published[lease.slab][start / self.slot_bytes];
        if *seen != lease.fill {
            backend.publish(&self.buffers[lease.slab], start..end)?;
            *seen = lease.fill;
        }
        Ok(())
    }

    /// What gives the memory of unused slots back to the system.
    pub(crate) fn give_back(&self) -> GiveBack {
        let buffers = self.buffers.clone();
        Box::new(move |slab, range| {
            let Some((buffer, host)) = buffers.get(slab).and_then(|b| Some((b, b.host()?))) else { return };
            if range.end <= buffer.bytes() {
                give_back_pages(host, range);
            }
        })
    }
}

/// Gives whole pages of a buffer back; they read as zero from then on. Elsewhere than on Linux they stay, and the
/// system compresses or swaps what nobody touches.
#[cfg(target_os = "linux")]
fn give_back_pages(host: std::ptr::NonNull<u8>, range: Range<usize>) {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the caller has checked that the range lies in the buffer, which it keeps alive. The store calls for slots
    // that nobody else reads or writes, of whole pages. What this advice leaves is initialised: zero in anonymous
    // memory, what the file or device has in any other. A refusal costs memory only.
    let _ = unsafe { madvise(host.as_ptr().add(range.start).cast(), range.len(), Advice::LinuxDontNeed) };
}

#[cfg(not(target_os = "linux"))]
fn give_back_pages(_host: std::ptr::NonNull<u8>, _range: Range<usize>) {}

/// Format and shape of one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MatrixShape {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

/// Formats and shapes of a layer's experts; a lease's parts are those of gate, up, down, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpertShape {
    pub(crate) gate: MatrixShape,
    pub(crate) up: MatrixShape,
    pub(crate) down: MatrixShape,
}

/// An expert in memory, for as long as this value lives.
pub(crate) struct LeasedExpert {
    weights: MlpWeights,
    lease: Lease,
}

impl LeasedExpert {
    /// The weights of a lease, published to the device.
    pub(crate) fn new(
        backend: &dyn Backend,
        slabs: &Slabs,
        shape: &ExpertShape,
        lease: Lease,
    ) -> Result<Self> {
        slabs.publish(backend, &lease)?;
        let buffer = &slabs.buffers[lease.slab];
        let mut views = Vec::with_capacity(lease.parts.len());
        for part in &lease.parts {
            let range = part.offset..part.offset + part.bytes;
            // SAFETY: the lease pins the slot, so the store writes nothing there until it is dropped; the views
            // are private to this value, which drops them first.
            views.push(unsafe { View::new(buffer, range)? });
        }
        let mut views = views.into_iter();
        let mut matrix = |m: &MatrixShape| {
            let parts = views.by_ref().take(m.format.parts()).collect();
            Weight::new(m.format, m.rows, m.cols, parts)
        };
        let weights = MlpWeights::new(matrix(&shape.gate)?, matrix(&shape.up)?, matrix(&shape.down)?);
        let weights = weights.map_err(|e| e.context(lease.key))?;
        Ok(Self { weights, lease })
    }

    /// The matrices. Do not keep clones: their bytes are this expert's only while `self` lives.
    pub(crate) fn weights(&self) -> &MlpWeights {
        &self.weights
    }

    /// Which expert of its layer.
    pub(crate) fn expert(&self) -> ExpertId {
        self.lease.expert
    }
}

/// All experts of a layer in memory, for as long as this value lives.
pub(crate) struct ResidentLayer {
    // Dropped before the leases: it holds views of them.
    table: ExpertTable,
    _leased: Vec<LeasedExpert>,
}

impl ResidentLayer {
    /// Publishes what the device has not seen of a layer, of which `leases` are all experts in the order of their
    /// ids. `None` where the host looks experts up.
    pub(crate) fn new(
        backend: &dyn Backend,
        slabs: &Slabs,
        shape: &ExpertShape,
        leases: Vec<Lease>,
    ) -> Result<Option<Self>> {
        let bind = |lease| LeasedExpert::new(backend, slabs, shape, lease);
        let leased = leases.into_iter().map(bind).collect::<Result<Vec<_>>>()?;
        let weights: Vec<_> = leased.iter().map(LeasedExpert::weights).collect();
        Ok(backend.expert_table(&weights)?.map(|table| Self { table, _leased: leased }))
    }

    /// For [`Backend::routed_mlp`].
    pub(crate) fn table(&self) -> &ExpertTable {
        &self.table
    }
}

/// The resident weights: anonymous memory that is handed out first and filled in one go.
pub(crate) struct Arena {
    backend: Arc<dyn Backend>,
    buffers: Vec<(Buffer, usize)>,
    placements: Vec<Placement>,
}

impl Arena {
    /// An empty arena.
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, buffers: Vec::new(), placements: Vec::new() }
    }

    /// A weight over `spans`. Its bytes are there after [`Self::load`].
    pub(crate) fn weight(&mut self, shape: MatrixShape, spans: &[Span]) -> Result<Weight> {
        let mut views = Vec::with_capacity(spans.len());
        for span in spans {
            let bytes = usize::try_from(span.bytes).map_err(|_| Error::memory("a tensor exceeds memory"))?;
            let (slab, range) = self.reserve(bytes, span.offset)?;
            let range_in_file = store::Range { file: span.file.0, offset: span.offset, bytes: span.bytes };
            self.placements.push(Placement { range: range_in_file, slab, offset: range.start });
            // SAFETY: the range is this weight's alone; `load` fills it before the model exists, and nothing
            // writes it after.
            views.push(unsafe { View::new(&self.buffers[slab].0, range)? });
        }
        Weight::new(shape.format, shape.rows, shape.cols, views)
    }

    /// Memory for `bytes` bytes of a file from `file_offset` on: where the drive can write large parts in place,
    /// at the same place in the page.
    fn reserve(&mut self, bytes: usize, file_offset: u64) -> Result<(usize, Range<usize>)> {
        let limit = self.backend.info().buffer_bytes_max;
        if bytes > limit {
            return Err(Error::memory(format!(
                "a tensor of {bytes} bytes exceeds the device's limit of {limit}"
            )));
        }
        let in_page = (file_offset % PAGE_BYTES as u64) as usize;
        let fits = bytes.saturating_add(PAGE_BYTES) <= limit;
        let in_place = fits && bytes >= IN_PLACE_BYTES && in_page.is_multiple_of(PART_ALIGN_BYTES);
        let start = |used: usize| match in_place {
            true => used + (in_page + PAGE_BYTES - used % PAGE_BYTES) % PAGE_BYTES,
            false => used.next_multiple_of(PART_ALIGN_BYTES),
        };
        let last = self.buffers.last().map(|(buffer, used)| start(*used) + bytes <= buffer.bytes());
        if last != Some(true) {
            let size = (start(0) + bytes)
                .max(ARENA_BUFFER_BYTES.min(limit))
                .next_multiple_of(4096)
                .min(limit.max(bytes));
            self.buffers.push((self.backend.alloc_shared(size)?, 0));
        }
        let slab = self.buffers.len() - 1;
        let used = &mut self.buffers[slab].1;
        let start = start(*used);
        *used = start + bytes;
        Ok((slab, start..start + bytes))
    }

    /// Bytes that are in use once loaded; the system hands them out in huge pages.
    pub(crate) fn bytes(&self) -> u64 {
        let touched = |used: usize, all: usize| used.next_multiple_of(HUGE_PAGE_BYTES).min(all) as u64;
        self.buffers.iter().map(|(buffer, used)| touched(*used, buffer.bytes())).sum()
    }

    /// Reads everything from `disk`; `progress(bytes_done, bytes_total)` may break off. Returns a sample of what was
    /// read: a few bytes out of the middle of every part.
    pub(crate) fn load(
        self,
        disk: &Arc<dyn Disk>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Vec<u8>> {
        let mut slabs = self.buffers.iter().map(|(b, _)| slab_memory(b)).collect::<Result<Vec<_>>>()?;
        resident::load(disk, &mut slabs, &self.placements, progress)?;
        for (buffer, used) in &self.buffers {
            self.backend.publish(buffer, 0..*used)?;
        }
        let mut sample = Vec::new();
        for Placement { range, slab, offset } in &self.placements {
            let bytes = range.bytes as usize;
            let middle = offset + bytes / 2;
            let end = (offset + bytes).min(middle + SAMPLE_BYTES);
            sample.extend_from_slice(&slabs[*slab].as_mut_slice()[middle..end]);
        }
        Ok(sample)
    }
}
