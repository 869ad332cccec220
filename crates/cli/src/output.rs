//! Files that commands write. One rule for all of them: never over what the same command reads or writes besides, never
//! over a part of a model, and whole or not at all, so that an older file stays as it is when a command fails.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use engine::{Error, Result, is_part_of_model};

/// The files of one command: what it reads, and what it writes.
#[derive(Default)]
pub(crate) struct Outputs {
    taken: Vec<Taken>,
}

/// A file that no output may be.
struct Taken {
    shown: String,
    /// Of the file, if it is there.
    identity: Option<Identity>,
    /// Its place, also if it is not.
    place: Option<(PathBuf, String)>,
}

impl Outputs {
    /// A command that reads these files. Those that are not there are no harm.
    pub(crate) fn beside<P: AsRef<Path>>(inputs: impl IntoIterator<Item = P>) -> Self {
        let mut own = Self::default();
        for input in inputs {
            let input = input.as_ref();
            own.take(input);
            // Of a directory, what belongs to its model: another name may lead to it.
            let files = fs::read_dir(input).into_iter().flatten().flatten().map(|file| file.path());
            let files = files.filter(|file| is_part_of_model(file).unwrap_or(true));
            own.taken.extend(files.map(|file| Taken::of(&file, false)));
        }
        own
    }

    fn take(&mut self, path: &Path) {
        self.taken.push(Taken::of(path, true));
    }

    /// Begins to write `path`. What is there stays until [`Output::finish`].
    ///
    /// # Errors
    /// `InvalidRequest` when it is what this command reads or writes besides, or a part of a model; `Io` or `NotFound`
    /// naming the file that cannot be made.
    pub(crate) fn create(&mut self, path: &Path) -> Result<Output> {
        self.check(path)?;
        self.take(path);
        Output::open(path)
    }

    /// Whether `path` may be written.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let shown = path.display();
        let new = Taken::of(path, true);
        if let Some(old) = self.taken.iter().find(|old| old.is_same(&new)) {
            return Err(Error::invalid(format!(
                "{shown}: is the same file as {}; write elsewhere",
                old.shown
            )));
        }
        if is_part_of_model(path).map_err(|e| Error::io(&shown, e))? {
            return Err(Error::invalid(format!("{shown}: is a part of a model; write elsewhere")));
        }
        Ok(())
    }
}

impl Taken {
    fn of(path: &Path, with_place: bool) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
        // Some drives make no difference between the letters of two names.
        let place = name.and_then(|name| Some((fs::canonicalize(folder_of(path)).ok()?, name)));
        Self {
            shown: path.display().to_string(),
            identity: fs::metadata(path).ok().and_then(|meta| identity(path, &meta)),
            place: place.filter(|_| with_place),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (&self.identity, &other.identity) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.place.is_some() && self.place == other.place,
            _ => false,
        }
    }
}

#[cfg(unix)]
type Identity = (u64, u64);

#[cfg(not(unix))]
type Identity = PathBuf;

/// What tells a file from others under all of its names; `None` for a device, which may be written twice.
fn identity(path: &Path, meta: &Metadata) -> Option<Identity> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let _ = path;
        let kind = meta.file_type();
        (!kind.is_char_device()).then(|| (meta.dev(), meta.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = meta;
        fs::canonicalize(path).ok()
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is written beside its place, and is there once it is whole. A pipe or a device gets the bytes as they come.
pub(crate) struct Output {
    /// What the user called it.
    path: PathBuf,
    /// Where the bytes go until all are there, and where then.
    moves: Option<(PathBuf, PathBuf)>,
    out: BufWriter<File>,
}

impl Output {
    fn open(path: &Path) -> Result<Self> {
        let named = |e| Error::io(path.display(), e);
        let target = place(path).map_err(named)?;
        let (moves, file) = match target {
            Some(target) => {
                let (aside, file) = beside(&target).map_err(named)?;
                (Some((aside, target)), file)
            }
            None => (None, File::options().write(true).open(path).map_err(named)?),
        };
        Ok(Self { path: path.to_path_buf(), moves, out: BufWriter::new(file) })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io(self.path.display(), e))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(crate) fn finish(self) -> Result<()> {
        finish_all([self])
    }

    fn settle(&mut self) -> io::Result<()> {
        self.out.flush()?;
        if self.moves.is_some() { self.out.get_ref().sync_all() } else { Ok(()) }
    }

    fn put_in_place(&mut self) -> io::Result<()> {
        let Some((aside, target)) = &self.moves else { return Ok(()) };
        if let Ok(old) = fs::metadata(target) {
            let _ = fs::set_permissions(aside, old.permissions()); // those of a new file will do
        }
        fs::rename(aside, target)?;
        self.moves = None;
        Ok(())
    }
}

/// Puts several files in their places, none of them before all are whole.
///
/// # Errors
/// `Io` naming the file.
pub(crate) fn finish_all(outputs: impl IntoIterator<Item = Output>) -> Result<()> {
    let mut outputs: Vec<Output> = outputs.into_iter().collect();
    for step in [Output::settle, Output::put_in_place] {
        for output in &mut outputs {
            step(output).map_err(|e| Error::io(output.path.display(), e))?;
        }
    }
    Ok(())
}

/// Replaces a file of our own as a whole: another process sees the old or the new.
///
/// # Errors
/// As [`Output::put`].
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut output = Output::open(path)?;
    output.put(bytes)?;
    output.finish()
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some((aside, _)) = &self.moves {
            let _ = fs::remove_file(aside); // nobody could act on it
        }
    }
}

/// The file that `path` leads to through links, there or not; `None` for what must not be replaced, a pipe or a device.
fn place(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        #[cfg(unix)]
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_block_device(&meta.file_type()) => {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "this is a drive"));
        }
        Ok(meta) if !meta.is_file() => return Ok(None),
        // A rename would pass over what its owner has protected.
        Ok(meta) if meta.permissions().readonly() => return Err(ErrorKind::PermissionDenied.into()),
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut target = path.to_path_buf();
    while let Ok(link) = fs::read_link(&target) {
        target = target.parent().unwrap_or(Path::new("")).join(link);
    }
    Ok(Some(target))
}

/// A new file beside `target`. One that a killed run has left is removed; one that a living run writes is not.
fn beside(target: &Path) -> io::Result<(PathBuf, File)> {
    let mut name: OsString = target.as_os_str().to_owned();
    name.push(".partial");
    let aside = PathBuf::from(name);
    let made = match File::create_new(&aside) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let busy =
                |what| io::Error::new(ErrorKind::AlreadyExists, format!("{}: {what}", aside.display()));
            if !fs::symlink_metadata(&aside)?.is_file() || is_part_of_model(&aside)? {
                return Err(busy("is in the way"));
            }
            if matches!(File::open(&aside)?.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(busy("another run is writing it"));
            }
            fs::remove_file(&aside)?;
            File::create_new(&aside)
        }
        made => made,
    };
    let file = made?;
    let _ = file.lock(); // where nothing can be locked, the last run wins
    Ok((aside, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_older_file_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "older").unwrap();
        let mut output = Outputs::default().create(&path).unwrap();
        output.put(b"new").unwrap();
        drop(output);
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"older".to_vec(), vec!["out".to_owned()])
        );
        let mut output = Outputs::default().create(&path).unwrap();
        output.put(b"new").unwrap();
        let error = Outputs::default().create(&path).err().unwrap();
        assert!(error.message().contains("another run"), "{error}");
        output.finish().unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"new".to_vec(), vec!["out".to_owned()])
        );
        fs::write(folder.path().join("out.partial"), "of one that was killed").unwrap();
        replace(&path, b"newer").unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), names(folder.path())),
            (b"newer".to_vec(), vec!["out".to_owned()])
        );
    }

    #[test]
    fn outputs_are_neither_inputs_nor_each_other_nor_models() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("input"), "text").unwrap();
        fs::write(at("model"), "GGUF\x03\0\0\0").unwrap();
        fs::hard_link(at("input"), at("linked")).unwrap();
        let input = at("input");
        let refused = |name: &str| {
            let mut outputs = Outputs::beside([input.as_path()]);
            outputs.create(&at(name)).err().map(|e| (e.kind(), e.message().to_owned()))
        };
        for (name, said) in [("input", "same file"), ("./linked", "same file"), ("model", "part of a model")]
        {
            let (kind, message) = refused(name).unwrap_or_else(|| panic!("{name} was taken"));
            assert!(kind == engine::ErrorKind::InvalidRequest && message.contains(said), "{message}");
        }
        assert_eq!(refused("new"), None);
        assert_eq!(refused(".").unwrap().0, engine::ErrorKind::Io, "a directory");
        let mut outputs = Outputs::default();
        let first = outputs.create(&at("new")).unwrap();
        for same in ["new", "./new", "NEW"] {
            assert!(outputs.create(&at(same)).is_err(), "{same}");
        }
        drop(first);
        assert_eq!(names(folder.path()), ["input", "linked", "model"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_what_is_in_the_way_is_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("model"), "GGUF\x03\0\0\0").unwrap();
        symlink("model", at("out")).unwrap();
        assert!(Outputs::default().create(&at("out")).is_err(), "a link to a model");
        symlink("model", at("log.partial")).unwrap();
        assert!(Outputs::default().create(&at("log")).is_err(), "a link in the way");
        fs::hard_link(at("model"), at("txt.partial")).unwrap();
        assert!(Outputs::default().create(&at("txt")).is_err(), "a model in the way");
        assert_eq!(fs::read(at("model")).unwrap(), b"GGUF\x03\0\0\0");
        fs::write(at("protected"), "old").unwrap();
        fs::set_permissions(at("protected"), fs::Permissions::from_mode(0o444)).unwrap();
        assert!(replace(&at("protected"), b"new").is_err());
        fs::set_permissions(at("protected"), fs::Permissions::from_mode(0o640)).unwrap();
        replace(&at("protected"), b"new").unwrap();
        assert_eq!(fs::metadata(at("protected")).unwrap().permissions().mode() & 0o777, 0o640);
        symlink("target", at("link")).unwrap();
        replace(&at("link"), b"new").unwrap();
        assert_eq!(fs::read(at("target")).unwrap(), b"new");
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    }
}
