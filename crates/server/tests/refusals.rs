//! What is refused, with which status and in whose shape.

use serde_json::{Value, json};

use crate::support::{options, question, start, with};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn every_refusal_says_what_is_wrong() {
    let server = start(options(), 1);
    let chat = question("hi");
    let cases = [
        (with(&chat, json!({"messages": []})), "messages"),
        (with(&chat, json!({"temperature": "warm"})), "temperature"),
        (with(&chat, json!({"top_p": 7})), "top_p"),
        (with(&chat, json!({"max_tokens": 0})), "max_tokens"),
        (with(&chat, json!({"top_logprobs": 21, "logprobs": true})), "top_logprobs"),
        (with(&chat, json!({"modalities": ["audio"]})), "modalities"),
        (
            with(&chat, json!({"tool_choice": {"type": "function", "function": {"name": "no"}}})),
            "tool_choice",
        ),
    ];
    for (body, param) in cases {
        let refused = server.post(CHAT, &body);
        let error = &refused.json()["error"];
        assert_eq!((refused.status, &error["type"]), (400, &json!("invalid_request_error")), "{error}");
        assert!(error["param"].as_str().is_some_and(|of| of.starts_with(param)), "{param}: {error}");
    }
    for bytes in [&b"{"[..], b"\xff", b"[]", b"", b"null"] {
        let refused = server.ask("POST", CHAT, &[], bytes);
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(4000), "]".repeat(4000));
    assert_eq!(server.ask("POST", CHAT, &[], deep.as_bytes()).status, 400);
}

#[test]
fn a_prompt_that_is_too_long_is_refused_before_it_is_computed() {
    let server = start(options(), 1);
    let long = "word ".repeat(2000);
    let refused = server.post(CHAT, &with(&question(&long), json!({"stream": true})));
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["code"]), (400, &json!("context_length_exceeded")));
    let message = error["message"].as_str().expect("a text");
    assert!(
        message.starts_with("This model's maximum context length is 1024 tokens. However, your messages")
    );
    let asked = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": long}]});
    let refused = server.post("/v1/messages", &asked);
    let body = refused.json();
    assert_eq!((refused.status, &body["type"]), (400, &json!("error")));
    assert_eq!(body["request_id"], refused.header("request-id").expect("an id"));
    assert!(body["error"]["message"].as_str().expect("a text").starts_with("prompt is too long: "), "{body}");
    assert_eq!(server.metric("tidemill_prompt_tokens_total"), 0.0);
    // Without a limit the answer ends where the context does.
    let fits = with(&question(&"word ".repeat(480)), json!({"max_tokens": 5000, "ignore_eos": true}));
    let ended = server.post(CHAT, &fits).ok();
    assert_eq!(ended["choices"][0]["finish_reason"], "length");
    assert_eq!(ended["usage"]["total_tokens"], 1025, "{}", ended["usage"]);
}

#[test]
fn unknown_paths_and_methods() {
    let server = start(options(), 1);
    for path in ["/v1/embeddings", "/api/tags", "/v1", "/v1/chat"] {
        let refused = server.get(path);
        assert_eq!(
            (refused.status, &refused.json()["error"]["type"]),
            (404, &json!("not_found_error")),
            "{path}"
        );
    }
    let refused = server.get("/v1/models/gpt-9");
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (404, &json!("model_not_found")));
    for (method, path, allowed) in
        [("GET", CHAT, "POST"), ("DELETE", "/v1/messages", "POST"), ("POST", "/v1/models", "GET,HEAD")]
    {
        let refused = server.ask(method, path, &[], b"{}");
        assert_eq!((refused.status, refused.header("allow")), (405, Some(allowed)), "{path}");
    }
    let anthropic = server.ask("GET", "/v1/nothing", &[("anthropic-version", "2023-06-01")], b"");
    assert_eq!((anthropic.status, &anthropic.json()["error"]["type"]), (404, &json!("not_found_error")));
    assert_eq!(anthropic.json()["type"], "error");
}

#[test]
fn what_is_not_known_is_named_or_refused() {
    let chat = with(&question("hi"), json!({"new_field": 1, "client_metadata": {}, "max_tokens": 2}));
    let lenient = start(options(), 1).post(CHAT, &chat);
    assert_eq!((lenient.status, lenient.header("x-tidemill-ignored")), (200, Some("new_field")));
    let strict = start(server::Options { strict: true, ..options() }, 1);
    assert_eq!(strict.post(CHAT, &chat).status, 400);
    let other = strict.post(CHAT, &with(&question("hi"), json!({"model": "gpt-9"})));
    assert_eq!((other.status, &other.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn odd_conversations_are_taken() {
    let server = start(options(), 1);
    let ask = |messages: Value| {
        let asked = with(&question("x"), json!({"messages": messages, "max_tokens": 2}));
        let reply = server.post(CHAT, &asked);
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    ask(
        json!([{"role": "developer", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"}, {"role": "user", "content": "d"}, {"role": "system", "content": "10 left"}]),
    );
    ask(json!([{"role": "user", "content": "c"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
            "function": {"name": "f", "arguments": "{not json"}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": ""}]}]));
}
