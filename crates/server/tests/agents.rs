//! What coding agents send, as recorded from their releases with the texts replaced: three turns of a conversation, and the
//! small requests beside it. The folder `agents` has a file for each.
//!
//! `turns` are what each turn adds to the field that `list` names. In texts `xN ` at the beginning repeats the rest `N`
//! times, and `{turn}` is the number of the turn.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Reply, Running, loading, options, with};

/// The longest sequence of these tests.
const CONTEXT: usize = 4096;

/// So many tokens more may be computed than are new: where a turn ends, templates write what the prompt before did not have.
const AGAIN: u64 = 24;

struct Agent {
    shape: Value,
}

impl Agent {
    fn new(name: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/agents/{name}.json"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self { shape: serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display())) }
    }

    fn path(&self) -> &str {
        self.shape["path"].as_str().expect("a path")
    }

    fn list(&self) -> &str {
        self.shape["list"].as_str().expect("a field's name")
    }

    fn turns(&self) -> &[Value] {
        self.shape["turns"].as_array().expect("turns")
    }

    /// The whole request of a turn: what was said before is repeated.
    fn request(&self, turn: usize) -> Value {
        let said = |turn: &Value| turn.as_array().expect("a list").clone();
        let list: Vec<Value> = self.turns()[..=turn].iter().flat_map(said).collect();
        self.written(&with(&self.shape["body"], json!({self.list(): list})), turn)
    }

    /// `body` with its texts as they are sent, for a short answer.
    fn written(&self, body: &Value, turn: usize) -> Value {
        let field = if self.list() == "input" { "max_output_tokens" } else { "max_tokens" };
        with(&written(body, turn), json!({field: 16}))
    }

    fn send(&self, server: &Running, path: &str, body: &Value, turn: usize) -> Reply {
        let headers: Vec<(&str, String)> = self.shape["headers"]
            .as_object()
            .expect("headers")
            .iter()
            .map(|(name, value)| (name.as_str(), replaced(value.as_str().expect("a text"), turn)))
            .collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        server.ask("POST", path, &headers, body.to_string().as_bytes())
    }
}

fn replaced(text: &str, turn: usize) -> String {
    text.replace("{turn}", &turn.to_string())
}

fn written(value: &Value, turn: usize) -> Value {
    match value {
        Value::String(text) => {
            let repeated = text.strip_prefix('x').and_then(|rest| {
                let (times, rest) = rest.split_once(' ')?;
                Some(rest.repeat(times.parse().ok()?))
            });
            replaced(repeated.as_ref().unwrap_or(text), turn).into()
        }
        Value::Array(all) => all.iter().map(|value| written(value, turn)).collect(),
        Value::Object(all) => all
            .iter()
            .map(|(key, value)| (key.clone(), written(value, turn)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// Tokens of a prompt.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    tokens: u64,
    cached: u64,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Checks the order of a stream; the tokens that it tells of.
fn check_stream(path: &str, reply: &Reply) -> Prompt {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.events();
    let parsed = |data: &str| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
    match path.split('?').next() {
        Some("/v1/responses") => {
            let events: Vec<Value> = events.iter().map(|(_, data)| parsed(data)).collect();
            check_responses(&events)
        }
        Some("/v1/messages") => {
            let events: Vec<Value> = events.iter().map(|(_, data)| parsed(data)).collect();
            check_messages(&events)
        }
        _ => {
            let (last, events) = events.split_last().expect("events");
            assert_eq!(last.1, "[DONE]");
            let events: Vec<Value> = events.iter().map(|(_, data)| parsed(data)).collect();
            check_chat(&events)
        }
    }
}

fn check_responses(events: &[Value]) -> Prompt {
    for (at, event) in events.iter().enumerate() {
        assert_eq!(number(&event["sequence_number"]), at as u64, "{event}");
    }
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().expect("a type")).collect();
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"]);
    let counted = |kind: &str| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!(counted("response.output_item.added"), counted("response.output_item.done"), "{kinds:?}");
    let last = &events[events.len() - 1];
    assert!(["response.completed", "response.incomplete"].contains(&kinds[kinds.len() - 1]), "{kinds:?}");
    let usage = &last["response"]["usage"];
    Prompt {
        tokens: number(&usage["input_tokens"]),
        cached: number(&usage["input_tokens_details"]["cached_tokens"]),
    }
}

fn check_chat(events: &[Value]) -> Prompt {
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let (usage, chunks) = events.split_last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    let ends: Vec<usize> =
        (0..chunks.len()).filter(|at| !chunks[*at]["choices"][0]["finish_reason"].is_null()).collect();
    assert_eq!(ends, [chunks.len() - 1]);
    let usage = &usage["usage"];
    Prompt {
        tokens: number(&usage["prompt_tokens"]),
        cached: number(&usage["prompt_tokens_details"]["cached_tokens"]),
    }
}

fn check_messages(events: &[Value]) -> Prompt {
    let mut open = None;
    let mut blocks = 0;
    for event in events {
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert_eq!((open, number(&event["index"])), (None, blocks), "{event}");
                open = Some(blocks);
                blocks += 1;
            }
            "content_block_delta" => assert_eq!(Some(number(&event["index"])), open, "{event}"),
            "content_block_stop" => assert_eq!(Some(number(&event["index"])), open.take(), "{event}"),
            _ => {}
        }
    }
    let [first, .., delta, last] = events else { panic!("{events:?}") };
    assert_eq!((&first["type"], &last["type"]), (&json!("message_start"), &json!("message_stop")));
    assert!(open.is_none() && delta["delta"]["stop_reason"].is_string(), "{delta}");
    let usage = &first["message"]["usage"];
    let cached = number(&usage["cache_read_input_tokens"]);
    Prompt { tokens: number(&usage["input_tokens"]) + cached, cached }
}

fn serving() -> Running {
    let running = loading(options());
    running.load(2, CONTEXT);
    running
}

/// A conversation of three turns is answered, and nothing of it is computed twice.
fn converses(name: &str) {
    let (agent, server) = (Agent::new(name), serving());
    let mut before: Option<Prompt> = None;
    for turn in 0..agent.turns().len() {
        let body = agent.request(turn);
        let reply = agent.send(&server, agent.path(), &body, turn);
        let prompt = check_stream(agent.path(), &reply);
        assert_eq!(reply.header("x-tidemill-ignored"), agent.shape["ignored"][turn].as_str(), "turn {turn}");
        if let Some(before) = before {
            assert!(prompt.tokens > before.tokens, "turn {turn}: {prompt:?} after {before:?}");
            assert!(prompt.cached + AGAIN >= before.tokens, "turn {turn}: {prompt:?} after {before:?}");
        }
        before = Some(prompt);
        if agent.path().starts_with("/v1/messages") {
            let counted = agent.send(&server, "/v1/messages/count_tokens?beta=true", &body, turn).ok();
            assert_eq!(number(&counted["input_tokens"]), prompt.tokens, "turn {turn}");
        }
        // They come between the turns, and must not evict the conversation.
        for other in agent.shape["others"].as_array().into_iter().flatten() {
            let body = agent.written(other, turn);
            check_stream(agent.path(), &agent.send(&server, agent.path(), &body, turn));
        }
    }
}

/// The body of the error that says that a conversation is too long.
fn overflows(name: &str) -> Value {
    let (agent, server) = (Agent::new(name), serving());
    let mut body = agent.request(0);
    let list = body[agent.list()].as_array_mut().expect("a list");
    list.push(json!({"role": "user", "content": "word ".repeat(CONTEXT)}));
    let reply = agent.send(&server, agent.path(), &body, 0);
    assert_eq!(reply.status, 400, "{}", reply.text());
    reply.json()
}

#[test]
fn codex_converses() {
    converses("codex");
}

#[test]
fn opencode_converses() {
    converses("opencode");
}

#[test]
fn qwen_code_converses() {
    converses("qwen_code");
}

#[test]
fn claude_code_converses() {
    converses("claude_code");
}

/// Each agent makes its conversation shorter only where it recognises that it is too long: Codex and OpenCode by the code,
/// Qwen Code by the words and the two numbers, Claude Code by the words.
#[test]
fn agents_are_told_that_a_conversation_is_too_long_in_words_that_they_know() {
    for name in ["codex", "opencode", "qwen_code"] {
        let error = overflows(name)["error"].clone();
        assert_eq!(error["code"], "context_length_exceeded", "{name}: {error}");
        let message = error["message"].as_str().expect("a text");
        assert!(
            message.contains(&format!("maximum context length is {CONTEXT} tokens")),
            "{name}: {message}"
        );
        let tokens =
            message.split("resulted in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        assert!(tokens > Some(CONTEXT) && message.contains("tokens. Please"), "{name}: {message}");
    }
    let error = overflows("claude_code")["error"].clone();
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().expect("a text");
    assert!(message.starts_with("prompt is too long: "), "{message}");
    assert!(message.ends_with(&format!(" tokens > {CONTEXT} maximum")), "{message}");
}
