//! Beginnings of sequences that are kept for whoever begins alike: their pages, and for recurrent layers a snapshot.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::KeptTally;
use super::Snapshot;
use super::ledger::Page;
use crate::sequence::common;

/// What tells a kept beginning from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PrefixId(u64);

/// Some first tokens, and everything that is needed to go on after them.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(super) tokens: Vec<u32>,
    pub(super) pages: Vec<Page>,
    /// Of the state after the last token, where layers are recurrent.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

/// One that is kept.
#[derive(Debug)]
struct Kept {
    id: PrefixId,
    prefix: Prefix,
    /// When it was last of use: counted in lookups.
    used: u64,
    /// Whether a file holds it too.
    is_stored: bool,
}

/// A beginning that fits.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Tokens that need not be computed.
    pub(crate) position: usize,
    pub(super) pages: Vec<Page>,
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

impl Found {
    /// The state there, where layers are recurrent.
    pub(crate) fn into_snapshot(self) -> Option<Arc<Snapshot>> {
        self.snapshot
    }
}

/// All that is kept. Pages are free memory as long as no sequence needs them; of snapshots there is a number.
#[derive(Debug)]
pub(crate) struct Prefixes {
    kept: Vec<Kept>,
    /// Whether anything is.
    keeps: bool,
    /// Most that may have a snapshot.
    snapshots_max: usize,
    clock: u64,
    next_id: u64,
    page_bytes: u64,
    snapshot_bytes: u64,
    tally: KeptTally,
}

impl Prefixes {
    /// Nothing yet, and nothing ever unless it `keeps`; at most `snapshots_max` will have a snapshot.
    pub(super) fn new(keeps: bool, snapshots_max: usize, page_bytes: u64, snapshot_bytes: u64) -> Self {
        let (kept, tally) = (Vec::new(), KeptTally::default());
        Self { kept, keeps, snapshots_max, clock: 0, next_id: 0, page_bytes, snapshot_bytes, tally }
    }

    /// Where it is counted.
    pub(crate) fn tally(&self) -> &KeptTally {
        &self.tally
    }

    fn count(&self) {
        let pages: HashSet<u32> =
            self.kept.iter().flat_map(|kept| &kept.prefix.pages).map(Page::id).collect();
        let snapshots = self.kept.iter().filter(|kept| kept.prefix.snapshot.is_some()).count();
        let bytes = pages.len() as u64 * self.page_bytes + snapshots as u64 * self.snapshot_bytes;
        self.tally.set_memory(self.kept.len() as u64, bytes);
    }

    /// Most snapshots.
    pub(crate) fn snapshots_max(&self) -> usize {
        self.snapshots_max
    }

    /// Whether anything can be kept, which needs a snapshot where layers are `recurrent`.
    pub(crate) fn has_room(&self, recurrent: bool) -> bool {
        self.keeps && (!recurrent || self.snapshots_max > 0)
    }

    /// The longest beginning of `tokens` that somebody kept. All that are beginnings of `tokens` count as used, since
    /// others begin with them too.
    pub(crate) fn longest(&mut self, tokens: &[u32]) -> Option<Found> {
        self.search(tokens, tokens.len()).0
    }

    /// [`Self::longest`] of all of `tokens` but the last, whose logits are wanted. And how many of them the nearest of those
    /// kept has too, if it departs from them: from most that is kept they only go on.
    pub(crate) fn nearest(&mut self, tokens: &[u32]) -> (Option<Found>, Option<usize>) {
        self.search(tokens, tokens.len().saturating_sub(1))
    }

    fn search(&mut self, tokens: &[u32], most: usize) -> (Option<Found>, Option<usize>) {
        self.clock += 1;
        let mut best: Option<(usize, &Kept)> = None;
        let mut nearest = (0, true);
        for kept in &mut self.kept {
            let (prefix, len) = (&kept.prefix, kept.prefix.tokens.len());
            let same = common(&prefix.tokens, tokens);
            nearest = nearest.max((same, same == len));
            let whole = same.min(most) == len;
            if whole {
                kept.used = self.clock;
            }
            // A recurrent layer cannot be cut.
            let usable = if prefix.snapshot.is_some() && !whole { 0 } else { same.min(most) };
            if usable > best.map_or(0, |(most, _)| most) {
                best = Some((usable, kept));
            }
        }
        let found = best.map(|(position, kept)| Found {
            position,
            pages: kept.prefix.pages[..super::pages(position).min(kept.prefix.pages.len())].to_vec(),
            snapshot: kept.prefix.snapshot.clone(),
        });
        let (same, goes_on) = nearest;
        (found, (!goes_on && same < tokens.len()).then_some(same))
    }

    /// Whether these very tokens are kept.
    pub(crate) fn holds(&self, tokens: &[u32]) -> bool {
        self.kept.iter().any(|kept| kept.prefix.tokens == tokens)
    }

    /// Keeps a beginning, in place of the least valuable one if there are too many snapshots.
    pub(super) fn keep(&mut self, prefix: Prefix, is_stored: bool) {
        let room = self.has_room(prefix.snapshot.is_some());
        if prefix.tokens.is_empty() || !room || self.holds(&prefix.tokens) {
            return;
        }
        // Without recurrent layers the longer one can be cut anywhere.
        if prefix.snapshot.is_none() {
            let longer = |kept: &Kept| common(&kept.prefix.tokens, &prefix.tokens) == prefix.tokens.len();
            if self.kept.iter().any(longer) {
                return;
            }
            self.kept.retain(|k| common(&k.prefix.tokens, &prefix.tokens) < k.prefix.tokens.len());
        }
        let has_snapshot = prefix.snapshot.is_some();
        let id = PrefixId(self.next_id);
        self.next_id += 1;
        self.kept.push(Kept { id, prefix, used: self.clock, is_stored });
        let snapshots = self.kept.iter().filter(|kept| kept.prefix.snapshot.is_some()).count();
        if has_snapshot && snapshots > self.snapshots_max {
            self.evict();
        }
        self.count();
    }

    /// Gives the least valuable one up; false if there is none. Value is tokens that need not be computed again, times how
    /// likely they are wanted again, which falls with each lookup that did not want them.
    pub(super) fn evict(&mut self) -> bool {
        self.evict_of(&|_| true)
    }

    /// The same for pages' sake: those whose pages living sequences have too would free none.
    pub(super) fn evict_for_pages(&mut self) -> bool {
        let own = self.own_pages();
        self.evict_of(&|prefix| prefix.pages.iter().any(|page| own.contains(&page.id())))
    }

    /// Gives all up that have a page, if its holder has it alone then; whether it has.
    pub(super) fn give_up_page(&mut self, page: &Page) -> bool {
        let has = |kept: &Kept| kept.prefix.pages.iter().any(|other| other.id() == page.id());
        let alone = page.holders() == 1 + self.kept.iter().filter(|kept| has(kept)).count();
        if alone {
            let before = self.kept.len();
            self.kept.retain(|kept| !has(kept));
            self.tally.evicted((before - self.kept.len()) as u64);
            self.count();
        }
        alone
    }

    fn evict_of(&mut self, may_go: &dyn Fn(&Prefix) -> bool) -> bool {
        let value = |at: usize| {
            let Kept { prefix, used, .. } = &self.kept[at];
            let shorter = self.kept.iter().map(|other| &other.prefix.tokens);
            let shorter = shorter.filter(|o| o.len() < prefix.tokens.len() && prefix.tokens.starts_with(o));
            let saved = prefix.tokens.len() - shorter.map(Vec::len).max().unwrap_or(0);
            saved as f64 / (self.clock - used + 1) as f64
        };
        let candidates = (0..self.kept.len()).filter(|&at| may_go(&self.kept[at].prefix));
        let least = candidates.min_by(|&a, &b| value(a).total_cmp(&value(b)));
        let Some(at) = least else { return false };
        self.kept.swap_remove(at);
        self.tally.evicted(1);
        self.count();
        true
    }

    /// How many pages nobody else has.
    pub(super) fn pages_of_nobody_else(&self) -> usize {
        self.own_pages().len()
    }

    /// Pages that nobody else has.
    fn own_pages(&self) -> HashSet<u32> {
        let mut holders = HashMap::<u32, (usize, &Page)>::new();
        for page in self.kept.iter().flat_map(|kept| &kept.prefix.pages) {
            holders.entry(page.id()).or_insert((0, page)).0 += 1;
        }
        let own = holders.into_iter().filter(|(_, (holders, page))| page.holders() == *holders);
        own.map(|(id, _)| id).collect()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.count();
    }

    /// One that no file holds, the oldest first.
    pub(crate) fn unstored(&self) -> Option<PrefixId> {
        self.kept.iter().filter(|kept| !kept.is_stored).map(|kept| kept.id).min_by_key(|id| id.0)
    }

    /// A kept one; `None` if it was given up.
    pub(super) fn get(&self, id: PrefixId) -> Option<&Prefix> {
        self.kept.iter().find(|kept| kept.id == id).map(|kept| &kept.prefix)
    }

    /// Says that a file holds it, or that none will.
    pub(crate) fn set_stored(&mut self, id: PrefixId) {
        self.kept.iter_mut().filter(|kept| kept.id == id).for_each(|kept| kept.is_stored = true);
    }
}
