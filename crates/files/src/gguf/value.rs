//! GGUF metadata values, in the types of the file.

use crate::{Error, Result};

/// A metadata value (GGUF specification, `gguf_metadata_value_type`).
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the format's own
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Meant to be UTF-8, but not trusted to be.
    String(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Numbers and booleans as they lie in the file: little-endian, so that memory is never more than the file.
    Fixed {
        /// The type of every element.
        kind: Kind,
        /// `kind.bytes()` for each element.
        raw: Vec<u8>,
    },
    /// Strings, meant to be UTF-8.
    Strings(Vec<Vec<u8>>),
    /// Arrays in an array.
    Nested(Vec<Array>),
}

/// The type number of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the format's own
#[repr(u32)]
pub enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The type of a number in the file, if there is one.
    pub fn from_number(number: u32) -> Option<Kind> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Bytes of one value; the least number of bytes for strings (their length) and arrays (type and length).
    pub fn bytes(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::String | Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::Array => 12,
        }
    }
}

impl Value {
    /// A fixed-size value from its little-endian bytes; `None` for strings, arrays and a wrong length.
    pub(crate) fn from_le(kind: Kind, raw: &[u8]) -> Option<Value> {
        Some(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(raw.try_into().ok()?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(raw.try_into().ok()?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(raw.try_into().ok()?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(raw.try_into().ok()?)),
            Kind::U32 => Value::U32(u32::from_le_bytes(raw.try_into().ok()?)),
            Kind::I32 => Value::I32(i32::from_le_bytes(raw.try_into().ok()?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(raw.try_into().ok()?)),
            Kind::Bool => Value::Bool(*raw.first()? != 0),
            Kind::U64 => Value::U64(u64::from_le_bytes(raw.try_into().ok()?)),
            Kind::I64 => Value::I64(i64::from_le_bytes(raw.try_into().ok()?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(raw.try_into().ok()?)),
            Kind::String | Kind::Array => return None,
        })
    }

    /// The type number of this value.
    pub fn kind(&self) -> Kind {
        match self {
            Value::U8(_) => Kind::U8,
            Value::I8(_) => Kind::I8,
            Value::U16(_) => Kind::U16,
            Value::I16(_) => Kind::I16,
            Value::U32(_) => Kind::U32,
            Value::I32(_) => Kind::I32,
            Value::F32(_) => Kind::F32,
            Value::Bool(_) => Kind::Bool,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::U64(_) => Kind::U64,
            Value::I64(_) => Kind::I64,
            Value::F64(_) => Kind::F64,
        }
    }

    /// A string value.
    pub fn string(text: impl Into<Vec<u8>>) -> Value {
        Value::String(text.into())
    }

    /// An array of `i32` values.
    pub fn i32s(values: &[i32]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Value::Array(Array::Fixed { kind: Kind::I32, raw })
    }

    /// An array of `f32` values.
    pub fn f32s(values: &[f32]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Value::Array(Array::Fixed { kind: Kind::F32, raw })
    }

    /// An array of booleans.
    pub fn bools(values: &[bool]) -> Value {
        let raw = values.iter().map(|&v| u8::from(v)).collect();
        Value::Array(Array::Fixed { kind: Kind::Bool, raw })
    }

    /// An array of strings.
    pub fn strings<T: Into<Vec<u8>>>(values: impl IntoIterator<Item = T>) -> Value {
        Value::Array(Array::Strings(values.into_iter().map(Into::into).collect()))
    }

    /// Any integer type, or a boolean, as `i128`.
    pub fn as_int(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            Value::Bool(v) => v.into(),
            _ => return None,
        })
    }

    /// Any number as `f64`.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            _ => self.as_int().map(|v| v as f64),
        }
    }

    /// A boolean; converters also write 0 and 1 as integers.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_int()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// The bytes of a string.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let Value::String(bytes) = self { Some(bytes) } else { None }
    }

    /// A string that is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.as_bytes()?).ok()
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(array) = self { Some(array) } else { None }
    }

    /// One short line for people.
    pub fn summary(&self) -> String {
        match self {
            Value::String(bytes) => short_text(&String::from_utf8_lossy(bytes)),
            Value::Array(array) => array.summary(),
            Value::Bool(v) => v.to_string(),
            Value::F32(v) => v.to_string(),
            Value::F64(v) => v.to_string(),
            _ => self.as_int().map_or_else(String::new, |v| v.to_string()),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Fixed { kind, raw } => raw.len() / kind.bytes(),
            Array::Strings(strings) => strings.len(),
            Array::Nested(arrays) => arrays.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers or booleans of the array; empty for strings and nested arrays.
    pub fn values(&self) -> impl Iterator<Item = Value> + '_ {
        let (kind, raw) = match self {
            Array::Fixed { kind, raw } => (*kind, raw.as_slice()),
            _ => (Kind::U8, &[][..]),
        };
        raw.chunks_exact(kind.bytes()).filter_map(move |raw| Value::from_le(kind, raw))
    }

    /// The strings of the array.
    pub fn strings(&self) -> Option<&[Vec<u8>]> {
        if let Array::Strings(strings) = self { Some(strings) } else { None }
    }

    fn summary(&self) -> String {
        let shown: Vec<String> = match self {
            Array::Strings(s) => {
                s.iter().take(4).map(|s| format!("{:?}", String::from_utf8_lossy(s))).collect()
            }
            Array::Fixed { .. } => self.values().take(8).map(|v| v.summary()).collect(),
            Array::Nested(_) => Vec::new(),
        };
        let more =
            if self.len() > shown.len() { format!(", … {} in all", self.len()) } else { String::new() };
        short_text(&format!("[{}{more}]", shown.join(", ")))
    }
}

/// At most 200 characters of a text on one line.
pub(crate) fn short_text(text: &str) -> String {
    let line: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() < text.len() { line + "…" } else { line }
}

/// An array value's elements as integers in `0..=max`, or an error that names `key`.
pub(crate) fn int_array(key: &str, array: &Array, max: i128) -> Result<Vec<i128>> {
    if matches!(array, Array::Strings(_) | Array::Nested(_)) {
        return Err(Error::corrupt(format!("{key}: not an array of numbers")));
    }
    let checked = array.values().map(|value| value.as_int().filter(|v| (0..=max).contains(v)));
    checked
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Error::corrupt(format!("{key}: an element is out of range")))
}
