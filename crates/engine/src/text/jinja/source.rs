//! What the text of a template needs before `minijinja` can read it: tags and signs that it does not know.

/// A tag holds at most this many words and signs. A chain of as many operators nests as deep, in the compiler too.
const MAX_TAG_WORDS: usize = 1000;

/// A template has at most this many `elif`s, each of which nests in the one before it, in the compiler too.
const MAX_BRANCHES: usize = 200;

/// What stands beside a multiplication, so that it is not computed while the template is compiled, where nothing
/// limits it. It is 1.
pub(super) const ONE: &str = "__one__";

/// The same template with
/// * `{% generation %}`, which marks what a model is trained on and prints nothing, as an `if true` that keeps the
///   white-space control of the tag;
/// * no plus sign in front of a number,
/// * [`ONE`] in each multiplication, and
/// * long escapes (`\U0001F600`) and escaped line ends in strings as what they mean.
///
/// An error says what is wrong with the template.
pub(crate) fn prepared(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut branches) = (source, 0);
    while let Some(open) = next_tag(rest) {
        out.push_str(&rest[..open]);
        let tag = &rest[open..];
        let end = match &tag[..2] {
            "{#" => tag.find("#}").map_or(tag.len(), |end| end + 2),
            "{%" if word_of(tag) == Some("raw") => raw_end(tag),
            _ => {
                let at = source.len() - tag.len();
                let line = || source[..at].matches('\n').count() + 1;
                let (end, text) = code(tag)
                    .ok_or_else(|| format!("a tag of more than {MAX_TAG_WORDS} words in line {}", line()))?;
                let word = tag[2..].trim_start_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
                branches += usize::from(tag.starts_with("{%") && word.starts_with("elif"));
                if branches > MAX_BRANCHES {
                    return Err(format!("more than {MAX_BRANCHES} elif tags in line {}", line()));
                }
                out.push_str(&text);
                rest = &tag[end..];
                continue;
            }
        };
        out.push_str(&tag[..end]);
        rest = &tag[end..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next tag begins.
fn next_tag(text: &str) -> Option<usize> {
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| text[at + 1..].starts_with(['{', '%', '#']))
}

/// The only word of a tag such as `{%- raw -%}`.
fn word_of(tag: &str) -> Option<&str> {
    let inner = &tag[2..]; // `{%}` is no tag
    Some(inner[..inner.find("%}")?].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace()))
}

/// Where the block ends that begins with the tag `raw`.
fn raw_end(tag: &str) -> usize {
    let mut from = 2;
    while let Some(at) = tag[from..].find("{%").map(|at| from + at) {
        if word_of(&tag[at..]) == Some("endraw") {
            return at + tag[at..].find("%}").map_or(tag.len() - at, |end| end + 2);
        }
        from = at + 2;
    }
    tag.len()
}

/// Reads a tag with code in it: its length, and what takes its place. None for one that is too long.
fn code(tag: &str) -> Option<(usize, String)> {
    if let Some(word @ ("generation" | "endgeneration")) = word_of(tag).filter(|_| tag.starts_with("{%")) {
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let own = if word == "generation" { "if true" } else { "endif" };
        return Some((end, tag[..end].replacen(word, own, 1)));
    }
    let close = if tag.starts_with("{{") { "}}" } else { "%}" };
    let mut out = tag[..2].to_owned();
    let mut at = 2;
    if let Some(sign) = tag[at..].chars().next().filter(|c| matches!(c, '-' | '+')) {
        out.push(sign);
        at += 1;
    }
    // Whether a plus sign would stand between two values, and how many braces are open.
    let (mut after_value, mut braces, mut words) = (false, 0_usize, 0);
    while let Some(c) = tag[at..].chars().next() {
        let rest = &tag[at..];
        if rest.starts_with(close) && (close == "%}" || braces == 0) {
            out.push_str(close);
            return Some((at + 2, out));
        }
        words += usize::from(!c.is_whitespace());
        if words > MAX_TAG_WORDS {
            return None;
        }
        if matches!(c, '"' | '\'') {
            let end = string(rest, &mut out);
            at += end;
            after_value = true;
        } else if c.is_alphanumeric() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let word = &rest[..end];
            after_value = !matches!(word, "and" | "or" | "not" | "in" | "is" | "if" | "elif" | "else");
            out.push_str(word);
            at += end;
            // The sign of an exponent.
            let number = word.starts_with(|c: char| c.is_ascii_digit()) && word.ends_with(['e', 'E']);
            if number && tag[at..].starts_with('+') {
                out.push('+');
                at += 1;
            }
        } else {
            let dropped = c == '+' && !after_value && !rest[1..].starts_with(close);
            out.push(if dropped { ' ' } else { c });
            // A product, but no power, and no list of arguments.
            if c == '*' && after_value && !rest.starts_with("**") && !tag[..at].ends_with('*') {
                out.push_str(&format!(" {ONE} * "));
            }
            match c {
                '{' => braces += 1,
                '}' => braces = braces.saturating_sub(1),
                _ => {}
            }
            if !c.is_whitespace() {
                after_value = matches!(c, ')' | ']' | '}');
            }
            at += c.len_utf8();
        }
    }
    Some((tag.len(), out))
}

/// Copies the string that `text` begins with; returns its length.
fn string(text: &str, out: &mut String) -> usize {
    let quote = text.as_bytes()[0];
    out.push(char::from(quote));
    let mut at = 1;
    while let Some(c) = text[at..].chars().next() {
        at += c.len_utf8();
        if c != '\\' {
            out.push(c);
            if u32::from(c) == u32::from(quote) {
                break;
            }
            continue;
        }
        let escaped = text[at..].chars().next();
        let long = text.get(at + 1..at + 9).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match (escaped, long.and_then(char::from_u32)) {
            (Some('\n'), _) => at += 1,
            (Some('U'), Some(letter)) if letter >= '\u{80}' => {
                out.push(letter);
                at += 9;
            }
            (Some(other), _) => {
                out.extend(['\\', other]);
                at += other.len_utf8();
            }
            (None, _) => out.push('\\'),
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_what_it_must() {
        for (source, want) in [
            ("{{ +1 }}{{ - +n }}{{ (+1, +2) }}", "{{  1 }}{{ -  n }}{{ ( 1,  2) }}"),
            ("{{ 1 + 2 }}{{ a+b }}{{ f(x) + [1] + {'a': 1}['a'] + 'x' }}", ""),
            ("{{ 1e+5 + 2 }}{{ a if b else +c }}", "{{ 1e+5 + 2 }}{{ a if b else  c }}"),
            ("{{ a * b ** c }}{{ f(*a, **b) }}", "{{ a * __one__ *  b ** c }}{{ f(*a, **b) }}"),
            (
                "{%+ if x %}{%- if y +%}{{- z -}}{%- set a = +1 -%}",
                "{%+ if x %}{%- if y +%}{{- z -}}{%- set a =  1 -%}",
            ),
            ("{# +1 #}{% raw %}{{ +1 }}{% endraw %}+1", ""),
            ("{{ '+1 }} \\' {{' }}{{ {'a': {'b': 1}} }}", ""),
            (r"{{ '\U0001F600 \\U0001F600 \x41' }}", r"{{ '😀 \\U0001F600 \x41' }}"),
            ("{{ 'a\\\nb' }}", "{{ 'ab' }}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- if true -%}x{% endif %}"),
            ("{{ 'open", ""),
            ("{{ open", ""),
            ("{# open", ""),
            ("{% raw %} open", ""),
            ("{", ""),
            ("{%}", ""),
        ] {
            assert_eq!(prepared(source).as_deref(), Ok(if want.is_empty() { source } else { want }));
        }
        let long = format!("a\n{{{{ {}1 }}}}", "not ".repeat(1000));
        assert!(prepared(&long).unwrap_err().contains("1000 words in line 2"));
    }
}
