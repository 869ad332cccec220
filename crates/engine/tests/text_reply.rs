//! Replies taken apart: thoughts, text and tool calls, however the stream is cut.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_engine::text::{ReplyEvent, ReplyOptions, ReplyParser, ToolSpec};

fn tools() -> Vec<ToolSpec> {
    let properties = json!({"city": {"type": "string"}, "days": {"type": "integer"}});
    let function = json!({"name": "weather", "parameters": {"type": "object", "properties": properties}});
    vec![ToolSpec::new(json!({"type": "function", "function": function})).unwrap()]
}

fn options(opens_thinking: bool) -> ReplyOptions {
    ReplyOptions { opens_thinking, tools: tools() }
}

/// The events of a reply cut into `chunks`, adjacent text joined; checks that no marker leaks on the way.
fn parse<'a>(options: ReplyOptions, chunks: impl IntoIterator<Item = &'a str>) -> Vec<ReplyEvent> {
    let mut parser = ReplyParser::new(options);
    let mut events: Vec<ReplyEvent> = chunks.into_iter().flat_map(|c| parser.push(c)).collect();
    events.extend(parser.finish());
    let mut joined: Vec<ReplyEvent> = Vec::new();
    for event in events {
        match (joined.last_mut(), event) {
            (Some(ReplyEvent::Text(a)), ReplyEvent::Text(b))
            | (Some(ReplyEvent::Thinking(a)), ReplyEvent::Thinking(b)) => a.push_str(&b),
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn text(t: &str) -> ReplyEvent {
    ReplyEvent::Text(t.into())
}

fn thinking(t: &str) -> ReplyEvent {
    ReplyEvent::Thinking(t.into())
}

fn call(index: usize, arguments: Value) -> [ReplyEvent; 2] {
    let call =
        tidemill_engine::text::ToolCall { id: format!("call_{index}"), name: "weather".into(), arguments };
    [ReplyEvent::ToolCallStart { index, name: "weather".into() }, ReplyEvent::ToolCall { index, call }]
}

const XML: &str = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n\
                   </parameter>\n</function>\n</tool_call>";
const JSON: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"</tool_call>\"}}\n</tool_call>";

#[test]
fn thoughts_then_answer() {
    let want = [thinking("Hm.\n\nYes."), text("  Answer.\n")];
    assert_eq!(parse(options(false), ["<think>\nHm.\n\nYes.\n</think>\n\n  Answer.\n"]), want);
    assert_eq!(parse(options(true), ["Hm.\n\nYes.\n</think>\n\n  Answer.\n"]), want);
    assert_eq!(parse(options(true), ["<think>\nHm.\n\nYes.</think>  Answer.\n"]), want);
    assert_eq!(parse(options(false), ["<think>\n\n</think>\n\nAnswer."]), [text("Answer.")]);
    assert_eq!(parse(options(true), ["never closed"]), [thinking("never closed")]);
}

#[test]
fn markers_elsewhere_are_text() {
    let plain = "The tag <think> opens a thought, </think> ends it. 1 < 2";
    assert_eq!(parse(options(false), [plain]), [text(plain)]);
    let no_tools = ReplyOptions::default();
    assert_eq!(parse(no_tools, [XML]), [text(XML)]);
    assert_eq!(parse(options(false), ["a <tool_cal"]), [text("a <tool_cal")]);
}

#[test]
fn calls_in_both_forms() {
    let reply = format!("Let me see.\n\n{XML}\n{JSON}\n");
    let mut want = vec![text("Let me see.")];
    want.extend(call(0, json!({"city": "Rome", "days": 3})));
    want.extend(call(1, json!({"city": "</tool_call>"})));
    assert_eq!(parse(options(false), [reply.as_str()]), want);
    // Text between and after calls stays.
    let reply = format!("{XML}\nand\n{XML}\nDone.");
    let rome = json!({"city": "Rome", "days": 3});
    let mut want = call(0, rome.clone()).to_vec();
    want.push(text("and"));
    want.extend(call(1, rome));
    want.push(text("Done."));
    assert_eq!(parse(options(false), [reply.as_str()]), want);
}

#[test]
fn the_name_comes_before_the_arguments() {
    let mut parser = ReplyParser::new(options(false));
    assert_eq!(parser.push("<tool_call>\n<function=weath"), []);
    let start = ReplyEvent::ToolCallStart { index: 0, name: "weather".into() };
    assert_eq!(parser.push("er>\n<para"), [start]);
}

#[test]
fn an_unclosed_but_whole_call_counts() {
    let reply = XML.strip_suffix("\n</tool_call>").unwrap();
    assert_eq!(parse(options(false), [reply]), call(0, json!({"city": "Rome", "days": 3})));
}

#[test]
fn malformed_calls_are_kept_as_text() {
    let reply = "So:\n\n<tool_call>\n{oops}\n</tool_call> and on";
    let events = parse(options(false), [reply]);
    assert_eq!(events[0], text("So:"));
    assert!(
        matches!(&events[1], ReplyEvent::MalformedToolCall { index: 0, reason } if reason.contains("JSON"))
    );
    assert_eq!(events[2], text("\n\n<tool_call>\n{oops}\n</tool_call> and on"));
    // What follows a broken call is still read, and the next whole call has its index.
    let reply = format!("<tool_call>\nnonsense\n</tool_call>\n{XML}");
    let events = parse(options(false), [reply.as_str()]);
    assert_eq!(events[1], text("<tool_call>\nnonsense\n</tool_call>"));
    assert_eq!(events[2..], call(0, json!({"city": "Rome", "days": 3})));
    // Cut off in the middle of a value.
    let events = parse(options(false), ["<tool_call>\n<function=weather>\n<parameter=city>\nRo"]);
    assert!(
        matches!(&events[1], ReplyEvent::MalformedToolCall { reason, .. } if reason.contains("ends inside"))
    );
    assert_eq!(events[2], text("<tool_call>\n<function=weather>\n<parameter=city>\nRo"));
}

/// Replies made of the pieces that matter, in any order, cut anywhere.
fn reply() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=weather>",
        "</function>",
        "<parameter=city>",
        "</parameter>",
        "{\"name\": \"weather\", \"arguments\": {}}",
        "{",
        "\"",
        "\n",
        "\n\n",
        " ",
        "a",
        "é",
        "<",
        "<tool",
        XML,
        JSON,
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|p| p.concat())
}

fn cut<'a>(text: &'a str, at: &[usize]) -> Vec<&'a str> {
    let mut at: Vec<usize> =
        at.iter().map(|i| i % (text.len() + 1)).filter(|i| text.is_char_boundary(*i)).collect();
    at.sort_unstable();
    at.push(text.len());
    let mut from = 0;
    at.into_iter().map(|to| &text[std::mem::replace(&mut from, to)..to]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn chunking_never_shows(reply in reply(), at in prop::collection::vec(any::<usize>(), 0..12), open: bool) {
        let whole = parse(options(open), [reply.as_str()]);
        prop_assert_eq!(parse(options(open), cut(&reply, &at)), whole.clone());
        let characters: Vec<&str> = reply.split("").filter(|c| !c.is_empty()).collect();
        prop_assert_eq!(parse(options(open), characters), whole);
    }

    /// Without calls and thoughts, every character that is not white space comes out again.
    #[test]
    fn nothing_is_lost(reply in reply()) {
        let solid = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        let events = parse(options(false), [reply.as_str()]);
        let calls = events.iter().any(|e| matches!(e, ReplyEvent::ToolCall { .. }));
        let thought = reply.trim_start().starts_with("<think>");
        let shown: String = events
            .iter()
            .map(|e| match e {
                ReplyEvent::Text(t) | ReplyEvent::Thinking(t) => t.as_str(),
                _ => "",
            })
            .collect();
        if !calls && !thought {
            prop_assert_eq!(solid(&shown), solid(&reply));
        }
    }
}
