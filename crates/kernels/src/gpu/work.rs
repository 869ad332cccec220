//! How long work may keep a device.
//!
//! Systems end what takes a GPU too long, after two to ten seconds, and not each driver says so. So a submission is bounded by
//! what its dispatches have to do at most, at the rates of a slow device of its kind, and no longer than a fraction of a
//! second: a device that is ten times slower than thought keeps within the bound.

use files::Format;

use super::device::AdapterKind;

/// Seconds that a submission takes at most, and a dispatch that can be divided.
pub(super) const SUBMISSION_S: f64 = 0.2;
/// What a dispatch takes that has next to nothing to do.
const DISPATCH_S: f64 = 20e-6;

/// What a dispatch has to do at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Multiplications and additions.
    pub(super) flops: f64,
    /// Bytes of weights and states that are read.
    pub(super) bytes: f64,
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

impl Work {
    /// A product of `rows` rows with `outputs` rows of `cols` weights, which are read anew for every `block` rows.
    pub(super) fn product(rows: usize, [outputs, cols]: [usize; 2], format: Format, block: usize) -> Self {
        let weights = outputs as f64 * cols as f64;
        let passes = rows.div_ceil(block.max(1)) as f64;
        let (values, bytes) = format.block();
        let weight_bytes = bytes as f64 / values as f64;
        Self { flops: 2.0 * rows as f64 * weights, bytes: passes * weights * weight_bytes }
    }
}

/// What a slow device of a kind does in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SlowRates {
    flops_per_s: f64,
    bytes_per_s: f64,
    /// Seconds that a submission may take.
    pub(super) submission_s: f64,
}

impl SlowRates {
    /// A discrete GPU of the entry class of 2017, and the graphics of a notebook's processor of that year, at the share of
    /// their peak that products reach here.
    pub(super) fn of(kind: AdapterKind, submission_s: f64) -> Self {
        let (flops_per_s, bytes_per_s) = match kind {
            AdapterKind::Discrete => (1e12, 50e9),
            AdapterKind::Integrated | AdapterKind::Other | AdapterKind::Software => (100e9, 15e9),
        };
        Self { flops_per_s, bytes_per_s, submission_s }
    }

    /// Seconds of a dispatch.
    pub(super) fn seconds(&self, work: Work) -> f64 {
        DISPATCH_S + work.flops / self.flops_per_s + work.bytes / self.bytes_per_s
    }

    /// How many of the first items may go in one dispatch, of such work; at least one. And their work.
    pub(super) fn first_items(&self, works: impl IntoIterator<Item = Work>) -> (usize, Work) {
        let (mut count, mut sum) = (0, Work::default());
        for work in works {
            let mut with = sum;
            with += work;
            let seconds = with.flops / self.flops_per_s + with.bytes / self.bytes_per_s;
            if count > 0 && seconds > self.submission_s {
                break;
            }
            (count, sum) = (count + 1, with);
        }
        (count, sum)
    }

    /// How many items may go in one dispatch, of `work` each; at least one.
    pub(super) fn items(&self, work: Work) -> usize {
        let each = work.flops / self.flops_per_s + work.bytes / self.bytes_per_s;
        (self.submission_s / each.max(1e-12)).max(1.0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_bounded_by_its_operations_or_its_bytes() {
        let rates = SlowRates::of(AdapterKind::Integrated, SUBMISSION_S);
        // A chunk of 2048 rows through a matrix of 4096 x 12288 would take a slow device two seconds.
        let chunk = Work::product(2048, [12288, 4096], Format::Q4_0, 64);
        assert!((1.5..4.0).contains(&rates.seconds(chunk)), "{}", rates.seconds(chunk));
        let row = Work::product(1, [12288, 4096], Format::Q4_0, 64);
        let rows = rates.items(row);
        assert!((64..2048).contains(&rows), "{rows}");
        // One row is bound by its bytes: half a byte and a bit a weight.
        let bytes = 12288.0 * 4096.0 * 18.0 / 32.0;
        assert_eq!((row.bytes, row.flops), (bytes, 2.0 * 12288.0 * 4096.0));
        assert_eq!(rates.items(Work { flops: 1e15, bytes: 0.0 }), 1);
        let of = |flops| Work { flops, bytes: 0.0 };
        assert_eq!(rates.first_items([1e9, 1e9, 1e11].map(of)), (2, of(2e9)));
        assert_eq!(rates.first_items([1e11, 1e9].map(of)), (1, of(1e11)));
        assert_eq!(rates.first_items([]), (0, of(0.0)));
    }
}
