//! The inside of a call: the XML form of Qwen3-Coder and Qwen3.5, and the JSON forms of Hermes and Llama 3.
//!
//! Source: the instructions that the models' chat templates give. What models get wrong often, and in one way only, is
//! understood all the same: an end tag of a parameter or a function left out, one or two closing braces left out at
//! the end, JSON in a code fence, several calls in one block. Everything else is malformed, so that nothing that a
//! model wrote is dropped: a key given twice, text between the tags, a member of a call that has no meaning.

use super::chat::ToolSpec;
use super::format::{CALL_END, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END};
use super::json::{Json, JsonMap};
use super::reply::settled;

/// A tool's name and its arguments, an object.
pub(crate) type Call = (String, Json);

/// Why a block is not a call.
#[derive(Debug, PartialEq)]
pub(crate) enum Defect {
    /// It stops inside a value: the closing marker seen so far may belong to that value.
    Unfinished,
    /// It cannot become a call, for this reason.
    Malformed(String),
}

/// What a block holds.
#[derive(Debug, PartialEq)]
pub(crate) struct Block {
    /// The calls; at least one.
    pub(crate) calls: Vec<Call>,
    /// The last value has no end tag of its own: what ended the block may belong to that value.
    pub(crate) open_ended: bool,
}

fn malformed<T>(reason: impl Into<String>) -> Result<T, Defect> {
    Err(Defect::Malformed(reason.into()))
}

/// Reads the body of a block.
pub(crate) fn parse(body: &str, tools: &[ToolSpec]) -> Result<Block, Defect> {
    let body = body.trim();
    if body.starts_with(FUNCTION) {
        parse_xml(body, tools)
    } else if body.starts_with(['{', '[', '`']) {
        parse_json(unfenced(body), tools).map(|calls| Block { calls, open_ended: false })
    } else {
        malformed("neither a JSON object nor <function=…>")
    }
}

/// What could come of a text that begins with `<function=` outside of any block.
#[derive(Debug, PartialEq)]
pub(crate) enum Bare {
    /// No call.
    No,
    /// What follows decides.
    More {
        /// So many bytes need not be looked at again.
        scanned: usize,
    },
    /// A call of so many bytes.
    Call(Call, usize),
}

/// Reads a call without a block around it: of an offered tool, whole, and nothing but tags between its values.
/// `last` says that the reply ends here. Bytes before `scanned` hold no end of a call.
pub(crate) fn bare_call(text: &str, tools: &[ToolSpec], last: bool, scanned: usize) -> Bare {
    let wait = |scanned| if last { Bare::No } else { Bare::More { scanned } };
    let inner = &text[FUNCTION.len()..];
    let Some((name, rest)) = inner.split_once('>') else {
        let may = tools.iter().any(|t| t.name().starts_with(inner.trim()));
        return if may { wait(0) } else { Bare::No };
    };
    if !tools.iter().any(|t| t.name() == name.trim()) {
        return Bare::No;
    }
    let rest = rest.trim_start();
    if ![PARAMETER, FUNCTION_END].iter().any(|tag| rest.starts_with(tag) || tag.starts_with(rest)) {
        return Bare::No;
    }
    let ends = text[scanned..].match_indices(FUNCTION_END).map(|(at, tag)| scanned + at + tag.len());
    for end in ends {
        let Ok(mut block) = parse_xml(&text[..end], tools) else { continue };
        let after = text[end..].trim_start();
        if !block.open_ended || after.starts_with(CALL_END) || (last && after.is_empty()) {
            return block.calls.pop().map_or(Bare::No, |call| Bare::Call(call, end));
        }
        if CALL_END.starts_with(after) && !last {
            return wait(end - FUNCTION_END.len());
        }
    }
    wait(settled(text, FUNCTION_END).max(scanned))
}

/// Reads a reply that is nothing but calls in JSON, one or several, all of offered tools.
pub(crate) fn json_reply(text: &str, tools: &[ToolSpec]) -> Option<Vec<Call>> {
    let calls = parse_json(text.trim(), &[]).ok()?;
    calls.iter().all(|(name, _)| tools.iter().any(|t| t.name() == name)).then_some(calls)
}

/// Whether a reply that begins like this can become [`json_reply`].
pub(crate) fn may_be_json_reply(text: &str) -> bool {
    let Some(inner) = text.trim_start().strip_prefix('{') else { return false };
    let inner = inner.trim_start();
    ["\"name\"", "\"type\"", "\"id\"", "\"function\"", "\"parameters\"", "\"arguments\""]
        .iter()
        .any(|key| inner.starts_with(key) || key.starts_with(inner))
}

fn unfenced(body: &str) -> &str {
    let inner = body.strip_prefix("```json").or(body.strip_prefix("```"));
    inner.and_then(|b| b.strip_suffix("```")).map_or(body, str::trim)
}

/// Objects one after the other, with white space, a comma or a semicolon between them, or in a list.
fn parse_json(body: &str, tools: &[ToolSpec]) -> Result<Vec<Call>, Defect> {
    let mut calls = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (value, after) = match Json::parse_prefix(rest) {
            Ok(found) => found,
            Err(e) if e.in_string => return Err(Defect::Unfinished),
            Err(e) => match closed(rest, tools) {
                Some(value) => (value, ""),
                None => return malformed(format!("invalid JSON: {e}")),
            },
        };
        match value {
            Json::Array(list) if calls.is_empty() && after.is_empty() => {
                for item in list {
                    calls.push(json_call(item)?);
                }
            }
            value => calls.push(json_call(value)?),
        }
        let next = after.trim_start();
        rest = next.strip_prefix([',', ';']).map_or(next, str::trim_start);
        if rest.is_empty() && !next.is_empty() {
            return malformed("it ends with a separator");
        }
    }
    if calls.is_empty() { malformed("an empty list") } else { Ok(calls) }
}

/// The call of an offered tool that `text` becomes with a closing brace or two at its end.
fn closed(text: &str, tools: &[ToolSpec]) -> Option<Json> {
    let value = ["}", "}}"].iter().find_map(|end| Json::parse(&format!("{text}{end}")).ok())?;
    let name = value.get("name").and_then(Json::as_str)?;
    tools.iter().any(|t| t.name() == name).then_some(value)
}

fn json_call(value: Json) -> Result<Call, Defect> {
    let Json::Object(mut map) = value else { return malformed("not a JSON object") };
    if map.get("function").is_some_and(|f| f.as_object().is_some()) {
        // The shape of the API, with the call inside.
        if let Some(Json::Object(function)) = map.shift_remove("function") {
            if let Some(key) = function.keys().find(|key| map.contains_key(*key)) {
                return malformed(format!("{key:?} is given twice"));
            }
            map.extend(function);
        }
    }
    let name = match map.shift_remove("name") {
        Some(Json::String(name)) if !name.is_empty() => name,
        Some(Json::String(_)) => return malformed("the name is empty"),
        _ => return malformed("no \"name\""),
    };
    let arguments = match map.shift_remove("arguments").or_else(|| map.shift_remove("parameters")) {
        None | Some(Json::Null) => Json::Object(JsonMap::new()),
        Some(Json::Object(arguments)) => Json::Object(arguments),
        // Some models write the arguments as the API does, as JSON text.
        Some(Json::String(text)) => match Json::parse(&text) {
            Ok(Json::Object(arguments)) => Json::Object(arguments),
            _ => return malformed("\"arguments\" is not an object"),
        },
        Some(_) => return malformed("\"arguments\" is not an object"),
    };
    match map.keys().find(|key| !["id", "type"].contains(&key.as_str())) {
        Some(key) => malformed(format!("{key:?} has no meaning in a call")),
        None => Ok((name, arguments)),
    }
}

fn parse_xml(body: &str, tools: &[ToolSpec]) -> Result<Block, Defect> {
    let mut block = Block { calls: Vec::new(), open_ended: false };
    let mut rest = body;
    while !rest.is_empty() {
        let Some(inner) = rest.strip_prefix(FUNCTION) else { return malformed("text after </function>") };
        let (call, after) = function(inner, tools, &mut block.open_ended)?;
        block.calls.push(call);
        rest = after.trim_start();
    }
    Ok(block)
}

/// Reads what follows `<function=`; returns what is left after it.
fn function<'a>(text: &'a str, tools: &[ToolSpec], open_ended: &mut bool) -> Result<(Call, &'a str), Defect> {
    let Some((name, mut rest)) = text.split_once('>') else {
        return malformed("<function=…> is not closed");
    };
    let name = name.trim();
    if name.is_empty() || name.contains(['<', '\n']) {
        return malformed("<function=…> has no name");
    }
    let spec = tools.iter().find(|t| t.name() == name);
    let mut arguments = JsonMap::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(FUNCTION_END) {
            return Ok(((name.to_owned(), Json::Object(arguments)), after));
        }
        if rest.is_empty() && *open_ended {
            return Ok(((name.to_owned(), Json::Object(arguments)), rest));
        }
        let Some(parameter) = rest.strip_prefix(PARAMETER) else {
            return malformed("neither <parameter=…> nor </function>");
        };
        let Some((key, value)) = parameter.split_once('>') else {
            return malformed("<parameter=…> is not closed");
        };
        let key = key.trim();
        if key.is_empty() || key.contains(['<', '\n']) {
            return malformed("<parameter=…> has no name");
        }
        if arguments.contains_key(key) {
            return malformed(format!("the parameter {key:?} is given twice"));
        }
        let expected = |k: &str| {
            k != key && !arguments.contains_key(k) && spec.is_some_and(|s| s.parameter(k).is_some())
        };
        let end = value_end(value, key, expected)?;
        *open_ended = end.open_ended;
        let text = without_border(&value[..end.at]);
        arguments.insert(key.to_owned(), typed(text, &types(spec, key)));
        rest = &value[end.next..];
    }
}

/// One line end after the opening tag and one before the closing tag belong to the tags.
pub(super) fn without_border(text: &str) -> &str {
    let text = text.strip_prefix("\r\n").or(text.strip_prefix('\n')).unwrap_or(text);
    text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text)
}

/// Where a value ends, and where to read on.
struct End {
    at: usize,
    next: usize,
    /// Nothing but the end of the block says that it ends.
    open_ended: bool,
}

/// Where the value of `key` ends: at the first `</parameter>` that another tag follows, since a value may hold the
/// marker. Where that is missing, at the next parameter that is `expected`, or at the end of the function.
fn value_end(value: &str, key: &str, expected: impl Fn(&str) -> bool) -> Result<End, Defect> {
    let after = |at: usize, tag: &str| value[at + tag.len()..].trim_start();
    let ends = |tag: &'static str| value.match_indices(tag).map(|(at, _)| at);
    let own = ends(PARAMETER_END).find(|at| {
        let after = after(*at, PARAMETER_END);
        after.starts_with(PARAMETER) || after.starts_with(FUNCTION_END)
    });
    let before_own = |at: &usize| own.is_none_or(|own| *at < own);
    let named = |at: usize| value[at + PARAMETER.len()..].split_once('>').map_or("", |(name, _)| name.trim());
    let function = ends(FUNCTION_END).take_while(before_own).find(|at| {
        let after = after(*at, FUNCTION_END);
        after.starts_with(FUNCTION) || (own.is_none() && after.is_empty())
    });
    let next = ends(PARAMETER).take_while(before_own).find(|at| expected(named(*at)));
    if let Some(at) = next.filter(|next| function.is_none_or(|end| *next < end)) {
        if value[..at].contains(FUNCTION) {
            // That parameter is another call's.
            return malformed(format!("the parameter {key:?} is not closed"));
        }
        return Ok(End { at, next: at, open_ended: false });
    }
    if let Some(at) = function {
        return Ok(End { at, next: at, open_ended: own.is_none() });
    }
    let Some(own) = own else {
        // `</function>` is missing too, or the value goes on.
        let last = ends(PARAMETER_END).find(|at| after(*at, PARAMETER_END).is_empty());
        let end = |at| End { at, next: at + PARAMETER_END.len(), open_ended: true };
        return last.map(end).ok_or(Defect::Unfinished);
    };
    let inside = &value[..own];
    let on_a_line = inside.starts_with(PARAMETER) || inside.contains("\n<parameter=");
    if on_a_line && inside.matches(PARAMETER).count() > inside.matches(PARAMETER_END).count() {
        return malformed(format!("the parameter {key:?} is not closed"));
    }
    Ok(End { at: own, next: own + PARAMETER_END.len(), open_ended: false })
}

/// The text as its schema wants it, which allows these types: a string stays as it is; otherwise whatever it is as JSON,
/// if its type is allowed; and a string again if nothing fits. Without any type, JSON that is not a string counts.
pub(super) fn typed(text: &str, allowed: &[&str]) -> Json {
    if allowed == ["string"] {
        return text.into();
    }
    let trimmed = text.trim();
    // Templates print Python's True, False and None, and models repeat what they saw.
    let python = match trimmed {
        "True" => Some(true.into()),
        "False" => Some(false.into()),
        "None" => Some(Json::Null),
        _ => None,
    };
    let declared = !allowed.is_empty();
    let parsed = match python {
        Some(value) if declared => Some(value),
        _ => Json::parse(trimmed).ok(),
    };
    let fits =
        |value: &Json| value.as_str().is_none() && (!declared || allowed.iter().any(|t| is_a(value, t)));
    match parsed {
        Some(value) if fits(&value) => value,
        // A quoted string where, for instance, a string or a number is allowed.
        _ => text.into(),
    }
}

/// The types that the schema of the argument `key` allows, sorted; none where it does not say.
pub(super) fn types<'a>(tool: Option<&'a ToolSpec>, key: &str) -> Vec<&'a str> {
    let mut allowed = Vec::new();
    if let Some((root, schema)) = tool.and_then(|tool| Some((tool.parameters()?, tool.parameter(key)?))) {
        collect_types(root, schema, &mut allowed, 0, &mut { MOST_SCHEMAS });
    }
    allowed.sort_unstable();
    allowed.dedup();
    allowed
}

/// Schemas that are looked at for the types of one argument: references can lead back.
const MOST_SCHEMAS: usize = 10_000;

fn collect_types<'a>(
    root: &'a Json,
    schema: &'a Json,
    out: &mut Vec<&'a str>,
    depth: usize,
    schemas_left: &mut usize,
) {
    if depth > 8 || *schemas_left == 0 {
        return;
    }
    *schemas_left -= 1;
    match schema.get("type") {
        Some(Json::String(t)) => out.push(t),
        Some(Json::Array(list)) => out.extend(list.iter().filter_map(Json::as_str)),
        _ => {
            let listed = schema.get("enum").and_then(Json::as_array).into_iter().flatten();
            out.extend(listed.chain(schema.get("const")).map(|value| type_of(value)));
        }
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let variants = schema.get(key).and_then(Json::as_array).into_iter().flatten();
        variants.for_each(|variant| collect_types(root, variant, out, depth + 1, schemas_left));
    }
    let target = schema.get("$ref").and_then(Json::as_str).and_then(|reference| root.pointer(reference));
    target.into_iter().for_each(|target| collect_types(root, target, out, depth + 1, schemas_left));
    if schema.get("nullable") == Some(&Json::Bool(true)) {
        out.push("null");
    }
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

fn is_a(value: &Json, kind: &str) -> bool {
    match (kind, value) {
        ("integer", Json::Number(text)) => {
            !text.contains(['.', 'e', 'E']) || text.parse::<f64>().is_ok_and(|x| x.fract() == 0.0)
        }
        ("number", Json::Number(_))
        | ("boolean", Json::Bool(_))
        | ("object", Json::Object(_))
        | ("array", Json::Array(_))
        | ("null", Json::Null) => true,
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

    fn argument(key: &str, text: &str) -> Json {
        let body = format!("\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n");
        parse(&body, &tools()).unwrap().calls[0].1.get(key).unwrap().clone()
    }

    /// The calls of a block, as `name{arguments}`.
    fn shown(body: &str) -> String {
        let calls = parse(body, &tools()).unwrap().calls;
        calls.iter().map(|(name, arguments)| format!("{name}{arguments}")).collect::<Vec<_>>().join(" ")
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
        assert_eq!(argument("sn", "null"), json!(null));
        assert_eq!(argument("sn", "x"), json!("x"));
        assert_eq!(argument("any", "[1]"), json!([1]));
        assert_eq!(argument("any", "\"quoted\""), json!("\"quoted\""));
        assert_eq!(argument("undeclared", "True"), json!("True"));
        // The digits stay as they are written.
        for number in ["98765432109876543210", "1.0", "-2.5e3", "1E400"] {
            assert_eq!(argument("n", number), Json::Number(number.into()));
        }
        assert_eq!(argument("i", "98765432109876543210"), Json::Number("98765432109876543210".into()));
        assert_eq!(
            argument("o", "{\"x\": 98765432109876543210}").to_string(),
            "{\"x\":98765432109876543210}"
        );
    }

    #[test]
    fn values_may_hold_markers() {
        assert_eq!(argument("s", "a</parameter>b</function>"), json!("a</parameter>b</function>"));
        assert_eq!(argument("s", "use <parameter=other> so"), json!("use <parameter=other> so"));
        let nested = "see\n<parameter=x>\ny\n</parameter> there";
        assert_eq!(argument("s", nested), json!(nested));
        assert_eq!(parse("<function=f>\n<parameter=s>\nx", &[]), Err(Defect::Unfinished));
        assert_eq!(parse("{\"name\": \"f\", \"arguments\": {\"s\": \"x", &[]), Err(Defect::Unfinished));
    }

    #[test]
    fn json_calls() {
        assert_eq!(shown(r#" {"name": "f", "arguments": {"b": 1}} "#), r#"f{"b":1}"#);
        assert_eq!(shown(r#"{"name": "f"}"#), "f{}");
        assert_eq!(shown(r#"{"arguments": "{\"a\": 2}", "name": "f"}"#), r#"f{"a":2}"#);
        // Raw control characters, any digits, the shape of the API, several calls, a fence, braces left out.
        assert_eq!(shown("{\"name\": \"f\", \"arguments\": {\"s\": \"a\nb\tc\"}}"), r#"f{"s":"a\nb\tc"}"#);
        let digits = r#"{"name":"f","arguments":{"i":98765432109876543210,"x":[1.0,1e400,-0]}}"#;
        assert_eq!(shown(digits), r#"f{"i":98765432109876543210,"x":[1.0,1e400,-0]}"#);
        assert_eq!(
            shown(r#"{"type": "function", "id": "x", "function": {"name": "f", "arguments": {}}}"#),
            "f{}"
        );
        assert_eq!(shown("{\"name\": \"f\"}\n{\"name\": \"g\"}; {\"name\": \"h\"}"), "f{} g{} h{}");
        assert_eq!(shown(r#"[{"name": "f"}, {"name": "g"}]"#), "f{} g{}");
        assert_eq!(shown("```json\n{\"name\": \"f\"}\n```"), "f{}");
        assert_eq!(shown(r#"{"name": "f", "arguments": {"b": {"c": 1}}"#), r#"f{"b":{"c":1}}"#);
        assert_eq!(shown(r#"{"name": "f", "arguments": {"b": [1]"#), r#"f{"b":[1]}"#);
    }

    #[test]
    fn end_tags_may_be_missing() {
        // A parameter ends at the next declared one, at the end of its function, and at the end of the block.
        let body = "<function=f>\n<parameter=s>\nx\n<parameter=i>\n3\n</parameter>\n</function>";
        assert_eq!(shown(body), r#"f{"s":"x","i":3}"#);
        assert_eq!(
            shown("<function=f><parameter=s>x<parameter=i>3</parameter></function>"),
            r#"f{"s":"x","i":3}"#
        );
        for tail in ["\n</function>", "\r\n</function>", "\n</parameter>"] {
            let body = format!("<function=f>\n<parameter=s>\nx{tail}");
            assert_eq!(shown(&body), r#"f{"s":"x"}"#, "{body}");
            assert!(parse(&body, &tools()).unwrap().open_ended);
        }
        let first = "<function=f>\n<parameter=s>\nx\n</function>";
        let second = "<function=f>\n<parameter=i>\n1\n</parameter>\n</function>";
        assert_eq!(shown(&format!("{first}\n{second}")), r#"f{"s":"x"} f{"i":1}"#);
        // Never a value that has swallowed the next parameter: one that is not declared, or is given already.
        for key in ["other", "s"] {
            let body =
                format!("<function=f>\n<parameter=s>\nx\n<parameter={key}>\n3\n</parameter>\n</function>");
            let Err(Defect::Malformed(reason)) = parse(&body, &tools()) else { panic!("{body}") };
            assert!(reason.contains("\"s\" is not closed"), "{reason}");
        }
    }

    #[test]
    fn line_ends_of_windows_belong_to_the_tags() {
        let body = "\r\n<function=f>\r\n<parameter=s>\r\nx\r\ny\r\n</parameter>\r\n</function>\r\n";
        assert_eq!(shown(body), r#"f{"s":"x\r\ny"}"#);
    }

    #[test]
    fn calls_without_a_block() {
        let whole = "<function=f>\n<parameter=s>\nx\n</parameter>\n</function>";
        let call = ("f".to_owned(), Json::from(json!({"s": "x"})));
        assert_eq!(bare_call(whole, &tools(), false, 0), Bare::Call(call.clone(), whole.len()));
        let text = format!("{whole} tail");
        assert_eq!(bare_call(&text, &tools(), false, 0), Bare::Call(call.clone(), whole.len()));
        for cut in FUNCTION.len()..whole.len() {
            assert!(matches!(bare_call(&whole[..cut], &tools(), false, 0), Bare::More { .. }), "{cut}");
            assert_eq!(bare_call(&whole[..cut], &tools(), true, 0), Bare::No, "{cut}");
        }
        for not in ["<function=g>\n</function>", "<function=f> takes", "<function=fx", "<function=f>\n<p>"] {
            assert_eq!(bare_call(not, &tools(), false, 0), Bare::No, "{not}");
        }
        // Without `</parameter>`, what follows decides.
        let open = "<function=f>\n<parameter=s>\nx\n</function>";
        let wait = Bare::More { scanned: open.len() - FUNCTION_END.len() };
        assert_eq!(bare_call(open, &tools(), false, 0), wait);
        assert_eq!(bare_call(open, &tools(), true, 0), Bare::Call(call.clone(), open.len()));
        let closed = format!("{open}\n</tool_call>");
        assert_eq!(bare_call(&closed, &tools(), false, 0), Bare::Call(call, open.len()));
        assert!(matches!(bare_call(&format!("{open} and"), &tools(), false, 0), Bare::More { .. }));
    }

    #[test]
    fn replies_that_are_json() {
        let llama = r#"{"name": "f", "parameters": {"s": "x"}}"#;
        assert_eq!(json_reply(llama, &tools()).unwrap()[0].1, json!({"s": "x"}));
        assert_eq!(json_reply(&format!("{llama}; {llama}\n"), &tools()).unwrap().len(), 2);
        for not in ["{}", "{\"name\": \"g\"}", "{\"name\": \"f\"} x", "{\"name\": \"f\", \"why\": 1}", ""] {
            assert_eq!(json_reply(not, &tools()), None, "{not}");
        }
        for may in ["{", " {\n", "{\"na", "{\"name\": \"f\"", "{ \"type\""] {
            assert!(may_be_json_reply(may), "{may}");
        }
        for not in ["", "x", "[", "{x", "{\"a\"", "{}"] {
            assert!(!may_be_json_reply(not), "{not}");
        }
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
            "{\"name\": \"g\"",
            "{\"name\": \"f\", \"arguments\": {\"a\": 1, \"a\": 2}}",
            "{\"name\": \"f\", \"arguments\": {}, \"parameters\": {}}",
            "{\"name\": \"f\", \"function\": {\"name\": \"g\"}}",
            "{\"name\": \"f\", \"note\": \"x\"}",
            "{\"name\": \"f\"},",
            "[]",
            "<function=>\n</function>",
            "<function=f",
            "<function=f>\nloose",
            "<function=f>\n</function> x",
            "<function=f>\n<parameter=>\n1\n</parameter>\n</function>",
            "<function=f>\n<parameter=s>\n1\n</parameter>\n<parameter=s>\n2\n</parameter>\n</function>",
        ] {
            assert!(matches!(parse(body, &tools()), Err(Defect::Malformed(_))), "{body}");
        }
    }
}
