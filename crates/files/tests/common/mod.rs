//! Small model files made by hand.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::path::{Path, PathBuf};

use tidemill_files::gguf::{self, Value};
use tidemill_files::write::{GgufTensor, GgufWriter, SafetensorsTensor, SafetensorsWriter};
use tidemill_files::{Error, ErrorKind, Format, Meta, Result, TensorIndex};

pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
}

/// The metadata of a small llama.
pub fn llama_keys() -> Vec<(String, Value)> {
    let keys = [
        ("general.architecture", Value::string("llama")),
        ("llama.block_count", Value::U32(2)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(96)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::string("gpt2")),
        ("tokenizer.ggml.tokens", Value::strings(["a", "b", "<|im_end|>"])),
        ("tokenizer.ggml.token_type", Value::i32s(&[1, 1, 3])),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
    ];
    keys.map(|(key, value)| (key.to_string(), value)).to_vec()
}

/// A GGUF file whose tensors hold 0, 1, 2, ... as bytes.
pub fn gguf_file(metadata: &[(String, Value)], tensors: &[GgufTensor]) -> Vec<u8> {
    let mut writer = GgufWriter::new(Vec::new(), metadata, tensors).unwrap();
    for tensor in tensors {
        let rows: usize = tensor.shape.split_last().unwrap().1.iter().product();
        let bytes = rows * tensor.format.row_bytes(0, *tensor.shape.last().unwrap()).unwrap();
        writer.write(&(0..bytes).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
    }
    writer.finish().unwrap()
}

pub fn small_gguf() -> Vec<u8> {
    let tensors = [
        GgufTensor::new("token_embd.weight", &[3, 64], Format::F16),
        GgufTensor::new("blk.0.attn_q.weight", &[64, 64], Format::Q4_0),
        GgufTensor::new("output_norm.weight", &[64], Format::F32),
    ];
    gguf_file(&llama_keys(), &tensors)
}

pub fn open_gguf(bytes: &[u8]) -> Result<(TensorIndex, Meta)> {
    gguf::open_bytes(bytes, Path::new("x.gguf"))
}

/// The `config.json` of a small qwen3, with `extra` members.
pub fn qwen3_config(extra: &str) -> String {
    format!(
        r#"{{"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "vocab_size": 32,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "eos_token_id": 1{extra}}}"#
    )
}

/// A safetensors file of zeros.
pub fn safetensors_file(metadata: &[(&str, &str)], tensors: &[SafetensorsTensor]) -> Vec<u8> {
    let mut writer = SafetensorsWriter::new(Vec::new(), metadata, tensors).unwrap();
    for tensor in tensors {
        let values: usize = tensor.shape.iter().product();
        let bytes = match tensor.dtype.as_str() {
            "U32" | "F32" => 4 * values,
            "BF16" | "F16" => 2 * values,
            "I64" => 8 * values,
            "U8" => values,
            other => panic!("{other}"),
        };
        writer.write(&vec![0; bytes]).unwrap();
    }
    writer.finish().unwrap()
}

/// A safetensors file with a header written by hand.
pub fn raw_safetensors(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data_bytes, 0);
    file
}

/// Asserts the kind of an error and that its message holds all of `parts`.
#[track_caller]
pub fn expect<T>(result: Result<T>, kind: ErrorKind, parts: &[&str]) {
    let error: Error = result.err().expect("it was accepted");
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{error:?} does not say {part:?}");
    }
}
