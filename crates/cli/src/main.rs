//! The `tidemill` command.

mod answer;
mod args;
mod bench;
mod bundled;
mod chat;
mod completions;
mod doctor;
mod drivers;
mod eval;
mod failure;
mod inspect;
mod interrupt;
mod load;
mod logits;
mod npy;
mod out;
mod output;
mod pull;
mod read;
mod remembered;
mod report;
mod run;
mod sampling;
mod selftest;
mod serve;
mod synth;
mod tui;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Result;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e),
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command) -> Result<()> {
    // A server lets running answers finish, and listens for more than Ctrl-C.
    if !matches!(command, Command::Serve(_)) {
        interrupt::install()?;
    }
    match command {
        Command::Chat(args) => chat::main(&args),
        Command::Run(args) => run::main(&args),
        Command::Serve(args) => serve::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Logits(args) => logits::main(&args),
        Command::Eval(args) => eval::main(&args),
        Command::Doctor(args) => doctor::main(&args),
        Command::Selftest(args) => selftest::main(&args),
        Command::Inspect(args) => inspect::main(&args),
        Command::Synth(args) => synth::main(&args),
        Command::Pull(args) => pull::main(&args),
        Command::List(args) => pull::list(&args),
        Command::Rm(args) => pull::rm(&args),
        Command::Completions(args) => completions::main(&args),
    }
}
