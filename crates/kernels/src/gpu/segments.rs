//! Where the rows and the segments of an op are, as shaders are told: one dispatch is for all of them.
//!
//! A lone one is told by immediates, so that a step of one token has no list to wait for; several are in a list among the
//! uploads. The ops of a step have the same lists in common.

use files::{Error, Result};

use super::encoder::Binding;
use super::{GROUPS_MAX, Gpu, State};
use crate::ops::{PAGE, Segment, rows_of};

/// In the place of a list: there is none.
const LONE: u32 = u32::MAX;
/// Words of a row in its list.
const ROW_WORDS: usize = 4;

/// One sequence's positions are split into spans if it has no more rows than these: more keep the device busy without.
const SPLIT_ROWS: usize = 8;
/// Spans are of multiples of so many positions, the threads that share a head's scores ...
pub(super) const SPAN_UNIT: usize = 32;
/// ... and a row has at most so many ...
pub(super) const SPANS_MAX: usize = 64;
/// ... and all rows together: what is left of them is memory.
const PIECES_MAX: usize = SPLIT_ROWS * SPANS_MAX;

/// What a shader is told of rows or segments.
pub(super) struct Places {
    table: (u64, wgpu::Buffer),
    /// The field `rows` or `segments` of its `Params`.
    words: [u32; 4],
}

impl Places {
    /// The table, for dispatches.
    pub(super) fn binding(&self) -> Binding<'_> {
        (self.table.0, &self.table.1)
    }

    /// The fields of `Params`: this one, and then others.
    pub(super) fn params(&self, others: &[u32]) -> Vec<u32> {
        [&self.words[..], others].concat()
    }
}

/// Rows of an op, each with all positions before it.
pub(super) struct Rows {
    pub(super) places: Places,
    /// The position after each row.
    pub(super) ends: Vec<usize>,
    /// Positions that attention takes at a time.
    pub(super) span: usize,
    /// Spans of the rows that have several.
    pub(super) pieces: usize,
}

impl Rows {
    /// How many there are, as a dimension of a dispatch.
    pub(super) fn count(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Spans of the row that has most.
    pub(super) fn spans(&self) -> usize {
        self.ends.iter().max().map_or(0, |longest| longest.div_ceil(self.span))
    }
}

/// What is left of a row's spans, if that is not its answer.
fn pieces(end: usize, span: usize) -> usize {
    Some(end.div_ceil(span)).filter(|&spans| spans > 1).unwrap_or(0)
}

/// Positions of a span for rows that end there: as few as leave no more than [`PIECES_MAX`], as the longest row takes as long
/// as its spans.
fn span_of(ends: &[usize], is_one_sequence: bool) -> usize {
    let longest = ends.iter().copied().max().unwrap_or(0).max(1);
    if is_one_sequence && ends.len() > SPLIT_ROWS {
        return longest.next_multiple_of(SPAN_UNIT);
    }
    let mut span = longest.div_ceil(SPANS_MAX).next_multiple_of(SPAN_UNIT);
    while ends.iter().map(|&end| pieces(end, span)).sum::<usize>() > PIECES_MAX {
        span *= 2;
    }
    span
}

/// A dimension of a dispatch.
fn fits(count: usize, what: &str) -> Result<()> {
    if count <= GROUPS_MAX as usize {
        return Ok(());
    }
    Err(Error::unsupported(format!("{count} {what} in one step on the GPU")))
}

/// A row's pages may be fewer than it has positions, in ops without a cache.
fn pages(segment: &Segment) -> &[u32] {
    &segment.pages[..segment.end().div_ceil(PAGE).min(segment.pages.len())]
}

/// The list of the rows of segments, `rows` in all, and their pages.
fn list_of(segments: &[&Segment], rows: usize, span: usize) -> Vec<u32> {
    let mut list = Vec::with_capacity(rows * ROW_WORDS);
    let (mut pages_at, mut first_piece) = (rows * ROW_WORDS, 0);
    for segment in segments {
        for (row, position) in segment.rows.clone().zip(segment.position..) {
            // Pages are counted from the start of the list, so that it is the same wherever it lies.
            list.extend([row, position, pages_at, first_piece].map(|n| n as u32));
            first_piece += pieces(position + 1, span);
        }
        pages_at += pages(segment).len();
    }
    segments.iter().for_each(|segment| list.extend(pages(segment)));
    list
}

impl Gpu {
    /// Tells of the rows of segments, as `rows.wgsl` reads it.
    pub(super) fn place_rows(&self, state: &mut State, segments: &[Segment]) -> Result<Rows> {
        fits(rows_of(segments), "rows")?;
        let segments: Vec<&Segment> = segments.iter().filter(|s| !s.rows.is_empty()).collect();
        let ends: Vec<usize> = segments.iter().flat_map(|s| s.position + 1..=s.end()).collect();
        let span = span_of(&ends, segments.len() == 1);
        let pieces = ends.iter().map(|&end| pieces(end, span)).sum();
        let places = if let ([segment], [end]) = (&segments[..], &ends[..]) {
            let (table, pages_at) = self.upload_table(state, pages(segment))?;
            Places { table, words: [segment.rows.start as u32, *end as u32 - 1, pages_at, LONE] }
        } else {
            let (table, first) = self.upload_table(state, &list_of(&segments, ends.len(), span))?;
            Places { table, words: [0, 0, 0, first] }
        };
        Ok(Rows { places, ends, span, pieces })
    }

    /// Tells of segments that have rows, as `segments.wgsl` reads it.
    pub(super) fn place_segments(&self, state: &mut State, segments: &[&Segment]) -> Result<Places> {
        fits(segments.len(), "sequences")?;
        let words_of = |s: &Segment| [s.rows.start as u32, s.rows.len() as u32, s.slot];
        if let [segment] = segments {
            let [first, rows, slot] = words_of(segment);
            let (table, _) = self.upload_table(state, &[])?;
            return Ok(Places { table, words: [first, rows, slot, LONE] });
        }
        let list: Vec<u32> = segments.iter().flat_map(|segment| words_of(segment)).collect();
        let (table, first) = self.upload_table(state, &list)?;
        Ok(Places { table, words: [0, 0, 0, first] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(ends: &[usize], span: usize) -> usize {
        ends.iter().map(|&end| pieces(end, span)).sum()
    }

    #[test]
    fn spans_fit_what_is_left_of_them() {
        assert_eq!(span_of(&[], false), 32);
        // One sequence: a token, a few, and a part of a prompt.
        assert_eq!((span_of(&[1], true), span_of(&[2048], true), span_of(&[2049], true)), (32, 32, 64));
        let few: Vec<usize> = (32_761..=32_768).collect();
        assert_eq!((span_of(&few, true), left(&few, 512)), (512, PIECES_MAX));
        let many: Vec<usize> = (4001..=4009).collect();
        assert_eq!((span_of(&many, true), left(&many, 4032)), (4032, 0));
        // Tokens of many sequences; and of a few long ones beside a part of a prompt.
        assert_eq!(span_of(&[500; 16], false), 32);
        assert_eq!(span_of(&[500; 64], false), 64);
        let mixed: Vec<usize> = (1..=2048).chain([32_768; 8]).collect();
        assert_eq!((span_of(&mixed, false), left(&mixed, 2048)), (2048, 128));
    }
}
