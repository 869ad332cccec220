//! Split GGUF files: `name-00001-of-00003.gguf`, each a GGUF file of its own, with `split.*` keys.

use std::path::PathBuf;

use super::Header;
use crate::{Error, Result};

/// No model comes in more pieces; a larger count is damage.
const MAX_SHARDS: u64 = 9999;

/// The paths of the shards that follow the first one; empty for a file that is not split.
pub(super) fn other_shards(first: &Header) -> Result<Vec<PathBuf>> {
    let Some(count) = number(first, "split.count")? else {
        return Ok(Vec::new());
    };
    if count <= 1 {
        return Ok(Vec::new());
    }
    if count > MAX_SHARDS {
        return Err(Error::corrupt(format!("split.count is {count}, more than {MAX_SHARDS}")));
    }
    let name = first.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let suffix = |i: u64| format!("-{i:05}-of-{count:05}.gguf");
    let no = number(first, "split.no")?.unwrap_or(0);
    if no != 0 {
        let prefix = name.strip_suffix(&suffix(no.saturating_add(1)));
        let start = prefix.map_or_else(|| "the first shard".to_string(), |p| format!("{p}{}", suffix(1)));
        return Err(Error::invalid(format!("this is not the first of {count} shards; open {start}")));
    }
    let prefix = name.strip_suffix(&suffix(1)).ok_or_else(|| {
        Error::not_found(format!("it is split in {count} shards, so its name must end in {}", suffix(1)))
    })?;
    Ok((2..=count).map(|i| first.path.with_file_name(format!("{prefix}{}", suffix(i)))).collect())
}

/// Checks that `shard` is number `no` (from zero) of the split that `first` begins.
pub(super) fn check_shard(first: &Header, shard: &Header, no: usize) -> Result<()> {
    let (count, own_count) = (number(first, "split.count")?, number(shard, "split.count")?);
    if count != own_count {
        return Err(Error::corrupt(format!("split.count is {own_count:?}, in the first shard {count:?}")));
    }
    let own_no = number(shard, "split.no")?;
    if own_no != Some(no as u64) {
        return Err(Error::corrupt(format!("split.no is {own_no:?}, but its name says {no}")));
    }
    Ok(())
}

/// Checks the number of tensors over all shards, where the first shard states it.
pub(super) fn check_total(headers: &[Header]) -> Result<()> {
    let Some(first) = headers.first().filter(|_| headers.len() > 1) else {
        return Ok(());
    };
    let total: usize = headers.iter().map(|h| h.tensors.len()).sum();
    match number(first, "split.tensors.count")? {
        Some(claimed) if claimed != total as u64 => Err(Error::corrupt(format!(
            "{}: split.tensors.count is {claimed}, but the {} shards hold {total} tensors",
            first.path.display(),
            headers.len()
        ))),
        _ => Ok(()),
    }
}

fn number(header: &Header, key: &str) -> Result<Option<u64>> {
    let Some(value) = header.get(key) else {
        return Ok(None);
    };
    let number = value.as_int().and_then(|v| u64::try_from(v).ok());
    number.map(Some).ok_or_else(|| Error::corrupt(format!("{key} is {}, not a count", value.summary())))
}
