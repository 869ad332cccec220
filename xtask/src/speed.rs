//! Speed of llama.cpp's `llama-bench` and of our `bench` on the same file, in one run.
//!
//! # The protocol
//! * For each number of threads: the machine's memory is read and 4-bit weights are multiplied (`tidemill doctor`), then
//!   come the rounds, then the machine is measured again. What changed between says how quiet it was.
//! * A round measures each case once with their program and once with ours, one after the other: A B, A B, … What the
//!   machine does beside them then hits both.
//! * A case is the reading of a prompt of `n` tokens into an empty context, or the generation of tokens one by one after
//!   `d` tokens of context. Each is a process of its own, in which both warm up before they measure.
//! * The figure of a case is the median of its rounds, in tokens per second; a ratio is ours over theirs.
//!
//! Both compute on the CPU, both with a cache of keys and values in half precision, theirs otherwise with its defaults.
//! Their weights come from the page cache; ours from the expert slots, which a first prompt fills: a model whose
//! experts do not fit measures the drive as well.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use files::{Error, Result};
use serde_json::{Value, json};

use crate::compare::{finite, json_line, output};

/// Tokens that our program reads before it measures: nearly every expert is picked once in so many.
const WARM_UP_PROMPT: usize = 512;

/// One comparison of speed: who runs on what.
#[derive(Clone, Debug)]
pub struct SpeedRun<'a> {
    /// The peer's built `llama-bench`.
    pub llama_bench: &'a Path,
    /// Our built program.
    pub tidemill: &'a Path,
    /// The GGUF file that both read.
    pub model: &'a Path,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Lengths of prompts.
    pub prompt_tokens: Vec<usize>,
    /// Lengths of the context before tokens are generated.
    pub depths: Vec<usize>,
    /// Tokens to generate.
    pub gen_tokens: usize,
    /// Rounds, each of which measures everything once.
    pub rounds: usize,
    /// Further arguments for our program, `--memory 12GiB` for one.
    pub extra: &'a [&'a str],
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// A prompt of so many tokens.
    Prefill(usize),
    /// Tokens after a context of so many.
    Decode(usize),
}

impl Case {
    /// What `llama-bench` calls it: tokens of the prompt, generated, and before either.
    fn theirs(self, gen_tokens: usize) -> [usize; 3] {
        match self {
            Case::Prefill(tokens) => [tokens, 0, 0],
            Case::Decode(depth) => [0, gen_tokens, depth],
        }
    }

    /// What our `bench` calls it: tokens of the prompt, and generated. It needs one of each.
    fn ours(self, gen_tokens: usize) -> [usize; 2] {
        match self {
            Case::Prefill(tokens) => [tokens, 1],
            Case::Decode(depth) => [depth.max(1), gen_tokens],
        }
    }

    fn name(self) -> String {
        match self {
            Case::Prefill(tokens) => format!("prefill {tokens}"),
            Case::Decode(depth) => format!("decode at {depth}"),
        }
    }
}

/// Figures of one case with one number of threads, in tokens per second, one of each program for each round.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Threads of both.
    pub threads: usize,
    /// What was timed.
    pub case: Case,
    /// The peer's.
    pub theirs: Vec<f64>,
    /// Ours.
    pub ours: Vec<f64>,
}

impl Row {
    /// Our median over theirs.
    pub fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.theirs)
    }
}

/// What the machine does with so many threads, before and after the rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// Threads that were measured.
    pub threads: usize,
    /// Reading of memory, in bytes/s.
    pub memory_bytes_per_s: Vec<f64>,
    /// Operations, two for a weight and row, that our own kernels make with 4-bit weights and many rows: no roof.
    pub products_per_s: Vec<f64>,
}

/// The result of [`speed`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeedResult {
    /// The processor and the model, in the peer's words.
    pub theirs: String,
    /// The instruction set, in ours.
    pub ours: String,
    /// Figures.
    pub rows: Vec<Row>,
    /// The machine, for each number of threads.
    pub machine: Vec<Machine>,
}

/// Runs both programs in turn. `report` hears of each figure.
///
/// # Errors
/// `InvalidRequest` for no rounds, tokens or threads; `Io` when a program cannot be run or fails; `Corrupt` when it
/// prints something else than what was asked for.
pub fn speed(run: &SpeedRun, report: &mut dyn FnMut(&str)) -> Result<SpeedResult> {
    let prefills = run.prompt_tokens.iter().map(|n| Case::Prefill(*n));
    let cases: Vec<Case> = prefills.chain(run.depths.iter().map(|n| Case::Decode(*n))).collect();
    if run.rounds == 0 || run.gen_tokens == 0 || run.prompt_tokens.contains(&0) || run.threads.contains(&0) {
        return Err(Error::invalid("rounds, tokens and threads must be at least 1"));
    }
    let mut result = SpeedResult::default();
    for &threads in &run.threads {
        let mut machine = Machine { threads, ..Machine::default() };
        measure_machine(run, &mut machine)?;
        let row = |case: &Case| Row { threads, case: *case, theirs: Vec::new(), ours: Vec::new() };
        let mut rows: Vec<Row> = cases.iter().map(row).collect();
        for round in 1..=run.rounds {
            for row in &mut rows {
                let (theirs, about) = their_speed(run, row)?;
                let (ours, device) = our_speed(run, row)?;
                let name = row.case.name();
                report(&format!(
                    "{threads} threads, {name}, round {round}: {theirs:.1} and {ours:.1} tokens/s"
                ));
                row.theirs.push(theirs);
                row.ours.push(ours);
                (result.theirs, result.ours) = (about, device);
            }
        }
        measure_machine(run, &mut machine)?;
        result.rows.extend(rows);
        result.machine.push(machine);
    }
    Ok(result)
}

fn their_speed(run: &SpeedRun, row: &Row) -> Result<(f64, String)> {
    let wanted = row.case.theirs(run.gen_tokens);
    let [prompt, generated, depth] = wanted.map(|n| n.to_string());
    let mut command = Command::new(run.llama_bench);
    command.arg("-m").arg(run.model).args(["-t", &row.threads.to_string(), "-ngl", "0"]);
    command.args(["-p", &prompt, "-n", &generated, "-d", &depth, "-r", "1", "-o", "json"]);
    parse_llama_bench(&output(command)?[0], row.threads, wanted)
}

fn our_speed(run: &SpeedRun, row: &Row) -> Result<(f64, String)> {
    let wanted = row.case.ours(run.gen_tokens);
    let [prompt, generated] = wanted.map(|n| n.to_string());
    let mut command = Command::new(run.tidemill);
    command.arg("bench").arg(run.model).args(["--json", "--device", "cpu"]);
    command.args(["--threads", &row.threads.to_string(), "--warm-up-prompt", &WARM_UP_PROMPT.to_string()]);
    command.args(["--prompt-tokens", &prompt, "--gen-tokens", &generated]).args(run.extra);
    parse_bench(&output(command)?[0], row.case, wanted)
}

fn measure_machine(run: &SpeedRun, machine: &mut Machine) -> Result<()> {
    let mut command = Command::new(run.tidemill);
    command.args(["doctor", "--json", "--device", "cpu", "--threads", &machine.threads.to_string()]);
    let [memory, products] = parse_doctor(&output(command)?[0])?;
    machine.memory_bytes_per_s.push(memory);
    machine.products_per_s.push(products);
    Ok(())
}

/// `avg_ts` of the one test in `llama-bench -o json`, and what it ran on.
fn parse_llama_bench(output: &str, threads: usize, wanted: [usize; 3]) -> Result<(f64, String)> {
    let not_json = |e| Error::corrupt("llama-bench printed no JSON").with_source(e);
    let tests: Value = serde_json::from_str(output).map_err(not_json)?;
    let [test] = tests.as_array().map(Vec::as_slice).unwrap_or_default() else {
        return Err(Error::corrupt("llama-bench did not print an array of one test"));
    };
    let [prompt, generated, depth] = wanted;
    let asked = [("n_threads", threads), ("n_prompt", prompt), ("n_gen", generated), ("n_depth", depth)];
    same_numbers("llama-bench", test, &asked)?;
    let text = |key: &str| test[key].as_str().unwrap_or("unknown").to_owned();
    let speed = finite(test["avg_ts"].as_f64(), "llama-bench's `avg_ts`")?;
    Ok((speed, format!("{} on {}", text("model_type"), text("cpu_info"))))
}

/// The rate of the case in the one JSON object of `tidemill bench --json`, and the device.
fn parse_bench(output: &str, case: Case, wanted: [usize; 2]) -> Result<(f64, String)> {
    let object = json_line(output, "tidemill bench")?;
    same_numbers("tidemill bench", &object, &[("prompt_tokens", wanted[0]), ("gen_tokens", wanted[1])])?;
    let key = match case {
        Case::Prefill(_) => "prefill_tokens_per_s",
        Case::Decode(_) => "decode_tokens_per_s",
    };
    let speed = finite(object[key].as_f64(), &format!("tidemill's `{key}`"))?;
    Ok((speed, object["device"].as_str().unwrap_or("unknown").to_owned()))
}

/// Bytes/s of memory and operations/s of products in the one JSON object of `tidemill doctor --json`.
fn parse_doctor(output: &str) -> Result<[f64; 2]> {
    let object = json_line(output, "tidemill doctor")?;
    let number = |key: &str| finite(object[key].as_f64(), &format!("tidemill's `{key}`"));
    Ok([number("memory_bytes_per_s")?, 2.0 * number("device_prefill_macs_per_s")?])
}

/// Whether a program ran what it was asked to run.
fn same_numbers(program: &str, object: &Value, wanted: &[(&str, usize)]) -> Result<()> {
    for (key, wanted) in wanted {
        if object[*key].as_u64() != Some(*wanted as u64) {
            let message = format!("{program}: `{key}` is {}, {wanted} was asked for", object[*key]);
            return Err(Error::corrupt(message));
        }
    }
    Ok(())
}

/// The middle of the figures; of an even number the mean of the two in the middle. NaN of none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        at(sorted.len() / 2)
    } else {
        (at((sorted.len() / 2).wrapping_sub(1)) + at(sorted.len() / 2)) / 2.0
    }
}

/// For each case, the best median of either program over all numbers of threads: theirs, ours.
fn bests(result: &SpeedResult) -> Vec<(Case, [f64; 2])> {
    let mut bests: Vec<(Case, [f64; 2])> = Vec::new();
    for row in &result.rows {
        let figures = [median(&row.theirs), median(&row.ours)];
        match bests.iter_mut().find(|(case, _)| *case == row.case) {
            Some((_, best)) => *best = [best[0].max(figures[0]), best[1].max(figures[1])],
            None => bests.push((row.case, figures)),
        }
    }
    bests
}

/// A table for people: medians in tokens per second.
pub fn table(result: &SpeedResult) -> String {
    let mut text = format!("{}; tidemill: {}\n\n", result.theirs, result.ours);
    text += "threads  case                llama.cpp    tidemill   ratio\n";
    let mut line = |threads: &str, case: Case, theirs: f64, ours: f64| {
        let name = case.name();
        let _ = writeln!(text, "{threads:>7}  {name:<16} {theirs:>12.1} {ours:>11.1} {:>7.2}", ours / theirs);
    };
    for row in &result.rows {
        line(&row.threads.to_string(), row.case, median(&row.theirs), median(&row.ours));
    }
    for (case, [theirs, ours]) in bests(result) {
        line("best", case, theirs, ours);
    }
    text.push('\n');
    for machine in &result.machine {
        let figures = |rates: &[f64]| {
            rates.iter().map(|rate| format!("{:.1}", rate / 1e9)).collect::<Vec<_>>().join(" and ")
        };
        let _ = writeln!(
            text,
            "{} threads, before and after: memory {} GB/s, our 4-bit products {} GOP/s",
            machine.threads,
            figures(&machine.memory_bytes_per_s),
            figures(&machine.products_per_s)
        );
    }
    text
}

/// An object for programs: every figure of every round.
pub fn json(result: &SpeedResult) -> Value {
    let rows = result.rows.iter().map(|row| {
        json!({
            "threads": row.threads,
            "case": row.case.name(),
            "llama_cpp_tokens_per_s": row.theirs,
            "tidemill_tokens_per_s": row.ours,
            "ratio": row.ratio(),
        })
    });
    let bests = bests(result).into_iter().map(|(case, [theirs, ours])| {
        json!({
            "case": case.name(),
            "llama_cpp_tokens_per_s": theirs,
            "tidemill_tokens_per_s": ours,
            "ratio": ours / theirs,
        })
    });
    let machine = result.machine.iter().map(|machine| {
        json!({
            "threads": machine.threads,
            "memory_bytes_per_s": machine.memory_bytes_per_s,
            "products_per_s": machine.products_per_s,
        })
    });
    json!({
        "llama_cpp": result.theirs,
        "tidemill": result.ours,
        "rows": rows.collect::<Vec<_>>(),
        "best_threads": bests.collect::<Vec<_>>(),
        "machine": machine.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from `llama-bench -p 64 -n 0 -d 0 -t 1 -r 1 -o json`, without the fields that nobody reads.
    const THEIRS: &str = r#"[
  {
    "build_commit": "unknown",
    "cpu_info": "AMD EPYC",
    "backends": "CPU",
    "model_type": "llama 256M Q4_1",
    "n_threads": 1,
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 0,
    "avg_ns": 671118777,
    "avg_ts": 95.363149,
    "samples_ts": [ 95.3631 ]
  }
]
"#;
    /// Recorded from `tidemill bench --prompt-tokens 64 --gen-tokens 8 --json`, likewise.
    const OURS: &str = r#"{"prompt_tokens":64,"gen_tokens":8,"prefill_tokens_per_s":253.88,"decode_tokens_per_s":76.47,"probed_drive_bytes_per_s":[],"slots":0,"device":"CPU (AVX2)"}"#;

    #[test]
    fn recorded_output_is_understood() {
        let theirs = parse_llama_bench(THEIRS, 1, Case::Prefill(64).theirs(8)).unwrap();
        assert_eq!(theirs, (95.363149, "llama 256M Q4_1 on AMD EPYC".into()));
        let prefill = parse_bench(OURS, Case::Prefill(64), [64, 8]).unwrap();
        assert_eq!(prefill, (253.88, "CPU (AVX2)".into()));
        assert_eq!(parse_bench(OURS, Case::Decode(64), [64, 8]).unwrap().0, 76.47);
        let doctor = r#"{"memory_bytes_per_s":2.5e10,"device":"CPU","device_prefill_macs_per_s":1e11}"#;
        assert_eq!(parse_doctor(doctor).unwrap(), [2.5e10, 2e11]);
    }

    #[test]
    fn other_output_is_an_error() {
        let wanted = Case::Prefill(64).theirs(8);
        let without_rate = THEIRS.replace("95.363149", "null");
        let zero = THEIRS.replace("95.363149", "0.0");
        let twice = format!("[{0},{0}]", THEIRS.trim().trim_matches(['[', ']']));
        for bad in ["", "[\n", "[]", "{}", "[1]", &without_rate, &zero, &twice] {
            let error = parse_llama_bench(bad, 1, wanted).unwrap_err();
            assert_eq!(error.kind(), files::ErrorKind::Corrupt, "{bad}");
        }
        let other_threads = parse_llama_bench(THEIRS, 2, wanted).unwrap_err();
        assert!(other_threads.to_string().contains("`n_threads` is 1, 2 was asked for"), "{other_threads}");
        for case in [Case::Prefill(128), Case::Decode(0), Case::Decode(64)] {
            assert!(parse_llama_bench(THEIRS, 1, case.theirs(8)).is_err(), "{case:?}");
        }
        for bad in ["", "{}", "[]", &OURS.replace("64", "63"), &OURS.replace("253.88", "-1")] {
            assert!(parse_bench(bad, Case::Prefill(64), [64, 8]).is_err(), "{bad}");
        }
        for bad in ["", "{}", r#"{"memory_bytes_per_s":1}"#] {
            assert!(parse_doctor(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_program_that_fails_is_named() {
        let run = SpeedRun {
            llama_bench: "/nonexistent/llama-bench".as_ref(),
            tidemill: "/nonexistent/tidemill".as_ref(),
            model: "m.gguf".as_ref(),
            threads: vec![1],
            prompt_tokens: vec![8],
            depths: vec![],
            gen_tokens: 1,
            rounds: 1,
            extra: &[],
        };
        let error = speed(&run, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/tidemill"), "{error}");
        let error = speed(&SpeedRun { rounds: 0, ..run }, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), files::ErrorKind::InvalidRequest);
    }

    #[test]
    fn medians_ratios_and_bests() {
        assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])], [2.0, 2.5]);
        assert!(median(&[]).is_nan());
        let row = |threads, case, theirs: f64, ours: f64| Row {
            threads,
            case,
            theirs: vec![theirs, theirs, 1e9],
            ours: vec![0.0, ours, ours],
        };
        let (prefill, decode) = (Case::Prefill(128), Case::Decode(2048));
        let rows = vec![
            row(1, prefill, 100.0, 300.0),
            row(1, decode, 50.0, 90.0),
            row(2, prefill, 200.0, 500.0),
            row(2, decode, 40.0, 100.0),
        ];
        assert_eq!(rows[0].ratio(), 3.0);
        let result = SpeedResult { rows, ..SpeedResult::default() };
        assert_eq!(bests(&result), [(prefill, [200.0, 500.0]), (decode, [50.0, 100.0])]);
        let table = table(&result);
        assert!(table.contains("      1  prefill 128             100.0       300.0    3.00\n"), "{table}");
        assert!(table.contains("   best  decode at 2048           50.0       100.0    2.00\n"), "{table}");
        assert_eq!(json(&result)["best_threads"][1]["ratio"], 2.0);
    }
}
