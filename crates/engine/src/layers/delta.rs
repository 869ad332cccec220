//! The gated delta net mixer: projections, short convolution, delta rule, gated norm.

use files::Result;
use kernels::Tensor;
use kernels::ops::{DeltaInput, DeltaSpec, Gate};

use crate::round::RowBlock;
use crate::scratch::Activation;
use crate::state::Recurrent;
use crate::step::{Linear, Norm, Step};

/// The weights of one gated delta net layer.
pub(crate) struct Delta {
    /// `[channels, hidden]`: queries, keys, values.
    pub(crate) qkv: Linear,
    /// `[value_heads * value_head_dim, hidden]`: the output gate.
    pub(crate) z: Linear,
    /// `[value_heads, hidden]`
    pub(crate) a: Linear,
    /// `[value_heads, hidden]`
    pub(crate) b: Linear,
    /// `[channels, kernel]`
    pub(crate) conv: Tensor,
    /// `[1, value_heads]`: `-exp(A_log)`
    pub(crate) decay: Tensor,
    /// `[1, value_heads]`
    pub(crate) dt_bias: Tensor,
    /// `[1, value_head_dim]`
    pub(crate) norm: Norm,
    /// `[hidden, value_heads * value_head_dim]`
    pub(crate) out: Linear,
    /// Heads and their sizes.
    pub(crate) spec: DeltaSpec,
}

impl Delta {
    /// See [`super::Mixer::run`].
    pub(crate) fn run(
        &self,
        s: &mut Step<'_>,
        layer: usize,
        block: &RowBlock,
        h: &Tensor,
    ) -> Result<Activation> {
        let linears = [&self.qkv, &self.a, &self.b, &self.z];
        let (mut convolved, [projected, a, b, z]) = s.linears_conv(layer, block, h, linears, &self.conv)?;
        let mut mixed = s.tensor(h.rows(), self.spec.value_heads * self.spec.value_head_dim)?;
        let gate = Gate { z: &z, weight: &self.norm.weight, eps: self.norm.eps };
        let rounds = &block.rounds;
        for (i, round) in rounds.iter().enumerate() {
            let Recurrent { conv, delta } = s.states.recurrent(layer)?;
            if i > 0 {
                s.backend.short_conv(&projected, &self.conv, &round.segments, conv, &mut convolved)?;
            }
            let (segments, qkv, decay, dt_bias) =
                (&round.segments[..], &*convolved, &self.decay, &self.dt_bias);
            let input = DeltaInput { segments, qkv, a: &a, b: &b, decay, dt_bias };
            match rounds.len() {
                1 => s.backend.gated_delta_rule(&input, &self.spec, delta, gate, &mut mixed)?,
                _ => s.backend.delta_rule(&input, &self.spec, delta, &mut mixed)?,
            }
            s.round_done(layer, round)?;
        }
        if rounds.len() > 1 {
            s.backend.gated_norm(&mut mixed, gate.z, gate.weight, gate.eps)?;
        }
        s.linear(&mixed, &self.out)
    }
}
