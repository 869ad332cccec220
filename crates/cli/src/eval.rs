//! `tidemill eval`: how well a model predicts what is known.

mod ppl;
mod tools;

use std::path::Path;

use clap::Subcommand;
use engine::Error;
use serde::de::DeserializeOwned;

use crate::failure::Result;
use crate::read;

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

/// Reads a file with one JSON value a line, at most `limit` of them, each with the number of its line.
fn read_lines<T: DeserializeOwned>(path: &Path, limit: Option<usize>) -> Result<Vec<(usize, T)>> {
    let text = read::file(path)?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.take(limit.unwrap_or(usize::MAX)).map(|(number, line)| {
        let value = serde_json::from_str(line).map_err(|e| {
            // Each line is a text of its own: its only line's number would mislead.
            let what = e.to_string().replace(" at line 1 column ", " at column ");
            Error::invalid(what).context(place(path, number))
        })?;
        Ok((number, value))
    });
    let values = parsed.collect::<engine::Result<Vec<_>>>()?;
    if values.is_empty() {
        return Err(Error::invalid(format!("{}: no lines", path.display())).into());
    }
    Ok(values)
}

/// A line of a file, for errors.
fn place(path: &Path, number: usize) -> String {
    format!("{}, line {number}", path.display())
}
