//! The messages of a chat.

use engine::text::{Content, Json, Message, Role, ToolCall};

use crate::ApiError;
use crate::body::{At, shown};
use crate::messages::{call_arguments, content, settle};

/// Members of a message that are read, or that clients bring back from an answer and templates have no use for.
const KNOWN: [&str; 16] = [
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "refusal",
    "annotations",
    "audio",
    "function_call",
    "cache_control",
    "id",
    "provider_specific_fields",
    "type",
];

/// The messages of a body, as templates take them.
pub(super) fn messages(list: &At) -> Result<Vec<Message>, ApiError> {
    let messages: Vec<Message> = list.items()?.map(|at| message(&at)).collect::<Result<_, _>>()?;
    if messages.is_empty() {
        return Err(list.wrong("it is empty"));
    }
    Ok(settle(messages))
}

fn message(at: &At) -> Result<Message, ApiError> {
    at.object()?;
    let role = role(&at.need("role")?)?;
    if let Some(at) = at.get("function_call") {
        return Err(at.unsupported("it was replaced; use tool_calls"));
    }
    if let Some(at) = at.get("audio") {
        return Err(at.unsupported("audio is not supported, only text"));
    }
    let mut message = Message::new(role, "");
    message.content = content(at.get("content").as_ref())?;
    match role {
        Role::Assistant => {
            if message.content.is_none()
                && let Some(refusal) = at.get("refusal")
            {
                message.content = Some(Content::Text(refusal.string()?.to_owned()));
            }
            message.reasoning_content = reasoning(at)?;
            if let Some(list) = at.get("tool_calls") {
                message.tool_calls = list.items()?.map(|at| call(&at)).collect::<Result<_, _>>()?;
            }
        }
        Role::Tool => {
            message.tool_call_id = at.optional_text("tool_call_id")?;
            // A tool may have nothing to say.
            message.content.get_or_insert(Content::Text(String::new()));
        }
        _ if message.content.is_none() => return Err(missing_content(at)),
        _ => {}
    }
    message.name = at.optional_text("name")?;
    for (key, at) in at.members()? {
        if !KNOWN.contains(&key) {
            message.extra.insert(key.to_owned(), at.value()?);
        }
    }
    Ok(message)
}

fn missing_content(at: &At) -> ApiError {
    let path = at.path_of("content");
    ApiError::invalid(path.clone(), format!("`{path}`: expected a string or a list of parts, got nothing."))
}

fn role(at: &At) -> Result<Role, ApiError> {
    match at.string()? {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        "function" => Err(at.unsupported("it was replaced; use the role tool")),
        other => Err(
            at.wrong(format_args!("{} is none of system, developer, user, assistant and tool", shown(other)))
        ),
    }
}

/// Thoughts, as this server and llama.cpp name them, or as vLLM and OpenRouter do.
fn reasoning(at: &At) -> Result<Option<String>, ApiError> {
    let own = at.optional_text("reasoning_content")?;
    let other = at.get("reasoning").and_then(|at| at.json().as_str());
    Ok(own.or_else(|| other.map(str::to_owned)))
}

fn call(at: &At) -> Result<ToolCall, ApiError> {
    at.object()?;
    let id = at.optional_text("id")?.unwrap_or_default();
    match at.optional("type", At::string)? {
        None | Some("function") => {
            let function = at.need("function")?;
            let name = function.need("name")?.string()?.to_owned();
            Ok(ToolCall { id, name, arguments: call_arguments(function.get("arguments").as_ref()) })
        }
        Some("custom") => {
            let custom = at.need("custom")?;
            let name = custom.need("name")?.string()?.to_owned();
            let input = custom.optional_text("input")?.unwrap_or_default();
            Ok(ToolCall { id, name, arguments: Json::String(input) })
        }
        Some(other) => {
            Err(at.need("type")?.unsupported(format_args!("calls of type {} cannot be taken", shown(other))))
        }
    }
}
