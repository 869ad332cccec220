//! The router: logits, softmax, the largest k.

use files::{Error, Result};

use super::linear::dot;
use crate::Backend;
use crate::buffer::HostWeight;
use crate::ops::{RouteBuffers, RouteSpec, Routes};

/// Chooses experts for each row of `x`; see [`crate::Backend::route`].
///
/// # Errors
/// As [`files::quant::decode`].
pub fn route(x: &[f32], router: &HostWeight<'_>, spec: &RouteSpec, out: &mut RouteBuffers) -> Result<()> {
    let (experts, k) = (router.rows, spec.top_k);
    let mut row = vec![0.0; router.cols];
    let mut logits = vec![0.0; x.len() / router.cols * experts];
    for e in 0..experts {
        router.decode_row(e, &mut row)?;
        for (r, x) in x.chunks_exact(router.cols).enumerate() {
            logits[r * experts + e] = dot(x, &row);
        }
    }
    let ids = out.ids.host_mut::<u32>()?;
    let weights = out.weights.host_mut()?;
    for (r, logits) in logits.chunks_exact(experts).enumerate() {
        choose(logits, spec, &mut ids[r * k..][..k], &mut weights[r * k..][..k]);
    }
    Ok(())
}

/// The `top_k` largest of a softmax over `logits`, the lower id on a tie, by ascending id. What they are divided by is summed
/// by falling value.
pub(crate) fn choose(logits: &[f32], spec: &RouteSpec, ids: &mut [u32], weights: &mut [f32]) {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    // A NaN, wherever it sorts, makes all weights NaN.
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| if l > max || l.is_nan() { l } else { max });
    let mut sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
    if spec.normalise {
        sum = order[..ids.len()].iter().map(|&e| (logits[e as usize] - max).exp()).sum();
    }
    order.truncate(ids.len());
    order.sort_unstable();
    for ((id, weight), &e) in ids.iter_mut().zip(weights).zip(&order) {
        *id = e;
        *weight = (logits[e as usize] - max).exp() / sum;
    }
}

/// Reads the answer back through `backend` and refuses what is not finite.
///
/// # Errors
/// [`files::ErrorKind::Corrupt`] when a weight is not finite.
pub fn read_routes(
    backend: &dyn Backend,
    routes: &RouteBuffers,
    rows: usize,
    spec: &RouteSpec,
) -> Result<Routes> {
    let mut ids = vec![0u32; rows * spec.top_k];
    let mut weights = vec![0f32; rows * spec.top_k];
    backend.read(&routes.ids, 0, bytemuck::cast_slice_mut(&mut ids))?;
    backend.read(routes.weights.block(), 0, bytemuck::cast_slice_mut(&mut weights))?;
    finite_routes(spec.top_k, ids, weights)
}

/// The answer, unless a weight is not finite.
///
/// # Errors
/// [`files::ErrorKind::Corrupt`] when a weight is not finite.
pub(crate) fn finite_routes(top_k: usize, ids: Vec<u32>, weights: Vec<f32>) -> Result<Routes> {
    if let Some(i) = weights.iter().position(|w| !w.is_finite()) {
        return Err(Error::corrupt(format!("the router's weights for row {} are not finite", i / top_k)));
    }
    Ok(Routes { top_k, ids, weights })
}
