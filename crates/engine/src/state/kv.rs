//! Keys and values of every position, in pages that sequences with the same beginning share.

use files::Result;
use kernels::Backend;
use kernels::ops::{KvCache, KvFormat, PAGE};

use super::Ranges;

/// The shape of an attention layer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) format: KvFormat,
}

impl KvShape {
    /// Bytes of a page, keys and values together.
    pub(crate) fn page_bytes(&self) -> u64 {
        KvCache::page_bytes(self.kv_heads, self.head_dim, self.format) as u64
    }

    /// Empty pages.
    pub(super) fn new_state(&self, backend: &dyn Backend, pages: usize) -> Result<KvCache> {
        let KvShape { kv_heads, head_dim, format } = *self;
        let bytes = pages * KvCache::page_bytes(kv_heads, head_dim, format) / 2;
        let (keys, values) = (backend.alloc(bytes)?, backend.alloc(bytes)?);
        Ok(KvCache { keys, values, kv_heads, head_dim, pages, format })
    }
}

/// Bytes of a page's keys, or of its values.
fn half_page_bytes(cache: &KvCache) -> usize {
    KvCache::page_bytes(cache.kv_heads, cache.head_dim, cache.format) / 2
}

/// Copies a page.
pub(super) fn copy_page(backend: &dyn Backend, cache: &mut KvCache, from: u32, to: u32) -> Result<()> {
    let bytes = half_page_bytes(cache);
    let (from, to) = (from as usize * bytes, to as usize * bytes);
    for block in [&mut cache.keys, &mut cache.values] {
        backend.copy_within(block, from..from + bytes, to)?;
    }
    Ok(())
}

/// Gives the memory of pages back.
pub(super) fn give_back(
    backend: &dyn Backend,
    cache: &mut KvCache,
    pages: std::ops::Range<usize>,
) -> Result<()> {
    let bytes = half_page_bytes(cache);
    for block in [&mut cache.keys, &mut cache.values] {
        backend.give_back(block, pages.start * bytes..pages.end * bytes)?;
    }
    Ok(())
}

/// Writes zeros everywhere.
pub(super) fn fill_with_zeros(backend: &dyn Backend, cache: &mut KvCache) -> Result<()> {
    let zeros = vec![0; half_page_bytes(cache)];
    for block in [&mut cache.keys, &mut cache.values] {
        for page in 0..cache.pages {
            backend.write(block, page * zeros.len(), &zeros)?;
        }
    }
    Ok(())
}

/// Where the keys, and the values, of `positions` lie, which begin with a page: page after page, head after head.
pub(super) fn ranges(cache: &KvCache, pages: &[u32], positions: std::ops::Range<usize>) -> Ranges {
    let bytes = cache.format.head_bytes(cache.head_dim);
    let mut ranges = Vec::new();
    for first in positions.clone().step_by(PAGE) {
        let held = PAGE.min(positions.end - first);
        let head = |h| (cache.head(pages, h, first) * bytes, held * bytes);
        ranges.extend((0..cache.kv_heads).map(head));
    }
    ranges
}
