//! The sparse mask: which experts of one layer are wanted.

use crate::key::ExpertId;

/// A set of experts of one layer, as a bitset that grows on demand. Iteration is ascending, which is file order.
#[derive(Clone, Debug, Default)]
pub struct ExpertMask {
    words: Vec<u64>,
}

impl ExpertMask {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every expert of a layer that has `experts` of them.
    pub fn all(experts: u16) -> Self {
        (0..experts).map(ExpertId).collect()
    }

    /// The set of all ids in `routes`, which may repeat.
    pub fn union(routes: impl IntoIterator<Item = ExpertId>) -> Self {
        routes.into_iter().collect()
    }

    /// Adds one expert; true if it was not there.
    pub fn insert(&mut self, expert: ExpertId) -> bool {
        let (word, bit) = Self::place(expert);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        new
    }

    /// Removes one expert; true if it was there.
    pub fn remove(&mut self, expert: ExpertId) -> bool {
        let was = self.contains(expert);
        let (word, bit) = Self::place(expert);
        if let Some(w) = self.words.get_mut(word) {
            *w &= !bit;
        }
        was
    }

    /// Whether the set holds `expert`.
    pub fn contains(&self, expert: ExpertId) -> bool {
        let (word, bit) = Self::place(expert);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// How many experts the set holds.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// Whether the set holds none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Removes all, keeping the memory.
    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// The experts in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ExpertId> + '_ {
        self.words.iter().enumerate().flat_map(|(i, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(ExpertId((i as u32 * 64 + bit) as u16))
            })
        })
    }

    /// The experts in either set.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let (long, short) = if self.words.len() >= other.words.len() { (self, other) } else { (other, self) };
        let mut words = long.words.clone();
        for (w, s) in words.iter_mut().zip(&short.words) {
            *w |= s;
        }
        Self { words }
    }

    /// The experts in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }
    }

    fn place(expert: ExpertId) -> (usize, u64) {
        (expert.0 as usize / 64, 1 << (expert.0 % 64))
    }
}

/// Sets are equal when they hold the same experts, whatever memory they have grown to.
impl PartialEq for ExpertMask {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ExpertMask {}

impl FromIterator<ExpertId> for ExpertMask {
    fn from_iter<I: IntoIterator<Item = ExpertId>>(experts: I) -> Self {
        let mut mask = Self::new();
        mask.extend(experts);
        mask
    }
}

impl Extend<ExpertId> for ExpertMask {
    fn extend<I: IntoIterator<Item = ExpertId>>(&mut self, experts: I) {
        for expert in experts {
            self.insert(expert);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn mask(ids: &BTreeSet<u16>) -> ExpertMask {
        ids.iter().rev().map(|&e| ExpertId(e)).collect()
    }

    proptest! {
        #[test]
        fn behaves_like_a_set(a: BTreeSet<u16>, b in proptest::collection::btree_set(0u16..600, 0..40)) {
            let (ma, mb) = (mask(&a), mask(&b));
            let ids = |m: &ExpertMask| m.iter().map(|e| e.0).collect::<Vec<_>>();
            prop_assert_eq!(ids(&ma), a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ma.count(), a.len());
            prop_assert_eq!(ids(&ma.or(&mb)), a.union(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(ids(&ma.and(&mb)), a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(ids(&mb.or(&ma)), ids(&ma.or(&mb)));
            for e in &b {
                prop_assert_eq!(ma.contains(ExpertId(*e)), a.contains(e));
            }
        }
    }

    #[test]
    fn insert_and_remove_say_what_changed() {
        let mut m = ExpertMask::new();
        assert!(!m.remove(ExpertId(1023)));
        assert!(m.insert(ExpertId(1023)) && !m.insert(ExpertId(1023)));
        assert!(m.contains(ExpertId(1023)) && m.remove(ExpertId(1023)) && m.is_empty());
        assert_eq!(m, ExpertMask::new());
        assert_eq!(ExpertMask::all(512).count(), 512);
    }
}
