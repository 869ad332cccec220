//! The paths that compute nothing.

use std::sync::Arc;

use api::body::{At, parse};
use api::{ApiError, ErrorClass};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::text::{CivilTime, Specials, Tokenizer};
use serde_json::{Value, json};

use crate::generate::{blocking, read};
use crate::http::{Answer, json as send, respond};
use crate::state::{Ready, Shared};

/// `GET /health`
pub(crate) async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let (status, text) = match (shared.is_stopping(), shared.model()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        (false, None) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        (false, Some(_)) => (StatusCode::OK, "ok"),
    };
    (status, send(&json!({"status": text}))).into_response()
}

/// `GET /metrics`
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let (counts, kept, plan_bytes) = shared.model().map_or_else(Default::default, |ready| {
        (ready.scheduler.counts(), ready.model.kept_counts(), ready.model.plan().total_bytes)
    });
    let text = shared.metrics.text(&counts, &kept, plan_bytes);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// `GET /props`, where agents look for the context of a local server.
pub(crate) async fn props(State(shared): State<Arc<Shared>>) -> Response {
    respond(shared.ready().map(|ready| {
        send(&json!({
            "default_generation_settings": {"n_ctx": ready.model.context()},
            "total_slots": ready.parallel,
            "chat_template": ready.template_text,
            "model_alias": ready.alias,
        }))
    }))
}

/// `GET /v1/models`
pub(crate) async fn models(State(shared): State<Arc<Shared>>) -> Response {
    respond(shared.ready().map(|ready| {
        let id = &ready.alias;
        let data = [described(&ready)];
        send(&json!({"object": "list", "data": data, "has_more": false, "first_id": id, "last_id": id}))
    }))
}

/// `GET /v1/models/{id}`
pub(crate) async fn model(
    State(shared): State<Arc<Shared>>,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let id = id.map_or_else(|_| "?".to_owned(), |Path(id)| id); // one that is no text is nobody's
    let found = shared.ready().and_then(|ready| match id == ready.alias {
        true => Ok(send(&described(&ready))),
        false => Err(no_model(&id, &ready.alias)),
    });
    respond(found)
}

/// There is no such model.
pub(crate) fn no_model(id: &str, own: &str) -> ApiError {
    let message = format!("The model '{}' does not exist; this server has '{own}'.", api::body::shown(id));
    ApiError {
        code: Some("model_not_found"),
        param: Some("model".into()),
        ..ApiError::new(ErrorClass::NotFound, message)
    }
}

/// One object that both packages read.
fn described(ready: &Ready) -> Value {
    let context = ready.model.context();
    let created = CivilTime::from_unix(ready.created_unix_s as i64).format("%Y-%m-%dT%H:%M:%SZ");
    json!({
        "id": ready.alias,
        "object": "model",
        "type": "model",
        "created": ready.created_unix_s,
        "created_at": created,
        "display_name": ready.alias,
        "owned_by": "tidemill",
        "context_length": context,
        "max_model_len": context,
        "max_input_tokens": context - 1,
        "meta": {"n_ctx": context, "n_params": ready.parameters, "size_bytes": ready.size_bytes},
    })
}

/// `POST /tokenize`
pub(crate) async fn tokenize(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(tokenized(&shared, request).await)
}

async fn tokenized(shared: &Shared, request: Request) -> Answer {
    let body = read(shared, request).await?;
    let (ready, most) = (shared.ready()?, shared.options.body_bytes_max);
    blocking(shared, body, move |body| {
        let unpacked = body.unpack(most)?;
        let json = parse(&unpacked)?;
        let body = At::root(&json);
        let text = match body.get("content") {
            Some(text) => text,
            None => body.need("prompt")?,
        };
        let adds = body.flag_or("add_special", false)?;
        let encode = if adds { Tokenizer::encode_document_with } else { Tokenizer::encode };
        let tokens = encode(&ready.tokenizer, text.string()?, Specials::Parse)
            .map_err(|e| ApiError::invalid(Some(text.path().to_owned()), e.message()))?;
        Ok(send(&json!({"tokens": tokens, "count": tokens.len()})))
    })
    .await
}

/// `POST /detokenize`
pub(crate) async fn detokenize(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    respond(detokenized(&shared, request).await)
}

async fn detokenized(shared: &Shared, request: Request) -> Answer {
    let body = read(shared, request).await?;
    let (ready, most) = (shared.ready()?, shared.options.body_bytes_max);
    blocking(shared, body, move |body| {
        let unpacked = body.unpack(most)?;
        let json = parse(&unpacked)?;
        let tokens = At::root(&json).need("tokens")?;
        let last = (ready.tokenizer.vocab_size() as u64).saturating_sub(1);
        let ids = tokens.items()?.map(|id| Ok(id.whole(0..=last)? as u32));
        let ids = ids.collect::<Result<Vec<u32>, ApiError>>()?;
        Ok(send(&json!({"content": ready.tokenizer.decode(&ids, true)})))
    })
    .await
}
