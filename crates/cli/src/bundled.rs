//! The model inside the binary: unpacked once into the cache directory, verified on every start.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A file of the bundled model: its name, its content, the SHA-256 that the unpacked copy must have.
struct BundledFile {
    name: &'static str,
    content: &'static [u8],
    sha256: &'static str,
}

macro_rules! bundled {
    ($($name:literal $sha256:literal)*) => {
        [$(BundledFile {
            name: $name,
            content: include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/", $name)),
            sha256: $sha256,
        }),*]
    };
}

static FILES: [BundledFile; 6] = bundled![
    "chat_template.jinja" "4c6ec1446f9e599278480341d46c41ea1bc5993ede6e5d1c0e812312c2b1be4a"
    "config.json" "e245b9c060c26a5db1ee4b8e78d300c94ce3cc93a86f24cdb46f8f9ea34853e7"
    "generation_config.json" "f867838965fac06f3846936daa14a06aa2e20f96ddc7b87740e0ebcb0834ccde"
    "model.safetensors" "4edf2a0ea5e299fb852336127312f1ee25bc00fe204e9022954b6d043fd46648"
    "tokenizer.json" "bac8db515a0b8c10a7a05e4d9db48edf0de9ac47d526284490d87c35b23545f1"
    "tokenizer_config.json" "2f06a16e0d060d47d87f34f1bfc0ba3f1783750bd2343e236aa79048d97daef2"
];

/// The directory of this user's caches: `XDG_CACHE_HOME`, else the platform's place under the home directory.
/// `environment` looks up a variable; `std::env::var_os` outside of tests.
///
/// # Errors
/// `NotFound` when the environment names neither.
pub(crate) fn cache_dir(environment: impl Fn(&str) -> Option<OsString>) -> io::Result<PathBuf> {
    let variable = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let platform = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    variable("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(platform)))
        .map(|caches| caches.join("tidemill"))
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no cache directory: set HOME or XDG_CACHE_HOME")
        })
}

/// Where the bundled model is under `cache`, or will be.
///
/// The name holds the weights' checksum, so versions do not disturb each other.
pub(crate) fn place(cache: &Path) -> PathBuf {
    cache.join(format!("demo-{}", &weights().sha256[..16]))
}

/// Folders of a model that is being unpacked, or was until the program was killed; followed by a process's id.
const UNDER_WAY: [&str; 2] = ["demo.unpacking-", "demo.damaged-"];

/// A folder that nobody has touched for so long is nobody's, where no lock can tell.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The directory of the bundled model under `cache`, unpacked if it is not there or not what it should be. What killed
/// or failed runs have left is removed.
///
/// Every start checks all files by a streamed SHA-256: the embedded bytes stay untouched and out of memory.
///
/// # Errors
/// The operating system's, with the path that could not be written.
pub(crate) fn unpack(cache: &Path) -> io::Result<PathBuf> {
    let target = place(cache);
    let is_clean = left_overs(cache).is_empty();
    if is_clean && is_whole(&target) {
        return Ok(target);
    }
    let named = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    fs::create_dir_all(cache).map_err(|e| named(cache, e))?;
    // One process at a time. Directories cannot be locked everywhere; then a rename decides.
    let lock = fs::File::open(cache).ok().filter(|folder| folder.lock().is_ok());
    for folder in left_overs(cache) {
        if lock.is_some() || is_abandoned(&folder) {
            let _ = fs::remove_dir_all(&folder); // the next start tries again
        }
    }
    if is_whole(&target) {
        return Ok(target);
    }
    // Unpacked beside the place and renamed into it: another process sees all of it or nothing.
    let [unpacking, damaged] = UNDER_WAY.map(|name| cache.join(format!("{name}{}", std::process::id())));
    let unpacked = write_all(&unpacking).and_then(|()| {
        if target.exists() {
            fs::rename(&target, &damaged).map_err(|e| named(&target, e))?;
        }
        fs::rename(&unpacking, &target).map_err(|e| named(&target, e))
    });
    for folder in [&unpacking, &damaged].into_iter().filter(|folder| folder.exists()) {
        let _ = fs::remove_dir_all(folder); // as above
    }
    // A second process may have put its own copy there first; a whole one is as good as ours.
    match unpacked {
        Err(e) if !is_whole(&target) => Err(e),
        _ if is_whole(&target) => Ok(target),
        _ => Err(io::Error::other(format!("{}: what was written does not read back", target.display()))),
    }
}

/// Writes all files into a new directory.
fn write_all(folder: &Path) -> io::Result<()> {
    let named = |path: &Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    fs::create_dir(folder).map_err(|e| named(folder, e))?;
    for file in &FILES {
        let path = folder.join(file.name);
        fs::write(&path, file.content).map_err(|e| named(&path, e))?;
    }
    Ok(())
}

fn left_overs(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let is_ours = |name: &str| UNDER_WAY.iter().any(|start| name.starts_with(start));
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_ours))
        .map(|entry| entry.path())
        .collect()
}

fn is_abandoned(folder: &Path) -> bool {
    let modified = fs::metadata(folder).and_then(|meta| meta.modified());
    modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// The file that dominates: its checksum names the directory.
fn weights() -> &'static BundledFile {
    FILES.iter().max_by_key(|file| file.content.len()).unwrap_or(&FILES[0])
}

fn is_whole(folder: &Path) -> bool {
    FILES.iter().all(|file| sha256(&folder.join(file.name)).is_ok_and(|found| found == file.sha256))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_embedded_files() {
        for file in &FILES {
            let found: String =
                Sha256::digest(file.content).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, file.sha256, "{}", file.name);
        }
        assert_eq!(weights().name, "model.safetensors");
    }

    #[test]
    fn unpacked_once_and_repaired_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let folder = unpack(cache.path()).unwrap();
        let weights = folder.join("model.safetensors");
        let written = fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), folder);
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written, "unpacked twice");

        let mut bytes = fs::read(&weights).unwrap();
        bytes[1_000_000] ^= 1;
        fs::write(&weights, &bytes).unwrap();
        assert_eq!(unpack(cache.path()).unwrap(), folder);
        bytes[1_000_000] ^= 1;
        assert!(fs::read(&weights).unwrap() == bytes, "not repaired");

        fs::remove_file(folder.join("config.json")).unwrap();
        unpack(cache.path()).unwrap();
        assert!(folder.join("config.json").is_file());
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "something was left behind");
    }

    #[test]
    fn what_a_killed_run_left_is_gone_after_the_next_start() {
        let cache = tempfile::tempdir().unwrap();
        let left = || {
            for name in ["demo.unpacking-999999", "demo.damaged-7"] {
                fs::create_dir_all(cache.path().join(name)).unwrap();
                fs::write(cache.path().join(name).join("model.safetensors"), "half").unwrap();
            }
        };
        for what in ["the first start", "a start with the model in place"] {
            left();
            unpack(cache.path()).unwrap();
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "{what}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_start_that_fails_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        // What cannot be renamed away: a place that is taken by a file in a directory of that name.
        fs::create_dir_all(place(cache.path())).unwrap();
        let damaged = cache.path().join(format!("demo.damaged-{}", std::process::id()));
        fs::write(&damaged, "a file is in the way").unwrap();
        let error = unpack(cache.path()).unwrap_err();
        assert!(error.to_string().contains("demo-"), "{error}");
        let left: Vec<_> = fs::read_dir(cache.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("unpacking")), "{left:?}");
    }

    #[test]
    fn the_cache_directory_follows_the_environment() {
        let lookup = |xdg: &'static str, home: &'static str| {
            cache_dir(move |name| Some(if name == "HOME" { home } else { xdg }.into()))
        };
        let platform = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        assert_eq!(lookup("/xdg", "/home/me").unwrap(), Path::new("/xdg/tidemill"));
        for not_absolute in ["", "relative"] {
            let expected = Path::new("/home/me").join(platform).join("tidemill");
            assert_eq!(lookup(not_absolute, "/home/me").unwrap(), expected);
        }
        assert!(lookup("", "").is_err());
        assert!(cache_dir(|_| None).is_err());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        fs::write(&file, "").unwrap();
        let error = unpack(&file).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
