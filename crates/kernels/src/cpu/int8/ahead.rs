//! Weights that are asked for before their turn, so that memory is at work while vectors are.

use std::ops::Range;

use super::Source;
use crate::cpu::simd::Simd;

/// Bytes of a weight that are asked for ahead of time, as far as whole panels fit into them, but at least one panel: the
/// short rows of an expert need several, or memory is waited for.
const AHEAD: usize = 40 << 10;
/// The same where rows are long: bytes of each row.
const ALONG: usize = 512;
const LINE_BYTES: usize = 64;

/// What is asked for while one of `panels` panels from `source` on is multiplied: another of them, or of those at `next`.
#[inline(always)]
pub(super) fn later<S: Simd>(
    source: &Source,
    next: [*const u8; 3],
    panels: usize,
    panel: usize,
) -> [*const u8; 3] {
    let later = (AHEAD / (S::LANES * source.strides[0])).clamp(1, panels);
    panel_of::<S>(source, next, panels, panel + later)
}

/// Where panel `panel` begins: one of `panels` from `source` on, or one of those at `next`, which come after them.
#[inline(always)]
fn panel_of<S: Simd>(source: &Source, next: [*const u8; 3], panels: usize, panel: usize) -> [*const u8; 3] {
    if panel < panels {
        source.below(panel * S::LANES).rows
    } else {
        Source { rows: next, ..*source }.below((panel - panels) * S::LANES).rows
    }
}

/// Memory that is asked for before its turn, a little with each block.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    at: *const u8,
    /// To the next line of the column, of which this many are left.
    apart: usize,
    left: usize,
    /// Where the column is in its rows.
    column: usize,
    rows: *const u8,
    row_bytes: usize,
    /// The rows after these.
    below: *const u8,
    /// Bytes that have been asked for, that were to be, and what a block adds.
    asked: usize,
    until: usize,
    step: usize,
}

impl Ahead {
    /// The share that `blocks` of `of` have in a panel from `next` on.
    #[inline(always)]
    pub(super) fn new<S: Simd>(
        source: &Source,
        next: [*const u8; 3],
        blocks: Range<usize>,
        of: usize,
    ) -> Self {
        let step = S::LANES * source.strides[0] / of;
        let (at, none) = (next[0].wrapping_add(blocks.start * step), std::ptr::null());
        // One column of all lines.
        let (apart, left) = (LINE_BYTES, usize::MAX);
        Self { at, apart, left, column: 0, rows: none, row_bytes: 0, below: none, asked: 0, until: 0, step }
    }

    /// What panel `panel` of `panels` from `source` on, of `blocks` blocks, asks for while it is multiplied with one row.
    /// The lines of long rows are asked for in the order in which they are read, column after column, because processors
    /// then guess what comes; those of short ones are asked for earlier than that.
    #[inline(always)]
    pub(super) fn of_panel<S: Simd>(
        source: &Source,
        next: [*const u8; 3],
        panels: usize,
        panel: usize,
        blocks: usize,
    ) -> Self {
        let row_bytes = source.strides[0];
        if row_bytes < 2 * ALONG {
            return Self::new::<S>(source, later::<S>(source, next, panels, panel), 0..blocks, blocks);
        }
        let rows = source.below(panel * S::LANES).rows[0];
        Self {
            at: rows.wrapping_add(ALONG),
            apart: row_bytes,
            left: S::LANES,
            column: ALONG,
            rows,
            row_bytes,
            below: panel_of::<S>(source, next, panels, panel + 1)[0],
            asked: 0,
            until: 0,
            step: S::LANES * row_bytes / blocks,
        }
    }

    /// # Safety
    /// The features of `S` are present.
    #[inline(always)]
    pub(super) unsafe fn block<S: Simd>(&mut self) {
        self.until += self.step;
        while self.asked < self.until {
            // SAFETY: as the caller promises; a prefetch may name any address.
            unsafe { S::prefetch(self.at) };
            self.asked += LINE_BYTES;
            self.at = self.at.wrapping_add(self.apart);
            self.left -= 1;
            if self.left == 0 {
                self.left = S::LANES;
                self.column += LINE_BYTES;
                if self.column >= self.row_bytes {
                    (self.column, self.rows) = (0, self.below);
                }
                self.at = self.rows.wrapping_add(self.column);
            }
        }
    }
}

/// Asks for the share of `chunk` of `blocks` blocks in the parts that hold scales, from `next` on.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn prefetch_scales<S: Simd>(
    source: &Source,
    next: [*const u8; 3],
    chunk: &Range<usize>,
    blocks: usize,
) {
    for part in 1..3 {
        let bytes = S::LANES * source.strides[part];
        if bytes > 0 {
            for at in (bytes * chunk.start / blocks..bytes * chunk.end / blocks).step_by(LINE_BYTES) {
                // SAFETY: as the caller promises; a prefetch may name any address.
                unsafe { S::prefetch(next[part].wrapping_add(at)) };
            }
        }
    }
}
