//! Texts that users give us, from files and from standard input.

use std::fmt::Display;
use std::io::{self, Read};
use std::path::Path;

use engine::{Error, Result};

/// A file's text, without the byte-order mark that some editors put before it.
///
/// # Errors
/// Names the file: `NotFound` or `Io` when it cannot be read, `InvalidRequest` when it is no text.
pub(crate) fn file(path: &Path) -> Result<String> {
    let mut text = std::fs::read_to_string(path).map_err(|e| named(path.display(), e))?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// All of standard input.
///
/// # Errors
/// As [`file()`].
pub(crate) fn stdin() -> Result<String> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|e| named("standard input", e))?;
    Ok(text)
}

fn named(what: impl Display, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidData {
        return Error::invalid(format!("{what} is not UTF-8"));
    }
    Error::io(what, error)
}
