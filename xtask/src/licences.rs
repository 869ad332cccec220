//! `cargo xtask licences`: what the tree of dependencies may be. Licences that a binary under MIT OR Apache-2.0 can ship,
//! packages from the registry alone, and none that makes building hard.

use std::path::Path;
use std::process::Command;

use files::{Error, Result};
use serde_json::Value;

/// Permissive licences, as SPDX names them. A new one is a decision: say why here.
const ALLOWED: [&str; 11] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that may have one more, and why.
const EXCEPTIONS: [(&str, &str, &str); 2] = [
    ("webpki-roots", "CDLA-Permissive-2.0", "for `pull`: a list of certificate authorities, which is data"),
    ("cbindgen", "MPL-2.0", "for `xtask header`: a tool that nobody ships"),
];

/// Packages that must not be in the tree, and why.
const BANNED: [(&str, &str); 3] = [
    ("openssl-sys", "a C library that users would have to install"),
    ("cmake", "cargo is the whole build"),
    ("bindgen", "needs libclang on every machine that builds"),
];

/// What is wrong with the tree of dependencies of the repository at `root`, a line each, for every platform.
///
/// # Errors
/// `Io` when cargo cannot be asked.
pub fn check(root: &Path) -> Result<Vec<String>> {
    check_metadata(&cargo(root, &["metadata", "--locked", "--format-version", "1"])?)
}

/// What cargo answers to `args` in `root`.
///
/// # Errors
/// `Io` when it cannot be asked, `InvalidRequest` with what it says when it fails.
pub(crate) fn cargo(root: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let what = || format!("cargo {}", args[0]);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(args).current_dir(root).output();
    let output = output.map_err(|e| Error::io(what(), e))?;
    if !output.status.success() {
        return Err(Error::invalid(format!("{}: {}", what(), String::from_utf8_lossy(&output.stderr))));
    }
    Ok(output.stdout)
}

/// The same for the output of `cargo metadata`.
///
/// # Errors
/// `Corrupt` when it is not the JSON that cargo documents.
pub fn check_metadata(json: &[u8]) -> Result<Vec<String>> {
    let bad = || Error::corrupt("cargo metadata: not the documented shape");
    let metadata: Value = serde_json::from_slice(json).map_err(|e| bad().with_source(e))?;
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().ok_or_else(bad)? {
        let name = package["name"].as_str().ok_or_else(bad)?;
        let version = package["version"].as_str().ok_or_else(bad)?;
        let mut say = |what: String| findings.push(format!("{name} {version}: {what}"));
        if let Err(why) = check_licence(name, package["license"].as_str()) {
            say(why);
        }
        // A path has no source.
        if let Some(source) = package["source"].as_str().filter(|source| !source.starts_with("registry+")) {
            say(format!("comes from {source}; releases from the registry stay where they are"));
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            say(format!("is banned: {why}"));
        }
        for dependency in package["dependencies"].as_array().ok_or_else(bad)? {
            if package["source"].is_null() && dependency["req"] == "*" && dependency["path"].is_null() {
                say(format!("any version of {} will do; name one", dependency["name"]));
            }
        }
    }
    Ok(findings)
}

fn check_licence(name: &str, licence: Option<&str>) -> std::result::Result<(), String> {
    let licence = licence.ok_or("has no licence that cargo knows")?;
    let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX)
        .map_err(|e| format!("its licence `{licence}` is none that SPDX knows: {e}"))?;
    let may = |term: &str| {
        ALLOWED.contains(&term)
            || EXCEPTIONS.iter().any(|(package, more, _)| *package == name && *more == term)
    };
    if expression.evaluate(|requirement| may(&requirement.to_string())) {
        return Ok(());
    }
    Err(format!("its licence `{licence}` is not allowed; xtask/src/licences.rs says which are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_licences_is_enough_and_all_of_several_are_needed() {
        for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert_eq!(check_licence("some", Some(fine)), Ok(()), "{fine}");
        }
        assert_eq!(check_licence("some", Some("Apache-2.0 WITH LLVM-exception")), Ok(()));
        assert_eq!(check_licence("webpki-roots", Some("CDLA-Permissive-2.0")), Ok(()));
        for not in [Some("GPL-3.0-only"), Some("MIT AND GPL-2.0-only"), Some("CDLA-Permissive-2.0"), None] {
            assert!(check_licence("some", not).is_err(), "{not:?}");
        }
    }

    #[test]
    fn sources_bans_and_open_versions_are_named() {
        let package = |name: &str, source: Value, req: &str| {
            serde_json::json!({"name": name, "version": "1.0.0", "license": "MIT", "source": source,
                "dependencies": [{"name": "other", "req": req}]})
        };
        let registry = "registry+somewhere";
        let packages = [
            package("fine", registry.into(), "*"),
            package("from-git", "git+somewhere".into(), "^1"),
            package("openssl-sys", registry.into(), "^1"),
            package("ours", Value::Null, "*"),
        ];
        let metadata = serde_json::json!({ "packages": packages }).to_string();
        let findings = check_metadata(metadata.as_bytes()).unwrap();
        let said = ["from-git 1.0.0: comes from", "openssl-sys 1.0.0: is banned", "ours 1.0.0: any version"];
        assert_eq!(findings.len(), 3, "{findings:?}");
        for (finding, said) in findings.iter().zip(said) {
            assert!(finding.starts_with(said), "{finding}");
        }
    }
}
