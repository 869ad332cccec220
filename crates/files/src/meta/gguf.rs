//! GGUF metadata keys (`general.*`, `<arch>.*`, `tokenizer.*`), as llama.cpp's converters write them.

use super::{
    DeltaMeta, Dialect, GenerationDefaults, GgufVocab, Issue, MAX_LAYERS, MAX_SIZE, Meta, MoeMeta, RopeMeta,
    RopeScaling, TokenizerConfig, TokenizerSource, canonical_arch, every_nth, has_qk_norm, is_hybrid,
};
use crate::gguf::{Array, Header, Value, int_array, short_text};
use crate::{ErrorKind, TensorIndex};

/// The tensor by which llama.cpp's converter hands over llama3 rope scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Control tokens that end a turn. Files often declare only one of a family's two or three.
const END_OF_TURN: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];

/// The typed view over the (first shard's) metadata.
pub(crate) fn from_gguf(header: &Header, index: &TensorIndex) -> Meta {
    let mut keys = Keys { header, index, prefix: String::new(), issues: Vec::new() };
    keys.prefix = keys.text("general.architecture").unwrap_or_default();
    if keys.prefix.is_empty() {
        keys.issue(ErrorKind::Corrupt, "general.architecture is missing");
    }
    let arch = canonical_arch(&keys.prefix);
    let layers = keys.layers();
    let heads = keys.required("attention.head_count");
    let hidden_size = keys.required("embedding_length");
    let head_dim = keys.size("attention.key_length").unwrap_or(hidden_size.checked_div(heads).unwrap_or(0));
    let vocab = keys.vocab();
    let declared_vocab = keys.size("vocab_size");
    let bos = keys.token_id("bos_token_id");
    let context = keys.required("context_length");
    let embedding = index.get("token_embd.weight").map(|t| t.rows());
    let meta = Meta {
        dialect: Dialect::Gguf,
        name: keys.text("general.name"),
        hidden_size,
        layers,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        intermediate_size: keys.uniform("feed_forward_length").filter(|&n| n > 0),
        vocab_size: embedding.or(declared_vocab).unwrap_or(vocab.tokens.len()),
        context,
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon") as f32,
        rope: keys.rope(&arch, head_dim),
        moe: keys.moe(&arch, layers),
        delta: is_hybrid(&arch).then(|| keys.delta(&arch, layers)),
        attention_bias: index.get("blk.0.attn_q.bias").is_some(),
        attn_output_gate: is_hybrid(&arch),
        qk_norm: has_qk_norm(&arch)
            .unwrap_or_else(|| index.iter().any(|t| t.name.ends_with("attn_q_norm.weight"))),
        tie_embeddings: index.get("output.weight").is_none(),
        sliding_window: keys.size("attention.sliding_window").filter(|&w| w > 0 && w < context),
        hidden_act: "silu".into(),
        bos,
        eos: keys.eos(&vocab),
        pad: keys.token_id("padding_token_id"),
        generation: keys.generation(),
        tokenizer_config: tokenizer_config(&vocab),
        tokenizer: if vocab.tokens.is_empty() {
            TokenizerSource::Missing
        } else {
            TokenizerSource::Gguf(Box::new(vocab))
        },
        chat_template: keys.text("tokenizer.chat_template"),
        tool_template: keys.text("tokenizer.chat_template.tool_use"),
        raw: header.metadata.iter().map(|(key, value)| (short_text(key), value.summary())).collect(),
        arch,
        issues: Vec::new(),
    };
    Meta { issues: keys.issues, ..meta }
}

/// Special tokens by text, where their ids lie in the vocabulary.
fn tokenizer_config(vocab: &GgufVocab) -> TokenizerConfig {
    let token = |id: Option<u32>| {
        let bytes = vocab.tokens.get(usize::try_from(id?).ok()?)?;
        String::from_utf8(bytes.clone()).ok()
    };
    TokenizerConfig {
        bos_token: token(vocab.bos),
        eos_token: token(vocab.eos),
        pad_token: token(vocab.pad),
        unk_token: token(vocab.unk),
        add_bos_token: vocab.add_bos,
        add_eos_token: vocab.add_eos,
    }
}

struct Keys<'a> {
    header: &'a Header,
    index: &'a TensorIndex,
    /// The file's own name of its architecture, which begins its keys.
    prefix: String,
    issues: Vec<Issue>,
}

impl Keys<'_> {
    fn issue(&mut self, kind: ErrorKind, what: impl std::fmt::Display) {
        let message = format!("{}: {what}", self.header.path.display());
        self.issues.push(Issue { kind, message });
    }

    fn own(&self, key: &str) -> Option<&Value> {
        self.header.get(&format!("{}.{key}", self.prefix))
    }

    fn wrong(&mut self, key: &str, wanted: &str, shown: &str) {
        let key = format!("{}.{key}", self.prefix);
        self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not {wanted}"));
    }

    fn size(&mut self, key: &str) -> Option<usize> {
        let value = self.own(key)?;
        let number = value.as_int().filter(|n| (0..=i128::from(MAX_SIZE)).contains(n));
        let size = number.and_then(|n| usize::try_from(n).ok());
        if size.is_none() {
            let shown = value.summary();
            self.wrong(key, "a size", &shown);
        }
        size
    }

    /// A size that some files give for each layer; they must agree, but for zeros where it does not apply.
    fn uniform(&mut self, key: &str) -> Option<usize> {
        let Some(Value::Array(array)) = self.own(key) else {
            return self.size(key);
        };
        let sizes = int_array(key, array, MAX_SIZE.into());
        let mut sizes = match sizes {
            Ok(sizes) => sizes,
            Err(e) => {
                self.issue(ErrorKind::Corrupt, e);
                return None;
            }
        };
        sizes.retain(|&n| n > 0);
        sizes.dedup();
        match sizes.as_slice() {
            [] => None,
            [one] => usize::try_from(*one).ok(),
            _ => {
                self.issue(ErrorKind::Unsupported, format!("{}.{key} differs between layers", self.prefix));
                None
            }
        }
    }

    fn required(&mut self, key: &str) -> usize {
        if self.own(key).is_none() {
            self.issue(ErrorKind::Corrupt, format!("{}.{key} is missing", self.prefix));
        }
        match self.uniform(key) {
            Some(0) => {
                self.wrong(key, "a size", "zero");
                0
            }
            size => size.unwrap_or(0),
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.own(key)?.as_float()
    }

    fn required_number(&mut self, key: &str) -> f64 {
        self.number(key).unwrap_or_else(|| {
            self.issue(ErrorKind::Corrupt, format!("{}.{key} is missing or not a number", self.prefix));
            0.0
        })
    }

    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.header.get(key)?;
        let text = value.as_str().map(str::to_string);
        if text.is_none() {
            let shown = value.summary();
            self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not UTF-8 text"));
        }
        text
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.header.get(key)?.as_bool()
    }

    fn token_id(&mut self, key: &str) -> Option<u32> {
        let key = format!("tokenizer.ggml.{key}");
        let value = self.header.get(&key)?;
        let id = value.as_int().and_then(|id| u32::try_from(id).ok());
        if id.is_none() {
            let shown = value.summary();
            self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not a token id"));
        }
        id
    }

    fn layers(&mut self) -> usize {
        let blocks = self.required("block_count");
        // Multi-token-prediction layers are blocks after the model's own.
        let extra = self.size("nextn_predict_layers").unwrap_or(0);
        let layers = blocks.saturating_sub(extra);
        if layers > MAX_LAYERS {
            self.issue(ErrorKind::Corrupt, format!("{}.block_count is {blocks}, absurd", self.prefix));
            return 0;
        }
        layers
    }

    fn rope(&mut self, arch: &str, head_dim: usize) -> RopeMeta {
        let default_dim = if is_hybrid(arch) { head_dim / 4 } else { head_dim };
        RopeMeta {
            theta: self.number("rope.freq_base").unwrap_or(10_000.0),
            rotary_dim: self.size("rope.dimension_count").unwrap_or(default_dim),
            // The converter permutes llama's q and k so that adjacent values are a pair.
            interleaved: arch == "llama",
            scaling: self.rope_scaling(),
        }
    }

    fn rope_scaling(&mut self) -> RopeScaling {
        if self.index.get(ROPE_FACTORS).is_some() {
            return RopeScaling::Factors { tensor: ROPE_FACTORS.into() };
        }
        let kind = self.text(&format!("{}.rope.scaling.type", self.prefix)).unwrap_or_else(|| "none".into());
        let factor = self.number("rope.scaling.factor").filter(|f| f.is_finite() && *f > 0.0);
        match (kind.as_str(), factor) {
            // A linear scaling by one, or by nothing, is none.
            ("none", _) | ("linear", None) => RopeScaling::None,
            ("linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", Some(factor)) => RopeScaling::Yarn {
                factor,
                original_context: self.size("rope.scaling.original_context_length").unwrap_or(0),
                beta_fast: self.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                attention_factor: self.number("rope.scaling.attn_factor"),
                mscale: None,
                mscale_all_dim: self.number("rope.scaling.yarn_log_multiplier"),
                truncate: true,
            },
            _ => {
                let what =
                    format!("{}.rope.scaling.type {:?} is not supported", self.prefix, short_text(&kind));
                self.issue(ErrorKind::Unsupported, what);
                RopeScaling::None
            }
        }
    }

    fn moe(&mut self, arch: &str, layers: usize) -> Option<MoeMeta> {
        let experts = self.size("expert_count").filter(|&n| n > 0)?;
        let top_k = self.required("expert_used_count");
        let index = self.index;
        // Files of older converters leave the widths to the tensors.
        let width = |suffix: &str| index.iter().find(|t| t.name.ends_with(suffix)).map(|t| t.cols());
        let intermediate_size =
            self.size("expert_feed_forward_length").or_else(|| width(".ffn_down_exps.weight"));
        let shared = self.size("expert_shared_feed_forward_length").filter(|&n| n > 0);
        let normalises = matches!(arch, "qwen3_5_moe" | "qwen3_next" | "qwen3_moe" | "llama");
        let norm_key = self.own("expert_weights_norm").and_then(Value::as_bool);
        let sparse = |l: usize| index.contains(&format!("blk.{l}.ffn_gate_inp.weight"));
        Some(MoeMeta {
            experts,
            top_k,
            intermediate_size: intermediate_size.unwrap_or(0),
            shared_intermediate_size: shared.or_else(|| width(".ffn_down_shexp.weight")),
            // For these llama.cpp normalises without a key.
            normalise_top_k: normalises || norm_key.unwrap_or(false),
            sparse_layers: (0..layers).map(|l| index.is_empty() || sparse(l)).collect(),
        })
    }

    fn delta(&mut self, arch: &str, layers: usize) -> DeltaMeta {
        let recurrent = match self.own("attention.recurrent_layers") {
            Some(Value::Array(array)) => int_array("attention.recurrent_layers", array, 1).ok(),
            _ => None,
        };
        let full_attention = match recurrent {
            Some(recurrent) if recurrent.len() >= layers => {
                recurrent.iter().take(layers).map(|&recurrent| recurrent == 0).collect()
            }
            _ => every_nth(layers, self.size("full_attention_interval").unwrap_or(4).max(1)),
        };
        let value_heads = self.required("ssm.time_step_rank");
        let inner = self.required("ssm.inner_size");
        if value_heads > 0 && !inner.is_multiple_of(value_heads) {
            self.wrong("ssm.inner_size", &format!("a multiple of {value_heads} heads"), &inner.to_string());
        }
        DeltaMeta {
            key_heads: self.required("ssm.group_count"),
            value_heads,
            key_head_dim: self.required("ssm.state_size"),
            value_head_dim: inner.checked_div(value_heads).unwrap_or(0),
            conv_kernel: self.required("ssm.conv_kernel"),
            full_attention,
            // The converter reorders value heads for Qwen3.5, and leaves those of Qwen3-Next.
            tiled_value_heads: arch != "qwen3_next",
        }
    }

    fn vocab(&mut self) -> GgufVocab {
        let header = self.header;
        let array = |key: &str| header.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_array);
        let strings = |key: &str| array(key).and_then(Array::strings).unwrap_or_default().to_vec();
        let scores =
            array("scores").map(|a| a.values().filter_map(|v| v.as_float()).map(|v| v as f32).collect());
        let types = array("token_type")
            .map(|a| a.values().filter_map(|v| v.as_int().and_then(|v| i32::try_from(v).ok())).collect());
        let flag = |key: &str| self.flag(&format!("tokenizer.ggml.{key}"));
        let mut vocab = GgufVocab {
            tokens: strings("tokens"),
            merges: strings("merges"),
            scores: scores.unwrap_or_default(),
            token_types: types.unwrap_or_default(),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            add_space_prefix: flag("add_space_prefix"),
            remove_extra_whitespaces: flag("remove_extra_whitespaces"),
            ..GgufVocab::default()
        };
        for (key, len) in [("scores", vocab.scores.len()), ("token_type", vocab.token_types.len())] {
            if len != 0 && len != vocab.tokens.len() {
                let what =
                    format!("tokenizer.ggml.{key} has {len} entries for {} tokens", vocab.tokens.len());
                self.issue(ErrorKind::Corrupt, what);
            }
        }
        vocab.model = self.text("tokenizer.ggml.model").unwrap_or_default();
        vocab.pre = self.text("tokenizer.ggml.pre").unwrap_or_default();
        vocab.bos = self.token_id("bos_token_id");
        vocab.eos = self.token_id("eos_token_id");
        vocab.eot = self.token_id("eot_token_id");
        vocab.unk = self.token_id("unknown_token_id");
        vocab.pad = self.token_id("padding_token_id");
        vocab
    }

    /// The declared ids, then control tokens that end a turn in every family.
    fn eos(&mut self, vocab: &GgufVocab) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        let declared = [vocab.eos, vocab.eot, self.token_id("eom_token_id")];
        let is_special = |id: usize| matches!(vocab.token_types.get(id), Some(3 | 4));
        let found = vocab.tokens.iter().enumerate().filter(|(id, token)| {
            is_special(*id) && END_OF_TURN.iter().any(|end| end.as_bytes() == token.as_slice())
        });
        let found = found.filter_map(|(id, _)| u32::try_from(id).ok());
        for id in declared.into_iter().flatten().chain(found) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    fn generation(&self) -> GenerationDefaults {
        let number =
            |key: &str| self.header.get(&format!("general.sampling.{key}")).and_then(Value::as_float);
        let top_k = self.header.get("general.sampling.top_k").and_then(Value::as_int);
        GenerationDefaults {
            do_sample: None,
            temperature: number("temp").map(|n| n as f32),
            top_k: top_k.and_then(|k| u32::try_from(k).ok()),
            top_p: number("top_p").map(|n| n as f32),
            min_p: number("min_p").map(|n| n as f32),
            repetition_penalty: number("penalty_repeat").map(|n| n as f32),
        }
        .sanitised()
    }
}
