//! The paths that have the model answer.

use std::sync::Arc;

use api::prepare::options;
use api::prompts::Made;
use api::{
    ApiError, Chat, Limits, Parsed, Prompt, ReplyHead, ReplyWriter, anthropic, openai,
    responses as responses_api,
};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use engine::ConversationKey;
use engine::scheduler::Request as SchedulerRequest;

use crate::bodies::{self, Packed, Place};
use crate::conn::{Closer, client};
use crate::events::{Expected, Mapping};
use crate::http::{Answer, failed, json, respond};
use crate::metrics::Record;
use crate::outline::Outline;
use crate::plain::no_model;
use crate::queue::{Answers, Asked, Places};
use crate::recorder::Recorder;
use crate::safety::{self, Packing};
use crate::sse::{Completed, Reply};
use crate::state::{Ready, Shared, unix_s};

const IGNORED: HeaderName = HeaderName::from_static("x-tidemill-ignored");

/// Which API a request speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Chat,
    Completions,
    Responses,
    Messages,
}

impl Dialect {
    fn parse(self, body: &[u8], limits: &Limits) -> Result<Parsed, ApiError> {
        match self {
            Self::Chat => openai::chat_request(body, limits),
            Self::Completions => openai::completion_request(body, limits),
            Self::Responses => responses_api::request(body, limits),
            Self::Messages => anthropic::request(body, limits, false),
        }
    }

    /// Where this API has the form of an answer.
    fn form_field(self, request: &api::Request) -> &'static str {
        match self {
            Self::Responses => "text.format",
            Self::Messages => "output_config.format",
            Self::Chat | Self::Completions => request.form_field(),
        }
    }

    fn writer(self, head: ReplyHead, request: &api::Request) -> Box<dyn ReplyWriter> {
        match self {
            Self::Chat => openai::chat_reply(head, request),
            Self::Completions => openai::completion_reply(head, request),
            Self::Responses => responses_api::reply(head, request),
            Self::Messages => anthropic::reply(head, request),
        }
    }
}

/// `POST /v1/chat/completions`
pub(crate) async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(answer(Dialect::Chat, &shared, request).await)
}

/// `POST /v1/completions`
pub(crate) async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(answer(Dialect::Completions, &shared, request).await)
}

/// `POST /v1/responses`
pub(crate) async fn responses(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(answer(Dialect::Responses, &shared, request).await)
}

/// `POST /v1/messages`
pub(crate) async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(answer(Dialect::Messages, &shared, request).await)
}

/// `POST /v1/messages/count_tokens`
pub(crate) async fn count_tokens(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(counted(&shared, request).await)
}

async fn counted(shared: &Shared, request: Request) -> Answer {
    let body = read(shared, request).await?;
    let (ready, most) = (shared.ready()?, shared.options.body_bytes_max);
    blocking(shared, body, move |body| {
        let body = body.unpack(most)?;
        let mut parsed = anthropic::request(&body, &ready.limits, true)?;
        if let Prompt::Chat(chat) = &mut parsed.request.prompt {
            ready.model.recall(&mut chat.messages);
        }
        let tokens = ready.prompts.count(&parsed.request.prompt)?;
        let mut response = json(&anthropic::counted(tokens));
        name_ignored(&mut response, &parsed.ignored);
        Ok(response)
    })
    .await
}

/// Reads the body of a request that has JSON.
///
/// # Errors
/// `Unavailable` without a model, `ContentType`, `TooLarge`, `Invalid` for one that does not come.
pub(crate) async fn read(shared: &Shared, request: Request) -> Result<Packed, ApiError> {
    shared.ready()?;
    safety::check_content_type(request.headers())?;
    let packing = Packing::of(request.headers())?;
    bodies::read(request, packing, &shared.options, &shared.room).await
}

/// Makes of a body what takes time, where nobody waits for it.
///
/// # Errors
/// What it returns; `Server` when it panics.
pub(crate) async fn blocking<T: Send + 'static>(
    shared: &Shared,
    body: Packed,
    work: impl FnOnce(Packed) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if body.is_large() {
        return shared.reader.run(move || work(body)).await.ok_or_else(failed)?;
    }
    tokio::task::spawn_blocking(move || work(body)).await.map_err(|_| failed())?
}

/// A request that can be begun. Nothing of its body is left but what its answer repeats.
struct Prepared {
    /// One for each answer, with what makes events of it.
    requests: Vec<Asked>,
    choices: usize,
    progress: bool,
    streams: bool,
    ignored: Vec<String>,
    places: Places,
    writer: Box<dyn ReplyWriter>,
    completed: Option<Completed>,
    /// Where that lies which the answer repeats.
    repeats: Option<Place>,
}

/// Text of what the answer repeats of its request, and so holds until its end.
fn repeated_bytes(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Chat(chat) => chat.repeated.values().map(|value| value.to_string().len()).sum(),
        Prompt::Texts(_) => 0,
    }
}

async fn answer(dialect: Dialect, shared: &Arc<Shared>, mut request: Request) -> Answer {
    let closer = request.extensions_mut().remove::<Closer>().unwrap_or_default();
    let Some(record) = request.extensions_mut().remove::<Arc<Record>>() else {
        return Err(failed());
    };
    let client = client(&request);
    let body = read(shared, request).await?;
    let ready = shared.ready()?;
    let prepared = {
        let (server, ready, record) = (shared.clone(), ready.clone(), record.clone());
        let work = move |body: Packed| {
            // What is made of the body is gone before its place is.
            let body = body.unpack(server.options.body_bytes_max)?;
            let parsed = dialect.parse(&body, &ready.limits)?;
            let mut prepared = prepare(dialect, parsed, (&server, &ready), &record)?;
            prepared.requests.iter_mut().for_each(|asked| asked.request.client = client);
            Ok(prepared)
        };
        blocking(shared, body, work).await?
    };
    let Prepared { requests, choices, progress, streams, ignored, places, writer, completed, repeats } =
        prepared;
    let answers = Answers::begin(ready, record.clone(), requests, choices, progress, places)?;
    let reply = Reply { answers, writer, record: record.clone(), completed, _repeats: repeats };
    let mut response = match streams {
        true => reply.stream(shared.options.ping, closer),
        false => json(&reply.whole().await?),
    };
    name_ignored(&mut response, &ignored);
    record.ignored(&ignored);
    Ok(response)
}

/// Says what is not honoured.
fn name_ignored(response: &mut Response, ignored: &[String]) {
    if !ignored.is_empty()
        && let Ok(names) = HeaderValue::from_str(&ignored.join(", "))
    {
        response.headers_mut().insert(IGNORED, names);
    }
}

/// Makes the prompts and what is asked of the scheduler. Takes time.
fn prepare(
    dialect: Dialect,
    parsed: Parsed,
    (shared, ready): (&Shared, &Arc<Ready>),
    record: &Record,
) -> Result<Prepared, ApiError> {
    let Parsed { mut request, mut ignored } = parsed;
    if ready.limits.strict && request.model != ready.alias {
        return Err(no_model(&request.model, &ready.alias));
    }
    let mut conversation = None;
    if let Prompt::Chat(chat) = &mut request.prompt {
        resume(chat, ready)?;
        let key = ready.model.recall(&mut chat.messages);
        // The end of a beginning is no turn that the model wrote.
        conversation = (request.cache && !chat.continues).then_some(key);
    }
    let prompts = match &request.prompt {
        Prompt::Chat(_) => 1,
        Prompt::Texts(texts) => texts.len(),
    };
    let places = ready.queue.enter(prompts * request.choices)?;
    let repeated = repeated_bytes(&request.prompt);
    let repeats = (repeated > 0).then(|| shared.room.repeat(repeated)).transpose()?;
    let made = ready.prompts.make(&request.prompt, request.cache)?;
    if shared.options.log_prompts {
        record.prompt(made.iter().map(|made| made.text.as_str()).collect::<Vec<_>>().join("\n"));
    }
    let form_field = dialect.form_field(&request);
    let requests = requests(&request, made, (ready, conversation), form_field, &mut ignored)?;
    let id = ready.ids.next();
    let completed = completed(&id, &request.prompt, ready);
    let head = ReplyHead {
        id,
        request_id: record.id().to_owned(),
        created_unix_s: unix_s(),
        model: ready.alias.clone(),
        fingerprint: format!("fp_{:016x}", ready.model.fingerprint()),
    };
    Ok(Prepared {
        writer: dialect.writer(head, &request),
        choices: request.choices,
        progress: request.progress,
        streams: request.stream,
        requests,
        ignored,
        places,
        completed,
        repeats,
    })
}

/// Puts the turns before a conversation that it goes on from.
fn resume(chat: &mut Chat, ready: &Ready) -> Result<(), ApiError> {
    let Some(id) = chat.thread.as_ref().and_then(|thread| thread.previous.clone()) else { return Ok(()) };
    let kept = ready.kept(&id).ok_or_else(|| responses_api::no_previous(&id))?;
    responses_api::resume(chat, &kept)
}

/// What keeps the answer, where somebody may want to go on from it.
fn completed(id: &str, prompt: &Prompt, ready: &Arc<Ready>) -> Option<Completed> {
    let Prompt::Chat(chat) = prompt else { return None };
    let thread = chat.thread.clone().filter(|thread| thread.keep)?;
    let (id, ready) = (format!("resp_{id}"), ready.clone());
    Some(Box::new(move |writer| ready.keep(id, thread.after(writer.answer()))))
}

/// One for each answer, and what makes events of it.
fn requests(
    request: &api::Request,
    made: Vec<Made>,
    (ready, conversation): (&Ready, Option<ConversationKey>),
    form_field: &str,
    ignored: &mut Vec<String>,
) -> Result<Vec<Asked>, ApiError> {
    let of_model = (ready.model.meta(), ready.tokenizer.as_ref());
    let options = options(of_model, &ready.defaults, (request, &made), form_field, ignored)?;
    let expected = Expected {
        has_experts: ready.model.top_k() > 0,
        stop: options.stop.clone(),
        logprobs: options.top_logprobs.is_some(),
    };
    let mut all = Vec::with_capacity(made.len() * request.choices);
    for made in made {
        let mut outline = match &request.prompt {
            Prompt::Chat(chat) if request.cache => {
                Some(Outline::new(&chat.messages, &made.text, &made.tokens))
            }
            _ => None,
        };
        for choice in 0..request.choices as u64 {
            let mut options = options.clone();
            options.reply.clone_from(&made.reply);
            // The same numbers would make the same answer again.
            options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(choice));
            let asked = SchedulerRequest {
                prompt: made.tokens.clone(),
                borders: made.borders.clone(),
                cache: request.cache,
                options,
                priority: 0,
                client: 0,
                deadline: None,
            };
            let echo = request.echo.then(|| made.text.clone());
            let recorder = conversation.map(|before| Recorder::new(&ready.model, before));
            let mapping = Mapping::new(all.len(), expected.clone(), echo);
            all.push(Asked { request: asked, mapping, recorder, outline: outline.take() });
        }
    }
    Ok(all)
}
