//! One answer: generates, takes the reply apart, streams it, and keeps its numbers. `run` and `chat` share it.

use std::io::IsTerminal;
use std::ops::{ControlFlow, Deref};

use api::prompts::now;
use api::report::{Answered, Reads};
use engine::generate::{FinishReason, GenerateEvent, GenerateOptions, generate};
use engine::text::{
    ChatPrompt, ChatRequest, Json, JsonMap, Message, ReplyEvent, ReplyOptions, ReplyTurn, Templates,
    Tokenizer, ToolCall, ToolSpec,
};
use engine::{Error, Session};
use indicatif::ProgressBar;
use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::interrupt::Work;
use crate::load::{Loaded, count_bar};
use crate::{out, read};

/// Prompts of at least this many tokens get a progress bar.
const BAR_TOKENS: usize = 256;

/// A conversation to answer.
pub(crate) struct Conversation<'a> {
    /// The turns so far.
    pub(crate) messages: &'a [Message],
    /// The tools on offer.
    pub(crate) tools: &'a [ToolSpec],
    /// Whether to think first; `None` leaves it to the template.
    pub(crate) thinking: Option<bool>,
}

impl Conversation<'_> {
    /// The prompt for the next answer.
    ///
    /// # Errors
    /// What the template refuses.
    pub(crate) fn prompt(&self, templates: &Templates, tokenizer: &Tokenizer) -> Result<ChatPrompt> {
        Ok(ChatPrompt::new(templates.pick(!self.tools.is_empty()), tokenizer, &self.request())?)
    }

    /// The same, with the positions where prompts to come are likely to part from it.
    ///
    /// # Errors
    /// What the template refuses.
    pub(crate) fn prompt_with_borders(
        &self,
        templates: &Templates,
        tokenizer: &Tokenizer,
    ) -> Result<(ChatPrompt, Vec<usize>)> {
        let (template, request) = (templates.pick(!self.tools.is_empty()), self.request());
        let prompt = ChatPrompt::new(template, tokenizer, &request)?;
        let borders = prompt.borders(template, tokenizer, &request);
        Ok((prompt, borders))
    }

    /// What a template is asked for.
    pub(crate) fn request(&self) -> ChatRequest {
        ChatRequest {
            messages: self.messages.to_vec(),
            tools: self.tools.to_vec(),
            add_generation_prompt: true,
            enable_thinking: self.thinking,
            now: Some(now()),
            ..ChatRequest::default()
        }
    }
}

/// An answer and its numbers.
pub(crate) struct Reply(Answered);

impl Deref for Reply {
    type Target = Answered;

    fn deref(&self) -> &Answered {
        &self.0
    }
}

impl Reply {
    /// Whether Ctrl-C ended it.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.generated.finish == FinishReason::Cancelled
    }

    /// The numbers, for people: one line.
    pub(crate) fn statistics(&self) -> String {
        let g = &self.generated;
        let mut line = format!(
            "prompt {} tokens ({} reused), {:.1} tokens/s · answer {} tokens, {:.1} tokens/s · first token after {:.2} s",
            g.prompt_tokens,
            g.reused_tokens,
            g.prefill_tokens_per_s(),
            g.tokens.len(),
            g.decode_tokens_per_s(),
            g.time_to_first_token.as_secs_f64(),
        );
        if let Some(hit_rate) = self.reads.hit_rate {
            let read = out::bytes(self.reads.bytes / self.computed_tokens().max(1) as u64);
            line += &format!(
                " · experts {:.0} % in memory, {read} read per token, {:.1} s waited for the drive",
                100.0 * hit_rate,
                self.reads.wait_s
            );
        }
        if let Some(seed) = self.seed {
            line += &format!(" · seed {seed}");
        }
        match g.finish {
            FinishReason::Stop => {}
            FinishReason::Length => line += " · ended by --max-tokens",
            FinishReason::Context => line += " · ended because the context is full",
            FinishReason::Cancelled => line += " · stopped",
        }
        line
    }

    /// The answer and the numbers, for programs.
    pub(crate) fn to_json(&self, loaded: &Loaded) -> Value {
        let mut map = self.json();
        map.extend(loaded.describe());
        Value::Object(map)
    }
}

/// A call, as people read it: `name({"key": "value"})`.
pub(crate) fn shown_call(call: &ToolCall) -> String {
    format!("{}({})", call.name, call.arguments)
}

/// Generates after `prompt` and hands the pieces of the reply to `each` as they come. Ctrl-C ends the answer. Stop
/// strings are looked for in the answer's text, not in thoughts and calls.
///
/// # Errors
/// What generation reports, and what `each` does.
pub(crate) fn answer(
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &ChatPrompt,
    tools: &[ToolSpec],
    options: &GenerateOptions,
    each: &mut dyn FnMut(&ReplyEvent) -> Result<()>,
) -> Result<Reply> {
    let work = Work::begin();
    let model = session.model().clone();
    let before = model.read_stats();
    let reply = ReplyOptions {
        opens_thinking: prompt.opens_thinking,
        json_calls: prompt.json_calls,
        tools: tools.to_vec(),
        ..ReplyOptions::default()
    };
    let options = GenerateOptions { reply: Some(reply), ..options.clone() };
    let mut turn = ReplyTurn::default();
    let mut failed = None;
    let mut bar = PromptBar(None);
    let generated = generate(session, tokenizer, &prompt.tokens, &options, &mut |event| {
        match event {
            GenerateEvent::Prompt { done_tokens, total_tokens } => bar.show(done_tokens, total_tokens),
            GenerateEvent::Token => {}
            GenerateEvent::Reply(event) => {
                bar.clear();
                turn.take(&event);
                if failed.is_none() {
                    failed = each(&event).err();
                }
                if failed.is_some() {
                    return ControlFlow::Break(());
                }
            }
        }
        work.flow()
    });
    bar.clear();
    if let Some(failure) = failed {
        return Err(failure);
    }
    let generated = generated?;
    session.keep()?; // the next turn goes on from here
    let seed = options.sampling.seed_in_use();
    let reads = Reads::between(before.as_ref(), model.read_stats().as_ref());
    Ok(Reply(Answered { turn, generated, reads, seed }))
}

/// The progress of a long prompt.
struct PromptBar(Option<ProgressBar>);

impl PromptBar {
    fn show(&mut self, done_tokens: f64, total_tokens: usize) {
        if total_tokens >= BAR_TOKENS && std::io::stderr().is_terminal() {
            let bar = self.0.get_or_insert_with(|| count_bar("reading the prompt", total_tokens as u64));
            bar.set_position(done_tokens as u64);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows the pieces of a reply: text and calls on stdout, thoughts on stderr.
#[derive(Default)]
pub(crate) struct Display {
    line_open: bool,
    thought_open: bool,
    after_call: bool,
}

impl Display {
    /// Shows one piece.
    ///
    /// # Errors
    /// When stdout fails or has no reader left.
    pub(crate) fn show(&mut self, event: &ReplyEvent) -> Result<()> {
        if self.thought_open && !matches!(event, ReplyEvent::Thinking(_)) {
            out::thought("\n\n");
            self.thought_open = false;
        }
        let after_call = std::mem::take(&mut self.after_call);
        match event {
            ReplyEvent::Text(text) => {
                if after_call && !text.starts_with('\n') {
                    self.end_line()?;
                }
                self.line_open = !text.ends_with('\n');
                out::print_model(text)
            }
            ReplyEvent::Thinking(text) => {
                self.thought_open = true;
                out::thought(text);
                Ok(())
            }
            ReplyEvent::TextWasThinking => {
                self.end_line()?;
                out::note("what is above was a thought: it ended with </think>");
                Ok(())
            }
            ReplyEvent::ToolCallStart { .. }
            | ReplyEvent::ToolCallArguments { .. }
            | ReplyEvent::Logprobs(_) => {
                self.after_call = after_call;
                Ok(())
            }
            ReplyEvent::ToolCall { call, .. } => {
                self.end_line()?;
                (self.line_open, self.after_call) = (true, true);
                out::print_model(&shown_call(call))
            }
            ReplyEvent::MalformedToolCall { reason, .. } => {
                out::note(format_args!("a tool call of the model is malformed: {reason}"));
                Ok(())
            }
            ReplyEvent::BrokenToolCall { reason, text, .. } => {
                out::note(format_args!("a tool call of the model is malformed: {reason}"));
                self.line_open = !text.ends_with('\n');
                out::print_model(text)
            }
        }
    }

    /// Ends the last line, if it is not ended.
    ///
    /// # Errors
    /// As [`Self::show`].
    pub(crate) fn end_line(&mut self) -> Result<()> {
        if std::mem::take(&mut self.thought_open) {
            out::thought("\n");
        }
        if std::mem::take(&mut self.line_open) { out::print("\n", false) } else { Ok(()) }
    }
}

/// Reads tool definitions from a JSON file: a list, or an object with a list under `tools`.
///
/// # Errors
/// Names the file.
pub(crate) fn read_tools(path: &std::path::Path) -> Result<Vec<ToolSpec>> {
    let text = read::file(path)?;
    let bad = |e: &dyn std::fmt::Display| Failure::from(Error::invalid(format!("{}: {e}", path.display())));
    let value = Json::parse(text.trim_start_matches('\u{feff}')).map_err(|e| bad(&e))?;
    let list = match value {
        Json::Object(mut map) => map.shift_remove("tools").unwrap_or(Json::Object(map)),
        other => other,
    };
    let Json::Array(list) = list else {
        return Err(bad(&"expected a JSON list of tools"));
    };
    list.into_iter()
        // The bare function, without the wrapper of the API, is common in examples.
        .map(|tool| {
            if tool.get("function").is_some() {
                return tool;
            }
            let wrapped = [("type".to_owned(), "function".into()), ("function".to_owned(), tool)];
            Json::Object(JsonMap::from_iter(wrapped))
        })
        .map(|tool| ToolSpec::new(tool).map_err(|e| bad(&e)))
        .collect()
}
