//! The input: items of all kinds become turns of a conversation.
//!
//! Thoughts, text and calls of one answer are items of their own, and one turn for a template.

use engine::text::{Content, Json, Message, Role, ToolCall};
use serde_json::Value;

use super::tools::Offer;
use crate::body::{At, shown};
use crate::fields::Ignored;
use crate::messages::{call_arguments, content};
use crate::{ApiError, Limits};

/// What a hosted tool did. It says nothing that a text model could read, so it is left out and named.
pub(crate) const RECORDS: [&str; 9] = [
    "code_interpreter_call",
    "configuration_update",
    "file_search_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
];

/// Reads the items of an input.
pub(super) struct Input<'a> {
    limits: &'a Limits,
    ignored: &'a mut Ignored,
    /// Items may bring tools with them.
    offer: &'a mut Offer,
    messages: Vec<Message>,
}

impl<'a> Input<'a> {
    pub(super) fn new(limits: &'a Limits, ignored: &'a mut Ignored, offer: &'a mut Offer) -> Self {
        Self { limits, ignored, offer, messages: Vec::new() }
    }

    /// The turns of `input`: a question, or a list of items.
    pub(super) fn read(mut self, input: &At) -> Result<Vec<Message>, ApiError> {
        match input.json() {
            Json::String(text) => self.messages.push(Message::new(Role::User, text.as_str())),
            Json::Array(_) => {
                for item in input.items()? {
                    self.item(&item)?;
                }
            }
            _ => return Err(input.wrong_type("a string or a list of items")),
        }
        Ok(self.messages)
    }

    fn item(&mut self, item: &At) -> Result<(), ApiError> {
        item.object()?;
        let kind = item.get("type");
        // A message may come without a type, and nothing else has a role.
        let name = match &kind {
            Some(kind) => kind.string()?,
            None if item.get("role").is_some() => "message",
            None => return Err(item.wrong("an item needs a type")),
        };
        match name {
            "message" => self.message(item),
            "reasoning" => self.reasoning(item),
            "function_call" => {
                item.optional("arguments", At::string)?;
                self.call(item, call_arguments(item.get("arguments").as_ref()))
            }
            // Its tool is not offered here; an older call of it is told as one of a function.
            "custom_tool_call" => {
                let text = item.need("input")?.string()?;
                self.call(item, Json::Object([("input".to_owned(), text.into())].into_iter().collect()))
            }
            "local_shell_call" => self.local_shell(item),
            "function_call_output" | "custom_tool_call_output" => {
                self.output(item.need("call_id")?.string()?.to_owned(), item)
            }
            "local_shell_call_output" => self.output(local_shell_id(item)?, item),
            "additional_tools" => self.offer.list(&item.need("tools")?, self.limits, self.ignored),
            name if RECORDS.contains(&name) => {
                self.ignored.push(item, "an item of a hosted tool", self.limits)
            }
            other => {
                let at = kind.as_ref().unwrap_or(item);
                Err(at.unsupported(format_args!("items of type {} cannot be taken", shown(other))))
            }
        }
    }

    fn message(&mut self, item: &At) -> Result<(), ApiError> {
        let role = item.need("role")?;
        let content = content(item.get("content").as_ref())?;
        let role = match role.string()? {
            "system" => Role::System,
            "developer" => Role::Developer,
            "user" => Role::User,
            "assistant" => {
                self.spoken(content);
                return Ok(());
            }
            other => return Err(role.wrong(format_args!("{} is no role of a message", shown(other)))),
        };
        self.messages.push(Message { content, ..Message::new(role, "") });
        Ok(())
    }

    /// Text of the model. After calls it belongs to their turn, whose results are still to come.
    fn spoken(&mut self, text: Option<Content>) {
        let turn = self.turn(|turn| turn.content.is_none() || !turn.tool_calls.is_empty());
        turn.content = match (turn.content.take(), text) {
            (before, None) => before,
            (None, text) => text,
            (Some(before), Some(text)) => Some(Content::Text(before.text() + &text.text())),
        };
    }

    fn reasoning(&mut self, item: &At) -> Result<(), ApiError> {
        let mut thought = joined(item.get("content"), "reasoning_text")?;
        if thought.is_empty() {
            thought = joined(item.get("summary"), "summary_text")?;
        }
        if thought.is_empty() {
            return Ok(());
        }
        let turn = self.turn(|turn| turn.content.is_none() && turn.tool_calls.is_empty());
        match &mut turn.reasoning_content {
            Some(before) => {
                before.push('\n');
                before.push_str(&thought);
            }
            none => *none = Some(thought),
        }
        Ok(())
    }

    fn call(&mut self, item: &At, arguments: Json) -> Result<(), ApiError> {
        let id = item.need("call_id")?.string()?.to_owned();
        let name = item.need("name")?.string()?;
        let name = match item.get("namespace") {
            Some(namespace) => super::tools::full_name(namespace.string()?, name),
            None => name.to_owned(),
        };
        self.turn(|_| true).tool_calls.push(ToolCall { id, name, arguments });
        Ok(())
    }

    /// A command of a tool that is not offered here, told as a call of a function.
    fn local_shell(&mut self, item: &At) -> Result<(), ApiError> {
        let (id, arguments) = (local_shell_id(item)?, item.need("action")?.json().clone());
        self.turn(|_| true).tool_calls.push(ToolCall { id, name: "local_shell".to_owned(), arguments });
        Ok(())
    }

    fn output(&mut self, id: String, item: &At) -> Result<(), ApiError> {
        let content = content(item.get("output").as_ref())?;
        self.messages.push(Message { content, tool_call_id: Some(id), ..Message::new(Role::Tool, "") });
        Ok(())
    }

    /// The model's last turn where nothing came after it and it `takes` more, else a new one.
    fn turn(&mut self, takes: impl Fn(&Message) -> bool) -> &mut Message {
        let at = self.messages.len();
        match self.messages.last() {
            Some(last) if last.role == Role::Assistant && takes(last) => &mut self.messages[at - 1],
            _ => {
                self.messages.push(Message { content: None, ..Message::new(Role::Assistant, "") });
                &mut self.messages[at]
            }
        }
    }
}

/// The id that a command and its output share; the output, and the command of an older client, have it as their own.
fn local_shell_id(item: &At) -> Result<String, ApiError> {
    let id = item.get("call_id").or_else(|| item.get("id"));
    Ok(id.map_or_else(|| item.need("call_id"), Ok)?.string()?.to_owned())
}

/// The texts of a reasoning item's parts, a line each.
fn joined(parts: Option<At>, kind: &str) -> Result<String, ApiError> {
    let Some(parts) = parts else { return Ok(String::new()) };
    let mut texts = Vec::new();
    for part in parts.items()? {
        let found = part.need("type")?;
        // What is called otherwise is no thought in plain text.
        if found.string()? == kind || found.string()? == "text" {
            texts.push(part.need("text")?.string()?);
        }
    }
    Ok(texts.join("\n"))
}

/// The turns of an answer, from the items that were its output. They are read as if a client had sent them back.
pub(super) fn answer(output: &[Value]) -> Vec<Message> {
    let output = Json::from(Value::Array(output.to_vec()));
    let limits = Limits { choices_max: 1, strict: false, completion_tokens: 0 };
    let (mut ignored, mut offer) = (Ignored::default(), Offer::default());
    // Our own items are all of kinds that can be read.
    Input::new(&limits, &mut ignored, &mut offer).read(&At::root(&output)).unwrap_or_default()
}

/// Refuses the output of a call that is nowhere in the conversation.
pub(super) fn check_outputs<'a>(messages: impl Iterator<Item = &'a Message> + Clone) -> Result<(), ApiError> {
    let calls: std::collections::HashSet<&str> =
        messages.clone().flat_map(|message| &message.tool_calls).map(|call| call.id.as_str()).collect();
    let unknown = |id: &&str| !calls.contains(id);
    match messages.filter_map(|message| message.tool_call_id.as_deref()).find(unknown) {
        None => Ok(()),
        Some(id) => Err(ApiError::invalid(
            "input".to_owned(),
            format!("No tool call found for function call output with call_id {}.", shown(id)),
        )),
    }
}
