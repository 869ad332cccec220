//! A file to probe a drive with where no model is, of which nothing stays behind.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use files::{Error, Result};
use store::disk::{DriveProbe, probe};

/// Bytes of the file.
const BYTES: usize = 256 << 20;

/// Probes the drive under the directory `dir` with a file of its own, which is removed again, and so is what killed
/// runs left there.
///
/// # Errors
/// `Io` naming the directory when it cannot be written, else as [`probe`].
pub fn probe_directory(dir: &Path, time: Duration) -> Result<DriveProbe> {
    let named = |e| Error::io(dir.display(), e);
    remove_left_overs(dir);
    let mut scrap = Scrap::new(dir).map_err(named)?;
    scrap.fill().map_err(named)?;
    probe(&scrap.path, time).map_err(|e| e.context(dir.display()))
}

/// The file, open for as long as it is used.
struct Scrap {
    file: File,
    /// Where it can be opened again.
    path: PathBuf,
}

impl Scrap {
    fn new(dir: &Path) -> io::Result<Self> {
        let path = dir.join(format!("probe-{}.tmp", std::process::id()));
        #[cfg(target_os = "linux")]
        if let Some(nameless) = Self::nameless(&path)? {
            return Ok(nameless);
        }
        Self::open(path)
    }

    fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        // Tells others that somebody lives who uses it. Where nothing can be locked, nothing is tidied up either.
        let _ = file.lock();
        Ok(Self { file, path })
    }

    /// One without a name, which is gone with this process however that ends; `None` where it could not be opened again.
    #[cfg(target_os = "linux")]
    fn nameless(path: &Path) -> io::Result<Option<Self>> {
        use std::os::fd::AsRawFd;

        let mut scrap = Self::open(path.to_path_buf())?;
        fs::remove_file(path)?;
        scrap.path = PathBuf::from(format!("/proc/self/fd/{}", scrap.file.as_raw_fd()));
        Ok(File::open(&scrap.path).is_ok().then_some(scrap))
    }

    /// Noise: drives and file systems that compress would be too good with anything else.
    fn fill(&mut self) -> io::Result<()> {
        let (mut random, mut block) = (7u64, vec![0u8; 4 << 20]);
        for _ in 0..BYTES / block.len() {
            for word in block.chunks_exact_mut(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                word.copy_from_slice(&random.to_le_bytes());
            }
            self.file.write_all(&block)?;
        }
        self.file.sync_all()?;
        // From now on there are readers, whom Windows would shut out.
        let _ = self.file.unlock().and_then(|()| self.file.lock_shared());
        Ok(())
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if !self.path.starts_with("/proc") {
            let _ = fs::remove_file(&self.path); // nobody could act on it
        }
    }
}

/// Removes the files of runs that are no more: nobody holds a lock on them.
fn remove_left_overs(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("probe-")?.strip_suffix(".tmp"));
        let is_ours = id.is_some_and(|id| id.parse::<u32>().is_ok());
        if !is_ours || !entry.file_type().is_ok_and(|t| t.is_file()) {
            continue;
        }
        let path = entry.path();
        if File::options().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(path); // the next run tries again
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_uses_is_tidied_up() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let used = Scrap::open(dir.path().join("probe-1.tmp")).unwrap();
        for name in ["probe-2.tmp", "probe-x.tmp", "probe-3.tmp.old", "other"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        remove_left_overs(dir.path());
        let names = || {
            let entries = fs::read_dir(dir.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["other", "probe-1.tmp", "probe-3.tmp.old", "probe-x.tmp"]);
        drop(used);
        assert_eq!(names(), ["other", "probe-3.tmp.old", "probe-x.tmp"]);
        if cfg!(target_os = "linux") {
            let _open = Scrap::new(dir.path()).unwrap();
            assert_eq!(names().len(), 3, "it has no name");
        }
    }
}
