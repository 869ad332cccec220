//! From an op to a dispatch: its kernel, what specialises it, and its arguments.

use std::collections::HashMap;
use std::sync::Arc;

use files::{Format, Result};

use super::Gpu;
use super::device::device_error;
use super::encoder::{Binding, Recorder};
use super::memory::GpuMemory;
use super::pipelines::{Pipelines, variant};
use super::prepare::Noted;
use super::product::INTEGERS_ROWS_MAX;
use super::source::Kernel;
use super::work::Work;
use crate::buffer::{Buffer, DeviceMemory as _, Tensor, Weight};

/// Most workgroups in one dimension of a dispatch; `folded` in the prelude knows it too.
pub(super) const GROUPS_MAX: u32 = 65535;

/// What recording changes.
pub(super) struct State {
    pub(super) recorder: Recorder,
    pub(super) pipelines: Pipelines,
    /// Intermediate results of an op, by use.
    pub(super) scratch: HashMap<&'static str, Arc<GpuMemory>>,
    /// Of the next dispatch.
    pub(super) work: Work,
    /// Of a rehearsal.
    pub(super) noted: Noted,
}

/// One dispatch: a kernel, what specialises it, and its arguments.
pub(super) struct Call<'a> {
    pub(super) kernel: &'static Kernel,
    /// A format for each weight of the kernel that it does not go without.
    pub(super) formats: &'a [Format],
    pub(super) constants: &'a [u32],
    pub(super) bindings: &'a [Binding<'a>],
    pub(super) params: &'a [u32],
    pub(super) groups: [u32; 3],
}

impl Gpu {
    /// At least `bytes` of memory for an intermediate result.
    pub(super) fn scratch(
        &self,
        state: &mut State,
        usage: &'static str,
        bytes: usize,
    ) -> Result<Arc<GpuMemory>> {
        // Nothing is written there in a rehearsal.
        let (usage, bytes) = if state.rehearses() { ("unused 0", 16) } else { (usage, bytes) };
        if let Some(memory) = state.scratch.get(usage).filter(|m| m.bytes() >= bytes) {
            return Ok(memory.clone());
        }
        let memory = Arc::new(self.memory(bytes, false)?);
        state.scratch.insert(usage, memory.clone());
        Ok(memory)
    }

    pub(super) fn run(&self, state: &mut State, call: &Call<'_>) -> Result<()> {
        let variant = variant(call.kernel, call.formats, call.constants);
        if state.rehearses() {
            let rows = if self.on_units() { self.units_rows() } else { &[] };
            state.work = Work::default();
            state.note(call.kernel, variant, rows);
            return Ok(());
        }
        if let Some(stand_in) = &self.stand_in {
            state.work = Work::default();
            return self.run_in_place(state, call, variant, &**stand_in);
        }
        let pipeline = state.pipelines.get(&self.device, call.kernel, variant)?;
        let seconds = self.device.slow.seconds(std::mem::take(&mut state.work));
        state.recorder.make_room(&self.device, seconds)?;
        let groups = (call.groups, seconds);
        state.recorder.dispatch(&self.device, &pipeline, call.bindings, call.params, groups);
        Ok(())
    }

    /// A dispatch of a kernel without weights.
    pub(super) fn simple(
        &self,
        kernel: &'static Kernel,
        constants: &[u32],
        bindings: &[Binding<'_>],
        params: &[u32],
        groups: [u32; 3],
    ) -> Result<()> {
        self.run(&mut self.lock(), &Call { kernel, formats: &[], constants, bindings, params, groups })
    }

    /// Puts words where shaders find them; the buffer and the index of the first word.
    pub(super) fn upload(&self, state: &mut State, words: &[u32]) -> Result<((u64, wgpu::Buffer), u32)> {
        if state.rehearses() {
            return Ok((state.recorder.upload_binding(), 0));
        }
        state.recorder.reserve(&self.device, words.len(), || self.new_id())?;
        let first = state.recorder.open.uploads.push(words);
        Ok((state.recorder.upload_binding(), first))
    }

    /// The same for a table that other ops have too: if one of them has put it there, nothing is written.
    pub(super) fn upload_table(
        &self,
        state: &mut State,
        words: &[u32],
    ) -> Result<((u64, wgpu::Buffer), u32)> {
        if state.rehearses() {
            return Ok((state.recorder.upload_binding(), 0));
        }
        let first = match state.recorder.open.uploads.find(words) {
            Some(first) => first,
            None => {
                state.recorder.reserve(&self.device, words.len(), || self.new_id())?;
                state.recorder.open.uploads.push_table(words)
            }
        };
        Ok((state.recorder.upload_binding(), first))
    }
}

/// The GPU's own memory behind a handle.
pub(super) fn memory_of(buffer: &Buffer) -> Result<&GpuMemory> {
    buffer.downcast().ok_or_else(|| device_error("this memory belongs to another backend"))
}

pub(super) fn binding(tensor: &Tensor) -> Result<Binding<'_>> {
    Ok(memory_of(tensor.block().buffer())?.binding())
}

/// Buffers and byte offsets of a weight's parts.
pub(super) fn weight_parts(weight: &Weight) -> Result<(Vec<Binding<'_>>, [u32; 3])> {
    let mut bases = [0; 3];
    let mut bindings = Vec::with_capacity(3);
    for (base, part) in bases.iter_mut().zip(weight.parts()) {
        bindings.push(memory_of(part.buffer())?.binding());
        // A buffer's size fits 32 bits.
        *base = part.offset() as u32;
    }
    Ok((bindings, bases))
}

/// `count` workgroups over x and z, with `y` in y.
pub(super) fn folded(count: usize, y: u32) -> [u32; 3] {
    let count = count as u32;
    if count <= GROUPS_MAX { [count, y, 1] } else { [GROUPS_MAX, y, count.div_ceil(GROUPS_MAX)] }
}

/// The work of a product that is not divided: few rows, which read the weights by fours. [`Gpu::block_product`] says its own.
pub(super) fn few_rows(x: &Tensor, w: &Weight) -> Work {
    match x.rows() {
        rows if rows > INTEGERS_ROWS_MAX => Work::default(),
        rows => Work::product(rows, [w.rows(), w.cols()], w.format(), 4),
    }
}

/// The constant FOURS for rows of `cols` values: whether they can be taken four at a time.
pub(super) fn fours(cols: usize) -> u32 {
    u32::from(cols.is_multiple_of(4))
}

/// Workgroups for one thread an item.
pub(super) fn items(kernel: &Kernel, count: usize) -> [u32; 3] {
    folded(count.div_ceil(kernel.threads as usize), 1)
}
