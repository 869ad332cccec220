//! Finds the added tokens (control markers, user-defined pieces) in a text, leftmost first, longest first.

use std::collections::HashMap;

/// One token that is matched as a whole before the model sees the text.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    /// The text that matches; not empty.
    pub(crate) text: String,
    /// The token.
    pub(crate) id: u32,
    /// A control token: matched only in text that a template wrote.
    pub(crate) control: bool,
    /// The match takes the white space before it along.
    pub(crate) lstrip: bool,
    /// The match takes the white space after it along.
    pub(crate) rstrip: bool,
    /// Only matches where no word character touches it.
    pub(crate) single_word: bool,
}

/// A piece of a split text.
#[derive(Debug, PartialEq)]
pub(crate) enum Fragment<'a> {
    /// Ordinary text, not empty.
    Text(&'a str),
    /// A token that matched whole.
    Token(u32),
}

/// The added tokens of a tokenizer, by first byte.
#[derive(Default)]
pub(crate) struct Splitter {
    by_first: HashMap<u8, Vec<Added>>,
}

impl Splitter {
    /// Empty texts are dropped: they would match everywhere.
    pub(crate) fn new(added: impl IntoIterator<Item = Added>) -> Self {
        let mut by_first: HashMap<u8, Vec<Added>> = HashMap::new();
        for token in added {
            if let Some(&first) = token.text.as_bytes().first() {
                by_first.entry(first).or_default().push(token);
            }
        }
        for list in by_first.values_mut() {
            list.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        }
        Self { by_first }
    }

    /// The texts of the control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.by_first.values().flatten().filter(|t| t.control).map(|t| t.text.as_str())
    }

    /// Splits `text`. Control tokens match only with `parse_control`; the others always do.
    pub(crate) fn split<'a>(&self, text: &'a str, parse_control: bool) -> Vec<Fragment<'a>> {
        self.split_at(text, parse_control).into_iter().map(|(_, fragment)| fragment).collect()
    }

    /// [`Splitter::split`], with where each fragment begins in `text`.
    pub(crate) fn split_at<'a>(&self, text: &'a str, parse_control: bool) -> Vec<(usize, Fragment<'a>)> {
        let mut out = Vec::new();
        let (mut start, mut at) = (0, 0);
        while at < text.len() {
            let Some(token) = self.match_at(text, at, parse_control) else {
                at += 1;
                continue;
            };
            let before = &text[start..at];
            let before = if token.lstrip { before.trim_end() } else { before };
            if !before.is_empty() {
                out.push((start, Fragment::Text(before)));
            }
            out.push((at, Fragment::Token(token.id)));
            at += token.text.len();
            if token.rstrip {
                at = text.len() - text[at..].trim_start().len();
            }
            start = at;
        }
        if start < text.len() {
            out.push((start, Fragment::Text(&text[start..])));
        }
        out
    }

    fn match_at(&self, text: &str, at: usize, parse_control: bool) -> Option<&Added> {
        let rest = &text.as_bytes()[at..];
        let candidates = self.by_first.get(rest.first()?)?;
        candidates.iter().find(|t| {
            (parse_control || !t.control)
                && rest.starts_with(t.text.as_bytes())
                && (!t.single_word || stands_alone(text, at, at + t.text.len()))
        })
    }
}

fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].chars().next_back().is_some_and(word) && !text[end..].chars().next().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(text: &str, id: u32, control: bool) -> Added {
        Added { text: text.into(), id, control, lstrip: false, rstrip: false, single_word: false }
    }

    #[test]
    fn longest_wins_and_control_needs_leave() {
        let s = Splitter::new([added("<a>", 1, true), added("<a>b", 2, true), added("ü", 3, false)]);
        assert_eq!(s.split("x<a>by", true), [Fragment::Text("x"), Fragment::Token(2), Fragment::Text("y")]);
        assert_eq!(s.split("<a>ü", false), [Fragment::Text("<a>"), Fragment::Token(3)]);
        assert_eq!(s.split("", true), []);
    }

    #[test]
    fn strips_and_single_words() {
        let strip = Added { lstrip: true, rstrip: true, ..added("|", 1, true) };
        let word = Added { single_word: true, ..added("cat", 2, false) };
        let s = Splitter::new([strip, word]);
        let split = s.split("a \n| \tb cat cats", true);
        assert_eq!(
            split,
            [
                Fragment::Text("a"),
                Fragment::Token(1),
                Fragment::Text("b "),
                Fragment::Token(2),
                Fragment::Text(" cats")
            ]
        );
    }
}
