//! What a server is told when it starts, and what it is given to serve.

use std::sync::Arc;
use std::time::Duration;

use api::prepare::Defaults;
use engine::text::{Templates, Tokenizer};
use engine::{Error, Model, Result};

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address or name to listen on.
    pub host: String,
    /// The port; 0 takes a free one.
    pub port: u16,
    /// Keys of which a request must have one; without any, everybody is answered who names this machine.
    pub keys: Vec<String>,
    /// Whether other machines may be answered without a key.
    pub open: bool,
    /// Requests that may wait for their turn.
    pub queue: usize,
    /// Silence in a stream after which there is a sign of life.
    pub ping: Duration,
    /// Origins whose web pages may ask; `*` is all of them.
    pub cors: Vec<String>,
    /// Most bytes of a body, as it is and unpacked.
    pub body_bytes_max: usize,
    /// Whether unknown fields, tools of unknown types and names of other models are refused.
    pub strict: bool,
    /// Whether prompts are logged.
    pub log_prompts: bool,
    /// How a request is logged.
    pub log_format: LogFormat,
    /// Whether there is a page at `/`.
    pub page: bool,
    /// How long clients may take.
    pub patience: Patience,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            keys: Vec::new(),
            open: false,
            queue: 64,
            ping: Duration::from_secs(10),
            cors: Vec::new(),
            body_bytes_max: 32 << 20,
            strict: false,
            log_prompts: false,
            log_format: LogFormat::Text,
            page: true,
            patience: Patience::default(),
        }
    }
}

/// How a request is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

/// How long the server waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the head of a request, from its first byte on.
    pub head: Duration,
    /// For the next request of a connection. Clients keep connections for a while, and fail where the server is quicker.
    pub idle: Duration,
    /// For the next byte of a body.
    pub body: Duration,
    /// For a large body to come, besides a second for each of its MiB, while others wait for its memory.
    pub large: Duration,
    /// For a reader to take a byte.
    pub reader: Duration,
    /// For answers to end when the server does.
    pub ending: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(180),
            body: Duration::from_secs(30),
            large: Duration::from_secs(5),
            reader: Duration::from_secs(300),
            ending: Duration::from_secs(30),
        }
    }
}

/// A model to serve.
pub struct Served {
    /// The model, opened for [`Self::parallel`] sequences.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat templates; without any it continues texts only.
    pub templates: Option<Templates>,
    /// The template's text, for clients that ask.
    pub template_text: Option<String>,
    /// What it is called in answers.
    pub alias: String,
    /// Requests that run at once.
    pub parallel: usize,
    /// Its weights.
    pub parameters: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// What a request gets that does not say.
    pub defaults: Defaults,
}

impl Options {
    /// Refuses what would open the machine by mistake.
    ///
    /// # Errors
    /// `InvalidRequest` naming the option.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(origin) = self.cors.iter().find(|origin| *origin != "*" && !origin.contains("://")) {
            return Err(Error::invalid(format!("--cors {origin:?} is no origin: write https://example.org")));
        }
        if self.keys.iter().any(String::is_empty) {
            return Err(Error::invalid("--api-key: an empty key keeps nobody out"));
        }
        if self.body_bytes_max == 0 {
            return Err(Error::invalid("--max-body 0 leaves no room for a request"));
        }
        Ok(())
    }
}
