//! The store's promises, on the simulated drive for many seeds and on real files: every wanted expert comes exactly
//! once with its file's bytes, leased bytes never change, each is read at most once a want, errors pass by.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Model, Random, mask};
use files::ErrorKind;
use proptest::prelude::*;
use tidemill_store::disk::{Disk, Fault, FaultKind, SimDisk, SimOptions};
use tidemill_store::policy::Lru;
use tidemill_store::{ExpertStore, LayerId, Lease, SlabMemory, StoreOptions, slot_bytes};

const LAYERS: usize = 3;
const EXPERTS: usize = 12;

fn model(seed: u64) -> Model {
    Model::new(seed, LAYERS, EXPERTS, 3, 20_000)
}

/// A session of wants, hints and leases held for a while, drawn from `random`. At most `hold` leases are kept.
fn session(model: &Model, store: &mut ExpertStore, random: &mut Random, wants: usize, hold: usize) {
    let mut held: VecDeque<Lease> = VecDeque::new();
    for _ in 0..wants {
        let layer = random.below(LAYERS) as u16;
        let count = random.below(EXPERTS + 1);
        let wanted: BTreeSet<u16> = (0..count).map(|_| random.below(EXPERTS) as u16).collect();
        let before = store.stats().total();
        store.want(LayerId(layer), &mask(wanted.iter().copied())).unwrap();
        let abandon = random.below(5) == 0;
        let mut left = wanted.clone();
        loop {
            if random.below(4) == 0 {
                let ids: Vec<_> = (0..4).map(|_| random.below(EXPERTS) as u16).collect();
                store.hint(LayerId(random.below(LAYERS + 1) as u16), mask(ids).iter());
            }
            if random.below(6) == 0 {
                let some = |random: &mut Random| {
                    let ids: Vec<_> = (0..EXPERTS / 2).map(|_| random.below(EXPERTS) as u16).collect();
                    (LayerId(random.below(LAYERS) as u16), mask(ids))
                };
                store.set_coming((0..random.below(3)).map(|_| some(random)).collect());
            }
            if random.below(3) == 0 {
                store.read_ahead();
            }
            while held.len() > hold.saturating_sub(1) || (random.below(3) == 0 && !held.is_empty()) {
                let lease = held.pop_front().unwrap();
                model.check(&lease);
            }
            let most = 1 + random.below(hold.max(1) - held.len());
            let batch = store.next_batch(most).unwrap();
            if batch.is_empty() || (abandon && random.below(3) == 0) {
                break;
            }
            assert!(batch.len() <= most);
            for lease in batch {
                assert_eq!(lease.key.layer, LayerId(layer));
                assert!(left.remove(&lease.expert.0), "{} came twice or unasked", lease.key);
                model.check(&lease);
                held.push_back(lease);
            }
        }
        let after = store.stats().total();
        assert_eq!((after.hits + after.misses) - (before.hits + before.misses), wanted.len() as u64);
        if !abandon {
            assert!(left.is_empty(), "{left:?} of layer {layer} never came");
            assert!(store.next().unwrap().is_none());
        }
        held.iter().for_each(|lease| model.check(lease));
    }
}

fn sim_options(seed: u64) -> SimOptions {
    let mut random = Random(seed);
    SimOptions {
        seed,
        reorder: random.below(4) > 0,
        short_reads: random.below(3) > 0,
        direct: random.below(2) == 0,
        piece_bytes: 4096 << random.below(4),
        latency: Duration::from_micros(50),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 4))]

    #[test]
    fn every_expert_comes_once_with_its_bytes(seed: u64, slots in 1usize..40) {
        let model = model(seed % 5);
        let disk = model.sim(sim_options(seed));
        let mut store = model.store(disk, slots);
        let mut random = Random(seed ^ 1);
        let hold = 1 + random.below(slots);
        session(&model, &mut store, &mut random, 12, hold);
    }

    #[test]
    fn faults_are_typed_and_the_next_want_works(seed: u64, slots in 1usize..20) {
        let model = model(seed % 5);
        let disk = model.sim(sim_options(seed));
        let mut store = model.store(disk.clone(), slots);
        let mut random = Random(seed ^ 2);
        for _ in 0..6 {
            let (layer, bad) = (random.below(LAYERS), random.below(EXPERTS));
            let range = model.layouts[layer][bad].parts[random.below(3)];
            let kind = if random.below(3) == 0 { FaultKind::Stall(Duration::from_millis(5)) } else { FaultKind::Io };
            let times = if random.below(2) == 0 { 1 } else { u32::MAX };
            disk.inject(Fault { range, kind, times });
            store.want(LayerId(layer as u16), &mask(0..EXPERTS as u16)).unwrap();
            loop {
                match store.next() {
                    Ok(Some(lease)) => model.check(&lease),
                    Ok(None) => break,
                    Err(error) => {
                        prop_assert!(kind == FaultKind::Io);
                        prop_assert_eq!(error.kind(), ErrorKind::Io);
                        let place = format!("layer {layer}, expert ");
                        prop_assert!(error.message().starts_with(&place), "{}", error);
                        prop_assert!(error.message().contains(&format!("sim-{layer}")), "{}", error);
                        prop_assert!(store.next().unwrap().is_none(), "the want is over");
                        break;
                    }
                }
            }
            disk.clear_faults();
            session(&model, &mut store, &mut random, 2, slots);
        }
    }
}

#[test]
fn the_same_on_real_files_buffered_and_direct() {
    for (seed, direct) in [(1, false), (2, true), (3, false), (4, true)] {
        let model = model(seed);
        let (_dir, disk) = model.pread(direct);
        for slots in [1, 2, 7, 36] {
            let mut store = model.store(disk.clone(), slots);
            session(&model, &mut store, &mut Random(seed + slots as u64), 30, slots);
        }
        #[cfg(target_os = "linux")]
        if let Some((_dir, disk)) = model.uring(direct) {
            for slots in [1, 2, 7, 36] {
                let mut store = model.store(disk.clone(), slots);
                session(&model, &mut store, &mut Random(seed + slots as u64), 30, slots);
            }
        }
    }
}

/// A disk of layer 0's experts where every read is in order and whole, so that counts are exact.
fn plain(model: &Model) -> Arc<SimDisk> {
    let options = SimOptions { reorder: false, short_reads: false, ..SimOptions::default() };
    model.sim(options)
}

fn drain(model: &Model, store: &mut ExpertStore) -> Vec<u16> {
    let mut ids = Vec::new();
    while let Some(lease) = store.next().unwrap() {
        model.check(&lease);
        ids.push(lease.expert.0);
    }
    ids
}

#[test]
fn each_expert_is_read_once_a_want_and_hits_come_first() {
    let model = model(1);
    let mut store = model.store(plain(&model), EXPERTS);
    store.want(LayerId(0), &mask([3, 5, 9])).unwrap();
    assert_eq!(drain(&model, &mut store), [3, 5, 9]);
    store.want(LayerId(0), &mask([1, 3, 9, 11])).unwrap();
    assert_eq!(drain(&model, &mut store), [3, 9, 1, 11]);
    let total = store.stats().total();
    assert_eq!((total.hits, total.misses), (2, 5));
    // The aligned supersets of these five, and nothing else; only the end of the file is ragged.
    let layouts = [3, 5, 9, 1, 11].map(|e: usize| &model.layouts[0][e]);
    let supersets: usize = layouts.iter().map(|&l| slot_bytes([l]).unwrap()).sum();
    let ragged = supersets - total.read_bytes as usize;
    assert_eq!(ragged, model.files[0].len().next_multiple_of(4096) - model.files[0].len());
    assert!(store.stats().hit_rate() > 0.28 && store.stats().hit_rate() < 0.29);
    store.reset_stats();
    store.want(LayerId(0), &mask([1, 3, 5, 9, 11])).unwrap();
    assert_eq!(drain(&model, &mut store), [1, 3, 5, 9, 11]);
    assert_eq!((store.stats().total().misses, store.stats().total().read_bytes), (0, 0));
}

#[test]
fn one_slot_serves_a_whole_layer_in_file_order() {
    let model = model(2);
    let mut store = model.store(plain(&model), 1);
    store.want(LayerId(1), &mask(0..EXPERTS as u16)).unwrap();
    assert_eq!(drain(&model, &mut store), (0..EXPERTS as u16).collect::<Vec<_>>());
    assert_eq!(store.stats().total().misses, EXPERTS as u64);
}

#[test]
fn all_slots_held_is_an_error_and_not_a_hang() {
    let model = model(3);
    let mut store = model.store(plain(&model), 2);
    store.want(LayerId(0), &mask([0, 1, 2])).unwrap();
    let held = [store.next().unwrap().unwrap(), store.next().unwrap().unwrap()];
    let error = store.next().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.message().contains("all 2 expert slots are held by leases"), "{error}");
    held.iter().for_each(|lease| model.check(lease));
    drop(held);
    assert_eq!(drain(&model, &mut store), [2]);
}

#[test]
fn leases_outlive_the_store_and_drop_on_other_threads() {
    let model = model(4);
    let mut store = model.store(plain(&model), 4);
    store.want(LayerId(0), &mask([0, 1, 2, 3, 4, 5])).unwrap();
    let leases = store.next_batch(4).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| leases.into_iter().for_each(|lease| model.check(&lease)));
    });
    let last = store.next_batch(1).unwrap();
    drop(store);
    model.check(&last[0]);
}

#[test]
fn hints_are_used_and_give_way() {
    let model = model(5);
    let disk = plain(&model);
    let mut store = model.store(disk.clone(), 8);
    store.hint(LayerId(1), mask([2, 7, 8]).iter());
    store.hint(LayerId(77), mask([0]).iter()); // no such layer: nothing happens
    store.want(LayerId(0), &mask([0, 1])).unwrap();
    assert_eq!(drain(&model, &mut store), [0, 1]);
    store.want(LayerId(1), &mask([2, 3])).unwrap();
    assert_eq!(drain(&model, &mut store).len(), 2);
    let total = store.stats().total();
    assert_eq!((total.hinted, total.hints_used), (2, 1), "a quarter of 8 slots, and one guess was right");
    let bytes = |layer: usize, experts: [usize; 2]| -> u64 {
        experts.iter().map(|e| slot_bytes([&model.layouts[layer][*e]]).unwrap() as u64).sum()
    };
    assert_eq!(total.wanted_bytes, bytes(0, [0, 1]) + bytes(1, [2, 3]), "the wrong guess is not in it");
    assert_eq!((total.union, total.union_bytes), (4, total.wanted_bytes), "nor here");
    store.want(LayerId(1), &mask([2, 3])).unwrap();
    assert_eq!(drain(&model, &mut store).len(), 2);
    assert_eq!(store.stats().total().union, 4, "each counts once");
    // With every slot wanted, a hint that is still on its way must hand its slot over.
    store.hint(LayerId(2), mask([4]).iter());
    store.want(LayerId(0), &mask(0..8)).unwrap();
    assert_eq!(drain(&model, &mut store).len(), 8);
}

/// What is coming is read in its order while others are multiplied, and only what is wanted now can push it out.
#[test]
fn what_is_coming_is_read_ahead_and_stays() {
    let model = model(5);
    let disk = plain(&model);
    let mut store = model.store(disk.clone(), 8);
    let here = |store: &ExpertStore| {
        let mut held: Vec<_> = store.held().iter().map(|key| (key.layer.0, key.expert.0)).collect();
        held.sort_unstable();
        held
    };
    store.want(LayerId(0), &mask([0, 1])).unwrap();
    store.set_coming(vec![(LayerId(0), mask([4])), (LayerId(1), mask(0..8))]);
    store.read_ahead();
    assert_eq!(store.stats().total().hinted, 4, "half of the slots");
    assert_eq!(drain(&model, &mut store), [0, 1]);
    while disk.progress(true) {}
    store.read_ahead();
    while disk.progress(true) {}
    store.read_ahead();
    // Everything else made room, and nothing of it.
    assert_eq!(here(&store), [(0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]);
    store.hint(LayerId(2), mask([0, 1]).iter());
    assert_eq!(store.stats().total().hinted, 8, "a guess takes no slot of it");
    store.want(LayerId(0), &mask([4])).unwrap();
    assert_eq!(drain(&model, &mut store), [4]);
    let before = store.stats().total();
    store.want(LayerId(1), &mask(0..7)).unwrap();
    assert_eq!(store.stats().total().hints_used - before.hints_used, 7);
    assert_eq!(drain(&model, &mut store).len(), 7);
    // A want of others needs all slots.
    store.set_coming(vec![(LayerId(1), mask(0..8))]);
    store.want(LayerId(2), &mask(0..8)).unwrap();
    assert_eq!(drain(&model, &mut store).len(), 8);
}

#[test]
fn a_failing_hint_is_silent_and_the_want_reads_again() {
    let model = model(6);
    let disk = plain(&model);
    let mut store = model.store(disk.clone(), 8);
    disk.inject(Fault { range: model.layouts[1][2].parts[0], kind: FaultKind::Io, times: 1 });
    store.hint(LayerId(1), mask([2]).iter());
    store.want(LayerId(0), &mask([0])).unwrap();
    assert_eq!(drain(&model, &mut store), [0]);
    while disk.progress(true) {}
    store.want(LayerId(1), &mask([2])).unwrap();
    assert_eq!(drain(&model, &mut store), [2]);
}

#[test]
fn a_file_cut_while_running_is_named() {
    let model = model(7);
    let (dir, disk) = model.pread(true);
    let sim = model.sim(SimOptions::default());
    let cut = model.files[2].len() - 1;
    sim.truncate(2, cut);
    let path = dir.path().join("layer-2.bin");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(cut as u64).unwrap();
    let last = EXPERTS as u16 - 1;
    for (disk, name) in [(disk as Arc<dyn Disk>, "layer-2.bin"), (sim, "sim-2")] {
        let mut store = model.store(disk, 3);
        store.want(LayerId(2), &mask([last])).unwrap();
        let error = store.next().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        for said in [name, &format!("layer 2, expert {last}"), "truncated while running"] {
            assert!(error.message().contains(said), "{said:?} is not in: {error}");
        }
        store.want(LayerId(2), &mask([0])).unwrap();
        assert_eq!(drain(&model, &mut store), [0]);
    }
}

#[test]
fn a_stalled_drive_delays_and_an_abandoned_read_is_not_waited_for() {
    let model = model(8);
    let disk = plain(&model);
    let stall = FaultKind::Stall(Duration::from_secs(5));
    disk.inject(Fault { range: model.layouts[0][0].parts[0], kind: stall, times: 1 });
    let mut store = model.store(disk.clone(), 4);
    store.want(LayerId(0), &mask([0, 1])).unwrap();
    assert_eq!(store.next().unwrap().unwrap().expert.0, 1);
    store.want(LayerId(1), &mask([0, 1, 2])).unwrap();
    assert_eq!(drain(&model, &mut store).len(), 3);
    assert!(disk.elapsed() < Duration::from_secs(5), "nobody waited for the stalled read");
    store.want(LayerId(0), &mask([0])).unwrap();
    store.want(LayerId(0), &mask(0..EXPERTS as u16)).unwrap();
    assert_eq!(drain(&model, &mut store).len(), EXPERTS);
}

#[test]
fn bad_wants_and_bad_layouts_are_refused() {
    let model = model(9);
    let disk = plain(&model);
    let mut store = model.store(disk.clone(), 2);
    for (layer, ids) in [(LAYERS as u16, mask([0])), (0, mask([0, EXPERTS as u16]))] {
        let error = store.want(LayerId(layer), &ids).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(store.next().unwrap().is_none());
    }
    let open = |layouts: &[Vec<_>], slot_bytes, slab_bytes| {
        let policy = Some(Box::new(Lru::new()) as Box<dyn tidemill_store::policy::Policy>);
        let slabs = vec![SlabMemory::anonymous(slab_bytes).unwrap()];
        ExpertStore::new(
            disk.clone(),
            layouts.to_vec(),
            slabs,
            StoreOptions { slot_bytes, policy, give_back: None },
        )
        .map(|_| ())
        .unwrap_err()
    };
    let slot = model.slot_bytes();
    assert_eq!(open(&model.layouts, slot - 4096, slot).kind(), ErrorKind::InvalidRequest);
    assert_eq!(open(&model.layouts, slot, slot - 4096).kind(), ErrorKind::Memory);
    let mut layouts = model.layouts.clone();
    layouts[1][EXPERTS - 1].parts[2].bytes += 1;
    let error = open(&layouts, slot + 4096, 2 * slot);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().starts_with("sim-1: layer 1, expert 11 needs"), "{error}");
    layouts[1][0].parts[0].file = 99;
    assert_eq!(open(&layouts, slot, slot).kind(), ErrorKind::InvalidRequest);
}

#[test]
fn leases_dropped_by_another_thread_while_the_store_goes_on() {
    let model = model(10);
    let (_dir, disk) = model.pread(false);
    let mut store = model.store(disk, 5);
    let (send, receive) = std::sync::mpsc::channel::<Lease>();
    std::thread::scope(|s| {
        let model = &model;
        s.spawn(move || receive.into_iter().for_each(|lease| model.check(&lease)));
        for round in 0..60u16 {
            store.want(LayerId(round % LAYERS as u16), &mask(0..EXPERTS as u16)).unwrap();
            let mut came = 0;
            loop {
                match store.next() {
                    Ok(Some(lease)) => {
                        came += 1;
                        send.send(lease).unwrap();
                    }
                    Ok(None) => break,
                    // The other thread still holds every slot: the want stands.
                    Err(error) if error.kind() == ErrorKind::Memory => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(came, EXPERTS);
        }
        drop(send);
    });
}
