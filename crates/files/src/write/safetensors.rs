//! Writes safetensors files.

use std::collections::VecDeque;
use std::io::Write;

use serde_json::{Map, Value, json};

use super::{DataWriter, Slot};
use crate::index::count_values;
use crate::safetensors::dtype_bits;
use crate::{Error, Format, Result, ScaleType};

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsTensor {
    /// Name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// `BF16`, `U32`, ...
    pub dtype: String,
}

impl SafetensorsTensor {
    /// A tensor of this name, shape and dtype.
    pub fn new(name: impl Into<String>, shape: &[usize], dtype: &str) -> Self {
        Self { name: name.into(), shape: shape.to_vec(), dtype: dtype.into() }
    }

    /// The entries that hold a tensor in `format`: one for floats, and for affine matrices the packed words
    /// `X.weight`, then `X.scales` and `X.biases`, when `name` is `X.weight`. `shape` counts values.
    ///
    /// # Errors
    /// A format that safetensors lacks, or rows that are no whole number of groups.
    pub fn parts(name: &str, shape: &[usize], format: Format) -> Result<Vec<Self>> {
        let float = |scale| match scale {
            ScaleType::F32 => "F32",
            ScaleType::F16 => "F16",
            ScaleType::BF16 => "BF16",
        };
        let Format::Affine { bits, group, scale } = format else {
            let dtype = match format {
                Format::F32 => "F32",
                Format::F16 => "F16",
                Format::BF16 => "BF16",
                _ => {
                    return Err(Error::invalid(format!("tensor {name}: safetensors has no format {format}")));
                }
            };
            return Ok(vec![Self::new(name, shape, dtype)]);
        };
        let wrong = || Error::invalid(format!("tensor {name}: {shape:?} cannot be {format}"));
        let module = name.strip_suffix(".weight").ok_or_else(wrong)?;
        let (&cols, outer) = shape.split_last().filter(|(_, outer)| !outer.is_empty()).ok_or_else(wrong)?;
        if !cols.is_multiple_of(group.into()) {
            return Err(wrong());
        }
        let with_cols = |cols| outer.iter().copied().chain([cols]).collect::<Vec<_>>();
        let groups = with_cols(cols / usize::from(group));
        Ok(vec![
            Self::new(name, &with_cols(cols * usize::from(bits) / 32), "U32"),
            Self::new(format!("{module}.scales"), &groups, float(scale)),
            Self::new(format!("{module}.biases"), &groups, float(scale)),
        ])
    }

    fn bytes(&self) -> Result<u64> {
        let wrong = |what: &str| Error::invalid(format!("tensor {}: {what}", self.name));
        let bits = dtype_bits(&self.dtype).ok_or_else(|| wrong("unknown dtype"))?;
        let values = count_values(&self.shape).map_err(|e| wrong(e.message()))? as u64;
        let bits = values.checked_mul(bits as u64).ok_or_else(|| wrong("its size overflows"))?;
        if bits.is_multiple_of(8) { Ok(bits / 8) } else { Err(wrong("not a whole number of bytes")) }
    }
}

/// Writes one safetensors file.
pub struct SafetensorsWriter<W> {
    data: DataWriter<W>,
}

impl<W: Write> SafetensorsWriter<W> {
    /// Writes the header; `metadata` goes under `__metadata__`.
    ///
    /// # Errors
    /// An unknown dtype, a name twice, or I/O.
    pub fn new(out: W, metadata: &[(&str, &str)], tensors: &[SafetensorsTensor]) -> Result<Self> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            let strings: Map<String, Value> =
                metadata.iter().map(|&(key, value)| (key.to_string(), json!(value))).collect();
            header.insert("__metadata__".into(), Value::Object(strings));
        }
        let mut begin = 0u64;
        let mut queue = VecDeque::new();
        for tensor in tensors {
            let left = tensor.bytes()?;
            let end = begin.checked_add(left).ok_or_else(|| {
                Error::invalid(format!("tensor {}: the file's size overflows", tensor.name))
            })?;
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]});
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::invalid(format!("tensor {} is there twice", tensor.name)));
            }
            queue.push_back(Slot { name: tensor.name.clone(), left, padding: 0 });
            begin = end;
        }
        let mut json = Value::Object(header).to_string().into_bytes();
        // The reference writer pads too, so that the data is aligned for readers that map it.
        json.resize(json.len().next_multiple_of(8), b' ');
        let mut data = DataWriter { out, queue };
        data.put(&(json.len() as u64).to_le_bytes())?;
        data.put(&json)?;
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
