//! The MLX twin of a golden checkpoint is the one that mlx-lm made of it, bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use files::TensorIndex;
use xtask::twin;

fn golden(set: &str, format: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/goldens").join(set).join(format)
}

/// Each stored tensor of a safetensors file by name: `dtype`, shape as text, bytes.
fn stored(path: &Path) -> BTreeMap<String, (String, String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = &bytes[8 + header_bytes..];
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let entries = header.into_iter().filter(|(name, _)| name != "__metadata__");
    entries
        .map(|(name, entry)| {
            let edge = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
            let dtype = entry["dtype"].as_str().unwrap().to_string();
            (name, (dtype, entry["shape"].to_string(), data[edge(0)..edge(1)].to_vec()))
        })
        .collect()
}

fn twin_equals_mlx_lm(set: &str, bits: u8) {
    let mut expected = stored(&golden(set, &format!("mlx-{bits}bit")).join("model.safetensors"));
    for tensor in twin::convert(&golden(set, "bf16"), bits).unwrap() {
        let name = &tensor.name;
        let (dtype, shape, data) =
            expected.remove(name).unwrap_or_else(|| panic!("{set}: {name} is not mlx-lm's"));
        assert_eq!(
            (tensor.dtype, format!("{:?}", tensor.shape).replace(' ', "")),
            (&*dtype, shape),
            "{set}: {name}"
        );
        let differing = tensor.data.iter().zip(&data).filter(|(a, b)| a != b).count();
        assert_eq!((differing, tensor.data.len()), (0, data.len()), "{set}: {name}");
    }
    assert!(expected.is_empty(), "{set}: missing {:?}", expected.keys());
}

#[test]
fn mixture_of_experts() {
    twin_equals_mlx_lm("qwen3_5_moe-e32", 4);
    twin_equals_mlx_lm("qwen3_5_moe-e32", 8);
}

#[test]
fn rows_that_are_no_whole_groups_stay_floats() {
    twin_equals_mlx_lm("qwen3_5_moe-e512", 4);
}

#[test]
fn dense() {
    twin_equals_mlx_lm("qwen3_5-dense", 4);
    twin_equals_mlx_lm("qwen3_5-dense", 8);
}

#[test]
fn a_written_twin_opens_with_its_formats() {
    let folder = std::env::temp_dir().join(format!("xtask-twin-{}", std::process::id()));
    twin::write(&golden("qwen3_5_moe-e32", "bf16"), &folder, 8).unwrap();
    let written = TensorIndex::open(&folder);
    let original = TensorIndex::open(&golden("qwen3_5_moe-e32", "mlx-8bit")).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let (written, meta) = written.unwrap();
    assert_eq!(meta.arch, original.1.arch);
    let describe = |index: &TensorIndex| -> BTreeSet<String> {
        index.iter().map(|tensor| format!("{} {:?} {}", tensor.name, tensor.shape, tensor.format)).collect()
    };
    assert_eq!(describe(&written), describe(&original.0));
}

#[test]
fn other_bit_widths_are_refused() {
    let error = twin::convert(&golden("qwen3_5-dense", "bf16"), 3).unwrap_err();
    assert!(error.message().contains("3 bits"), "{error}");
}
