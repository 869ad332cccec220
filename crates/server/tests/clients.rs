//! The official clients: the `openai` and `anthropic` Python packages, as their users have them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use server::Options;

use crate::support::{Running, options, start};

/// The packages, and what judges the OpenAPI document, in the releases that were the newest when this was last looked at.
const PACKAGES: [&str; 4] =
    ["openai==3.57.0", "anthropic==2.14.0", "openapi-spec-validator==0.9.0", "schemathesis==4.32.5"];

/// A Python with the packages, kept between runs; why there is none.
fn python() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let python = folder.join("bin/python");
    let ready = folder.join(PACKAGES.join("+"));
    if ready.exists() {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    std::fs::write(&ready, "").map_err(|e| e.to_string())?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.lines().last().unwrap_or_default()))
}

/// The Python with the packages; none, after the reason is printed, where they cannot be had.
pub(crate) fn python_for(what: &str) -> Option<&'static Path> {
    // Once for all tests, which run at the same time.
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PYTHON.get_or_init(python) {
        Ok(python) => Some(python),
        Err(why) => {
            assert!(std::env::var("CI").is_err(), "{what}: {why}");
            println!("SKIP {what}: {why}");
            None
        }
    }
}

fn check(server: &Running, what: &str, checks: usize) {
    let Some(python) = python_for(&format!("the official clients ({what})")) else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients.py");
    let mut command = Command::new(python);
    command.arg(script).arg(format!("http://{}", server.address)).arg(what);
    // A proxy of the machine is not for itself.
    command.env("NO_PROXY", "127.0.0.1");
    let output = command.output().expect("python runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), checks, "{out}{err}");
}

#[test]
fn openai_chat_and_completions() {
    check(&start(Options { keys: vec!["secret".into()], ..options() }, 2), "chat", 9);
}

#[test]
fn openai_responses() {
    check(&start(Options { keys: vec!["secret".into()], ..options() }, 2), "responses", 4);
}

#[test]
fn anthropic_messages() {
    check(&start(Options { keys: vec!["secret".into()], ..options() }, 2), "messages", 6);
}
