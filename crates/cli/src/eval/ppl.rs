//! `tidemill eval ppl`

use std::path::PathBuf;

use clap::ValueEnum;
use engine::eval::{Dialog, Tally, TokenScore, score_tokens, windows};
use engine::text::{Message, Role, Specials, Templates, Tokenizer, ToolSpec};
use engine::{Error, Session};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{place, read_lines};
use crate::args::ComputeArgs;
use crate::failure::Result;
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar};
use crate::{out, read};

const EXAMPLES: &str = "\
Examples:
  tidemill eval ppl model.gguf text.txt --json
  tidemill eval ppl model.gguf text.txt --protocol llama.cpp --ctx 512
  tidemill eval ppl demo models/demo-eval/stories.jsonl --exact

What is scored, always by teacher forcing:
* a text, protocol tidemill: windows of --ctx tokens (512), each --stride (half of it) after the one before; every \
token but the first is scored once, with the window before it as context
* a text, protocol llama.cpp: llama-perplexity's separate chunks of --ctx tokens, of which the second half is scored
* {\"prompt\", \"text\"} lines: `text`, the bare text, all tokens but the first; `answer`, the text and its end token as \
the answer to the prompt in the chat template
* {\"messages\", \"tools\"} lines: `assistant`, the model's turns with their end tokens; `all`, every token but the first";

/// Tokens of a window or chunk unless `--ctx` says otherwise.
const DEFAULT_CTX: usize = 512;

/// Of `--ctx`.
const CTX_HELP: &str = "Tokens of context to plan for, and of a text's windows or chunks; default: 512 for a text, \
    else the model's own limit, 8192 at most";

/// Arguments of `eval ppl`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, mut_arg("ctx", |arg| arg.help(CTX_HELP)))]
pub(super) struct Args {
    /// A .gguf file, a directory of safetensors files, a pulled name, or `demo`
    model: String,
    /// A text, or a .jsonl file of texts or conversations
    textfile: PathBuf,
    /// How a text is cut
    #[arg(long, value_enum, default_value_t = Protocol::Tidemill)]
    protocol: Protocol,
    /// How far one window is from the next, in tokens, below --ctx; default: half of --ctx
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
    /// Score only the first N chunks, windows or lines
    #[arg(long, visible_alias = "limit", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Overlapping windows; every token is scored
    Tidemill,
    /// The same as llama-perplexity
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

/// A line of a JSONL file.
#[derive(Deserialize)]
#[serde(try_from = "Value")]
enum Line {
    Conversation { messages: Vec<Message>, tools: Vec<ToolSpec> },
    Answer { prompt: String, text: String },
}

impl TryFrom<Value> for Line {
    type Error = String;

    /// By the keys that are there, so that what is wrong with one of them can be said.
    fn try_from(value: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Conversation {
            messages: Vec<Message>,
            #[serde(default)]
            tools: Vec<ToolSpec>,
        }
        #[derive(Deserialize)]
        struct Answer {
            prompt: String,
            text: String,
        }
        if value.get("messages").is_some() {
            let Conversation { messages, tools } =
                serde_json::from_value(value).map_err(|e| e.to_string())?;
            return Ok(Self::Conversation { messages, tools });
        }
        if value.get("prompt").or(value.get("text")).is_some() {
            let Answer { prompt, text } = serde_json::from_value(value).map_err(|e| e.to_string())?;
            return Ok(Self::Answer { prompt, text });
        }
        Err("expected {\"prompt\", \"text\"}, or {\"messages\"} and perhaps \"tools\"".into())
    }
}

/// Measures.
pub(super) fn main(args: &Args) -> Result<()> {
    let limit = args.chunks.map(|n| n as usize);
    let is_jsonl = args.textfile.extension().is_some_and(|e| e == "jsonl");
    if args.stride.is_some() && (is_jsonl || args.protocol == Protocol::LlamaCpp) {
        let message =
            "--stride is for windows of a text: neither --protocol llama.cpp nor .jsonl files have them";
        return Err(Error::invalid(message).into());
    }
    if is_jsonl && args.protocol == Protocol::LlamaCpp {
        return Err(Error::invalid("--protocol llama.cpp is for a text, not for a .jsonl file").into());
    }
    if is_jsonl {
        let lines = read_lines(&args.textfile, limit)?;
        let loaded = Loaded::open(Some(&args.model), &args.compute)?;
        return lines_ppl(args, &loaded, &lines);
    }
    let text = read::file(&args.textfile)?;
    let mut compute = args.compute.clone();
    let ctx = *compute.machine.ctx.get_or_insert(DEFAULT_CTX);
    if ctx < 4 {
        return Err(Error::invalid("--ctx: a window needs at least 4 tokens").into());
    }
    if let Some(stride) = args.stride.filter(|&stride| stride as usize >= ctx) {
        let message =
            format!("--stride {stride}: must be below --ctx, which is {ctx}, or tokens are left out");
        return Err(Error::invalid(message).into());
    }
    let loaded = Loaded::open(Some(&args.model), &compute)?;
    let tokenizer = loaded.tokenizer()?;
    let windows = match args.protocol {
        Protocol::Tidemill => own_windows(&tokenizer, &text, ctx, args.stride),
        Protocol::LlamaCpp => llama_cpp_chunks(&tokenizer, &text, ctx),
    };
    let windows = windows.map_err(|e| e.context(args.textfile.display()))?;
    let windows = &windows[..windows.len().min(limit.unwrap_or(usize::MAX))];
    let mut session = Session::new(&loaded.model)?;
    let work = Work::begin();
    let bar = count_bar("scoring", windows.len() as u64);
    let mut tally = Tally::default();
    for window in windows {
        let mut scores = score_tokens(&mut session, &window.fed, window.from, &mut |_, _| work.flow())?;
        scores.truncate(window.scored);
        tally.add(&scores);
        bar.set_message(format!("ppl {:.4}", tally.perplexity().unwrap_or(f64::NAN)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut map = Map::new();
    map.insert("chunks".into(), json!(windows.len()));
    map.insert("ctx".into(), json!(ctx));
    report(args.json, &loaded, map, &[("", tally)])
}

/// A piece of a text.
struct Window {
    /// What is fed from an empty state.
    fed: Vec<u32>,
    /// The first scored token.
    from: usize,
    /// How many are scored.
    scored: usize,
}

fn own_windows(
    tokenizer: &Tokenizer,
    text: &str,
    ctx: usize,
    stride: Option<u32>,
) -> engine::Result<Vec<Window>> {
    let tokens = tokenizer.encode_document(text)?;
    if tokens.len() < 2 {
        return Err(Error::invalid("the text has fewer than 2 tokens: there is nothing to predict"));
    }
    let stride = stride.map_or(ctx / 2, |n| n as usize);
    let cut = windows(tokens.len(), ctx, stride);
    Ok(cut
        .into_iter()
        .map(|(range, from)| Window { scored: range.len() - from, from, fed: tokens[range].to_vec() })
        .collect())
}

/// llama-perplexity's cut: the text without one trailing line end, tokenised once with a beginning-of-sequence token
/// where the model wants one; whole chunks of `ctx`, their first token replaced by that token; scored are the tokens
/// after position `ctx / 2`.
fn llama_cpp_chunks(tokenizer: &Tokenizer, text: &str, ctx: usize) -> engine::Result<Vec<Window>> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let bos = tokenizer.encode_document("")?.first().copied();
    let mut tokens: Vec<u32> = bos.into_iter().collect();
    tokens.extend(tokenizer.encode(text, Specials::Ignore)?);
    if tokens.len() < 2 * ctx {
        let message = format!("{} tokens, and the protocol wants at least two chunks of {ctx}", tokens.len());
        return Err(Error::invalid(message));
    }
    let from = ctx / 2 + 1;
    let chunk = |chunk: &[u32]| {
        let mut fed = chunk.to_vec();
        fed[0] = bos.unwrap_or(fed[0]);
        Window { fed, from, scored: ctx - from }
    };
    Ok(tokens.chunks_exact(ctx).map(chunk).collect())
}

/// What was scored of the lines of a JSONL file.
#[derive(Default)]
struct Tallies {
    text: Tally,
    answer: Tally,
    assistant: Tally,
    all: Tally,
}

impl Tallies {
    /// Adds the scores of a line; `score` feeds tokens and scores those from an index on.
    fn add(
        &mut self,
        line: &Line,
        templates: &Templates,
        tokenizer: &Tokenizer,
        score: &mut dyn FnMut(&[u32], usize) -> engine::Result<Vec<TokenScore>>,
    ) -> engine::Result<()> {
        match line {
            Line::Answer { prompt, text } => {
                let bare = tokenizer.encode_document(text)?;
                self.text.add(&score(&bare, 1)?);
                let said = Message::new(Role::Assistant, text.clone());
                let messages = [Message::new(Role::User, prompt.clone()), said];
                let dialog = dialog(templates, tokenizer, &messages, &[])?;
                self.answer.add(&score(dialog.through_last_turn(), dialog.turns[0].start)?);
            }
            Line::Conversation { messages, tools } => {
                let dialog = dialog(templates, tokenizer, messages, tools)?;
                let scores = score(&dialog.tokens, 1)?;
                self.all.add(&scores);
                for turn in &dialog.turns {
                    self.assistant.add(&scores[turn.start - 1..turn.end - 1]);
                }
            }
        }
        Ok(())
    }
}

fn lines_ppl(args: &Args, loaded: &Loaded, lines: &[(usize, Line)]) -> Result<()> {
    let (tokenizer, templates) = (loaded.tokenizer()?, loaded.templates()?);
    let mut session = Session::new(&loaded.model)?;
    let work = Work::begin();
    let bar = count_bar("scoring", lines.len() as u64);
    let mut tallies = Tallies::default();
    let mut score =
        |tokens: &[u32], from: usize| score_tokens(&mut session, tokens, from, &mut |_, _| work.flow());
    for (number, line) in lines {
        let added = tallies.add(line, &templates, &tokenizer, &mut score);
        added.map_err(|e| e.context(place(&args.textfile, *number)))?;
        let shown = tallies.answer.perplexity().or(tallies.assistant.perplexity()).unwrap_or(f64::NAN);
        bar.set_message(format!("ppl {shown:.4}"));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut map = Map::new();
    map.insert("lines".into(), json!(lines.len()));
    let Tallies { text, answer, assistant, all } = tallies;
    let named = [("text", text), ("answer", answer), ("assistant", assistant), ("all", all)];
    report(args.json, loaded, map, &named)
}

/// A conversation in which the model speaks.
fn dialog(
    templates: &Templates,
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: &[ToolSpec],
) -> engine::Result<Dialog> {
    let dialog = Dialog::new(templates.pick(!tools.is_empty()), tokenizer, messages, tools)?;
    if dialog.turns.is_empty() {
        return Err(Error::invalid("no turn of the assistant"));
    }
    Ok(dialog)
}

/// Prints the measures that have tokens. `perplexity` is the only one, or that of what the model says.
fn report(
    as_json: bool,
    loaded: &Loaded,
    mut map: Map<String, Value>,
    tallies: &[(&str, Tally)],
) -> Result<()> {
    let measured: Vec<_> = tallies.iter().filter_map(|(name, t)| Some((*name, t, t.perplexity()?))).collect();
    let main =
        ["", "answer", "assistant"].iter().find_map(|want| measured.iter().find(|(name, ..)| name == want));
    let Some((_, tally, perplexity)) = main else {
        return Err(Error::invalid("nothing was scored").into());
    };
    if !as_json {
        let lines = measured
            .iter()
            .map(|(name, t, ppl)| format!("{name:<10}perplexity {ppl:>9.4}   {} tokens\n", t.tokens));
        return out::print(lines.collect::<String>().trim_start(), false);
    }
    let mut head = Map::new();
    head.insert("perplexity".into(), json!(perplexity));
    head.insert("tokens".into(), json!(tally.tokens));
    for (name, tally, perplexity) in measured.iter().filter(|(name, ..)| !name.is_empty()) {
        head.insert(format!("{name}_ppl"), json!(perplexity));
        head.insert(format!("{name}_tokens"), json!(tally.tokens));
    }
    head.append(&mut map);
    head.extend(loaded.describe());
    out::json(&Value::Object(head))
}
