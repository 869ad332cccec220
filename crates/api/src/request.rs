//! What a client asks for, whichever API it speaks.

use std::collections::BTreeMap;

use engine::sample::SampleRequest;
use engine::text::{Message, ToolSpec};
use serde_json::{Map, Value};

use crate::ApiError;
use crate::body::At;
use crate::effort::EFFORTS;
use crate::responses::Thread;
use crate::schema::Shape;

/// Log-probabilities can be had of so many of the likeliest tokens.
pub(crate) const TOP_LOGPROBS_MAX: u64 = 20;

/// A request has at most so many stop strings, of at most so many bytes.
pub(crate) const STOPS_MAX: usize = 64;
pub(crate) const STOP_BYTES_MAX: usize = 1024;

// What fields take that several APIs have.
pub(crate) const TEMPERATURE: Shape = Shape::Number(0.0, 2.0);
pub(crate) const SHARE: Shape = Shape::Number(0.0, 1.0);
pub(crate) const TOP_LOGPROBS: Shape = Shape::Whole(0, TOP_LOGPROBS_MAX);
pub(crate) const STOPS: Shape = Shape::TextOrTexts(STOPS_MAX, STOP_BYTES_MAX);
pub(crate) const EFFORT: Shape = Shape::OneOf(&EFFORTS);

/// What requests are held to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most choices of one request (`n`).
    pub choices_max: usize,
    /// Unknown fields and tools of unknown types are refused.
    pub strict: bool,
    /// Tokens that a request for plain completion gets where it names no limit.
    pub completion_tokens: usize,
}

/// A request, and what of it is not honoured.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The request.
    pub request: Request,
    /// Fields that nobody knows and tools that are no functions, as paths such as `tools[3]`; named in the answer's header.
    pub ignored: Vec<String>,
}

/// A request for one or several answers to one prompt (or, for plain completion, to each of several).
#[derive(Clone, Debug)]
pub struct Request {
    /// The model that the client names. Any name is served.
    pub model: String,
    /// What to answer.
    pub prompt: Prompt,
    /// How tokens are chosen; what is not given is the server's default.
    pub sampling: SampleRequest,
    /// Most tokens of an answer; `None` until the context is full, 0 to compute the prompt alone.
    pub max_tokens: Option<usize>,
    /// Tokens before which an answer does not end by itself.
    pub min_tokens: usize,
    /// Go on after the model's own end tokens.
    pub ignore_end: bool,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Answers to each prompt.
    pub choices: usize,
    /// Natural log-probabilities of the chosen tokens and of so many of the likeliest.
    pub top_logprobs: Option<usize>,
    /// What the answer's text must fit.
    pub constraint: Option<Constraint>,
    /// Whether the prompt's state may come from the cache and be kept.
    pub cache: bool,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with usage (Chat, Completions).
    pub include_usage: bool,
    /// Whether progress of the prompt is sent (Chat).
    pub progress: bool,
    /// Whether the answer begins with the prompt (Completions). Its text is then the first `Text` of each answer.
    pub echo: bool,
}

impl Request {
    /// Where Chat Completions has the form of an answer.
    pub fn form_field(&self) -> &'static str {
        match &self.constraint {
            Some(Constraint::JsonObject | Constraint::JsonSchema(_)) => "response_format",
            _ => "structured_outputs",
        }
    }

    /// A request for one answer to `prompt`, with the fields that all APIs name alike.
    ///
    /// # Errors
    /// `Invalid`, with the field's path.
    pub(crate) fn base(body: &At, prompt: Prompt) -> Result<Self, ApiError> {
        Ok(Self {
            model: body.optional_text("model")?.unwrap_or_default(),
            prompt,
            sampling: temperature(body)?,
            max_tokens: None,
            min_tokens: 0,
            ignore_end: false,
            stop: Vec::new(),
            choices: 1,
            top_logprobs: None,
            constraint: None,
            cache: true,
            stream: body.flag_or("stream", false)?,
            include_usage: false,
            progress: false,
            echo: false,
        })
    }
}

/// What all APIs say of the choice of tokens.
///
/// # Errors
/// `Invalid`, with the field's path.
pub(crate) fn temperature(body: &At) -> Result<SampleRequest, ApiError> {
    // The best token alone is kept with 0 either way, and the sampler takes no share of nothing.
    let top_p = body.optional_number("top_p", 0.0..=1.0)?.map(|share| share.max(f32::MIN_POSITIVE));
    let temperature = body.optional_number("temperature", 0.0..=2.0)?;
    Ok(SampleRequest { temperature, top_p, ..SampleRequest::default() })
}

/// What is to be answered.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a request has one, and it is not moved about")]
pub enum Prompt {
    /// A conversation.
    Chat(Chat),
    /// Texts to continue, each by itself.
    Texts(Vec<TextPrompt>),
}

/// A text to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum TextPrompt {
    /// As text.
    Text(String),
    /// As token ids.
    Tokens(Vec<u32>),
}

/// A conversation, in the order and the roles in which the model's template sees it.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// The turns.
    pub messages: Vec<Message>,
    /// The functions on offer.
    pub tools: Vec<ToolSpec>,
    /// Whether they must be called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may make several calls.
    pub parallel_calls: bool,
    /// Whether to think first; `None` leaves it to the template.
    pub thinking: Option<bool>,
    /// Further variables of the template (`chat_template_kwargs`).
    pub template_variables: Map<String, Value>,
    /// The last turn is the model's own, and the answer goes on from it.
    pub continues: bool,
    /// Functions that a namespace holds: by the name they are offered under, their namespace and their name in it.
    pub namespaced: BTreeMap<String, (String, String)>,
    /// Fields of the request that the answer repeats (Responses).
    pub repeated: Map<String, Value>,
    /// How it goes on from earlier answers, and is kept for later ones (Responses).
    pub thread: Option<Thread>,
}

/// Which calls an answer may or must make.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one, and nothing else after a thought.
    Required,
    /// This function.
    Function(String),
}

/// What the answer's text must fit.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema(Value),
    /// A regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A Lark grammar, as vLLM and llguidance have it.
    Lark(String),
}
