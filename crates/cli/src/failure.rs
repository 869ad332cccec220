//! How a command fails: one line on stderr, and an exit code by the kind of error.

use std::io;
use std::process::ExitCode;

use engine::{Error, ErrorKind};

use crate::out;

/// Why a command ended early.
pub(crate) enum Failure {
    /// Something to tell the user.
    Error(Error),
    /// Whoever read our output has gone, as `head` does: nothing is wrong, and nobody is left to tell.
    ClosedPipe,
}

/// What commands return.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Failure {
    /// From writing to stdout.
    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ClosedPipe;
        }
        Self::Error(Error::io("standard output", error))
    }

    /// The user pressed Ctrl-C.
    pub(crate) fn interrupted() -> Self {
        Self::Error(Error::new(ErrorKind::Cancelled, "interrupted"))
    }

    /// Says what is wrong and turns it into the exit code of [`EXIT_CODES`].
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::ClosedPipe => ExitCode::SUCCESS,
            Self::Error(error) => {
                out::note(format_args!("error: {}", one_line(error)));
                ExitCode::from(code(error.kind()))
            }
        }
    }
}

/// The exit codes, for the help.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done                      5  not supported
  1  other                     6  drive or file system
  2  bad argument or request   7  not enough memory
  3  not found                 8  context full
  4  damaged file              9  device
                             130  interrupted";

fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidRequest => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Corrupt => 4,
        ErrorKind::Unsupported => 5,
        ErrorKind::Io => 6,
        ErrorKind::Memory => 7,
        ErrorKind::ContextFull => 8,
        ErrorKind::Device => 9,
        ErrorKind::Cancelled => 130,
        _ => 1,
    }
}

/// The message and, where it says more, the cause, in one line.
pub(crate) fn one_line(error: &Error) -> String {
    let mut text = error.message().to_owned();
    if let Some(cause) = std::error::Error::source(error).map(ToString::to_string)
        && !text.contains(&cause)
    {
        text = format!("{text}: {cause}");
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Answers what clap has to say: help and version on stdout, mistakes in one line on stderr.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match out::print(&error.render().ansi().to_string(), true) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        };
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        out::note(error.render().to_string().trim_end());
        return ExitCode::from(2);
    }
    out::note(usage_line(&error.render().to_string()));
    ExitCode::from(2)
}

/// What is wrong, without the usage that clap puts below it.
fn usage_line(rendered: &str) -> String {
    let what = rendered.split("\nUsage:").next().unwrap_or(rendered);
    let what = what.split("\nFor more information").next().unwrap_or(what);
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_with_their_cause_once() {
        let cause = io::Error::other("disk on fire");
        assert_eq!(one_line(&Error::io("a.gguf", cause)), "a.gguf: disk on fire");
        let hidden = Error::corrupt("bad\ntemplate").with_source("line 3");
        assert_eq!(one_line(&hidden), "bad template: line 3");
    }

    #[test]
    fn every_kind_has_a_code_of_its_own() {
        use ErrorKind::*;
        let kinds =
            [NotFound, Corrupt, Unsupported, Io, Memory, InvalidRequest, ContextFull, Device, Cancelled];
        let codes: std::collections::BTreeSet<u8> = kinds.iter().map(|kind| code(*kind)).collect();
        assert_eq!(codes.len(), kinds.len());
        assert!(!codes.contains(&0) && !codes.contains(&1));
        for code in codes {
            assert!(EXIT_CODES.contains(&format!("{code}  ")), "{code}");
        }
    }

    #[test]
    fn usage_is_cut_to_what_is_wrong() {
        let rendered = "error: the following required arguments were not provided:\n  --npy <OUT>\n\nUsage: x\n\nFor more";
        assert_eq!(
            usage_line(rendered),
            "error: the following required arguments were not provided: --npy <OUT>"
        );
    }
}
