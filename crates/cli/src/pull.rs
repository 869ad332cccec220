//! `tidemill pull`, `list` and `rm`: models from the Hugging Face hub, in the cache directory.
//!
//! Files lie as the hub's own programs keep them (`hub/models--ORG--NAME`, [`folder`]); a record in `models/` says which of
//! them make up what was pulled ([`library`]). What arrives is kept and taken up by the next run ([`transfer`]); the token
//! goes to the hub alone ([`hub`]); names that a hub sends are checked before they become paths ([`names`]).

mod choose;
mod folder;
mod hub;
mod library;
mod names;
mod patience;
mod redirect;
mod token;
mod transfer;

#[cfg(test)]
#[path = "../tests/pull/hub.rs"]
mod test_hub;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::synth::check_free_space;
use engine::{Error, ErrorKind};
use serde_json::json;

use crate::failure::Result;
use crate::load::bytes_bar;
use crate::{bundled, out};
use folder::{Files, Folder};
use hub::{About, Ended, Hub, Revision};
use library::Record;
use patience::{Patience, stopped};
use transfer::Blob;

pub(crate) use library::{ListArgs, RmArgs, find, list, rm};

const EXAMPLES: &str = "\
Examples:
  tidemill pull org/model-GGUF:Q4_K_M      the GGUF files of one quantisation
  tidemill pull org/model-GGUF:m-Q4_0      one of several models of a quantisation
  tidemill pull org/model-4bit             a safetensors model
  tidemill chat org/model-GGUF:Q4_K_M

HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH and HF_HOME are respected. A download that was broken off is taken up
by the same command; `tidemill list` shows it, `tidemill rm` removes it.";

/// Arguments of `pull`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The repository, and for GGUF which quantisation or file of it: org/name or org/name:Q4_K_M
    #[arg(value_name = "REPO")]
    repo: String,
    /// Files to download at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A repository that changes while it is pulled is begun anew this often.
const CHANGES_MAX: usize = 3;

/// Downloads, checks, and writes the record.
pub(crate) fn main(args: &Args) -> Result<()> {
    let cache = cache_dir()?;
    // As it was written the first time: some file systems do not tell upper from lower case.
    let name = Record::find(&cache, &args.repo).map_or_else(|| args.repo.clone(), |record| record.name);
    let (repo, selection) = names::parse(&name)?;
    let settings = token::Settings::read(|name| std::env::var_os(name))?;
    let hub = Hub::new(repo, settings, Patience::LONG)?;
    let pull = Pull { hub, folder: Folder::of(&cache, repo), cache, repo, selection, name: &name };
    let _lock = pull.folder.lock(repo)?;
    let record = pull.run(usize::from(args.parallel))?;
    let (bytes, files) = (record.bytes(), record.files.len());
    if args.json {
        let path = record.path.as_ref().map(|path| path.display().to_string());
        return out::json(&json!({"model": record.name, "path": path, "files": files, "bytes": bytes}));
    }
    let files = if files == 1 { "1 file".into() } else { format!("{files} files") };
    out::print(&format!("{}: {}, {files}\n", record.name, out::bytes(bytes)), false)
}

fn cache_dir() -> Result<PathBuf> {
    Ok(bundled::cache_dir(|name| std::env::var_os(name)).map_err(|e| Error::io("cache directory", e))?)
}

/// A model on its way.
struct Pull<'a> {
    hub: Hub,
    folder: Folder,
    cache: PathBuf,
    repo: &'a str,
    selection: Option<&'a str>,
    /// What the record is called.
    name: &'a str,
}

/// A file of the repository.
struct Remote {
    name: String,
    about: About,
}

impl Pull<'_> {
    /// Pulls; begins anew when the repository changes meanwhile.
    fn run(&self, parallel: usize) -> Result<Record, Error> {
        let mut changes = 0;
        loop {
            match self.revision(parallel) {
                Ok(record) => return Ok(record),
                Err(Ended::Failed(error)) => return Err(error),
                Err(Ended::Changed(why)) if changes == CHANGES_MAX => {
                    let message = format!("{why}: the repository keeps changing; try again later");
                    return Err(Error::new(ErrorKind::Io, message));
                }
                Err(Ended::Changed(_)) => changes += 1,
            }
        }
    }

    /// Pulls the newest revision.
    fn revision(&self, parallel: usize) -> Result<Record, Ended> {
        let Revision { commit, files: there } = self.hub.revision()?;
        let index = choose::needs_index(&there, self.selection);
        let index = index.then(|| self.hub.small_file(&commit, choose::INDEX)).transpose()?;
        let choice = choose::choose(self.repo, &there, self.selection, index.as_deref())?;
        if let Some(note) = choice.note {
            out::note(note);
        }
        let stop = AtomicBool::new(false);
        let files = in_parallel(&choice.files, parallel, &stop, |file| {
            let about = self.hub.about(&commit, file, &stop)?;
            Ok(Remote { name: file.clone(), about })
        })?;
        let blobs = blobs(self.repo, &files)?;
        // What is here already, by its name in this revision, needs no blob.
        let is_here = |file: &&Remote| {
            let meta = std::fs::symlink_metadata(self.folder.link(&commit, &file.name));
            meta.is_ok_and(|meta| meta.is_file() && meta.len() == file.about.bytes)
        };
        let here: Vec<&str> = files.iter().filter(is_here).map(|file| file.about.etag.as_str()).collect();
        let missing: Vec<&Remote> =
            blobs.into_values().filter(|b| !here.contains(&b.about.etag.as_str())).collect();

        self.make_room(&missing)?;
        let before = Record::find(&self.cache, self.name).unwrap_or_else(|| Record::new(self.name));
        let mut record = Record { is_damaged: false, ..before };
        let old = record.named(&self.folder);
        record.pulling = files.iter().map(|file| (file.about.etag.clone(), file.about.bytes)).collect();
        record.write(&self.cache)?;
        self.fetch(&commit, &missing, parallel, &stop)?;
        for file in files.iter().filter(|file| !is_here(file)) {
            self.folder.place(&commit, &file.name, &file.about.etag)?;
        }
        let Some(whole) = self.placed(&commit, &files) else {
            let message =
                format!("{}: two of its files have names that are one on this file system", self.repo);
            return Err(Error::unsupported(message).into());
        };
        record.path = Some(entry(&whole));
        record.files = whole;
        record.blobs = files.iter().map(|file| file.about.etag.clone()).collect();
        record.pulling.clear();
        self.folder.refer(&commit)?;
        record.write(&self.cache)?;
        self.drop_old(&record, &old);
        Ok(record)
    }

    /// Makes the folder, and sees whether the drive has room for what is to come.
    fn make_room(&self, missing: &[&Remote]) -> Result<(), Error> {
        let bytes =
            |file: &&Remote| file.about.bytes.saturating_sub(self.folder.arrived_bytes(&file.about.etag));
        let to_come = missing.iter().map(bytes).fold(0, u64::saturating_add);
        let folder = self.folder.blobs();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(folder.display(), e))?;
        check_free_space(&folder, to_come).map_err(|e| e.context(self.repo))
    }

    /// Fetches the blobs that are not here, several at a time.
    fn fetch(
        &self,
        commit: &str,
        missing: &[&Remote],
        parallel: usize,
        stop: &AtomicBool,
    ) -> Result<(), Ended> {
        let (bar, folder) = (bytes_bar("pulling"), self.folder.blobs());
        bar.set_length(missing.iter().map(|file| file.about.bytes).fold(0, u64::saturating_add));
        let fetched = in_parallel(missing, parallel, stop, |file| {
            let blob = Blob { commit, file: &file.name, about: &file.about };
            transfer::fetch(&self.hub, &blob, &folder, &bar, stop)
        });
        bar.finish_and_clear();
        fetched.map(drop)
    }

    /// The files' paths, if each leads to its own content.
    fn placed(&self, commit: &str, files: &[Remote]) -> Option<Vec<PathBuf>> {
        let path = |file: &Remote| {
            let link = self.folder.link(commit, &file.name);
            folder::leads_to(&link, &file.about.etag, file.about.bytes).then_some(link)
        };
        files.iter().map(path).collect()
    }

    /// Removes what the older revision of this model had and no model has any more.
    fn drop_old(&self, record: &Record, old: &Files) {
        let Some(mut kept) = Record::named_by_others(&self.cache, self.repo, self.name) else { return };
        let own = record.named(&self.folder);
        kept.links.extend(own.links);
        kept.blobs.extend(own.blobs);
        if let Err(e) = self.folder.remove(old, &kept) {
            out::note(format_args!("note: the older revision could not be removed: {e}"));
        }
    }
}

/// One file of each blob: equal files are fetched once.
fn blobs<'a>(repo: &str, files: &'a [Remote]) -> Result<BTreeMap<String, &'a Remote>, Error> {
    let mut blobs: BTreeMap<String, &Remote> = BTreeMap::new();
    for file in files {
        if let Some(other) = blobs.insert(file.about.etag.to_ascii_lowercase(), file)
            && other.about != file.about
        {
            let (one, two) = (&other.name, &file.name);
            let message = format!("{repo}: {one} and {two} have one checksum, but are not the same");
            return Err(Error::corrupt(message));
        }
    }
    Ok(blobs)
}

/// What to open: the first GGUF file, or the directory of a safetensors model.
fn entry(files: &[PathBuf]) -> PathBuf {
    let gguf = files.iter().find(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")));
    let config = || files.iter().find(|f| f.file_name().is_some_and(|name| name == "config.json"));
    gguf.cloned().or_else(|| Some(config()?.parent()?.to_path_buf())).unwrap_or_default()
}

/// Works on all items, several at a time; results are in the items' order. The first error ends the others too.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    parallel: usize,
    stop: &AtomicBool,
    work: impl Fn(&T) -> Result<R, Ended> + Sync,
) -> Result<Vec<R>, Ended> {
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((i, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
        {
            let done = if stop.load(Ordering::Relaxed) { Err(stopped().into()) } else { work(item) };
            if done.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            all.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, done));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..parallel.min(items.len()) {
            // Where the system has no thread to spare, those that there are do all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
    let mut all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    all.sort_by_key(|(i, _)| *i);
    let was_stopped = |ended: &Ended| matches!(ended, Ended::Failed(e) if e.kind() == ErrorKind::Cancelled);
    let mut results = Vec::with_capacity(items.len());
    let mut first: Option<Ended> = None;
    for (_, done) in all {
        match done {
            Ok(result) => results.push(result),
            Err(ended) if first.as_ref().is_none_or(&was_stopped) => first = Some(ended),
            Err(_) => {}
        }
    }
    first.map_or(Ok(results), Err)
}
