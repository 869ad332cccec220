//! What the store counted, for `bench` and the statistics of a session.

use std::time::Duration;

/// Counts of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerStats {
    /// Wanted experts that were in memory.
    pub hits: u64,
    /// The part of them that a device had in memory of its own.
    pub device_hits: u64,
    /// Wanted experts that had to be read, those that a hint was already reading included.
    pub misses: u64,
    /// Experts read from files, for wants and hints.
    pub reads: u64,
    /// Their bytes, alignment included.
    pub read_bytes: u64,
    /// Different experts that were wanted, wherever they were: what must be read at least, if none is in memory before.
    pub union: u64,
    /// Their bytes, as a drive reads them.
    pub union_bytes: u64,
    /// The bytes, alignment included, of wanted experts that had to be read, by the want or by a hint before it: what
    /// hints read in vain is not in it.
    pub wanted_bytes: u64,
    /// Reads that hints started.
    pub hinted: u64,
    /// Hinted reads that were then wanted while they were in memory or on their way.
    pub hints_used: u64,
    /// Time during which `next` had nothing to hand out.
    pub wait: Duration,
    /// The part of it in which wanted experts could not be read because every slot was leased or being read into.
    pub wait_slots: Duration,
    /// The part of it that ended with an expert which a hint had begun to read, too late.
    pub wait_guesses: Duration,
    /// Steps that are through this layer, as the caller counts them.
    pub steps: u64,
    /// Time that they spent in it.
    pub time: Duration,
    /// Bytes that were copied to a device meanwhile.
    pub copied_bytes: u64,
}

/// Counts since the store was made or the statistics were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// One entry a layer.
    pub layers: Vec<LayerStats>,
    /// Time during which at least one read was under way: `total().read_bytes / busy` is the rate of the drive.
    pub busy: Duration,
    /// Experts that were evicted for another one.
    pub evictions: u64,
}

impl ReadStats {
    /// The sum over all layers; a step goes through each.
    pub fn total(&self) -> LayerStats {
        self.layers.iter().fold(LayerStats::default(), |a, b| LayerStats {
            hits: a.hits + b.hits,
            device_hits: a.device_hits + b.device_hits,
            misses: a.misses + b.misses,
            reads: a.reads + b.reads,
            read_bytes: a.read_bytes + b.read_bytes,
            union: a.union + b.union,
            union_bytes: a.union_bytes + b.union_bytes,
            wanted_bytes: a.wanted_bytes + b.wanted_bytes,
            hinted: a.hinted + b.hinted,
            hints_used: a.hints_used + b.hints_used,
            wait: a.wait + b.wait,
            wait_slots: a.wait_slots + b.wait_slots,
            wait_guesses: a.wait_guesses + b.wait_guesses,
            steps: a.steps.max(b.steps),
            time: a.time + b.time,
            copied_bytes: a.copied_bytes + b.copied_bytes,
        })
    }

    /// Hits among all wanted experts, 0 to 1; 1 when none was wanted.
    pub fn hit_rate(&self) -> f64 {
        self.rate_of(self.total().hits)
    }

    /// Those among all wanted experts that a device had in memory of its own, 0 to 1; 1 when none was wanted.
    pub fn device_hit_rate(&self) -> f64 {
        self.rate_of(self.total().device_hits)
    }

    fn rate_of(&self, hits: u64) -> f64 {
        let total = self.total();
        let wanted = total.hits + total.misses;
        if wanted == 0 { 1.0 } else { hits as f64 / wanted as f64 }
    }
}
