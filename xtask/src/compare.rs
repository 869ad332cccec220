//! Comparisons with other engines on the same file. They run what the caller built; nothing is fetched here.
//!
//! # The perplexity protocol
//! The one of llama.cpp's `llama-perplexity`, with a context of `n` tokens:
//! * The text is the file without one trailing newline. It is tokenised once, as a whole; text that looks like a
//!   special token is plain text; BOS is put in front if the vocabulary asks for it.
//! * The ids are cut into `len / n` chunks of `n`; what is left at the end is dropped. Fewer than `2 n` ids are
//!   an error.
//! * Each chunk is evaluated alone, from position 0 and an empty state. If the vocabulary asks for BOS, the first
//!   id of the chunk is *replaced* by BOS.
//! * Scored are the predictions at positions `n/2 ..= n - 2`, each of the id at the next position (the original
//!   ids): `n - n/2 - 1` of them, 255 for `n = 512`.
//! * Perplexity = exp(sum of -ln p / count), log-softmax in float32, sums in float64, over all chunks.

use std::path::Path;
use std::process::Command;

use files::{Error, ErrorKind, Result};
use serde_json::Value;

/// How far our perplexity may be from the peer's, relative.
pub const PPL_TOLERANCE: f64 = 0.003;

/// One comparison of perplexity: who runs on what.
#[derive(Clone, Debug)]
pub struct PplRun<'a> {
    /// The peer's built `llama-perplexity`.
    pub llama_perplexity: &'a Path,
    /// Our built program.
    pub tidemill: &'a Path,
    /// The model that both read.
    pub model: &'a Path,
    /// The text that both read.
    pub text: &'a Path,
    /// Tokens of a chunk.
    pub ctx: usize,
    /// How many chunks to score, from the start; `None` is all.
    pub chunks: Option<usize>,
    /// Threads for both.
    pub threads: usize,
    /// Further arguments for our program, `--exact` for one.
    pub extra: &'a [&'a str],
}

/// The result of [`ppl`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PplResult {
    /// The peer's perplexity.
    pub theirs: f64,
    /// Ours.
    pub ours: f64,
}

impl PplResult {
    /// Ours over theirs.
    pub fn ratio(self) -> f64 {
        self.ours / self.theirs
    }

    /// Whether the two agree within [`PPL_TOLERANCE`].
    pub fn agrees(self) -> bool {
        (self.ratio() - 1.0).abs() <= PPL_TOLERANCE
    }
}

/// Runs both engines on the same file, text and chunks.
///
/// # Errors
/// `Io` when a program cannot be run or fails, `Corrupt` when its output has no perplexity.
pub fn ppl(run: &PplRun) -> Result<PplResult> {
    let (ctx, threads) = (run.ctx.to_string(), run.threads.to_string());
    let chunks = run.chunks.map(|chunks| chunks.to_string());
    let mut theirs = Command::new(run.llama_perplexity);
    // Their KV cache is f16 and their attention fused by default; ours is exact, so compare with that.
    theirs.args(["-fa", "off", "-ctk", "f32", "-ctv", "f32", "-c", &ctx, "-b", &ctx, "-t", &threads]);
    theirs.arg("-m").arg(run.model).arg("-f").arg(run.text);
    let mut ours = Command::new(run.tidemill);
    ours.args(["eval", "ppl"]).arg(run.model).arg(run.text);
    ours.args(["--json", "--protocol", "llama.cpp", "--ctx", &ctx, "--threads", &threads]).args(run.extra);
    if let Some(chunks) = &chunks {
        theirs.args(["--chunks", chunks]);
        ours.args(["--chunks", chunks]);
    }
    Ok(PplResult {
        theirs: parse_llama_cpp(&output(theirs)?.join("\n"))?,
        ours: parse_tidemill(&output(ours)?[0])?,
    })
}

/// Standard output and error of a program, which must succeed.
pub(crate) fn output(mut command: Command) -> Result<[String; 2]> {
    let name = command.get_program().display().to_string();
    let output = command.output().map_err(|e| Error::io(&name, e))?;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if !output.status.success() {
        return Err(Error::new(ErrorKind::Io, format!("{name}: {}\n{err}", output.status)));
    }
    Ok([out, err])
}

/// The figure in `Final estimate: PPL = 7.1862 +/- 0.32841`.
fn parse_llama_cpp(output: &str) -> Result<f64> {
    let (_, rest) = output.rsplit_once("Final estimate: PPL = ").ok_or_else(|| {
        Error::corrupt("llama-perplexity printed no `Final estimate`; is the text long enough?")
    })?;
    let figure = rest.split_whitespace().next().unwrap_or_default();
    finite(figure.parse().ok(), "llama-perplexity's `Final estimate`")
}

/// `perplexity` in the one JSON object of `tidemill eval ppl --json`.
fn parse_tidemill(output: &str) -> Result<f64> {
    let object = json_line(output, "tidemill eval ppl")?;
    finite(object["perplexity"].as_f64(), "tidemill's `perplexity`")
}

/// The line of a program's output that is a JSON object.
pub(crate) fn json_line(output: &str, program: &str) -> Result<Value> {
    output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(Value::is_object)
        .ok_or_else(|| Error::corrupt(format!("{program} printed no line of JSON")))
}

/// A figure that is there and positive, else an error that says `what`.
pub(crate) fn finite(figure: Option<f64>, what: &str) -> Result<f64> {
    figure
        .filter(|figure| figure.is_finite() && *figure > 0.0)
        .ok_or_else(|| Error::corrupt(format!("{what} is not a positive number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_in_the_noise() {
        let theirs =
            "[1]4.4,[2]5.0,\n0.59.394.481 I Final estimate: PPL = 7.1856 +/- 0.32883\n\nllama_perf: x";
        assert_eq!(parse_llama_cpp(theirs).unwrap(), 7.1856);
        let ours = "{\"perplexity\":7.2,\"chunks\":8}\n\nreading weights";
        assert_eq!(parse_tidemill(ours).unwrap(), 7.2);
    }

    #[test]
    fn output_without_a_figure_is_an_error() {
        for bad in ["", "Final estimate: PPL = nan +/- 0", "Final estimate: PPL = "] {
            assert!(parse_llama_cpp(bad).is_err(), "{bad}");
        }
        for bad in ["", "[1]", "{}", "{\"perplexity\":null}", "{\"perplexity\":-1}"] {
            assert!(parse_tidemill(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn agreement_has_an_edge() {
        assert!(PplResult { theirs: 10.0, ours: 10.029 }.agrees());
        assert!(!PplResult { theirs: 10.0, ours: 10.031 }.agrees());
        assert!(!PplResult { theirs: 10.0, ours: 9.96 }.agrees());
        assert!(!PplResult { theirs: 10.0, ours: f64::NAN }.agrees());
    }
}
