//! Causal attention over a KV cache in blocks of absolute positions (the online softmax of Milakov & Gimelshein
//! 2018): a block's part does not depend on which rows are computed together, so neither does the result.

use files::Result;
use half::f16;

use crate::buffer::Block;
use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{dots, exp, sigmoid, widen};
use crate::cpu::shared::Parts;
use crate::ops::{AttentionSpec, KvCache, KvFormat, Segment};

/// Positions of a block.
const BLOCK: usize = 64;

/// Stores the segment's rows at their positions; see [`crate::Backend::kv_append`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub(in crate::cpu) fn kv_append(k: &[f32], v: &[f32], segment: &Segment, cache: &mut KvCache) -> Result<()> {
    let (heads, dim, capacity, format) = (cache.kv_heads, cache.head_dim, cache.capacity, cache.format);
    for (source, target) in [(k, &mut cache.keys), (v, &mut cache.values)] {
        for (i, row) in segment.rows.clone().enumerate() {
            for h in 0..heads {
                let values = &source[(row * heads + h) * dim..][..dim];
                let at = (h * capacity + segment.position + i) * dim;
                match format {
                    KvFormat::F32 => target.host_mut::<f32>()?[at..][..dim].copy_from_slice(values),
                    KvFormat::F16 => {
                        let target = &mut target.host_mut::<f16>()?[at..][..dim];
                        target.iter_mut().zip(values).for_each(|(t, v)| *t = f16::from_f32(*v));
                    }
                }
            }
        }
    }
    Ok(())
}

/// What an item of [`attention`] works on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Attention<'a> {
    pub q: &'a [f32],
    pub spec: &'a AttentionSpec,
    pub cache: &'a KvCache,
    pub out: Parts<'a, f32>,
}

/// Rows `rows` (the first at `position`) and KV head `kv_head` of [`crate::Backend::attention`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
///
/// # Safety
/// Nobody else accesses these heads of these rows of the output.
pub(in crate::cpu) unsafe fn attention(
    isa: Isa,
    a: Attention<'_>,
    rows: std::ops::Range<usize>,
    position: usize,
    kv_head: usize,
) -> Result<()> {
    let dim = a.spec.head_dim;
    let group = a.spec.heads / a.cache.kv_heads;
    let stride = dim * (1 + usize::from(a.spec.gated));
    let mut states: Vec<State> = rows.clone().flat_map(|_| (0..group).map(|_| State::new(dim))).collect();
    let end = position + rows.len();
    let (mut keys, mut values) = (vec![0.0; BLOCK * dim], vec![0.0; BLOCK * dim]);
    for block in (0..end).step_by(BLOCK) {
        let n = BLOCK.min(end - block);
        let at = (kv_head * a.cache.capacity + block) * dim;
        let keys = load(isa, &a.cache.keys, a.cache.format, at, &mut keys[..n * dim])?;
        let values = load(isa, &a.cache.values, a.cache.format, at, &mut values[..n * dim])?;
        for (s, state) in states.iter_mut().enumerate() {
            let (i, head) = (s / group, kv_head * group + s % group);
            // Positions of this block up to the row's own.
            let seen = (position + i + 1).saturating_sub(block).min(n);
            let query = &a.q[((rows.start + i) * a.spec.heads + head) * stride..][..dim];
            if seen > 0 {
                absorb(isa, query, &keys[..seen * dim], &values[..seen * dim], a.spec.scale, state);
            }
        }
    }
    for (s, state) in states.iter().enumerate() {
        let at = (rows.start + s / group) * a.spec.heads + kv_head * group + s % group;
        // SAFETY: this head of this row belongs to this call.
        let out = unsafe { a.out.part(at * dim, dim) };
        let gate = if a.spec.gated { &a.q[at * stride + dim..][..dim] } else { &[] };
        finish(isa, state, gate, out);
    }
    Ok(())
}

/// The softmax of one head of one row, so far: maximum, sum, weighted values.
struct State {
    max: f32,
    sum: f32,
    values: Vec<f32>,
}

impl State {
    fn new(dim: usize) -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, values: vec![0.0; dim] }
    }
}

/// `out.len()` values of the cache from value `at`, as f32.
fn load<'a>(
    isa: Isa,
    block: &'a Block,
    format: KvFormat,
    at: usize,
    out: &'a mut [f32],
) -> Result<&'a [f32]> {
    match format {
        KvFormat::F32 => Ok(&block.host::<f32>()?[at..][..out.len()]),
        KvFormat::F16 => {
            widen_all(isa, &block.host::<f16>()?[at..][..out.len()], out);
            Ok(out)
        }
    }
}

for_each_isa! {
    fn widen_all(x: &[f16], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = widen(*x);
        }
    }
}

for_each_isa! {
    /// Takes a block of keys and values into the softmax.
    fn absorb(query: &[f32], keys: &[f32], values: &[f32], scale: f32, state: &mut State) {
        let dim = query.len();
        let n = keys.len() / dim;
        let mut scores = [f32::NEG_INFINITY; BLOCK];
        let key = |j: usize| &keys[j * dim..][..dim];
        let whole = n - n % 4;
        for j in (0..whole).step_by(4) {
            let four = dots([key(j), key(j + 1), key(j + 2), key(j + 3)], query);
            for (s, dot) in scores[j..j + 4].iter_mut().zip(four) {
                *s = scale * dot;
            }
        }
        for (j, s) in scores[..n].iter_mut().enumerate().skip(whole) {
            *s = scale * dots([key(j)], query)[0];
        }
        let mut max = state.max;
        for s in &scores {
            // A NaN must reach the output: it fails the comparison and is seen by `exp` below.
            max = if *s > max { *s } else { max };
        }
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let keep = exp(state.max - max);
        for s in &mut scores {
            *s = exp(*s - max);
        }
        state.max = max;
        state.sum = state.sum * keep + crate::cpu::math::sum_of(&scores);
        for v in &mut state.values {
            *v *= keep;
        }
        for (score, value) in scores[..n].iter().zip(values.chunks_exact(dim)) {
            for (s, v) in state.values.iter_mut().zip(value) {
                *s += score * v;
            }
        }
    }
}

for_each_isa! {
    fn finish(state: &State, gate: &[f32], out: &mut [f32]) {
        for (o, v) in out.iter_mut().zip(&state.values) {
            *o = v / state.sum;
        }
        for (o, g) in out.iter_mut().zip(gate) {
            *o *= sigmoid(*g);
        }
    }
}
