//! What the server does now, for who looks on: `GET /events`, and a screen in a terminal. Nothing is computed where nobody
//! looks.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use api::{ApiError, ErrorClass};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::response::Response;
use engine::scheduler::SchedulerCounts;
use engine::{ExpertHeat, ExpertMemory};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{MissedTickBehavior, interval};

use crate::http::{Answer, respond};
use crate::sse::event_stream;
use crate::state::{Ready, Shared};

/// Between two samples.
const EVERY: Duration = Duration::from_secs(1);

/// Streams of samples at once: each remembers what its reader knows.
pub(crate) const VIEWERS: usize = 16;

/// Figures of one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Sequences that are computed.
    pub running: usize,
    /// Sequences that wait for their turn.
    pub waiting: usize,
    /// Tokens of prompts that are computed in a second.
    pub prompt_tokens_per_s: f64,
    /// Tokens of answers that are made in a second.
    pub answer_tokens_per_s: f64,
    /// Wanted experts that were in memory, 0 to 1, since the sample before or when there last were any; `None` before that.
    pub expert_hit_rate: Option<f64>,
    /// Bytes that the drive reads for experts in a second.
    pub drive_bytes_per_s: f64,
    /// What the process has in memory; `None` where the system does not tell.
    pub rss_bytes: Option<u64>,
    /// The sum of the plan's parts.
    pub plan_bytes: u64,
    /// The ceiling.
    pub budget_bytes: u64,
    /// Expert slots in use.
    pub slots: usize,
    /// Those of the plan.
    pub slots_planned: usize,
    /// How often each expert was chosen.
    pub heat: ExpertHeat,
    /// Which are in memory, `[layers, experts]`.
    pub held: Vec<bool>,
}

/// Somebody who looks on. Rates are of the time between two samples.
pub struct Viewer {
    ready: Arc<Ready>,
    prompt: Rate,
    answer: Rate,
    drive: Rate,
    hits: u64,
    misses: u64,
    hit_rate: Option<f64>,
}

impl Viewer {
    pub(crate) fn new(ready: Arc<Ready>) -> Self {
        let (counts, memory, now) = (ready.scheduler.counts(), ready.model.expert_memory(), Instant::now());
        let [hits, misses, read_bytes] = totals(&counts, &memory);
        Self {
            prompt: Rate::new(counts.prompt_tokens, now),
            answer: Rate::new(counts.answer_tokens, now),
            drive: Rate::new(read_bytes, now),
            hits,
            misses,
            hit_rate: None,
            ready,
        }
    }

    /// The figures now. Never waits for a step.
    pub fn sample(&mut self) -> Sample {
        let model = &self.ready.model;
        let (counts, memory, plan, now) =
            (self.ready.scheduler.counts(), model.expert_memory(), model.plan(), Instant::now());
        let [hits, misses, read_bytes] = totals(&counts, &memory);
        let (new_hits, new_misses) = (hits - self.hits.min(hits), misses - self.misses.min(misses));
        (self.hits, self.misses) = (hits, misses);
        if new_hits + new_misses > 0 {
            self.hit_rate = Some(new_hits as f64 / (new_hits + new_misses) as f64);
        }
        let busy = counts.running > 0;
        Sample {
            running: counts.running,
            waiting: counts.waiting,
            prompt_tokens_per_s: self.prompt.at(now, counts.prompt_tokens, busy),
            answer_tokens_per_s: self.answer.at(now, counts.answer_tokens, busy),
            expert_hit_rate: self.hit_rate,
            drive_bytes_per_s: self.drive.at(now, read_bytes, busy),
            rss_bytes: engine::rss_bytes(),
            plan_bytes: plan.total_bytes,
            budget_bytes: plan.budget_bytes,
            slots: memory.slots,
            slots_planned: plan.slots as usize,
            heat: model.expert_heat(),
            held: memory.held,
        }
    }
}

/// Hits, misses and bytes read: of the last step, or of a layer that was looked at since.
fn totals(counts: &SchedulerCounts, memory: &ExpertMemory) -> [u64; 3] {
    [
        counts.expert_hits.max(memory.hits),
        counts.expert_misses.max(memory.misses),
        counts.read_bytes.max(memory.read_bytes),
    ]
}

/// The rate of a count that may stand still for longer than a sample lasts: a chunk of a prompt is counted at its end.
struct Rate {
    total: u64,
    /// When it grew last, and by how much.
    since: Instant,
    grown: u64,
    per_s: f64,
}

impl Rate {
    fn new(total: u64, now: Instant) -> Self {
        Self { total, since: now, grown: 0, per_s: 0.0 }
    }

    /// At `now`, when the count is `total`; not `busy`, it cannot grow.
    fn at(&mut self, now: Instant, total: u64, busy: bool) -> f64 {
        let elapsed = (now - self.since).as_secs_f64();
        if total > self.total && elapsed > 0.0 {
            self.grown = total - self.total;
            (self.total, self.since, self.per_s) = (total, now, self.grown as f64 / elapsed);
        } else if !busy {
            (self.since, self.grown, self.per_s) = (now, 0, 0.0);
        } else if elapsed > 0.0 {
            // It may grow at this rate still, but at no higher one.
            self.per_s = self.per_s.min(self.grown as f64 / elapsed);
        }
        self.per_s
    }
}

/// What a reader of `/events` knows of the experts.
#[derive(Default)]
struct Known {
    uses: Vec<u64>,
    held: Vec<bool>,
}

impl Known {
    /// The sample as it is sent: all of the experts at first, then what has changed.
    fn frame(&mut self, sample: Sample) -> String {
        let mut experts = json!({});
        if self.uses.len() == sample.heat.uses.len() {
            experts["changed"] = json!(changed(&self.uses, &sample.heat.uses));
        } else {
            experts["layers"] = json!(sample.heat.layers);
            experts["experts"] = json!(sample.heat.experts);
            experts["uses"] = json!(sample.heat.uses);
        }
        if self.held != sample.held {
            experts["held"] = json!(digits(&sample.held));
        }
        let body = json!({
            "running": sample.running,
            "waiting": sample.waiting,
            "prompt_tokens_per_s": tenths(sample.prompt_tokens_per_s),
            "answer_tokens_per_s": tenths(sample.answer_tokens_per_s),
            "expert_hit_rate": sample.expert_hit_rate.map(|rate| (rate * 1e4).round() / 1e4),
            "drive_bytes_per_s": sample.drive_bytes_per_s.round() as u64,
            "memory": {
                "rss_bytes": sample.rss_bytes,
                "plan_bytes": sample.plan_bytes,
                "budget_bytes": sample.budget_bytes,
                "slots": sample.slots,
                "slots_planned": sample.slots_planned,
            },
            "experts": experts,
        });
        (self.uses, self.held) = (sample.heat.uses, sample.held);
        format!("data: {body}\n\n")
    }
}

fn tenths(rate: f64) -> Value {
    json!((rate * 10.0).round() / 10.0)
}

/// Pairs: how many counts stay as they were, and by how much the next one has grown.
fn changed(before: &[u64], after: &[u64]) -> Vec<u64> {
    let (mut pairs, mut skipped) = (Vec::new(), 0);
    for (before, after) in before.iter().zip(after) {
        if after == before {
            skipped += 1;
        } else {
            pairs.extend([skipped, after.saturating_sub(*before)]);
            skipped = 0;
        }
    }
    pairs
}

/// A hexadecimal digit for each four; the first is the highest bit.
fn digits(held: &[bool]) -> String {
    let digit = |four: &[bool]| {
        let bits = four.iter().enumerate().map(|(at, held)| u32::from(*held) << (3 - at));
        char::from_digit(bits.sum(), 16).unwrap_or('0')
    };
    held.chunks(4).map(digit).collect()
}

/// `GET /events`
pub(crate) async fn events(State(shared): State<Arc<Shared>>) -> Response {
    respond(begin(&shared))
}

fn begin(shared: &Arc<Shared>) -> Answer {
    let ready = shared.ready()?;
    let full = || ApiError::new(ErrorClass::QueueFull, format!("{VIEWERS} look on already"));
    let place = shared.viewers.clone().try_acquire_owned().map_err(|_| full())?;
    let (sender, frames) = channel(1);
    let mut stopping = shared.stopping.subscribe();
    let mut viewer = Viewer::new(ready);
    tokio::spawn(async move {
        let (mut known, mut ticks) = (Known::default(), interval(EVERY));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Who reads slowly sees fewer samples.
            let next = async {
                ticks.tick().await;
                sender.reserve().await
            };
            let permit = tokio::select! {
                _ = stopping.wait_for(|stops| *stops) => return,
                permit = next => permit,
            };
            let Ok(permit) = permit else { return };
            permit.send(Bytes::from(known.frame(viewer.sample())));
        }
    });
    Ok(event_stream(Body::new(Frames { frames, _place: place })))
}

/// The samples as a body. They end with the server.
struct Frames {
    frames: Receiver<Bytes>,
    /// One of [`VIEWERS`], as long as it lives.
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(hyper::body::Frame::data(bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_pairs_and_what_is_held_digits() {
        assert_eq!(changed(&[1, 2, 3, 4, 5], &[1, 7, 3, 4, 6]), [1, 5, 2, 1]);
        assert!(changed(&[1, 2], &[1, 2]).is_empty());
        assert_eq!(digits(&[true, false, false, true, false, true]), "94");
    }

    #[test]
    fn a_rate_is_of_the_time_since_the_count_grew() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::new(100, start);
        assert_eq!(rate.at(at(1), 110, true), 10.0);
        // A chunk of 2000 that takes 20 s is 100 a second, at its end and until the next one is late.
        assert_eq!(rate.at(at(2), 110, true), 10.0);
        assert_eq!(rate.at(at(21), 2110, true), 100.0);
        assert_eq!(rate.at(at(41), 2110, true), 100.0);
        assert_eq!(rate.at(at(61), 2110, true), 50.0);
        assert_eq!(rate.at(at(62), 2110, false), 0.0);
        assert_eq!(rate.at(at(90), 2110, false), 0.0);
        assert_eq!(rate.at(at(92), 2120, true), 5.0, "idle time does not count");
    }
}
