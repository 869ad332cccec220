//! What sequences remember. State comes in kinds, a file each with the same few functions: its bytes, a new one, going back,
//! a snapshot, where it lies. Nothing outside of this folder asks of which kind a layer's is.

mod checkpoints;
mod disk;
mod kv;
mod ledger;
mod recurrent;

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::ops::{KvCache, KvFormat, PAGE, Segment};
use kernels::{Backend, Block};

pub(crate) use checkpoints::Checkpoints;
pub(crate) use disk::{load, save};
pub(crate) use kv::KvShape;
pub(crate) use ledger::Ledger;
use ledger::{Page, Slot};
pub(crate) use recurrent::{Recurrent, RecurrentShape};

/// States are copied to and from files in pieces of this many bytes.
const COPY_BYTES: usize = 1 << 20;

/// Where bytes lie in a block: the first and how many.
type Ranges = Vec<(usize, usize)>;

/// The shape of one layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerShape {
    /// Keys and values of every position.
    Kv(KvShape),
    /// Of fixed size.
    Recurrent(RecurrentShape),
}

impl LayerShape {
    /// Bytes of a page of positions.
    pub(crate) fn page_bytes(&self) -> u64 {
        match self {
            LayerShape::Kv(shape) => shape.page_bytes(),
            LayerShape::Recurrent(_) => 0,
        }
    }

    /// Bytes of what does not grow, and that a snapshot copies.
    pub(crate) fn recurrent_bytes(&self) -> u64 {
        match self {
            LayerShape::Kv(_) => 0,
            LayerShape::Recurrent(shape) => shape.bytes(),
        }
    }
}

/// Pages of a sequence of `context` positions.
pub(crate) fn pages(context: usize) -> usize {
    context.div_ceil(PAGE)
}

/// Bytes of a session at a context of `context` positions: its state, and the snapshots of what cannot be forgotten.
pub(crate) fn session_bytes(shapes: &[LayerShape], context: usize) -> u64 {
    let recurrent: u64 = shapes.iter().map(LayerShape::recurrent_bytes).sum();
    let page: u64 = shapes.iter().map(LayerShape::page_bytes).sum();
    pages(context) as u64 * page + (1 + Checkpoints::MOST as u64) * recurrent
}

/// One layer's states of all sequences.
#[derive(Debug)]
enum LayerState {
    Kv(KvCache),
    Recurrent(Recurrent),
}

/// All layers' states of all sequences.
pub(crate) struct StatePool {
    backend: Arc<dyn Backend>,
    layers: Vec<LayerState>,
    ledger: Ledger,
}

impl StatePool {
    /// Room for `sequences` sequences of up to `context` positions each.
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        shapes: &[LayerShape],
        sequences: usize,
        context: usize,
    ) -> Result<Self> {
        let pages = sequences * pages(context);
        let layer = |shape: &LayerShape| {
            Ok(match shape {
                LayerShape::Kv(shape) => LayerState::Kv(shape.new_state(backend.as_ref(), pages)?),
                LayerShape::Recurrent(shape) => {
                    LayerState::Recurrent(shape.new_state(backend.as_ref(), sequences)?)
                }
            })
        };
        let layers = shapes.iter().map(layer).collect::<Result<_>>()?;
        let recurrent = shapes.iter().any(|shape| shape.recurrent_bytes() > 0);
        Ok(Self { backend, layers, ledger: Ledger::new(pages, sequences, context, recurrent) })
    }

    /// Who has which pages and slots.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn layer(&mut self, layer: usize) -> Result<&mut LayerState> {
        let found = self.layers.get_mut(layer);
        found.ok_or_else(|| Error::invalid(format!("there is no state of layer {layer}")))
    }

    /// Keys and values of layer `layer`, which must have some.
    pub(crate) fn kv(&mut self, layer: usize) -> Result<&mut KvCache> {
        match self.layer(layer)? {
            LayerState::Kv(cache) => Ok(cache),
            LayerState::Recurrent(_) => Err(Error::invalid(format!("layer {layer} has no KV cache"))),
        }
    }

    /// The recurrent states of layer `layer`, which must have some.
    pub(crate) fn recurrent(&mut self, layer: usize) -> Result<&mut Recurrent> {
        match self.layer(layer)? {
            LayerState::Recurrent(state) => Ok(state),
            LayerState::Kv(_) => Err(Error::invalid(format!("layer {layer} has no recurrent state"))),
        }
    }

    /// Writes zeros to all pages, so that each has memory of its own.
    pub(crate) fn fill_with_zeros(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerState::Kv(cache) = layer {
                kv::fill_with_zeros(self.backend.as_ref(), cache)?;
            }
        }
        Ok(())
    }

    /// How keys and values are stored; `None` without attention layers.
    fn kv_format(&self) -> Option<KvFormat> {
        self.layers.iter().find_map(|layer| match layer {
            LayerState::Kv(cache) => Some(cache.format),
            LayerState::Recurrent(_) => None,
        })
    }

    fn has_pages(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, LayerState::Kv(_)))
    }
}

/// What one sequence remembers: which pages and which slot are its own, and how many tokens they hold.
pub(crate) struct SequenceState {
    ledger: Ledger,
    pages: Vec<Page>,
    slot: Slot,
    position: usize,
}

/// What is needed to go back to a position: KV caches only forget, recurrent states must be put back.
#[derive(Debug)]
pub(crate) struct Snapshot {
    position: usize,
    /// Of the device, as the states themselves: of each recurrent layer.
    recurrent: Vec<[Block; 2]>,
}

impl Snapshot {
    /// Tokens that the snapshot holds.
    pub(crate) fn position(&self) -> usize {
        self.position
    }
}

impl SequenceState {
    /// An empty state.
    ///
    /// # Errors
    /// `Memory` when as many sequences live as there is room for.
    pub(crate) fn new(ledger: &Ledger) -> Result<Self> {
        Ok(Self { slot: ledger.slot()?, ledger: ledger.clone(), pages: Vec::new(), position: 0 })
    }

    /// Tokens it holds.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Tokens that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.ledger.context
    }

    /// Whether going back needs a snapshot.
    pub(crate) fn is_recurrent(&self) -> bool {
        self.ledger.recurrent
    }

    /// Makes ready for `rows` tokens more: pages for them that nobody else has, and zeros before the first token.
    ///
    /// # Errors
    /// `ContextFull` when they do not fit, `Memory` when no page is free, `Device` when copying fails.
    pub(crate) fn prepare(&mut self, states: &mut StatePool, rows: usize) -> Result<()> {
        self.check_room(rows)?;
        if self.position == 0 {
            self.clear(states)?;
        }
        if !states.has_pages() {
            return Ok(());
        }
        let first = self.position / PAGE;
        self.pages.truncate(pages(self.position));
        // What is not full is written after its last position, and only by one.
        if let Some(page) = self.pages.get_mut(first).filter(|page| page.is_shared()) {
            let own = self.ledger.page()?;
            for layer in &mut states.layers {
                if let LayerState::Kv(cache) = layer {
                    kv::copy_page(states.backend.as_ref(), cache, page.id(), own.id())?;
                }
            }
            *page = own;
        }
        while self.pages.len() < pages(self.position + rows) {
            self.pages.push(self.ledger.page()?);
        }
        Ok(())
    }

    /// The next tokens of the sequence, as rows of a step.
    pub(crate) fn segment(&self, rows: std::ops::Range<usize>) -> Segment {
        let pages = self.pages.iter().map(Page::id).collect();
        Segment { rows, position: self.position, pages, slot: self.slot.id() }
    }

    fn clear(&self, states: &mut StatePool) -> Result<()> {
        for layer in &mut states.layers {
            if let LayerState::Recurrent(state) = layer {
                recurrent::clear(states.backend.as_ref(), state, self.slot.id())?;
            }
        }
        Ok(())
    }

    /// Counts `tokens` tokens that a step has appended to every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }

    /// A copy of what cannot be forgotten, in the memory of `old` if there is one.
    pub(crate) fn snapshot(&self, states: &StatePool, old: Option<Snapshot>) -> Result<Snapshot> {
        let backend = states.backend.as_ref();
        let layers = || {
            states.layers.iter().filter_map(|layer| match layer {
                LayerState::Recurrent(state) => Some(state),
                LayerState::Kv(_) => None,
            })
        };
        let mut recurrent = match old {
            Some(old) => old.recurrent,
            None => layers().map(|state| recurrent::new_snapshot(backend, state)).collect::<Result<_>>()?,
        };
        for (state, to) in layers().zip(&mut recurrent) {
            recurrent::snapshot(backend, state, self.slot.id(), to)?;
        }
        Ok(Snapshot { position: self.position, recurrent })
    }

    /// Becomes what `other` was at `position`, with the same pages, as far as they are full of what both hold. `snapshot`
    /// is of there, if a layer is recurrent.
    pub(crate) fn share(
        &mut self,
        states: &mut StatePool,
        other: &Self,
        position: usize,
        snapshot: Option<&Snapshot>,
    ) -> Result<()> {
        if let Some(snapshot) = snapshot {
            self.restore(states, snapshot)?;
        }
        self.pages = other.pages[..pages(position)].to_vec();
        self.position = position;
        Ok(())
    }

    /// Goes back to a snapshot of this sequence.
    pub(crate) fn restore(&mut self, states: &mut StatePool, snapshot: &Snapshot) -> Result<()> {
        let mut from = snapshot.recurrent.iter();
        for layer in &mut states.layers {
            if let LayerState::Recurrent(state) = layer
                && let Some(from) = from.next()
            {
                recurrent::restore(states.backend.as_ref(), from, state, self.slot.id())?;
            }
        }
        self.forget_after(snapshot.position);
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.forget_after(0);
    }

    /// Forgets the tokens from `position` on, if no layer is recurrent.
    pub(crate) fn truncate(&mut self, position: usize) -> Result<()> {
        if position > self.position || self.is_recurrent() && position != self.position {
            return Err(Error::invalid(format!("cannot go from position {} to {position}", self.position)));
        }
        self.forget_after(position);
        Ok(())
    }

    fn forget_after(&mut self, position: usize) {
        self.position = position;
        self.pages.truncate(pages(position));
    }

    /// A clear error when `tokens` more do not fit.
    fn check_room(&self, tokens: usize) -> Result<()> {
        if self.position + tokens <= self.capacity() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::ContextFull,
            format!(
                "{} tokens and {tokens} more exceed the context of {}; start over, shorten the prompt, or raise --ctx",
                self.position,
                self.capacity()
            ),
        ))
    }
}
