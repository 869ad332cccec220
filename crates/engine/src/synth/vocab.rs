//! A vocabulary of any size: the 256 bytes, some syllables with their merges, made-up words, three control tokens.

use serde_json::{Map, Value, json};

use files::{Error, Result};

/// Ends a text; the last three tokens are control tokens.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";
/// Begins a turn.
pub(super) const TURN_BEGIN: &str = "<|im_start|>";
/// Ends a turn.
pub(super) const TURN_END: &str = "<|im_end|>";

/// The usual turns between control tokens.
pub(super) const CHAT_TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const CONSONANTS: &str = "bcdfghjklmnpqrstvwxz";
const VOWELS: &str = "aeiou";

/// How Qwen's tokenizers cut text into words; `LETTER` and `NOT_WORD` differ between versions.
const PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?LETTER+|\\p{N}| ?NOT_WORD+[\\r\\n]*|\
\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// The tokens by id, byte-level, and the merges that make syllables.
pub(super) struct Vocab {
    pub(super) tokens: Vec<String>,
    pub(super) merges: Vec<[String; 2]>,
}

impl Vocab {
    /// A vocabulary of `size` tokens.
    ///
    /// # Errors
    /// `InvalidRequest` for fewer tokens than bytes and control tokens.
    pub(super) fn new(size: usize) -> Result<Self> {
        let controls = [END_OF_TEXT, TURN_BEGIN, TURN_END];
        let Some(words) = size.checked_sub(256 + controls.len()) else {
            return Err(Error::invalid(format!("a vocabulary of {size} tokens has no room for all bytes")));
        };
        let syllables: Vec<[String; 2]> = CONSONANTS
            .chars()
            .flat_map(|c| VOWELS.chars().map(move |v| [c.to_string(), v.to_string()]))
            .collect();
        let joined: Vec<String> = syllables.iter().map(|pair| pair.concat()).collect();
        let mut tokens: Vec<String> = (0..=255).map(|byte| byte_char(byte).to_string()).collect();
        let merges: Vec<[String; 2]> = syllables.into_iter().take(words).collect();
        tokens.extend(joined.iter().take(words).cloned());
        tokens.extend((0..words - merges.len()).map(|number| word(number, &joined)));
        tokens.extend(controls.map(str::to_string));
        Ok(Self { tokens, merges })
    }

    /// The id of a control token.
    pub(super) fn control(&self, token: &str) -> u32 {
        let from_end = self.tokens.iter().rev().position(|t| t == token).unwrap_or(0);
        (self.tokens.len() - 1 - from_end) as u32
    }

    /// `tokenizer.json`.
    pub(super) fn tokenizer_json(&self, marks_join_letters: bool) -> Value {
        let controls = [END_OF_TEXT, TURN_BEGIN, TURN_END];
        let added = controls.map(|token| {
            json!({
                "id": self.control(token), "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        });
        let normal = self.tokens.len() - controls.len();
        let ids: Map<String, Value> =
            self.tokens[..normal].iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let (letter, not_word) = match marks_join_letters {
            true => ("[\\p{L}\\p{M}]", "[^\\s\\p{L}\\p{M}\\p{N}]"),
            false => ("\\p{L}", "[^\\s\\p{L}\\p{N}]"),
        };
        let pattern = PATTERN.replace("LETTER", letter).replace("NOT_WORD", not_word);
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ]},
            "post_processor": null,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": ids, "merges": self.merges,
            },
        })
    }
}

/// The character that stands for a byte in byte-level BPE (GPT-2): itself where it prints, else from U+0100 on.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&b| !prints(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Word `number`: a space and two syllables, then three, ... No two numbers share a word.
fn word(number: usize, syllables: &[String]) -> String {
    let base = syllables.len();
    let (mut rest, mut len, mut count) = (number, 2, base * base);
    while rest >= count {
        rest -= count;
        len += 1;
        count *= base;
    }
    let mut word = String::from(byte_char(b' '));
    for _ in 0..len {
        count /= base;
        word += &syllables[rest / count];
        rest %= count;
    }
    word
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_are_as_many_as_asked_for_and_no_two_alike() {
        for size in [259, 300, 512, 60_000] {
            let vocab = Vocab::new(size).unwrap();
            assert_eq!(vocab.tokens.len(), size);
            assert_eq!(vocab.tokens.iter().collect::<HashSet<_>>().len(), size);
            assert_eq!(vocab.control(TURN_END) as usize, size - 1);
        }
        assert!(Vocab::new(258).is_err());
    }
}
