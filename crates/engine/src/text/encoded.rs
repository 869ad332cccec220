//! What long texts were cut into, so that a conversation is not cut again with every turn.

use std::collections::HashMap;
use std::sync::Arc;

use twox_hash::xxhash3_128;

/// The ids of texts that came lately. At most [`Encoded::BYTES_MAX`].
#[derive(Default)]
pub(crate) struct Encoded {
    new: Generation,
    /// What is asked for again moves to the new ones; the rest goes when those are full.
    old: Generation,
}

#[derive(Default)]
struct Generation {
    ids: HashMap<u128, Arc<[u32]>>,
    bytes: usize,
}

impl Encoded {
    /// Shorter texts are cut faster than they are looked up.
    pub(super) const BYTES_MIN: usize = 256;

    /// What a text takes besides its ids.
    const TEXT_BYTES: usize = 80;

    /// Of all texts.
    pub(crate) const BYTES_MAX: usize = 4 << 20;

    /// What a text is found under; a text at the beginning can have other ids.
    pub(super) fn key(text: &str, first: bool) -> u128 {
        xxhash3_128::Hasher::oneshot_with_seed(u64::from(first), text.as_bytes())
    }

    pub(super) fn get(&mut self, key: u128) -> Option<Arc<[u32]>> {
        if let Some(ids) = self.new.ids.get(&key) {
            return Some(ids.clone());
        }
        let ids = self.old.ids.remove(&key)?;
        self.put(key, ids.clone());
        Some(ids)
    }

    pub(super) fn put(&mut self, key: u128, ids: Arc<[u32]>) {
        let bytes = Self::TEXT_BYTES + size_of_val(&*ids);
        if bytes > Self::BYTES_MAX / 2 {
            return;
        }
        if self.new.bytes + bytes > Self::BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.new);
        }
        // Two requests may have cut the same text at the same time.
        if self.new.ids.insert(key, ids).is_none() {
            self.new.bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_and_the_rest_goes() {
        let mut encoded = Encoded::default();
        let ids = |n: u32| Arc::from(vec![n; Encoded::BYTES_MAX / 32]);
        for n in 0..20 {
            encoded.put(n.into(), ids(n));
            assert_eq!(encoded.get(0).unwrap()[0], 0, "after {n}");
            assert!(encoded.new.bytes + encoded.old.bytes <= Encoded::BYTES_MAX);
        }
        assert!(encoded.get(3).is_none());
        assert!(encoded.get(19).is_some());
        encoded.put(99, Arc::from(vec![0; Encoded::BYTES_MAX]));
        assert!(encoded.get(99).is_none(), "more than there is room for");
    }

    #[test]
    fn a_text_at_the_beginning_is_another() {
        assert_ne!(Encoded::key("a", true), Encoded::key("a", false));
    }
}
