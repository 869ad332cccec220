//! The help, word for word: scripts and people depend on it.

use crate::common::{succeed, tidemill};

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    let commands: [&[&str]; 17] = [
        &[],
        &["chat"],
        &["run"],
        &["serve"],
        &["bench"],
        &["logits"],
        &["eval"],
        &["eval", "ppl"],
        &["eval", "tools"],
        &["doctor"],
        &["selftest"],
        &["synth"],
        &["inspect"],
        &["pull"],
        &["list"],
        &["rm"],
        &["completions"],
    ];
    for command in commands {
        let (out, err) = succeed(tidemill(command).arg("--help"));
        assert_eq!(err, "");
        assert!(!out.contains('\x1b'), "escape sequences without a terminal");
        let line: Vec<&str> = ["tidemill"].iter().chain(command).chain(&["--help"]).copied().collect();
        all += &format!("$ {}\n{}\n\n", line.join(" "), out.trim_end());
    }
    let all: Vec<&str> = all.lines().map(str::trim_end).collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = succeed(&mut tidemill(["completions", shell]));
        assert!(script.contains("tidemill") && script.contains("inspect"), "{shell}");
    }
}

#[test]
fn version_and_no_command() {
    let (out, _) = succeed(&mut tidemill(["--version"]));
    assert_eq!(out, concat!("tidemill ", env!("CARGO_PKG_VERSION"), "\n"));
    let output = tidemill([""; 0]).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("Commands:"));
}
