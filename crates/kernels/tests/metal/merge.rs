//! Many texts as one, for a type check: types and functions that several have alike stand there once.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

/// Texts as one.
#[derive(Default)]
pub struct Merged {
    pub source: String,
    seen: HashSet<u64>,
}

pub fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The tokens of a text: words (numbers among them), and what is between.
pub fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let first = rest.chars().next()?;
        let end = if is_word(first) { rest.find(|c| !is_word(c)) } else { rest.find(is_word) };
        let (token, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        Some(token)
    })
}

/// The types, constants and functions of a text, each with all its lines.
fn items(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut item = String::new();
    let is_item = |line: &&str| {
        !line.trim().is_empty() && !["#", "//", "using "].iter().any(|start| line.starts_with(start))
    };
    for line in text.lines().filter(is_item) {
        item.push_str(line);
        item.push('\n');
        if !line.starts_with([' ', ',']) && (line.ends_with(';') || line.starts_with('}')) {
            all.push(std::mem::take(&mut item));
        }
    }
    if !item.is_empty() {
        all.push(item);
    }
    all
}

/// What an item defines.
fn name(item: &str) -> &str {
    let last_word = |text: &str| text.rfind(is_word).map_or(0, |end| end + 1);
    let head = match item.split_whitespace().next() {
        Some("struct") => item.split(['{', ';']).next(),
        Some("typedef") => item.split(['[', ';']).next(),
        Some("constant") => item.split('=').next(),
        _ => item.rsplit_once("]] kernel").map_or(item, |(_, kernel)| kernel).split('(').next(),
    };
    let head = head.unwrap_or(item);
    let head = &head[..last_word(head)];
    head.rsplit(|c| !is_word(c)).next().unwrap_or(head)
}

/// A number with its digits gone, but not its type.
fn without_digits(number: &str) -> String {
    let mut out = String::new();
    for c in number.chars() {
        let c = if c.is_ascii_digit() { '0' } else { c };
        if !(c == '0' && out.ends_with('0')) {
            out.push(c);
        }
    }
    out
}

impl Merged {
    /// Adds a text. Two items are one if they are alike but for numbers in functions and constants, which no type
    /// depends on, and if all that they mention are one.
    pub fn add(&mut self, number: usize, text: &str) {
        let mut names: HashMap<String, String> = HashMap::new();
        for item in items(text) {
            let own = name(&item);
            let counts = item.starts_with("struct") || item.starts_with("typedef");
            let mut body = String::with_capacity(item.len());
            let (mut word, mut between) = ("", "");
            for token in tokens(&item) {
                let is_number = token.starts_with(|c: char| c.is_ascii_digit());
                match names.get(token) {
                    // A member may have the name of a function.
                    Some(other) if !between.ends_with('.') => body.push_str(other),
                    // Two cases may not be one.
                    None if is_number && !counts && word != "case" => body.push_str(&without_digits(token)),
                    _ => body.push_str(token),
                }
                if token.starts_with(is_word) {
                    word = token;
                } else {
                    between = token;
                }
            }
            let mut hasher = DefaultHasher::new();
            body.hash(&mut hasher);
            let hash = hasher.finish();
            // What naga adds of its own has overloads, and is the same everywhere.
            if own.starts_with("naga") || own.starts_with("Naga") {
                if self.seen.insert(hash) {
                    self.put(number, &body);
                }
                continue;
            }
            let unique = format!("{own}_{hash:x}");
            if self.seen.insert(hash) {
                let body: String =
                    tokens(&body).map(|token| if token == own { unique.as_str() } else { token }).collect();
                self.put(number, &body);
            }
            names.insert(own.to_owned(), unique);
        }
    }

    fn put(&mut self, number: usize, body: &str) {
        self.source.push_str(&format!("#line 1 \"text_{number}\"\n"));
        self.source.push_str(body);
    }
}
