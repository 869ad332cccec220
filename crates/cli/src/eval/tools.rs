//! `tidemill eval tools`

use std::path::PathBuf;

use engine::eval::{Dialog, Tally, score_tokens};
use engine::text::{Message, Role, ToolSpec};
use engine::{Error, Session};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{place, read_lines};
use crate::args::ComputeArgs;
use crate::failure::Result;
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar};
use crate::out;

const EXAMPLES: &str = "\
Example:
  tidemill eval tools demo models/demo-eval/tool_prompts.jsonl --exact --json

A line is {\"messages\", \"tools\", \"expected_text\"} and may have \"unseen_noun\": true. A case counts if, with the expected \
reply given token by token, the most likely token is the expected one at every position, the end token included: the \
same as greedy decoding writing exactly that. `tool_token_acc` is the share of right tokens.";

/// Arguments of `eval tools`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A .gguf file, a directory of safetensors files, a pulled name, or `demo`
    model: String,
    /// The cases, one JSON object a line
    cases: PathBuf,
    /// Only the first N cases
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// A prompt and the reply that it should get.
#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    tools: Vec<ToolSpec>,
    expected_text: String,
    #[serde(default)]
    unseen_noun: bool,
}

/// Cases of one kind.
#[derive(Default)]
struct Share {
    exact: usize,
    cases: usize,
}

impl Share {
    fn add(&mut self, exact: bool) {
        self.cases += 1;
        self.exact += usize::from(exact);
    }

    fn value(&self) -> Option<f64> {
        (self.cases > 0).then(|| self.exact as f64 / self.cases as f64)
    }
}

/// Measures.
pub(super) fn main(args: &Args) -> Result<()> {
    let cases: Vec<(usize, Case)> = read_lines(&args.cases, args.limit.map(|n| n as usize))?;
    let loaded = Loaded::open(Some(&args.model), &args.compute)?;
    let (tokenizer, templates) = (loaded.tokenizer()?, loaded.templates()?);
    let mut session = Session::new(&loaded.model)?;
    let work = Work::begin();
    let bar = count_bar("scoring", cases.len() as u64);
    let (mut all, mut seen, mut unseen) = (Share::default(), Share::default(), Share::default());
    let mut tokens = Tally::default();
    for (number, case) in cases {
        let named = |e: Error| e.context(place(&args.cases, number));
        let mut messages = case.messages;
        messages.push(Message::new(Role::Assistant, case.expected_text));
        let template = templates.pick(!case.tools.is_empty());
        let dialog = Dialog::new(template, &tokenizer, &messages, &case.tools).map_err(named)?;
        let begin = dialog.turns.last().map_or(0, |turn| turn.start);
        let fed = dialog.through_last_turn();
        let scores = score_tokens(&mut session, fed, begin, &mut |_, _| work.flow()).map_err(named)?;
        let exact = scores.iter().all(|score| score.is_best);
        tokens.add(&scores);
        all.add(exact);
        if case.unseen_noun {
            unseen.add(exact)
        } else {
            seen.add(exact)
        }
        bar.set_message(format!("{} exact", all.exact));
        bar.inc(1);
    }
    bar.finish_and_clear();
    report(args.json, &loaded, &[("", all), ("_seen_nouns", seen), ("_unseen_nouns", unseen)], &tokens)
}

fn report(as_json: bool, loaded: &Loaded, shares: &[(&str, Share); 3], tokens: &Tally) -> Result<()> {
    let cases = shares[0].1.cases;
    let accuracy = tokens.accuracy();
    if !as_json {
        let mut text = String::new();
        for (name, share) in shares.iter().filter(|(_, share)| share.cases > 0) {
            let name = format!("tool_exact{name}");
            let value = 100.0 * share.value().unwrap_or_default();
            text += &format!("{name:<24}{value:>7.2} %   {} of {}\n", share.exact, share.cases);
        }
        let accuracy = 100.0 * accuracy.unwrap_or_default();
        text += &format!("{:<24}{accuracy:>7.2} %   of {} tokens\n", "tool_token_acc", tokens.tokens);
        return out::print(&text, false);
    }
    let mut map = Map::new();
    for (name, share) in shares {
        map.insert(format!("tool_exact{name}"), json!(share.value()));
    }
    map.insert("tool_n".into(), json!(cases));
    map.insert("tool_token_acc".into(), json!(accuracy));
    map.insert("tool_tokens".into(), json!(tokens.tokens));
    map.extend(loaded.describe());
    out::json(&Value::Object(map))
}
