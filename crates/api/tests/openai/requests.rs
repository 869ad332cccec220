//! Bodies.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_api::fields::{Field, FieldKind, markdown};
use tidemill_api::openai::{CHAT_FIELDS, COMPLETION_FIELDS, chat_request, completion_request};
use tidemill_api::{ApiError, Constraint, ErrorClass, Limits, Parsed, Prompt, TextPrompt, ToolChoice};

use super::{completion, merged, parsed, plain, taken, tool, with};
use crate::support::{chat, limits, near, strict, turns};

#[test]
fn a_question() {
    let request = taken(with(json!({})));
    assert_eq!(request.max_tokens, None);
    assert!(request.cache && !request.stream && !request.include_usage && !request.progress);
    assert!(chat(&request).parallel_calls && chat(&request).thinking.is_none() && !chat(&request).continues);
    insta::assert_snapshot!(turns(chat(&request)), @r#"{"role":"user","content":"Hi"}"#);
}

/// As agents send them: system messages in the midst, users in a row, parts, calls without content, broken arguments.
#[test]
fn an_agents_conversation() {
    let request = taken(with(json!({"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "You"}, {"type": "text", "text": "code."}]},
        {"role": "user", "content": "a", "name": "ann"},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": null, "refusal": null, "annotations": [], "reasoning_content": "hm",
         "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": "{\"n\": 98765432109876543210}"}},
            {"id": "c2", "type": "function", "function": {"name": "cat", "arguments": "{\"p\":"}},
            {"id": "c3", "function": {"name": "pwd", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "tool", "tool_call_id": "c1", "content": null},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "system", "content": "90 tokens left"},
        {"role": "assistant", "content": "done", "prefix": true, "reasoning": "so"},
    ]})));
    insta::assert_snapshot!(turns(chat(&request)), @r#"
    {"role":"system","content":"Be brief.\n\nYou\ncode."}
    {"role":"user","content":"a","name":"ann"}
    {"role":"user","content":"b"}
    {"role":"assistant","content":"","reasoning_content":"hm","tool_calls":[{"id":"c1","type":"function","function":{"name":"ls","arguments":{"n":98765432109876543210}}},{"id":"c2","type":"function","function":{"name":"cat","arguments":"{\"p\":"}},{"id":"c3","type":"function","function":{"name":"pwd","arguments":{}}}]}
    {"role":"tool","content":"","tool_call_id":"c1"}
    {"role":"tool","content":[{"type":"text","text":"x"},{"type":"text","text":"y"}],"tool_call_id":"c2"}
    {"role":"tool","content":"","tool_call_id":"c3"}
    {"role":"system","content":"90 tokens left"}
    {"role":"assistant","content":"done","reasoning_content":"so","prefix":true}
    "#);
}

#[test]
fn tools_are_offered_in_one_shape() {
    let mut body = with(json!({"tools": [
        {"type": "function", "cache_control": {}, "function": {"parameters": {"maximum": 1}, "strict": null, "name": "a"}},
        {"type": "web_search"},
        {"function": {"name": "b", "description": "does b", "strict": true}},
        {"type": "custom", "custom": {"name": "c"}},
        {"type": "function", "function": {"name": "a"}},
    ]}));
    let text = body.to_string().replace("{\"maximum\":1}", "{\"maximum\":1.10e400}");
    let parsed = chat_request(text.as_bytes(), &limits()).unwrap();
    assert_eq!(parsed.ignored, ["tools[1]", "tools[3]", "tools[4]"]);
    let tools: Vec<String> =
        chat(&parsed.request).tools.iter().map(|tool| tool.value().to_string()).collect();
    insta::assert_snapshot!(tools.join("\n"), @r#"
    {"type":"function","function":{"name":"a","parameters":{"maximum":1.10e400}}}
    {"type":"function","function":{"name":"b","description":"does b","strict":true}}
    "#);
    let error = chat_request(text.as_bytes(), &strict()).unwrap_err();
    assert_eq!((error.param.as_deref(), error.code), (Some("tools[1]"), Some("unsupported_value")));

    body["tools"] = vec![tool("a"); 2000].into();
    assert_eq!(taken(body.clone()).choices, 1);
    body["tools"] = vec![tool("a"); 2001].into();
    assert_eq!(self::parsed(&body).unwrap_err().param.as_deref(), Some("tools"));
}

#[test]
fn choices_of_tools() {
    let choose = |choice: Value| {
        let request = parsed(&with(json!({"tools": [tool("a"), tool("b")], "tool_choice": choice})))?.request;
        let names: Vec<String> = chat(&request).tools.iter().map(|tool| tool.name().to_owned()).collect();
        Ok::<_, ApiError>((chat(&request).tool_choice.clone(), names.join(" ")))
    };
    let all = |choice| Ok((choice, "a b".to_owned()));
    assert_eq!(choose(json!("auto")), all(ToolChoice::Auto));
    assert_eq!(choose(json!("none")), all(ToolChoice::None));
    assert_eq!(choose(json!("required")), all(ToolChoice::Required));
    let named = all(ToolChoice::Function("b".into()));
    assert_eq!(choose(json!({"type": "function", "function": {"name": "b"}})), named);
    assert_eq!(choose(json!({"type": "function", "name": "b"})), named);
    let allowed =
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("b")]}});
    assert_eq!(choose(allowed), Ok((ToolChoice::Required, "b".to_owned())));
    for wrong in [
        json!("any"),
        json!(1),
        json!({}),
        json!({"type": "custom", "custom": {"name": "a"}}),
        json!({"type": "function", "function": {"name": "c"}}),
        json!({"type": "function", "function": {}}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}),
    ] {
        let error = choose(wrong.clone()).unwrap_err();
        assert!(
            error.param.as_deref().is_some_and(|path| path.starts_with("tool_choice")),
            "{wrong} {error:?}"
        );
    }
    assert_eq!(
        parsed(&with(json!({"tool_choice": "required"}))).unwrap_err().code,
        Some("unsupported_value")
    );
}

#[test]
fn constraints() {
    let of = |fields: Value| Ok::<_, ApiError>(parsed(&with(fields))?.request.constraint);
    let format = |format: Value| of(json!({"response_format": format}));
    let outputs = |outputs: Value| of(json!({"structured_outputs": outputs}));
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    assert_eq!(format(json!({"type": "text"})), Ok(None));
    assert_eq!(format(json!({"type": "json_object"})), Ok(Some(Constraint::JsonObject)));
    let json_schema =
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    assert_eq!(format(json_schema.clone()), Ok(Some(Constraint::JsonSchema(schema.clone()))));
    assert_eq!(outputs(json!({"json": schema})), Ok(Some(Constraint::JsonSchema(schema))));
    assert_eq!(outputs(json!({"json_object": true, "regex": null})), Ok(Some(Constraint::JsonObject)));
    assert_eq!(outputs(json!({"regex": "a+"})), Ok(Some(Constraint::Regex("a+".into()))));
    assert_eq!(
        outputs(json!({"grammar": "start: \"a\""})),
        Ok(Some(Constraint::Lark("start: \"a\"".into())))
    );
    assert_eq!(
        outputs(json!({"choice": ["x", "y"]})),
        Ok(Some(Constraint::Choice(vec!["x".into(), "y".into()])))
    );
    for (fields, path) in [
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"regex": "a"}, "response_format": json_schema}), "structured_outputs"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"structured_outputs": {"structural_tag": "{}"}}), "structured_outputs.structural_tag"),
        (json!({"structured_outputs": "x"}), "structured_outputs"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"d": "x".repeat(1 << 20)}}}}),
            "response_format.json_schema.schema",
        ),
    ] {
        assert_eq!(of(fields).unwrap_err().param.as_deref(), Some(path));
    }
}

#[test]
fn thinking_is_asked_for_in_two_ways() {
    let of = |fields: Value| {
        let request = taken(with(fields));
        (chat(&request).thinking, Value::Object(chat(&request).template_variables.clone()).to_string())
    };
    let low = r#"{"reasoning_effort":"low"}"#.to_owned();
    assert_eq!(of(json!({"reasoning_effort": "low"})), (Some(true), low.clone()));
    assert_eq!(of(json!({"reasoning_effort": "none"})).0, Some(false));
    assert_eq!(of(json!({"chat_template_kwargs": {"enable_thinking": false}})), (Some(false), "{}".into()));
    // What speaks of the template itself holds.
    let both = json!({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(of(both), (Some(false), low));
}

/// Path, code and message of what is refused.
fn refusals(rows: &[Value]) -> String {
    let row = |fields: &Value| {
        let error = parsed(&with(fields.clone())).unwrap_err();
        assert_eq!(error.class, ErrorClass::Invalid);
        let message: String = error.message.chars().take(110).collect();
        format!("{} {} | {message}", error.param.unwrap_or_default(), error.code.unwrap_or("-"))
    };
    rows.iter().map(row).collect::<Vec<_>>().join("\n")
}

#[test]
fn refusals_of_messages_and_tools() {
    let rows = [
        json!({"messages": []}),
        json!({"messages": "Hi"}),
        json!({"messages": null}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}]}),
        json!({"messages": [{"content": "x"}]}),
        json!({"messages": [{"role": "user", "content": 1}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
        json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}),
        json!({"messages": [{"role": "function", "name": "f", "content": "x"}]}),
        json!({"tools": [{"type": "function", "function": {"name": ""}}]}),
        json!({"tools": [tool("a"), {"type": "function"}]}),
        json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]}),
        json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"d": "x".repeat(1 << 20)}}}]}),
    ];
    insta::assert_snapshot!(refusals(&rows), @r"
    messages - | `messages`: it is empty.
    messages - | `messages`: expected a list, got a string.
    messages - | `messages` is missing.
    messages[0].content - | `messages[0].content`: expected a string or a list of parts, got nothing.
    messages[1].role - | `messages[1].role`: robot is none of system, developer, user, assistant and tool.
    messages[0].role - | `messages[0].role` is missing.
    messages[0].content - | `messages[0].content`: expected a string or a list of parts, got a number.
    messages[0].content[0].type unsupported_value | `messages[0].content[0].type`: parts of type input_audio cannot be taken, only text.
    messages[0].tool_calls[0].function.name - | `messages[0].tool_calls[0].function.name` is missing.
    messages[0].role unsupported_value | `messages[0].role`: it was replaced; use the role tool.
    tools[0].function.name - | `tools[0].function.name`: a tool's name has 1 to 256 bytes and no control characters.
    tools[1].function - | `tools[1].function` is missing.
    tools[0].function.parameters - | `tools[0].function.parameters`: expected an object, got a string.
    tools[0].function.parameters - | `tools[0].function.parameters`: a schema of 1048584 bytes, at most 1048576.
    ");
}

#[test]
fn refusals_of_numbers_and_lists() {
    let long = "x".repeat(1025);
    let biases: Value =
        (0..4097).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
    let rows = [
        json!({"max_tokens": 0}),
        json!({"max_completion_tokens": -1}),
        json!({"max_tokens": 1.5}),
        json!({"max_tokens": "9"}),
        json!({"max_tokens": 2, "min_tokens": 3}),
        json!({"temperature": 2.1}),
        json!({"temperature": -0.1}),
        json!({"top_p": 1.1}),
        json!({"top_k": -2}),
        json!({"repetition_penalty": 0}),
        json!({"presence_penalty": 3}),
        json!({"seed": 1e30}),
        json!({"n": 17}),
        json!({"n": 0}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"top_logprobs": 3}),
        json!({"stop": vec!["x"; 65]}),
        json!({"stop": ["x", long]}),
        json!({"stop": 1}),
        json!({"logit_bias": {"1": 101}}),
        json!({"logit_bias": {"x": 1}}),
        json!({"logit_bias": biases}),
        json!({"stream": "yes"}),
        json!({"stream_options": []}),
        json!({"reasoning_effort": "huge"}),
        json!({"continue_final_message": true}),
        json!({"chat_template_kwargs": {"enable_thinking": 1}}),
    ];
    insta::assert_snapshot!(refusals(&rows), @r"
    max_tokens - | `max_tokens`: 0 is not a whole number of 1 or more.
    max_completion_tokens - | `max_completion_tokens`: -1 is not a whole number of 1 or more.
    max_tokens - | `max_tokens`: 1.5 is not a whole number of 1 or more.
    max_tokens - | `max_tokens`: expected a whole number, got a string.
    min_tokens - | `min_tokens`: 3 is above the most tokens of the answer, 2.
    temperature - | `temperature`: 2.1 is not between 0 and 2.
    temperature - | `temperature`: -0.1 is not between 0 and 2.
    top_p - | `top_p`: 1.1 is not between 0 and 1.
    top_k - | `top_k`: -2 is not a whole number of 0 or more.
    repetition_penalty - | `repetition_penalty`: 0 is not above 0.
    presence_penalty - | `presence_penalty`: 3 is not between -2 and 2.
    seed - | `seed`: 1e+30 is not a whole number of 0 or more.
    n - | `n`: 17 is not a whole number between 1 and 16.
    n - | `n`: 0 is not a whole number between 1 and 16.
    top_logprobs - | `top_logprobs`: 21 is not a whole number between 0 and 20.
    top_logprobs - | `top_logprobs`: it needs `logprobs`: true.
    stop - | `stop`: 65 stop strings, at most 64 are taken.
    stop[1] - | `stop[1]`: 1025 bytes, a stop string has at most 1024.
    stop - | `stop`: expected a string or a list of strings, got a number.
    logit_bias.1 - | `logit_bias.1`: 101 is not between -100 and 100.
    logit_bias.x - | `logit_bias.x`: its name must be a token's id.
    logit_bias - | `logit_bias`: 4097 tokens, at most 4096 can have a bias.
    stream - | `stream`: expected true or false, got a string.
    stream_options - | `stream_options`: expected an object, got a list.
    reasoning_effort - | `reasoning_effort`: huge is none of none, minimal, low, medium, high, xhigh, max.
    continue_final_message - | `continue_final_message`: the last message is no beginning of an answer.
    chat_template_kwargs.enable_thinking - | `chat_template_kwargs.enable_thinking`: expected true or false, got a number.
    ");
}

#[test]
fn refusals_by_name() {
    let rows = [
        json!({"modalities": ["text", "audio"]}),
        json!({"audio": {"voice": "x"}}),
        json!({"web_search_options": {"user_location": {}}}),
        json!({"background": true}),
        json!({"conversation": "c"}),
        json!({"best_of": 2}),
        json!({"suffix": "x"}),
        json!({"functions": [{"name": "f"}]}),
    ];
    insta::assert_snapshot!(refusals(&rows), @r"
    modalities unsupported_value | `modalities`: only text can be answered.
    audio unsupported_value | `audio`: audio is not supported, only text.
    web_search_options unsupported_value | `web_search_options`: there is no web search.
    background unsupported_value | `background`: answers are not made in the background.
    conversation unsupported_value | `conversation`: conversations are not stored; send all messages.
    best_of unsupported_value | `best_of`: several answers are not compared; use n.
    suffix unsupported_value | `suffix`: text cannot be filled in.
    functions unsupported_value | `functions`: it was replaced; use tools.
    ");
}

#[test]
fn what_asks_for_nothing_is_taken() {
    let body = with(json!({
        "metadata": {"a": "b"}, "user": "u", "store": false, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "client_metadata": {}, "verbosity": "low", "context_management": [],
        "modalities": ["text"], "background": false, "functions": [], "suffix": "", "audio": null,
        "max_tokens": null, "tools": null, "tool_choice": null, "stop": null, "n": null, "speed": "standard",
        "include": ["x"], "diagnostics": {"x": 1}, "unheard_of": null,
    }));
    let parsed = chat_request(body.to_string().as_bytes(), &strict()).unwrap();
    assert_eq!(format!("{:?}", parsed.request), format!("{:?}", taken(with(json!({})))));
    assert!(parsed.ignored.is_empty());
}

#[test]
fn what_nobody_knows_is_named() {
    let body = with(json!({
        "enable_mind": true, "store": true, "speed": "fast", "a b,\r\nc": 1, "x.y": 1,
        "stream_options": {"include_usage": true, "later": 1}, "structured_outputs": {"regex": "a", "new": 1},
    }));
    let parsed = self::parsed(&body).unwrap();
    assert_eq!(
        parsed.ignored,
        ["enable_mind", "store", "speed", "a b;??c", "x.y", "stream_options.later", "structured_outputs.new"]
    );
    assert!(parsed.request.include_usage);
    let error = chat_request(body.to_string().as_bytes(), &strict()).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("enable_mind"));
    let many: serde_json::Map<String, Value> = (0..1000).map(|i| (format!("f{i}"), json!(1))).collect();
    let ignored = self::parsed(&with(many.into())).unwrap().ignored;
    assert_eq!((ignored.len(), ignored[32].as_str()), (33, "and 968 more"));
}

#[test]
fn numbers_as_clients_write_them() {
    let sampling = |fields: Value| taken(with(fields)).sampling;
    assert_eq!(sampling(json!({"top_k": -1})).top_k, Some(0));
    assert!(sampling(json!({"top_p": 0})).top_p.is_some_and(|share| share > 0.0));
    assert_eq!(sampling(json!({"seed": -1})).seed, Some(u64::MAX));
    assert_eq!(sampling(json!({"seed": 18446744073709551615u64})).seed, Some(u64::MAX));
    assert_eq!(sampling(json!({"logit_bias": {"5": -100, "7": 0.5}})).logit_bias, [(5, -100.0), (7, 0.5)]);
    assert_eq!(taken(with(json!({"max_tokens": 16.0}))).max_tokens, Some(16));
    assert_eq!(taken(with(json!({"max_tokens": 16, "max_completion_tokens": 9}))).max_tokens, Some(9));
    assert_eq!(taken(with(json!({"stop": ["", "a"]}))).stop, ["a"]);
    assert_eq!(taken(with(json!({"logprobs": false, "top_logprobs": 0}))).top_logprobs, None);
    assert_eq!(taken(with(json!({"logprobs": true}))).top_logprobs, Some(0));
}

#[test]
fn prompts_of_completions() {
    let of = |prompt: Value| match completion(json!({"prompt": prompt}))?.request.prompt {
        Prompt::Texts(texts) => Ok::<_, ApiError>(texts),
        Prompt::Chat(_) => panic!("a chat"),
    };
    let text = |text: &str| TextPrompt::Text(text.into());
    assert_eq!(of(json!("a")), Ok(vec![text("a")]));
    assert_eq!(of(json!(["a", ""])), Ok(vec![text("a"), text("")]));
    assert_eq!(of(json!([1, 2])), Ok(vec![TextPrompt::Tokens(vec![1, 2])]));
    assert_eq!(of(json!([[1], "b"])), Ok(vec![TextPrompt::Tokens(vec![1]), text("b")]));
    for (wrong, path) in [
        (json!([]), "prompt"),
        (json!(1), "prompt"),
        (json!({}), "prompt"),
        (json!([[]]), "prompt[0]"),
        (json!([1, "a"]), "prompt[1]"),
        (json!([[1, -1]]), "prompt[0][1]"),
        (json!([4294967296u64]), "prompt[0]"),
        (json!(vec!["a"; 2049]), "prompt"),
        (json!(null), "prompt"),
    ] {
        assert_eq!(of(wrong).unwrap_err().param.as_deref(), Some(path));
    }
    let request = completion(json!({"echo": true, "logprobs": null})).unwrap().request;
    assert_eq!((request.max_tokens, request.echo, request.top_logprobs), (Some(16), true, None));
    assert_eq!(completion(json!({"logprobs": 3})).unwrap().request.top_logprobs, Some(3));
    for (fields, path) in [
        (json!({"echo": true, "logprobs": 0}), "echo"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"max_tokens": 0}), "max_tokens"),
    ] {
        assert_eq!(completion(fields).unwrap_err().param.as_deref(), Some(path));
    }
    // A chat's fields are not a text's.
    assert_eq!(completion(json!({"messages": []})).unwrap().ignored, ["messages"]);
}

/// A value of each honoured field that is not its default, and what must be there besides.
fn example(path: &str) -> (Value, Value) {
    let value = match path {
        "model" => json!("other"),
        "messages" => json!([{"role": "user", "content": "other"}]),
        "prompt" => json!("other"),
        "max_tokens" | "max_completion_tokens" | "top_k" | "seed" => json!(7),
        "min_tokens" | "n" => json!(2),
        "temperature" | "top_p" | "min_p" | "repetition_penalty" | "presence_penalty"
        | "frequency_penalty" => {
            json!(0.5)
        }
        "stop" => json!("END"),
        "logit_bias" => json!({"1": 2}),
        "top_logprobs" => return (json!(3), json!({"logprobs": true})),
        "tools" => json!([tool("a")]),
        "tool_choice" => return (json!("required"), json!({"tools": [tool("a")]})),
        "parallel_tool_calls" | "cache_prompt" => json!(false),
        "response_format" => json!({"type": "json_object"}),
        "structured_outputs" => json!({"regex": "a"}),
        "structured_outputs.json" => json!({}),
        "structured_outputs.regex" | "structured_outputs.grammar" => json!("a"),
        "structured_outputs.choice" => json!(["a"]),
        "reasoning_effort" => json!("low"),
        "chat_template_kwargs" => json!({"style": "x"}),
        "continue_final_message" => {
            return (json!(true), json!({"messages": [{"role": "assistant", "content": "a"}]}));
        }
        _ => json!(true),
    };
    (value, json!({}))
}

fn nested(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, key| json!({key: value}))
}

type Parse = fn(&[u8], &Limits) -> Result<Parsed, ApiError>;

#[test]
fn every_honoured_field_changes_the_request() {
    let apis: [(&[Field], Parse, Value); 2] = [
        (CHAT_FIELDS, chat_request, with(json!({}))),
        (COMPLETION_FIELDS, completion_request, plain(json!({}))),
    ];
    for (table, parse, body) in apis {
        for field in table.iter().filter(|field| field.kind == FieldKind::Honoured) {
            let (value, besides) = example(field.path);
            let before = merged(body.clone(), besides);
            let after = merged(before.clone(), nested(field.path, value));
            // `logprobs` is a number in Completions.
            let numbered = merged(before.clone(), json!({"logprobs": 2}));
            let [before, after, numbered] =
                [before, after, numbered].map(|body| parse(body.to_string().as_bytes(), &strict()));
            let after = if field.path == "logprobs" { after.or(numbered) } else { after };
            let (before, after) = (before.unwrap(), after.unwrap_or_else(|e| panic!("{} {e:?}", field.path)));
            assert_ne!(format!("{:?}", before.request), format!("{:?}", after.request), "{}", field.path);
        }
    }
}

/// Whatever is no honoured field leaves the request as it was, or is refused with its path.
#[test]
fn no_other_field_changes_the_request() {
    let apis: [(&[Field], Parse, Value); 2] = [
        (CHAT_FIELDS, chat_request, with(json!({}))),
        (COMPLETION_FIELDS, completion_request, plain(json!({}))),
    ];
    for (table, parse, body) in apis {
        let plain = parse(body.to_string().as_bytes(), &limits()).unwrap().request;
        for field in table.iter().filter(|field| field.kind != FieldKind::Honoured) {
            let body = merged(body.clone(), nested(field.path, json!("some value")));
            match (field.kind, parse(body.to_string().as_bytes(), &limits())) {
                (FieldKind::Refused(_), Err(error)) => {
                    assert_eq!(
                        (error.param.as_deref(), error.code),
                        (Some(field.path), Some("unsupported_value"))
                    );
                }
                (FieldKind::Inert, Ok(parsed)) => {
                    assert!(parsed.ignored.is_empty());
                    assert_eq!(format!("{:?}", parsed.request), format!("{plain:?}"), "{}", field.path);
                }
                (FieldKind::InertAs(_), Ok(parsed)) => {
                    assert_eq!(parsed.ignored, [field.path]);
                    assert_eq!(format!("{:?}", parsed.request), format!("{plain:?}"), "{}", field.path);
                }
                (kind, result) => panic!("{} {kind:?} {result:?}", field.path),
            }
        }
    }
}

#[test]
fn tables_have_each_field_once_and_a_row_each() {
    for table in [CHAT_FIELDS, COMPLETION_FIELDS] {
        let mut paths: Vec<&str> = table.iter().map(|field| field.path).collect();
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), table.len());
        assert_eq!(markdown(table).lines().count(), table.len() + 2);
    }
    insta::assert_snapshot!(markdown(&COMPLETION_FIELDS[..4]), @r"
    | field | what becomes of it | |
    |---|---|---|
    | `model` | honoured | any name is served |
    | `prompt` | honoured | a text, texts, token ids, or lists of them |
    | `echo` | honoured | the answer begins with the prompt |
    | `stream` | honoured |  |
    ");
}

const BODIES: &[&str] = &[
    r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"t"}]},
    {"role":"assistant","content":null,"reasoning_content":"r","tool_calls":[{"id":"c","type":"function",
    "function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"x"}],
    "tools":[{"type":"function","function":{"name":"f","description":"d","parameters":{},"strict":true}}],
    "tool_choice":{"type":"function","function":{"name":"f"}},"logit_bias":{"1":1},"stop":["a"],"n":2,"seed":-1,
    "response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{}}},"top_logprobs":2,"logprobs":true}"#,
    r#"{"prompt":[[1,2],"a"],"max_tokens":5,"min_tokens":1,"temperature":0.5,"top_p":0.5,"top_k":-1,"min_p":0.1,
    "stream":true,"stream_options":{"include_usage":true},"structured_outputs":{"choice":["a"]},"echo":true,
    "tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"name":"f"}]}},
    "reasoning_effort":"low","chat_template_kwargs":{"enable_thinking":true},"modalities":["text"],
    "messages":[{"role":"user","content":"x"}]}"#,
];

proptest! {
    /// Any change of a body is taken or is a 400, and the answer's header can hold what was ignored.
    #[test]
    fn no_body_is_too_strange(body in near(BODIES), is_strict: bool) {
        let limits = if is_strict { strict() } else { limits() };
        for parse in [chat_request, completion_request] {
            match parse(body.to_string().as_bytes(), &limits) {
                Ok(parsed) => prop_assert!(parsed.ignored.iter().all(|path| path.bytes().all(|b| (32..127).contains(&b)))),
                Err(error) => prop_assert_eq!(error.status(), 400),
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..40), text in r#"[\[\]{}:,"\\a0-9.eE+-]{0,40}"#) {
        let _ = chat_request(&bytes, &limits());
        let _ = completion_request(text.as_bytes(), &limits());
    }
}
