//! `config.json` and its companions, as transformers and mlx-lm write them.

mod rope;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::neutral::{self, Given};
use super::tokenizer::{TokenizerFiles, read_json};
use super::{
    DeltaMeta, Dialect, GenerationDefaults, Issue, MAX_LAYERS, MAX_SIZE, Meta, MoeMeta, canonical_arch,
    every_nth, has_qk_norm, is_hybrid,
};
use crate::gguf::short_text;
use crate::open::read_text;
use crate::{Error, ErrorKind, Result, TensorIndex};

const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Keys of `generation_config.json` that ask for a way of choosing tokens that the sampler does not have, and the
/// value at which they ask for nothing.
const OTHER_SAMPLING: [(&str, f64); 17] = [
    ("bad_words_ids", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("diversity_penalty", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("forced_bos_token_id", 0.0),
    ("forced_eos_token_id", 0.0),
    ("frequency_penalty", 0.0),
    ("guidance_scale", 1.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beams", 1.0),
    ("presence_penalty", 0.0),
    ("sequence_bias", 0.0),
    ("suppress_tokens", 0.0),
    ("typical_p", 1.0),
];

/// A parsed `config.json` with the files beside it.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// The path of `config.json`, for messages.
    pub(crate) file: String,
    pub(crate) top: Map<String, Value>,
    /// The language model's section of a multimodal config, else empty.
    text: Map<String, Value>,
    generation: Map<String, Value>,
    tokenizer: TokenizerFiles,
    name: Option<String>,
}

impl Config {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let mut own = Self::parse(path.display().to_string(), &read_text(&path, MAX_CONFIG_BYTES)?)?;
        if let Some(Value::Object(generation)) = read_json(&dir.join("generation_config.json"))? {
            own.generation = generation;
        }
        own.tokenizer = TokenizerFiles::open(dir)?;
        let absolute = dir.canonicalize().unwrap_or_else(|_| PathBuf::from(dir));
        own.name = absolute.file_name().map(|n| n.to_string_lossy().into_owned());
        Ok(own)
    }

    pub(crate) fn parse(file: String, text: &str) -> Result<Self> {
        // Editors on Windows put a byte-order mark before the text.
        let text = text.trim_start_matches('\u{feff}');
        let json: Value =
            serde_json::from_str(text).map_err(|e| Error::corrupt(format!("{file}: {e}")).with_source(e))?;
        let Value::Object(mut top) = json else {
            return Err(Error::corrupt(format!("{file}: not a JSON object")));
        };
        let text = match top.get_mut("text_config") {
            Some(Value::Object(text)) => std::mem::take(text),
            _ => Map::new(),
        };
        Ok(Self { file, top, text, ..Self::default() })
    }
}

/// The typed view; `mlx` when tensors or config are MLX's.
pub(crate) fn meta(config: &Config, index: &TensorIndex, mlx: bool) -> Meta {
    let mut keys = Keys { config, issues: Vec::new(), notes: Vec::new() };
    let arch = keys.arch();
    let layers = keys.layers();
    let heads = keys.required("num_attention_heads");
    let hidden_size = keys.required("hidden_size");
    let vocab_size = keys.required("vocab_size");
    let head_dim = keys.head_dim(&arch, hidden_size, heads);
    let moe = keys.moe(&arch, layers);
    let delta = is_hybrid(&arch).then(|| keys.delta(layers));
    keys.quantization();
    let context = keys.required("max_position_embeddings");
    let has_head = index.contains("lm_head.weight") || index.contains("language_model.lm_head.weight");
    let mut meta = Meta {
        dialect: if mlx { Dialect::Mlx } else { Dialect::Hf },
        name: config.name.clone(),
        hidden_size,
        layers,
        predicted_layers: keys.predicted_layers(),
        heads,
        kv_heads: keys.size("num_key_value_heads").unwrap_or(heads),
        head_dim,
        intermediate_size: keys.size("intermediate_size"),
        vocab_size,
        context,
        rms_norm_eps: keys.required_number("rms_norm_eps") as f32,
        rope: keys.rope(&arch, head_dim),
        moe,
        attention_bias: keys.attention_bias(&arch, index),
        attn_output_gate: keys.flag("attn_output_gate").unwrap_or(is_hybrid(&arch)),
        qk_norm: has_qk_norm(&arch)
            .unwrap_or_else(|| index.iter().any(|t| t.name.ends_with("q_norm.weight"))),
        // The outer config of a multimodal model is the one that its head obeys.
        tie_embeddings: keys.top_flag("tie_word_embeddings").unwrap_or(!has_head && !index.is_empty()),
        sliding_window: keys.sliding_window(&arch, layers, context),
        hidden_act: keys.text("hidden_act").unwrap_or_else(|| "silu".into()),
        bos: keys.token_id("bos_token_id", vocab_size),
        eos: keys.ids("eos_token_id"),
        pad: keys.token_id("pad_token_id", vocab_size),
        generation: keys.generation(),
        tokenizer: config.tokenizer.source.clone(),
        tokenizer_config: config.tokenizer.config.clone(),
        chat_template: config.tokenizer.templates.default.clone(),
        tool_template: config.tokenizer.templates.tool_use.clone(),
        raw: raw_keys(config),
        delta,
        arch,
        notes: Vec::new(),
        issues: Vec::new(),
    };
    keys.refuse_what_is_not_computed(&meta);
    meta.issues = keys.issues;
    meta.notes = keys.notes;
    meta
}

/// Looks keys up in the language model's section first, and notes what is wrong with them.
struct Keys<'a> {
    config: &'a Config,
    issues: Vec<Issue>,
    notes: Vec<String>,
}

impl Keys<'_> {
    fn issue(&mut self, kind: ErrorKind, what: String) {
        self.issues.push(Issue { kind, message: format!("{}: {what}", self.config.file) });
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let value = self.config.text.get(key).filter(|v| !v.is_null()).or_else(|| self.config.top.get(key));
        value.filter(|v| !v.is_null())
    }

    fn corrupt_value(&mut self, key: &str, wanted: &str, value: &Value) {
        let shown = short_text(&value.to_string());
        self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not {wanted}"));
    }

    fn size(&mut self, key: &str) -> Option<usize> {
        let value = self.get(key)?.clone();
        let number = value.as_u64().or_else(|| {
            // Python writes whole numbers as 4096.0 now and then.
            value
                .as_f64()
                .filter(|f| f.fract() == 0.0 && *f >= 0.0 && *f <= MAX_SIZE as f64)
                .map(|f| f as u64)
        });
        let size = number.filter(|&n| n <= MAX_SIZE).and_then(|n| usize::try_from(n).ok());
        if size.is_none() {
            self.corrupt_value(key, "a size", &value);
        }
        size
    }

    fn required(&mut self, key: &str) -> usize {
        if self.get(key).is_none() {
            self.issue(ErrorKind::Corrupt, format!("{key} is missing"));
        }
        match self.size(key) {
            Some(0) => {
                self.issue(ErrorKind::Corrupt, format!("{key} is zero"));
                0
            }
            size => size.unwrap_or(0),
        }
    }

    /// A number that can be computed with.
    fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.get(key)?.clone();
        let number = value.as_f64().filter(|n| n.is_finite());
        if number.is_none() {
            self.corrupt_value(key, "a number", &value);
        }
        number
    }

    fn required_number(&mut self, key: &str) -> f64 {
        if self.get(key).is_none() {
            self.issue(ErrorKind::Corrupt, format!("{key} is missing"));
        }
        self.number(key).unwrap_or(0.0)
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?.clone();
        self.as_flag(key, &value)
    }

    fn as_flag(&mut self, key: &str, value: &Value) -> Option<bool> {
        let flag = value.as_bool().or_else(|| value.as_u64().filter(|n| *n <= 1).map(|n| n == 1));
        if flag.is_none() {
            self.corrupt_value(key, "true or false", value);
        }
        flag
    }

    fn top_flag(&mut self, key: &str) -> Option<bool> {
        match self.config.top.get(key).filter(|v| !v.is_null()) {
            Some(value) => self.as_flag(key, value),
            None => self.flag(key),
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.get(key)?.clone();
        let text = value.as_str().map(str::to_string);
        if text.is_none() {
            self.corrupt_value(key, "text", &value);
        }
        text
    }

    /// A list of texts or of numbers.
    fn list(&mut self, key: &str) -> Option<Vec<Value>> {
        let value = self.get(key)?.clone();
        let list = value.as_array().cloned();
        if list.is_none() {
            self.corrupt_value(key, "a list", &value);
        }
        list
    }

    fn object(&mut self, key: &str) -> Map<String, Value> {
        match self.get(key).cloned() {
            None => Map::new(),
            Some(Value::Object(object)) => object,
            Some(other) => {
                self.corrupt_value(key, "an object", &other);
                Map::new()
            }
        }
    }

    fn arch(&mut self) -> String {
        let config = self.config;
        let own = [config.text.get("model_type"), config.top.get("model_type")];
        match own.into_iter().flatten().find_map(Value::as_str) {
            Some(own) => canonical_arch(own),
            None => {
                self.issue(ErrorKind::Corrupt, "model_type is missing".into());
                String::new()
            }
        }
    }

    fn layers(&mut self) -> usize {
        match self.required("num_hidden_layers") {
            layers if layers > MAX_LAYERS => {
                self.issue(
                    ErrorKind::Corrupt,
                    format!("num_hidden_layers is {layers}, more than {MAX_LAYERS}"),
                );
                0
            }
            layers => layers,
        }
    }

    /// Layers for multi-token prediction whose tensors are named like layers after the model's own.
    fn predicted_layers(&mut self) -> usize {
        self.size("num_nextn_predict_layers").unwrap_or(0).min(MAX_LAYERS)
    }

    /// Whether queries, keys and values have biases. Qwen2 has them whatever a flag says.
    fn attention_bias(&mut self, arch: &str, index: &TensorIndex) -> bool {
        let flag = self.flag("attention_bias");
        if arch == "qwen2" {
            return true;
        }
        let there = index.iter().map(|t| t.name.as_str()).find(|name| name.ends_with(".q_proj.bias"));
        if let (Some(false), Some(name)) = (flag, there) {
            let name = short_text(name);
            self.issue(ErrorKind::Corrupt, format!("attention_bias is false, but there is a tensor {name}"));
        }
        flag.unwrap_or(there.is_some())
    }

    /// The defaults are those of transformers' configuration classes.
    fn head_dim(&mut self, arch: &str, hidden_size: usize, heads: usize) -> usize {
        let default = match arch {
            "qwen3_5_moe" | "qwen3_5" | "qwen3_next" => 256,
            "qwen3" => 128,
            _ => hidden_size.checked_div(heads).unwrap_or(0),
        };
        self.size("head_dim").unwrap_or(default)
    }

    /// Token ids under a key of the text section, the outer config and `generation_config.json`, each once.
    fn ids(&mut self, key: &str) -> Vec<u32> {
        let config = self.config;
        let mut ids = Vec::new();
        for value in
            [&config.text, &config.top, &config.generation].into_iter().filter_map(|map| map.get(key))
        {
            let list = match value {
                Value::Null => continue,
                Value::Array(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            for value in list {
                match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                    Some(id) if ids.contains(&id) => {}
                    Some(id) => ids.push(id),
                    // -1 stands for "none" in some configs.
                    None if value.as_i64() == Some(-1) => {}
                    None => self.corrupt_value(key, "a token id", value),
                }
            }
        }
        ids
    }

    /// An id that a model can do without: one outside of the vocabulary is none.
    fn token_id(&mut self, key: &str, vocab_size: usize) -> Option<u32> {
        let config = self.config;
        let maps = [&config.text, &config.top, &config.generation];
        let given: Vec<&Value> = maps
            .into_iter()
            .filter_map(|map| map.get(key).filter(|v| !v.is_null()))
            .flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice))
            .collect();
        let id = |value: &&Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let found = given.iter().filter_map(id).find(|id| (*id as usize) < vocab_size);
        if let (None, Some(first), "bos_token_id") = (found, given.first(), key)
            && first.as_i64() != Some(-1)
        {
            let (file, shown) = (&config.file, short_text(&first.to_string()));
            self.notes.push(format!("{file}: {key} is {shown}, which is no token: texts begin without one"));
        }
        found
    }

    /// Refuses keys that would change the numbers.
    fn refuse_what_is_not_computed(&mut self, meta: &Meta) {
        for (key, neutral) in neutral::HF {
            let Some(value) = self.get(key) else { continue };
            let given = given(value);
            if !neutral.holds(&given, meta) {
                let shown = short_text(&value.to_string());
                self.issue(ErrorKind::Unsupported, format!("{key} {shown} is not supported"));
            }
        }
        if self.get("dual_chunk_attention_config").is_some() {
            let file = &self.config.file;
            self.notes.push(format!(
                "{file}: dual_chunk_attention_config is not used: attention runs over the whole context"
            ));
        }
    }

    fn moe(&mut self, arch: &str, layers: usize) -> Option<MoeMeta> {
        let names = ["num_experts", "n_routed_experts", "num_local_experts"];
        let experts = names.into_iter().find_map(|name| self.size(name)).filter(|&n| n > 0)?;
        let top_k = self.required("num_experts_per_tok");
        let intermediate_size =
            self.size("moe_intermediate_size").or_else(|| self.size("intermediate_size")).unwrap_or(0);
        let step = self.interval("decoder_sparse_step", 1);
        let dense_first = self.size("first_k_dense_replace").unwrap_or(0);
        let dense = self.layer_list("mlp_only_layers");
        let sparse =
            |l: usize| l >= dense_first && (l + 1).is_multiple_of(step) && !dense.contains(&(l as u64));
        Some(MoeMeta {
            experts,
            top_k,
            intermediate_size,
            shared_intermediate_size: self.size("shared_expert_intermediate_size").filter(|&n| n > 0),
            normalise_top_k: match arch {
                // Its router normalises without asking.
                "qwen3_5_moe" => {
                    if self.flag("norm_topk_prob") == Some(false) {
                        self.issue(ErrorKind::Unsupported, "norm_topk_prob false is not supported".into());
                    }
                    true
                }
                "qwen3_next" => self.flag("norm_topk_prob").unwrap_or(true),
                _ => self.flag("norm_topk_prob").unwrap_or(false),
            },
            sparse_layers: (0..layers).map(sparse).collect(),
        })
    }

    /// How many layers a pattern takes: `default` where the file does not say.
    fn interval(&mut self, key: &str, default: usize) -> usize {
        match self.size(key) {
            Some(0) => {
                self.issue(ErrorKind::Corrupt, format!("{key} is zero"));
                default
            }
            interval => interval.unwrap_or(default),
        }
    }

    /// A list of layers by number.
    fn layer_list(&mut self, key: &str) -> Vec<u64> {
        let list = self.list(key).unwrap_or_default();
        let layers: Vec<u64> = list.iter().filter_map(Value::as_u64).collect();
        if layers.len() != list.len() {
            self.issue(ErrorKind::Corrupt, format!("{key} is not a list of layers"));
        }
        layers
    }

    /// The kind of each layer, if the file gives them; a kind that is not among `known` is refused.
    fn layer_types(&mut self, known: &[&str]) -> Option<Vec<String>> {
        let list = self.list("layer_types")?;
        let kinds: Vec<String> =
            list.iter().map(|kind| kind.as_str().unwrap_or_default().to_string()).collect();
        if let Some((kind, value)) = kinds.iter().zip(&list).find(|(kind, _)| !known.contains(&kind.as_str()))
        {
            let shown = if kind.is_empty() { value.to_string() } else { kind.clone() };
            let shown = short_text(&shown);
            self.issue(ErrorKind::Unsupported, format!("layer_types: {shown} is not supported"));
        }
        Some(kinds)
    }

    fn delta(&mut self, layers: usize) -> DeltaMeta {
        let full_attention = match self.layer_types(&["full_attention", "linear_attention"]) {
            Some(kinds) => {
                if kinds.len() != layers {
                    self.issue(
                        ErrorKind::Corrupt,
                        format!("layer_types has {} of {layers} layers", kinds.len()),
                    );
                }
                kinds.iter().map(|kind| kind == "full_attention").collect()
            }
            None => every_nth(layers, self.interval("full_attention_interval", 4)),
        };
        DeltaMeta {
            key_heads: self.required("linear_num_key_heads"),
            value_heads: self.required("linear_num_value_heads"),
            key_head_dim: self.required("linear_key_head_dim"),
            value_head_dim: self.required("linear_value_head_dim"),
            conv_kernel: self.required("linear_conv_kernel_dim"),
            full_attention,
            tiled_value_heads: false,
        }
    }

    /// The window, unless every layer sees the whole context anyway.
    fn sliding_window(&mut self, arch: &str, layers: usize, context: usize) -> Option<usize> {
        let kinds = match is_hybrid(arch) {
            true => None, // `delta` has looked at them
            false => self.layer_types(&["full_attention", "sliding_attention"]),
        };
        let used = match kinds {
            Some(kinds) => kinds.iter().any(|kind| kind == "sliding_attention"),
            // Qwen2 and Qwen3 have a switch that is off unless given, and a first layer from which it counts.
            None => {
                self.flag("use_sliding_window").unwrap_or(!arch.starts_with("qwen"))
                    && self.size("max_window_layers").is_none_or(|first| first < layers)
            }
        };
        let window = self.size("sliding_window");
        if used && window.is_none() && self.get("layer_types").is_some() {
            self.issue(
                ErrorKind::Corrupt,
                "layer_types has sliding layers, but sliding_window is missing".into(),
            );
        }
        window.filter(|&window| used && window < context)
    }

    /// Notes quantisation schemes other than MLX's.
    fn quantization(&mut self) {
        let method =
            self.get("quantization_config").and_then(|q| q.get("quant_method")).and_then(Value::as_str);
        if let Some(method) = method.map(short_text) {
            self.issue(ErrorKind::Unsupported, format!("quantization_config: quant_method {method:?}"));
        }
    }

    fn generation(&mut self) -> GenerationDefaults {
        let map = &self.config.generation;
        let other = |(key, neutral): &(&'static str, f64)| {
            let asks = match map.get(*key)? {
                Value::Null => false,
                Value::Array(list) => !list.is_empty(),
                Value::Object(object) => !object.is_empty(),
                value => value.as_f64() != Some(*neutral),
            };
            asks.then_some(*key)
        };
        let others: Vec<&str> = OTHER_SAMPLING.iter().filter_map(other).collect();
        if !others.is_empty() {
            self.notes.push(format!("generation_config.json: {} not used", others.join(", ")));
        }
        let number = |key: &str| map.get(key).and_then(Value::as_f64).map(|n| n as f32);
        GenerationDefaults {
            do_sample: map.get("do_sample").and_then(Value::as_bool),
            temperature: number("temperature"),
            top_k: map.get("top_k").and_then(Value::as_u64).and_then(|k| u32::try_from(k).ok()),
            top_p: number("top_p"),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
        }
        .sanitised()
    }
}

/// A value as [`neutral`] compares it.
fn given(value: &Value) -> Given {
    match value {
        Value::Null => Given::Nothing,
        Value::Bool(flag) => Given::Flag(*flag),
        Value::Number(n) => n.as_f64().map_or(Given::Other, Given::Number),
        Value::String(word) => Given::Word(word.clone()),
        Value::Array(list) if list.is_empty() => Given::Nothing,
        Value::Array(list) => {
            let number = |v: &Value| v.as_f64().or_else(|| v.as_bool().map(|flag| f64::from(u8::from(flag))));
            list.iter().map(number).collect::<Option<Vec<_>>>().map_or(Given::Other, Given::List)
        }
        Value::Object(object) if object.is_empty() => Given::Nothing,
        Value::Object(_) => Given::Other,
    }
}

/// Top-level and text keys with short values; sections by module are left out, there are thousands.
fn raw_keys(config: &Config) -> Vec<(String, String)> {
    let text = config.text.iter().map(|(key, value)| (format!("text_config.{key}"), value));
    let top =
        config.top.iter().filter(|(key, _)| *key != "text_config").map(|(key, value)| (key.clone(), value));
    top.chain(text).map(|(key, value)| (short_text(&key), short_text(&value.to_string()))).collect()
}
