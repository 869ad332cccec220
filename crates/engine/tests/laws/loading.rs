//! What a file says is computed, refused by name, or known to change nothing.

use std::path::Path;

use files::gguf::Value;
use files::write::GgufTensor;
use files::{ErrorKind, Format};
use serde_json::json;
use tidemill_engine::inspect::Inspection;
use tidemill_engine::{Device, OpenOptions, Session};

use crate::common::edit::{Folder, Gguf};
use crate::common::{all_logits, open, try_open};

fn options() -> OpenOptions {
    OpenOptions { device: Device::Cpu, exact: true, ..OpenOptions::default() }
}

fn logits(path: &Path) -> Vec<Vec<f32>> {
    let model = open(path, &options());
    let mut session = Session::new(&model).expect("a session");
    all_logits(&mut session, &[5, 6, 7, 8, 9]).expect("runs")
}

fn gguf_logits(gguf: &Gguf) -> Vec<Vec<f32>> {
    let (_dir, path) = gguf.save();
    logits(&path)
}

/// Asserts that a model is refused, with a message that holds `part`.
#[track_caller]
fn refused(path: &Path, kind: ErrorKind, part: &str) {
    let e = try_open(path, &options()).err().unwrap_or_else(|| panic!("{part}: it was accepted"));
    assert_eq!(e.kind(), kind, "{e}");
    assert!(e.message().contains(part), "{e} does not say {part:?}");
    let inspected = Inspection::of(path).map(|i| i.footprint.err().map(|(_, why)| why));
    assert_eq!(inspected.ok().flatten().as_deref(), Some(e.message()), "inspect says something else");
}

#[track_caller]
fn gguf_refused(gguf: &Gguf, kind: ErrorKind, part: &str) {
    let (_dir, path) = gguf.save();
    refused(&path, kind, part);
}

#[test]
fn layers_of_multi_token_prediction_are_left_out() {
    let plain = Gguf::golden("qwen3_5-dense/gguf-Q4_0");
    let right = gguf_logits(&plain);
    let nextn = |gguf: Gguf| {
        gguf.with("qwen35.block_count", Value::U32(6))
            .zeros("blk.5.nextn.eh_proj.weight", &[64, 128])
            .zeros("blk.5.nextn.enorm.weight", &[64])
            .zeros("blk.5.attn_norm.weight", &[64])
    };
    let keyed = nextn(plain.clone()).with("qwen35.nextn_predict_layers", Value::U32(1));
    assert_eq!(gguf_logits(&keyed), right);
    let (_dir, path) = keyed.save();
    assert_eq!(Inspection::of(&path).unwrap().left_out, [("multi-token prediction", 3)]);
    // The tensors say it where the key is missing.
    assert_eq!(gguf_logits(&nextn(plain.clone())), right);
    // Nothing ordinary is left out because of a key.
    let lying = plain.clone().with("qwen35.nextn_predict_layers", Value::U32(1));
    gguf_refused(&lying, ErrorKind::Corrupt, "block 4 holds an ordinary layer");
    let all = plain.clone().with("qwen35.nextn_predict_layers", Value::U32(5));
    gguf_refused(&all, ErrorKind::Corrupt, "nextn_predict_layers is 5 of 5 blocks");
    // Where the tensors were taken out and the count was not.
    let stripped =
        plain.with("qwen35.block_count", Value::U32(6)).with("qwen35.nextn_predict_layers", Value::U32(1));
    assert_eq!(gguf_logits(&stripped), right);
}

#[test]
fn what_text_does_not_need_is_known_by_its_role() {
    let right = logits(Folder::golden("qwen3_5-dense/bf16").path());
    let folder = Folder::golden("qwen3_5-dense/bf16");
    folder.zeros(&[
        ("mtp.layers.0.self_attn.k_proj.weight", &[4, 4], "F8_E4M3"),
        ("model.language_model.layers.3.self_attn.rotary_emb.inv_freq", &[8], "F32"),
        ("model.language_model.layers.0.linear_attn.in_proj_z._extra_state", &[8], "U8"),
        ("model.multi_modal_projector.linear.weight", &[4, 4], "BF16"),
        ("audio_tower.conv.weight", &[4, 4], "BF16"),
        ("v_head.summary.weight", &[4, 4], "BF16"),
        ("model.language_model.position_ids", &[4], "I64"),
    ]);
    assert_eq!(logits(folder.path()), right);
    for (name, dtype) in [
        ("model.language_model.layers.0.mlp.up_proj.bias", "BF16"),
        ("model.language_model.extra", "F8_E4M3"),
    ] {
        let folder = Folder::golden("qwen3_5-dense/bf16");
        refused(folder.zeros(&[(name, &[4], dtype)]).path(), ErrorKind::Unsupported, name);
    }
    let gguf = Gguf::golden("qwen3-dense/gguf-Q4_0");
    let right = gguf_logits(&gguf);
    let spare =
        gguf.clone().zeros("v.blk.0.attn_q.weight", &[4, 4]).zeros("blk.0.attn_rot_embd.weight", &[16]);
    assert_eq!(gguf_logits(&spare), right);
    gguf_refused(&gguf.zeros("blk.0.ffn_gate.bias", &[4]), ErrorKind::Unsupported, "blk.0.ffn_gate.bias");
}

#[test]
fn keys_of_configs_that_change_numbers_are_refused_by_name() {
    let silu = logits(Folder::golden("qwen3-dense/bf16").path());
    for (key, value) in [
        ("hidden_act", json!("relu")),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_act", json!(7)),
        ("mlp_bias", json!(true)),
        ("final_logit_softcapping", json!(30.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(0.22)),
        ("attention_multiplier", json!(0.015)),
        ("logits_scaling", json!(8.0)),
        ("query_pre_attn_scalar", json!(256)),
        ("scoring_func", json!("sigmoid")),
        ("routed_scaling_factor", json!(2.5)),
        ("clip_qkv", json!(8.0)),
        ("use_qk_norm", json!(false)),
        ("is_causal", json!(false)),
        ("position_embedding_type", json!("alibi")),
        ("norm_type", json!("layernorm")),
        ("rope_parameters", json!("plain")),
        ("rope_parameters", json!({"sliding_attention": {"rope_theta": 5.0}})),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0})),
        ("rope_scaling", json!({"rope_type": 3})),
        ("rope_theta", json!("big")),
        ("partial_rotary_factor", json!(0.3)),
        ("layer_types", json!(["full_attention", "chunked_attention", "full_attention"])),
        ("layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
        ("attention_bias", json!("no")),
        ("attention_bias", json!(true)),
        ("rms_norm_eps", json!("small")),
    ] {
        let folder = Folder::golden("qwen3-dense/bf16");
        folder.set(key, value.clone());
        let e =
            try_open(folder.path(), &options()).err().unwrap_or_else(|| panic!("{key} {value}: accepted"));
        let named = match key {
            "attention_bias" if value == true => "q_proj.bias",
            "partial_rotary_factor" => "rotated values",
            "rope_scaling" => "rope",
            _ => key,
        };
        assert!(e.message().contains(named), "{key} {value}: {e}");
    }
    for (key, value) in [
        ("hidden_act", json!("swish")),
        ("mlp_bias", json!(false)),
        ("final_logit_softcapping", json!(null)),
        ("embedding_multiplier", json!(1.0)),
        ("attention_multiplier", json!(32f64.powf(-0.5))),
        ("query_pre_attn_scalar", json!(32)),
        ("scoring_func", json!("softmax")),
        ("use_qk_norm", json!(true)),
        ("sliding_window", json!(16)),
        ("layer_types", json!(["full_attention", "full_attention", "full_attention"])),
        ("rope_scaling", json!({"rope_type": "default"})),
        ("something_else", json!(7)),
    ] {
        let folder = Folder::golden("qwen3-dense/bf16");
        folder.set(key, value.clone());
        assert_eq!(logits(folder.path()), silu, "{key} {value}");
    }
}

#[test]
fn keys_of_gguf_files_that_change_numbers_are_refused_by_name() {
    let plain = Gguf::golden("qwen3-dense/gguf-Q4_0");
    let right = gguf_logits(&plain);
    let key = |key: &str| format!("qwen3.{key}");
    for (name, value) in [
        ("hidden_act", Value::string("relu")),
        ("attention.causal", Value::Bool(false)),
        ("attention.clamp_kqv", Value::F32(8.0)),
        ("attention.max_alibi_bias", Value::F32(8.0)),
        ("attention.scale", Value::F32(0.5)),
        ("attention.value_length", Value::U32(16)),
        ("attention.temperature_scale", Value::F32(0.1)),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("final_logit_softcapping", Value::F32(30.0)),
        ("logit_scale", Value::F32(0.1)),
        ("embedding_scale", Value::F32(12.0)),
        ("residual_scale", Value::F32(0.2)),
        ("expert_gating_func", Value::U32(2)),
        ("expert_weights_scale", Value::F32(2.5)),
        ("swiglu_clamp_exp", Value::f32s(&[7.0, 7.0, 7.0])),
        ("rope.scaling.attn_factor", Value::F32(1.2)),
        ("rope.scaling.type", Value::string("longrope")),
        ("rope.scaling.type", Value::U32(1)),
        ("rope.scale_linear", Value::F32(-4.0)),
        ("rope.freq_base", Value::string("1e6")),
        ("rope.freq_base", Value::F32(f32::NAN)),
        ("rope.dimension_count", Value::I32(-2)),
        ("attention.sliding_window", Value::U32(16)),
    ] {
        let gguf = plain.clone().with(&key(name), value.clone());
        let (_dir, path) = gguf.save();
        let e = try_open(&path, &options()).err().unwrap_or_else(|| panic!("{name} {value:?}: accepted"));
        let named = if name == "attention.sliding_window" { "sliding-window" } else { name };
        assert!(e.message().contains(named), "{name} {value:?}: {e}");
    }
    for (name, value) in [
        ("hidden_act", Value::string("silu")),
        ("attention.causal", Value::Bool(true)),
        ("attention.scale", Value::F32(0.0)),
        ("logit_scale", Value::F32(1.0)),
        ("expert_gating_func", Value::U32(1)),
        ("swiglu_clamp_exp", Value::f32s(&[0.0, 0.0, 0.0])),
        ("rope.scaling.type", Value::string("none")),
        ("rope.scale_linear", Value::F32(1.0)),
        ("attention.sliding_window", Value::U32(0)),
    ] {
        assert_eq!(gguf_logits(&plain.clone().with(&key(name), value.clone())), right, "{name} {value:?}");
    }
    let (_dir, path) = plain.with(&key("dance"), Value::U32(1)).save();
    let model = open(&path, &options());
    assert!(model.notes().iter().any(|note| note.contains("not used: qwen3.dance")), "{:?}", model.notes());
}

#[test]
fn keys_of_linear_scaling_have_old_names_too() {
    let plain = Gguf::golden("qwen3-dense/gguf-Q4_0");
    let typed = plain.clone().with("qwen3.rope.scaling.type", Value::string("linear"));
    let right = gguf_logits(&typed.with("qwen3.rope.scaling.factor", Value::F32(4.0)));
    assert_ne!(right, gguf_logits(&plain));
    for key in ["qwen3.rope.scale_linear", "qwen3.rope.scaling.factor"] {
        assert_eq!(gguf_logits(&plain.clone().with(key, Value::F32(4.0))), right, "{key}");
    }
    let off = plain.clone().with("qwen3.rope.scaling.type", Value::string("none"));
    assert_eq!(gguf_logits(&off.with("qwen3.rope.scaling.factor", Value::F32(4.0))), gguf_logits(&plain));
    // The other form of a config's keys; one that has both must agree with itself.
    let scaling = json!({"rope_type": "linear", "factor": 4.0});
    let old = Folder::golden("qwen3-dense/bf16");
    old.set("rope_scaling", scaling.clone());
    let new = Folder::golden("qwen3-dense/bf16");
    new.config(|config| {
        let theta = config.as_object_mut().unwrap().remove("rope_theta");
        config["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6});
        assert!(theta.is_none_or(|theta| theta == 1e6));
    });
    let right = logits(old.path());
    assert_eq!(logits(new.path()), right);
    assert_eq!(logits(new.set("rope_scaling", scaling).path()), right);
    let other = new.set("rope_scaling", json!({"rope_type": "linear", "factor": 2.0}));
    refused(other.path(), ErrorKind::Corrupt, "rope_scaling and rope_parameters differ in factor");
}

#[test]
fn yarn_is_the_same_in_both_formats() {
    let gguf = Gguf::golden("qwen3-dense/gguf-F16")
        .with("qwen3.rope.scaling.type", Value::string("yarn"))
        .with("qwen3.rope.scaling.factor", Value::F32(4.0))
        .with("qwen3.rope.scaling.original_context_length", Value::U32(64));
    let folder = Folder::golden("qwen3-dense/bf16");
    let plain = logits(folder.path());
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    folder.set("rope_scaling", yarn);
    let (a, b) = (gguf_logits(&gguf), logits(folder.path()));
    let largest = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        let differences = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs());
        differences.fold(0f32, f32::max)
    };
    // The weights of the two goldens differ by their rounding to f16 and bf16.
    let formats = largest(&gguf_logits(&Gguf::golden("qwen3-dense/gguf-F16")), &plain);
    assert!(largest(&a, &b) <= 4.0 * formats + 1e-4, "{} beside {formats}", largest(&a, &b));
    assert!(largest(&b, &plain) > 100.0 * largest(&a, &b), "yarn does nothing");
    let without = gguf.without("qwen3.rope.scaling.factor");
    gguf_refused(&without, ErrorKind::Corrupt, "rope.scaling.type is yarn, without rope.scaling.factor");
}

#[test]
fn ids_that_nobody_needs_may_be_wrong() {
    let plain = Gguf::golden("qwen3-dense/gguf-Q4_0");
    let right = gguf_logits(&plain);
    for (key, value, noted) in [
        ("padding_token_id", Value::U32(99_999), false),
        ("padding_token_id", Value::I32(-7), false),
        ("bos_token_id", Value::U32(u32::MAX), false),
        ("bos_token_id", Value::U32(512), true),
        ("unknown_token_id", Value::U32(99_999), true),
        ("eos_token_id", Value::I32(-1), false),
    ] {
        let (_dir, path) = plain.clone().with(&format!("tokenizer.ggml.{key}"), value.clone()).save();
        assert_eq!(logits(&path), right, "{key} {value:?}");
        let found = Inspection::of(&path).unwrap();
        assert!(found.tokenizer.is_ok(), "{key} {value:?}: {:?}", found.tokenizer);
        assert_eq!(found.notes.iter().any(|note| note.contains(key)), noted, "{key} {value:?}");
    }
    gguf_refused(&plain.with("tokenizer.ggml.eos_token_id", Value::U32(512)), ErrorKind::Corrupt, "512");
    let folder = Folder::golden("qwen3-dense/bf16");
    let right = logits(folder.path());
    for (key, value) in
        [("pad_token_id", json!(512)), ("pad_token_id", json!("x")), ("bos_token_id", json!(-1))]
    {
        assert_eq!(logits(folder.set(key, value.clone()).path()), right, "{key} {value}");
    }
    let folder = Folder::golden("qwen3-dense/bf16");
    refused(folder.set("eos_token_id", json!([1, 512])).path(), ErrorKind::Corrupt, "512");
}

#[test]
fn entries_of_mlx_modules_are_found_under_any_prefix() {
    let folder = Folder::golden("qwen3_5_moe-e32/mlx-4bit");
    let right = logits(folder.path());
    for section in ["quantization", "quantization_config"] {
        folder.json("config.json", |config| {
            let old = config[section].as_object().unwrap().clone();
            let renamed = |key: String| key.replace("language_model.model.", "model.language_model.");
            let entries = old.into_iter().map(|(key, value)| (renamed(key), value));
            config[section] = serde_json::Value::Object(entries.collect());
        });
    }
    assert_eq!(logits(folder.path()), right);
    // Without the entries the shapes say it.
    for section in ["quantization", "quantization_config"] {
        folder.json("config.json", |config| config[section] = json!({"group_size": 64, "bits": 4}));
    }
    assert_eq!(logits(folder.path()), right);
}

#[test]
fn other_modes_of_mlx_are_named() {
    let folder = Folder::golden("llama-dense/mlx-4bit");
    for section in ["quantization", "quantization_config"] {
        folder.json("config.json", |config| config[section]["mode"] = "mxfp4".into());
    }
    refused(folder.path(), ErrorKind::Unsupported, "MLX quantization mode mxfp4 is not supported");
}

#[test]
fn a_head_that_is_promised_and_not_there_is_the_embedding() {
    let folder = Folder::golden("qwen3_5-dense/bf16");
    let right = logits(folder.path());
    let first = "model-00001-of-00002.safetensors";
    assert_eq!(logits(folder.promise("lm_head.weight", first).path()), right);
    // Anything else that is promised is missed.
    folder.promise("model.language_model.layers.0.mlp.up_proj.bias", first);
    refused(folder.path(), ErrorKind::Corrupt, "up_proj.bias is not in it, though");
    let folder = Folder::golden("qwen3_5-dense/bf16");
    folder.promise("lm_head.weight", first).set("tie_word_embeddings", json!(false));
    folder.json("config.json", |config| config["tie_word_embeddings"] = json!(false));
    refused(folder.path(), ErrorKind::Corrupt, "lm_head.weight is not in it, though");
}

#[test]
fn experts_with_gate_and_up_in_one_tensor() {
    let plain = Gguf::golden("qwen3_moe-kq/gguf-Q4_K_M");
    let right = gguf_logits(&plain);
    let mut fused = plain;
    let layers = fused.tensors.iter().filter(|(t, _)| t.name.ends_with("ffn_gate_exps.weight")).count();
    let mut done = 0;
    for l in 0..layers {
        let (gate, gate_bytes) = fused.take(&format!("blk.{l}.ffn_gate_exps.weight"));
        let (up, up_bytes) = fused.take(&format!("blk.{l}.ffn_up_exps.weight"));
        assert_eq!(gate.format, up.format);
        let expert = gate_bytes.len() / gate.shape[0];
        let pairs = gate_bytes.chunks(expert).zip(up_bytes.chunks(expert));
        let bytes: Vec<u8> = pairs.flat_map(|(gate, up)| [gate, up].concat()).collect();
        let shape = [gate.shape[0], 2 * gate.shape[1], gate.shape[2]];
        let name = format!("blk.{l}.ffn_gate_up_exps.weight");
        fused.tensors.push((GgufTensor::new(name, &shape, gate.format), bytes));
        done += 1;
    }
    assert!(done > 1);
    assert_eq!(gguf_logits(&fused), right);
    let (half, bytes) = fused.take("blk.0.ffn_gate_up_exps.weight");
    let shape = [half.shape[0], half.shape[1] / 2, half.shape[2]];
    fused.tensors.push((GgufTensor::new(&half.name, &shape, half.format), bytes[..bytes.len() / 2].to_vec()));
    gguf_refused(&fused, ErrorKind::Corrupt, "ffn_gate_up_exps");
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let folder = Folder::golden("qwen3_5-dense/bf16");
    let right = logits(folder.path());
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"] {
        let path = folder.path().join(name);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, [b"\xef\xbb\xbf", text.as_slice()].concat()).unwrap();
    }
    assert_eq!(logits(folder.path()), right);
    assert!(Inspection::of(folder.path()).unwrap().tokenizer.is_ok());
}

/// The mark of who wrote a file may be lost on the way: Hugging Face's norms are `w - 1` whatever else is said.
#[test]
fn the_convolution_shows_who_wrote_the_norms() {
    let folder = Folder::golden("qwen3_5-dense/bf16");
    let right = logits(folder.path());
    folder.json("config.json", |config| config["quantization"] = json!({"group_size": 64, "bits": 4}));
    assert_eq!(logits(folder.path()), right);
}

#[test]
fn biases_that_are_promised_must_be_there() {
    let gguf = Gguf::golden("qwen3-dense/gguf-Q4_0");
    let one = gguf.clone().zeros("blk.0.attn_q.bias", &[128]);
    gguf_refused(&one, ErrorKind::NotFound, "blk.0.attn_k.bias");
    let (mut all, rows) = (gguf.clone(), [("q", 128), ("k", 64), ("v", 64)]);
    for l in 0..3 {
        for (which, rows) in rows {
            all = all.zeros(&format!("blk.{l}.attn_{which}.bias"), &[rows]);
        }
    }
    assert_eq!(gguf_logits(&all), gguf_logits(&gguf));
    let mut odd = all.clone();
    let (bias, _) = odd.take("blk.1.attn_v.bias");
    odd.tensors.push((GgufTensor::new(bias.name, &[64], Format::F16), vec![0; 128]));
    assert_eq!(gguf_logits(&odd), gguf_logits(&gguf));
}

#[test]
fn architectures_are_named_before_their_keys() {
    let folder = Folder::golden("qwen3-dense/bf16");
    folder.set("model_type", json!("gemma9")).set("hidden_act", json!("gelu_pytorch_tanh"));
    refused(folder.path(), ErrorKind::Unsupported, "architecture gemma9 is not supported");
}
