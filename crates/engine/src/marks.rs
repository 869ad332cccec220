//! Borders that a step passes: positions whose states others may want.

use std::sync::Arc;

use files::Result;

use crate::batch::Part;
use crate::model::Model;
use crate::state::{PartialChunk, Snapshot, StatePool};

/// Whose, and after which token; with their snapshots where layers are recurrent.
pub(crate) type Marks = (Vec<(usize, usize)>, Vec<Snapshot>);

/// Borders that the step passes: whose, by rising position, with memory for their snapshots if layers are recurrent. Where there
/// is none for all of them, those go without that save least.
pub(crate) fn new(parts: &[Part<'_>], states: &mut StatePool) -> Result<Marks> {
    let of = |(i, part): (usize, &Part<'_>)| {
        part.sequence.borders(part.rows).map(move |border| (i, border)).collect()
    };
    let mut marks: Vec<(usize, usize)> = parts.iter().enumerate().flat_map::<Vec<_>, _>(of).collect();
    if !states.ledger().recurrent {
        return Ok((marks, Vec::new()));
    }
    while marks.len() > states.prefixes.snapshots_max() {
        let saves = |at: usize| {
            let (of, border) = marks[at];
            let before = marks[..at].iter().rev().find(|(other, _)| *other == of);
            border - before.map_or(parts[of].sequence.position(), |(_, border)| *border)
        };
        let least = (0..marks.len()).min_by_key(|&at| saves(at));
        least.map(|at| marks.remove(at));
    }
    let snapshots = marks.iter().map(|(_, border)| states.new_snapshot(*border)).collect::<Result<_>>()?;
    Ok((marks, snapshots))
}

/// Those of a step that goes on.
pub(crate) fn of(chunks: &mut [PartialChunk]) -> Marks {
    let (mut marks, mut snapshots) = (Vec::new(), Vec::new());
    for (of, chunk) in chunks.iter_mut().enumerate() {
        for (border, snapshot) in chunk.marks.drain(..) {
            marks.push((of, border));
            snapshots.extend(snapshot);
        }
    }
    (marks, snapshots)
}

/// Keeps the states of borders that a step has passed.
pub(crate) fn keep(
    model: &Model,
    parts: &[Part<'_>],
    marks: &[(usize, usize)],
    snapshots: Vec<Snapshot>,
    states: &mut StatePool,
) {
    let mut snapshots = snapshots.into_iter().map(Arc::new);
    for (of, border) in marks {
        parts[*of].sequence.keep_at(states, *border, snapshots.next());
    }
    if !marks.is_empty() {
        model.states_kept();
    }
}
