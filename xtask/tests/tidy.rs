//! The style laws hold for the whole repository, so that `cargo test` finds a breach where it is made.

use std::path::Path;

#[test]
fn every_law_holds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let findings = xtask::tidy::check_repo(root).unwrap();
    let report: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{} findings\n{}", report.len(), report.join("\n"));
}
