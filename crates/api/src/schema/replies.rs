//! The shapes of answers: whole ones. What a stream's events hold is said by their APIs.

use serde_json::{Map, Value, json};

use super::{Named, any_of, list, named, one_of_texts, or_null, text};

/// The schemas of the answers, by name.
pub fn replies() -> Map<String, Value> {
    let all = [errors(), openai(), responses(), messages()];
    all.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

/// An object that has all of these members.
fn all_of(properties: Value) -> Value {
    let names: Vec<String> =
        properties.as_object().into_iter().flat_map(Map::keys).map(String::to_owned).collect();
    json!({"type": "object", "properties": properties, "required": names})
}

/// The same, and more members that it may have.
fn with(mut object: Value, more: Value) -> Value {
    if let (Some(properties), Value::Object(more)) = (object["properties"].as_object_mut(), more) {
        properties.extend(more);
    }
    object
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn errors() -> Named {
    let openai = all_of(json!({
        "message": text(),
        "type": text(),
        "param": {"type": ["string", "null"], "description": "The path of the field that is wrong."},
        "code": {"type": ["string", "null"]},
    }));
    let anthropic = all_of(json!({
        "type": {"const": "error"},
        "error": all_of(json!({"type": text(), "message": text()})),
        "request_id": text(),
    }));
    vec![("Error", all_of(json!({"error": openai}))), ("MessageError", anthropic)]
}

fn openai() -> Named {
    let usage = all_of(json!({
        "prompt_tokens": count(),
        "completion_tokens": count(),
        "total_tokens": count(),
        "prompt_tokens_details": all_of(json!({"cached_tokens": count()})),
        "completion_tokens_details": all_of(json!({"reasoning_tokens": count()})),
    }));
    let rate = json!({"type": "number", "minimum": 0});
    let timings = all_of(json!({
        "cache_n": count(),
        "prompt_n": count(),
        "prompt_ms": rate,
        "prompt_per_second": rate,
        "predicted_n": count(),
        "predicted_ms": rate,
        "predicted_per_second": rate,
        "expert_hit_rate": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "drive_read_bytes": count(),
    }));
    let token = all_of(json!({
        "token": text(),
        "logprob": {"type": "number", "maximum": 0},
        "bytes": list(json!({"type": "integer", "minimum": 0, "maximum": 255})),
    }));
    let logprob = with(token.clone(), json!({"top_logprobs": list(token)}));
    let function = all_of(json!({"name": text(), "arguments": text()}));
    let call = all_of(json!({"id": text(), "type": {"const": "function"}, "function": function}));
    let message = with(
        all_of(
            json!({"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}, "refusal": {"type": "null"}}),
        ),
        json!({"reasoning_content": text(), "tool_calls": list(call)}),
    );
    let reason = one_of_texts(&["stop", "length", "tool_calls"]);
    let logprobs =
        or_null(all_of(json!({"content": list(named("TokenLogprob")), "refusal": {"type": "null"}})));
    let choice =
        all_of(json!({"index": count(), "message": message, "logprobs": logprobs, "finish_reason": reason}));
    let lists = or_null(all_of(json!({
        "tokens": list(text()),
        "token_logprobs": list(json!({"type": "number"})),
        "top_logprobs": list(json!({"type": "object", "additionalProperties": {"type": "number"}})),
        "text_offset": list(count()),
    })));
    let piece = all_of(json!({"text": text(), "index": count(), "logprobs": lists, "finish_reason": reason}));
    let whole = |object: &str, choice: Value| {
        all_of(json!({
            "id": text(),
            "object": {"const": object},
            "created": count(),
            "model": text(),
            "system_fingerprint": text(),
            "choices": list(choice),
            "usage": named("Usage"),
            "timings": named("Timings"),
        }))
    };
    vec![
        ("Usage", usage),
        ("Timings", timings),
        ("TokenLogprob", logprob),
        ("ChatCompletion", whole("chat.completion", choice)),
        ("Completion", whole("text_completion", piece)),
    ]
}

fn responses() -> Named {
    let status = one_of_texts(&["in_progress", "completed", "incomplete"]);
    let part = all_of(json!({
        "type": {"const": "output_text"},
        "text": text(),
        "annotations": list(json!({})),
        "logprobs": list(named("TokenLogprob")),
    }));
    let message = all_of(json!({
        "id": text(), "type": {"const": "message"}, "status": status, "role": {"const": "assistant"},
        "content": list(part),
    }));
    let thought = all_of(json!({"type": {"const": "reasoning_text"}, "text": text()}));
    let reasoning = all_of(json!({
        "id": text(), "type": {"const": "reasoning"}, "status": status, "summary": list(json!({})),
        "content": list(thought),
    }));
    let call = with(
        all_of(json!({
            "id": text(), "type": {"const": "function_call"}, "status": status, "call_id": text(), "name": text(),
            "arguments": text(),
        })),
        json!({"namespace": text()}),
    );
    let usage = all_of(json!({
        "input_tokens": count(),
        "input_tokens_details": all_of(json!({"cached_tokens": count(), "cache_write_tokens": count()})),
        "output_tokens": count(),
        "output_tokens_details": all_of(json!({"reasoning_tokens": count()})),
        "total_tokens": count(),
    }));
    let failure = all_of(json!({"code": text(), "message": text()}));
    let response = all_of(json!({
        "id": text(),
        "object": {"const": "response"},
        "created_at": count(),
        "status": one_of_texts(&["in_progress", "completed", "incomplete", "failed"]),
        "background": {"const": false},
        "error": or_null(failure),
        "incomplete_details": or_null(all_of(json!({"reason": text()}))),
        "model": text(),
        "output": list(any_of(&[message, reasoning, call])),
        "usage": or_null(usage),
    }));
    vec![("Response", response)]
}

fn messages() -> Named {
    let block = any_of(&[
        all_of(json!({"type": {"const": "text"}, "text": text()})),
        all_of(json!({"type": {"const": "thinking"}, "thinking": text(), "signature": text()})),
        all_of(
            json!({"type": {"const": "tool_use"}, "id": text(), "name": text(), "input": {"type": "object"}}),
        ),
    ]);
    let usage = all_of(json!({
        "input_tokens": count(),
        "cache_creation_input_tokens": count(),
        "cache_read_input_tokens": count(),
        "output_tokens": count(),
        "output_tokens_details": all_of(json!({"thinking_tokens": count()})),
    }));
    let reasons = ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"];
    let message = all_of(json!({
        "id": text(),
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": text(),
        "content": list(block),
        "stop_reason": or_null(one_of_texts(&reasons)),
        "stop_sequence": {"type": ["string", "null"]},
        "usage": usage,
    }));
    vec![("MessageReply", message), ("MessageTokens", all_of(json!({"input_tokens": count()})))]
}
