//! Least frequently used, with aging and a memory of experts that are not in the pool.
//!
//! An expert's score is the sum over its wants of `2^(-age / half_life)`, the exponentially decayed frequency of
//! LRFU (Lee et al., 2001). Kept as `log2` of the score scaled to time 0, it changes only when the expert is
//! wanted, and any two scores compare at any time: nothing ever has to be aged.

use std::collections::{BTreeSet, HashMap};

use super::Policy;
use crate::key::ExpertKey;

/// Gives up the expert with the lowest decayed frequency. Scores outlive eviction (a ghost history of all experts
/// ever wanted: 16 bytes each), so an expert that comes back is known.
#[derive(Debug)]
pub struct Lfu {
    half_life: f64,
    /// In half-lives since the first want.
    now: f64,
    history: HashMap<ExpertKey, f64>,
    pool: HashMap<ExpertKey, Score>,
    order: BTreeSet<(Score, ExpertKey)>,
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
        Self {
            half_life: half_life.max(1e-3),
            now: 0.0,
            history: HashMap::new(),
            pool: HashMap::new(),
            order: BTreeSet::new(),
        }
    }

    fn place(&mut self, key: ExpertKey, score: Score) {
        if let Some(before) = self.pool.insert(key, score) {
            self.order.remove(&(before, key));
        }
        self.order.insert((score, key));
    }
}

impl Policy for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn touch(&mut self, key: ExpertKey) {
        self.now += 1.0 / self.half_life;
        let fresh = self.now;
        let score = self.history.entry(key).or_insert(f64::NEG_INFINITY);
        // log2(2^score + 2^fresh), without leaving the range of floats; fresh is never below score - 1e3.
        *score = fresh.max(*score) + (1.0 + (-(fresh - *score).abs()).exp2()).log2();
        let score = Score(*score);
        if self.pool.contains_key(&key) {
            self.place(key, score);
        }
    }

    fn insert(&mut self, key: ExpertKey) {
        let score = self.history.get(&key).copied().unwrap_or(f64::NEG_INFINITY);
        self.place(key, Score(score));
    }

    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        let key = self.order.iter().find(|(_, k)| may(*k))?.1;
        self.forget(key);
        Some(key)
    }

    fn forget(&mut self, key: ExpertKey) {
        if let Some(score) = self.pool.remove(&key) {
            self.order.remove(&(score, key));
        }
    }

    fn resize(&mut self, slots: usize) {
        self.half_life = Self::HALF_LIFE_PER_SLOT * slots.max(1) as f64;
    }
}
