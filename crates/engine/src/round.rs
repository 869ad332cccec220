//! Recurrent states in the midst of a step: where one is wanted, rows before and after it go one after the other.

use std::ops::Range;

use kernels::ops::Segment;

/// Rows that recurrent layers take at once, at most one segment of each sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// In the order of the rows.
    pub(crate) segments: Vec<Segment>,
    /// Whose states are copied when they are done.
    pub(crate) ends: Vec<RoundEnd>,
}

/// A state that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RoundEnd {
    /// The sequence's.
    pub(crate) slot: u32,
    /// To which of the step's snapshots.
    pub(crate) snapshot: usize,
}

impl Round {
    /// All rows at once.
    pub(crate) fn whole(segments: &[Segment]) -> Self {
        Self { segments: segments.to_vec(), ends: Vec::new() }
    }
}

/// Rows of a step that go through mixers and norms together. Of a long prompt they are a part: then experts, which are read
/// once for all blocks, follow when all blocks are there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RowBlock {
    /// The step's rows.
    pub(crate) rows: Range<usize>,
    /// Whose they are, counted from the block's first row.
    pub(crate) segments: Vec<Segment>,
    /// The same for layers with recurrent states, which are wanted of some positions in the midst.
    pub(crate) rounds: Vec<Round>,
}

impl RowBlock {
    /// All rows of `segments`, of which no state is wanted in the midst.
    pub(crate) fn whole(segments: &[Segment]) -> Self {
        let rows = 0..segments.last().map_or(0, |segment| segment.rows.end);
        Self { rows, segments: segments.to_vec(), rounds: vec![Round::whole(segments)] }
    }
}

/// Blocks of at most `block_rows` rows of `segments`. States are wanted at `marks`: which segment's, and after which position;
/// by rising position, within the segments' rows.
pub(crate) fn row_blocks(segments: &[Segment], marks: &[(usize, usize)], block_rows: usize) -> Vec<RowBlock> {
    let all = segments.last().map_or(0, |segment| segment.rows.end);
    let block = |first: usize| {
        let rows = first..all.min(first + block_rows);
        let (mut pieces, mut wanted) = (Vec::new(), Vec::new());
        for (at, segment) in segments.iter().enumerate() {
            let own = segment.rows.start.max(rows.start)..segment.rows.end.min(rows.end);
            if own.is_empty() {
                continue;
            }
            let position = segment.position + own.start - segment.rows.start;
            let here = position + 1..=position + own.len();
            let marked = marks
                .iter()
                .enumerate()
                .filter(|(_, (of, at_position))| *of == at && here.contains(at_position));
            wanted.extend(marked.map(|(snapshot, (_, position))| Mark {
                segment: pieces.len(),
                position: *position,
                snapshot,
            }));
            pieces.push(Segment { rows: own.start - first..own.end - first, position, ..segment.clone() });
        }
        let rounds = rounds(&pieces, &wanted);
        RowBlock { rows, segments: pieces, rounds }
    };
    (0..all).step_by(block_rows.max(1)).map(block).collect()
}

/// A state that is wanted: after which position of which segment, and to which of the step's snapshots it goes.
struct Mark {
    segment: usize,
    position: usize,
    snapshot: usize,
}

fn rounds(segments: &[Segment], marks: &[Mark]) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let mut rest = segment.clone();
        let mut round = 0;
        let mut put = |piece: Segment, ends: Vec<RoundEnd>| {
            if rounds.len() == round {
                rounds.push(Round { segments: Vec::new(), ends: Vec::new() });
            }
            rounds[round].segments.push(piece);
            rounds[round].ends.extend(ends);
            round += 1;
        };
        for &Mark { position, snapshot, .. } in marks.iter().filter(|mark| mark.segment == at) {
            let middle = rest.rows.start + position - rest.position;
            let piece = Segment { rows: rest.rows.start..middle, ..rest.clone() };
            rest = Segment { rows: middle..rest.rows.end, position, ..rest };
            put(piece, vec![RoundEnd { slot: segment.slot, snapshot }]);
        }
        if !rest.rows.is_empty() {
            put(rest, Vec::new());
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(rows: std::ops::Range<usize>, position: usize, slot: u32) -> Segment {
        Segment { rows, position, pages: vec![slot], slot }
    }

    #[test]
    fn rows_are_cut_where_a_state_is_wanted() {
        let all = [segment(0..4, 10, 3), segment(4..9, 0, 1)];
        assert_eq!(row_blocks(&all, &[], 9), [RowBlock::whole(&all)]);
        let marks = [(0, 14), (1, 2), (1, 3)];
        let cut = &row_blocks(&all, &marks, 100)[0].rounds;
        let end = |slot, snapshot| RoundEnd { slot, snapshot };
        let expected = [
            Round {
                segments: vec![segment(0..4, 10, 3), segment(4..6, 0, 1)],
                ends: vec![end(3, 0), end(1, 1)],
            },
            Round { segments: vec![segment(6..7, 2, 1)], ends: vec![end(1, 2)] },
            Round { segments: vec![segment(7..9, 3, 1)], ends: vec![] },
        ];
        assert_eq!(*cut, expected);
        let blocks = row_blocks(&all, &marks, 6);
        assert_eq!([blocks[0].rows.clone(), blocks[1].rows.clone()], [0..6, 6..9]);
        assert_eq!(blocks[0].segments, [segment(0..4, 10, 3), segment(4..6, 0, 1)]);
        assert_eq!(blocks[1].segments, [segment(0..3, 2, 1)]);
        let whole = Round { segments: blocks[0].segments.clone(), ends: vec![end(3, 0), end(1, 1)] };
        assert_eq!(blocks[0].rounds, [whole]);
        let first = Round { segments: vec![segment(0..1, 2, 1)], ends: vec![end(1, 2)] };
        let last = Round { segments: vec![segment(1..3, 3, 1)], ends: vec![] };
        assert_eq!(blocks[1].rounds, [first, last]);
    }
}
