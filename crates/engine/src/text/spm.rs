//! SentencePiece BPE: neighbours whose union is a token merge, the best score first, the leftmost on ties;
//! characters without a token fall back to their bytes.
//!
//! Source: Kudo & Richardson, "SentencePiece" (2018), and its BPE model with byte fallback.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use files::{Error, GgufVocab, Result};

use super::vocab::{TokenKind, byte_token, kind};

/// U+2581, which stands for a space in the pieces.
pub(crate) const SPACE_MARK: &str = "\u{2581}";

/// The merging core: ordinary text in, ids out. Added tokens are split off before.
pub(crate) struct Spm {
    pieces: HashMap<Box<[u8]>, (u32, f32)>,
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    space_prefix: bool,
}

/// A piece in the making: bytes `start..end` of the text, linked to its neighbours. Empty once merged away.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// A merge of two neighbours; out of date when the length no longer fits.
struct Pair {
    left: usize,
    right: usize,
    len: usize,
    score: f32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Takes the pieces of `vocab` that text may become; control tokens are left out, so text never becomes one.
    pub(crate) fn new(vocab: &GgufVocab) -> Result<Self> {
        if vocab.scores.len() != vocab.tokens.len() {
            return Err(Error::corrupt("tokenizer.ggml.scores: missing, a \"llama\" tokenizer needs them"));
        }
        let mut pieces = HashMap::with_capacity(vocab.tokens.len());
        let mut bytes = [None; 256];
        for (id, (token, score)) in vocab.tokens.iter().zip(&vocab.scores).enumerate() {
            let id = id as u32;
            match kind(vocab, id as usize) {
                TokenKind::Byte => {
                    let byte = byte_token(token).ok_or_else(|| {
                        let name = String::from_utf8_lossy(token);
                        Error::corrupt(format!("tokenizer.ggml.tokens: byte token {id} is named {name:?}"))
                    })?;
                    bytes[byte as usize] = Some(id);
                }
                TokenKind::Normal | TokenKind::UserDefined if !token.is_empty() => {
                    pieces.insert(token.clone().into_boxed_slice(), (id, *score));
                }
                _ => {}
            }
        }
        Ok(Self { pieces, bytes, unk: vocab.unk, space_prefix: vocab.add_space_prefix.unwrap_or(true) })
    }

    /// Whether decoded text starts with a space that the tokenizer put there.
    pub(crate) fn space_prefix(&self) -> bool {
        self.space_prefix
    }

    /// Appends the ids of `text`. An error when a character has neither token, bytes, nor an unknown token.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let prefix = if self.space_prefix { SPACE_MARK } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', SPACE_MARK)).into_bytes();
        let mut symbols = characters(&text);
        let mut queue = BinaryHeap::new();
        for i in 1..symbols.len() {
            self.offer(&text, &symbols, i - 1, i, &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            let gone = left.start == left.end || right.start == right.end;
            if gone || right.end - left.start != pair.len {
                continue;
            }
            let (end, next) = (right.end, right.next);
            symbols[pair.left].end = end;
            symbols[pair.left].next = next;
            symbols[pair.right].start = end;
            if let Some(next) = next {
                symbols[next].prev = Some(pair.left);
                self.offer(&text, &symbols, pair.left, next, &mut queue);
            }
            if let Some(prev) = symbols[pair.left].prev {
                self.offer(&text, &symbols, prev, pair.left, &mut queue);
            }
        }
        symbols.iter().filter(|s| s.start < s.end).try_for_each(|s| self.emit(&text[s.start..s.end], out))
    }

    fn offer(
        &self,
        text: &[u8],
        symbols: &[Symbol],
        left: usize,
        right: usize,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let union = &text[symbols[left].start..symbols[right].end];
        if let Some(&(_, score)) = self.pieces.get(union) {
            queue.push(Pair { left, right, len: union.len(), score });
        }
    }

    fn emit(&self, piece: &[u8], out: &mut Vec<u32>) -> Result<()> {
        if let Some(&(id, _)) = self.pieces.get(piece) {
            out.push(id);
            return Ok(());
        }
        let before = out.len();
        for byte in piece {
            match self.bytes[*byte as usize] {
                Some(id) => out.push(id),
                None => {
                    out.truncate(before);
                    let unk = self.unk.ok_or_else(|| {
                        let piece = String::from_utf8_lossy(piece);
                        Error::invalid(format!("the tokenizer has no token for {piece:?}"))
                    })?;
                    out.push(unk);
                    break;
                }
            }
        }
        Ok(())
    }
}

/// One symbol a character. `text` is UTF-8.
fn characters(text: &[u8]) -> Vec<Symbol> {
    let starts: Vec<usize> = (0..text.len()).filter(|&i| text[i] & 0xC0 != 0x80).collect();
    let n = starts.len();
    (0..n)
        .map(|i| Symbol {
            start: starts[i],
            end: starts.get(i + 1).copied().unwrap_or(text.len()),
            prev: i.checked_sub(1),
            next: (i + 1 < n).then_some(i + 1),
        })
        .collect()
}
