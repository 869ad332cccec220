//! `tidemill pull`, `list` and `rm`: models from the Hugging Face hub, in the cache directory.
//!
//! Files lie as the hub's own programs keep them (`hub/models--ORG--NAME`); a record in `models/` says which of them make
//! up what was pulled. Broken downloads go on where they stopped, and what has arrived is checked against its SHA-256.

mod library;

use std::collections::VecDeque;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use engine::synth::check_free_space;
use engine::{Error, ErrorKind};
use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use indicatif::ProgressBar;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::failure::Result;
use crate::load::bytes_bar;
use crate::{bundled, out};
use library::Record;

pub(crate) use library::{ListArgs, RmArgs, find, list, rm};

const EXAMPLES: &str = "\
Examples:
  tidemill pull org/model-GGUF:Q4_K_M      the GGUF files of one quantisation
  tidemill pull org/model-4bit             a safetensors model
  tidemill chat org/model-GGUF:Q4_K_M

HF_ENDPOINT and HF_HOME (for a token) are respected. A download that was broken off is taken up by the same command.";

/// Arguments of `pull`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The repository, and for GGUF which quantisation of it: org/name or org/name:Q4_K_M
    #[arg(value_name = "REPO")]
    repo: String,
    /// Files to download at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A connection that breaks is taken up this often, for each file.
const RETRIES: usize = 10;

/// Downloads, checks, and writes the record.
pub(crate) fn main(args: &Args) -> Result<()> {
    let (name, quantisation) = parse(&args.repo)?;
    let cache = cache_dir()?;
    let hub = cache.join("hub");
    std::fs::create_dir_all(&hub).map_err(|e| Error::io(hub.display(), e))?;
    let api = ApiBuilder::from_env().with_cache_dir(hub.clone()).with_retries(RETRIES).with_progress(false);
    let api = api.build().map_err(|e| failed(name, &e))?;
    let repo = api.model(name.to_owned());
    let info = repo.info().map_err(|e| failed(name, &e))?;
    let there: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = pick(name, &there, quantisation)?;
    let mut files = Vec::new();
    for file in wanted {
        let seen = api.metadata(&repo.url(&file)).map_err(|e| failed(&format!("{name}: {file}"), &e))?;
        files.push(Remote { name: file, bytes: seen.size() as u64, etag: seen.etag().to_owned() });
    }
    let folder = hub.join(format!("models--{}", name.replace('/', "--"))).join("blobs");
    let missing = files.iter().map(|file| file.missing_bytes(&folder)).sum();
    check_free_space(&hub, missing)?;
    let bar = bytes_bar("pulling");
    bar.set_length(files.iter().map(|file| file.bytes).sum());
    let paths = download(&repo, &files, usize::from(args.parallel), &bar);
    bar.finish_and_clear();
    let paths = paths?;
    let record = Record { name: args.repo.clone(), path: entry(&paths), files: paths };
    record.write(&cache)?;
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    if args.json {
        let path = record.path.display().to_string();
        return out::json(&json!({"model": args.repo, "path": path, "files": files.len(), "bytes": bytes}));
    }
    out::print(&format!("{}: {}, {} files\n", args.repo, out::bytes(bytes), files.len()), false)
}

fn cache_dir() -> Result<PathBuf> {
    Ok(bundled::cache_dir(|name| std::env::var_os(name)).map_err(|e| Error::io("cache directory", e))?)
}

/// A file of the repository.
struct Remote {
    name: String,
    bytes: u64,
    etag: String,
}

impl Remote {
    /// What is still to come, given what an earlier run has left.
    fn missing_bytes(&self, blobs: &Path) -> u64 {
        let have = |name: String| std::fs::metadata(blobs.join(name)).map_or(0, |meta| meta.len());
        let here = have(self.etag.clone()).max(have(format!("{}.part", self.etag)));
        self.bytes.saturating_sub(here)
    }
}

/// `org/name` and what follows a colon.
fn parse(repo: &str) -> Result<(&str, Option<&str>)> {
    let (name, quantisation) = match repo.split_once(':') {
        Some((name, quantisation)) => (name, Some(quantisation)),
        None => (repo, None),
    };
    let plain = |part: &str| {
        let chars = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(chars) && !part.starts_with('.')
    };
    let parts: Vec<&str> = name.split('/').chain(quantisation).collect();
    if name.split('/').count() != 2 || !parts.iter().all(|part| plain(part)) {
        let message = format!("{repo:?} is no repository; write org/name or org/name:Q4_K_M");
        return Err(Error::invalid(message).into());
    }
    Ok((name, quantisation))
}

/// Files of a safetensors model besides its weights.
const EXTRAS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The files to pull: one quantisation's GGUF files, or all that a safetensors model consists of.
fn pick(name: &str, there: &[String], quantisation: Option<&str>) -> Result<Vec<String>> {
    let ends = |file: &&String, what: &str| file.to_ascii_lowercase().ends_with(what);
    // Vision towers come as files of their own; text models do without.
    let ggufs = there.iter().filter(|f| ends(f, ".gguf") && !f.to_ascii_lowercase().contains("mmproj"));
    let ggufs: Vec<_> = ggufs.cloned().collect();
    let safe = |file: &&String| safe_name(file);
    if let Some(wanted) = quantisation {
        let mut found: Vec<_> = ggufs.iter().filter(|f| has_word(f, wanted)).filter(safe).cloned().collect();
        found.sort();
        if found.is_empty() {
            let known = if ggufs.is_empty() { "no GGUF files".into() } else { ggufs.join(", ") };
            return Err(Error::not_found(format!("{name} has no {wanted}; it has {known}")).into());
        }
        return Ok(found);
    }
    let at_top = |file: &&String| !file.contains('/');
    let belongs = |file: &&String| {
        ends(file, ".safetensors") || ends(file, ".safetensors.index.json") || EXTRAS.contains(&file.as_str())
    };
    let found: Vec<_> = there.iter().filter(at_top).filter(safe).filter(belongs).cloned().collect();
    if found.iter().any(|file| file.ends_with(".safetensors")) {
        return Ok(found);
    }
    match ggufs.as_slice() {
        [] => Err(Error::unsupported(format!("{name} has neither GGUF nor safetensors files")).into()),
        [one] if safe_name(one) => Ok(vec![one.clone()]),
        several => {
            let names = several.join(", ");
            Err(Error::invalid(format!("{name} has several: say which, as {name}:Q4_K_M; {names}")).into())
        }
    }
}

/// Whether a server's file name stays where it is put.
fn safe_name(file: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    file.split('/').all(plain)
}

/// Whether `word` stands in a file's name by itself: Q4_K is not in Q4_K_M.
fn has_word(file: &str, word: &str) -> bool {
    let (file, word) = (file.to_ascii_lowercase(), word.to_ascii_lowercase());
    let border = |c: Option<char>| c.is_none_or(|c| "-./".contains(c));
    file.match_indices(&word).any(|(at, _)| {
        border(file[..at].chars().next_back()) && border(file[at + word.len()..].chars().next())
    })
}

/// What to open: the first GGUF file, or the directory of a safetensors model.
fn entry(files: &[PathBuf]) -> PathBuf {
    let gguf = files.iter().find(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")));
    let first = files.first().and_then(|f| f.parent());
    gguf.cloned().or_else(|| first.map(Path::to_path_buf)).unwrap_or_default()
}

/// Downloads all files, several at a time; the paths are in the order of the files.
fn download(repo: &ApiRepo, files: &[Remote], parallel: usize, bar: &ProgressBar) -> Result<Vec<PathBuf>> {
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..files.len()).collect());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || {
        let mut done = Vec::new();
        while let Some(i) = next() {
            let fetched = fetch(repo, &files[i], bar);
            if fetched.is_err() {
                queue.lock().unwrap_or_else(PoisonError::into_inner).clear(); // the others end after their file
            }
            done.push((i, fetched));
        }
        done
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel.min(files.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    all.sort_by_key(|(i, _)| *i);
    let paths = all.into_iter().map(|(_, path)| path).collect::<Result<Vec<_>, Error>>()?;
    if paths.len() < files.len() {
        return Err(Error::new(ErrorKind::Io, "a download ended without a result").into());
    }
    Ok(paths)
}

/// One file, checked.
fn fetch(repo: &ApiRepo, file: &Remote, bar: &ProgressBar) -> Result<PathBuf, Error> {
    let progress = Counted { bar: bar.clone(), done: 0 };
    let path = repo.download_with_progress(&file.name, progress).map_err(|e| failed(&file.name, &e))?;
    let damaged = |what: String| {
        // Both names go, so that the next run downloads it again.
        let blob = std::fs::canonicalize(&path);
        let _ = blob.and_then(std::fs::remove_file);
        let _ = std::fs::remove_file(&path);
        Error::corrupt(format!("{}: {what}; pull again", file.name))
    };
    let bytes = std::fs::metadata(&path).map_err(|e| Error::io(path.display(), e))?.len();
    if bytes != file.bytes {
        return Err(damaged(format!("{bytes} bytes arrived, it has {}", file.bytes)));
    }
    // Large files are named by their SHA-256, small ones by a checksum that also covers a header.
    if file.etag.len() == 64 && file.etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        let found = sha256(&path).map_err(|e| Error::io(path.display(), e))?;
        if !found.eq_ignore_ascii_case(&file.etag) {
            return Err(damaged(format!("its SHA-256 is {found}, not {}", file.etag)));
        }
    }
    Ok(path)
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash, mut buffer) = (std::fs::File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Shows one file's bytes on the bar of all; counts anew when a broken download goes on.
struct Counted {
    bar: ProgressBar,
    done: u64,
}

impl Progress for Counted {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.bar.set_position(self.bar.position().saturating_sub(self.done));
        self.done = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.bar.inc(bytes as u64);
    }

    fn finish(&mut self) {}
}

/// What went wrong, by kind.
fn failed(what: &str, error: &ApiError) -> Error {
    let text = error.to_string();
    let refused = |codes: [&str; 2]| codes.iter().any(|code| text.contains(&format!("status: {code}")));
    if refused(["404", "410"]) {
        return Error::not_found(format!("{what}: the hub has no such model or file"));
    }
    if refused(["401", "403"]) {
        return Error::not_found(format!(
            "{what}: the hub has no such model, or you may not see it (no token)"
        ));
    }
    if is_full(error) {
        let message = format!("{what}: the drive is full; make room and run the same command to go on");
        return Error::new(ErrorKind::Io, message);
    }
    let mut message = format!("{what}: {}", text.replace('\n', " "));
    if text.contains("request error") {
        let hub = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into());
        message +=
            &format!("; this was {hub}: look whether it can be reached, or set HF_ENDPOINT to another hub");
    }
    Error::new(ErrorKind::Io, message)
}

/// Whether the drive had no room for what came.
fn is_full(error: &ApiError) -> bool {
    match error {
        ApiError::TooManyRetries(last) => is_full(last),
        ApiError::IoError(e) => matches!(e.kind(), IoErrorKind::StorageFull | IoErrorKind::QuotaExceeded),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn picked(list: &[&str], quantisation: Option<&str>) -> Option<Vec<String>> {
        pick("org/name", &names(list), quantisation).ok()
    }

    #[test]
    fn repositories_are_two_names_and_no_path() {
        assert_eq!(parse("org/name-GGUF:Q4_K_M").ok(), Some(("org/name-GGUF", Some("Q4_K_M"))));
        assert_eq!(parse("org/name").ok(), Some(("org/name", None)));
        for bad in ["name", "a/b/c", "../b", "a/..", "/b", "a/", "a/b:", "a/b:c/d", "a b/c", "a/b:..", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_quantisation_with_all_its_parts_and_nothing_else() {
        let there = [
            "m-Q4_K_M-00001-of-00002.gguf",
            "m-Q4_K_M-00002-of-00002.gguf",
            "m-Q4_K_S.gguf",
            "mmproj-Q4_K_M.gguf",
        ];
        assert_eq!(picked(&there, Some("q4_k_m")).map(|f| f.len()), Some(2));
        assert_eq!(picked(&there, Some("Q4_K")), None);
        assert_eq!(picked(&there, None), None, "which one?");
        assert_eq!(picked(&["Q8_0/m.gguf", "Q4_0/m.gguf"], Some("Q8_0")), Some(names(&["Q8_0/m.gguf"])));
        assert_eq!(picked(&["m.gguf", "mmproj-f16.gguf"], None), Some(names(&["m.gguf"])));
        assert_eq!(picked(&["../m-Q4_0.gguf"], Some("Q4_0")), None, "a name that climbs out");
    }

    #[test]
    fn a_full_drive_is_said_to_be_full() {
        let full = ApiError::IoError(IoErrorKind::StorageFull.into());
        let error = failed("m.gguf", &ApiError::TooManyRetries(Box::new(full)));
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.message().starts_with("m.gguf: the drive is full; make room"), "{error}");
        let broken = failed("m.gguf", &ApiError::IoError(IoErrorKind::ConnectionReset.into()));
        assert!(broken.message().contains("connection reset"), "{broken}");
    }

    #[test]
    fn a_safetensors_model_without_what_is_beside_it() {
        let there =
            ["README.md", "config.json", "model.safetensors", "onnx/model.safetensors", "tokenizer.json"];
        let want = names(&["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(picked(&there, None), Some(want));
        assert_eq!(picked(&["README.md"], None), None);
    }
}
