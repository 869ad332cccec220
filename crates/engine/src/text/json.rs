//! JSON that keeps numbers as they are written, and object keys in their order: what models write and requests
//! bring passes through here, and 98765432109876543210 must not come out as 9.876543210987655e19.
//!
//! Reading is as RFC 8259 wants it, but for two things that models do: raw control characters inside strings are
//! taken as themselves, and half a surrogate pair is U+FFFD. A key that an object has twice is refused.

use std::fmt::{self, Write};

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// What [`JsonError::what`] says where an object has a key twice; `at` is where the second one begins.
pub const KEY_TWICE: &str = "a key is given twice";

/// Values nest at most this deep.
const MAX_DEPTH: usize = 128;

/// The members of an object, in their order.
pub type JsonMap = IndexMap<String, Json>;

/// A JSON value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Json {
    /// `null`
    #[default]
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, in the digits it was written with.
    Number(String),
    /// A string.
    String(String),
    /// A list.
    Array(Vec<Json>),
    /// An object.
    Object(JsonMap),
}

/// Why a text is not JSON.
#[derive(Debug, PartialEq)]
pub struct JsonError {
    /// The first byte that does not fit.
    pub at: usize,
    /// What is wrong with it.
    pub what: &'static str,
    /// The text ends inside a string.
    pub in_string: bool,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

impl std::error::Error for JsonError {}

impl Json {
    /// Reads a text that is one value, with white space around it.
    ///
    /// # Errors
    /// Where the text stops being JSON.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let (value, rest) = Self::parse_prefix(text)?;
        match rest.trim_start_matches(WHITE) {
            "" => Ok(value),
            rest => {
                Err(JsonError { at: text.len() - rest.len(), what: "text after the value", in_string: false })
            }
        }
    }

    /// Reads the value that `text` begins with; the rest of the text is the second part.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_prefix(text: &str) -> Result<(Self, &str), JsonError> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        Ok((value, &text[reader.at..]))
    }

    /// The text, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The members, if it is an object.
    pub fn as_object(&self) -> Option<&JsonMap> {
        match self {
            Self::Object(map) => Some(map),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(list) => Some(list),
            _ => None,
        }
    }

    /// The member `key`, if it is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_object()?.get(key)
    }

    /// What `reference` points to, as a `$ref` within one document writes it: `#/a/0/b`.
    pub fn pointer(&self, reference: &str) -> Option<&Self> {
        let path = reference.strip_prefix('#')?;
        let mut steps = path.split('/').skip(1).filter(|step| !step.is_empty());
        steps.try_fold(self, |value, step| match value {
            Self::Object(map) => map.get(&step.replace("~1", "/").replace("~0", "~")),
            Self::Array(list) => list.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// About how many bytes the value takes.
    pub(crate) fn bytes(&self) -> usize {
        let own = 16;
        own + match self {
            Self::Number(text) | Self::String(text) => text.len(),
            Self::Array(list) => list.iter().map(Self::bytes).sum(),
            Self::Object(map) => map.iter().map(|(key, value)| key.len() + value.bytes()).sum(),
            Self::Null | Self::Bool(_) => 0,
        }
    }
}

/// White space between values.
pub(super) const WHITE: [char; 4] = [' ', '\t', '\n', '\r'];

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, what: &'static str) -> Result<T, JsonError> {
        let what = if self.at >= self.text.len() { "the text ends early" } else { what };
        Err(JsonError { at: self.at, what, in_string: false })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn white(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(WHITE).len();
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.text[self.at..].starts_with(word);
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        if depth > MAX_DEPTH {
            return self.fail("values nest too deep");
        }
        self.white();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.take("null") => Ok(Json::Null),
            _ if self.take("true") => Ok(Json::Bool(true)),
            _ if self.take("false") => Ok(Json::Bool(false)),
            _ => self.fail("expected a value"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut map = JsonMap::new();
        self.white();
        while !self.take("}") {
            if !map.is_empty() {
                if !self.take(",") {
                    return self.fail("expected , or }");
                }
                self.white();
            }
            if self.peek() != Some(b'"') {
                return self.fail("expected a key");
            }
            let key_at = self.at;
            let key = self.string()?;
            if map.contains_key(&key) {
                self.at = key_at;
                return self.fail(KEY_TWICE);
            }
            self.white();
            if !self.take(":") {
                return self.fail("expected :");
            }
            let value = self.value(depth + 1)?;
            map.insert(key, value);
            self.white();
        }
        Ok(Json::Object(map))
    }

    fn array(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut list = Vec::new();
        self.white();
        while !self.take("]") {
            if !list.is_empty() && !self.take(",") {
                return self.fail("expected , or ]");
            }
            list.push(self.value(depth + 1)?);
            self.white();
        }
        Ok(Json::Array(list))
    }

    fn digits(&mut self) -> usize {
        let from = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - from
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let from = self.at;
        self.take("-");
        let zero = self.peek() == Some(b'0');
        let digits = self.digits();
        if digits == 0 || (zero && digits > 1) {
            return self.fail("invalid number");
        }
        if self.take(".") && self.digits() == 0 {
            return self.fail("invalid number");
        }
        if self.take("e") || self.take("E") {
            let _ = self.take("+") || self.take("-");
            if self.digits() == 0 {
                return self.fail("invalid number");
            }
        }
        Ok(Json::Number(self.text[from..self.at].to_owned()))
    }

    /// Reads a string; the reader stands on its opening quote.
    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(stop) = rest.find(['"', '\\']) else {
                return Err(JsonError { at: self.text.len(), what: "the text ends early", in_string: true });
            };
            out.push_str(&rest[..stop]);
            self.at += stop + 1;
            if rest.as_bytes()[stop] == b'"' {
                return Ok(out);
            }
            let Some(escape) = self.peek() else {
                return Err(JsonError { at: self.at, what: "the text ends early", in_string: true });
            };
            self.at += 1;
            out.push(match escape {
                b'"' | b'\\' | b'/' => char::from(escape),
                b'n' => '\n',
                b't' => '\t',
                b'r' => '\r',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'u' => self.unicode()?,
                _ => {
                    self.at -= 1;
                    return self.fail("invalid escape");
                }
            });
        }
    }

    fn unicode(&mut self) -> Result<char, JsonError> {
        let first = self.hex()?;
        let back = self.at;
        if (0xD800..0xDC00).contains(&first) && self.take("\\u") {
            let second = self.hex()?;
            if (0xDC00..0xE000).contains(&second) {
                let code = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let Some(digits) = digits.filter(|d| d.iter().all(u8::is_ascii_hexdigit)) else {
            let in_string = self.text.len() < self.at + 4;
            return Err(JsonError { at: self.at, what: "invalid escape", in_string });
        };
        self.at += 4;
        Ok(digits.iter().fold(0, |code, d| code * 16 + char::from(*d).to_digit(16).unwrap_or(0)))
    }
}

/// Without white space, as the public APIs write a call's arguments.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(true) => f.write_str("true"),
            Self::Bool(false) => f.write_str("false"),
            Self::Number(text) => f.write_str(text),
            Self::String(text) => write_string(f, text),
            Self::Array(list) => {
                f.write_char('[')?;
                for (i, item) in list.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { "," } else { "" })?;
                }
                f.write_char(']')
            }
            Self::Object(map) => {
                f.write_char('{')?;
                for (i, (key, item)) in map.iter().enumerate() {
                    f.write_str(if i > 0 { "," } else { "" })?;
                    write_string(f, key)?;
                    write!(f, ":{item}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    // A string has nothing that could fail.
    f.write_str(&serde_json::to_string(text).unwrap_or_default())
}

/// `text` as it stands in a string, without the quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut quoted = serde_json::to_string(text).unwrap_or_default();
    quoted.pop();
    quoted.drain(..quoted.len().min(1));
    quoted
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(b),
            Value::Number(n) => Self::Number(n.to_string()),
            Value::String(s) => Self::String(s),
            Value::Array(list) => Self::Array(list.into_iter().map(Self::from).collect()),
            Value::Object(map) => Self::Object(map.into_iter().map(|(k, v)| (k, Self::from(v))).collect()),
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<bool> for Json {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl PartialEq<serde_json::Value> for Json {
    fn eq(&self, other: &serde_json::Value) -> bool {
        let other = Self::from(other.clone());
        *self == other
    }
}

/// As raw text, since serde's own numbers are rounded. Reads and writes JSON only.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.to_string()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_keep_their_digits() {
        let text =
            r#"{"a":98765432109876543210,"b":[1.0,1e400,-0.50,1E+5,0],"c":{"d":12345678901234567890.123}}"#;
        assert_eq!(Json::parse(text).unwrap().to_string(), text);
        let through_serde: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&through_serde).unwrap(), text);
        for wrong in ["01", "1.", ".5", "+1", "-", "1e", "0x1", "NaN", "1_0"] {
            assert!(Json::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn strings_as_models_write_them() {
        let read = |text: &str| Json::parse(text).map(|v| v.as_str().unwrap_or_default().to_owned());
        assert_eq!(read("\"a\nb\tc\u{1}\"").as_deref(), Ok("a\nb\tc\u{1}"));
        assert_eq!(
            read(r#""\u00e9\ud83d\ude00\ud83dx\/\"\\\b\f\n\r\t""#).as_deref(),
            Ok("é😀\u{fffd}x/\"\\\u{8}\u{c}\n\r\t")
        );
        assert!(Json::parse("\"open").unwrap_err().in_string);
        assert!(Json::parse("{\"a\": \"open\\").unwrap_err().in_string);
        assert!(!Json::parse("{\"a\": 1").unwrap_err().in_string);
        assert_eq!(Json::parse("\"\\x\"").unwrap_err().what, "invalid escape");
    }

    #[test]
    fn refusals() {
        for (text, what) in [
            ("", "ends early"),
            ("{\"a\": 1,}", "expected a key"),
            ("{\"a\" 1}", "expected :"),
            ("[1 2]", "expected , or ]"),
            ("{\"a\": 1} x", "text after"),
            ("{\"a\": 1, \"a\": 2}", "twice"),
            ("nul", "expected a value"),
        ] {
            assert!(Json::parse(text).unwrap_err().what.contains(what), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(Json::parse(&deep).unwrap_err().what, "values nest too deep");
    }

    /// Near misses: the signs of JSON in any order, and a number and an escape where they belong.
    const JSON_LIKE: &str =
        concat!(r#"[\[\]{}:,"a\\n0-9.eE+ \-]{0,24}"#, r#"|\{"a":[0-9.eE+-]{1,6},"b":\["\\u[0-9a-f]{4}"\]\}"#);

    proptest! {
        /// Whatever serde_json reads is read the same, and what is written is read again.
        #[test]
        fn agrees_with_serde_json(text in JSON_LIKE) {
            let (ours, theirs) = (Json::parse(&text), serde_json::from_str::<serde_json::Value>(&text));
            if let Ok(ours) = &ours {
                prop_assert_eq!(Json::parse(&ours.to_string()), Ok(ours.clone()));
            }
            let twice = ours.as_ref().is_err_and(|e| e.what.contains("twice"));
            // A number that no double holds, and half a surrogate pair, are errors there.
            prop_assert!(theirs.is_err() || ours.is_ok() || twice, "{:?} {:?}", ours, theirs);
        }
    }
}
