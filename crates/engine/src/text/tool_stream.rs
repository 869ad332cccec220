//! A call's arguments as JSON text while the model writes them.
//!
//! What is told here is always the beginning of the whole call's arguments as [`Json`] writes them; where the text does
//! not say yet how it goes on, nothing is told. [`parse`](super::tool_markup::parse) has the last word on the call, so
//! the last brace is left to it: what was told is JSON when the call is whole, and never before.

use super::chat::ToolSpec;
use super::format::{FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END};
use super::json::{Json, JsonMap, WHITE, escaped};
use super::tool_markup::{typed, types, without_border};

/// Reads the inside of one block, of which more and more is there.
#[derive(Default)]
pub(super) struct CallStream {
    place: Place,
    /// Bytes of the block that are done with.
    at: usize,
    name: Option<String>,
    /// The arguments that have begun; the last one is the one being read.
    keys: Vec<String>,
    told: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Place {
    /// Before the name.
    #[default]
    Head,
    /// Between the name and the arguments of a call in JSON.
    Members,
    /// Inside the arguments in JSON, so many values deep.
    Json { depth: usize, in_string: bool },
    /// Between the tags.
    Tags,
    /// Right after `<parameter=…>`.
    Opened,
    /// Inside a value that is told as it comes.
    Text { start: usize },
    /// Inside a value that is told when it is whole.
    Value,
    /// What follows is told by the whole call.
    Done,
}

/// What the beginning of a text says.
enum Found<T> {
    No,
    /// What follows decides.
    Wait,
    Yes(T),
}

impl CallStream {
    /// The name of the tool, once it is known to be one that was offered.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// All that was told of the arguments.
    pub(super) fn told(&self) -> &str {
        &self.told
    }

    /// Reads on in `block`, which begins as it did before; what there is to tell more.
    pub(super) fn advance(&mut self, block: &str, tools: &[ToolSpec]) -> &str {
        let before = self.told.len();
        while self.step(block, tools) {}
        &self.told[before..]
    }

    /// One step; false when it needs more of the block.
    fn step(&mut self, block: &str, tools: &[ToolSpec]) -> bool {
        let rest = &block[self.at..];
        let tool = self.name.as_deref().and_then(|name| offered(tools, name));
        match self.place {
            Place::Head => self.head(rest, tools),
            Place::Members => self.members(rest),
            Place::Json { depth, in_string: false } => self.json(rest, depth),
            Place::Json { depth, in_string: true } => self.json_string(rest, depth),
            Place::Tags => self.tags(rest),
            Place::Opened => self.opened(rest, tool),
            Place::Text { start } => self.text(rest, &block[start..], tool),
            Place::Value => self.value(rest, tool),
            Place::Done => false,
        }
    }

    fn go(&mut self, found: Found<usize>, place: Place) -> bool {
        match found {
            Found::Wait => return false,
            Found::No => self.place = Place::Done,
            Found::Yes(bytes) => {
                self.at += bytes;
                self.place = place;
            }
        }
        true
    }

    fn head(&mut self, rest: &str, tools: &[ToolSpec]) -> bool {
        let inner = rest.trim_start();
        let (name, bytes, place) = if let Some(after) = inner.strip_prefix(FUNCTION) {
            let Some((name, after)) = after.split_once('>') else { return false };
            (name.trim().to_owned(), rest.len() - after.len(), Place::Tags)
        } else if FUNCTION.starts_with(inner) {
            return false;
        } else {
            match json_name(inner) {
                Found::Yes((name, after)) => (name, rest.len() - after.len(), Place::Members),
                Found::No => return self.go(Found::No, Place::Done),
                Found::Wait => return false,
            }
        };
        if offered(tools, &name).is_none() {
            return self.go(Found::No, Place::Done);
        }
        self.name = Some(name);
        if place == Place::Tags {
            self.told.push('{');
        }
        self.go(Found::Yes(bytes), place)
    }

    fn members(&mut self, rest: &str) -> bool {
        let ways = ["\"arguments\"", "\"parameters\""].map(|key| after(rest, &[",", key, ":", "{"]));
        let wait = ways.iter().any(|way| matches!(way, Found::Wait));
        let yes = ways.into_iter().find_map(|way| if let Found::Yes(rest) = way { Some(rest) } else { None });
        let found = match yes {
            Some(after) => Found::Yes(rest.len() - after.len()),
            None if wait => Found::Wait,
            None => Found::No,
        };
        if matches!(found, Found::Yes(_)) {
            self.told.push('{');
        }
        self.go(found, Place::Json { depth: 1, in_string: false })
    }

    fn json(&mut self, rest: &str, depth: usize) -> bool {
        let mut depth = depth;
        for (at, c) in rest.char_indices() {
            match c {
                '}' | ']' if depth == 1 => {
                    self.at += at;
                    return self.go(Found::No, Place::Done);
                }
                '}' | ']' => depth -= 1,
                '{' | '[' => depth += 1,
                _ => {}
            }
            if !WHITE.contains(&c) {
                self.told.push(c);
            }
            if c == '"' {
                return self.go(Found::Yes(at + 1), Place::Json { depth, in_string: true });
            }
        }
        self.place = Place::Json { depth, in_string: false };
        self.at += rest.len();
        false
    }

    fn json_string(&mut self, rest: &str, depth: usize) -> bool {
        let plain = rest.find(['"', '\\']).unwrap_or(rest.len());
        self.told.push_str(&escaped(&rest[..plain]));
        self.at += plain;
        let rest = &rest[plain..];
        if rest.starts_with('"') {
            self.told.push('"');
            return self.go(Found::Yes(1), Place::Json { depth, in_string: false });
        }
        let found = escape_bytes(rest);
        let Found::Yes(bytes) = found else { return self.go(found, Place::Done) };
        match rest.get(..bytes).map(|escape| Json::parse(&format!("\"{escape}\""))) {
            Some(Ok(Json::String(text))) => {
                self.told.push_str(&escaped(&text));
                self.go(found, Place::Json { depth, in_string: true })
            }
            _ => self.go(Found::No, Place::Done),
        }
    }

    fn tags(&mut self, rest: &str) -> bool {
        let inner = rest.trim_start();
        if PARAMETER.starts_with(inner) || FUNCTION_END.starts_with(inner) {
            return false; // the end of the function too: it is told by the whole call
        }
        let Some(inner) = inner.strip_prefix(PARAMETER) else { return self.go(Found::No, Place::Done) };
        let Some((key, value)) = inner.split_once('>') else { return false };
        let key = key.trim().to_owned();
        if key.is_empty() || key.contains(['<', '\n']) || self.keys.contains(&key) {
            return self.go(Found::No, Place::Done);
        }
        self.keys.push(key);
        self.go(Found::Yes(rest.len() - value.len()), Place::Opened)
    }

    /// The parameter that is being read.
    fn key(&self) -> &str {
        self.keys.last().map_or("", String::as_str)
    }

    fn opened(&mut self, rest: &str, tool: Option<&ToolSpec>) -> bool {
        let comma = if self.keys.len() > 1 { "," } else { "" };
        let key = format!("{comma}\"{}\":", escaped(self.key()));
        if types(tool, self.key()) != ["string"] {
            self.told.push_str(&key);
            self.place = Place::Value;
            return true;
        }
        if "\r\n".starts_with(rest) {
            return false;
        }
        self.told.push_str(&key);
        self.told.push('"');
        let border = ["\r\n", "\n"].into_iter().find(|border| rest.starts_with(border)).map_or(0, str::len);
        self.at += border;
        self.place = Place::Text { start: self.at };
        true
    }

    /// Goes on in a string; `whole` is all of it.
    fn text(&mut self, rest: &str, whole: &str, tool: Option<&ToolSpec>) -> bool {
        let end = self.end(rest, tool);
        if end.next.is_some() && whole[..whole.len() - rest.len() + end.at].contains(FUNCTION) {
            // The next parameter is another call's.
            return self.go(Found::No, Place::Done);
        }
        let sure = without_line_end(&rest[..end.at]);
        let sure = if end.at == rest.len() { sure.strip_suffix('\r').unwrap_or(sure) } else { sure };
        self.told.push_str(&escaped(sure));
        let Some(next) = end.next else {
            self.at += sure.len();
            return false;
        };
        self.told.push('"');
        self.go(Found::Yes(next), Place::Tags)
    }

    fn value(&mut self, rest: &str, tool: Option<&ToolSpec>) -> bool {
        let End { at, next: Some(next) } = self.end(rest, tool) else { return false };
        if rest[..at].contains(FUNCTION) {
            return self.go(Found::No, Place::Done);
        }
        let value = typed(without_border(&rest[..at]), &types(tool, self.key()));
        self.told.push_str(&value.to_string());
        self.go(Found::Yes(next), Place::Tags)
    }

    /// How far `rest` of a value is the value, as [`parse`](super::tool_markup::parse) will find it.
    fn end(&self, rest: &str, tool: Option<&ToolSpec>) -> End {
        for (at, _) in rest.match_indices('<') {
            match self.mark(&rest[at..], tool) {
                Found::No => {}
                Found::Wait => return End { at, next: None },
                Found::Yes(bytes) => return End { at, next: Some(at + bytes) },
            }
        }
        End { at: rest.len(), next: None }
    }

    /// Whether a value ends before `rest`, which begins with `<`: so many bytes of it belong to the end.
    fn mark(&self, rest: &str, tool: Option<&ToolSpec>) -> Found<usize> {
        let followed = |tag: &str, by: &[&str], bytes| {
            let next = rest[tag.len()..].trim_start();
            if by.iter().any(|tag| next.starts_with(tag)) {
                Found::Yes(bytes)
            } else if by.iter().any(|tag| tag.starts_with(next)) {
                Found::Wait
            } else {
                Found::No
            }
        };
        if rest.starts_with(PARAMETER_END) {
            return followed(PARAMETER_END, &[PARAMETER, FUNCTION_END], PARAMETER_END.len());
        }
        if rest.starts_with(FUNCTION_END) {
            return followed(FUNCTION_END, &[FUNCTION], 0);
        }
        let Some(inner) = rest.strip_prefix(PARAMETER) else {
            let tags = [PARAMETER, PARAMETER_END, FUNCTION_END];
            return if tags.iter().any(|tag| tag.starts_with(rest)) { Found::Wait } else { Found::No };
        };
        let keys = tool.and_then(ToolSpec::properties).into_iter().flat_map(JsonMap::keys);
        let mut expected = keys.filter(|key| !self.keys.contains(key));
        match inner.split_once('>') {
            Some((name, _)) if expected.any(|key| key == name.trim()) => Found::Yes(0),
            None if expected.any(|key| key.starts_with(inner.trim())) => Found::Wait,
            _ => Found::No,
        }
    }
}

/// How far a value goes.
struct End {
    /// So many bytes are the value, as far as is known.
    at: usize,
    /// Where to read on, if it ends there.
    next: Option<usize>,
}

fn offered<'a>(tools: &'a [ToolSpec], name: &str) -> Option<&'a ToolSpec> {
    tools.iter().find(|tool| tool.name() == name)
}

fn without_line_end(text: &str) -> &str {
    text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text)
}

/// What follows `words`, with white space before each.
fn after<'a>(text: &'a str, words: &[&str]) -> Found<&'a str> {
    let mut rest = text;
    for word in words {
        rest = rest.trim_start_matches(WHITE);
        match rest.strip_prefix(word) {
            Some(after) => rest = after,
            None if word.starts_with(rest) => return Found::Wait,
            None => return Found::No,
        }
    }
    Found::Yes(rest)
}

/// The name of a call in JSON that begins with it, and what follows.
fn json_name(text: &str) -> Found<(String, &str)> {
    let rest = match after(text, &["{", "\"name\"", ":"]) {
        Found::Yes(rest) => rest.trim_start_matches(WHITE),
        Found::Wait => return Found::Wait,
        Found::No => return Found::No,
    };
    match Json::parse_prefix(rest) {
        Ok((Json::String(name), rest)) => Found::Yes((name, rest)),
        Err(e) if e.in_string || rest.is_empty() => Found::Wait,
        _ => Found::No,
    }
}

/// How long the escape is that `text` begins with. Half a surrogate pair is one with its other half.
fn escape_bytes(text: &str) -> Found<usize> {
    let bytes = text.as_bytes();
    let unicode =
        |at: usize| bytes.get(at..at + 6).map(|escape| escape.starts_with(b"\\u").then_some(escape));
    let half = |escape: &[u8], of: [u8; 2]| {
        escape[2].eq_ignore_ascii_case(&b'd') && (of[0]..=of[1]).contains(&escape[3].to_ascii_lowercase())
    };
    match bytes.get(1) {
        None => Found::Wait,
        Some(b'u') => match unicode(0) {
            None => Found::Wait,
            Some(Some(first)) if half(first, *b"89") || half(first, *b"ab") => match bytes.get(6..) {
                Some(more) if more.len() < 6 && (b"\\u".starts_with(more) || more.starts_with(b"\\u")) => {
                    Found::Wait
                }
                _ => match unicode(6).flatten() {
                    Some(second) if half(second, *b"cf") => Found::Yes(12),
                    _ => Found::Yes(6),
                },
            },
            Some(_) => Found::Yes(6),
        },
        Some(_) => Found::Yes(2),
    }
}
