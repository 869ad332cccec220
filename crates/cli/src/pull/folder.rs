//! A repository's folder, laid out as the hub's own programs do: `blobs/CHECKSUM` is the content, `snapshots/REVISION/FILE`
//! a link to it, `refs/main` the revision. Only one process works on a folder at a time.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Component, Path, PathBuf};

use engine::{Error, ErrorKind};

use super::names::{OUR_ENDS, parse};

/// The folder of one repository in the cache.
pub(super) struct Folder {
    /// `hub/models--ORG--NAME`.
    path: PathBuf,
}

/// Files of a folder, by what names them.
#[derive(Default)]
pub(super) struct Files {
    /// Links in `snapshots`, relative to the folder.
    pub(super) links: HashSet<PathBuf>,
    /// Checksums of blobs, whole or not.
    pub(super) blobs: HashSet<String>,
}

/// What there is of our cache's folders.
pub(super) fn hub(cache: &Path) -> PathBuf {
    cache.join("hub")
}

impl Folder {
    /// Of `org/name`, which [`parse`] has taken.
    pub(super) fn of(cache: &Path, repo: &str) -> Self {
        Self { path: hub(cache).join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// All that are there, with their repositories.
    pub(super) fn all(cache: &Path) -> Vec<(String, Self)> {
        let entries = fs::read_dir(hub(cache)).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let repo = name.strip_prefix("models--")?.replacen("--", "/", 1);
            (entry.path().is_dir() && parse(&repo).is_ok()).then(|| (repo.clone(), Self::of(cache, &repo)))
        });
        named.collect()
    }

    /// Where content lies.
    pub(super) fn blobs(&self) -> PathBuf {
        self.path.join("blobs")
    }

    /// Bytes that have arrived of a blob.
    pub(super) fn arrived_bytes(&self, etag: &str) -> u64 {
        let length = |name: &str| fs::metadata(self.blobs().join(name)).map_or(0, |meta| meta.len());
        length(etag).max(length(&format!("{etag}.part")))
    }

    /// Where a revision's file lies.
    pub(super) fn link(&self, commit: &str, file: &str) -> PathBuf {
        let folder = self.path.join("snapshots").join(commit);
        file.split('/').fold(folder, |path, part| path.join(part))
    }

    /// Puts a blob under its name in a revision.
    pub(super) fn place(&self, commit: &str, file: &str, etag: &str) -> Result<(), Error> {
        let (link, blob) = (self.link(commit, file), self.blobs().join(etag));
        let above = file.split('/').count() + 1;
        let target = (0..above).fold(PathBuf::new(), |path, _| path.join("..")).join("blobs").join(etag);
        let placed = link.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            if fs::read_link(&link).is_ok_and(|old| old == target) {
                return Ok(());
            }
            match fs::remove_file(&link) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            // Some file systems have no links of one kind, or of none.
            symlink(&target, &link)
                .or_else(|_| fs::hard_link(&blob, &link))
                .or_else(|_| fs::rename(&blob, &link))
        });
        placed.map_err(|e| Error::io(link.display(), e))
    }

    /// Says which revision is the newest.
    pub(super) fn refer(&self, commit: &str) -> Result<(), Error> {
        let refs = self.path.join("refs");
        let written = fs::create_dir_all(&refs).and_then(|()| fs::write(refs.join("main"), commit));
        written.map_err(|e| Error::io(refs.display(), e))
    }

    /// Adds a model's file to `files`: its link, and the blob behind it.
    pub(super) fn add(&self, files: &mut Files, path: &Path) {
        let Some(link) = self.inside(path) else { return };
        if let Some(etag) = target(&self.path.join(&link)) {
            files.blobs.insert(etag);
        }
        files.links.insert(link);
    }

    /// The path of something in this folder, relative to it; also when the cache was called by another path then.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let own = self.path.file_name()?;
        let mut parts = path.components();
        parts.by_ref().find(|part| part.as_os_str().eq_ignore_ascii_case(own))?;
        let rest = parts.as_path();
        let plain =
            rest.starts_with("snapshots") && rest.components().all(|c| matches!(c, Component::Normal(_)));
        plain.then(|| rest.to_path_buf())
    }

    /// Bytes of blobs that nothing in `kept` names, and whether there is any, also a link to nowhere.
    pub(super) fn unnamed(&self, kept: &Files) -> Option<u64> {
        let blobs = self.stray_blobs(kept);
        let links = self.stray_links(kept);
        if blobs.is_empty() && links.is_empty() {
            return None;
        }
        Some(blobs.iter().chain(&links).map(|path| own_bytes(path)).sum())
    }

    /// Removes all that nothing in `kept` names; returns the bytes.
    pub(super) fn keep_only(&self, kept: &Files) -> Result<u64, Error> {
        let mut bytes = 0;
        for path in self.stray_links(kept).into_iter().chain(self.stray_blobs(kept)) {
            bytes += remove(&path)?;
        }
        if kept.links.is_empty() && kept.blobs.is_empty() {
            // Revisions and what else there may be; a link is removed itself, not what it leads to.
            return match fs::remove_dir_all(&self.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(self.path.display(), e)),
                _ => Ok(bytes),
            };
        }
        remove_empty(&self.path.join("snapshots"));
        Ok(bytes)
    }

    /// Removes what `old` names and `kept` does not; content that other links still lead to stays.
    pub(super) fn remove(&self, old: &Files, kept: &Files) -> Result<u64, Error> {
        let mut bytes = 0;
        for link in old.links.difference(&kept.links) {
            bytes += remove(&self.path.join(link))?;
        }
        let linked: HashSet<String> =
            files_below(&self.path.join("snapshots")).iter().filter_map(|link| target(link)).collect();
        for etag in old.blobs.iter().filter(|etag| !kept.blobs.contains(*etag) && !linked.contains(*etag)) {
            for name in [etag.clone(), format!("{etag}.part")] {
                bytes += remove(&self.blobs().join(name))?;
            }
        }
        remove_empty(&self.path.join("snapshots"));
        Ok(bytes)
    }

    fn stray_blobs(&self, kept: &Files) -> Vec<PathBuf> {
        let mut all = files_below(&self.blobs());
        all.retain(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let etag = OUR_ENDS.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            !kept.blobs.contains(etag)
        });
        all
    }

    fn stray_links(&self, kept: &Files) -> Vec<PathBuf> {
        let mut all = files_below(&self.path.join("snapshots"));
        all.retain(|path| path.strip_prefix(&self.path).is_ok_and(|link| !kept.links.contains(link)));
        all
    }

    /// Keeps others from working on the folder for as long as the value lives.
    ///
    /// # Errors
    /// `Io` saying that another process does.
    pub(super) fn lock(&self, repo: &str) -> Result<Lock, Error> {
        let path = self.path.with_added_extension("lock");
        let failed = |e| Error::io(path.display(), e);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(failed)?;
        loop {
            let file =
                OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let message = format!("{repo}: another `tidemill pull` or `rm` of it is running");
                    return Err(Error::new(ErrorKind::Io, message));
                }
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {} // nothing locks there
                Err(TryLockError::Error(e)) => return Err(failed(e)),
            }
            // Whoever had it before may have removed its name in between.
            if is_same(&file, &path) {
                return Ok(Lock { path, _file: file });
            }
        }
    }
}

/// The right to work on a folder. The operating system gives it back when the process ends, however that happens.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // an empty file, locked by nobody, is in nobody's way
    }
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: &fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

#[cfg(not(unix))]
fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The checksum that a link leads to.
fn target(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// Whether a file of a revision has this content, as far as its link or its size tells.
pub(super) fn leads_to(link: &Path, etag: &str, bytes: u64) -> bool {
    fs::metadata(link).is_ok_and(|meta| meta.len() == bytes)
        && target(link).is_none_or(|target| target == etag)
}

/// Bytes of a file itself, none of what a link leads to.
fn own_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |meta| if meta.is_file() { meta.len() } else { 0 })
}

/// All files and links below a folder; links are not followed.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => all.extend(files_below(&entry.path())),
            _ => all.push(entry.path()),
        }
    }
    all
}

/// Removes a file; returns its bytes.
fn remove(path: &Path) -> Result<u64, Error> {
    let bytes = own_bytes(path);
    match fs::remove_file(path) {
        Ok(()) => Ok(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::io(path.display(), e)),
    }
}

/// Removes folders below, and this one, where nothing is left.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder); // not empty: it stays
}
