//! Softmax attention with grouped queries, optional q/k norm, partial rotary embedding and output gate.

use files::Result;
use kernels::Tensor;
use kernels::ops::{AttentionSpec, Heads, RopeSpec, Turn};

use super::Rope;
use crate::round::RowBlock;
use crate::scratch::Activation;
use crate::step::{Linear, Norm, Step};

/// The weights of one attention layer.
pub(crate) struct Attention {
    /// `[heads * head_dim * (1 + gated), hidden]`; with a gate, each head's query is followed by its gate.
    pub(crate) q: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub(crate) k: Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub(crate) v: Linear,
    /// `[hidden, heads * head_dim]`
    pub(crate) out: Linear,
    /// `[1, head_dim]`
    pub(crate) q_norm: Option<Norm>,
    /// `[1, head_dim]`
    pub(crate) k_norm: Option<Norm>,
    /// Heads of the keys and values.
    pub(crate) kv_heads: usize,
    /// Heads, gate, scale.
    pub(crate) spec: AttentionSpec,
    /// Shared by all layers.
    pub(crate) rope: std::sync::Arc<Rope>,
}

impl Attention {
    /// See [`super::Mixer::run`].
    pub(crate) fn run(
        &self,
        s: &mut Step<'_>,
        layer: usize,
        block: &RowBlock,
        h: &Tensor,
    ) -> Result<Activation> {
        let dim = self.spec.head_dim;
        let [mut q, mut k, v] = s.linears(h, [&self.q, &self.k, &self.v])?;
        let q_rope = self.rope_spec(self.spec.heads, dim * (1 + usize::from(self.spec.gated)));
        let k_rope = self.rope_spec(self.kv_heads, dim);
        let (q_norm, k_norm) = (norm_argument(&self.q_norm), norm_argument(&self.k_norm));
        let mut mixed = s.tensor(h.rows(), self.spec.heads * dim)?;
        let turns = [Turn { spec: &q_rope, norm: q_norm }, Turn { spec: &k_rope, norm: k_norm }];
        let heads = Heads { q: &mut q, k: &mut k, v: &v };
        let cache = s.states.kv(layer)?;
        s.backend.norm_rope_append(heads, &block.segments, turns, &self.rope.frequencies, cache)?;
        s.backend.attention(&q, &block.segments, cache, &self.spec, &mut mixed)?;
        s.linear(&mixed, &self.out)
    }

    fn rope_spec(&self, heads: usize, head_stride: usize) -> RopeSpec {
        RopeSpec {
            heads,
            head_dim: self.spec.head_dim,
            head_stride,
            rotary_dim: self.rope.rotary_dim,
            interleaved: self.rope.interleaved,
            amplitude: self.rope.amplitude,
        }
    }
}

fn norm_argument(norm: &Option<Norm>) -> Option<(&Tensor, f32)> {
    norm.as_ref().map(|n| (&n.weight, n.eps))
}
