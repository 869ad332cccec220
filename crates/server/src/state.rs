//! What all requests share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use api::ids::Ids;
use api::prepare::Defaults;
use api::prompts::Prompts;
use api::responses::Conversation;
use api::{ApiError, ErrorClass, Limits};
use engine::scheduler::{Scheduler, SchedulerOptions};
use engine::text::Tokenizer;
use engine::{Model, Result};
use tokio::sync::{Semaphore, watch};

use crate::bodies::{Reader, Room};
use crate::live::VIEWERS;
use crate::metrics::{Log, Metrics, lock};
use crate::options::{Options, Served};
use crate::queue::Queue;
use crate::safety::Guard;

/// Answers of the Responses API that are remembered, to be gone on from.
const KEPT_ANSWERS: usize = 1000;

/// What they take at most. A turn counts as often as a conversation has it, since any of these may be the last to hold it.
pub(crate) const KEPT_BYTES: usize = 32 << 20;

/// Choices of a request for each sequence that runs at once.
const CHOICES_PER_PARALLEL: usize = 4;

/// Tokens that a plain completion gets which names no limit, as OpenAI has it.
const COMPLETION_TOKENS: usize = 16;

/// A server, with a model or before it has one.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) guard: Guard,
    pub(crate) ids: Arc<Ids>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Arc<Log>,
    /// Where large bodies are, as many as there is memory for.
    pub(crate) room: Room,
    /// Where they are read.
    pub(crate) reader: Reader,
    /// How many may look on.
    pub(crate) viewers: Arc<Semaphore>,
    /// Turns true when the server stops.
    pub(crate) stopping: watch::Sender<bool>,
    model: OnceLock<Arc<Ready>>,
}

/// A model that is served.
pub(crate) struct Ready {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) prompts: Prompts,
    pub(crate) scheduler: Scheduler,
    pub(crate) queue: Queue,
    pub(crate) limits: Limits,
    pub(crate) defaults: Defaults,
    pub(crate) alias: String,
    pub(crate) template_text: Option<String>,
    pub(crate) parallel: usize,
    pub(crate) parameters: u64,
    pub(crate) size_bytes: u64,
    /// When it was ready, seconds since 1970.
    pub(crate) created_unix_s: u64,
    pub(crate) ids: Arc<Ids>,
    pub(crate) metrics: Arc<Metrics>,
    kept: Mutex<Kept>,
}

/// The latest answers of the Responses API.
#[derive(Default)]
struct Kept {
    conversations: HashMap<String, Conversation>,
    /// The oldest first, with its bytes.
    order: VecDeque<(String, usize)>,
    bytes: usize,
}

impl Shared {
    pub(crate) fn new(options: Options, is_local: bool, log: Log) -> Result<Self> {
        Ok(Self {
            guard: Guard::new(&options, is_local),
            ids: Arc::default(),
            metrics: Arc::default(),
            log: Arc::new(log),
            room: Room::new(options.body_bytes_max),
            reader: Reader::start()?,
            viewers: Arc::new(Semaphore::new(VIEWERS)),
            stopping: watch::Sender::new(false),
            model: OnceLock::new(),
            options,
        })
    }

    /// From now on serves this model; a second one is ignored.
    pub(crate) fn serve(&self, served: Served) -> Result<()> {
        let Served { model, tokenizer, templates, defaults, parallel, .. } = served;
        defaults.sampling.params(model.meta())?;
        let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), SchedulerOptions::new(parallel))?;
        let ready = Ready {
            prompts: Prompts::new(tokenizer.clone(), templates, model.context()),
            queue: Queue::new(parallel, self.options.queue),
            limits: Limits {
                choices_max: parallel * CHOICES_PER_PARALLEL,
                strict: self.options.strict,
                completion_tokens: COMPLETION_TOKENS,
            },
            scheduler,
            model,
            tokenizer,
            defaults,
            alias: served.alias,
            template_text: served.template_text,
            parallel,
            parameters: served.parameters,
            size_bytes: served.size_bytes,
            created_unix_s: unix_s(),
            ids: self.ids.clone(),
            metrics: self.metrics.clone(),
            kept: Mutex::default(),
        };
        let tokenizer = ready.tokenizer.clone();
        let _ = self.model.set(Arc::new(ready));
        // The first request that needs it would wait a second or two; where this fails, that request is told.
        let builder = std::thread::Builder::new().name("grammars".into());
        let _ = builder.spawn(move || tokenizer.prepare_grammars());
        Ok(())
    }

    /// The model, if there is one.
    pub(crate) fn model(&self) -> Option<&Arc<Ready>> {
        self.model.get()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// The model for a new request.
    ///
    /// # Errors
    /// `Unavailable` before it is loaded and when the server stops.
    pub(crate) fn ready(&self) -> Result<Arc<Ready>, ApiError> {
        if self.is_stopping() {
            return Err(ApiError::new(ErrorClass::Unavailable, "the server is shutting down"));
        }
        let loading = || ApiError::new(ErrorClass::Unavailable, "the model is loading");
        self.model.get().cloned().ok_or_else(loading)
    }
}

impl Ready {
    /// What is kept of an answer.
    pub(crate) fn kept(&self, id: &str) -> Option<Conversation> {
        lock(&self.kept).conversations.get(id).cloned()
    }

    /// Keeps an answer, and forgets the oldest where there are too many.
    pub(crate) fn keep(&self, id: String, conversation: Conversation) {
        let bytes = conversation.bytes();
        let kept = &mut *lock(&self.kept);
        kept.order.push_back((id.clone(), bytes));
        kept.bytes += bytes;
        kept.conversations.insert(id, conversation);
        while (kept.order.len() > KEPT_ANSWERS || kept.bytes > KEPT_BYTES)
            && let Some((oldest, bytes)) = kept.order.pop_front()
        {
            kept.bytes -= bytes;
            kept.conversations.remove(&oldest);
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
