//! Texts that users give us, from files and from standard input.

use std::fmt::Display;
use std::io::{self, Read};
use std::path::Path;

use engine::{Error, Result};

/// A file's text, without the mark that some editors put before it.
///
/// # Errors
/// Names the file: `NotFound` or `Io` when it cannot be read, `InvalidRequest` when it is no text.
pub(crate) fn file(path: &Path) -> Result<String> {
    text(path.display(), std::fs::read(path))
}

/// All of standard input.
///
/// # Errors
/// As [`file()`].
pub(crate) fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let read = io::stdin().read_to_end(&mut bytes).map(|_| bytes);
    text("standard input", read)
}

fn text(what: impl Display, read: io::Result<Vec<u8>>) -> Result<String> {
    let mut bytes = read.map_err(|e| Error::io(&what, e))?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::invalid(format!("{what} is UTF-16; save it as UTF-8")));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
        Error::invalid(format!("{what} is not UTF-8: the byte at offset {at}, in line {line}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_said_with_its_place() {
        let read = |bytes: &[u8]| text("in", Ok(bytes.to_vec())).map_err(|e| e.message().to_owned());
        assert_eq!(read("\u{feff}{\"a\": 1}".as_bytes()), Ok("{\"a\": 1}".to_owned()));
        assert_eq!(read(b"one\ncaf\xe9"), Err("in is not UTF-8: the byte at offset 7, in line 2".to_owned()));
        assert_eq!(read(b"\xff\xfea\0"), Err("in is UTF-16; save it as UTF-8".to_owned()));
    }
}
