//! What runs dispatches in a device's place: tests put Metal's texts there, which a CPU then runs. Everything else (buffers,
//! copies, the order of dispatches) stays the device's.

use files::Result;

use super::device::Device;
use super::dispatch::{Call, State};
use super::source::{METAL_MATRIX, Variant};
use super::{Gpu, GpuOptions};

/// One dispatch, with the contents of its buffers.
#[derive(Debug)]
pub struct Dispatch<'a> {
    /// Which shader.
    pub variant: Variant,
    /// Whether it uses subgroup operations.
    pub subgroups: bool,
    /// Workgroups in three dimensions.
    pub groups: [u32; 3],
    /// The fields of its `Params`.
    pub params: &'a [u32],
    /// Its bindings in their order; what those that it writes hold afterwards becomes the buffer's.
    pub buffers: Vec<Vec<u8>>,
}

/// Runs dispatches as one of Apple's GPUs would.
pub trait StandIn: Send + Sync {
    /// Whether it multiplies matrices.
    fn has_matrix_instructions(&self) -> bool;

    /// Runs one dispatch.
    ///
    /// # Errors
    /// Whatever the op that made the dispatch shall fail with.
    fn run(&self, dispatch: &mut Dispatch<'_>) -> Result<()>;
}

impl Gpu {
    /// Opens a GPU whose dispatches another runs. It is taken for one of Apple's.
    ///
    /// # Errors
    /// Those of [`Gpu::open`].
    pub fn with_stand_in(options: &GpuOptions, stand_in: Box<dyn StandIn>) -> Result<Self> {
        let mut device = Device::open(options)?;
        device.subgroups = options.subgroups;
        device.subgroup_threads = 32;
        device.byte_products = false;
        device.matrix = if device.subgroups && stand_in.has_matrix_instructions() { METAL_MATRIX } else { 0 };
        Self::of(device, options, Some(stand_in))?.checked()
    }

    pub(super) fn run_in_place(
        &self,
        state: &mut State,
        call: &Call<'_>,
        variant: Variant,
        stand_in: &dyn StandIn,
    ) -> Result<()> {
        if call.groups.contains(&0) {
            return Ok(());
        }
        let mut buffers: Vec<Vec<u8>> =
            call.bindings.iter().map(|(_, buffer)| vec![0; buffer.size() as usize]).collect();
        let mut ranges: Vec<_> = call
            .bindings
            .iter()
            .zip(&mut buffers)
            .map(|((_, buffer), bytes)| (*buffer, 0, bytes.as_mut_slice()))
            .collect();
        state.recorder.read_back(&self.device, &mut ranges)?;
        let (groups, params) = (call.groups, call.params);
        let mut dispatch = Dispatch { variant, subgroups: self.device.subgroups, groups, params, buffers };
        stand_in.run(&mut dispatch)?;
        let written = call.kernel.access.chars().zip(call.bindings.iter().zip(&dispatch.buffers));
        for (_, ((_, buffer), bytes)) in written.filter(|(access, _)| *access == 'w') {
            state.recorder.copy_in(&self.device, buffer, 0, bytes)?;
        }
        Ok(())
    }
}
