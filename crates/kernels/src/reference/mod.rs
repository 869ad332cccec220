//! The plain scalar truth of every op, in f32 and in the order of the formulas. Never optimised.

mod attention;
mod combine;
mod conv;
mod delta;
mod embed;
mod linear;
mod mlp;
mod norm;
mod rope;
mod route;

pub use attention::{attention, kv_append};
pub use combine::{add_window, begin_sum, combine};
pub use conv::short_conv;
pub use delta::delta_rule;
pub(crate) use delta::{L2_EPS, softplus};
pub use embed::{best, embed, gather_rows};
pub use linear::linear;
pub use mlp::{expert_mlp, mlp, routed_mlp};
pub use norm::{gated_norm, rms_norm};
pub use rope::norm_rope;
#[cfg(feature = "gpu")]
pub(crate) use route::finite_routes;
pub use route::{read_routes, route};

use std::ops::Range;

use files::Result;

use crate::buffer::{Block, Buffer, Tensor, Weight};
use crate::ops::{
    AttentionSpec, Backend, DeltaInput, DeltaSpec, DeviceInfo, ExpertBatch, ExpertTable, KvCache, MlpWeights,
    Precision, RopeSpec, RouteBuffers, RouteSpec, Routes, Segment, SharedOutput, WindowRow,
};
use crate::{check, host};

/// `1 / (1 + e^-x)`
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x * sigmoid(x)`
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The backend made of the reference functions: one thread, host memory.
#[derive(Debug)]
pub struct Reference {
    info: DeviceInfo,
}

impl Default for Reference {
    fn default() -> Self {
        let info = DeviceInfo {
            name: "scalar reference".into(),
            precision: Precision::Exact,
            buffer_bytes_max: usize::MAX,
            mapped_bytes_max: None,
            unified_memory: true,
            pins_memory: false,
            gives_back: false,
            threads: 1,
            staging_bytes: 0,
            looks_up_experts: true,
        };
        Self { info }
    }
}

impl Backend for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc_shared(&self, bytes: usize) -> Result<Buffer> {
        host::alloc_shared(bytes)
    }

    fn publish(&self, _buffer: &Buffer, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<Block> {
        host::alloc(bytes)
    }

    fn write(&self, block: &mut Block, offset: usize, data: &[u8]) -> Result<()> {
        host::write(block, offset, data)
    }

    fn read(&self, block: &Block, offset: usize, out: &mut [u8]) -> Result<()> {
        host::read(block, offset, out)
    }

    fn copy(&self, from: &Block, from_range: Range<usize>, to: &mut Block, to_at: usize) -> Result<()> {
        host::copy(from, from_range, to, to_at)
    }

    fn copy_within(&self, block: &mut Block, range: Range<usize>, to_at: usize) -> Result<()> {
        host::copy_within(block, range, to_at)
    }

    fn clear(&self, block: &mut Block, range: Range<usize>) -> Result<()> {
        host::clear(block, range)
    }

    fn embed(&self, table: &Weight, ids: &[u32], out: &mut Tensor) -> Result<()> {
        check::embed(table, ids, out)?;
        embed(&table.host()?, ids, out.host_mut()?)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()> {
        check::rms_norm(x, weight, out)?;
        rms_norm(x.host()?, weight.host()?, eps, out.host_mut()?);
        Ok(())
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &mut Tensor) -> Result<()> {
        check::linear(x, w, bias, out)?;
        let bias = bias.map(Tensor::host).transpose()?;
        linear(x.host()?, &w.host()?, bias, out.host_mut()?)
    }

    fn add(&self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        check::add(x, y)?;
        x.host_mut()?.iter_mut().zip(y.host()?).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        check::gather_rows(x, rows, out)?;
        gather_rows(x.host()?, x.cols(), rows, out.host_mut()?);
        Ok(())
    }

    fn best(&self, x: &Tensor, out: &mut Tensor) -> Result<()> {
        check::best(x, out)?;
        best(x.host()?, x.cols(), out.host_mut()?);
        Ok(())
    }

    fn norm_rope(
        &self,
        x: &mut Tensor,
        segments: &[Segment],
        spec: &RopeSpec,
        frequencies: &Tensor,
        norm: Option<(&Tensor, f32)>,
    ) -> Result<()> {
        check::norm_rope(x, segments, spec, frequencies, norm)?;
        let norm = norm.map(|(w, eps)| Ok::<_, files::Error>((w.host()?, eps))).transpose()?;
        norm_rope(x.host_mut()?, segments, spec, frequencies.host()?, norm);
        Ok(())
    }

    fn kv_append(&self, k: &Tensor, v: &Tensor, segments: &[Segment], cache: &mut KvCache) -> Result<()> {
        check::kv_append(k, v, segments, cache)?;
        kv_append(k.host()?, v.host()?, segments, cache)
    }

    fn attention(
        &self,
        q: &Tensor,
        segments: &[Segment],
        cache: &KvCache,
        spec: &AttentionSpec,
        out: &mut Tensor,
    ) -> Result<()> {
        check::attention(q, segments, cache, spec, out)?;
        attention(q.host()?, segments, cache, spec, out.host_mut()?)
    }

    fn short_conv(
        &self,
        x: &Tensor,
        weight: &Tensor,
        segments: &[Segment],
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        check::short_conv(x, weight, segments, state, out)?;
        short_conv(x.host()?, weight.host()?, weight.cols(), segments, state.host_mut()?, out.host_mut()?);
        Ok(())
    }

    fn delta_rule(
        &self,
        input: &DeltaInput<'_>,
        spec: &DeltaSpec,
        state: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        check::delta_rule(input, spec, state, out)?;
        delta_rule(input, spec, state.host_mut()?, out.host_mut()?)
    }

    fn gated_norm(&self, x: &mut Tensor, z: &Tensor, weight: &Tensor, eps: f32) -> Result<()> {
        check::gated_norm(x, z, weight)?;
        gated_norm(x.host_mut()?, z.host()?, weight.host()?, eps);
        Ok(())
    }

    fn mlp(&self, x: &Tensor, weights: &MlpWeights, out: &mut Tensor) -> Result<()> {
        check::mlp(x, weights, out)?;
        mlp(x.host()?, weights, out.host_mut()?)
    }

    fn route(&self, x: &Tensor, router: &Weight, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()> {
        check::route(x, router, spec, out)?;
        route(x.host()?, &router.host()?, spec, out)
    }

    fn read_routes(&self, routes: &RouteBuffers, rows: usize, spec: &RouteSpec) -> Result<Routes> {
        read_routes(self, routes, rows, spec)
    }

    fn expert_mlp(&self, x: &Tensor, experts: &[ExpertBatch<'_>], parts: &mut Tensor) -> Result<()> {
        check::expert_mlp(x, experts, parts)?;
        expert_mlp(x.host()?, experts, parts.host_mut()?)
    }

    fn expert_table(&self, experts: &[&MlpWeights]) -> Result<Option<ExpertTable>> {
        ExpertTable::new(experts.iter().copied().cloned().collect(), usize::MAX, Box::new(())).map(Some)
    }

    fn routed_mlp(
        &self,
        x: &Tensor,
        table: &ExpertTable,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        parts: &mut Tensor,
    ) -> Result<()> {
        check::routed_mlp(x, table, routes, spec, parts)?;
        routed_mlp(x.host()?, table.experts(), routes.ids.host()?, spec.top_k, parts.host_mut()?)
    }

    fn combine(
        &self,
        parts: &Tensor,
        routes: &RouteBuffers,
        spec: &RouteSpec,
        shared: Option<SharedOutput<'_>>,
        out: &mut Tensor,
    ) -> Result<()> {
        check::combine(parts, routes, spec, shared, out)?;
        combine(parts, routes, spec, shared, out)
    }

    fn begin_sum(&self, shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()> {
        check::begin_sum(shared, sum)?;
        begin_sum(shared, sum)
    }

    fn add_window(
        &self,
        parts: &Tensor,
        weights: &[f32],
        rows: &[WindowRow],
        sum: &mut Tensor,
    ) -> Result<()> {
        check::add_window(parts, weights, rows, sum)?;
        add_window(parts.host()?, parts.cols(), weights, rows, sum.host_mut()?);
        Ok(())
    }
}
