//! The bodies of requests.

use engine::sample::SampleRequest;
use engine::text::Json;

use super::conversation;
use super::fields::{CHAT_FIELDS, COMPLETION_FIELDS};
use crate::body::{self, At, shown};
use crate::fields::{Ignored, check};
use crate::messages::can_go_on;
use crate::request::{STOP_BYTES_MAX, STOPS_MAX, TOP_LOGPROBS_MAX, temperature};
use crate::tools::{NO_FUNCTION, Tools, check_choice, function, schema};
use crate::{ApiError, Chat, Constraint, Limits, Parsed, Prompt, Request, TextPrompt, ToolChoice, effort};

pub(super) const BIASES_MAX: usize = 4096;
/// Prompts of one request for plain completion.
pub(crate) const PROMPTS_MAX: usize = 2048;
pub(super) const CHOICES_LISTED_MAX: usize = 4096;

/// Reads the body of `POST /v1/chat/completions`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn chat_request(body: &[u8], limits: &Limits) -> Result<Parsed, ApiError> {
    let json = body::parse(body)?;
    let body = At::root(&json);
    let mut ignored = Ignored::default();
    check(&body, CHAT_FIELDS, limits, &mut ignored)?;
    let chat = chat(&body, limits, &mut ignored)?;
    let max_tokens = max_tokens(&body, &["max_tokens", "max_completion_tokens"])?;
    let request = Request {
        top_logprobs: chat_logprobs(&body)?,
        progress: body.flag_or("return_progress", false)?,
        ..common(&body, limits, Prompt::Chat(chat), max_tokens, &mut ignored)?
    };
    Ok(Parsed { request, ignored: ignored.into_paths() })
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn completion_request(body: &[u8], limits: &Limits) -> Result<Parsed, ApiError> {
    let json = body::parse(body)?;
    let body = At::root(&json);
    let mut ignored = Ignored::default();
    check(&body, COMPLETION_FIELDS, limits, &mut ignored)?;
    let prompts = Prompt::Texts(prompts(&body.need("prompt")?)?);
    let max_tokens = max_tokens(&body, &["max_tokens"])?.or(Some(limits.completion_tokens));
    let top_logprobs = body.optional_count("logprobs", 0..=TOP_LOGPROBS_MAX)?;
    let echo = body.flag_or("echo", false)?;
    if let (true, Some(at), Some(_)) = (echo, body.get("echo"), top_logprobs) {
        return Err(
            at.unsupported("the log-probabilities of a prompt are not computed; leave out echo or logprobs")
        );
    }
    let request = Request { top_logprobs, echo, ..common(&body, limits, prompts, max_tokens, &mut ignored)? };
    Ok(Parsed { request, ignored: ignored.into_paths() })
}

/// What both bodies have.
pub(crate) fn common(
    body: &At,
    limits: &Limits,
    prompt: Prompt,
    max_tokens: Option<usize>,
    ignored: &mut Ignored,
) -> Result<Request, ApiError> {
    let min_tokens = body.optional_count("min_tokens", 0..=u64::MAX)?.unwrap_or(0);
    if let (Some(at), Some(most)) = (body.get("min_tokens"), max_tokens.filter(|most| *most < min_tokens)) {
        return Err(at.wrong(format_args!("{min_tokens} is above the most tokens of the answer, {most}")));
    }
    let choices_max = limits.choices_max.max(1) as u64;
    let include_usage = body.optional("stream_options", |options| options.flag_or("include_usage", false))?;
    let base = Request::base(body, prompt)?;
    Ok(Request {
        sampling: sampling(body)?,
        max_tokens,
        min_tokens,
        ignore_end: body.flag_or("ignore_eos", false)?,
        stop: stops(body.get("stop"))?,
        choices: body.optional_count("n", 1..=choices_max)?.unwrap_or(1),
        constraint: constraint(body, ignored, limits)?,
        cache: body.flag_or("cache_prompt", true)?,
        include_usage: include_usage.unwrap_or(false),
        ..base
    })
}

/// The smallest of the limits that `keys` name.
pub(crate) fn max_tokens(body: &At, keys: &[&str]) -> Result<Option<usize>, ApiError> {
    let given: Result<Vec<usize>, ApiError> =
        keys.iter().filter_map(|key| body.get(key)).map(|at| at.count(1..=u64::MAX)).collect();
    Ok(given?.into_iter().min())
}

/// What `body` says of the choice of tokens: [`SAMPLING_FIELDS`](super::SAMPLING_FIELDS).
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn sampling(body: &At) -> Result<SampleRequest, ApiError> {
    let repetition_penalty = body.optional_number("repetition_penalty", 0.0..=2.0)?;
    if let (Some(at), Some(0.0)) = (body.get("repetition_penalty"), repetition_penalty) {
        return Err(at.wrong("0 is not above 0"));
    }
    Ok(SampleRequest {
        top_k: body.optional("top_k", top_k)?,
        min_p: body.optional_number("min_p", 0.0..=1.0)?,
        repetition_penalty,
        presence_penalty: body.optional_number("presence_penalty", -2.0..=2.0)?,
        frequency_penalty: body.optional_number("frequency_penalty", -2.0..=2.0)?,
        logit_bias: body.optional("logit_bias", biases)?.unwrap_or_default(),
        seed: body.optional("seed", seed)?,
        ..temperature(body)?
    })
}

/// -1 keeps all tokens, as 0 does: vLLM's way to say it.
fn top_k(at: &At) -> Result<usize, ApiError> {
    match at.json() {
        Json::Number(digits) if digits == "-1" => Ok(0),
        _ => at.count(0..=u64::MAX),
    }
}

/// A seed is 64 bits; a negative one is as good as any.
fn seed(at: &At) -> Result<u64, ApiError> {
    match at.json() {
        Json::Number(digits) if digits.starts_with('-') => match digits.parse::<i64>() {
            Ok(seed) => Ok(seed.cast_unsigned()),
            Err(_) => at.whole(0..=u64::MAX),
        },
        _ => at.whole(0..=u64::MAX),
    }
}

fn biases(at: &At) -> Result<Vec<(u32, f32)>, ApiError> {
    let count = at.object()?.len();
    if count > BIASES_MAX {
        return Err(at.wrong(format_args!("{count} tokens, at most {BIASES_MAX} can have a bias")));
    }
    let bias = |(key, at): (&str, At)| match key.parse::<u32>() {
        Ok(id) => Ok((id, at.number_in(-100.0..=100.0)?)),
        Err(_) => Err(at.wrong("its name must be a token's id")),
    };
    at.members()?.map(bias).collect()
}

/// The texts that end an answer. Empty strings are left out: they would end every answer before it begins, which nobody means.
pub(crate) fn stops(at: Option<At>) -> Result<Vec<String>, ApiError> {
    let Some(at) = at else { return Ok(Vec::new()) };
    let text = |at: &At| match at.string()? {
        text if text.len() <= STOP_BYTES_MAX => Ok(text.to_owned()),
        text => {
            Err(at.wrong(format_args!("{} bytes, a stop string has at most {STOP_BYTES_MAX}", text.len())))
        }
    };
    let texts = match at.json() {
        Json::String(_) => vec![text(&at)?],
        Json::Array(list) if list.len() > STOPS_MAX => {
            return Err(at.wrong(format_args!("{} stop strings, at most {STOPS_MAX} are taken", list.len())));
        }
        Json::Array(_) => at.items()?.map(|at| text(&at)).collect::<Result<_, _>>()?,
        _ => return Err(at.wrong_type("a string or a list of strings")),
    };
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

fn chat_logprobs(body: &At) -> Result<Option<usize>, ApiError> {
    let wanted = body.flag_or("logprobs", false)?;
    let Some(at) = body.get("top_logprobs") else { return Ok(wanted.then_some(0)) };
    let top = at.count(0..=TOP_LOGPROBS_MAX)?;
    match wanted {
        true => Ok(Some(top)),
        false if top == 0 => Ok(None),
        false => Err(at.wrong("it needs `logprobs`: true")),
    }
}

pub(crate) fn chat(body: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Chat, ApiError> {
    let mut chat = Chat {
        messages: conversation::messages(&body.need("messages")?)?,
        parallel_calls: body.flag_or("parallel_tool_calls", true)?,
        continues: body.flag_or("continue_final_message", false)?,
        ..Chat::default()
    };
    let can = can_go_on(&chat.messages);
    if let (true, false, Some(at)) = (chat.continues, can, body.get("continue_final_message")) {
        return Err(at.wrong("the last message is no beginning of an answer"));
    }
    if let Some(list) = body.get("tools") {
        chat.tools = tools(&list, limits, ignored)?.into_specs();
    }
    if let Some(at) = body.get("tool_choice") {
        choose(&at, &mut chat)?;
    }
    if let Some(at) = body.get("chat_template_kwargs") {
        for (key, at) in at.members()? {
            match key {
                "enable_thinking" => chat.thinking = Some(at.flag()?),
                _ => _ = chat.template_variables.insert(key.to_owned(), at.value()?),
            }
        }
    }
    if let Some(at) = body.get("reasoning_effort") {
        effort::think(&at, &mut chat)?;
    }
    Ok(chat)
}

fn tools(list: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Tools, ApiError> {
    let mut tools = Tools::default();
    for tool in Tools::items(list)? {
        tool.object()?;
        match tool.optional("type", At::string)? {
            None | Some("function") => {
                let spec = function(&tool.need("function")?, None, "parameters")?;
                tools.push(&tool, spec, limits, ignored)?;
            }
            Some(_) => ignored.push(&tool, NO_FUNCTION, limits)?,
        }
    }
    Ok(tools)
}

fn choose(at: &At, chat: &mut Chat) -> Result<(), ApiError> {
    chat.tool_choice = match at.json() {
        Json::String(_) => mode(at)?,
        Json::Object(_) => {
            let kind = at.need("type")?;
            match kind.string()? {
                "function" => ToolChoice::Function(named(at)?.to_owned()),
                "allowed_tools" => {
                    // The newer shape nests what the older one has flat.
                    let inner = at.get("allowed_tools").unwrap_or_else(|| at.clone());
                    let list = inner.need("tools")?;
                    let allowed: Vec<&str> = Tools::items(&list)?
                        .filter(|tool| tool.get("function").or_else(|| tool.get("name")).is_some())
                        .map(|tool| named(&tool))
                        .collect::<Result<_, _>>()?;
                    chat.tools.retain(|tool| allowed.contains(&tool.name()));
                    mode(&inner.need("mode")?)?
                }
                other => {
                    return Err(
                        kind.unsupported(format_args!("a choice of {} names no function", shown(other)))
                    );
                }
            }
        }
        _ => return Err(at.wrong_type("a string or an object")),
    };
    check_choice(at, &chat.tool_choice, &chat.tools)
}

pub(crate) fn mode(at: &At) -> Result<ToolChoice, ApiError> {
    match at.string()? {
        "auto" => Ok(ToolChoice::Auto),
        "none" => Ok(ToolChoice::None),
        "required" => Ok(ToolChoice::Required),
        other => Err(at.wrong(format_args!("{} is none of auto, none and required", shown(other)))),
    }
}

/// The function that a choice names, in the shape of Chat or that of Responses.
fn named<'a>(at: &At<'a>) -> Result<&'a str, ApiError> {
    match (at.get("function"), at.get("name")) {
        (None, Some(name)) => name.string(),
        _ => at.need("function")?.need("name")?.string(),
    }
}

fn constraint(body: &At, ignored: &mut Ignored, limits: &Limits) -> Result<Option<Constraint>, ApiError> {
    let format = body.optional("response_format", response_format)?.flatten();
    let Some(at) = body.get("structured_outputs") else { return Ok(format) };
    let outputs = structured_outputs(&at, ignored, limits)?;
    if outputs.is_some() && format.is_some() {
        return Err(at.wrong("an answer cannot fit this and `response_format`; leave one out"));
    }
    Ok(outputs.or(format))
}

fn response_format(at: &At) -> Result<Option<Constraint>, ApiError> {
    at.object()?;
    let kind = at.need("type")?;
    match kind.string()? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::JsonObject)),
        "json_schema" => {
            let schema_at = at.need("json_schema")?.need("schema")?;
            Ok(Some(Constraint::JsonSchema(schema(&schema_at)?)))
        }
        other => {
            Err(kind.unsupported(format_args!("{} is none of text, json_object, json_schema", shown(other))))
        }
    }
}

fn structured_outputs(
    at: &At,
    ignored: &mut Ignored,
    limits: &Limits,
) -> Result<Option<Constraint>, ApiError> {
    let mut constraint = None;
    for (key, at) in at.members()? {
        let one = match key {
            "json" => Constraint::JsonSchema(schema(&at)?),
            "json_object" if at.flag()? => Constraint::JsonObject,
            "regex" => Constraint::Regex(sized(&at)?.to_owned()),
            "grammar" => Constraint::Lark(sized(&at)?.to_owned()),
            "choice" => Constraint::Choice(choice(&at)?),
            // Named by the table, or asking for nothing.
            _ => continue,
        };
        if constraint.replace(one).is_some() {
            return Err(at.wrong("an answer cannot fit several constraints; leave one"));
        }
    }
    if constraint.is_none() {
        ignored.push(at, "it constrains nothing", limits)?;
    }
    Ok(constraint)
}

fn sized<'a>(at: &At<'a>) -> Result<&'a str, ApiError> {
    let most = crate::tools::SCHEMA_BYTES_MAX;
    match at.string()? {
        text if text.len() <= most => Ok(text),
        text => Err(at.wrong(format_args!("{} bytes, at most {most}", text.len()))),
    }
}

fn choice(at: &At) -> Result<Vec<String>, ApiError> {
    let items = at.items()?;
    match items.len() {
        1..=CHOICES_LISTED_MAX => items.map(|at| Ok(sized(&at)?.to_owned())).collect(),
        count => Err(at.wrong(format_args!("{count} texts, it must be 1 to {CHOICES_LISTED_MAX}"))),
    }
}

fn prompts(at: &At) -> Result<Vec<TextPrompt>, ApiError> {
    let list = match at.json() {
        Json::String(text) => return Ok(vec![TextPrompt::Text(text.clone())]),
        Json::Array(list) => list,
        _ => return Err(at.wrong_type("a string or a list")),
    };
    match list.as_slice() {
        [] => Err(at.wrong("it is empty")),
        [Json::Number(_), ..] => Ok(vec![tokens(at)?]),
        many if many.len() > PROMPTS_MAX => {
            Err(at.wrong(format_args!("{} prompts, at most {PROMPTS_MAX} are taken", many.len())))
        }
        _ => at.items()?.map(|at| prompt(&at)).collect(),
    }
}

fn prompt(at: &At) -> Result<TextPrompt, ApiError> {
    match at.json() {
        Json::String(text) => Ok(TextPrompt::Text(text.clone())),
        Json::Array(_) => tokens(at),
        _ => Err(at.wrong_type("a string or a list of token ids")),
    }
}

pub(crate) fn tokens(at: &At) -> Result<TextPrompt, ApiError> {
    let id = |at: At| Ok(u32::try_from(at.whole(0..=u64::from(u32::MAX))?).unwrap_or(u32::MAX));
    let ids: Vec<u32> = at.items()?.map(id).collect::<Result<_, ApiError>>()?;
    if ids.is_empty() { Err(at.wrong("it is empty")) } else { Ok(TextPrompt::Tokens(ids)) }
}
