//! What is worth knowing in the next run, in the user's cache directory: how to read each drive, and which experts a
//! model had in memory. All of it is a hint: what is missing, damaged or cannot be written costs time and nothing else, so
//! nobody is told.

use std::fs;
use std::path::{Path, PathBuf};

use api::drive;
use engine::drive::{DiskChoice, DriveRate, drive_key};
use engine::{Model, Trace};
use serde_json::{Map, Value, json};

use crate::{bundled, output};

fn cache(name: &str) -> Option<PathBuf> {
    Some(bundled::cache_dir(|name| std::env::var_os(name)).ok()?.join(name))
}

/// How a probe chose to read the drive that holds `path`; `None` also where what was measured since contradicts it.
pub(crate) fn drive(path: &Path) -> Option<DiskChoice> {
    let all = drives(&cache("drives.json")?);
    let entry = all.get(&drive_key(path).ok()?)?;
    if is_doubted(entry) { None } else { Some(drive::of_json(entry)?.choice) }
}

/// The same with its rate, for the drive of the cache directory.
pub(crate) fn cache_drive() -> Option<DriveRate> {
    let file = cache("drives.json")?;
    drive::of_json(drives(&file).get(&drive_key(file.parent()?).ok()?)?)
}

/// Remembers it.
pub(crate) fn keep_drive(path: &Path, found: &DriveRate) {
    let (Some(file), Ok(key)) = (cache("drives.json"), drive_key(path)) else { return };
    let mut all = drives(&file);
    let mut value = drive::to_json(found);
    // Probed again, for a doubt: a second one would not change it.
    value["confirmed"] = json!(all.get(&key).is_some_and(is_doubted));
    all.insert(key, value);
    write(&file, Value::Object(all).to_string().as_bytes());
}

/// Less than this says nothing about a drive, in bytes.
const JUDGED_BYTES: u64 = 256 << 20;

/// A drive that is so much slower than when it was probed was not what was probed. Few reads at a time and busy drives
/// explain less.
const CONTRADICTED: f64 = 1.0 / 3.0;

/// Compares what a run has read of a drive in `busy_s` seconds, while it was reading, with what a probe saw: where they
/// contradict each other, the next run probes again.
pub(crate) fn judge_drive(path: &Path, read_bytes: u64, busy_s: f64) {
    let (Some(file), Ok(key)) = (cache("drives.json"), drive_key(path)) else { return };
    let mut all = drives(&file);
    let Some(entry) = all.get_mut(&key).filter(|entry| contradicts(entry, read_bytes, busy_s)) else {
        return;
    };
    entry["doubted"] = json!(true);
    write(&file, Value::Object(all).to_string().as_bytes());
}

fn contradicts(entry: &Value, read_bytes: u64, busy_s: f64) -> bool {
    let settled = is_doubted(entry) || entry.get("confirmed").is_some_and(|confirmed| confirmed == true);
    let seen_bytes_per_s = read_bytes as f64 / busy_s.max(1e-9);
    let slow =
        drive::of_json(entry).is_some_and(|probed| seen_bytes_per_s < CONTRADICTED * probed.bytes_per_s);
    !settled && read_bytes >= JUDGED_BYTES && slow
}

fn is_doubted(entry: &Value) -> bool {
    entry.get("doubted").is_some_and(|doubted| doubted == true)
}

fn drives(file: &Path) -> Map<String, Value> {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Where drivers of GPUs keep what they compiled.
pub(crate) fn pipelines() -> Option<PathBuf> {
    cache("pipelines")
}

/// Reads what this model had in memory at the end of its last run, while nobody asks it anything.
pub(crate) fn warm(model: &Model) {
    if let Some(trace) = warm_file(model).and_then(|file| Trace::read(&file).ok()) {
        model.warm(&trace);
    }
}

/// Remembers what this model has in memory.
pub(crate) fn keep_warm(model: &Model) {
    let (Some(file), Some(set)) = (warm_file(model), model.warm_set()) else { return };
    if let Ok(bytes) = set.encode() {
        write(&file, &bytes);
    }
}

fn warm_file(model: &Model) -> Option<PathBuf> {
    cache(&format!("warm/{:016x}.trace", model.fingerprint()))
}

/// Replaces a file as a whole; if another process is at it, that one's will do.
fn write(file: &Path, bytes: &[u8]) {
    let Some(folder) = file.parent() else { return };
    if fs::create_dir_all(folder).is_ok() {
        let _ = output::replace(file, bytes); // as good as it gets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_to_read_survives_and_nonsense_is_ignored() {
        let good = json!({"engine": "uring", "direct": true, "piece_bytes": 1 << 20, "depth": 32, "bytes_per_s": 2e9});
        let choice = DiskChoice {
            engine: engine::drive::Engine::Uring,
            direct: true,
            piece_bytes: 1 << 20,
            depth: 32,
        };
        assert_eq!(drive::of_json(&good), Some(DriveRate { choice, bytes_per_s: 2e9 }));
        for (name, value) in [
            ("engine", json!("magic")),
            ("depth", json!(0)),
            ("depth", json!(1e9)),
            ("piece_bytes", json!(-1)),
            ("direct", json!("yes")),
            ("bytes_per_s", json!(0)),
            ("bytes_per_s", Value::Null),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert_eq!(drive::of_json(&bad), None, "{name}");
        }
        assert_eq!(drive::of_json(&Value::Null), None);
    }

    #[test]
    fn a_rate_that_is_contradicted_is_probed_again_and_then_believed() {
        let entry = |more: Value| {
            let mut entry = json!({
                "engine": "pread", "direct": false, "piece_bytes": 1 << 20, "depth": 8, "bytes_per_s": 6e9,
            });
            entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            entry
        };
        let read = 1 << 30;
        let at = |bytes_per_s: f64| read as f64 / bytes_per_s;
        assert!(contradicts(&entry(json!({})), read, at(1.3e9)), "it was the page cache that was probed");
        assert!(!contradicts(&entry(json!({})), read, at(2.5e9)));
        assert!(!contradicts(&entry(json!({})), 1 << 20, at(1.3e9)), "too little to tell");
        assert!(!contradicts(&entry(json!({"confirmed": true})), read, at(1.3e9)));
        let doubted = entry(json!({"doubted": true}));
        assert!(is_doubted(&doubted) && !contradicts(&doubted, read, at(1.3e9)), "said already");
    }

    #[test]
    fn files_are_replaced_whole_and_damaged_ones_are_empty() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/drives.json");
        write(&file, b"{\"a\": 1}");
        assert_eq!(drives(&file).len(), 1);
        write(&file, b"{\"a\": 1");
        assert_eq!(drives(&file).len(), 0);
        assert_eq!(fs::read_dir(dir.path().join("deep")).unwrap().count(), 1, "nothing is left behind");
        write(Path::new("/proc/nobody/may/write"), b"");
    }
}
