//! The vocabulary as a trie of bytes, over which grammars say what may come next. Once for each model.

use std::sync::{Arc, Mutex};

use files::{Error, Result};
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};

use super::mask::GrammarMask;
use crate::text::reply::MARKUP;
use crate::text::tokenizer::Tokenizer;
use crate::text::vocab::TokenKind;

/// The longest token that can be held, in bytes. Longer ones, in files that are made to do harm, never come.
const LONGEST_TOKEN: usize = 512;
/// The largest vocabulary: the trie counts in 22 bits.
const MOST_TOKENS: usize = 1 << 20;
/// Most states of a grammar's lexer, at up to 2 kB each.
const MOST_STATES: usize = 40_000;
/// Most of a grammar: its symbols, and the nodes of its regular expressions.
const MOST_SYMBOLS: usize = 200_000;
/// Ways in which a text may go on, counted in one place and over all tokens of a mask: 20,000 take a millisecond. Many
/// tools, or alternatives of a schema, are as many ways.
const MOST_WAYS: usize = 50_000;
const MOST_WAYS_OF_MASK: usize = 500_000;
/// The compiler calls itself as deep as schemas and rules nest.
const STACK_BYTES: usize = 64 << 20;
/// What grammars know of a tokenizer.
pub(crate) struct GrammarTokens {
    /// Behind a lock, since a grammar is compiled now and then and by one thread at a time.
    factory: Mutex<ParserFactory>,
    env: TokEnv,
    /// Tokens that are nothing but line ends, with how many.
    line_ends: Vec<(u32, usize)>,
    /// The token that is `<think>`, where there is one.
    think: Option<u32>,
}

struct Env(TokTrie);

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// The longest token first is not how a model was taught to write, so nothing is forced.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl GrammarTokens {
    /// Builds the trie: a second or two for a large vocabulary.
    ///
    /// # Errors
    /// `Unsupported` for a vocabulary that is too large for it.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let size = tokenizer.vocab_size();
        if size > MOST_TOKENS {
            return Err(Error::unsupported(format!("a grammar over a vocabulary of {size} tokens")));
        }
        let ids = 0..size as u32;
        let mut words: Vec<Vec<u8>> = ids.clone().map(|id| word(tokenizer, id).to_vec()).collect();
        let is_line_ends = |word: &[u8]| !word.is_empty() && word.iter().all(|byte| *byte == b'\n');
        let lengths = ids.map(|id| (id, &words[id as usize]));
        let line_ends = lengths.filter(|(_, word)| is_line_ends(word)).map(|(id, word)| (id, word.len()));
        let line_ends = line_ends.collect();
        // A place for "the answer may end": which tokens end one is not the grammar's to know.
        words.push(Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, size as u32), &words);
        let env: TokEnv = Arc::new(Env(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| {
            Error::unsupported(format!("the tokenizer's vocabulary cannot be held to a grammar: {e}"))
        })?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MOST_STATES;
        limits.max_grammar_size = MOST_SYMBOLS;
        limits.max_items_in_row = MOST_WAYS;
        limits.step_max_items = MOST_WAYS_OF_MASK;
        limits.verbose_errors = false;
        let think = tokenizer.token_id("<think>").filter(|id| tokenizer.token_bytes(*id) == b"<think>");
        Ok(Self { factory: Mutex::new(factory), env, line_ends, think })
    }

    /// Compiles `grammar`, in the Lark dialect of llguidance.
    ///
    /// # Errors
    /// The compiler's message.
    pub(crate) fn compile(&self, grammar: llguidance::api::TopLevelGrammar) -> Result<GrammarMask, String> {
        let compiled = || {
            let factory = self.factory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let parser = factory.create_parser(grammar).map_err(|e| e.to_string())?;
            GrammarMask::new(Matcher::new(Ok(parser)), self.env.clone())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, compiled).map_err(|e| e.to_string())?;
            thread.join().unwrap_or_else(|_| Err("the compiler of grammars failed".into()))
        })
    }

    /// Tokens that are at most so many line ends, with how many.
    pub(crate) fn line_ends(&self, most: usize) -> impl Iterator<Item = (u32, usize)> {
        self.line_ends.iter().copied().filter(move |(_, count)| *count <= most)
    }

    pub(crate) fn think(&self) -> Option<u32> {
        self.think
    }
}

/// What a token adds to an answer's text; nothing for one that is none of it.
fn word(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    let bytes = tokenizer.token_bytes(id);
    let is_text = match tokenizer.token_kind(id) {
        TokenKind::Control => MARKUP.iter().any(|markup| markup.as_bytes() == bytes),
        TokenKind::Unused => false,
        TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte => true,
    };
    // The byte 0xFF, which no text has, marks special tokens there.
    if is_text && bytes.len() <= LONGEST_TOKEN && bytes.first() != Some(&0xFF) { bytes } else { &[] }
}
