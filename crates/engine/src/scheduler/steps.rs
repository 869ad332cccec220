//! The steps of a scheduler: which requests share one, and what becomes of them.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use files::{Error, ErrorKind, Result};

use super::running::Running;
use super::{ROW_CLASSES, RequestEvent, Work};
use crate::batch::{Answer, LogitSink, Logits, Part, Pause};
use crate::resume::pack;

/// How the time of a step of prompts is shared with answers.
struct Share {
    started: Instant,
    answers: Duration,
    /// What answers get, 0 to 0.9.
    wanted: f64,
}

impl Share {
    /// Whether the answers are due.
    fn is_behind(&self) -> bool {
        self.answers.as_secs_f64() < self.wanted * self.started.elapsed().as_secs_f64()
    }
}

/// [`Answer`] about the last token of a request.
#[derive(Clone)]
enum Last {
    /// Its prompt goes on.
    None,
    Logits(Vec<f32>),
    Best(u32),
}

impl Work {
    /// One step, of prompts if there are any, else of answers.
    pub(super) fn step(&mut self) {
        let (mut group, rows) = self.take_group();
        if group.is_empty() {
            return; // all are held
        }
        self.enter(&group);
        let model = self.model.clone();
        let mut batch = std::mem::take(&mut self.batch);
        let layers = model.meta().layers;
        let given_up = given_up(&group, &rows, layers, model.keeps_states());
        let tell = progress(&group, &rows, layers);
        let mut share =
            Share { started: Instant::now(), answers: Duration::ZERO, wanted: self.options.answers_share };
        let mut between = |pause: &mut Pause<'_>| {
            let (done, within) = (pause.layers_done(), pause.is_within_layer());
            if !within {
                tell(done);
                if given_up(done) {
                    return ControlFlow::Break(());
                }
            }
            // Before the first layer and after the last one others need not wait.
            if within || (1..layers).contains(&done) {
                self.answer_between(pause, &mut share);
            }
            ControlFlow::Continue(())
        };
        let ran = last_logits(&mut group, &rows, |parts, sink| batch.run(&model, parts, &mut between, sink));
        self.batch = batch;
        self.publish_reads(); // before anybody hears of an end
        match ran {
            Ok(logits) => self.stepped(group, &rows, logits),
            // Those that are over go before the next step.
            Err(e) if e.kind() == ErrorKind::Cancelled => {
                group.iter_mut().for_each(|running| running.resumed = true);
                self.put_back(&mut group);
            }
            Err(e) => self.failed(group, e),
        }
        self.running.sort_by_key(|running| running.begun);
    }

    /// Those of the next step, with the rows that each has in it: one whose step failed alone, else prompts as far as there
    /// is room, else the answers.
    fn take_group(&mut self) -> (Vec<Running>, Vec<usize>) {
        let room = self.model.chunk_tokens();
        if let Some(alone) = self.running.iter().position(|running| running.alone) {
            let running = self.running.remove(alone);
            let rows = pack([Some(&running.sequence)].into_iter(), room);
            return (vec![running], rows);
        }
        if self.running.iter().all(Running::decodes) {
            let group: Vec<Running> = self.running.extract_if(.., |running| !running.is_held()).collect();
            let rows = vec![1; group.len()];
            return (group, rows);
        }
        let prompts = self.running.iter().map(|running| match running.decodes() {
            true => None,
            false => Some(&running.sequence),
        });
        let rows = pack(prompts, room);
        let mut of_each = rows.iter();
        let group = self.running.extract_if(.., |_| of_each.next().is_some_and(|rows| *rows > 0)).collect();
        (group, rows.into_iter().filter(|rows| *rows > 0).collect())
    }

    /// Steps of answers and short prompts while a step of prompts pauses, as long as they are due.
    fn answer_between(&mut self, pause: &mut Pause<'_>, share: &mut Share) {
        while share.is_behind() {
            let started = Instant::now();
            self.drop_what_is_over();
            self.begin_between(pause);
            let (mut group, rows) = self.take_group_between();
            if group.is_empty() {
                return;
            }
            self.enter(&group);
            let (model, batch) = (&self.model, &mut self.batch_between);
            let run =
                |parts: &mut [Part<'_>], sink: LogitSink<'_>| batch.run_between(model, pause, parts, sink);
            match last_logits(&mut group, &rows, run) {
                Ok(logits) => self.stepped(group, &rows, logits),
                Err(e) => self.failed(group, e),
            }
            share.answers += started.elapsed();
        }
    }

    /// Those of a step between layers: a short prompt, the oldest first, else the answers.
    fn take_group_between(&mut self) -> (Vec<Running>, Vec<usize>) {
        let room = self.model.between_rows_max();
        let short = |running: &Running| !running.decodes() && !running.alone && !running.resumed;
        let shorts = (0..self.running.len()).filter(|at| short(&self.running[*at]));
        let mut fits = shorts.filter(|at| self.running[*at].sequence.pending() <= room);
        if let Some(next) = fits.next() {
            let prompt = self.running.remove(next);
            let rows = prompt.sequence.pending();
            return (vec![prompt], vec![rows]);
        }
        let group: Vec<Running> =
            self.running.extract_if(.., |running| running.decodes() && !running.is_held()).collect();
        let rows = vec![1; group.len()];
        (group, rows)
    }

    fn stepped(&mut self, group: Vec<Running>, rows: &[usize], logits: Vec<Last>) {
        let all: usize = rows.iter().sum();
        let answers = group.iter().zip(rows).filter(|(running, _)| running.answers());
        let answer_tokens: usize = answers.map(|(_, rows)| rows).sum();
        self.publish(|counts| {
            counts.steps += 1;
            let class = all.max(1).next_power_of_two().trailing_zeros() as usize;
            counts.steps_by_rows[class.min(ROW_CLASSES - 1)] += 1;
            counts.answer_tokens += answer_tokens as u64;
            counts.prompt_tokens += (all - answer_tokens) as u64;
        });
        let context = self.model.context();
        for (mut running, logits) in group.into_iter().zip(logits) {
            running.alone &= running.sequence.pending() > 0;
            self.leave(&running);
            let resumes = match logits {
                Last::Logits(logits) => running.accept(Answer::Logits(&logits), context),
                Last::Best(token) => running.accept(Answer::Best(token), context),
                Last::None => Ok(true),
            };
            match resumes {
                Ok(true) => self.running.push(running),
                Ok(false) => self.end(running, Ok(())),
                Err(e) => self.end(running, Err(e)),
            }
        }
    }

    /// Takes the pages of the youngest request, whose tokens are computed again when another has ended.
    fn set_youngest_aside(&mut self) {
        let Some(youngest) = (0..self.running.len()).max_by_key(|at| self.running[*at].begun) else { return };
        let mut youngest = self.running.remove(youngest);
        youngest.sequence.release();
        let at = self.aside.partition_point(|other| other.begun < youngest.begun);
        self.aside.insert(at, youngest);
        self.publish(|counts| counts.set_aside += 1);
    }

    /// A step that failed is tried again by each of its requests alone; who fails then has failed.
    fn failed(&mut self, mut group: Vec<Running>, error: Error) {
        if error.kind() == ErrorKind::Memory && self.running.len() + group.len() > 1 {
            self.put_back(&mut group);
            return self.set_youngest_aside();
        }
        if let Some(alone) = group.pop_if(|running| running.alone) {
            self.leave(&alone);
            return self.end(alone, Err(error)); // it had no company
        }
        group.iter_mut().for_each(|running| running.alone = true);
        self.put_back(&mut group);
    }

    /// These are in a step now.
    fn enter(&mut self, group: &[Running]) {
        self.stepping.extend(group.iter().map(|running| running.client));
    }

    fn leave(&mut self, running: &Running) {
        if let Some(at) = self.stepping.iter().position(|client| *client == running.client) {
            self.stepping.swap_remove(at);
        }
    }

    /// Those of a step that came to nothing.
    fn put_back(&mut self, group: &mut Vec<Running>) {
        group.iter().for_each(|running| self.leave(running));
        self.running.append(group);
    }
}

fn part(running: &mut Running, rows: usize) -> Part<'_> {
    let last = if running.generation.is_greedy() { Logits::Best } else { Logits::Last };
    Part::of(&mut running.sequence, rows, last)
}

/// Has `run` run a step of so many rows of each of `group`.
fn last_logits(
    group: &mut [Running],
    rows: &[usize],
    run: impl FnOnce(&mut [Part<'_>], LogitSink<'_>) -> Result<()>,
) -> Result<Vec<Last>> {
    let mut all = vec![Last::None; group.len()];
    let mut parts: Vec<Part<'_>> = group.iter_mut().zip(rows).map(|(r, rows)| part(r, *rows)).collect();
    run(&mut parts, &mut |part, _, answer| {
        all[part] = match answer {
            Answer::Logits(values) => Last::Logits(values.to_vec()),
            Answer::Best(token) => Last::Best(token),
        };
        Ok(())
    })?;
    Ok(all)
}

/// Whether a step had better end after so many layers, since requests in it are given up: when that saves more work than the
/// others lose. What it `keeps` they go on with, at the cost of about a layer; else they begin again.
fn given_up(group: &[Running], rows: &[usize], layers: usize, keeps: bool) -> impl Fn(usize) -> bool + use<> {
    let cancels: Vec<_> =
        group.iter().map(|running| running.cancel.clone()).zip(rows.iter().copied()).collect();
    move |layers_done| {
        let (over, others): (Vec<_>, Vec<_>) =
            cancels.iter().partition(|(cancel, _)| cancel.load(Ordering::Acquire));
        let work =
            |of: &[&(_, usize)], layers: usize| of.iter().map(|(_, rows)| rows * layers).sum::<usize>();
        // A recurrent layer goes back from one row only as far as to its last snapshot.
        let can_go_back = others.iter().all(|(_, rows)| *rows > 1);
        let lost = if keeps { 1 } else { layers_done };
        can_go_back && work(&over, layers - layers_done) > work(&others, lost)
    }
}

/// Tells those whose prompts are in a step how far they are.
fn progress(group: &[Running], rows: &[usize], layers: usize) -> impl Fn(usize) + use<> {
    let prompts = group.iter().zip(rows).filter(|(running, _)| !running.answers());
    let prompts: Vec<_> = prompts
        .map(|(r, rows)| (r.listener.clone(), r.sequence.position() as f64, *rows as f64, r.prompt_tokens))
        .collect();
    move |layers_done| {
        for (listener, before, rows, total_tokens) in &prompts {
            let done_tokens = before + rows * layers_done as f64 / layers as f64;
            // Who does not listen any more cancels by that.
            let _ = listener.hear(RequestEvent::Prompt { done_tokens, total_tokens: *total_tokens });
        }
    }
}
