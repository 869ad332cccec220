//! The law of the arrows: which crate may see which.

use files::{Error, Result};
use serde_json::Value;

use super::Finding;

/// One entry of a crate's dependency tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependency {
    /// The workspace crate that depends.
    pub from: String,
    /// The package depended on.
    pub to: String,
    /// Whether it is a dev-dependency: seen by tests only.
    pub dev: bool,
}

/// The house: each crate, the crates of ours it may see, whether its tests may see every crate, and what it
/// may not know, which is why it exists.
const HOUSE: [(&str, &[&str], bool, &str); 9] = [
    ("tidemill-files", &[], false, "it says what is in a file, so that it can be fuzzed and forbids unsafe"),
    (
        "tidemill-store",
        &["tidemill-files"],
        false,
        "it knows bytes and keys, and may not know what they mean",
    ),
    (
        "tidemill-kernels",
        &["tidemill-files"],
        false,
        "it knows rows and formats, and may not know disk or models",
    ),
    (
        "tidemill-engine",
        &["tidemill-files", "tidemill-store", "tidemill-kernels"],
        true,
        "it is the only crate that knows models, and may not know its front ends",
    ),
    (
        "tidemill-api",
        &["tidemill-engine"],
        false,
        "it knows requests and replies, and may not know HTTP, files or async",
    ),
    (
        "tidemill-server",
        &["tidemill-api", "tidemill-engine"],
        true,
        "it is the only place with HTTP and async; what is below it stays plain calls",
    ),
    (
        "tidemill",
        &["tidemill-api", "tidemill-engine", "tidemill-server"],
        true,
        "a front end that reaches past the engine makes a second path",
    ),
    (
        "tidemill-capi",
        &["tidemill-api", "tidemill-engine"],
        true,
        "a front end that reaches past the engine makes a second path",
    ),
    ("xtask", &["tidemill-files", "tidemill-engine"], true, "tasks work from outside, as a user would"),
];

/// Packages that bring an async runtime or a server; only the server may hold them.
const ASYNC_PACKAGES: [&str; 10] = [
    "tokio",
    "hyper",
    "hyper-util",
    "axum",
    "tower-service",
    "async-std",
    "smol",
    "futures",
    "async-trait",
    "futures-util",
];

/// Reads the output of `cargo metadata --no-deps`.
///
/// # Errors
/// `Corrupt` when it is not the JSON that cargo documents.
pub fn parse_metadata(json: &[u8]) -> Result<Vec<Dependency>> {
    let bad = || Error::corrupt("cargo metadata: not the documented shape");
    let metadata: Value = serde_json::from_slice(json).map_err(|e| bad().with_source(e))?;
    let mut dependencies = Vec::new();
    for package in metadata["packages"].as_array().ok_or_else(bad)? {
        let from = package["name"].as_str().ok_or_else(bad)?;
        for dependency in package["dependencies"].as_array().ok_or_else(bad)? {
            dependencies.push(Dependency {
                from: from.into(),
                to: dependency["name"].as_str().ok_or_else(bad)?.into(),
                dev: dependency["kind"] == "dev",
            });
        }
    }
    Ok(dependencies)
}

/// Checks every edge between crates of the house.
pub fn check_edges(dependencies: &[Dependency]) -> Vec<Finding> {
    let is_ours = |name: &str| name == "xtask" || name == "tidemill" || name.starts_with("tidemill-");
    let mut findings = Vec::new();
    let mut report = |from: &str, message: String| {
        findings.push(Finding { path: format!("{from}/Cargo.toml"), line: 0, message });
    };
    for Dependency { from, to, dev } in dependencies {
        let Some((_, may_see, tests_see_all, why)) = HOUSE.iter().find(|(name, ..)| name == from) else {
            report(
                from,
                format!("crate `{from}` is not in the house; say in xtask's edges what it may not know"),
            );
            continue;
        };
        let excused = *dev && *tests_see_all;
        if is_ours(to) && !excused && !may_see.contains(&to.as_str()) {
            report(from, format!("`{from}` may not depend on `{to}`: {why}"));
        }
        if !excused && from != "tidemill-server" && ASYNC_PACKAGES.contains(&to.as_str()) {
            report(
                from,
                format!(
                    "`{from}` may not depend on `{to}`: there is no async below the server; work that waits has \
                     a thread, and everything above it stays a plain call"
                ),
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, dev: bool) -> Dependency {
        Dependency { from: from.into(), to: to.into(), dev }
    }

    #[test]
    fn arrows_that_point_down_pass() {
        let good = [
            edge("tidemill-store", "tidemill-files", false),
            edge("tidemill-engine", "tidemill-kernels", false),
            edge("tidemill-kernels", "half", false),
            edge("tidemill", "tidemill-engine", false),
            edge("tidemill-server", "tokio", false),
            edge("tidemill-server", "tidemill-api", false),
            edge("tidemill", "tidemill-server", false),
            edge("tidemill", "tidemill-files", true),
        ];
        assert_eq!(check_edges(&good), []);
    }

    #[test]
    fn arrows_that_point_up_or_sideways_fail_with_the_reason() {
        let bad = [
            edge("tidemill-store", "tidemill-kernels", false),
            edge("tidemill-kernels", "tidemill-store", true),
            edge("tidemill-files", "tidemill-store", false),
            edge("tidemill-engine", "tidemill", false),
            edge("tidemill", "tidemill-store", false),
            edge("tidemill-engine", "tokio", false),
            edge("tidemill", "tokio", false),
            edge("tidemill-api", "tidemill-server", false),
            edge("tidemill-extra", "half", false),
        ];
        for edge in bad {
            assert_eq!(check_edges(std::slice::from_ref(&edge)).len(), 1, "{edge:?}");
        }
    }

    #[test]
    fn metadata_is_read_and_nonsense_is_an_error() {
        let json = br#"{"packages":[{"name":"a","dependencies":[{"name":"b","kind":null},{"name":"c","kind":"dev"}]}]}"#;
        let read = parse_metadata(json).unwrap();
        assert_eq!(read, [edge("a", "b", false), edge("a", "c", true)]);
        assert!(parse_metadata(b"{}").is_err());
        assert!(parse_metadata(b"[").is_err());
    }
}
