//! Least frequently used, with aging and a memory of experts that are not in the pool.
//!
//! An expert's score is the sum over its wants of `2^(-age / half_life)`, the exponentially decayed frequency of
//! LRFU (Lee et al., 2001). Kept as `log2` of the score scaled to time 0, it changes only when the expert is
//! wanted, and any two scores compare at any time: nothing ever has to be aged. A score only grows, so the order of the
//! pool may lag behind: [`Lfu::evict`] brings its low end up to date, and a want of what is there costs little.

use std::collections::BTreeSet;

use super::Policy;
use crate::key::{ExpertKey, KeyMap};

/// Evicts the expert with the lowest decayed frequency. Scores outlive eviction (a ghost history of all experts:
/// 24 bytes each), so an expert that comes back is known.
#[derive(Debug)]
pub struct Lfu {
    half_life: f64,
    /// In half-lives since the first want.
    now: f64,
    experts: KeyMap<Known>,
    /// Those in the pool, by their [`Known::place`].
    order: BTreeSet<(Score, ExpertKey)>,
}

/// What is known of an expert that was wanted, or is in the pool.
#[derive(Clone, Copy, Debug)]
struct Known {
    score: Score,
    /// The score that it has in the order of the pool, this one or an earlier one.
    place: Option<Score>,
}

/// A float made sortable.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Score(f64);

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Lfu {
    /// For a pool of `slots` experts: a want counts half after [`Lfu::HALF_LIFE_PER_SLOT`] `* slots` later ones.
    pub fn new(slots: usize) -> Self {
        Self::with_half_life(Self::HALF_LIFE_PER_SLOT * slots.max(1) as f64)
    }

    /// Half-life in wanted experts for each slot of the pool. Replays of recorded routing (`testdata/traces`): 16 is best
    /// or within 1.1 points of hit rate of it for pools of 5 to 75 % of the experts; 8 loses up to 2 points in
    /// small pools, 256 up to 2 in larger ones.
    pub const HALF_LIFE_PER_SLOT: f64 = 16.0;

    /// A want counts half after `half_life` later wants of single experts.
    pub fn with_half_life(half_life: f64) -> Self {
        Self { half_life: half_life.max(1e-3), now: 0.0, experts: KeyMap::default(), order: BTreeSet::new() }
    }

    fn known(&mut self, key: ExpertKey) -> &mut Known {
        self.experts.place(key).get_or_insert(Known { score: Score(f64::NEG_INFINITY), place: None })
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn touch(&mut self, key: ExpertKey) {
        self.now += 1.0 / self.half_life;
        let fresh = self.now;
        let known = self.known(key);
        let score = known.score.0;
        // log2(2^score + 2^fresh), without leaving the range of floats; fresh is never below score - 1e3.
        known.score = Score(fresh.max(score) + (1.0 + (-(fresh - score).abs()).exp2()).log2());
    }

    fn insert(&mut self, key: ExpertKey) {
        self.forget(key);
        let known = self.known(key);
        known.place = Some(known.score);
        let score = known.score;
        self.order.insert((score, key));
    }

    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        loop {
            let score = |key| self.experts.get(key).map(|known| known.score);
            let lags = |(place, key): &(Score, ExpertKey)| score(*key) != Some(*place);
            let &first = self.order.iter().find(|first| lags(first) || may(first.1))?;
            let lags = lags(&first);
            self.forget(first.1);
            if !lags {
                return Some(first.1);
            }
            self.insert(first.1);
        }
    }

    fn forget(&mut self, key: ExpertKey) {
        if let Some(place) = self.experts.get_mut(key).and_then(|known| known.place.take()) {
            self.order.remove(&(place, key));
        }
    }

    fn resize(&mut self, slots: usize) {
        self.half_life = Self::HALF_LIFE_PER_SLOT * slots.max(1) as f64;
    }
}
