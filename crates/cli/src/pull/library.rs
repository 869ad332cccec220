//! What was pulled: a record for each model, and `list` and `rm` over them.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use engine::Error;
use serde_json::{Value, json};

use super::cache_dir;
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

/// A pulled model.
pub(super) struct Record {
    /// What it was asked for by.
    pub(super) name: String,
    /// What to open.
    pub(super) path: PathBuf,
    /// All of its files.
    pub(super) files: Vec<PathBuf>,
}

impl Record {
    fn file(cache: &Path, name: &str) -> PathBuf {
        // Names have a slash and perhaps a colon, which file names on some systems may not.
        cache.join("models").join(format!("{}.json", name.replace('/', "--").replace(':', "@")))
    }

    /// Keeps it under `cache`.
    pub(super) fn write(&self, cache: &Path) -> Result<()> {
        let file = Self::file(cache, &self.name);
        let shown = |path: &PathBuf| path.display().to_string();
        let value = json!({
            "model": self.name,
            "path": shown(&self.path),
            "files": self.files.iter().map(shown).collect::<Vec<_>>(),
        });
        let folder = file.parent().unwrap_or(cache);
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&file, value.to_string()));
        Ok(written.map_err(|e| Error::io(file.display(), e))?)
    }

    fn read(file: &Path) -> Option<Self> {
        let value: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
        let path = |value: &Value| value.as_str().map(PathBuf::from);
        Some(Self {
            name: value.get("model")?.as_str()?.to_owned(),
            path: path(value.get("path")?)?,
            files: value.get("files")?.as_array()?.iter().map(path).collect::<Option<_>>()?,
        })
    }

    fn all(cache: &Path) -> Vec<Self> {
        let entries = fs::read_dir(cache.join("models")).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.filter_map(|entry| Self::read(&entry.path())).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum()
    }
}

/// What to open for a pulled model's name.
pub(crate) fn find(cache: &Path, name: &str) -> Option<PathBuf> {
    Record::read(&Record::file(cache, name)).map(|record| record.path).filter(|path| path.exists())
}

/// Lists the pulled models.
pub(crate) fn list(args: &ListArgs) -> Result<()> {
    let all = Record::all(&cache_dir()?);
    if args.json {
        let models = all
            .iter()
            .map(|r| json!({"model": r.name, "bytes": r.bytes(), "path": r.path.display().to_string()}));
        return out::json(&json!({"models": models.collect::<Vec<_>>()}));
    }
    let lines: String = all.iter().map(|r| format!("{:>11}  {}\n", out::bytes(r.bytes()), r.name)).collect();
    out::print(&lines, false)
}

/// Removes a pulled model; files that another one shares stay.
pub(crate) fn rm(args: &RmArgs) -> Result<()> {
    let cache = cache_dir()?;
    let file = Record::file(&cache, &args.model);
    let Some(record) = Record::read(&file) else {
        return Err(Error::not_found(format!(
            "{:?} was not pulled; `tidemill list` says what was",
            args.model
        ))
        .into());
    };
    let others = Record::all(&cache).into_iter().filter(|r| r.name != record.name);
    let kept: HashSet<PathBuf> = others.flat_map(|r| r.files).collect();
    let bytes = record.bytes();
    // Only inside of our cache, whatever a record says.
    let hub = cache.join("hub");
    for path in record.files.iter().filter(|path| path.starts_with(&hub) && !kept.contains(*path)) {
        let blob = fs::canonicalize(path).ok().filter(|blob| blob != path);
        for path in [Some(path.clone()), blob].into_iter().flatten() {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(path.display(), e).into());
                }
                _ => {}
            }
        }
    }
    fs::remove_file(&file).map_err(|e| Error::io(file.display(), e))?;
    out::print(&format!("{}: {} removed\n", record.name, out::bytes(bytes)), false)
}
