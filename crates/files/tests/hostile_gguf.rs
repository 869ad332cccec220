//! GGUF headers that lie: each is a clear error that names the file and the thing.

use std::path::Path;

use crate::common::{expect, gguf_file, llama_keys, open_gguf, small_gguf};
use tidemill_files::ErrorKind::{Corrupt, InvalidRequest, NotFound, Unsupported};
use tidemill_files::gguf::{Array, Kind, Value};
use tidemill_files::write::{GgufTensor, GgufWriter};
use tidemill_files::{Format, TensorIndex};

/// A header by hand: magic, version, tensor count, key count, then whatever.
fn raw(tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(tensors.to_le_bytes());
    file.extend(keys.to_le_bytes());
    file.extend(rest);
    file
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out
}

/// One line of the tensor directory.
fn tensor(name: &[u8], dims: &[u64], type_number: u32, offset: u64) -> Vec<u8> {
    let mut out = string(name);
    out.extend((dims.len() as u32).to_le_bytes());
    out.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    out.extend(type_number.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

/// A file of `tensors` without metadata, with 4096 bytes after the header.
fn with_tensors(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut file = raw(tensors.len() as u64, 0, &tensors.concat());
    file.resize(file.len().next_multiple_of(32) + 4096, 0);
    file
}

/// A file of one metadata value (type number and payload).
fn with_value(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut rest = string(b"some.key");
    rest.extend(kind.to_le_bytes());
    rest.extend(payload);
    rest.resize(rest.len() + 64, 0);
    raw(0, 1, &rest)
}

#[test]
fn the_small_file_itself_is_fine() {
    let (index, meta) = open_gguf(&small_gguf()).unwrap();
    meta.check().unwrap();
    assert_eq!((index.len(), meta.head_dim, meta.rope.interleaved), (3, 16, true));
    assert_eq!((meta.vocab_size, meta.eos.as_slice(), meta.tie_embeddings), (3, &[1][..], true));
    assert_eq!(index.require("blk.0.attn_q.weight").unwrap().format, Format::Q4_0);
}

#[test]
fn wrong_beginnings() {
    expect(open_gguf(b""), Corrupt, &["x.gguf", "magic"]);
    expect(open_gguf(b"GGUF\x03"), Corrupt, &["x.gguf", "version"]);
    expect(open_gguf(b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaaa"), Corrupt, &["x.gguf", "not a GGUF file"]);
    expect(open_gguf(b"GGUF\0\0\0\x03aaaaaaaaaaaaaaaaaaaa"), Unsupported, &["x.gguf", "big-endian"]);
    expect(open_gguf(b"GGUF\x01\0\0\0aaaaaaaaaaaaaaaaaaaa"), Unsupported, &["version 1"]);
    expect(open_gguf(b"GGUF\x63\0\0\0aaaaaaaaaaaaaaaaaaaa"), Unsupported, &["version 99"]);
}

#[test]
fn version_2_reads_like_version_3() {
    let mut file = small_gguf();
    file[4] = 2;
    assert_eq!(open_gguf(&file).unwrap().0.len(), 3);
}

#[test]
fn counts_in_the_billions() {
    expect(open_gguf(&raw(1 << 40, 0, &[0; 64])), Corrupt, &["x.gguf", "tensor count", "1099511627776"]);
    expect(open_gguf(&raw(0, u64::MAX, &[0; 64])), Corrupt, &["x.gguf", "metadata count"]);
    let huge = u64::MAX.to_le_bytes();
    expect(open_gguf(&with_value(8, &huge)), Corrupt, &["x.gguf", "some.key"]);
    for kind in [0u32, 4, 8, 9, 12] {
        let mut array = kind.to_le_bytes().to_vec();
        array.extend((1u64 << 61).to_le_bytes());
        expect(open_gguf(&with_value(9, &array)), Corrupt, &["x.gguf", "some.key"]);
    }
}

#[test]
fn metadata_that_is_no_metadata() {
    expect(open_gguf(&with_value(13, &[0; 8])), Corrupt, &["some.key", "type 13"]);
    let twice = vec![("a".to_string(), Value::U8(1)), ("a".to_string(), Value::U8(2))];
    expect(open_gguf(&gguf_file(&twice, &[])), Corrupt, &["metadata key a", "twice"]);
    let mut key = string(b"k\xff");
    key.extend([0; 64]);
    expect(open_gguf(&raw(0, 1, &key)), Corrupt, &["x.gguf", "not UTF-8"]);
    let nest = |depth: usize| {
        let inner = Array::Fixed { kind: Kind::U8, raw: vec![1] };
        let nested = (0..depth).fold(inner, |array, _| Array::Nested(vec![array]));
        gguf_file(&[("deep".to_string(), Value::Array(nested))], &[])
    };
    open_gguf(&nest(3)).unwrap();
    expect(open_gguf(&nest(4)), Corrupt, &["deep", "nest"]);
    expect(open_gguf(&nest(2000)), Corrupt, &["deep", "nest"]);
}

#[test]
fn alignment_is_honoured_and_checked() {
    let mut keys = llama_keys();
    keys.push(("general.alignment".into(), Value::U32(256)));
    let tensors = [GgufTensor::new("a", &[3], Format::F32), GgufTensor::new("b", &[3], Format::F32)];
    let file = gguf_file(&keys, &tensors);
    let (index, _) = open_gguf(&file).unwrap();
    let b = index.require("b").unwrap().spans[0];
    assert_eq!((b.offset % 256, b.offset - index.require("a").unwrap().spans[0].offset), (0, 256));
    assert_eq!(file[b.offset as usize..][..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);

    for bad in [Value::U32(0), Value::U32(24), Value::U32(1 << 31), Value::string("32"), Value::I32(-32)] {
        let bad = gguf_file_with_alignment(bad);
        expect(open_gguf(&bad), Corrupt, &["x.gguf", "general.alignment"]);
    }
}

/// The writer refuses a bad alignment, so the bytes are put together by hand.
fn gguf_file_with_alignment(value: Value) -> Vec<u8> {
    let file = gguf_file(&[("general.alignmen_".to_string(), value)], &[]);
    let at = file.windows(17).position(|w| w == b"general.alignmen_").unwrap();
    let mut file = file;
    file[at + 16] = b't';
    file
}

#[test]
fn tensors_that_lie() {
    let f32_type = 0;
    let cases: [(&[&str], Vec<Vec<u8>>); 8] = [
        (&["tensor a", "truncated", "ends at byte"], vec![tensor(b"a", &[2048], f32_type, 0)]),
        (&["tensor a", "truncated"], vec![tensor(b"a", &[4], f32_type, 8192)]),
        (&["a", "b", "overlap"], vec![tensor(b"a", &[32], 0, 0), tensor(b"b", &[32], 0, 96)]),
        (&["tensor a", "twice"], vec![tensor(b"a", &[8], 0, 0), tensor(b"a", &[8], 0, 32)]),
        (&["tensor a", "not a multiple of 32"], vec![tensor(b"a", &[8], 0, 8)]),
        (&["tensor a", "empty dimension"], vec![tensor(b"a", &[8, 0], 0, 0)]),
        (&["tensor a", "overflows"], vec![tensor(b"a", &[1 << 40, 1 << 40], 0, 0)]),
        (&["tensor a", "multiple of 32"], vec![tensor(b"a", &[33], 2, 0)]),
    ];
    for (parts, tensors) in cases {
        expect(open_gguf(&with_tensors(&tensors)), Corrupt, &[&["x.gguf"], parts].concat());
    }
    let overflow = with_tensors(&[tensor(b"a", &[8], 0, u64::MAX - 31)]);
    expect(open_gguf(&overflow), Corrupt, &["tensor a", "offset overflows"]);
    expect(open_gguf(&with_tensors(&[tensor(b"\xc3\x28", &[8], 0, 0)])), Corrupt, &["not UTF-8"]);
    let mut many = string(b"a");
    many.extend(5u32.to_le_bytes());
    many.resize(256, 1);
    expect(open_gguf(&raw(1, 0, &many)), Corrupt, &["tensor a", "5 dimensions"]);
}

#[test]
fn types_we_lack() {
    expect(open_gguf(&with_tensors(&[tensor(b"a", &[8], 77, 0)])), Unsupported, &["tensor a", "77"]);
    // A type that GGML knows is listed, and refused only where it is needed.
    let (index, _) = open_gguf(&with_tensors(&[tensor(b"a", &[256], 16, 0)])).unwrap();
    expect(index.require("a"), Unsupported, &["tensor a", "IQ2_XXS", "16"]);
    assert_eq!(index.foreign().map(|f| f.span.bytes).collect::<Vec<_>>(), [66]);
}

#[test]
fn every_truncation_is_an_error() {
    let file = small_gguf();
    for len in 0..file.len() {
        let error = open_gguf(&file[..len]).err();
        // The padding after the last tensor's data is not data.
        assert!(error.is_some(), "accepted with {len} of {} bytes", file.len());
    }
}

#[test]
fn absurd_metadata_is_an_issue_that_names_the_key() {
    let with = |key: &str, value: Value| {
        let mut keys = llama_keys();
        keys.retain(|(k, _)| k != key);
        keys.push((key.to_string(), value));
        open_gguf(&gguf_file(&keys, &[])).unwrap().1.check()
    };
    expect(
        with("llama.attention.head_count", Value::U32(0)),
        Corrupt,
        &["x.gguf", "llama.attention.head_count"],
    );
    expect(with("llama.block_count", Value::U32(u32::MAX)), Corrupt, &["llama.block_count"]);
    expect(with("llama.block_count", Value::U32(1 << 30)), Corrupt, &["llama.block_count"]);
    expect(with("llama.embedding_length", Value::string("64")), Corrupt, &["llama.embedding_length"]);
    expect(with("llama.embedding_length", Value::I64(-64)), Corrupt, &["llama.embedding_length"]);
    expect(with("llama.attention.key_length", Value::U32(1 << 31)), Corrupt, &["head"]);
    expect(with("llama.attention.head_count_kv", Value::U32(3)), Corrupt, &["kv_heads"]);
    expect(
        with("llama.attention.head_count_kv", Value::i32s(&[2, 4])),
        Unsupported,
        &["head_count_kv", "differs"],
    );
    expect(with("llama.rope.freq_base", Value::F32(f32::NAN)), Corrupt, &["llama.rope.freq_base"]);
    expect(with("llama.rope.freq_base", Value::F32(-1.0)), Corrupt, &["rotary base"]);
    expect(with("llama.rope.dimension_count", Value::U32(32)), Corrupt, &["32 rotated"]);
    expect(with("llama.rope.scaling.type", Value::string("longrope")), Unsupported, &["longrope"]);
    let eps = "llama.attention.layer_norm_rms_epsilon";
    expect(with(eps, Value::F32(f32::NAN)), Corrupt, &[eps]);
    expect(with(eps, Value::F32(2.0)), Corrupt, &["rms_norm_eps"]);
    expect(with("llama.attention.sliding_window", Value::U32(16)), Unsupported, &["sliding-window"]);
    expect(with("tokenizer.ggml.eos_token_id", Value::U32(7)), Corrupt, &["end-of-text token 7"]);
    expect(with("tokenizer.ggml.token_type", Value::i32s(&[1])), Corrupt, &["token_type"]);
    expect(with("general.architecture", Value::string(*b"\xff\xff")), Corrupt, &["general.architecture"]);
    with("llama.attention.head_count_kv", Value::i32s(&[2, 2])).unwrap();
    with("llama.expert_count", Value::U32(0)).unwrap();
    let mut yarn = llama_keys();
    yarn.push(("llama.rope.scaling.type".into(), Value::string("yarn")));
    yarn.push(("llama.rope.scaling.factor".into(), Value::F32(4.0)));
    let (_, meta) = open_gguf(&gguf_file(&yarn, &[])).unwrap();
    meta.check().unwrap(); // the context is the original one where none is given
    yarn.push(("llama.rope.scaling.original_context_length".into(), Value::U32(0)));
    let (_, meta) = open_gguf(&gguf_file(&yarn, &[])).unwrap();
    expect(meta.check(), Corrupt, &["original context"]);

    let mut keys = llama_keys();
    keys.retain(|(k, _)| k != "llama.context_length");
    let (_, meta) = open_gguf(&gguf_file(&keys, &[])).unwrap();
    expect(meta.check(), Corrupt, &["llama.context_length is missing"]);
}

#[test]
fn an_unknown_architecture_can_be_inspected() {
    let keys: Vec<_> =
        [("general.architecture", Value::string("mamba9")), ("mamba9.block_count", Value::U32(2))]
            .map(|(k, v)| (k.to_string(), v))
            .to_vec();
    let (_, meta) = open_gguf(&gguf_file(&keys, &[])).unwrap();
    assert_eq!((meta.arch.as_str(), meta.layers), ("mamba9", 2));
    assert_eq!(meta.raw[1], ("mamba9.block_count".into(), "2".into()));
    expect(meta.check(), Corrupt, &["mamba9.attention.head_count"]);
}

#[test]
fn tokens_need_not_be_utf8() {
    let mut keys = llama_keys();
    keys.retain(|(k, _)| k != "tokenizer.ggml.tokens");
    keys.push((
        "tokenizer.ggml.tokens".into(),
        Value::strings([b"\xff\xfe".to_vec(), b"b".to_vec(), b"c".to_vec()]),
    ));
    let (_, meta) = open_gguf(&gguf_file(&keys, &[])).unwrap();
    meta.check().unwrap();
    let tidemill_files::TokenizerSource::Gguf(vocab) = meta.tokenizer else { panic!("no vocabulary") };
    assert_eq!(vocab.tokens[0], b"\xff\xfe");
}

/// Writes shard `no` of `count` with one tensor named after it.
fn write_shard(dir: &Path, no: u16, count: u16, edit: impl FnOnce(&mut Vec<(String, Value)>)) {
    let mut keys = if no == 0 { llama_keys() } else { Vec::new() };
    keys.push(("split.no".into(), Value::U16(no)));
    keys.push(("split.count".into(), Value::U16(count)));
    keys.push(("split.tensors.count".into(), Value::I32(count.into())));
    edit(&mut keys);
    let tensor = GgufTensor::new(format!("blk.{no}.attn_q.weight"), &[2, 32], Format::Q8_0);
    let path = dir.join(format!("m-{:05}-of-{count:05}.gguf", no + 1));
    let file = std::fs::File::create(path).unwrap();
    let mut writer = GgufWriter::new(file, &keys, &[tensor]).unwrap();
    writer.write(&[no as u8; 68]).unwrap();
    writer.finish().unwrap();
}

#[test]
fn split_files_open_from_the_first_shard() {
    let dir = tempfile::tempdir().unwrap();
    (0..3).for_each(|no| write_shard(dir.path(), no, 3, |_| {}));
    let first = dir.path().join("m-00001-of-00003.gguf");
    for path in [first.as_path(), dir.path()] {
        let (index, meta) = TensorIndex::open(path).unwrap();
        assert_eq!((index.len(), index.files().len(), meta.layers), (3, 3, 2));
        let span = index.require("blk.2.attn_q.weight").unwrap().spans[0];
        let bytes = std::fs::read(&index.files()[span.file.0 as usize]).unwrap();
        assert_eq!(bytes[span.offset as usize..][..68], [2; 68]);
    }
    let second = dir.path().join("m-00002-of-00003.gguf");
    expect(TensorIndex::open(&second), InvalidRequest, &["not the first", "open m-00001-of-00003.gguf"]);

    let renamed = dir.path().join("renamed.gguf");
    std::fs::copy(&first, &renamed).unwrap();
    expect(TensorIndex::open(&renamed), NotFound, &["renamed.gguf", "-00001-of-00003.gguf"]);
    std::fs::remove_file(&renamed).unwrap();

    std::fs::remove_file(&second).unwrap();
    expect(TensorIndex::open(&first), NotFound, &["m-00002-of-00003.gguf"]);
    write_shard(dir.path(), 1, 3, |keys| keys[0].1 = Value::U16(2));
    expect(TensorIndex::open(&first), Corrupt, &["m-00002-of-00003.gguf", "split.no"]);
    write_shard(dir.path(), 1, 3, |keys| keys[1].1 = Value::U16(4));
    expect(TensorIndex::open(&first), Corrupt, &["m-00002-of-00003.gguf", "split.count"]);
    write_shard(dir.path(), 1, 3, |_| {});
    write_shard(dir.path(), 0, 3, |keys| keys.last_mut().unwrap().1 = Value::I32(5));
    expect(TensorIndex::open(&first), Corrupt, &["split.tensors.count is 5", "3 tensors"]);
}

#[test]
fn paths_that_are_no_model() {
    let dir = tempfile::tempdir().unwrap();
    expect(TensorIndex::open(&dir.path().join("none.gguf")), NotFound, &["none.gguf"]);
    expect(TensorIndex::open(dir.path()), NotFound, &["config.json"]);
    std::fs::write(dir.path().join("notes.txt"), "hello").unwrap();
    expect(TensorIndex::open(&dir.path().join("notes.txt")), InvalidRequest, &["notes.txt", "neither"]);
    std::fs::write(dir.path().join("a.gguf"), small_gguf()).unwrap();
    assert_eq!(TensorIndex::open(dir.path()).unwrap().0.len(), 3);
    std::fs::write(dir.path().join("b.gguf"), small_gguf()).unwrap();
    expect(TensorIndex::open(dir.path()), InvalidRequest, &["2 GGUF models"]);
    std::fs::rename(dir.path().join("b.gguf"), dir.path().join("blob")).unwrap();
    assert_eq!(TensorIndex::open(&dir.path().join("blob")).unwrap().0.len(), 3);
}

#[test]
fn the_writer_refuses_what_does_not_fit() {
    let affine = Format::Affine { bits: 4, group: 64, scale: tidemill_files::ScaleType::BF16 };
    let new = |tensor| GgufWriter::new(Vec::new(), &[], &[tensor]);
    expect(new(GgufTensor::new("a", &[2, 64], affine)), InvalidRequest, &["tensor a", "affine"]);
    expect(new(GgufTensor::new("a", &[2, 33], Format::Q4_0)), InvalidRequest, &["tensor a", "33"]);
    expect(new(GgufTensor::new("a", &[1, 1, 1, 1, 1], Format::F32)), InvalidRequest, &["four"]);
    let mut writer = new(GgufTensor::new("a", &[4], Format::F32)).unwrap();
    expect(writer.write(&[0; 17]), InvalidRequest, &["tensor a", "17 bytes"]);
    writer.write(&[0; 15]).unwrap();
    expect(writer.finish(), InvalidRequest, &["tensor a", "1 bytes are missing"]);
    let mut none = GgufWriter::new(Vec::new(), &[], &[]).unwrap();
    expect(none.write(&[0]), InvalidRequest, &["after the last"]);
}
