//! Qwen3, mixture of experts (`qwen3_moe`) and dense (`qwen3`): attention with normed queries and keys.
//!
//! Source of the names and formulas: the released configurations and Hugging Face transformers' `qwen3_moe`.

use std::sync::Arc;

use files::{Error, Meta, Result};
use kernels::ops::{AttentionSpec, RouteSpec};

use super::Binder;
use super::decoder::{Block, Decoder};
use crate::layers::{Attention, FeedForward, Mixer, Moe, Rope};
use crate::step::Sweep;

/// Binds all tensors.
pub(super) fn bind(b: &mut Binder<'_>, meta: &Meta, experts_per_token: Option<usize>) -> Result<Decoder> {
    let hidden = meta.hidden_size;
    let rope = b.rope(meta)?;
    let mut layers = Vec::with_capacity(meta.layers);
    for l in 0..meta.layers {
        layers.push(Block {
            mixer_norm: b.norm(l, ("input_layernorm", "attn_norm"), hidden, false)?,
            mixer: Mixer::Attention(attention(b, meta, l, &rope, false)?),
            mlp_norm: b.norm(l, ("post_attention_layernorm", "ffn_norm"), hidden, false)?,
            mlp: feed_forward(b, meta, l, experts_per_token)?,
        });
    }
    Ok(Decoder {
        embedding: b.embedding(meta.vocab_size, hidden)?,
        layers,
        norm: b.final_norm(hidden, false)?,
        head: b.head(meta)?,
    })
}

/// Attention of the Llama line; queries and keys are normed, and the output gated, where the architecture says so.
pub(super) fn attention(
    b: &mut Binder<'_>,
    meta: &Meta,
    l: usize,
    rope: &Arc<Rope>,
    plus_one: bool,
) -> Result<Attention> {
    let (hidden, dim, gated) = (meta.hidden_size, meta.head_dim, meta.attn_output_gate);
    let (heads, kv, bias) = (meta.heads, meta.kv_heads, meta.attention_bias);
    let mut norm = |name| meta.qk_norm.then(|| b.norm(l, name, dim, plus_one)).transpose();
    let q_norm = norm(("self_attn.q_norm", "attn_q_norm"))?;
    let k_norm = norm(("self_attn.k_norm", "attn_k_norm"))?;
    Ok(Attention {
        q: b.biased(l, ("self_attn.q_proj", "attn_q"), heads * dim * (1 + usize::from(gated)), hidden, bias)?,
        k: b.biased(l, ("self_attn.k_proj", "attn_k"), kv * dim, hidden, bias)?,
        v: b.biased(l, ("self_attn.v_proj", "attn_v"), kv * dim, hidden, bias)?,
        out: b.biased(l, ("self_attn.o_proj", "attn_output"), hidden, heads * dim, false)?,
        q_norm,
        k_norm,
        kv_heads: kv,
        spec: AttentionSpec { heads, head_dim: dim, gated, scale: 1.0 / (dim as f32).sqrt() },
        rope: rope.clone(),
    })
}

fn feed_forward(b: &mut Binder<'_>, meta: &Meta, l: usize, top_k: Option<usize>) -> Result<FeedForward> {
    let Some(moe) = meta.moe.as_ref().filter(|moe| moe.sparse_layers.get(l) == Some(&true)) else {
        return dense(b, meta, l);
    };
    Ok(FeedForward::Moe(Box::new(Moe {
        router: b.weight(l, ("mlp.gate", "ffn_gate_inp"), moe.experts, meta.hidden_size)?,
        spec: RouteSpec { top_k: top_k.unwrap_or(moe.top_k), normalise: moe.normalise_top_k },
        expert: b.experts(l, moe.experts, moe.intermediate_size, meta.hidden_size)?,
        shared: None,
        next: Sweep::default(),
        is_last: false,
    })))
}

/// A resident MLP.
pub(super) fn dense(b: &mut Binder<'_>, meta: &Meta, l: usize) -> Result<FeedForward> {
    let i = meta.intermediate_size.ok_or_else(|| Error::corrupt("the configuration has no MLP size"))?;
    let names = [("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")];
    Ok(FeedForward::Dense(b.mlp(l, names, i, meta.hidden_size)?))
}
