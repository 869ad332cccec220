//! Rotary embedding, KV cache, attention.

use tidemill_kernels::ops::{AttentionSpec, Heads, KvCache, KvFormat, Precision, RopeSpec, Segment, Turn};

use super::*;

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
        let (rows, cols) = (rng.within(1..=20), spec.heads * spec.head_stride);
        let start = rng.within(0..=rows - 1);
        let segment = Segment { rows: start..rng.within(start..=rows), position: rng.within(0..=3000) };
        let x = rng.values(rows * cols, 2.0);
        let half = spec.rotary_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let weight = rng.flag().then(|| rng.values(head_dim, 1.0));
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let mut x = tensor(b, rows, cols, &x);
            let weight = weight.as_ref().map(|w| tensor(b, 1, head_dim, w));
            let norm = weight.as_ref().map(|w| (w, 1e-6));
            b.norm_rope(&mut x, &segment, &spec, &tensor(b, 1, half, &frequencies), norm).unwrap();
            values(b, &x)
        };
        let (got, want) = (run(rig), run(&Rig::reference()));
        // Devices reduce large angles less carefully than the C library.
        let bound = if rig.batch_invariant { 4e-6 } else { 1e-3 };
        close(rig, &format!("round {round} {spec:?}"), &got, &want, |i| bound * (want[i].abs() + 3.0));
    }
}

/// What the two `norm_rope` and `kv_append` do one by one, bit for bit.
pub fn norm_rope_append(rig: &Rig) {
    let mut rng = Rng::new(15);
    for round in 0..24 {
        let format = [KvFormat::F32, KvFormat::F16, KvFormat::Q8][round % 3];
        let drawn = 32 * rng.within(1..=5);
        let head_dim = rig.shape(&mut rng, drawn, &[[64, 96, 160][round % 3]]);
        let (kv_heads, group) = (rng.within(1..=3), rng.within(1..=4));
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
        let k_turn = turn(kv_heads, head_dim);
        let (rows, capacity) = (rng.within(1..=12), 40);
        let start = rng.within(0..=rows - 1);
        let segment = Segment { rows: start..rng.within(start..=rows), position: rng.within(0..=20) };
        let (q_cols, k_cols) = (q_turn.heads * q_turn.head_stride, kv_heads * head_dim);
        let (q, k) = (rng.values(rows * q_cols, 2.0), rng.values(rows * k_cols, 2.0));
        let v = rng.values(rows * k_cols, 2.0);
        let half = rotary_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let norms = rng.flag().then(|| (rng.values(head_dim, 1.0), rng.values(head_dim, 1.0)));
        let run = |rig: &Rig, at_once: bool| {
            let b = &*rig.backend;
            let (mut q, mut k) = (tensor(b, rows, q_cols, &q), tensor(b, rows, k_cols, &k));
            let (v, frequencies) = (tensor(b, rows, k_cols, &v), tensor(b, 1, half, &frequencies));
            let norms = norms.as_ref().map(|(q, k)| (tensor(b, 1, head_dim, q), tensor(b, 1, head_dim, k)));
            let (q_norm, k_norm) =
                (norms.as_ref().map(|n| (&n.0, 1e-6)), norms.as_ref().map(|n| (&n.1, 1e-5)));
            let bytes = KvCache::bytes(kv_heads, head_dim, capacity, format) / 2;
            let (keys, values_block) = (b.alloc(bytes).unwrap(), b.alloc(bytes).unwrap());
            let mut cache = KvCache { keys, values: values_block, kv_heads, head_dim, capacity, format };
            if at_once {
                let turns = [Turn { spec: &q_turn, norm: q_norm }, Turn { spec: &k_turn, norm: k_norm }];
                let heads = Heads { q: &mut q, k: &mut k, v: &v };
                b.norm_rope_append(heads, &segment, turns, &frequencies, &mut cache).unwrap();
            } else {
                b.norm_rope(&mut q, &segment, &q_turn, &frequencies, q_norm).unwrap();
                b.norm_rope(&mut k, &segment, &k_turn, &frequencies, k_norm).unwrap();
                b.kv_append(&k, &v, &segment, &mut cache).unwrap();
            }
            let mut stored = vec![0; 2 * bytes];
            b.read(&cache.keys, 0, &mut stored[..bytes]).unwrap();
            b.read(&cache.values, 0, &mut stored[bytes..]).unwrap();
            // What k holds afterwards is nobody's business: the cache has it.
            (values(b, &q), stored)
        };
        let (got, apart) = (run(rig, true), run(rig, false));
        same(rig, &format!("round {round}"), &got.0, &apart.0);
        assert!(got.1 == apart.1, "{}: round {round}: the caches differ", rig.name);
        let want = run(&Rig::reference(), false);
        let bound = if rig.batch_invariant { 4e-6 } else { 1e-3 };
        close(rig, &format!("round {round}"), &got.0, &want.0, |i| bound * (want.0[i].abs() + 3.0));
    }
}

/// A sequence, its cache, and what is asked of it.
pub struct Case {
    spec: AttentionSpec,
    kv_heads: usize,
    capacity: usize,
    format: KvFormat,
    history: usize,
    rows: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Query heads to a head of keys and values, values of a head, and whether answers are gated.
const FEW: [(usize, usize, bool); 4] = [(1, 20, false), (4, 64, true), (7, 144, false), (3, 100, true)];
const FEW_OF_BLOCKS: [(usize, usize, bool); 3] = [(1, 32, false), (4, 64, true), (7, 160, false)];

impl Case {
    pub fn random(rng: &mut Rng, rig: &Rig, format: KvFormat, history: usize, rows: usize) -> Self {
        let (kv_heads, group) = (rng.within(1..=3), rng.within(1..=7));
        let head_dim = match format {
            KvFormat::Q8 => KvFormat::BLOCK * rng.within(1..=5),
            _ if rng.flag() => 16 * rng.within(1..=9),
            _ => 4 * rng.within(1..=32),
        };
        let drawn = (group, head_dim, rng.flag());
        let few = if format == KvFormat::Q8 { &FEW_OF_BLOCKS[..] } else { &FEW[..] };
        let (group, head_dim, gated) = rig.shape(rng, drawn, few);
        let spec =
            AttentionSpec { heads: kv_heads * group, head_dim, gated, scale: 1.0 / (head_dim as f32).sqrt() };
        let total = history + rows;
        let q = rng.values(total * spec.heads * head_dim * (1 + usize::from(spec.gated)), 2.0);
        let (k, v) =
            (rng.values(total * kv_heads * head_dim, 2.0), rng.values(total * kv_heads * head_dim, 1.0));
        Self { spec, kv_heads, capacity: total + rng.within(0..=9), format, history, rows, q, k, v }
    }

    /// Appends and attends in steps of the given sizes, after the history; returns all outputs. A long history is only
    /// appended.
    pub fn run(&self, rig: &Rig, steps: &[usize]) -> Vec<f32> {
        let b = &*rig.backend;
        let dim = self.spec.head_dim;
        let bytes = KvCache::bytes(self.kv_heads, dim, self.capacity, self.format) / 2;
        let mut cache = KvCache {
            keys: b.alloc(bytes).unwrap(),
            values: b.alloc(bytes).unwrap(),
            kv_heads: self.kv_heads,
            head_dim: dim,
            capacity: self.capacity,
            format: self.format,
        };
        let total = self.history + self.rows;
        let (q_cols, kv_cols) = (self.q.len() / total, self.kv_heads * dim);
        let (mut position, mut got) = (0, Vec::new());
        for &n in [self.history].iter().chain(steps) {
            // A row before and one after that belong to somebody else.
            let cut = |v: &[f32], cols: usize| {
                let mut padded = vec![9.0; (n + 2) * cols];
                padded[cols..(n + 1) * cols].copy_from_slice(&v[position * cols..][..n * cols]);
                tensor(b, n + 2, cols, &padded)
            };
            let segment = Segment { rows: 1..1 + n, position };
            let mut out = output(b, n + 2, self.spec.heads * dim);
            b.kv_append(&cut(&self.k, kv_cols), &cut(&self.v, kv_cols), &segment, &mut cache).unwrap();
            if n > 256 {
                position += n;
                continue;
            }
            b.attention(&cut(&self.q, q_cols), &segment, &cache, &self.spec, &mut out).unwrap();
            let values = values(b, &out);
            let cols = self.spec.heads * dim;
            let (before, after) = (&values[..cols], &values[(n + 1) * cols..]);
            assert!(before.iter().chain(after).all(|v| *v == -777.25), "{}: a foreign row changed", rig.name);
            got.extend_from_slice(&values[cols..(n + 1) * cols]);
            position += n;
        }
        got
    }
}

/// Devices that divide and round a little differently may choose the next byte for a value of an 8-bit cache. The CPU in
/// fast mode multiplies halves as bf16, whose 8 bits round queries, keys, weights and values by 2^-9 each; what that does to
/// a score, and so to a weight, grows with the score.
fn bound(rig: &Rig, format: KvFormat) -> f32 {
    let fast = rig.backend.info().precision == Precision::Fast;
    match format {
        KvFormat::Q8 if !rig.batch_invariant => 1e-2,
        KvFormat::F16 if rig.batch_invariant && fast => 3e-2,
        _ => 2e-5,
    }
}

pub fn attention(rig: &Rig) {
    let mut rng = Rng::new(12);
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
        for history in [0, 1, 63, 64, 190] {
            for rows in [1, rng.within(2..=40)] {
                let case = Case::random(&mut rng, rig, format, history, rows);
                let what = format!("{:?} {format:?} {history} + {rows}", case.spec);
                let got = case.run(rig, &[rows]);
                let want = case.run(&Rig::reference(), &[rows]);
                close(rig, &what, &got, &want, |i| bound(rig, format) * (want[i].abs() + 1.0));
                if rig.batch_invariant && rows > 1 {
                    let cut = rng.within(1..=rows - 1);
                    same(rig, &what, &case.run(rig, &[cut, rows - cut]), &got);
                    same(rig, &what, &case.run(rig, &vec![1; rows]), &got);
                }
            }
        }
    }
}

/// History and rows of contexts of several chunks, around their ends, which threads may share.
pub const LONG: [(usize, usize); 5] = [(509, 6), (511, 1), (512, 1), (1020, 9), (1700, 1)];

pub fn long_attention(rig: &Rig) {
    let mut rng = Rng::new(13);
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
        for (history, rows) in LONG {
            let case = Case::random(&mut rng, rig, format, history, rows);
            let what = format!("{:?} {format:?} {history} + {rows}", case.spec);
            let got = case.run(rig, &[rows]);
            let want = case.run(&Rig::reference(), &[rows]);
            close(rig, &what, &got, &want, |i| bound(rig, format) * (want[i].abs() + 1.0));
            if rig.batch_invariant && rows > 1 {
                same(rig, &what, &case.run(rig, &vec![1; rows]), &got);
            }
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
        let (q, k) = (vec![0.5; dim], vec![0.25; dim]);
        let spec = spec.clone();
        let case =
            Case { spec, kv_heads: 1, capacity: 3, format: KvFormat::Q8, history: 0, rows: 1, q, k, v };
        let got = case.run(rig, &[1]);
        for (i, (got, v)) in got.iter().zip(&case.v).enumerate() {
            let max = case.v[i / 32 * 32..][..32].iter().fold(0.0f32, |m, v| m.max(v.abs()));
            if broken.is_some() && i / 32 == 1 {
                assert!(got.is_nan(), "{}: {got} hides {broken:?}", rig.name);
            } else {
                let step = max / 127.0;
                assert!((got - v).abs() <= 0.52 * step, "{}: {got} for {v}, step {step}", rig.name);
            }
        }
    }
}

/// What an 8-bit cache holds is the reference's, byte for byte, where values lie halfway between two bytes too.
pub fn eight_bit_bytes(rig: &Rig) {
    let mut rng = Rng::new(15);
    let (rows, dim) = (20, 64);
    let mut values = Vec::new();
    for _ in 0..rows * dim / 32 {
        // An f16 of eleven bits, and with six bits more the values are exact.
        let step = half::f16::from_f32(0.001 + 0.01 * rng.value().abs()).to_f32();
        let mut block: Vec<f32> = (0..32).map(|_| (rng.within(0..=126) as f32 - 63.5) * step).collect();
        block[rng.within(0..=31)] = 127.0 * step;
        values.extend(if rng.flag() { block } else { rng.values(32, 1.0) });
    }
    let run = |rig: &Rig| {
        let b = &*rig.backend;
        let bytes = KvCache::bytes(1, dim, rows, KvFormat::Q8) / 2;
        let (keys, of_values) = (b.alloc(bytes).unwrap(), b.alloc(bytes).unwrap());
        let format = KvFormat::Q8;
        let mut cache =
            KvCache { keys, values: of_values, kv_heads: 1, head_dim: dim, capacity: rows, format };
        let x = tensor(b, rows, dim, &values);
        b.kv_append(&x, &x, &Segment { rows: 0..rows, position: 0 }, &mut cache).unwrap();
        let mut all = [vec![0u8; bytes], vec![0u8; bytes]];
        b.read(&cache.keys, 0, &mut all[0]).unwrap();
        b.read(&cache.values, 0, &mut all[1]).unwrap();
        all
    };
    let (got, want) = (run(rig), run(&Rig::reference()));
    for (got, want) in got.iter().zip(&want) {
        let off = got.iter().zip(want).filter(|(got, want)| got != want).count();
        assert_eq!(off, 0, "{}: so many of {} bytes differ", rig.name, got.len());
    }
}
