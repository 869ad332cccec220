//! Causal attention over a KV cache, with grouped queries and an optional output gate.

use files::Result;
use half::f16;

use super::sigmoid;
use crate::buffer::Block;
use crate::ops::{AttentionSpec, KvCache, KvFormat, Segment};

/// Stores the segment's rows at their positions; see [`crate::Backend::kv_append`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub fn kv_append(k: &[f32], v: &[f32], segment: &Segment, cache: &mut KvCache) -> Result<()> {
    let (heads, dim, capacity, format) = (cache.kv_heads, cache.head_dim, cache.capacity, cache.format);
    for (source, target) in [(k, &mut cache.keys), (v, &mut cache.values)] {
        for (i, row) in segment.rows.clone().enumerate() {
            for h in 0..heads {
                let values = &source[(row * heads + h) * dim..][..dim];
                store(target, format, (h * capacity + segment.position + i) * dim, values)?;
            }
        }
    }
    Ok(())
}

fn store(block: &mut Block, format: KvFormat, at: usize, values: &[f32]) -> Result<()> {
    match format {
        KvFormat::F32 => block.host_mut::<f32>()?[at..][..values.len()].copy_from_slice(values),
        KvFormat::F16 => {
            let target = &mut block.host_mut::<f16>()?[at..][..values.len()];
            target.iter_mut().zip(values).for_each(|(t, v)| *t = f16::from_f32(*v));
        }
    }
    Ok(())
}

fn load(block: &Block, format: KvFormat, at: usize, out: &mut [f32]) -> Result<()> {
    match format {
        KvFormat::F32 => out.copy_from_slice(&block.host::<f32>()?[at..][..out.len()]),
        KvFormat::F16 => {
            let source = &block.host::<f16>()?[at..][..out.len()];
            out.iter_mut().zip(source).for_each(|(o, s)| *o = s.to_f32());
        }
    }
    Ok(())
}

/// Attention of the segment's rows; see [`crate::Backend::attention`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub fn attention(
    q: &[f32],
    segment: &Segment,
    cache: &KvCache,
    spec: &AttentionSpec,
    out: &mut [f32],
) -> Result<()> {
    let dim = spec.head_dim;
    let stride = dim * (1 + usize::from(spec.gated));
    let group = spec.heads / cache.kv_heads;
    let mut vector = vec![0.0; dim];
    for (i, row) in segment.rows.clone().enumerate() {
        let position = segment.position + i;
        for head in 0..spec.heads {
            let query = &q[(row * spec.heads + head) * stride..][..stride];
            let base = head / group * cache.capacity;
            let mut scores = Vec::with_capacity(position + 1);
            for j in 0..=position {
                load(&cache.keys, cache.format, (base + j) * dim, &mut vector)?;
                scores.push(spec.scale * super::linear::dot(&query[..dim], &vector));
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
            let out = &mut out[(row * spec.heads + head) * dim..][..dim];
            out.fill(0.0);
            for (j, score) in scores.iter().enumerate() {
                load(&cache.values, cache.format, (base + j) * dim, &mut vector)?;
                let weight = (score - max).exp() / sum;
                out.iter_mut().zip(&vector).for_each(|(o, v)| *o += weight * v);
            }
            if spec.gated {
                out.iter_mut().zip(&query[dim..]).for_each(|(o, g)| *o *= sigmoid(*g));
            }
        }
    }
    Ok(())
}
