//! What was pulled: a record for each model, and `list` and `rm` over them.

use std::fs;
use std::path::{Path, PathBuf};

use engine::Error;
use serde_json::{Value, json};

use super::cache_dir;
use super::folder::{Files, Folder};
use super::names::{listed, parse};
use crate::failure::Result;
use crate::out;

/// Arguments of `list`.
#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `rm`.
#[derive(clap::Args)]
pub(crate) struct RmArgs {
    /// The model as it was pulled: org/name or org/name:Q4_K_M
    model: String,
}

/// What was asked for, whole or not.
pub(super) struct Record {
    /// What it was asked for by.
    pub(super) name: String,
    /// What to open. None before all has arrived once.
    pub(super) path: Option<PathBuf>,
    /// All files of it.
    pub(super) files: Vec<PathBuf>,
    /// Checksums of their content.
    pub(super) blobs: Vec<String>,
    /// Blobs, by checksum and size, of a pull that has not ended.
    pub(super) pulling: Vec<(String, u64)>,
    /// Whether the record itself cannot be read.
    pub(super) is_damaged: bool,
}

/// Whether a model can be opened.
enum State {
    /// All of it is here.
    Whole(PathBuf),
    /// A pull has not ended: bytes that are here, and all.
    Partial(u64, u64),
    /// What is wrong.
    Damaged(String),
}

impl Record {
    /// A record without anything.
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: None,
            files: Vec::new(),
            blobs: Vec::new(),
            pulling: Vec::new(),
            is_damaged: false,
        }
    }

    fn file(cache: &Path, name: &str) -> PathBuf {
        // Names have a slash and perhaps a colon, which file names on some systems may not.
        cache.join("models").join(format!("{}.json", name.replace('/', "--").replace(':', "@")))
    }

    /// What [`Record::file`] made the file's name of.
    fn name_of(file: &Path) -> Option<String> {
        let (repo, selection) = match file.file_stem()?.to_str()?.split_once('@') {
            Some((repo, selection)) => (repo, format!(":{}", selection.replace("--", "/"))),
            None => (file.file_stem()?.to_str()?, String::new()),
        };
        Some(format!("{}{selection}", repo.replacen("--", "/", 1)))
    }

    /// Keeps it under `cache`: another process sees the old or the new.
    pub(super) fn write(&self, cache: &Path) -> Result<(), Error> {
        let file = Self::file(cache, &self.name);
        let shown = |path: &PathBuf| path.strip_prefix(cache).unwrap_or(path).display().to_string();
        let mut value = json!({
            "model": self.name,
            "files": self.files.iter().map(shown).collect::<Vec<_>>(),
            "blobs": self.blobs,
        });
        if let Some(path) = &self.path {
            value["path"] = json!(shown(path));
        }
        if !self.pulling.is_empty() {
            let blobs = self.pulling.iter().map(|(etag, bytes)| json!({"blob": etag, "bytes": bytes}));
            value["pulling"] = json!(blobs.collect::<Vec<_>>());
        }
        let writing = file.with_added_extension("writing"); // of one process: it has the folder's lock
        let written = fs::create_dir_all(file.parent().unwrap_or(cache))
            .and_then(|()| fs::write(&writing, value.to_string()))
            .and_then(|()| fs::rename(&writing, &file));
        written.map_err(|e| {
            let _ = fs::remove_file(&writing); // the error says more
            Error::io(file.display(), e)
        })
    }

    /// Reads a record's file; one that is damaged keeps its name.
    fn read(cache: &Path, file: &Path) -> Option<Self> {
        let text = match fs::read(file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
            text => text.ok(),
        };
        let parsed = text.and_then(|text| Self::parsed(cache, &text));
        if let Some(record) =
            parsed.filter(|record| Self::file(cache, &record.name).file_name() == file.file_name())
        {
            return Some(record);
        }
        let name = Self::name_of(file)?;
        parse(&name).ok()?; // else it is somebody else's
        Some(Self { is_damaged: true, ..Self::new(&name) })
    }

    fn parsed(cache: &Path, text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let path = |value: &Value| value.as_str().map(|path| cache.join(path));
        let blob =
            |value: &Value| Some((value.get("blob")?.as_str()?.to_owned(), value.get("bytes")?.as_u64()?));
        let list =
            |key: &str| value.get(key).map_or(Some(&[][..]), |list| list.as_array().map(Vec::as_slice));
        let record = Self {
            name: value.get("model")?.as_str()?.to_owned(),
            path: value.get("path").map(path).map_or(Some(None), |path| path.map(Some))?,
            files: list("files")?.iter().map(path).collect::<Option<_>>()?,
            blobs: list("blobs")?
                .iter()
                .map(|etag| etag.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            pulling: list("pulling")?.iter().map(blob).collect::<Option<_>>()?,
            is_damaged: false,
        };
        (record.path.is_none() || !record.files.is_empty()).then_some(record)
    }

    /// All records, by name.
    pub(super) fn all(cache: &Path) -> Vec<Self> {
        let entries = fs::read_dir(cache.join("models")).into_iter().flatten().flatten();
        let files =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json"));
        let mut all: Vec<_> = files.filter(|p| p.is_file()).filter_map(|p| Self::read(cache, &p)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The record of a name, in upper or lower case.
    pub(super) fn find(cache: &Path, name: &str) -> Option<Self> {
        parse(name).ok()?;
        let same = |record: &Self| record.name.eq_ignore_ascii_case(name);
        Self::read(cache, &Self::file(cache, name))
            .filter(same)
            .or_else(|| Self::all(cache).into_iter().find(same))
    }

    /// `org/name` of it.
    fn repo(&self) -> &str {
        self.name.split(':').next().unwrap_or(&self.name)
    }

    fn state(&self, cache: &Path) -> State {
        let command = format!("`tidemill pull {}`", self.name);
        if self.is_damaged {
            return State::Damaged(format!("its record cannot be read: {command} makes it anew"));
        }
        match &self.path {
            None => {
                let folder = Folder::of(cache, self.repo());
                let here = self.pulling.iter().map(|(etag, bytes)| folder.arrived_bytes(etag).min(*bytes));
                State::Partial(here.sum(), self.pulling.iter().map(|(_, bytes)| *bytes).sum())
            }
            Some(path) => match self.files.iter().chain([path]).find(|file| !file.exists()) {
                Some(gone) => {
                    State::Damaged(format!("{} is gone: {command} fetches it again", gone.display()))
                }
                None => State::Whole(path.clone()),
            },
        }
    }

    /// Bytes of its files that are here.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum()
    }

    /// What it names in its repository's folder.
    pub(super) fn named(&self, folder: &Folder) -> Files {
        let mut files = Files::default();
        self.files.iter().for_each(|file| folder.add(&mut files, file));
        files.blobs.extend(self.blobs.iter().cloned());
        files.blobs.extend(self.pulling.iter().map(|(etag, _)| etag.clone()));
        files
    }

    /// What all records of a repository name, but for the one of `name`; None when one of them cannot be read.
    pub(super) fn named_by_others(cache: &Path, repo: &str, name: &str) -> Option<Files> {
        let folder = Folder::of(cache, repo);
        let mut files = Files::default();
        for other in Self::all(cache) {
            if !other.repo().eq_ignore_ascii_case(repo) || other.name == name {
                continue;
            }
            if other.is_damaged {
                return None;
            }
            let more = other.named(&folder);
            files.links.extend(more.links);
            files.blobs.extend(more.blobs);
        }
        Some(files)
    }
}

/// What to open for a pulled model's name; `None` for what was never pulled.
///
/// # Errors
/// `NotFound` saying what is missing of a model that `list` shows, and what to do.
pub(crate) fn find(cache: &Path, name: &str) -> Result<Option<PathBuf>, Error> {
    let Some(record) = Record::find(cache, name) else {
        return hint(cache, name).map_or(Ok(None), |hint| Err(Error::not_found(hint)));
    };
    let name = &record.name;
    match record.state(cache) {
        State::Whole(path) => Ok(Some(path)),
        State::Partial(here, all) => {
            let (here, all) = (out::bytes(here), out::bytes(all));
            let message =
                format!("{name}: {here} of {all} are here; `tidemill pull {name}` fetches the rest");
            Err(Error::not_found(message))
        }
        State::Damaged(why) => Err(Error::not_found(format!("{name}: {why}"))),
    }
}

/// What `list` shows of the repository of a name that was not pulled.
fn hint(cache: &Path, name: &str) -> Option<String> {
    let (repo, _) = parse(name).ok()?;
    let all = Record::all(cache);
    let same: Vec<&str> =
        all.iter().filter(|r| r.repo().eq_ignore_ascii_case(repo)).map(|r| r.name.as_str()).collect();
    if !same.is_empty() {
        return Some(format!("{name} was not pulled; of this repository there is {}", listed(same)));
    }
    Folder::of(cache, repo).unnamed(&Files::default())?;
    Some(format!("{name}: a pull that did not end has left a part of it; `tidemill pull {name}` goes on"))
}

/// A line of `list`.
struct Line {
    name: String,
    bytes: u64,
    of_bytes: Option<u64>,
    path: Option<PathBuf>,
    state: &'static str,
    remark: String,
}

/// Lists what was pulled, and what takes space without being whole.
pub(crate) fn list(args: &ListArgs) -> Result<()> {
    let cache = cache_dir()?;
    let mut lines: Vec<Line> = Record::all(&cache).into_iter().map(|record| line(&cache, record)).collect();
    for (repo, folder) in Folder::all(&cache) {
        let Some(bytes) = Record::named_by_others(&cache, &repo, "").and_then(|kept| folder.unnamed(&kept))
        else {
            continue;
        };
        let remark = format!("  (left of a pull: `tidemill pull` goes on, `tidemill rm {repo}` removes it)");
        lines.push(Line { name: repo, bytes, of_bytes: None, path: None, state: "left_over", remark });
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        let models = lines.iter().map(|line| {
            let path = line.path.as_ref().map(|path| path.display().to_string());
            json!({"model": line.name, "bytes": line.bytes, "of_bytes": line.of_bytes, "path": path, "state": line.state})
        });
        return out::json(&json!({"models": models.collect::<Vec<_>>()}));
    }
    let text = |line: &Line| format!("{:>11}  {}{}\n", out::bytes(line.bytes), line.name, line.remark);
    out::print(&lines.iter().map(text).collect::<String>(), false)
}

fn line(cache: &Path, record: Record) -> Line {
    let (bytes, name) = (record.bytes(), record.name.clone());
    match record.state(cache) {
        State::Whole(path) => {
            let (state, path) = ("whole", Some(path));
            let remark = if record.pulling.is_empty() { "" } else { "  (a newer revision is half here)" };
            Line { name, bytes, of_bytes: Some(bytes), path, state, remark: remark.into() }
        }
        State::Partial(here, all) => {
            let remark = format!("  (of {}: `tidemill pull {name}` goes on)", out::bytes(all));
            Line { name, bytes: here, of_bytes: Some(all), path: None, state: "partial", remark }
        }
        State::Damaged(why) => {
            Line { name, bytes, of_bytes: None, path: None, state: "damaged", remark: format!("  ({why})") }
        }
    }
}

/// Removes a pulled model, whole or not, and what else of its repository no other model needs.
pub(crate) fn rm(args: &RmArgs) -> Result<()> {
    let cache = cache_dir()?;
    let unknown = || {
        let message = format!("{:?} was not pulled; `tidemill list` says what was", args.model);
        Error::not_found(message)
    };
    let name = Record::find(&cache, &args.model).map_or_else(|| args.model.clone(), |record| record.name);
    let Ok((repo, _)) = parse(&name) else { return Err(unknown().into()) };
    let folder = Folder::of(&cache, repo);
    let _lock = folder.lock(repo)?;
    let record = Record::find(&cache, &name);
    let kept = Record::named_by_others(&cache, repo, &name);
    let bytes = match (&kept, &record) {
        (None, Some(record)) => folder.remove(&record.named(&folder), &Files::default())?,
        // What a record that cannot be read names is not known: nothing but what this one names goes.
        (None, None) => return Err(unknown().into()),
        (Some(kept), None) if folder.unnamed(kept).is_none() => return Err(unknown().into()),
        (Some(kept), _) => folder.keep_only(kept)?,
    };
    if record.is_some() {
        let file = Record::file(&cache, &name);
        let _ = fs::remove_file(file.with_added_extension("writing")); // of a pull that was killed
        fs::remove_file(&file).map_err(|e| Error::io(file.display(), e))?;
    }
    out::print(&format!("{name}: {} removed\n", out::bytes(bytes)), false)
}
