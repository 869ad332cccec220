//! Names of things in the store: byte ranges, layers, experts, and where an expert's bytes are.

use std::fmt;

use files::{Error, Result};

use crate::slab::PAGE_BYTES;

/// `bytes` bytes of file number `file`, from `offset` on. Files are numbered as the disk engine was given them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    /// Index of the file in the disk engine.
    pub file: u32,
    /// First byte.
    pub offset: u64,
    /// Length; any alignment, may be 0.
    pub bytes: u64,
}

impl Range {
    /// One past the last byte, unless it overflows.
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.bytes)
    }
}

/// A layer of the model, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub u16);

/// A routed expert of one layer, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertId(pub u16);

/// One expert of the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertKey {
    /// Its layer.
    pub layer: LayerId,
    /// Which of the layer's experts.
    pub expert: ExpertId,
}

impl fmt::Display for ExpertKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}, expert {}", self.layer.0, self.expert.0)
    }
}

/// A value for each of some experts. It is asked about every chosen expert of every token, so that it finds them by their
/// numbers.
#[derive(Debug)]
pub(crate) struct KeyMap<T>(Vec<Vec<Option<T>>>);

impl<T> Default for KeyMap<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> KeyMap<T> {
    pub(crate) fn get(&self, key: ExpertKey) -> Option<&T> {
        self.0.get(key.layer.0 as usize)?.get(key.expert.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, key: ExpertKey) -> Option<&mut T> {
        self.0.get_mut(key.layer.0 as usize)?.get_mut(key.expert.0 as usize)?.as_mut()
    }

    /// Where the value of `key` is, or comes to be.
    pub(crate) fn place(&mut self, key: ExpertKey) -> &mut Option<T> {
        let (layer, expert) = (key.layer.0 as usize, key.expert.0 as usize);
        if self.0.len() <= layer {
            self.0.resize_with(layer + 1, Vec::new);
        }
        let experts = &mut self.0[layer];
        if experts.len() <= expert {
            experts.resize_with(expert + 1, || None);
        }
        &mut experts[expert]
    }

    pub(crate) fn insert(&mut self, key: ExpertKey, value: T) {
        *self.place(key) = Some(value);
    }

    pub(crate) fn remove(&mut self, key: ExpertKey) -> Option<T> {
        self.0.get_mut(key.layer.0 as usize)?.get_mut(key.expert.0 as usize)?.take()
    }
}

/// Where the bytes of one expert are, e.g. 3 ranges (GGUF: gate, up, down) or 9 (MLX: values, scales, biases of each).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertLayout {
    /// The ranges, in the order in which a lease hands them out; exact bytes at any alignment.
    pub parts: Vec<Range>,
}

impl ExpertLayout {
    /// Byte offset of each part within a slot, and the bytes of the whole slot. A part lies page-aligned plus
    /// its file offset's remainder, because direct reads fetch the aligned superset.
    ///
    /// # Errors
    /// [`files::ErrorKind::Corrupt`] when a range overflows.
    pub fn place(&self) -> Result<(Vec<usize>, usize)> {
        let page = PAGE_BYTES as u64;
        let mut at = 0u64;
        let mut offsets = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let overflow = || {
                Error::corrupt(format!("a range of {} bytes at offset {} overflows", part.bytes, part.offset))
            };
            let shift = part.offset % page;
            offsets.push(usize::try_from(at + shift).map_err(|_| overflow())?);
            let superset = part.bytes.checked_add(shift).and_then(|b| b.checked_next_multiple_of(page));
            at = superset.and_then(|b| at.checked_add(b)).ok_or_else(overflow)?;
        }
        let bytes = usize::try_from(at).map_err(|_| Error::corrupt("an expert exceeds the address space"))?;
        Ok((offsets, bytes))
    }
}

/// Bytes of a slot that can hold any of `layouts`: for each part the page-aligned superset of its range, summed;
/// the largest of them all. A multiple of [`PAGE_BYTES`], at least one page.
///
/// # Errors
/// [`files::ErrorKind::Corrupt`] when a range overflows.
pub fn slot_bytes<'a>(layouts: impl IntoIterator<Item = &'a ExpertLayout>) -> Result<usize> {
    let mut most = PAGE_BYTES;
    for layout in layouts {
        most = most.max(layout.place()?.1);
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_remainder_and_never_share_a_page() {
        let part = |offset, bytes| Range { file: 0, offset, bytes };
        let layout =
            ExpertLayout { parts: vec![part(4095, 2), part(8192, 4096), part(100, 0), part(5000, 4096)] };
        let (offsets, bytes) = layout.place().unwrap();
        assert_eq!(offsets, [4095, 8192, 12288 + 100, 16384 + 904]);
        assert_eq!(bytes, 2 * 4096 + 4096 + 4096 + 8192);
        assert_eq!(slot_bytes([&layout]).unwrap(), bytes);
    }

    #[test]
    fn a_key_map_knows_what_a_hash_map_knows() {
        let (mut map, mut expected) = (KeyMap::default(), std::collections::HashMap::new());
        let mut random = 1u32;
        for value in 0..4000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (layer, expert) = (LayerId((random >> 16) as u16 % 5), ExpertId((random >> 20) as u16 % 40));
            let key = ExpertKey { layer, expert };
            match random >> 30 {
                0 => assert_eq!(map.remove(key), expected.remove(&key)),
                1 => assert_eq!(map.get_mut(key), expected.get_mut(&key)),
                _ => assert_eq!(map.place(key).replace(value), expected.insert(key, value)),
            }
            assert_eq!(map.get(key), expected.get(&key));
        }
    }

    #[test]
    fn overflowing_ranges_are_errors() {
        let layout = ExpertLayout { parts: vec![Range { file: 0, offset: 1, bytes: u64::MAX }] };
        assert_eq!(layout.place().unwrap_err().kind(), files::ErrorKind::Corrupt);
    }
}
