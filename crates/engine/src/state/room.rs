//! How much of what sequences remember there is room for.

use super::{LayerShape, pages};

/// No more is kept for prompts to come than so many sequences of the largest size have.
const KEPT_SEQUENCES: u64 = 16;

/// Snapshots that are kept at least, where anything is: the ends of the last two prompts.
const KEPT_SNAPSHOTS_MIN: u64 = 2;

/// Pages that are kept with a snapshot: one of each so many positions.
const PAGES_PER_SNAPSHOT: u64 = 4;

/// States that live at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// Sequences.
    pub(crate) sequences: usize,
    /// Positions of the largest.
    pub(crate) context: usize,
    /// Pages of all sequences, living or kept.
    pub(crate) pages: usize,
    /// Whether beginnings are kept for others.
    pub(crate) keeps: bool,
    /// Snapshots of those.
    pub(crate) kept_snapshots: usize,
    /// All of it.
    pub(crate) bytes: u64,
}

impl Room {
    /// For `sequences` sequences of up to `context` positions with layers of `shapes`, and in about `kept_bytes` beginnings of
    /// others that have ended; `None` keeps nothing. Not all sequences can be the largest at once where their pages would
    /// take more than `pages_bytes`; one always can.
    pub(crate) fn new(
        shapes: &[LayerShape],
        sequences: usize,
        context: usize,
        kept_bytes: Option<u64>,
        pages_bytes: u64,
    ) -> Self {
        let page: u64 = shapes.iter().map(LayerShape::page_bytes).sum();
        let recurrent: u64 = shapes.iter().map(LayerShape::recurrent_bytes).sum();
        let [one, all] = [1, sequences as u64].map(|sequences| sequences * pages(context) as u64);
        let living =
            pages_bytes.checked_div(page).unwrap_or(0).clamp(one + sequences as u64 - 1, all.max(one));
        // Each goes on from one state, and goes back to another when a step fails.
        let states = 2 * sequences as u64;
        let largest = pages(context) as u64 * page + recurrent;
        let bytes = kept_bytes.unwrap_or(0).min(largest.saturating_mul(KEPT_SEQUENCES));
        let least = if kept_bytes.is_some() { KEPT_SNAPSHOTS_MIN } else { 0 };
        let kept_snapshots = match recurrent {
            0 => 0,
            recurrent => least.max(bytes / (recurrent + PAGES_PER_SNAPSHOT * page)),
        };
        let kept_pages = bytes.saturating_sub(kept_snapshots * recurrent).checked_div(page).unwrap_or(0);
        let pages = living + kept_pages;
        Self {
            sequences,
            context,
            pages: pages as usize,
            keeps: kept_bytes.is_some(),
            kept_snapshots: kept_snapshots as usize,
            bytes: pages
                .saturating_mul(page)
                .saturating_add((states + kept_snapshots).saturating_mul(recurrent)),
        }
    }
}
