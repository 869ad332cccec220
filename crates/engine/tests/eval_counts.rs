//! Which tokens the evaluations score: the counts of the demo model's EVAL.json, which its makers published with the
//! perplexities. Equal counts over 200 dialogues mean equal rules.

use std::path::Path;

use crate::common::root;
use files::TensorIndex;
use serde::Deserialize;
use tidemill_engine::eval::Dialog;
use tidemill_engine::text::{Message, Role, Template, Tokenizer, ToolSpec};

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<ToolSpec>,
}

fn lines(name: &str) -> Vec<Line> {
    let path = root().join("models/demo-eval").join(name);
    let text = std::fs::read_to_string(path).expect("the demo's texts are in the repository");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn open(path: &Path) -> (Template, Tokenizer) {
    let (_, meta) = TensorIndex::open(path).expect("the demo model opens");
    let template = Template::of_model(meta.chat_template.as_deref(), "demo").expect("it has a template");
    (template, Tokenizer::of_model(&meta).expect("it has a tokenizer"))
}

#[test]
fn the_published_counts() {
    let (template, tokenizer) = open(&root().join("models/demo"));
    let dialog = |messages: &[Message], tools: &[ToolSpec]| {
        Dialog::new(&template, &tokenizer, messages, tools).expect("renders")
    };
    let answered = |line: &Line| {
        let said = Message::new(Role::Assistant, line.text.clone());
        let dialog = dialog(&[Message::new(Role::User, line.prompt.clone()), said], &[]);
        dialog.turns[0].len()
    };
    let stories = lines("stories.jsonl");
    let bare = |line: &Line| tokenizer.encode_document(&line.text).expect("encodes").len() - 1;
    assert_eq!(stories.iter().map(bare).sum::<usize>(), 25_350);
    assert_eq!(stories.iter().map(answered).sum::<usize>(), 25_750);
    assert_eq!(lines("chat.jsonl").iter().map(answered).sum::<usize>(), 2_499);
    let (mut assistant, mut all) = (0, 0);
    for line in lines("tool_dialogs.jsonl") {
        let dialog = dialog(&line.messages, &line.tools);
        assistant += dialog.turns.iter().map(ExactSizeIterator::len).sum::<usize>();
        all += dialog.tokens.len() - 1;
    }
    assert_eq!((assistant, all), (9_684, 73_692));
}
