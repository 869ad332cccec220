//! The body of a request.

use engine::sample::SampleRequest;

use super::input::{Conversation, conversation};
use crate::body::{self, At, shown};
use crate::fields::{Field, Ignored, check, honoured, inert, inert_as, needed, refused};
use crate::openai::stops;
use crate::request::{EFFORT, SHARE, STOPS, TEMPERATURE};
use crate::schema::Shape;
use crate::tools::{NO_FUNCTION, Tools, check_choice, function, schema};
use crate::{ApiError, Chat, Constraint, Limits, Parsed, Prompt, Request, ToolChoice, effort};

/// What becomes of each field.
pub const FIELDS: &[Field] = &[
    honoured("model", Shape::Text, "any name is served"),
    honoured("system", Shape::Named("Content"), "a string, or text blocks"),
    needed("messages", Shape::Named("Messages"), "a last turn of the assistant is continued"),
    needed(
        "max_tokens",
        Shape::Whole(0, u64::MAX),
        "0 computes the prompt, keeps it and answers with nothing",
    ),
    honoured("stop_sequences", STOPS, "at most 64 of 1 KB"),
    honoured("temperature", TEMPERATURE, "0 to 2"),
    honoured("top_p", SHARE, "0 to 1"),
    honoured("top_k", Shape::Whole(0, u64::MAX), ""),
    honoured("tools", Shape::Named("MessageTools"), "functions; other tools are left out and named"),
    honoured(
        "tool_choice",
        Shape::Named("MessageToolChoice"),
        "`auto`, `any`, `tool`, `none`, with `disable_parallel_tool_use`",
    ),
    honoured(
        "thinking",
        Shape::Named("Thinking"),
        "without it the model does not think; `adaptive`: as the model likes; a budget is no limit",
    ),
    honoured("output_config.format", Shape::Named("OutputFormat"), "`json_schema`"),
    honoured("output_config.effort", EFFORT, "for templates that know efforts"),
    honoured("output_format", Shape::Named("OutputFormat"), "as `output_config.format`"),
    honoured("stream", Shape::Flag, ""),
    inert("metadata", ""),
    inert("user", ""),
    inert("service_tier", ""),
    inert("cache_control", "prompts are kept without it"),
    inert("diagnostics", ""),
    inert("betas", ""),
    inert("anthropic_beta", ""),
    inert("anthropic_version", ""),
    inert_as("context_management", &["{}", "{\"edits\":[]}"], "nothing is left out of a conversation"),
    inert_as("speed", &["\"standard\""], ""),
    inert_as("mcp_servers", &["[]"], "a server of tools is left out like other tools that are no functions"),
    refused("container", &[], "there are no containers"),
];

/// Reads the body of `POST /v1/messages` and, with `counts`, of `/v1/messages/count_tokens`, which needs no
/// `max_tokens`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn request(body: &[u8], limits: &Limits, counts: bool) -> Result<Parsed, ApiError> {
    let json = body::parse(body)?;
    let body = At::root(&json);
    let mut ignored = Ignored::default();
    check(&body, FIELDS, limits, &mut ignored)?;
    let chat = chat(&body, limits, &mut ignored)?;
    let max_tokens = if counts { body.get("max_tokens") } else { Some(body.need("max_tokens")?) };
    let max_tokens = max_tokens.map(|at| at.count(0..=u64::MAX)).transpose()?;
    let base = Request::base(&body, Prompt::Chat(chat))?;
    let request = Request {
        sampling: SampleRequest { top_k: body.optional_count("top_k", 0..=u64::MAX)?, ..base.sampling },
        max_tokens,
        stop: stops(body.get("stop_sequences"))?,
        constraint: constraint(&body)?,
        ..base
    };
    Ok(Parsed { request, ignored: ignored.into_paths() })
}

fn chat(body: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Chat, ApiError> {
    let Conversation { messages, continues } = conversation(body)?;
    let mut chat =
        Chat { messages, continues, parallel_calls: true, thinking: thinking(body)?, ..Chat::default() };
    chat.tools = tools(body, limits, ignored)?.into_specs();
    if let Some(at) = body.get("tool_choice") {
        chat.tool_choice = tool_choice(&at)?;
        check_choice(&at, &chat.tool_choice, &chat.tools)?;
        chat.parallel_calls = !at.flag_or("disable_parallel_tool_use", false)?;
    }
    if let Some(at) = body.get("output_config").and_then(|config| config.get("effort")) {
        effort::tell(&at, &mut chat)?;
    }
    Ok(chat)
}

fn tools(body: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Tools, ApiError> {
    let mut tools = Tools::default();
    let Some(list) = body.get("tools") else { return Ok(tools) };
    for tool in Tools::items(&list)? {
        tool.object()?;
        match tool.optional("type", At::string)? {
            None | Some("custom") => {
                tools.push(&tool, function(&tool, None, "input_schema")?, limits, ignored)?;
            }
            Some(_) => ignored.push(&tool, NO_FUNCTION, limits)?,
        }
    }
    Ok(tools)
}

fn tool_choice(at: &At) -> Result<ToolChoice, ApiError> {
    let kind = at.need("type")?;
    match kind.string()? {
        "auto" => Ok(ToolChoice::Auto),
        "any" => Ok(ToolChoice::Required),
        "none" => Ok(ToolChoice::None),
        "tool" => Ok(ToolChoice::Function(at.need("name")?.string()?.to_owned())),
        other => Err(kind.wrong(format_args!("{} is none of auto, any, tool and none", shown(other)))),
    }
}

/// A request that does not speak of thinking comes from a client that expects none: it takes the first block for the
/// answer.
fn thinking(body: &At) -> Result<Option<bool>, ApiError> {
    let Some(at) = body.get("thinking") else { return Ok(Some(false)) };
    let kind = at.need("type")?;
    match kind.string()? {
        "enabled" => {
            at.optional_count("budget_tokens", 0..=u64::MAX)?;
            Ok(Some(true))
        }
        "disabled" => Ok(Some(false)),
        "adaptive" | "between_tools" => Ok(None),
        other => Err(kind.unsupported(format_args!("{} is no kind of thinking", shown(other)))),
    }
}

fn constraint(body: &At) -> Result<Option<Constraint>, ApiError> {
    let config = body.get("output_config").and_then(|config| config.get("format"));
    let Some(format) = config.or_else(|| body.get("output_format")) else { return Ok(None) };
    let kind = format.need("type")?;
    match kind.string()? {
        "json_schema" => Ok(Some(Constraint::JsonSchema(schema(&format.need("schema")?)?))),
        other => Err(kind.unsupported(format_args!("{} is no format of an answer", shown(other)))),
    }
}
