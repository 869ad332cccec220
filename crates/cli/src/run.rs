//! `tidemill run`: one answer.

use std::path::PathBuf;

use engine::text::{ChatPrompt, Message, Role, Specials, Tokenizer};
use engine::{Error, Session};

use crate::answer::{Conversation, Display, answer, read_tools};
use crate::args::{ComputeArgs, StateArgs};
use crate::failure::{Failure, Result};
use crate::load::Loaded;
use crate::sampling::SamplingArgs;
use crate::{out, read};

const EXAMPLES: &str = "\
Examples:
  tidemill run -p 'Tell me a story about a brave hedgehog'
  tidemill run model.gguf -p - --max-tokens 200 < question.txt
  tidemill run -p 'Get the weather in Lisbon with days 3.' --tools tools.json --temperature 0 --json
  tidemill run model.gguf --raw -p 'Once upon a time'";

/// Arguments of `run`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A .gguf file, a directory of safetensors files, or a pulled name; default: the built-in demo model
    model: Option<String>,
    /// The prompt; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// The system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Tools that the model may call: a JSON file with a list of function definitions
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    tools: Option<PathBuf>,
    /// Whether the model thinks before it answers; default: the template's choice
    #[arg(long, value_name = "on|off", value_parser = parse_switch, conflicts_with = "raw")]
    think: Option<bool>,
    /// Continue the prompt as plain text, without the chat template; control tokens in it are obeyed
    #[arg(long)]
    raw: bool,
    /// Print one JSON object with the answer and its numbers, instead of text
    #[arg(long)]
    json: bool,
    /// Do not print statistics
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    states: StateArgs,
}

/// `on` and `off`.
pub(crate) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write on or off".into()),
    }
}

/// Answers.
pub(crate) fn main(args: &Args) -> Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => read_stdin()?,
        text => text.to_owned(),
    };
    let tools = args.tools.as_deref().map(read_tools).transpose()?.unwrap_or_default();
    let keeps_states = args.states.state_dir.is_some();
    let compute = ComputeArgs { keeps_states, ..args.compute.clone() };
    let loaded = Loaded::open(args.model.as_deref(), &compute)?;
    loaded.store_states(&args.states);
    let tokenizer = loaded.tokenizer()?;
    let options = args.sampling.options(loaded.meta())?;
    let (prompt, borders) = if args.raw {
        (raw_prompt(&tokenizer, prompt)?, Vec::new())
    } else {
        let system = args.system.iter().map(|text| Message::new(Role::System, text.clone()));
        let messages: Vec<Message> = system.chain([Message::new(Role::User, prompt)]).collect();
        let conversation = Conversation { messages: &messages, tools: &tools, thinking: args.think };
        let templates = loaded.templates()?;
        match keeps_states {
            true => conversation.prompt_with_borders(&templates, &tokenizer)?,
            false => (conversation.prompt(&templates, &tokenizer)?, Vec::new()),
        }
    };
    if prompt.tokens.is_empty() {
        return Err(Error::invalid("the prompt is empty: give the model something to continue").into());
    }
    let mut session = Session::new(&loaded.model)?;
    session.name_borders(&borders);
    let mut display = Display::default();
    let reply = answer(&mut session, &tokenizer, &prompt, &tools, &options, &mut |event| {
        if args.json { Ok(()) } else { display.show(event) }
    });
    display.end_line()?; // also before an error, which has a line of its own
    let reply = reply?;
    loaded.judge_drive(reply.reads.bytes, reply.reads.busy_s);
    loaded.flush_states();
    if args.json {
        out::json(&reply.to_json(&loaded))?;
    }
    if !args.quiet && !args.json {
        out::note(reply.statistics());
    }
    if reply.is_interrupted() { Err(Failure::interrupted()) } else { Ok(()) }
}

fn raw_prompt(tokenizer: &Tokenizer, text: String) -> Result<ChatPrompt> {
    let tokens = tokenizer.encode_document_with(&text, Specials::Parse)?;
    let opens_thinking = text.trim_end().ends_with("<think>");
    Ok(ChatPrompt { text, tokens, opens_thinking, json_calls: false, call_format: None })
}

fn read_stdin() -> Result<String> {
    let mut text = read::stdin()?;
    // The line end belongs to the shell, not to the prompt.
    let ended = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t).len());
    text.truncate(ended.unwrap_or(text.len()));
    Ok(text)
}
