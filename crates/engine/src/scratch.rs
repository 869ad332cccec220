//! Activations that live for a few ops: device blocks used again and again, within the planned bytes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use files::{Error, Result};
use kernels::ops::RouteBuffers;
use kernels::{Backend, Block, Tensor};

/// A pool of device blocks that never holds more than its limit.
pub(crate) struct Scratch {
    backend: Arc<dyn Backend>,
    state: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    /// Idle blocks, those unused for longest first.
    blocks: Vec<Block>,
    allocated_bytes: usize,
    limit_bytes: usize,
}

impl Free {
    /// Gives idle blocks back until `bytes` more would fit; whether they do.
    fn fits(&mut self, bytes: usize) -> bool {
        while self.allocated_bytes + bytes > self.limit_bytes && !self.blocks.is_empty() {
            self.allocated_bytes -= self.blocks.remove(0).bytes();
        }
        self.allocated_bytes + bytes <= self.limit_bytes
    }
}

impl Scratch {
    /// An empty pool over `backend` that may allocate `limit_bytes`.
    pub(crate) fn new(backend: Arc<dyn Backend>, limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { backend, state: Mutex::new(Free { limit_bytes, ..Free::default() }) })
    }

    /// From now on it may allocate `limit_bytes`; false where more than that is in use, and nothing changes.
    pub(crate) fn set_limit(&self, limit_bytes: usize) -> bool {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.limit_bytes, limit_bytes);
        let fits = state.fits(0);
        if !fits {
            state.limit_bytes = before;
        }
        fits
    }

    /// An activation `[rows, cols]` with undefined values.
    pub(crate) fn tensor(self: &Arc<Self>, rows: usize, cols: usize) -> Result<Activation> {
        let block = self.take(rows * cols * 4)?;
        Ok(Activation { tensor: Some(Tensor::new(block, rows, cols)?), scratch: self.clone() })
    }

    /// Room for a router's answer.
    pub(crate) fn routes(self: &Arc<Self>, rows: usize, top_k: usize) -> Result<RouteActivation> {
        let ids = self.take(rows * top_k * 4)?;
        let weights = Tensor::new(self.take(rows * top_k * 4)?, rows, top_k)?;
        Ok(RouteActivation { buffers: Some(RouteBuffers { ids, weights }), scratch: self.clone() })
    }

    fn take(&self, bytes: usize) -> Result<Block> {
        let bytes = bytes.max(1).next_multiple_of(4096);
        let mut state = self.lock();
        // Only a block of this very size: a larger one would be missing where its size is needed, and the plan
        // counts what tensors have, not what they sit in. Steps of as many rows ask for the same sizes.
        if let Some(i) = state.blocks.iter().position(|b| b.bytes() == bytes) {
            return Ok(state.blocks.remove(i));
        }
        if !state.fits(bytes) {
            return Err(Error::memory(format!(
                "scratch of {} bytes is exhausted: {} in use, {bytes} more wanted",
                state.limit_bytes, state.allocated_bytes
            )));
        }
        let block = self.backend.alloc(bytes)?;
        state.allocated_bytes += bytes;
        Ok(block)
    }

    fn give_back(&self, block: Block) {
        self.lock().blocks.push(block);
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tensor that returns its memory to the pool.
pub(crate) struct Activation {
    tensor: Option<Tensor>,
    scratch: Arc<Scratch>,
}

impl Deref for Activation {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        self.tensor.as_ref().expect("only drop takes the tensor")
    }
}

impl DerefMut for Activation {
    fn deref_mut(&mut self) -> &mut Tensor {
        self.tensor.as_mut().expect("only drop takes the tensor")
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        if let Some(tensor) = self.tensor.take() {
            self.scratch.give_back(tensor.into_block());
        }
    }
}

/// A router's answer that returns its memory to the pool.
pub(crate) struct RouteActivation {
    buffers: Option<RouteBuffers>,
    scratch: Arc<Scratch>,
}

impl Deref for RouteActivation {
    type Target = RouteBuffers;

    fn deref(&self) -> &RouteBuffers {
        self.buffers.as_ref().expect("only drop takes the buffers")
    }
}

impl DerefMut for RouteActivation {
    fn deref_mut(&mut self) -> &mut RouteBuffers {
        self.buffers.as_mut().expect("only drop takes the buffers")
    }
}

impl Drop for RouteActivation {
    fn drop(&mut self) {
        if let Some(buffers) = self.buffers.take() {
            self.scratch.give_back(buffers.ids);
            self.scratch.give_back(buffers.weights.into_block());
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::reference::Reference;

    use super::*;

    /// Whatever was there before, tensors whose sizes fit the limit together fit.
    #[test]
    fn blocks_left_over_from_other_steps_are_never_in_the_way() {
        const PAGE: usize = 4096;
        let scratch = Scratch::new(Arc::new(Reference::default()), 10 * PAGE);
        drop(scratch.tensor(8, PAGE / 4).unwrap());
        let small = scratch.tensor(1, PAGE / 4).unwrap();
        let large = scratch.tensor(8, PAGE / 4).unwrap();
        let another = scratch.tensor(1, PAGE / 4).unwrap();
        let error = scratch.tensor(1, 1).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), files::ErrorKind::Memory, "{error}");
        drop((small, large, another));
        let routes = scratch.routes(1, 3).unwrap();
        assert_eq!(routes.weights.cols(), 3);
        assert!(scratch.tensor(9, PAGE / 4).is_err(), "two pages are taken");
    }

    /// What the next layer asks for again stays; fresh memory costs a page fault a page, or a device's allocation.
    #[test]
    fn only_the_blocks_unused_for_longest_make_room() {
        const PAGE: usize = 4096;
        let scratch = Scratch::new(Arc::new(Reference::default()), 10 * PAGE);
        drop(scratch.tensor(3, PAGE / 4).unwrap());
        drop(scratch.tensor(4, PAGE / 4).unwrap());
        drop(scratch.tensor(5, PAGE / 4).unwrap());
        let idle: Vec<_> = scratch.state.lock().unwrap().blocks.iter().map(|b| b.bytes() / PAGE).collect();
        assert_eq!(idle, [4, 5]);
    }

    #[test]
    fn a_lower_limit_gives_idle_blocks_back() {
        const PAGE: usize = 4096;
        let scratch = Scratch::new(Arc::new(Reference::default()), 10 * PAGE);
        let held = scratch.tensor(3, PAGE / 4).unwrap();
        drop(scratch.tensor(5, PAGE / 4).unwrap());
        assert!(!scratch.set_limit(2 * PAGE), "three pages are in use");
        assert_eq!(scratch.lock().allocated_bytes, 3 * PAGE);
        assert_eq!(scratch.lock().limit_bytes, 10 * PAGE);
        drop(held);
        assert!(scratch.set_limit(2 * PAGE));
        assert_eq!(scratch.lock().allocated_bytes, 0);
    }

    #[test]
    fn a_block_is_used_again_by_the_next_tensor_of_its_size() {
        let scratch = Scratch::new(Arc::new(Reference::default()), 1 << 20);
        for _ in 0..1000 {
            drop((scratch.tensor(3, 1000).unwrap(), scratch.tensor(7, 1000).unwrap()));
        }
        assert_eq!(scratch.state.lock().unwrap().blocks.len(), 2);
    }
}
