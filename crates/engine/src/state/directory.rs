//! A directory of states that outlive the process: what a prompt begins with is read instead of computed.
//!
//! Files are named by what they stand for, a hash of all tokens up to their end, and are whole or absent. A page of 512
//! positions is one file that all longer beginnings share; a *border* is a file with all tokens, the positions after the
//! last full page, and the recurrent state. Each model has a folder of its own; others' count towards the space.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};
use std::time::SystemTime;

use files::{Error, ErrorKind, Result};
use kernels::ops::PAGE;
use sha2::{Digest, Sha256};

use super::answers::AnswerFile;
use super::file::{Contents, Draft, Header, read_file, read_tokens, write_file};
use super::prefixes::{Prefix, PrefixId};
use super::{Page, StatePool, ids};
use crate::ahead::StepLock;
use crate::answers::Answers;

const PAGE_SUFFIX: &str = "page";
const BORDER_SUFFIX: &str = "border";

/// Beginnings shorter than this are not worth a file.
const TOKENS_MIN: usize = 16;

/// This share of the disk stays free.
const DISK_SHARE_LEFT: f64 = 0.05;

/// A hash of a model and all tokens up to a position.
type Key = [u8; 16];

/// Locks what sequences remember, for as long as one piece is copied.
pub(crate) type LockStates<'a> = &'a (dyn Fn() -> MutexGuard<'a, StepLock> + 'a);

/// What is written, and how it is read.
struct Copy<'a> {
    id: PrefixId,
    states: LockStates<'a>,
    goes: &'a dyn Fn() -> bool,
}

/// A file that a sequence can go on from.
struct Border {
    tokens: usize,
    /// Its full pages, which are files of their own.
    pages: Vec<Key>,
    bytes: u64,
    used: SystemTime,
}

/// What is on the disk.
#[derive(Default)]
struct Index {
    borders: HashMap<Key, Border>,
    /// With their sizes.
    pages: HashMap<Key, u64>,
    /// Pages of the border that is being written.
    begun: Vec<Key>,
    /// Of other models, and of what is not ours.
    other_bytes: u64,
}

/// A model's folder in a directory of states, which no other process uses at the same time.
pub(crate) struct StateDirectory {
    folder: PathBuf,
    space_bytes: u64,
    fingerprint: u64,
    vocab: usize,
    index: Index,
    answers: AnswerFile,
    /// Held as long as this lives.
    _lock: File,
}

impl StateDirectory {
    /// The `folder` of the model with this `fingerprint` in `directory`, which may take `space_bytes` in all, and the answers
    /// that it holds. It is made if it is not there.
    ///
    /// # Errors
    /// `Io` when it cannot be made, read or written, or another process has it.
    pub(crate) fn open(
        directory: &Path,
        folder: &str,
        space_bytes: u64,
        fingerprint: u64,
        vocab: usize,
    ) -> Result<(Self, Answers)> {
        let folder = directory.join(folder);
        let io = |e| Error::io(folder.display(), e);
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&folder).map_err(io)?;
        let lock = folder.join("lock");
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let lock = options.open(&lock).map_err(|e| Error::io(lock.display(), e))?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => {
                let in_use = std::io::Error::from(std::io::ErrorKind::WouldBlock);
                Error::io(format!("{} is in use by another process", folder.display()), in_use)
            }
            fs::TryLockError::Error(e) => io(e),
        })?;
        let stored = Answers::default();
        let path = AnswerFile::path_in(&folder);
        let answers = AnswerFile::open(path, fingerprint, &mut |answer| stored.add_stored(answer))?;
        let index = Index::default();
        let mut opened = Self { folder, space_bytes, fingerprint, vocab, index, answers, _lock: lock };
        opened.scan(directory)?;
        Ok((opened, stored))
    }

    /// Finds what is there; what a killed process left half written goes.
    fn scan(&mut self, directory: &Path) -> Result<()> {
        let entries = fs::read_dir(&self.folder).map_err(|e| Error::io(self.folder.display(), e))?;
        for entry in entries.flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            let suffix = path.extension().and_then(|suffix| suffix.to_str());
            match (suffix, key_of(&path)) {
                (Some("partial"), _) => drop(fs::remove_file(&path)),
                (Some(PAGE_SUFFIX), Some(key)) => {
                    self.index.pages.insert(key, meta.len());
                }
                (Some(BORDER_SUFFIX), Some(key)) => match read_tokens(&path) {
                    // Under another name nobody would find it, nor store what has this one.
                    Ok((_, tokens)) if self.keys(&tokens, [tokens.len()]) == [key] => {
                        let border = Border {
                            tokens: tokens.len(),
                            pages: self.page_keys(&tokens),
                            bytes: meta.len(),
                            used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                        };
                        self.index.borders.insert(key, border);
                    }
                    _ => drop(fs::remove_file(&path)),
                },
                _ => {}
            }
        }
        self.index.other_bytes = bytes_below(directory).saturating_sub(bytes_below(&self.folder));
        self.drop_orphans();
        Ok(())
    }

    /// Hashes of the first `ends` of `tokens`, which rise.
    fn keys(&self, tokens: &[u32], ends: impl IntoIterator<Item = usize>) -> Vec<Key> {
        let mut hash = Sha256::new();
        hash.update(self.fingerprint.to_le_bytes());
        let mut done = 0;
        let key = |end| {
            hash.update(bytemuck::cast_slice::<u32, u8>(&tokens[done..end]));
            done = end;
            let mut key = Key::default();
            key.copy_from_slice(&hash.clone().finalize()[..size_of::<Key>()]);
            key
        };
        ends.into_iter().map(key).collect()
    }

    fn page_keys(&self, tokens: &[u32]) -> Vec<Key> {
        self.keys(tokens, (1..=tokens.len() / PAGE).map(|pages| pages * PAGE))
    }

    fn path(&self, key: &Key, suffix: &str) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name).with_extension(suffix)
    }

    /// What the directory holds, other models' folders included.
    pub(crate) fn bytes(&self) -> u64 {
        let borders = self.index.borders.values().map(|border| border.bytes);
        self.bytes_that_stay() + borders.chain(self.index.pages.values().copied()).sum::<u64>()
    }

    /// What no eviction frees.
    fn bytes_that_stay(&self) -> u64 {
        self.index.other_bytes + self.answers.bytes()
    }

    /// Reads the longest beginning of `tokens` that is on the disk, if it is longer than `more_than` tokens, and keeps it in
    /// memory. What is damaged is deleted, and the next longest taken. Whether there was one.
    pub(crate) fn fetch(&mut self, states: &mut StatePool, tokens: &[u32], more_than: usize) -> bool {
        loop {
            let border = self.longest_border(tokens).filter(|(len, _)| *len > more_than);
            // Without recurrent layers a sequence goes on from any page.
            let known =
                |keys: Vec<Key>| keys.iter().take_while(|key| self.index.pages.contains_key(*key)).count();
            let pages = if states.ledger.recurrent { 0 } else { PAGE * known(self.page_keys(tokens)) };
            let read = match border {
                Some((len, key)) if len >= pages => self.read_border(states, &key, tokens),
                _ if pages > more_than => self.read_pages(states, &tokens[..pages]).map(|pages_read| {
                    Prefix { tokens: tokens[..pages].to_vec(), pages: pages_read, snapshot: None }
                }),
                _ => return false,
            };
            match read {
                Ok(prefix) => {
                    states.prefixes.keep(prefix, true);
                    return true;
                }
                Err(e) if is_damage(&e) => {} // it is deleted
                // No room in memory, too many open files: nothing is wrong with it.
                Err(_) => return false,
            }
        }
    }

    fn longest_border(&self, tokens: &[u32]) -> Option<(usize, Key)> {
        let lengths = self.index.borders.values().map(|border| border.tokens);
        let mut lengths: Vec<usize> = lengths.filter(|len| *len <= tokens.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let keys = self.keys(tokens, lengths.iter().copied());
        lengths.into_iter().zip(keys).rev().find(|(_, key)| self.index.borders.contains_key(key))
    }

    fn read_border(&mut self, states: &mut StatePool, key: &Key, tokens: &[u32]) -> Result<Prefix> {
        let path = self.path(key, BORDER_SUFFIX);
        let read = self.read_whole(states, &path, tokens);
        match &read {
            Ok(_) => {
                let now = SystemTime::now();
                if let Some(border) = self.index.borders.get_mut(key) {
                    border.used = now;
                }
                // Only the order of eviction after a restart hangs on it.
                let _ = File::options().append(true).open(path).and_then(|file| file.set_modified(now));
            }
            Err(e) if is_damage(e) => self.remove_border(key),
            Err(_) => {}
        }
        read
    }

    fn read_whole(&mut self, states: &mut StatePool, path: &Path, tokens: &[u32]) -> Result<Prefix> {
        let Contents { header, tokens: own, pages: tail, snapshot } =
            read_file(states, self.vocab, self.fingerprint, path)?;
        if header.tokens_from > 0
            || !tokens.starts_with(&own)
            || snapshot.is_some() != states.ledger.recurrent
        {
            return Err(Error::corrupt(format!("{} is of other tokens", path.display())));
        }
        let mut pages = self.read_pages(states, &own[..header.first])?;
        pages.extend(tail);
        Ok(Prefix { tokens: own, pages, snapshot: snapshot.map(Arc::new) })
    }

    /// All pages of `tokens`, which fill them.
    fn read_pages(&mut self, states: &mut StatePool, tokens: &[u32]) -> Result<Vec<Page>> {
        let mut pages: Vec<Page> = Vec::new();
        for (i, (key, own)) in self.page_keys(tokens).iter().zip(tokens.chunks_exact(PAGE)).enumerate() {
            let path = self.path(key, PAGE_SUFFIX);
            let whole = |h: &Header| [h.tokens_from, h.first, h.end] == [i * PAGE, i * PAGE, (i + 1) * PAGE];
            match read_file(states, self.vocab, self.fingerprint, &path) {
                Ok(page) if page.tokens == own && whole(&page.header) => pages.extend(page.pages),
                Err(e) if !is_damage(&e) => return Err(e),
                _ => {
                    self.remove_page(key);
                    return Err(Error::corrupt(format!("{} is damaged", path.display())));
                }
            }
        }
        Ok(pages)
    }

    /// Deletes a border, and pages that no other needs.
    fn remove_border(&mut self, key: &Key) {
        self.index.borders.remove(key);
        let _ = fs::remove_file(self.path(key, BORDER_SUFFIX)); // absent is what it should be
        self.drop_orphans();
    }

    /// Deletes a page, and the borders that need it.
    fn remove_page(&mut self, key: &Key) {
        self.index.pages.remove(key);
        let _ = fs::remove_file(self.path(key, PAGE_SUFFIX));
        self.drop_orphans();
    }

    /// Deletes borders that lack a page, then pages that no border needs.
    fn drop_orphans(&mut self) {
        let Index { borders, pages, begun, .. } = &mut self.index;
        let lost: Vec<Key> = borders
            .iter()
            .filter(|(_, border)| !border.pages.iter().all(|page| pages.contains_key(page)))
            .map(|(key, _)| *key)
            .collect();
        borders.retain(|key, _| !lost.contains(key));
        let needed = borders.values().flat_map(|border| &border.pages).chain(&*begun);
        let needed: HashSet<Key> = needed.copied().collect();
        let orphans: Vec<Key> = pages.keys().filter(|key| !needed.contains(*key)).copied().collect();
        pages.retain(|key, _| needed.contains(key));
        for (keys, suffix) in [(lost, BORDER_SUFFIX), (orphans, PAGE_SUFFIX)] {
            for key in keys {
                let _ = fs::remove_file(self.path(&key, suffix));
            }
        }
    }

    /// Makes room for `bytes` more: those go first that were not used for longest. Whether there is.
    fn make_room(&mut self, bytes: u64) -> bool {
        let own_bytes = self.bytes() - self.bytes_that_stay();
        let most = self.bytes_that_stay() + bytes <= self.space_bytes;
        if !most || !self.disk_has_room_for(bytes.saturating_sub(own_bytes)) {
            return false; // nothing that could be deleted is enough
        }
        loop {
            if self.bytes() + bytes <= self.space_bytes && self.disk_has_room_for(bytes) {
                return true;
            }
            let oldest = self.index.borders.iter().min_by_key(|(_, border)| border.used);
            let Some(key) = oldest.map(|(key, _)| *key) else { return false };
            self.remove_border(&key);
        }
    }

    #[cfg(unix)]
    fn disk_has_room_for(&self, bytes: u64) -> bool {
        let Ok(stat) = rustix::fs::statvfs(&self.folder) else { return true };
        let left = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(bytes);
        left as f64 > DISK_SHARE_LEFT * stat.f_blocks.saturating_mul(stat.f_frsize) as f64
    }

    #[cfg(not(unix))]
    fn disk_has_room_for(&self, _bytes: u64) -> bool {
        true // a full disk is an error when it is written to
    }

    /// Writes the answers that no file has yet, if there is room for them.
    ///
    /// # Errors
    /// `Io` when the disk fails.
    pub(crate) fn store_answers(&mut self, answers: &Answers) -> Result<()> {
        let new = answers.take_unstored();
        if new.is_empty() || !self.make_room(AnswerFile::bytes_of(&new)) {
            return Ok(());
        }
        self.answers.add(&new, &|| answers.all())
    }

    /// Writes a kept beginning. Whether the directory holds it now: not if it was given up meanwhile, is too short, or there
    /// is no room. Breaks off when `goes` says no.
    ///
    /// # Errors
    /// `Io` when the disk fails, `Device` when the device does, `Cancelled`.
    pub(crate) fn store<'a>(
        &mut self,
        id: PrefixId,
        states: LockStates<'a>,
        goes: &'a dyn Fn() -> bool,
    ) -> Result<bool> {
        let Some(tokens) = states().states.prefixes.get(id).map(|prefix| prefix.tokens.clone()) else {
            return Ok(false);
        };
        if tokens.len() < TOKENS_MIN {
            return Ok(false);
        }
        let key = self.keys(&tokens, [tokens.len()])[0];
        if let Some(border) = self.index.borders.get_mut(&key) {
            border.used = SystemTime::now();
            return Ok(true);
        }
        self.index.begun = self.page_keys(&tokens);
        let copy = Copy { id, states, goes };
        let stored = self.store_new(&copy, &key, &tokens);
        // What was broken off goes on with the pages that it has.
        if !stored.as_ref().is_err_and(|e| e.kind() == ErrorKind::Cancelled) {
            self.index.begun.clear();
            self.drop_orphans();
        }
        stored
    }

    fn store_new(&mut self, copy: &Copy<'_>, key: &Key, tokens: &[u32]) -> Result<bool> {
        let pages = self.index.begun.clone();
        for (i, page) in pages.iter().enumerate() {
            if self.index.pages.contains_key(page) {
                continue;
            }
            let (first, end) = (i * PAGE, (i + 1) * PAGE);
            let header = (copy.states)().states.header(self.fingerprint, first, end);
            let header = Header { tokens_from: first, recurrent: false, ..header };
            match self.write(copy, &self.path(page, PAGE_SUFFIX), header, &tokens[first..end])? {
                Some(bytes) => self.index.pages.insert(*page, bytes),
                None => return Ok(false),
            };
        }
        let header = (copy.states)().states.header(self.fingerprint, pages.len() * PAGE, tokens.len());
        let Some(bytes) = self.write(copy, &self.path(key, BORDER_SUFFIX), header, tokens)? else {
            return Ok(false);
        };
        let border = Border { tokens: tokens.len(), pages, bytes, used: SystemTime::now() };
        self.index.borders.insert(*key, border);
        Ok(true)
    }

    /// Writes one file; its size, or nothing without room or when the beginning was given up.
    fn write(&mut self, copy: &Copy<'_>, path: &Path, header: Header, tokens: &[u32]) -> Result<Option<u64>> {
        let chunks = {
            let lock = (copy.states)();
            let Some(prefix) = lock.states.prefixes.get(copy.id) else { return Ok(None) };
            lock.states.chunks(&header, &ids(&prefix.pages))
        };
        let draft = Draft { header, tokens, chunks };
        let bytes = draft.bytes();
        if !self.make_room(bytes) {
            return Ok(None);
        }
        let mut gone = false;
        let written = write_file(path, &draft, &mut |chunk, to| {
            if !(copy.goes)() {
                return Err(Error::new(ErrorKind::Cancelled, "somebody reads"));
            }
            let lock = (copy.states)();
            match lock.states.prefixes.get(copy.id) {
                Some(prefix) => lock.states.read(chunk, prefix.snapshot.as_deref(), to),
                None => {
                    gone = true;
                    Err(Error::new(ErrorKind::Cancelled, "the beginning was given up"))
                }
            }
        });
        match written {
            Err(_) if gone => Ok(None),
            written => written.map(|()| Some(bytes)),
        }
    }
}

/// Whether an error is of what a file holds, and not of the moment.
fn is_damage(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::InvalidRequest)
}

fn key_of(path: &Path) -> Option<Key> {
    let name =
        path.file_stem()?.to_str().filter(|name| name.is_ascii() && name.len() == 2 * size_of::<Key>())?;
    let mut key = Key::default();
    for (i, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&name[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(key)
}

/// Bytes of all files in a directory and those below.
fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
            Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
            _ => 0,
        })
        .sum()
}
