//! State of fixed size: the last inputs of a convolution and the delta rule's matrices. It only goes on; to go back it is
//! put back from a snapshot.

use files::Result;
use kernels::{Backend, Block, Tensor};

/// The shape of a gated delta rule layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecurrentShape {
    pub(crate) conv_rows: usize,
    pub(crate) channels: usize,
    pub(crate) value_heads: usize,
    /// Values of a value head's matrix.
    pub(crate) head_state: usize,
}

impl RecurrentShape {
    /// Bytes of one sequence's state, and of a snapshot of it.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.conv_rows * self.channels + self.value_heads * self.head_state) as u64
    }

    /// The states of `slots` sequences.
    pub(super) fn new_state(&self, backend: &dyn Backend, slots: usize) -> Result<Recurrent> {
        let tensor = |cols: usize| Tensor::new(backend.alloc((slots * cols * 4).max(4))?, slots, cols);
        Ok(Recurrent {
            conv: tensor(self.conv_rows * self.channels)?,
            delta: tensor(self.value_heads * self.head_state)?,
        })
    }
}

/// A layer's states of all sequences.
#[derive(Debug)]
pub(crate) struct Recurrent {
    /// `[slots, (kernel - 1) * channels]`
    pub(crate) conv: Tensor,
    /// `[slots, value_heads * key_head_dim * value_head_dim]`
    pub(crate) delta: Tensor,
}

/// Where a slot's values lie in a tensor of states.
pub(super) fn range(tensor: &Tensor, slot: u32) -> std::ops::Range<usize> {
    let bytes = 4 * tensor.cols();
    slot as usize * bytes..(slot as usize + 1) * bytes
}

/// Makes a slot's state that of no tokens.
pub(super) fn clear(backend: &dyn Backend, state: &mut Recurrent, slot: u32) -> Result<()> {
    for tensor in [&mut state.conv, &mut state.delta] {
        let range = range(tensor, slot);
        backend.clear(tensor.block_mut(), range)?;
    }
    Ok(())
}

/// Copies a slot's state to another slot.
pub(super) fn copy_slot(backend: &dyn Backend, state: &mut Recurrent, from: u32, to: u32) -> Result<()> {
    for tensor in [&mut state.conv, &mut state.delta] {
        let (from, to) = (range(tensor, from), range(tensor, to).start);
        backend.copy_within(tensor.block_mut(), from, to)?;
    }
    Ok(())
}

/// Memory for a snapshot of one slot.
pub(super) fn new_snapshot(backend: &dyn Backend, state: &Recurrent) -> Result<[Block; 2]> {
    let block = |tensor: &Tensor| backend.alloc((4 * tensor.cols()).max(4));
    Ok([block(&state.conv)?, block(&state.delta)?])
}

/// Copies a slot's state to a snapshot.
pub(super) fn snapshot(
    backend: &dyn Backend,
    state: &Recurrent,
    slot: u32,
    to: &mut [Block; 2],
) -> Result<()> {
    for (tensor, to) in [&state.conv, &state.delta].into_iter().zip(to) {
        backend.copy(tensor.block(), range(tensor, slot), to, 0)?;
    }
    Ok(())
}

/// Copies a snapshot to a slot.
pub(super) fn restore(
    backend: &dyn Backend,
    from: &[Block; 2],
    state: &mut Recurrent,
    slot: u32,
) -> Result<()> {
    for (from, tensor) in from.iter().zip([&mut state.conv, &mut state.delta]) {
        let to = range(tensor, slot);
        backend.copy(from, 0..to.len(), tensor.block_mut(), to.start)?;
    }
    Ok(())
}
