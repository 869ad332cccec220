//! Answers: a request in, events and an object out.

use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;

use api::prepare::options;
use api::program;
use api::prompts::Made;
use api::report::{Answered, Reads};
use api::{Prompt, TextPrompt};
use engine::generate::{FinishReason, GenerateEvent, GenerateOptions, generate};
use engine::sample::random_seed;
use engine::text::{ReplyEvent, ReplyOptions, ReplyTurn};
use engine::{ConversationKey, Session};
use serde_json::{Value, json};

use crate::border::{place, put_json, text};
use crate::cancel::{CancelHandle, Stop};
use crate::model::Shared;
use crate::session::{SessionHandle, with_session};
use crate::status::{Failure, Status};

/// A piece of the answer's text, UTF-8. All pieces joined are the result's `text`, but for those before
/// `TIDEMILL_TEXT_WAS_THINKING`, which few models make.
pub const TIDEMILL_TEXT: i32 = 1;
/// A piece of the thoughts before it.
pub const TIDEMILL_THINKING: i32 = 2;
/// A whole call, as JSON: `{"id", "type": "function", "function": {"name", "arguments"}}`.
pub const TIDEMILL_TOOL_CALL: i32 = 3;
/// What looked like a call and is none, as JSON: `{"reason"}`.
pub const TIDEMILL_MALFORMED_TOOL_CALL: i32 = 4;
/// All text so far was a thought, and is no part of the result's `text`; without data.
pub const TIDEMILL_TEXT_WAS_THINKING: i32 = 6;
/// How far the prompt is, as JSON: `{"done_tokens", "total_tokens"}`.
pub const TIDEMILL_PROMPT: i32 = 5;

/// Told what happens while an answer is made; ignore kinds that you do not know. `data` has `bytes` bytes and lives until the
/// function returns; no NUL follows. Not 0 stops the answer. It runs on the calling thread, and must neither throw nor `longjmp`.
pub type OnEvent =
    Option<unsafe extern "C" fn(user: *mut c_void, kind: i32, data: *const c_char, bytes: usize) -> i32>;

/// A request that can be computed.
pub(crate) struct Prepared {
    pub(crate) made: Made,
    pub(crate) options: GenerateOptions,
    /// What its answer is remembered by, where it is a turn of a conversation.
    pub(crate) conversation: Option<ConversationKey>,
    /// Paths of what is not honoured.
    pub(crate) ignored: Vec<String>,
}

/// Reads a request and makes its prompt.
pub(crate) fn prepare(shared: &Shared, request_json: &str) -> Result<Prepared, Failure> {
    let mut parsed = program::request(request_json.as_bytes())?;
    let mut conversation = None;
    let request = &mut parsed.request;
    match &mut request.prompt {
        Prompt::Chat(chat) => {
            let key = shared.model.recall(&mut chat.messages);
            conversation = Some(key).filter(|_| !chat.continues);
        }
        Prompt::Texts(texts) => {
            if let [TextPrompt::Tokens(tokens)] = &texts[..] {
                crate::text::check_ids(shared, tokens)?;
            }
        }
    }
    // Always set, so that it can be told.
    request.sampling.seed.get_or_insert_with(random_seed);
    let mut made = shared.prompts.make(&request.prompt, shared.keeps_states)?;
    let of_model = (shared.model.meta(), shared.tokenizer.as_ref());
    let (form_field, mut ignored) = (request.form_field(), parsed.ignored);
    let mut options = options(of_model, &shared.defaults, (request, &made), form_field, &mut ignored)?;
    let mut made = made.pop().ok_or_else(|| Failure::invalid("there is no prompt"))?;
    // Texts are taken apart too, as `run --raw` does.
    let raw = || ReplyOptions {
        opens_thinking: made.text.trim_end().ends_with("<think>"),
        ..ReplyOptions::default()
    };
    options.reply = made.reply.take().or_else(|| Some(raw()));
    Ok(Prepared { made, options, conversation, ignored })
}

/// What is told of a piece of the reply, and what of it belongs into the turn. Calls get ids that nobody can guess.
pub(crate) fn named(shared: &Shared, event: ReplyEvent) -> ReplyEvent {
    match event {
        ReplyEvent::ToolCall { index, mut call } => {
            call.id = format!("call_{}", shared.ids.next());
            ReplyEvent::ToolCall { index, call }
        }
        other => other,
    }
}

/// The kind and the data of what C is told; nothing of what it is not.
fn told(event: &ReplyEvent) -> Option<(i32, String)> {
    Some(match event {
        ReplyEvent::Text(text) => (TIDEMILL_TEXT, text.clone()),
        ReplyEvent::Thinking(text) => (TIDEMILL_THINKING, text.clone()),
        ReplyEvent::ToolCall { call, .. } => (TIDEMILL_TOOL_CALL, json!(call).to_string()),
        ReplyEvent::MalformedToolCall { reason, .. } | ReplyEvent::BrokenToolCall { reason, .. } => {
            (TIDEMILL_MALFORMED_TOOL_CALL, json!({"reason": reason}).to_string())
        }
        ReplyEvent::TextWasThinking => (TIDEMILL_TEXT_WAS_THINKING, String::new()),
        ReplyEvent::ToolCallStart { .. } | ReplyEvent::ToolCallArguments { .. } | ReplyEvent::Logprobs(_) => {
            return None;
        }
    })
}

/// Whom events are told to, until it or somebody else stops the answer.
struct Listener {
    on: OnEvent,
    user: *mut c_void,
    stop: Stop,
    stopped: Cell<bool>,
}

impl Listener {
    fn hear(&self, kind: i32, data: &str) -> ControlFlow<()> {
        if let Some(on) = self.on.filter(|_| !self.stopped.get()) {
            // SAFETY: the caller's function, with the caller's pointer, on the caller's thread.
            let answer = unsafe { on(self.user, kind, data.as_ptr().cast(), data.len()) };
            self.stopped.set(answer != 0);
        }
        self.flow()
    }

    fn flow(&self) -> ControlFlow<()> {
        if self.stopped.get() { ControlFlow::Break(()) } else { self.stop.flow() }
    }

    fn hear_reply(&self, event: &ReplyEvent) -> ControlFlow<()> {
        let flow = told(event).map_or_else(|| self.flow(), |(kind, data)| self.hear(kind, &data));
        match event {
            // Its text is part of the answer's.
            ReplyEvent::BrokenToolCall { text, .. } => self.hear(TIDEMILL_TEXT, text),
            _ => flow,
        }
    }
}

/// Answers a request: one of `messages`, `prompt` (a text) and `tokens`, and how to answer it. Its prompt becomes the session's
/// sequence, of which only what differs is computed; the answer is appended. `*result_json` gets the object that
/// `tidemill run --json` prints, with `tokens` and with `ignored`: what of a tool's schema cannot be kept.
///
/// Stopped by `on` or `cancel` it is `CANCELLED`, and the result is there all the same, with what was made; the session keeps it.
/// Errors: `INVALID_REQUEST`, `CONTEXT_FULL`, `IO`, `DEVICE`, `MEMORY`, `BUSY`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_generate(
    session: *mut SessionHandle,
    request_json: *const c_char,
    on: OnEvent,
    user: *mut c_void,
    cancel: *const CancelHandle,
    result_json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    with_session("tidemill_generate", session, error, |shared, session| {
        let out = place(result_json, "result_json")?;
        let mut prepared = prepare(shared, text(request_json, "request_json")?)?;
        let ignored = std::mem::take(&mut prepared.ignored);
        let listener = Listener { on, user, stop, stopped: Cell::new(false) };
        let answered = answer(shared, session, prepared, &listener)?;
        let cancelled = answered.generated.finish == FinishReason::Cancelled;
        put_json(&out, &result(shared, &answered, &ignored));
        if cancelled { Err(Failure::cancelled()) } else { Ok(()) }
    })
}

/// The object that an answer is for the caller.
pub(crate) fn result(shared: &Shared, answered: &Answered, ignored: &[String]) -> Value {
    let mut map = answered.json();
    map.insert("ignored".into(), json!(ignored));
    map.insert("tokens".into(), json!(answered.generated.tokens));
    shared.describe(map)
}

fn answer(
    shared: &Shared,
    session: &mut Session,
    prepared: Prepared,
    listener: &Listener,
) -> Result<Answered, Failure> {
    let Prepared { made, options, conversation, .. } = prepared;
    let before = shared.model.read_stats();
    let mut turn = ReplyTurn::default();
    session.name_borders(&made.borders);
    let generated =
        generate(session, shared.tokenizer.clone(), &made.tokens, &options, &mut |event| match event {
            GenerateEvent::Prompt { done_tokens, total_tokens } => {
                let told = json!({"done_tokens": done_tokens, "total_tokens": total_tokens}).to_string();
                shared.tell(|| listener.hear(TIDEMILL_PROMPT, &told))
            }
            GenerateEvent::Token => listener.flow(),
            GenerateEvent::Reply(event) => {
                let event = named(shared, event);
                turn.take(&event);
                listener.hear_reply(&event)
            }
        })?;
    if let Some(before) = conversation {
        remember(shared, before, &turn, &generated.tokens);
    }
    // What cannot be kept is computed again.
    if shared.keeps_states && session.keep().is_ok() && listener.flow().is_continue() {
        shared.flush();
    }
    let seed = options.sampling.seed_in_use();
    let reads = Reads::between(before.as_ref(), shared.model.read_stats().as_ref());
    Ok(Answered { turn, generated, reads, seed })
}

/// Remembers an answer, so that the next turn of its conversation begins with the tokens that were sampled.
pub(crate) fn remember(shared: &Shared, before: ConversationKey, turn: &ReplyTurn, tokens: &[u32]) {
    if !tokens.is_empty() {
        let calls: Vec<String> = turn.calls.iter().map(|call| call.id.clone()).collect();
        shared.model.remember(before, &turn.text, &calls, tokens);
    }
}
