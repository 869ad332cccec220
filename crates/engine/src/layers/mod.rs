//! The reusable middle of the models: mixers and MLPs, each with its weights and one `run`.

mod attention;
mod delta;
mod mlp;
mod moe;
mod rope;

pub(crate) use attention::Attention;
pub(crate) use delta::Delta;
pub(crate) use mlp::Mlp;
pub(crate) use moe::{Moe, SharedExpert};
pub(crate) use rope::{Rope, frequencies};

use files::Result;
use kernels::Tensor;

use crate::scratch::Activation;
use crate::step::{Norm, Step};

/// What mixes tokens of a sequence.
pub(crate) enum Mixer {
    /// Softmax attention over a KV cache.
    Attention(Attention),
    /// Gated delta rule over a recurrent state.
    Delta(Delta),
}

impl Mixer {
    /// `[rows, hidden]` to `[rows, hidden]`; advances the sequences' state of layer `layer`.
    pub(crate) fn run(&self, s: &mut Step<'_>, layer: usize, h: &Tensor) -> Result<Activation> {
        match self {
            Mixer::Attention(attention) => attention.run(s, layer, h),
            Mixer::Delta(delta) => delta.run(s, layer, h),
        }
    }
}

/// What is done while a layer's experts are read, with the residual stream as the layer found it.
pub(crate) type Meanwhile<'a> = &'a dyn Fn(&mut Step<'_>, &Tensor) -> Result<()>;

/// What works on each token alone.
pub(crate) enum FeedForward {
    /// A resident gated MLP.
    Dense(Mlp),
    /// Routed experts from the store.
    Moe(Box<Moe>),
}

impl FeedForward {
    /// Adds its answer to `h`, `[rows, hidden]`, to the residual stream `x`; with the norm that comes next also `x`
    /// normed. Shows `x` to `meanwhile` when this layer's reads have been asked for.
    pub(crate) fn run(
        &self,
        s: &mut Step<'_>,
        layer: usize,
        h: &Tensor,
        x: &mut Tensor,
        next: Option<&Norm>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Option<Activation>> {
        let mlp = match self {
            FeedForward::Dense(mlp) => mlp,
            FeedForward::Moe(moe) => return moe.run(s, layer, h, x, next, meanwhile),
        };
        meanwhile(s, x)?;
        let y = mlp.run(s, h)?;
        match next {
            Some(norm) => s.add_norm(x, &y, norm).map(Some),
            None => s.add(x, &y).map(|()| None),
        }
    }
}
