//! Which part of a reply a piece of shown text comes from, so that tokens can be put beside the text that they made.

use std::collections::VecDeque;
use std::ops::Range;

use super::stop::StopStrings;

/// Text on its way through stop strings, with its places in the reply, in bytes.
#[derive(Default)]
pub(crate) struct PlacedText {
    stops: StopStrings,
    /// Where the text comes from that is held back; a border that stands nowhere in the reply is empty there.
    held: VecDeque<(usize, Range<usize>)>,
}

/// Text that may be shown, and where it stands in the reply.
pub(crate) type Placed = (String, Vec<Range<usize>>);

impl PlacedText {
    pub(crate) fn new(stops: StopStrings) -> Self {
        Self { stops, held: VecDeque::new() }
    }

    /// Which stop string was found, by its index.
    pub(crate) fn hit(&self) -> Option<usize> {
        self.stops.hit()
    }

    /// Takes text that ends before byte `end` of the reply.
    pub(crate) fn push(&mut self, text: &str, end: usize) -> Placed {
        self.add(text, end.saturating_sub(text.len())..end)
    }

    /// Takes text that stands nowhere in the reply.
    pub(crate) fn push_border(&mut self, text: &str) -> Placed {
        self.add(text, 0..0)
    }

    /// What was held back, at the end of the text.
    pub(crate) fn finish(&mut self) -> Placed {
        let text = self.stops.finish();
        let spans = self.take(text.len());
        (text, spans)
    }

    fn add(&mut self, text: &str, place: Range<usize>) -> Placed {
        self.held.push_back((text.len(), place));
        let text = self.stops.push(text);
        let spans = self.take(text.len());
        (text, spans)
    }

    /// The places of the next `bytes` of text.
    fn take(&mut self, bytes: usize) -> Vec<Range<usize>> {
        let (mut left, mut spans) = (bytes, Vec::new());
        while left > 0
            && let Some((bytes, place)) = self.held.front_mut()
        {
            let taken = left.min(*bytes);
            let end = place.end.min(place.start + taken);
            spans.extend(Some(place.start..end).filter(|span| !span.is_empty()));
            place.start = end;
            *bytes -= taken;
            left -= taken;
            if *bytes == 0 {
                self.held.pop_front();
            }
        }
        spans
    }
}
