//! System, messages and their blocks become turns of a conversation.

use engine::text::{Content, Json, Message, Role, ToolCall};

use crate::ApiError;
use crate::body::{At, shown};
use crate::messages::{call_arguments, can_go_on, content, of_texts, part_text, settle};

/// A conversation, and whether its last turn is the model's own and goes on.
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    pub(super) continues: bool,
}

/// Reads `system` and `messages`.
pub(super) fn conversation(body: &At) -> Result<Conversation, ApiError> {
    let mut turns = Vec::new();
    if let Some(system) = body.get("system") {
        turns.push(Message { content: content(Some(&system))?, ..Message::new(Role::System, "") });
    }
    let list = body.need("messages")?;
    for message in list.items()? {
        read(&message, &mut turns)?;
    }
    let mut messages = settle(turns);
    // The answer to nothing said so far is an answer from its beginning.
    if messages.last().is_some_and(|last| last.role == Role::Assistant && is_empty(last)) {
        messages.pop();
    }
    if messages.is_empty() {
        return Err(list.wrong("at least one message is needed"));
    }
    let continues = can_go_on(&messages);
    Ok(Conversation { messages, continues })
}

fn is_empty(turn: &Message) -> bool {
    let has_text = turn.content.as_ref().is_some_and(|content| !content.text().is_empty());
    !has_text && turn.reasoning_content.is_none() && turn.tool_calls.is_empty()
}

fn read(message: &At, turns: &mut Vec<Message>) -> Result<(), ApiError> {
    message.object()?;
    let role = message.need("role")?;
    let said = message.get("content");
    match role.string()? {
        "user" => user(said.as_ref(), turns),
        "assistant" => assistant(said.as_ref(), turns),
        "system" => {
            turns.push(Message { content: content(said.as_ref())?, ..Message::new(Role::System, "") });
            Ok(())
        }
        other => Err(role.wrong(format_args!("{} is no role of a message", shown(other)))),
    }
}

/// A user's turn. Results of calls in it are turns of their own, where they stand.
fn user(said: Option<&At>, turns: &mut Vec<Message>) -> Result<(), ApiError> {
    let Some(list) = said.filter(|said| matches!(said.json(), Json::Array(_))) else {
        turns.push(Message { content: content(said)?, ..Message::new(Role::User, "") });
        return Ok(());
    };
    let mut texts = Vec::new();
    let before = turns.len();
    for block in list.items()? {
        if block_type(&block)? == "tool_result" {
            let texts = std::mem::take(&mut texts);
            push_texts(&texts, turns);
            turns.push(result(&block)?);
        } else {
            texts.push(part_text(&block)?);
        }
    }
    push_texts(&texts, turns);
    if turns.len() == before {
        turns.push(Message::new(Role::User, ""));
    }
    Ok(())
}

fn push_texts(texts: &[&str], turns: &mut Vec<Message>) {
    if !texts.is_empty() {
        turns.push(Message { content: Some(of_texts(texts)), ..Message::new(Role::User, "") });
    }
}

fn result(block: &At) -> Result<Message, ApiError> {
    let id = block.need("tool_use_id")?.string()?.to_owned();
    let mut content = content(block.get("content").as_ref())?;
    let failed = block.flag_or("is_error", false)?;
    if failed {
        content = Some(as_error(content));
    }
    Ok(Message { content, tool_call_id: Some(id), ..Message::new(Role::Tool, "") })
}

/// No template shows that a call failed, so its text must say it.
fn as_error(content: Option<Content>) -> Content {
    match content {
        Some(content) if content.text().to_ascii_lowercase().contains("error") => content,
        Some(content) if !content.text().is_empty() => match content {
            Content::Text(text) => Content::Text(format!("Error: {text}")),
            Content::Parts(parts) => {
                let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
                let texts: Vec<&str> = ["Error:"].into_iter().chain(texts).collect();
                of_texts(&texts)
            }
        },
        _ => Content::Text("Error".to_owned()),
    }
}

fn assistant(said: Option<&At>, turns: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut turn = Message { content: None, ..Message::new(Role::Assistant, "") };
    let Some(list) = said.filter(|said| matches!(said.json(), Json::Array(_))) else {
        turn.content = content(said)?;
        turns.push(turn);
        return Ok(());
    };
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for block in list.items()? {
        match block_type(&block)? {
            "thinking" => thoughts.push(block.need("thinking")?.string()?),
            // Nobody can read it.
            "redacted_thinking" => {}
            "tool_use" => turn.tool_calls.push(call(&block)?),
            _ => texts.push(part_text(&block)?),
        }
    }
    thoughts.retain(|thought| !thought.is_empty());
    turn.reasoning_content = Some(thoughts.join("\n")).filter(|thought| !thought.is_empty());
    // Blocks of one answer, which may be cut anywhere.
    turn.content = Some(Content::Text(texts.concat())).filter(|_| !texts.is_empty());
    turns.push(turn);
    Ok(())
}

fn call(block: &At) -> Result<ToolCall, ApiError> {
    let id = block.need("id")?.string()?.to_owned();
    let name = block.need("name")?.string()?.to_owned();
    Ok(ToolCall { id, name, arguments: call_arguments(block.get("input").as_ref()) })
}

/// The type of a block; a string among blocks is a text.
fn block_type<'a>(block: &At<'a>) -> Result<&'a str, ApiError> {
    match block.json() {
        Json::String(_) => Ok("text"),
        _ => {
            block.object()?;
            block.need("type")?.string()
        }
    }
}
