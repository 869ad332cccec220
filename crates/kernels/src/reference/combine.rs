//! The weighted sum of the experts' outputs, and the shared expert.

use files::Result;

use super::sigmoid;
use crate::buffer::Tensor;
use crate::ops::{RouteBuffers, RouteSpec, SharedOutput};

/// Sums in the order of the router's choices; see [`crate::Backend::combine`].
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
        out.fill(0.0);
        for c in r * spec.top_k..(r + 1) * spec.top_k {
            out.iter_mut().zip(&parts[c * cols..][..cols]).for_each(|(o, p)| *o += weights[c] * p);
        }
        if let Some(shared) = shared {
            let gate = sigmoid(shared.gate.host()?[r]);
            let values = &shared.output.host()?[r * cols..][..cols];
            out.iter_mut().zip(values).for_each(|(o, s)| *o += gate * s);
        }
    }
    Ok(())
}
