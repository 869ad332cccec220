//! Text to token ids and back, from `tokenizer.json` or from a GGUF vocabulary.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use files::{Error, GgufVocab, Meta, Result, TokenizerSource};
use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::encoded::Encoded;
use super::grammar::tokens::GrammarTokens;
use super::special::{Added, Fragment, Splitter};
use super::spm::{SPACE_MARK, Spm};
use super::vocab::{TokenKind, TokenTable, byte_token};
use super::{bpe, pre, vocab};

/// What to do with the text of control tokens, such as `<|im_start|>`, in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// They become their tokens. For text that a template or the operator wrote.
    Parse,
    /// They stay text. For everything that came from a user, a document or a tool.
    Ignore,
}

enum Core {
    /// The `tokenizers` crate; `rest` serves text that does not begin the input, where that matters.
    Library {
        first: Box<tokenizers::Tokenizer>,
        rest: Option<Box<tokenizers::Tokenizer>>,
    },
    SentencePiece(Box<Spm>),
}

/// A tokenizer with its table of token bytes.
pub struct Tokenizer {
    core: Core,
    splitter: Splitter,
    table: TokenTable,
    ids: HashMap<String, u32>,
    names: HashMap<u32, String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    bos_text: Option<String>,
    eos_text: Option<String>,
    document_prefix: Vec<u32>,
    strip_leading_space: bool,
    notes: Vec<String>,
    /// Built when the first grammar needs it.
    grammar_tokens: OnceLock<Result<Arc<GrammarTokens>, String>>,
    encoded: Mutex<Encoded>,
}

/// The part of a `tokenizer.json` that must be JSON before the library sees it.
#[derive(serde::Deserialize)]
struct Decoder {
    #[serde(default, rename = "decoder")]
    _decoder: serde_json::Value,
}

impl Tokenizer {
    /// Reads a Hugging Face `tokenizer.json`. Beginning and end of sequence are named elsewhere: see
    /// [`Tokenizer::of_model`].
    pub fn from_json(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path.display(), e))?;
        Self::from_json_bytes(&bytes).map_err(|e| e.context(path.display()))
    }

    /// [`Tokenizer::from_json`] on the content of the file.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes); // a byte-order mark
        let unusable = |e: Box<dyn std::error::Error + Send + Sync>| {
            let message = format!("not a tokenizer.json that this build can use: {e}");
            Error::new(files::ErrorKind::Corrupt, message).with_source(e)
        };
        // The library panics where a decoder is no JSON.
        serde_json::from_slice::<Decoder>(bytes).map_err(|e| unusable(e.into()))?;
        let mut first = tokenizers::Tokenizer::from_bytes(bytes).map_err(unusable)?;
        // Truncation and padding are habits of training that some files carry along.
        first.with_padding(None);
        let cut = first.with_truncation(None).map(|_| ());
        cut.map_err(|e| Error::corrupt("tokenizer.json: truncation").with_source(e))?;
        let notes = mark_turns(&mut first)?;
        let document_prefix = document_prefix(&first)?;
        // Control tokens are found here, not in the library, so that user text can be kept apart.
        first.set_encode_special_tokens(true);
        let rest = for_continuations(&first)?;

        let decoder = first.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder.map_err(|e| Error::corrupt("tokenizer.json: decoder").with_source(e))?;
        let byte_level = decoder.as_ref().is_some_and(|d| mentions(d, "ByteLevel"));
        let strip_leading_space = decoder.as_ref().is_some_and(strips_leading_space);
        let added = first.get_added_tokens_decoder();
        let is_control = |t: &AddedToken| t.special || vocab::is_turn_mark(t.content.as_bytes());
        let splitter = Splitter::new(added.iter().filter(|(_, t)| is_control(t)).map(|(id, t)| Added {
            text: t.content.clone(),
            id: *id,
            control: true,
            lstrip: t.lstrip,
            rstrip: t.rstrip,
            single_word: t.single_word,
        }));
        let ids = first.get_vocab(true);
        let table = library_table(&ids, byte_level, |id| {
            added.get(&id).map(|t| if is_control(t) { TokenKind::Control } else { TokenKind::UserDefined })
        })?;
        let names = ids.iter().map(|(name, id)| (*id, name.clone())).collect();
        let core = Core::Library { first: Box::new(first), rest: rest.map(Box::new) };
        Ok(Self {
            core,
            splitter,
            table,
            ids,
            names,
            bos: None,
            eos: Vec::new(),
            bos_text: None,
            eos_text: None,
            document_prefix,
            strip_leading_space,
            notes,
            grammar_tokens: OnceLock::new(),
            encoded: Mutex::default(),
        })
    }

    /// Builds the tokenizer of a GGUF file. An unknown model or pre-tokenizer is `Unsupported` and named.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self> {
        vocab::check(vocab)?;
        let (core, add_bos, byte_level) = match vocab.model.as_str() {
            "gpt2" => {
                let first = Box::new(bpe::from_vocab(vocab)?);
                let add_bos = pre::by_name(&vocab.pre).is_some_and(|p| p.add_bos);
                (Core::Library { first, rest: None }, add_bos, true)
            }
            "llama" => (Core::SentencePiece(Box::new(Spm::new(vocab)?)), true, false),
            other => {
                let message = format!("tokenizer.ggml.model: {other:?} is not known to this build");
                return Err(Error::unsupported(message));
            }
        };
        let strip_leading_space = matches!(&core, Core::SentencePiece(spm) if spm.space_prefix());
        let mut table = TokenTable::default();
        let (mut ids, mut names) = (HashMap::new(), HashMap::new());
        let mut added = Vec::new();
        for (id, token) in vocab.tokens.iter().enumerate() {
            let kind = vocab::kind(vocab, id);
            let name = String::from_utf8_lossy(token).into_owned();
            let bytes = match kind {
                TokenKind::Control | TokenKind::UserDefined => token.clone(),
                _ if byte_level => bpe::token_bytes(&name),
                _ => sentence_piece_bytes(token),
            };
            table.push(&bytes, kind)?;
            let id = id as u32;
            // In the library's case it matches the user-defined tokens itself.
            if kind == TokenKind::Control || (kind == TokenKind::UserDefined && !byte_level) {
                let (text, control) = (name.clone(), kind == TokenKind::Control);
                added.push(Added { text, id, control, lstrip: false, rstrip: false, single_word: false });
            }
            ids.entry(name.clone()).or_insert(id);
            names.insert(id, name);
        }
        let bos = vocab.bos.filter(|id| (*id as usize) < vocab.tokens.len());
        let document_prefix = bos.filter(|_| vocab.add_bos.unwrap_or(add_bos)).into_iter().collect();
        let text = |id: Option<u32>| id.and_then(|id| names.get(&id).cloned());
        Ok(Self {
            core,
            splitter: Splitter::new(added),
            table,
            bos,
            eos: vocab.eos.into_iter().chain(vocab.eot).collect(),
            bos_text: text(vocab.bos),
            eos_text: text(vocab.eos),
            ids,
            names,
            document_prefix,
            strip_leading_space,
            notes: notes(vocab),
            grammar_tokens: OnceLock::new(),
            encoded: Mutex::default(),
        })
    }

    /// The tokenizer of a model, with the end tokens and habits that its files name. A tokenizer that does not
    /// belong to the model is refused: see [`Tokenizer::check_vocab`].
    pub fn of_model(meta: &Meta) -> Result<Self> {
        let mut own = match &meta.tokenizer {
            TokenizerSource::Json(path) => Self::from_json(path)?,
            TokenizerSource::Gguf(vocab) => Self::from_gguf(vocab)?,
            TokenizerSource::Missing => {
                return Err(Error::not_found("the model has no tokenizer.json and no tokenizer keys"));
            }
        };
        own.eos.extend(&meta.eos);
        if let TokenizerSource::Json(_) = meta.tokenizer {
            let config = &meta.tokenizer_config;
            own.bos_text.clone_from(&config.bos_token);
            own.eos_text.clone_from(&config.eos_token);
            own.bos = config.bos_token.as_deref().and_then(|t| own.token_id(t)).or(meta.bos);
            own.eos.extend(config.eos_token.as_deref().and_then(|t| own.token_id(t)));
            match config.add_bos_token {
                Some(false) => own.document_prefix.clear(),
                Some(true) if own.document_prefix.is_empty() => own.document_prefix.extend(own.bos),
                _ => {}
            }
        }
        let mut seen = std::collections::HashSet::new();
        own.eos.retain(|id| seen.insert(*id));
        own.check_vocab(meta.vocab_size)?;
        Ok(own)
    }

    /// The ids of `text`, without anything before or after it.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        self.encode_into(text, specials, true, &mut out)?;
        Ok(out)
    }

    /// The ids of a document: the beginning-of-sequence token where the model was trained with one, then
    /// the text, its control tokens kept as text.
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_document_with(text, Specials::Ignore)
    }

    /// The same, where control tokens in the text may be obeyed: a prompt that its operator wrote.
    pub fn encode_document_with(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        let mut out = self.document_prefix.clone();
        self.encode_into(text, specials, true, &mut out)?;
        Ok(out)
    }

    /// `text` cut at its control tokens, with where each fragment begins.
    pub(super) fn fragments<'a>(&self, text: &'a str) -> Vec<(usize, Fragment<'a>)> {
        self.splitter.split_at(text, true)
    }

    /// Adds the ids of a text between control tokens; `first` where nothing is before it. Long ones are remembered: a
    /// conversation comes again with every turn.
    ///
    /// # Errors
    /// What [`Tokenizer::encode`] refuses.
    pub(super) fn encode_piece(&self, text: &str, first: bool, out: &mut Vec<u32>) -> Result<()> {
        if text.len() < Encoded::BYTES_MIN {
            return self.encode_into(text, Specials::Ignore, first, out);
        }
        let key = Encoded::key(text, first);
        if let Some(ids) = self.encoded().get(key) {
            out.extend_from_slice(&ids);
            return Ok(());
        }
        let from = out.len();
        self.encode_into(text, Specials::Ignore, first, out)?;
        self.encoded().put(key, out[from..].into());
        Ok(())
    }

    fn encoded(&self) -> MutexGuard<'_, Encoded> {
        self.encoded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode_into(&self, text: &str, specials: Specials, first: bool, out: &mut Vec<u32>) -> Result<()> {
        let mut first = first;
        for fragment in self.splitter.split(text, specials == Specials::Parse) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(piece) => self.encode_plain(piece, first, out)?,
            }
            first = false;
        }
        Ok(())
    }

    fn encode_plain(&self, text: &str, first: bool, out: &mut Vec<u32>) -> Result<()> {
        match &self.core {
            Core::SentencePiece(spm) => spm.encode(text, out),
            Core::Library { first: start, rest } => {
                let tokenizer = if first { start } else { rest.as_ref().unwrap_or(start) };
                let encoding = tokenizer
                    .encode_fast(text, false)
                    .map_err(|e| Error::invalid("the tokenizer cannot encode the text").with_source(e))?;
                out.extend_from_slice(encoding.get_ids());
                Ok(())
            }
        }
    }

    /// What a user should know about how the vocabulary was read.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Builds what grammars need of the vocabulary, once: a second or two for a large one, best spent while the model's
    /// weights are read. The first [`Constraint`](super::Constraint) does it otherwise.
    ///
    /// # Errors
    /// `Unsupported` for a vocabulary that grammars cannot hold.
    pub fn prepare_grammars(&self) -> Result<()> {
        self.grammar_tokens().map(|_| ())
    }

    pub(super) fn grammar_tokens(&self) -> Result<Arc<GrammarTokens>> {
        let build = || GrammarTokens::new(self).map(Arc::new).map_err(|e| e.message().to_owned());
        self.grammar_tokens.get_or_init(build).clone().map_err(Error::unsupported)
    }

    /// The texts of the control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.splitter.control_texts()
    }

    /// The bytes that a token stands for; empty for ids that only pad the model's vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    /// What a token is for.
    pub fn token_kind(&self, id: u32) -> TokenKind {
        self.table.kind(id)
    }

    /// Whether `id` is a control token, which is not part of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.kind(id) == TokenKind::Control
    }

    /// The whole text of `ids`, control tokens left out unless asked for. Invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32], with_specials: bool) -> String {
        let mut stream = super::Detokenizer::new(self).keep_specials(with_specials);
        let mut out: String = ids.iter().map(|id| stream.push(*id)).collect();
        out.push_str(&stream.finish());
        out
    }

    /// Number of ids: the highest id + 1.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The id of the token that the file calls `name`.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    /// The file's name of a token, in the file's own alphabet.
    pub fn token_name(&self, id: u32) -> Option<&str> {
        self.names.get(&id).map(String::as_str)
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// What templates see as `bos_token`.
    pub fn bos_text(&self) -> Option<&str> {
        self.bos_text.as_deref()
    }

    /// What templates see as `eos_token`.
    pub fn eos_text(&self) -> Option<&str> {
        self.eos_text.as_deref()
    }

    /// End of sequence, as the model's files name it; possibly several.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// All tokens at which an answer ends: `eos`, and the well-known end-of-turn control tokens that many
    /// files forget to list.
    pub fn end_tokens(&self) -> Vec<u32> {
        // Where answers have channels, this one ends a part of them.
        let ends_a_part = |name: &str| name == "<|end|>" && self.token_id("<|channel|>").is_some();
        // As a piece of text this one is markup of web pages, so here the type decides.
        let names = vocab::TURN_ENDS.into_iter().filter(|name| !ends_a_part(name)).chain(["</s>"]);
        let known = names.filter_map(|name| self.token_id(name)).filter(|id| self.is_special(*id));
        let mut ends = self.eos.clone();
        for id in known {
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
        ends
    }

    /// Whether decoded text starts with a space that the tokenizer itself put there.
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.strip_leading_space
    }

    /// Refuses a tokenizer that does not belong to a model with `model_vocab` rows of embeddings. Models pad
    /// their vocabularies, so a somewhat smaller tokenizer is fine; ids beyond the model are not.
    pub fn check_vocab(&self, model_vocab: usize) -> Result<()> {
        let size = self.vocab_size();
        if size > model_vocab || size * 2 < model_vocab {
            return Err(Error::corrupt(format!(
                "wrong tokenizer: it has {size} tokens, the model's vocabulary has {model_vocab}"
            )));
        }
        Ok(())
    }
}

/// Makes marks of turns special tokens where the file has them as text, so that the library does not find them in a
/// user's text; notes those at which answers end.
fn mark_turns(tokenizer: &mut tokenizers::Tokenizer) -> Result<Vec<String>> {
    let added = tokenizer.get_added_tokens_decoder();
    let is_special = |mark: &str| added.values().any(|t| t.special && t.content == mark);
    let marks = vocab::turn_marks().filter(|mark| tokenizer.token_to_id(mark).is_some());
    let marks: Vec<&str> = marks.filter(|mark| !is_special(mark)).collect();
    let special = marks.iter().map(|mark| AddedToken::from(*mark, true).normalized(false));
    tokenizer
        .add_special_tokens(special.collect::<Vec<_>>())
        .map_err(|e| Error::corrupt("tokenizer.json: added_tokens").with_source(e))?;
    let ends = marks.into_iter().filter(|mark| vocab::TURN_ENDS.contains(mark));
    Ok(ends
        .map(|end| format!("tokenizer.json: {end} is text there; it is taken as a control token"))
        .collect())
}

/// What a user should know about the types of a GGUF vocabulary.
fn notes(vocab: &GgufVocab) -> Vec<String> {
    if vocab.token_types.is_empty() {
        return vec![
            "tokenizer.ggml.token_type is missing: control tokens are known by their names alone".into(),
        ];
    }
    let types = vocab.tokens.iter().zip(&vocab.token_types);
    let ends = types.filter(|(token, kind)| {
        !matches!(kind, 2 | 3) && vocab::TURN_ENDS.iter().any(|end| end.as_bytes() == token.as_slice())
    });
    let note = |(token, kind): (&Vec<u8>, &i32)| {
        let token = String::from_utf8_lossy(token);
        format!("tokenizer.ggml.token_type: {token} has type {kind}; it is taken as a control token")
    };
    ends.map(note).collect()
}

/// What the file's post-processor puts before a document.
fn document_prefix(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    let encode = |special: bool| {
        let encoding = tokenizer.encode_fast("a", special);
        let encoding =
            encoding.map_err(|e| Error::corrupt("tokenizer.json: post_processor").with_source(e))?;
        Ok(encoding.get_ids().to_vec())
    };
    let (plain, full): (Vec<u32>, Vec<u32>) = (encode(false)?, encode(true)?);
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let at = full.windows(plain.len()).position(|w| w == plain).unwrap_or(0);
    Ok(full[..at].to_vec())
}

/// A twin for text after the first piece, when the pre-tokenizer treats the very beginning differently.
fn for_continuations(tokenizer: &tokenizers::Tokenizer) -> Result<Option<tokenizers::Tokenizer>> {
    let bad = |e| Error::corrupt("tokenizer.json: pre_tokenizer").with_source(e);
    let Some(pre) = tokenizer.get_pre_tokenizer() else { return Ok(None) };
    let mut value = serde_json::to_value(pre).map_err(bad)?;
    if !never_prepend(&mut value) {
        return Ok(None);
    }
    let mut twin = tokenizer.clone();
    twin.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(value).map_err(bad)?));
    Ok(Some(twin))
}

/// Turns "prepend first" of Metaspace into "never"; whether there was any.
fn never_prepend(value: &mut Value) -> bool {
    match value {
        Value::Object(map) if map.get("prepend_scheme").is_some_and(|s| s == "first") => {
            map.insert("prepend_scheme".into(), "never".into());
            true
        }
        Value::Object(map) => map.values_mut().filter_map(|v| never_prepend(v).then_some(())).count() > 0,
        Value::Array(list) => list.iter_mut().filter_map(|v| never_prepend(v).then_some(())).count() > 0,
        _ => false,
    }
}

fn mentions(value: &Value, kind: &str) -> bool {
    match value {
        Value::Object(map) => {
            map.get("type").is_some_and(|t| t == kind) || map.values().any(|v| mentions(v, kind))
        }
        Value::Array(list) => list.iter().any(|v| mentions(v, kind)),
        _ => false,
    }
}

/// Metaspace decoders drop the space they added; SentencePiece ones do it in a `Strip` step.
fn strips_leading_space(decoder: &Value) -> bool {
    match decoder {
        Value::Object(map) => match map.get("type").and_then(Value::as_str) {
            Some("Metaspace") => map.get("prepend_scheme").is_none_or(|s| s != "never"),
            Some("Strip") => map.get("start").and_then(Value::as_u64).is_some_and(|n| n > 0),
            _ => map.values().any(strips_leading_space),
        },
        Value::Array(list) => list.iter().any(strips_leading_space),
        _ => false,
    }
}

fn library_table(
    ids: &HashMap<String, u32>,
    byte_level: bool,
    added_kind: impl Fn(u32) -> Option<TokenKind>,
) -> Result<TokenTable> {
    let mut by_id: Vec<(u32, &str)> = ids.iter().map(|(name, id)| (*id, name.as_str())).collect();
    by_id.sort_unstable();
    let Some(&(last, _)) = by_id.last() else {
        return Err(Error::corrupt("tokenizer.json: no tokens"));
    };
    if last as usize >= 4 * by_id.len() + 65_536 {
        let message = format!("tokenizer.json: token id {last} in a vocabulary of {} tokens", by_id.len());
        return Err(Error::corrupt(message));
    }
    let mut table = TokenTable::default();
    for (id, name) in by_id {
        while table.len() < id as usize {
            table.push(b"", TokenKind::Unused)?;
        }
        if table.len() > id as usize {
            continue; // a second name of the same id
        }
        match added_kind(id) {
            Some(kind) => table.push(name.as_bytes(), kind)?,
            None if byte_level => table.push(&bpe::token_bytes(name), TokenKind::Normal)?,
            None => table.push(&sentence_piece_bytes(name.as_bytes()), TokenKind::Normal)?,
        }
    }
    Ok(table)
}

fn sentence_piece_bytes(token: &[u8]) -> Vec<u8> {
    if let Some(byte) = byte_token(token) {
        return vec![byte];
    }
    match std::str::from_utf8(token) {
        Ok(text) => text.replace(SPACE_MARK, " ").into_bytes(),
        Err(_) => token.to_vec(),
    }
}
