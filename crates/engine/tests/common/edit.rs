//! Copies of models with something changed.

use std::path::{Path, PathBuf};

use files::gguf::{Header, Value};
use files::write::{GgufTensor, GgufWriter, SafetensorsTensor, SafetensorsWriter};
use files::{Format, TensorIndex};
use tempfile::TempDir;

/// A GGUF file in memory.
#[derive(Clone)]
pub struct Gguf {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<(GgufTensor, Vec<u8>)>,
}

impl Gguf {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).expect("readable");
        let header = Header::read(bytes.as_slice(), bytes.len() as u64, path).expect("a header");
        let (index, _) = TensorIndex::open(path).expect("opens");
        let tensor = |t: &files::Tensor| {
            let (at, len) = (t.spans[0].offset as usize, t.spans[0].bytes as usize);
            (GgufTensor::new(&t.name, &t.shape, t.format), bytes[at..at + len].to_vec())
        };
        let tensors = index.iter().map(tensor).collect();
        Self { keys: header.metadata.clone(), tensors }
    }

    pub fn golden(name: &str) -> Self {
        Self::read(&super::model_path(&super::root().join("testdata/goldens").join(name)))
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        match self.keys.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.into(), value)),
        }
        self
    }

    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(k, _)| k != key);
        self
    }

    /// With one more tensor, of zeros.
    #[must_use]
    pub fn zeros(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * 4;
        self.tensors.push((GgufTensor::new(name, shape, Format::F32), vec![0; bytes]));
        self
    }

    pub fn take(&mut self, name: &str) -> (GgufTensor, Vec<u8>) {
        let at = self.tensors.iter().position(|(t, _)| t.name == name).expect("there is one");
        self.tensors.remove(at)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let tensors: Vec<GgufTensor> = self.tensors.iter().map(|(t, _)| t.clone()).collect();
        let mut writer = GgufWriter::new(Vec::new(), &self.keys, &tensors).expect("writes");
        for (_, bytes) in &self.tensors {
            writer.write(bytes).expect("writes");
        }
        writer.finish().expect("writes")
    }

    /// The file, which lives as long as what is returned first.
    pub fn save(&self) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, self.bytes()).expect("writes");
        (dir, path)
    }
}

/// A copy of a folder with safetensors.
pub struct Folder(TempDir);

impl Folder {
    pub fn golden(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(super::root().join("testdata/goldens").join(name)).expect("readable") {
            let entry = entry.expect("readable");
            if !entry.file_name().to_string_lossy().starts_with("golden") {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copies");
            }
        }
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Changes a JSON file.
    pub fn json(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> &Self {
        let path = self.path().join(name);
        let mut json = serde_json::from_slice(&std::fs::read(&path).expect("readable")).expect("JSON");
        change(&mut json);
        std::fs::write(&path, json.to_string()).expect("writes");
        self
    }

    /// Changes `config.json`, the language model's part of it.
    pub fn config(&self, change: impl FnOnce(&mut serde_json::Value)) -> &Self {
        self.json("config.json", |config| match config.get_mut("text_config") {
            Some(text) => change(text),
            None => change(config),
        })
    }

    /// Puts a key into `config.json`, where the language model has it.
    pub fn set(&self, key: &str, value: serde_json::Value) -> &Self {
        self.config(|config| config[key] = value)
    }

    /// Says in the index that a tensor lies in a file.
    pub fn promise(&self, tensor: &str, file: &str) -> &Self {
        self.json("model.safetensors.index.json", |index| index["weight_map"][tensor] = file.into())
    }

    /// One more shard with tensors of zeros.
    pub fn zeros(&self, tensors: &[(&str, &[usize], &str)]) -> &Self {
        let about: Vec<_> = tensors.iter().map(|(n, s, d)| SafetensorsTensor::new(*n, s, d)).collect();
        let mut writer = SafetensorsWriter::new(Vec::new(), &[], &about).expect("writes");
        for (name, shape, dtype) in tensors {
            let width = match *dtype {
                "F32" => 4,
                "BF16" => 2,
                "F8_E4M3" | "U8" => 1,
                "I64" => 8,
                other => panic!("{other}"),
            };
            writer.write(&vec![0; shape.iter().product::<usize>() * width]).expect("writes");
            self.promise(name, "more.safetensors");
        }
        std::fs::write(self.path().join("more.safetensors"), writer.finish().expect("writes"))
            .expect("writes");
        self
    }
}
