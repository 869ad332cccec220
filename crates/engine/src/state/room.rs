//! How much of what sequences remember there is room for.

use std::ops::Range;

use super::{LayerShape, pages};

/// No more is kept for prompts to come than so many sequences of the largest size have.
const KEPT_SEQUENCES: u64 = 16;

/// Snapshots that are kept at least, where anything is: the ends of the last two prompts.
const KEPT_SNAPSHOTS_MIN: u64 = 2;

/// Pages that are kept with a snapshot: one of each so many positions.
const PAGES_PER_SNAPSHOT: u64 = 4;

/// Who wants room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomFor {
    /// Sequences that live at once.
    pub(crate) sequences: usize,
    /// Positions of the largest.
    pub(crate) context: usize,
    /// Bytes of what ended sequences leave to others, about; `None` keeps nothing.
    pub(crate) kept_bytes: Option<u64>,
    /// Bytes of the pages of living sequences at most, as long as one can have its whole context.
    pub(crate) pages_bytes: u64,
    /// Whether pages get memory when they are needed, and give it back.
    pub(crate) trades: bool,
}

impl RoomFor {
    /// One sequence, which has its memory from the beginning.
    pub(crate) fn one(context: usize, kept_bytes: Option<u64>) -> Self {
        Self { sequences: 1, context, kept_bytes, pages_bytes: 0, trades: false }
    }
}

/// States that live at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Sequences.
    pub(crate) sequences: usize,
    /// Positions of the largest.
    pub(crate) context: usize,
    /// Pages of all sequences, living or kept: those that have their memory at any time, and how many there may be.
    pub(crate) pages: Range<usize>,
    /// A page of every layer.
    pub(crate) page_bytes: u64,
    /// Whether beginnings are kept for others.
    pub(crate) keeps: bool,
    /// Snapshots of those.
    pub(crate) kept_snapshots: usize,
    /// All that has its memory at any time.
    pub(crate) bytes: u64,
    /// What one sequence of the largest size takes besides.
    pub(crate) more_bytes_min: u64,
}

impl Room {
    /// For layers of `shapes`.
    pub(crate) fn new(shapes: &[LayerShape], wanted: RoomFor) -> Self {
        let RoomFor { sequences, context, kept_bytes, pages_bytes, trades } = wanted;
        let page_bytes: u64 = shapes.iter().map(LayerShape::page_bytes).sum();
        let recurrent: u64 = shapes.iter().map(LayerShape::recurrent_bytes).sum();
        let [one, all] = [1, sequences as u64].map(|sequences| sequences * pages(context) as u64);
        // One has its whole context, the others have a page each.
        let least = one + sequences as u64 - 1;
        let most = pages_bytes.checked_div(page_bytes).unwrap_or(0).clamp(least, all.max(least));
        let first = if trades { sequences as u64 } else { most };
        // Each goes on from one state, and goes back to another when a step fails.
        let states = 2 * sequences as u64;
        let largest = pages(context) as u64 * page_bytes + recurrent;
        let bytes = kept_bytes.unwrap_or(0).min(largest.saturating_mul(KEPT_SEQUENCES));
        let kept_least = if kept_bytes.is_some() { KEPT_SNAPSHOTS_MIN } else { 0 };
        let kept_snapshots = match recurrent {
            0 => 0,
            recurrent => kept_least.max(bytes / (recurrent + PAGES_PER_SNAPSHOT * page_bytes)),
        };
        let kept = bytes.saturating_sub(kept_snapshots * recurrent).checked_div(page_bytes).unwrap_or(0);
        let recurrent_bytes = (states + kept_snapshots).saturating_mul(recurrent);
        Self {
            sequences,
            context,
            pages: (first + kept) as usize..(most + kept) as usize,
            page_bytes,
            keeps: kept_bytes.is_some(),
            kept_snapshots: kept_snapshots as usize,
            bytes: (first + kept).saturating_mul(page_bytes).saturating_add(recurrent_bytes),
            more_bytes_min: least.saturating_sub(first).saturating_mul(page_bytes),
        }
    }

    /// What all pages take that have no memory yet.
    pub(crate) fn more_bytes(&self) -> u64 {
        (self.pages.len() as u64).saturating_mul(self.page_bytes)
    }

    /// The same with pages of no more than `more_bytes` besides those that have their memory.
    pub(crate) fn with_more(mut self, more_bytes: u64) -> Self {
        let more = more_bytes.checked_div(self.page_bytes).unwrap_or(0) as usize;
        self.pages.end = self.pages.end.min(self.pages.start.saturating_add(more));
        self
    }
}
