//! The one error type of Tidemill. It lives at the bottom of the house so that every crate shares it.

use std::fmt;

/// A result with Tidemill's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarse enough for a caller to act on. The C API maps these one to one to status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A file, model, tensor or metadata key does not exist.
    NotFound,
    /// A file's content contradicts itself or its format: truncated, overlapping, lying header, NaN scales.
    Corrupt,
    /// The content is well formed, but this build cannot run it (architecture, number format, template feature).
    Unsupported,
    /// The operating system failed a read, write or open.
    Io,
    /// The memory plan does not fit the budget, or an allocation failed.
    Memory,
    /// The caller asked for something out of range: a token id, a flag, a malformed message.
    InvalidRequest,
    /// The sequence would outgrow the model's or the session's context length.
    ContextFull,
    /// A GPU was lost, is missing, or refused an operation.
    Device,
    /// The caller interrupted the work.
    Cancelled,
}

/// One error for the whole engine: a kind to act on, a message that names the thing, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause. `message` names the file, tensor or field.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with the cause that led to it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `prefix: ` before the message, as an error travels up to where more is known.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }

    /// The kind to act on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// [`ErrorKind::InvalidRequest`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidRequest, message)
    }

    /// [`ErrorKind::Memory`].
    pub fn memory(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Memory, message)
    }

    /// [`ErrorKind::Io`] with the operating system's error as cause; `what` names the file and the action.
    pub fn io(what: impl fmt::Display, source: std::io::Error) -> Self {
        let kind =
            if source.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Io };
        Self::new(kind, format!("{what}: {source}")).with_source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}
