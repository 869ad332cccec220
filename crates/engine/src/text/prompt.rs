//! From a conversation to the tokens of a prompt, with the control tokens of the template and of nobody else.
//!
//! A user who types `<|im_end|>` must not end a turn. Templates paste the user's strings into one text, so
//! before rendering, each place in a user's string where a control token could begin gets a stand-in for its
//! first character, from Unicode's private use area; control tokens are then looked for in the rendered text,
//! and only the text between them gets its own characters back.

use std::collections::{BTreeMap, BTreeSet};

use files::{Error, Result};
use serde_json::{Map, Value};

use super::chat::{Content, Message, Role, ToolSpec};
use super::format::CallFormat;
use super::json::{Json, JsonMap};
use super::strftime::CivilTime;
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::written::{Marked, Pieces, Turns};
use crate::sequence::common;

/// What a prompt is made of.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// The tools that the model may call.
    pub tools: Vec<ToolSpec>,
    /// Whether the prompt ends where the model's answer begins. An answer needs this.
    pub add_generation_prompt: bool,
    /// Whether the model should think first; `None` leaves the choice to the template.
    pub enable_thinking: Option<bool>,
    /// Further variables for the template; they do not override the ones above.
    pub extra: Map<String, Value>,
    /// What `strftime_now` shows.
    pub now: Option<CivilTime>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatPrompt {
    /// The text, as the template wrote it.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Whether the prompt leaves the model inside a `<think>` block.
    pub opens_thinking: bool,
    /// Whether the template asks for tool calls as plain JSON, without markup around it: see
    /// [`Template::json_calls`].
    pub json_calls: bool,
    /// How the template writes calls: see [`Template::call_format`].
    pub call_format: Option<&'static CallFormat>,
}

impl ChatRequest {
    /// The variables that a template sees, without the tokenizer's.
    fn context(&self, template: &Template) -> Result<JsonMap> {
        let extra = self.extra.iter().map(|(key, value)| (key.clone(), value.clone().into()));
        let mut context: JsonMap = extra.collect();
        let mut messages = Vec::with_capacity(self.messages.len());
        for (i, message) in self.messages.iter().enumerate() {
            let mut value = message.template_value();
            if let (Some(Content::Parts(parts)), Json::Object(map), false) =
                (&message.content, &mut value, template.takes_parts())
            {
                let text = joined(parts).map_err(|e| e.context(format!("messages[{i}]")))?;
                map.insert("content".into(), text.into());
            }
            messages.push(value);
        }
        let tools: Vec<Json> = self.tools.iter().map(|t| t.value().clone()).collect();
        context.insert("messages".into(), Json::Array(messages));
        // Hugging Face passes `None` where there are none, and templates tell the two apart.
        context.insert("tools".into(), if tools.is_empty() { Json::Null } else { Json::Array(tools) });
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), self.add_generation_prompt.into());
        if let Some(thinking) = self.enable_thinking {
            context.insert("enable_thinking".into(), thinking.into());
        }
        Ok(context)
    }
}

/// The text of `parts` for a template that wants one text: a line each.
fn joined(parts: &[Map<String, Value>]) -> Result<String> {
    let texts: Option<Vec<&str>> = parts.iter().map(|p| p.get("text").and_then(Value::as_str)).collect();
    let texts = texts.ok_or_else(|| {
        Error::unsupported("content: the model's chat template takes text only, and a part is something else")
    })?;
    Ok(texts.join("\n"))
}

impl ChatPrompt {
    /// Renders `request` with `template` and encodes it with `tokenizer`.
    ///
    /// # Errors
    /// What the template refuses, `Unsupported` for an empty prompt.
    pub fn new(template: &Template, tokenizer: &Tokenizer, request: &ChatRequest) -> Result<Self> {
        let mut context = request.context(template)?;
        let mut guard = Guard::new(tokenizer, &context)?;
        for (key, value) in &mut context {
            if key == "messages" {
                guard.messages(value);
            } else {
                guard.strings(value);
            }
        }
        for (key, text) in [("bos_token", tokenizer.bos_text()), ("eos_token", tokenizer.eos_text())] {
            if let Some(text) = text {
                context.insert(key.into(), text.into());
            }
        }
        let marked = Marked::new(&request.messages, &context, &mut guard.free);
        let rendered = template.render(&Json::Object(context), request.now)?;
        if rendered.is_empty() {
            return Err(Error::unsupported("the chat template makes an empty prompt of this conversation"));
        }
        let restore = |piece: &str| guard.restore(piece);
        let pieces = Pieces::new(tokenizer, &rendered, &restore);
        let splices = marked.and_then(|marked| {
            // A template that looks into what the model wrote may refuse a mark.
            let shown = template.render(&marked.context, request.now).ok()?;
            let ChatRequest { messages, tools, .. } = request;
            let turns = Turns { tokenizer, messages, tools, format: template.call_format() };
            Some(marked.splices(&pieces, (&rendered, &shown), &restore, &turns))
        });
        let tokens = pieces.encode(tokenizer, &splices.unwrap_or_default())?;
        let text = guard.restore(&rendered);
        let opens_thinking = request.add_generation_prompt && text.trim_end().ends_with("<think>");
        let (json_calls, call_format) = (template.json_calls(), template.call_format());
        Ok(Self { text, tokens, opens_thinking, json_calls, call_format })
    }

    /// Where prompts to come are likely to part from this one, for [`crate::Sequence::name_borders`]; rising:
    ///
    /// * after the system message and the tools, which other conversations share;
    /// * after the last question: templates drop the thoughts of a loop of calls when the next question comes;
    /// * before the beginning of the answer, which many templates write in another way once it is there.
    ///
    /// Each is found by rendering such a prompt, and lies as far as its tokens are the same. A template that refuses one
    /// has no such border.
    pub fn borders(&self, template: &Template, tokenizer: &Tokenizer, request: &ChatRequest) -> Vec<usize> {
        let other = |messages: Vec<Message>| {
            let request = ChatRequest { messages, add_generation_prompt: false, ..request.clone() };
            Some(common(&self.tokens, &Self::new(template, tokenizer, &request).ok()?.tokens))
        };
        let messages = &request.messages;
        let system = messages.iter().take_while(|message| message.role == Role::System).count();
        let preamble = messages.get(system).map(|first| {
            let is_a =
                first.content.as_ref().is_some_and(|content| content.text().trim_start().starts_with('a'));
            let question = Message::new(Role::User, if is_a { "b" } else { "a" });
            messages[..system].iter().cloned().chain([question]).collect()
        });
        let question = messages.iter().rposition(|message| message.role == Role::User);
        // Where nothing follows the question, `all` says the same.
        let question = question.filter(|at| !request.add_generation_prompt || at + 1 < messages.len());
        let question = question.map(|at| messages[..=at].to_vec());
        let all = Some(messages.clone()).filter(|_| request.add_generation_prompt);
        let mut borders: Vec<usize> =
            [preamble, question, all].into_iter().flatten().filter_map(other).filter(|at| *at > 0).collect();
        borders.sort_unstable();
        borders.dedup();
        borders
    }
}

/// Puts stand-ins into strings and takes them out again.
struct Guard<'a> {
    /// Characters that occur nowhere.
    free: Box<dyn Iterator<Item = char>>,
    /// Control tokens, except the markup of replies.
    control: Vec<&'a str>,
    /// The markup of replies, where the tokenizer calls it control: a model's own turns may hold it.
    markup: Vec<&'a str>,
    stand_ins: BTreeMap<char, char>,
    originals: BTreeMap<char, char>,
}

impl<'a> Guard<'a> {
    /// Picks stand-ins that occur nowhere in `context`.
    fn new(tokenizer: &'a Tokenizer, context: &JsonMap) -> Result<Self> {
        let (markup, control): (Vec<&str>, Vec<&str>) =
            tokenizer.control_texts().partition(|t| super::reply::MARKUP.contains(t));
        let mut taken = BTreeSet::new();
        context.values().for_each(|value| private_characters(value, &mut taken));
        let free = (0x10_0000..=0x10_FFFD).filter_map(char::from_u32).filter(move |c| !taken.contains(c));
        let mut free: Box<dyn Iterator<Item = char>> = Box::new(free);
        let (mut stand_ins, mut originals) = (BTreeMap::new(), BTreeMap::new());
        let first_chars: BTreeSet<char> =
            control.iter().chain(&markup).filter_map(|t| t.chars().next()).collect();
        for first in first_chars {
            let stand_in = free
                .next()
                .ok_or_else(|| Error::invalid("messages: they use up Unicode's private characters"))?;
            stand_ins.insert(first, stand_in);
            originals.insert(stand_in, first);
        }
        Ok(Self { free, control, markup, stand_ins, originals })
    }

    /// Guards the conversation. A model's own turns keep the reply markup, which templates look for in them.
    fn messages(&mut self, messages: &mut Json) {
        let Json::Array(messages) = messages else { return };
        for message in messages {
            let own = message.get("role").and_then(Json::as_str) == Some(Role::Assistant.name());
            let Json::Object(map) = message else { continue };
            for (key, value) in map {
                if own && (key == "content" || key == "reasoning_content") {
                    let markup = std::mem::take(&mut self.markup);
                    self.strings(value);
                    self.markup = markup;
                } else {
                    self.strings(value);
                }
            }
        }
    }

    fn strings(&self, value: &mut Json) {
        match value {
            Json::String(text) => *text = self.guard(text),
            Json::Array(list) => list.iter_mut().for_each(|v| self.strings(v)),
            Json::Object(map) => {
                let entries = std::mem::take(map).into_iter();
                *map = entries
                    .map(|(key, mut v)| {
                        self.strings(&mut v);
                        (self.guard(&key), v)
                    })
                    .collect();
            }
            _ => {}
        }
    }

    /// Replaces the first character of every control token in `text`, and of every beginning of one at its
    /// end, which the next string might complete.
    fn guard(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let rest = &text[at..];
            let token = |t: &&&str| rest.starts_with(**t) || t.starts_with(rest);
            let stand_in = self.stand_ins.get(&c).filter(|_| {
                self.control.iter().find(token).is_some() || self.markup.iter().find(token).is_some()
            });
            out.push(stand_in.copied().unwrap_or(c));
        }
        out
    }

    fn restore(&self, text: &str) -> String {
        text.chars().map(|c| self.originals.get(&c).copied().unwrap_or(c)).collect()
    }
}

fn private_characters(value: &Json, taken: &mut BTreeSet<char>) {
    let mut scan = |text: &str| taken.extend(text.chars().filter(|c| *c >= '\u{100000}'));
    match value {
        Json::String(text) => scan(text),
        Json::Array(list) => list.iter().for_each(|v| private_characters(v, taken)),
        Json::Object(map) => {
            map.keys().for_each(|key| scan(key));
            map.values().for_each(|v| private_characters(v, taken));
        }
        _ => {}
    }
}
