//! The body of a request.

use serde_json::{Map, Value, json};

use super::input::Input;
use super::thread::{Conversation, Thread, resume};
use super::tools::Offer;
use crate::body::{self, At, lossy, shown};
use crate::fields::{Field, FieldKind, Ignored, check, honoured, inert, inert_as, needed, refused};
use crate::request::{EFFORT, SHARE, TEMPERATURE, TOP_LOGPROBS, TOP_LOGPROBS_MAX};
use crate::schema::Shape;
use crate::{ApiError, Chat, Constraint, Limits, Parsed, Prompt, Request, effort, tools};

/// Most bytes of a field that has no effect and is repeated: the answer holds it several times until it is sent.
const REPEATED_BYTES_MAX: usize = 16 << 10;

/// What becomes of each field.
pub const FIELDS: &[Field] = &[
    honoured("model", Shape::Text, "any name is served"),
    needed(
        "input",
        Shape::Named("ResponseInput"),
        "a string, or items: messages, reasoning, calls and their outputs",
    ),
    honoured("instructions", Shape::Text, "stand before the input, and are not inherited"),
    honoured("previous_response_id", Shape::Text, "the latest answers are kept in memory"),
    honoured("store", Shape::Flag, "`false`: the answer is not kept"),
    honoured(
        "max_output_tokens",
        Shape::Whole(1, u64::MAX),
        "1 or more; until the context is full without it",
    ),
    honoured("temperature", TEMPERATURE, "0 to 2"),
    honoured("top_p", SHARE, "0 to 1"),
    honoured("top_logprobs", TOP_LOGPROBS, "0 to 20"),
    honoured("include", Shape::Texts, "`message.output_text.logprobs`; other values have no effect"),
    honoured(
        "tools",
        Shape::Named("ResponseTools"),
        "functions, and namespaces of them; other tools are left out and named",
    ),
    honoured(
        "tool_choice",
        Shape::Named("ResponseToolChoice"),
        "`auto`, `none`, `required`, a function, `allowed_tools`",
    ),
    honoured("parallel_tool_calls", Shape::Flag, ""),
    honoured("text.format", Shape::Named("TextFormat"), "`text`, `json_object`, `json_schema`"),
    honoured("reasoning.effort", EFFORT, "`none` to `max`; with `none` the model does not think"),
    honoured("stream", Shape::Flag, ""),
    inert("text.verbosity", ""),
    inert("reasoning.summary", "thoughts are shown as they are"),
    inert("reasoning.generate_summary", ""),
    inert("stream_options", ""),
    inert("max_tool_calls", "counts calls of hosted tools, of which there are none"),
    inert("metadata", "repeated in the answer; at most 16 KiB"),
    inert("user", ""),
    inert("service_tier", ""),
    inert("safety_identifier", ""),
    inert("prompt_cache_key", ""),
    inert("prompt_cache_retention", ""),
    inert("prompt_cache_options", ""),
    inert("client_metadata", ""),
    inert("diagnostics", ""),
    inert("verbosity", ""),
    inert("cache_control", ""),
    inert_as("context_management", &["[]", "{}"], "nothing is left out of a conversation"),
    inert_as("truncation", &["\"disabled\""], "a prompt that is too long is refused"),
    refused("background", &["false"], "answers are not made in the background"),
    refused(
        "conversation",
        &[],
        "conversations are not stored; send the whole input or previous_response_id",
    ),
    refused("prompt", &[], "prompts are not stored; send instructions and input"),
    refused("modalities", &["[\"text\"]", "[]"], "only text can be answered"),
    refused("audio", &[], "only text can be answered"),
    refused("web_search_options", &[], "there is no web search"),
    refused("functions", &[], "use tools"),
];

/// Reads the body of `POST /v1/responses`. Where it goes on from an earlier answer (`chat.thread.previous`), the
/// request is complete only after [`resume`].
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn request(body: &[u8], limits: &Limits) -> Result<Parsed, ApiError> {
    let json = body::parse(body)?;
    let body = At::root(&json);
    let mut ignored = Ignored::default();
    check(&body, FIELDS, limits, &mut ignored)?;
    let chat = chat(&body, limits, &mut ignored)?;
    let logprobs = logprobs(&body)?;
    let request = Request {
        max_tokens: body.optional_count("max_output_tokens", 1..=u64::MAX)?,
        top_logprobs: logprobs,
        constraint: constraint(&body)?,
        ..Request::base(&body, Prompt::Chat(chat))?
    };
    Ok(Parsed { request, ignored: ignored.into_paths() })
}

fn chat(body: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Chat, ApiError> {
    let mut offer = Offer::default();
    if let Some(tools) = body.get("tools") {
        offer.list(&tools, limits, ignored)?;
    }
    let input = Input::new(limits, ignored, &mut offer).read(&body.need("input")?)?;
    let previous = body.optional_text("previous_response_id")?;
    let instructions = body.optional_text("instructions")?;
    let keep = body.flag_or("store", true)?;
    let mut chat = Chat {
        parallel_calls: body.flag_or("parallel_tool_calls", true)?,
        repeated: repeated(body)?,
        ..Chat::default()
    };
    offer.choose(body.get("tool_choice").as_ref(), &mut chat)?;
    if let Some(at) = body.get("reasoning").and_then(|reasoning| reasoning.get("effort")) {
        effort::think(&at, &mut chat)?;
    }
    let is_complete = previous.is_none();
    chat.thread = Some(Thread::new(previous, keep, instructions, input));
    if is_complete {
        resume(&mut chat, &Conversation::default())?;
        if chat.messages.is_empty() {
            return Err(body.need("input")?.wrong("it is empty"));
        }
    }
    Ok(chat)
}

fn logprobs(body: &At) -> Result<Option<usize>, ApiError> {
    let top = body.optional_count("top_logprobs", 0..=TOP_LOGPROBS_MAX)?;
    let mut wanted = top.is_some_and(|top| top > 0);
    if let Some(include) = body.get("include") {
        for value in include.items()? {
            wanted |= value.string()? == "message.output_text.logprobs";
        }
    }
    Ok(wanted.then(|| top.unwrap_or(0)))
}

fn constraint(body: &At) -> Result<Option<Constraint>, ApiError> {
    let Some(format) = body.get("text").and_then(|text| text.get("format")) else { return Ok(None) };
    let kind = format.need("type")?;
    match kind.string()? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::JsonObject)),
        "json_schema" => Ok(Some(Constraint::JsonSchema(tools::schema(&format.need("schema")?)?))),
        other => Err(kind.unsupported(format_args!("{} is no format of a text", shown(other)))),
    }
}

/// What the answer repeats of its request, with the defaults of what is not there.
fn repeated(body: &At) -> Result<Map<String, Value>, ApiError> {
    let text = body.get("text");
    let format = text.as_ref().and_then(|text| text.get("format"));
    let verbosity = text.as_ref().map_or(Ok(None), |text| text.optional("verbosity", inert_value))?;
    let reasoning = body.get("reasoning");
    let effort = reasoning.as_ref().and_then(|reasoning| reasoning.get("effort"));
    let text = json!({
        "format": format.map_or_else(|| json!({"type": "text"}), |at| lossy(at.json())),
        "verbosity": verbosity.unwrap_or_else(|| json!("medium")),
    });
    let rows = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": effort.map(|at| lossy(at.json())), "summary": null})),
        ("safety_identifier", Value::Null),
        ("service_tier", json!("default")),
        ("store", json!(true)),
        ("temperature", Value::Null),
        ("text", text),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", Value::Null),
        ("truncation", json!("disabled")),
        ("user", Value::Null),
    ];
    let is_inert = |key: &str| FIELDS.iter().any(|field| field.path == key && field.kind == FieldKind::Inert);
    let of_body = |key: &str| match key {
        // Completed above, or not what was asked for.
        "text" | "reasoning" | "service_tier" | "truncation" => Ok(None),
        key if is_inert(key) => body.optional(key, inert_value),
        key => Ok(body.get(key).map(|at| lossy(at.json()))),
    };
    let repeat = |(key, default): (&str, Value)| Ok((key.to_owned(), of_body(key)?.unwrap_or(default)));
    rows.into_iter().map(repeat).collect()
}

/// A field without effect, for the answer. Nothing else looks at its size.
fn inert_value(at: &At) -> Result<Value, ApiError> {
    match at.json().to_string().len() {
        0..=REPEATED_BYTES_MAX => Ok(lossy(at.json())),
        bytes => Err(at.wrong(format_args!("{bytes} bytes, at most {REPEATED_BYTES_MAX} can be repeated"))),
    }
}
