//! Every template in testdata, on every case of `template_cases.json`, as snapshots.
//!
//! The snapshots were compared with Jinja2 3.1 configured as Hugging Face configures it: byte for byte the same
//! text, and an error wherever Jinja2 has one, except that a loop over `none` is a loop over nothing here
//! (`testdata/text/verify_templates.py` repeats the comparison).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidemill_engine::text::{CivilTime, Json, JsonMap, Message, Template, ToolSpec};

#[derive(Deserialize)]
struct Cases {
    messages: std::collections::HashMap<String, Vec<Message>>,
    tools: Vec<ToolSpec>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: String,
    tools: bool,
    kwargs: Map<String, Value>,
}

const NOW: CivilTime = CivilTime { year: 2026, month: 3, day: 2, hour: 12, minute: 34, second: 56 };

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn render(template: &Template, cases: &Cases, case: &Case) -> Value {
    let mut context: JsonMap =
        case.kwargs.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let messages: Vec<Json> = cases.messages[&case.messages].iter().map(Message::template_value).collect();
    let tools: Vec<Json> = cases.tools.iter().map(|t| t.value().clone()).collect();
    context.insert("messages".into(), Json::Array(messages));
    context.insert("tools".into(), if case.tools { Json::Array(tools) } else { Json::Null });
    context.insert("documents".into(), Json::Null);
    context.insert("add_generation_prompt".into(), true.into());
    context.insert("bos_token".into(), "<s>".into());
    context.insert("eos_token".into(), "</s>".into());
    match template.render(&Json::Object(context), Some(NOW)) {
        Ok(text) => json!({"text": text}),
        Err(e) => json!({"error": e.message()}),
    }
}

#[test]
fn templates_render_as_with_jinja2() {
    let cases = std::fs::read_to_string(root().join("testdata/text/template_cases.json")).unwrap();
    let cases: Cases = serde_json::from_str(&cases).unwrap();
    let folder = std::fs::read_dir(root().join("testdata/text/templates")).unwrap();
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    paths.push(root().join("models/demo/chat_template.jinja"));
    assert_eq!(paths.len(), 10);
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let name = if name == "chat_template" { "demo" } else { name };
        let template = Template::new(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for case in &cases.cases {
            let rendered = render(&template, &cases, case);
            let text = serde_json::to_string(&rendered).unwrap();
            insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
                insta::assert_snapshot!(format!("text_templates__{name}__{}", case.name), text);
            });
        }
    }
}

fn data(name: &str) -> Json {
    let text = std::fs::read_to_string(root().join("testdata/text").join(name)).unwrap();
    Json::parse(&text).unwrap()
}

/// What differs from Jinja2; everything else is equal, errors included.
const DIFFERENT: [&str; 29] = [
    // Refused here: nothing that a chat template prints.
    "{{ 'abc'.translate({}) }}",
    "{{ '{!r}'.format('a') }}",
    "{{ 'abc'.encode('utf-8') }}",
    "{{ \"a b c d e f g h\"|wordwrap(5) }}",
    "{{ html|striptags }}",
    "{{ d|urlencode }}",
    "{{ {'class': 'x', 'id': 1}|xmlattr }}",
    "{{ 1000000|filesizeformat }}",
    "{{ 1000|filesizeformat(true) }}",
    "{{ cycler('a', 'b').next() }}",
    "{{ joiner(', ')() ~ 'x' }}",
    "{{ s|pprint }}",
    "{{ d|pprint }}",
    "{{ xs|random is number }}",
    "{{ ['a']|random }}",
    "{{ ''.format.__globals__ }}",
    "{% block b %}x{% endblock %}",
    // Macros take the arguments that they declare.
    "{% macro f(x) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}",
    "{% macro f() %}{{ varargs|join(',') }}|{{ kwargs|length }}{% endmacro %}{{ f(1, 2, a=3) }}",
    // Whole numbers end at 128 bits where a template computes; those of a request keep their digits.
    "{{ 10 ** 40 }}",
    // Errors there, lenient here: signs and orders of constants, a loop over none, a list that is a range.
    "{{ +'a' }}",
    "{{ 'a' < 1 }}",
    "{% for x in nil %}x{% endfor %}",
    "{{ range(3)|tojson }}",
    // A range prints as the list that it is.
    "{{ range(3) }}",
    "{{ range(0) }}",
    // Names that are there in Jinja2 and of no use to a chat template.
    "{{ lipsum is defined }}",
    "{{ self is defined }}",
    "{% autoescape true %}{{ html }}{% endautoescape %}",
];

#[test]
fn expressions_print_what_jinja2_prints() {
    let data = data("expressions.json");
    let mut different = Vec::new();
    for case in data.get("cases").and_then(Json::as_array).unwrap() {
        let [source, want] = case.as_array().unwrap() else { panic!("{case}") };
        let source = source.as_str().unwrap();
        let ours = Template::new(source).and_then(|t| t.render(data.get("context").unwrap(), Some(NOW)));
        let same = ours.as_deref().ok() == want.as_str();
        if same == DIFFERENT.contains(&source) {
            different.push(format!("{source}\n  Jinja2 {want}\n  ours   {ours:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Templates that nest so deep that the compiler could take all of the stack. `tests/memory` runs those that would
/// take all memory or all time.
#[test]
fn templates_that_nest_deep_are_refused_or_run() {
    for case in data("costly_templates.json").as_array().unwrap() {
        let [name, parts @ ..] = case.as_array().unwrap() else { panic!("{case}") };
        // A part is a text, or a text and how often it is repeated.
        let part = |part: &Json| match part {
            Json::Array(pair) => {
                pair[0].as_str().unwrap().repeat(pair[1].to_string().parse::<usize>().unwrap())
            }
            text => text.as_str().unwrap().to_owned(),
        };
        let source: String = parts.iter().map(part).collect();
        if parts.len() == 1 {
            continue;
        }
        let context = json!({"messages": []}).into();
        let rendered = Template::new(&source).and_then(|t| t.render(&context, Some(NOW)));
        assert!(!rendered.is_ok_and(|text| text.len() >= 1000), "{name}");
    }
}
