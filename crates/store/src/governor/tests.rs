use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A pool of 800 slots of 8 MiB, 16 at least, in a machine of 24 GiB: memory is short below 384 MiB.
const OPTIONS: GovernorOptions = GovernorOptions { slot_bytes: 8 * MIB, slots_min: 16, slots_max: 800 };

/// A run: time passes, experts are wanted at a rate of misses, the drive is waited for.
struct Run {
    governor: Governor,
    now: Observation,
}

impl Run {
    fn new() -> Self {
        let (total_bytes, available_bytes) = (24 * GIB, 4 * GIB);
        let now = Observation { total_bytes, available_bytes, slots_used: 800, ..Observation::default() };
        Self { governor: Governor::new(OPTIONS), now }
    }

    /// A second with 1000 wanted experts.
    fn second(&mut self, misses: f64, waiting_share: f64) -> Option<usize> {
        self.now.at += Duration::from_secs(1);
        self.now.wanted += 1000;
        self.now.hits += (1000.0 * (1.0 - misses)) as u64;
        self.now.waited += Duration::from_secs_f64(waiting_share);
        let decided = self.governor.decide(&self.now);
        self.now.slots_used = self.now.slots_used.min(self.governor.slots());
        decided
    }

    /// Seconds in which the share of misses falls with the slots as `misses` says; returns the sizes decided for.
    fn seconds(&mut self, count: usize, misses: impl Fn(usize) -> f64, waiting_share: f64) -> Vec<usize> {
        let mut sizes = Vec::new();
        for _ in 0..count {
            sizes.extend(self.second(misses(self.governor.slots()), waiting_share));
            self.now.slots_used = self.governor.slots();
        }
        sizes
    }
}

/// As good as it gets: misses fall in proportion.
fn falling(slots: usize) -> f64 {
    0.9 - 0.8 * slots as f64 / 800.0
}

#[test]
fn nothing_happens_while_there_is_enough() {
    let mut run = Run::new();
    assert!(run.seconds(100, falling, 0.5).is_empty());
    run.now.available_bytes = 385 * MIB;
    run.now.stalled_percent = Some(9.9);
    assert!(run.seconds(100, falling, 0.5).is_empty());
}

#[test]
fn a_shortage_is_covered_at_once_and_with_some_to_spare() {
    let mut run = Run::new();
    run.now.available_bytes = 184 * MIB;
    // Up to 576 MiB are 392 missing: 49 slots.
    assert_eq!(run.second(0.1, 0.5), Some(751));
    run.now.available_bytes = 576 * MIB;
    assert_eq!(run.second(0.1, 0.5), None);
    run.now.available_bytes = 0;
    assert_eq!(run.second(0.1, 0.5), Some(751 - 72));
}

#[test]
fn slots_that_hold_nothing_give_nothing() {
    let mut run = Run::new();
    run.now.slots_used = 100;
    run.now.available_bytes = 184 * MIB;
    assert_eq!(run.second(0.1, 0.5), Some(51));
}

#[test]
fn the_floor_holds_whatever_is_missing() {
    let mut run = Run::new();
    run.now.available_bytes = 0;
    run.now.slots_used = 20;
    assert_eq!(run.second(0.1, 0.5), Some(16));
    assert_eq!(run.second(0.1, 0.5), None);
    let mut tiny = Governor::new(GovernorOptions { slots_min: 16, slots_max: 4, ..OPTIONS });
    assert_eq!(tiny.decide(&Observation::default()), None, "a pool below its floor stays as it is");
}

#[test]
fn swapping_and_pressure_shrink_the_pool() {
    let mut run = Run::new();
    run.now.swapped_bytes = 300 * MIB;
    assert_eq!(run.second(0.1, 0.5), None, "what was in swap before we looked is not our doing");
    run.now.swapped_bytes += 80 * MIB;
    assert_eq!(run.second(0.1, 0.5), Some(790));
    assert_eq!(run.second(0.1, 0.5), None);
    run.now.stalled_percent = Some(25.0);
    assert_eq!(run.second(0.1, 0.5), Some(690), "an eighth");
    assert_eq!(run.second(0.1, 0.5), None, "the average is the same one still");
    assert_eq!((run.second(0.1, 0.5), run.second(0.1, 0.5)), (None, Some(590)));
}

#[test]
fn memory_that_comes_back_is_taken_in_steps_that_pay() {
    let mut run = Run::new();
    run.now.available_bytes = 0;
    run.now.slots_used = 200;
    assert_eq!(run.second(falling(128), 0.5), Some(128));
    run.now.available_bytes = 8 * GIB;
    let sizes = run.seconds(200, falling, 0.5);
    assert_eq!(sizes, [228, 328, 428, 528, 628, 728, 800]);
}

#[test]
fn growth_is_refused_where_it_does_not_pay() {
    let mut run = Run::new();
    run.now.available_bytes = 0;
    run.now.slots_used = 200;
    run.second(0.3, 0.5);
    run.now.available_bytes = 8 * GIB;
    // Below 300 slots each helps, above none does.
    let misses = |slots: usize| 0.9 - 0.6 * slots.min(300) as f64 / 300.0;
    let sizes = run.seconds(240, misses, 0.5);
    assert_eq!(sizes[..2], [228, 328]);
    assert!(sizes.len() <= 6, "a try after 30, 60, 120 seconds: {sizes:?}");
}

#[test]
fn growth_is_not_wanted_where_nobody_waits_or_memory_is_not_there() {
    for (available_bytes, stalled_percent, waiting) in
        [(8 * GIB, None, 0.01), (700 * MIB, None, 0.5), (8 * GIB, Some(2.0), 0.5)]
    {
        let mut run = Run::new();
        run.now.available_bytes = 0;
        run.now.slots_used = 200;
        assert!(run.second(0.5, 0.5).is_some());
        (run.now.available_bytes, run.now.stalled_percent) = (available_bytes, stalled_percent);
        assert!(
            run.seconds(100, falling, waiting).is_empty(),
            "{available_bytes} {stalled_percent:?} {waiting}"
        );
    }
}

#[test]
fn counting_anew_starts_a_new_window() {
    let mut run = Run::new();
    run.now.available_bytes = 0;
    run.now.slots_used = 200;
    run.second(0.5, 0.5);
    run.now.available_bytes = 8 * GIB;
    for _ in 0..20 {
        (run.now.wanted, run.now.hits, run.now.waited) = (0, 0, Duration::ZERO);
        assert_eq!(run.second(0.5, 0.5), None);
    }
    assert!(!run.seconds(10, falling, 0.5).is_empty());
}

#[test]
#[cfg(target_os = "linux")]
fn this_machine_can_be_observed() {
    let disk = crate::disk::SimDisk::new(vec![vec![0; 8192]], crate::disk::SimOptions::default());
    let slabs = vec![crate::SlabMemory::anonymous(8192).unwrap()];
    let options = crate::StoreOptions { slot_bytes: 4096, policy: None, give_back: None };
    let store = ExpertStore::new(std::sync::Arc::new(disk), vec![Vec::new()], slabs, options).unwrap();
    let seen = observe(&store, Duration::from_secs(3)).unwrap();
    assert!(seen.available_bytes > 0 && seen.available_bytes <= seen.total_bytes);
    assert_eq!((seen.at, seen.slots_used, seen.wanted), (Duration::from_secs(3), 0, 0));
}
