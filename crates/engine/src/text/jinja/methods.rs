//! The methods of Python's `str`, `dict` and `list` that change nothing.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::ops::{equal, tuple};
use super::value::{View, is_space, text_of};
use super::{ensure, ensure_many, fail};

/// Bytes of a short text in a list.
const PIECE_BYTES: usize = 64;

/// Calls a method that `minijinja` does not know.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => Text { state, text: value.as_str().unwrap_or_default(), args }.call(method),
        ValueKind::Map => of_dict(value, method, args),
        ValueKind::Seq | ValueKind::Iterable => of_list(state, value, method, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The arguments of a call under `names`, in order or by name.
pub(super) fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    match args.split_last() {
        Some((last, before)) if last.is_kwargs() => bound(before, &Kwargs::try_from(last.clone())?, names),
        _ => bound(args, &std::iter::empty::<(String, Value)>().collect(), names),
    }
}

/// The same for arguments that are taken apart already.
pub(super) fn bound<const N: usize>(
    positional: &[Value],
    named: &Kwargs,
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut bound = names.map(|_| None);
    for (i, (slot, name)) in bound.iter_mut().zip(names).enumerate() {
        *slot = positional.get(i).cloned();
        if named.has(name) {
            if slot.is_some() {
                return Err(fail(format!("the argument {name} is given twice")));
            }
            *slot = Some(named.get(name)?);
        }
    }
    named.assert_all_used()?;
    Ok(bound)
}

/// A whole number, or `default` where there is none.
pub(super) fn count(value: Option<Value>, default: i64) -> Result<i64, Error> {
    match value {
        Some(value) if !value.is_none() => i64::try_from(value).map_err(|_| fail("expected a whole number")),
        _ => Ok(default),
    }
}

/// A text, or `default` where there is none.
pub(super) fn text(value: Option<Value>, default: &str) -> Result<String, Error> {
    match value {
        Some(value) => value.as_str().map(str::to_owned).ok_or_else(|| fail("expected a text")),
        None => Ok(default.to_owned()),
    }
}

fn of_dict(dict: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let view = |name, pick: fn(&Value, Value) -> Result<Value, Error>| {
        let [] = bind(args, [])?;
        let items = dict.try_iter()?.map(|key| pick(dict, key)).collect::<Result<_, _>>()?;
        Ok(Value::from_object(View { name, items }))
    };
    match method {
        "keys" => view("dict_keys", |_, key| Ok(key)),
        "values" => view("dict_values", |dict, key| dict.get_item(&key)),
        "items" => view("dict_items", |dict, key| Ok(tuple([key.clone(), dict.get_item(&key)?]))),
        "get" => {
            let [key, default] = bind(args, ["key", "default"])?;
            let found = dict.get_item(&key.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        "copy" => bind(args, []).map(|[]| dict.clone()),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_list(state: &State<'_, '_>, list: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted] = match method {
        "index" | "count" => bind(args, ["value"])?,
        "copy" => return bind(args, []).map(|[]| list.clone()),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    };
    let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    let mut found = 0;
    for (i, item) in list.try_iter()?.checked().enumerate() {
        if equal(state, &item?, &wanted)? {
            if method == "index" {
                return Ok(Value::from(i));
            }
            found += 1;
        }
    }
    if method == "index" { Err(fail("the list has no such item")) } else { Ok(Value::from(found)) }
}

/// A call of a method of `str`.
struct Text<'a, 'state, 'env> {
    state: &'a State<'state, 'env>,
    text: &'a str,
    args: &'a [Value],
}

impl Text<'_, '_, '_> {
    fn call(&self, method: &str) -> Result<Value, Error> {
        // What reads the whole text costs as much as a copy of it, and letters that change case may grow threefold.
        ensure_many(self.state, self.text.len(), 3)?;
        self.state.consume_fuel(self.text.len() as u64 / super::BYTES_PER_FUEL)?;
        match method {
            "upper" | "lower" | "casefold" | "swapcase" | "title" | "capitalize" => self.cased(method),
            "strip" | "lstrip" | "rstrip" => self.strip(method),
            "find" | "rfind" | "index" | "rindex" | "count" => self.find(method),
            "startswith" | "endswith" => self.has_end(method == "startswith"),
            "removeprefix" | "removesuffix" => {
                let [part] = bind(self.args, ["part"])?;
                let part = text(part, "")?;
                let rest = match method {
                    "removeprefix" => self.text.strip_prefix(&*part),
                    _ => self.text.strip_suffix(&*part),
                };
                Ok(Value::from(rest.unwrap_or(self.text)))
            }
            "split" | "rsplit" => self.split(method == "rsplit"),
            "splitlines" => {
                let [keep] = bind(self.args, ["keepends"])?;
                let keep = keep.is_some_and(|keep| keep.is_true());
                ensure_many(self.state, self.text.matches(ends_line).count() + 1, PIECE_BYTES)?;
                Ok(lines(self.text, keep).into_iter().map(Value::from).collect())
            }
            "partition" | "rpartition" => self.partition(method == "rpartition"),
            "center" | "ljust" | "rjust" | "zfill" => self.padded(method),
            "replace" => self.replace(),
            "join" => self.join(),
            "format" => self.format(),
            "expandtabs" => self.expandtabs(),
            _ => self.is(method),
        }
    }

    fn cased(&self, method: &str) -> Result<Value, Error> {
        let [] = bind(self.args, [])?;
        let mut inside = false;
        let mut out = String::with_capacity(self.text.len());
        match method {
            "upper" => out = self.text.to_uppercase(),
            "lower" => out = self.text.to_lowercase(),
            "casefold" => out = self.text.to_lowercase().replace('ß', "ss"),
            _ => {
                for (i, c) in self.text.chars().enumerate() {
                    let up = match method {
                        "swapcase" => c.is_lowercase(),
                        "title" => !inside,
                        _ => i == 0,
                    };
                    inside = c.is_alphabetic();
                    if up { out.extend(c.to_uppercase()) } else { out.extend(c.to_lowercase()) }
                }
            }
        }
        Ok(Value::from(out))
    }

    fn strip(&self, method: &str) -> Result<Value, Error> {
        let [letters] = bind(self.args, ["chars"])?;
        let letters = letters.filter(|l| !l.is_none());
        let letters: Option<Vec<char>> =
            letters.map(|l| text(Some(l), "")).transpose()?.map(|l| l.chars().collect());
        let goes = |c: char| letters.as_ref().map_or_else(|| is_space(c), |letters| letters.contains(&c));
        Ok(Value::from(match method {
            "strip" => self.text.trim_matches(goes),
            "lstrip" => self.text.trim_start_matches(goes),
            _ => self.text.trim_end_matches(goes),
        }))
    }

    /// The part of the text from `start` to `end`, in characters as slices count them; and where it begins.
    fn part(&self, start: Option<Value>, end: Option<Value>) -> Result<Option<(&str, usize)>, Error> {
        if start.is_none() && end.is_none() {
            return Ok(Some((self.text, 0)));
        }
        let length = self.text.chars().count();
        let place = |value: Option<Value>, default: usize| -> Result<usize, Error> {
            let at = count(value, default as i64)?;
            let at = if at < 0 { at.saturating_add(length as i64).max(0) } else { at };
            Ok(at as usize)
        };
        let (start, end) = (place(start, 0)?, place(end, length)?.min(length));
        if start > end {
            return Ok(None);
        }
        let byte = |at: usize| self.text.char_indices().nth(at).map_or(self.text.len(), |(byte, _)| byte);
        Ok(Some((&self.text[byte(start)..byte(end)], start)))
    }

    fn find(&self, method: &str) -> Result<Value, Error> {
        let [wanted, start, end] = bind(self.args, ["sub", "start", "end"])?;
        let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        let wanted = text(Some(wanted), "")?;
        let part = self.part(start, end)?;
        if method == "count" {
            return Ok(Value::from(part.map_or(0, |(part, _)| part.matches(&*wanted).count())));
        }
        let found = part.and_then(|(part, start)| {
            let at = if method.starts_with('r') { part.rfind(&*wanted) } else { part.find(&*wanted) };
            at.map(|at| start + part[..at].chars().count())
        });
        match found {
            Some(at) => Ok(Value::from(at)),
            None if method.ends_with("index") => Err(fail("the text has no such part")),
            None => Ok(Value::from(-1)),
        }
    }

    fn has_end(&self, first: bool) -> Result<Value, Error> {
        let [wanted, start, end] = bind(self.args, ["part", "start", "end"])?;
        let wanted = wanted.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        let Some((part, _)) = self.part(start, end)? else { return Ok(Value::from(false)) };
        let one = |wanted: &Value| match wanted.as_str() {
            Some(wanted) if first => Ok(part.starts_with(wanted)),
            Some(wanted) => Ok(part.ends_with(wanted)),
            None => Err(fail("expected a text or a tuple of texts")),
        };
        if !wanted.is_tuple() {
            return one(&wanted).map(Value::from);
        }
        for wanted in wanted.try_iter()? {
            if one(&wanted)? {
                return Ok(Value::from(true));
            }
        }
        Ok(Value::from(false))
    }

    fn split(&self, from_right: bool) -> Result<Value, Error> {
        let [separator, most] = bind(self.args, ["sep", "maxsplit"])?;
        let most = usize::try_from(count(most, -1)?).unwrap_or(usize::MAX);
        let separator = separator.filter(|s| !s.is_none()).map(|s| text(Some(s), "")).transpose()?;
        let mut pieces: Vec<&str> = Vec::new();
        let mut rest = self.text;
        let cuts = match separator.as_deref() {
            Some(separator) => self.text.matches(separator).count(),
            None => self.text.matches(is_space).count(),
        };
        ensure_many(self.state, cuts.min(most), PIECE_BYTES)?;
        match separator.as_deref() {
            Some("") => return Err(fail("empty separator")),
            Some(separator) => {
                while pieces.len() < most {
                    let cut =
                        if from_right { rest.rsplit_once(separator) } else { rest.split_once(separator) };
                    let Some((before, after)) = cut else { break };
                    pieces.push(if from_right { after } else { before });
                    rest = if from_right { before } else { after };
                }
                pieces.push(rest);
            }
            None => loop {
                rest = if from_right {
                    rest.trim_end_matches(is_space)
                } else {
                    rest.trim_start_matches(is_space)
                };
                if rest.is_empty() {
                    break;
                }
                let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = cut.filter(|_| pieces.len() < most) else {
                    // The last piece keeps the white space of its other end only.
                    pieces.push(rest);
                    break;
                };
                let white = rest[at..].chars().next().map_or(1, char::len_utf8);
                pieces.push(if from_right { &rest[at + white..] } else { &rest[..at] });
                rest = if from_right { &rest[..at] } else { &rest[at + white..] };
            },
        }
        if from_right {
            pieces.reverse();
        }
        Ok(pieces.into_iter().map(Value::from).collect())
    }

    fn partition(&self, from_right: bool) -> Result<Value, Error> {
        let [separator] = bind(self.args, ["sep"])?;
        let separator = text(separator, "")?;
        if separator.is_empty() {
            return Err(fail("empty separator"));
        }
        let cut = match from_right {
            true => self.text.rsplit_once(&*separator),
            false => self.text.split_once(&*separator),
        };
        let (before, middle, after) = match cut {
            Some((before, after)) => (before, &*separator, after),
            None if from_right => ("", "", self.text),
            None => (self.text, "", ""),
        };
        Ok(tuple([before.into(), middle.into(), after.into()]))
    }

    fn padded(&self, method: &str) -> Result<Value, Error> {
        let [width, fill] = bind(self.args, ["width", "fillchar"])?;
        let width = usize::try_from(count(width, 0)?).unwrap_or(0);
        if method == "zfill" {
            let missing = width.saturating_sub(self.text.chars().count());
            ensure(self.state, missing)?;
            let (sign, digits) = self.text.split_at(usize::from(self.text.starts_with(['+', '-'])));
            return Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(missing))));
        }
        let fill = text(fill, " ")?;
        let mut letters = fill.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else {
            return Err(fail("the fill is not one character"));
        };
        pad(self.state, self.text, width, letter, method).map(Value::from)
    }

    fn replace(&self) -> Result<Value, Error> {
        let [old, new, most] = bind(self.args, ["old", "new", "count"])?;
        let (old, new) = (text(old, "")?, text(new, "")?);
        let most = usize::try_from(count(most, -1)?).unwrap_or(usize::MAX);
        let found = self.text.matches(&*old).count().min(most);
        ensure(self.state, found.saturating_mul(new.len()).saturating_add(self.text.len()))?;
        Ok(Value::from(self.text.replacen(&*old, &new, most)))
    }

    fn join(&self) -> Result<Value, Error> {
        let [items] = bind(self.args, ["items"])?;
        let items = items.ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
        let mut out = super::value::Bounded::new(self.state);
        for (i, item) in items.try_iter()?.checked().enumerate() {
            out.push(if i > 0 { self.text } else { "" })?;
            out.push(item?.as_str().ok_or_else(|| fail("join: expected texts"))?)?;
        }
        Ok(Value::from(out.text))
    }

    /// `str.format`, whose widths and pieces are paid for before they are made.
    fn format(&self) -> Result<Value, Error> {
        let mut longest = 0;
        for arg in self.args {
            longest = longest.max(text_of(self.state, arg)?.len());
        }
        let numbers = self.text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
        let widths =
            numbers.map(|part| part.parse::<usize>().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
        let pieces = self.text.matches('{').count().saturating_mul(longest);
        ensure(self.state, widths.saturating_add(pieces).saturating_add(self.text.len()))?;
        format(FormatStyle::StrFormat, self.text, self.args).map(Value::from)
    }

    fn expandtabs(&self) -> Result<Value, Error> {
        let [size] = bind(self.args, ["tabsize"])?;
        let size = usize::try_from(count(size, 8)?).unwrap_or(0);
        ensure(
            self.state,
            self.text.matches('\t').count().saturating_mul(size).saturating_add(self.text.len()),
        )?;
        let (mut out, mut column) = (String::new(), 0);
        for c in self.text.chars() {
            if c == '\t' {
                let fill = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(fill));
                column += fill;
            } else {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
        Ok(Value::from(out))
    }

    fn is(&self, method: &str) -> Result<Value, Error> {
        let all = |test: fn(char) -> bool| !self.text.is_empty() && self.text.chars().all(test);
        let cased = |wanted: fn(char) -> bool, other: fn(char) -> bool| {
            self.text.chars().any(wanted) && !self.text.chars().any(other)
        };
        let answer = match method {
            "isalpha" => all(char::is_alphabetic),
            "isalnum" => all(char::is_alphanumeric),
            "isnumeric" => all(char::is_numeric),
            "isdecimal" => all(is_decimal),
            "isdigit" => all(|c| is_decimal(c) || "²³¹⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c)),
            "isspace" => all(is_space),
            "isascii" => self.text.is_ascii(),
            "islower" => cased(char::is_lowercase, char::is_uppercase),
            "isupper" => cased(char::is_uppercase, char::is_lowercase),
            "istitle" => is_title(self.text),
            "isidentifier" => {
                all(|c| c == '_' || c.is_alphanumeric()) && !self.text.starts_with(char::is_numeric)
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        };
        bind(self.args, []).map(|[]| Value::from(answer))
    }
}

/// The text in the middle, at the left or at the right of `width` characters.
pub(super) fn pad(
    state: &State<'_, '_>,
    text: &str,
    width: usize,
    fill: char,
    how: &str,
) -> Result<String, Error> {
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    ensure(state, missing.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let left = match how {
        // Python puts the odd one left where the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        "rjust" => missing,
        _ => 0,
    };
    let fill = |count: usize| fill.to_string().repeat(count);
    Ok(format!("{}{text}{}", fill(left), fill(missing - left)))
}

/// Where Python's `splitlines` ends a line.
pub(super) fn ends_line(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The lines of `text`, ended as Python's `splitlines` ends them.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends_line) {
        let long = rest[at..].starts_with("\r\n");
        let end = at + if long { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        out.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// Decimal digits, of the scripts that have ten in a row and are met most.
fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || matches!(c, '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}' | '\u{966}'..='\u{96f}' | '\u{ff10}'..='\u{ff19}')
}

fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in text.chars() {
        if (c.is_uppercase() && inside) || (c.is_lowercase() && !inside) {
            return false;
        }
        inside = c.is_lowercase() || c.is_uppercase();
        any |= inside;
    }
    any
}
