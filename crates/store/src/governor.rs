//! How many of the planned slots are used while the program runs: fewer when memory gets short, more again when it
//! is back and more slots save waiting.
//!
//! A cache that makes the machine swap is slower than none: the system throws out what is read next. So the governor
//! gives memory up early, before the system has to take it, and takes it back slowly: a step at a time, each of which
//! must show fewer misses before the next. It decides from figures alone; [`observe`] reads them.

use std::time::Duration;

use files::Result;

use crate::experts::ExpertStore;
use crate::plan::{machine_memory, memory_pressure};

/// What a [`Governor`] may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GovernorOptions {
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Never fewer slots than this.
    pub slots_min: usize,
    /// Never more: those that the plan allows.
    pub slots_max: usize,
}

/// What is known at one moment. Counts only grow; when one falls, counting has started anew.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observation {
    /// Time since some moment that stays the same.
    pub at: Duration,
    /// Memory of the machine or the control group.
    pub total_bytes: u64,
    /// What could be taken without swapping.
    pub available_bytes: u64,
    /// Memory of this process in swap.
    pub swapped_bytes: u64,
    /// Share of the last seconds in which something waited for memory, in percent.
    pub stalled_percent: Option<f64>,
    /// Slots that hold an expert.
    pub slots_used: usize,
    /// Experts wanted so far.
    pub wanted: u64,
    /// Those found in memory.
    pub hits: u64,
    /// Time spent waiting for the drive so far.
    pub waited: Duration,
}

/// Reads the figures of this machine and of a store; `at` is the caller's clock.
///
/// # Errors
/// As [`machine_memory`].
pub fn observe(store: &ExpertStore, at: Duration) -> Result<Observation> {
    let (memory, pressure) = (machine_memory()?, memory_pressure());
    let total = store.stats().total();
    Ok(Observation {
        at,
        total_bytes: memory.total_bytes,
        available_bytes: memory.available_bytes,
        swapped_bytes: pressure.swapped_bytes,
        stalled_percent: pressure.stalled_percent,
        slots_used: store.slots_used(),
        wanted: total.hits + total.misses,
        hits: total.hits,
        waited: total.wait,
    })
}

/// The pool shrinks when less than this part of the memory is available ...
const SHORT_PART: u64 = 64;
/// ... within these bounds, in bytes.
const SHORT_BYTES: std::ops::RangeInclusive<u64> = 32 << 20..=512 << 20;

/// From this share of time in which somebody waits for memory on the pool shrinks, in percent.
const STALLED_PERCENT: f64 = 10.0;
/// It does not grow above this one, in percent.
const CALM_PERCENT: f64 = 1.0;

/// Pressure is an average over 10 s, so the next look at it makes sense after a while.
const PRESSURE_PAUSE: Duration = Duration::from_secs(3);

/// The pool does not grow for this long after memory was short.
const QUIET: Duration = Duration::from_secs(5);

/// Steps from the smallest pool to the largest.
const STEPS: usize = 8;

/// Wanted experts that make a hit rate worth comparing.
const WINDOW_WANTS: u64 = 2000;
/// The shortest time that makes a share of waiting worth believing.
const WINDOW: Duration = Duration::from_secs(2);

/// Below this share of time spent waiting for the drive, more slots would not be noticed.
const WAITING_SHARE: f64 = 0.02;

/// A step must save this share of the misses to have paid.
const GAIN: f64 = 0.01;

/// After a step that did not pay the pool stays as it is for this long, then twice as long, and so on.
const HOLD: Duration = Duration::from_secs(30);
/// The longest such time.
const HOLD_MAX: Duration = Duration::from_secs(900);

/// Decides how many slots a pool uses.
#[derive(Clone, Debug)]
pub struct Governor {
    options: GovernorOptions,
    slots: usize,
    swapped_bytes: Option<u64>,
    last_pressure: Option<Duration>,
    no_growth_until: Duration,
    hold: Duration,
    phase: Phase,
}

/// Where growing is at. Each phase counts from an observation on.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing known yet.
    Start,
    /// Measures the pool as it is.
    Watching(Observation),
    /// The pool has grown from this rate of misses; `slots` new slots fill.
    Filling { from: Observation, misses: f64, slots: usize },
    /// They are full: measures what they are good for.
    Judging { from: Observation, misses: f64 },
}

impl Governor {
    /// For a pool that uses `options.slots_max` slots now.
    pub fn new(options: GovernorOptions) -> Self {
        Self {
            options,
            slots: options.slots_max,
            swapped_bytes: None,
            last_pressure: None,
            no_growth_until: Duration::ZERO,
            hold: HOLD,
            phase: Phase::Start,
        }
    }

    /// The slots that it has decided for.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// How many slots the pool is to use from now on; `None` leaves it as it is.
    pub fn decide(&mut self, now: &Observation) -> Option<usize> {
        let target = self.shrunk(now).or_else(|| self.grown(now))?;
        let target = target.clamp(self.options.slots_min.min(self.options.slots_max), self.options.slots_max);
        let changes = target != self.slots;
        self.slots = target;
        changes.then_some(target)
    }

    /// Fewer slots, if memory is short.
    fn shrunk(&mut self, now: &Observation) -> Option<usize> {
        let short_bytes = short_bytes(now.total_bytes);
        let swapped_before = self.swapped_bytes.replace(now.swapped_bytes).unwrap_or(now.swapped_bytes);
        let newly_swapped = now.swapped_bytes.saturating_sub(swapped_before);
        let mut give_bytes = newly_swapped;
        if now.available_bytes < short_bytes {
            // Half as much again, so that the next observation does not ask for more.
            give_bytes += short_bytes + short_bytes / 2 - now.available_bytes;
        }
        let pressed = now.stalled_percent.is_some_and(|percent| percent >= STALLED_PERCENT);
        let looked_lately = self.last_pressure.is_some_and(|at| now.at < at + PRESSURE_PAUSE);
        if pressed && !looked_lately {
            self.last_pressure = Some(now.at);
            give_bytes = give_bytes.max(self.step() as u64 * self.options.slot_bytes);
        }
        if give_bytes == 0 {
            return None;
        }
        self.no_growth_until = self.no_growth_until.max(now.at + QUIET);
        self.phase = Phase::Watching(*now);
        let give = give_bytes.div_ceil(self.options.slot_bytes.max(1));
        // Slots that never held anything have no memory to give.
        let used = now.slots_used.min(self.slots);
        Some(used.saturating_sub(usize::try_from(give).unwrap_or(usize::MAX)))
    }

    /// More slots, if there is memory and they are worth it.
    fn grown(&mut self, now: &Observation) -> Option<usize> {
        match self.phase {
            Phase::Start => self.phase = Phase::Watching(*now),
            Phase::Watching(from) => return self.step_up(&from, now),
            Phase::Filling { from, misses, slots } => match Window::between(&from, now) {
                None => self.phase = Phase::Watching(*now),
                Some(window) if window.missed >= slots as u64 => {
                    self.phase = Phase::Judging { from: *now, misses };
                }
                Some(_) => {}
            },
            Phase::Judging { from, misses } => match Window::between(&from, now) {
                None => self.phase = Phase::Watching(*now),
                Some(window) if window.is_whole() => {
                    let pays = window.miss_rate() <= misses * (1.0 - GAIN);
                    if pays {
                        self.hold = HOLD;
                    } else {
                        self.no_growth_until = now.at + self.hold;
                        self.hold = (2 * self.hold).min(HOLD_MAX);
                    }
                    self.phase = Phase::Watching(*now);
                }
                Some(_) => {}
            },
        }
        None
    }

    fn step_up(&mut self, from: &Observation, now: &Observation) -> Option<usize> {
        let Some(window) = Window::between(from, now) else {
            self.phase = Phase::Watching(*now);
            return None;
        };
        if !window.is_whole() {
            return None;
        }
        self.phase = Phase::Watching(*now);
        let calm = now.stalled_percent.is_none_or(|percent| percent <= CALM_PERCENT);
        let room = self.options.slots_max.saturating_sub(self.slots);
        if room == 0 || !calm || now.at < self.no_growth_until || window.waiting_share() < WAITING_SHARE {
            return None;
        }
        // Slots that never held anything will take what they were planned with.
        let unfilled = self.slots.saturating_sub(now.slots_used) as u64;
        let kept_bytes = 2 * short_bytes(now.total_bytes) + unfilled * self.options.slot_bytes;
        let free = now.available_bytes.saturating_sub(kept_bytes).checked_div(self.options.slot_bytes);
        let step = self.step().min(room).min(usize::try_from(free.unwrap_or(0)).unwrap_or(usize::MAX));
        if step == 0 {
            return None;
        }
        self.phase = Phase::Filling { from: *now, misses: window.miss_rate(), slots: step };
        Some(self.slots + step)
    }

    fn step(&self) -> usize {
        self.options.slots_max.div_ceil(STEPS)
    }
}

fn short_bytes(total_bytes: u64) -> u64 {
    (total_bytes / SHORT_PART).clamp(*SHORT_BYTES.start(), *SHORT_BYTES.end())
}

/// What happened between two observations.
struct Window {
    time: Duration,
    wanted: u64,
    missed: u64,
    waited: Duration,
}

impl Window {
    /// `None` when counting has started anew in between.
    fn between(from: &Observation, to: &Observation) -> Option<Self> {
        let wanted = to.wanted.checked_sub(from.wanted)?;
        let missed = wanted.checked_sub(to.hits.checked_sub(from.hits)?)?;
        let waited = to.waited.checked_sub(from.waited)?;
        Some(Self { time: to.at.saturating_sub(from.at), wanted, missed, waited })
    }

    fn is_whole(&self) -> bool {
        self.wanted >= WINDOW_WANTS && self.time >= WINDOW
    }

    fn miss_rate(&self) -> f64 {
        self.missed as f64 / self.wanted.max(1) as f64
    }

    fn waiting_share(&self) -> f64 {
        self.waited.as_secs_f64() / self.time.as_secs_f64().max(1e-9)
    }
}

#[cfg(test)]
mod tests;
