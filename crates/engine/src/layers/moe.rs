//! Routed experts: where what the drive reads is multiplied.

use files::{Error, Result};
use kernels::ops::{
    ExpertBatch, ExpertTable, MlpWeights, RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput, RoutedRow,
    Routes, SharedOutput, WindowRow,
};
use kernels::{Tensor, Weight};
use store::{ExpertId, ExpertMask, LayerId};

use super::{Begun, Meanwhile, Mlp, Streams};
use crate::bridge::{ExpertShape, LeasedExpert};
use crate::lookahead::Guess;
use crate::scratch::{Activation, RouteActivation};
use crate::step::{Branch, Experts, Parts, Step, Sweep};

/// The weights of one mixture-of-experts layer that are always needed, and the shape of those on disk.
pub(crate) struct Moe {
    /// `[experts, hidden]`
    pub(crate) router: Weight,
    /// Top-k and normalisation.
    pub(crate) spec: RouteSpec,
    /// Formats and sizes of one expert.
    pub(crate) expert: ExpertShape,
    /// The expert that every token uses.
    pub(crate) shared: Option<SharedExpert>,
    /// The next such layer, the first after the last.
    pub(crate) next: Sweep,
    /// Whether `next` belongs to the next step.
    pub(crate) is_last: bool,
}

/// From this share of a layer's experts on, the step will need as good as all of the next layer's too: they are
/// read before their router has run. What that reads in vain stays below 2 %.
const SWEEP_COVERAGE: f64 = 0.98;

/// The expert that every token uses, and the gate on it.
pub(crate) struct SharedExpert {
    /// The MLP.
    pub(crate) mlp: Mlp,
    /// `[1, hidden]`, before a sigmoid.
    pub(crate) gate: Weight,
}

impl SharedExpert {
    /// Memory for its output, `[rows, hidden]`, and its gate, `[rows, 1]`, of the rows of `h`.
    fn outputs(s: &Step<'_>, h: &Tensor) -> Result<(Activation, Activation)> {
        Ok((s.tensor(h.rows(), h.cols())?, s.tensor(h.rows(), 1)?))
    }

    /// Fills them.
    fn run(&self, s: &Step<'_>, h: &Tensor, (output, gate): &mut (Activation, Activation)) -> Result<()> {
        s.backend.mlp(h, &self.mlp.weights, output)?;
        s.backend.linear(h, &self.gate, None, gate)
    }
}

/// A block's rows that wait for experts.
pub(crate) struct Waiting {
    /// What the router chose.
    pub(super) chosen: RouteActivation,
    /// What the layer adds to them, `[rows, hidden]`; so far of the shared expert.
    pub(super) sum: Activation,
}

impl Moe {
    /// See [`super::FeedForward::begin`], for one of several blocks: the router, and the shared expert.
    pub(crate) fn begin(&self, s: &Step<'_>, h: &Tensor) -> Result<Waiting> {
        let mut chosen = s.route_buffers(h.rows(), self.spec.top_k)?;
        s.backend.route(h, &self.router, &self.spec, &mut chosen)?;
        let mut sum = s.tensor(h.rows(), h.cols())?;
        let shared = self.shared.as_ref().map(|expert| {
            let mut outputs = SharedExpert::outputs(s, h)?;
            expert.run(s, h, &mut outputs).map(|()| outputs)
        });
        let shared = shared.transpose()?;
        let shared = shared.as_ref().map(|(output, gate)| SharedOutput { output, gate });
        s.backend.begin_sum(shared, &mut sum)?;
        Ok(Waiting { chosen, sum })
    }

    /// See [`super::FeedForward::finish`].
    pub(crate) fn finish<'a>(
        &'a self,
        s: &mut Step<'_>,
        layer: usize,
        x: &Streams<'_>,
        begun: Vec<Begun<'a>>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Vec<Branch<'a>>> {
        let (mut branches, mut waiting) = (Vec::new(), Vec::new());
        for block in begun {
            match block {
                Begun::Done(branch) => branches.push(branch),
                Begun::Alone(h) => branches.push(Branch::Parts(self.at_once(s, layer, &h, meanwhile)?)),
                Begun::Waiting(block) => waiting.push(block),
            }
        }
        if !waiting.is_empty() {
            self.by_windows(s, LayerId(layer as u16), x, &mut waiting)?;
            branches.extend(waiting.into_iter().map(|block| Branch::Sum(block.sum)));
        }
        Ok(branches)
    }

    /// All experts of a block, whose outputs live at the same time.
    fn at_once(
        &self,
        s: &mut Step<'_>,
        layer: usize,
        h: &Tensor,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Parts<'_>> {
        let id = LayerId(layer as u16);
        let (rows, hidden) = (h.rows(), h.cols());
        let mut chosen = s.route_buffers(rows, self.spec.top_k)?;
        let mut outputs = s.tensor(rows * self.spec.top_k, hidden)?;
        let mut shared = self.shared.as_ref().map(|_| SharedExpert::outputs(s, h)).transpose()?;
        if let Some(experts) = &mut s.experts {
            experts.govern();
        }
        if let Some(rehearsal) = s.rehearsal {
            let (kinds, table) = rehearsal.experts(layer)?;
            self.rehearse(s, h, (kinds, table), &mut chosen, &mut outputs, &mut shared)?;
        } else if !self.look_up(s, id, h, &mut chosen, &mut outputs, &mut shared)? {
            s.backend.route(h, &self.router, &self.spec, &mut chosen)?;
            let (by_expert, here) = self.want(s, id, h, &chosen)?;
            meanwhile(s)?;
            if let (Some(expert), Some(outputs)) = (&self.shared, &mut shared) {
                expert.run(s, h, outputs)?; // work that hides the reads
            }
            self.run_experts(s, id, h, &by_expert, here, &mut outputs)?;
        }
        Ok(Parts { outputs, chosen, spec: &self.spec, shared })
    }

    /// Lets the device look up its experts if all of the layer are there, so that nobody waits for the router's ids;
    /// says whether.
    fn look_up(
        &self,
        s: &mut Step<'_>,
        layer: LayerId,
        h: &Tensor,
        routes: &mut RouteBuffers,
        parts: &mut Tensor,
        shared: &mut Option<(Activation, Activation)>,
    ) -> Result<bool> {
        // Who records routes wants to see them.
        let (None, Some(experts)) = (&s.routes, &mut s.experts) else { return Ok(false) };
        let Some(table) = experts.pool.resident(experts.slabs, layer, self.router.rows(), &self.expert)?
        else {
            return Ok(false);
        };
        let chosen = h.rows() * self.spec.top_k;
        if chosen > table.parts_max() {
            return Ok(false);
        }
        let expert = self.shared.as_ref().map(|e| (&e.mlp.weights, &e.gate));
        let layer_weights = RoutedLayer { router: &self.router, spec: &self.spec, table, shared: expert };
        let shared = shared.as_mut().map(|(output, gate)| (&mut **output, &mut **gate));
        s.backend.routed_layer(h, &layer_weights, RoutedOutput { routes, parts, shared })?;
        // How many of them are the same one, only the device knows.
        if experts.runs {
            experts.pool.store.count_device_hits(layer, chosen.min(self.router.rows()) as u64);
        }
        experts.set_coming(None);
        Ok(true)
    }

    /// All ways in which the layer may be computed, for a backend that only takes note.
    fn rehearse(
        &self,
        s: &Step<'_>,
        h: &Tensor,
        (kinds, table): (&[MlpWeights], Option<&ExpertTable>),
        routes: &mut RouteBuffers,
        parts: &mut Tensor,
        shared: &mut Option<(Activation, Activation)>,
    ) -> Result<()> {
        s.backend.route(h, &self.router, &self.spec, routes)?;
        for guess in [Guess::Half, Guess::All].into_iter().filter(|_| h.rows() == 1) {
            let spec = RouteSpec { top_k: guess.experts(self.spec.top_k), ..self.spec };
            s.backend.route(h, &self.router, &spec, &mut *s.route_buffers(h.rows(), spec.top_k)?)?;
        }
        // One row of each expert that a token has; or all rows of the step, to one expert or to as many as there are.
        let parts_of_row =
            |part: usize| RoutedRow { row: (part / self.spec.top_k) as u32, part: part as u32 };
        let each: Vec<_> = (0..h.rows() * self.spec.top_k).map(parts_of_row).collect();
        let all: Vec<_> = each.iter().step_by(self.spec.top_k).copied().collect();
        for weights in kinds {
            let token = each.chunks(1).take(self.spec.top_k).map(|rows| ExpertBatch { weights, rows });
            let token: Vec<_> = token.collect();
            // How an expert is multiplied depends on its rows, and on how many others go with it.
            for batches in [&token[..1], &token[..], &[ExpertBatch { weights, rows: &all }]] {
                s.backend.expert_mlp(h, batches, parts)?;
            }
        }
        if let (Some(expert), Some(outputs)) = (&self.shared, &mut *shared) {
            expert.run(s, h, outputs)?;
        }
        let shared_output = shared.as_ref().map(|(output, gate)| SharedOutput { output, gate });
        let mut sum = s.tensor(h.rows(), h.cols())?;
        s.backend.begin_sum(shared_output, &mut sum)?;
        s.backend.add_window(parts, &[0.0], &[WindowRow { row: 0, first: 0, count: 1 }], &mut sum)?;
        let Some(table) = table else { return Ok(()) };
        let expert = self.shared.as_ref().map(|e| (&e.mlp.weights, &e.gate));
        let layer = RoutedLayer { router: &self.router, spec: &self.spec, table, shared: expert };
        let shared = shared.as_mut().map(|(output, gate)| (&mut **output, &mut **gate));
        s.backend.routed_layer(h, &layer, RoutedOutput { routes, parts, shared })
    }

    /// Asks the router which experts are needed, and starts reading those that are not in memory. Returns those that a
    /// device has in memory of its own; the store is asked for the others.
    fn want(
        &self,
        s: &mut Step<'_>,
        layer: LayerId,
        h: &Tensor,
        chosen: &RouteBuffers,
    ) -> Result<(RowsByExpert, Vec<LeasedExpert>)> {
        let routes = s.backend.read_routes(chosen, h.rows(), &self.spec);
        let routes = routes.map_err(|e| e.context(format!("layer {}", layer.0)))?;
        let by_expert = RowsByExpert::new(&routes, self.router.rows())?;
        let (wanted, mut here) = (by_expert.mask(), Vec::new());
        if let Some(experts) = &mut s.experts {
            here = self.ask(experts, layer, &wanted)?;
            experts.pool.heat.count(layer, &routes.ids);
            experts.set_coming(self.sweep_after(&wanted, experts.more_follows));
        }
        if let Some(trace) = &mut s.routes {
            trace.push((layer, routes));
        }
        Ok((by_expert, here))
    }

    /// Has the store read those of `wanted` that no device has; these.
    pub(super) fn ask(
        &self,
        experts: &mut Experts<'_>,
        layer: LayerId,
        wanted: &ExpertMask,
    ) -> Result<Vec<LeasedExpert>> {
        let Experts { pool, slabs, .. } = experts;
        let (placed, missing) = match &slabs.device {
            Some(device) => device.want(layer, wanted),
            None => (Vec::new(), wanted.clone()),
        };
        pool.store.want(layer, &missing)?; // reads start now
        pool.store.count_device_hits(layer, placed.len() as u64);
        pool.store.count_wanted(layer, placed.iter().map(|placed| placed.expert));
        placed.into_iter().map(|placed| LeasedExpert::placed(&self.expert, placed)).collect()
    }

    /// What may be read ahead when this layer has `wanted` so many experts.
    pub(super) fn sweep_after(&self, wanted: &ExpertMask, more_follows: bool) -> Option<Sweep> {
        let covered = wanted.count() as f64 >= SWEEP_COVERAGE * self.router.rows() as f64;
        (covered && (!self.is_last || more_follows)).then(|| self.next.clone())
    }

    /// Lets the drive read what this layer's router will probably choose, once it has read what is wanted: the router is
    /// asked about `h`, an earlier state `[rows, hidden]`, and as much of its answer as `guess` says is believed.
    pub(crate) fn look_ahead(&self, s: &mut Step<'_>, layer: usize, h: &Tensor, guess: Guess) -> Result<()> {
        let spec = RouteSpec { top_k: guess.experts(self.spec.top_k), ..self.spec };
        let mut chosen = s.route_buffers(h.rows(), spec.top_k)?;
        s.backend.route(h, &self.router, &spec, &mut chosen)?;
        let routes = s.backend.read_routes(&chosen, h.rows(), &spec)?;
        // The likeliest of every row first, each once.
        let mut seen = ExpertMask::default();
        let ranked: Vec<Vec<u32>> =
            routes.ids.chunks(spec.top_k).zip(routes.weights.chunks(spec.top_k)).map(by_weight).collect();
        let by_rank = (0..spec.top_k).flat_map(|rank| ranked.iter().map(move |row| row[rank]));
        let guessed: Vec<ExpertId> =
            by_rank.map(|id| ExpertId(id as u16)).filter(|&id| seen.insert(id)).collect();
        if let Some(experts) = &mut s.experts {
            let layer = LayerId(layer as u16);
            experts.pool.store.hint(layer, experts.slabs.missing(layer, guessed.into_iter()));
        }
        Ok(())
    }

    /// Multiplies experts, those that are `here` and then the others as they arrive; each writes rows of `parts` that are
    /// its own.
    fn run_experts(
        &self,
        s: &mut Step<'_>,
        layer: LayerId,
        h: &Tensor,
        by_expert: &RowsByExpert,
        here: Vec<LeasedExpert>,
        parts: &mut Tensor,
    ) -> Result<()> {
        let backend = s.backend;
        let Some(experts) = &mut s.experts else {
            return Err(Error::invalid(format!(
                "layer {} routes to experts, but there is no store",
                layer.0
            )));
        };
        // One submission a layer, before the host waits for the drive or prepares the next layer; what comes later goes
        // with the next read-back, unless its leases hold slots that are needed.
        let (mut submitted, mut leased) = (false, here);
        loop {
            if leased.is_empty() {
                if !submitted && !experts.pool.store.has_ready() {
                    backend.submit()?;
                    submitted = true;
                }
                let leases = experts.pool.store.next_batch(experts.slabs.bound_max())?;
                if leases.is_empty() {
                    return Ok(());
                }
                experts.read_ahead();
                let bind = |lease| LeasedExpert::new(backend, experts.slabs, &self.expert, lease);
                leased = leases.into_iter().map(bind).collect::<Result<_>>()?;
            }
            let batches: Vec<_> = leased
                .iter()
                .map(|e| ExpertBatch { weights: e.weights(), rows: by_expert.rows(e.expert()) })
                .collect();
            backend.expert_mlp(h, &batches, parts)?;
            backend.release(Box::new(std::mem::take(&mut leased)));
            let waits = !experts.pool.store.has_ready();
            if experts.pool.store.is_short_of_slots() {
                backend.reclaim()?;
                submitted = true;
            } else if !submitted && waits {
                backend.submit()?;
                submitted = true;
            }
        }
    }
}

/// A row's experts by falling weight, of equals the lower id first.
fn by_weight((ids, weights): (&[u32], &[f32])) -> Vec<u32> {
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    order.into_iter().map(|at| ids[at]).collect()
}

/// The routes, grouped by expert: which rows each expert works on, and where its results go.
struct RowsByExpert {
    /// Rows of all experts, in the order of the experts; within one in the order of the rows.
    rows: Vec<RoutedRow>,
    /// Expert `e` has `rows[starts[e]..starts[e + 1]]`.
    starts: Vec<u32>,
}

impl RowsByExpert {
    fn new(routes: &Routes, experts: usize) -> Result<Self> {
        let mut starts = vec![0u32; experts + 1];
        for &id in &routes.ids {
            let count = starts.get_mut(id as usize + 1);
            *count.ok_or_else(|| Error::corrupt(format!("the router chose expert {id} of {experts}")))? += 1;
        }
        for e in 0..experts {
            starts[e + 1] += starts[e];
        }
        let mut next = starts.clone();
        let mut rows = vec![RoutedRow { row: 0, part: 0 }; routes.ids.len()];
        for (part, &id) in routes.ids.iter().enumerate() {
            let at = &mut next[id as usize];
            rows[*at as usize] = RoutedRow { row: (part / routes.top_k) as u32, part: part as u32 };
            *at += 1;
        }
        Ok(Self { rows, starts })
    }

    fn rows(&self, expert: ExpertId) -> &[RoutedRow] {
        let e = expert.0 as usize;
        &self.rows[self.starts[e] as usize..self.starts[e + 1] as usize]
    }

    fn mask(&self) -> ExpertMask {
        let used = self.starts.windows(2).enumerate().filter(|(_, w)| w[0] < w[1]);
        used.map(|(e, _)| ExpertId(e as u16)).collect()
    }
}
