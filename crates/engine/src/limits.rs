//! What may be asked for when a model is opened, and what is taken otherwise: the same for a model and for a forecast.

use files::{Error, Result};
use kernels::ops::{KvFormat, Precision};

/// Context where none is asked for, in tokens; the model's own if that is shorter.
const DEFAULT_CONTEXT: usize = 8192;

/// Logits are made for at most this many rows at a time.
pub(crate) const LOGIT_ROWS: usize = 32;

/// Rows of a step: a prompt chunk of `chunk`, and a token of each other of `sequences`.
pub(crate) fn step_rows(chunk: usize, sequences: usize) -> usize {
    chunk + sequences - 1
}

/// A prompt of at most so many tokens is computed between the layers of a long one, where all experts are in memory ...
const SHORT_PROMPT: usize = 256;
/// ... and where they are read: answers wait while this is computed, and of more rows the experts are nearly all.
const SHORT_PROMPT_STREAMED: usize = 32;

/// Rows of a step between the layers of a chunk of `chunk` rows: a token of each of `sequences`, or a short prompt.
pub(crate) fn between_rows(chunk: usize, sequences: usize, streams: bool) -> usize {
    let short = if streams { SHORT_PROMPT_STREAMED } else { SHORT_PROMPT };
    if sequences > 1 { short.min(chunk / 8).max(sequences) } else { 0 }
}

/// Rows of logits that have their place at the same time in steps of up to `chunk` rows of one of `sequences`: those of
/// a token of each are still read while those of the next have theirs.
pub(crate) fn logit_places(chunk: usize, sequences: usize) -> usize {
    LOGIT_ROWS.min(step_rows(chunk, sequences)).max(2 * sequences)
}

/// Rows of a prompt chunk where memory allows and experts are in memory.
pub(crate) const CHUNK_TOKENS: usize = 2048;
/// The same where experts are read: each is read once a chunk, so more rows are fewer reads.
const SWEEP_TOKENS: usize = 32_768;
/// Rows of a chunk that go through norms and mixers together where experts are read. In shorter chunks the outputs of all their
/// experts have their place at the same time.
const BLOCK_TOKENS: usize = 512;
/// A chunk is made smaller down to this while its activations take more than an eighth of the budget ...
pub(crate) const CHUNK_TOKENS_MODEST: usize = 128;
/// ... and down to this while the plan does not fit at all.
const CHUNK_TOKENS_MIN: usize = 16;

/// Chunks of a prompt to try, the largest first, in a context of so many tokens.
pub(crate) fn chunks(context: usize, asked: Option<usize>, streams: bool) -> impl Iterator<Item = usize> {
    let most = if streams { SWEEP_TOKENS } else { CHUNK_TOKENS };
    let most = asked.unwrap_or(most).clamp(1, context);
    let least = asked.unwrap_or(CHUNK_TOKENS_MIN).clamp(1, context);
    let next = move |&rows: &usize| {
        let less = if rows > CHUNK_TOKENS { (rows / 1024 * 768).max(CHUNK_TOKENS) } else { rows / 2 };
        (rows > least).then(|| less.max(least))
    };
    std::iter::successors(Some(most), next)
}

/// Rows of the chunks that a prompt of `tokens` is computed in.
pub(crate) fn cut(tokens: usize, chunk: usize) -> impl Iterator<Item = usize> {
    (0..tokens).step_by(chunk.max(1)).map(move |first| chunk.min(tokens - first))
}

/// Rows of a block.
pub(crate) fn block_rows(asked: Option<usize>, streams: bool) -> usize {
    asked.unwrap_or(if streams { BLOCK_TOKENS } else { CHUNK_TOKENS }).max(1)
}

/// Experts that a token uses, `own` where nobody asks for others, of `experts` in a layer of the model `name`.
///
/// # Errors
/// `InvalidRequest` for none, or more than there are.
pub(crate) fn top_k(name: &str, experts: usize, own: usize, asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(k) if experts == 0 => {
            Err(Error::invalid(format!("{name} has no routed experts to choose {k} of")))
        }
        Some(k) if k == 0 || k > experts => {
            Err(Error::invalid(format!("{k} experts per token: the model has {experts} a layer")))
        }
        asked => Ok(asked.unwrap_or(own)),
    }
}

/// How keys and values are stored.
///
/// # Errors
/// `InvalidRequest` for rounding where results shall be exact.
pub(crate) fn kv_format(precision: Precision, asked: Option<KvFormat>) -> Result<KvFormat> {
    match (precision, asked) {
        (Precision::Exact, None | Some(KvFormat::F32)) => Ok(KvFormat::F32),
        (Precision::Exact, Some(_)) => Err(Error::invalid("exact results need keys and values in f32")),
        (Precision::Fast, asked) => Ok(asked.unwrap_or(KvFormat::F16)),
    }
}

/// Positions of a sequence, where the model allows `limit`.
///
/// # Errors
/// `InvalidRequest` for none, or more than that.
pub(crate) fn context(limit: usize, asked: Option<usize>) -> Result<usize> {
    match asked {
        Some(0) => Err(Error::invalid("a context of 0 tokens holds nothing")),
        Some(n) if n > limit => {
            Err(Error::invalid(format!("a context of {n} tokens exceeds the model's {limit}")))
        }
        asked => Ok(asked.unwrap_or(limit.min(DEFAULT_CONTEXT))),
    }
}

/// Pages of several sequences take this part of the budget at most, as long as one has its whole context.
pub(crate) const PAGES_SHARE: u64 = 4;

/// The same where expert slots have what pages do not need.
pub(crate) const TRADED_PAGES_SHARE: u64 = 2;

/// Most that is kept of what ended sequences have computed, where nobody said how much.
const KEPT_BYTES: u64 = 1 << 30;

/// How much of `budget_bytes` is kept for prompts that begin as others did, the best first; less where the plan does not fit
/// else. `None` keeps nothing.
pub(crate) fn kept_bytes(budget_bytes: u64, asked: Option<u64>) -> Vec<Option<u64>> {
    match asked {
        Some(0) => vec![None],
        Some(bytes) => vec![Some(bytes)],
        None => {
            let most = KEPT_BYTES.min(budget_bytes / 4);
            let some = [most, most / 2, most / 4, most / 8, 0].map(Some);
            some.into_iter().chain([None]).collect()
        }
    }
}
