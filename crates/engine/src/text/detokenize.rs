//! Token ids to text as they arrive, in whole UTF-8 characters only.

use std::ops::Deref;

use super::tokenizer::Tokenizer;

/// Turns a stream of ids into text. Bytes of an unfinished character wait for the next token.
pub struct Detokenizer<T> {
    tokenizer: T,
    held: Vec<u8>,
    at_start: bool,
    keep_specials: bool,
    kept: Vec<u32>,
}

impl<T: Deref<Target = Tokenizer>> Detokenizer<T> {
    /// A stream at the beginning of a text: a space that the tokenizer itself adds there is dropped.
    /// Control tokens are left out, except the markup that replies are made of (`<think>`, `<tool_call>` and
    /// their kin), which some tokenizers declare as control tokens too.
    pub fn new(tokenizer: T) -> Self {
        let kept = super::reply::MARKUP.iter().filter_map(|m| tokenizer.token_id(m)).collect();
        Self { tokenizer, held: Vec::new(), at_start: true, keep_specials: false, kept }
    }

    /// Whether control tokens appear in the text.
    #[must_use]
    pub fn keep_specials(mut self, keep: bool) -> Self {
        self.keep_specials = keep;
        self
    }

    /// Whether `id` is part of the text.
    pub fn shows(&self, id: u32) -> bool {
        !self.tokenizer.is_special(id) || self.keep_specials || self.kept.contains(&id)
    }

    /// The characters that `id` completes; often none.
    pub fn push(&mut self, id: u32) -> String {
        if !self.shows(id) {
            return String::new();
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.at_start && !bytes.is_empty() {
            self.at_start = false;
            if self.tokenizer.strips_leading_space() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.held.extend_from_slice(bytes);
        self.take_whole()
    }

    /// Whether all tokens so far are whole characters.
    pub(super) fn is_whole(&self) -> bool {
        self.held.is_empty()
    }

    /// The rest: bytes that never became a character are replaced by U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }

    /// Takes everything but an unfinished character at the end; invalid bytes become U+FFFD.
    fn take_whole(&mut self) -> String {
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(text) => {
                    out.push_str(text);
                    self.held.clear();
                    return out;
                }
                Err(e) => {
                    let valid = e.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(&self.held[..valid]));
                    let Some(bad) = e.error_len() else {
                        self.held.drain(..valid);
                        return out;
                    };
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.held.drain(..valid + bad);
                }
            }
        }
    }
}
