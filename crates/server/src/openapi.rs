//! `GET /openapi.json`: the paths, made of the tables that requests are read by.

use std::sync::Arc;

use api::schema::{self, named};
use api::{Limits, anthropic, openai, responses};
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::http::{json as send, respond};
use crate::state::Shared;

/// `GET /openapi.json`
pub(crate) async fn openapi(State(shared): State<Arc<Shared>>) -> Response {
    respond(shared.ready().map(|ready| send(&document(&ready.limits))))
}

/// What a path takes.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    /// An id in the path.
    Id,
    Chat,
    Completion,
    Response,
    Message,
    Count,
    Text,
    Tokens,
}

/// A path of the document, in its one spelling: those with `/v1` are there without it too.
struct Endpoint {
    path: &'static str,
    what: &'static str,
    takes: Takes,
    /// The name of the schema of its answer; `None` for text.
    answers: Option<&'static str>,
    streams: bool,
    /// Other statuses than 200.
    statuses: &'static [u16],
}

/// Of what the model answers.
const GENERATING: &[u16] = &[400, 401, 403, 404, 405, 413, 415, 429, 500, 503];
/// Of what is read and not answered by the model.
const READING: &[u16] = &[400, 401, 403, 405, 413, 415, 500, 503];
/// Of what is only told.
const TELLING: &[u16] = &[401, 403, 405, 503];

const fn post(path: &'static str, what: &'static str, takes: Takes, answers: &'static str) -> Endpoint {
    Endpoint { path, what, takes, answers: Some(answers), streams: true, statuses: GENERATING }
}

const fn read(path: &'static str, what: &'static str, takes: Takes, answers: &'static str) -> Endpoint {
    Endpoint { path, what, takes, answers: Some(answers), streams: false, statuses: READING }
}

const fn get(path: &'static str, what: &'static str, answers: &'static str) -> Endpoint {
    let (takes, answers) = (Takes::Nothing, Some(answers));
    Endpoint { path, what, takes, answers, streams: false, statuses: TELLING }
}

const ENDPOINTS: [Endpoint; 14] = [
    post("/v1/chat/completions", "The next turn of a conversation.", Takes::Chat, "ChatCompletion"),
    post("/v1/completions", "The continuation of texts.", Takes::Completion, "Completion"),
    post("/v1/responses", "The next items of a conversation.", Takes::Response, "Response"),
    post("/v1/messages", "The next message of a conversation.", Takes::Message, "MessageReply"),
    read("/v1/messages/count_tokens", "Tokens of a prompt.", Takes::Count, "MessageTokens"),
    get("/v1/models", "The model, as a list.", "ModelList"),
    Endpoint {
        takes: Takes::Id,
        statuses: &[401, 403, 404, 405, 503],
        ..get("/v1/models/{id}", "The model.", "Model")
    },
    read("/tokenize", "A text as tokens.", Takes::Text, "TokenList"),
    read("/detokenize", "Tokens as text.", Takes::Tokens, "Text"),
    Endpoint {
        statuses: &[403, 405, 503],
        ..get("/health", "Whether requests are taken; 503 while the model loads and at the end.", "Health")
    },
    Endpoint {
        answers: None,
        statuses: &[401, 403, 405],
        ..get("/metrics", "Counts, as Prometheus reads them.", "")
    },
    Endpoint {
        answers: None,
        streams: true,
        statuses: &[401, 403, 405, 429, 503],
        ..get("/events", "Figures of the server, one sample a second, until the reader leaves.", "")
    },
    get("/props", "The context and the template, where agents look for them.", "Props"),
    get("/openapi.json", "This document.", "Document"),
];

/// The whole document, for requests that are held to `limits`.
pub(crate) fn document(limits: &Limits) -> Value {
    let paths: Map<String, Value> =
        ENDPOINTS.iter().map(|endpoint| (endpoint.path.to_owned(), endpoint.value(limits))).collect();
    let mut schemas = schema::requests(limits);
    schemas.extend(schema::replies());
    schemas.extend(own());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemill",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The paths under /v1 are there without it too. Fields that are not listed are taken and named \
                            in the answer's header x-tidemill-ignored, or refused with --strict. Errors have the shape \
                            of Anthropic's API for /v1/messages and for whoever sends anthropic-version.",
        },
        "paths": paths,
        // Without keys of its own a server answers everybody who names it rightly.
        "security": [{}, {"bearer": []}, {"key": []}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

impl Takes {
    fn body(self, limits: &Limits) -> Option<Value> {
        let of = |table, spared: &[&str]| Some(schema::body(table, spared, limits));
        match self {
            Self::Nothing | Self::Id => None,
            Self::Chat => of(openai::CHAT_FIELDS, &[]),
            Self::Completion => of(openai::COMPLETION_FIELDS, &[]),
            Self::Response => of(responses::FIELDS, &[]),
            Self::Message => of(anthropic::FIELDS, &[]),
            Self::Count => of(anthropic::FIELDS, &["max_tokens"]),
            Self::Text => {
                let (text, flag) = (json!({"type": "string"}), json!({"type": ["boolean", "null"]}));
                let of = |key: &str| {
                    let mut properties = json!({"add_special": flag});
                    properties[key] = text.clone();
                    json!({"type": "object", "properties": properties, "required": [key]})
                };
                Some(json!({"anyOf": [of("content"), of("prompt")]}))
            }
            Self::Tokens => {
                let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0}});
                Some(json!({"type": "object", "properties": {"tokens": ids}, "required": ["tokens"]}))
            }
        }
    }
}

impl Endpoint {
    /// The path's entry: one operation.
    fn value(&self, limits: &Limits) -> Value {
        let mut operation = json!({"summary": self.what, "responses": self.responses()});
        if self.path == "/health" {
            operation["security"] = json!([]);
        }
        if matches!(self.takes, Takes::Id) {
            let id = json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}});
            operation["parameters"] = json!([id]);
        }
        match self.takes.body(limits) {
            None => json!({"get": operation}),
            Some(schema) => {
                let content = json!({"application/json": {"schema": schema}});
                operation["requestBody"] = json!({"required": true, "content": content});
                json!({"post": operation})
            }
        }
    }

    fn responses(&self) -> Value {
        let mut content = match self.answers {
            Some(name) => json!({"application/json": {"schema": named(name)}}),
            None if self.streams => json!({}),
            None => json!({"text/plain": {"schema": {"type": "string"}}}),
        };
        if self.streams {
            // Some read a schema as that of the whole text, some as that of each event.
            content["text/event-stream"] = json!({"schema": {"description": "Server-sent events."}});
        }
        let mut ok = json!({"description": "The answer.", "content": content});
        if self.takes.reads_fields() {
            let text = "Fields and tools of the request that have no effect.";
            ok["headers"] =
                json!({"x-tidemill-ignored": {"description": text, "schema": {"type": "string"}}});
        }
        let failures = self.statuses.iter().map(|status| (status.to_string(), self.failure(*status)));
        [("200".to_owned(), ok)].into_iter().chain(failures).collect()
    }

    fn failure(&self, status: u16) -> Value {
        let why = match status {
            400 => "The body is no JSON, or a field is wrong.",
            401 => "No key, or a wrong one.",
            403 => "A foreign host or origin.",
            404 => "Another model; requests with bodies with --strict alone.",
            405 => "Another method.",
            413 => "The body is too large.",
            415 => "The body is not said to be JSON, or packed in an unknown way.",
            429 => "The queue is full.",
            500 => "The drive or the device failed.",
            _ => "Loading, or shutting down.",
        };
        let schema = match (self.path, status) {
            ("/health", 503) => named("Health"),
            (path, _) if path.starts_with("/v1/messages") => named("MessageError"),
            _ => json!({"anyOf": [named("Error"), named("MessageError")]}),
        };
        let mut failure = json!({"description": why, "content": {"application/json": {"schema": schema}}});
        if matches!(status, 429 | 503) && self.path != "/health" {
            let text = "Seconds after which to try again.";
            failure["headers"] = json!({"retry-after": {"description": text, "schema": {"type": "integer"}}});
        }
        failure
    }
}

impl Takes {
    fn reads_fields(self) -> bool {
        matches!(self, Self::Chat | Self::Completion | Self::Response | Self::Message | Self::Count)
    }
}

/// The answers that are of no API.
fn own() -> Map<String, Value> {
    let (text, count) = (json!({"type": "string"}), json!({"type": "integer", "minimum": 0}));
    let object = |properties: Value| {
        let names: Vec<&String> = properties.as_object().into_iter().flat_map(Map::keys).collect();
        json!({"type": "object", "required": names, "properties": properties})
    };
    let model = object(json!({
        "id": text,
        "object": {"const": "model"},
        "type": {"const": "model"},
        "created": count,
        "created_at": {"type": "string", "format": "date-time"},
        "display_name": text,
        "owned_by": text,
        "context_length": count,
        "max_model_len": count,
        "max_input_tokens": count,
        "meta": object(json!({"n_ctx": count, "n_params": count, "size_bytes": count})),
    }));
    let list = object(json!({
        "object": {"const": "list"},
        "data": {"type": "array", "items": named("Model")},
        "has_more": {"const": false},
        "first_id": text,
        "last_id": text,
    }));
    let props = object(json!({
        "default_generation_settings": object(json!({"n_ctx": count})),
        "total_slots": count,
        "chat_template": {"type": ["string", "null"]},
        "model_alias": text,
    }));
    let named = [
        ("Model", model),
        ("ModelList", list),
        ("TokenList", object(json!({"tokens": {"type": "array", "items": count}, "count": count}))),
        ("Text", object(json!({"content": text}))),
        ("Health", object(json!({"status": {"type": "string", "enum": ["ok", "loading", "stopping"]}}))),
        ("Props", props),
        ("Document", json!({"type": "object"})),
    ];
    named.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
}
