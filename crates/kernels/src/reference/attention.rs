//! Causal attention over a KV cache, with grouped queries and an optional output gate.

use files::Result;
use half::f16;

use super::sigmoid;
use crate::buffer::Block;
use crate::ops::{AttentionSpec, KvCache, KvFormat, Segment};

/// Stores the segments' rows at their positions; see [`crate::Backend::kv_append`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub fn kv_append(k: &[f32], v: &[f32], segments: &[Segment], cache: &mut KvCache) -> Result<()> {
    let (heads, dim, format) = (cache.kv_heads, cache.head_dim, cache.format);
    for segment in segments {
        for (i, row) in segment.rows.clone().enumerate() {
            for h in 0..heads {
                let (from, to) =
                    ((row * heads + h) * dim, cache.head(&segment.pages, h, segment.position + i));
                store(&mut cache.keys, format, to, &k[from..][..dim])?;
                store(&mut cache.values, format, to, &v[from..][..dim])?;
            }
        }
    }
    Ok(())
}

/// Stores the values of a head as head number `at` of the block.
fn store(block: &mut Block, format: KvFormat, at: usize, values: &[f32]) -> Result<()> {
    let dim = values.len();
    match format {
        KvFormat::F32 => block.host_mut::<f32>()?[at * dim..][..dim].copy_from_slice(values),
        KvFormat::F16 => {
            let target = &mut block.host_mut::<f16>()?[at * dim..][..dim];
            target.iter_mut().zip(values).for_each(|(t, v)| *t = f16::from_f32(*v));
        }
        KvFormat::Q8 => {
            let bytes = format.head_bytes(dim);
            quantise(values, &mut block.host_mut::<u8>()?[at * bytes..][..bytes]);
        }
    }
    Ok(())
}

/// One head as [`KvFormat::Q8`].
fn quantise(values: &[f32], target: &mut [u8]) {
    let (bytes, scales) = target.split_at_mut(values.len());
    let blocks = values.chunks(KvFormat::BLOCK).zip(bytes.chunks_mut(KvFormat::BLOCK));
    for ((values, bytes), scale) in blocks.zip(scales.chunks_exact_mut(2)) {
        let max = values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let finite = values.iter().all(|v| v.is_finite());
        let step = if finite { f16::from_f32(max / 127.0) } else { f16::NAN };
        scale.copy_from_slice(&step.to_le_bytes());
        for (byte, v) in bytes.iter_mut().zip(values) {
            let q = if step > f16::ZERO { (v / step.to_f32()).round_ties_even() } else { 0.0 };
            *byte = q.clamp(-127.0, 127.0) as i8 as u8;
        }
    }
}

/// The values of head number `at` of the block.
fn load(block: &Block, format: KvFormat, at: usize, out: &mut [f32]) -> Result<()> {
    let dim = out.len();
    match format {
        KvFormat::F32 => out.copy_from_slice(&block.host::<f32>()?[at * dim..][..dim]),
        KvFormat::F16 => {
            let source = &block.host::<f16>()?[at * dim..][..dim];
            out.iter_mut().zip(source).for_each(|(o, s)| *o = s.to_f32());
        }
        KvFormat::Q8 => {
            let bytes = format.head_bytes(dim);
            let (bytes, scales) = block.host::<u8>()?[at * bytes..][..bytes].split_at(dim);
            for (i, (o, byte)) in out.iter_mut().zip(bytes).enumerate() {
                let at = 2 * (i / KvFormat::BLOCK);
                let scale = f16::from_le_bytes([scales[at], scales[at + 1]]);
                *o = f32::from(*byte as i8) * scale.to_f32();
            }
        }
    }
    Ok(())
}

/// Attention of the segments' rows; see [`crate::Backend::attention`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub fn attention(
    q: &[f32],
    segments: &[Segment],
    cache: &KvCache,
    spec: &AttentionSpec,
    out: &mut [f32],
) -> Result<()> {
    let (dim, stride) = (spec.head_dim, spec.head_dim * (1 + usize::from(spec.gated)));
    for segment in segments {
        for (i, row) in segment.rows.clone().enumerate() {
            for head in 0..spec.heads {
                let query = &q[(row * spec.heads + head) * stride..][..stride];
                let out = &mut out[(row * spec.heads + head) * dim..][..dim];
                attend(query, segment, segment.position + i, head, cache, spec, out)?;
            }
        }
    }
    Ok(())
}

/// One head at one position.
fn attend(
    query: &[f32],
    segment: &Segment,
    position: usize,
    head: usize,
    cache: &KvCache,
    spec: &AttentionSpec,
    out: &mut [f32],
) -> Result<()> {
    let (dim, kv_head) = (spec.head_dim, head / (spec.heads / cache.kv_heads));
    let mut vector = vec![0.0; dim];
    let mut scores = Vec::with_capacity(position + 1);
    for j in 0..=position {
        load(&cache.keys, cache.format, cache.head(&segment.pages, kv_head, j), &mut vector)?;
        scores.push(spec.scale * super::linear::dot(&query[..dim], &vector));
    }
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
    out.fill(0.0);
    for (j, score) in scores.iter().enumerate() {
        load(&cache.values, cache.format, cache.head(&segment.pages, kv_head, j), &mut vector)?;
        let weight = (score - max).exp() / sum;
        out.iter_mut().zip(&vector).for_each(|(o, v)| *o += weight * v);
    }
    if spec.gated {
        out.iter_mut().zip(&query[dim..]).for_each(|(o, g)| *o *= sigmoid(*g));
    }
    Ok(())
}
