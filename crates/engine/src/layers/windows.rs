//! The experts of a step of several blocks: each is read once, and multiplied with all its rows. They come in windows of
//! consecutive ids, as many as half of the slots hold. Block by block the outputs of a window are added to the sums of the
//! rows, so a row's are added by ascending id.

use files::{Error, ErrorKind, Result};
use kernels::ops::{ExpertBatch, RoutedRow, Routes, WindowRow};
use store::{ExpertId, ExpertMask, LayerId};

use super::Streams;
use super::moe::{Moe, Waiting};
use crate::bridge::LeasedExpert;
use crate::scratch::Activation;
use crate::step::{Experts, Step, Sweep};

impl Moe {
    /// Adds the experts that the rows of `blocks` have chosen to their sums. Others may run a step between two windows.
    pub(super) fn by_windows(
        &self,
        s: &mut Step<'_>,
        layer: LayerId,
        streams: &Streams<'_>,
        blocks: &mut [Waiting],
    ) -> Result<()> {
        let routes = blocks.iter().map(|block| {
            let routes = s.backend.read_routes(&block.chosen, block.sum.rows(), &self.spec);
            routes.map_err(|e| e.context(format!("layer {}", layer.0)))
        });
        let routes = routes.collect::<Result<Vec<Routes>>>()?;
        let most = blocks.iter().map(|block| block.sum.rows()).max().unwrap_or(0);
        let mut outputs = s.tensor(most * self.spec.top_k, blocks[0].sum.cols())?;
        let experts = self.experts_of(s, layer)?;
        experts.govern();
        routes.iter().for_each(|routes| experts.pool.heat.count(layer, &routes.ids));
        let mut left = wanted(&routes, self.router.rows())?;
        let next = self.sweep_after(&left, experts.more_follows);
        let mut cut: Vec<Cut<'_>> = routes.iter().map(Cut::new).collect();
        while let Some((window, last)) = first(&left, window_experts(self.experts_of(s, layer)?)) {
            for expert in window.iter() {
                left.remove(expert);
            }
            let backend = s.backend;
            let experts = self.experts_of(s, layer)?;
            let rest = Sweep { layer, experts: left.clone() };
            experts.set_coming([rest].into_iter().chain(next.clone()));
            let leased = match self.take(backend, experts, layer, &window) {
                // A long chunk is worth a second try.
                Err(e) if e.kind() == ErrorKind::Io => self.take(backend, experts, layer, &window)?,
                taken => taken?,
            };
            for ((block, cut), x) in blocks.iter_mut().zip(&mut cut).zip(streams.x) {
                let piece = cut.up_to(u32::from(last.0));
                if !piece.rows.is_empty() {
                    let h = s.rms_norm(x, streams.norm)?;
                    add(s, &h, &leased, &piece, &mut outputs, &mut block.sum)?;
                    s.read_ahead();
                }
            }
            backend.release(Box::new(leased));
            backend.reclaim()?;
            s.within_layer(usize::from(layer.0))?;
        }
        if let Some(trace) = &mut s.routes {
            trace.push((layer, joined(routes)));
        }
        Ok(())
    }

    fn experts_of<'a, 'b>(&self, s: &'b mut Step<'a>, layer: LayerId) -> Result<&'b mut Experts<'a>> {
        let layer = layer.0;
        let none = || Error::invalid(format!("layer {layer} routes to experts, but there is no store"));
        s.experts.as_mut().ok_or_else(none)
    }

    /// All experts of a window, once they are there.
    fn take(
        &self,
        backend: &dyn kernels::Backend,
        experts: &mut Experts<'_>,
        layer: LayerId,
        window: &ExpertMask,
    ) -> Result<Vec<LeasedExpert>> {
        let mut leased = self.ask(experts, layer, window)?;
        let count = window.count();
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

/// Adds to `sum`, of a block's rows, what the experts of a window make of their normed streams `h`, both `[rows, hidden]`.
fn add(
    s: &Step<'_>,
    h: &Activation,
    leased: &[LeasedExpert],
    piece: &Piece,
    outputs: &mut Activation,
    sum: &mut Activation,
) -> Result<()> {
    let batches: Vec<_> = leased
        .iter()
        .map(|e| ExpertBatch { weights: e.weights(), rows: piece.rows(e.expert()) })
        .filter(|batch| !batch.rows.is_empty())
        .collect();
    s.backend.expert_mlp(h, &batches, outputs)?;
    s.backend.add_window(outputs, &piece.weights, &piece.sums, sum)
}

/// Experts of a window: while it is multiplied, as many are read. Others may have taken slots between two windows.
fn window_experts(experts: &Experts<'_>) -> usize {
    let slots = experts.pool.store.slots().min(experts.slabs.bound_max());
    (slots / 2).max(1)
}

/// The first `most` experts of `left`, and the last of them.
fn first(left: &ExpertMask, most: usize) -> Option<(ExpertMask, ExpertId)> {
    let last = left.iter().take(most).last()?;
    Some((left.iter().take(most).collect(), last))
}

/// The experts that somebody has chosen, of so many.
fn wanted(routes: &[Routes], experts: usize) -> Result<ExpertMask> {
    let ids = routes.iter().flat_map(|routes| &routes.ids);
    let known = |&id: &u32| match (id as usize) < experts {
        true => Ok(ExpertId(id as u16)),
        false => Err(Error::corrupt(format!("the router chose expert {id} of {experts}"))),
    };
    ids.map(known).collect()
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
    /// A weight for each output.
    weights: Vec<f32>,
    /// What is added to which row.
    sums: Vec<WindowRow>,
}

impl<'a> Cut<'a> {
    fn new(routes: &'a Routes) -> Self {
        Self { routes, done: vec![0; routes.ids.len() / routes.top_k.max(1)] }
    }

    /// The choices up to expert `last` that no window had.
    fn up_to(&mut self, last: u32) -> Piece {
        let (top_k, mut chosen, mut weights, mut sums) =
            (self.routes.top_k, Vec::new(), Vec::new(), Vec::new());
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
        Piece { rows: chosen.into_iter().map(|(_, row)| row).collect(), starts, weights, sums }
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
    fn windows_have_consecutive_experts() {
        let routes = [vec![3, 0], vec![9, 3, 4]].map(|ids| Routes { ids, ..Routes::default() });
        let mut left = wanted(&routes, 10).unwrap();
        let mut windows = Vec::new();
        while let Some((window, last)) = first(&left, 3) {
            for expert in window.iter() {
                left.remove(expert);
            }
            windows.push((window.iter().map(|expert| expert.0).collect::<Vec<_>>(), last.0));
        }
        assert_eq!(windows, [(vec![0, 3, 4], 4), (vec![9], 9)]);
        assert!(wanted(&routes, 9).unwrap_err().message().contains("expert 9 of 9"));
    }

    #[test]
    fn each_choice_is_in_the_window_of_its_expert() {
        let routes =
            Routes { top_k: 2, ids: vec![1, 4, 0, 1, 2, 4], weights: vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6] };
        let mut cut = Cut::new(&routes);
        let first = cut.up_to(1);
        assert_eq!(first.weights, [0.1, 0.3, 0.4]);
        let row = |row, part| RoutedRow { row, part };
        assert_eq!(first.rows(ExpertId(0)), [row(1, 1)]);
        assert_eq!(first.rows(ExpertId(1)), [row(0, 0), row(1, 2)]);
        assert!(first.rows(ExpertId(4)).is_empty());
        let sum = |row, first, count| WindowRow { row, first, count };
        assert_eq!(first.sums, [sum(0, 0, 1), sum(1, 1, 2)]);
        let second = cut.up_to(4);
        assert_eq!(second.weights, [0.2, 0.5, 0.6]);
        assert_eq!(second.rows(ExpertId(4)), [row(0, 0), row(2, 2)]);
        assert_eq!(second.sums, [sum(0, 0, 1), sum(2, 1, 2)]);
    }
}
