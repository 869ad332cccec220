//! What a store reads before anybody asks.

use std::time::{Duration, Instant};

use crate::common::{Model, Random, key, mask};
use tidemill_store::LayerId;
use tidemill_store::disk::SimOptions;

/// Wants come while a model that fits whole is read, and want others than those on their way: all the same, all of it
/// is there in the end.
#[test]
fn wants_between_lose_nothing_of_a_warm_set_that_fits() {
    const LAYERS: u16 = 3;
    const EXPERTS: u16 = 12;
    for seed in 0..40 {
        let model = Model::new(seed, LAYERS.into(), EXPERTS.into(), 3, 9000);
        let latency = Duration::from_micros(50);
        let disk = model.sim(SimOptions { seed, latency, ..SimOptions::default() });
        let mut store = model.store(disk, usize::from(LAYERS * EXPERTS));
        store.warm((0..LAYERS).flat_map(|layer| (0..EXPERTS).map(move |expert| key(layer, expert))));
        let mut random = Random(seed);
        for _ in 0..4 {
            store.poll();
            let layer = LayerId(random.below(LAYERS.into()) as u16);
            store.want(layer, &mask([random.below(EXPERTS.into()) as u16])).unwrap();
            // Some wants are broken off.
            if random.below(2) == 0 {
                while store.next().unwrap().is_some() {}
            }
        }
        store.cancel();
        let start = Instant::now();
        while store.is_warming() {
            assert!(start.elapsed() < Duration::from_secs(20), "seed {seed}: warming never ends");
            store.poll();
            std::thread::yield_now();
        }
        assert_eq!(store.held().len(), usize::from(LAYERS * EXPERTS), "seed {seed}");
    }
}
