//! Grammars of calls: what may stand in the blocks of a [`CallFormat`], for the tools that are offered.

use std::fmt::Write;

use files::{Error, Result};
use serde_json::{Map, Value, json};

use super::schema::{Unkept, prepared, with_options};
use crate::text::chat::ToolSpec;
use crate::text::format::{CALL_END, CallBody, CallFormat, FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END};
use crate::text::tool_markup::types;

/// Terminal of a string between tags: no tag that could end it or begin another value, wherever it stands.
const RAW: &str = r"RAW: /(?s:.*)/ & ~/(?s:.*)(<\/parameter>|<parameter=|<\/function>[ \t\r\n]*(<function=|<\/tool_call>))(?s:.*)/";

/// Terminal of a string between tags that is held to a pattern or a length as well: no closing tag, and none that begins
/// another value. It says what may come and not what may not: in the company of the others, the search for a text that
/// fits has no end after the beginning of such a tag.
fn without_tags() -> String {
    const TAGS: [&str; 3] = [PARAMETER_END, PARAMETER, FUNCTION_END];
    let tails = TAGS.map(|tag| tag.trim_start_matches('<'));
    let mut begun: Vec<&str> =
        tails.iter().flat_map(|tail| (0..tail.len()).map(|end| &tail[..end])).collect();
    begun.sort_unstable();
    begun.dedup();
    let slashed = |text: &str| text.replace('/', "\\/");
    let goes_wrong = begun.iter().map(|begun| {
        let next: String = tails.iter().filter_map(|tail| tail.strip_prefix(begun)?.chars().next()).collect();
        format!("{}[^<{}]", slashed(begun), slashed(&next))
    });
    let goes_wrong = goes_wrong.collect::<Vec<_>>().join("|");
    let begun = begun.iter().map(|begun| slashed(begun)).collect::<Vec<_>>().join("|");
    format!("NOTAG: /([^<]|(<({begun}))*<({goes_wrong}))*(<({begun}))*/")
}

/// The terminals that the rules of tools name, in Lark.
pub(super) fn terminals() -> String {
    format!("{RAW}\n{}\n", without_tags())
}

/// How much of a tool's schema is kept, from all to nothing: what is left when the compiler refuses the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keep {
    All,
    /// No patterns, formats, lengths and bounds.
    Structure,
    /// Any arguments.
    Nothing,
}

/// Writes the rules of one tool's block, between its markers, in Lark: the rule `name` and those that it needs.
pub(super) fn rules(
    format: &CallFormat,
    tool: &ToolSpec,
    name: &str,
    keep: Keep,
    left_out: &mut Vec<String>,
) -> Result<String> {
    let at = format!("tools: {}: parameters", tool.name());
    let strict = tool.is_strict();
    let any = crate::text::json::Json::Object(Default::default());
    let parameters = tool.parameters().filter(|_| keep != Keep::Nothing).unwrap_or(&any);
    let unkept = if strict { Unkept::Refuse } else { Unkept::LeaveOut(left_out) };
    let mut schema = prepared(parameters, &at, unkept)?;
    if keep == Keep::Structure {
        strip(&mut schema);
    }
    if !holds_together(&schema) {
        close_within(&mut schema);
    }
    let Value::Object(mut schema) = schema else {
        return Err(Error::invalid(format!("{at}: it must be an object")));
    };
    close(&mut schema);
    match format.body {
        CallBody::Json => Ok(json_rules(tool, name, schema, strict)),
        CallBody::Tags => {
            left_out.extend(loose(tool, &schema, strict, &at)?);
            tag_rules(tool, name, &schema, strict, &at)
        }
    }
}

/// Keywords under which more arguments may be declared.
const COMBINED: [&str; 5] = ["$ref", "anyOf", "oneOf", "allOf", "patternProperties"];

fn required(schema: &Map<String, Value>) -> Vec<&str> {
    let list = schema.get("required").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Arguments are an object, of which no more is allowed than was declared, unless the tool says otherwise.
fn close(schema: &mut Map<String, Value>) {
    schema.entry("type").or_insert_with(|| "object".into());
    if COMBINED.iter().any(|key| schema.contains_key(*key)) {
        return;
    }
    let mut properties = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    for key in required(schema) {
        properties.entry(key).or_insert(Value::Bool(true));
    }
    schema.insert("properties".into(), properties.into());
    schema.entry("additionalProperties").or_insert_with(|| false.into());
}

/// Closes the objects within a schema too, where they declare what they have: a model that may invent keys gives some
/// twice. Where schemas hold together, each of them must let the other's through.
fn close_within(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    for (key, inner) in map.iter_mut() {
        match (key.as_str(), inner) {
            ("properties" | "$defs" | "definitions", Value::Object(inner)) => {
                inner.values_mut().for_each(close_all);
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf", Value::Array(inner)) => {
                inner.iter_mut().for_each(close_all);
            }
            ("items" | "additionalItems" | "additionalProperties", inner) => close_all(inner),
            _ => {}
        }
    }
}

fn close_all(schema: &mut Value) {
    close_within(schema);
    if let Value::Object(map) = schema
        && map.get("properties").and_then(Value::as_object).is_some_and(|properties| !properties.is_empty())
        && map.get("type").is_none_or(|kind| kind == "object")
    {
        let had_type = map.contains_key("type");
        close(map);
        if !had_type {
            map.shift_remove("type");
        }
    }
}

/// Whether a schema somewhere holds together with others, none of which may then be closed for itself.
fn holds_together(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => {
            let combined = COMBINED.iter().filter(|key| map.contains_key(**key)).count();
            let own = usize::from(map.contains_key("properties"));
            map.contains_key("allOf") || combined + own > 1 || map.values().any(holds_together)
        }
        Value::Array(list) => list.iter().any(holds_together),
        _ => false,
    }
}

/// Takes out of a schema what is no structure.
fn strip(schema: &mut Value) {
    const DETAILS: [&str; 13] = [
        "pattern",
        "format",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ];
    match schema {
        Value::Object(map) => {
            // A property may have such a name: its schema is an object, or a truth value.
            map.retain(|key, value| {
                !DETAILS.contains(&key.as_str()) || matches!(value, Value::Object(_) | Value::Bool(_))
            });
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// `text` as Lark writes it.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn json_rules(tool: &ToolSpec, name: &str, mut schema: Map<String, Value>, strict: bool) -> String {
    let mut arguments = Value::Object(std::mem::take(&mut schema));
    rebase(&mut arguments, "#/properties/arguments");
    let call = json!({
        "type": "object",
        "properties": {"name": {"const": tool.name()}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": false,
    });
    format!("{name}: \"\\n\" %json {} {}\n", with_options(call, !strict), quoted(&format!("\n{CALL_END}")))
}

/// Makes references within a schema fit the place where the schema is put.
fn rebase(schema: &mut Value, to: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(path) = reference.strip_prefix('#')
            {
                *reference = format!("{to}{}", path.trim_end_matches('/'));
            }
            map.values_mut().for_each(|inner| rebase(inner, to));
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| rebase(inner, to)),
        _ => {}
    }
}

/// Schemas that a list of values may be gathered from, and how deep they may nest.
const MOST_LISTED: usize = 10_000;
const MOST_LISTED_DEPTH: usize = 100;

/// What a string between tags is held to, where that is all that it may be; a format never.
const DETAILS: [&str; 4] = ["format", "pattern", "minLength", "maxLength"];

/// The places of what arguments that stand between tags are not held to.
fn loose(tool: &ToolSpec, schema: &Map<String, Value>, strict: bool, at: &str) -> Result<Vec<String>> {
    let mut places = Vec::new();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let (types, property) = (types(Some(tool), key), target(property, schema));
        if listed(property, schema).is_some() || !(types.is_empty() || types.contains(&"string")) {
            continue; // held as a whole
        }
        let unkept = if types == ["string"] { &DETAILS[..1] } else { &DETAILS[..] };
        let own = unkept.iter().filter(|word| property.get(word).is_some());
        let loses = |one: &Value| {
            let one = target(one, schema);
            listed(one, schema).is_some_and(|values| values != [Value::Null])
                || DETAILS.iter().any(|word| one.get(word).is_some())
        };
        let nested = ["anyOf", "oneOf", "allOf"];
        let nested = nested.iter().filter(|word| {
            property.get(word).and_then(Value::as_array).is_some_and(|list| list.iter().any(loses))
        });
        places.extend(own.chain(nested).map(|word| format!("{at}/properties/{key}/{word}")));
    }
    places.extend(
        COMBINED.iter().filter(|word| schema.contains_key(**word)).map(|word| format!("{at}/{word}")),
    );
    match places.first().filter(|_| strict) {
        Some(place) => Err(Error::invalid(format!("{place}: this keyword cannot be kept in a tag"))),
        None => Ok(places),
    }
}

/// The values that fit, where a schema lists them: as `enum` or `const`, `null`, or all of its alternatives do. References
/// can lead back, and each can be followed by two: what is deep or needs many is not listed.
fn listed(property: &Value, root: &Map<String, Value>) -> Option<Vec<Value>> {
    listed_within(property, root, MOST_LISTED_DEPTH, &mut { MOST_LISTED })
}

fn listed_within(
    property: &Value,
    root: &Map<String, Value>,
    depth_left: usize,
    schemas_left: &mut usize,
) -> Option<Vec<Value>> {
    *schemas_left = schemas_left.checked_sub(1)?;
    let depth_left = depth_left.checked_sub(1)?;
    let property = target(property, root);
    if let Some(list) = property.get("enum").and_then(Value::as_array) {
        return Some(list.clone());
    }
    if let Some(one) = property.get("const") {
        return Some(vec![one.clone()]);
    }
    if property.get("type") == Some(&"null".into()) {
        return Some(vec![Value::Null]);
    }
    let all = ["anyOf", "oneOf"].iter().find_map(|word| property.get(word)?.as_array())?;
    let all: Option<Vec<_>> =
        all.iter().map(|one| listed_within(one, root, depth_left, schemas_left)).collect();
    all.map(|all| all.concat())
}

fn tag_rules(
    tool: &ToolSpec,
    name: &str,
    schema: &Map<String, Value>,
    strict: bool,
    at: &str,
) -> Result<String> {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let required = required(schema);
    let (mut parts, mut rules) = (String::new(), String::new());
    for (i, (key, property)) in properties.iter().enumerate() {
        let rule = format!("{name}p{i}");
        if key.is_empty() || key.contains(['<', '>', '\n']) {
            return Err(Error::invalid(format!("{at}: the name {key:?} cannot stand in a tag")));
        }
        let value = value_rules(tool, key, &rule, property, schema, strict)?;
        let Some(value) = value else {
            if required.contains(&key.as_str()) {
                return Err(Error::invalid(format!("{at}: nothing fits {key:?}, which is required")));
            }
            continue;
        };
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        let _ = write!(parts, " {rule}{optional}");
        let _ =
            writeln!(rules, "{rule}: {} {rule}v \"\\n\"\n{value}", quoted(&format!("{PARAMETER}{key}>\n")));
    }
    let free = properties.is_empty() && schema.get("additionalProperties") != Some(&Value::Bool(false));
    if free {
        parts.push_str(&format!(" {name}p*"));
        let _ = writeln!(
            rules,
            "{name}p: {} /[A-Za-z_][A-Za-z0-9_.-]{{0,63}}/ \">\\n\" {name}pv \"\\n\"\n{}",
            quoted(PARAMETER),
            raw(&format!("{name}p"), "RAW")
        );
    }
    let begin = quoted(&format!("\n{FUNCTION}{}>\n", tool.name()));
    let end = quoted(&format!("{FUNCTION_END}\n{CALL_END}"));
    Ok(format!("{name}: {begin}{parts} {end}\n{rules}"))
}

/// The rule of text that ends at its closing tag, and no earlier.
fn raw(rule: &str, body: &str) -> String {
    format!("{rule}v[suffix={}]: {body}\n", quoted(&format!("\n{PARAMETER_END}")))
}

/// The rule `{rule}v` of a value and its closing tag; `None` if nothing fits.
fn value_rules(
    tool: &ToolSpec,
    key: &str,
    rule: &str,
    property: &Value,
    root: &Map<String, Value>,
    strict: bool,
) -> Result<Option<String>> {
    let types = types(Some(tool), key);
    let property = target(property, root);
    if let Some(list) = listed(property, root) {
        let shown = list.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let choices: Vec<String> = shown.map(|text| quoted(&format!("{text}\n{PARAMETER_END}"))).collect();
        // One terminal for all, with its end, takes a fifth of the time of as many.
        let name = rule.to_uppercase();
        let rules = || format!("{rule}v: {name}\n{name}: {}\n", choices.join(" | "));
        return Ok((!choices.is_empty()).then(rules));
    }
    if *property == Value::Bool(false) {
        return Ok(None);
    }
    if types.is_empty() || types.contains(&"string") {
        let terminals = text_terminals(rule, property, types == ["string"]);
        return Ok(Some(format!("{}{}", raw(rule, &terminals.0), terminals.1)));
    }
    let schema = if has_reference(property) && key.contains('/') {
        json!({}) // no reference leads there
    } else if has_reference(property) {
        let mut whole = Value::Object(root.clone());
        rebase(&mut whole, "#/$defs/whole");
        json!({"$ref": format!("#/$defs/whole/properties/{key}"), "$defs": {"whole": whole}})
    } else {
        property.clone()
    };
    let end = quoted(&format!("\n{PARAMETER_END}"));
    Ok(Some(format!("{rule}v: %json {} {end}\n", with_options(schema, !strict))))
}

/// What a schema that is nothing but a reference refers to.
fn target<'a>(schema: &'a Value, root: &'a Map<String, Value>) -> &'a Value {
    let mut schema = schema;
    for _ in 0..8 {
        let path =
            schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/"));
        let Some(path) = path else { break };
        let mut steps = path.split('/');
        let first = steps.next().and_then(|step| root.get(step));
        let next = first.and_then(|first| {
            steps.try_fold(first, |value, step| match value {
                Value::Array(list) => list.get(step.parse::<usize>().ok()?),
                value => value.get(step),
            })
        });
        let Some(next) = next else { break };
        schema = next;
    }
    schema
}

fn has_reference(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("$ref") || map.values().any(has_reference),
        Value::Array(list) => list.iter().any(has_reference),
        _ => false,
    }
}

/// What a string between tags is made of: a terminal, and the rules of those that it names.
fn text_terminals(rule: &str, property: &Value, only_text: bool) -> (String, String) {
    let mut all = vec!["NOTAG".to_owned()];
    if only_text {
        let count = |key| property.get(key).and_then(Value::as_u64);
        if let Some(pattern) = property.get("pattern").and_then(Value::as_str) {
            all.push(format!("/{}/", searched(pattern)));
        }
        let (least, most) = (count("minLength"), count("maxLength"));
        if least.is_some() || most.is_some() {
            let most = most.map_or(String::new(), |most| most.to_string());
            all.push(format!("/(?s:.){{{},{most}}}/", least.unwrap_or(0)));
        }
    }
    if all.len() == 1 {
        return ("RAW".into(), String::new());
    }
    let name = rule.to_uppercase();
    (name.clone(), format!("{name}: {}\n", all.join(" & ")))
}

/// A pattern that may match anywhere, as one that matches the whole; `/` ends a pattern in Lark.
fn searched(pattern: &str) -> String {
    let begins = pattern.starts_with('^');
    let body = pattern.strip_prefix('^').unwrap_or(pattern);
    let inner = body.strip_suffix('$').filter(|inner| {
        let escapes = inner.len() - inner.trim_end_matches('\\').len();
        escapes % 2 == 0
    });
    let (ends, inner) = (inner.is_some(), inner.unwrap_or(body));
    let (before, after) = (if begins { "" } else { "(?s:.*)" }, if ends { "" } else { "(?s:.*)" });
    let mut escaped = String::new();
    let mut after_backslash = false;
    for c in inner.chars() {
        match c {
            '/' if !after_backslash => escaped.push_str("\\/"),
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
        after_backslash = c == '\\' && !after_backslash;
    }
    format!("{before}({escaped}){after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::json::Json;

    fn written(properties: &str, strict: bool) -> Result<(String, Vec<String>)> {
        let tool = format!(
            r#"{{"type":"function","function":{{"name":"f","strict":{strict},"parameters":
                {{"type":"object","properties":{properties}}}}}}}"#
        );
        let tool = ToolSpec::new(Json::parse(&tool).unwrap()).unwrap();
        let mut left_out = Vec::new();
        let format = CallFormat::named("xml").unwrap();
        rules(format, &tool, "t0", Keep::All, &mut left_out).map(|rules| (rules, left_out))
    }

    /// As pydantic writes a value that may be missing.
    #[test]
    fn values_that_are_listed_are_kept_beside_null() {
        let optional = r#"{"u":{"anyOf":[{"enum":["a","b"],"type":"string"},{"type":"null"}]}}"#;
        let (rules, left_out) = written(optional, true).unwrap();
        let choices = [r#""a\n</parameter>""#, r#""b\n</parameter>""#, r#""null\n</parameter>""#].join(" | ");
        assert!(rules.contains(&format!("t0p0v: T0P0\nT0P0: {choices}")), "{rules}");
        assert!(left_out.is_empty(), "{left_out:?}");
    }

    #[test]
    fn what_a_tag_cannot_keep_is_said_or_refused() {
        for (property, word) in [
            (r#"{"type":["string","null"],"pattern":"^a$"}"#, "pattern"),
            (r#"{"type":"string","format":"date"}"#, "format"),
            (r#"{"anyOf":[{"enum":["a"],"type":"string"},{"type":"string"}]}"#, "anyOf"),
        ] {
            let properties = format!(r#"{{"u":{property}}}"#);
            let place = format!("tools: f: parameters/properties/u/{word}");
            assert_eq!(written(&properties, false).unwrap().1, [place.as_str()]);
            let refused = written(&properties, true).unwrap_err();
            assert!(refused.message().starts_with(&place), "{refused}");
        }
        assert!(written(r#"{"u":{"type":"string","pattern":"^a$"}}"#, true).unwrap().1.is_empty());
    }

    #[test]
    fn references_that_lead_back_or_double_list_nothing() {
        let nothing = json!({"type": "null"});
        let mut defs = json!({"A": {"anyOf": [nothing, {"$ref": "#/$defs/A"}]}, "D0": {"const": 1}});
        for i in 1..60 {
            let before = json!({"$ref": format!("#/$defs/D{}", i - 1)});
            defs[format!("D{i}")] = json!({"anyOf": [before, before]});
        }
        let root = json!({"$defs": defs});
        let listed = |name: &str| {
            listed(&json!({"$ref": format!("#/$defs/{name}")}), root.as_object().unwrap())
                .map(|all| all.len())
        };
        assert_eq!([listed("A"), listed("D59")], [None, None]);
        assert_eq!(listed("D5"), Some(32));
    }

    /// Where a model could invent keys it would give some twice, which no value has.
    #[test]
    fn objects_within_are_closed_unless_schemas_hold_together() {
        let inner = r#"{"type":"object","properties":{"a":{"type":"boolean"}}}"#;
        let closed = r#""properties":{"a":{"type":"boolean"}},"additionalProperties":false"#;
        for (property, is_closed) in [
            (inner.to_owned(), true),
            (format!(r#"{{"type":"array","items":{inner}}}"#), true),
            (format!(r#"{{"anyOf":[{inner},{{"type":"integer"}}]}}"#), true),
            (inner.replace(r#""properties""#, r#""additionalProperties":true,"properties""#), false),
            (format!(r#"{{"type":"object","allOf":[{inner},{inner}]}}"#), false),
            (format!(r#"{{"type":"object","properties":{{"b":{{}}}},"anyOf":[{inner}]}}"#), false),
        ] {
            let (rules, _) = written(&format!(r#"{{"u":{property}}}"#), false).unwrap();
            assert_eq!(rules.contains(closed), is_closed, "{rules}");
        }
    }
}
