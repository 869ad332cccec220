//! The best that any policy could do: it has read the trace before.
//!
//! Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::{Policy, TraceWant, keys_of};
use crate::key::ExpertKey;

/// Evicts the expert whose next want is farthest away. Only for replays of the trace it was made from.
#[derive(Debug)]
pub struct Optimum {
    /// When each expert is wanted, from now on.
    wants: HashMap<ExpertKey, VecDeque<u64>>,
    pool: HashMap<ExpertKey, u64>,
    order: BTreeSet<(u64, ExpertKey)>,
}

impl Optimum {
    /// Knows `trace`.
    pub fn new<'a>(trace: impl IntoIterator<Item = &'a TraceWant>) -> Self {
        let mut wants: HashMap<ExpertKey, VecDeque<u64>> = HashMap::new();
        for (now, want) in trace.into_iter().enumerate() {
            for key in keys_of(want) {
                wants.entry(key).or_default().push_back(now as u64);
            }
        }
        Self { wants, pool: HashMap::new(), order: BTreeSet::new() }
    }

    fn place(&mut self, key: ExpertKey) {
        let next = self.wants.get(&key).and_then(|w| w.front()).copied().unwrap_or(u64::MAX);
        if let Some(before) = self.pool.insert(key, next) {
            self.order.remove(&(before, key));
        }
        self.order.insert((next, key));
    }
}

impl Policy for Optimum {
    fn name(&self) -> &'static str {
        "optimum"
    }

    fn touch(&mut self, key: ExpertKey) {
        self.wants.get_mut(&key).map(VecDeque::pop_front);
        if self.pool.contains_key(&key) {
            self.place(key);
        }
    }

    fn insert(&mut self, key: ExpertKey) {
        self.place(key);
    }

    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        let key = self.order.iter().rev().find(|(_, k)| may(*k))?.1;
        self.forget(key);
        Some(key)
    }

    fn forget(&mut self, key: ExpertKey) {
        if let Some(next) = self.pool.remove(&key) {
            self.order.remove(&(next, key));
        }
    }

    fn resize(&mut self, _slots: usize) {}
}
