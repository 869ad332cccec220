//! Least recently used.

use std::collections::{BTreeSet, HashMap};

use super::Policy;
use crate::key::ExpertKey;

/// Evicts the expert that was wanted longest ago.
#[derive(Debug, Default)]
pub struct Lru {
    now: u64,
    used: HashMap<ExpertKey, u64>,
    order: BTreeSet<(u64, ExpertKey)>,
}

impl Lru {
    /// Nothing in the pool.
    pub fn new() -> Self {
        Self::default()
    }

    fn place(&mut self, key: ExpertKey) {
        self.now += 1;
        if let Some(before) = self.used.insert(key, self.now) {
            self.order.remove(&(before, key));
        }
        self.order.insert((self.now, key));
    }
}

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn touch(&mut self, key: ExpertKey) {
        if self.used.contains_key(&key) {
            self.place(key);
        }
    }

    fn insert(&mut self, key: ExpertKey) {
        self.place(key);
    }

    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        let key = self.order.iter().find(|(_, k)| may(*k))?.1;
        self.forget(key);
        Some(key)
    }

    fn forget(&mut self, key: ExpertKey) {
        if let Some(used) = self.used.remove(&key) {
            self.order.remove(&(used, key));
        }
    }

    fn resize(&mut self, _slots: usize) {}
}
