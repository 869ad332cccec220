//! The commands of a chat.

use std::path::{Path, PathBuf};

use engine::Error;
use engine::text::{Message, ToolSpec};
use serde::{Deserialize, Serialize};

use super::{Chat, usage};
use crate::answer::read_tools;
use crate::failure::{Result, one_line};
use crate::output::Outputs;
use crate::{out, read};

const HELP: &str = "\
/help               this list
/reset              forget the conversation (the system message and tools stay)
/system [TEXT]      set the system message and start over; without TEXT, remove it
/tools [FILE.json]  offer these tools and start over; without FILE, none
/tool RESULT        the result of the tool that the model called
/think on|off       whether the model thinks before it answers
/stats              speed of the last answer, fill of the context, memory
/save FILE          save the conversation, and the model's state beside it
/load FILE          go on with a saved conversation
/exit               leave (also Ctrl-D)
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer.
";

/// Version of the format of saved conversations.
const SAVE_VERSION: u32 = 1;

/// What was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Nothing,
    Say(String),
    Help,
    Reset,
    System(Option<String>),
    Tools(Option<PathBuf>),
    ToolResult(String),
    Think(bool),
    Stats,
    Save(PathBuf),
    Load(PathBuf),
    Exit,
}

impl Command {
    /// Reads a line. `//` at its beginning stands for a slash that is no command.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let text = line.trim();
        if text.is_empty() {
            return Ok(Self::Nothing);
        }
        let Some(command) = text.strip_prefix('/') else { return Ok(Self::Say(text.to_owned())) };
        if command.starts_with('/') {
            return Ok(Self::Say(command.to_owned()));
        }
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        let file = || rest.map(PathBuf::from).ok_or_else(|| usage(format!("/{name}: name a file")));
        let alone = |command: Self| match rest {
            None => Ok(command),
            Some(_) => Err(usage(format!("/{name} takes nothing after it"))),
        };
        match name {
            "help" | "?" => alone(Self::Help),
            "reset" | "clear" | "new" => alone(Self::Reset),
            "system" => Ok(Self::System(rest.map(str::to_owned))),
            "tools" => Ok(Self::Tools(rest.map(PathBuf::from))),
            "tool" => rest.map(|r| Self::ToolResult(r.into())).ok_or_else(|| usage("/tool: give the result")),
            "think" => match rest {
                Some("on") => Ok(Self::Think(true)),
                Some("off") => Ok(Self::Think(false)),
                _ => Err(usage("/think: write on or off")),
            },
            "stats" => alone(Self::Stats),
            "save" => Ok(Self::Save(file()?)),
            "load" => Ok(Self::Load(file()?)),
            "exit" | "quit" | "bye" => alone(Self::Exit),
            _ => Err(usage(format!(
                "/{name} is not a command; /help lists them, // begins a text with a slash"
            ))),
        }
    }
}

/// A saved conversation.
#[derive(Serialize, Deserialize)]
struct Saved {
    tidemill_chat: u32,
    model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    think: Option<bool>,
    #[serde(default)]
    tools: Vec<ToolSpec>,
    messages: Vec<Message>,
}

impl Chat<'_> {
    /// Does what a command says; the ones that make the model speak are done elsewhere.
    pub(super) fn command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => out::print(HELP, false)?,
            Command::Reset => {
                self.reset()?;
                out::note("the conversation is forgotten");
            }
            Command::System(text) => {
                self.system = text;
                self.reset()?;
                out::note("a new conversation begins");
            }
            Command::Tools(path) => {
                self.tools = path.as_deref().map(read_tools).transpose()?.unwrap_or_default();
                self.reset()?;
                let names: Vec<&str> = self.tools.iter().map(ToolSpec::name).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                out::note(format_args!("tools: {names}; a new conversation begins"));
            }
            Command::Think(on) => {
                self.thinking = Some(on);
                out::note(format_args!("thinking is {}", if on { "on, where the model can" } else { "off" }));
            }
            Command::Stats => self.show_statistics()?,
            Command::Save(path) => self.save(&path)?,
            Command::Load(path) => self.load(&path)?,
            Command::Nothing | Command::Say(_) | Command::ToolResult(_) | Command::Exit => {}
        }
        Ok(())
    }

    fn show_statistics(&self) -> Result<()> {
        let last = self.statistics.as_deref().unwrap_or("no answer yet");
        let peak = engine::rss_peak_bytes().map_or("unknown".into(), out::bytes);
        let text =
            format!("{last}\n{}\nmemory: {peak} at most so far\n{}\n", self.fill(), self.loaded.model.plan());
        out::print(&text, false)
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        let saved = Saved {
            tidemill_chat: SAVE_VERSION,
            model: self.loaded.model.path().display().to_string(),
            system: self.system.clone(),
            think: self.thinking,
            tools: self.tools.clone(),
            messages: self.messages.clone(),
        };
        let text = serde_json::to_string_pretty(&saved)
            .map_err(|e| Error::invalid("the conversation cannot be saved").with_source(e))?;
        let state = state_path(path);
        let mut outputs = Outputs::beside(&self.reads);
        outputs.check(&state)?;
        let mut conversation = outputs.create(path)?;
        conversation.put(text.as_bytes())?;
        conversation.put(b"\n")?;
        // First what can be computed again: a conversation never goes with the state of another one.
        self.session.save(&state)?;
        conversation.finish()?;
        out::note(format_args!("saved {} and {}", path.display(), state.display()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let text = read::file(path)?;
        let bad = |why: String| Error::invalid(format!("{}: {why}", path.display()));
        let saved: Saved =
            serde_json::from_str(&text).map_err(|e| bad(format!("not a saved conversation: {e}")))?;
        if saved.tidemill_chat != SAVE_VERSION {
            return Err(bad(format!("version {} is not known to this build", saved.tidemill_chat)).into());
        }
        self.reset()?;
        self.system = saved.system;
        self.thinking = saved.think;
        self.tools = saved.tools;
        self.messages = saved.messages;
        let note = match self.session.load(&state_path(path)) {
            Ok(()) => format!("{} tokens are remembered", self.session.tokens().len()),
            // The words are there; what the model made of them is computed again.
            Err(e) => {
                format!("the next answer reads it all again, since the state does not fit: {}", one_line(&e))
            }
        };
        out::note(format_args!("{} messages; {note}", self.messages.len()));
        Ok(())
    }
}

/// Where the model's state is, beside a conversation.
fn state_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".state");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Command> {
        Command::parse(line).ok()
    }

    #[test]
    fn commands_are_told_from_words() {
        assert_eq!(parse("  "), Some(Command::Nothing));
        assert_eq!(parse("hello /help"), Some(Command::Say("hello /help".into())));
        assert_eq!(parse("//etc"), Some(Command::Say("/etc".into())));
        assert_eq!(parse("/system Be  brief. "), Some(Command::System(Some("Be  brief.".into()))));
        assert_eq!(parse("/system"), Some(Command::System(None)));
        assert_eq!(parse("/tool {\"a\": 1}"), Some(Command::ToolResult("{\"a\": 1}".into())));
        assert_eq!(parse("/tool two\nlines"), Some(Command::ToolResult("two\nlines".into())));
        assert_eq!(parse("/think off"), Some(Command::Think(false)));
        assert_eq!(parse("/save a b.json"), Some(Command::Save("a b.json".into())));
        for bad in ["/save", "/load", "/tool", "/think", "/think maybe", "/reset now", "/etc/passwd"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_command_is_in_the_help() {
        for name in ["help", "reset", "system", "tools", "tool", "think", "stats", "save", "load", "exit"] {
            assert!(HELP.contains(&format!("/{name} ")), "{name}");
        }
    }
}
