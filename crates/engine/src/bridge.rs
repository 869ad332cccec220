//! Hands the kernels' memory to the store as slabs, and the store's bytes to the kernels as weights.
//! The only unsafe file of this crate.
//!
//! The promises made here rest on two facts. A buffer given to the store, or a device's slot, is never touched by an op
//! except through views made in this file. Views of an expert are reachable only through the [`LeasedExpert`] that holds
//! its lease or its slot, and views of resident weights only through a model, which exists only after loading has ended.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use files::{Error, Format, Result, Span};
use kernels::ops::{ExpertTable, MlpWeights};
use kernels::{Backend, Buffer, View, Weight};
use store::disk::Disk;
use store::resident::{self, Placement};
use store::{ExpertId, ExpertLayout, ExpertStore, GiveBack, LayerId, Lease, PAGE_BYTES, SlabMemory};

use crate::vram::{Cut, DeviceSlots, Placed};

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

/// The memory of the expert slots: what the store fills, and what the kernels read.
pub(crate) struct Slabs {
    /// The store's.
    buffers: Vec<Buffer>,
    /// Where the kernels find experts if not there.
    pub(crate) device: Option<DeviceSlots>,
}

impl Slabs {
    /// Allocates `slots` slots of `slot_bytes` in as few buffers as the device allows, and the same memory for the
    /// store to fill. `layer` as for [`Cut::new`]. `device` are the slots of a device that has memory of its own.
    pub(crate) fn allocate(
        backend: &dyn Backend,
        slots: usize,
        slot_bytes: usize,
        layer: usize,
        device: Option<DeviceSlots>,
    ) -> Result<(Self, Vec<SlabMemory>)> {
        let alloc = |bytes| match device {
            Some(_) => kernels::host::alloc_shared(bytes),
            None => backend.alloc_shared(bytes),
        };
        let cut = Cut::new(backend, slots, slot_bytes, layer)?;
        let buffers = cut.bytes().map(alloc).collect::<Result<Vec<_>>>()?;
        let memory = buffers.iter().map(slab_memory).collect::<Result<_>>()?;
        Ok((Self { buffers, device }, memory))
    }

    /// All of a layer's `experts`, if all are in memory that the kernels read or in the store's.
    pub(crate) fn layer(
        &self,
        backend: &dyn Backend,
        shape: &ExpertShape,
        store: &mut ExpertStore,
        layer: LayerId,
        experts: usize,
    ) -> Result<Option<Vec<LeasedExpert>>> {
        if let Some(all) = self.device.as_ref().and_then(|device| device.layer(layer, experts)) {
            return all
                .into_iter()
                .map(|placed| LeasedExpert::placed(shape, placed))
                .collect::<Result<_>>()
                .map(Some);
        }
        let Some(leases) = store.lease_layer(layer) else { return Ok(None) };
        let bind = |lease| LeasedExpert::new(backend, self, shape, lease);
        leases.into_iter().map(bind).collect::<Result<_>>().map(Some)
    }

    /// Most experts that can be bound at the same time.
    pub(crate) fn bound_max(&self) -> usize {
        self.device.as_ref().map_or(usize::MAX, DeviceSlots::slots)
    }

    /// Those of `experts` that reading would help.
    pub(crate) fn missing(&self, layer: LayerId, experts: impl Iterator<Item = ExpertId>) -> Vec<ExpertId> {
        match &self.device {
            Some(device) => device.missing(layer, experts),
            None => experts.collect(),
        }
    }

    /// What gives the memory of unused slots back to the system.
    pub(crate) fn give_back(&self) -> GiveBack {
        let buffers = self.buffers.clone();
        Box::new(move |slab, range| {
            let Some((buffer, host)) = buffers.get(slab).and_then(|b| Some((b, b.host()?))) else { return };
            if range.end <= buffer.bytes() {
                // SAFETY: the range lies in the buffer, which this hook keeps alive. The store calls for slots that nobody
                // else reads or writes.
                unsafe { kernels::host::give_back_pages(host.add(range.start), range.len()) };
            }
        })
    }
}

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

/// An expert in memory that the kernels read, for as long as this value lives.
pub(crate) struct LeasedExpert {
    weights: MlpWeights,
    expert: ExpertId,
    _held: Held,
}

/// What keeps an expert's bytes.
enum Held {
    Host { _lease: Lease },
    Device { _placed: Arc<Placed> },
}

impl LeasedExpert {
    /// The weights of a lease, copied to the device if it has memory of its own; the store's slot is then free again.
    pub(crate) fn new(
        backend: &dyn Backend,
        slabs: &Slabs,
        shape: &ExpertShape,
        lease: Lease,
    ) -> Result<Self> {
        if let Some(device) = &slabs.device {
            return Self::placed(shape, device.put(backend, &lease)?).map_err(|e| e.context(lease.key));
        }
        let buffer = &slabs.buffers[lease.slab];
        let parts: Vec<_> = lease.parts.iter().map(|part| part.offset..part.offset + part.bytes).collect();
        for part in &parts {
            backend.publish(buffer, part.clone())?;
        }
        // SAFETY: the lease pins the slot, so the store writes nothing there until it is dropped; the views are
        // private to this value, which drops them first.
        let weights = unsafe { shape.weights(buffer, &parts) }.map_err(|e| e.context(lease.key))?;
        Ok(Self { weights, expert: lease.expert, _held: Held::Host { _lease: lease } })
    }

    /// The weights of an expert in a device's slot.
    pub(crate) fn placed(shape: &ExpertShape, placed: Arc<Placed>) -> Result<Self> {
        // SAFETY: `placed` keeps its slot, so nothing is copied there until it is dropped; the views are private to
        // this value, which drops them first.
        let weights = unsafe { shape.weights(&placed.buffer, &placed.parts) }?;
        Ok(Self { weights, expert: placed.expert, _held: Held::Device { _placed: placed } })
    }

    /// The matrices. Do not keep clones: their bytes are this expert's only while `self` lives.
    pub(crate) fn weights(&self) -> &MlpWeights {
        &self.weights
    }

    /// Which expert of its layer.
    pub(crate) fn expert(&self) -> ExpertId {
        self.expert
    }
}

/// Memory that stands in for slots while steps are rehearsed: nobody ever writes it, and nothing runs on it.
pub(crate) struct Placeholder(Buffer);

impl Placeholder {
    /// Memory for experts of at most `slot_bytes`, of the kind in which ops will find them.
    pub(crate) fn new(backend: &dyn Backend, slot_bytes: usize) -> Result<Self> {
        Ok(Self(backend.alloc(slot_bytes)?.freeze().buffer().clone()))
    }

    /// An expert's matrices as they will lie in a slot.
    pub(crate) fn weights(&self, shape: &ExpertShape, layout: &ExpertLayout) -> Result<MlpWeights> {
        let (offsets, _) = layout.place()?;
        let range = |(at, part): (usize, &store::Range)| at..at + part.bytes as usize;
        let parts: Vec<_> = offsets.into_iter().zip(&layout.parts).map(range).collect();
        // SAFETY: the memory is zero and nobody writes it.
        unsafe { shape.weights(&self.0, &parts) }
    }
}

impl ExpertShape {
    /// Weights in the parts of an expert.
    ///
    /// # Safety
    /// As for [`View::new`], for each part.
    unsafe fn weights(&self, buffer: &Buffer, parts: &[Range<usize>]) -> Result<MlpWeights> {
        // SAFETY: the caller's promise.
        let views = parts.iter().map(|part| unsafe { View::new(buffer, part.clone()) });
        let mut views = views.collect::<Result<Vec<_>>>()?.into_iter();
        let mut matrix = |m: &MatrixShape| {
            let parts = views.by_ref().take(m.format.parts()).collect();
            Weight::new(m.format, m.rows, m.cols, parts)
        };
        MlpWeights::new(matrix(&self.gate)?, matrix(&self.up)?, matrix(&self.down)?)
    }
}

/// All experts of a layer in memory, for as long as this value lives.
pub(crate) struct ResidentLayer {
    // Dropped before what it holds views of.
    table: ExpertTable,
    _leased: Vec<LeasedExpert>,
}

impl ResidentLayer {
    /// A table of `leased`, all experts of a layer in the order of their ids. `None` where the host looks experts up.
    pub(crate) fn new(backend: &dyn Backend, leased: Vec<LeasedExpert>) -> Result<Option<Self>> {
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
