//! The document of all fields is made from the tables that requests are read by.

use serde_json::{Value, json};
use tidemill_api::fields::{Field, FieldKind};
use tidemill_api::schema::{self, Shape};
use tidemill_api::{ApiError, Parsed, anthropic, fields, openai, program, responses};

use crate::support::limits;

const DOCUMENT: &str = include_str!("../../../docs/api-fields.md");

const BEGINNING: &str = "\
# The fields of requests

What becomes of each field of a request. Made from the tables that the server reads requests by.

* *honoured*: it does what its API says.
* *accepted without effect*: it asks nothing of the answer.
* *refused*: the answer would be another one, so the request is answered with 400, which names the field.
* A field that is not listed is taken, and named in the answer's header `x-tidemill-ignored`. With
  `serve --strict` it is answered with 400.
";

#[test]
fn the_document_is_that_of_the_tables() {
    let tables = [
        ("Chat Completions", openai::CHAT_FIELDS),
        ("Completions", openai::COMPLETION_FIELDS),
        ("Responses", responses::FIELDS),
        ("Messages", anthropic::FIELDS),
    ];
    let mut text = BEGINNING.to_owned();
    for (name, table) in tables {
        assert!(table.iter().all(|field| !field.note.contains('|')), "a note would end its cell");
        let paths: std::collections::HashSet<&str> = table.iter().map(|field| field.path).collect();
        assert_eq!(paths.len(), table.len(), "{name} has a field twice");
        text.push_str(&format!("\n## {name}\n\n{}", fields::markdown(table)));
    }
    let made = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("api-fields.md");
    std::fs::write(&made, &text).unwrap();
    assert!(text == DOCUMENT, "the tables have changed; copy {} to docs/", made.display());
}

type Read = fn(&[u8]) -> Result<Parsed, ApiError>;

/// Each API: its table, what reads it, and a body with what it needs and what other fields need.
fn apis() -> [(&'static [Field], Read, Value); 4] {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let begun = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]);
    [
        (
            openai::CHAT_FIELDS,
            |body| openai::chat_request(body, &limits()),
            json!({"messages": begun, "logprobs": true}),
        ),
        (
            openai::COMPLETION_FIELDS,
            |body| openai::completion_request(body, &limits()),
            json!({"prompt": "Hi", "max_tokens": u64::MAX}),
        ),
        (responses::FIELDS, |body| responses::request(body, &limits()), json!({"input": "Hi"})),
        (
            anthropic::FIELDS,
            |body| anthropic::request(body, &limits(), false),
            json!({"max_tokens": 9, "messages": messages}),
        ),
    ]
}

/// `body` with `value` at `path`.
fn put(mut body: Value, path: &str, value: &Value) -> Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    if let Some((outer, _)) = path.split_once('.') {
        body[outer] = json!({});
    }
    match pointer.rsplit_once('/') {
        Some(("", key)) => body[key] = value.clone(),
        Some((outer, key)) => body.pointer_mut(outer).unwrap()[key] = value.clone(),
        None => unreachable!("it begins with a slash"),
    }
    body
}

/// One value of every kind.
fn kinds() -> [Value; 6] {
    [json!(true), json!(3), json!(0.5), json!("x"), json!([[]]), json!({"x": 1})]
}

/// Those of them that no field takes which takes values of these types alone.
fn of_other_types(types: &[&str]) -> Vec<Value> {
    let kind = |value: &Value| match value {
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        _ => "object",
    };
    let fits = |value: &&Value| {
        types.contains(&kind(value)) || (types.contains(&"number") && kind(value) == "integer")
    };
    kinds().iter().filter(|value| !fits(value)).cloned().collect()
}

/// Values at the ends of a shape, and just beyond them or of other types.
fn values(shape: Shape) -> (Vec<Value>, Vec<Value>) {
    let many = |count: usize| json!(vec!["x"; count]);
    let (inside, types, beyond) = match shape {
        Shape::Any => (kinds().to_vec(), vec!["boolean", "number", "string", "array", "object"], vec![]),
        Shape::Flag => (vec![json!(true), json!(false)], vec!["boolean"], vec![]),
        Shape::Text => (vec![json!("x")], vec!["string"], vec![]),
        Shape::OneOf(names) => {
            (names.iter().map(|name| json!(name)).collect(), vec!["string"], vec![json!("no such")])
        }
        Shape::Whole(least, most) => {
            let below = if least == 0 { json!(-1) } else { json!(least - 1) };
            let above = if most == u64::MAX { json!(1e300) } else { json!(most + 1) };
            (vec![json!(least), json!(most)], vec!["integer"], vec![below, above])
        }
        Shape::WholeOrNone => (vec![json!(-1), json!(0), json!(u64::MAX)], vec!["integer"], vec![json!(-2)]),
        Shape::Seed => (vec![json!(i64::MIN), json!(u64::MAX)], vec!["integer"], vec![json!(1e300)]),
        Shape::Choices => (vec![json!(1), json!(16)], vec!["integer"], vec![json!(0), json!(17)]),
        Shape::Number(least, most) => {
            let beyond = vec![json!(least - 0.001), json!(most + 0.001)];
            (vec![json!(least), json!(most)], vec!["number"], beyond)
        }
        Shape::Above0(most) => {
            (vec![json!(1e-9), json!(most)], vec!["number"], vec![json!(0), json!(most + 0.001)])
        }
        Shape::Object => (vec![json!({}), json!({"x": 1})], vec!["object"], vec![]),
        Shape::Schema => (vec![json!({"type": "string"}), json!(true)], vec!["object", "boolean"], vec![]),
        Shape::Tokens => {
            (vec![json!([0]), json!([1, 2])], vec!["array"], vec![json!([]), json!([-1]), json!(["x"])])
        }
        Shape::Texts => (vec![json!([]), many(9)], vec!["array"], vec![json!([1])]),
        Shape::SomeTexts(most) => {
            (vec![many(1), many(most)], vec!["array"], vec![json!([1]), json!([]), many(most + 1)])
        }
        Shape::TextOrTexts(most, bytes) => {
            let long = json!("x".repeat(bytes + 1));
            let inside = vec![json!("x".repeat(bytes)), json!([]), many(most)];
            (inside, vec!["string", "array"], vec![long.clone(), json!([long]), json!([1]), many(most + 1)])
        }
        Shape::Biases(most, low, high) => {
            let of = |count: usize| (0..count).map(|id| (id.to_string(), json!(0))).collect::<Value>();
            let beyond =
                [json!({"1": low - 0.001}), json!({"1": high + 0.001}), json!({"x": 1}), of(most + 1)];
            (vec![json!({"1": low, "7": high}), of(most)], vec!["object"], beyond.to_vec())
        }
        Shape::Named(name) => return of_name(name),
    };
    (inside, [beyond, of_other_types(&types)].concat())
}

/// The same of what has a form of its own.
fn of_name(name: &str) -> (Vec<Value>, Vec<Value>) {
    let said = |content: Value| json!([{"role": "user", "content": content}]);
    let parameters = json!({"type": "object"});
    let (inside, types, beyond) = match name {
        "Content" => (
            json!(["x", [{"type": "text", "text": "x"}]]),
            vec!["string", "array"],
            json!([[{"type": "image"}]]),
        ),
        "ChatMessages" => (
            json!([said(json!("x")), said(json!(["x"])), [{"role": "assistant"}], [{"role": "tool"}], calls()]),
            vec!["array"],
            json!([[], [{"role": "user"}], [{"role": "nobody", "content": "x"}], said(json!(1))]),
        ),
        "Messages" => (
            json!([said(json!("x")), said(json!([{"type": "tool_result", "tool_use_id": "x"}]))]),
            vec!["array"],
            json!([[], [{"role": "nobody", "content": "x"}], said(json!(1)), said(json!([{"type": "tool_result"}]))]),
        ),
        "Prompts" => (
            json!(["x", ["x", "y"], [1, 2], [[1], [2]], [[1], "x"]]),
            vec!["string", "array"],
            json!([[], [[]], [-1], [[-1]], [true]]),
        ),
        "ResponseInput" => (
            json!(["x", said(json!("x")), items_of_all_kinds()]),
            vec!["string", "array"],
            json!([[{"type": "no such"}], [{"type": "message", "role": "nobody"}], [1]]),
        ),
        "ChatTools" => (
            json!([[], [{"type": "function", "function": {"name": "f", "parameters": parameters}}], [{"type": "custom"}]]),
            vec!["array"],
            json!([[{"type": "function"}], [{"type": "function", "function": {"name": ""}}], [1]]),
        ),
        "ResponseTools" => (
            json!([[], [{"type": "function", "name": "f", "parameters": parameters}], [{"type": "web_search"}],
                   [{"type": "namespace", "name": "n", "tools": []}]]),
            vec!["array"],
            json!([[{"type": "function"}], [{"name": "f"}], [{"type": "namespace", "name": "n"}], [1]]),
        ),
        "MessageTools" => (
            json!([[], [{"name": "f", "input_schema": parameters}], [{"type": "bash_20250124", "name": "bash"}]]),
            vec!["array"],
            json!([[{"type": "custom"}], [{"name": "f", "input_schema": 1}], [1]]),
        ),
        "ChatToolChoice" | "ResponseToolChoice" => (
            json!(["auto", "none"]),
            vec!["string", "object"],
            json!(["any", {"type": "no such"}, {"name": "f"}]),
        ),
        "MessageToolChoice" => (
            json!([{"type": "auto", "disable_parallel_tool_use": true}, {"type": "none"}]),
            vec!["object"],
            json!([{"type": "required"}, {"type": "auto", "disable_parallel_tool_use": 1}, {"type": "tool"}]),
        ),
        "ResponseFormat" => (
            json!([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": parameters}}]),
            vec!["object"],
            json!([{"type": "xml"}, {"type": "json_schema"}, {}]),
        ),
        "TextFormat" => (
            json!([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "schema": parameters}]),
            vec!["object"],
            json!([{"type": "xml"}, {"type": "json_schema"}, {}]),
        ),
        "OutputFormat" => (
            json!([{"type": "json_schema", "schema": parameters}]),
            vec!["object"],
            json!([{"type": "text"}, {}]),
        ),
        "Thinking" => (
            json!([{"type": "disabled"}, {"type": "adaptive"}, {"type": "enabled", "budget_tokens": 9}]),
            vec!["object"],
            json!([{"type": "no such"}, {"type": "enabled", "budget_tokens": -1}, {}]),
        ),
        other => panic!("no values for {other}"),
    };
    let list = |values: Value| values.as_array().unwrap().clone();
    (list(inside), [list(beyond), of_other_types(&types)].concat())
}

/// A turn with a call of each kind.
fn calls() -> Value {
    json!([{"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"type": "custom", "custom": {"name": "f", "input": "x"}},
    ]}])
}

/// An item of each kind that an input may have.
fn items_of_all_kinds() -> Value {
    let mut items = json!([
        {"type": "message", "role": "user", "content": "x"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "x"},
        {"type": "custom_tool_call", "call_id": "b", "name": "f", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "x"},
        {"type": "local_shell_call", "id": "c", "action": {"type": "exec"}},
        {"type": "local_shell_call_output", "id": "c", "output": "x"},
        {"type": "additional_tools", "tools": [{"type": "function", "name": "f"}]},
    ]);
    let records = [
        "code_interpreter_call",
        "configuration_update",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    ];
    items.as_array_mut().unwrap().extend(records.map(|kind| json!({"type": kind})));
    items
}

/// The document has every kind of item and of call that is read.
#[test]
fn no_kind_is_missing_in_the_document() {
    let document = schema::requests(&limits());
    for (name, all) in
        [("ResponseItem", items_of_all_kinds()), ("ChatCall", calls()[0]["tool_calls"].clone())]
    {
        let schema = document[name].to_string();
        for kind in all.as_array().unwrap().iter().map(|one| one["type"].to_string()) {
            assert!(schema.contains(&kind), "{name} without {kind}");
        }
    }
}

/// What the document says of a field is what is taken: values inside its shape are no reason to complain about it, and
/// values outside are refused with its name.
#[test]
fn what_is_said_of_each_field_holds() {
    for (table, read, body) in apis() {
        for field in table {
            let FieldKind::Refused(harmless) = field.kind else {
                let (inside, outside) = values(field.shape);
                check(read, &body, field.path, &inside, &outside);
                continue;
            };
            let harmless: Vec<Value> =
                harmless.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
            let outside: Vec<Value> = kinds().into_iter().filter(|value| !harmless.contains(value)).collect();
            check(read, &body, field.path, &harmless, &outside);
        }
    }
}

/// The same of programs' requests, but for tools: any but functions are refused there.
#[test]
fn what_is_said_of_each_field_of_programs_holds() {
    for field in program::PROGRAM_FIELDS.iter().filter(|field| field.path != "tools") {
        let (inside, outside) = values(field.shape);
        let body = match field.path {
            "messages" | "prompt" | "tokens" => json!({}),
            _ => {
                json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}]})
            }
        };
        check(program::request, &body, field.path, &inside, &outside);
    }
}

fn check(read: Read, body: &Value, path: &str, inside: &[Value], outside: &[Value]) {
    let complaint = |value: &Value| {
        let body = put(body.clone(), path, value);
        let error = read(body.to_string().as_bytes()).err()?;
        assert_eq!(error.status(), 400, "{path} {value}: {}", error.message);
        let param = error.param.unwrap_or_default();
        let below = param.strip_prefix(path)?;
        (below.is_empty() || below.starts_with(['.', '['])).then_some(error.message)
    };
    inside.iter().for_each(|value| assert_eq!(complaint(value), None, "{path} takes {value}"));
    outside.iter().for_each(|value| assert!(complaint(value).is_some(), "{path} takes no {value}"));
    assert!(complaint(&Value::Null).is_none_or(|message| message.contains("missing")), "{path}: null");
}

/// What must be there, and names that lead nowhere.
#[test]
fn schemas_of_bodies_are_whole() {
    let known = schema::requests(&limits());
    for (table, read, body) in apis() {
        let made = schema::body(table, &[], &limits());
        for name in made["required"].as_array().unwrap() {
            let mut without = body.clone();
            without.as_object_mut().unwrap().remove(name.as_str().unwrap()).expect("it stands in the body");
            let error = read(without.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), name.as_str());
        }
        let mut least = body.clone();
        least
            .as_object_mut()
            .unwrap()
            .retain(|key, _| made["required"].as_array().unwrap().contains(&json!(key)));
        assert!(read(least.to_string().as_bytes()).is_ok(), "no other field is needed: {least}");
        let text = format!("{made}{}", Value::Object(known.clone()));
        for name in text.split("#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            assert!(known.contains_key(name), "{name} is nowhere");
        }
    }
    assert_eq!(schema::body(anthropic::FIELDS, &["max_tokens"], &limits())["required"], json!(["messages"]));
}
