//! What is worth knowing in the next run, in the user's cache directory: how to read each drive, and which experts a
//! model had in memory. All of it is a hint: what is missing, damaged or cannot be written costs time and nothing else, so
//! nobody is told.

use std::fs;
use std::path::{Path, PathBuf};

use engine::drive::{DiskChoice, Engine, drive_key};
use engine::{Model, Trace};
use serde_json::{Map, Value, json};

use crate::bundled;

fn cache(name: &str) -> Option<PathBuf> {
    Some(bundled::cache_dir(|name| std::env::var_os(name)).ok()?.join(name))
}

/// How a probe chose to read the drive that holds `path`.
pub(crate) fn drive(path: &Path) -> Option<DiskChoice> {
    choice(drives(&cache("drives.json")?).get(&drive_key(path).ok()?)?)
}

/// Remembers it.
pub(crate) fn keep_drive(path: &Path, choice: &DiskChoice) {
    let (Some(file), Ok(key)) = (cache("drives.json"), drive_key(path)) else { return };
    let mut all = drives(&file);
    let engine = match choice.engine {
        Engine::Pread => "pread",
        Engine::Uring => "uring",
    };
    let value = json!({
        "engine": engine,
        "direct": choice.direct,
        "piece_bytes": choice.piece_bytes,
        "depth": choice.depth,
    });
    all.insert(key, value);
    write(&file, Value::Object(all).to_string().as_bytes());
}

fn drives(file: &Path) -> Map<String, Value> {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// A way to read, if what was written is one.
fn choice(value: &Value) -> Option<DiskChoice> {
    let engine = match value.get("engine")?.as_str()? {
        "pread" => Engine::Pread,
        "uring" => Engine::Uring,
        _ => return None,
    };
    let number = |name: &str, most: u64| value.get(name)?.as_u64().filter(|n| (1..=most).contains(n));
    Some(DiskChoice {
        engine,
        direct: value.get("direct")?.as_bool()?,
        piece_bytes: number("piece_bytes", 64 << 20)? as usize,
        depth: number("depth", 256)? as usize,
    })
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

/// Writes beside the place and renames into it: another process sees the old or the new.
fn write(file: &Path, bytes: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let writing = file.with_extension(format!("writing-{}", std::process::id()));
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&writing, bytes));
    if written.and_then(|()| fs::rename(&writing, file)).is_err() {
        let _ = fs::remove_file(&writing); // as good as it gets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_to_read_survives_and_nonsense_is_ignored() {
        let good = json!({"engine": "uring", "direct": true, "piece_bytes": 1 << 20, "depth": 32});
        let want = DiskChoice { engine: Engine::Uring, direct: true, piece_bytes: 1 << 20, depth: 32 };
        assert_eq!(choice(&good), Some(want));
        for (name, value) in [
            ("engine", json!("magic")),
            ("depth", json!(0)),
            ("depth", json!(1e9)),
            ("piece_bytes", json!(-1)),
            ("direct", json!("yes")),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert_eq!(choice(&bad), None, "{name}");
        }
        assert_eq!(choice(&Value::Null), None);
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
