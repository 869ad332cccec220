//! Standard output and standard error. Neither ever panics: a reader that goes away ends the program quietly.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use serde_json::Value;

use crate::failure::{Failure, Result};

/// Writes to stdout now. `styled` text keeps its escape sequences on a terminal and loses them elsewhere.
pub(crate) fn print(text: &str, styled: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let plain;
    let text = if styled && !is_styled(&out) {
        plain = without_escapes(text);
        &plain
    } else {
        text
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Writes a model's text to stdout now. On a terminal, control characters are made visible: what a model says must
/// not move the cursor or change the window's title.
pub(crate) fn print_model(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print(&visible(text), false) } else { print(text, false) }
}

/// Writes one JSON object to stdout.
pub(crate) fn json(value: &Value) -> Result<()> {
    print(&format!("{value}\n"), false)
}

/// Writes a line to stderr, if anybody listens.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}"); // without stderr there is nowhere to complain
}

/// Writes a model's thoughts to stderr, dimmed on a terminal.
pub(crate) fn thought(text: &str) {
    let mut err = io::stderr().lock();
    let written =
        if is_styled(&err) { write!(err, "\x1b[2m{}\x1b[0m", visible(text)) } else { write!(err, "{text}") };
    let _ = written.and_then(|()| err.flush()); // as in `note`
}

fn is_styled(stream: &impl IsTerminal) -> bool {
    static NO_COLOR: OnceLock<bool> = OnceLock::new();
    let no_color = NO_COLOR.get_or_init(|| std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()));
    stream.is_terminal() && !no_color
}

fn visible(text: &str) -> String {
    let shown =
        |c: char| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

/// Drops `ESC [ … letter` sequences.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        out.push_str(&rest[..at]);
        let sequence = &rest[at + 2..];
        let end = sequence.find(|c: char| c.is_ascii_alphabetic()).map_or(sequence.len(), |end| end + 1);
        rest = &sequence[end..];
    }
    out + rest
}

/// A size for people, in binary units.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (count.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{count} B");
    }
    format!("{:.2} {}", count as f64 / (1u64 << (10 * unit)) as f64, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_model_are_shown_not_obeyed() {
        assert_eq!(visible("a\x1b]0;title\x07\tb\n"), "a\u{fffd}]0;title\u{fffd}\tb\n");
    }

    #[test]
    fn escapes_are_dropped_where_nobody_reads_them() {
        assert_eq!(without_escapes("\x1b[1mUsage:\x1b[0m tidemill \x1b[4"), "Usage: tidemill ");
        assert_eq!(without_escapes("plain"), "plain");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(7_077_888), "6.75 MiB");
        assert_eq!(bytes(224 << 30), "224.00 GiB");
    }
}
