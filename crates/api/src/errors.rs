//! What is refused and what failed, in the shapes of the APIs.

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
        let message = self.anthropic_message.as_ref().unwrap_or(&self.message);
        let message = match &self.param {
            Some(param) if !message.contains(param.as_str()) => format!("{param}: {message}"),
            _ => message.clone(),
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
