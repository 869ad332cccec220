//! The model architectures: which tensors they have under which names, and how a step runs through them.
//! One architecture, one file.

mod bind;
mod decoder;
mod llama;
mod qwen3_5_moe;
mod qwen3_moe;
mod roles;

use std::sync::Arc;

use files::{Error, Meta, Result, TensorIndex};
use kernels::Backend;
use store::ExpertLayout;

pub(crate) use bind::{Binder, LeftOut};
pub(crate) use decoder::{Block, Decoder};

use crate::bridge::Arena;

/// A model bound to its tensors: weights that [`Arena::load`] has yet to fill, and where the experts are.
pub(crate) struct Bound {
    /// The layers.
    pub(crate) decoder: Decoder,
    /// Where the experts are, `[layer][expert]`; empty for dense layers.
    pub(crate) experts: Vec<Vec<ExpertLayout>>,
    /// The resident weights to load.
    pub(crate) arena: Arena,
    /// What else is in the files.
    pub(crate) left_out: LeftOut,
}

/// The architectures that `bind` knows.
pub const ARCHITECTURES: [&str; 6] = ["qwen3_5_moe", "qwen3_5", "qwen3_moe", "qwen3", "qwen2", "llama"];

/// Refuses what `bind` does not know, before anything else is said about the model.
///
/// # Errors
/// `Unsupported`, naming the architecture and those that are known.
pub(crate) fn check_arch(meta: &Meta) -> Result<()> {
    // A file that names none has an error of its own.
    if meta.arch.is_empty() || ARCHITECTURES.contains(&meta.arch.as_str()) {
        return Ok(());
    }
    let (other, known) = (&meta.arch, ARCHITECTURES.join(", "));
    Err(Error::unsupported(format!("architecture {other} is not supported; these are: {known}")))
}

/// Binds the tensors of `index` by the names and shapes that the architecture of `meta` has.
///
/// # Errors
/// `Unsupported` for another architecture; `NotFound` or `Corrupt` naming the first tensor that is missing, has
/// another shape, or is left over.
pub(crate) fn bind(
    index: &TensorIndex,
    meta: &Meta,
    backend: &Arc<dyn Backend>,
    experts_per_token: Option<usize>,
) -> Result<Bound> {
    check_arch(meta)?;
    let mut binder = Binder::new(index, meta, backend.clone())?;
    let mut decoder = match meta.arch.as_str() {
        "qwen3_5_moe" | "qwen3_5" => qwen3_5_moe::bind(&mut binder, meta, experts_per_token)?,
        "qwen3_moe" | "qwen3" => qwen3_moe::bind(&mut binder, meta, experts_per_token)?,
        _ => llama::bind(&mut binder, meta)?,
    };
    decoder.link();
    let (experts, arena, left_out) = binder.finish()?;
    Ok(Bound { decoder, experts, arena, left_out })
}
