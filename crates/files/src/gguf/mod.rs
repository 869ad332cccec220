//! GGUF: header, metadata and tensor directory, split files too.
//!
//! Source: the GGUF specification in ggml's `docs/gguf.md` (versions 2 and 3 share one layout), and the
//! `split.*` keys and `-00001-of-00003.gguf` names that llama.cpp's `gguf-split` writes.

mod reader;
mod split;
mod types;
mod value;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::index::{check_inside, count_values, part_bytes};
use crate::{Error, Foreign, Meta, Result, Span, Tensor, TensorIndex};

use reader::Reader;
pub use types::{type_name, type_number};
pub(crate) use value::int_array;
pub(crate) use value::short_text;
pub use value::{Array, Kind, Value};

/// The first four bytes of a GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment of tensor data when `general.alignment` is absent.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// No real file aligns to more; a larger number would only hide data.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// GGML's limit of dimensions.
const MAX_DIMS: u32 = 4;

/// What stands before the tensor data of one GGUF file.
#[derive(Debug)]
pub struct Header {
    /// The file it was read from, for messages.
    pub path: PathBuf,
    /// 2 or 3.
    pub version: u32,
    /// Metadata in the file's order.
    pub metadata: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
    tensors: Vec<RawTensor>,
}

/// A tensor of the directory, with its offset from the start of the file.
#[derive(Debug)]
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    type_number: u32,
    offset: u64,
    bytes: u64,
}

impl Header {
    /// Reads a header from a stream of `file_bytes` bytes; `path` is for messages. No tensor data is read.
    ///
    /// # Errors
    /// Names the file and the key or tensor that is wrong.
    pub fn read(stream: impl Read, file_bytes: u64, path: &Path) -> Result<Header> {
        read_header(stream, file_bytes, path).map_err(|e| named(e, path))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.metadata[i].1)
    }
}

/// Puts the file before a message that does not name it yet.
fn named(error: Error, path: &Path) -> Error {
    let file = path.display().to_string();
    if error.message().starts_with(&file) { error } else { error.context(file) }
}

fn read_header(stream: impl Read, file_bytes: u64, path: &Path) -> Result<Header> {
    let mut reader = Reader::new(stream, file_bytes);
    let version = read_version(&mut reader)?;
    let tensor_count = reader.u64("the tensor count")?;
    let key_count = reader.u64("the metadata count")?;
    // A key takes at least its length, a type and one byte; a tensor its length, dimensions, type and offset.
    reader.check_fits("the metadata count", key_count, 8 + 4 + 1)?;
    reader.check_fits("the tensor count", tensor_count, 8 + 4 + 4 + 8)?;

    let mut metadata = Vec::new();
    let mut by_key = HashMap::new();
    for i in 0..key_count {
        let key = reader.utf8("metadata key")?;
        let value = reader.value(&short_text(&key)).map_err(|e| e.context("metadata"))?;
        if by_key.insert(key.clone(), i as usize).is_some() {
            return Err(Error::corrupt(format!("metadata key {} is there twice", short_text(&key))));
        }
        metadata.push((key, value));
    }

    let alignment = match by_key.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(&i) => read_alignment(&metadata[i].1)?,
    };
    let mut tensors =
        (0..tensor_count).map(|_| read_tensor(&mut reader, alignment)).collect::<Result<Vec<_>>>()?;
    let data = reader.at().next_multiple_of(alignment);
    place_tensors(&mut tensors, data, path, file_bytes)?;
    Ok(Header { path: path.to_path_buf(), version, metadata, by_key, tensors })
}

fn read_version<R: Read>(reader: &mut Reader<R>) -> Result<u32> {
    let magic = reader.bytes("the magic", 4)?;
    if magic != MAGIC {
        return Err(Error::corrupt(format!("not a GGUF file: it starts with {magic:02x?}")));
    }
    match reader.u32("the version")? {
        version @ 2..=3 => Ok(version),
        1 => Err(Error::unsupported("GGUF version 1; only versions 2 and 3 are read")),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(Error::unsupported("a big-endian GGUF file; only little-endian ones are read"))
        }
        version => Err(Error::unsupported(format!("GGUF version {version}; only versions 2 and 3 are read"))),
    }
}

fn read_alignment(value: &Value) -> Result<u64> {
    let alignment = value.as_int().and_then(|v| u64::try_from(v).ok());
    alignment.filter(|a| a.is_power_of_two() && *a <= MAX_ALIGNMENT).ok_or_else(|| {
        Error::corrupt(format!(
            "general.alignment is {}, not a power of two up to {MAX_ALIGNMENT}",
            value.summary()
        ))
    })
}

/// One line of the directory; `offset` is still relative to the data section.
fn read_tensor<R: Read>(reader: &mut Reader<R>, alignment: u64) -> Result<RawTensor> {
    let name = reader.utf8("tensor name")?;
    let what = format!("tensor {}", short_text(&name));
    let dims = reader.u32(&what)?;
    if dims > MAX_DIMS {
        return Err(Error::corrupt(format!("{what}: {dims} dimensions, at most {MAX_DIMS} are allowed")));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let dim = reader.u64(&what)?;
        shape
            .push(usize::try_from(dim).map_err(|_| Error::corrupt(format!("{what}: a dimension of {dim}")))?);
    }
    // GGUF lists the fastest dimension first.
    shape.reverse();
    let type_number = reader.u32(&what)?;
    let offset = reader.u64(&what)?;
    if !offset.is_multiple_of(alignment) {
        return Err(Error::corrupt(format!("{what}: its offset {offset} is not a multiple of {alignment}")));
    }
    let bytes = tensor_bytes(type_number, &shape).map_err(|e| e.context(&what))?;
    Ok(RawTensor { name, shape, type_number, offset, bytes })
}

fn tensor_bytes(type_number: u32, shape: &[usize]) -> Result<u64> {
    if let Some(format) = types::format(type_number) {
        return part_bytes(format, 0, shape);
    }
    let known = types::foreign(type_number)
        .ok_or_else(|| Error::unsupported(format!("GGML type number {type_number} is not known")))?;
    let values = count_values(shape)?;
    let cols = shape.last().copied().unwrap_or(1);
    let (block_values, block_bytes) = known.block;
    if !cols.is_multiple_of(block_values) {
        return Err(Error::corrupt(format!(
            "{}: a row of {cols} is not a multiple of {block_values}",
            known.name
        )));
    }
    let bytes = (values / block_values).checked_mul(block_bytes).and_then(|b| u64::try_from(b).ok());
    bytes.ok_or_else(|| Error::corrupt(format!("shape {shape:?} overflows in bytes")))
}

/// Makes offsets absolute and checks that tensors lie inside the file and apart from each other.
fn place_tensors(tensors: &mut [RawTensor], data: u64, path: &Path, file_bytes: u64) -> Result<()> {
    for tensor in tensors.iter_mut() {
        let absolute = data.checked_add(tensor.offset);
        tensor.offset = absolute.ok_or_else(|| {
            Error::corrupt(format!("tensor {}: its offset overflows", short_text(&tensor.name)))
        })?;
        check_inside(&short_text(&tensor.name), tensor.offset, tensor.bytes, path, file_bytes)?;
    }
    let mut order: Vec<&RawTensor> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(Error::corrupt(format!(
                "tensors {} and {} overlap at byte {}",
                short_text(&pair[0].name),
                short_text(&pair[1].name),
                pair[1].offset
            )));
        }
    }
    Ok(())
}

/// Reads the header of a file on disk.
pub(crate) fn read_file(path: &Path) -> Result<Header> {
    let file = File::open(path).map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
    let about = file.metadata().map_err(|e| Error::io(format!("cannot stat {}", path.display()), e))?;
    if !about.is_file() {
        return Err(Error::invalid(format!("{}: not a regular file", path.display())));
    }
    Header::read(BufReader::with_capacity(1 << 18, file), about.len(), path)
}

/// Opens a GGUF model: one file, or the first shard of a split one.
pub(crate) fn open(path: &Path) -> Result<(TensorIndex, Meta)> {
    let first = read_file(path)?;
    let mut headers = vec![first];
    for shard in split::other_shards(&headers[0]).map_err(|e| named(e, path))? {
        let header = read_file(&shard)?;
        split::check_shard(&headers[0], &header, headers.len()).map_err(|e| named(e, &shard))?;
        headers.push(header);
    }
    build(headers)
}

/// Opens a GGUF file that lies in memory: what fuzzing and tests call. `path` is for messages.
///
/// # Errors
/// As [`TensorIndex::open`]. Split files cannot be opened from memory.
pub fn open_bytes(bytes: &[u8], path: &Path) -> Result<(TensorIndex, Meta)> {
    let header = Header::read(bytes, bytes.len() as u64, path)?;
    if !split::other_shards(&header).map_err(|e| named(e, path))?.is_empty() {
        return Err(Error::unsupported(format!("{}: a split file in memory", path.display())));
    }
    build(vec![header])
}

fn build(mut headers: Vec<Header>) -> Result<(TensorIndex, Meta)> {
    let mut index = TensorIndex::default();
    split::check_total(&headers)?;
    for header in &mut headers {
        let path = header.path.clone();
        add_tensors(&mut index, header).map_err(|e| named(e, &path))?;
    }
    let meta = crate::meta::from_gguf(&headers[0], &index);
    Ok((index, meta))
}

fn add_tensors(index: &mut TensorIndex, header: &mut Header) -> Result<()> {
    let file = index.add_file(header.path.clone())?;
    let mut seen = HashSet::new();
    for raw in std::mem::take(&mut header.tensors) {
        let span = Span { file, offset: raw.offset, bytes: raw.bytes };
        if !seen.insert(raw.name.clone()) {
            return Err(Error::corrupt(format!("tensor {} is there twice", short_text(&raw.name))));
        }
        let RawTensor { name, shape, type_number, .. } = raw;
        if let Some(format) = types::format(type_number) {
            index.push(Tensor { name, shape, format, spans: vec![span] })?;
        } else {
            let dtype = type_name(type_number).to_string();
            let reason = format!("GGML type {dtype} (number {type_number}) is not supported");
            index.push_foreign(Foreign { name, shape, dtype, span, reason })?;
        }
    }
    Ok(())
}
