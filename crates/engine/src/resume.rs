//! A step that breaks off between two layers leaves what it has computed for whoever asks for the same tokens again, and a step
//! that goes on there.

use std::ops::Range;

use files::Result;
use kernels::ops::Segment;

use crate::batch::Part;
use crate::marks::Marks;
use crate::model::Model;
use crate::round::RowBlock;
use crate::scratch::Activation;
use crate::sequence::Sequence;
use crate::state::{PartialChunk, Resume, StatePool};
use crate::step::PartialStep;

/// How many of its pending tokens each of `sequences` gets into a step that has `room`. Where chunks broke off those go on that
/// can do so together. Else the first come first, but half of the room is for the others: nobody waits for more than a chunk.
/// `None` is no part of it.
pub(crate) fn pack<'a>(
    sequences: impl Iterator<Item = Option<&'a Sequence>> + Clone,
    mut room: usize,
) -> Vec<usize> {
    let resume = |sequence: &Sequence| sequence.resumes.clone().filter(Resume::is_there);
    let first = sequences.clone().flatten().find_map(resume);
    let later = sequences.clone().flatten().skip(1);
    let promised = room / 2 / later.clone().count().max(1);
    let mut promised_all: usize = later.map(|sequence| sequence.pending().min(promised)).sum();
    let mut is_first = true;
    let rows = |sequence: Option<&Sequence>| {
        let Some(sequence) = sequence else { return 0 };
        let Some(first) = &first else {
            if !std::mem::take(&mut is_first) {
                promised_all -= sequence.pending().min(promised);
            }
            let rows = sequence.pending().min(room - promised_all);
            room -= rows;
            return rows;
        };
        let same = resume(sequence).filter(|resume| resume.layers_done == first.layers_done);
        same.map_or(0, |resume| resume.end - sequence.position())
    };
    sequences.map(rows).collect()
}

/// The chunks with which all of `parts` go on; none where they begin. A chunk that is gone is a beginning of as many rows as a
/// step has.
pub(crate) fn take(model: &Model, parts: &mut [Part<'_>], states: &mut StatePool) -> Vec<PartialChunk> {
    let wanted: Vec<Option<Resume>> = parts.iter_mut().map(|part| part.sequence.resumes.take()).collect();
    let layers_done = wanted.first().and_then(|first| Some(first.as_ref()?.layers_done));
    let resumes = |(part, wanted): (&Part<'_>, &Option<Resume>)| {
        wanted.as_ref().is_some_and(|resume| {
            Some(resume.layers_done) == layers_done && resume.end == part.sequence.position() + part.rows
        })
    };
    let all = parts.iter().zip(&wanted).all(resumes);
    let taken = wanted.iter().map(|wanted| states.partial_chunks.take(wanted.as_ref().filter(|_| all)?));
    let taken: Option<Vec<PartialChunk>> = taken.collect();
    if taken.is_none() {
        let most = (model.chunk_tokens() / parts.len()).max(1);
        for part in parts.iter_mut().zip(&wanted).filter(|(_, wanted)| wanted.is_some()).map(|(part, _)| part)
        {
            part.begin(most);
        }
    }
    taken.unwrap_or_default()
}

/// The residual streams of `blocks`, of which each segment has those of a chunk.
pub(crate) fn streams(
    model: &Model,
    blocks: &[RowBlock],
    segments: &[Segment],
    chunks: &[PartialChunk],
) -> Result<Option<PartialStep>> {
    let Some(first) = chunks.first() else { return Ok(None) };
    let cols = first.x.cols();
    let stream = |block: &RowBlock| {
        let mut x = model.scratch.tensor(block.rows.len(), cols)?;
        for (segment, chunk) in segments.iter().zip(chunks) {
            copy_rows(model, (&chunk.x, segment.rows.start), (&mut x, block.rows.start), &segment.rows)?;
        }
        Ok(x)
    };
    let x = blocks.iter().map(stream).collect::<Result<_>>()?;
    Ok(Some(PartialStep { layers_done: first.layers_done, x }))
}

/// Keeps what a step has computed that broke off. What cannot be kept is computed again.
pub(crate) fn keep(
    model: &Model,
    parts: &[Part<'_>],
    segments: &[Segment],
    blocks: &[RowBlock],
    partial: &PartialStep,
    (marks, snapshots): Marks,
    states: &mut StatePool,
) {
    if !states.prefixes.has_room(states.ledger().recurrent) {
        return;
    }
    let mut snapshots = snapshots.into_iter();
    let mut marks_of: Vec<_> = parts.iter().map(|_| Vec::new()).collect();
    for (of, border) in marks {
        marks_of[of].push((border, snapshots.next()));
    }
    for ((part, segment), marks) in parts.iter().zip(segments).zip(marks_of) {
        if !part.sequence.shares {
            continue;
        }
        let kept = own_rows(model, blocks, partial, segment).and_then(|x| {
            let tokens = part.sequence.tokens()[..part.sequence.position() + segment.rows.len()].to_vec();
            PartialChunk::new(&part.sequence.state, states, tokens, partial.layers_done, x, marks)
        });
        if let Ok(kept) = kept {
            states.partial_chunks.keep(kept);
        }
    }
}

/// `[rows, hidden]` of one segment.
fn own_rows(
    model: &Model,
    blocks: &[RowBlock],
    partial: &PartialStep,
    segment: &Segment,
) -> Result<Activation> {
    let mut own = model.scratch.tensor(segment.rows.len(), partial.x[0].cols())?;
    for (block, x) in blocks.iter().zip(&partial.x) {
        copy_rows(model, (x, block.rows.start), (&mut own, segment.rows.start), &segment.rows)?;
    }
    Ok(own)
}

/// Copies those of the step's `rows` that both tensors have; each begins with one of them.
fn copy_rows(
    model: &Model,
    (from, from_row): (&Activation, usize),
    (to, to_row): (&mut Activation, usize),
    rows: &Range<usize>,
) -> Result<()> {
    let start = from_row.max(to_row).max(rows.start);
    let end = (from_row + from.rows()).min(to_row + to.rows()).min(rows.end);
    if start >= end {
        return Ok(());
    }
    let row_bytes = 4 * from.cols();
    let range = (start - from_row) * row_bytes..(end - from_row) * row_bytes;
    model.backend.copy(from.block(), range, to.block_mut(), (start - to_row) * row_bytes)
}
