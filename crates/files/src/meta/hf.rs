//! `config.json` and its companions, as transformers and mlx-lm write them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tokenizer::{TokenizerFiles, read_json};
use super::{
    DeltaMeta, Dialect, GenerationDefaults, Issue, MAX_LAYERS, MAX_SIZE, Meta, MoeMeta, RopeMeta,
    RopeScaling, canonical_arch, every_nth, has_qk_norm, is_hybrid,
};
use crate::gguf::short_text;
use crate::open::read_text;
use crate::{Error, ErrorKind, Result, TensorIndex};

const MAX_CONFIG_BYTES: u64 = 16 << 20;

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
    let mut keys = Keys { config, issues: Vec::new() };
    let arch = keys.arch();
    let layers = keys.layers();
    let heads = keys.required("num_attention_heads");
    let hidden_size = keys.required("hidden_size");
    let head_dim = keys.head_dim(&arch, hidden_size, heads);
    let moe = keys.moe(&arch, layers);
    let delta = is_hybrid(&arch).then(|| keys.delta(layers));
    keys.quantization();
    let context = keys.required("max_position_embeddings");
    let has_head = index.iter().any(|t| t.name.ends_with("lm_head.weight"));
    let meta = Meta {
        dialect: if mlx { Dialect::Mlx } else { Dialect::Hf },
        name: config.name.clone(),
        hidden_size,
        layers,
        heads,
        kv_heads: keys.size("num_key_value_heads").unwrap_or(heads),
        head_dim,
        intermediate_size: keys.size("intermediate_size"),
        vocab_size: keys.required("vocab_size"),
        context,
        rms_norm_eps: keys.required_number("rms_norm_eps") as f32,
        rope: keys.rope(&arch, head_dim),
        moe,
        delta,
        attention_bias: keys.flag("attention_bias").unwrap_or(arch == "qwen2"),
        attn_output_gate: keys.flag("attn_output_gate").unwrap_or(is_hybrid(&arch)),
        qk_norm: has_qk_norm(&arch)
            .unwrap_or_else(|| index.iter().any(|t| t.name.ends_with("q_norm.weight"))),
        // The outer config of a multimodal model is the one that its head obeys.
        tie_embeddings: keys.top_flag("tie_word_embeddings").unwrap_or(!has_head && !index.is_empty()),
        sliding_window: keys.sliding_window(layers, context),
        hidden_act: keys.text("hidden_act").unwrap_or_else(|| "silu".into()),
        bos: keys.ids("bos_token_id").first().copied(),
        eos: keys.ids("eos_token_id"),
        pad: keys.ids("pad_token_id").first().copied(),
        generation: keys.generation(),
        tokenizer: config.tokenizer.source.clone(),
        tokenizer_config: config.tokenizer.config.clone(),
        chat_template: config.tokenizer.templates.default.clone(),
        tool_template: config.tokenizer.templates.tool_use.clone(),
        raw: raw_keys(config),
        arch,
        issues: Vec::new(),
    };
    Meta { issues: keys.issues, ..meta }
}

/// Looks keys up in the language model's section first, and notes what is wrong with them.
struct Keys<'a> {
    config: &'a Config,
    issues: Vec<Issue>,
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

    fn required_number(&mut self, key: &str) -> f64 {
        match self.get(key).map(|v| v.as_f64().ok_or_else(|| v.clone())) {
            Some(Ok(number)) => number,
            Some(Err(value)) => {
                self.corrupt_value(key, "a number", &value);
                0.0
            }
            None => {
                self.issue(ErrorKind::Corrupt, format!("{key} is missing"));
                0.0
            }
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    fn top_flag(&self, key: &str) -> Option<bool> {
        self.config.top.get(key).and_then(Value::as_bool).or_else(|| self.flag(key))
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(str::to_string)
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

    fn rope(&mut self, arch: &str, head_dim: usize) -> RopeMeta {
        // transformers 5 gathers in `rope_parameters` what `rope_theta`, `rope_scaling` and
        // `partial_rotary_factor` were before.
        let object = |v: Option<&Value>| v.and_then(Value::as_object).cloned().unwrap_or_default();
        let parameters = object(self.get("rope_parameters"));
        let scaling = object(self.get("rope_scaling"));
        let number = |keys: &Self, key: &str| {
            let value = parameters.get(key).or_else(|| scaling.get(key)).or_else(|| keys.get(key));
            value.and_then(Value::as_f64)
        };
        let theta = number(self, "rope_theta").unwrap_or(10_000.0);
        let default_partial = if is_hybrid(arch) { 0.25 } else { 1.0 };
        let partial = number(self, "partial_rotary_factor").unwrap_or(default_partial);
        let rotary_dim = (head_dim as f64 * partial) as usize;
        let section = if parameters.is_empty() { &scaling } else { &parameters };
        RopeMeta { theta, rotary_dim, interleaved: false, scaling: self.rope_scaling(section) }
    }

    fn rope_scaling(&mut self, section: &Map<String, Value>) -> RopeScaling {
        let kind = section.get("rope_type").or_else(|| section.get("type")).and_then(Value::as_str);
        let optional = |key: &str| section.get(key).and_then(Value::as_f64);
        let file_context = self.get("max_position_embeddings").and_then(Value::as_f64);
        let mut missing = None;
        let mut number = |key: &'static str| {
            optional(key).filter(|n| n.is_finite() && *n > 0.0).unwrap_or_else(|| {
                missing = Some(key);
                1.0
            })
        };
        let scaling = match kind.unwrap_or("default") {
            // Text positions are equal in all sections of a multimodal rope, so it is the plain one.
            "default" | "mrope" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: number("factor") },
            "llama3" => RopeScaling::Llama3 {
                factor: number("factor"),
                low_freq_factor: number("low_freq_factor"),
                high_freq_factor: number("high_freq_factor"),
                original_context: number("original_max_position_embeddings") as usize,
            },
            "yarn" => RopeScaling::Yarn {
                factor: number("factor"),
                original_context: optional("original_max_position_embeddings").or(file_context).unwrap_or(0.0)
                    as usize,
                beta_fast: optional("beta_fast").unwrap_or(32.0),
                beta_slow: optional("beta_slow").unwrap_or(1.0),
                attention_factor: optional("attention_factor"),
                mscale: optional("mscale"),
                mscale_all_dim: optional("mscale_all_dim"),
                truncate: section.get("truncate").and_then(Value::as_bool).unwrap_or(true),
            },
            other => {
                let what = format!("rope scaling {:?} is not supported", short_text(other));
                self.issue(ErrorKind::Unsupported, what);
                return RopeScaling::None;
            }
        };
        if let Some(key) = missing {
            self.issue(ErrorKind::Corrupt, format!("rope scaling: {key} is missing or absurd"));
        }
        scaling
    }

    fn moe(&mut self, arch: &str, layers: usize) -> Option<MoeMeta> {
        let names = ["num_experts", "n_routed_experts", "num_local_experts"];
        let experts = names.into_iter().find_map(|name| self.size(name)).filter(|&n| n > 0)?;
        let top_k = self.required("num_experts_per_tok");
        let intermediate_size =
            self.size("moe_intermediate_size").or_else(|| self.size("intermediate_size")).unwrap_or(0);
        let step = self.size("decoder_sparse_step").unwrap_or(1).max(1);
        let dense_first = self.size("first_k_dense_replace").unwrap_or(0);
        let dense: Vec<u64> = match self.get("mlp_only_layers").and_then(Value::as_array) {
            Some(list) => list.iter().filter_map(Value::as_u64).collect(),
            None => Vec::new(),
        };
        let sparse =
            |l: usize| l >= dense_first && (l + 1).is_multiple_of(step) && !dense.contains(&(l as u64));
        Some(MoeMeta {
            experts,
            top_k,
            intermediate_size,
            shared_intermediate_size: self.size("shared_expert_intermediate_size").filter(|&n| n > 0),
            normalise_top_k: match arch {
                // Its router normalises without asking.
                "qwen3_5_moe" => true,
                "qwen3_next" => self.flag("norm_topk_prob").unwrap_or(true),
                _ => self.flag("norm_topk_prob").unwrap_or(false),
            },
            sparse_layers: (0..layers).map(sparse).collect(),
        })
    }

    fn delta(&mut self, layers: usize) -> DeltaMeta {
        let kinds = self.get("layer_types").and_then(Value::as_array).map(|list| {
            list.iter().map(|kind| kind.as_str().unwrap_or_default().to_string()).collect::<Vec<_>>()
        });
        let full_attention = match kinds {
            Some(kinds) => {
                let known = |kind: &&String| !matches!(kind.as_str(), "full_attention" | "linear_attention");
                if let Some(kind) = kinds.iter().find(known) {
                    self.issue(ErrorKind::Unsupported, format!("layer_types: {:?}", short_text(kind)));
                }
                if kinds.len() != layers {
                    self.issue(
                        ErrorKind::Corrupt,
                        format!("layer_types has {} of {layers} layers", kinds.len()),
                    );
                }
                kinds.iter().map(|kind| kind == "full_attention").collect()
            }
            None => every_nth(layers, self.size("full_attention_interval").unwrap_or(4).max(1)),
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
    fn sliding_window(&mut self, layers: usize, context: usize) -> Option<usize> {
        let window = self.size("sliding_window")?;
        let kinds = self.get("layer_types").and_then(Value::as_array);
        let used = match kinds {
            Some(kinds) => kinds.iter().any(|kind| kind.as_str() == Some("sliding_attention")),
            // Qwen2 and Qwen3 have a switch, and a first layer from which it counts.
            None => {
                self.flag("use_sliding_window").unwrap_or(true)
                    && self.size("max_window_layers").is_none_or(|first| first < layers)
            }
        };
        Some(window).filter(|&window| used && window < context)
    }

    /// Notes quantisation schemes other than MLX's.
    fn quantization(&mut self) {
        let method =
            self.get("quantization_config").and_then(|q| q.get("quant_method")).and_then(Value::as_str);
        if let Some(method) = method.map(short_text) {
            self.issue(ErrorKind::Unsupported, format!("quantization_config: quant_method {method:?}"));
        }
    }

    fn generation(&self) -> GenerationDefaults {
        let map = &self.config.generation;
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

/// Top-level and text keys with short values; sections by module are left out, there are thousands.
fn raw_keys(config: &Config) -> Vec<(String, String)> {
    let text = config.text.iter().map(|(key, value)| (format!("text_config.{key}"), value));
    let top =
        config.top.iter().filter(|(key, _)| *key != "text_config").map(|(key, value)| (key.clone(), value));
    top.chain(text).map(|(key, value)| (short_text(&key), short_text(&value.to_string()))).collect()
}
