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

/// Tokens that end a turn. Files often declare one of a family's two or three, and give the others a type of text.
pub(crate) const TURN_ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];

/// Tokens that begin a turn or name who speaks.
const TURN_STARTS: [&str; 11] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<｜begin▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
];

/// Texts that make a token a control token, whatever type a file gives it: left as text, a user could write it, a
/// template could not, and an answer would go on past its end.
pub(crate) fn turn_marks() -> impl Iterator<Item = &'static str> {
    TURN_ENDS.into_iter().chain(TURN_STARTS)
}

/// Whether a token's text is one of [`turn_marks`].
pub(crate) fn is_turn_mark(token: &[u8]) -> bool {
    token.starts_with(b"<") && turn_marks().any(|mark| mark.as_bytes() == token)
}

/// The kind of a token: a mark of turns by its text, all others by their `token_types` entry. Where the file has no
/// types, by what the file declares and by name.
pub(crate) fn kind(vocab: &GgufVocab, id: usize) -> TokenKind {
    let token = vocab.tokens.get(id).map(Vec::as_slice).unwrap_or_default();
    if is_turn_mark(token) {
        return TokenKind::Control;
    }
    let Some(kind) = vocab.token_types.get(id) else {
        let declared = [vocab.bos, vocab.eos, vocab.eot].into_iter().flatten();
        return match () {
            () if declared.into_iter().any(|declared| declared as usize == id) => TokenKind::Control,
            () if vocab.model == "llama" && byte_token(token).is_some() => TokenKind::Byte,
            () => TokenKind::Normal,
        };
    };
    match kind {
        2 | 3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        _ => TokenKind::Normal,
    }
}

/// Refuses lists of different lengths, and ends of text out of range.
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
    for (key, id) in [("eos", vocab.eos), ("eot", vocab.eot)] {
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
