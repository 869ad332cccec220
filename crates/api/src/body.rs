//! A request's body: JSON from a stranger, read value by value, with each value's path for the error that names it.

use std::ops::RangeInclusive;

use engine::text::{Json, JsonMap, KEY_TWICE};
use serde_json::Value;

use crate::ApiError;

/// Lists and objects nest at most this deep.
pub const DEPTH_MAX: usize = 128;

/// A body has at most this many values: a list of small numbers takes forty times its text's bytes once it is read.
pub const VALUES_MAX: usize = 1 << 20;

/// Reads a body, which must be an object.
///
/// # Errors
/// `Invalid`: not UTF-8, not JSON, too deep, a key twice, no object. Where a field is at fault it is `param`.
pub fn parse(body: &[u8]) -> Result<Json, ApiError> {
    let text = std::str::from_utf8(body).map_err(|e| {
        ApiError::invalid(None, format!("The body is not UTF-8: byte {} does not fit.", e.valid_up_to()))
    })?;
    Scan::new(text).run()?;
    let json = Json::parse(text).map_err(|e| match twice(text, e.at) {
        Some(key) if e.what == KEY_TWICE => {
            ApiError::invalid(key.clone(), format!("`{key}` is given twice, at byte {}.", e.at))
        }
        _ => ApiError::invalid(None, format!("The body is not JSON: {} at byte {}.", e.what, e.at)),
    })?;
    match json {
        Json::Object(_) => Ok(json),
        other => {
            Err(ApiError::invalid(None, format!("The body must be a JSON object, not {}.", kind(&other))))
        }
    }
}

/// The key that stands at `at`.
fn twice(text: &str, at: usize) -> Option<String> {
    let key = text.get(at..string_end(text.as_bytes(), at))?;
    Json::parse(key).ok()?.as_str().map(shown)
}

/// Counts depth and values before anything is built of them.
struct Scan<'a> {
    text: &'a str,
    depth: usize,
    values: usize,
    /// The last string of the outermost object, as it is written.
    string: &'a str,
    /// The last key of the outermost object.
    key: &'a str,
}

impl<'a> Scan<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, depth: 0, values: 0, string: "", key: "" }
    }

    fn run(mut self) -> Result<(), ApiError> {
        let bytes = self.text.as_bytes();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    let end = string_end(bytes, at);
                    if self.depth == 1 {
                        self.string = &self.text[at..end];
                    }
                    at = end;
                    continue;
                }
                b':' if self.depth == 1 => self.key = self.string,
                b'{' | b'[' => {
                    self.depth += 1;
                    self.values += 1;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                b',' => self.values += 1,
                _ => {}
            }
            if self.depth > DEPTH_MAX {
                return Err(self.refuse(format!("values nest deeper than {DEPTH_MAX}")));
            }
            if self.values > VALUES_MAX {
                return Err(self.refuse(format!("more than {VALUES_MAX} values")));
            }
            at += 1;
        }
        Ok(())
    }

    fn refuse(&self, what: String) -> ApiError {
        let key = Json::parse(self.key).ok().and_then(|key| key.as_str().map(shown));
        match key {
            Some(key) => ApiError::invalid(key.clone(), format!("`{key}`: {what}.")),
            None => ApiError::invalid(None, format!("The body: {what}.")),
        }
    }
}

/// Just after the string that begins at `from`, or the end of the text.
fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A name of the client's, fit for a message and a header: ASCII that can be seen, and not too long. A comma ends a name.
pub fn shown(name: &str) -> String {
    let seen = |c: char| match c {
        ' ' => ' ',
        ',' => ';',
        c if c.is_ascii_graphic() => c,
        _ => '?',
    };
    name.trim().chars().take(100).map(seen).collect()
}

/// A value of a body, and where it stands.
#[derive(Clone, Debug)]
pub struct At<'a> {
    value: &'a Json,
    path: String,
}

impl<'a> At<'a> {
    /// The body itself; its path is empty.
    pub fn root(value: &'a Json) -> Self {
        Self { value, path: String::new() }
    }

    /// The value.
    pub fn json(&self) -> &'a Json {
        self.value
    }

    /// Where it stands, as in `messages[2].content`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path that a member `key` has.
    pub fn path_of(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.path, shown(key))
    }

    /// The member `key`, if it is there and not `null`.
    pub fn get(&self, key: &str) -> Option<At<'a>> {
        let value = self.value.get(key).filter(|value| **value != Json::Null)?;
        Some(At { value, path: self.path_of(key) })
    }

    /// The member `key`, which must be there.
    ///
    /// # Errors
    /// `Invalid`, with the path that it should have.
    pub fn need(&self, key: &str) -> Result<At<'a>, ApiError> {
        self.get(key).ok_or_else(|| {
            let path = self.path_of(key);
            ApiError::invalid(path.clone(), format!("`{path}` is missing."))
        })
    }

    /// What `read` makes of the member `key`, if it is there and not `null`.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&At<'a>) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.get(key).map(|at| read(&at)).transpose()
    }

    /// The member `key` as `true` or `false`, `default` without it.
    ///
    /// # Errors
    /// `Invalid`; so do those that follow.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, ApiError> {
        Ok(self.optional(key, At::flag)?.unwrap_or(default))
    }

    /// The member `key` as a string.
    pub fn optional_text(&self, key: &str) -> Result<Option<String>, ApiError> {
        self.optional(key, |at| at.string().map(str::to_owned))
    }

    /// The member `key` as a whole number of `range` that counts something in memory.
    pub fn optional_count(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<usize>, ApiError> {
        self.optional(key, |at| at.count(range))
    }

    /// The member `key` as a number of `range`.
    pub fn optional_number(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f32>, ApiError> {
        self.optional(key, |at| at.number_in(range))
    }

    /// An error about this value; `what` goes after its path.
    pub fn wrong(&self, what: impl std::fmt::Display) -> ApiError {
        match self.path.as_str() {
            "" => ApiError::invalid(None, format!("The body: {what}.")),
            path => ApiError::invalid(self.path.clone(), format!("`{path}`: {what}.")),
        }
    }

    /// An error about this value, which is well formed and cannot be honoured.
    pub fn unsupported(&self, what: impl std::fmt::Display) -> ApiError {
        ApiError { code: Some("unsupported_value"), ..self.wrong(what) }
    }

    /// An error that this value is of another type than `expected`.
    pub fn wrong_type(&self, expected: &str) -> ApiError {
        self.wrong(format_args!("expected {expected}, got {}", kind(self.value)))
    }

    /// As a string.
    ///
    /// # Errors
    /// `Invalid`; so do all that follow.
    pub fn string(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    /// As `true` or `false`.
    pub fn flag(&self) -> Result<bool, ApiError> {
        match self.value {
            Json::Bool(flag) => Ok(*flag),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// As an object.
    pub fn object(&self) -> Result<&'a JsonMap, ApiError> {
        self.value.as_object().ok_or_else(|| self.wrong_type("an object"))
    }

    /// The members that are not `null`, if it is an object.
    pub fn members(&self) -> Result<impl Iterator<Item = (&'a str, At<'a>)> + use<'a>, ApiError> {
        let outer = self.clone();
        let members = self.object()?.iter().filter(|(_, value)| **value != Json::Null);
        Ok(members.map(move |(key, value)| (key.as_str(), At { value, path: outer.path_of(key) })))
    }

    /// The items, if it is a list.
    pub fn items(&self) -> Result<impl ExactSizeIterator<Item = At<'a>> + use<'a>, ApiError> {
        let list = self.value.as_array().ok_or_else(|| self.wrong_type("a list"))?;
        let path = self.path.clone();
        Ok(list.iter().enumerate().map(move |(i, value)| At { value, path: format!("{path}[{i}]") }))
    }

    /// As a finite number.
    pub fn number(&self) -> Result<f64, ApiError> {
        let Json::Number(digits) = self.value else { return Err(self.wrong_type("a number")) };
        let number = digits.parse().unwrap_or(f64::INFINITY);
        if number.is_finite() { Ok(number) } else { Err(self.wrong("the number is too large")) }
    }

    /// As a number of `range`.
    pub fn number_in(&self, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
        let number = self.number()?;
        if !range.contains(&number) {
            return Err(self.wrong(match range.end().is_finite() && *range.end() < f64::from(f32::MAX) {
                true => format!("{number} is not between {} and {}", range.start(), range.end()),
                false => format!("{number} is not {} or more", range.start()),
            }));
        }
        // Within the range, so it is finite as f32 too unless the range is wider than that.
        Ok((number as f32).clamp(f32::MIN, f32::MAX))
    }

    /// As a whole number of `range`. `16.0` is one.
    pub fn whole(&self, range: RangeInclusive<u64>) -> Result<u64, ApiError> {
        let Json::Number(digits) = self.value else { return Err(self.wrong_type("a whole number")) };
        let whole = digits.parse::<u64>().ok().or_else(|| {
            let number = digits.parse::<f64>().ok()?;
            // Above 2^53 a double has no unit digit, and these digits were not read as an integer.
            (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number))
                .then_some(number as u64)
        });
        match whole.filter(|whole| range.contains(whole)) {
            Some(whole) => Ok(whole),
            None if *range.end() == u64::MAX => Err(self.wrong(format!(
                "{} is not a whole number of {} or more",
                shown(digits),
                range.start()
            ))),
            None => Err(self.wrong(format!(
                "{} is not a whole number between {} and {}",
                shown(digits),
                range.start(),
                range.end()
            ))),
        }
    }

    /// As a whole number of `range` that counts something in memory.
    pub fn count(&self, range: RangeInclusive<u64>) -> Result<usize, ApiError> {
        Ok(usize::try_from(self.whole(range)?).unwrap_or(usize::MAX))
    }

    /// As serde's value, whose numbers are integers of 64 bits or doubles.
    pub fn value(&self) -> Result<Value, ApiError> {
        let too_large = || self.wrong("a number in it is too large");
        to_value(self.value).ok_or_else(too_large)
    }
}

fn to_value(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(digits) => Value::Number(digits.parse().ok()?),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(list) => Value::Array(list.iter().map(to_value).collect::<Option<_>>()?),
        Json::Object(map) => {
            let members = map.iter().map(|(key, value)| Some((key.clone(), to_value(value)?)));
            Value::Object(members.collect::<Option<_>>()?)
        }
    })
}

/// A value of serde's for an answer. A number that it cannot hold is a string of its digits.
pub fn lossy(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(digits) => digits.parse().map_or_else(|_| Value::String(digits.clone()), Value::Number),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(list) => list.iter().map(lossy).collect(),
        Json::Object(map) => map.iter().map(|(key, member)| (key.clone(), lossy(member))).collect(),
    }
}

/// What kind of value it is, in words.
pub fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}
