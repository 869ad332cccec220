//! Byte-level BPE: from a GGUF vocabulary, and the byte alphabet that its token strings are written in.
//!
//! Source: GPT-2's byte alphabet, which gives each of the 256 bytes a printable character.

use files::{Error, GgufVocab, Result};
use tokenizers::models::bpe::{BPE, Vocab as BpeVocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::pre;
use super::vocab::{TokenKind, kind};

/// Builds the tokenizer of a "gpt2" vocabulary. Control tokens are not among its added tokens: the caller
/// splits them off where a template wrote them.
pub(crate) fn from_vocab(vocab: &GgufVocab) -> Result<tokenizers::Tokenizer> {
    let pre = pre::by_name(&vocab.pre).ok_or_else(|| {
        let message = format!("tokenizer.ggml.pre: pre-tokenizer {:?} is not known to this build", vocab.pre);
        Error::unsupported(message)
    })?;
    let mut pieces = BpeVocab::default();
    let mut user_defined = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let text = String::from_utf8_lossy(token);
        match kind(vocab, id) {
            TokenKind::Control => continue,
            TokenKind::UserDefined => {
                user_defined.push(AddedToken::from(text.as_ref(), false).normalized(false))
            }
            _ => {}
        }
        pieces.insert(text.into_owned(), id as u32);
    }
    let model = BPE::builder()
        .vocab_and_merges(pieces, merges(vocab)?)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|e| Error::corrupt("tokenizer.ggml.merges: not a BPE vocabulary").with_source(e))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    let mut steps = Vec::with_capacity(pre.patterns.len() + 1);
    for pattern in pre.patterns {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| Error::unsupported(format!("pre-tokenizer {:?}", vocab.pre)).with_source(e))?;
        steps.push(PreTokenizerWrapper::Split(split));
    }
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer
        .add_tokens(user_defined)
        .map_err(|e| Error::corrupt("tokenizer.ggml.tokens: user-defined tokens").with_source(e))?;
    Ok(tokenizer)
}

fn merges(vocab: &GgufVocab) -> Result<Vec<(String, String)>> {
    let split = |(rank, merge): (usize, &Vec<u8>)| {
        let merge = String::from_utf8_lossy(merge);
        // A piece may itself begin with a space, so the separator is looked for after the first character.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let pair = merge[first..].split_once(' ');
        let (rest, right) = pair.ok_or_else(|| {
            Error::corrupt(format!("tokenizer.ggml.merges: entry {rank}, {merge:?}, is not a pair"))
        })?;
        Ok((format!("{}{rest}", &merge[..first]), right.to_owned()))
    };
    vocab.merges.iter().enumerate().map(split).collect()
}

/// The byte that `c` stands for in the byte alphabet.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        // The bytes without a printable character, in order, follow from U+0100.
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes of a token string; characters outside the alphabet keep their UTF-8.
pub(crate) fn token_bytes(token: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(token.len());
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let mut seen = [false; 256];
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of) {
                assert!(!std::mem::replace(&mut seen[byte as usize], true), "byte {byte:#x} twice");
            }
        }
        assert!(seen.iter().all(|s| *s));
        assert_eq!(token_bytes("ĠÄłĊ"), b" \xc4\xa0\n".map(|b| b));
    }

    #[test]
    fn unknown_pre_tokenizers_and_bad_merges_are_named() {
        let mut vocab = GgufVocab {
            model: "gpt2".into(),
            pre: "from-mars".into(),
            tokens: vec![b"a".to_vec(), b"b".to_vec()],
            ..GgufVocab::default()
        };
        let e = from_vocab(&vocab).unwrap_err();
        assert_eq!(e.kind(), files::ErrorKind::Unsupported);
        assert!(e.message().contains("from-mars"), "{e}");
        vocab.pre = "qwen2".into();
        vocab.merges = vec![b"ab".to_vec()];
        assert!(from_vocab(&vocab).unwrap_err().message().contains("entry 0"));
        vocab.merges = vec![b"a c".to_vec()];
        assert_eq!(from_vocab(&vocab).unwrap_err().kind(), files::ErrorKind::Corrupt);
    }

    #[test]
    fn every_known_pre_tokenizer_compiles() {
        let names = "qwen35 qwen2 llama-bpe dbrx smollm gpt-2 gpt-4o tekken kimi-k2 deepseek-llm deepseek-coder \
                     deepseek-v3 falcon bailingmoe seed-coder default";
        for name in names.split(' ') {
            for pattern in pre::by_name(name).unwrap_or_else(|| panic!("{name}")).patterns {
                let pattern = SplitPattern::Regex((*pattern).to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                assert!(split.is_ok(), "{name}: {:?}", split.err());
            }
        }
    }
}
