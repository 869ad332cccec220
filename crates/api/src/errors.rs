//! What is refused and what failed, in the shapes of the APIs.

use engine::ErrorKind;
use serde_json::{Value, json};

/// What went wrong: decides the status and the names that the APIs give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// 400: the request is wrong.
    Invalid,
    /// 401: no key, or a wrong one.
    Key,
    /// 403: a foreign host or origin.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    Method,
    /// 413.
    TooLarge,
    /// 415.
    ContentType,
    /// 429: the queue is full.
    QueueFull,
    /// 500: the drive or the device failed.
    Server,
    /// 503: loading or shutting down.
    Unavailable,
}

/// A refusal or a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What kind it is.
    pub class: ErrorClass,
    /// OpenAI's `code`.
    pub code: Option<&'static str>,
    /// The path of the field that is wrong.
    pub param: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
    /// The same in Anthropic's words, where clients look for them.
    pub anthropic_message: Option<String>,
}

impl ApiError {
    /// A request that is wrong.
    pub fn invalid(param: impl Into<Option<String>>, message: impl Into<String>) -> Self {
        Self { param: param.into(), ..Self::new(ErrorClass::Invalid, message) }
    }

    /// An error of `class`.
    pub fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, code: None, param: None, message: message.into(), anthropic_message: None }
    }

    /// A prompt of `tokens` where the context has `limit`; `what` is the field it came by. Agents compact their conversation
    /// when they read these words.
    pub fn context_length(what: &str, limit: usize, tokens: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your {what} resulted in {tokens} tokens. \
             Please reduce the length of the {what}."
        );
        let anthropic = format!("prompt is too long: {tokens} tokens > {limit} maximum");
        Self {
            code: Some("context_length_exceeded"),
            anthropic_message: Some(anthropic),
            ..Self::invalid(what.to_owned(), message)
        }
    }

    /// A schema or grammar at `param` that cannot be kept; `why` names the keyword.
    pub fn schema(param: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("`{param}`: {why}.");
        Self { code: Some("invalid_schema"), ..Self::invalid(param, message) }
    }

    /// An answer that was stopped from outside before its end.
    pub fn cancelled() -> Self {
        Self::new(ErrorClass::Unavailable, "The answer was cancelled before its end.")
    }

    /// The engine's error. What would happen again with the same request is the request's fault: clients repeat the others.
    /// Paths of this machine are left out.
    pub fn of_engine(error: &engine::Error) -> Self {
        let (class, code) = match error.kind() {
            ErrorKind::InvalidRequest => (ErrorClass::Invalid, None),
            ErrorKind::Unsupported => (ErrorClass::Invalid, Some("unsupported_value")),
            ErrorKind::ContextFull => (ErrorClass::Invalid, Some("context_length_exceeded")),
            ErrorKind::Cancelled => (ErrorClass::Unavailable, None),
            _ => (ErrorClass::Server, None),
        };
        // What is wrong with a request lies in no file; its schemas have paths of their own.
        let message = match class {
            ErrorClass::Invalid => error.message().to_owned(),
            _ => without_paths(error.message()),
        };
        Self { code, ..Self::new(class, message) }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self.class {
            ErrorClass::Invalid => 400,
            ErrorClass::Key => 401,
            ErrorClass::Forbidden => 403,
            ErrorClass::NotFound => 404,
            ErrorClass::Method => 405,
            ErrorClass::TooLarge => 413,
            ErrorClass::ContentType => 415,
            ErrorClass::QueueFull => 429,
            ErrorClass::Server => 500,
            ErrorClass::Unavailable => 503,
        }
    }

    /// OpenAI's body: `{"error": {"message", "type", "param", "code"}}`.
    pub fn openai(&self) -> Value {
        let (kind, code) = self.openai_names();
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code.or(code)}})
    }

    /// Anthropic's body: `{"type": "error", "error": {"type", "message"}, "request_id"}`.
    pub fn anthropic(&self, request_id: &str) -> Value {
        let message = match (&self.anthropic_message, &self.param) {
            (Some(message), _) => message.clone(),
            (None, Some(param)) if !self.message.contains(param.as_str()) => {
                format!("{param}: {}", self.message)
            }
            (None, _) => self.message.clone(),
        };
        json!({"type": "error", "error": {"type": self.anthropic_name(), "message": message}, "request_id": request_id})
    }

    fn openai_names(&self) -> (&'static str, Option<&'static str>) {
        match self.class {
            ErrorClass::Invalid | ErrorClass::Method | ErrorClass::ContentType => {
                ("invalid_request_error", None)
            }
            ErrorClass::Key => ("invalid_request_error", Some("invalid_api_key")),
            ErrorClass::Forbidden => ("permission_error", None),
            ErrorClass::NotFound => ("not_found_error", None),
            ErrorClass::TooLarge => ("request_too_large", None),
            ErrorClass::QueueFull => ("rate_limit_error", Some("queue_full")),
            ErrorClass::Server => ("server_error", None),
            ErrorClass::Unavailable => ("service_unavailable", None),
        }
    }

    fn anthropic_name(&self) -> &'static str {
        match self.class {
            ErrorClass::Invalid | ErrorClass::Method | ErrorClass::ContentType => "invalid_request_error",
            ErrorClass::Key => "authentication_error",
            ErrorClass::Forbidden => "permission_error",
            ErrorClass::NotFound => "not_found_error",
            ErrorClass::TooLarge => "request_too_large",
            ErrorClass::QueueFull => "rate_limit_error",
            ErrorClass::Server => "api_error",
            ErrorClass::Unavailable => "overloaded_error",
        }
    }
}

/// `text` with the folders of files left out.
fn without_paths(text: &str) -> String {
    let short = |word: &str| {
        let is_separator = |c: char| c == '/' || c == '\\';
        let Some((folder, name)) = word.rsplit_once(is_separator) else { return word.to_owned() };
        let opening = folder.trim_start_matches(['"', '\'', '`', '(']);
        let is_absolute = opening.is_empty() || opening.starts_with(['/', '\\', '~', '.']);
        // `I/O` and `tokens/s` are no paths.
        if is_absolute || opening.contains([':', '/', '\\']) || name.contains('.') {
            let marks = &folder[..folder.len() - opening.len()];
            format!("{marks}{name}")
        } else {
            word.to_owned()
        }
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}
