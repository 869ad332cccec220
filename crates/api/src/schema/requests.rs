//! What stands in the fields of requests that have a form of their own: messages, items, tools, choices.

use serde_json::{Map, Value, json};

use super::{Named, Shape, any_of, list, named, object, one_of_texts, or_null, text};
use crate::Limits;
use crate::responses::RECORDS;
use crate::tools::{NAME_BYTES_MAX, TOOLS_MAX};

/// The schemas that the fields' shapes name.
pub fn requests(limits: &Limits) -> Map<String, Value> {
    let all = [shared(), chat(limits), responses(limits), messages(limits)];
    all.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn text_or_null() -> Value {
    or_null(text())
}

fn tools(item: &Value) -> Value {
    json!({"type": "array", "items": item, "maxItems": TOOLS_MAX})
}

/// A tool of a type that is not one of `kinds`: it is left out.
fn other_tool(kinds: &[&str]) -> Value {
    left_out(&json!({"type": "string", "not": {"enum": kinds}}))
}

/// A tool or an item of a `kind` that says nothing to a text model.
fn left_out(kind: &Value) -> Value {
    let mut other = object(json!({"type": kind}), &["type"]);
    other["description"] = "Left out, and named in `x-tidemill-ignored`.".into();
    other
}

/// A function; `schema` is the name of its parameters' schema.
fn function(schema: &str, kind: Option<Value>, required: &[&str]) -> Value {
    let mut properties = json!({
        "name": {"type": "string", "minLength": 1, "maxLength": NAME_BYTES_MAX,
                 "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"},
        "description": text_or_null(),
        "strict": {"type": ["boolean", "null"]},
    });
    properties[schema] = json!({"type": ["object", "null"], "description": "A JSON schema."});
    if let Some(kind) = kind {
        properties["type"] = kind;
    }
    object(properties, required)
}

fn shared() -> Named {
    let part = any_of(&[
        text(),
        object(
            json!({"type": one_of_texts(&["text", "input_text", "output_text"]), "text": text()}),
            &["type", "text"],
        ),
        object(json!({"type": {"const": "refusal"}, "refusal": text()}), &["type", "refusal"]),
    ]);
    vec![
        ("Part", part),
        ("Content", any_of(&[text(), list(named("Part"))])),
        ("Function", function("parameters", None, &["name"])),
    ]
}

fn chat_call() -> Value {
    let arguments = json!({"description": "JSON text; what is no object stays text."});
    let function = object(json!({"name": text(), "arguments": arguments}), &["name"]);
    let custom = object(json!({"name": text(), "input": text_or_null()}), &["name"]);
    let of = |kind: &str, said: Value, required: &[&str]| {
        object(json!({"id": text_or_null(), "type": {"const": kind}, kind: said}), required)
    };
    any_of(&[of("function", function, &["function"]), of("custom", custom, &["type", "custom"])])
}

fn chat(limits: &Limits) -> Named {
    let asks = object(
        json!({
            "role": one_of_texts(&["system", "developer", "user"]),
            "content": named("Content"),
            "name": text_or_null(),
        }),
        &["role", "content"],
    );
    let answers = object(
        json!({
            "role": {"const": "assistant"},
            "content": or_null(named("Content")),
            "reasoning_content": text_or_null(),
            "refusal": text_or_null(),
            "tool_calls": or_null(list(named("ChatCall"))),
        }),
        &["role"],
    );
    let result = object(
        json!({"role": {"const": "tool"}, "content": or_null(named("Content")), "tool_call_id": text_or_null()}),
        &["role"],
    );
    let function =
        object(json!({"type": {"const": "function"}, "function": named("Function")}), &["function"]);
    let one = object(
        json!({"type": {"const": "function"}, "function": object(json!({"name": text()}), &["name"])}),
        &["type", "function"],
    );
    let allowed = object(
        json!({"tools": tools(&one), "mode": one_of_texts(&["auto", "none", "required"])}),
        &["tools", "mode"],
    );
    let schema = object(json!({"name": text_or_null(), "schema": Shape::Schema.schema(limits)}), &["schema"]);
    let id = json!({"type": "integer", "minimum": 0, "maximum": u32::MAX});
    let ids = json!({"type": "array", "items": id, "minItems": 1});
    let (either, most) = (any_of(&[text(), ids.clone()]), crate::openai::PROMPTS_MAX);
    let many = json!({"type": "array", "items": either, "minItems": 1, "maxItems": most});
    vec![
        ("ChatCall", chat_call()),
        ("ChatMessage", any_of(&[asks, answers, result])),
        ("ChatMessages", json!({"type": "array", "items": named("ChatMessage"), "minItems": 1})),
        ("ChatTools", tools(&any_of(&[function, other_tool(&["function"])]))),
        (
            "ChatToolChoice",
            any_of(&[
                one_of_texts(&["auto", "none", "required"]),
                one,
                object(
                    json!({"type": {"const": "allowed_tools"}, "allowed_tools": allowed}),
                    &["type", "allowed_tools"],
                ),
            ]),
        ),
        (
            "ResponseFormat",
            any_of(&[
                object(json!({"type": one_of_texts(&["text", "json_object"])}), &["type"]),
                object(
                    json!({"type": {"const": "json_schema"}, "json_schema": schema}),
                    &["type", "json_schema"],
                ),
            ]),
        ),
        ("Prompts", any_of(&[text(), ids, many])),
    ]
}

/// An item of an input.
fn response_item() -> Value {
    let roles = ["system", "developer", "user", "assistant"];
    let thoughts =
        |kind: &str| list(object(json!({"type": {"const": kind}, "text": text()}), &["type", "text"]));
    // The id has either name.
    let shell = |kind: &str, key: &str, value: Value, required: &[&str]| {
        let mut item =
            object(json!({"type": {"const": kind}, "call_id": text_or_null(), key: value}), required);
        item["anyOf"] =
            ["call_id", "id"].map(|key| object(json!({key: text()}), &[key])).into_iter().collect();
        item
    };
    any_of(&[
        object(
            json!({"type": {"const": "message"}, "role": one_of_texts(&roles), "content": or_null(named("Content"))}),
            &["role"],
        ),
        object(
            json!({"type": {"const": "reasoning"}, "content": or_null(thoughts("reasoning_text")),
                   "summary": or_null(thoughts("summary_text"))}),
            &["type"],
        ),
        object(
            json!({"type": {"const": "function_call"}, "call_id": text(), "name": text(), "arguments": text_or_null()}),
            &["type", "call_id", "name"],
        ),
        object(
            json!({"type": {"const": "custom_tool_call"}, "call_id": text(), "name": text(), "input": text()}),
            &["type", "call_id", "name", "input"],
        ),
        object(
            json!({"type": one_of_texts(&["function_call_output", "custom_tool_call_output"]), "call_id": text(),
                   "output": or_null(named("Content"))}),
            &["type", "call_id"],
        ),
        shell("local_shell_call", "action", json!({"not": {"type": "null"}}), &["type", "action"]),
        shell("local_shell_call_output", "output", or_null(named("Content")), &["type"]),
        object(
            json!({"type": {"const": "additional_tools"}, "tools": named("ResponseTools")}),
            &["type", "tools"],
        ),
        left_out(&one_of_texts(&RECORDS)),
    ])
}

fn responses(limits: &Limits) -> Named {
    let function = || function("parameters", Some(json!({"const": "function"})), &["type", "name"]);
    let inner = any_of(&[function(), other_tool(&["function"])]);
    let namespace = object(
        json!({"type": {"const": "namespace"}, "name": text(), "tools": tools(&inner)}),
        &["type", "name", "tools"],
    );
    let one = object(json!({"type": {"const": "function"}, "name": text()}), &["type", "name"]);
    let modes = one_of_texts(&["auto", "none", "required"]);
    let allowed = object(
        json!({"type": {"const": "allowed_tools"}, "tools": tools(&one), "mode": modes}),
        &["type", "tools", "mode"],
    );
    vec![
        ("ResponseItem", response_item()),
        ("ResponseInput", any_of(&[text(), list(named("ResponseItem"))])),
        ("ResponseTools", tools(&any_of(&[function(), namespace, other_tool(&["function", "namespace"])]))),
        ("ResponseToolChoice", any_of(&[modes, one, allowed])),
        (
            "TextFormat",
            any_of(&[
                object(json!({"type": one_of_texts(&["text", "json_object"])}), &["type"]),
                object(
                    json!({
                        "type": {"const": "json_schema"}, "name": text_or_null(),
                        "schema": Shape::Schema.schema(limits),
                    }),
                    &["type", "schema"],
                ),
            ]),
        ),
    ]
}

fn messages(limits: &Limits) -> Named {
    let block = |properties: Value, required: &[&str]| object(properties, required);
    let result = block(
        json!({"type": {"const": "tool_result"}, "tool_use_id": text(), "content": or_null(named("Content")),
               "is_error": {"type": ["boolean", "null"]}}),
        &["type", "tool_use_id"],
    );
    let said = [
        named("Part"),
        block(json!({"type": {"const": "thinking"}, "thinking": text()}), &["type", "thinking"]),
        block(json!({"type": {"const": "redacted_thinking"}}), &["type"]),
        block(
            json!({"type": {"const": "tool_use"}, "id": text(), "name": text(), "input": {}}),
            &["type", "id", "name"],
        ),
    ];
    let turn = |role: &str, blocks: Value| {
        let content = or_null(any_of(&[text(), list(blocks)]));
        object(json!({"role": {"const": role}, "content": content}), &["role"])
    };
    let message = any_of(&[
        turn("user", any_of(&[named("Part"), result])),
        turn("assistant", any_of(&said)),
        turn("system", named("Part")),
    ]);
    let own = function(
        "input_schema",
        Some(json!({"type": ["string", "null"], "enum": ["custom", null]})),
        &["name"],
    );
    let choice = object(
        json!({
            "type": one_of_texts(&["auto", "any", "none"]),
            "disable_parallel_tool_use": {"type": ["boolean", "null"]},
        }),
        &["type"],
    );
    let one = object(json!({"type": {"const": "tool"}, "name": text()}), &["type", "name"]);
    let thinking = any_of(&[
        object(json!({"type": one_of_texts(&["disabled", "adaptive", "between_tools"])}), &["type"]),
        object(
            json!({"type": {"const": "enabled"}, "budget_tokens": {"type": ["integer", "null"], "minimum": 0}}),
            &["type"],
        ),
    ]);
    let format = object(
        json!({"type": {"const": "json_schema"}, "schema": Shape::Schema.schema(limits)}),
        &["type", "schema"],
    );
    vec![
        ("Message", message),
        ("Messages", json!({"type": "array", "items": named("Message")})),
        ("MessageTools", tools(&any_of(&[own, other_tool(&["custom"])]))),
        ("MessageToolChoice", any_of(&[choice, one])),
        ("Thinking", thinking),
        ("OutputFormat", format),
    ]
}
