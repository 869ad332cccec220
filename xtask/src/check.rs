//! `cargo xtask check`: what a contributor runs after a small change. Formatting and style laws of everything, lints and
//! unit tests of the crates that were touched.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use files::{Error, Result};

use crate::steps::{Step, run_all};

/// Runs the check in the repository at `root`; says whether all of it passed. `base` is the commit that the change is
/// counted from.
///
/// # Errors
/// `Io` when git does not answer.
pub fn check(root: &Path, base: &str) -> Result<bool> {
    let touched = touched_crates(&changed_files(root, base)?);
    let mut steps = vec![Step::cargo("format", "fmt --all --check"), Step::cargo("style laws", "xtask tidy")];
    for package in &touched {
        let lint = format!("clippy -p {package} --all-targets -- -D warnings");
        steps.push(Step::cargo(&format!("lint {package}"), &lint));
    }
    for package in &touched {
        // Unit tests stand beside the code; those of `tests/` take longer and are `cargo test`'s.
        let kind = if *package == "tidemill" { "--bins" } else { "--lib" };
        steps.push(Step::cargo(&format!("test {package}"), &format!("test -q -p {package} {kind}")));
    }
    Ok(run_all(root, steps.into_iter().map(|step| (step.name().to_owned(), Ok(step))).collect()))
}

/// Files that differ from `base`, and those that git does not know yet.
fn changed_files(root: &Path, base: &str) -> Result<Vec<String>> {
    let mut files = git(root, &["diff", "--name-only", base])?;
    files.extend(git(root, &["ls-files", "--others", "--exclude-standard"])?);
    Ok(files)
}

fn git(root: &Path, args: &[&str]) -> Result<Vec<String>> {
    let output =
        Command::new("git").args(args).current_dir(root).output().map_err(|e| Error::io("git", e))?;
    if !output.status.success() {
        return Err(Error::invalid(format!(
            "git {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// The packages that files belong to.
fn touched_crates(files: &[String]) -> BTreeSet<&'static str> {
    const PACKAGES: [(&str, &str); 6] = [
        ("crates/files/", "tidemill-files"),
        ("crates/store/", "tidemill-store"),
        ("crates/kernels/", "tidemill-kernels"),
        ("crates/engine/", "tidemill-engine"),
        ("crates/cli/", "tidemill"),
        ("xtask/", "xtask"),
    ];
    let package =
        |file: &String| PACKAGES.iter().find(|(folder, _)| file.starts_with(folder)).map(|(_, name)| *name);
    files.iter().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_package_of_its_folder_and_documents_to_none() {
        let files = ["crates/cli/src/run.rs", "README.md", "xtask/src/main.rs", "crates/cli/Cargo.toml"];
        let touched = touched_crates(&files.map(str::to_owned));
        assert_eq!(touched.into_iter().collect::<Vec<_>>(), ["tidemill", "xtask"]);
    }
}
