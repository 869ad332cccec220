//! What the engine's tests share: test data, small readers, sessions without ceremony.
#![allow(dead_code, unreachable_pub)]

pub mod edit;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use files::TensorIndex;
use tidemill_engine::{Model, OpenOptions, Session};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every golden set: the directory of one checkpoint and its numbers.
pub fn golden_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for family in
        std::fs::read_dir(root().join("testdata/goldens")).expect("the goldens are in the repository")
    {
        for format in std::fs::read_dir(family.expect("readable").path()).expect("readable") {
            dirs.push(format.expect("readable").path());
        }
    }
    dirs.sort();
    assert!(dirs.len() >= 20, "only {} golden sets found", dirs.len());
    dirs
}

/// The model of a golden set.
pub fn model_path(dir: &Path) -> PathBuf {
    let gguf = std::fs::read_dir(dir).expect("readable").filter_map(|e| Some(e.ok()?.path()));
    gguf.into_iter().find(|p| p.extension().is_some_and(|e| e == "gguf")).unwrap_or_else(|| dir.to_path_buf())
}

/// Opens without progress.
pub fn open(path: &Path, options: &OpenOptions) -> std::sync::Arc<Model> {
    try_open(path, options).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Opens without progress, for a few sequences: those that are tested and those that judge.
pub fn try_open(path: &Path, options: &OpenOptions) -> tidemill_engine::Result<std::sync::Arc<Model>> {
    let options = OpenOptions { sessions: options.sessions.or(Some(4)), ..options.clone() };
    Model::open(path, &options, &mut |_, _| ControlFlow::Continue(()))
}

/// Goes on.
pub fn go(_: f64, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The logits of every position of `tokens`, in an empty session.
pub fn all_logits(session: &mut Session, tokens: &[u32]) -> tidemill_engine::Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    session.score(tokens, &mut go, &mut |_, logits| {
        all.push(logits.to_vec());
        Ok(())
    })?;
    Ok(all)
}

/// A named F32 or I32 tensor of a safetensors file as raw little-endian words, and its shape.
pub struct Reader {
    bytes: Vec<u8>,
    header: serde_json::Value,
    data: usize,
}

impl Reader {
    pub fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("golden.safetensors is there");
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + len]).expect("a JSON header");
        Self { bytes, header, data: 8 + len }
    }

    fn raw(&self, name: &str) -> Option<(&[u8], Vec<usize>)> {
        let entry = self.header.get(name)?;
        let number = |v: &serde_json::Value| v.as_u64().expect("a number") as usize;
        let offsets = &entry["data_offsets"];
        let range = self.data + number(&offsets[0])..self.data + number(&offsets[1]);
        let shape = entry["shape"].as_array().expect("a shape").iter().map(number).collect();
        Some((&self.bytes[range], shape))
    }

    pub fn floats(&self, name: &str) -> Option<(Vec<f32>, Vec<usize>)> {
        let (raw, shape) = self.raw(name)?;
        let word = |w: &[u8]| f32::from_le_bytes(w.try_into().expect("4 bytes"));
        Some((raw.chunks_exact(4).map(word).collect(), shape))
    }

    pub fn ints(&self, name: &str) -> Option<(Vec<i32>, Vec<usize>)> {
        let (raw, shape) = self.raw(name)?;
        let word = |w: &[u8]| i32::from_le_bytes(w.try_into().expect("4 bytes"));
        Some((raw.chunks_exact(4).map(word).collect(), shape))
    }
}

/// Whether this index has experts on disk.
pub fn is_moe(path: &Path) -> bool {
    TensorIndex::open(path).expect("opens").1.moe.is_some()
}
