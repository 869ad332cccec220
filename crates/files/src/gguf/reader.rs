//! A reader that knows how many bytes are left, so that no claimed length is believed beyond them.

use std::io::Read;

use super::value::{Array, Kind, Value};
use crate::{Error, ErrorKind, Result};

/// More metadata than any real file has (large vocabularies take 10 to 20 MB).
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// How deep arrays may nest. Real files nest none.
const MAX_DEPTH: usize = 4;

pub(super) struct Reader<R> {
    inner: R,
    at: u64,
    /// Nothing is read beyond this byte.
    end: u64,
    file_bytes: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R, file_bytes: u64) -> Self {
        Self { inner, at: 0, end: file_bytes.min(MAX_HEADER_BYTES), file_bytes }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes that may still be read.
    pub(super) fn left(&self) -> u64 {
        self.end - self.at
    }

    /// Errors unless `count` items of at least `item_bytes` can still follow.
    pub(super) fn check_fits(&self, what: &str, count: u64, item_bytes: u64) -> Result<()> {
        match count.checked_mul(item_bytes) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ if self.file_bytes > self.end
                && count.checked_mul(item_bytes).is_some_and(|b| b < self.file_bytes) =>
            {
                Err(Error::corrupt(format!(
                    "{what}: the header is larger than {} MiB",
                    MAX_HEADER_BYTES >> 20
                )))
            }
            _ => Err(Error::corrupt(format!(
                "{what}: {count} at byte {} are more than the file's {} bytes can hold: truncated or damaged",
                self.at, self.file_bytes
            ))),
        }
    }

    pub(super) fn bytes(&mut self, what: &str, count: u64) -> Result<Vec<u8>> {
        self.check_fits(what, count, 1)?;
        // Fits in memory's address space because it fits in MAX_HEADER_BYTES.
        let mut bytes = vec![0; count as usize];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, what: &str, bytes: &mut [u8]) -> Result<()> {
        self.check_fits(what, bytes.len() as u64, 1)?;
        self.inner.read_exact(bytes).map_err(|e| {
            Error::new(ErrorKind::Io, format!("{what}: reading at byte {}: {e}", self.at)).with_source(e)
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        let mut raw = [0; 4];
        self.fill(what, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        let mut raw = [0; 8];
        self.fill(what, &mut raw)?;
        Ok(u64::from_le_bytes(raw))
    }

    pub(super) fn string(&mut self, what: &str) -> Result<Vec<u8>> {
        let bytes = self.u64(what)?;
        self.bytes(what, bytes)
    }

    pub(super) fn utf8(&mut self, what: &str) -> Result<String> {
        String::from_utf8(self.string(what)?).map_err(|e| {
            let lossy = String::from_utf8_lossy(e.as_bytes());
            Error::corrupt(format!("{what} {:?} is not UTF-8", super::value::short_text(&lossy)))
        })
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        match self.kind(key)? {
            Kind::String => Ok(Value::String(self.string(key)?)),
            Kind::Array => Ok(Value::Array(self.array(key, 0)?)),
            kind => {
                let raw = self.bytes(key, kind.bytes() as u64)?;
                Value::from_le(kind, &raw).ok_or_else(|| Error::corrupt(format!("{key}: unreadable value")))
            }
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind> {
        let number = self.u32(key)?;
        Kind::from_number(number)
            .ok_or_else(|| Error::corrupt(format!("{key}: there is no metadata type {number}")))
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth >= MAX_DEPTH {
            return Err(Error::corrupt(format!("{key}: arrays nest deeper than {MAX_DEPTH}")));
        }
        let kind = self.kind(key)?;
        let count = self.u64(key)?;
        self.check_fits(key, count, kind.bytes() as u64)?;
        Ok(match kind {
            Kind::String => Array::Strings((0..count).map(|_| self.string(key)).collect::<Result<_>>()?),
            Kind::Array => {
                Array::Nested((0..count).map(|_| self.array(key, depth + 1)).collect::<Result<_>>()?)
            }
            kind => Array::Fixed { kind, raw: self.bytes(key, count * kind.bytes() as u64)? },
        })
    }
}
