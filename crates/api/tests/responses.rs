//! OpenAI's Responses.

use api::body::At;
use api::responses::{no_previous, reply, request, resume};
use api::{ApiError, Constraint, Ending, Event, EventKind, Prompt, Request, ToolChoice};
use engine::text::Json;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{
    bodies, call, chat, ended, event, events, frames, frames_with, head, limits, lines, logprob, near,
    places, started, strict, text, thinking, turns, whole,
};

fn taken(body: Value) -> Request {
    request(body.to_string().as_bytes(), &limits()).unwrap().request
}

fn refused(body: Value) -> ApiError {
    request(body.to_string().as_bytes(), &limits()).unwrap_err()
}

/// Frames without what each response repeats of its request.
fn short(request: &Request, events: &[Event]) -> String {
    let mut plain = request.clone();
    if let Prompt::Chat(chat) = &mut plain.prompt {
        chat.repeated.clear();
    }
    lines(&frames(reply(head(), &plain).as_mut(), events))
}

#[test]
fn a_question_in_words() {
    let request = taken(json!({"model": "gpt-5", "input": "Hi", "instructions": "Be brief."}));
    assert_eq!(request.model, "gpt-5");
    assert!(!request.stream && request.max_tokens.is_none() && chat(&request).parallel_calls);
    insta::assert_snapshot!(turns(chat(&request)), @r#"
{"role":"system","content":"Be brief."}
{"role":"user","content":"Hi"}
"#);
}

/// As a coding agent sends them: several instructions, calls of one answer, outputs in another order and as parts.
#[test]
fn items_become_turns() {
    let request = taken(json!({"input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"role": "system", "content": "More."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "short"}],
            "content": [{"type": "reasoning_text", "text": "long"}], "encrypted_content": null},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "ls", "arguments": "{\"n\":98765432109876543210}"},
        {"type": "function_call", "call_id": "c2", "name": "read", "namespace": "fs", "arguments": "{broken"},
        {"type": "message", "role": "assistant", "content": " And wait."},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "function_call_output", "call_id": "c1", "output": ""},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": "ok"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "local_shell_call", "id": "ls_1", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "ls_1", "output": "a"},
        {"role": "developer", "content": "3 tokens left"},
        {"role": "user", "content": "Go on."},
    ]}));
    insta::assert_snapshot!(turns(chat(&request)), @r#"
{"role":"system","content":"Rules.\n\nMore."}
{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}
{"role":"assistant","content":"I look. And wait.","reasoning_content":"long","tool_calls":[{"id":"c1","type":"function","function":{"name":"ls","arguments":{"n":98765432109876543210}}},{"id":"c2","type":"function","function":{"name":"fs.read","arguments":"{broken"}}]}
{"role":"tool","content":"","tool_call_id":"c1"}
{"role":"tool","content":"two","tool_call_id":"c2"}
{"role":"assistant","content":"No.","reasoning_content":"so","tool_calls":[{"id":"c3","type":"function","function":{"name":"patch","arguments":{"input":"*** Begin"}}}]}
{"role":"tool","content":"ok","tool_call_id":"c3"}
{"role":"assistant","content":"","tool_calls":[{"id":"ls_1","type":"function","function":{"name":"local_shell","arguments":{"type":"exec","command":["ls"]}}}]}
{"role":"tool","content":"a","tool_call_id":"ls_1"}
{"role":"system","content":"3 tokens left"}
{"role":"user","content":"Go on."}
"#);
}

#[test]
fn turns_of_the_model_that_are_not_one() {
    let request = taken(json!({"input": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"type": "reasoning", "summary": [], "content": []},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t1"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "t2"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]}));
    insta::assert_snapshot!(turns(chat(&request)), @r#"
{"role":"user","content":"q"}
{"role":"assistant","content":"a"}
{"role":"assistant","content":"b"}
{"role":"assistant","content":"","reasoning_content":"t1\nt2","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":{}}}]}
{"role":"tool","content":"1","tool_call_id":"c1"}
"#);
}

#[test]
fn tools_and_namespaces() {
    let body = json!({"input": "x", "stream": true, "parallel_tool_calls": false, "tools": [
        {"type": "function", "name": "ls", "description": "Lists.", "strict": false,
            "parameters": {"type": "object", "properties": {}}},
        {"type": "web_search"},
        {"type": "namespace", "name": "mcp", "description": "Remote.", "tools": [
            {"type": "function", "name": "get", "parameters": {"type": "object"}, "defer_loading": true},
            {"type": "custom", "name": "raw"}]},
        {"type": "function", "name": "ls"},
    ], "tool_choice": {"type": "function", "name": "get", "namespace": "mcp"}});
    let parsed = request(body.to_string().as_bytes(), &limits()).unwrap();
    assert_eq!(parsed.ignored, ["tools[1]", "tools[2].tools[1]", "tools[3]"]);
    let request_chat = chat(&parsed.request);
    assert!(parsed.request.stream && !request_chat.parallel_calls);
    assert_eq!(request_chat.tool_choice, ToolChoice::Function("mcp.get".into()));
    let tools: Vec<String> = request_chat.tools.iter().map(|tool| tool.value().to_string()).collect();
    insta::assert_snapshot!(tools.join("\n"), @r#"
{"type":"function","function":{"name":"ls","description":"Lists.","parameters":{"type":"object","properties":{}},"strict":false}}
{"type":"function","function":{"name":"mcp.get","parameters":{"type":"object"}}}
"#);
    assert_eq!(request(body.to_string().as_bytes(), &strict()).unwrap_err().param.unwrap(), "tools[1]");

    let mut events = call(0, "mcp.get", &["{\"a\":", "1}"]);
    events.push(ended(Ending::Stop));
    let answer = whole(reply(head(), &parsed.request).as_mut(), &events);
    insta::assert_snapshot!(answer["output"], @r#"[{"id":"fc_C0","type":"function_call","status":"completed","call_id":"call_C0","name":"get","arguments":"{\"a\":1}","namespace":"mcp"}]"#);
    assert_eq!(answer["tools"], body["tools"]);
}

#[test]
fn a_choice_among_tools() {
    let body = |choice: Value| {
        json!({"input": "x", "tools": [
            {"type": "function", "name": "a"}, {"type": "function", "name": "b"}, {"type": "mcp", "server_label": "m"}],
            "tool_choice": choice})
    };
    let chosen = |choice: Value| {
        let request = taken(body(choice));
        let chat = chat(&request).clone();
        (chat.tool_choice, chat.tools.iter().map(|tool| tool.name().to_owned()).collect::<Vec<_>>().join(","))
    };
    assert_eq!(chosen(json!("auto")), (ToolChoice::Auto, "a,b".into()));
    assert_eq!(chosen(json!("none")), (ToolChoice::None, "a,b".into()));
    assert_eq!(chosen(json!("required")), (ToolChoice::Required, "a,b".into()));
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "b"}, {"type": "mcp", "server_label": "m"}]});
    assert_eq!(chosen(allowed), (ToolChoice::Required, "b".into()));
    for (choice, param) in [
        (json!({"type": "function", "name": "c"}), "tool_choice"),
        (json!({"type": "file_search"}), "tool_choice"),
        (json!("some"), "tool_choice"),
        (json!({"type": "allowed_tools", "mode": "required", "tools": []}), "tool_choice"),
        (json!({"type": "function"}), "tool_choice.name"),
    ] {
        assert_eq!(refused(body(choice.clone())).param.as_deref(), Some(param), "{choice}");
    }
    assert_eq!(refused(json!({"input": "x", "tool_choice": "required"})).param.unwrap(), "tool_choice");
}

#[test]
fn sampling_limits_and_formats() {
    let request = taken(json!({"input": "x", "temperature": 0.5, "top_p": 0.25, "max_output_tokens": 7,
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"], "top_logprobs": 3,
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"}}));
    assert_eq!((request.sampling.temperature, request.sampling.top_p), (Some(0.5), Some(0.25)));
    assert_eq!((request.max_tokens, request.top_logprobs), (Some(7), Some(3)));
    assert_eq!(request.constraint, Some(Constraint::JsonSchema(json!({"type": "object"}))));
    assert_eq!(chat(&request).thinking, Some(true));
    assert_eq!(chat(&request).template_variables["reasoning_effort"], "high");

    let request =
        taken(json!({"input": "x", "reasoning": {"effort": "none"}, "text": {"format": {"type": "text"}}}));
    assert_eq!(
        (chat(&request).thinking, request.constraint, request.top_logprobs),
        (Some(false), None, None)
    );
    let request = taken(json!({"input": "x", "include": ["message.output_text.logprobs"],
        "text": {"format": {"type": "json_object"}}}));
    assert_eq!((request.constraint, request.top_logprobs), (Some(Constraint::JsonObject), Some(0)));
    assert_eq!(chat(&taken(json!({"input": "x", "reasoning": null}))).thinking, None);
}

#[test]
fn refusals_name_the_field() {
    let with = |key: &str, value: Value| {
        let mut body = json!({"model": "m", "input": "x"});
        body[key] = value;
        body
    };
    let item = |item: Value| json!({"input": [{"role": "user", "content": "x"}, item]});
    for (body, param) in [
        (json!({"model": "m"}), "input"),
        (json!({"input": []}), "input"),
        (with("input", json!(7)), "input"),
        (with("input", json!([7])), "input[0]"),
        (with("input", json!([{}])), "input[0]"),
        (with("max_output_tokens", json!(0)), "max_output_tokens"),
        (with("temperature", json!(2.5)), "temperature"),
        (with("top_p", json!("1")), "top_p"),
        (with("top_logprobs", json!(21)), "top_logprobs"),
        (with("background", json!(true)), "background"),
        (with("conversation", json!("conv_1")), "conversation"),
        (with("prompt", json!({"id": "p"})), "prompt"),
        (with("modalities", json!(["text", "audio"])), "modalities"),
        (with("reasoning", json!({"effort": "huge"})), "reasoning.effort"),
        (with("text", json!({"format": {"type": "xml"}})), "text.format.type"),
        (with("text", json!({"format": {"type": "json_schema"}})), "text.format.schema"),
        (with("tools", json!([{"name": "f"}])), "tools[0].type"),
        (with("stream", json!("yes")), "stream"),
        (item(json!({"role": "robot", "content": "x"})), "input[1].role"),
        (
            item(json!({"role": "user", "content": [{"type": "input_image", "image_url": "u"}]})),
            "input[1].content[0].type",
        ),
        (item(json!({"type": "item_reference", "id": "msg_1"})), "input[1].type"),
        (item(json!({"type": "compaction", "encrypted_content": "x"})), "input[1].type"),
        (item(json!({"type": "function_call", "name": "f", "arguments": "{}"})), "input[1].call_id"),
        (item(json!({"type": "function_call_output", "call_id": "c9", "output": "x"})), "input"),
        (
            item(json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}})),
            "input[1].arguments",
        ),
    ] {
        let error = refused(body.clone());
        assert_eq!((error.status(), error.param.as_deref()), (400, Some(param)), "{body}: {}", error.message);
    }
}

#[test]
fn fields_without_effect_and_unknown_ones() {
    let body = json!({"input": "x", "store": false, "metadata": {"a": "b"}, "user": "u", "background": false,
        "prompt_cache_key": "k", "client_metadata": {}, "context_management": [], "truncation": "disabled",
        "include": ["reasoning.encrypted_content"], "stream_options": {"include_obfuscation": false}});
    assert!(request(body.to_string().as_bytes(), &strict()).unwrap().ignored.is_empty());
    let body = json!({"input": "x", "brand_new": 1, "truncation": "auto", "reasoning": {"mode": "pro"},
        "context_management": [{"type": "compaction"}]});
    let parsed = request(body.to_string().as_bytes(), &limits()).unwrap();
    assert_eq!(parsed.ignored, ["brand_new", "truncation", "reasoning.mode", "context_management"]);
    assert_eq!(request(body.to_string().as_bytes(), &strict()).unwrap_err().param.unwrap(), "brand_new");
}

/// The input of the second request answers a call of the first; instructions are each request's own.
#[test]
fn a_conversation_goes_on() {
    let first = taken(
        json!({"input": "2+2?", "instructions": "one", "tools": [{"type": "function", "name": "add"}]}),
    );
    let mut writer = reply(head(), &first);
    let mut answer = vec![started(), thinking("sum"), text("Let me see.")];
    answer.extend(call(0, "add", &["{}"]));
    answer.push(ended(Ending::Stop));
    whole(writer.as_mut(), &answer);
    let thread = chat(&first).thread.as_ref().unwrap();
    assert!(thread.keep && thread.previous.is_none());
    let kept = thread.after(writer.answer());

    let second = json!({"previous_response_id": "resp_X1", "instructions": "two", "store": false, "input": [
        {"type": "function_call_output", "call_id": "call_C0", "output": "4"}]});
    let second = taken(second);
    let mut second_chat = chat(&second).clone();
    assert_eq!(second_chat.thread.as_ref().unwrap().previous.as_deref(), Some("resp_X1"));
    assert!(!second_chat.thread.as_ref().unwrap().keep);
    resume(&mut second_chat, &kept).unwrap();
    insta::assert_snapshot!(turns(&second_chat), @r#"
{"role":"system","content":"two"}
{"role":"user","content":"2+2?"}
{"role":"assistant","content":"Let me see.","reasoning_content":"sum","tool_calls":[{"id":"call_C0","type":"function","function":{"name":"add","arguments":{}}}]}
{"role":"tool","content":"4","tool_call_id":"call_C0"}
"#);

    let lost = taken(json!({"previous_response_id": "resp_X1", "input": [
        {"type": "function_call_output", "call_id": "call_C1", "output": "4"}]}));
    let error = resume(&mut chat(&lost).clone(), &kept).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("input"));
    let error = no_previous("resp_\n1");
    assert_eq!((error.status(), error.param.as_deref()), (400, Some("previous_response_id")));
    assert!(error.message.contains("whole"), "{}", error.message);
}

#[test]
fn a_stream_of_all_kinds() {
    let mut answer = vec![started(), thinking("hm"), thinking(" ok"), text("é"), text("漢")];
    answer.extend(call(0, "ls", &["{\"a\":", "1}"]));
    answer.extend(call(1, "pwd", &[]));
    answer.push(ended(Ending::Stop));
    insta::assert_snapshot!(short(&taken(json!({"input": "x"})), &answer), @r#"
response.created {"type":"response.created","sequence_number":0,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"model":"demo","output":[],"usage":null}}
response.in_progress {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"model":"demo","output":[],"usage":null}}
response.output_item.added {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"rs_X1_0","type":"reasoning","status":"in_progress","summary":[],"content":[]}}
response.reasoning_text.delta {"type":"response.reasoning_text.delta","sequence_number":3,"item_id":"rs_X1_0","output_index":0,"content_index":0,"delta":"hm"}
response.reasoning_text.delta {"type":"response.reasoning_text.delta","sequence_number":4,"item_id":"rs_X1_0","output_index":0,"content_index":0,"delta":" ok"}
response.reasoning_text.done {"type":"response.reasoning_text.done","sequence_number":5,"item_id":"rs_X1_0","output_index":0,"content_index":0,"text":"hm ok"}
response.output_item.done {"type":"response.output_item.done","sequence_number":6,"output_index":0,"item":{"id":"rs_X1_0","type":"reasoning","status":"completed","summary":[],"content":[{"type":"reasoning_text","text":"hm ok"}]}}
response.output_item.added {"type":"response.output_item.added","sequence_number":7,"output_index":1,"item":{"id":"msg_X1_1","type":"message","status":"in_progress","role":"assistant","content":[]}}
response.content_part.added {"type":"response.content_part.added","sequence_number":8,"item_id":"msg_X1_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}
response.output_text.delta {"type":"response.output_text.delta","sequence_number":9,"item_id":"msg_X1_1","output_index":1,"content_index":0,"delta":"é","logprobs":[]}
response.output_text.delta {"type":"response.output_text.delta","sequence_number":10,"item_id":"msg_X1_1","output_index":1,"content_index":0,"delta":"漢","logprobs":[]}
response.output_text.done {"type":"response.output_text.done","sequence_number":11,"item_id":"msg_X1_1","output_index":1,"content_index":0,"text":"é漢","logprobs":[]}
response.content_part.done {"type":"response.content_part.done","sequence_number":12,"item_id":"msg_X1_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"é漢","annotations":[],"logprobs":[]}}
response.output_item.done {"type":"response.output_item.done","sequence_number":13,"output_index":1,"item":{"id":"msg_X1_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"é漢","annotations":[],"logprobs":[]}]}}
response.output_item.added {"type":"response.output_item.added","sequence_number":14,"output_index":2,"item":{"id":"fc_C0","type":"function_call","status":"in_progress","call_id":"call_C0","name":"ls","arguments":""}}
response.function_call_arguments.delta {"type":"response.function_call_arguments.delta","sequence_number":15,"item_id":"fc_C0","output_index":2,"delta":"{\"a\":"}
response.function_call_arguments.delta {"type":"response.function_call_arguments.delta","sequence_number":16,"item_id":"fc_C0","output_index":2,"delta":"1}"}
response.function_call_arguments.done {"type":"response.function_call_arguments.done","sequence_number":17,"item_id":"fc_C0","output_index":2,"name":"ls","arguments":"{\"a\":1}"}
response.output_item.done {"type":"response.output_item.done","sequence_number":18,"output_index":2,"item":{"id":"fc_C0","type":"function_call","status":"completed","call_id":"call_C0","name":"ls","arguments":"{\"a\":1}"}}
response.output_item.added {"type":"response.output_item.added","sequence_number":19,"output_index":3,"item":{"id":"fc_C1","type":"function_call","status":"in_progress","call_id":"call_C1","name":"pwd","arguments":""}}
response.function_call_arguments.delta {"type":"response.function_call_arguments.delta","sequence_number":20,"item_id":"fc_C1","output_index":3,"delta":"{}"}
response.function_call_arguments.done {"type":"response.function_call_arguments.done","sequence_number":21,"item_id":"fc_C1","output_index":3,"name":"pwd","arguments":"{}"}
response.output_item.done {"type":"response.output_item.done","sequence_number":22,"output_index":3,"item":{"id":"fc_C1","type":"function_call","status":"completed","call_id":"call_C1","name":"pwd","arguments":"{}"}}
response.completed {"type":"response.completed","sequence_number":23,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"completed","background":false,"error":null,"incomplete_details":null,"model":"demo","output":[{"id":"rs_X1_0","type":"reasoning","status":"completed","summary":[],"content":[{"type":"reasoning_text","text":"hm ok"}]},{"id":"msg_X1_1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"é漢","annotations":[],"logprobs":[]}]},{"id":"fc_C0","type":"function_call","status":"completed","call_id":"call_C0","name":"ls","arguments":"{\"a\":1}"},{"id":"fc_C1","type":"function_call","status":"completed","call_id":"call_C1","name":"pwd","arguments":"{}"}],"usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":25}}}
"#);
}

#[test]
fn streams_that_end_early() {
    let request = taken(json!({"input": "x"}));
    let answer = [started(), text("cut"), ended(Ending::Length)];
    insta::assert_snapshot!(short(&request, &answer), @r#"
response.created {"type":"response.created","sequence_number":0,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"model":"demo","output":[],"usage":null}}
response.in_progress {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"model":"demo","output":[],"usage":null}}
response.output_item.added {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"msg_X1_0","type":"message","status":"in_progress","role":"assistant","content":[]}}
response.content_part.added {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_X1_0","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}
response.output_text.delta {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_X1_0","output_index":0,"content_index":0,"delta":"cut","logprobs":[]}
response.output_text.done {"type":"response.output_text.done","sequence_number":5,"item_id":"msg_X1_0","output_index":0,"content_index":0,"text":"cut","logprobs":[]}
response.content_part.done {"type":"response.content_part.done","sequence_number":6,"item_id":"msg_X1_0","output_index":0,"content_index":0,"part":{"type":"output_text","text":"cut","annotations":[],"logprobs":[]}}
response.output_item.done {"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{"id":"msg_X1_0","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"cut","annotations":[],"logprobs":[]}]}}
response.incomplete {"type":"response.incomplete","sequence_number":8,"response":{"id":"resp_X1","object":"response","created_at":1700000000,"status":"incomplete","background":false,"error":null,"incomplete_details":{"reason":"max_output_tokens"},"model":"demo","output":[{"id":"msg_X1_0","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"cut","annotations":[],"logprobs":[]}]}],"usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":25}}}
"#);

    let mut writer = reply(head(), &request);
    writer.begin();
    writer.event(&text("cut"));
    let error = ApiError::new(api::ErrorClass::Server, "the drive failed");
    let failed = &bodies(&writer.fail(&error))[0];
    assert_eq!((&failed["type"], &failed["sequence_number"]), (&json!("response.failed"), &json!(5)));
    let response = &failed["response"];
    assert_eq!(response["status"], "failed");
    assert_eq!(response["error"], json!({"code": "server_error", "message": "the drive failed"}));
    assert_eq!(response["output"][0]["content"][0]["text"], "cut");

    let cancelled = frames(reply(head(), &request).as_mut(), &[started(), ended(Ending::Cancelled)]);
    assert_eq!(bodies(&cancelled).last().unwrap()["type"], "response.failed");
}

#[test]
fn probabilities_of_tokens() {
    let request = taken(json!({"input": "x", "top_logprobs": 2}));
    let tokens = [logprob(b"\xc3", -0.5), logprob(b"\xa9", 0.0)];
    let answer = [
        started(),
        event(EventKind::Text { text: String::new(), logprobs: vec![tokens[0].clone()] }),
        event(EventKind::Text { text: "é".into(), logprobs: vec![tokens[1].clone()] }),
        ended(Ending::Stop),
    ];
    let answer = whole(reply(head(), &request).as_mut(), &answer);
    insta::assert_snapshot!(answer["output"][0]["content"][0], @r#"{"type":"output_text","text":"é","annotations":[],"logprobs":[{"token":"bytes:\\xc3","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"bytes:\\xc3","logprob":-0.5,"bytes":[195]},{"token":"bytes:\\xc3","logprob":-9999.0,"bytes":[195]}]},{"token":"bytes:\\xa9","logprob":0.0,"bytes":[169],"top_logprobs":[{"token":"bytes:\\xa9","logprob":0.0,"bytes":[169]},{"token":"bytes:\\xc3","logprob":-9999.0,"bytes":[195]}]}]}"#);
}

#[test]
fn the_answer_repeats_its_request() {
    let body = br#"{"input": "x", "instructions": "i", "temperature": 0.5, "metadata": {"k": "v"},
        "tools": [{"type": "function", "name": "f", "parameters": {"maximum": 1e400}}], "max_output_tokens": 9,
        "reasoning": {"effort": "low"}, "service_tier": "auto", "previous_response_id": null}"#;
    let request = request(body, &limits()).unwrap().request;
    let answer = whole(reply(head(), &request).as_mut(), &[started(), text("y"), ended(Ending::Context)]);
    let line = |(key, value): (&String, &Value)| format!("{key}: {value}");
    let answer: Vec<String> = answer.as_object().unwrap().iter().map(line).collect();
    insta::assert_snapshot!(answer.join("\n"), @r#"
    id: "resp_X1"
    object: "response"
    created_at: 1700000000
    status: "incomplete"
    background: false
    error: null
    incomplete_details: {"reason":"max_output_tokens"}
    model: "demo"
    output: [{"id":"msg_X1_0","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"y","annotations":[],"logprobs":[]}]}]
    usage: {"input_tokens":20,"input_tokens_details":{"cached_tokens":8,"cache_write_tokens":0},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":25}
    instructions: "i"
    max_output_tokens: 9
    max_tool_calls: null
    metadata: {"k":"v"}
    parallel_tool_calls: true
    previous_response_id: null
    prompt_cache_key: null
    reasoning: {"effort":"low","summary":null}
    safety_identifier: null
    service_tier: "default"
    store: true
    temperature: 0.5
    text: {"format":{"type":"text"},"verbosity":"medium"}
    tool_choice: "auto"
    tools: [{"type":"function","name":"f","parameters":{"maximum":"1e400"}}]
    top_logprobs: 0
    top_p: null
    truncation: "disabled"
    user: null
    "#);
}

/// The answer holds what it repeats several times; what it does not repeat costs nothing after the body.
#[test]
fn what_has_no_effect_and_is_repeated_has_a_limit() {
    let paths =
        ["max_tool_calls", "metadata", "prompt_cache_key", "safety_identifier", "user", "text.verbosity"];
    let body = |path: &str, bytes: usize| {
        // The quotes are two of them.
        let value = json!("x".repeat(bytes - 2));
        match path.split_once('.') {
            Some((outer, key)) => json!({"input": "x", outer: {key: value}}),
            None => json!({"input": "x", path: value}),
        }
    };
    for path in paths {
        let repeated = Value::Object(chat(&taken(body(path, 16 << 10))).repeated.clone());
        let text = repeated.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
        assert_eq!(text.map(str::len), Some((16 << 10) - 2), "{path}");
        let error = refused(body(path, (16 << 10) + 1));
        assert_eq!((error.status(), error.param.as_deref()), (400, Some(path)), "{}", error.message);
    }
    let unrepeated = chat(&taken(body("service_tier", 100_000))).repeated.clone();
    assert_eq!(unrepeated["service_tier"], "default");
}

/// What a stream says piece by piece: its items from their events alone.
#[derive(Default)]
struct Replayed {
    items: Vec<Value>,
    joined: String,
    open: bool,
}

impl Replayed {
    fn take(&mut self, body: &Value) {
        let last = self.items.len().saturating_sub(1);
        let name = body["type"].as_str().unwrap();
        if name == "response.output_item.added" {
            assert!(!self.open && body["output_index"] == json!(self.items.len()), "{body}");
            self.items.push(body["item"].clone());
            self.joined.clear();
            self.open = true;
            return;
        }
        assert!(self.open && body["output_index"] == json!(last), "{body}");
        let item = &mut self.items[last];
        if name == "response.output_item.done" {
            assert_eq!(body["item"]["id"], item["id"]);
            *item = body["item"].clone();
            self.open = false;
            return;
        }
        assert_eq!(body["item_id"], item["id"]);
        let (kind, whole) = match name {
            "response.content_part.added" | "response.content_part.done" => {
                ("message", &body["part"]["text"])
            }
            "response.output_text.delta" | "response.output_text.done" => ("message", &body["text"]),
            "response.reasoning_text.delta" | "response.reasoning_text.done" => ("reasoning", &body["text"]),
            _ => ("function_call", &body["arguments"]),
        };
        assert_eq!(item["type"], kind, "{body}");
        match body["delta"].as_str() {
            Some(delta) => self.joined.push_str(delta),
            None => assert_eq!(*whole, json!(self.joined), "{body}"),
        }
    }
}

proptest! {
    #[test]
    fn streams_are_in_order_and_whole((answer, pings) in events().prop_flat_map(|answer| {
        let len = answer.len();
        (Just(answer), places(len))
    })) {
        let request = taken(json!({"input": "x"}));
        let mut writer = reply(head(), &request);
        let all = frames_with(writer.as_mut(), &answer, &pings);
        let all = bodies(&all);
        for (number, body) in all.iter().enumerate() {
            prop_assert_eq!(&body["sequence_number"], &json!(number));
        }
        prop_assert_eq!(&all[0]["type"], "response.created");
        prop_assert_eq!(&all[1]["type"], "response.in_progress");
        let mut replayed = Replayed::default();
        for body in &all[2..all.len() - 1] {
            if body["type"] != "response.in_progress" {
                replayed.take(body);
            }
        }
        let last = all.last().unwrap();
        let ends = matches!(answer.last().unwrap().kind,
            EventKind::Ended { ending: Ending::Stop | Ending::StopString(_), .. });
        prop_assert_eq!(&last["type"], if ends { "response.completed" } else { "response.incomplete" });
        prop_assert!(!replayed.open);
        prop_assert_eq!(&last["response"]["output"], &json!(replayed.items));
        prop_assert_eq!(&whole(reply(head(), &request).as_mut(), &answer), &last["response"]);
        // What the answer is kept as has all of its text.
        let kept: String = writer.answer().iter().flat_map(|turn| &turn.content).map(|text| text.text()).collect();
        let said: String = answer.iter().filter_map(|event| match &event.kind {
            EventKind::Text { text, .. } => Some(text.as_str()),
            _ => None,
        }).collect();
        prop_assert_eq!(kept, said);
    }

    #[test]
    fn no_body_panics(body in near(BODIES), cut in any::<prop::sample::Index>()) {
        let text = body.to_string();
        if let Ok(parsed) = request(text.as_bytes(), &limits()) {
            prop_assert!(!chat(&parsed.request).messages.is_empty() || chat(&parsed.request).thread.is_some());
            whole(reply(head(), &parsed.request).as_mut(), &[started(), thinking("x"), ended(Ending::Stop)]);
        }
        let _ = request(&text.as_bytes()[..cut.index(text.len() + 1)], &limits());
        let _ = request(text.as_bytes(), &strict());
    }
}

const BODIES: &[&str] = &[
    r#"{"model":"m","input":"x","instructions":"i","previous_response_id":"r","store":false,"max_output_tokens":3,
        "temperature":1,"top_p":0.5,"top_logprobs":1,"include":["message.output_text.logprobs"],"stream":true}"#,
    r#"{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]},
        {"type":"reasoning","summary":[{"type":"summary_text","text":"t"}],"content":[{"type":"reasoning_text","text":"t"}]},
        {"type":"function_call","call_id":"c","name":"f","namespace":"n","arguments":"{}"},
        {"type":"function_call_output","call_id":"c","output":[{"type":"input_text","text":"o"}]},
        {"type":"additional_tools","role":"developer","tools":[{"type":"function","name":"g"}]},
        {"role":"assistant","content":[{"type":"refusal","refusal":"r"}]}]}"#,
    r#"{"input":"x","tools":[{"type":"function","name":"f","parameters":{"type":"object"},"strict":true},
        {"type":"namespace","name":"n","tools":[{"type":"function","name":"f"}]},{"type":"web_search"}],
        "tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":"function","name":"f","namespace":"n"}]},
        "text":{"format":{"type":"json_schema","schema":{}},"verbosity":"low"},"reasoning":{"effort":"low"}}"#,
];

#[test]
fn the_examples_are_requests() {
    for body in BODIES {
        request(body.as_bytes(), &strict())
            .map(drop)
            .or_else(|error| match error.param.as_deref() {
                Some("tools[2]") => Ok(()),
                _ => Err(error),
            })
            .unwrap();
        let json = Json::parse(body).unwrap();
        assert!(At::root(&json).members().unwrap().count() > 0);
    }
}
