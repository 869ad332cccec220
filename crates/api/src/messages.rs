//! From the messages of an API to those that a template takes, without moving or losing anything.

use std::borrow::Cow;

use engine::text::{Content, Json, JsonMap, Message, Role};
use serde_json::{Map, Value};

use crate::body::{At, shown};
use crate::{ApiError, Chat};

/// What stands between system messages that are joined, and an empty line in any text.
const EMPTY_LINE: &str = "\n\n";

/// A coding agent's first line; its `cch` changes with each request.
const BILLING: &str = "x-anthropic-billing-header:";

/// The content of a message: a string, or parts that hold text. `null` and absence are `None`.
///
/// # Errors
/// `Invalid`; `unsupported_value` for a part that holds no text.
pub fn content(at: Option<&At>) -> Result<Option<Content>, ApiError> {
    let Some(at) = at else { return Ok(None) };
    match at.json() {
        Json::Null => Ok(None),
        Json::String(text) => Ok(Some(Content::Text(text.clone()))),
        Json::Array(_) => {
            let texts: Result<Vec<&str>, ApiError> = at.items()?.map(|part| part_text(&part)).collect();
            Ok(Some(of_texts(&texts?)))
        }
        _ => Err(at.wrong_type("a string or a list of parts")),
    }
}

/// Content that is made of `texts`, one a part. One text is plain content, which every template renders alike.
pub fn of_texts(texts: &[&str]) -> Content {
    let part = |text: &&str| {
        let entries = [("type", "text"), ("text", *text)];
        entries.into_iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<Map<_, _>>()
    };
    match texts {
        [] => Content::Text(String::new()),
        [text] => Content::Text((*text).to_owned()),
        texts => Content::Parts(texts.iter().map(part).collect()),
    }
}

/// The text of a part: `text`, `input_text`, `output_text`, `refusal`.
///
/// # Errors
/// `unsupported_value`, naming the part's type, for all others.
pub fn part_text<'a>(part: &At<'a>) -> Result<&'a str, ApiError> {
    if let Json::String(text) = part.json() {
        return Ok(text);
    }
    part.object()?;
    let kind = part.need("type")?;
    match kind.string()? {
        "text" | "input_text" | "output_text" => part.need("text")?.string(),
        "refusal" => part.need("refusal")?.string(),
        other => {
            Err(kind.unsupported(format_args!("parts of type {} cannot be taken, only text", shown(other))))
        }
    }
}

/// The arguments of an old call, which clients bring as JSON text or as the value itself. Without any it has none, and
/// text that is no object stays the text it is.
pub fn call_arguments(at: Option<&At>) -> Json {
    match at.map(At::json) {
        None => Json::Object(JsonMap::new()),
        Some(Json::String(text)) if text.trim().is_empty() => Json::Object(JsonMap::new()),
        Some(Json::String(text)) => match Json::parse(text) {
            Ok(Json::Object(map)) => Json::Object(map),
            _ => Json::String(text.clone()),
        },
        Some(other) => other.clone(),
    }
}

/// What all APIs do last: `developer` becomes `system`, the system messages at the beginning become one, results of
/// calls stand in the order of their calls, and lines that change with each request become constant.
pub fn settle(mut messages: Vec<Message>) -> Vec<Message> {
    for message in &mut messages {
        if message.role == Role::Developer {
            message.role = Role::System;
        }
        if message.role == Role::System {
            steady_content(message);
        }
    }
    order_results(&mut messages);
    let leading = leading_system(&messages);
    if leading > 1 {
        let texts: Vec<String> = messages.drain(..leading).map(|message| lines(&message)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        messages.insert(0, Message::new(Role::System, texts.join(EMPTY_LINE)));
    }
    messages
}

/// Makes users' turns of the system messages that are not at the beginning, for a template that refuses them there or
/// leaves them out. They stay where they are: at the front they would change the whole prompt with each turn.
pub fn late_system_as_user(chat: &mut Chat) {
    let leading = leading_system(&chat.messages);
    for message in &mut chat.messages[leading..] {
        if message.role == Role::System {
            message.role = Role::User;
        }
    }
}

/// Makes one turn of several of the user's, for templates that want an answer after each.
pub fn join_user_runs(messages: &mut Vec<Message>) {
    messages.dedup_by(|next, last| {
        let joins = last.role == Role::User && next.role == Role::User;
        if joins {
            let said = [&*last, &*next].into_iter().filter(|message| message.content.is_some());
            last.content = Some(Content::Text(said.map(lines).collect::<Vec<_>>().join(EMPTY_LINE)));
        }
        joins
    });
}

/// Whether the last turn is the model's own and can go on: after a call only its results can come.
pub fn can_go_on(messages: &[Message]) -> bool {
    messages.last().is_some_and(|last| last.role == Role::Assistant && last.tool_calls.is_empty())
}

fn leading_system(messages: &[Message]) -> usize {
    messages.iter().take_while(|message| message.role == Role::System).count()
}

/// The text of a message, a line for each part, as templates see parts that they cannot take.
fn lines(message: &Message) -> String {
    match &message.content {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
    }
}

fn steady_content(message: &mut Message) {
    let steady = |text: &mut String| {
        if let Cow::Owned(changed) = steady_billing(text) {
            *text = changed;
        }
    };
    match &mut message.content {
        Some(Content::Text(text)) => steady(text),
        Some(Content::Parts(parts)) => {
            for part in parts {
                if let Some(Value::String(text)) = part.get_mut("text") {
                    steady(text);
                }
            }
        }
        None => {}
    }
}

/// `text` with the `cch` of a billing line at its beginning made constant: the line changes with each request, and the
/// prompt after it would never be found again.
pub fn steady_billing(text: &str) -> Cow<'_, str> {
    let start = text.len() - text.trim_start().len();
    let line_end = text[start..].find('\n').map_or(text.len(), |end| start + end);
    let line = &text[start..line_end];
    if !line.starts_with(BILLING) {
        return Cow::Borrowed(text);
    }
    let found = line.match_indices("cch=").find(|(at, _)| line[..*at].ends_with([' ', ';', ':', '\t']));
    let Some((at, key)) = found else { return Cow::Borrowed(text) };
    let from = start + at + key.len();
    let Some(length) = text[from..line_end].find(';') else { return Cow::Borrowed(text) };
    Cow::Owned(format!("{}00000{}", &text[..from], &text[from + length..]))
}

/// Puts the results after each turn with calls into the order of its calls: many templates write no ids, so that the order
/// is all that a model can match them by. Results of no call of that turn come after, as they came.
fn order_results(messages: &mut [Message]) {
    let mut at = 0;
    while at < messages.len() {
        let ids: Vec<String> = messages[at].tool_calls.iter().map(|call| call.id.clone()).collect();
        at += 1;
        let results = messages[at..].iter().take_while(|message| message.role == Role::Tool).count();
        let place: std::collections::HashMap<&str, usize> =
            ids.iter().enumerate().rev().map(|(i, id)| (id.as_str(), i)).collect();
        messages[at..at + results].sort_by_key(|result| {
            let id = result.tool_call_id.as_deref().filter(|id| !id.is_empty());
            id.and_then(|id| place.get(id)).copied().unwrap_or(usize::MAX)
        });
        at += results;
    }
}
