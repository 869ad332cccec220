//! Safetensors headers, configs and directories that lie: each is a clear error that names the file and the thing.

use std::path::Path;

use crate::common::{expect, qwen3_config, raw_safetensors, safetensors_file};
use tidemill_files::ErrorKind::{Corrupt, InvalidRequest, NotFound, Unsupported};
use tidemill_files::meta::RopeScaling;
use tidemill_files::safetensors::open_bytes;
use tidemill_files::write::{SafetensorsTensor, SafetensorsWriter};
use tidemill_files::{Dialect, Format, Meta, Result, ScaleType, TensorIndex};

fn open_raw(header: &str, data_bytes: usize) -> Result<(TensorIndex, Meta)> {
    open_bytes(&raw_safetensors(header, data_bytes), &qwen3_config(""))
}

#[test]
fn headers_that_lie() {
    let cases: [(&[&str], &str, usize); 14] = [
        (&["truncated", "tensor a"], r#"{"a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 15),
        (&["end at byte"], r#"{"a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 17),
        (&["tensor a", "hole"], r#"{"a": {"dtype":"U8","shape":[4],"data_offsets":[1,5]}}"#, 5),
        (
            &["tensor b", "overlaps"],
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#,
            5,
        ),
        (
            &["tensor a", "twice"],
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
            8,
        ),
        (&["tensor a", "8 bytes of data"], r#"{"a": {"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#, 8),
        (&["tensor a", "backwards"], r#"{"a": {"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16),
        (&["tensor a", "empty dimension"], r#"{"a": {"dtype":"F32","shape":[4,0],"data_offsets":[0,0]}}"#, 0),
        (
            &["tensor a", "overflows"],
            r#"{"a": {"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}"#,
            16,
        ),
        (&["tensor a"], r#"{"a": {"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, 16),
        (&["tensor a", "shape"], r#"{"a": {"dtype":"F32","data_offsets":[0,16]}}"#, 16),
        (
            &["tensor a", "dimensions"],
            r#"{"a": {"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#,
            1,
        ),
        (&["header"], r#"[1, 2]"#, 0),
        (&["header"], r#"{"a": "#, 0),
    ];
    for (parts, header, data_bytes) in cases {
        expect(open_raw(header, data_bytes), Corrupt, &[&["model.safetensors"], parts].concat());
    }
    let odd = r#"{"a": {"dtype":"Q9","shape":[4],"data_offsets":[0,16]}}"#;
    expect(open_raw(odd, 16), Unsupported, &["model.safetensors", "tensor a", "Q9"]);
    let far =
        r#"{"a": {"dtype":"U8","shape":[4],"data_offsets":[18446744073709551611,18446744073709551615]}}"#;
    expect(open_raw(far, 16), Corrupt, &["tensor a", "overflows"]);
}

#[test]
fn lengths_that_lie() {
    let config = qwen3_config("");
    expect(open_bytes(b"", &config), Corrupt, &["model.safetensors", "truncated"]);
    expect(open_bytes(&[1, 0, 0, 0], &config), Corrupt, &["truncated"]);
    expect(open_bytes(&[0xff; 64], &config), Corrupt, &["a header of 18446744073709551615 bytes"]);
    let file = safetensors_file(&[], &[SafetensorsTensor::new("a", &[4], "F32")]);
    for len in 0..file.len() {
        assert!(open_bytes(&file[..len], &config).is_err(), "accepted with {len} bytes");
    }
    assert_eq!(open_bytes(&file, &config).unwrap().0.len(), 1);
}

#[test]
fn deep_json_is_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    expect(open_raw(&format!(r#"{{"a": {deep}}}"#), 0), Corrupt, &["model.safetensors"]);
    let in_entry = format!(r#"{{"a": {{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{deep}}}}}"#);
    expect(open_raw(&in_entry, 1), Corrupt, &["model.safetensors"]);
    let config = qwen3_config(&format!(r#", "x": {deep}"#));
    expect(open_bytes(&raw_safetensors("{}", 0), &config), Corrupt, &["config.json", "recursion"]);
}

#[test]
fn integers_are_listed_and_refused_only_when_needed() {
    let tensors = [SafetensorsTensor::new("ids", &[4], "I64"), SafetensorsTensor::new("w", &[4], "F16")];
    let (index, _) = open_bytes(&safetensors_file(&[], &tensors), &qwen3_config("")).unwrap();
    assert_eq!(index.leftovers(&Default::default()), ["w"]);
    expect(index.require("ids"), Unsupported, &["tensor ids", "I64"]);
    expect(index.require("idz"), NotFound, &["idz", "model.safetensors"]);
}

/// An affine matrix `m` of `[2, 128]` in 4 bits and groups of 64, its parts changed by `edit`.
fn affine(quantization: &str, edit: impl FnOnce(&mut Vec<SafetensorsTensor>)) -> Result<(TensorIndex, Meta)> {
    let format = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };
    let mut parts = SafetensorsTensor::parts("m.weight", &[2, 128], format).unwrap();
    edit(&mut parts);
    let extra =
        if quantization.is_empty() { String::new() } else { format!(r#", "quantization": {quantization}"#) };
    open_bytes(&safetensors_file(&[], &parts), &qwen3_config(&extra))
}

#[test]
fn affine_parts_must_agree() {
    let global = r#"{"bits": 4, "group_size": 64}"#;
    let (index, meta) = affine(global, |_| {}).unwrap();
    let m = index.require("m.weight").unwrap();
    assert_eq!((m.shape.as_slice(), m.spans.len(), m.bytes()), (&[2, 128][..], 3, 128 + 16));
    assert_eq!((index.len(), meta.dialect), (1, Dialect::Mlx));
    assert_eq!(m.format, Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 });

    let wrong = |edit: fn(&mut Vec<SafetensorsTensor>), part| {
        expect(affine(global, edit), Corrupt, &["model.safetensors", "tensor m.weight", part]);
    };
    wrong(|p| p[0].shape = vec![2, 15], "contradict 4 bits");
    wrong(|p| p[0].shape = vec![3, 16], "packed shape");
    wrong(|p| p[2].shape = vec![2, 3], "biases");
    wrong(|p| p[2].dtype = "F32".into(), "biases");
    wrong(|p| drop(p.pop()), "no biases");
    wrong(|p| p.iter_mut().skip(1).for_each(|t| t.dtype = "U8".into()), "scales of dtype U8");
    wrong(|p| p.iter_mut().for_each(|t| t.shape = vec![t.shape[1]]), "packed shape");
}

#[test]
fn bits_come_from_the_config_and_are_checked() {
    let open = |quantization| affine(quantization, |_| {});
    let format = |bits, group| Format::Affine { bits, group, scale: ScaleType::BF16 };
    let got = |quantization| open(quantization).map(|(index, _)| index.require("m.weight").unwrap().format);
    let own = r#"{"bits": 8, "group_size": 32, "m": {"bits": 4, "group_size": 64}}"#;
    assert_eq!(got(own).unwrap(), format(4, 64));
    assert_eq!(got(r#"{"bits": 4, "group_size": 64, "m": true}"#).unwrap(), format(4, 64));
    assert_eq!(got(r#"{"bits": 8, "group_size": 64, "m": {"bits": 4}}"#).unwrap(), format(4, 64));
    // The same bytes also are 8 bits in groups of 32 of a narrower matrix: only the config tells them apart.
    let (narrow, _) = open(r#"{"bits": 8, "group_size": 32}"#).unwrap();
    assert_eq!(narrow.require("m.weight").unwrap().shape, [2, 64]);
    // The group and the shapes leave one number of bits, which goes before the one for all modules.
    assert_eq!(got(r#"{"bits": 8, "group_size": 64}"#).unwrap(), format(4, 64));
    expect(
        open(r#"{"bits": 4, "group_size": 64, "m": {"bits": 8}}"#),
        Corrupt,
        &["m.weight", "contradict 8 bits in groups of 64"],
    );
    // An entry is found under another place of the language model.
    let other = r#"{"bits": 8, "group_size": 32, "model.language_model.m": {"bits": 4, "group_size": 64}}"#;
    assert_eq!(got(other).unwrap(), format(4, 64));
    expect(open(""), Corrupt, &["m has scales", "no quantization"]);
    expect(open(r#"{"bits": 4, "group_size": 64, "m": false}"#), Corrupt, &["m has scales", "not quantised"]);
    expect(open(r#"{"bits": "4", "group_size": 64}"#), Corrupt, &["config.json", "quantization"]);
    let (index, _) = open(r#"{"bits": 4, "group_size": 32, "mode": "mxfp4"}"#).unwrap();
    expect(index.require("m.weight"), Unsupported, &["tensor m.weight"]);
    assert!(index.contains("m.weight") && index.get("m.weight").is_none());
    let (index, _) = open(r#"{"bits": 7, "group_size": 16}"#).unwrap();
    expect(index.require("m.weight"), Unsupported, &["of 7 bits in groups of 16"]);
}

#[test]
fn configs_that_lie() {
    let open = |config: &str| open_bytes(&raw_safetensors("{}", 0), config);
    expect(open("{"), Corrupt, &["config.json"]);
    expect(open("[]"), Corrupt, &["config.json", "object"]);
    let check = |extra: &str| open(&qwen3_config(extra)).unwrap().1.check();
    check("").unwrap();
    // The last of two equal keys counts, as in Python.
    expect(check(r#", "hidden_size": 0"#), Corrupt, &["config.json", "hidden_size is zero"]);
    expect(check(r#", "hidden_size": -1"#), Corrupt, &["hidden_size is -1"]);
    expect(check(r#", "hidden_size": 1e300"#), Corrupt, &["hidden_size"]);
    expect(check(r#", "hidden_size": "64""#), Corrupt, &["hidden_size"]);
    expect(check(r#", "num_hidden_layers": 2000000000"#), Corrupt, &["num_hidden_layers"]);
    expect(check(r#", "head_dim": 2000000000"#), Corrupt, &["head"]);
    expect(check(r#", "rope_scaling": {"rope_type": "dynamic", "factor": 2}"#), Unsupported, &["dynamic"]);
    expect(check(r#", "rope_scaling": {"type": "linear"}"#), Corrupt, &["factor"]);
    expect(check(r#", "quantization_config": {"quant_method": "gptq"}"#), Unsupported, &["gptq"]);
    expect(check(r#", "num_experts": 4, "num_experts_per_tok": 5"#), Corrupt, &["5 of 4 experts"]);
    expect(check(r#", "eos_token_id": 99"#), Corrupt, &["99"]);
    check(r#", "pad_token_id": 99, "bos_token_id": 99"#).unwrap();
    expect(check(r#", "hidden_act": "relu""#), Unsupported, &["config.json", "hidden_act \"relu\""]);
    expect(check(r#", "rope_theta": "big""#), Corrupt, &["config.json", "rope_theta is \"big\""]);
    expect(
        check(r#", "decoder_sparse_step": 0, "num_experts": 4, "num_experts_per_tok": 2"#),
        Corrupt,
        &["step is zero"],
    );
    expect(
        check(r#", "mlp_only_layers": ["a"], "num_experts": 4, "num_experts_per_tok": 2"#),
        Corrupt,
        &["mlp_only"],
    );
    expect(check(r#", "model_type": null"#), Corrupt, &["model_type"]);
    let window = r#", "sliding_window": 64, "use_sliding_window": true"#;
    expect(check(window), Unsupported, &["sliding-window"]);
    check(r#", "sliding_window": 64, "use_sliding_window": false"#).unwrap();
    check(r#", "sliding_window": 64, "max_window_layers": 2"#).unwrap();
    check(r#", "sliding_window": 4096"#).unwrap();
}

#[test]
fn configs_of_both_styles() {
    let meta = |extra: &str| open_bytes(&raw_safetensors("{}", 0), &qwen3_config(extra)).unwrap().1;
    let old = meta(r#", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "eos_token_id": [3, 4]"#);
    let new =
        meta(r#", "rope_parameters": {"rope_theta": 5000, "partial_rotary_factor": 0.5, "type": "default"}"#);
    assert_eq!((old.rope.theta, old.rope.rotary_dim), (5000.0, 8));
    assert_eq!((old.rope, old.eos), (new.rope, vec![3, 4]));
    let yarn = r#", "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32}"#;
    let RopeScaling::Yarn { factor, original_context, beta_fast, truncate, .. } = meta(yarn).rope.scaling
    else {
        panic!("no yarn")
    };
    assert_eq!((factor, original_context, beta_fast, truncate), (4.0, 32, 32.0, true));
    let moe = r#", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 2"#;
    assert_eq!(meta(moe).moe.unwrap().sparse_layers, [false, true]);
    let only = format!(r#"{moe}, "mlp_only_layers": [1], "norm_topk_prob": true"#);
    let only = meta(&only).moe.unwrap();
    assert_eq!((only.sparse_layers, only.normalise_top_k), (vec![false, false], true));
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

fn shard(name: &str) -> Vec<u8> {
    safetensors_file(&[], &[SafetensorsTensor::new(name, &[4], "BF16")])
}

#[test]
fn directories_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "config.json", qwen3_config(""));
    expect(TensorIndex::open(dir), NotFound, &["no .safetensors"]);
    write(dir, "model-00001-of-00002.safetensors", shard("a"));
    expect(TensorIndex::open(dir), NotFound, &["model-00002-of-00002.safetensors", "missing shard"]);
    write(dir, "model-00002-of-00002.safetensors", shard("b"));
    assert_eq!(TensorIndex::open(dir).unwrap().0.files().len(), 2);
    let one = TensorIndex::open(&dir.join("model-00002-of-00002.safetensors")).unwrap().0;
    assert_eq!(one.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["b"]);

    let index = |map: &str| write(dir, "model.safetensors.index.json", format!(r#"{{"weight_map": {map}}}"#));
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    index(&format!(r#"{{"a": "{first}", "b": "{second}"}}"#));
    assert_eq!(TensorIndex::open(dir).unwrap().0.len(), 2);
    index(&format!(r#"{{"a": "{first}", "c": "{second}"}}"#));
    let (lost, _) = TensorIndex::open(dir).unwrap();
    assert_eq!(lost.leftovers(&Default::default()), ["a", "b", "c"]);
    expect(lost.require("c"), Corrupt, &[second, "tensor c", "index.json"]);
    index(&format!(r#"{{"a": "{second}", "b": "{first}"}}"#)); // the wrong way round: both are there
    assert_eq!(TensorIndex::open(dir).unwrap().0.leftovers(&Default::default()), ["a", "b"]);
    index(r#"{"a": "lost.safetensors"}"#);
    expect(TensorIndex::open(dir), NotFound, &["lost.safetensors", "missing shard"]);
    index(r#"{"a": "../../etc/a.safetensors"}"#);
    expect(TensorIndex::open(dir), Corrupt, &["index.json", "no shard's name"]);
    index("7");
    expect(TensorIndex::open(dir), Corrupt, &["model.safetensors.index.json"]);
    index(&format!(r#"{{"a": "{first}", "b": "{second}"}}"#));
    write(dir, second, shard("a"));
    expect(TensorIndex::open(dir), Corrupt, &["tensor a", "twice", first]);
}

#[test]
fn companions_of_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "config.json", qwen3_config(""));
    write(dir, "model.safetensors", shard("a"));
    write(dir, "golden.safetensors", shard("decoy"));
    write(
        dir,
        "generation_config.json",
        r#"{"eos_token_id": [7, 1], "temperature": 0.6, "top_p": 7, "top_k": 20}"#,
    );
    let templates = r#"[{"name":"default","template":"D"},{"name":"tool_use","template":"T"}]"#;
    let tokenizer =
        format!(r#"{{"eos_token": {{"content": "<e>"}}, "bos_token": null, "chat_template": {templates}}}"#);
    write(dir, "tokenizer_config.json", tokenizer);
    let (index, meta) = TensorIndex::open(dir).unwrap();
    assert_eq!((index.len(), meta.eos.as_slice()), (1, &[1, 7][..]));
    assert_eq!(
        (meta.generation.temperature, meta.generation.top_p, meta.generation.top_k),
        (Some(0.6), None, Some(20))
    );
    assert_eq!((meta.chat_template.as_deref(), meta.tool_template.as_deref()), (Some("D"), Some("T")));
    assert_eq!(
        (meta.tokenizer_config.eos_token.as_deref(), meta.tokenizer_config.bos_token),
        (Some("<e>"), None)
    );
    write(dir, "chat_template.jinja", "J");
    assert_eq!(TensorIndex::open(dir).unwrap().1.chat_template.as_deref(), Some("J"));
    write(dir, "chat_template.jinja", [0xff, 0xfe]);
    expect(TensorIndex::open(dir), Corrupt, &["chat_template.jinja", "UTF-8"]);
    write(dir, "chat_template.jinja", "J");
    write(dir, "tokenizer_config.json", "{");
    expect(TensorIndex::open(dir), Corrupt, &["tokenizer_config.json"]);
}

#[test]
fn slices_are_checked() {
    let tensors = [SafetensorsTensor::new("m", &[3, 4], "F32"), SafetensorsTensor::new("v", &[4], "F32")];
    let (index, _) = open_bytes(&safetensors_file(&[], &tensors), &qwen3_config("")).unwrap();
    let m = index.require("m").unwrap();
    expect(m.slice_outer(3), InvalidRequest, &["m", "3 of 3"]);
    expect(m.slice_rows(1..4), InvalidRequest, &["m", "1..4"]);
    expect(m.slice_rows(2..2), InvalidRequest, &["2..2"]);
    expect(index.require("v").unwrap().slice_outer(0), InvalidRequest, &["v"]);
    let row = m.slice_outer(1).unwrap();
    assert_eq!((row.shape.as_slice(), row.spans[0].offset - m.spans[0].offset), (&[4][..], 16));
}

#[test]
fn the_writer_refuses_what_does_not_fit() {
    let new = |tensors: &[SafetensorsTensor]| SafetensorsWriter::new(Vec::new(), &[], tensors).map(|_| ());
    let a = SafetensorsTensor::new("a", &[4], "F32");
    expect(new(&[a.clone(), a]), InvalidRequest, &["tensor a", "twice"]);
    expect(new(&[SafetensorsTensor::new("a", &[4], "X")]), InvalidRequest, &["tensor a", "dtype"]);
    expect(SafetensorsTensor::parts("a", &[4], Format::Q4_0), InvalidRequest, &["Q4_0"]);
    let affine = Format::Affine { bits: 4, group: 64, scale: ScaleType::F16 };
    expect(SafetensorsTensor::parts("a.weight", &[4, 63], affine), InvalidRequest, &["a.weight"]);
}
