//! The experts of a step of several blocks: each is read once, and multiplied with all its rows. They come in windows of
//! consecutive ids, since the memory for outputs has a place for each row of the step and no more; a row's outputs are added
//! to its sum window by window, so by ascending id.

use files::{Error, Result};
use kernels::ops::{ExpertBatch, RoutedRow, Routes, WindowRow};
use store::{ExpertId, ExpertMask, LayerId};

use super::moe::{Moe, Waiting};
use crate::bridge::LeasedExpert;
use crate::step::{Experts, Step};

/// Experts of consecutive ids, those that some row has chosen.
type Window = Vec<ExpertId>;

impl Moe {
    /// Adds the experts that the rows of `blocks` have chosen to their sums.
    pub(super) fn by_windows(&self, s: &mut Step<'_>, layer: LayerId, blocks: &mut [Waiting]) -> Result<()> {
        let routes = blocks.iter().map(|block| {
            let routes = s.backend.read_routes(&block.chosen, block.h.rows(), &self.spec);
            routes.map_err(|e| e.context(format!("layer {}", layer.0)))
        });
        let routes = routes.collect::<Result<Vec<Routes>>>()?;
        let counts = counts(&routes, self.router.rows())?;
        let rows: usize = blocks.iter().map(|block| block.h.rows()).sum();
        let mut outputs = s.tensor(rows, blocks[0].h.cols())?;
        let Some(experts) = &mut s.experts else {
            let layer = layer.0;
            return Err(Error::invalid(format!("layer {layer} routes to experts, but there is no store")));
        };
        experts.pool.govern();
        // Two windows have slots: one is read while the other is multiplied.
        let slots = experts.pool.store.slots().min(experts.slabs.bound_max());
        let windows = windows(&counts, rows, (slots / 2).max(1));
        experts.sweep = self.sweep_after(&windows.iter().flatten().copied().collect(), experts.more_follows);
        let mut cut: Vec<Cut<'_>> = routes.iter().map(Cut::new).collect();
        let mut here = match windows.first() {
            Some(first) => self.ask(experts, layer, &mask(first))?,
            None => Vec::new(),
        };
        for (i, window) in windows.iter().enumerate() {
            let leased = self.take(s.backend, experts, here, window.len())?;
            here = match windows.get(i + 1) {
                // With one slot the next expert has none before this one is multiplied.
                Some(next) if slots > 1 => self.ask(experts, layer, &mask(next))?,
                _ => Vec::new(),
            };
            experts.read_ahead();
            let last = window.last().map_or(0, |expert| u32::from(expert.0));
            let (mut weights, mut sums) = (Vec::new(), Vec::new());
            for (cut, block) in cut.iter_mut().zip(&*blocks) {
                let piece = cut.up_to(last, &mut weights);
                let batches: Vec<_> = leased
                    .iter()
                    .map(|e| ExpertBatch { weights: e.weights(), rows: piece.rows(e.expert()) })
                    .filter(|batch| !batch.rows.is_empty())
                    .collect();
                if !batches.is_empty() {
                    s.backend.expert_mlp(&block.h, &batches, &mut outputs)?;
                }
                sums.push(piece.sums);
            }
            for (block, rows) in blocks.iter_mut().zip(&sums).filter(|(_, rows)| !rows.is_empty()) {
                s.backend.add_window(&outputs, &weights, rows, &mut block.sum)?;
            }
            s.backend.release(Box::new(leased));
            s.backend.reclaim()?;
            if let (1, Some(next)) = (slots, windows.get(i + 1)) {
                here = self.ask(experts, layer, &mask(next))?;
            }
        }
        if let Some(trace) = &mut s.routes {
            trace.push((layer, joined(routes)));
        }
        Ok(())
    }

    /// Waits for all `count` experts of a window, of which a device has those that are `here`.
    fn take(
        &self,
        backend: &dyn kernels::Backend,
        experts: &mut Experts<'_>,
        here: Vec<LeasedExpert>,
        count: usize,
    ) -> Result<Vec<LeasedExpert>> {
        let mut leased = here;
        while leased.len() < count {
            let leases = experts.pool.store.next_batch(count - leased.len())?;
            if leases.is_empty() {
                let have = leased.len();
                return Err(Error::invalid(format!(
                    "{have} of {count} experts came: the others were not asked for"
                )));
            }
            experts.read_ahead();
            for lease in leases {
                leased.push(LeasedExpert::new(backend, experts.slabs, &self.expert, lease)?);
            }
        }
        Ok(leased)
    }
}

fn mask(window: &[ExpertId]) -> ExpertMask {
    window.iter().copied().collect()
}

/// How many rows each of so many `experts` has.
fn counts(routes: &[Routes], experts: usize) -> Result<Vec<usize>> {
    let mut counts = vec![0; experts];
    for &id in routes.iter().flat_map(|routes| &routes.ids) {
        let count = counts.get_mut(id as usize);
        *count.ok_or_else(|| Error::corrupt(format!("the router chose expert {id} of {experts}")))? += 1;
    }
    Ok(counts)
}

/// Windows of at most `experts` experts and `outputs` rows together; no expert has more.
fn windows(counts: &[usize], outputs: usize, experts: usize) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let mut left = 0;
    for (id, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let id = ExpertId(id as u16);
        match windows.last_mut().filter(|window| window.len() < experts && count <= left) {
            Some(window) => window.push(id),
            None => {
                windows.push(vec![id]);
                left = outputs;
            }
        }
        left -= count;
    }
    windows
}

/// What the rows of one block have chosen, window after window.
struct Cut<'a> {
    routes: &'a Routes,
    /// How many of each row's choices earlier windows had.
    done: Vec<usize>,
}

/// One window of it.
struct Piece {
    /// Rows of each expert, in the order of the experts; which, and where the first of each is.
    rows: Vec<RoutedRow>,
    starts: Vec<(ExpertId, usize)>,
    /// What is added to which row.
    sums: Vec<WindowRow>,
}

impl<'a> Cut<'a> {
    fn new(routes: &'a Routes) -> Self {
        Self { routes, done: vec![0; routes.ids.len() / routes.top_k.max(1)] }
    }

    /// The choices up to expert `last` that no window had; a weight for each output goes to the end of `weights`.
    fn up_to(&mut self, last: u32, weights: &mut Vec<f32>) -> Piece {
        let (top_k, mut chosen, mut sums) = (self.routes.top_k, Vec::new(), Vec::new());
        for (row, done) in self.done.iter_mut().enumerate() {
            let range = row * top_k + *done..(row + 1) * top_k;
            let ids = &self.routes.ids[range.clone()];
            let count = ids.iter().take_while(|&&id| id <= last).count();
            if count == 0 {
                continue;
            }
            let first = weights.len();
            weights.extend_from_slice(&self.routes.weights[range][..count]);
            let outputs = ids[..count].iter().zip(first as u32..);
            chosen.extend(outputs.map(|(&id, part)| (id, RoutedRow { row: row as u32, part })));
            sums.push(WindowRow { row: row as u32, first: first as u32, count: count as u32 });
            *done += count;
        }
        chosen.sort_by_key(|(id, _)| *id); // within one the order of the rows stays
        let mut starts: Vec<(ExpertId, usize)> = Vec::new();
        for (at, (id, _)) in chosen.iter().enumerate() {
            if starts.last().is_none_or(|(other, _)| u32::from(other.0) != *id) {
                starts.push((ExpertId(*id as u16), at));
            }
        }
        Piece { rows: chosen.into_iter().map(|(_, row)| row).collect(), starts, sums }
    }
}

impl Piece {
    fn rows(&self, expert: ExpertId) -> &[RoutedRow] {
        let Some(at) = self.starts.iter().position(|(id, _)| *id == expert) else { return &[] };
        let end = self.starts.get(at + 1).map_or(self.rows.len(), |(_, start)| *start);
        &self.rows[self.starts[at].1..end]
    }
}

/// Of all blocks, in the order of the rows.
fn joined(routes: Vec<Routes>) -> Routes {
    let mut all = Routes::default();
    for mut routes in routes {
        all.top_k = routes.top_k;
        all.ids.append(&mut routes.ids);
        all.weights.append(&mut routes.weights);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_consecutive_experts_that_fit() {
        let of = |counts: &[usize], outputs, experts| -> Vec<Vec<u16>> {
            let windows = windows(counts, outputs, experts);
            windows.iter().map(|window| window.iter().map(|expert| expert.0).collect()).collect()
        };
        assert_eq!(of(&[2, 0, 3, 5, 1, 1], 6, 10), [vec![0, 2], vec![3, 4], vec![5]]);
        assert_eq!(of(&[1, 1, 1], 6, 2), [vec![0, 1], vec![2]]);
        assert_eq!(of(&[6, 6], 6, 9), [vec![0], vec![1]]);
        assert!(of(&[0, 0], 6, 9).is_empty());
    }

    #[test]
    fn each_choice_is_in_the_window_of_its_expert() {
        let routes =
            Routes { top_k: 2, ids: vec![1, 4, 0, 1, 2, 4], weights: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6] };
        let mut cut = Cut::new(&routes);
        let mut weights = Vec::new();
        let first = cut.up_to(1, &mut weights);
        assert_eq!(weights, [0.1, 0.3, 0.4]);
        let row = |row, part| RoutedRow { row, part };
        assert_eq!(first.rows(ExpertId(0)), [row(1, 1)]);
        assert_eq!(first.rows(ExpertId(1)), [row(0, 0), row(1, 2)]);
        assert!(first.rows(ExpertId(4)).is_empty());
        let sum = |row, first, count| WindowRow { row, first, count };
        assert_eq!(first.sums, [sum(0, 0, 1), sum(1, 1, 2)]);
        weights.clear();
        let second = cut.up_to(4, &mut weights);
        assert_eq!((weights, second.rows(ExpertId(4))), (vec![0.2, 0.5, 0.6], &[row(0, 0), row(2, 2)][..]));
        assert_eq!(second.sums, [sum(0, 0, 1), sum(2, 1, 2)]);
    }
}
