//! The reusable middle of the models: mixers and MLPs, each with its weights and one `run`.

mod attention;
mod delta;
mod mlp;
mod moe;
mod rope;
mod windows;

pub(crate) use attention::Attention;
pub(crate) use delta::Delta;
pub(crate) use mlp::Mlp;
use moe::Waiting;
pub(crate) use moe::{Moe, SharedExpert};
pub(crate) use rope::{Rope, frequencies};

use files::Result;
use kernels::Tensor;

use crate::round::RowBlock;
use crate::scratch::Activation;
use crate::step::{Branch, Norm, Step};

/// What mixes tokens of a sequence.
pub(crate) enum Mixer {
    /// Softmax attention over a KV cache.
    Attention(Attention),
    /// Gated delta rule over a recurrent state.
    Delta(Delta),
}

impl Mixer {
    /// `[rows, hidden]` of a block to `[rows, hidden]`; advances the sequences' state of layer `layer`.
    pub(crate) fn run(
        &self,
        s: &mut Step<'_>,
        layer: usize,
        block: &RowBlock,
        h: &Tensor,
    ) -> Result<Activation> {
        match self {
            Mixer::Attention(attention) => attention.run(s, layer, block, h),
            Mixer::Delta(delta) => delta.run(s, layer, block, h),
        }
    }
}

/// What is done while a layer's experts are read.
pub(crate) type Meanwhile<'a> = &'a dyn Fn(&mut Step<'_>) -> Result<()>;

/// The residual streams of a step's blocks, `[rows, hidden]` each, and the norm that makes of them what a feed-forward takes.
pub(crate) struct Streams<'a> {
    pub(crate) x: &'a [Activation],
    pub(crate) norm: &'a Norm,
}

/// What works on each token alone.
pub(crate) enum FeedForward {
    /// A resident gated MLP.
    Dense(Mlp),
    /// Routed experts from the store.
    Moe(Box<Moe>),
}

/// Rows of a block that wait for their experts, or need none.
pub(crate) enum Begun<'a> {
    /// What the layer adds to them.
    Done(Branch<'a>),
    /// Of a block that is the whole step: normed rows, `[rows, hidden]`.
    Alone(Activation),
    /// Of one of several blocks.
    Waiting(Waiting),
}

impl FeedForward {
    /// Does for `h`, a block's rows normed, `[rows, hidden]`, what needs no experts from the drive. `alone` says that no other
    /// block follows.
    pub(crate) fn begin(&self, s: &Step<'_>, h: Activation, alone: bool) -> Result<Begun<'_>> {
        match self {
            FeedForward::Dense(mlp) => Ok(Begun::Done(Branch::Sum(mlp.run(s, &h)?))),
            FeedForward::Moe(_) if alone => Ok(Begun::Alone(h)),
            FeedForward::Moe(moe) => moe.begin(s, &h).map(Begun::Waiting),
        }
    }

    /// What layer `layer` adds to each block of `x`. `meanwhile` is called when its reads have been asked for.
    pub(crate) fn finish<'a>(
        &'a self,
        s: &mut Step<'_>,
        layer: usize,
        x: &Streams<'_>,
        begun: Vec<Begun<'a>>,
        meanwhile: Meanwhile<'_>,
    ) -> Result<Vec<Branch<'a>>> {
        match self {
            FeedForward::Dense(_) => meanwhile(s)?,
            FeedForward::Moe(moe) => return moe.finish(s, layer, x, begun, meanwhile),
        }
        let done = |block| if let Begun::Done(branch) = block { Some(branch) } else { None };
        Ok(begun.into_iter().filter_map(done).collect())
    }
}
