//! JSON as Python's `json.dumps` writes it, which is what chat templates were written against.
//!
//! Source: the Python documentation of `json.dumps`, and the `tojson` that Hugging Face gives its templates.

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, State};

use super::value::{Bounded, Digits, as_float, float};
use super::{MAX_DEPTH, fail};

/// The arguments of `json.dumps`.
#[derive(Default)]
struct Style {
    /// Escape everything outside ASCII.
    ensure_ascii: bool,
    /// Break lines and indent by this text.
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: Option<(String, String)>,
    /// Sort the keys of objects.
    sort_keys: bool,
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    positional: Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| positional.get(index).cloned()).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let indent = match argument(1, "indent")? {
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(v) => {
            let width = usize::try_from(v).map_err(|_| fail("tojson: indent is not a count"))?;
            super::ensure(state, width)?;
            Some(" ".repeat(width))
        }
        None => None,
    };
    let separators = match argument(2, "separators")? {
        Some(v) => {
            let pair: Vec<String> = v.try_iter()?.map(|s| s.to_string()).collect();
            let [item, key] =
                <[String; 2]>::try_from(pair).map_err(|_| fail("tojson: separators are not a pair"))?;
            Some((item, key))
        }
        None => None,
    };
    let flag = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let style = Style {
        ensure_ascii: flag(argument(0, "ensure_ascii")?),
        indent,
        separators,
        sort_keys: flag(argument(3, "sort_keys")?),
    };
    kwargs.assert_all_used()?;
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { out: Bounded::new(state), style: &style, item, key };
    writer.value(value, 0)?;
    Ok(Value::from(writer.out.text))
}

struct Writer<'a, 's, 'e> {
    out: Bounded<'a, 's, 'e>,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.visit()?;
        if depth > MAX_DEPTH {
            return Err(fail("tojson: values nest too deep"));
        }
        match value.kind() {
            ValueKind::None => self.out.push("null"),
            ValueKind::Bool => self.out.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push("[")?;
                let mut any = false;
                for item in value.try_iter()?.checked() {
                    self.between(any, depth + 1)?;
                    any = true;
                    self.value(&item?, depth + 1)?;
                }
                self.close(any, depth, "]")
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.style.sort_keys {
                    keys.sort();
                }
                self.out.push("{")?;
                for (i, key) in keys.iter().enumerate() {
                    self.between(i > 0, depth + 1)?;
                    self.key(key)?;
                    self.out.push(self.key)?;
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close(!keys.is_empty(), depth, "}")
            }
            _ => match value.downcast_object_ref::<Digits>() {
                Some(digits) => self.out.push(&digits.0),
                None => Err(fail(format!("tojson: {} is not JSON", value.kind()))),
            },
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None => self.out.push("\"null\""),
            ValueKind::Bool => self.out.push(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::Number => self.out.push(&format!("\"{}\"", number(key))),
            kind => Err(fail(format!("tojson: {kind} is no key"))),
        }
    }

    fn between(&mut self, follows: bool, depth: usize) -> Result<(), Error> {
        self.out.push(if follows { self.item } else { "" })?;
        self.line(depth)
    }

    fn close(&mut self, any: bool, depth: usize, bracket: &str) -> Result<(), Error> {
        if any {
            self.line(depth)?;
        }
        self.out.push(bracket)
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        self.out.push("\n")?;
        (0..depth).try_for_each(|_| self.out.push(indent))
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.out.push("\"")?;
        let mut letter = [0; 4];
        for c in text.chars() {
            match c {
                '"' => self.out.push("\\\"")?,
                '\\' => self.out.push("\\\\")?,
                '\n' => self.out.push("\\n")?,
                '\r' => self.out.push("\\r")?,
                '\t' => self.out.push("\\t")?,
                '\u{8}' => self.out.push("\\b")?,
                '\u{c}' => self.out.push("\\f")?,
                // The last plane's private characters stand in for ASCII ones: see `prompt`.
                c if c < ' ' || (self.style.ensure_ascii && ('\u{7f}'..'\u{100000}').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => self.out.push(c.encode_utf8(&mut letter))?,
            }
        }
        self.out.push("\"")
    }
}

fn number(value: &Value) -> String {
    match as_float(value) {
        Some(x) if x.is_nan() => "NaN".into(),
        Some(x) if x.is_infinite() => {
            if x > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        Some(x) => float(x),
        None => value.to_string(),
    }
}
