//! Which expert gives up its slot. One file per policy; all can be replayed on recorded traces.
//!
//! The pool is global over all layers, so a policy sees [`ExpertKey`]s. A policy never changes an answer.

mod lfu;
mod lru;
mod optimum;
mod s3fifo;
mod trace;

use std::collections::{BTreeSet, HashSet};

pub use lfu::Lfu;
pub use lru::Lru;
pub use optimum::Optimum;
pub use s3fifo::S3Fifo;
pub use trace::{Trace, TraceStep};

use crate::key::{ExpertId, ExpertKey, LayerId};

/// Decides about eviction. It is told of every want, of everything that enters and leaves the pool.
pub trait Policy: Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// The router wants `key`, whether it is in the pool or not.
    fn touch(&mut self, key: ExpertKey);

    /// `key` has entered the pool.
    fn insert(&mut self, key: ExpertKey);

    /// Picks the expert to evict among those in the pool that `may` be evicted, and forgets that it is there.
    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey>;

    /// `key` has left the pool without being picked.
    fn forget(&mut self, key: ExpertKey);

    /// The pool has `slots` slots from now on; experts that must go are picked by [`evict`](Self::evict).
    fn resize(&mut self, slots: usize);
}

/// The policies that a store can have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// [`Lfu`]
    #[default]
    Lfu,
    /// [`Lru`]
    Lru,
    /// [`S3Fifo`]
    S3Fifo,
}

impl PolicyKind {
    /// All of them, the default first.
    pub const ALL: [Self; 3] = [Self::Lfu, Self::Lru, Self::S3Fifo];

    /// A policy for a pool of `slots` experts.
    pub fn policy(self, slots: usize) -> Box<dyn Policy> {
        match self {
            Self::Lfu => Box::new(Lfu::new(slots)),
            Self::Lru => Box::new(Lru::new()),
            Self::S3Fifo => Box::new(S3Fifo::new(slots)),
        }
    }
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

    fn and(self, other: Self) -> Self {
        Self { wanted: self.wanted + other.wanted, hits: self.hits + other.hits }
    }
}

/// Runs a trace through `policy` with a pool of `slots` experts, as the store would: all hits of a want are found
/// before its misses take slots, and none of its experts is given up for another one of the same want as long
/// as there is a choice.
pub fn replay<'a>(
    trace: impl IntoIterator<Item = &'a TraceWant>,
    policy: &mut dyn Policy,
    slots: usize,
) -> Replay {
    let mut pool = Pool { policy, slots, held: HashSet::new() };
    trace.into_iter().fold(Replay::default(), |sum, want| sum.and(pool.want(want)))
}

/// What one policy made of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceReplay {
    /// [`Policy::name`]
    pub policy: &'static str,
    /// Slots of the pool.
    pub slots: usize,
    /// Steps of more than one row: prompts.
    pub prompt: Replay,
    /// Steps of one row: answers.
    pub decode: Replay,
}

/// Runs a trace through a fresh pool of every policy and of the unreachable [`Optimum`], which comes last.
pub fn replay_all(trace: &Trace, slots: usize) -> Vec<TraceReplay> {
    let mut policies: Vec<_> = PolicyKind::ALL.iter().map(|kind| kind.policy(slots)).collect();
    policies.push(Box::new(Optimum::new(trace.wants())));
    let run = |mut policy: Box<dyn Policy>| {
        let (mut prompt, mut decode) = (Replay::default(), Replay::default());
        let name = policy.name();
        let mut pool = Pool { policy: policy.as_mut(), slots, held: HashSet::new() };
        for step in &trace.steps {
            let counts = if step.rows > 1 { &mut prompt } else { &mut decode };
            *counts = step.wants.iter().fold(*counts, |sum, want| sum.and(pool.want(want)));
        }
        TraceReplay { policy: name, slots, prompt, decode }
    };
    policies.into_iter().map(run).collect()
}

/// The keys of a want, each once, in ascending order.
fn keys_of(want: &TraceWant) -> BTreeSet<ExpertKey> {
    want.experts.iter().map(|&expert| ExpertKey { layer: want.layer, expert }).collect()
}

/// A pool without memory.
struct Pool<'a> {
    policy: &'a mut dyn Policy,
    slots: usize,
    held: HashSet<ExpertKey>,
}

impl Pool<'_> {
    fn want(&mut self, want: &TraceWant) -> Replay {
        let keys = keys_of(want);
        keys.iter().for_each(|k| self.policy.touch(*k));
        let hits = keys.iter().filter(|k| self.held.contains(*k)).count() as u64;
        let wanted = keys.len() as u64;
        for &key in keys.iter().filter(|_| self.slots > 0) {
            if self.held.contains(&key) {
                continue;
            }
            if self.held.len() >= self.slots {
                let others = self.policy.evict(&|k| !keys.contains(&k));
                let victim = others.or_else(|| self.policy.evict(&|_| true));
                victim.map(|k| self.held.remove(&k));
            }
            self.held.insert(key);
            self.policy.insert(key);
        }
        Replay { wanted, hits }
    }
}

#[cfg(test)]
mod tests;
