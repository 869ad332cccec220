//! The residual decoder that these architectures share: norm, mixer, norm, feed-forward, layer after layer.

use files::Result;
use kernels::ops::KvFormat;
use kernels::{Tensor, Weight};
use store::{ExpertId, LayerId};

use crate::bridge::ExpertShape;
use crate::layers::{FeedForward, Mixer};
use crate::lookahead::Guess;
use crate::scratch::Activation;
use crate::state::{KvShape, LayerShape, RecurrentShape};
use crate::step::{Linear, Norm, Step, Sweep};

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
    /// Runs the step's tokens through all layers: `[rows, hidden]` before the final norm.
    pub(crate) fn forward(&self, s: &mut Step<'_>) -> Result<Activation> {
        let mut x = s.embed(&self.embedding)?;
        let mut normed = None;
        for (l, layer) in self.layers.iter().enumerate() {
            let h = match normed.take() {
                Some(h) => h,
                None => s.rms_norm(&x, &layer.mixer_norm)?,
            };
            let mixed = layer.mixer.run(s, l, &h)?;
            s.read_ahead();
            drop(h); // its memory serves the other half of the layer
            let h = s.add_norm(&mut x, &mixed, &layer.mlp_norm)?;
            drop(mixed);
            let next = self.layers.get(l + 1).map(|next| &next.mixer_norm);
            let guess = |s: &mut Step<'_>, x: &Tensor| self.look_ahead(s, l + 1, x);
            normed = layer.mlp.run(s, l, &h, &mut x, next, &guess)?;
            drop(h);
            s.layer_done(l + 1)?;
        }
        Ok(x)
    }

    /// When the drive has read what a layer wants, it goes on with what the router of `next` will probably choose: that
    /// is asked about `x` as the layer found it.
    fn look_ahead(&self, s: &mut Step<'_>, next: usize, x: &Tensor) -> Result<()> {
        let Some(Block { mlp_norm, mlp: FeedForward::Moe(moe), .. }) = self.layers.get(next) else {
            return Ok(());
        };
        let guess = s.experts.as_ref().map_or(Guess::None, |experts| experts.guess);
        if guess == Guess::None {
            return Ok(());
        }
        let h = s.rms_norm(x, mlp_norm)?;
        moe.look_ahead(s, next, &h, guess)
    }

    /// The logits `[rows, vocab]` of some rows of what [`Self::forward`] returned.
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

    /// Bytes of the activations of a step of `rows` rows with logits for `logit_rows` of them: every tensor that a layer
    /// makes, counted as if none were freed before the layer's end. The memory of a mixer's tensors then stays while the
    /// experts work, and the next layer finds it.
    pub(crate) fn scratch_bytes(&self, rows: usize, logit_rows: usize) -> u64 {
        let hidden = self.embedding.cols();
        let widest = self.layers.iter().map(|l| mixer_width(&l.mixer) + feed_forward_width(&l.mlp, hidden));
        let layer = 4 * hidden + widest.max().unwrap_or(0);
        let head = head_width(hidden, self.head.weight.rows());
        activation_bytes([rows, layer], [logit_rows, head])
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

/// Values that the head makes for one row.
pub(crate) fn head_width(hidden: usize, vocab: usize) -> usize {
    2 * hidden + vocab
}

/// Bytes of `[rows, width]` values of a layer and `[rows, width]` of the head.
pub(crate) fn activation_bytes([rows, layer]: [usize; 2], [logit_rows, head]: [usize; 2]) -> u64 {
    // A tensor is rounded up to a page; a layer makes fewer than 16.
    (4 * (rows * layer + logit_rows * head) + 32 * 4096) as u64
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

fn feed_forward_width(mlp: &FeedForward, hidden: usize) -> usize {
    match mlp {
        FeedForward::Dense(_) => hidden,
        // parts, combined, shared output and gate, the router's answer
        FeedForward::Moe(moe) => (moe.spec.top_k + 2) * hidden + 2 * moe.spec.top_k + 1,
    }
}
