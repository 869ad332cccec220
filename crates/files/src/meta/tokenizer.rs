//! Where the vocabulary and the chat template are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::open::read_text;
use crate::{Error, Result};

const MAX_CONFIG_BYTES: u64 = 32 << 20;
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// Where the vocabulary is.
#[derive(Clone, Debug, Default)]
pub enum TokenizerSource {
    /// A `tokenizer.json` of Hugging Face's tokenizers.
    Json(PathBuf),
    /// In the GGUF file's metadata.
    Gguf(Box<GgufVocab>),
    /// Nowhere.
    #[default]
    Missing,
}

/// The vocabulary of a GGUF file (`tokenizer.ggml.*`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), ...
    pub model: String,
    /// Name of the pre-tokenizer; empty when the file has none.
    pub pre: String,
    /// Tokens by id, as bytes: not trusted to be UTF-8.
    pub tokens: Vec<Vec<u8>>,
    /// SentencePiece scores by id; empty when the file has none.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty when the file has none.
    pub token_types: Vec<i32>,
    /// BPE merges, two tokens with a space between, by falling rank.
    pub merges: Vec<Vec<u8>>,
    /// Begin of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether a text begins with `bos`; `None`: as the model kind has it.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before a text.
    pub add_space_prefix: Option<bool>,
    /// Whether SentencePiece collapses runs of spaces.
    pub remove_extra_whitespaces: Option<bool>,
}

/// Special tokens by text and the tokenizer's habits (`tokenizer_config.json`, or the GGUF vocabulary).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the keys' own
pub struct TokenizerConfig {
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    pub pad_token: Option<String>,
    pub unk_token: Option<String>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
}

/// The chat templates of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The one to use.
    pub default: Option<String>,
    /// The one for conversations with tools, where it is separate.
    pub tool_use: Option<String>,
}

/// What the tokenizer files of a model directory say.
#[derive(Debug, Default)]
pub(super) struct TokenizerFiles {
    pub(super) source: TokenizerSource,
    pub(super) config: TokenizerConfig,
    pub(super) templates: ChatTemplates,
}

impl TokenizerFiles {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let mut own = Self::default();
        let tokenizer = dir.join("tokenizer.json");
        if tokenizer.is_file() {
            own.source = TokenizerSource::Json(tokenizer);
        }
        if let Some(config) = read_json(&dir.join("tokenizer_config.json"))? {
            own.config = tokenizer_config(&config);
            own.templates = templates(config.get("chat_template"));
        }
        // Processors of multimodal models keep the template in a file of its own.
        if let Some(json) = read_json(&dir.join("chat_template.json"))? {
            own.templates.merge(templates(json.get("chat_template")));
        }
        let text = |path: PathBuf| path.is_file().then(|| read_text(&path, MAX_TEMPLATE_BYTES)).transpose();
        let default = text(dir.join("chat_template.jinja"))?;
        let tool_use = text(dir.join("additional_chat_templates").join("tool_use.jinja"))?;
        own.templates.merge(ChatTemplates { default, tool_use });
        Ok(own)
    }
}

impl ChatTemplates {
    fn merge(&mut self, newer: ChatTemplates) {
        self.default = newer.default.or(self.default.take());
        self.tool_use = newer.tool_use.or(self.tool_use.take());
    }
}

/// A JSON file of the directory; `None` when it is not there.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_text(path, MAX_CONFIG_BYTES)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::corrupt(format!("{}: {e}", path.display())).with_source(e))
}

fn tokenizer_config(config: &Value) -> TokenizerConfig {
    // A token is a string, or an object of `content` and how it matches.
    let token = |key: &str| {
        let value = config.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
    };
    let flag = |key: &str| config.get(key)?.as_bool();
    TokenizerConfig {
        bos_token: token("bos_token"),
        eos_token: token("eos_token"),
        pad_token: token("pad_token"),
        unk_token: token("unk_token"),
        add_bos_token: flag("add_bos_token"),
        add_eos_token: flag("add_eos_token"),
    }
}

/// One template, or a list of `{name, template}`.
fn templates(value: Option<&Value>) -> ChatTemplates {
    match value {
        Some(Value::String(template)) => ChatTemplates { default: Some(template.clone()), tool_use: None },
        Some(Value::Array(list)) => {
            let named = |name: &str| {
                let entry = list.iter().find(|e| e.get("name").and_then(Value::as_str) == Some(name))?;
                entry.get("template")?.as_str().map(str::to_string)
            };
            ChatTemplates { default: named("default"), tool_use: named("tool_use") }
        }
        _ => ChatTemplates::default(),
    }
}
