//! Chat templates: Jinja as Hugging Face runs it.
//!
//! Source: the documentation of `apply_chat_template` (blocks trimmed and left-stripped, no HTML escaping,
//! `raise_exception`, `strftime_now`, a `tojson` that does not escape) and Python's string and dict methods.

use files::{Error, ErrorKind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaKind, UndefinedBehavior};

use serde_json::json;

use super::pyjson::{Style, dumps};
use super::strftime::CivilTime;

/// Instructions that one rendering may take; far above any real conversation, far below a hang.
const FUEL: u64 = 50_000_000;

const CHATML: &str = "{%- for message in messages %}\
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}\
    {%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// A compiled chat template.
pub struct Template {
    env: Environment<'static>,
    takes_parts: bool,
}

impl Template {
    /// Compiles `source`. A syntax error, or a Jinja feature that this build lacks, is `Unsupported`.
    pub fn new(source: &str) -> Result<Self> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::unsupported("chat template syntax").with_source(e))?;
        env.set_syntax(syntax);
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", tojson);
        env.add_test("iterable", |value: &Value| match value.kind() {
            ValueKind::None => false, // as in Python
            ValueKind::Undefined | ValueKind::String => true,
            _ => value.try_iter().is_ok(),
        });
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(JinjaKind::InvalidOperation, message).with_source(Refusal))
        });
        env.add_template_owned("chat", without_generation_tags(source)).map_err(|e| {
            let line = e.line().map_or(String::new(), |line| format!(" in line {line}"));
            Error::unsupported(format!("chat template: {}{line}", describe(&e))).with_source(e)
        })?;
        let mut own = Self { env, takes_parts: false };
        own.takes_parts = own.probe_parts();
        Ok(own)
    }

    /// Whether the template reads content that is a list of parts. Those that do not print the list or fail.
    pub fn takes_parts(&self) -> bool {
        self.takes_parts
    }

    fn probe_parts(&self) -> bool {
        let parts = json!([{"type": "text", "text": "PROBE"}]);
        let context = json!({
            "messages": [{"role": "user", "content": parts}],
            "tools": null,
            "documents": null,
            "add_generation_prompt": true,
        });
        let rendered = self.render(&context, Some(CivilTime::from_unix(0)));
        rendered.is_ok_and(|text| {
            text.contains("PROBE") && !text.contains("'PROBE'") && !text.contains("\"PROBE\"")
        })
    }

    /// The template that a model's files bring. `model` names the model in the error when there is none.
    pub fn of_model(source: Option<&str>, model: &str) -> Result<Self> {
        match source {
            Some(source) => Self::new(source).map_err(|e| e.context(model)),
            None => Err(Error::unsupported(format!("{model} has no chat template"))),
        }
    }

    /// The plain ChatML template, for models without one whose owner asks for it.
    pub fn chatml() -> Result<Self> {
        Self::new(CHATML)
    }

    /// Renders with the variables of `context`, an object. `now` is what `strftime_now` shows.
    ///
    /// A template that refuses the conversation (`raise_exception`) or cannot cope with it is `InvalidRequest`.
    pub fn render(&self, context: &serde_json::Value, now: Option<CivilTime>) -> Result<String> {
        let mut env = self.env.clone();
        env.add_function("strftime_now", move |format: String| strftime(&format, now));
        let template = env
            .get_template("chat")
            .map_err(|e| Error::new(ErrorKind::Unsupported, "chat template").with_source(e))?;
        template.render(Value::from(Serde(context))).map_err(|e| {
            let refused = std::error::Error::source(&e).is_some_and(|s| s.is::<Refusal>());
            let verb = if refused { "refuses this conversation" } else { "fails on this conversation" };
            let line = e.line().filter(|_| !refused).map_or(String::new(), |l| format!(" (line {l})"));
            Error::invalid(format!("the chat template {verb}: {}{line}", describe(&e))).with_source(e)
        })
    }
}

/// Marks the errors that a template raised on purpose.
#[derive(Debug)]
struct Refusal;

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("raise_exception")
    }
}

impl std::error::Error for Refusal {}

fn describe(e: &minijinja::Error) -> String {
    e.detail().map_or_else(|| e.kind().to_string(), str::to_owned)
}

fn strftime(format: &str, now: Option<CivilTime>) -> Result<String, minijinja::Error> {
    let fail = |message: String| minijinja::Error::new(JinjaKind::InvalidOperation, message);
    let now = now.ok_or_else(|| fail("strftime_now: the caller passed no date".into()))?;
    now.format(format).ok_or_else(|| fail(format!("strftime_now: cannot format {format:?}")))
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let fail = |message: String| minijinja::Error::new(JinjaKind::InvalidOperation, message);
    if value.is_undefined() {
        return Err(fail("tojson: an undefined value is not JSON".into()));
    }
    let argument = |index: usize, name: &str| -> Result<Option<Value>, minijinja::Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| positional.get(index).cloned()).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let indent = match argument(1, "indent")? {
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(v) => {
            let width = usize::try_from(v).map_err(|_| fail("tojson: indent is not a count".into()))?;
            Some(" ".repeat(width.min(64)))
        }
        None => None,
    };
    let separators = match argument(2, "separators")? {
        Some(v) => {
            let pair: Vec<String> = v.try_iter()?.map(|s| s.to_string()).collect();
            let [item, key] = <[String; 2]>::try_from(pair)
                .map_err(|_| fail("tojson: separators are not a pair".into()))?;
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
    let json = serde_json::to_value(value).map_err(|e| fail(format!("tojson: {e}")))?;
    Ok(dumps(&json, &style).into())
}

/// `{% generation %}` marks what a model is trained on and prints nothing: an `if true` in its place keeps
/// the white-space control that the tags carry.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close + 2);
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: serde_json::Value) -> Result<String> {
        Template::new(source)?.render(&context, Some(CivilTime::from_unix(0)))
    }

    #[test]
    fn python_habits() {
        let source = "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ ' a '.strip() }}|\
            {{ 'a,b,c'.split(',', 1)[1] }}|{{ d.get('z', 'none') }}|{{ 'abc'.startswith('ab') }}|{{ none }}|\
            {{ '\\n\\nx\\n'.lstrip('\\n') }}|{{ 'Ab'.upper() + 'Ab'.lower() }}|{{ 'x'.replace('x','y') }}";
        let out = render(source, json!({"d": {"b": 1.0, "a": true}})).unwrap();
        assert_eq!(out, "b=1.0;a=True;a|b,c|none|True|None|x\n|ABab|y");
    }

    #[test]
    fn tojson_arguments() {
        let context = json!({"x": {"b": "é<", "a": [1]}});
        let out = render("{{ x|tojson }} {{ x|tojson(ensure_ascii=True, sort_keys=True) }}", context.clone());
        assert_eq!(out.unwrap(), "{\"b\": \"é<\", \"a\": [1]} {\"a\": [1], \"b\": \"\\u00e9<\"}");
        let out = render("{{ x|tojson(indent=2) }} {{ x|tojson(separators=(',', ':')) }}", context);
        assert_eq!(out.unwrap(), "{\n  \"b\": \"é<\",\n  \"a\": [\n    1\n  ]\n} {\"b\":\"é<\",\"a\":[1]}");
        assert!(render("{{ nothing|tojson }}", json!({})).is_err());
    }

    #[test]
    fn generation_tags_loop_controls_and_dates() {
        let source = "a \n{%- generation -%}\n b {%- endgeneration %}c{% for i in [1,2,3] %}\
            {% if i == 2 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}{% endif %}{% endfor %}\
            {{ strftime_now('%d %b %Y') }}";
        assert_eq!(render(source, json!({})).unwrap(), "abc1301 Jan 1970");
        let dateless = Template::new("{{ strftime_now('%Y') }}").unwrap().render(&json!({}), None);
        assert!(dateless.unwrap_err().message().contains("no date"));
    }

    #[test]
    fn errors_say_whose_they_are() {
        let e = render("{{ raise_exception('roles must alternate') }}", json!({})).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidRequest);
        assert_eq!(e.message(), "the chat template refuses this conversation: roles must alternate");
        let e = Template::new("x\n{% frob %}").err().unwrap();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().contains("line 2"), "{e}");
        let e = render("{{ a.b.c }}", json!({})).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidRequest);
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(render(endless, json!({})).unwrap_err().message().contains("fuel"));
        assert!(
            Template::of_model(None, "toy").err().unwrap().message().contains("toy has no chat template")
        );
    }
}
