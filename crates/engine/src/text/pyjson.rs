//! JSON as Python's `json.dumps` writes it, which is what chat templates were written against.
//!
//! Source: the Python documentation of `json.dumps`, and the `tojson` that Hugging Face gives its templates.

use std::fmt::Write;

use serde_json::{Number, Value};

/// The arguments of `json.dumps`.
pub(crate) struct Style {
    /// Escape everything outside ASCII.
    pub(crate) ensure_ascii: bool,
    /// Break lines and indent by this text.
    pub(crate) indent: Option<String>,
    /// Between items, and between key and value.
    pub(crate) separators: Option<(String, String)>,
    /// Sort the keys of objects.
    pub(crate) sort_keys: bool,
}

/// Writes `value` in the given style.
pub(crate) fn dumps(value: &Value, style: &Style) -> String {
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { out: String::new(), style, item, key };
    writer.value(value, 0);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => self.out.push_str(&number(n)),
            Value::String(s) => self.string(s),
            Value::Array(list) if list.is_empty() => self.out.push_str("[]"),
            Value::Object(map) if map.is_empty() => self.out.push_str("{}"),
            Value::Array(list) => {
                self.out.push('[');
                for (i, item) in list.iter().enumerate() {
                    self.between(i, depth + 1);
                    self.value(item, depth + 1);
                }
                self.line(depth);
                self.out.push(']');
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.style.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(b.0));
                }
                self.out.push('{');
                for (i, (key, item)) in entries.into_iter().enumerate() {
                    self.between(i, depth + 1);
                    self.string(key);
                    self.out.push_str(self.key);
                    self.value(item, depth + 1);
                }
                self.line(depth);
                self.out.push('}');
            }
        }
    }

    fn between(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(self.item);
        }
        self.line(depth);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !(' '..='\u{7e}').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a String cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `repr` of a number: floats keep a point, and have an exponent from 1e16 up and below 1e-4.
fn number(n: &Number) -> String {
    let Some(x) = n.as_f64().filter(|_| n.is_f64()) else { return n.to_string() };
    let magnitude = x.abs();
    if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn matches_json_dumps() {
        let plain = Style { ensure_ascii: false, indent: None, separators: None, sort_keys: false };
        let v = json!({"b": [1, 2.0, 1e16, 1.5e-7, 1e22, -0.0, 123456789.125], "a": "<é\u{1}\"\u{7f}😀>", "c": {}});
        assert_eq!(
            dumps(&v, &plain),
            "{\"b\": [1, 2.0, 1e+16, 1.5e-07, 1e+22, -0.0, 123456789.125], \"a\": \"<é\\u0001\\\"\u{7f}😀>\", \"c\": {}}"
        );
        let ascii =
            Style { ensure_ascii: true, indent: Some("  ".into()), separators: None, sort_keys: true };
        assert_eq!(
            dumps(&json!({"b": [true, null], "a": "é😀\u{7f}"}), &ascii),
            "{\n  \"a\": \"\\u00e9\\ud83d\\ude00\\u007f\",\n  \"b\": [\n    true,\n    null\n  ]\n}"
        );
    }
}
