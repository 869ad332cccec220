//! Llama (`llama`) and Qwen2 (`qwen2`), dense: attention without norms, with biases on q, k and v in Qwen2.
//! GGUF files of `llama` hold queries and keys permuted for adjacent rotary pairs; [`files::meta`] says so.
//!
//! Source of the names and formulas: the released configurations and Hugging Face transformers' `llama`.

use files::{Meta, Result};

use super::decoder::{Block, Decoder};
use super::{Binder, qwen3_moe};
use crate::layers::Mixer;

/// Binds all tensors.
pub(super) fn bind(b: &mut Binder<'_>, meta: &Meta) -> Result<Decoder> {
    let hidden = meta.hidden_size;
    let rope = b.rope(meta)?;
    let mut layers = Vec::with_capacity(meta.layers);
    for l in 0..meta.layers {
        layers.push(Block {
            mixer_norm: b.norm(l, ("input_layernorm", "attn_norm"), hidden, false)?,
            mixer: Mixer::Attention(qwen3_moe::attention(b, meta, l, &rope, false)?),
            mlp_norm: b.norm(l, ("post_attention_layernorm", "ffn_norm"), hidden, false)?,
            mlp: qwen3_moe::dense(b, meta, l)?,
        });
    }
    Ok(Decoder {
        embedding: b.embedding(meta.vocab_size, hidden)?,
        layers,
        norm: b.final_norm(hidden, false)?,
        head: b.head(meta)?,
    })
}
