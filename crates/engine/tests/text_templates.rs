//! Every template in testdata, on every case of `template_cases.json`, as snapshots.
//!
//! The snapshots were compared with Jinja2 3.1 configured as Hugging Face configures it: byte for byte the same
//! text, and an error wherever Jinja2 has one, except that a loop over `none` is a loop over nothing here
//! (`testdata/text/verify_templates.py` repeats the comparison).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tidemill_engine::text::{CivilTime, Message, Template, ToolSpec};

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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn render(template: &Template, cases: &Cases, case: &Case) -> Value {
    let mut context = case.kwargs.clone();
    let messages: Vec<Value> = cases.messages[&case.messages].iter().map(Message::template_value).collect();
    let tools: Vec<Value> = cases.tools.iter().map(|t| t.value().clone()).collect();
    context.insert("messages".into(), messages.into());
    context.insert("tools".into(), if case.tools { tools.into() } else { Value::Null });
    context.insert("documents".into(), Value::Null);
    context.insert("add_generation_prompt".into(), true.into());
    context.insert("bos_token".into(), "<s>".into());
    context.insert("eos_token".into(), "</s>".into());
    let now = CivilTime { year: 2026, month: 3, day: 2, hour: 12, minute: 34, second: 56 };
    match template.render(&Value::Object(context), Some(now)) {
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
