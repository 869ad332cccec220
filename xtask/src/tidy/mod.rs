//! The style laws of the house as a test: sizes, crate edges, forbidden calls, SAFETY lines, words.
//!
//! A law is worth having only if it is checked; a check is worth having only if its message says why.
//! A line may opt out of one law with a comment `// tidy: allow REASON` on it or above it; the laws that
//! permit that say so.

mod edges;
mod rust;
mod text;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use files::{Error, Result};

pub use edges::{Dependency, check_edges, parse_metadata};
pub use rust::check_rust;
pub use text::check_text;
pub use words::{check_comments, check_document, check_help};

/// A place where a law is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, relative to the repository's root, with `/` between its parts.
    pub path: String,
    /// The line, counted from 1; 0 when the finding is about the whole file.
    pub line: usize,
    /// What is wrong, what to do, and why the law exists.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Folders that hold no source of ours: build outputs, history, binary test data, snapshots, bundled models.
const SKIPPED_FOLDERS: [&str; 9] = [
    "target",
    ".git",
    "testdata",
    "models",
    "snapshots",
    "artifacts",
    "corpus",
    "node_modules",
    "__pycache__",
];

/// File endings (or whole names) that the laws of text apply to.
const TEXT_ENDINGS: [&str; 17] = [
    ".rs",
    ".wgsl",
    ".toml",
    ".md",
    ".py",
    ".sh",
    ".h",
    ".c",
    ".yml",
    ".yaml",
    ".ci/run",
    ".ci/aarch64",
    ".ci/targets",
    ".ci/workflows",
    ".github/rust",
    ".github/report",
    ".gitignore",
];

/// Checks the whole repository at `root`: every source file and every crate's dependencies.
///
/// # Errors
/// `Io` when a file cannot be read or cargo cannot be asked for the crates' dependencies.
pub fn check_repo(root: &Path) -> Result<Vec<Finding>> {
    let mut paths = Vec::new();
    walk(root, &mut paths)?;
    paths.sort();
    let mut findings = Vec::new();
    for path in paths {
        let name = relative_name(root, &path);
        if !TEXT_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&name, e))?;
        findings.extend(check_text(&name, &text));
        if name.ends_with(".rs") {
            findings.extend(check_rust(&name, &text));
            findings.extend(check_comments(&name, &text));
        }
        if name.ends_with(".md") {
            findings.extend(check_document(&name, &text));
        }
    }
    let help = std::fs::read_to_string(root.join(words::HELP)).map_err(|e| Error::io(words::HELP, e))?;
    findings.extend(check_help(words::HELP, &help));
    findings.extend(check_edges(&cargo_dependencies(root)?));
    findings.extend(check_one_test_command(root)?);
    Ok(findings)
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let io = |e| Error::io(folder.display(), e);
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let kind = entry.file_type().map_err(io)?;
        let name = entry.file_name();
        if kind.is_file() {
            paths.push(entry.path());
        } else if kind.is_dir() && !SKIPPED_FOLDERS.iter().any(|skipped| name == *skipped) {
            walk(&entry.path(), paths)?;
        }
    }
    Ok(())
}

fn relative_name(root: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

fn cargo_dependencies(root: &Path) -> Result<Vec<Dependency>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = std::process::Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .map_err(|e| Error::io("cargo metadata", e))?;
    if !output.status.success() {
        return Err(Error::invalid(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr))));
    }
    parse_metadata(&output.stdout)
}

/// The README promises one command for the tests; CI must run that one and no other.
fn check_one_test_command(root: &Path) -> Result<Vec<Finding>> {
    const COMMAND: &str = "cargo test --workspace";
    let mut findings = Vec::new();
    for name in ["README.md", ".ci/run"] {
        let text = std::fs::read_to_string(root.join(name)).map_err(|e| Error::io(name, e))?;
        if !text.lines().any(|line| line.trim().trim_start_matches("step test ") == COMMAND) {
            findings.push(Finding {
                path: name.into(),
                line: 0,
                message: format!(
                    "no line `{COMMAND}`: what the README tells a newcomer to run and what CI runs must be the \
                     same command, or one of them rots"
                ),
            });
        }
    }
    Ok(findings)
}
