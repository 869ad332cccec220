//! `pull`, `list` and `rm` against a hub of our own, on this machine, that drops, redirects, refuses, changes and lies.

mod hub;
mod library;
mod names;
mod redirects;
mod resume;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::tidemill;
use hub::Hub;

/// A cache of a test's own.
struct Cache {
    dir: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        Self { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory") }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where Tidemill keeps its files.
    fn own(&self) -> PathBuf {
        self.path().join("tidemill")
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.own().join("hub/models--org--mill/blobs").join(name)
    }

    /// Puts a file where an earlier run would have left it.
    fn put_blob(&self, name: &str, content: &[u8]) {
        let path = self.blob(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(path, content).expect("writable");
    }

    /// The program with a hub and this cache.
    fn at(&self, hub: &str, args: &[&str]) -> Command {
        let mut command = tidemill(args);
        command.env("HF_ENDPOINT", hub).env("HF_HOME", self.path().join("hf"));
        command.env("XDG_CACHE_HOME", self.path());
        for variable in [
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_OFFLINE",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// `pull` of `org/mill:Q4_0`.
    fn pull(&self, hub: &Hub) -> Command {
        self.at(&hub.address(), &["pull", "org/mill:Q4_0", "--json"])
    }

    /// `pull` that must succeed; the content of what it says to open.
    fn pulled(&self, hub: &Hub) -> Vec<u8> {
        let object = crate::common::json(&mut self.pull(hub));
        std::fs::read(object["path"].as_str().expect("a path")).expect("readable")
    }

    /// All files and links below the cache, relative to it.
    fn files(&self) -> Vec<String> {
        fn below(folder: &Path, all: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().expect("a type").is_dir() {
                    below(&entry.path(), all);
                } else {
                    all.push(entry.path());
                }
            }
        }
        let mut all = Vec::new();
        below(&self.own(), &mut all);
        let shown = |path: &PathBuf| path.strip_prefix(self.own()).expect("below").display().to_string();
        let mut all: Vec<String> = all.iter().map(shown).collect();
        all.sort();
        all
    }
}
