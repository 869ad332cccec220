//! Which expert gives up its slot. One file per policy; all can be replayed on recorded traces.
//!
//! The pool is global over all layers, so a policy sees [`ExpertKey`]s. A policy never changes an answer.

mod lfu;
mod lru;

use std::collections::HashSet;

pub use lfu::Lfu;
pub use lru::Lru;

use crate::key::{ExpertId, ExpertKey, LayerId};

/// Decides about eviction. It is told of every want, of everything that enters and leaves the pool.
pub trait Policy: Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// The router wants `key`, whether it is in the pool or not.
    fn touch(&mut self, key: ExpertKey);

    /// `key` has entered the pool.
    fn insert(&mut self, key: ExpertKey);

    /// Picks the expert to give up among those in the pool that `may` be given up, and forgets that it is there.
    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey>;

    /// `key` has left the pool without being picked.
    fn forget(&mut self, key: ExpertKey);
}

/// One want of a recorded run: a layer and the experts it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceWant {
    /// The layer.
    pub layer: LayerId,
    /// Its experts; a repeated one counts once.
    pub experts: Vec<ExpertId>,
}

/// What a replay counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Wanted experts.
    pub wanted: u64,
    /// Those found in the pool.
    pub hits: u64,
}

impl Replay {
    /// Hits among wanted, 0 to 1.
    pub fn hit_rate(&self) -> f64 {
        if self.wanted == 0 { 1.0 } else { self.hits as f64 / self.wanted as f64 }
    }
}

/// Runs a trace through `policy` with a pool of `slots` experts, as the store would: all hits of a want are found
/// before its misses take slots, and none of its experts is given up for another one of the same want as long
/// as there is a choice.
pub fn replay(trace: &[TraceWant], policy: &mut dyn Policy, slots: usize) -> Replay {
    let mut pool = HashSet::new();
    let mut counts = Replay::default();
    for want in trace {
        let keys: HashSet<_> =
            want.experts.iter().map(|&expert| ExpertKey { layer: want.layer, expert }).collect();
        let mut ordered: Vec<_> = keys.iter().copied().collect();
        ordered.sort_unstable();
        ordered.iter().for_each(|k| policy.touch(*k));
        counts.wanted += ordered.len() as u64;
        counts.hits += ordered.iter().filter(|k| pool.contains(*k)).count() as u64;
        for key in ordered {
            if slots == 0 || pool.contains(&key) {
                continue;
            }
            if pool.len() >= slots {
                let victim = policy.evict(&|k| !keys.contains(&k)).or_else(|| policy.evict(&|_| true));
                victim.map(|k| pool.remove(&k));
            }
            pool.insert(key);
            policy.insert(key);
        }
    }
    counts
}

#[cfg(test)]
mod tests;
