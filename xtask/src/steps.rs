//! Named commands one after the other, timed, with one line for each at the end.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A command with a name.
#[derive(Debug)]
pub struct Step {
    name: String,
    command: Command,
}

impl Step {
    /// `program` with `args`, in the folder where the steps run.
    pub fn new<S: AsRef<str>>(name: &str, program: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        args.into_iter().for_each(|arg| {
            command.arg(arg.as_ref());
        });
        Self { name: name.into(), command }
    }

    /// `cargo` with `args`, separated by white space.
    pub fn cargo(name: &str, args: &str) -> Self {
        Self::new(name, "cargo", args.split_whitespace())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same with an environment variable.
    #[must_use]
    pub fn env(mut self, variable: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(variable, value);
        self
    }
}

/// How a step ended.
#[derive(Debug)]
enum Outcome {
    Ok(Duration),
    Failed(Duration, String),
    Skipped(String),
}

/// Runs all steps, also after one that failed, and prints what each did. A step is an error with its reason where it
/// cannot run on this machine.
pub fn run_all(root: &Path, steps: Vec<(String, Result<Step, String>)>) -> bool {
    let mut lines = Vec::new();
    let mut all_ok = true;
    for (name, step) in steps {
        let outcome = match step {
            Ok(step) => run(root, step),
            Err(why) => Outcome::Skipped(why),
        };
        all_ok &= !matches!(outcome, Outcome::Failed(..));
        let line = match outcome {
            Outcome::Ok(took) => format!("{name:<24} ok      {:>6.1} s", took.as_secs_f64()),
            Outcome::Failed(took, why) => format!("{name:<24} FAILED  {:>6.1} s  {why}", took.as_secs_f64()),
            Outcome::Skipped(why) => format!("{name:<24} SKIP    {why}"),
        };
        eprintln!("=== {line}");
        lines.push(line);
    }
    eprintln!("=== summary\n{}", lines.join("\n"));
    all_ok
}

fn run(root: &Path, mut step: Step) -> Outcome {
    eprintln!("=== {}: {:?}", step.name, step.command);
    let start = Instant::now();
    let status = step.command.current_dir(root).status();
    let took = start.elapsed();
    match status {
        Ok(status) if status.success() => Outcome::Ok(took),
        Ok(status) => Outcome::Failed(took, status.to_string()),
        Err(e) => Outcome::Failed(took, format!("does not start: {e}")),
    }
}
