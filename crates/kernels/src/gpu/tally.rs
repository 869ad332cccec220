//! Proof that the device ran all that it was given.
//!
//! A driver may drop work and say nothing: wgpu's Metal backend reports a command buffer that failed, since a watchdog
//! ended it or memory was short, as one that is done. So the device counts. A few words in its memory change with every
//! command buffer: the last dispatch of a pass folds all of them into the first, a running sum; whatever copies leaves a
//! number of its own in another word, which the next pass finds. The host does the same arithmetic, and each read-back brings the
//! sum along: if they differ, something did not run. They never agree again after that, so nothing is read from
//! memory that may be stale.
//!
//! A pass is a command buffer of its own for the driver, and so is what is copied between two passes, hence one number each.

use files::Result;

use super::device::{Device, device_error};

/// Words of copies that came before a pass, in turn.
const RING: usize = 8;
/// The word of copies between passes, and the first of the ring.
const MARK_WORD: usize = 1;
const RING_WORD: usize = 8;
const WORDS: usize = RING_WORD + RING;
/// Different marks.
const MARKS: u32 = 1024;

/// What an encoder does to the words, in order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Copies left this mark.
    Marked(u32),
    /// A pass ended.
    Counted,
}

/// The words as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    sum: u32,
    mark: u32,
    ring: [u32; RING],
}

impl Words {
    /// What `tally.wgsl` does.
    fn count(&mut self) {
        let sum = self.sum.wrapping_mul(747_796_405).wrapping_add(self.mark);
        let fold = |sum: u32, &word: &u32| sum.wrapping_mul(31).wrapping_add(word);
        self.sum = self.ring.iter().fold(sum, fold).wrapping_add(1);
    }
}

/// The words on the device, and what they should be.
pub(super) struct Tally {
    pub(super) id: u64,
    pub(super) words: wgpu::Buffer,
    /// Each number below [`MARKS`], less one.
    marks: wgpu::Buffer,
    expected: Words,
    /// Copies before passes, and those that no pass has counted.
    copies: u32,
    uncounted: usize,
    next_mark: u32,
}

impl Tally {
    pub(super) fn new(device: &Device, id: u64) -> Self {
        let words = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("tally"),
            size: WORDS as u64 * 4,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let marks = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("marks"),
            size: u64::from(MARKS) * 4,
            usage: wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        // A device that gives no memory has said so, which is found by whoever opened it.
        if let Ok(mut view) = marks.get_mapped_range_mut(..) {
            let all: Vec<u32> = (1..=MARKS).collect();
            view.copy_from_slice(bytemuck::cast_slice(&all));
        }
        marks.unmap();
        let expected = Words { sum: 0, mark: 0, ring: [0; RING] };
        Self { id, words, marks, expected, copies: 0, uncounted: 0, next_mark: 0 }
    }

    /// The number that the next copies before a pass leave, and the byte of [`Self::words`] where.
    pub(super) fn next_copies(&mut self) -> (u32, u64) {
        self.copies = self.copies.wrapping_add(1);
        self.uncounted += 1;
        let slot = self.copies as usize % RING;
        self.expected.ring[slot] = self.copies;
        (self.copies, ((RING_WORD + slot) * 4) as u64)
    }

    /// Whether the next submission must count, or the one after it might write words again that no pass has counted.
    pub(super) fn is_full(&self) -> bool {
        // A submission has copies of two kinds.
        self.uncounted + 2 * 2 > RING
    }

    /// Records that the copies since the last pass were made.
    pub(super) fn mark(&mut self, encoder: &mut wgpu::CommandEncoder) -> Event {
        self.next_mark = (self.next_mark + 1) % MARKS;
        let from = u64::from(self.next_mark) * 4;
        encoder.copy_buffer_to_buffer(&self.marks, from, &self.words, MARK_WORD as u64 * 4, 4);
        Event::Marked(self.next_mark + 1)
    }

    /// What was recorded goes to the device now.
    pub(super) fn submitted(&mut self, events: &[Event]) {
        for event in events {
            match *event {
                Event::Marked(mark) => self.expected.mark = mark,
                Event::Counted => {
                    self.expected.count();
                    self.uncounted = 0;
                }
            }
        }
    }

    /// Compares the sum that came with an answer.
    ///
    /// # Errors
    /// `Device` when the device did not run everything.
    pub(super) fn check(&self, device: &Device, sum: u32) -> Result<()> {
        if sum == self.expected.sum {
            return Ok(());
        }
        Err(device_error(format!(
            "{}: the GPU dropped work that was submitted to it, and its driver did not say so (most often too little \
             memory, or a time limit of the system's); nothing that it computed since can be trusted. Start again: give it \
             less memory or smaller chunks (--memory, --chunk-tokens), or compute with --device cpu",
            device.summary.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is lost, once or more often, the sum is another one, and stays so.
    #[test]
    fn a_sum_that_lacks_anything_never_agrees_again() {
        let start = Words { sum: 0, mark: 0, ring: [0; RING] };
        let run = |lost: &[usize]| {
            let mut words = start.clone();
            for i in 0..64usize {
                let ran = |what: usize| !lost.contains(&(3 * i + what));
                if ran(0) {
                    words.ring[i % RING] = i as u32 + 1;
                }
                if ran(1) {
                    words.mark = i as u32 % 3 + 1;
                }
                if ran(2) {
                    words.count();
                }
            }
            words.sum
        };
        let whole = run(&[]);
        for first in 0..3 * 63 {
            assert_ne!(run(&[first]), whole, "without {first}");
            for second in [first + 1, first + 2, first + 3, first + 24] {
                assert_ne!(run(&[first, second]), whole, "without {first} and {second}");
            }
        }
    }
}
