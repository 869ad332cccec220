//! Names that nobody can guess.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes ids. SipHash under keys that the operating system chose at random is not foreseen by whoever has seen others.
#[derive(Debug, Default)]
pub struct Ids {
    keys: [RandomState; 2],
    made: AtomicU64,
}

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Ids {
    /// 24 letters and digits, of which each has been drawn from 128 bits.
    pub fn next(&self) -> String {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut text = String::with_capacity(24);
        for half in 0..2_u64 {
            let [high, low] = self.keys.each_ref().map(|key| u128::from(key.hash_one((number, half))));
            let mut bits = high << 64 | low;
            for _ in 0..12 {
                text.push(char::from(LETTERS[(bits % 62) as usize]));
                bits /= 62;
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_letters_and_digits_and_differ() {
        let (ids, others) = (Ids::default(), Ids::default());
        let made: HashSet<String> = (0..1000).flat_map(|_| [ids.next(), others.next()]).collect();
        assert_eq!(made.len(), 2000);
        assert!(made.iter().all(|id| id.len() == 24 && id.bytes().all(|b| b.is_ascii_alphanumeric())));
    }
}
