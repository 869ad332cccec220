//! Recurrent states in the midst of a step: where one is wanted, rows before and after it go one after the other.

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

/// The rounds of `segments` whose states are wanted at `marks`: which segment's, and after which position; by rising
/// position, within the segments' rows.
pub(crate) fn rounds(segments: &[Segment], marks: &[(usize, usize)]) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let wanted = marks.iter().enumerate().filter(|(_, (of, _))| *of == at);
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
        for (snapshot, (_, position)) in wanted {
            let rows = position - rest.position;
            let middle = rest.rows.start + rows;
            let piece = Segment { rows: rest.rows.start..middle, ..rest.clone() };
            rest = Segment { rows: middle..rest.rows.end, position: *position, ..rest };
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
        assert_eq!(rounds(&all, &[]), [Round::whole(&all)]);
        let cut = rounds(&all, &[(0, 14), (1, 2), (1, 3)]);
        let end = |slot, snapshot| RoundEnd { slot, snapshot };
        let expected = [
            Round {
                segments: vec![segment(0..4, 10, 3), segment(4..6, 0, 1)],
                ends: vec![end(3, 0), end(1, 1)],
            },
            Round { segments: vec![segment(6..7, 2, 1)], ends: vec![end(1, 2)] },
            Round { segments: vec![segment(7..9, 3, 1)], ends: vec![] },
        ];
        assert_eq!(cut, expected);
    }
}
