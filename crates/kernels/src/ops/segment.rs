//! Whose rows a step has.

use std::ops::Range;

/// Positions of a page of keys and values.
pub const PAGE: usize = 512;

/// Consecutive tokens of one sequence within a step: rows `rows` hold positions `position ..`. Ops that take several
/// take them in the order of their rows, each row in at most one; rows in none are left as they are. One without rows
/// has neither pages nor a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the step's tensors.
    pub rows: Range<usize>,
    /// Position of the first of them in its sequence.
    pub position: usize,
    /// Pages with the sequence's keys and values: position `p` lies in `pages[p / PAGE]`.
    pub pages: Vec<u32>,
    /// Which recurrent states are the sequence's.
    pub slot: u32,
}

impl Segment {
    /// The position after its last row.
    pub fn end(&self) -> usize {
        self.position + self.rows.len()
    }

    /// Its rows, each with its position.
    pub fn positions(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        self.rows.clone().zip(self.position..)
    }
}

/// Rows of all segments.
pub fn rows_of(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.rows.len()).sum()
}
