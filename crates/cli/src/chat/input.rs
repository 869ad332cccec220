//! What the user types: a line editor on a terminal, plain lines elsewhere.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use engine::Error;
use rustyline::Editor;
use rustyline::config::Config;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

use crate::failure::{Result, one_line};
use crate::out;
use crate::output::Outputs;

/// Lines that the history keeps.
const HISTORY_LINES: usize = 2000;

/// One input.
pub(super) enum Typed {
    /// A message or command; lines that end with `\` are joined.
    Line(String),
    /// The user leaves.
    End,
}

/// Where input comes from.
pub(super) enum Input {
    /// A person.
    Editor { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    /// A file or another program.
    Lines,
}

impl Input {
    /// An editor if there is a terminal on both sides.
    pub(super) fn open() -> Self {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Self::Lines;
        }
        let config =
            Config::builder().max_history_size(HISTORY_LINES).map(|c| c.auto_add_history(false).build());
        let Ok(Ok(mut editor)) = config.map(Editor::with_config) else { return Self::Lines };
        let mut history = history_file(|name| std::env::var_os(name));
        if let Some(Err(e)) = history.as_deref().map(|path| Outputs::default().check(path)) {
            out::note(format_args!("no history is kept: {}", one_line(&e)));
            history = None;
        }
        if let Some(path) = &history {
            let _ = editor.load_history(path); // the first time there is none
        }
        Self::Editor { editor: Box::new(editor), history }
    }

    /// Whether a person is typing.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self, Self::Editor { .. })
    }

    /// The next input.
    ///
    /// # Errors
    /// `Io` when reading fails.
    pub(super) fn next(&mut self) -> Result<Typed> {
        let mut whole = String::new();
        let mut interrupted = false;
        loop {
            let prompt = if whole.is_empty() { ">>> " } else { "... " };
            match self.read(prompt)? {
                Read::Line(line) => {
                    interrupted = false;
                    match line.strip_suffix('\\') {
                        Some(begun) => {
                            whole += begun;
                            whole.push('\n');
                        }
                        None => {
                            whole += &line;
                            self.remember(&whole);
                            return Ok(Typed::Line(whole));
                        }
                    }
                }
                Read::NotText => {
                    out::note(NOT_TEXT);
                    whole.clear();
                }
                Read::Interrupt if whole.is_empty() && interrupted => return Ok(Typed::End),
                Read::Interrupt => {
                    whole.clear();
                    interrupted = true;
                    out::note("Ctrl-C again, or Ctrl-D, leaves");
                }
                Read::End if whole.is_empty() => return Ok(Typed::End),
                Read::End => return Ok(Typed::Line(std::mem::take(&mut whole))),
            }
        }
    }

    fn read(&mut self, prompt: &str) -> Result<Read> {
        match self {
            Self::Editor { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Ok(Read::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Read::Interrupt),
                Err(ReadlineError::Eof) => Ok(Read::End),
                Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => Ok(Read::NotText),
                Err(ReadlineError::Io(e)) => Err(Error::io("the terminal", e).into()),
                Err(e) => Err(Error::io("the terminal", io::Error::other(e.to_string())).into()),
            },
            Self::Lines => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().read_until(b'\n', &mut bytes);
                if read.map_err(|e| Error::io("standard input", e))? == 0 {
                    return Ok(Read::End);
                }
                let line = String::from_utf8_lossy(&bytes);
                if let Cow::Owned(_) = line {
                    out::note("standard input: bytes that are not UTF-8 were read as \u{fffd}");
                }
                Ok(Read::Line(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }

    /// Appends at once: a chat that is killed has a history too.
    fn remember(&mut self, line: &str) {
        let Self::Editor { editor, history } = self else { return };
        if line.trim().is_empty() || !editor.add_history_entry(line).unwrap_or(false) {
            return;
        }
        if let Some(path) = history {
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            if made.is_err() || editor.append_history(path).is_err() {
                *history = None; // a read-only home: chat on without a history
            }
        }
    }
}

/// What the terminal sent, and with it the line that it was typed into, is lost; the conversation is not.
const NOT_TEXT: &str = "what was typed is not UTF-8 (is the terminal set to another encoding?): the line was dropped, type it again";

enum Read {
    Line(String),
    NotText,
    Interrupt,
    End,
}

/// `XDG_STATE_HOME`, else the platform's place under the home directory.
fn history_file(environment: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let variable = |name: &str| environment(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let platform = if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    let state = variable("XDG_STATE_HOME").filter(|p| p.is_absolute());
    Some(state.or_else(|| Some(variable("HOME")?.join(platform)))?.join("tidemill").join("history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_follows_the_environment() {
        let of = |xdg: &'static str, home: &'static str| {
            history_file(move |name| Some(if name == "HOME" { home } else { xdg }.into()))
        };
        assert_eq!(of("/state", "/home/me"), Some("/state/tidemill/history".into()));
        let home = of("", "/home/me").unwrap();
        assert!(home.starts_with("/home/me") && home.ends_with("tidemill/history"), "{home:?}");
        assert_eq!(of("", ""), None);
    }
}
