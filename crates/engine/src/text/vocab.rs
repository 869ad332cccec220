//! Checks on a vocabulary of GGUF metadata, and the table from token id to bytes.
//!
//! Source: the GGUF specification, keys `tokenizer.ggml.*`.

use files::{Error, GgufVocab, Result};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// A marker that only a template may write, never a user: start of turn, end of sequence.
    Control,
    /// A marker that is always matched whole, in user text too.
    UserDefined,
    /// A single raw byte.
    Byte,
    /// Never produced by the tokenizer, or a hole between ids.
    Unused,
}

/// The kind of a token, by its `token_types` entry; normal where the file has none.
pub(crate) fn kind(vocab: &GgufVocab, id: usize) -> TokenKind {
    match vocab.token_types.get(id).copied().unwrap_or(1) {
        2 | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    }
}

/// Refuses lists of different lengths and ids out of range.
pub(crate) fn check(vocab: &GgufVocab) -> Result<()> {
    let n = vocab.tokens.len();
    if n == 0 {
        return Err(Error::corrupt("tokenizer.ggml.tokens: no tokens"));
    }
    if u32::try_from(n).is_err() {
        return Err(Error::corrupt(format!("tokenizer.ggml.tokens: {n} tokens do not fit 32-bit ids")));
    }
    for (key, len) in [("scores", vocab.scores.len()), ("token_type", vocab.token_types.len())] {
        if len != 0 && len != n {
            let message = format!("tokenizer.ggml.{key}: {len} entries for {n} tokens");
            return Err(Error::corrupt(message));
        }
    }
    for (key, id) in [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("eot", vocab.eot),
        ("unknown", vocab.unk),
        ("padding", vocab.pad),
    ] {
        if let Some(id) = id.filter(|id| *id as usize >= n) {
            let message =
                format!("tokenizer.ggml.{key}_token_id: {id} is outside the vocabulary of {n} tokens");
            return Err(Error::corrupt(message));
        }
    }
    Ok(())
}

/// Bytes and kind of every token, in one arena.
#[derive(Default)]
pub(crate) struct TokenTable {
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    bytes: Vec<u8>,
}

impl TokenTable {
    /// Appends the next id's token. An error when the text of all tokens passes 4 GiB.
    pub(crate) fn push(&mut self, bytes: &[u8], kind: TokenKind) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| Error::corrupt("tokenizer: the token texts pass 4 GiB"))?;
        self.ends.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes that `id` stands for; empty for an id beyond the table.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let i = id as usize;
        let Some(&end) = self.ends.get(i) else { return &[] };
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The kind of `id`; unused beyond the table.
    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }
}

/// The byte that a SentencePiece byte token "<0xAB>" stands for.
pub(crate) fn byte_token(name: &[u8]) -> Option<u8> {
    let hex = name.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if hex.len() != 2 || !hex.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
}
