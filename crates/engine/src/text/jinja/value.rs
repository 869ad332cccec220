//! Values as Python shows them: `str`, `repr`, floats; and how deep and large they are.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::super::json::Json;
use super::{MAX_DEPTH, fail, room};

/// An integer that no machine type holds, in its digits. Arithmetic with it is an error.
#[derive(Debug)]
pub(crate) struct Digits(pub(crate) String);

impl Object for Digits {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `keys()`, `values()` and `items()` of a dict return.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    pub(super) items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// The lists and dicts that the request brought, by address, and how deep each nests. They live as long as the
/// rendering does, and need not be walked through again.
#[derive(Debug, Default)]
pub(crate) struct Given(HashMap<usize, usize>);

impl Object for Given {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}

impl Given {
    /// Under this name the environment has it. No template can write it.
    pub(crate) const NAME: &'static str = "op given";

    /// A template's value for a value of a request, numbers as Python's `json.loads` reads them.
    pub(crate) fn value(&mut self, json: &Json) -> Value {
        self.nested(json).0
    }

    fn nested(&mut self, json: &Json) -> (Value, usize) {
        let mut depth = 0;
        let mut inner = |own: &mut Self, json: &Json| {
            let (value, below) = own.nested(json);
            depth = depth.max(below + 1);
            value
        };
        let value = match json {
            Json::Array(list) => Value::from(list.iter().map(|item| inner(self, item)).collect::<Vec<_>>()),
            Json::Object(map) => {
                Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), inner(self, item))))
            }
            scalar => return (from_scalar(scalar), 0),
        };
        if let Some(address) = address(&value) {
            self.0.insert(address, depth);
        }
        (value, depth)
    }
}

/// Where the items of a list or a dict lie.
fn address(value: &Value) -> Option<usize> {
    let list = value.downcast_object_ref::<Vec<Value>>().map(|list| std::ptr::from_ref(list).addr());
    list.or_else(|| {
        value.downcast_object_ref::<IndexMap<Value, Value>>().map(|map| std::ptr::from_ref(map).addr())
    })
}

fn from_scalar(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(text) => number(text),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(_) | Json::Object(_) => Value::UNDEFINED,
    }
}

fn number(text: &str) -> Value {
    if text.contains(['.', 'e', 'E']) {
        return Value::from(text.parse::<f64>().unwrap_or(f64::NAN));
    }
    if let Ok(small) = text.parse::<i64>() {
        return Value::from(small);
    }
    match text.parse::<i128>() {
        Ok(large) => Value::from(large),
        Err(_) => Value::from_object(Digits(text.to_owned())),
    }
}

/// Python's `repr` of a float: with a point, and an exponent from 1e16 up and below 1e-4.
pub(super) fn float(x: f64) -> String {
    let magnitude = x.abs();
    if x.is_nan() {
        return "nan".into();
    } else if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    } else if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// The float in a value that is one.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    if is_float { f64::try_from(value.clone()).ok() } else { None }
}

/// Text that grows up to what the template can pay for.
pub(super) struct Bounded<'a, 's, 'e> {
    pub(super) text: String,
    room: usize,
    state: &'a State<'s, 'e>,
}

impl<'a, 's, 'e> Bounded<'a, 's, 'e> {
    pub(super) fn new(state: &'a State<'s, 'e>) -> Self {
        Self { text: String::new(), room: room(state), state }
    }

    /// Pays for looking at one more value.
    pub(super) fn visit(&self) -> Result<(), Error> {
        visit(self.state)
    }

    pub(super) fn push(&mut self, piece: &str) -> Result<(), Error> {
        if self.text.len() + piece.len() >= self.room {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        self.text.push_str(piece);
        Ok(())
    }
}

/// Python's `str(value)`.
pub(crate) fn text_of(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        super::ensure(state, text.len())?;
        return Ok(text.to_owned());
    }
    let mut out = Bounded::new(state);
    write(&mut out, value, false, 0)?;
    Ok(out.text)
}

/// Python's `repr(value)`.
pub(super) fn repr_of(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut out = Bounded::new(state);
    write(&mut out, value, true, 0)?;
    Ok(out.text)
}

fn write(out: &mut Bounded<'_, '_, '_>, value: &Value, repr: bool, depth: usize) -> Result<(), Error> {
    out.visit()?;
    if depth > MAX_DEPTH {
        return Err(fail("values nest too deep"));
    }
    match value.kind() {
        ValueKind::Undefined => out.push(if repr { "Undefined" } else { "" }),
        ValueKind::Number => match as_float(value) {
            Some(x) => out.push(&float(x)),
            None => out.push(&value.to_string()),
        },
        ValueKind::String if repr => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::String => out.push(value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push("{")?;
            for (i, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                out.push(if i > 0 { ", " } else { "" })?;
                write(out, &key, true, depth + 1)?;
                out.push(": ")?;
                write(out, &value.get_item(&key)?, true, depth + 1)?;
            }
            out.push("}")
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let view = value.downcast_object_ref::<View>();
            out.push(view.map_or("", |view| view.name))?;
            let (open, close) = match (view, value.is_tuple()) {
                (Some(_), _) => ("([", "])"),
                (None, true) if value.len() == Some(1) => ("(", ",)"),
                (None, true) => ("(", ")"),
                (None, false) => ("[", "]"),
            };
            out.push(open)?;
            for (i, item) in value.try_iter()?.checked().enumerate() {
                out.push(if i > 0 { ", " } else { "" })?;
                write(out, &item?, true, depth + 1)?;
            }
            out.push(close)
        }
        _ => out.push(&value.to_string()),
    }
}

fn quote(out: &mut Bounded<'_, '_, '_>, text: &str) -> Result<(), Error> {
    let mark = if text.contains('\'') && !text.contains('"') { "\"" } else { "'" };
    out.push(mark)?;
    let mut letter = [0; 4];
    for c in text.chars() {
        match c {
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\\' => out.push("\\\\")?,
            '\'' if mark == "'" => out.push("\\'")?,
            c if is_printable(c) => out.push(c.encode_utf8(&mut letter))?,
            c if u32::from(c) < 0x100 => out.push(&format!("\\x{:02x}", u32::from(c)))?,
            c if u32::from(c) < 0x1_0000 => out.push(&format!("\\u{:04x}", u32::from(c)))?,
            c => out.push(&format!("\\U{:08x}", u32::from(c)))?,
        }
    }
    out.push(mark)
}

/// Whether Python shows a character as itself, as far as it can be told without tables. Private characters are shown:
/// they stand in for others (see [`prompt`](super::super::prompt)).
fn is_printable(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    c == ' ' || !(c.is_control() || c.is_whitespace() || hidden)
}

/// White space as Python's `str` methods see it.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Pays for walking through `value`, and refuses one that nests too deep.
pub(super) fn check(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return Ok(());
    }
    let given = state.lookup(Given::NAME);
    let given = given.as_ref().and_then(|given| given.downcast_object_ref::<Given>());
    Walk { state, given }.walk(value, 0)
}

/// Whether a value holds others.
pub(super) fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

struct Walk<'a, 's, 'e> {
    state: &'a State<'s, 'e>,
    given: Option<&'a Given>,
}

impl Walk<'_, '_, '_> {
    fn walk(&self, value: &Value, depth: usize) -> Result<(), Error> {
        visit(self.state)?;
        if !is_container(value) {
            return Ok(());
        }
        let known = address(value).and_then(|address| self.given?.0.get(&address));
        if depth + known.unwrap_or(&0) > MAX_DEPTH {
            return Err(fail("values nest too deep"));
        }
        if known.is_some() {
            return Ok(());
        }
        for item in value.try_iter()?.checked() {
            let item = item?;
            self.walk(&item, depth + 1)?;
            if value.kind() == ValueKind::Map {
                self.walk(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// Pays for looking at one more value.
pub(super) fn visit(state: &State<'_, '_>) -> Result<(), Error> {
    state.consume_fuel(1)
}
