//! A pool that shrinks and grows while it is used: leases have the bytes of their files at any sequence of sizes, the
//! memory of retired slots is given back, and the slots in use come down to the limit.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Model, Random, mask};
use files::Result;
use proptest::prelude::*;
use tidemill_store::disk::{Disk, SimOptions};
use tidemill_store::policy::PolicyKind;
use tidemill_store::{AnonymousMemory, ExpertStore, LayerId, Lease, SlabMemory, StoreOptions};

const LAYERS: usize = 3;
const EXPERTS: usize = 12;

/// Slots, as slab and first byte, whose memory is with the system now.
type Given = Arc<Mutex<HashSet<(usize, usize)>>>;

/// A store of `slots` slots in two slabs. Memory that is given back is filled with rubbish at once: whoever still
/// relied on it would see that.
fn store(model: &Model, disk: Arc<dyn Disk>, slots: usize, kind: PolicyKind) -> Result<(ExpertStore, Given)> {
    let slot_bytes = model.slot_bytes();
    let halves = [slots.div_ceil(2), slots / 2];
    let memories = halves.map(|n| Arc::new(AnonymousMemory::new((n * slot_bytes).max(4096)).unwrap()));
    let slabs = memories.iter().map(|m| {
        // SAFETY: the memory outlives the slab, and only the hook below writes it besides the store.
        unsafe { SlabMemory::from_raw(m.as_ptr(), m.bytes(), m.clone()) }
    });
    let slabs = slabs.collect::<Result<Vec<_>>>()?;
    let given = Given::default();
    let of_hook = given.clone();
    let give_back = move |slab: usize, range: std::ops::Range<usize>| {
        assert_eq!(range.len(), slot_bytes);
        of_hook.lock().unwrap().insert((slab, range.start));
        // SAFETY: inside of the memory, and in a hook nobody else uses the range.
        unsafe { memories[slab].as_ptr().add(range.start).write_bytes(0xEE, range.len()) };
    };
    let policy = Some(kind.policy(slots));
    let options = StoreOptions { slot_bytes, policy, give_back: Some(Box::new(give_back)) };
    Ok((ExpertStore::new(disk, model.layouts.clone(), slabs, options)?, given))
}

/// Wants, hints, leases held across sizes, and sizes at any moment.
fn session(model: &Model, store: &mut ExpertStore, random: &mut Random) {
    let mut held: Vec<Lease> = Vec::new();
    for _ in 0..15 {
        let layer = LayerId(random.below(LAYERS) as u16);
        let wanted: BTreeSet<u16> =
            (0..random.below(EXPERTS)).map(|_| random.below(EXPERTS) as u16).collect();
        store.want(layer, &mask(wanted.iter().copied())).unwrap();
        let mut left = wanted;
        loop {
            if random.below(3) == 0 {
                store.resize(random.below(store.slots_max() + 3));
                held.iter().for_each(|lease| model.check(lease));
            }
            if random.below(4) == 0 {
                let ids: Vec<_> = (0..4).map(|_| random.below(EXPERTS) as u16).collect();
                store.hint(LayerId(random.below(LAYERS) as u16), mask(ids).iter());
            }
            if random.below(2) == 0 {
                held.drain(..random.below(held.len() + 1)).for_each(|lease| model.check(&lease));
            }
            match store.next() {
                Ok(Some(lease)) => {
                    assert!(left.remove(&lease.expert.0), "{} came twice or unasked", lease.key);
                    model.check(&lease);
                    held.push(lease);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(error.kind(), files::ErrorKind::Memory, "{error}");
                    held.clear(); // all slots were leased
                }
            }
        }
        assert!(left.is_empty(), "{left:?} never came");
        held.iter().for_each(|lease| model.check(lease));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn leases_have_their_bytes_at_any_sequence_of_sizes(seed: u64, slots in 1usize..40, kind in 0usize..3) {
        let model = Model::new(seed % 5, LAYERS, EXPERTS, 3, 20_000);
        let latency = Duration::from_micros(50);
        let disk = model.sim(SimOptions { seed, piece_bytes: 8192, latency, ..SimOptions::default() });
        let (mut store, given) = store(&model, disk.clone(), slots, PolicyKind::ALL[kind]).unwrap();
        let mut random = Random(seed ^ 3);
        session(&model, &mut store, &mut random);
        // With nothing leased and nothing under way, one want brings the use down to the limit.
        while disk.progress(true) {}
        let limit = 1 + random.below(slots);
        store.resize(limit);
        store.want(LayerId(0), &mask([])).unwrap();
        prop_assert!(store.slots() == limit && store.slots_used() <= limit);
        prop_assert!(given.lock().unwrap().len() >= slots - limit, "memory of every slot above went back");
        session(&model, &mut store, &mut random);
    }
}

#[test]
fn a_shrunk_pool_keeps_the_favourites_wherever_they_were() {
    let model = Model::new(1, LAYERS, EXPERTS, 3, 20_000);
    let disk = model.sim(SimOptions { reorder: false, short_reads: false, ..SimOptions::default() });
    let (mut store, given) = store(&model, disk, EXPERTS, PolicyKind::Lfu).unwrap();
    let all = |store: &mut ExpertStore, ids: &[u16]| {
        store.want(LayerId(0), &mask(ids.iter().copied())).unwrap();
        while let Some(lease) = store.next().unwrap() {
            model.check(&lease);
        }
    };
    all(&mut store, &(0..12).collect::<Vec<_>>());
    for _ in 0..3 {
        all(&mut store, &[9, 10, 11]); // in the last slots
    }
    store.resize(4);
    assert_eq!((store.slots(), store.slots_used(), given.lock().unwrap().len()), (4, 4, 8));
    let before = store.stats().total().misses;
    all(&mut store, &[9, 10, 11]);
    assert_eq!(store.stats().total().misses, before, "moved, not read again");
    store.resize(99);
    assert_eq!((store.slots(), store.slots_used()), (12, 4));
    all(&mut store, &(0..12).collect::<Vec<_>>());
    assert_eq!(store.stats().total().misses, before + 8);
}

/// Who needs the memory at once waits for reads, and is told where a lease holds it.
#[test]
fn all_memory_above_the_limit_is_given_back_before_it_is_used() {
    let model = Model::new(3, LAYERS, EXPERTS, 3, 20_000);
    let disk = model.sim(SimOptions { latency: Duration::from_millis(2), ..SimOptions::default() });
    let slots = LAYERS * EXPERTS;
    let (mut store, given) = store(&model, disk, slots, PolicyKind::Lfu).unwrap();
    for layer in 0..LAYERS {
        store.want(LayerId(layer as u16), &mask(0..EXPERTS as u16)).unwrap();
        while store.next().unwrap().is_some() {}
    }
    let layer = LayerId(0);
    store.want(layer, &mask([0])).unwrap();
    let lease = store.next().unwrap().unwrap();
    store.resize(1);
    // It lies in the first slot or above the limit, which nothing but its end decides.
    let all_back = store.finish_resize();
    assert_eq!(all_back, given.lock().unwrap().len() == slots - 1);
    drop(lease);
    assert!(store.finish_resize());
    assert_eq!(given.lock().unwrap().len(), slots - 1);
    store.resize(slots);
    given.lock().unwrap().clear();
    store.hint(LayerId(1), mask(0..8).iter());
    store.resize(2);
    assert!(store.finish_resize(), "reads end by themselves");
    assert_eq!(given.lock().unwrap().len(), slots - 2);
}
