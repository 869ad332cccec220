//! The transfer of one blob: taken up where it stands, tried again while there is hope, checked before it gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use engine::{Error, ErrorKind};
use indicatif::ProgressBar;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::hub::{About, Content, Ended, Hub, NoContent};
use super::patience::{Failures, Trouble, stopped};
use crate::out;

/// What one try must bring so that the next failure counts as the first.
const PROGRESS_BYTES: u64 = 64 << 10;

const BUFFER_BYTES: usize = 256 << 10;

/// A blob to fetch.
pub(super) struct Blob<'a> {
    /// The revision that has it.
    pub(super) commit: &'a str,
    /// A file whose content it is.
    pub(super) file: &'a str,
    /// Its checksum and size.
    pub(super) about: &'a About,
}

/// Where what has not arrived whole is kept.
pub(super) fn part_path(blobs: &Path, etag: &str) -> PathBuf {
    blobs.join(format!("{etag}.part"))
}

/// Fetches a blob into `blobs`, under the name of its checksum. Does nothing if it is there.
///
/// # Errors
/// What has arrived stays, unless it is damaged.
pub(super) fn fetch(
    hub: &Hub,
    blob: &Blob<'_>,
    blobs: &Path,
    bar: &ProgressBar,
    stop: &AtomicBool,
) -> Result<(), Ended> {
    let path = blobs.join(&blob.about.etag);
    if fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == blob.about.bytes) {
        bar.inc(blob.about.bytes);
        return Ok(());
    }
    let mut part = Part::open(part_path(blobs, &blob.about.etag), blob.about, bar, stop)?;
    let (mut failures, mut ranges) = (Failures::new(hub.patience), true);
    loop {
        if part.bytes == blob.about.bytes {
            match part.damage() {
                None => break,
                // Another program, or a drive, has spoilt what was here.
                Some(_) if part.inherited => part.restart()?,
                Some(damage) => {
                    part.remove();
                    return Err(Error::corrupt(format!("{}: {damage}; pull again", blob.file)).into());
                }
            }
        }
        if part.bytes > 0 && !ranges {
            part.restart()?;
        }
        let before = part.bytes;
        let trouble = match attempt(hub, blob, &mut part, stop) {
            Ok(()) => continue,
            Err(NoContent::Changed(why)) => return Err(Ended::Changed(why)),
            Err(NoContent::Trouble(trouble)) => trouble,
            Err(NoContent::NoRanges) => {
                ranges = false;
                Trouble::soon(format!("{}: the server sends no part of it", blob.file))
            }
        };
        if part.bytes >= before.saturating_add(PROGRESS_BYTES) {
            failures.forget();
        }
        failures.wait(trouble, stop)?;
    }
    part.name(&path)?;
    Ok(())
}

/// One request, and as much of its answer as comes.
fn attempt(hub: &Hub, blob: &Blob<'_>, part: &mut Part<'_>, stop: &AtomicBool) -> Result<(), NoContent> {
    let Content { start, body } = hub.content(blob.commit, blob.file, blob.about, part.bytes)?;
    if start != part.bytes {
        part.restart().map_err(Trouble::never)?;
    }
    let (mut reader, mut buffer) = (body.into_reader(), vec![0; BUFFER_BYTES]);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Trouble::never(stopped()).into());
        }
        let read = match reader.read(&mut buffer) {
            Ok(0) if part.bytes == blob.about.bytes => return Ok(()),
            Ok(0) => return Err(Trouble::soon(format!("{}: the connection ended early", blob.file)).into()),
            Ok(read) => read,
            // What has come is enough, however the connection ends.
            Err(_) if part.bytes == blob.about.bytes => return Ok(()),
            Err(e) if e.kind() == IoErrorKind::Interrupted => continue,
            Err(e) => return Err(Trouble::soon(format!("{}: the connection broke: {e}", blob.file)).into()),
        };
        if read as u64 > blob.about.bytes - part.bytes {
            part.restart().map_err(Trouble::never)?;
            let message = format!("{}: more comes than its {} bytes", blob.file, blob.about.bytes);
            return Err(Trouble::soon(message).into());
        }
        part.append(&buffer[..read], blob).map_err(Trouble::never)?;
    }
}

/// What has arrived of a blob.
struct Part<'a> {
    path: PathBuf,
    file: File,
    bytes: u64,
    checksum: Checksum,
    /// Whether an earlier run has left the beginning.
    inherited: bool,
    about: &'a About,
    bar: &'a ProgressBar,
}

impl<'a> Part<'a> {
    /// Takes up what an earlier run has left.
    fn open(path: PathBuf, about: &'a About, bar: &'a ProgressBar, stop: &AtomicBool) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| Error::io(path.display(), e))?;
        let checksum = Checksum::new(about);
        let mut part = Self { path, file, bytes: 0, checksum, inherited: true, about, bar };
        let length = part.file.metadata().map_err(|e| part.failed(e))?.len();
        if length == 0 || length > about.bytes {
            part.restart()?;
            return Ok(part);
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = part.file.read(&mut buffer).map_err(|e| part.failed(e))?;
            if stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            if read == 0 {
                return Ok(part);
            }
            part.count(&buffer[..read]);
        }
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(self.path.display(), error)
    }

    fn count(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.bar.inc(bytes.len() as u64);
    }

    fn append(&mut self, bytes: &[u8], blob: &Blob<'_>) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|e| match e.kind() {
            IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded => {
                let missing = out::bytes(blob.about.bytes - self.bytes);
                let message = format!(
                    "{}: the drive is full, {missing} of it are still to come; make room and run the same command to go on",
                    blob.file
                );
                Error::new(ErrorKind::Io, message).with_source(e)
            }
            _ => self.failed(e),
        })?;
        self.count(bytes);
        Ok(())
    }

    /// Throws away what is here.
    fn restart(&mut self) -> Result<(), Error> {
        use std::io::Seek;
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(|e| self.failed(e))?;
        self.bar.dec(self.bytes);
        self.checksum = Checksum::new(self.about);
        self.bytes = 0;
        self.inherited = false;
        Ok(())
    }

    /// What is wrong with what has arrived, as far as its checksum tells.
    fn damage(&mut self) -> Option<String> {
        let (kind, found) = std::mem::replace(&mut self.checksum, Checksum::None).finish()?;
        let etag = &self.about.etag;
        (!found.eq_ignore_ascii_case(etag)).then(|| format!("its {kind} is {found}, not {etag}"))
    }

    /// Gives it the name of a whole blob, when it is on the drive for good.
    fn name(self, path: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(|e| self.failed(e))?;
        let from = self.path.clone();
        drop(self); // some systems rename no open file
        fs::rename(&from, path).map_err(|e| Error::io(path.display(), e))
    }

    /// Removes it, so that the next run begins anew.
    fn remove(self) {
        let path = self.path.clone();
        drop(self);
        let _ = fs::remove_file(path); // the error that follows says more
    }
}

/// How the hub computes a checksum, told by its length: of large files SHA-256, of small ones git's SHA-1 of a blob.
enum Checksum {
    Sha256(Sha256),
    Git(Sha1),
    None,
}

impl Checksum {
    fn new(about: &About) -> Self {
        let is_hex = about.etag.bytes().all(|b| b.is_ascii_hexdigit());
        match about.etag.len() {
            64 if is_hex => Self::Sha256(Sha256::new()),
            40 if is_hex => {
                let mut sum = Sha1::new();
                sum.update(format!("blob {}\0", about.bytes).as_bytes());
                Self::Git(sum)
            }
            _ => Self::None,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Git(sum) => sum.update(bytes),
            Self::None => {}
        }
    }

    fn finish(self) -> Option<(&'static str, String)> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(sum) => Some(("SHA-256", hex(&sum.finalize()))),
            Self::Git(sum) => Some(("SHA-1 as a git blob", hex(&sum.finalize()))),
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pull::patience::Patience;
    use crate::pull::test_hub::{Asked, Hub as Server, Reply, noise};
    use crate::pull::token::Settings;

    /// One transfer of `m.gguf` into `blobs`, that gives up after `tries` failures.
    fn fetched(server: &Server, blobs: &Path, tries: u32, stop: bool) -> Result<Vec<u8>, Error> {
        let (first, most) = (Duration::from_millis(1), Duration::from_millis(2));
        let patience = Patience { tries, first, most, asked_most: most };
        let settings = Settings { endpoint: server.address(), token: None, looked: String::new() };
        let hub = Hub::new("org/mill", settings, patience)?;
        let failed = |ended| match ended {
            Ended::Failed(error) => error,
            Ended::Changed(why) => Error::corrupt(why),
        };
        let (commit, file) = ("c".repeat(40), "m.gguf");
        let about = hub.about(&commit, file, &AtomicBool::new(false)).map_err(failed)?;
        let (bar, stop) = (ProgressBar::hidden(), AtomicBool::new(stop));
        let result = fetch(&hub, &Blob { commit: &commit, file, about: &about }, blobs, &bar, &stop);
        if result.is_ok() {
            assert_eq!(bar.position(), about.bytes, "what the bar shows");
        }
        result.map_err(failed).map(|()| fs::read(blobs.join(&about.etag)).unwrap())
    }

    fn breaking(content: &[u8], after: usize) -> std::sync::Arc<Server> {
        Server::new(&[("m.gguf", content.to_vec())], move |_, asked: &Asked, reply: Reply| {
            if asked.is_content() { reply.breaking(after) } else { reply }
        })
    }

    #[test]
    fn failures_without_progress_end_it_and_what_has_arrived_stays() {
        let (content, dir) = (noise(5000, 1), tempfile::tempdir().unwrap());
        let server = breaking(&content, 1000);
        for here in [3000, 5000] {
            let result = fetched(&server, dir.path(), 3, false);
            if here < 5000 {
                let error = result.expect_err("three failures");
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(error.message().starts_with("m.gguf: the connection"), "{error}");
                let left = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
                assert!(fs::read(left).unwrap() == content[..here]);
            } else {
                assert!(result.unwrap() == content);
            }
        }
    }

    #[test]
    fn a_connection_that_brings_something_may_break_as_often_as_it_likes() {
        let (content, dir) = (noise(1 << 20, 1), tempfile::tempdir().unwrap());
        let server = breaking(&content, PROGRESS_BYTES as usize);
        assert!(fetched(&server, dir.path(), 2, false).unwrap() == content);
        assert_eq!(server.ranges().len(), 16);
        assert_eq!(server.sent(), 1 << 20);
    }

    #[test]
    fn another_files_failure_ends_it_and_what_has_arrived_stays() {
        let (content, dir) = (noise(5000, 1), tempfile::tempdir().unwrap());
        let server = breaking(&content, 5000);
        let error = fetched(&server, dir.path(), 3, true).expect_err("stopped");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(fetched(&server, dir.path(), 3, false).unwrap() == content);
    }

    #[test]
    fn a_part_is_asked_for_only_if_the_file_is_still_the_same() {
        let (content, dir) = (noise(5000, 1), tempfile::tempdir().unwrap());
        let server = breaking(&content, 2500);
        assert!(fetched(&server, dir.path(), 3, false).unwrap() == content);
        let asked: Vec<Asked> = server.asked().into_iter().filter(Asked::is_content).collect();
        let etag = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().file_name();
        assert_eq!(asked[0].if_range, None);
        assert_eq!(asked[1].if_range, Some(format!("\"{}\"", etag.display())));
    }
}
