//! Words that shaders find in one buffer: ids, and tables. New ones come after the old ones, so that a table which step
//! after step has in common is written once; the buffer begins anew when it is full.

use std::collections::VecDeque;
use std::ops::Range;

/// So many of the last tables are remembered: those of the rows and of the segments of two steps.
const TABLES: usize = 4;

/// The words of one recording.
#[derive(Default)]
pub(super) struct Uploads {
    words: Vec<u32>,
    /// So many of them are in the buffer.
    sent: usize,
    tables: VecDeque<Range<usize>>,
}

impl Uploads {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    /// Appends words; the index of the first.
    pub(super) fn push(&mut self, words: &[u32]) -> u32 {
        let first = self.words.len() as u32;
        self.words.extend_from_slice(words);
        first
    }

    /// Appends a table that later ops may ask for.
    pub(super) fn push_table(&mut self, words: &[u32]) -> u32 {
        let first = self.push(words);
        self.tables.truncate(TABLES - 1);
        self.tables.push_front(first as usize..self.words.len());
        first
    }

    /// The index of the first word of such a table, if it is there.
    pub(super) fn find(&self, words: &[u32]) -> Option<u32> {
        if words.is_empty() {
            return Some(0);
        }
        let found = self.tables.iter().find(|range| self.words[(*range).clone()] == *words);
        found.map(|range| range.start as u32)
    }

    /// Those that are not in the buffer, which from now on they are; and where the first of them goes.
    pub(super) fn send(&mut self) -> (usize, &[u32]) {
        let first = std::mem::replace(&mut self.sent, self.words.len());
        (first, &self.words[first..])
    }

    /// Forgets all, since the buffer is written from its start.
    pub(super) fn clear(&mut self) {
        *self = Self { words: std::mem::take(&mut self.words), ..Self::default() };
        self.words.clear();
    }

    /// All of them.
    pub(super) fn into_words(self) -> Vec<u32> {
        self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_until_others_are_written_over_them() {
        let mut uploads = Uploads::default();
        assert_eq!((uploads.push(&[7]), uploads.find(&[7])), (0, None), "ids are not shared");
        assert_eq!(uploads.push_table(&[1, 2]), 1);
        assert_eq!(uploads.send(), (0, &[7, 1, 2][..]));
        assert_eq!((uploads.find(&[1, 2]), uploads.find(&[1]), uploads.find(&[])), (Some(1), None, Some(0)));
        assert_eq!((uploads.push(&[8]), uploads.send()), (3, (3, &[8][..])));
        for word in 0..TABLES as u32 {
            uploads.push_table(&[word]);
        }
        assert_eq!((uploads.find(&[1, 2]), uploads.find(&[0])), (None, Some(4)));
        uploads.clear();
        assert_eq!((uploads.len(), uploads.find(&[0]), uploads.push(&[5])), (0, None, 0));
        assert_eq!(uploads.send(), (0, &[5][..]));
    }
}
