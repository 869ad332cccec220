//! The residual decoder that these architectures share: norm, mixer, norm, feed-forward, layer after layer.

use files::Result;
use kernels::ops::KvFormat;
use kernels::{Tensor, Weight};
use store::{ExpertId, LayerId};

use crate::bridge::ExpertShape;
use crate::layers::{FeedForward, Mixer, Streams};
use crate::lookahead::Guess;
use crate::scratch::Activation;
use crate::state::{KvShape, LayerShape, RecurrentShape};
use crate::step::{Branch, Linear, Norm, PartialStep, Step, Sweep};
use crate::widths::Widths;

/// One layer.
pub(crate) struct Block {
    pub(crate) mixer_norm: Norm,
    pub(crate) mixer: Mixer,
    pub(crate) mlp_norm: Norm,
    pub(crate) mlp: FeedForward,
}

/// A whole model.
pub(crate) struct Decoder {
    /// `[vocab, hidden]`
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<Block>,
    pub(crate) norm: Norm,
    /// `[vocab, hidden]`
    pub(crate) head: Linear,
}

impl Decoder {
    /// Runs the step's tokens through all layers, or those that are left: `[rows, hidden]` of each block before the final norm.
    /// Where it breaks off between two layers, the step has what it needs to go on.
    pub(crate) fn forward(&self, s: &mut Step<'_>) -> Result<Vec<Activation>> {
        let blocks = s.blocks;
        let (layers_done, mut x) = match s.partial.take() {
            Some(PartialStep { layers_done, x }) => (layers_done, x),
            None => (0, blocks.iter().map(|block| s.embed(&self.embedding, block)).collect::<Result<_>>()?),
        };
        s.enter(layers_done);
        let mut branches: Vec<Option<Branch<'_>>> = blocks.iter().map(|_| None).collect();
        for (l, layer) in self.layers.iter().enumerate().skip(layers_done) {
            let mut begun = Vec::with_capacity(blocks.len());
            for ((block, x), branch) in blocks.iter().zip(&mut x).zip(&mut branches) {
                let h = s.norm(x, branch.take(), &layer.mixer_norm)?;
                let mixed = layer.mixer.run(s, l, block, &h)?;
                s.read_ahead();
                drop(h); // its memory serves the other half of the layer
                let h = s.norm(x, Some(Branch::Sum(mixed)), &layer.mlp_norm)?;
                begun.push(layer.mlp.begin(s, h, blocks.len() == 1)?);
                if begun.len() < blocks.len() {
                    s.within_layer(l)?; // a layer of many blocks is long
                }
            }
            let guess = |s: &mut Step<'_>| self.look_ahead(s, l + 1, &x);
            let streams = Streams { x: &x, norm: &layer.mlp_norm };
            let finished = layer.mlp.finish(s, l, &streams, begun, &guess)?;
            branches = finished.into_iter().map(Some).collect();
            if let Err(e) = s.layers_done(l + 1) {
                add(s, &mut x, branches)?;
                s.partial = Some(PartialStep { layers_done: l + 1, x });
                return Err(e);
            }
        }
        add(s, &mut x, branches)?;
        Ok(x)
    }

    /// When the drive has read what a layer wants, it goes on with what the router of `next` will probably choose: that
    /// is asked about `x` as the layer found it.
    fn look_ahead(&self, s: &mut Step<'_>, next: usize, x: &[Activation]) -> Result<()> {
        let Some(Block { mlp_norm, mlp: FeedForward::Moe(moe), .. }) = self.layers.get(next) else {
            return Ok(());
        };
        let guess = s.experts.as_ref().map_or(Guess::None, |experts| experts.guess);
        if guess == Guess::None {
            return Ok(());
        }
        x.iter().try_for_each(|x| {
            let h = s.rms_norm(x, mlp_norm)?;
            moe.look_ahead(s, next, &h, guess)
        })
    }

    /// The logits `[rows, vocab]` of some rows of a block of what [`Self::forward`] returned.
    pub(crate) fn logits(&self, s: &Step<'_>, x: &Activation, rows: &[u32]) -> Result<Activation> {
        let mut chosen = s.tensor(rows.len(), x.cols())?;
        s.backend.gather_rows(x, rows, &mut chosen)?;
        let normed = s.rms_norm(&chosen, &self.norm)?;
        s.linear(&normed, &self.head)
    }

    /// The token with the greatest of each row of logits, as [`kernels::Backend::best`] says it.
    pub(crate) fn best(&self, s: &Step<'_>, logits: &Tensor) -> Result<Activation> {
        let mut out = s.tensor(logits.rows(), 1)?;
        s.backend.best(logits, &mut out)?;
        Ok(out)
    }

    /// Tells every mixture-of-experts layer which one comes after it, the first after the last.
    pub(crate) fn link(&mut self) {
        let moe_layers: Vec<(usize, usize)> = self
            .layers
            .iter()
            .enumerate()
            .filter_map(|(l, block)| {
                let FeedForward::Moe(moe) = &block.mlp else { return None };
                Some((l, moe.router.rows()))
            })
            .collect();
        for (i, &(l, _)) in moe_layers.iter().enumerate() {
            let (next, experts) = moe_layers[(i + 1) % moe_layers.len()];
            if let FeedForward::Moe(moe) = &mut self.layers[l].mlp {
                moe.next = Sweep {
                    layer: LayerId(next as u16),
                    experts: (0..experts).map(|e| ExpertId(e as u16)).collect(),
                };
                moe.is_last = i + 1 == moe_layers.len();
            }
        }
    }

    /// What each layer remembers, with keys and values in `format`.
    ///
    /// # Errors
    /// `Unsupported` when a layer's heads cannot be stored like this.
    pub(crate) fn state_shapes(&self, format: KvFormat) -> Result<Vec<LayerShape>> {
        let shape = |block: &Block| match &block.mixer {
            Mixer::Attention(a) => {
                format.check(a.spec.head_dim)?;
                let (kv_heads, head_dim) = (a.kv_heads, a.spec.head_dim);
                Ok(LayerShape::Kv(KvShape { kv_heads, head_dim, format }))
            }
            Mixer::Delta(d) => Ok(LayerShape::Recurrent(RecurrentShape {
                conv_rows: d.conv.cols() - 1,
                channels: d.spec.channels(),
                value_heads: d.spec.value_heads,
                head_state: d.spec.key_head_dim * d.spec.value_head_dim,
            })),
        };
        self.layers.iter().map(shape).collect()
    }

    /// What its layers make for a row.
    pub(crate) fn widths(&self) -> Widths {
        let mixer = self.layers.iter().map(|layer| mixer_width(&layer.mixer)).max().unwrap_or(0);
        let (hidden, vocab) = (self.embedding.cols(), self.head.weight.rows());
        Widths { hidden, mixer, top_k: self.top_k(), vocab }
    }

    /// The layers with routed experts, how many, and their shape.
    pub(crate) fn expert_layers(&self) -> impl Iterator<Item = (LayerId, usize, &ExpertShape)> {
        self.layers.iter().enumerate().filter_map(|(layer, block)| match &block.mlp {
            FeedForward::Moe(moe) => Some((LayerId(layer as u16), moe.router.rows(), &moe.expert)),
            FeedForward::Dense(_) => None,
        })
    }

    /// Routed experts of each layer; 0 for a layer without.
    pub(crate) fn experts(&self) -> Vec<u32> {
        let experts =
            |l: &Block| if let FeedForward::Moe(moe) = &l.mlp { moe.router.rows() as u32 } else { 0 };
        self.layers.iter().map(experts).collect()
    }

    /// Most experts that one token uses; 0 for a dense model.
    pub(crate) fn top_k(&self) -> usize {
        let top_k = |l: &Block| if let FeedForward::Moe(moe) = &l.mlp { moe.spec.top_k } else { 0 };
        self.layers.iter().map(top_k).max().unwrap_or(0)
    }
}

/// What the last layer returned is added to the residual streams.
fn add(s: &Step<'_>, x: &mut [Activation], branches: Vec<Option<Branch<'_>>>) -> Result<()> {
    x.iter_mut().zip(branches).try_for_each(|(x, branch)| s.add(x, branch))
}

fn mixer_width(mixer: &Mixer) -> usize {
    match mixer {
        Mixer::Attention(a) => {
            let outputs = [&a.q, &a.k, &a.v, &a.out].iter().map(|l| l.weight.rows()).sum::<usize>();
            outputs + a.out.weight.cols()
        }
        Mixer::Delta(d) => {
            let outputs = [&d.qkv, &d.a, &d.b, &d.z, &d.out].iter().map(|l| l.weight.rows()).sum::<usize>();
            outputs + d.spec.channels() + d.out.weight.cols()
        }
    }
}
