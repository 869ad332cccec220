//! `tidemill completions SHELL`

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Result;
use crate::out;

/// Arguments of `completions`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  tidemill completions bash > ~/.local/share/bash-completion/completions/tidemill"
)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub(crate) fn main(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidemill", &mut script);
    out::print(&String::from_utf8_lossy(&script), false)
}
