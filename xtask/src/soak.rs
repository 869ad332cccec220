//! `cargo xtask soak`: the long form of the tests, for a night or before a release. Parts that this machine cannot run
//! are skipped with the reason.

use std::path::Path;
use std::process::Command;

use files::{Error, Result};

use crate::steps::{Step, run_all};

/// The parts, in the order in which they run, with what they do.
pub const PARTS: [(&str, &str); 8] = [
    (
        "cases",
        "all tests, with forty times the cases of every property test, and those that are too long for each day",
    ),
    ("arm", "the kernels' tests on every emulated 64-bit Arm processor"),
    ("targets", "type checks for macOS, iOS and Windows"),
    ("fuzz", "random input to the parsers of files, replies, templates, tokenizers and traces"),
    ("address", "the tests of files and store under AddressSanitizer"),
    ("thread", "the thread pool and the store under ThreadSanitizer"),
    (
        "miri",
        "the thread pool and the engine's slots under Miri, an interpreter that finds undefined behaviour",
    ),
    (
        "held",
        "a thousand answers for each format of calls, each held to a schema; what hostile schemas cost; exact calls",
    ),
];

/// The targets of `fuzz/`, and a folder of inputs to begin with.
const FUZZ_TARGETS: [(&str, &str); 6] = [
    ("gguf", "testdata/goldens/llama-dense/gguf-Q4_0"),
    ("safetensors", "testdata/goldens/llama-dense/mlx-4bit"),
    ("reply", "fuzz/seeds/reply"),
    ("template", "testdata/text/templates"),
    ("tokenizer", "testdata/goldens/llama-dense/bf16"),
    ("trace", "testdata/traces"),
];

/// Runs the named parts, or all, in the repository at `root`; says whether what ran has passed. Each target of `fuzz`
/// gets `fuzz_seconds`.
///
/// # Errors
/// `InvalidRequest` for a part that does not exist.
pub fn soak(root: &Path, parts: &[&str], fuzz_seconds: u64) -> Result<bool> {
    if let Some(unknown) = parts.iter().find(|part| !PARTS.iter().any(|(name, _)| name == *part)) {
        let known: Vec<_> = PARTS.iter().map(|(name, _)| *name).collect();
        return Err(Error::invalid(format!("no part `{unknown}`; there are: {}", known.join(", "))));
    }
    let wanted = |name: &str| parts.is_empty() || parts.contains(&name);
    let mut steps = Vec::new();
    for (name, _) in PARTS.iter().filter(|(name, _)| wanted(name)) {
        steps.extend(match *name {
            "cases" => cases(),
            "arm" => vec![ready("arm", Step::new("arm", ".ci/aarch64", ["all"]))],
            "targets" => vec![ready("targets", Step::new("targets", ".ci/targets", ["all"]))],
            "fuzz" => {
                FUZZ_TARGETS.iter().map(|(target, seeds)| fuzz(root, target, seeds, fuzz_seconds)).collect()
            }
            "address" => vec![address()],
            "thread" => vec![ready("thread", Step::new("thread", ".ci/tsan", [""; 0]))],
            "miri" => miri(),
            _ => held(),
        });
    }
    Ok(run_all(root, steps))
}

type Ready = (String, std::result::Result<Step, String>);

fn ready(name: &str, step: Step) -> Ready {
    (name.into(), Ok(step))
}

fn cases() -> Vec<Ready> {
    // Forty times proptest's own default, which the tests' counts are made from.
    let test = |name: &str, args: &str| {
        ready(name, Step::cargo(name, args).env("PROPTEST_CASES", "10240").env("CI", "true"))
    };
    vec![
        // With the checks of arithmetic that the daily build of the kernels leaves out.
        test("cases", "test --workspace --config profile.dev.package.tidemill-kernels.debug-assertions=true"),
        test("cases, long", "test --workspace -- --ignored"),
    ]
}

fn nightly(name: &str, args: &str) -> Step {
    Step::new(name, "cargo", ["+nightly"].into_iter().chain(args.split_whitespace()))
}

fn answers(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// One target of `fuzz/`, built with the compiler's own coverage and no other tool.
fn fuzz(root: &Path, target: &str, seeds: &str, seconds: u64) -> Ready {
    let name = format!("fuzz {target}");
    if !answers("cargo", &["+nightly", "--version"]) {
        return (name, Err("no nightly toolchain: rustup toolchain install nightly".into()));
    }
    let corpus = format!("fuzz/corpus/{target}");
    if let Err(e) = std::fs::create_dir_all(root.join(&corpus)) {
        return (name, Err(format!("{corpus}: {e}")));
    }
    let flags = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                 -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1 \
                 -Zsanitizer=address";
    let args = format!(
        "run --manifest-path fuzz/Cargo.toml --target x86_64-unknown-linux-gnu --release --bin {target} -- \
         -max_total_time={seconds} -timeout=10 -rss_limit_mb=3000 -max_len=65536 -artifact_prefix=fuzz/corpus/ {corpus} {seeds}"
    );
    let step = nightly(&name, &args).env("RUSTFLAGS", flags).env("ASAN_OPTIONS", "detect_leaks=0");
    ready(&name.clone(), step)
}

fn address() -> Ready {
    let name = "address";
    if !answers("cargo", &["+nightly", "--version"]) {
        return (name.into(), Err("no nightly toolchain: rustup toolchain install nightly".into()));
    }
    let args =
        "test -p tidemill-files -p tidemill-store --target x86_64-unknown-linux-gnu --target-dir target/asan";
    ready(name, nightly(name, args).env("RUSTFLAGS", "-Zsanitizer=address"))
}

/// Needs Python, and the packages' registry.
fn held() -> Vec<Ready> {
    let name = "held";
    if !answers("python3", &["-m", "venv", "--help"]) {
        return vec![(name.into(), Err("no python3 with venv".into()))];
    }
    let python = "target/held/bin/python";
    let step = |what: &str, program: &str, args: &str| {
        let name = format!("{name}, {what}");
        ready(&name, Step::new(&name, program, args.split_whitespace()))
    };
    let mut steps = vec![
        step("program", "cargo", "build --release -p tidemill --target-dir target"),
        step("python", "python3", "-m venv --clear target/held"),
        step("packages", python, "-m pip install --quiet jsonschema==4.26.0"),
        // The questions alone: it needs much to judge models with.
        step("questions", python, "-m pip install --quiet --no-deps bfcl-eval==2026.3.23"),
    ];
    steps.extend(["calls", "cost", "accuracy"].map(|mode| {
        let args = format!("crates/server/tests/held.py {mode} --tidemill target/release/tidemill");
        step(mode, python, &args)
    }));
    steps
}

fn miri() -> Vec<Ready> {
    if !answers("cargo", &["+nightly", "miri", "--version"]) {
        let why = "the nightly toolchain has no Miri: rustup +nightly component add miri rust-src";
        return vec![("miri".into(), Err(why.into()))];
    }
    // Pages from libc and not from system calls of our own, which Miri does not know.
    let flags = "-Zmiri-disable-isolation -Zmiri-ignore-leaks";
    let test = |name: &str, args: &str| {
        let step = nightly(name, args).env("MIRIFLAGS", flags).env("RUSTFLAGS", "--cfg rustix_use_libc");
        ready(name, step)
    };
    vec![
        test("miri pool", "miri test -p tidemill-kernels --no-default-features --lib pool"),
        test("miri slots", "miri test -p tidemill-engine --lib bridge"),
    ]
}
