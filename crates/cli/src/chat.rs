//! `tidemill chat`: a conversation at the terminal, or line by line from a pipe.

mod commands;
mod input;

use std::path::PathBuf;

use engine::generate::GenerateOptions;
use engine::text::{Message, Role, Templates, Tokenizer, ToolCall, ToolSpec};
use engine::{Error, ErrorKind, Session};

use crate::answer::{Conversation, Display, answer, read_tools};
use crate::args::{ComputeArgs, StateArgs};
use crate::failure::{Failure, Result, one_line};
use crate::load::{Loaded, inputs};
use crate::run::parse_switch;
use crate::sampling::SamplingArgs;
use crate::{out, remembered};
use commands::Command;
use input::{Input, Typed};

const EXAMPLES: &str = "\
Examples:
  tidemill chat
  tidemill chat model.gguf --memory 12GiB --system 'Answer in one sentence.'
  printf 'Hello!\\n/stats\\n' | tidemill chat

While it runs, /help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves. Standard input that is not a terminal \
is taken line by line; the first error ends it.";

/// Arguments of `chat`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// The system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tools that the model may call: a JSON file with a list of function definitions
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Whether the model thinks before it answers; default: the template's choice
    #[arg(long, value_name = "on|off", value_parser = parse_switch)]
    think: Option<bool>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    states: StateArgs,
}

/// Chats until the user leaves.
pub(crate) fn main(args: &Args) -> Result<()> {
    let tools = args.tools.as_deref().map(read_tools).transpose()?.unwrap_or_default();
    let compute = ComputeArgs { keeps_states: true, ..args.compute.clone() };
    let loaded = Loaded::open(args.model.as_deref(), &compute)?;
    loaded.store_states(&args.states);
    remembered::warm(&loaded.model);
    let mut input = Input::open();
    let mut chat = Chat {
        tokenizer: loaded.tokenizer()?,
        templates: loaded.templates()?,
        options: args.sampling.options(loaded.meta())?,
        session: Session::new(&loaded.model)?,
        loaded: &loaded,
        reads: inputs(args.model.as_deref(), &args.compute).into_iter().chain(args.tools.clone()).collect(),
        system: args.system.clone(),
        messages: Vec::new(),
        tools,
        thinking: args.think,
        statistics: None,
    };
    if input.is_interactive() {
        out::note(format_args!(
            "{}, {}. /help lists the commands, Ctrl-D leaves.",
            loaded.name,
            loaded.model.describe()
        ));
    }
    let done = chat.talk(&mut input);
    remembered::keep_warm(&loaded.model);
    loaded.flush_states();
    done
}

/// A conversation and what it needs.
struct Chat<'a> {
    loaded: &'a Loaded,
    /// Files that must not be written over.
    reads: Vec<PathBuf>,
    session: Session,
    tokenizer: Tokenizer,
    templates: Templates,
    options: GenerateOptions,
    system: Option<String>,
    /// All turns but the system's.
    messages: Vec<Message>,
    tools: Vec<ToolSpec>,
    thinking: Option<bool>,
    /// Of the last answer.
    statistics: Option<String>,
}

impl Chat<'_> {
    /// Takes lines until the user leaves.
    fn talk(&mut self, input: &mut Input) -> Result<()> {
        loop {
            let done = match input.next()? {
                Typed::End => return Ok(()),
                Typed::Line(line) => self.line(&line),
            };
            match done {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(Failure::Error(e)) if input.is_interactive() => {
                    out::note(format_args!("error: {}", one_line(&e)))
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Takes what was typed: a command, or something for the model. Whether the chat goes on.
    fn line(&mut self, line: &str) -> Result<bool> {
        match Command::parse(line)? {
            Command::Exit => return Ok(false),
            Command::Say(text) => self.say(Message::new(Role::User, text))?,
            Command::ToolResult(text) => self.tool_result(text)?,
            other => self.command(other)?,
        }
        Ok(true)
    }

    /// Adds a turn and answers it. Without an answer, the turn is taken back.
    fn say(&mut self, message: Message) -> Result<()> {
        self.messages.push(message);
        let said = self.respond();
        if said.as_ref().is_ok_and(|said| *said) {
            return Ok(());
        }
        self.messages.pop();
        said.map(|_| ())
    }

    /// Whether there is an answer; none if Ctrl-C came before its first word.
    fn respond(&mut self) -> Result<bool> {
        let messages = self.all_messages();
        let conversation = Conversation { messages: &messages, tools: &self.tools, thinking: self.thinking };
        let (prompt, borders) = conversation.prompt_with_borders(&self.templates, &self.tokenizer)?;
        self.session.name_borders(&borders);
        let mut display = Display::default();
        let reply =
            answer(&mut self.session, &self.tokenizer, &prompt, &self.tools, &self.options, &mut |event| {
                display.show(event)
            });
        display.end_line()?; // also before an error, which has a line of its own
        let reply = reply?;
        self.loaded.judge_drive(reply.reads.bytes, reply.reads.busy_s);
        self.statistics = Some(reply.statistics());
        if reply.is_interrupted() {
            out::note("stopped");
        }
        if reply.is_interrupted() && reply.turn.is_empty() {
            return Ok(false);
        }
        self.messages.push(reply.turn.message());
        if let [first, ..] = reply.turn.calls.as_slice() {
            out::note(format_args!("give the result of {} with /tool RESULT", first.name));
        }
        Ok(true)
    }

    /// The calls of the last answer that have no result yet.
    fn open_calls(&self) -> &[ToolCall] {
        let results = self.messages.iter().rev().take_while(|m| m.role == Role::Tool).count();
        let caller = self.messages.len().checked_sub(results + 1).and_then(|at| self.messages.get(at));
        let calls = caller.filter(|m| m.role == Role::Assistant).map_or(&[][..], |m| &m.tool_calls);
        &calls[results.min(calls.len())..]
    }

    /// The result of the first open call; with the last one, the model goes on.
    fn tool_result(&mut self, text: String) -> Result<()> {
        let [call, rest @ ..] = self.open_calls() else {
            return Err(Error::invalid("/tool: the last answer has no tool call without a result").into());
        };
        let mut message = Message::new(Role::Tool, text);
        message.tool_call_id = Some(call.id.clone());
        message.name = Some(call.name.clone());
        if let [next, ..] = rest {
            out::note(format_args!("now the result of {}", next.name));
            self.messages.push(message);
            return Ok(());
        }
        self.say(message)
    }

    fn all_messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new(Role::System, text.clone()));
        system.chain(self.messages.iter().cloned()).collect()
    }

    fn reset(&mut self) -> Result<()> {
        self.messages.clear();
        self.statistics = None;
        Ok(self.session.reset()?)
    }

    /// The sequence fed so far, and its limit.
    fn fill(&self) -> String {
        format!("context: {} of {} tokens", self.session.tokens().len(), self.loaded.model.context())
    }
}

/// A mistake in what was typed.
fn usage(text: impl Into<String>) -> Failure {
    Error::new(ErrorKind::InvalidRequest, text).into()
}
