//! Token mixers: attention, the gated delta rule, and what goes with them.

use files::{Error, Result};

use super::{Gpu, binding, items, memory_of, source};
use crate::buffer::Tensor;
use crate::ops::{AttentionSpec, DeltaInput, DeltaSpec, KvCache, KvFormat, RopeSpec, Segment};

/// Heads wider than this do not fit a workgroup's memory or a thread's registers.
const HEAD_DIM_MAX: usize = 1024;

fn head_dim(what: &str, dim: usize) -> Result<u32> {
    if dim == 0 || dim > HEAD_DIM_MAX {
        return Err(Error::unsupported(format!("{what} heads of {dim} values on the GPU")));
    }
    Ok(dim as u32)
}

/// The shaders' number of the cache's format, and how many values an item of [`source::KV_APPEND`] stores of each
/// head: a word, or two blocks.
fn format(cache: &KvCache) -> Result<(u32, usize)> {
    match cache.format {
        KvFormat::F32 => Ok((0, 1)),
        KvFormat::F16 if cache.head_dim.is_multiple_of(2) => Ok((1, 2)),
        KvFormat::F16 => {
            Err(Error::unsupported(format!("a half-precision cache of {} values a head", cache.head_dim)))
        }
        KvFormat::Q8 => Ok((2, 2 * KvFormat::BLOCK)),
    }
}

impl Gpu {
    pub(super) fn rotate(
        &self,
        x: &mut Tensor,
        segment: &Segment,
        spec: &RopeSpec,
        frequencies: &Tensor,
        norm: Option<(&Tensor, f32)>,
    ) -> Result<()> {
        let eps = norm.map_or(0.0, |(_, eps)| eps);
        // A binding must be something: without a norm it is never read.
        let weight = norm.map_or(frequencies, |(weight, _)| weight);
        let constants =
            [head_dim("rotated", spec.head_dim)?, u32::from(norm.is_some()), u32::from(spec.interleaved)];
        let params = [
            spec.heads as u32,
            spec.head_stride as u32,
            spec.rotary_dim as u32,
            segment.rows.start as u32,
            segment.position as u32,
            spec.amplitude.to_bits(),
            eps.to_bits(),
        ];
        let groups = [spec.heads as u32, segment.rows.len() as u32, 1];
        let bindings = [binding(x)?, binding(frequencies)?, binding(weight)?];
        self.simple(&source::NORM_ROPE, &constants, &bindings, &params, groups)
    }

    pub(super) fn append(
        &self,
        k: &Tensor,
        v: &Tensor,
        segment: &Segment,
        cache: &mut KvCache,
    ) -> Result<()> {
        let (format, values) = format(cache)?;
        let count = segment.rows.len() * cache.kv_heads * cache.head_dim.div_ceil(values);
        let bindings = [
            binding(k)?,
            binding(v)?,
            memory_of(cache.keys.buffer())?.binding(),
            memory_of(cache.values.buffer())?.binding(),
        ];
        let params = [
            cache.kv_heads as u32,
            cache.capacity as u32,
            segment.rows.start as u32,
            segment.position as u32,
            count as u32,
        ];
        let constants = [head_dim("cached", cache.head_dim)?, format];
        self.simple(&source::KV_APPEND, &constants, &bindings, &params, items(&source::KV_APPEND, count))
    }

    pub(super) fn attend(
        &self,
        q: &Tensor,
        segment: &Segment,
        cache: &KvCache,
        spec: &AttentionSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        let bindings = [
            binding(q)?,
            memory_of(cache.keys.buffer())?.binding(),
            memory_of(cache.values.buffer())?.binding(),
            binding(out)?,
        ];
        let params = [
            spec.heads as u32,
            (spec.heads / cache.kv_heads) as u32,
            cache.capacity as u32,
            segment.rows.start as u32,
            segment.position as u32,
            spec.scale.to_bits(),
        ];
        let constants = [head_dim("attention", spec.head_dim)?, format(cache)?.0, u32::from(spec.gated)];
        let groups = [spec.heads as u32, segment.rows.len() as u32, 1];
        self.simple(&source::ATTENTION, &constants, &bindings, &params, groups)
    }

    pub(super) fn convolve(
        &self,
        x: &Tensor,
        weight: &Tensor,
        segment: &Segment,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let bindings = [binding(x)?, binding(weight)?, binding(state)?, binding(out)?];
        let params = [x.cols() as u32, segment.rows.start as u32, segment.rows.len() as u32];
        let constants = [weight.cols() as u32];
        self.simple(&source::SHORT_CONV, &constants, &bindings, &params, items(&source::SHORT_CONV, x.cols()))
    }

    pub(super) fn delta(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let bindings = [
            binding(input.qkv)?,
            binding(input.a)?,
            binding(input.b)?,
            binding(input.decay)?,
            binding(input.dt_bias)?,
            binding(state)?,
            binding(out)?,
        ];
        let params = [
            spec.key_heads as u32,
            spec.value_heads as u32,
            spec.value_head_dim as u32,
            input.segment.rows.start as u32,
            input.segment.rows.len() as u32,
        ];
        let constants = [head_dim("key", spec.key_head_dim)?, u32::from(spec.tiled)];
        let columns = (spec.value_head_dim as u32).div_ceil(source::DELTA_RULE.team);
        self.simple(
            &source::DELTA_RULE,
            &constants,
            &bindings,
            &params,
            [spec.value_heads as u32, columns, 1],
        )
    }
}
