//! Safetensors: one file's header, and a model directory with its shards.
//!
//! Source: the format description of the safetensors project: eight bytes of header length, a JSON object of
//! `{dtype, shape, data_offsets}` by name with `__metadata__` strings, then the data without holes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::affine::{self, Quantization};
use crate::gguf::short_text;
use crate::index::{MAX_RANK, check_inside, count_values};
use crate::meta::hf::Config;
use crate::open::read_text;
use crate::{Error, ErrorKind, FileId, Meta, Result, TensorIndex};

/// The reference implementation's limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The index of the largest public checkpoints is about 10 MB.
const MAX_INDEX_BYTES: u64 = 128 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// The header of one safetensors file.
#[derive(Debug)]
pub struct Header {
    /// Tensors by rising offset.
    pub entries: Vec<Entry>,
    /// The strings under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// The format's name of the number type: `BF16`, `U32`, ...
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// Bits of one value of a dtype.
pub(crate) fn dtype_bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Unknown members are refused: skipping them would follow JSON to any depth.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's JSON object. A map type would let the second of two equal names win in silence.
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    entries: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        let entry = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("tensor {}: {e}", short_text(&name))))?;
                        header.entries.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

impl Header {
    /// Reads a header from a stream of `file_bytes` bytes; `path` is for messages. No tensor data is read.
    ///
    /// # Errors
    /// Names the file and the tensor that is wrong.
    pub fn read(mut stream: impl Read, file_bytes: u64, path: &Path) -> Result<Header> {
        let file = path.display();
        let io = |e| Error::io(format!("reading the header of {file}"), e);
        if file_bytes < 8 {
            return Err(Error::corrupt(format!(
                "{file}: truncated: {file_bytes} bytes are no safetensors file"
            )));
        }
        let mut raw = [0; 8];
        stream.read_exact(&mut raw).map_err(io)?;
        let length = u64::from_le_bytes(raw);
        if length > file_bytes - 8 {
            return Err(Error::corrupt(format!(
                "{file}: truncated, or not safetensors: a header of {length} bytes in a file of {file_bytes}"
            )));
        }
        if length > MAX_HEADER_BYTES {
            return Err(Error::corrupt(format!(
                "{file}: a header of {length} bytes; {MAX_HEADER_BYTES} is the limit"
            )));
        }
        let mut json = vec![0; length as usize];
        stream.read_exact(&mut json).map_err(io)?;
        let raw: RawHeader = serde_json::from_slice(&json)
            .map_err(|e| Error::corrupt(format!("{file}: the safetensors header: {e}")).with_source(e))?;
        let data = 8 + length;
        let entries =
            raw.entries.into_iter().map(|(name, entry)| check_entry(name, entry, data, file_bytes, path));
        let mut entries = entries.collect::<Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.offset);
        check_layout(&entries, data, file_bytes, path)?;
        Ok(Header { entries, metadata: raw.metadata })
    }
}

fn check_entry(name: String, raw: RawEntry, data: u64, file_bytes: u64, path: &Path) -> Result<Entry> {
    let wrong =
        |what: String| Error::corrupt(format!("{}: tensor {}: {what}", path.display(), short_text(&name)));
    let bits = dtype_bits(&raw.dtype).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, wrong(format!("dtype {:?}", short_text(&raw.dtype))).message())
    })?;
    if raw.shape.len() > MAX_RANK {
        return Err(wrong(format!("{} dimensions, at most {MAX_RANK} are allowed", raw.shape.len())));
    }
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = shape.ok_or_else(|| wrong(format!("shape {:?} overflows", raw.shape)))?;
    let values = count_values(&shape).map_err(|e| wrong(e.message().to_string()))?;
    let total_bits = (values as u64).checked_mul(bits as u64);
    let total_bits = total_bits.ok_or_else(|| wrong(format!("shape {shape:?} overflows in bytes")))?;
    let (begin, end) = raw.data_offsets;
    let bytes = end
        .checked_sub(begin)
        .ok_or_else(|| wrong(format!("data_offsets [{begin}, {end}] run backwards")))?;
    if !total_bits.is_multiple_of(8) || bytes != total_bits / 8 {
        return Err(wrong(format!(
            "{bytes} bytes of data, but {} of shape {shape:?} are {}",
            raw.dtype,
            total_bits / 8
        )));
    }
    let offset = data.checked_add(begin).ok_or_else(|| wrong("its offset overflows".into()))?;
    check_inside(&short_text(&name), offset, bytes, path, file_bytes)?;
    Ok(Entry { name, dtype: raw.dtype, shape, offset, bytes })
}

/// The data section is covered once, without holes: the format demands it, and damage shows as a gap.
fn check_layout(sorted: &[Entry], data: u64, file_bytes: u64, path: &Path) -> Result<()> {
    let file = path.display();
    let mut end = data;
    for entry in sorted {
        if entry.offset != end {
            let what =
                if entry.offset < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            let name = short_text(&entry.name);
            return Err(Error::corrupt(format!("{file}: tensor {name} at byte {} {what}", entry.offset)));
        }
        end += entry.bytes;
    }
    if end != file_bytes {
        return Err(Error::corrupt(format!(
            "{file}: the tensors end at byte {end}, the file has {file_bytes}"
        )));
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Header> {
    let file = File::open(path).map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
    let about = file.metadata().map_err(|e| Error::io(format!("cannot stat {}", path.display()), e))?;
    if !about.is_file() {
        return Err(Error::invalid(format!("{}: not a regular file", path.display())));
    }
    Header::read(BufReader::new(file), about.len(), path)
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

/// The safetensors files of a directory, and the weights the index promises in each.
fn shards(dir: &Path) -> Result<Vec<(PathBuf, Vec<String>)>> {
    let index = dir.join(INDEX);
    if index.is_file() {
        let text = read_text(&index, MAX_INDEX_BYTES)?;
        let parsed: ShardIndex = serde_json::from_str(&text)
            .map_err(|e| Error::corrupt(format!("{}: {e}", index.display())).with_source(e))?;
        let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, file) in parsed.weight_map {
            // A path could lead out of the model's directory.
            if file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
                let (index, file) = (index.display(), short_text(&file));
                return Err(Error::corrupt(format!(
                    "{index}: {tensor} lies in {file:?}, which is no shard's name"
                )));
            }
            by_file.entry(file).or_default().push(tensor);
        }
        return Ok(by_file.into_iter().map(|(file, tensors)| (dir.join(file), tensors)).collect());
    }
    let names = names_without_index(dir)?;
    Ok(names.into_iter().map(|name| (dir.join(name), Vec::new())).collect())
}

/// `model.safetensors`, or the complete set of `model-00001-of-0000N.safetensors`, or the only file there is.
fn names_without_index(dir: &Path) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(dir).map_err(|e| Error::io(format!("cannot list {}", dir.display()), e))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(format!("cannot list {}", dir.display()), e))?;
        names.extend(entry.file_name().into_string().ok().filter(|n| n.ends_with(".safetensors")));
    }
    if names.contains("model.safetensors") {
        return Ok(vec!["model.safetensors".into()]);
    }
    let first = names.iter().find_map(|name| {
        let (prefix, count) = name.strip_suffix(".safetensors")?.split_once("-00001-of-")?;
        Some((prefix.to_string(), count.parse::<usize>().ok().filter(|&n| n <= 99_999)?))
    });
    if let Some((prefix, count)) = first {
        let shards: Vec<_> =
            (1..=count).map(|i| format!("{prefix}-{i:05}-of-{count:05}.safetensors")).collect();
        return match shards.iter().find(|shard| !names.contains(*shard)) {
            Some(missing) => Err(Error::not_found(format!("{}: missing shard", dir.join(missing).display()))),
            None => Ok(shards),
        };
    }
    match names.len() {
        0 => Err(Error::not_found(format!("{}: no .safetensors file", dir.display()))),
        1 => Ok(names.into_iter().collect()),
        n => Err(Error::not_found(format!("{}: {n} safetensors files, but no {INDEX}", dir.display()))),
    }
}

/// Opens a directory of safetensors files, or of its files only `only`.
pub(crate) fn open(dir: &Path, only: Option<&Path>) -> Result<(TensorIndex, Meta)> {
    let config = Config::open(dir)?;
    let shards = match only {
        Some(file) => vec![(file.to_path_buf(), Vec::new())],
        None => shards(dir)?,
    };
    let mut model = Model::default();
    for (path, promised) in shards {
        let header = read_file(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::not_found(format!("{}: missing shard", path.display())).with_source(e)
            }
            _ => e,
        })?;
        model.add(path, header, &promised)?;
    }
    model.finish(&config)
}

/// Opens a model that lies in memory: one safetensors file and the text of its `config.json`.
/// What fuzzing and tests call; there is no tokenizer and no template.
///
/// # Errors
/// As [`TensorIndex::open`].
pub fn open_bytes(bytes: &[u8], config: &str) -> Result<(TensorIndex, Meta)> {
    let path = Path::new("model.safetensors");
    let header = Header::read(bytes, bytes.len() as u64, path)?;
    let mut model = Model::default();
    model.add(path.to_path_buf(), header, &[])?;
    model.finish(&Config::parse("config.json".into(), config)?)
}

/// The shards read so far.
#[derive(Default)]
struct Model {
    index: TensorIndex,
    entries: Vec<(FileId, Entry)>,
    names: HashMap<String, usize>,
    /// Names that the index promises, each with its file.
    promised: Vec<(String, String)>,
    mlx: bool,
}

impl Model {
    fn add(&mut self, path: PathBuf, header: Header, promised: &[String]) -> Result<()> {
        let label = path.display().to_string();
        let file = self.index.add_file(path)?;
        self.mlx |= header.metadata.get("format").is_some_and(|format| format == "mlx");
        for entry in header.entries {
            if let Some(&earlier) = self.names.get(&entry.name) {
                let other = self.index.label(self.entries[earlier].0);
                return Err(Error::corrupt(format!(
                    "{label}: tensor {} is there twice (also in {other})",
                    short_text(&entry.name)
                )));
            }
            self.names.insert(entry.name.clone(), self.entries.len());
            self.entries.push((file, entry));
        }
        self.promised.extend(promised.iter().map(|name| (name.clone(), label.clone())));
        Ok(())
    }

    /// What the index promises and no file has. It is an error only for a model that needs it: indexes are not always
    /// written anew when an output head that is the embedding is left out. Without its scales a matrix is nothing.
    fn lost(&self) -> Result<Vec<(String, String)>> {
        let mut lost = Vec::new();
        for (name, label) in self.promised.iter().filter(|(name, _)| !self.names.contains_key(name)) {
            let shown = short_text(name);
            let reason = format!("{label}: tensor {shown} is not in it, though {INDEX} says so");
            let module = [".scales", ".biases"].iter().find_map(|part| name.strip_suffix(part));
            match module {
                Some(m) if self.names.contains_key(&format!("{m}.weight")) => {
                    return Err(Error::corrupt(reason));
                }
                Some(_) => {}
                None => lost.push((name.clone(), reason)),
            }
        }
        Ok(lost)
    }

    fn finish(mut self, config: &Config) -> Result<(TensorIndex, Meta)> {
        let quantization = Quantization::from_config(config)?;
        let lost = self.lost()?;
        affine::merge(&mut self.index, self.entries, &self.names, &quantization)?;
        lost.into_iter().for_each(|(name, reason)| self.index.push_lost(name, reason));
        let mlx = self.mlx || quantization.is_mlx();
        let meta = crate::meta::hf::meta(config, &self.index, mlx);
        Ok((self.index, meta))
    }
}
