//! A step of several sequences: any mix of prompt chunks and single tokens. The only place that builds a step.

use std::ops::ControlFlow;
use std::time::Instant;

use files::{Error, ErrorKind, Result};
use kernels::ops::{Routes, Segment};

use crate::ahead::{Ahead, Places, StepLock};
use crate::limits::LOGIT_ROWS;
use crate::lookahead::Guess;
use crate::marks;
use crate::model::Model;
use crate::pool::ExpertPool;
use crate::resume;
use crate::round::{RowBlock, row_blocks};
use crate::sample::argmax;
use crate::scratch::Activation;
use crate::sequence::{RouteRecord, Sequence};
use crate::session::FeedProgress;
use crate::state::{PartialChunk, StatePool};
use crate::step::{Experts, Step, go_on};

/// Which positions somebody wants the logits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None.
    None,
    /// The last of the part's.
    Last,
    /// Of the last of the part's only which token has the greatest.
    Best,
    /// Those from this position of the sequence on.
    From(usize),
}

/// Pending tokens of one sequence in a step.
pub struct Part<'a> {
    /// Whose.
    pub sequence: &'a mut Sequence,
    /// The first so many of its pending tokens, at least 1.
    pub rows: usize,
    /// What is wanted of them.
    pub logits: Logits,
}

impl<'a> Part<'a> {
    /// The first `rows` pending tokens, and `last` of them where nothing is pending after it.
    pub(crate) fn of(sequence: &'a mut Sequence, rows: usize, last: Logits) -> Self {
        let logits = if rows == sequence.pending() { last } else { Logits::None };
        Self { sequence, rows, logits }
    }

    /// Has at most `rows_max` rows.
    pub(crate) fn begin(&mut self, rows_max: usize) {
        if self.rows > rows_max {
            (self.rows, self.logits) = (rows_max, Logits::None);
        }
    }
}

/// What a step answers about one position.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// Its logits, `[vocab]`.
    Logits(&'a [f32]),
    /// The token with the greatest, the lowest of equals: for [`Logits::Best`].
    Best(u32),
}

impl<'a> Answer<'a> {
    /// All logits; none where they were not wanted.
    pub fn logits(self) -> &'a [f32] {
        if let Answer::Logits(values) = self { values } else { &[] }
    }
}

/// Takes the answer about one position: which part's, the position.
pub type LogitSink<'a> = &'a mut dyn FnMut(usize, usize, Answer<'_>) -> Result<()>;

/// A step between two layers, or in the midst of one: what it uses, for a step of others.
pub struct Pause<'a> {
    pub(crate) layers_done: usize,
    /// Whether more than those layers is done.
    pub(crate) within: bool,
    /// Whether it is another step's.
    pub(crate) between: bool,
    pub(crate) states: &'a mut StatePool,
    pub(crate) pool: Option<&'a mut ExpertPool>,
}

impl<'a> Pause<'a> {
    /// Of a step that has done so many layers.
    pub(crate) fn new(
        layers_done: usize,
        states: &'a mut StatePool,
        pool: Option<&'a mut ExpertPool>,
    ) -> Self {
        Self { layers_done, within: false, between: false, states, pool }
    }

    /// Whether the step is in the midst of a layer, as it is between blocks of rows and windows of experts.
    pub fn is_within_layer(&self) -> bool {
        self.within
    }

    /// Layers that are done.
    pub fn layers_done(&self) -> usize {
        self.layers_done
    }

    /// For a step of others.
    fn lend(&mut self) -> Pause<'_> {
        Pause { between: true, ..Pause::new(self.layers_done, self.states, self.pool.as_deref_mut()) }
    }
}

/// Hears how far a step is; may break off.
pub type BetweenLayers<'a> = &'a mut dyn FnMut(&mut Pause<'_>) -> ControlFlow<()>;

/// Builds and runs steps. It holds nothing but memory that is used again.
#[derive(Default)]
pub struct Batch {
    /// Logits as they are read, `[rows, vocab]`.
    read: Vec<f32>,
}

/// Rows whose logits are wanted.
struct Wanted {
    part: usize,
    row: u32,
    position: usize,
    /// Only the greatest.
    best: bool,
}

impl Batch {
    /// Computes one step of `parts`, all of `model`; their sequences are then so many tokens further. The logits go to
    /// `sink`, part by part. `between_layers` may break off, and may have [`Self::run_between`] run a step of others.
    ///
    /// # Errors
    /// `InvalidRequest` for no parts, sequences of another model, or more rows than [`Model::chunk_tokens`] and one for
    /// each sequence; `Memory` without a free page; `Cancelled`, and what the drive, the device or `sink` report. The
    /// tokens stay then, and those that were not computed are pending again.
    pub fn run(
        &mut self,
        model: &Model,
        parts: &mut [Part<'_>],
        between_layers: BetweenLayers<'_>,
        sink: LogitSink<'_>,
    ) -> Result<()> {
        check(model, parts)?;
        let mut lock = model.lock_step();
        let mut pool = model.lock_pool();
        let mut pool = pool.as_deref_mut();
        let chunks = resume::take(model, parts, &mut lock.states);
        let rows = match chunks.len() {
            0 => parts.iter().map(|part| part.rows).sum(),
            _ => chunks.iter().map(PartialChunk::rows).sum(),
        };
        check_rows(rows, model.step_rows_max())?;
        model.trade.remove_pages(&mut lock.states, pool.as_deref_mut())?;
        let kept_bytes = lock.states.partial_chunks.x_bytes();
        if kept_bytes > 0 && !model.has_scratch_beside(rows, kept_bytes) {
            lock.states.partial_chunks.clear();
        }
        model.trade.lend(rows, &lock.states, pool.as_deref_mut(), &model.scratch)?;
        let mut ready =
            Ready::new(model, parts, chunks, Pause::new(0, &mut lock.states, pool.as_deref_mut()))?;
        let run = self.step(model, &mut lock, pool, &mut ready, between_layers, sink);
        if run.is_err() {
            ready.go_back(&mut lock.states)?;
        }
        run
    }

    /// Computes `parts` while a step of others pauses, which then goes on as if nothing had been. The plan has memory for a
    /// token of each sequence, or a short prompt.
    ///
    /// # Errors
    /// As [`Self::run`]; also for more rows than that.
    pub fn run_between(
        &mut self,
        model: &Model,
        pause: &mut Pause<'_>,
        parts: &mut [Part<'_>],
        sink: LogitSink<'_>,
    ) -> Result<()> {
        check(model, parts)?;
        check_rows(parts.iter().map(|part| part.rows).sum(), model.between_rows_max())?;
        let mut ready = Ready::new(model, parts, Vec::new(), pause.lend())?;
        let go_on = &mut |_: &mut Pause<'_>| ControlFlow::Continue(());
        let run = self.compute(model, pause.lend(), &mut ready, Guess::None, go_on, sink);
        if run.is_err() {
            ready.go_back(pause.states)?;
        }
        run
    }

    /// Computes all that is pending in `sequences`, step after step: a token of each where none has more, else chunks of
    /// prompts, which share a step as far as it has room. What is `wanted` after the last token of each goes to `sink`, with
    /// its place in the list. `progress` hears how many of how many tokens are done.
    ///
    /// # Errors
    /// As [`Self::run`]; what was computed before stays.
    pub fn feed(
        &mut self,
        model: &Model,
        sequences: &mut [Sequence],
        wanted: Logits,
        progress: FeedProgress<'_>,
        sink: &mut dyn FnMut(usize, Answer<'_>) -> Result<()>,
    ) -> Result<()> {
        let pending = |sequences: &[Sequence]| sequences.iter().map(Sequence::pending).sum::<usize>();
        let all = pending(sequences);
        let layers = model.meta.layers as f64;
        loop {
            let done = all - pending(sequences);
            if done == all {
                return Ok(());
            }
            let decodes = sequences.iter().all(|sequence| sequence.pending() <= 1);
            let room = if decodes { model.step_rows_max() } else { model.chunk_tokens() };
            let rows = resume::pack(sequences.iter().map(Some), room);
            let packed = sequences.iter_mut().zip(rows).enumerate().filter(|(_, (_, rows))| *rows > 0);
            let (places, mut parts): (Vec<usize>, Vec<Part<'_>>) =
                packed.map(|(place, (sequence, rows))| (place, Part::of(sequence, rows, wanted))).unzip();
            let rows: usize = parts.iter().map(|part| part.rows).sum();
            let mut between = |pause: &mut Pause<'_>| {
                if pause.is_within_layer() {
                    return ControlFlow::Continue(()); // what ends between layers can go on there
                }
                progress(done as f64 + rows as f64 * pause.layers_done as f64 / layers, all)
            };
            self.run(model, &mut parts, &mut between, &mut |part, _, answer| sink(places[part], answer))?;
        }
    }

    fn step(
        &mut self,
        model: &Model,
        lock: &mut StepLock,
        mut pool: Option<&mut ExpertPool>,
        ready: &mut Ready<'_, '_>,
        between_layers: BetweenLayers<'_>,
        sink: LogitSink<'_>,
    ) -> Result<()> {
        let Ready { parts, segments, wanted, .. } = ready;
        let decodes = parts.iter().all(|part| part.rows == 1);
        let here = if decodes { places(parts) } else { Places::new() };
        let (ahead, again) = lock.begin(&here);
        let records = parts.iter().any(|part| part.sequence.routes.is_some());
        let answers_all = wanted.len() == parts.len() && wanted.len() <= LOGIT_ROWS;
        let looks_up =
            decodes && answers_all && !records && pool.as_deref().is_none_or(ExpertPool::all_resident);
        if let Some(ahead) = ahead.filter(|ahead| looks_up && ahead.segments == *segments) {
            let tokens = tokens(parts);
            go_on(between_layers(&mut Pause::new(0, &mut lock.states, pool.as_deref_mut())))?;
            let (logits, best) = ahead.run(model.backend.as_ref(), &tokens)?;
            if let Some(pool) = &mut pool {
                pool.count_recorded(tokens.len() * model.top_k(), model.slabs());
            }
            advance(parts);
            let next = record(model, lock, pool.as_deref_mut(), parts, asks_best(wanted.iter()))?;
            lock.end(places(parts), next);
            self.read_logits(model, &logits, best.as_ref(), &wanted.iter().collect::<Vec<_>>(), sink)?;
            let layers = model.meta.layers;
            return go_on(between_layers(&mut Pause::new(layers, &mut lock.states, pool)));
        }
        let (started, rows) = (Instant::now(), parts.len());
        let guess = match &mut pool {
            Some(pool) if decodes => pool.lookahead.begin(rows),
            _ => Guess::None,
        };
        let before_all = Pause::new(0, &mut lock.states, pool.as_deref_mut());
        self.compute(model, before_all, ready, guess, between_layers, sink)?;
        if let Some(pool) = pool.as_mut().filter(|_| decodes) {
            pool.lookahead.end(rows, started.elapsed());
        }
        let asks = asks_best(&ready.wanted);
        let next = if looks_up && again { record(model, lock, pool, ready.parts, asks)? } else { None };
        lock.end(places(ready.parts), next);
        Ok(())
    }

    /// The step itself.
    fn compute(
        &mut self,
        model: &Model,
        uses: Pause<'_>,
        ready: &mut Ready<'_, '_>,
        guess: Guess,
        between_layers: BetweenLayers<'_>,
        sink: LogitSink<'_>,
    ) -> Result<()> {
        let Ready { parts, segments, wanted, chunks, .. } = ready;
        let Pause { states, mut pool, between, .. } = uses;
        let (marks, mut snapshots) = match chunks.is_empty() {
            true => marks::new(parts, states)?,
            false => marks::of(chunks),
        };
        let blocks = row_blocks(segments, &marks, model.block_rows());
        let partial = resume::streams(model, &blocks, segments, chunks)?;
        chunks.clear();
        let more_follows = parts.iter().any(|part| part.sequence.pending() > part.rows);
        let experts = pool.as_deref_mut().zip(model.slabs());
        let experts = experts.map(|(pool, slabs)| Experts {
            more_follows,
            guess,
            leads: !between,
            ..Experts::new(pool, slabs)
        });
        let records = parts.iter().any(|part| part.sequence.routes.is_some());
        let mut recorded = Vec::new();
        let mut step = Step {
            tokens: &tokens(parts),
            blocks: &blocks,
            snapshots: &mut snapshots,
            states,
            backend: model.backend.as_ref(),
            experts,
            scratch: &model.scratch,
            rehearsal: None,
            routes: records.then_some(&mut recorded),
            between_layers,
            partial,
        };
        let x = match model.decoder.forward(&mut step) {
            Ok(x) => x,
            Err(e) => {
                if let Some(partial) = step.partial.take().filter(|_| !between) {
                    drop(step);
                    resume::keep(model, parts, segments, &blocks, &partial, (marks, snapshots), states);
                }
                return Err(e);
            }
        };
        for (block, x) in step.blocks.iter().zip(&x) {
            let here = wanted.iter().filter(|wanted| block.rows.contains(&(wanted.row as usize)));
            for wanted in here.collect::<Vec<_>>().chunks(LOGIT_ROWS) {
                let rows: Vec<u32> =
                    wanted.iter().map(|wanted| wanted.row - block.rows.start as u32).collect();
                let logits = model.decoder.logits(&step, x, &rows)?;
                let best = asks_best(wanted.iter().copied())
                    .then(|| model.decoder.best(&step, &logits))
                    .transpose()?;
                self.read_logits(model, &logits, best.as_ref(), wanted, sink)?;
            }
        }
        drop((step, x));
        if let Some(pool) = pool {
            // Weights that are written while they are read are no weights.
            pool.store.check_unchanged()?;
        }
        marks::keep(model, parts, &marks, snapshots, states);
        advance(parts);
        keep_routes(parts, segments, &recorded);
        Ok(())
    }

    /// Waits for logits, and hands on what is wanted of them. `best` has the greatest of each, where the device was asked.
    fn read_logits(
        &mut self,
        model: &Model,
        logits: &Activation,
        best: Option<&Activation>,
        wanted: &[&Wanted],
        sink: LogitSink<'_>,
    ) -> Result<()> {
        if let Some(best) = best.filter(|_| wanted.iter().all(|wanted| wanted.best)) {
            let mut tokens = vec![0f32; best.len()];
            model.backend.read(best.block(), 0, bytemuck::cast_slice_mut(&mut tokens))?;
            // Else it is said below which logit is none.
            if tokens.iter().all(|token| *token >= 0.0) {
                let mut all = wanted.iter().zip(tokens);
                return all
                    .try_for_each(|(at, token)| sink(at.part, at.position, Answer::Best(token as u32)));
            }
        }
        self.read.resize(logits.len(), 0f32);
        model.backend.read(logits.block(), 0, bytemuck::cast_slice_mut(&mut self.read))?;
        for (at, values) in wanted.iter().zip(self.read.chunks_exact(model.meta.vocab_size)) {
            check_finite(values, at.position)?;
            let answer = if at.best { Answer::Best(argmax(values)? as u32) } else { Answer::Logits(values) };
            sink(at.part, at.position, answer)?;
        }
        Ok(())
    }
}

/// Parts that are ready for a step.
struct Ready<'a, 'p> {
    parts: &'a mut [Part<'p>],
    segments: Vec<Segment>,
    wanted: Vec<Wanted>,
    /// Where their sequences were.
    before: Vec<usize>,
    /// With what they go on, all or none.
    chunks: Vec<PartialChunk>,
}

impl<'a, 'p> Ready<'a, 'p> {
    /// Makes all of them ready, to go on with `chunks` or to begin; where pages run short, expert slots give memory. Where one
    /// part cannot be ready, all are as before.
    fn new(
        model: &Model,
        parts: &'a mut [Part<'p>],
        chunks: Vec<PartialChunk>,
        uses: Pause<'_>,
    ) -> Result<Self> {
        let Pause { states, mut pool, .. } = uses;
        let before = parts.iter().map(|part| part.sequence.position()).collect();
        if chunks.is_empty() {
            while let Err(e) = parts.iter_mut().try_for_each(|part| part.sequence.prepare(states, part.rows))
            {
                parts.iter_mut().for_each(|part| part.sequence.state.unclaim());
                if e.kind() != ErrorKind::Memory || !model.trade.add_pages(states, pool.as_deref_mut()) {
                    return Err(e);
                }
            }
        }
        let mut ready = Self { parts, segments: Vec::new(), wanted: Vec::new(), before, chunks };
        if let Err(e) = ready.resume(states) {
            ready.go_back(states)?;
            return Err(e);
        }
        ready.segments = segments(ready.parts);
        ready.wanted = wanted(ready.parts, &ready.segments);
        Ok(ready)
    }

    fn resume(&mut self, states: &mut StatePool) -> Result<()> {
        for (part, chunk) in self.parts.iter_mut().zip(&self.chunks) {
            part.sequence.prepare_to_resume(states, chunk)?;
            part.rows = chunk.rows();
        }
        Ok(())
    }

    /// After a step that failed.
    fn go_back(&mut self, states: &mut StatePool) -> Result<()> {
        let mut all = Ok(());
        for (part, position) in self.parts.iter_mut().zip(&self.before) {
            all = all.and(part.sequence.go_back(states, *position)); // also after one that fails
        }
        all
    }
}

fn check_rows(rows: usize, most: usize) -> Result<()> {
    if rows > most {
        return Err(Error::invalid(format!("a step of {rows} rows: the plan has memory for {most}")));
    }
    Ok(())
}

fn check(model: &Model, parts: &[Part<'_>]) -> Result<()> {
    if parts.is_empty() {
        return Err(Error::invalid("a step of no sequences"));
    }
    for part in parts {
        if !std::ptr::eq(&raw const **part.sequence.model(), model) {
            return Err(Error::invalid("a sequence of another model"));
        }
        if part.rows == 0 || part.rows > part.sequence.pending() {
            let pending = part.sequence.pending();
            return Err(Error::invalid(format!("{} rows of {pending} pending tokens", part.rows)));
        }
    }
    Ok(())
}

fn segments(parts: &[Part<'_>]) -> Vec<Segment> {
    let mut row = 0;
    let segment = |part: &Part<'_>| {
        row += part.rows;
        part.sequence.state.segment(row - part.rows..row)
    };
    parts.iter().map(segment).collect()
}

fn tokens(parts: &[Part<'_>]) -> Vec<u32> {
    let of = |part: &Part<'_>| {
        let from = part.sequence.position();
        part.sequence.tokens()[from..from + part.rows].to_vec()
    };
    parts.iter().flat_map(of).collect()
}

fn places(parts: &[Part<'_>]) -> Places {
    parts.iter().map(|part| (part.sequence.id().clone(), part.sequence.position())).collect()
}

fn wanted(parts: &[Part<'_>], segments: &[Segment]) -> Vec<Wanted> {
    let mut all = Vec::new();
    for (i, (part, segment)) in parts.iter().zip(segments).enumerate() {
        let first = match part.logits {
            Logits::None => segment.end(),
            Logits::Last | Logits::Best => segment.end() - 1,
            Logits::From(position) => position,
        };
        let rows = segment.positions().filter(|(_, position)| *position >= first);
        let best = part.logits == Logits::Best;
        all.extend(rows.map(|(row, position)| Wanted { part: i, row: row as u32, position, best }));
    }
    all
}

/// Whether the device is asked for the greatest logit.
fn asks_best<'a>(wanted: impl IntoIterator<Item = &'a Wanted>) -> bool {
    wanted.into_iter().any(|wanted| wanted.best)
}

fn advance(parts: &mut [Part<'_>]) {
    for part in parts {
        part.sequence.advance(part.rows);
    }
}

/// Gives each sequence that records its rows of what the routers chose.
fn keep_routes(parts: &mut [Part<'_>], segments: &[Segment], recorded: &[(store::LayerId, Routes)]) {
    for (part, segment) in parts.iter_mut().zip(segments) {
        let Some(kept) = &mut part.sequence.routes else { continue };
        kept.extend(recorded.iter().map(|(layer, all)| {
            let range = segment.rows.start * all.top_k..segment.rows.end * all.top_k;
            let (ids, weights) = (all.ids[range.clone()].to_vec(), all.weights[range].to_vec());
            let routes = Routes { ids, weights, ..all.clone() };
            RouteRecord { layer: *layer, position: segment.position, routes }
        }));
    }
}

/// Records the step of the next token of each sequence; `None` where that cannot be.
fn record(
    model: &Model,
    lock: &mut StepLock,
    pool: Option<&mut ExpertPool>,
    parts: &mut [Part<'_>],
    asks_best: bool,
) -> Result<Option<Ahead>> {
    for part in &mut *parts {
        // No room: the step itself will say so.
        if part.sequence.prepare(&mut lock.states, 1).is_err() {
            return Ok(None);
        }
    }
    let segments = segments(parts);
    let experts = pool.zip(model.slabs());
    let experts = experts.map(|(pool, slabs)| Experts { runs: false, ..Experts::new(pool, slabs) });
    let rows: Vec<u32> = (0..segments.len() as u32).collect();
    let mut step = Step {
        tokens: &vec![0; segments.len()],
        blocks: &[RowBlock::whole(&segments)],
        snapshots: &mut [],
        states: &mut lock.states,
        backend: model.backend.as_ref(),
        experts,
        scratch: &model.scratch,
        rehearsal: None,
        routes: None,
        between_layers: &mut |_| ControlFlow::Continue(()),
        partial: None,
    };
    let mut logits = None;
    let recorded = model.backend.record(&mut || {
        let x = model.decoder.forward(&mut step)?;
        let x = x.first().ok_or_else(|| Error::invalid("a step of no rows"))?;
        let made = model.decoder.logits(&step, x, &rows)?;
        let best = asks_best.then(|| model.decoder.best(&step, &made)).transpose()?;
        logits = Some((made, best));
        Ok(())
    });
    match recorded {
        Ok(recorded) => {
            Ok(recorded.zip(logits).map(|(recorded, logits)| Ahead { segments, recorded, logits }))
        }
        // A layer that is no longer resident, or no room: the step itself will do without.
        Err(e) if matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Memory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses logits of position `at` that no model in order answers.
pub(crate) fn check_finite(logits: &[f32], at: usize) -> Result<()> {
    // A loop without an exit, which the compiler makes vectors of; who it was is asked when there is one.
    if logits.iter().fold(true, |all, logit| all & logit.is_finite()) {
        return Ok(());
    }
    let id = logits.iter().position(|logit| !logit.is_finite()).unwrap_or_default();
    Err(Error::corrupt(format!(
        "the logit of token {id} at position {at} is {}: weights are damaged, `tidemill inspect --check` finds where",
        logits[id]
    )))
}
