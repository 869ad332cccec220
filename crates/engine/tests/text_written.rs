//! Turns whose tokens are known: the prompt that goes on has the tokens that were sampled.

use std::sync::OnceLock;

use files::TensorIndex;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::{Value, json};
use tidemill_engine::text::{
    ChatPrompt, ChatRequest, Json, Message, ReplyOptions, ReplyParser, ReplyTurn, Role, Specials, Template,
    Tokenizer, ToolSpec,
};

use crate::common::root;

fn tokenizers() -> &'static [Tokenizer; 2] {
    static BOTH: OnceLock<[Tokenizer; 2]> = OnceLock::new();
    BOTH.get_or_init(|| {
        ["models/demo", "testdata/goldens/qwen3-dense/bf16"]
            .map(|path| Tokenizer::of_model(&TensorIndex::open(&root().join(path)).unwrap().1).unwrap())
    })
}

/// How a model answers, and whether its template shows the thoughts of the answers before.
struct Style {
    template: Template,
    xml: bool,
    thinks: bool,
}

fn styles() -> &'static [Style] {
    static ALL: OnceLock<Vec<Style>> = OnceLock::new();
    ALL.get_or_init(|| {
        [("Qwen3.5-4B", true, true), ("Qwen-Qwen3-0.6B", false, true), ("Qwen3-Coder", true, false)]
            .map(|(name, xml, thinks)| {
                let path = root().join(format!("testdata/text/templates/{name}.jinja"));
                let template = Template::new(&std::fs::read_to_string(path).unwrap()).unwrap();
                Style { template, xml, thinks }
            })
            .into()
    })
}

fn tools() -> Vec<ToolSpec> {
    let parameters = json!({"type": "object", "properties": {
        "path": {"type": "string"}, "lines": {"type": "array", "items": {"type": "integer"}}, "n": {"type": "number"},
    }});
    let function = json!({"name": "read", "parameters": parameters});
    vec![ToolSpec::new(json!({"type": "function", "function": function})).unwrap()]
}

/// A call as models write it: spaces and order are their own.
fn call(xml: bool, (path, n): (&str, u32), rng: &mut TestRng) -> String {
    let (path_json, flip) = (Value::from(path), rng.next_u32().is_multiple_of(2));
    if xml {
        let path = format!("<parameter=path>\n{path}\n</parameter>\n");
        let n = format!("<parameter=n>\n{n}\n</parameter>\n");
        let both = if flip { path + &n } else { n + &path };
        return format!("<tool_call>\n<function=read>\n{both}</function>\n</tool_call>");
    }
    let arguments = match flip {
        true => format!("{{\"path\":{path_json},  \"n\": {n}}}"),
        false => format!("{{\"n\": {n},\"path\":{path_json}}}"),
    };
    format!("<tool_call>\n{{\"name\": \"read\", \"arguments\": {arguments}}}\n</tool_call>")
}

/// Tokens of a text, in pieces that no tokenizer would make.
fn sampled(tokenizer: &Tokenizer, text: &str, rng: &mut TestRng) -> Vec<u32> {
    let mut tokens = Vec::new();
    for markup in split_at(text, &["<tool_call>", "</tool_call>", "</think>", "<|im_end|>"]) {
        if markup.starts_with('<') && tokenizer.token_id(markup).is_some() {
            tokens.extend(tokenizer.encode(markup, Specials::Parse).unwrap());
            continue;
        }
        let (mut piece, last) = (String::new(), markup.chars().count());
        for (i, c) in markup.chars().enumerate() {
            piece.push(c);
            if rng.next_u32().is_multiple_of(3) || i + 1 == last {
                tokens.extend(tokenizer.encode(&piece, Specials::Ignore).unwrap());
                piece.clear();
            }
        }
    }
    tokens
}

fn split_at<'a>(mut text: &'a str, marks: &[&str]) -> Vec<&'a str> {
    let mut parts = Vec::new();
    while let Some((at, mark)) = marks.iter().filter_map(|mark| Some((text.find(mark)?, *mark))).min() {
        parts.extend([&text[..at], &text[at..at + mark.len()]].into_iter().filter(|part| !part.is_empty()));
        text = &text[at + mark.len()..];
    }
    parts.extend(Some(text).filter(|text| !text.is_empty()));
    parts
}

/// A client's memory of a turn: numbers and the order of keys change on the way.
fn as_a_client_has_it(message: &Message) -> Message {
    let mut value = serde_json::to_value(message).unwrap();
    for call in value["tool_calls"].as_array_mut().into_iter().flatten() {
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        let mut keys: Vec<(String, Value)> = arguments.as_object().unwrap().clone().into_iter().collect();
        keys.sort_by(|a, b| b.0.cmp(&a.0));
        let written: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\" :{value}")).collect();
        call["function"]["arguments"] = format!("{{ {} }}", written.join(" , ")).into();
    }
    serde_json::from_value(value).unwrap()
}

struct Case {
    first: ChatPrompt,
    tokens: Vec<u32>,
    /// What the answer became.
    turn: Message,
    request: ChatRequest,
}

fn case(
    style: &Style,
    tokenizer: &Tokenizer,
    said: (&str, &str),
    calls: &[(&str, u32)],
    seed: [u8; 32],
) -> Case {
    let rng = &mut TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut request = ChatRequest {
        messages: vec![
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, "Do <|im_end|> it."),
        ],
        tools: tools(),
        add_generation_prompt: true,
        ..ChatRequest::default()
    };
    let first = ChatPrompt::new(&style.template, tokenizer, &request).unwrap();
    let (thought, text) = said;
    let mut written = String::new();
    if style.thinks {
        let opening = if first.opens_thinking { "" } else { "<think>\n" };
        written += &format!("{opening}{thought}\n</think>\n\n");
    }
    written += text;
    for (i, one) in calls.iter().enumerate() {
        let gap = match (i, text.is_empty(), style.xml) {
            (0, true, _) => "",
            (0, false, true) => "\n\n",
            _ => "\n",
        };
        written += &format!("{gap}{}", call(style.xml, *one, rng));
    }
    let tokens = sampled(tokenizer, &format!("{written}<|im_end|>"), rng);
    let options =
        ReplyOptions { tools: tools(), opens_thinking: first.opens_thinking, ..ReplyOptions::default() };
    let (mut parser, mut turn) = (ReplyParser::new(options), ReplyTurn::default());
    parser.push(&written).iter().for_each(|event| turn.take(event));
    parser.finish().iter().for_each(|event| turn.take(event));
    let turn = as_a_client_has_it(&turn.message());
    assert_eq!(turn.tool_calls.len(), calls.len(), "{written}");
    request.messages.push(turn.clone());
    match calls.len() {
        0 => request.messages.push(Message::new(Role::User, "And then?")),
        n => request.messages.extend((0..n).map(|_| Message::new(Role::Tool, "done"))),
    }
    Case { first, tokens, turn, request }
}

fn cases() -> impl Strategy<Value = (usize, bool, String, String, Vec<(String, u32)>, [u8; 32])> {
    let text = "[a-zA-Z]([a-zA-Z<|_,.é🌊 \n]{0,40}[a-z.é🌊])?";
    let path = "[a-z/<]{1,12}[a-z]";
    let calls = prop::collection::vec((path, 0..1000_u32), 0..3);
    (0..3_usize, any::<bool>(), text, prop_oneof![text, Just(String::new())], calls, any::<[u8; 32]>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A loop of calls shows its thoughts, and all of it goes on from the tokens that were computed. An answer without calls
    /// does so where it has no thoughts to lose.
    #[test]
    fn a_conversation_goes_on_from_the_tokens_that_were_sampled(
        (style, small, thought, text, calls, seed) in cases()
    ) {
        let (style, tokenizer) = (&styles()[style], &tokenizers()[usize::from(small)]);
        prop_assume!(!calls.is_empty() || !text.is_empty());
        let calls: Vec<(&str, u32)> = calls.iter().map(|(path, n)| (path.as_str(), *n)).collect();
        let Case { first, tokens, turn, mut request } = case(style, tokenizer, (&thought, &text), &calls, seed);
        let plain = ChatPrompt::new(&style.template, tokenizer, &request).unwrap();
        let at = request.messages.iter().position(|message| *message == turn).unwrap();
        request.messages[at].written = Some(tokens.clone().into());
        let next = ChatPrompt::new(&style.template, tokenizer, &request).unwrap();
        prop_assert_eq!(&next.text, &plain.text);
        let shown = tokenizer.decode(&next.tokens, true);
        if calls.is_empty() {
            prop_assert_eq!(&shown, &tokenizer.decode(&plain.tokens, true));
        }
        if !style.thinks || (!calls.is_empty() && first.opens_thinking) {
            let both = [first.tokens.as_slice(), &tokens].concat();
            let same = next.tokens.iter().zip(&both).take_while(|(a, b)| a == b).count();
            prop_assert_eq!(same, both.len(), "{:?}\n{:?}", shown, tokenizer.decode(&both, true));
        } else if !text.is_empty() {
            // The thoughts are gone, the rest is as it was sampled.
            let said = tokenizer.encode(&text, Specials::Ignore).unwrap();
            prop_assert!(said.is_empty() || next.tokens.len() > first.tokens.len());
        }
    }

    /// What a client has changed is cut as everybody's text, and so is a turn with the tokens of another one.
    #[test]
    fn another_text_is_not_taken_for_what_was_sampled(
        (style, small, thought, text, calls, seed) in cases(), other in "[A-Z]{3,9}"
    ) {
        let (style, tokenizer) = (&styles()[style], &tokenizers()[usize::from(small)]);
        let calls: Vec<(&str, u32)> = calls.iter().map(|(path, n)| (path.as_str(), *n)).collect();
        let Case { tokens, turn, mut request, .. } = case(style, tokenizer, (&thought, &text), &calls, seed);
        let at = request.messages.iter().position(|message| *message == turn).unwrap();
        request.messages[at].content = Some(tidemill_engine::text::Content::Text(format!("{other} <|im_end|>")));
        for call in &mut request.messages[at].tool_calls {
            call.arguments = Json::from(json!({"path": other, "n": 1.5}));
        }
        request.messages[at].reasoning_content = None;
        let plain = ChatPrompt::new(&style.template, tokenizer, &request).unwrap();
        request.messages[at].written = Some(tokens.into());
        let next = ChatPrompt::new(&style.template, tokenizer, &request).unwrap();
        prop_assert_eq!(tokenizer.decode(&next.tokens, true), tokenizer.decode(&plain.tokens, true));
        let ends = |tokens: &[u32]| tokens.iter().filter(|id| tokenizer.is_special(**id)).count();
        prop_assert_eq!(ends(&next.tokens), ends(&plain.tokens));
    }
}
