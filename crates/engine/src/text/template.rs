//! Chat templates: Jinja as Hugging Face runs it.
//!
//! Source: the documentation of `apply_chat_template` (blocks trimmed and left-stripped, no HTML escaping,
//! `raise_exception`, `strftime_now`, a `tojson` that does not escape) and Python's string and dict methods. How far
//! expressions agree with Jinja2's is recorded in `testdata/text/expressions.json`.

use std::sync::Arc;

use files::{Error, Result};
use minijinja::machinery::{CompiledTemplate, TemplateConfig, eval, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaKind, State, UndefinedBehavior};
use serde_json::json;

use super::format::CallFormat;
use super::jinja;
use super::json::Json;
use super::strftime::CivilTime;

/// What one rendering may take, in instructions or in pieces of 64 bytes: 48 MB of text in all, or about a second.
const FUEL: u64 = 750_000;

/// What it may take more for each byte of the conversation.
const FUEL_PER_BYTE: u64 = 4;

/// And for each pair of messages, up to a limit: templates look for the call of each result among all messages.
const FUEL_PER_PAIR: u64 = 8;
const MOST_FOR_PAIRS: u64 = 12_000_000;

/// Calls of macros in one another.
const MACRO_DEPTH: usize = 64;

/// A template's text is at most this long.
const MAX_SOURCE_BYTES: usize = 256 << 10;

const CHATML: &str = "{%- for message in messages %}\
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}\
    {%- endfor %}\
    {%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// A chat template.
pub struct Template {
    env: Environment<'static>,
    config: TemplateConfig,
    source: String,
    takes_parts: bool,
    json_calls: bool,
    call_format: Option<&'static CallFormat>,
}

impl Template {
    /// Compiles `source`. A syntax error, or a Jinja feature that this build lacks, is `Unsupported`.
    pub fn new(source: &str) -> Result<Self> {
        if source.trim().is_empty() {
            return Err(Error::unsupported("the chat template is empty"));
        }
        if source.len() > MAX_SOURCE_BYTES {
            return Err(Error::unsupported(format!("a chat template of {} bytes", source.len())));
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| Error::unsupported("chat template syntax").with_source(e))?;
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_recursion_limit(MACRO_DEPTH);
        env.set_formatter(|out, state, value| {
            match value.as_str() {
                Some(text) => out.write_str(text),
                None => out.write_str(&jinja::text_of(state, value)?),
            }
            .map_err(minijinja::Error::from)
        });
        jinja::set_up(&mut env);
        let config =
            TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
        // Llama 3 asks for {"name": …, "parameters": …} and nothing around it.
        let json_calls = source.contains("\"name\": ")
            && source.contains("\"parameters\": ")
            && !["<tool_call>", "[TOOL_CALLS]", "<function="].iter().any(|markup| source.contains(markup));
        let source =
            jinja::prepared(source).map_err(|e| Error::unsupported(format!("chat template: {e}")))?;
        let mut own = Self { env, config, source, takes_parts: false, json_calls, call_format: None };
        own.compiled()?;
        own.takes_parts = own.probe_parts();
        own.call_format = own.probe_calls();
        Ok(own)
    }

    fn compiled(&self) -> Result<CompiledTemplate<'_>> {
        CompiledTemplate::new("chat", &self.source, &self.config).map_err(|e| {
            let line = e.line().map_or(String::new(), |line| format!(" in line {line}"));
            Error::unsupported(format!("chat template: {}{line}", describe(&e))).with_source(e)
        })
    }

    /// Whether the template reads content that is a list of parts. Those that do not print the list or fail.
    pub fn takes_parts(&self) -> bool {
        self.takes_parts
    }

    /// Whether the template asks for tool calls as plain JSON, without markup around it.
    pub fn json_calls(&self) -> bool {
        self.json_calls
    }

    /// How the template writes calls, if it is one of the ways that this build knows.
    pub fn call_format(&self) -> Option<&'static CallFormat> {
        self.call_format
    }

    fn probe_calls(&self) -> Option<&'static CallFormat> {
        const PROBE: &str = "PROBE";
        let function = json!({"name": PROBE, "arguments": {"key": "value"}});
        let call = json!({"id": "call00000", "type": "function", "function": function});
        let parameters = json!({"type": "object", "properties": {"key": {"type": "string"}}});
        let tool = json!({"name": PROBE, "description": PROBE, "parameters": parameters});
        let context = json!({
            "messages": [
                {"role": "user", "content": PROBE},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ],
            "tools": [{"type": "function", "function": tool}],
            "documents": null,
            "add_generation_prompt": false,
        });
        let rendered = self.render(&context.into(), Some(CivilTime::from_unix(0)));
        CallFormat::of_text(&rendered.ok()?, PROBE)
    }

    fn probe_parts(&self) -> bool {
        let parts = json!([{"type": "text", "text": "PROBE"}]);
        let context = json!({
            "messages": [{"role": "user", "content": parts}],
            "tools": null,
            "documents": null,
            "add_generation_prompt": true,
        });
        let rendered = self.render(&context.into(), Some(CivilTime::from_unix(0)));
        rendered.is_ok_and(|text| {
            text.contains("PROBE") && !text.contains("'PROBE'") && !text.contains("\"PROBE\"")
        })
    }

    /// The template that a model's files bring. `model` names the model in the error when there is none.
    pub fn of_model(source: Option<&str>, model: &str) -> Result<Self> {
        match source.filter(|source| !source.trim().is_empty()) {
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
    /// A template that refuses the conversation (`raise_exception`) or cannot cope with it is `InvalidRequest`. So
    /// is one that takes more time or memory than a template may: that grows with the conversation.
    pub fn render(&self, context: &Json, now: Option<CivilTime>) -> Result<String> {
        let mut compiled = self.compiled()?;
        compiled.instructions = jinja::rewritten(&compiled.instructions);
        let mut env: Environment<'_> = self.env.clone();
        env.set_fuel(Some(fuel(context)));
        env.add_function("strftime_now", move |state: &State<'_, '_>, format: String| {
            strftime(state, &format, now)
        });
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let mut given = jinja::Given::default();
        let root = given.value(context);
        env.add_global(jinja::Given::NAME, Value::from_object(given));
        let ended = eval(&env, &compiled.instructions, root, &compiled.blocks, &mut out, AutoEscape::None);
        let ended = ended.map(|_| ());
        drop(out);
        ended.map_err(|e| {
            let refused = std::error::Error::source(&e).is_some_and(|s| s.is::<jinja::Refusal>());
            let verb = if refused { "refuses this conversation" } else { "fails on this conversation" };
            let line = e.line().filter(|_| !refused).map_or(String::new(), |l| format!(" (line {l})"));
            Error::invalid(format!("the chat template {verb}: {}{line}", describe(&e))).with_source(e)
        })?;
        Ok(text)
    }
}

fn fuel(context: &Json) -> u64 {
    let messages = context.get("messages").and_then(Json::as_array).map_or(0, <[Json]>::len) as u64;
    let pairs = messages.saturating_mul(messages).saturating_mul(FUEL_PER_PAIR).min(MOST_FOR_PAIRS);
    FUEL.saturating_add(pairs).saturating_add(FUEL_PER_BYTE.saturating_mul(context.bytes() as u64))
}

fn describe(e: &minijinja::Error) -> String {
    if e.kind() == JinjaKind::OutOfFuel {
        return "it takes more time or memory than a template may".into();
    }
    e.detail().map_or_else(|| e.kind().to_string(), str::to_owned)
}

fn strftime(state: &State<'_, '_>, format: &str, now: Option<CivilTime>) -> Result<String, minijinja::Error> {
    let fail = |message: String| minijinja::Error::new(JinjaKind::InvalidOperation, message);
    let now = now.ok_or_else(|| fail("strftime_now: the caller passed no date".into()))?;
    // A directive of two letters makes at most nineteen.
    state.consume_fuel(format.len() as u64 / 6)?;
    now.format(format).ok_or_else(|| fail(format!("strftime_now: cannot format {format:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use files::ErrorKind;

    fn render(source: &str, context: serde_json::Value) -> Result<String> {
        Template::new(source)?.render(&context.into(), Some(CivilTime::from_unix(0)))
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
        let dateless = Template::new("{{ strftime_now('%Y') }}").unwrap().render(&json!({}).into(), None);
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
        assert!(render(endless, json!({})).unwrap_err().message().contains("more time or memory"));
        assert!(
            Template::of_model(None, "toy").err().unwrap().message().contains("toy has no chat template")
        );
    }
}
