//! `tidemill eval`: how well a model predicts what is known.

mod ppl;
mod tools;

use std::path::Path;

use clap::Subcommand;
use engine::Error;
use serde::de::DeserializeOwned;

use crate::failure::Result;

/// Arguments of `eval`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Perplexity of a text, or of the texts and conversations in a JSONL file
    Ppl(ppl::Args),
    /// Share of tool calls that are exactly right
    Tools(tools::Args),
}

/// Evaluates.
pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.what {
        What::Ppl(args) => ppl::main(args),
        What::Tools(args) => tools::main(args),
    }
}

/// Reads a file with one JSON value a line, at most `limit` of them.
fn read_lines<T: DeserializeOwned>(path: &Path, limit: Option<usize>) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path.display(), e))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.take(limit.unwrap_or(usize::MAX)).map(|(i, line)| {
        serde_json::from_str(line)
            .map_err(|e| Error::invalid(format!("{}, line {}: {e}", path.display(), i + 1)))
    });
    let values = parsed.collect::<engine::Result<Vec<T>>>()?;
    if values.is_empty() {
        return Err(Error::invalid(format!("{}: no lines", path.display())).into());
    }
    Ok(values)
}
