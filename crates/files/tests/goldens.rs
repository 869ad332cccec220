//! Every golden checkpoint, the bundled model and the vocabularies open, with the metadata they were made with.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use tidemill_files::meta::{RopeScaling, TokenizerSource};
use tidemill_files::{Dialect, Format, Meta, ScaleType, TensorIndex};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All `<set>/<format>` folders, with the path to open.
fn goldens() -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for set in std::fs::read_dir(root().join("testdata/goldens")).unwrap() {
        for format in std::fs::read_dir(set.unwrap().path()).unwrap() {
            let dir = format.unwrap().path();
            let names: Vec<_> = dir.iter().rev().take(2).map(|n| n.to_string_lossy().into_owned()).collect();
            found.insert(format!("{}/{}", names[1], names[0]), dir);
        }
    }
    assert!(found.len() >= 20, "only {} goldens", found.len());
    found
}

/// `(arch, layers, heads, kv_heads, head_dim, rotary_dim, theta, experts, top_k)`
type Facts = (&'static str, usize, usize, usize, usize, usize, f64, usize, usize);

fn facts(set: &str) -> Option<Facts> {
    Some(match set {
        "qwen3_5_moe-e32" => ("qwen3_5_moe", 4, 4, 2, 64, 16, 1e7, 32, 4),
        "qwen3_5-dense" => ("qwen3_5", 5, 2, 1, 64, 16, 1e7, 0, 0),
        "qwen3_moe-e16" => ("qwen3_moe", 3, 4, 2, 64, 64, 1e6, 16, 4),
        "qwen3-dense" => ("qwen3", 3, 4, 2, 32, 32, 1e6, 0, 0),
        "llama-dense" => ("llama", 3, 4, 2, 16, 16, 5e5, 0, 0),
        _ => return None,
    })
}

#[test]
fn all_goldens_open_with_the_expected_metadata() {
    for (name, dir) in goldens() {
        let (index, meta) = TensorIndex::open(&dir).unwrap_or_else(|e| panic!("{name}: {e}"));
        meta.check().unwrap_or_else(|e| panic!("{name}: {e}"));
        let (set, format) = name.split_once('/').unwrap();
        let gguf = format.starts_with("gguf");
        let dialect = match format {
            _ if gguf => Dialect::Gguf,
            _ if format.starts_with("mlx") => Dialect::Mlx,
            _ => Dialect::Hf,
        };
        assert_eq!(meta.dialect, dialect, "{name}");
        assert_eq!((meta.vocab_size, meta.context, meta.hidden_act.as_str()), (512, 4096, "silu"), "{name}");
        assert_eq!(meta.rope.interleaved, gguf && set == "llama-dense", "{name}");
        assert!(meta.eos.contains(&1), "{name}: eos {:?}", meta.eos);
        assert!(meta.chat_template.as_ref().is_some_and(|t| t.contains("im_start")), "{name}");
        assert_eq!(matches!(meta.tokenizer, TokenizerSource::Gguf(_)), gguf, "{name}");
        assert_eq!(matches!(meta.tokenizer, TokenizerSource::Json(_)), !gguf, "{name}");
        assert_eq!(index.foreign().count(), 0, "{name}");
        assert!(!meta.raw.is_empty(), "{name}");
        check_spans(&name, &index);
        if let Some(facts) = facts(set) {
            check_facts(&name, &meta, facts);
        }
    }
}

fn check_facts(name: &str, meta: &Meta, facts: Facts) {
    let (arch, layers, heads, kv_heads, head_dim, rotary_dim, theta, experts, top_k) = facts;
    assert_eq!(meta.arch, arch, "{name}");
    assert_eq!(meta.hidden_size, 64, "{name}");
    assert_eq!((meta.layers, meta.heads, meta.kv_heads), (layers, heads, kv_heads), "{name}");
    assert_eq!(
        (meta.head_dim, meta.rope.rotary_dim, meta.rope.theta),
        (head_dim, rotary_dim, theta),
        "{name}"
    );
    assert_eq!(meta.qk_norm, arch != "llama", "{name}");
    assert_eq!(meta.tie_embeddings, arch == "qwen3" || arch == "qwen3_5", "{name}");
    assert_eq!(meta.attn_output_gate, arch.starts_with("qwen3_5"), "{name}");
    assert!((meta.rms_norm_eps - if arch == "llama" { 1e-5 } else { 1e-6 }).abs() < 1e-9, "{name}");
    match &meta.moe {
        None => assert_eq!(experts, 0, "{name}"),
        Some(moe) => {
            assert_eq!((moe.experts, moe.top_k, moe.intermediate_size), (experts, top_k, 64), "{name}");
            assert_eq!(moe.shared_intermediate_size, (arch == "qwen3_5_moe").then_some(64), "{name}");
            assert_eq!(moe.sparse_layers, vec![true; layers], "{name}");
            assert!(moe.normalise_top_k, "{name}");
        }
    }
    if let Some(delta) = &meta.delta {
        assert_eq!((delta.key_heads, delta.value_heads), (2, 4), "{name}");
        assert_eq!((delta.key_head_dim, delta.value_head_dim, delta.conv_kernel), (32, 32, 4), "{name}");
        assert_eq!(delta.full_attention, [false, false, false, true, false][..layers], "{name}");
        assert_eq!(delta.tiled_value_heads, meta.dialect == Dialect::Gguf, "{name}");
    }
    assert_eq!(meta.delta.is_some(), arch.starts_with("qwen3_5"), "{name}");
    match (&meta.rope.scaling, arch, meta.dialect) {
        (RopeScaling::Factors { tensor }, "llama", Dialect::Gguf) => assert_eq!(tensor, "rope_freqs.weight"),
        (RopeScaling::Llama3 { factor, original_context, .. }, "llama", _) => {
            assert_eq!((*factor, *original_context), (8.0, 128), "{name}");
        }
        (scaling, _, _) => assert_eq!((scaling, arch == "llama"), (&RopeScaling::None, false), "{name}"),
    }
}

/// Every span has the size of its shape and lies in its file, whose bytes it shares with nobody.
fn check_spans(name: &str, index: &TensorIndex) {
    let mut spans = Vec::new();
    for tensor in index.iter() {
        assert_eq!(tensor.spans.len(), tensor.format.parts(), "{name} {}", tensor.name);
        for (part, span) in tensor.spans.iter().enumerate() {
            let row = tensor.format.row_bytes(part, tensor.cols()).unwrap();
            assert_eq!(span.bytes, (row * tensor.rows()) as u64, "{name} {} part {part}", tensor.name);
            let file_bytes = std::fs::metadata(&index.files()[span.file.0 as usize]).unwrap().len();
            assert!(span.offset + span.bytes <= file_bytes, "{name} {}", tensor.name);
            spans.push((span.file, span.offset, span.bytes));
        }
        assert_eq!(index.require(&tensor.name).unwrap(), tensor);
    }
    spans.sort_unstable();
    assert!(spans.windows(2).all(|w| w[0].0 != w[1].0 || w[0].1 + w[0].2 <= w[1].1), "{name}");
    assert!(!spans.is_empty(), "{name}");
}

#[test]
fn tensors_have_their_logical_shapes_and_own_bits() {
    let all = goldens();
    let affine = |bits| Format::Affine { bits, group: 64, scale: ScaleType::BF16 };
    let (mlx, _) = TensorIndex::open(&all["qwen3_5_moe-e32/mlx-4bit"]).unwrap();
    let layer = "language_model.model.layers.0.";
    let experts = mlx.require(&format!("{layer}mlp.switch_mlp.up_proj.weight")).unwrap();
    assert_eq!((experts.shape.as_slice(), experts.format), (&[32, 64, 64][..], affine(4)));
    let gate = mlx.require(&format!("{layer}mlp.gate.weight")).unwrap();
    assert_eq!((gate.shape.as_slice(), gate.format), (&[32, 64][..], affine(8)));
    let out = mlx.require(&format!("{layer}linear_attn.out_proj.weight")).unwrap();
    assert_eq!((out.shape.as_slice(), out.format), (&[64, 128][..], affine(4)));
    assert!(mlx.get(&format!("{layer}mlp.gate.scales")).is_none());

    let expert = experts.slice_outer(31).unwrap();
    assert_eq!((expert.shape.as_slice(), expert.bytes()), (&[64, 64][..], 64 * 32 + 2 * 64 * 2));
    assert_eq!(expert.spans[0].offset, experts.spans[0].offset + 31 * 2048);
    let rows = expert.slice_rows(10..12).unwrap();
    assert_eq!((rows.spans[0].offset, rows.spans[0].bytes), (expert.spans[0].offset + 320, 64));
    assert_eq!((rows.spans[2].offset, rows.spans[2].bytes), (expert.spans[2].offset + 20, 4));

    let (gguf, _) = TensorIndex::open(&all["qwen3_5_moe-e32/gguf-Q4_K_M"].join("model-Q4_K_M.gguf")).unwrap();
    let qkv = gguf.require("blk.0.attn_qkv.weight").unwrap();
    assert_eq!((qkv.shape.as_slice(), qkv.format), (&[256, 64][..], Format::Q5_0));
    let down = gguf.require("blk.3.attn_output.weight").unwrap();
    assert_eq!((down.shape.as_slice(), down.format), (&[64, 256][..], Format::Q4K));
    assert_eq!(gguf.require("blk.0.ffn_up_exps.weight").unwrap().shape, [32, 64, 64]);

    let (hf, _) = TensorIndex::open(&all["qwen3_5_moe-e32/bf16"]).unwrap();
    assert_eq!(hf.files().len(), 2);
    let fused = hf.require("model.language_model.layers.0.mlp.experts.gate_up_proj").unwrap();
    assert_eq!((fused.shape.as_slice(), fused.format), (&[32, 128, 64][..], Format::BF16));
    let used: HashSet<String> = hf
        .iter()
        .map(|t| t.name.clone())
        .filter(|n| !n.contains("visual") && n != "lm_head.weight")
        .collect();
    let left = hf.leftovers(&used);
    assert!(left.len() > 1 && left.iter().all(|n| n.starts_with("model.visual.") || *n == "lm_head.weight"));
}

#[test]
fn a_missing_tensor_is_named_with_near_names() {
    let (index, _) = TensorIndex::open(&goldens()["qwen3-dense/bf16"]).unwrap();
    let error = index.require("model.layers.0.self_attn.q_proj.wieght").unwrap_err();
    assert!(error.message().contains("q_proj.wieght is missing"), "{error}");
    assert!(error.message().contains("near: model.layers.0.self_attn.q_proj.weight"), "{error}");
}

#[test]
fn the_bundled_model_opens() {
    let (index, meta) = TensorIndex::open(&root().join("models/demo")).unwrap();
    meta.check().unwrap();
    assert_eq!((meta.arch.as_str(), meta.dialect), ("qwen3_5_moe", Dialect::Mlx));
    assert_eq!(
        (meta.layers, meta.vocab_size, meta.eos.as_slice(), meta.pad),
        (8, 8192, &[2, 0][..], Some(0))
    );
    assert_eq!((meta.generation.temperature, meta.generation.top_p), (Some(0.7), Some(0.95)));
    assert_eq!(meta.tokenizer_config.eos_token.as_deref(), Some("<|im_end|>"));
    assert!(meta.chat_template.is_some() && meta.bos.is_none());
    let moe = meta.moe.unwrap();
    assert_eq!((moe.experts, moe.top_k, moe.shared_intermediate_size), (32, 4, Some(256)));
    let bits: HashSet<Format> = index.iter().map(|t| t.format).collect();
    assert!(bits.len() >= 3, "{bits:?}");
}

#[test]
fn vocabularies_without_tensors_open() {
    let text = root().join("testdata/text/vocab");
    let (index, meta) = TensorIndex::open(&text.join("ggml-vocab-llama-spm.gguf")).unwrap();
    assert!(index.is_empty() && meta.arch == "llama");
    let TokenizerSource::Gguf(vocab) = &meta.tokenizer else { panic!("no vocabulary") };
    assert_eq!((vocab.model.as_str(), vocab.tokens.len(), vocab.scores.len()), ("llama", 32_000, 32_000));
    assert_eq!(
        (vocab.add_bos, vocab.unk, vocab.tokens[3].as_slice()),
        (Some(true), Some(0), b"<0x00>".as_slice())
    );

    let (_, meta) = TensorIndex::open(&text.join("ggml-vocab-qwen35.gguf")).unwrap();
    let TokenizerSource::Gguf(vocab) = &meta.tokenizer else { panic!("no vocabulary") };
    assert_eq!((vocab.pre.as_str(), vocab.merges.len()), ("qwen35", 151_387));
}
