//! GGUF metadata keys (`general.*`, `<arch>.*`, `tokenizer.*`), as llama.cpp's converters write them.

use super::neutral::{self, Given};
use super::{
    DeltaMeta, Dialect, GenerationDefaults, GgufVocab, Issue, MAX_LAYERS, MAX_SIZE, Meta, MoeMeta, RopeMeta,
    RopeScaling, TokenizerConfig, TokenizerSource, canonical_arch, every_nth, has_qk_norm, is_hybrid,
};
use crate::gguf::{Array, Header, Value, int_array, short_text};
use crate::{ErrorKind, TensorIndex};

/// Keys of an architecture that are read, or that say what the tensors say by themselves or what a text does not need.
/// What is neither here nor among [`neutral::GGUF`] is told to the user.
const KNOWN: [&str; 52] = [
    "block_count",
    "nextn_predict_layers",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
    "leading_dense_block_count",
    "moe_every_n_layers",
    "interleave_moe_layer_step",
    "n_deepstack_layers",
    "full_attention_interval",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.recurrent_layers",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.dimension_sections",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_weights_norm",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
    "ssm.group_count",
    // as another program's converter writes them
    "rope.mrope_section",
    "rope.mrope_interleaved",
    "mrope_sections",
    "attention.layer_norm_epsilon",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "spatial_merge_size",
    "bos_token_id",
    "eos_token_id",
];

/// The tensor by which llama.cpp's converter hands over llama3 rope scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The typed view over the (first shard's) metadata.
pub(crate) fn from_gguf(header: &Header, index: &TensorIndex) -> Meta {
    let mut keys =
        Keys { header, index, prefix: String::new(), issues: Vec::new(), notes: Vec::new(), tokens: 0 };
    keys.prefix = keys.text("general.architecture").unwrap_or_default();
    if keys.prefix.is_empty() {
        keys.issue(ErrorKind::Corrupt, "general.architecture is missing");
    }
    let arch = canonical_arch(&keys.prefix);
    let (layers, predicted_layers) = keys.layers();
    let heads = keys.required("attention.head_count");
    let hidden_size = keys.required("embedding_length");
    let head_dim = keys.size("attention.key_length").unwrap_or(hidden_size.checked_div(heads).unwrap_or(0));
    let vocab = keys.vocab();
    let declared_vocab = keys.size("vocab_size");
    let context = keys.required("context_length");
    let embedding = index.get("token_embd.weight").map(|t| t.rows());
    let has = |suffix: &str| index.iter().any(|t| t.name.ends_with(suffix));
    let mut meta = Meta {
        dialect: Dialect::Gguf,
        name: keys.text("general.name"),
        hidden_size,
        layers,
        predicted_layers,
        heads,
        kv_heads: keys.uniform("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        intermediate_size: keys.uniform("feed_forward_length").filter(|&n| n > 0),
        vocab_size: embedding.or(declared_vocab).unwrap_or(vocab.tokens.len()),
        context,
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon") as f32,
        rope: keys.rope(&arch, head_dim, context),
        moe: keys.moe(&arch, layers),
        delta: is_hybrid(&arch).then(|| keys.delta(&arch, layers)),
        attention_bias: arch == "qwen2" || has(".attn_q.bias"),
        attn_output_gate: is_hybrid(&arch),
        qk_norm: has_qk_norm(&arch).unwrap_or_else(|| has("attn_q_norm.weight")),
        tie_embeddings: !index.contains("output.weight"),
        sliding_window: keys.uniform("attention.sliding_window").filter(|&w| w > 0 && w < context),
        hidden_act: "silu".into(),
        bos: vocab.bos,
        eos: keys.eos(&vocab),
        pad: vocab.pad,
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
        notes: Vec::new(),
        issues: Vec::new(),
    };
    keys.refuse_what_is_not_computed(&meta);
    meta.issues = keys.issues;
    meta.notes = keys.notes;
    meta
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
    notes: Vec<String>,
    /// Tokens of the vocabulary.
    tokens: usize,
}

impl Keys<'_> {
    fn issue(&mut self, kind: ErrorKind, what: impl std::fmt::Display) {
        let message = format!("{}: {what}", self.header.path.display());
        self.issues.push(Issue { kind, message });
    }

    fn note(&mut self, what: impl std::fmt::Display) {
        self.notes.push(format!("{}: {what}", self.header.path.display()));
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

    /// A number that can be computed with.
    fn number(&mut self, key: &str) -> Option<f64> {
        let value = self.own(key)?;
        let number = value.as_float().filter(|n| n.is_finite());
        if number.is_none() {
            let shown = value.summary();
            self.wrong(key, "a number", &shown);
        }
        number
    }

    fn required_number(&mut self, key: &str) -> f64 {
        if self.own(key).is_none() {
            self.issue(ErrorKind::Corrupt, format!("{}.{key} is missing", self.prefix));
        }
        self.number(key).unwrap_or(0.0)
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

    fn flag(&mut self, key: &str) -> Option<bool> {
        let value = self.header.get(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            let shown = value.summary();
            self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not true or false"));
        }
        flag
    }

    /// An id at which texts end. Minus one, in 32 bits too, stands for none.
    fn end_id(&mut self, key: &str) -> Option<u32> {
        let key = format!("tokenizer.ggml.{key}");
        let value = self.header.get(&key)?;
        match value.as_int() {
            Some(-1 | 0xffff_ffff) => None,
            int => {
                let id = int.and_then(|id| u32::try_from(id).ok());
                if id.is_none() {
                    let shown = value.summary();
                    self.issue(ErrorKind::Corrupt, format!("{key} is {shown}, not a token id"));
                }
                id
            }
        }
    }

    /// An id that a model can do without: one outside of the vocabulary is none. `without` says what that changes.
    fn spare_id(&mut self, key: &str, without: Option<&str>) -> Option<u32> {
        let key = format!("tokenizer.ggml.{key}");
        let value = self.header.get(&key)?;
        let id = value.as_int().and_then(|id| u32::try_from(id).ok());
        let id = id.filter(|id| (*id as usize) < self.tokens);
        if let (None, Some(without)) = (id, without)
            && !matches!(value.as_int(), Some(-1 | 0xffff_ffff))
        {
            let shown = value.summary();
            self.note(format!("{key} is {shown}, which is no token: {without}"));
        }
        id
    }

    /// The model's own layers, and those of multi-token prediction: the last blocks, by the key that counts them or by
    /// what is in them.
    fn layers(&mut self) -> (usize, usize) {
        let blocks = self.required("block_count");
        if blocks > MAX_LAYERS {
            self.issue(ErrorKind::Corrupt, format!("{}.block_count is {blocks}, absurd", self.prefix));
            return (0, 0);
        }
        let mut seen: Vec<(bool, bool)> = vec![(false, false); blocks];
        for tensor in self.index.iter() {
            let block = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let Some((block, rest)) = block else { continue };
            if let Some(block) = block.parse::<usize>().ok().and_then(|block| seen.get_mut(block)) {
                block.0 = true;
                block.1 |= rest.starts_with("nextn.");
            }
        }
        let marked = seen.iter().rev().take_while(|(_, nextn)| *nextn).count();
        let extra = self.size("nextn_predict_layers").unwrap_or(0);
        let extra = if extra == 0 { marked } else { extra };
        if extra > 0 && extra >= blocks {
            let what = format!("{}.nextn_predict_layers is {extra} of {blocks} blocks", self.prefix);
            self.issue(ErrorKind::Corrupt, what);
            return (0, 0);
        }
        // A block that holds an ordinary layer is not left out, whatever a key says.
        let ordinary = seen.iter().skip(blocks - extra).position(|&(any, nextn)| any && !nextn);
        if let Some(l) = ordinary {
            let what = format!(
                "{}.nextn_predict_layers is {extra}, but block {} holds an ordinary layer",
                self.prefix,
                blocks - extra + l
            );
            self.issue(ErrorKind::Corrupt, what);
        }
        (blocks - extra, extra)
    }

    /// Refuses keys that would change the numbers, and notes those of the architecture that nothing here knows.
    fn refuse_what_is_not_computed(&mut self, meta: &Meta) {
        for (key, neutral) in neutral::GGUF {
            let Some(value) = self.own(key) else { continue };
            if !neutral.holds(&given(value), meta) {
                let what = format!("{}.{key} {} is not supported", self.prefix, value.summary());
                self.issue(ErrorKind::Unsupported, what);
            }
        }
        let prefix = format!("{}.", self.prefix);
        let known = |key: &str| {
            KNOWN.contains(&key)
                || neutral::GGUF.iter().any(|(known, _)| *known == key)
                || ["vision.", "audio."].iter().any(|part| key.starts_with(part))
        };
        let own = self.header.metadata.iter().filter_map(|(key, _)| key.strip_prefix(&prefix));
        let unknown: Vec<String> = own.filter(|key| !known(key)).take(8).map(short_text).collect();
        if !self.prefix.is_empty() && !unknown.is_empty() {
            self.note(format!("keys that are not known, and not used: {prefix}{}", unknown.join(", ")));
        }
    }

    fn rope(&mut self, arch: &str, head_dim: usize, context: usize) -> RopeMeta {
        let default_dim = if is_hybrid(arch) { head_dim / 4 } else { head_dim };
        RopeMeta {
            theta: self.number("rope.freq_base").unwrap_or(10_000.0),
            rotary_dim: self.size("rope.dimension_count").unwrap_or(default_dim),
            // The converter permutes llama's q and k so that adjacent values are a pair.
            interleaved: arch == "llama",
            scaling: self.rope_scaling(context),
        }
    }

    fn rope_scaling(&mut self, context: usize) -> RopeScaling {
        let key = format!("{}.rope.scaling.type", self.prefix);
        let kind = self.text(&key);
        let factor = self.rope_factor();
        // As llama.cpp has it: a factor without a type is that of a linear scaling.
        let kind = kind.as_deref().unwrap_or("linear");
        let scaling = match (kind, factor) {
            ("none", _) | ("linear", None | Some(1.0)) => RopeScaling::None,
            ("linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", Some(factor)) => RopeScaling::Yarn {
                factor,
                original_context: self.size("rope.scaling.original_context_length").unwrap_or(context),
                beta_fast: self.number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
                beta_slow: self.number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
                attention_factor: None,
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            },
            ("yarn", None) => {
                self.issue(ErrorKind::Corrupt, format!("{key} is yarn, without rope.scaling.factor"));
                RopeScaling::None
            }
            _ => {
                self.issue(ErrorKind::Unsupported, format!("{key} {:?} is not supported", short_text(kind)));
                RopeScaling::None
            }
        };
        if !self.index.contains(ROPE_FACTORS) {
            return scaling;
        }
        if scaling != RopeScaling::None {
            let what = format!("{key} {kind:?} together with a tensor {ROPE_FACTORS} is not supported");
            self.issue(ErrorKind::Unsupported, what);
        }
        RopeScaling::Factors { tensor: ROPE_FACTORS.into() }
    }

    /// The factor by which positions are stretched, under its name and the one that older converters gave it. Zero
    /// means that there is none.
    fn rope_factor(&mut self) -> Option<f64> {
        let keys = ["rope.scaling.factor", "rope.scale_linear"];
        let key = keys.into_iter().find(|key| self.own(key).is_some())?;
        let factor = self.number(key)?;
        if factor < 0.0 {
            self.wrong(key, "a factor", &factor.to_string());
        }
        Some(factor).filter(|factor| *factor > 0.0)
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
        let norm_key = self.flag(&format!("{}.expert_weights_norm", self.prefix));
        if norm_key == Some(false) && arch == "qwen3_5_moe" {
            let what = format!("{}.expert_weights_norm false is not supported", self.prefix);
            self.issue(ErrorKind::Unsupported, what);
        }
        let sparse = |l: usize| index.contains(&format!("blk.{l}.ffn_gate_inp.weight"));
        Some(MoeMeta {
            experts,
            top_k,
            intermediate_size: intermediate_size.unwrap_or(0),
            shared_intermediate_size: shared.or_else(|| width(".ffn_down_shexp.weight")),
            // For these llama.cpp normalises without a key.
            normalise_top_k: norm_key.unwrap_or(normalises),
            sparse_layers: (0..layers).map(|l| index.is_empty() || sparse(l)).collect(),
        })
    }

    fn delta(&mut self, arch: &str, layers: usize) -> DeltaMeta {
        let header = self.header;
        let full_attention = match header.get(&format!("{}.attention.recurrent_layers", self.prefix)) {
            Some(value) => self.full_attention(value, layers),
            None => every_nth(layers, self.size("full_attention_interval").unwrap_or(4).max(1)),
        };
        if self.size("full_attention_interval") == Some(0) {
            self.wrong("full_attention_interval", "a size", "zero");
        }
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

    /// From a list that says of each layer whether it is recurrent.
    fn full_attention(&mut self, recurrent: &Value, layers: usize) -> Vec<bool> {
        let key = "attention.recurrent_layers";
        let recurrent = match recurrent {
            Value::Array(array) => int_array(key, array, 1).unwrap_or_default(),
            _ => Vec::new(),
        };
        if recurrent.len() < layers {
            self.wrong(key, &format!("a list of {layers} layers"), &format!("a list of {}", recurrent.len()));
        }
        recurrent.iter().take(layers).map(|&recurrent| recurrent == 0).collect()
    }

    fn vocab(&mut self) -> GgufVocab {
        let header = self.header;
        let array = |key: &str| header.get(&format!("tokenizer.ggml.{key}")).and_then(Value::as_array);
        let strings = |key: &str| array(key).and_then(Array::strings).unwrap_or_default().to_vec();
        let scores: Option<Vec<f32>> =
            array("scores").map(|a| a.values().filter_map(|v| v.as_float()).map(|v| v as f32).collect());
        let types: Option<Vec<i32>> = array("token_type")
            .map(|a| a.values().filter_map(|v| v.as_int().and_then(|v| i32::try_from(v).ok())).collect());
        let given = [("scores", scores.as_ref().map(Vec::len)), ("token_type", types.as_ref().map(Vec::len))];
        for (key, len) in given {
            if len.is_some_and(|len| array(key).is_some_and(|array| array.len() != len)) {
                self.issue(ErrorKind::Corrupt, format!("tokenizer.ggml.{key} is not a list of numbers"));
            }
        }
        let mut vocab = GgufVocab {
            tokens: strings("tokens"),
            merges: strings("merges"),
            scores: scores.unwrap_or_default(),
            token_types: types.unwrap_or_default(),
            add_bos: self.flag("tokenizer.ggml.add_bos_token"),
            add_eos: self.flag("tokenizer.ggml.add_eos_token"),
            add_space_prefix: self.flag("tokenizer.ggml.add_space_prefix"),
            remove_extra_whitespaces: self.flag("tokenizer.ggml.remove_extra_whitespaces"),
            ..GgufVocab::default()
        };
        self.tokens = vocab.tokens.len();
        for (key, len) in [("scores", vocab.scores.len()), ("token_type", vocab.token_types.len())] {
            if len != 0 && len != vocab.tokens.len() {
                let what =
                    format!("tokenizer.ggml.{key} has {len} entries for {} tokens", vocab.tokens.len());
                self.issue(ErrorKind::Corrupt, what);
            }
        }
        vocab.model = self.text("tokenizer.ggml.model").unwrap_or_default();
        vocab.pre = self.text("tokenizer.ggml.pre").unwrap_or_default();
        vocab.bos = self.spare_id("bos_token_id", Some("texts begin without one"));
        vocab.eos = self.end_id("eos_token_id");
        vocab.eot = self.end_id("eot_token_id");
        vocab.unk = self.spare_id("unknown_token_id", Some("text that has no tokens is refused"));
        vocab.pad = self.spare_id("padding_token_id", None);
        if vocab.model == "gpt2" && vocab.pre.is_empty() {
            self.note(
                "tokenizer.ggml.pre is missing, so the file does not name its pre-tokenizer: the oldest one is \
                 taken, and tokens may be wrong",
            );
        }
        vocab
    }

    /// The declared ids, each once.
    fn eos(&mut self, vocab: &GgufVocab) -> Vec<u32> {
        let mut ids: Vec<u32> = Vec::new();
        for id in [vocab.eos, vocab.eot, self.end_id("eom_token_id")].into_iter().flatten() {
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

/// A value as [`neutral`] compares it.
fn given(value: &Value) -> Given {
    match value {
        Value::Bool(flag) => Given::Flag(*flag),
        Value::String(bytes) => Given::Word(String::from_utf8_lossy(bytes).into_owned()),
        Value::Array(array) if array.is_empty() => Given::Nothing,
        Value::Array(Array::Strings(_) | Array::Nested(_)) => Given::Other,
        Value::Array(array) => Given::List(array.values().filter_map(|v| v.as_float()).collect()),
        number => number.as_float().map_or(Given::Other, Given::Number),
    }
}
