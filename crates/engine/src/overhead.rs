//! What a process needs beside weights, state, activations and slots: the part of the plan that is estimated.
//!
//! The figures were measured as peaks of the resident set (`VmHWM`) on x86-64 Linux with glibc; the test `memory`
//! holds every plan to them.

use files::{Meta, TokenizerSource};
use kernels::cpu::Cpu;

use crate::answers::Answers;
use crate::text::Encoded;

/// Code, stacks, tables that do not grow, and what the allocator keeps: 11 MiB measured in the test program, 13 in
/// the command line, which is also given room for the pages of the bundled model that it unpacks.
const BASE_BYTES: u64 = 32 << 20;

/// What ops hold beside their arguments, or the buffers of loading, which come before any op.
const WORKING_BYTES: u64 = max(Cpu::SCRATCH_BYTES_MAX, store::resident::LOAD_BYTES);

/// A worker's stack, its share of the allocator's arenas, and what it holds in attention.
const THREAD_BYTES: u64 = 1 << 20;

/// The name, shape and ranges of a tensor while it is bound: 600 measured with 18,432 of them.
const TENSOR_BYTES: u64 = 1 << 10;

/// Ranges, slot tables and eviction counts of an expert.
const EXPERT_BYTES: u64 = 512;

/// Bytes for each one of `tokenizer.json`: 26 measured while one of 5.1 MiB (151,936 tokens) loads, 18 after.
const JSON_FACTOR: u64 = 28;

/// Bytes of `tokenizer.json` for a token: 67 in the bundled model's.
const JSON_TOKEN_BYTES: u64 = 70;

/// Bytes for each one of the tokens and merges of a GGUF vocabulary, counted with [`STRING_BYTES`] more each:
/// 10.8 measured with 151,936 tokens, the file's own copy included.
const GGUF_FACTOR: u64 = 12;
const STRING_BYTES: u64 = 16;

/// Copies of one position's logits: the session's last and next ones, and the sampler's with its candidates.
const LOGIT_COPIES: u64 = 6;

const fn max(a: usize, b: usize) -> u64 {
    if a > b { a as u64 } else { b as u64 }
}

/// What the estimate depends on.
#[derive(Clone, Debug)]
pub(crate) struct Overhead {
    /// Threads that compute.
    pub(crate) threads: usize,
    /// Host memory that copies to a GPU go through.
    pub(crate) staging_bytes: usize,
    /// Tensors in the files.
    pub(crate) tensors: usize,
    /// Routed experts in all layers.
    pub(crate) experts: u64,
    /// See [`tokenizer_bytes`].
    pub(crate) tokenizer_bytes: u64,
    /// What the caller needs for itself.
    pub(crate) beside_bytes: u64,
    /// Logits of a position.
    pub(crate) vocab: usize,
}

impl Overhead {
    /// Bytes, when logits of `logit_rows` positions are read at once.
    pub(crate) fn bytes(&self, logit_rows: usize) -> u64 {
        let logits = 4 * self.vocab as u64 * (logit_rows as u64 + LOGIT_COPIES);
        let tables = TENSOR_BYTES * self.tensors as u64 + EXPERT_BYTES * self.experts;
        BASE_BYTES
            + WORKING_BYTES
            + THREAD_BYTES * self.threads as u64
            + self.staging_bytes as u64
            + tables
            + logits
            + self.tokenizer_bytes
            + self.beside_bytes
    }
}

/// Bytes of the model's tokenizer, were it loaded.
pub(crate) fn tokenizer_bytes(meta: &Meta) -> u64 {
    match &meta.tokenizer {
        TokenizerSource::Json(path) => JSON_FACTOR * std::fs::metadata(path).map_or(0, |m| m.len()),
        TokenizerSource::Gguf(vocab) => {
            let strings = vocab.tokens.iter().chain(&vocab.merges);
            GGUF_FACTOR * strings.map(|s| s.len() as u64 + STRING_BYTES).sum::<u64>()
        }
        TokenizerSource::Missing => 0,
    }
}

/// Bytes of what serving clients takes over a vocabulary of `vocab` tokens. What answers are held to schemas with: 4 tries
/// with 9 bytes for each byte of a token, of which it has 7 in the models' vocabularies, and 16 besides; and a grammar at work.
/// Answers and texts that are remembered.
pub(crate) fn serving_bytes(vocab: usize) -> u64 {
    const TOKEN_BYTES: u64 = 4 * (9 * 7 + 16);
    const WORKING_BYTES: u64 = 16 << 20;
    let remembered_bytes = Answers::BYTES_MAX + Encoded::BYTES_MAX;
    TOKEN_BYTES * vocab as u64 + WORKING_BYTES + remembered_bytes as u64
}

/// About as [`tokenizer_bytes`], for a `tokenizer.json` of `vocab` tokens that is not here.
pub(crate) fn shape_tokenizer_bytes(vocab: usize) -> u64 {
    JSON_FACTOR * JSON_TOKEN_BYTES * vocab as u64
}
