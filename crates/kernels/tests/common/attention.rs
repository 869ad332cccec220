//! KV cache and attention.

use tidemill_kernels::ops::{AttentionSpec, KvFormat, PAGE, Precision};

use super::plan::{Plan, Start, Work, same_apart, stored};
use super::*;

/// What is asked of a sequence: positions that its cache holds before, rows after them, and how many of its first pages
/// are also the first sequence's.
pub type Asked = (usize, usize, usize);

/// Queries, keys and values of a sequence from its first position on.
struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Sequences, their cache, and what is asked of them.
pub struct Case {
    spec: AttentionSpec,
    kv_heads: usize,
    format: KvFormat,
    sequences: Vec<Sequence>,
    /// In the first step the history, in the second the rows.
    pub work: Work,
    /// Whether rows of the history are asked about too.
    answers_history: bool,
}

/// Query heads to a head of keys and values, values of a head, and whether answers are gated.
const FEW: [(usize, usize, bool); 4] = [(1, 20, false), (4, 64, true), (7, 144, false), (3, 100, true)];
const FEW_OF_BLOCKS: [(usize, usize, bool); 3] = [(1, 32, false), (4, 64, true), (7, 160, false)];

pub const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

impl Case {
    pub fn random(rng: &mut Rng, rig: &Rig, format: KvFormat, asked: &[Asked]) -> Self {
        // Fewer heads for more sequences: the reference takes its time.
        let (kv_heads, group) = match asked.len() {
            1 => (rng.within(1..=3), rng.within(1..=7)),
            _ => (rng.within(1..=2), rng.within(1..=4)),
        };
        let head_dim = match format {
            KvFormat::Q8 => KvFormat::BLOCK * rng.within(1..=5),
            _ if rng.flag() => 16 * rng.within(1..=9),
            _ => 4 * rng.within(1..=32),
        };
        let drawn = (group, head_dim, rng.flag());
        let few = match format {
            // Enough of shapes where one sequence is asked.
            _ if asked.len() > 1 => &FEW[1..2],
            KvFormat::Q8 => &FEW_OF_BLOCKS[..],
            _ => &FEW[..],
        };
        let (group, head_dim, gated) = rig.shape(rng, drawn, few);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let spec = AttentionSpec { heads: kv_heads * group, head_dim, gated, scale };
        let (q_cols, kv_cols) = (spec.heads * head_dim * (1 + usize::from(gated)), kv_heads * head_dim);
        let mut sequences: Vec<Sequence> = Vec::new();
        for &(history, rows, shared) in asked {
            let total = history + rows;
            let q = rng.values(total * q_cols, 2.0);
            let (mut k, mut v) = (rng.values(total * kv_cols, 2.0), rng.values(total * kv_cols, 1.0));
            if let (Some(first), common) = (sequences.first(), shared * PAGE * kv_cols) {
                k[..common].copy_from_slice(&first.k[..common]);
                v[..common].copy_from_slice(&first.v[..common]);
            }
            sequences.push(Sequence { q, k, v });
        }
        let answers_history = asked.len() == 1 && asked[0].0 <= 256;
        Self { spec, kv_heads, format, sequences, work: work(asked), answers_history }
    }

    /// Appends and attends; returns the outputs of each sequence.
    pub fn run(&self, rig: &Rig, plan: &Plan) -> Vec<Vec<f32>> {
        let (b, mut answers) = (&*rig.backend, plan.answers());
        let (dim, heads) = (self.spec.head_dim, self.spec.heads);
        let (q_cols, kv_cols) = (heads * dim * (1 + usize::from(self.spec.gated)), self.kv_heads * dim);
        let mut cache = plan.cache(b, self.kv_heads, dim, self.format);
        for (i, step) in plan.steps.iter().enumerate() {
            let segments = step.segments();
            let k = step.tensor(b, kv_cols, |s| &self.sequences[s].k);
            let v = step.tensor(b, kv_cols, |s| &self.sequences[s].v);
            b.kv_append(&k, &v, &segments, &mut cache).unwrap();
            if i == 0 && !self.answers_history {
                continue;
            }
            let q = step.tensor(b, q_cols, |s| &self.sequences[s].q);
            let mut out = output(b, step.rows, heads * dim);
            b.attention(&q, &segments, &cache, &self.spec, &mut out).unwrap();
            step.take(rig, &out, OUTPUT, &mut answers);
        }
        plan.only_own_positions_are_written(rig, &cache);
        answers
    }

    /// Against the reference, and against itself where that gives the same bits.
    fn check(&self, rig: &Rig, rng: &mut Rng) {
        let plan = self.work.plan(rng);
        let (got, want) = (self.run(rig, &plan), self.run(&Rig::reference(), &plan));
        for (s, (got, want)) in got.iter().zip(&want).enumerate() {
            let what = format!("{self}, sequence {s}");
            close(rig, &what, got, want, |i| bound(rig, self.format) * (want[i].abs() + 1.0));
        }
        same_apart(rig, &self.to_string(), (rng, &self.work), &got, |plan| self.run(rig, plan));
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.spec, self.format, self.work.steps)
    }
}

fn work(asked: &[Asked]) -> Work {
    let starts = asked.iter().map(|&(_, _, shared)| Start { position: 0, shared }).collect();
    let history = asked.iter().map(|(history, _, shared)| history - shared * PAGE).collect();
    let steps = vec![history, asked.iter().map(|(_, rows, _)| *rows).collect()];
    Work { starts, steps, gaps: true, empty: true }
}

/// Devices that divide and round a little differently may choose the next byte for a value of an 8-bit cache. The CPU in
/// fast mode multiplies halves as bf16, whose 8 bits round queries, keys, weights and values by 2^-9 each; what that does to
/// a score, and so to a weight, grows with the score.
fn bound(rig: &Rig, format: KvFormat) -> f32 {
    let fast = rig.backend.info().precision == Precision::Fast;
    match format {
        KvFormat::Q8 if !rig.batch_invariant => 1e-2,
        KvFormat::F16 if rig.batch_invariant && fast => 4e-2,
        _ => 2e-5,
    }
}

pub fn attention(rig: &Rig) {
    let mut rng = Rng::new(12);
    for format in FORMATS {
        for history in [0, 1, 63, 64, 190] {
            for rows in [1, rng.within(2..=40)] {
                Case::random(&mut rng, rig, format, &[(history, rows, 0)]).check(rig, &mut rng);
            }
        }
    }
}

/// History and rows of contexts of several pages, around their ends, which threads may share.
pub const LONG: [(usize, usize); 5] = [(509, 6), (511, 1), (512, 1), (1020, 9), (1700, 1)];

pub fn long_attention(rig: &Rig) {
    let mut rng = Rng::new(13);
    for format in FORMATS {
        for (history, rows) in LONG {
            Case::random(&mut rng, rig, format, &[(history, rows, 0)]).check(rig, &mut rng);
        }
    }
}

/// Single rows, many rows and both, of contexts of one page and more, and of sequences that begin alike.
pub const SEVERAL: [&[Asked]; 5] = [
    &[(70, 1, 0), (0, 1, 0)],
    &[(190, 17, 0), (5, 1, 0), (64, 1, 0)],
    &[(1, 5, 0), (130, 1, 0), (0, 33, 0), (511, 2, 0)],
    &[(600, 1, 0), (530, 3, 1), (512, 1, 1)],
    &[(1030, 1, 0), (1024, 1, 2), (20, 1, 0), (700, 6, 1)],
];

pub fn attention_of_several(rig: &Rig) {
    let mut rng = Rng::new(16);
    for format in FORMATS {
        for asked in SEVERAL {
            Case::random(&mut rng, rig, format, asked).check(rig, &mut rng);
        }
    }
}

/// What an 8-bit cache makes of values: half a step of each block's largest, and NaN for a block that is broken.
pub fn eight_bit_cache(rig: &Rig) {
    let mut rng = Rng::new(14);
    let (dim, spec) = (96, AttentionSpec { heads: 1, head_dim: 96, gated: false, scale: 1.0 });
    for broken in [None, Some(f32::NAN), Some(f32::INFINITY)] {
        // Blocks of very different magnitudes; a block of zeros.
        let mut v: Vec<f32> = rng.values(32, 1e-3);
        v.extend(rng.values(32, 100.0));
        v.extend([0.0; 32]);
        if let Some(value) = broken {
            v[40] = value;
        }
        let sequence = Sequence { q: vec![0.5; dim], k: vec![0.25; dim], v: v.clone() };
        let case = Case {
            spec: spec.clone(),
            kv_heads: 1,
            format: KvFormat::Q8,
            sequences: vec![sequence],
            work: work(&[(0, 1, 0)]),
            answers_history: false,
        };
        let got = case.run(rig, &case.work.plan(&mut rng)).remove(0);
        for (i, (got, value)) in got.iter().zip(&v).enumerate() {
            let max = v[i / 32 * 32..][..32].iter().fold(0.0f32, |m, v| m.max(v.abs()));
            if broken.is_some() && i / 32 == 1 {
                assert!(got.is_nan(), "{}: {got} hides {broken:?}", rig.name);
            } else {
                let step = max / 127.0;
                assert!((got - value).abs() <= 0.52 * step, "{}: {got} for {value}, step {step}", rig.name);
            }
        }
    }
}

/// What an 8-bit cache holds is the reference's, byte for byte, where values lie halfway between two bytes too.
pub fn eight_bit_bytes(rig: &Rig) {
    let mut rng = Rng::new(15);
    let (counts, dim) = ([14, 6], 64);
    let rows: usize = counts.iter().sum();
    let mut values = Vec::new();
    for _ in 0..rows * dim / 32 {
        // An f16 of eleven bits, and with six bits more the values are exact.
        let step = half::f16::from_f32(0.001 + 0.01 * rng.value().abs()).to_f32();
        let mut block: Vec<f32> = (0..32).map(|_| (rng.within(0..=126) as f32 - 63.5) * step).collect();
        block[rng.within(0..=31)] = 127.0 * step;
        values.extend(if rng.flag() { block } else { rng.values(32, 1.0) });
    }
    let (first, second) = values.split_at(counts[0] * dim);
    let mut work = Work::step(&mut rng, &counts, 0);
    work.starts[0].position = PAGE - 7;
    let plan = work.plan(&mut rng);
    let run = |rig: &Rig| {
        let b = &*rig.backend;
        let mut cache = plan.cache(b, 1, dim, KvFormat::Q8);
        for step in &plan.steps {
            let x = step.tensor(b, dim, |s| [first, second][s]);
            b.kv_append(&x, &x, &step.segments(), &mut cache).unwrap();
        }
        plan.only_own_positions_are_written(rig, &cache);
        stored(b, &cache)
    };
    let (got, want) = (run(rig), run(&Rig::reference()));
    for (got, want) in got.iter().zip(&want) {
        let off = got.iter().zip(want).filter(|(got, want)| got != want).count();
        assert_eq!(off, 0, "{}: so many of {} bytes differ", rig.name, got.len());
    }
}
