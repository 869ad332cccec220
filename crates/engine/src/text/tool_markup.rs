//! The inside of a `<tool_call>` block: the XML form of Qwen3-Coder and Qwen3.5, and the JSON form of Hermes.
//!
//! Source: the instructions that the models' chat templates give.

use serde_json::{Map, Value};

use super::chat::ToolSpec;

/// Why a block is not a call.
#[derive(Debug, PartialEq)]
pub(crate) enum Defect {
    /// It stops inside a value: the closing marker seen so far may belong to that value.
    Unfinished,
    /// It cannot become a call, for this reason.
    Malformed(String),
}

/// The tool's name, as soon as the beginning of an XML block shows it.
pub(crate) fn early_name(body: &str) -> Option<&str> {
    let (name, _) = body.trim_start().strip_prefix("<function=")?.split_once('>')?;
    let name = name.trim();
    (!name.is_empty() && !name.contains(['<', '\n'])).then_some(name)
}

/// Reads a block's body: the tool's name and its arguments, an object.
pub(crate) fn parse(body: &str, tools: &[ToolSpec]) -> Result<(String, Value), Defect> {
    let body = body.trim();
    if body.starts_with('{') {
        parse_json(body)
    } else if let Some(rest) = body.strip_prefix("<function=") {
        parse_xml(rest, tools)
    } else {
        Err(Defect::Malformed("neither a JSON object nor <function=…>".into()))
    }
}

fn parse_json(body: &str) -> Result<(String, Value), Defect> {
    let malformed = |reason: &str| Defect::Malformed(reason.to_owned());
    let value: Value = serde_json::from_str(body).map_err(|e| match e.is_eof() && inside_string(body) {
        true => Defect::Unfinished,
        false => Defect::Malformed(format!("invalid JSON: {e}")),
    })?;
    let Value::Object(mut map) = value else { return Err(malformed("not a JSON object")) };
    let Some(Value::String(name)) = map.shift_remove("name") else {
        return Err(malformed("no \"name\""));
    };
    let arguments = match map.shift_remove("arguments").or_else(|| map.shift_remove("parameters")) {
        None | Some(Value::Null) => Value::Object(Map::new()),
        Some(Value::Object(arguments)) => Value::Object(arguments),
        // Some models write the arguments as the API does, as JSON text.
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(arguments)) => Value::Object(arguments),
            _ => return Err(malformed("\"arguments\" is not an object")),
        },
        Some(_) => return Err(malformed("\"arguments\" is not an object")),
    };
    if name.is_empty() {
        return Err(malformed("the name is empty"));
    }
    Ok((name, arguments))
}

/// Whether a JSON text stops within a string.
fn inside_string(text: &str) -> bool {
    let (mut inside, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ => {}
        }
    }
    inside
}

fn parse_xml(rest: &str, tools: &[ToolSpec]) -> Result<(String, Value), Defect> {
    let malformed = |reason: &str| Err(Defect::Malformed(reason.to_owned()));
    let Some((name, mut rest)) = rest.split_once('>') else {
        return malformed("<function=…> is not closed");
    };
    let name = name.trim();
    if name.is_empty() || name.contains(['<', '\n']) {
        return malformed("<function=…> has no name");
    }
    let spec = tools.iter().find(|t| t.name() == name);
    let mut arguments = Map::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("</function>") {
            if !after.trim().is_empty() {
                return malformed("text after </function>");
            }
            return Ok((name.to_owned(), Value::Object(arguments)));
        }
        let Some(parameter) = rest.strip_prefix("<parameter=") else {
            return malformed("neither <parameter=…> nor </function>");
        };
        let Some((key, value)) = parameter.split_once('>') else {
            return malformed("<parameter=…> is not closed");
        };
        let Some(end) = value_end(value) else { return Err(Defect::Unfinished) };
        let text = &value[..end];
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let key = key.trim();
        arguments.insert(key.to_owned(), typed(text, spec.and_then(|s| s.parameter(key))));
        rest = &value[end + "</parameter>".len()..];
    }
}

/// Where the value ends: at the first `</parameter>` that another tag follows, since a value may hold the marker.
fn value_end(value: &str) -> Option<usize> {
    value.match_indices("</parameter>").map(|(at, _)| at).find(|at| {
        let after = value[at + "</parameter>".len()..].trim_start();
        after.starts_with("<parameter=") || after.starts_with("</function>")
    })
}

/// The text as the schema wants it: a declared string stays as it is; otherwise whatever it is as JSON, if its
/// type is allowed; and a string again if nothing fits. Without a schema, JSON that is not a string counts.
fn typed(text: &str, schema: Option<&Value>) -> Value {
    let mut allowed = Vec::new();
    if let Some(schema) = schema {
        collect_types(schema, &mut allowed, 0);
    }
    if allowed == ["string"] {
        return text.into();
    }
    let trimmed = text.trim();
    // Templates print Python's True, False and None, and models repeat what they saw.
    let python = match trimmed {
        "True" => Some(true.into()),
        "False" => Some(false.into()),
        "None" => Some(Value::Null),
        _ => None,
    };
    let declared = !allowed.is_empty();
    let parsed = match python {
        Some(value) if declared => Some(value),
        _ => serde_json::from_str::<Value>(trimmed).ok(),
    };
    let fits = |value: &Value| !value.is_string() && (!declared || allowed.iter().any(|t| is_a(value, t)));
    match parsed {
        Some(value) if fits(&value) => value,
        // A quoted string where, for instance, a string or a number is allowed.
        _ => text.into(),
    }
}

fn collect_types<'a>(schema: &'a Value, out: &mut Vec<&'a str>, depth: usize) {
    match schema.get("type") {
        Some(Value::String(t)) => out.push(t),
        Some(Value::Array(list)) => out.extend(list.iter().filter_map(Value::as_str)),
        _ => {}
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let variants = schema.get(key).and_then(Value::as_array).into_iter().flatten();
        if depth < 8 {
            variants.for_each(|v| collect_types(v, out, depth + 1));
        }
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        out.push("null");
    }
    out.sort_unstable();
    out.dedup();
}

fn is_a(value: &Value, kind: &str) -> bool {
    match kind {
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools() -> Vec<ToolSpec> {
        let properties = json!({
            "s": {"type": "string"}, "i": {"type": "integer"}, "b": {"type": "boolean"},
            "o": {"type": "object"}, "n": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "sn": {"type": ["string", "null"]}, "any": {}
        });
        let function = json!({"name": "f", "parameters": {"type": "object", "properties": properties}});
        vec![ToolSpec::new(json!({"type": "function", "function": function})).unwrap()]
    }

    fn argument(key: &str, text: &str) -> Value {
        let body = format!("\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n");
        parse(&body, &tools()).unwrap().1[key].clone()
    }

    #[test]
    fn values_follow_the_schema() {
        assert_eq!(argument("s", "12"), json!("12"));
        assert_eq!(argument("s", " a\n\nb "), json!(" a\n\nb "));
        assert_eq!(argument("i", "12"), json!(12));
        assert_eq!(argument("i", "twelve"), json!("twelve"));
        assert_eq!(argument("i", "1.5"), json!("1.5"));
        assert_eq!(argument("b", "True"), json!(true));
        assert_eq!(argument("b", "false"), json!(false));
        assert_eq!(argument("o", "{\"x\": [1, 2]}"), json!({"x": [1, 2]}));
        assert_eq!(argument("n", "null"), json!(null));
        assert_eq!(argument("n", "-2.5e3"), json!(-2500.0));
        assert_eq!(argument("sn", "null"), json!(null));
        assert_eq!(argument("sn", "x"), json!("x"));
        assert_eq!(argument("any", "[1]"), json!([1]));
        assert_eq!(argument("any", "\"quoted\""), json!("\"quoted\""));
        assert_eq!(argument("undeclared", "True"), json!("True"));
    }

    #[test]
    fn values_may_hold_markers() {
        assert_eq!(argument("s", "a</parameter>b</function>"), json!("a</parameter>b</function>"));
        assert_eq!(parse("<function=f>\n<parameter=s>\nx", &[]), Err(Defect::Unfinished));
        assert_eq!(parse("{\"name\": \"f\", \"arguments\": {\"s\": \"x", &[]), Err(Defect::Unfinished));
    }

    #[test]
    fn json_calls() {
        let ok = |body: &str| parse(body, &[]).unwrap();
        assert_eq!(ok(r#" {"name": "f", "arguments": {"b": 1}} "#), ("f".into(), json!({"b": 1})));
        assert_eq!(ok(r#"{"name": "f"}"#), ("f".into(), json!({})));
        assert_eq!(ok(r#"{"arguments": "{\"a\": 2}", "name": "f"}"#), ("f".into(), json!({"a": 2})));
    }

    #[test]
    fn malformed_calls() {
        for body in [
            "",
            "hello",
            "{\"name\": 1}",
            "{\"arguments\": {}}",
            "{\"name\": \"f\", \"arguments\": [1]}",
            "{oops}",
            "{\"name\": \"f\"",
            "<function=>\n</function>",
            "<function=f",
            "<function=f>\nloose",
            "<function=f>\n</function> x",
        ] {
            assert!(matches!(parse(body, &[]), Err(Defect::Malformed(_))), "{body}");
        }
    }
}
