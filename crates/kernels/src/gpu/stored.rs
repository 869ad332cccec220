//! What a driver has compiled, kept between runs in a folder of the user's: a hint that costs time when it is missing.
//!
//! A file is for one adapter and driver; its name says which. A driver trusts what it is given here, so the file carries a
//! sum of its bytes: one that was cut short or damaged is left alone, and written anew. Metal keeps its own.

use std::fs;
use std::path::{Path, PathBuf};

use super::device::Device;

/// Larger files are neither read nor written. All pipelines of a model are a few MiB; there is one file for an adapter.
const BYTES_MAX: u64 = 64 << 20;
/// What files begin with: a name, the version of the file's form, and the sum of what follows.
const MAGIC: [u8; 8] = *b"tidemPC1";
const HEADER_BYTES: usize = MAGIC.len() + 8;

/// A driver's cache, and where it is kept.
pub(super) struct Stored {
    cache: Option<wgpu::PipelineCache>,
    file: Option<PathBuf>,
    /// Pipelines when the file was written.
    written: usize,
}

impl Stored {
    /// The cache of this adapter and driver in `folder`, as an earlier run left it.
    pub(super) fn open(device: &Device, adapter: &wgpu::AdapterInfo, folder: Option<&Path>) -> Self {
        let none = Self { cache: None, file: None, written: 0 };
        let supported = device.device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let (Some(folder), true, Some(key)) = (folder, supported, wgpu::util::pipeline_cache_key(adapter))
        else {
            return none;
        };
        let file = folder.join(key);
        let data = read(&file);
        // SAFETY: the data is what this driver gave us in an earlier run, whole; wgpu and the driver compare device and
        // version, and take nothing of another's. Whoever can write into the user's folder can replace this program too.
        let cache = unsafe {
            device.device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("pipelines"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Self { cache: Some(cache), file: Some(file), written: 0 }
    }

    /// For whoever compiles.
    pub(super) fn cache(&self) -> Option<wgpu::PipelineCache> {
        self.cache.clone()
    }

    /// Writes what the driver has, if there are other pipelines than at the last time. What cannot be written costs time in
    /// the next run, and nothing else.
    pub(super) fn write(&mut self, pipelines: usize) {
        let (Some(cache), Some(file)) = (&self.cache, &self.file) else { return };
        if self.written == pipelines {
            return;
        }
        self.written = pipelines;
        let Some(data) = cache.get_data() else { return };
        if data.len() as u64 > BYTES_MAX {
            let _ = fs::remove_file(file); // begins anew with the next run
        } else if read(file).is_none_or(|old| old != data) {
            write(file, &data);
        }
    }
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// What a file holds, if it is whole.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = fs::metadata(file).ok().filter(|m| m.is_file())?.len();
    if bytes > BYTES_MAX + HEADER_BYTES as u64 {
        return None;
    }
    let mut all = fs::read(file).ok()?;
    let (header, data) = all.split_at_checked(HEADER_BYTES)?;
    let (magic, expected) = header.split_at(MAGIC.len());
    if magic != MAGIC || expected != sum(data).to_le_bytes() {
        return None;
    }
    all.drain(..HEADER_BYTES);
    Some(all)
}

/// Writes beside the place and renames into it: another process sees the old or the new.
fn write(file: &Path, data: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let mut all = MAGIC.to_vec();
    all.extend(sum(data).to_le_bytes());
    all.extend_from_slice(data);
    let writing = file.with_extension(format!("writing-{}", std::process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&writing, all));
    if written.and_then(|()| fs::rename(&writing, file)).is_err() {
        let _ = fs::remove_file(&writing); // as good as it gets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("tidemill-stored-{}", std::process::id()));
        let file = folder.join("deep/adapter");
        assert_eq!(read(&file), None);
        write(&file, b"what a driver knows");
        assert_eq!(read(&file).as_deref(), Some(&b"what a driver knows"[..]));
        write(&file, b"and more");
        assert_eq!(read(&file).as_deref(), Some(&b"and more"[..]));
        let whole = fs::read(&file).unwrap();
        for cut in 0..whole.len() {
            fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(read(&file), None, "{cut} bytes");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&file, damaged).unwrap();
            assert_eq!(read(&file), None, "byte {at}");
        }
        fs::File::create(&file).unwrap().set_len(BYTES_MAX + 100).unwrap();
        assert_eq!(read(&file), None, "too large");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
        fs::remove_dir_all(&folder).unwrap();
    }
}
