use super::*;

fn key(expert: u16) -> ExpertKey {
    ExpertKey { layer: LayerId(0), expert: ExpertId(expert) }
}

fn wants(ids: &[u16]) -> Vec<TraceWant> {
    ids.iter().map(|&e| TraceWant { layer: LayerId(0), experts: vec![ExpertId(e)] }).collect()
}

#[test]
fn lru_gives_up_the_oldest_that_may_go() {
    let mut lru = Lru::new();
    (0..3).for_each(|e| lru.insert(key(e)));
    lru.touch(key(0));
    assert_eq!(lru.evict(&|k| k != key(1)), Some(key(2)));
    assert_eq!(lru.evict(&|_| true), Some(key(1)));
    lru.forget(key(0));
    assert_eq!(lru.evict(&|_| true), None);
}

#[test]
fn lfu_keeps_the_frequent_through_a_scan_and_forgets_old_fame() {
    let mut lfu = Lfu::with_half_life(8.0);
    for _ in 0..5 {
        lfu.touch(key(0));
    }
    lfu.insert(key(0));
    for e in 1..4 {
        lfu.touch(key(e));
        lfu.insert(key(e));
    }
    assert_eq!(lfu.evict(&|_| true), Some(key(1)));
    // 40 wants later, five half-lives, the old favourite has lost to one that is wanted now and then.
    for _ in 0..20 {
        lfu.touch(key(2));
        lfu.touch(key(3));
    }
    assert_eq!(lfu.evict(&|_| true), Some(key(0)));
}

/// What it gives up is what has the lowest score of all that may go, though it keeps them in an order of the past.
#[test]
fn lfu_gives_up_the_lowest_score() {
    let (mut lfu, half_life) = (Lfu::with_half_life(12.0), 12.0f64);
    let (mut wants, mut pool) = (vec![Vec::new(); 40], BTreeSet::new());
    let (mut random, mut now) = (7u32, 0.0);
    for step in 0..6000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let e = (random >> 16) as u16 % 40;
        if random >> 30 > 0 {
            now += 1.0;
            lfu.touch(key(e));
            wants[e as usize].push(now);
            continue;
        }
        if pool.insert(e) {
            lfu.insert(key(e));
        }
        if pool.len() > 25 {
            let may = |e: u16| !(e + step).is_multiple_of(3);
            let given_up = lfu.evict(&|key| may(key.expert.0)).unwrap().expert.0;
            let score =
                |e: u16| wants[e as usize].iter().map(|at| ((at - now) / half_life).exp2()).sum::<f64>();
            let lowest = pool.iter().copied().filter(|e| may(*e)).map(score).fold(f64::INFINITY, f64::min);
            assert!(may(given_up) && score(given_up) <= lowest * (1.0 + 1e-9), "{step}");
            pool.remove(&given_up);
        }
    }
}

#[test]
fn lfu_knows_those_that_come_back() {
    let mut lfu = Lfu::with_half_life(100.0);
    for _ in 0..3 {
        lfu.touch(key(0));
    }
    lfu.insert(key(0));
    assert_eq!(lfu.evict(&|_| true), Some(key(0)));
    lfu.touch(key(1));
    lfu.touch(key(2));
    (0..3).for_each(|e| lfu.insert(key(e)));
    assert_eq!(lfu.evict(&|_| true), Some(key(1)));
    lfu.insert(key(9)); // a hint that nobody has wanted yet goes first
    assert_eq!(lfu.evict(&|_| true), Some(key(9)));
}

#[test]
fn replays_of_known_traces() {
    let cycle = wants(&[0, 1, 2, 0, 1, 2, 0, 1, 2]);
    assert_eq!(replay(&cycle, &mut Lru::new(), 2), Replay { wanted: 9, hits: 0 });
    assert_eq!(replay(&cycle, &mut Lru::new(), 3), Replay { wanted: 9, hits: 6 });
    assert_eq!(replay(&cycle, &mut Lfu::new(3), 3), Replay { wanted: 9, hits: 6 });
    assert_eq!(replay(&cycle, &mut Lru::new(), 0), Replay { wanted: 9, hits: 0 });
    // One want larger than the pool still ends, and what is left of it serves the next one.
    let wide = TraceWant { layer: LayerId(0), experts: (0..5).map(ExpertId).collect() };
    assert_eq!(replay(&[wide.clone(), wide.clone()], &mut Lru::new(), 2), Replay { wanted: 10, hits: 2 });
}

/// Routing with a skew (few experts take most of the load), whose favourites drift.
fn skewed(layers: u16, experts: u16, top_k: usize, tokens: usize, skew: f64) -> Vec<TraceWant> {
    let mut random = 7u64;
    let mut below_one = move || {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 11) as f64 / (1u64 << 53) as f64
    };
    let weights: Vec<f64> = (0..experts).map(|e| (f64::from(e) + 1.0).powf(-skew)).collect();
    let sum: f64 = weights.iter().sum();
    let mut trace = Vec::new();
    for token in 0..tokens {
        let drift = (token / 200) as u16 * 3;
        for layer in 0..layers {
            let mut chosen = Vec::new();
            while chosen.len() < top_k {
                let mut rest = below_one() * sum;
                let rank = weights
                    .iter()
                    .position(|w| {
                        rest -= w;
                        rest < 0.0
                    })
                    .unwrap_or(0) as u16;
                let expert = ExpertId((rank * 7 + layer * 13 + drift) % experts);
                if !chosen.contains(&expert) {
                    chosen.push(expert);
                }
            }
            trace.push(TraceWant { layer: LayerId(layer), experts: chosen });
        }
    }
    trace
}

#[test]
fn aged_lfu_beats_lru_on_skewed_routing_with_a_small_pool() {
    let trace = skewed(6, 32, 4, 1000, 1.0);
    for (slots, gain) in [(20, 0.05), (48, 0.05), (96, 0.02)] {
        let lru = replay(&trace, &mut Lru::new(), slots).hit_rate();
        let lfu = replay(&trace, &mut Lfu::new(slots), slots).hit_rate();
        assert!(lfu > lru + gain, "{slots} slots: lfu {lfu:.3}, lru {lru:.3}");
    }
}

#[test]
fn s3fifo_keeps_what_is_wanted_again_and_knows_those_that_come_back() {
    let mut s3 = S3Fifo::new(10);
    (0..4).for_each(|e| s3.insert(key(e)));
    (0..2).for_each(|_| s3.touch(key(0)));
    assert_eq!(s3.evict(&|k| k != key(1)), Some(key(2)), "0 is wanted often, 1 may not go");
    assert_eq!(s3.evict(&|_| true), Some(key(1)));
    s3.insert(key(2)); // known: straight to the main queue
    s3.insert(key(9));
    assert_eq!(s3.evict(&|_| true), Some(key(3)));
    assert_eq!(s3.evict(&|k| k != key(9)), Some(key(0)), "all that is left in front of 2");
    s3.forget(key(2));
    assert_eq!((s3.evict(&|_| true), s3.evict(&|_| true)), (Some(key(9)), None));
}

#[test]
fn no_policy_gives_up_what_may_not_go_or_is_not_there() {
    let trace = skewed(3, 16, 3, 60, 1.0);
    for kind in PolicyKind::ALL {
        let mut policy = kind.policy(12);
        let mut pool = BTreeSet::new();
        for (i, want) in trace.iter().enumerate() {
            let keys = keys_of(want);
            for &key in &keys {
                policy.touch(key);
                while pool.len() >= 12 - i % 5 {
                    let victim = policy.evict(&|k| !keys.contains(&k)).unwrap();
                    assert!(pool.remove(&victim) && !keys.contains(&victim), "{}", policy.name());
                }
                if pool.insert(key) {
                    policy.insert(key);
                }
            }
            if i % 7 == 0 {
                policy.resize(12 - i % 5);
                let gone = pool.pop_first().unwrap();
                policy.forget(gone);
            }
        }
        let left = std::iter::from_fn(|| policy.evict(&|_| true)).collect::<BTreeSet<_>>();
        assert_eq!(left, pool, "{}", policy.name());
    }
}

#[test]
fn no_policy_beats_the_optimum_and_all_agree_where_everything_fits() {
    let wants = skewed(6, 32, 4, 400, 1.0);
    let steps = wants.chunks(6).map(|wants| TraceStep { rows: 1, wants: wants.to_vec() }).collect();
    let mut trace = Trace { slot_bytes: 0, experts: vec![32; 6], steps };
    trace.steps[0].rows = 9;
    for slots in [0, 10, 40, 100, 192] {
        let all = replay_all(&trace, slots);
        assert_eq!(all.iter().map(|r| r.policy).collect::<Vec<_>>(), ["lfu", "lru", "s3fifo", "optimum"]);
        let best = all[3].decode.hits;
        assert!(all.iter().all(|r| r.decode.hits <= best && r.prompt.wanted == 24), "{slots}: {all:?}");
        if slots == 192 {
            assert!(all.iter().all(|r| r.decode.hits == best), "{all:?}");
        }
    }
}

/// Routing of the bundled model, recorded with `bench --text … --record-trace`.
fn recorded(name: &str) -> Trace {
    let path = format!("{}/../../testdata/traces/{name}.trace", env!("CARGO_MANIFEST_DIR"));
    Trace::read(std::path::Path::new(&path)).unwrap()
}

#[test]
fn on_recorded_routing_aged_lfu_is_the_best_at_every_size() {
    for name in ["demo-stories", "demo-tools"] {
        let trace = recorded(name);
        for percent in [5, 10, 20, 30, 50, 75] {
            let slots = trace.total_experts() as usize * percent / 100;
            let all = replay_all(&trace, slots);
            let [lfu, lru, s3, best] = [0, 1, 2, 3].map(|i| all[i].decode.hit_rate());
            assert!(
                lfu >= lru && lfu >= s3 && lfu < best,
                "{name}, {percent} %: {lfu:.3} {lru:.3} {s3:.3} {best:.3}"
            );
        }
    }
}
