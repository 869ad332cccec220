//! What is answered, whole and streamed.

use serde_json::{Value, json};

use crate::support::{Reply, options, question, start, with};

const STORY: &str = "Tell me a story about a brave hedgehog.";
const CHAT: &str = "/v1/chat/completions";

/// The deltas of one choice of a chat's stream, joined, and its end.
fn joined(events: &[(String, String)], choice: u64) -> (String, String) {
    let (mut text, mut finish) = (String::new(), String::new());
    for (_, data) in events.iter().filter(|(_, data)| data != "[DONE]") {
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        for of in chunk["choices"].as_array().expect("choices").iter().filter(|c| c["index"] == choice) {
            text += of["delta"]["content"].as_str().unwrap_or_default();
            finish += of["finish_reason"].as_str().unwrap_or_default();
        }
    }
    (text, finish)
}

fn stream(reply: &Reply) -> Vec<(String, String)> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.events()
}

#[test]
fn a_chat_is_the_same_whole_and_streamed() {
    let server = start(options(), 2);
    let asked = with(&question(STORY), json!({"max_tokens": 40}));
    let whole = server.post(CHAT, &asked);
    assert_eq!(whole.header("content-type"), Some("application/json"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    let whole = whole.ok();
    let message = &whole["choices"][0]["message"];
    let text = message["content"].as_str().expect("a text");
    assert!(text.len() > 60 && message["role"] == "assistant", "{whole}");
    assert_eq!((&whole["model"], &whole["object"]), (&json!("demo"), &json!("chat.completion")));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 40);
    let prompt_tokens = &whole["usage"]["prompt_tokens"];

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = stream(&server.post(CHAT, &with(&asked, more)));
    assert_eq!(joined(&events, 0), (text.to_owned(), "length".to_owned()));
    assert_eq!(events.last().expect("some").1, "[DONE]");
    let usage: Value = serde_json::from_str(&events[events.len() - 2].1).expect("JSON");
    assert_eq!((&usage["choices"], &usage["usage"]["prompt_tokens"]), (&json!([]), prompt_tokens));
    let cached = usage["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
    assert!(cached > 0, "nothing of the same prompt was kept: {usage}");

    let uncached = server.post(CHAT, &with(&asked, json!({"cache_prompt": false}))).ok();
    assert_eq!(uncached["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(uncached["choices"][0]["message"]["content"], text);
    let alias = server.post("/chat/completions", &asked).ok();
    assert_eq!(alias["choices"][0]["message"]["content"], text);
    let line = server.logged(&["path=/chat/completions", "status=200", "generated_tokens=40", "end=length"]);
    assert!(line.contains("expert_hit_rate=") && !line.contains("hedgehog"), "{line}");
}

#[test]
fn several_choices_are_one_answer() {
    let server = start(options(), 2);
    let asked = with(&question(STORY), json!({"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 12}));
    let whole = server.post(CHAT, &asked).ok();
    let choices = whole["choices"].as_array().expect("choices");
    let texts: Vec<&str> =
        choices.iter().map(|of| of["message"]["content"].as_str().expect("a text")).collect();
    assert!(texts.len() == 3 && texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let one = server.post(CHAT, &with(&asked, json!({"n": 1}))).ok();
    assert_eq!(one["choices"][0]["message"]["content"], texts[0]);
    assert_eq!(whole["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    let sum = choices.len() as u64 * 12;
    assert!(whole["usage"]["completion_tokens"].as_u64().expect("a number") <= sum, "{whole}");
    let events = stream(&server.post(CHAT, &with(&asked, json!({"stream": true}))));
    for (choice, text) in texts.iter().enumerate() {
        assert_eq!(joined(&events, choice as u64).0, *text);
    }
    let refused = server.post(CHAT, &with(&asked, json!({"n": 9})));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("n")));
}

#[test]
fn a_stop_string_ends_an_answer_and_is_no_part_of_it() {
    let server = start(options(), 1);
    let asked = with(&question(STORY), json!({"max_tokens": 40}));
    let text = server.post(CHAT, &asked).ok()["choices"][0]["message"]["content"].clone();
    let text = text.as_str().expect("a text");
    let stop = text.split(' ').nth(4).expect("five words");
    let before = &text[..text.find(stop).expect("there")];
    let stopped = with(&asked, json!({"stop": ["never", stop]}));
    let whole = server.post(CHAT, &stopped).ok();
    assert_eq!(whole["choices"][0]["message"]["content"], before);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    let events = stream(&server.post(CHAT, &with(&stopped, json!({"stream": true}))));
    assert_eq!(joined(&events, 0), (before.to_owned(), "stop".to_owned()));
    let messages = json!({"model": "demo", "max_tokens": 40, "temperature": 0, "stop_sequences": [stop],
        "messages": [{"role": "user", "content": STORY}]});
    let message = server.post("/v1/messages", &messages).ok();
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
}

#[test]
fn log_probabilities_belong_to_the_text() {
    let server = start(options(), 1);
    let asked = with(&question(STORY), json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 12}));
    let whole = server.post(CHAT, &asked).ok();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    let text: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(
        String::from_utf8_lossy(&text),
        whole["choices"][0]["message"]["content"].as_str().expect("text")
    );
    for token in &tokens {
        let top = token["top_logprobs"].as_array().expect("a list");
        assert_eq!((top.len(), &top[0]["token"]), (3, &token["token"]), "greedy: the chosen one is first");
    }
}

const TOOLS: &str = r#"[{"type": "function", "function": {"name": "get_weather", "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."},
    "days": {"type": "integer", "description": "Number of days."}}, "required": ["city", "days"]}}}]"#;

#[test]
fn a_call_and_its_result_make_a_loop() {
    let server = start(options(), 1);
    let tools: Value = serde_json::from_str(TOOLS).expect("JSON");
    let asked =
        with(&question("Get the weather in Lisbon with days 3."), json!({"tools": tools, "max_tokens": 100}));
    let whole = server.post(CHAT, &asked).ok();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    let call = &choice["message"]["tool_calls"][0];
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().expect("a text")).expect("JSON");
    assert_eq!(
        (&call["function"]["name"], arguments),
        (&json!("get_weather"), json!({"city": "Lisbon", "days": 3}))
    );
    let id = call["id"].as_str().expect("an id");
    assert!(id.starts_with("call_") && id.len() == 29, "{id}");

    let events = stream(&server.post(CHAT, &with(&asked, json!({"stream": true}))));
    let mut streamed = String::new();
    for (_, data) in events.iter().filter(|(_, data)| data != "[DONE]") {
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        let of = &chunk["choices"][0]["delta"]["tool_calls"][0];
        streamed += of["function"]["arguments"].as_str().unwrap_or_default();
    }
    assert_eq!(streamed, call["function"]["arguments"].as_str().expect("a text"));

    let mut messages = asked["messages"].as_array().expect("a list").clone();
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "{\"temperature\": 21, \"status\": \"sunny\"}"}));
    let answer = server.post(CHAT, &with(&asked, json!({"messages": messages}))).ok();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.contains("21") || text.contains("sunny"), "{answer}");
    assert!(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(20), "{answer}");
}

#[test]
fn texts_are_continued_and_echoed() {
    let server = start(options(), 2);
    let asked = json!({"model": "demo", "prompt": ["Once upon", "The cat"], "temperature": 0, "n": 2, "max_tokens": 5});
    let whole = server.post("/v1/completions", &asked).ok();
    let choices = whole["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[0]["text"], choices[1]["text"], "greedy");
    assert_ne!(choices[0]["text"], choices[2]["text"]);
    let echoed = server.post("/v1/completions", &with(&asked, json!({"echo": true}))).ok();
    let text = echoed["choices"][3]["text"].as_str().expect("a text");
    assert_eq!(text, format!("The cat{}", choices[3]["text"].as_str().expect("a text")));
    let ids = server.post("/tokenize", &json!({"content": "Once upon"})).ok()["tokens"].clone();
    let by_ids = server.post("/v1/completions", &with(&asked, json!({"prompt": ids, "n": 1}))).ok();
    assert_eq!(by_ids["choices"][0]["text"], choices[0]["text"]);
    let short =
        server.post("/v1/completions", &json!({"prompt": "Once", "temperature": 0, "ignore_eos": true}));
    assert_eq!(short.ok()["usage"]["completion_tokens"], 16);
}

#[test]
fn messages_and_responses_speak_their_own_language() {
    let server = start(options(), 1);
    let chat = server.post(CHAT, &question(STORY)).ok();
    let text = &chat["choices"][0]["message"]["content"];
    let asked = json!({"model": "claude", "max_tokens": 24, "temperature": 0,
        "messages": [{"role": "user", "content": STORY}]});
    let whole = server.post("/v1/messages", &asked);
    assert_eq!(whole.header("request-id"), whole.header("x-request-id"));
    let message = whole.ok();
    assert_eq!((&message["content"][0]["text"], &message["stop_reason"]), (text, &json!("max_tokens")));
    let counted = server.post("/v1/messages/count_tokens?beta=true", &asked).ok();
    let usage = &message["usage"];
    let sum = usage["input_tokens"].as_u64().expect("a number")
        + usage["cache_read_input_tokens"].as_u64().expect("a number");
    assert_eq!(counted["input_tokens"], sum);
    let events = stream(&server.post("/v1/messages", &with(&asked, json!({"stream": true}))));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("message_start", "message_stop"));

    let asked =
        json!({"model": "gpt", "input": STORY, "max_output_tokens": 24, "temperature": 0, "store": true});
    let response = server.post("/v1/responses", &asked).ok();
    assert_eq!(&response["output"][0]["content"][0]["text"], text);
    let more = json!({"input": "And then?", "previous_response_id": response["id"]});
    let next = server.post("/v1/responses", &with(&asked, more)).ok();
    let tokens = |of: &Value| of["usage"]["input_tokens"].as_u64().expect("a number");
    assert!(tokens(&next) > tokens(&response) + 24, "{next}");
    let lost = server.post("/v1/responses", &with(&asked, json!({"previous_response_id": "resp_no"})));
    assert_eq!(lost.status, 400);
    let events = stream(&server.post("/v1/responses", &with(&asked, json!({"stream": true}))));
    for (number, (name, data)) in events.iter().enumerate() {
        let event: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(number)));
    }
    assert_eq!(events.last().expect("some").0, "response.incomplete");
}

#[test]
fn what_computes_nothing() {
    let server = start(options(), 2);
    let texts = ["Hello, world!\n", " two  spaces", "é 🦔👨‍👩‍👧 漢字", "<|im_start|>user\nhi<|im_end|>", ""];
    for text in texts {
        let tokens = server.post("/tokenize", &json!({"content": text})).ok();
        assert_eq!(tokens["count"], tokens["tokens"].as_array().expect("a list").len());
        let back = server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).ok();
        assert_eq!(back["content"], text);
    }
    let list = server.get("/v1/models").ok();
    assert_eq!((&list["data"][0]["id"], &list["first_id"]), (&json!("demo"), &json!("demo")));
    let model = server.get("/models/demo").ok();
    assert_eq!((&model["context_length"], &model["meta"]["n_params"]), (&json!(1024), &json!(7)));
    assert!(model["created_at"].as_str().expect("a date").ends_with('Z'), "{model}");
    let props = server.get("/props").ok();
    assert_eq!(
        (&props["default_generation_settings"]["n_ctx"], &props["total_slots"]),
        (&json!(1024), &json!(2))
    );
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    server.post(CHAT, &question(STORY)).ok();
    server.wait_for("tidemill_generated_tokens_total", 24.0);
    assert!(server.metric("tidemill_expert_hits_total") > 0.0 && server.metric("tidemill_slots") > 0.0);
    assert!(server.metric("tidemill_requests_total{path=\"/chat/completions\",status=\"200\"}") == 1.0);
    assert_eq!(server.metric("tidemill_cache_hits_total"), 0.0);
    assert_eq!(server.metric("tidemill_state_bytes{where=\"disk\"}"), 0.0);
    let kept = ["tidemill_kept_beginnings", "tidemill_state_bytes{where=\"memory\"}"];
    assert!(kept.iter().all(|name| server.metric(name) > 0.0));
    server.post(CHAT, &question("Tell me a story.")).ok();
    server.post(CHAT, &question("Tell me a story.")).ok();
    assert!(server.metric("tidemill_cache_hits_total") > 0.0);
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    assert!(server.metric("tidemill_memory_bytes") <= server.metric("tidemill_memory_peak_bytes"));
}

#[test]
fn answers_are_held_to_their_form() {
    let server = start(options(), 1);
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Lisbon", "Paris"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "days"],
        "additionalProperties": false});
    let form =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let asked = with(&with(&question(STORY), form), json!({"max_tokens": 500, "temperature": 1, "seed": 3}));
    let whole = server.post(CHAT, &asked).ok();
    let text = whole["choices"][0]["message"]["content"].as_str().expect("a text");
    let held: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(["Lisbon", "Paris"].contains(&held["city"].as_str().expect("a city")), "{held}");
    assert!((1..=9).contains(&held["days"].as_i64().expect("a number")), "{held}");
    let events = stream(&server.post(CHAT, &with(&asked, json!({"stream": true}))));
    assert_eq!(joined(&events, 0), (text.to_owned(), "stop".to_owned()));
    let choice = with(&question(STORY), json!({"structured_outputs": {"choice": ["yes", "no"]}}));
    let text = server.post(CHAT, &choice).ok()["choices"][0]["message"]["content"].clone();
    assert!(text == "yes" || text == "no", "{text}");
    let unkept = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x",
        "schema": {"enum": []}}}});
    let refused = server.post(CHAT, &with(&question(STORY), unkept));
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["code"]), (400, &json!("invalid_schema")), "{error}");
    assert_eq!(error["param"], "response_format");
}

#[test]
fn a_call_that_must_come_comes() {
    let server = start(options(), 1);
    let tools: Value = serde_json::from_str(TOOLS).expect("JSON");
    let function = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [json!("required"), function] {
        let more =
            json!({"tools": tools, "tool_choice": choice, "max_tokens": 200, "parallel_tool_calls": false});
        let whole = server.post(CHAT, &with(&question(STORY), more)).ok();
        let choice = &whole["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        let arguments = calls[0]["function"]["arguments"].as_str().expect("a text");
        let arguments: Value = serde_json::from_str(arguments).expect("JSON");
        assert!(
            calls.len() == 1 && arguments["days"].is_i64() && arguments["city"].is_string(),
            "{arguments}"
        );
    }
    let none = json!({"tools": tools, "tool_choice": "none", "max_tokens": 20});
    let asked = with(&question("Get the weather in Lisbon with days 3."), none);
    let whole = server.post(CHAT, &asked).ok();
    assert_eq!(whole["choices"][0]["message"]["tool_calls"], Value::Null, "{whole}");
}

#[test]
fn a_prompt_can_be_kept_before_its_answer_is_wanted() {
    let server = start(options(), 1);
    let asked = json!({"model": "m", "max_tokens": 0, "temperature": 0, "system": "word ".repeat(100),
        "messages": [{"role": "user", "content": STORY}]});
    let warmed = server.post("/v1/messages", &asked).ok();
    assert_eq!((&warmed["content"], &warmed["usage"]["output_tokens"]), (&json!([]), &json!(0)), "{warmed}");
    let message = server.post("/v1/messages", &with(&asked, json!({"max_tokens": 4}))).ok();
    assert!(message["usage"]["cache_read_input_tokens"].as_u64() > Some(100), "{message}");
}
