//! Rotary embedding, alone and on the way into the KV cache.

use tidemill_kernels::ops::{Heads, KvFormat, PAGE, RopeSpec, Turn};

use super::plan::{Plan, STRANGE, Start, Work, mix, same_apart, stored};
use super::*;

fn frequencies(half: usize) -> Vec<f32> {
    (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect()
}

/// Devices reduce large angles less carefully than the C library.
fn bound(rig: &Rig) -> f32 {
    if rig.batch_invariant { 4e-6 } else { 1e-3 }
}

pub fn norm_rope(rig: &Rig) {
    let mut rng = Rng::new(11);
    for round in 0..24 {
        let drawn = 2 * rng.within(1..=64);
        let head_dim = rig.shape(&mut rng, drawn, &[22, 64, 128]);
        let spec = RopeSpec {
            heads: rng.within(1..=6),
            head_dim,
            head_stride: head_dim * if rng.flag() { 2 } else { 1 },
            rotary_dim: 2 * rng.within(0..=head_dim / 2),
            interleaved: rng.flag(),
            amplitude: if rng.flag() { 1.0 } else { 1.3 },
        };
        let cols = spec.heads * spec.head_stride;
        let counts = mix(&mut rng, round, 20);
        let work = Work::step(&mut rng, &counts, 3000);
        let x: Vec<Vec<f32>> = counts.iter().map(|rows| rng.values(rows * cols, 2.0)).collect();
        let half = spec.rotary_dim / 2;
        let weight = rng.flag().then(|| rng.values(head_dim, 1.0));
        let run = |rig: &Rig, plan: &Plan| {
            let (b, mut answers) = (&*rig.backend, plan.answers());
            let weight = weight.as_ref().map(|w| tensor(b, 1, head_dim, w));
            let norm = weight.as_ref().map(|w| (w, 1e-6));
            let frequencies = tensor(b, 1, half, &frequencies(half));
            for step in &plan.steps {
                let mut x = step.tensor(b, cols, |s| &x[s]);
                b.norm_rope(&mut x, &step.segments(), &spec, &frequencies, norm).unwrap();
                step.take(rig, &x, STRANGE, &mut answers);
            }
            answers
        };
        let plan = work.plan(&mut rng);
        let (got, want) = (run(rig, &plan), run(&Rig::reference(), &plan));
        let what = format!("round {round} {spec:?}");
        for (got, want) in got.iter().zip(&want) {
            close(rig, &what, got, want, |i| bound(rig) * (want[i].abs() + 3.0));
        }
        same_apart(rig, &what, (&mut rng, &work), &got, |plan| run(rig, plan));
    }
}

/// First positions: of a sequence, within a page, and such that the next page begins soon.
const POSITIONS: [usize; 6] = [0, 20, PAGE - 3, PAGE, 2 * PAGE - 1, PAGE - 9];

/// What the two `norm_rope` and `kv_append` do one by one, bit for bit.
pub fn norm_rope_append(rig: &Rig) {
    let mut rng = Rng::new(15);
    for round in 0..12 {
        let case = Append::random(&mut rng, rig, round);
        let plan = case.work.plan(&mut rng);
        let (got, apart) = (case.run(rig, &plan, true), case.run(rig, &plan, false));
        let want = case.run(&Rig::reference(), &plan, false);
        let what = format!("round {round}");
        for ((got, apart), want) in got.0.iter().zip(&apart.0).zip(&want.0) {
            same(rig, &what, got, apart);
            close(rig, &what, got, want, |i| bound(rig) * (want[i].abs() + 3.0));
        }
        assert!(got.1 == apart.1, "{}: {what}: the caches differ", rig.name);
    }
}

/// Queries, keys and values of some sequences, and how they turn.
struct Append {
    format: KvFormat,
    kv_heads: usize,
    turns: [RopeSpec; 2],
    work: Work,
    /// Of each sequence.
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    norms: Option<[Vec<f32>; 2]>,
}

impl Append {
    fn random(rng: &mut Rng, rig: &Rig, round: usize) -> Self {
        let drawn = 32 * rng.within(1..=5);
        let head_dim = rig.shape(rng, drawn, &[[64, 96, 160][round % 3]]);
        let (kv_heads, group) = (rng.within(1..=2), rng.within(1..=4));
        let rotary_dim = 2 * rng.within(0..=head_dim / 2);
        let interleaved = rng.flag();
        let turn = |heads: usize, head_stride: usize| RopeSpec {
            heads,
            head_dim,
            head_stride,
            rotary_dim,
            interleaved,
            amplitude: 1.1,
        };
        let q_turn = turn(kv_heads * group, head_dim * if rng.flag() { 2 } else { 1 });
        let counts = mix(rng, round, 12);
        let mut work = Work::step(rng, &counts, 0);
        for (s, start) in work.starts.iter_mut().enumerate() {
            *start = Start { position: POSITIONS[(round + s) % POSITIONS.len()], shared: 0 };
        }
        let mut each = |cols: usize| counts.iter().map(|rows| rng.values(rows * cols, 2.0)).collect();
        let q = each(q_turn.heads * q_turn.head_stride);
        let (k, v) = (each(kv_heads * head_dim), each(kv_heads * head_dim));
        let norms = rng.flag().then(|| [rng.values(head_dim, 1.0), rng.values(head_dim, 1.0)]);
        let format = [KvFormat::F32, KvFormat::F16, KvFormat::Q8][round % 3];
        Self { format, kv_heads, turns: [q_turn, turn(kv_heads, head_dim)], work, q, k, v, norms }
    }

    /// The turned queries of each sequence, and all bytes of the cache. What `k` holds is nobody's business: the cache
    /// has it.
    fn run(&self, rig: &Rig, plan: &Plan, at_once: bool) -> (Vec<Vec<f32>>, [Vec<u8>; 2]) {
        let (b, mut answers) = (&*rig.backend, plan.answers());
        let [q_turn, k_turn] = &self.turns;
        let dim = q_turn.head_dim;
        let norms = self.norms.as_ref().map(|norms| norms.each_ref().map(|w| tensor(b, 1, dim, w)));
        let (q_norm, k_norm) = (norms.as_ref().map(|n| (&n[0], 1e-6)), norms.as_ref().map(|n| (&n[1], 1e-5)));
        let half = q_turn.rotary_dim / 2;
        let frequencies = tensor(b, 1, half, &frequencies(half));
        let mut cache = plan.cache(b, self.kv_heads, dim, self.format);
        for step in &plan.steps {
            let mut q = step.tensor(b, q_turn.heads * q_turn.head_stride, |s| &self.q[s]);
            let mut k = step.tensor(b, self.kv_heads * dim, |s| &self.k[s]);
            let v = step.tensor(b, self.kv_heads * dim, |s| &self.v[s]);
            let segments = step.segments();
            if at_once {
                let turns = [Turn { spec: q_turn, norm: q_norm }, Turn { spec: k_turn, norm: k_norm }];
                let heads = Heads { q: &mut q, k: &mut k, v: &v };
                b.norm_rope_append(heads, &segments, turns, &frequencies, &mut cache).unwrap();
            } else {
                b.norm_rope(&mut q, &segments, q_turn, &frequencies, q_norm).unwrap();
                b.norm_rope(&mut k, &segments, k_turn, &frequencies, k_norm).unwrap();
                b.kv_append(&k, &v, &segments, &mut cache).unwrap();
            }
            step.take(rig, &q, STRANGE, &mut answers);
        }
        plan.only_own_positions_are_written(rig, &cache);
        (answers, stored(b, &cache))
    }
}
