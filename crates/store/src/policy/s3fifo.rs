//! S3-FIFO: three queues, no order within them but that of arrival.
//!
//! Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023. A newcomer stands in a small queue; only
//! if it is wanted again there does it get into the main one. Who leaves the small queue is remembered for a
//! while and goes straight to the main queue when it comes back.

use std::collections::{BTreeMap, HashMap};

use super::Policy;
use crate::key::ExpertKey;

/// Evicts what was wanted once, first; what is wanted often goes round the main queue.
#[derive(Debug)]
pub struct S3Fifo {
    slots: usize,
    now: u64,
    entries: HashMap<ExpertKey, Entry>,
    small: BTreeMap<u64, ExpertKey>,
    main: BTreeMap<u64, ExpertKey>,
    ghosts: BTreeMap<u64, ExpertKey>,
    ghost_since: HashMap<ExpertKey, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Place in its queue: lower is older.
    since: u64,
    is_main: bool,
    /// Wants since it stands there, at most [`MOST_WANTS`].
    wants: u8,
}

/// Wants are counted up to this.
const MOST_WANTS: u8 = 3;

/// The small queue's part of the pool is one in this many.
const SMALL_PART: usize = 10;

impl S3Fifo {
    /// For a pool of `slots` experts.
    pub fn new(slots: usize) -> Self {
        Self {
            slots,
            now: 0,
            entries: HashMap::new(),
            small: BTreeMap::new(),
            main: BTreeMap::new(),
            ghosts: BTreeMap::new(),
            ghost_since: HashMap::new(),
        }
    }

    fn enqueue(&mut self, key: ExpertKey, is_main: bool, wants: u8) {
        self.now += 1;
        let queue = if is_main { &mut self.main } else { &mut self.small };
        queue.insert(self.now, key);
        self.entries.insert(key, Entry { since: self.now, is_main, wants });
    }

    /// The oldest in a queue that may go, with its entry.
    fn oldest(&self, is_main: bool, may: &dyn Fn(ExpertKey) -> bool) -> Option<(ExpertKey, Entry)> {
        let queue = if is_main { &self.main } else { &self.small };
        let key = *queue.values().find(|k| may(**k))?;
        Some((key, *self.entries.get(&key)?))
    }

    fn evict_small(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        loop {
            let (key, entry) = self.oldest(false, may)?;
            self.forget(key);
            if entry.wants <= 1 {
                self.remember(key);
                return Some(key);
            }
            self.enqueue(key, true, 0);
        }
    }

    fn evict_main(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        loop {
            let (key, entry) = self.oldest(true, may)?;
            self.forget(key);
            if entry.wants == 0 {
                return Some(key);
            }
            self.enqueue(key, true, entry.wants - 1);
        }
    }

    fn remember(&mut self, key: ExpertKey) {
        self.now += 1;
        self.ghosts.insert(self.now, key);
        if let Some(before) = self.ghost_since.insert(key, self.now) {
            self.ghosts.remove(&before);
        }
        while self.ghosts.len() > self.slots.max(1) {
            let Some((_, oldest)) = self.ghosts.pop_first() else { return };
            self.ghost_since.remove(&oldest);
        }
    }
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3fifo"
    }

    fn touch(&mut self, key: ExpertKey) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.wants = (entry.wants + 1).min(MOST_WANTS);
        }
    }

    fn insert(&mut self, key: ExpertKey) {
        if self.entries.contains_key(&key) {
            return;
        }
        let known = self.ghost_since.remove(&key);
        known.map(|since| self.ghosts.remove(&since));
        self.enqueue(key, known.is_some(), 0);
    }

    fn evict(&mut self, may: &dyn Fn(ExpertKey) -> bool) -> Option<ExpertKey> {
        if self.small.len() > self.slots / SMALL_PART || self.main.is_empty() {
            self.evict_small(may).or_else(|| self.evict_main(may))
        } else {
            self.evict_main(may).or_else(|| self.evict_small(may))
        }
    }

    fn forget(&mut self, key: ExpertKey) {
        if let Some(entry) = self.entries.remove(&key) {
            let queue = if entry.is_main { &mut self.main } else { &mut self.small };
            queue.remove(&entry.since);
        }
    }

    fn resize(&mut self, slots: usize) {
        self.slots = slots;
    }
}
