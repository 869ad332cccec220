//! What stands beside the weights: `config.json` and its companions for MLX, the metadata for GGUF.

use files::gguf::Value as Gguf;
use files::{Format, Result};
use serde_json::{Map, Value, json};

use super::tensors::Weights;
use super::vocab::{CHAT_TEMPLATE, END_OF_TEXT, TURN_BEGIN, TURN_END, Vocab};
use super::{Layout, SynthOptions};

const RMS_NORM_EPS: f32 = 1e-6;

/// `config.json`, as mlx-lm's `convert` writes it.
pub(super) fn config_json(options: &SynthOptions, weights: &[Weights]) -> Result<Value> {
    let shape = &options.shape;
    let vocab = Vocab::new(shape.vocab_size)?;
    let eos = json!([vocab.control(TURN_END), vocab.control(END_OF_TEXT)]);
    let mut text = json!({
        "attention_bias": false,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "max_position_embeddings": shape.context,
        "mlp_only_layers": [],
        "moe_intermediate_size": shape.expert_intermediate_size,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": f64::from(RMS_NORM_EPS),
        "router_aux_loss_coef": 0.001,
        "use_cache": true,
        "vocab_size": shape.vocab_size,
    });
    let mut own = match shape.delta {
        None => json!({
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 1,
            "intermediate_size": shape.top_k * shape.expert_intermediate_size,
            "norm_topk_prob": true,
            "rope_scaling": null,
            "rope_theta": shape.rope_theta,
            "sliding_window": null,
            "use_sliding_window": false,
        }),
        Some(delta) => json!({
            "model_type": "qwen3_5_moe_text",
            "attn_output_gate": true,
            "full_attention_interval": delta.full_attention_interval,
            "layer_types": layer_types(options),
            "linear_conv_kernel_dim": delta.conv_kernel,
            "linear_key_head_dim": delta.head_dim,
            "linear_num_key_heads": delta.key_heads,
            "linear_num_value_heads": delta.value_heads,
            "linear_value_head_dim": delta.head_dim,
            "mamba_ssm_dtype": "float32",
            "rope_parameters": {
                "mrope_interleaved": true,
                "mrope_section": rope_sections(options),
                "partial_rotary_factor": 0.25,
                "rope_theta": shape.rope_theta,
                "type": "default",
            },
            "shared_expert_intermediate_size": shape.shared_intermediate_size,
        }),
    };
    append(&mut text, &mut own);
    let quantization = quantization(weights);
    let mut outer = json!({
        "eos_token_id": eos,
        "quantization": quantization,
        "quantization_config": quantization,
        "tie_word_embeddings": false,
    });
    if shape.delta.is_some() {
        let mut nested = json!({
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "text_config": text,
        });
        append(&mut nested, &mut outer);
        return Ok(nested);
    }
    append(&mut text, &mut json!({"architectures": ["Qwen3MoeForCausalLM"]}));
    append(&mut text, &mut outer);
    Ok(text)
}

fn append(object: &mut Value, more: &mut Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.append(more);
    }
}

/// 4 bits, and each module that has 8.
fn quantization(weights: &[Weights]) -> Value {
    let mut section = Map::new();
    section.insert("group_size".into(), json!(64));
    section.insert("bits".into(), json!(4));
    section.insert("mode".into(), json!("affine"));
    for tensor in weights {
        if let (Format::Affine { bits: 8, .. }, Some(module)) =
            (tensor.format(), tensor.name.strip_suffix(".weight"))
        {
            section.insert(module.into(), json!({"group_size": 64, "bits": 8}));
        }
    }
    Value::Object(section)
}

fn layer_types(options: &SynthOptions) -> Vec<&'static str> {
    let kind = |l| if options.shape.is_full_attention(l) { "full_attention" } else { "linear_attention" };
    (0..options.shape.layers).map(kind).collect()
}

/// How the rotary pairs are shared by time, height and width; for text they are all the same.
fn rope_sections(options: &SynthOptions) -> [usize; 3] {
    let pairs = options.shape.rotary_dim() / 2;
    let third = pairs / 3;
    [pairs - third - (pairs - third) / 2, (pairs - third) / 2, third]
}

/// `tokenizer_config.json`.
pub(super) fn tokenizer_config_json(options: &SynthOptions) -> Value {
    json!({
        "add_bos_token": false,
        "bos_token": null,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": TURN_END,
        "model_max_length": options.shape.context,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "Qwen2Tokenizer",
    })
}

/// The metadata of a GGUF file, keys as llama.cpp's converter writes them.
pub(super) fn gguf_metadata(options: &SynthOptions) -> Result<Vec<(String, Gguf)>> {
    let shape = &options.shape;
    let arch = if shape.delta.is_some() { "qwen35moe" } else { "qwen3moe" };
    let mut keys = vec![
        ("general.architecture".to_string(), Gguf::string(arch)),
        ("general.type".into(), Gguf::string("model")),
        ("general.name".into(), Gguf::string(format!("{} (random weights)", shape.name))),
        ("general.description".into(), Gguf::string(options.describe())),
        ("general.quantization_version".into(), Gguf::U32(2)),
        ("general.file_type".into(), Gguf::U32(if options.layout == Layout::GgufQ4K { 15 } else { 2 })),
    ];
    let mut own = |key: &str, value: Gguf| keys.push((format!("{arch}.{key}"), value));
    let size = |n: usize| Gguf::U32(n as u32);
    own("block_count", size(shape.layers));
    own("context_length", size(shape.context));
    own("embedding_length", size(shape.hidden_size));
    own("attention.head_count", size(shape.heads));
    own("attention.head_count_kv", size(shape.kv_heads));
    own("attention.key_length", size(shape.head_dim));
    own("attention.value_length", size(shape.head_dim));
    own("attention.layer_norm_rms_epsilon", Gguf::F32(RMS_NORM_EPS));
    own("rope.freq_base", Gguf::F32(shape.rope_theta));
    own("rope.dimension_count", size(shape.rotary_dim()));
    own("expert_count", size(shape.experts));
    own("expert_used_count", size(shape.top_k));
    own("expert_feed_forward_length", size(shape.expert_intermediate_size));
    match shape.delta {
        None => own("feed_forward_length", size(shape.top_k * shape.expert_intermediate_size)),
        Some(delta) => {
            let [t, h, w] = rope_sections(options).map(|n| n as i32);
            own("rope.dimension_sections", Gguf::i32s(&[t, h, w, 0]));
            own("expert_shared_feed_forward_length", size(shape.shared_intermediate_size.unwrap_or(0)));
            own("ssm.conv_kernel", size(delta.conv_kernel));
            own("ssm.state_size", size(delta.head_dim));
            own("ssm.group_count", size(delta.key_heads));
            own("ssm.time_step_rank", size(delta.value_heads));
            own("ssm.inner_size", size(delta.value_heads * delta.head_dim));
            own("full_attention_interval", size(delta.full_attention_interval));
        }
    }
    keys.extend(gguf_vocab(options)?);
    Ok(keys)
}

fn gguf_vocab(options: &SynthOptions) -> Result<Vec<(String, Gguf)>> {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    let vocab = Vocab::new(options.shape.vocab_size)?;
    let controls = [END_OF_TEXT, TURN_BEGIN, TURN_END];
    let kinds: Vec<i32> = vocab
        .tokens
        .iter()
        .map(|token| if controls.contains(&token.as_str()) { CONTROL } else { NORMAL })
        .collect();
    let pre = if options.shape.delta.is_some() { "qwen35" } else { "qwen2" };
    let (eos, pad) = (vocab.control(TURN_END), vocab.control(END_OF_TEXT));
    let key = |key: &str, value| (format!("tokenizer.{key}"), value);
    Ok(vec![
        key("ggml.model", Gguf::string("gpt2")),
        key("ggml.pre", Gguf::string(pre)),
        key("ggml.merges", Gguf::strings(vocab.merges.iter().map(|pair| pair.join(" ")))),
        key("ggml.tokens", Gguf::strings(vocab.tokens)),
        key("ggml.token_type", Gguf::i32s(&kinds)),
        key("ggml.eos_token_id", Gguf::U32(eos)),
        key("ggml.padding_token_id", Gguf::U32(pad)),
        key("ggml.add_bos_token", Gguf::Bool(false)),
        key("chat_template", Gguf::string(CHAT_TEMPLATE)),
    ])
}
