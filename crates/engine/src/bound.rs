//! What takes a prompt its time, foretold for a whole prompt or counted for a layer.

use store::LayerStats;

/// What would have to be faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reads of experts.
    Drive,
    /// Copies of experts to a GPU that has memory of its own.
    Copies,
    /// All that is computed.
    Arithmetic,
}

/// A layer that waits longer for the drive, as a part of its time, is bound by it.
const WAIT_SHARE: f64 = 0.1;

impl Bound {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Drive, Self::Copies, Self::Arithmetic];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drive => "drive",
            Self::Copies => "copies",
            Self::Arithmetic => "arithmetic",
        }
    }

    /// Of what goes on at the same time: reads on one side, on the other copies and arithmetic, which take turns.
    pub(crate) fn of(drive_s: f64, copies_s: f64, arithmetic_s: f64) -> Self {
        if drive_s > copies_s + arithmetic_s {
            Self::Drive
        } else if copies_s > arithmetic_s {
            Self::Copies
        } else {
            Self::Arithmetic
        }
    }
}

/// Where the time of steps in one layer went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerTime {
    /// All of it, in seconds. Where a GPU computes, until the host was done with the layer.
    pub time_s: f64,
    /// When the host had nothing to do but wait for reads: what a drive without limits would save.
    pub drive_s: f64,
    /// What the bytes that were copied to a GPU take.
    pub copies_s: f64,
}

impl LayerTime {
    /// Of what was counted, where copies run at this rate; `None` where nothing is copied.
    pub fn new(stats: &LayerStats, copy_bytes_per_s: Option<f64>) -> Self {
        let time_s = stats.time.as_secs_f64();
        let drive_s = stats.wait.as_secs_f64().min(time_s);
        let copies_s = copy_bytes_per_s.map_or(0.0, |rate| stats.copied_bytes as f64 / rate);
        Self { time_s, drive_s, copies_s: copies_s.min(time_s - drive_s) }
    }

    /// The rest.
    pub fn arithmetic_s(&self) -> f64 {
        self.time_s - self.drive_s - self.copies_s
    }

    /// What bounds the layer: the drive if more than a tenth of the time is spent waiting for it, else what took longer.
    pub fn bound(&self) -> Bound {
        if self.drive_s > WAIT_SHARE * self.time_s {
            return Bound::Drive;
        }
        Bound::of(0.0, self.copies_s, self.arithmetic_s())
    }
}

impl std::ops::AddAssign for LayerTime {
    fn add_assign(&mut self, other: Self) {
        self.time_s += other.time_s;
        self.drive_s += other.drive_s;
        self.copies_s += other.copies_s;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_layer_is_bound_by_what_it_waits_for() {
        let of = |time, wait, copied_bytes, rate| {
            let [time, wait] = [time, wait].map(Duration::from_secs);
            let seen =
                LayerTime::new(&LayerStats { time, wait, copied_bytes, ..LayerStats::default() }, rate);
            (seen.bound(), seen.arithmetic_s())
        };
        assert_eq!(of(20, 3, 0, None), (Bound::Drive, 17.0));
        assert_eq!(of(20, 1, 0, None), (Bound::Arithmetic, 19.0));
        assert_eq!(of(20, 1, 100, Some(10.0)), (Bound::Copies, 9.0));
        assert_eq!(of(20, 1, 90, Some(10.0)), (Bound::Arithmetic, 10.0));
        // Counts of different threads never make less than nothing of the rest.
        assert_eq!(of(20, 30, 900, Some(10.0)), (Bound::Drive, 0.0));
        assert_eq!(of(0, 0, 0, None), (Bound::Arithmetic, 0.0));
    }
}
