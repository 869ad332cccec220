//! The weighted sum of the experts' outputs, and the shared expert.

use files::Result;

use super::sigmoid;
use crate::buffer::Tensor;
use crate::ops::{RouteBuffers, RouteSpec, SharedOutput, WindowRow};

/// Sums in the order of the experts' ids; see [`crate::Backend::combine`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when a tensor is not in host memory.
pub fn combine(
    parts: &Tensor,
    routes: &RouteBuffers,
    spec: &RouteSpec,
    shared: Option<SharedOutput<'_>>,
    out: &mut Tensor,
) -> Result<()> {
    let cols = out.cols();
    let (parts, weights) = (parts.host()?, routes.weights.host()?);
    for (r, out) in out.host_mut()?.chunks_exact_mut(cols).enumerate() {
        begin(shared, r, out)?;
        add(parts, weights, r * spec.top_k..(r + 1) * spec.top_k, out);
    }
    Ok(())
}

fn add(parts: &[f32], weights: &[f32], outputs: std::ops::Range<usize>, sum: &mut [f32]) {
    let cols = sum.len();
    for p in outputs {
        sum.iter_mut().zip(&parts[p * cols..][..cols]).for_each(|(s, v)| *s += weights[p] * v);
    }
}

fn begin(shared: Option<SharedOutput<'_>>, r: usize, out: &mut [f32]) -> Result<()> {
    out.fill(0.0);
    if let Some(shared) = shared {
        let gate = sigmoid(shared.gate.host()?[r]);
        let values = &shared.output.host()?[r * out.len()..][..out.len()];
        out.iter_mut().zip(values).for_each(|(o, s)| *o = gate * s);
    }
    Ok(())
}

/// See [`crate::Backend::begin_sum`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when a tensor is not in host memory.
pub fn begin_sum(shared: Option<SharedOutput<'_>>, sum: &mut Tensor) -> Result<()> {
    let cols = sum.cols();
    sum.host_mut()?.chunks_exact_mut(cols).enumerate().try_for_each(|(r, out)| begin(shared, r, out))
}

/// See [`crate::Backend::add_window`].
pub fn add_window(parts: &[f32], cols: usize, weights: &[f32], rows: &[WindowRow], sum: &mut [f32]) {
    for &WindowRow { row, first, count } in rows {
        let outputs = first as usize..(first + count) as usize;
        add(parts, weights, outputs, &mut sum[row as usize * cols..][..cols]);
    }
}
