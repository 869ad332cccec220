//! Qwen3.5, mixture of experts (`qwen3_5_moe`) and dense (`qwen3_5`): three gated delta net layers to one gated
//! full attention layer, partial rotary embedding, a shared expert behind a sigmoid.
//!
//! Source of the names and formulas: the released configurations and Hugging Face transformers' `qwen3_5_moe`.

use files::meta::{DeltaMeta, Dialect};
use files::{Error, Meta, Result};
use kernels::ops::{DeltaSpec, RouteSpec};

use super::bind::Name;
use super::decoder::{Block, Decoder};
use super::{Binder, qwen3_moe};
use crate::layers::{Delta, FeedForward, Mixer, Moe, SharedExpert};
use crate::step::Sweep;

/// Binds all tensors.
pub(super) fn bind(b: &mut Binder<'_>, meta: &Meta, experts_per_token: Option<usize>) -> Result<Decoder> {
    let delta =
        meta.delta.as_ref().ok_or_else(|| Error::corrupt("the configuration has no linear attention"))?;
    let hidden = meta.hidden_size;
    let plus_one = norms_lack_one(b, delta);
    let rope = b.rope(meta)?;
    let mut layers = Vec::with_capacity(meta.layers);
    for l in 0..meta.layers {
        let full = delta.full_attention.get(l).copied().unwrap_or(false);
        layers.push(Block {
            mixer_norm: b.norm(l, ("input_layernorm", "attn_norm"), hidden, plus_one)?,
            mixer: match full {
                true => Mixer::Attention(qwen3_moe::attention(b, meta, l, &rope, plus_one)?),
                false => Mixer::Delta(delta_net(b, delta, l, hidden)?),
            },
            mlp_norm: b.norm(l, ("post_attention_layernorm", "post_attention_norm"), hidden, plus_one)?,
            mlp: feed_forward(b, meta, l, experts_per_token)?,
        });
    }
    Ok(Decoder {
        embedding: b.embedding(meta.vocab_size, hidden)?,
        layers,
        norm: b.final_norm(hidden, plus_one)?,
        head: b.head(meta)?,
    })
}

/// Whether norms are stored as `w - 1`. Hugging Face's are; MLX and GGUF converters add the one. MLX's also turn the
/// convolution from `[channels, 1, taps]` to `[channels, taps, 1]`, which shows who wrote the file when a program in
/// between has lost the mark.
fn norms_lack_one(b: &Binder<'_>, delta: &DeltaMeta) -> bool {
    if b.dialect() == Dialect::Gguf {
        return false;
    }
    let linear = delta.full_attention.iter().position(|full| !full);
    let shape = linear.and_then(|l| b.shape(l, CONV));
    match shape {
        Some(&[_, 1, taps]) if taps > 1 => true,
        Some(&[_, taps, 1]) if taps > 1 => false,
        _ => b.dialect() == Dialect::Hf,
    }
}

const CONV: Name<'static> = ("linear_attn.conv1d.weight", "ssm_conv1d.weight");

fn delta_net(b: &mut Binder<'_>, delta: &DeltaMeta, l: usize, hidden: usize) -> Result<Delta> {
    let spec = DeltaSpec {
        key_heads: delta.key_heads,
        value_heads: delta.value_heads,
        key_head_dim: delta.key_head_dim,
        value_head_dim: delta.value_head_dim,
        tiled: delta.tiled_value_heads,
    };
    let (heads, channels) = (spec.value_heads, spec.channels());
    let values = heads * spec.value_head_dim;
    // GGUF stores -exp(A_log) already.
    let is_gguf = b.dialect() == Dialect::Gguf;
    let decay = move |a: f32| if is_gguf { a } else { -a.exp() };
    Ok(Delta {
        qkv: b.linear(l, ("linear_attn.in_proj_qkv", "attn_qkv"), channels, hidden)?,
        z: b.linear(l, ("linear_attn.in_proj_z", "attn_gate"), values, hidden)?,
        a: b.linear(l, ("linear_attn.in_proj_a", "ssm_alpha"), heads, hidden)?,
        b: b.linear(l, ("linear_attn.in_proj_b", "ssm_beta"), heads, hidden)?,
        conv: b.vector(l, CONV, channels, delta.conv_kernel, |w| w)?,
        decay: b.vector(l, ("linear_attn.A_log", "ssm_a"), 1, heads, decay)?,
        dt_bias: b.vector(l, ("linear_attn.dt_bias", "ssm_dt.bias"), 1, heads, |w| w)?,
        norm: b.norm(l, ("linear_attn.norm", "ssm_norm"), spec.value_head_dim, false)?,
        out: b.linear(l, ("linear_attn.out_proj", "ssm_out"), hidden, values)?,
        spec,
    })
}

fn feed_forward(b: &mut Binder<'_>, meta: &Meta, l: usize, top_k: Option<usize>) -> Result<FeedForward> {
    let hidden = meta.hidden_size;
    let Some(moe) = meta.moe.as_ref().filter(|moe| moe.sparse_layers.get(l) == Some(&true)) else {
        return qwen3_moe::dense(b, meta, l);
    };
    let shared = match moe.shared_intermediate_size {
        None => None,
        Some(i) => {
            let names = [
                ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
                ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
                ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
            ];
            Some(SharedExpert {
                mlp: b.mlp(l, names, i, hidden)?,
                gate: b.weight(l, ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"), 1, hidden)?,
            })
        }
    };
    Ok(FeedForward::Moe(Box::new(Moe {
        router: b.weight(l, ("mlp.gate", "ffn_gate_inp"), moe.experts, hidden)?,
        spec: RouteSpec { top_k: top_k.unwrap_or(moe.top_k), normalise: true },
        expert: b.experts(l, moe.experts, moe.intermediate_size, hidden)?,
        shared,
        next: Sweep::default(),
        is_last: false,
    })))
}
