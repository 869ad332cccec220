//! Standard output and standard error. Neither ever panics: a reader that goes away ends the program quietly.
//!
//! This is the one place where text reaches a terminal. Files, models, paths and hubs may say anything, so control
//! characters are shown and not obeyed, whatever the text is and wherever it comes from. Only an answer (and its thoughts)
//! that goes to a file or a program is the model's text as it is.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use serde_json::Value;

use crate::failure::{Failure, Result};

/// Writes text of the program to stdout now. `styled` text is help: it keeps its escape sequences on a terminal and loses
/// them elsewhere.
pub(crate) fn print(text: &str, styled: bool) -> Result<()> {
    match styled {
        false => put(&visible(text)),
        true if is_styled(&io::stdout()) => put(text),
        true => put(&without_escapes(text)),
    }
}

/// Writes a model's text to stdout now.
pub(crate) fn print_model(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print(text, false) } else { put(text) }
}

/// Writes one JSON object to stdout.
pub(crate) fn json(value: &Value) -> Result<()> {
    put(&format!("{}\n", json_text(value)))
}

/// Writes a line to stdout.
pub(crate) fn line(line: &str) -> Result<()> {
    put(&format!("{}\n", visible_line(line)))
}

/// Writes a line to stderr, if anybody listens.
pub(crate) fn note(line: impl Display) {
    let line = line.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", visible(&line)); // without stderr there is nowhere to complain
}

/// Writes a model's thoughts to stderr, dimmed on a terminal.
pub(crate) fn thought(text: &str) {
    let mut err = io::stderr().lock();
    let text = thought_text(text, err.is_terminal(), is_styled(&err));
    let _ = write!(err, "{text}").and_then(|()| err.flush()); // as in `note`
}

fn thought_text(text: &str, terminal: bool, styled: bool) -> Cow<'_, str> {
    match (terminal, styled) {
        (_, true) => format!("\x1b[2m{}\x1b[0m", visible(text)).into(),
        (true, false) => visible(text),
        (false, false) => text.into(),
    }
}

fn put(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Whether escape sequences of colours are wanted there.
pub(crate) fn is_styled(stream: &impl IsTerminal) -> bool {
    static NO_COLOR: OnceLock<bool> = OnceLock::new();
    let no_color = NO_COLOR.get_or_init(|| std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()));
    stream.is_terminal() && !no_color
}

/// Whether a terminal obeys a character instead of showing it: the controls C0 and C1, and what turns the direction of
/// the text around it (Unicode's embeddings, overrides and isolates).
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with every character that a terminal would obey written as `\u{1b}`. Line ends and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !is_obeyed(c) || c == '\n' || c == '\t';
    if text.chars().all(is_plain) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\r' if rest.peek() == Some(&'\n') => {}
            c if is_plain(c) => shown.push(c),
            c => shown.extend(c.escape_unicode()),
        }
    }
    shown.into()
}

/// The same in one line, for a name or value that has a line of its own.
pub(crate) fn visible_line(text: &str) -> Cow<'_, str> {
    match visible(text) {
        shown if !shown.contains(['\n', '\t']) => shown,
        shown => shown.replace('\n', "\\n").replace('\t', "\\t").into(),
    }
}

/// JSON escapes C0 alone; what else a terminal would obey can only be in a string, where it may be escaped as well.
fn json_text(value: &Value) -> String {
    let text = value.to_string();
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_obeyed(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c)); // a string takes everything
        } else {
            shown.push(c);
        }
    }
    shown
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
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(visible("a\x1b]0;title\x07\tb\n"), "a\\u{1b}]0;title\\u{7}\tb\n");
        assert_eq!(visible("\u{9b}31m\u{7f}\u{85}"), "\\u{9b}31m\\u{7f}\\u{85}", "C1, delete, next line");
        assert_eq!(visible("gpj.\u{202e}exe \u{2066}a\u{2069}"), "gpj.\\u{202e}exe \\u{2066}a\\u{2069}");
        assert_eq!(visible("one\r\ntwo\rthree\r"), "one\ntwo\\u{d}three\\u{d}");
        // Joiners belong to emoji and to some scripts.
        for plain in ["", "word\n", "\u{1f469}\u{200d}\u{1f52c}", "\u{645}\u{6cc}\u{200c}\u{62e}"] {
            assert!(matches!(visible(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
        assert_eq!(visible_line("name\nruns  yes\t\x1b"), "name\\nruns  yes\\t\\u{1b}");
    }

    #[test]
    fn thoughts_are_safe_on_a_terminal_with_and_without_colour_and_raw_elsewhere() {
        let text = "a\x1b]0;title\x07";
        assert_eq!(thought_text(text, true, true), "\x1b[2ma\\u{1b}]0;title\\u{7}\x1b[0m");
        assert_eq!(thought_text(text, true, false), "a\\u{1b}]0;title\\u{7}");
        assert_eq!(thought_text(text, false, false), text);
    }

    #[test]
    fn json_is_the_same_value_and_nothing_in_it_is_obeyed() {
        let value = serde_json::json!({"text\u{9b}": "\x1b[31m \u{9b}31m \u{7f} \u{202e} \u{e9}\n"});
        let text = json_text(&value);
        assert!(!text.chars().any(is_obeyed) && text.contains('\u{e9}'), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
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
