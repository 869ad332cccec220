//! The paths, and what holds for every request: who is answered, its id, its record, and how a refusal looks.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use api::{ApiError, ErrorClass};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;

use crate::generate::{chat, completions, count_tokens, messages, responses};
use crate::live::events;
use crate::metrics::Record;
use crate::openapi::openapi;
use crate::page;
use crate::plain::{detokenize, health, metrics, model, models, props, tokenize};
use crate::state::Shared;

/// What a handler answers.
pub(crate) type Answer = Result<Response, ApiError>;

/// Paths that have `/v1` before them or not.
const VERSIONED: [&str; 6] =
    ["/chat/completions", "/completions", "/responses", "/messages", "/messages/count_tokens", "/models"];

/// Paths without a version, but for those of the page.
const OTHERS: [&str; 7] =
    ["/events", "/health", "/metrics", "/openapi.json", "/props", "/tokenize", "/detokenize"];

const MODEL_PATH: &str = "/models/{id}";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Seconds after which a client may try again that was refused for lack of room or of a model.
const RETRY_AFTER_S: u64 = 2;

/// All paths of the server.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for version in ["", "/v1"] {
        let [chat_path, completions_path, responses_path, messages_path, count_path, models_path] =
            VERSIONED.map(|path| format!("{version}{path}"));
        router = router
            .route(&chat_path, post(chat))
            .route(&completions_path, post(completions))
            .route(&responses_path, post(responses))
            .route(&messages_path, post(messages))
            .route(&count_path, post(count_tokens))
            .route(&models_path, get(models))
            .route(&format!("{models_path}/{{*id}}"), get(model));
    }
    if shared.options.page {
        router = page::routes(router);
    }
    router
        .route("/events", get(events))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/props", get(props))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(shared.clone(), around))
        .with_state(shared)
}

/// The path as it is counted: as few as there are, whatever clients ask for.
fn counted_path(path: &str) -> &'static str {
    let plain = path.strip_prefix("/v1").unwrap_or(path);
    let known = VERSIONED.iter().chain(&OTHERS).copied().find(|known| *known == plain);
    match known.or_else(|| page::find(plain)) {
        Some(known) => known,
        None if plain.starts_with("/models/") => MODEL_PATH,
        None => "other",
    }
}

/// Whether the client speaks Anthropic's API.
fn is_anthropic(path: &str, headers: &HeaderMap) -> bool {
    let plain = path.strip_prefix("/v1").unwrap_or(path);
    plain == "/messages" || plain.starts_with("/messages/") || headers.contains_key(ANTHROPIC_VERSION)
}

/// A refusal on its way to [`around`], which gives it the client's shape.
#[derive(Clone)]
struct Refusal(ApiError);

/// The response of a handler.
pub(crate) fn respond(answer: Answer) -> Response {
    answer.unwrap_or_else(|error| {
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(Refusal(error));
        response
    })
}

/// A JSON answer.
pub(crate) fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// What is said of a request that failed by no fault of its own.
pub(crate) fn failed() -> ApiError {
    ApiError::new(ErrorClass::Server, "the request failed in the server")
}

async fn unknown_path(request: Request) -> Response {
    let path = api::body::shown(request.uri().path());
    let message = format!("there is nothing at {} {path}", request.method());
    respond(Err(ApiError::new(ErrorClass::NotFound, message)))
}

async fn wrong_method(request: Request) -> Response {
    let path = api::body::shown(request.uri().path());
    let message = format!("{path} does not take {}", request.method());
    respond(Err(ApiError::new(ErrorClass::Method, message)))
}

/// Every request goes through here.
async fn around(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let anthropic = is_anthropic(path, request.headers());
    let id = request_id(request.headers()).unwrap_or_else(|| format!("req_{}", shared.ids.next()));
    let record = Record::new(id, counted_path(path), shared.options.log_format, shared.log.clone());
    let record = Arc::new(record);
    let origin = request.headers().get(header::ORIGIN).cloned();
    let origin = origin.filter(|origin| origin.to_str().is_ok_and(|text| shared.guard.shares_with(text)));
    request.extensions_mut().insert(record.clone());
    let mut response = match check(&shared, &request) {
        Err(error) => respond(Err(error)),
        Ok(()) if is_preflight(&request, origin.as_ref()) => preflight(request.headers()),
        Ok(()) => caught(next.run(request)).await,
    };
    if let Some(Refusal(error)) = response.extensions_mut().remove() {
        response = refused(&error, anthropic, record.id(), response.headers().get(header::ALLOW).cloned());
        record.failed(&error.message);
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(record.id()) {
        if anthropic {
            headers.insert(ANTHROPIC_ID, id.clone());
        }
        headers.insert(REQUEST_ID, id);
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    record.status(response.status().as_u16());
    shared.metrics.request(record.path(), response.status().as_u16());
    response
}

/// Who may ask at all. Browsers ask for permission without a key, and so does whoever looks after the server. The page asks
/// its user for one.
fn check(shared: &Shared, request: &Request) -> Result<(), ApiError> {
    let (method, headers) = (request.method(), request.headers());
    shared.guard.check_names(method, request.uri(), headers)?;
    let path = request.uri().path();
    let is_page = shared.options.page && page::find(path).is_some();
    if path != "/health" && !is_page && method != Method::OPTIONS {
        shared.guard.check_key(headers)?;
    }
    Ok(())
}

/// The client's own id, if it is fit for a header and a log.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| id.to_owned())
}

fn is_preflight(request: &Request, origin: Option<&HeaderValue>) -> bool {
    let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    request.method() == Method::OPTIONS && asks && origin.is_some()
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

/// A panic ends the request that it happened in.
async fn caught(response: impl Future<Output = Response>) -> Response {
    let mut response = pin!(response);
    let polled = |context: &mut std::task::Context<'_>| {
        catch_unwind(AssertUnwindSafe(|| response.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(respond(Err(failed()))))
    };
    poll_fn(polled).await
}

/// The response that says why not.
fn refused(error: &ApiError, anthropic: bool, id: &str, allow: Option<HeaderValue>) -> Response {
    let body = if anthropic { error.anthropic(id) } else { error.openai() };
    let mut response = json(&body);
    *response.status_mut() =
        StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    match error.class {
        ErrorClass::QueueFull | ErrorClass::Unavailable => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        ErrorClass::Key => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What is left of the body is not read.
        ErrorClass::TooLarge => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    if let Some(allow) = allow {
        headers.insert(header::ALLOW, allow);
    }
    response
}
