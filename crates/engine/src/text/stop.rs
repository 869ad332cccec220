//! Stop strings over streamed text.

use files::{Error, Result};

/// Watches streamed text for strings that end it. Text that may be the beginning of one is held back.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    hit: Option<usize>,
}

impl StopStrings {
    /// Watches for any of `stops`; an empty one is refused, since it would match before the first character.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        match stops.iter().position(String::is_empty) {
            Some(i) => Err(Error::invalid(format!("stop[{i}]: a stop string must not be empty"))),
            None => Ok(Self { stops, held: String::new(), hit: None }),
        }
    }

    /// The text that may be shown; everything from the earliest stop string on is cut. After a hit, nothing.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate().filter_map(|(i, s)| Some((self.held.find(s)?, i))).min();
        if let Some((at, which)) = found {
            // A longer stop string may have begun earlier and still be incomplete; the finished one wins.
            self.hit = Some(which);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let open = self.stops.iter().map(|s| open_suffix(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - open);
        std::mem::replace(&mut self.held, rest)
    }

    /// Which stop string was found, by its index.
    pub fn hit(&self) -> Option<usize> {
        self.hit
    }

    /// The text held back, at the end of a stream without a hit.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest suffix of `text` that is a proper beginning of `stop`.
fn open_suffix(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    // A match of bytes at a character boundary of `stop` begins at a character of `text` too.
    (1..=longest).rev().find(|n| text.as_bytes().ends_with(&stop.as_bytes()[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], chunks: &[&str]) -> (String, Option<usize>) {
        let mut s = StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect()).unwrap();
        let mut out: String = chunks.iter().map(|c| s.push(c)).collect();
        out.push_str(&s.finish());
        (out, s.hit())
    }

    #[test]
    fn cuts_before_the_stop_and_holds_prefixes() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), Some(0)));
        assert_eq!(run(&["END"], &["a E", "N", "x"]), ("a ENx".into(), None));
        assert_eq!(run(&["\n\n", "User:"], &["hi\nUser", ": x"]), ("hi\n".into(), Some(1)));
        assert_eq!(run(&["é"], &["a", "é"]), ("a".into(), Some(0)));
        let mut s = StopStrings::new(vec!["stop".into()]).unwrap();
        assert_eq!(s.push("a st"), "a ");
        assert_eq!(s.push("e"), "ste");
        assert!(StopStrings::new(vec![String::new()]).is_err());
    }

    proptest! {
        #[test]
        fn chunking_never_shows(text in "[ab]{0,24}", cuts in prop::collection::vec(0usize..24, 0..5)) {
            // One stop string: with several, which of two overlapping ones is finished first depends on timing.
            let whole = run(&["abba"], &[&text]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut from = 0;
            let chunks: Vec<&str> = cuts.iter().map(|c| &text[std::mem::replace(&mut from, *c)..*c]).collect();
            prop_assert_eq!(run(&["abba"], &chunks), whole.clone());
            prop_assert_eq!(whole.0, text.split("abba").next().unwrap_or_default());
        }
    }
}
