//! Filters, tests and functions as Jinja2 and Hugging Face have them, where `minijinja`'s differ.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::methods::{bound, count, ends_line, lines, pad, text};
use super::ops::{ORDERS, add, compare, contains, equal, is_dict, percent, tuple};
use super::value::{Bounded, Digits, as_float, text_of};
use super::{ensure, ensure_many, fail, json};

/// What `minijinja` has and Jinja2 does not: a template that uses it is none of Jinja2's.
const OTHER_FILTERS: [&str; 6] = ["split", "lines", "bool", "chain", "zip", "pprint"];
const OTHER_TESTS: [&str; 4] = ["startingwith", "endingwith", "safe", "int"];

pub(super) fn set_up(env: &mut Environment<'_>) {
    OTHER_FILTERS.iter().for_each(|name| env.remove_filter(name));
    OTHER_TESTS.iter().for_each(|name| env.remove_test(name));
    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |state: &State<'_, '_>, value: Value| text_of(state, &value));
    env.add_filter("int", int);
    env.add_filter("float", float);
    for name in ["default", "d"] {
        env.add_filter(name, default);
    }
    for name in ["e", "escape", "forceescape"] {
        env.add_filter(name, escape);
    }
    env.add_filter("center", |state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs| {
        let [width] = bound(&args, &named, ["width"])?;
        let width = usize::try_from(count(width, 80)?).unwrap_or(0);
        pad(state, &text_of(state, &value)?, width, ' ', "center")
    });
    env.add_filter("indent", indent);
    env.add_filter("truncate", truncate);
    env.add_filter("wordcount", |state: &State<'_, '_>, value: Value| {
        let text = text_of(state, &value)?;
        let words = text.split(|c: char| c != '_' && !c.is_alphanumeric()).filter(|word| !word.is_empty());
        Ok::<_, Error>(words.count())
    });
    env.add_filter("urlencode", urlencode);
    env.add_filter("join", join);
    env.add_filter("dictsort", dictsort);
    env.add_filter("sum", sum);
    // An attribute of Python's, which the keys of a dict are not.
    env.add_filter("attr", |value: Value, name: String| match is_dict(&value) {
        true => Ok(Value::UNDEFINED),
        false => value.get_attr(&name),
    });
    env.add_filter("format", |state: &State<'_, '_>, pattern: Value, args: Rest<Value>, named: Kwargs| {
        let named: Vec<_> =
            named.args().map(|key| Ok((key, named.get::<Value>(key)?))).collect::<Result<_, Error>>()?;
        let args = if named.is_empty() { args.0 } else { vec![Value::from_pairs(named)] };
        percent(state, &text_of(state, &pattern)?, &args)
    });
    env.add_global(super::source::ONE, 1);
    env.add_function("dict", dict);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(fail(message).with_source(Refusal))
    });
    set_up_tests(env);
}

fn set_up_tests(env: &mut Environment<'_>) {
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
            || (value.kind() == ValueKind::Iterable
                && value.downcast_object_ref::<super::value::View>().is_none())
    });
    env.add_test("iterable", |value: &Value| match value.kind() {
        ValueKind::None => false, // as in Python
        ValueKind::Undefined | ValueKind::String => true,
        _ => value.try_iter().is_ok(),
    });
    env.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<Digits>().is_none()
    });
    for name in ["number", "integer"] {
        env.add_test(name, move |value: &Value| {
            value.downcast_object_ref::<Digits>().is_some()
                || (name == "integer" && value.is_integer())
                || (name == "number" && matches!(value.kind(), ValueKind::Number | ValueKind::Bool))
        });
    }
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, |state: &State<'_, '_>, a: Value, b: Value| equal(state, &a, &b));
    }
    for name in ["ne", "!="] {
        env.add_test(name, |state: &State<'_, '_>, a: Value, b: Value| {
            Ok::<_, Error>(!equal(state, &a, &b)?)
        });
    }
    env.add_test("in", |state: &State<'_, '_>, a: Value, b: Value| contains(state, &b, &a));
    let names = [["lt", "lessthan", "<"], ["le", "le", "<="], ["gt", "greaterthan", ">"], ["ge", "ge", ">="]];
    for (names, (_, wanted)) in names.into_iter().zip(ORDERS) {
        for name in names {
            env.add_test(name, move |state: &State<'_, '_>, a: Value, b: Value| {
                compare(state, &a, &b).map(|order| wanted.contains(&order))
            });
        }
    }
}

/// Marks the errors that a template raised on purpose.
#[derive(Debug)]
pub(crate) struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raise_exception")
    }
}

impl std::error::Error for Refusal {}

/// A whole number, as small as it can be held.
fn whole(n: i128) -> Value {
    i64::try_from(n).map_or(Value::from(n), Value::from)
}

fn int(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let [default, base] = bound(&args, &named, ["default", "base"])?;
    let default = default.unwrap_or(Value::from(0));
    let base = u32::try_from(count(base, 10)?).unwrap_or(0);
    if !(2..=36).contains(&base) {
        return Err(fail("int: the base is not between 2 and 36"));
    }
    let truncated = |x: f64| if x.is_finite() { Some(whole(x.trunc() as i128)) } else { None };
    let found = match value.kind() {
        ValueKind::Bool => Some(whole(i128::from(value.is_true()))),
        ValueKind::Number => match as_float(&value) {
            Some(x) => truncated(x),
            None => Some(value),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default().trim();
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let prefixes: &[&str] = match base {
                2 => &["0b", "0B"],
                8 => &["0o", "0O"],
                16 => &["0x", "0X"],
                _ => &[],
            };
            let digits = prefixes.iter().find_map(|p| digits.strip_prefix(p)).unwrap_or(digits);
            let parsed = i128::from_str_radix(digits, base).ok().filter(|_| !digits.starts_with(['+', '-']));
            let signed = parsed.map(|n| whole(if sign == "-" { -n } else { n }));
            signed.or_else(|| text.parse().ok().and_then(truncated))
        }
        _ => None,
    };
    Ok(found.unwrap_or(default))
}

fn float(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let [default] = bound(&args, &named, ["default"])?;
    let found = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value).ok(),
        ValueKind::String => value.as_str().and_then(|text| text.trim().parse().ok()),
        _ => None,
    };
    Ok(found.map(Value::from).or(default).unwrap_or(Value::from(0.0)))
}

fn default(value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let [default, boolean] = bound(&args, &named, ["default_value", "boolean"])?;
    let replace = value.is_undefined() || (boolean.is_some_and(|b| b.is_true()) && !value.is_true());
    Ok(if replace { default.unwrap_or(Value::from("")) } else { value })
}

fn escape(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value);
    }
    let mut out = Bounded::new(state);
    let mut letter = [0; 4];
    for c in text_of(state, &value)?.chars() {
        out.push(match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '\'' => "&#39;",
            '"' => "&#34;",
            c => c.encode_utf8(&mut letter),
        })?;
    }
    Ok(Value::from_safe_string(out.text))
}

/// `indent(width=4, first=False, blank=False)`; the width is a count or a text.
fn indent(state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let [width, first, blank] = bound(&args, &named, ["width", "first", "blank"])?;
    let margin = match width.as_ref().and_then(Value::as_str) {
        Some(margin) => margin.to_owned(),
        None => {
            let width = usize::try_from(count(width, 4)?).unwrap_or(0);
            ensure(state, width)?;
            " ".repeat(width)
        }
    };
    let is = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is(first), is(blank));
    let text = text_of(state, &value)? + "\n";
    ensure_many(state, text.matches(ends_line).count(), 16)?;
    let mut out = Bounded::new(state);
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        out.push(if i > 0 { "\n" } else { "" })?;
        let margined = if i == 0 { first } else { blank || !line.is_empty() };
        out.push(if margined { &margin } else { "" })?;
        out.push(line)?;
    }
    Ok(out.text)
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`
fn truncate(state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let [length, kill_words, end, leeway] = bound(&args, &named, ["length", "killwords", "end", "leeway"])?;
    let size = |value, default| count(value, default).map(|n| usize::try_from(n).unwrap_or(0));
    let (length, leeway, end) = (size(length, 255)?, size(leeway, 5)?, text(end, "...")?);
    let value = text_of(state, &value)?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(fail("truncate: the length is below that of the end"));
    };
    if value.chars().count() <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let cut = value.char_indices().nth(kept).map_or(value.len(), |(at, _)| at);
    let cut = &value[..cut];
    let words = cut.rsplit_once(' ').map_or(cut, |(words, _)| words);
    let kill_words = kill_words.is_some_and(|kill| kill.is_true());
    Ok(format!("{}{end}", if kill_words { cut } else { words }))
}

fn urlencode(state: &State<'_, '_>, value: Value) -> Result<String, Error> {
    if matches!(value.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) {
        return Err(fail("urlencode: lists and dicts are not supported"));
    }
    let text = text_of(state, &value)?;
    ensure_many(state, text.len(), 3)?;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

/// `join(d='', attribute=None)`
fn join(state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let [separator, attribute] = bound(&args, &named, ["d", "attribute"])?;
    let separator = separator.map_or(Ok(String::new()), |s| text_of(state, &s))?;
    let mut out = Bounded::new(state);
    if value.is_undefined() {
        return Ok(out.text);
    }
    for (i, item) in value.try_iter()?.checked().enumerate() {
        state.consume_fuel(1)?;
        let mut item = item?;
        if let Some(attribute) = &attribute {
            item = attribute_of(state, item, attribute)?;
        }
        out.push(if i > 0 { &separator } else { "" })?;
        out.push(&text_of(state, &item)?)?;
    }
    Ok(out.text)
}

/// The part of `item` that a path such as `function.name` or `tags.0` leads to.
fn attribute_of(state: &State<'_, '_>, mut item: Value, path: &Value) -> Result<Value, Error> {
    for key in text_of(state, path)?.split('.') {
        let index = key.parse::<usize>().map_or_else(|_| Value::from(key), Value::from);
        item = item.get_item(&index)?;
    }
    Ok(item)
}

/// `sum(attribute=None, start=0)`
fn sum(state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let [attribute, start] = bound(&args, &named, ["attribute", "start"])?;
    let mut total = start.unwrap_or(Value::from(0));
    if value.is_undefined() {
        return Ok(total);
    }
    for item in value.try_iter()?.checked() {
        state.consume_fuel(1)?;
        let mut item = item?;
        if let Some(attribute) = attribute.as_ref().filter(|a| !a.is_none()) {
            item = attribute_of(state, item, attribute)?;
        }
        total = add(state, &total, &item)?;
    }
    Ok(total)
}

/// `dictsort(case_sensitive=False, by='key', reverse=False)`
fn dictsort(state: &State<'_, '_>, value: Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let [case_sensitive, by, reverse] = bound(&args, &named, ["case_sensitive", "by", "reverse"])?;
    let case_sensitive = case_sensitive.is_some_and(|flag| flag.is_true());
    let by = match text(by, "key")?.as_str() {
        "key" => 0,
        "value" => 1,
        _ => return Err(fail("dictsort: by is neither key nor value")),
    };
    if value.kind() != ValueKind::Map {
        return Err(fail("dictsort: not a dict"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        let item = value.get_item(&key)?;
        let sorted_by = if by == 0 { key.clone() } else { item.clone() };
        let sorted_by = match sorted_by.as_str() {
            Some(text) if !case_sensitive => Value::from(text.to_lowercase()),
            _ => sorted_by,
        };
        pairs.push((sorted_by, tuple([key, item])));
    }
    state.consume_fuel(pairs.len() as u64)?;
    let mut failed = None;
    pairs.sort_by(|(a, _), (b, _)| {
        compare(state, a, b).unwrap_or_else(|e| {
            failed.get_or_insert(e);
            std::cmp::Ordering::Equal
        })
    });
    if reverse.is_some_and(|flag| flag.is_true()) {
        pairs.reverse();
    }
    failed.map_or_else(|| Ok(pairs.into_iter().map(|(_, pair)| pair).collect()), Err)
}

/// `dict(pairs or a dict, key=value, …)`
fn dict(args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut out = indexmap::IndexMap::new();
    for (i, arg) in args.iter().enumerate() {
        if arg.kind() == ValueKind::Map {
            for key in arg.try_iter()? {
                let value = arg.get_item(&key)?;
                out.insert(key, value);
            }
            continue;
        }
        for pair in arg.try_iter()? {
            let mut items = pair.try_iter()?;
            let (Some(key), Some(value), None, 0) = (items.next(), items.next(), items.next(), i) else {
                return Err(fail("dict: expected pairs"));
            };
            if matches!(key.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
                return Err(fail("dict: a key is a list or a dict"));
            }
            out.insert(key, value);
        }
    }
    for key in named.args() {
        out.insert(Value::from(key), named.get(key)?);
    }
    Ok(Value::from_pairs(out))
}
