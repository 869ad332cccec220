//! A JSON schema made ready for the grammar: what cannot be kept is refused, or left out and told.

use std::collections::{HashMap, HashSet};

use files::{Error, Result};
use llguidance::derivre::{RegexAst, RegexBuilder};
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use crate::text::json::Json;

/// Schemas nest at most this deep, with those that they refer to: the compiler's stack grows with it.
const MAX_DEPTH: usize = 100;
/// Schemas within one, at most, and properties of one object, which are compared with each other.
const MOST_SCHEMAS: usize = 5_000;
const MOST_PROPERTIES: usize = 1_000;
/// Patterns that one `allOf` makes one string hold, whose states multiply: 200 of them take gigabytes and minutes.
const MOST_PATTERNS: usize = 8;
/// Digits of `multipleOf` that hold together: the compiler multiplies them, in 32 bits.
const MOST_DIGITS: usize = 9;
/// Alternatives of one `oneOf`, which are compared with each other.
const MOST_ALTERNATIVES: usize = 300;
/// Bounds of lengths and counts above this are as good as none, and cost as much as they count.
const MOST_COUNTED: u64 = 10_000;

/// White space where JSON allows any: without a limit, a model that does not know how to go on writes nothing else.
const WHITE_SPACE: &str = r"\x20{1,20}|\x0A\x20{0,20}";

/// Keywords that forbid values and that grammars do not keep.
const UNKEPT: [&str; 21] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
];

/// Keywords that grammars keep; all others say nothing about values.
const KEPT: [&str; 29] = [
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "const",
    "enum",
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "$defs",
    "definitions",
];

/// Formats of strings that grammars keep.
const FORMATS: [&str; 11] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"];

/// What is to become of keywords that cannot be kept.
pub(super) enum Unkept<'a> {
    /// They are refused.
    Refuse,
    /// They are left out and told here, by their place.
    LeaveOut(&'a mut Vec<String>),
}

/// The schema as the grammar takes it. `at` names it in errors.
///
/// # Errors
/// `InvalidRequest` for what is no schema, and for keywords that cannot be kept where these are refused.
pub(super) fn prepared(schema: &Json, at: &str, unkept: Unkept<'_>) -> Result<Value> {
    let text = schema.to_string();
    let mut value = serde_json::from_str(&text)
        .map_err(|e| Error::invalid(format!("{at}: not a JSON schema: {e}")).with_source(e))?;
    if value == Value::Bool(false) {
        return Err(Error::invalid(format!("{at}: nothing fits the schema \"false\"")));
    }
    Walk { root: schema, unkept }.schema(&mut value, at, 0)?;
    let mut size = Size { root: &value, at, seen: HashSet::new(), count: 0 };
    size.schema(&value, 0)?;
    for (own, most, what) in [
        (has_pattern as fn(&Value) -> usize, MOST_PATTERNS, "\"pattern\" and \"format\""),
        (digits_of_multiple, MOST_DIGITS, "digits of \"multipleOf\""),
    ] {
        if Together::most(&value, own) > most {
            let message = format!("{at}: the schema is too large: more than {most} {what} in one \"allOf\"");
            return Err(Error::invalid(message));
        }
    }
    let mut budget = MOST_SCHEMAS;
    let referred = size.seen.iter().filter_map(|reference| target(&value, reference));
    let mut all = std::iter::once(&value).chain(referred);
    if all.any(|schema| !ends(&value, schema, &mut Vec::new(), &mut budget)) {
        return Err(Error::invalid(format!("{at}: nothing fits, since a reference leads back to itself")));
    }
    Ok(value)
}

/// The schemas within a schema.
fn within(schema: &Value) -> impl Iterator<Item = &Value> {
    let entries = schema.as_object().into_iter().flatten();
    entries.flat_map(|(key, inner)| -> Vec<&Value> {
        match (key.as_str(), inner) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(inner)) => {
                inner.values().collect()
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(inner)) => {
                inner.iter().collect()
            }
            ("items" | "additionalItems" | "additionalProperties", inner) => vec![inner],
            _ => Vec::new(),
        }
    })
}

/// What a reference within `root` refers to.
fn target<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?.trim_end_matches('/'))
}

/// Whether a value of the schema can have an end, or `budget` schemas did not show that it cannot.
fn ends<'a>(root: &'a Value, schema: &'a Value, within: &mut Vec<&'a str>, budget: &mut usize) -> bool {
    if *budget == 0 {
        return true;
    }
    *budget -= 1;
    let Some(map) = schema.as_object() else { return true };
    let list = |key: &str| map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        if within.contains(&reference) {
            return false;
        }
        within.push(reference);
        let ends = target(root, reference).is_none_or(|target| ends(root, target, within, budget));
        within.pop();
        if !ends {
            return false;
        }
    }
    let properties = map.get("properties");
    let needed = list("required").iter().filter_map(|key| properties?.get(key.as_str()?));
    let items = map.get("items").filter(|_| map.get("minItems").and_then(Value::as_u64) > Some(0));
    if !needed.chain(items).chain(list("allOf")).all(|schema| ends(root, schema, within, budget)) {
        return false;
    }
    ["anyOf", "oneOf"].iter().all(|key| {
        let options = list(key);
        options.is_empty() || options.iter().any(|schema| ends(root, schema, within, budget))
    })
}

/// How large a schema is when it is compiled, which follows each reference once.
struct Size<'a> {
    root: &'a Value,
    at: &'a str,
    seen: HashSet<&'a str>,
    count: usize,
}

impl<'a> Size<'a> {
    fn schema(&mut self, schema: &'a Value, depth: usize) -> Result<()> {
        self.count += 1;
        let alternatives = schema.get("oneOf").and_then(Value::as_array).map_or(0, Vec::len);
        let properties = schema.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        let what = match () {
            () if depth > MAX_DEPTH => format!("it nests deeper than {MAX_DEPTH}"),
            () if self.count > MOST_SCHEMAS => format!("more than {MOST_SCHEMAS} schemas"),
            () if alternatives > MOST_ALTERNATIVES => format!("\"oneOf\" of more than {MOST_ALTERNATIVES}"),
            () if properties > MOST_PROPERTIES => format!("more than {MOST_PROPERTIES} \"properties\""),
            () => {
                within(schema).try_for_each(|inner| self.schema(inner, depth + 1))?;
                let reference = schema.get("$ref").and_then(Value::as_str);
                let Some(reference) = reference.filter(|reference| self.seen.insert(reference)) else {
                    return Ok(());
                };
                return target(self.root, reference).map_or(Ok(()), |target| self.schema(target, depth + 1));
            }
        };
        Err(Error::invalid(format!("{}: the schema is too large: {what}", self.at)))
    }
}

/// What of one kind holds together, at most, for any one value of a schema.
struct Together<'a> {
    root: &'a Value,
    own: fn(&Value) -> usize,
    /// What is known of references; those that are being looked at count nothing.
    known: HashMap<&'a str, usize>,
}

impl<'a> Together<'a> {
    fn most(root: &'a Value, own: fn(&Value) -> usize) -> usize {
        Together { root, own, known: HashMap::new() }.of(root, 0)
    }

    fn of(&mut self, schema: &'a Value, depth: usize) -> usize {
        if depth > 2 * MAX_DEPTH {
            return 0;
        }
        let mut here = (self.own)(schema);
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            here += match (self.known.get(reference), target(self.root, reference)) {
                (Some(known), _) => *known,
                (None, Some(target)) => {
                    self.known.insert(reference, 0);
                    let found = self.of(target, depth + 1);
                    self.known.insert(reference, found);
                    found
                }
                (None, None) => 0,
            };
        }
        let all_of = schema.get("allOf").and_then(Value::as_array).into_iter().flatten();
        let (mut others, mut seen) = (0, HashSet::new());
        for inner in all_of {
            here = here.saturating_add(self.of(inner, depth + 1));
            seen.insert(std::ptr::from_ref(inner));
        }
        for inner in within(schema).filter(|inner| !seen.contains(&std::ptr::from_ref(*inner))) {
            others = others.max(self.of(inner, depth + 1));
        }
        here.max(others)
    }
}

fn has_pattern(schema: &Value) -> usize {
    usize::from(["pattern", "format"].iter().any(|word| schema.get(word).is_some()))
}

fn digits_of_multiple(schema: &Value) -> usize {
    let number = schema.get("multipleOf").and_then(Value::as_f64);
    number.map_or(0, |number| number.to_string().bytes().filter(u8::is_ascii_digit).count())
}

/// The schema with the rules for white space; `lenient` takes any of `oneOf`.
pub(super) fn with_options(schema: Value, lenient: bool) -> Value {
    let options = json!({"whitespace_pattern": WHITE_SPACE, "coerce_one_of": lenient});
    match schema {
        Value::Object(mut map) => {
            map.insert("x-guidance".into(), options);
            Value::Object(map)
        }
        _ => json!({"x-guidance": options}),
    }
}

/// Whether the compiler understands a regular expression.
fn is_pattern(pattern: &str) -> bool {
    let ast = RegexAst::SearchRegex(regex_to_lark(pattern, "dw"));
    RegexBuilder::new().mk(&ast).is_ok()
}

struct Walk<'a, 'b> {
    root: &'a Json,
    unkept: Unkept<'b>,
}

impl Walk<'_, '_> {
    fn schema(&mut self, value: &mut Value, at: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!("{at}: the schema nests deeper than {MAX_DEPTH}")));
        }
        let map = match value {
            Value::Object(map) => map,
            Value::Bool(_) => return Ok(()),
            _ => return Err(Error::invalid(format!("{at}: a schema must be an object, true or false"))),
        };
        self.keywords(map, at)?;
        for (key, inner) in map.iter_mut() {
            let at = format!("{at}/{key}");
            match (key.as_str(), inner) {
                ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(inner)) => {
                    for (name, inner) in inner {
                        self.schema(inner, &format!("{at}/{name}"), depth + 1)?;
                    }
                }
                ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(inner)) => {
                    for (i, inner) in inner.iter_mut().enumerate() {
                        self.schema(inner, &format!("{at}/{i}"), depth + 1)?;
                    }
                }
                ("items" | "additionalItems" | "additionalProperties", inner) => {
                    self.schema(inner, &at, depth + 1)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Looks at the keywords of one schema.
    fn keywords(&mut self, map: &mut Map<String, Value>, at: &str) -> Result<()> {
        map.retain(|key, _| KEPT.contains(&key.as_str()) || UNKEPT.contains(&key.as_str()));
        // It forbids nothing then.
        if map.get("uniqueItems") == Some(&Value::Bool(false)) {
            map.shift_remove("uniqueItems");
        }
        let keys: Vec<String> = map.keys().filter(|key| self.is_unkept(key, &map[*key])).cloned().collect();
        for key in keys {
            match &mut self.unkept {
                Unkept::Refuse => {
                    return Err(Error::invalid(format!("{at}: the keyword {key:?} cannot be kept")));
                }
                Unkept::LeaveOut(list) => list.push(format!("{at}/{key}")),
            }
            map.shift_remove(&key);
        }
        for (least, most) in
            [("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")]
        {
            let count = |key| map.get(key).and_then(Value::as_u64);
            if let (Some(a), Some(b)) = (count(least), count(most))
                && a > b
            {
                return Err(Error::invalid(format!("{at}: nothing fits, {least:?} is above {most:?}")));
            }
        }
        Ok(())
    }

    fn is_unkept(&self, key: &str, value: &Value) -> bool {
        match key {
            "format" => value.as_str().is_none_or(|format| !FORMATS.contains(&format)),
            "$ref" => value.as_str().is_none_or(|reference| {
                reference.contains(['~', '%']) || self.root.pointer(reference).is_none()
            }),
            "pattern" => value.as_str().is_none_or(|pattern| !is_pattern(pattern)),
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                value.as_u64().is_none_or(|count| count > MOST_COUNTED)
            }
            _ => UNKEPT.contains(&key),
        }
    }
}
