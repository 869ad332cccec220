//! What a sequence remembers: KV caches and recurrent states, with snapshots to go back to.

mod checkpoints;
mod disk;

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::ops::{KvCache, KvFormat};
use kernels::{Backend, Block, Tensor};

pub(crate) use checkpoints::Checkpoints;
pub(crate) use disk::{load, save};

/// States are copied to and from files in pieces of this many bytes.
const COPY_BYTES: usize = 1 << 20;

/// The shape of one layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerShape {
    /// Keys and values of every position.
    Kv { kv_heads: usize, head_dim: usize, format: KvFormat },
    /// Of fixed size: the last inputs of the convolution, and the delta rule's matrices.
    Delta { conv_rows: usize, channels: usize, value_heads: usize, head_state: usize },
}

impl LayerShape {
    /// Bytes at a context of `capacity` positions.
    pub(crate) fn bytes(&self, capacity: usize) -> u64 {
        match *self {
            LayerShape::Kv { kv_heads, head_dim, format } => {
                KvCache::bytes(kv_heads, head_dim, capacity, format) as u64
            }
            LayerShape::Delta { .. } => self.recurrent_bytes(),
        }
    }

    /// Bytes that a snapshot copies.
    pub(crate) fn recurrent_bytes(&self) -> u64 {
        match *self {
            LayerShape::Kv { .. } => 0,
            LayerShape::Delta { conv_rows, channels, value_heads, head_state } => {
                4 * (conv_rows * channels + value_heads * head_state) as u64
            }
        }
    }
}

/// Bytes of a session at a context of `capacity` positions: its state, and the snapshots of what cannot be forgotten.
pub(crate) fn session_bytes(shapes: &[LayerShape], capacity: usize) -> u64 {
    let recurrent: u64 = shapes.iter().map(LayerShape::recurrent_bytes).sum();
    shapes.iter().map(|shape| shape.bytes(capacity)).sum::<u64>() + Checkpoints::MOST as u64 * recurrent
}

/// A recurrent layer's state.
#[derive(Debug)]
pub(crate) struct DeltaState {
    /// `[kernel - 1, channels]`
    pub(crate) conv: Tensor,
    /// `[value_heads, key_head_dim * value_head_dim]`
    pub(crate) delta: Tensor,
}

/// One layer's state.
#[derive(Debug)]
pub(crate) enum LayerState {
    /// Of an attention layer.
    Kv(KvCache),
    /// Of a gated delta rule layer.
    Delta(DeltaState),
}

impl LayerState {
    /// The state of layer `layer`, which must be recurrent.
    pub(crate) fn delta_mut(&mut self, layer: usize) -> Result<&mut DeltaState> {
        self.as_delta_mut().ok_or_else(|| Error::invalid(format!("layer {layer} has no recurrent state")))
    }

    fn as_delta_mut(&mut self) -> Option<&mut DeltaState> {
        match self {
            LayerState::Delta(state) => Some(state),
            LayerState::Kv(_) => None,
        }
    }
}

/// All layers' states of one sequence, and how many tokens they hold.
pub(crate) struct SequenceState {
    backend: Arc<dyn Backend>,
    layers: Vec<LayerState>,
    position: usize,
    capacity: usize,
}

/// What is needed to go back to a position: KV caches only forget, recurrent states must be put back.
#[derive(Debug)]
pub(crate) struct Snapshot {
    position: usize,
    /// Of the device, as the states themselves: one for each.
    recurrent: Vec<Block>,
}

impl Snapshot {
    /// Tokens that the snapshot holds.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
}

impl SequenceState {
    /// An empty state for up to `capacity` tokens.
    pub(crate) fn new(backend: Arc<dyn Backend>, shapes: &[LayerShape], capacity: usize) -> Result<Self> {
        let tensor =
            |rows: usize, cols: usize| Tensor::new(backend.alloc((rows * cols * 4).max(4))?, rows, cols);
        let layer = |shape: &LayerShape| match *shape {
            LayerShape::Kv { kv_heads, head_dim, format } => {
                let bytes = KvCache::bytes(kv_heads, head_dim, capacity, format) / 2;
                let (keys, values) = (backend.alloc(bytes)?, backend.alloc(bytes)?);
                Ok(LayerState::Kv(KvCache { keys, values, kv_heads, head_dim, capacity, format }))
            }
            LayerShape::Delta { conv_rows, channels, value_heads, head_state } => {
                let (conv, delta) = (tensor(conv_rows, channels)?, tensor(value_heads, head_state)?);
                Ok(LayerState::Delta(DeltaState { conv, delta }))
            }
        };
        let layers = shapes.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { backend, layers, position: 0, capacity })
    }

    /// Tokens it holds.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Tokens that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The state of layer `layer`.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> Result<&mut LayerState> {
        self.layers
            .get_mut(layer)
            .ok_or_else(|| Error::invalid(format!("there is no state of layer {layer}")))
    }

    /// How its keys and values are stored; `None` without attention layers.
    fn kv_format(&self) -> Option<KvFormat> {
        self.layers.iter().find_map(|layer| match layer {
            LayerState::Kv(kv) => Some(kv.format),
            LayerState::Delta(_) => None,
        })
    }

    /// Counts `tokens` tokens that a step has appended to every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// Whether going back needs a snapshot: some layer cannot simply forget.
    pub(crate) fn is_recurrent(&self) -> bool {
        self.layers.iter().any(|l| matches!(l, LayerState::Delta(_)))
    }

    /// A copy of what cannot be forgotten, in the memory of `old` if there is one.
    pub(crate) fn snapshot(&self, old: Option<Snapshot>) -> Result<Snapshot> {
        let mut recurrent = match old {
            Some(old) => old.recurrent,
            None => self.recurrent().map(|t| self.backend.alloc(t.block().bytes())).collect::<Result<_>>()?,
        };
        for (tensor, to) in self.recurrent().zip(&mut recurrent) {
            self.backend.copy(tensor.block(), to)?;
        }
        Ok(Snapshot { position: self.position, recurrent })
    }

    /// Goes back to a snapshot of this sequence.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        let mut from = snapshot.recurrent.iter();
        for state in self.layers.iter_mut().filter_map(LayerState::as_delta_mut) {
            for (tensor, from) in [&mut state.conv, &mut state.delta].into_iter().zip(&mut from) {
                self.backend.copy(from, tensor.block_mut())?;
            }
        }
        self.position = snapshot.position;
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) -> Result<()> {
        for state in self.layers.iter_mut().filter_map(LayerState::as_delta_mut) {
            self.backend.clear(state.conv.block_mut())?;
            self.backend.clear(state.delta.block_mut())?;
        }
        self.position = 0;
        Ok(())
    }

    fn recurrent(&self) -> impl Iterator<Item = &Tensor> {
        let deltas = self.layers.iter().filter_map(|layer| match layer {
            LayerState::Delta(state) => Some([&state.conv, &state.delta]),
            LayerState::Kv(_) => None,
        });
        deltas.flatten()
    }

    /// Forgets the tokens from `position` on, if no layer is recurrent.
    pub(crate) fn truncate(&mut self, position: usize) -> Result<()> {
        if position > self.position || self.is_recurrent() && position != self.position {
            return Err(Error::invalid(format!("cannot go from position {} to {position}", self.position)));
        }
        self.position = position;
        Ok(())
    }

    /// A clear error when `tokens` more do not fit.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        if self.position + tokens <= self.capacity {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ContextFull,
            format!(
                "{} tokens and {tokens} more exceed the context of {}; start over, shorten the prompt, or raise --ctx",
                self.position, self.capacity
            ),
        ))
    }
}
