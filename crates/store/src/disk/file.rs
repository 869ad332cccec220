//! Files on a file system, opened for direct and buffered reads; what the real engines share.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use files::{Error, Result};

use super::cached::PageCache;
use super::exact::Source;
use crate::key::Range;

/// A file with a buffered handle, and a direct one where the file system gives it.
pub(super) struct OpenFile {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    buffered: File,
    direct: Option<File>,
    direct_refused: AtomicBool,
}

impl OpenFile {
    /// Opens `path`; direct where asked for and possible.
    ///
    /// # Errors
    /// `NotFound` or `Io` naming the file; `InvalidRequest` for what is not a regular file.
    pub(super) fn open(path: &PathBuf, direct: bool) -> Result<Self> {
        let named = |e| Error::io(path.display(), e);
        let buffered = File::open(path).map_err(named)?;
        let meta = buffered.metadata().map_err(named)?;
        if !meta.is_file() {
            return Err(Error::invalid(format!("{}: not a regular file", path.display())));
        }
        let direct = if direct { open_direct(path) } else { None };
        let direct_refused = AtomicBool::new(false);
        let (bytes, modified) = (meta.len(), meta.modified().ok());
        Ok(Self { path: path.clone(), bytes, modified, buffered, direct, direct_refused })
    }

    /// Whether it has the length, and the time of the last write, that it had when it was opened. What is written to its
    /// memory in another program (mmap) may not show in either.
    ///
    /// # Errors
    /// `Corrupt` naming the file.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let meta = self.buffered.metadata().map_err(|e| Error::io(self.path.display(), e))?;
        if meta.len() == self.bytes && meta.modified().ok() == self.modified {
            return Ok(());
        }
        let name = self.path.display();
        Err(Error::corrupt(format!(
            "{name}: was written to while it was in use; start again once it is whole"
        )))
    }

    /// Length when it was opened.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The handle for direct or buffered reads.
    pub(super) fn handle(&self, direct: bool) -> &File {
        self.direct.as_ref().filter(|_| direct).unwrap_or(&self.buffered)
    }
}

/// Drops ranges of files that are read through the page cache from it, as far as their pages are clean.
pub(super) fn forget_cached(files: &[OpenFile], ranges: &[Range]) {
    for range in ranges {
        if let Some(file) = files.get(range.file as usize).filter(|file| !file.direct()) {
            PageCache::of(&file.buffered).forget(range.offset, range.bytes);
        }
    }
}

/// How a set of files is read, for reports.
pub(super) fn describe_mode(files: &[OpenFile]) -> &'static str {
    match files.iter().filter(|f| f.direct()).count() {
        0 => "buffered",
        n if n == files.len() => "direct",
        _ => "direct and buffered",
    }
}

impl Source for OpenFile {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn direct(&self) -> bool {
        self.direct.is_some() && !self.direct_refused.load(Ordering::Relaxed)
    }

    fn refuse_direct(&self) {
        self.direct_refused.store(true, Ordering::Relaxed);
    }

    fn read_at(&self, memory: &mut [u8], offset: u64, direct: bool) -> io::Result<usize> {
        read_at(self.handle(direct), memory, offset)
    }
}

#[cfg(unix)]
fn read_at(file: &File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, memory, offset)
}

#[cfg(windows)]
fn read_at(file: &File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, memory, offset)
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(target_os = "linux")]
fn open_direct(path: &PathBuf) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = rustix::fs::OFlags::DIRECT.bits() as i32;
    OpenOptions::new().read(true).custom_flags(flag).open(path).ok()
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(target_vendor = "apple")]
fn open_direct(path: &PathBuf) -> Option<File> {
    let file = OpenOptions::new().read(true).open(path).ok()?;
    rustix::fs::fcntl_nocache(&file, true).ok()?;
    Some(file)
}

/// A handle that reads past the page cache; `None` where the system or the file system has none.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn open_direct(_path: &PathBuf) -> Option<File> {
    let _ = OpenOptions::new;
    None
}
