//! Anthropic's Messages.

use api::anthropic::{counted, reply, request};
use api::{ApiError, Constraint, Ending, Event, EventKind, Request, ToolChoice};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    bodies, call, chat, ended, events, frames, frames_with, head, limits, lines, near, places, started,
    strict, text, thinking, turns, whole,
};

fn taken(body: Value) -> Request {
    request(body.to_string().as_bytes(), &limits(), false).unwrap().request
}

fn refused(body: Value) -> ApiError {
    request(body.to_string().as_bytes(), &limits(), false).unwrap_err()
}

fn ask(messages: Value) -> Value {
    json!({"model": "claude", "max_tokens": 100, "messages": messages})
}

#[test]
fn a_question() {
    let mut body = ask(json!([{"role": "user", "content": "Hi"}]));
    body["system"] = json!("Be brief.");
    let request = taken(body);
    assert_eq!((request.model.as_str(), request.max_tokens, request.stream), ("claude", Some(100), false));
    assert!(!chat(&request).continues && chat(&request).parallel_calls);
    insta::assert_snapshot!(turns(chat(&request)), @r#"
{"role":"system","content":"Be brief."}
{"role":"user","content":"Hi"}
"#);
}

/// As a coding agent sends them: a billing line, blocks of all kinds, results out of order, words beside them.
#[test]
fn blocks_become_turns() {
    let mut body = ask(json!([
        {"role": "user", "content": [
            {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "xx"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "ls", "input": {"n": 1.0}},
            {"type": "tool_use", "id": "t2", "name": "read", "input": {}},
            {"type": "text", "text": " And wait."}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t2", "content": [
                {"type": "text", "text": "no such file"}, {"type": "text", "text": "again"}], "is_error": true},
            {"type": "tool_result", "tool_use_id": "t1"},
            {"type": "text", "text": "Hurry."}]},
        {"role": "system", "content": "3 tokens left"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t3", "name": "ls", "input": "{bad"}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t3", "content": "Error: bad arguments", "is_error": true}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t4", "content": "", "is_error": true}]},
        {"role": "user", "content": []},
    ]));
    body["system"] = json!([
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=a1b2c;"},
        {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}}]);
    insta::assert_snapshot!(turns(chat(&taken(body))), @r#"
{"role":"system","content":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2; cch=00000;"},{"type":"text","text":"You are an agent."}]}
{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}
{"role":"assistant","content":"I look. And wait.","reasoning_content":"hm","tool_calls":[{"id":"t1","type":"function","function":{"name":"ls","arguments":{"n":1.0}}},{"id":"t2","type":"function","function":{"name":"read","arguments":{}}}]}
{"role":"tool","content":"","tool_call_id":"t1"}
{"role":"tool","content":[{"type":"text","text":"Error:"},{"type":"text","text":"no such file"},{"type":"text","text":"again"}],"tool_call_id":"t2"}
{"role":"user","content":"Hurry."}
{"role":"system","content":"3 tokens left"}
{"role":"assistant","content":"","tool_calls":[{"id":"t3","type":"function","function":{"name":"ls","arguments":"{bad"}}]}
{"role":"tool","content":"Error: bad arguments","tool_call_id":"t3"}
{"role":"tool","content":"Error","tool_call_id":"t4"}
{"role":"user","content":""}
"#);
}

/// The line differs in every request, and the prompt must not.
#[test]
fn the_billing_line_is_steady() {
    let prompt = |cch: &str| {
        let mut body = ask(json!([{"role": "user", "content": "x"}]));
        body["system"] =
            json!(format!("x-anthropic-billing-header: cc_version=2.1; cch={cch};\nRules, cch={cch};"));
        turns(chat(&taken(body)))
    };
    assert_eq!(prompt("a1b2c").replace("cch=a1b2c", "cch=fffff"), prompt("fffff"));
    assert!(prompt("a1b2c").contains("cch=00000;\\nRules, cch=a1b2c;"));
}

#[test]
fn a_last_turn_of_the_model_goes_on() {
    let of = |content: Value| {
        let request =
            taken(ask(json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": content}])));
        (chat(&request).continues, chat(&request).messages.len())
    };
    assert_eq!(of(json!("{")), (true, 2));
    assert_eq!(of(json!([{"type": "text", "text": "Once"}])), (true, 2));
    assert_eq!(of(json!([{"type": "tool_use", "id": "t", "name": "f", "input": {}}])), (false, 2));
    assert_eq!(of(json!("")), (false, 1));
    assert_eq!(of(json!([])), (false, 1));
}

#[test]
fn tools_and_choices() {
    let body = |choice: Value| {
        let mut body = ask(json!([{"role": "user", "content": "x"}]));
        body["tools"] = json!([
            {"name": "ls", "description": "Lists.", "input_schema": {"type": "object"}, "cache_control": null},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "custom", "name": "read", "input_schema": {"type": "object"}, "strict": true}]);
        body["tool_choice"] = choice;
        body
    };
    let parsed = request(body(Value::Null).to_string().as_bytes(), &limits(), false).unwrap();
    assert_eq!(parsed.ignored, ["tools[1]"]);
    let tools: Vec<String> =
        chat(&parsed.request).tools.iter().map(|tool| tool.value().to_string()).collect();
    insta::assert_snapshot!(tools.join("\n"), @r#"
{"type":"function","function":{"name":"ls","description":"Lists.","parameters":{"type":"object"}}}
{"type":"function","function":{"name":"read","parameters":{"type":"object"},"strict":true}}
"#);
    for (choice, expected, parallel) in [
        (json!({"type": "auto"}), ToolChoice::Auto, true),
        (json!({"type": "any", "disable_parallel_tool_use": true}), ToolChoice::Required, false),
        (json!({"type": "none"}), ToolChoice::None, true),
        (json!({"type": "tool", "name": "read"}), ToolChoice::Function("read".into()), true),
    ] {
        let request = taken(body(choice));
        assert_eq!((&chat(&request).tool_choice, chat(&request).parallel_calls), (&expected, parallel));
    }
    for (choice, param) in [
        (json!({"type": "tool", "name": "bash"}), "tool_choice"),
        (json!({"type": "tool"}), "tool_choice.name"),
        (json!({"type": "some"}), "tool_choice.type"),
        (json!("any"), "tool_choice.type"),
    ] {
        assert_eq!(refused(body(choice.clone())).param.as_deref(), Some(param), "{choice}");
    }
}

#[test]
fn sampling_thinking_and_formats() {
    let with = |changes: Value| {
        let mut body = ask(json!([{"role": "user", "content": "x"}]));
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        taken(body)
    };
    let request = with(
        json!({"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["END"], "stream": true,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}}),
    );
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (Some(0.5), Some(0.25), Some(7)));
    assert_eq!((request.stop.as_slice(), request.stream), (["END".to_owned()].as_slice(), true));
    assert_eq!(request.constraint, Some(Constraint::JsonSchema(json!({"type": "object"}))));
    assert_eq!(chat(&request).template_variables["reasoning_effort"], "low");
    let request = with(json!({"output_format": {"type": "json_schema", "schema": true}, "max_tokens": 0}));
    assert_eq!(
        (request.constraint, request.max_tokens),
        (Some(Constraint::JsonSchema(json!(true))), Some(0))
    );
    for (thinking, expected) in [
        (Value::Null, Some(false)),
        (json!({"type": "enabled", "budget_tokens": 2000, "display": "summarized"}), Some(true)),
        (json!({"type": "adaptive"}), None),
        (json!({"type": "disabled"}), Some(false)),
    ] {
        assert_eq!(chat(&with(json!({"thinking": thinking}))).thinking, expected);
    }
}

#[test]
fn refusals_name_the_field() {
    let with = |key: &str, value: Value| {
        let mut body = ask(json!([{"role": "user", "content": "x"}]));
        body[key] = value;
        body
    };
    let block = |block: Value| ask(json!([{"role": "user", "content": [block]}]));
    for (body, param) in [
        (json!({"model": "m", "max_tokens": 1}), "messages"),
        (with("max_tokens", Value::Null), "max_tokens"),
        (with("max_tokens", json!(-1)), "max_tokens"),
        (ask(json!([])), "messages"),
        (ask(json!([{"role": "assistant", "content": ""}])), "messages"),
        (ask(json!([{"role": "robot", "content": ""}])), "messages[0].role"),
        (ask(json!([{"role": "user", "content": 7}])), "messages[0].content"),
        (with("system", json!([{"type": "image"}])), "system[0].type"),
        (with("stop_sequences", json!([7])), "stop_sequences[0]"),
        (with("stop_sequences", json!(vec!["x"; 65])), "stop_sequences"),
        (with("top_k", json!(-1)), "top_k"),
        (with("thinking", json!({"type": "deep"})), "thinking.type"),
        (with("output_config", json!({"effort": "huge"})), "output_config.effort"),
        (
            with("output_config", json!({"format": {"type": "json_schema", "schema": 1}})),
            "output_config.format.schema",
        ),
        (with("container", json!("c")), "container"),
        (with("tools", json!([{"name": "f", "input_schema": 1}])), "tools[0].input_schema"),
        (with("tools", json!([{"name": ""}])), "tools[0].name"),
        (block(json!({"type": "image", "source": {}})), "messages[0].content[0].type"),
        (block(json!({"type": "document", "source": {}})), "messages[0].content[0].type"),
        (block(json!({"type": "text"})), "messages[0].content[0].text"),
        (block(json!({"type": "tool_result"})), "messages[0].content[0].tool_use_id"),
        (
            block(json!({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]})),
            "messages[0].content[0].content[0].type",
        ),
    ] {
        let error = refused(body.clone());
        assert_eq!((error.status(), error.param.as_deref()), (400, Some(param)), "{body}: {}", error.message);
        let shown = error.anthropic("req_1");
        assert!(shown["error"]["message"].as_str().unwrap().contains(param), "{shown}");
    }
}

#[test]
fn fields_without_effect_and_unknown_ones() {
    let mut body = ask(json!([{"role": "user", "content": "x"}]));
    let extra = json!({"metadata": {"user_id": "u"}, "service_tier": "auto", "diagnostics": {"x": null}, "speed": "standard",
        "cache_control": {"type": "ephemeral"}, "context_management": {"edits": []}});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    assert!(request(body.to_string().as_bytes(), &strict(), false).unwrap().ignored.is_empty());
    body["speed"] = json!("fast");
    body["context_management"] = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]});
    body["brand_new"] = json!(1);
    let parsed = request(body.to_string().as_bytes(), &limits(), false).unwrap();
    assert_eq!(parsed.ignored, ["speed", "context_management", "brand_new"]);
    assert_eq!(request(body.to_string().as_bytes(), &strict(), false).unwrap_err().param.unwrap(), "speed");
}

#[test]
fn counting_needs_no_limit() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]}).to_string();
    assert!(request(body.as_bytes(), &limits(), false).is_err());
    assert_eq!(request(body.as_bytes(), &limits(), true).unwrap().request.max_tokens, None);
    assert_eq!(counted(7), json!({"input_tokens": 7}));
}

fn shown(events: &[Event]) -> String {
    let request = taken(ask(json!([{"role": "user", "content": "x"}])));
    lines(&frames(reply(head(), &request).as_mut(), events))
}

#[test]
fn a_stream_of_all_kinds() {
    let mut answer = vec![started(), thinking("hm"), thinking(" ok"), text("é"), text("漢")];
    answer.extend(call(0, "ls", &["{\"a\":", "1}"]));
    answer.extend(call(1, "pwd", &[]));
    answer.push(ended(Ending::Stop));
    insta::assert_snapshot!(shown(&answer), @r#"
message_start {"type":"message_start","message":{"id":"msg_X1","type":"message","role":"assistant","model":"demo","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":0,"output_tokens_details":{"thinking_tokens":0}}}}
content_block_start {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}
content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}
content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":" ok"}}
content_block_delta {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"dGlkZW1pbGw="}}
content_block_stop {"type":"content_block_stop","index":0}
content_block_start {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}
content_block_delta {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"é"}}
content_block_delta {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"漢"}}
content_block_stop {"type":"content_block_stop","index":1}
content_block_start {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_C0","name":"ls","input":{}}}
content_block_delta {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}
content_block_delta {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}}
content_block_stop {"type":"content_block_stop","index":2}
content_block_start {"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_C1","name":"pwd","input":{}}}
content_block_stop {"type":"content_block_stop","index":3}
message_delta {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":12,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":5,"output_tokens_details":{"thinking_tokens":2}}}
message_stop {"type":"message_stop"}
"#);
}

#[test]
fn why_an_answer_ended() {
    let stop = |events: &[Event]| {
        let request = taken(ask(json!([{"role": "user", "content": "x"}])));
        let answer = whole(reply(head(), &request).as_mut(), events);
        (answer["stop_reason"].clone(), answer["stop_sequence"].clone())
    };
    let after_text = |ending: Ending| stop(&[started(), text("x"), ended(ending)]);
    assert_eq!(after_text(Ending::Stop), (json!("end_turn"), Value::Null));
    assert_eq!(after_text(Ending::StopString("END".into())), (json!("stop_sequence"), json!("END")));
    assert_eq!(after_text(Ending::Length), (json!("max_tokens"), Value::Null));
    assert_eq!(after_text(Ending::Context), (json!("model_context_window_exceeded"), Value::Null));
    let after_call = |ending: Ending| {
        let mut events = call(0, "f", &["{}"]);
        events.push(ended(ending));
        stop(&events)
    };
    assert_eq!(after_call(Ending::Stop), (json!("tool_use"), Value::Null));
    assert_eq!(after_call(Ending::Length), (json!("max_tokens"), Value::Null));
}

/// Warming the cache: a prompt and no answer.
#[test]
fn an_answer_of_nothing() {
    insta::assert_snapshot!(shown(&[started(), ended(Ending::Length)]), @r#"
message_start {"type":"message_start","message":{"id":"msg_X1","type":"message","role":"assistant","model":"demo","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":12,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":0,"output_tokens_details":{"thinking_tokens":0}}}}
message_delta {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},"usage":{"input_tokens":12,"cache_creation_input_tokens":0,"cache_read_input_tokens":8,"output_tokens":5,"output_tokens_details":{"thinking_tokens":2}}}
message_stop {"type":"message_stop"}
"#);
}

#[test]
fn pings_and_failures() {
    let request = taken(ask(json!([{"role": "user", "content": "x"}])));
    let mut writer = reply(head(), &request);
    assert_eq!(lines(&writer.ping()), r#"ping {"type":"ping"}"#);
    writer.event(&started());
    let error = ApiError::new(api::ErrorClass::Server, "the drive failed");
    insta::assert_snapshot!(lines(&writer.fail(&error)), @r#"error {"type":"error","error":{"type":"api_error","message":"the drive failed"},"request_id":"req_1"}"#);
    let cancelled = frames(reply(head(), &request).as_mut(), &[started(), ended(Ending::Cancelled)]);
    assert_eq!(bodies(&cancelled).last().unwrap()["type"], "error");
}

#[test]
fn the_whole_answer() {
    let mut answer = vec![started(), thinking("hm"), text("x")];
    answer.extend(call(0, "f", &["{\"big\":98765432109876543210,\"huge\":1e400,\"list\":[1,2.5]}"]));
    answer.push(ended(Ending::Stop));
    let request = taken(ask(json!([{"role": "user", "content": "x"}])));
    let answer = whole(reply(head(), &request).as_mut(), &answer);
    insta::assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap(), @r#"
{
  "id": "msg_X1",
  "type": "message",
  "role": "assistant",
  "model": "demo",
  "content": [
    {
      "type": "thinking",
      "thinking": "hm",
      "signature": "dGlkZW1pbGw="
    },
    {
      "type": "text",
      "text": "x"
    },
    {
      "type": "tool_use",
      "id": "toolu_C0",
      "name": "f",
      "input": {
        "big": 9.876543210987654e+19,
        "huge": "1e400",
        "list": [
          1,
          2.5
        ]
      }
    }
  ],
  "stop_reason": "tool_use",
  "stop_sequence": null,
  "usage": {
    "input_tokens": 12,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 8,
    "output_tokens": 5,
    "output_tokens_details": {
      "thinking_tokens": 2
    }
  }
}
"#);
}

/// A message put together as clients do it.
#[derive(Default)]
struct Replayed {
    message: Value,
    json: String,
    open: bool,
}

impl Replayed {
    fn take(&mut self, body: &Value) {
        let blocks = self.message["content"].as_array().map_or(0, Vec::len);
        match body["type"].as_str().unwrap() {
            "message_start" => {
                assert!(self.message.is_null(), "{body}");
                self.message = body["message"].clone();
            }
            "content_block_start" => {
                assert!(!self.open && body["index"] == json!(blocks), "{body}");
                self.message["content"].as_array_mut().unwrap().push(body["content_block"].clone());
                self.open = true;
                self.json.clear();
            }
            "content_block_delta" => {
                assert!(self.open && body["index"] == json!(blocks - 1), "{body}");
                self.delta(blocks - 1, &body["delta"]);
            }
            "content_block_stop" => {
                assert!(self.open && body["index"] == json!(blocks - 1), "{body}");
                self.open = false;
                if let Ok(input @ Value::Object(_)) = serde_json::from_str(&self.json) {
                    self.message["content"][blocks - 1]["input"] = input;
                }
            }
            "message_delta" => {
                assert!(!self.open);
                self.message["stop_reason"] = body["delta"]["stop_reason"].clone();
                self.message["stop_sequence"] = body["delta"]["stop_sequence"].clone();
                self.message["usage"] = body["usage"].clone();
            }
            "message_stop" | "ping" => {}
            other => panic!("{other}"),
        }
    }

    fn delta(&mut self, at: usize, delta: &Value) {
        let block = &mut self.message["content"][at];
        let (kind, key) = match delta["type"].as_str().unwrap() {
            "text_delta" => ("text", "text"),
            "thinking_delta" => ("thinking", "thinking"),
            "signature_delta" => ("thinking", "signature"),
            "input_json_delta" => ("tool_use", "partial_json"),
            other => panic!("{other}"),
        };
        assert_eq!(block["type"], kind);
        let piece = delta[key].as_str().unwrap();
        match key {
            "partial_json" => self.json.push_str(piece),
            key => block[key] = json!(block[key].as_str().unwrap().to_owned() + piece),
        }
    }
}

proptest! {
    #[test]
    fn streams_are_in_order_and_whole((answer, pings) in events().prop_flat_map(|answer| {
        let len = answer.len();
        (Just(answer), places(len))
    })) {
        let request = taken(ask(json!([{"role": "user", "content": "x"}])));
        let mut writer = reply(head(), &request);
        let all = frames_with(writer.as_mut(), &answer, &pings);
        let all = bodies(&all);
        let mut replayed = Replayed::default();
        all.iter().for_each(|body| replayed.take(body));
        let names: Vec<&Value> = all.iter().map(|body| &body["type"]).filter(|name| *name != "ping").collect();
        prop_assert_eq!(names[0], "message_start");
        prop_assert_eq!(&names[names.len() - 2..], [&json!("message_delta"), &json!("message_stop")]);
        prop_assert_eq!(&whole(reply(head(), &request).as_mut(), &answer), &replayed.message);
        prop_assert_eq!(&writer.whole(), &replayed.message);
    }

    #[test]
    fn no_body_panics(body in near(BODIES), cut in any::<prop::sample::Index>()) {
        let text = body.to_string();
        if let Ok(parsed) = request(text.as_bytes(), &limits(), true) {
            prop_assert!(!chat(&parsed.request).messages.is_empty());
        }
        let _ = request(&text.as_bytes()[..cut.index(text.len() + 1)], &limits(), false);
        let _ = request(text.as_bytes(), &strict(), false);
    }
}

const BODIES: &[&str] = &[
    r#"{"model":"m","max_tokens":3,"system":[{"type":"text","text":"x-anthropic-billing-header: cch=abcde;"}],
        "messages":[{"role":"user","content":[{"type":"text","text":"a"},
            {"type":"tool_result","tool_use_id":"t","content":[{"type":"text","text":"o"}],"is_error":true}]},
        {"role":"assistant","content":[{"type":"thinking","thinking":"h","signature":"s"},
            {"type":"redacted_thinking","data":"d"},{"type":"tool_use","id":"t","name":"f","input":{"a":1}}]},
        {"role":"system","content":"s"}]}"#,
    r#"{"model":"m","max_tokens":3,"messages":[{"role":"user","content":"x"}],"temperature":1,"top_p":0.5,"top_k":3,
        "stop_sequences":["s"],"tools":[{"name":"f","input_schema":{"type":"object"},"strict":true}],
        "tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":true},
        "thinking":{"type":"enabled","budget_tokens":1024},
        "output_config":{"effort":"low","format":{"type":"json_schema","schema":{}}},"stream":true}"#,
];

#[test]
fn the_examples_are_requests() {
    for body in BODIES {
        request(body.as_bytes(), &strict(), false).unwrap();
    }
}

/// Messages have no event for it.
#[test]
fn progress_is_not_shown() {
    let progress = EventKind::Progress {
        done_tokens: 1,
        total_tokens: 2,
        cached_tokens: 0,
        elapsed: std::time::Duration::ZERO,
    };
    let request = taken(ask(json!([{"role": "user", "content": "x"}])));
    assert!(reply(head(), &request).event(&crate::support::event(progress)).is_empty());
}
