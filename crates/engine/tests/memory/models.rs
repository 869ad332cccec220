//! Models of any size to measure with: random weights under the names and keys that GGUF has for them.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use files::gguf::Value;
use files::write::{GgufTensor, GgufWriter, SafetensorsTensor, SafetensorsWriter};
use files::{Format, TensorIndex};

/// What a model is made of.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Three of four layers have the gated delta rule, with this many heads of 128 x 128 values.
    pub(crate) delta_heads: usize,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    /// 0 is a dense model.
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    pub(crate) intermediate: usize,
}

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const STATE: usize = 128;
const CONV: usize = 4;

impl Shape {
    fn arch(&self) -> &'static str {
        match (self.delta_heads, self.experts) {
            (0, 0) => "qwen3",
            (0, _) => "qwen3moe",
            _ => "qwen35moe",
        }
    }

    fn is_delta(&self, layer: usize) -> bool {
        self.delta_heads > 0 && layer % 4 != 3
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let arch = self.arch();
        let mut all = vec![("general.architecture".to_string(), Value::string(arch))];
        let mut number = |key: &str, n: usize| all.push((format!("{arch}.{key}"), Value::U32(n as u32)));
        number("block_count", self.layers);
        number("context_length", self.context);
        number("embedding_length", self.hidden);
        number("feed_forward_length", self.intermediate);
        number("attention.head_count", HEADS);
        number("attention.head_count_kv", KV_HEADS);
        number("attention.key_length", HEAD_DIM);
        number("attention.value_length", HEAD_DIM);
        if self.experts > 0 {
            number("expert_count", self.experts);
            number("expert_used_count", self.top_k);
            number("expert_feed_forward_length", self.intermediate);
        }
        if self.delta_heads > 0 {
            number("expert_shared_feed_forward_length", self.intermediate);
            number("ssm.conv_kernel", CONV);
            number("ssm.state_size", STATE);
            number("ssm.group_count", self.delta_heads);
            number("ssm.time_step_rank", self.delta_heads);
            number("ssm.inner_size", self.delta_heads * STATE);
            number("full_attention_interval", 4);
            number("rope.dimension_count", HEAD_DIM / 4);
        }
        all.push((format!("{arch}.rope.freq_base"), Value::F32(1e6)));
        all.push((format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6)));
        all
    }

    fn tensors(&self) -> Vec<GgufTensor> {
        let (h, i, vocab) = (self.hidden, self.intermediate, self.vocab);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], format| all.push(GgufTensor::new(name, shape, format));
        add("token_embd.weight".into(), &[vocab, h], Format::Q4_0);
        add("output.weight".into(), &[vocab, h], Format::Q4_0);
        add("output_norm.weight".into(), &[h], Format::F32);
        for l in 0..self.layers {
            let mut add = |name: &str, shape: &[usize], format| add(format!("blk.{l}.{name}"), shape, format);
            add("attn_norm.weight", &[h], Format::F32);
            let after = if self.delta_heads > 0 { "post_attention_norm.weight" } else { "ffn_norm.weight" };
            add(after, &[h], Format::F32);
            if self.is_delta(l) {
                let inner = self.delta_heads * STATE;
                add("attn_qkv.weight", &[3 * inner, h], Format::Q4_0);
                add("attn_gate.weight", &[inner, h], Format::Q4_0);
                add("ssm_a", &[self.delta_heads], Format::F32);
                add("ssm_dt.bias", &[self.delta_heads], Format::F32);
                add("ssm_alpha.weight", &[self.delta_heads, h], Format::Q4_0);
                add("ssm_beta.weight", &[self.delta_heads, h], Format::Q4_0);
                add("ssm_conv1d.weight", &[3 * inner, CONV], Format::F32);
                add("ssm_norm.weight", &[STATE], Format::F32);
                add("ssm_out.weight", &[h, inner], Format::Q4_0);
            } else {
                let gated = 1 + usize::from(self.delta_heads > 0);
                add("attn_q.weight", &[gated * HEADS * HEAD_DIM, h], Format::Q4_0);
                add("attn_k.weight", &[KV_HEADS * HEAD_DIM, h], Format::Q4_0);
                add("attn_v.weight", &[KV_HEADS * HEAD_DIM, h], Format::Q4_0);
                add("attn_output.weight", &[h, HEADS * HEAD_DIM], Format::Q4_0);
                add("attn_q_norm.weight", &[HEAD_DIM], Format::F32);
                add("attn_k_norm.weight", &[HEAD_DIM], Format::F32);
            }
            let mut mlp = |suffix: &str, outer: &[usize]| {
                let shape = |rows, cols| [outer, &[rows, cols]].concat();
                add(&format!("ffn_gate{suffix}.weight"), &shape(i, h), Format::Q4_0);
                add(&format!("ffn_up{suffix}.weight"), &shape(i, h), Format::Q4_0);
                add(&format!("ffn_down{suffix}.weight"), &shape(h, i), Format::Q4_0);
            };
            match self.experts {
                0 => mlp("", &[]),
                n => mlp("_exps", &[n]),
            }
            if self.delta_heads > 0 {
                mlp("_shexp", &[]);
                add("ffn_gate_inp_shexp.weight", &[h], Format::F32);
            }
            if self.experts > 0 {
                add("ffn_gate_inp.weight", &[self.experts, h], Format::F32);
            }
        }
        all
    }

    /// Writes the model, with the tokenizer of another GGUF file if there is one.
    pub(crate) fn write_gguf(&self, path: &Path, tokenizer: Option<&Path>) {
        let mut metadata = self.metadata();
        if let Some(path) = tokenizer {
            let file = File::open(path).expect("the vocabulary is in the repository");
            let bytes = file.metadata().expect("has a length").len();
            let header =
                files::gguf::Header::read(std::io::BufReader::new(file), bytes, path).expect("reads");
            metadata.extend(header.metadata.into_iter().filter(|(key, _)| key.starts_with("tokenizer.")));
        }
        let tensors = self.tensors();
        let out = BufWriter::with_capacity(1 << 20, File::create(path).expect("writable"));
        let mut writer = GgufWriter::new(out, &metadata, &tensors).expect("a header");
        let noise = noise_q4_0();
        for tensor in &tensors {
            let values: usize = tensor.shape.iter().product();
            if tensor.format == Format::F32 {
                writer.write(&floats(&tensor.name, values)).expect("writable");
                continue;
            }
            let mut left = tensor.format.row_bytes(0, values).expect("whole blocks");
            while left > 0 {
                let here = left.min(noise.len());
                writer.write(&noise[..here]).expect("writable");
                left -= here;
            }
        }
        writer.finish().expect("complete");
    }
}

/// Blocks of a small scale and random nibbles, about a megabyte.
fn noise_q4_0() -> Vec<u8> {
    let scale = half::f16::from_f32(0.01).to_le_bytes();
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..60_000).flat_map(|_| [&scale[..], &std::array::from_fn::<u8, 16, _>(|_| byte())].concat()).collect()
}

/// Norms are 1, decays negative, everything else small and different.
fn floats(name: &str, count: usize) -> Vec<u8> {
    let value = |i: usize| match name {
        _ if name.contains("norm") => 1.0,
        _ if name.ends_with("ssm_a") => -0.5,
        _ => ((i * 2_654_435_761) % 1000) as f32 / 1000.0 - 0.5,
    };
    (0..count).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// A checkpoint as Hugging Face stores it, small in every way, but with many experts, each matrix of each a tensor of
/// its own.
pub(crate) fn write_many_tensors(dir: &Path, layers: usize, experts: usize, vocab: usize) {
    let (hidden, intermediate) = (32, 32);
    let config = serde_json::json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": 64, "moe_intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
        "num_experts": experts, "num_experts_per_tok": 4, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "max_position_embeddings": 4096, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "vocab_size": vocab, "tie_word_embeddings": false, "attention_bias": false, "torch_dtype": "bfloat16",
    });
    std::fs::write(dir.join("config.json"), config.to_string()).expect("writable");
    let mut tensors = vec![("model.embed_tokens".to_string(), vec![vocab, hidden])];
    tensors.push(("lm_head".into(), vec![vocab, hidden]));
    tensors.push(("model.norm".into(), vec![hidden]));
    for l in 0..layers {
        let mut add = |name: String, shape: &[usize]| {
            tensors.push((format!("model.layers.{l}.{name}"), shape.to_vec()))
        };
        for norm in ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"] {
            add(norm.into(), &[32]);
        }
        for proj in ["q", "k", "v", "o"] {
            add(format!("self_attn.{proj}_proj"), if proj == "o" { &[32, 64] } else { &[64, 32] });
        }
        add("mlp.gate".into(), &[experts, hidden]);
        for e in 0..experts {
            for proj in ["gate", "up", "down"] {
                add(format!("mlp.experts.{e}.{proj}_proj"), &[32, 32]);
            }
        }
    }
    let list: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| SafetensorsTensor::new(format!("{name}.weight"), shape, "BF16"))
        .collect();
    let out = BufWriter::new(File::create(dir.join("model.safetensors")).expect("writable"));
    let mut writer = SafetensorsWriter::new(out, &[], &list).expect("a header");
    for (name, shape) in &tensors {
        let values = floats(name, shape.iter().product());
        let halves: Vec<u8> = values.chunks_exact(4).flat_map(|word| [word[2], word[3]]).collect();
        writer.write(&halves).expect("writable");
    }
    writer.finish().expect("complete");
}

/// A `tokenizer.json` with the vocabulary of a GGUF file; what else it says is of the golden models.
pub(crate) fn write_tokenizer_json(dir: &Path, vocabulary: &Path, golden: &Path) {
    let (_, meta) = TensorIndex::open(vocabulary).expect("opens");
    let files::TokenizerSource::Gguf(vocab) = meta.tokenizer else { panic!("no vocabulary") };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden).expect("readable")).expect("JSON");
    let tokens = vocab.tokens.iter().enumerate().map(|(id, token)| (text(token), id.into()));
    json["model"]["vocab"] = serde_json::Value::Object(tokens.collect());
    json["model"]["merges"] = vocab
        .merges
        .iter()
        .map(|merge| text(merge).split(' ').map(str::to_string).collect::<Vec<_>>())
        .collect();
    json["added_tokens"] = serde_json::json!([]);
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).expect("writable");
}

/// Bytes of all routed experts of a model.
pub(crate) fn expert_bytes(path: &Path) -> u64 {
    let (index, _) = TensorIndex::open(path).expect("opens");
    index.iter().filter(|t| t.name.contains("_exps")).map(files::Tensor::bytes).sum()
}
