//! What sequences remember. State comes in kinds, a file each with the same few functions: its bytes, a new one, going back,
//! a snapshot, where it lies. Nothing outside of this folder asks of which kind a layer's is.

mod answers;
mod directory;
mod file;
mod kv;
mod ledger;
mod partial;
mod prefixes;
mod recurrent;
mod room;
mod tally;

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::Backend;
use kernels::ops::{KvCache, KvFormat, PAGE, Segment};

pub(crate) use directory::StateDirectory;
pub(crate) use file::{load, save};
pub(crate) use kv::KvShape;
pub(crate) use ledger::Ledger;
use ledger::{Page, Slot, SnapshotMemory};
pub(crate) use partial::{PartialChunk, PartialChunks, Resume};
use prefixes::Prefix;
pub(crate) use prefixes::{Found, Prefixes};
pub(crate) use recurrent::{Recurrent, RecurrentShape};
pub(crate) use room::{Room, RoomFor};
pub use tally::KeptCounts;
pub(crate) use tally::KeptTally;

/// Positions between the borders in long prompts, at least.
const GRID: usize = 2048;

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

/// Where pages lie.
fn ids(pages: &[Page]) -> Vec<u32> {
    pages.iter().map(Page::id).collect()
}

/// One layer's states of all sequences.
#[derive(Debug)]
enum LayerState {
    Kv(KvCache),
    Recurrent(Recurrent),
}

/// Gives the memory of pages of all layers back.
fn give_back(backend: &dyn Backend, layers: &mut [LayerState], pages: std::ops::Range<usize>) -> Result<()> {
    for layer in layers {
        if let LayerState::Kv(cache) = layer {
            kv::give_back(backend, cache, pages.clone())?;
        }
    }
    Ok(())
}

/// All layers' states of all sequences.
pub(crate) struct StatePool {
    backend: Arc<dyn Backend>,
    layers: Vec<LayerState>,
    ledger: Ledger,
    /// Of all layers.
    page_bytes: u64,
    /// What others may begin with.
    pub(crate) prefixes: Prefixes,
    /// Chunks that broke off.
    pub(crate) partial_chunks: PartialChunks,
}

impl StatePool {
    /// The states that there is `room` for.
    pub(crate) fn new(backend: Arc<dyn Backend>, shapes: &[LayerShape], room: &Room) -> Result<Self> {
        let &Room { sequences, context, ref pages, kept_snapshots, .. } = room;
        let layer = |shape: &LayerShape| {
            Ok(match shape {
                LayerShape::Kv(shape) => LayerState::Kv(shape.new_state(backend.as_ref(), pages.end)?),
                LayerShape::Recurrent(shape) => {
                    LayerState::Recurrent(shape.new_state(backend.as_ref(), sequences)?)
                }
            })
        };
        let mut layers = shapes.iter().map(layer).collect::<Result<Vec<_>>>()?;
        // Huge pages would bring memory that the plan does not know of.
        give_back(backend.as_ref(), &mut layers, pages.clone())?;
        let snapshot_bytes: u64 = shapes.iter().map(LayerShape::recurrent_bytes).sum();
        let recurrent = snapshot_bytes > 0;
        // Each sequence has one to go back to, besides those that are kept.
        let snapshots = if recurrent { sequences + kept_snapshots } else { 0 };
        let ledger = Ledger::new(pages.clone(), sequences, snapshots, context, recurrent);
        Ok(Self {
            backend,
            layers,
            ledger,
            page_bytes: room.page_bytes,
            prefixes: Prefixes::new(room.keeps, kept_snapshots, room.page_bytes, snapshot_bytes),
            partial_chunks: PartialChunks::default(),
        })
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

    /// A free page; what is kept for others makes room for it.
    ///
    /// # Errors
    /// `Memory` when sequences have all of them.
    fn page(&mut self) -> Result<Page> {
        loop {
            if let Some(page) = self.ledger.page() {
                return Ok(page);
            }
            if !self.partial_chunks.evict() && !self.prefixes.evict_for_pages() {
                return Err(Error::memory("all pages of keys and values are in use"));
            }
        }
    }

    /// Lets `pages` pages more be used.
    pub(crate) fn add_pages(&mut self, pages: usize) {
        self.ledger.add_pages(pages);
    }

    /// Pages that a sequence can have now.
    pub(crate) fn available_pages(&self) -> usize {
        self.ledger.free().0 - self.ledger.pages_without_memory() + self.prefixes.pages_of_nobody_else()
    }

    /// Pages for so many bytes of a file of states.
    pub(crate) fn pages_in_bytes(&self, bytes: u64) -> usize {
        bytes
            .checked_div(self.page_bytes)
            .map_or(0, |pages| pages as usize + 1)
            .min(pages(self.ledger.context))
    }

    /// Pages whose memory living sequences do not need, besides those that always have it.
    pub(crate) fn spare_pages(&self) -> usize {
        let more = self.ledger.more_pages();
        if more == 0 {
            return 0;
        }
        let living = self.ledger.pages_in_use() - self.prefixes.pages_of_nobody_else();
        // What is kept has its own place; a page of each sequence has, too.
        more.saturating_sub(living.saturating_sub(self.ledger.sequences))
    }

    /// Takes the memory of up to `pages` pages that no sequence has; what is kept for others goes for that. How many it were.
    ///
    /// # Errors
    /// `Device` when the backend refuses.
    pub(crate) fn remove_pages(&mut self, pages: usize) -> Result<usize> {
        let mut removed = self.ledger.remove_pages(pages);
        while removed.len() < pages && self.prefixes.evict_for_pages() {
            removed.extend(self.ledger.remove_pages(pages - removed.len()));
        }
        for &page in &removed {
            let page = page as usize;
            give_back(self.backend.as_ref(), &mut self.layers, page..page + 1)?;
        }
        Ok(removed.len())
    }

    /// Copies what all layers have in a page.
    fn copy_page(&mut self, from: &Page, to: &Page) -> Result<()> {
        for layer in &mut self.layers {
            if let LayerState::Kv(cache) = layer {
                kv::copy_page(self.backend.as_ref(), cache, from.id(), to.id())?;
            }
        }
        Ok(())
    }

    /// Memory for a snapshot at `position`; what is kept for others makes room for it.
    ///
    /// # Errors
    /// `Memory` when sequences have all of them.
    pub(crate) fn new_snapshot(&mut self, position: usize) -> Result<Snapshot> {
        loop {
            let of_layer = |layer: &LayerState| match layer {
                LayerState::Recurrent(state) => {
                    recurrent::new_snapshot(self.backend.as_ref(), state).map(Some)
                }
                LayerState::Kv(_) => Ok(None),
            };
            if let Some(memory) = self.ledger.snapshot(|| self.layers.iter().map(of_layer).collect())? {
                return Ok(Snapshot { position, memory });
            }
            if !self.partial_chunks.evict() && !self.prefixes.evict() {
                return Err(Error::memory("all snapshots are in use"));
            }
        }
    }

    /// Copies the state of layer `layer` in `slot` to its place in `to`.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn snapshot_layer(&self, layer: usize, slot: u32, to: &mut Snapshot) -> Result<()> {
        match (&self.layers[layer], &mut to.memory.layers[layer]) {
            (LayerState::Recurrent(state), Some(to)) => {
                recurrent::snapshot(self.backend.as_ref(), state, slot, to)
            }
            _ => Ok(()),
        }
    }
}

/// What one sequence remembers: which pages and which slot are its own, and how many tokens they hold.
pub(crate) struct SequenceState {
    ledger: Ledger,
    pages: Vec<Page>,
    slot: Slot,
    position: usize,
    /// Positions of the last page are this sequence's to write, up to here.
    claimed: usize,
}

/// What is needed to go back to a position: KV caches only forget, recurrent states must be put back.
#[derive(Debug)]
pub(crate) struct Snapshot {
    position: usize,
    memory: SnapshotMemory,
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
        Ok(Self { slot: ledger.slot()?, ledger: ledger.clone(), pages: Vec::new(), position: 0, claimed: 0 })
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

    /// Positions between the borders of a long prompt of `tokens` that nobody named; 0 for none.
    pub(crate) fn grid(&self, tokens: usize) -> usize {
        // Half of what can be kept is for borders that somebody names.
        let most = self.ledger.kept_snapshots / 2;
        if most == 0 || tokens <= GRID { 0 } else { tokens.div_ceil(most).next_multiple_of(GRID) }
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
        let (first, within) = (self.position / PAGE, self.position % PAGE);
        self.pages.truncate(pages(self.position));
        // What somebody else has written after this position stays theirs.
        let mine = if self.claimed >= self.position { self.claimed - first * PAGE } else { within };
        let end = self.position + rows;
        // All that can fail comes first: what one that failed has is as before.
        let more = (self.pages.len()..pages(end)).map(|_| states.page()).collect::<Result<Vec<_>>>()?;
        let own = match self.pages.get(first) {
            Some(page) if page.is_shared() && page.written() > mine => match states.page() {
                Ok(own) => {
                    states.copy_page(page, &own)?;
                    Some(own)
                }
                // Else it may become this sequence's alone.
                Err(_) if states.prefixes.give_up_page(page) => None,
                Err(e) => return Err(e),
            },
            _ => None,
        };
        own.into_iter().for_each(|own| self.pages[first] = own);
        self.pages.extend(more);
        for (i, page) in self.pages.iter().enumerate().skip(first) {
            page.set_written(end - i * PAGE);
        }
        self.claimed = end;
        Ok(())
    }

    /// The next tokens of the sequence, as rows of a step.
    pub(crate) fn segment(&self, rows: std::ops::Range<usize>) -> Segment {
        Segment { rows, position: self.position, pages: ids(&self.pages), slot: self.slot.id() }
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

    /// A copy of what cannot be forgotten; `None` where everything can.
    ///
    /// # Errors
    /// `Memory` when sequences have all snapshots, `Device` when copying fails.
    pub(crate) fn snapshot(&self, states: &mut StatePool) -> Result<Option<Arc<Snapshot>>> {
        if !self.is_recurrent() {
            return Ok(None);
        }
        let mut snapshot = states.new_snapshot(self.position)?;
        for layer in 0..states.layers.len() {
            states.snapshot_layer(layer, self.slot.id(), &mut snapshot)?;
        }
        Ok(Some(Arc::new(snapshot)))
    }

    /// Keeps the first of `tokens`, as many as are in `snapshot`, or at `position` where nothing is recurrent, for sequences
    /// that begin alike.
    pub(crate) fn keep(
        &self,
        states: &mut StatePool,
        tokens: &[u32],
        position: usize,
        snapshot: Option<Arc<Snapshot>>,
    ) {
        let Found { pages, snapshot, .. } = self.found(position, snapshot);
        states.prefixes.keep(Prefix { tokens: tokens[..position].to_vec(), pages, snapshot }, false);
    }

    /// Its beginning at `position`, with the snapshot of there.
    pub(crate) fn found(&self, position: usize, snapshot: Option<Arc<Snapshot>>) -> Found {
        let pages = self.pages[..pages(position).min(self.pages.len())].to_vec();
        Found { position, pages, snapshot }
    }

    /// Becomes what somebody else has computed of the same tokens.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn adopt(&mut self, states: &mut StatePool, found: &Found) -> Result<()> {
        if let Some(snapshot) = &found.snapshot
            && let Err(e) = self.restore(states, snapshot)
        {
            self.reset(); // some layers are there, others not
            return Err(e);
        }
        // Positions after it are nobody's claim any more.
        self.pages.clone_from(&found.pages);
        (self.position, self.claimed) = (found.position, found.position);
        Ok(())
    }

    /// Becomes what `other` is now.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn become_same(&mut self, states: &mut StatePool, other: &Self) -> Result<()> {
        for layer in &mut states.layers {
            if let LayerState::Recurrent(state) = layer {
                recurrent::copy_slot(states.backend.as_ref(), state, other.slot.id(), self.slot.id())?;
            }
        }
        self.pages = other.found(other.position, None).pages;
        (self.position, self.claimed) = (other.position, other.position);
        Ok(())
    }

    /// Goes back to a snapshot of this sequence.
    ///
    /// # Errors
    /// `Device` when copying fails.
    pub(crate) fn restore(&mut self, states: &mut StatePool, snapshot: &Snapshot) -> Result<()> {
        for (layer, from) in states.layers.iter_mut().zip(&snapshot.memory.layers) {
            if let (LayerState::Recurrent(state), Some(from)) = (layer, from) {
                recurrent::restore(states.backend.as_ref(), from, state, self.slot.id())?;
            }
        }
        self.forget_after(snapshot.position);
        Ok(())
    }

    /// Is not ready for a step any more, which has not run: what it claimed is whoever's comes next.
    pub(crate) fn unclaim(&mut self) {
        if self.claimed > self.position
            && let Some(page) = self.pages.get(self.position / PAGE)
        {
            page.set_written(self.position % PAGE);
        }
        self.forget_after(self.position);
    }

    /// Forgets everything.
    pub(crate) fn reset(&mut self) {
        self.forget_after(0);
    }

    fn forget_after(&mut self, position: usize) {
        self.position = position;
        self.claimed = self.claimed.min(position);
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
