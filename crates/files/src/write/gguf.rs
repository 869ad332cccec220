//! Writes GGUF version 3.

use std::io::Write;

use super::{DataWriter, Slot};
use crate::gguf::{Array, DEFAULT_ALIGNMENT, Kind, MAGIC, Value, type_number};
use crate::index::part_bytes;
use crate::{Error, Format, Result};

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Outermost dimension first, as in [`crate::Tensor`]; at most four dimensions.
    pub shape: Vec<usize>,
    /// Any format but the affine ones.
    pub format: Format,
}

impl GgufTensor {
    /// A tensor of this name, shape (outermost dimension first) and format.
    pub fn new(name: impl Into<String>, shape: &[usize], format: Format) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), format }
    }
}

/// Writes one GGUF file. Parts of a split file are files of their own, with `split.*` keys among the metadata.
pub struct GgufWriter<W> {
    data: DataWriter<W>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. `general.alignment` among the metadata is honoured (a `u32`, power of two).
    ///
    /// # Errors
    /// A format that GGUF lacks, a shape that is no whole number of blocks, more than four dimensions, or I/O.
    pub fn new(out: W, metadata: &[(String, Value)], tensors: &[GgufTensor]) -> Result<Self> {
        let alignment = match metadata.iter().find(|(key, _)| key == "general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(alignment))) if alignment.is_power_of_two() => (*alignment).into(),
            Some((_, other)) => return Err(Error::invalid(format!("general.alignment {}", other.summary()))),
        };
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut header, key.as_bytes());
            header.extend((value.kind() as u32).to_le_bytes());
            put_value(&mut header, value);
        }
        let mut offset = 0u64;
        let mut queue = std::collections::VecDeque::new();
        for tensor in tensors {
            let wrong = |what: String| Error::invalid(format!("tensor {}: {what}", tensor.name));
            let number = type_number(tensor.format)
                .ok_or_else(|| wrong(format!("GGUF has no format {}", tensor.format)))?;
            if tensor.shape.len() > 4 {
                return Err(wrong(format!("shape {:?} has more than four dimensions", tensor.shape)));
            }
            let left = part_bytes(tensor.format, 0, &tensor.shape).map_err(|e| wrong(e.message().into()))?;
            put_string(&mut header, tensor.name.as_bytes());
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dim in tensor.shape.iter().rev() {
                header.extend((dim as u64).to_le_bytes());
            }
            header.extend(number.to_le_bytes());
            header.extend(offset.to_le_bytes());
            let padding = left.next_multiple_of(alignment) - left;
            offset = offset
                .checked_add(left + padding)
                .ok_or_else(|| wrong("the file's size overflows".to_string()))?;
            queue.push_back(Slot { name: tensor.name.clone(), left, padding });
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        let mut data = DataWriter { out, queue };
        data.put(&header)?;
        Ok(Self { data })
    }

    /// Appends bytes to the current tensor; the next one begins when this one is full.
    ///
    /// # Errors
    /// More bytes than the current tensor has left, or I/O.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.data.write(bytes)
    }

    /// Ends the file and returns what it was written to.
    ///
    /// # Errors
    /// A tensor whose bytes have not all been written, or I/O.
    pub fn finish(self) -> Result<W> {
        self.data.finish()
    }
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(bytes) => put_string(out, bytes),
        Value::Array(array) => put_array(out, array),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let kind = match array {
        Array::Fixed { kind, .. } => *kind,
        Array::Strings(_) => Kind::String,
        Array::Nested(_) => Kind::Array,
    };
    out.extend((kind as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::Fixed { raw, .. } => out.extend(raw),
        Array::Strings(strings) => strings.iter().for_each(|s| put_string(out, s)),
        Array::Nested(arrays) => arrays.iter().for_each(|a| put_array(out, a)),
    }
}
