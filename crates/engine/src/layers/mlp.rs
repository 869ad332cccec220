//! A resident gated MLP.

use files::Result;
use kernels::Tensor;
use kernels::ops::MlpWeights;

use crate::scratch::Activation;
use crate::step::Step;

/// `down(silu(gate(x)) * up(x))`
pub(crate) struct Mlp {
    /// gate, up `[intermediate, hidden]`, down `[hidden, intermediate]`
    pub(crate) weights: MlpWeights,
}

impl Mlp {
    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn run(&self, s: &Step<'_>, h: &Tensor) -> Result<Activation> {
        let mut out = s.tensor(h.rows(), h.cols())?;
        s.backend.mlp(h, &self.weights, &mut out)?;
        Ok(out)
    }
}
