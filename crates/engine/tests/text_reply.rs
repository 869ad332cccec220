//! Replies taken apart: thoughts, text and tool calls, however the stream is cut.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_engine::text::{Json, ReplyEvent, ReplyOptions, ReplyParser, StopStrings, ToolSpec};

fn tools() -> Vec<ToolSpec> {
    let properties = json!({"city": {"type": "string"}, "days": {"type": "integer"}});
    let function = json!({"name": "weather", "parameters": {"type": "object", "properties": properties}});
    vec![ToolSpec::new(json!({"type": "function", "function": function})).unwrap()]
}

fn options(opens_thinking: bool) -> ReplyOptions {
    ReplyOptions { opens_thinking, tools: tools(), ..ReplyOptions::default() }
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
            | (Some(ReplyEvent::Thinking(a)), ReplyEvent::Thinking(b))
            | (
                Some(ReplyEvent::ToolCallArguments { text: a, .. }),
                ReplyEvent::ToolCallArguments { text: b, .. },
            ) => a.push_str(&b),
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

fn start(index: usize) -> ReplyEvent {
    ReplyEvent::ToolCallStart { index, name: "weather".into() }
}

fn piece(index: usize, text: &str) -> ReplyEvent {
    ReplyEvent::ToolCallArguments { index, text: text.into() }
}

fn call(index: usize, arguments: Value) -> [ReplyEvent; 3] {
    let (id, arguments) = (format!("call_{index}"), Json::from(arguments));
    let text = arguments.to_string();
    let call = tidemill_engine::text::ToolCall { id, name: "weather".into(), arguments };
    [start(index), piece(index, &text), ReplyEvent::ToolCall { index, call }]
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
    // A border, since text came before.
    want.push(text("\nDone."));
    assert_eq!(parse(options(false), [reply.as_str()]), want);
}

#[test]
fn the_name_comes_before_the_arguments() {
    let mut parser = ReplyParser::new(options(false));
    assert_eq!(parser.push("<tool_call>\n<function=weath"), []);
    assert_eq!(parser.push("er>\n<para"), [start(0), piece(0, "{")]);
    let mut parser = ReplyParser::new(options(false));
    assert_eq!(parser.push("<tool_call>\n{\"name\": \"weath"), []);
    assert_eq!(parser.push("er\""), [start(0)]);
}

/// What `chunks` say of a call, chunk by chunk.
fn pieces(chunks: &[&str]) -> Vec<String> {
    let mut parser = ReplyParser::new(options(false));
    let told = |events: Vec<ReplyEvent>| {
        let told = events.into_iter().map(|event| match event {
            ReplyEvent::ToolCallArguments { index: 0, text } => text,
            ReplyEvent::ToolCall { .. } => ".".to_owned(),
            _ => String::new(),
        });
        told.collect()
    };
    chunks.iter().map(|chunk| told(parser.push(chunk))).collect()
}

#[test]
fn arguments_come_as_they_are_written() {
    let begin = "<tool_call>\n<function=weather>\n<parameter=city>\n";
    let chunks = [begin, "Ro", "me \"\n", "x</par", "t\n</parameter>\n", "<parameter=days>\n1", "2"];
    let told = [r#"{"city":""#, "Ro", r#"me \""#, "\\nx", "</part", r#"","days":"#, ""];
    assert_eq!(pieces(&chunks), told);
    let mut chunks = chunks.to_vec();
    chunks.extend(["\n</parameter>\n</fun", "ction>", "\n</tool_call>"]);
    assert_eq!(pieces(&chunks)[7..], ["", "12", "}."]);
    // Values that only JSON can hold, digits and escapes.
    let begin = "<tool_call>\n{\"name\": \"weather\", \"arguments\"";
    let chunks = [
        begin,
        ": {\"city\" : \"a\\u00",
        "e9\\ud83d",
        "\\ude00\n\\/",
        "\", \"x\": [1.0, {\"y\": nu",
        "ll}]} }",
    ];
    assert_eq!(pieces(&chunks), ["", r#"{"city":"a"#, "é", "😀\\n/", r#"","x":[1.0,{"y":nu"#, "ll}]"]);
    // Arguments that come before the name, and calls of tools that nobody offered, are told when they are whole.
    let reversed = "<tool_call>{\"arguments\": {\"city\": \"Rome\"}, \"name\": \"weather\"}";
    assert_eq!(pieces(&[reversed, "</tool_call>"]), ["", "{\"city\":\"Rome\"}."]);
    let other = "<tool_call>\n<function=other>\n<parameter=a>\n1\n</parameter>\n</function>";
    assert_eq!(pieces(&[other, "</tool_call>"]), ["", "{\"a\":1}."]);
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
}

#[test]
fn a_call_that_breaks_after_its_beginning_was_told() {
    let cut = "So:\n<tool_call>\n<function=weather>\n<parameter=city>\nRo";
    let broken = |index, reason: &str, text: &str| ReplyEvent::BrokenToolCall {
        index,
        reason: reason.into(),
        text: text.into(),
    };
    let ends = "the reply ends inside the call";
    let want = [text("So:"), start(0), piece(0, "{\"city\":\"Ro"), broken(0, ends, &cut[3..])];
    assert_eq!(parse(options(false), [cut]), want);
    // What was told is never whole JSON, whatever is missing.
    for (whole, cuts) in [(XML, XML.find("</function>").unwrap()), (JSON, JSON.rfind('}').unwrap() - 1)] {
        for at in 0..cuts {
            let told = pieces(&[&whole[..at]]).concat();
            assert!(Json::parse(&told).is_err(), "{told}");
        }
    }
    // The next call is read, and has the next index.
    let first = "<tool_call>\n<function=weather>\nand\n</tool_call>";
    let neither = "neither <parameter=…> nor </function>";
    let mut want = vec![start(0), piece(0, "{"), broken(0, neither, first)];
    want.extend(call(1, json!({"city": "Rome", "days": 3})));
    assert_eq!(parse(options(false), [&*format!("{first}\n{XML}")]), want);
    let first = "<tool_call>\n<function=weather>\n";
    want[2] = broken(0, "neither <parameter=…> nor </function>", first);
    assert_eq!(parse(options(false), [&*format!("{first}{XML}")]), want);
}

#[test]
fn calls_without_their_markup() {
    let rome = json!({"city": "Rome"});
    let bare = "<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>";
    let mut want = vec![text("I'll do it.")];
    want.extend(call(0, rome.clone()));
    // The end marker that has no beginning belongs to the call.
    for reply in [format!("I'll do it.\n\n{bare}\n</tool_call>"), format!("I'll do it.\n{bare}")] {
        assert_eq!(parse(options(false), [reply.as_str()]), want);
    }
    let reply = format!("{bare}\r\n</tool_call>\r\n{bare}\n</tool_call>\nDone.");
    let mut want = call(0, rome.clone()).to_vec();
    want.extend(call(1, rome));
    want.push(text("Done."));
    assert_eq!(parse(options(false), [reply.as_str()]), want);
    // Text about a function, another function, a call cut off, an end marker alone.
    for reply in [
        "Write <function=weather> first.",
        "<function=other>\n<parameter=city>\nRome\n</parameter>\n</function>",
        "<function=weather>\n<parameter=city>\nRo",
        "So </tool_call> it is.",
    ] {
        assert_eq!(parse(options(false), [reply]), [text(reply)]);
    }
    assert_eq!(parse(ReplyOptions::default(), [bare]), [text(bare)]);
}

#[test]
fn end_tags_left_out() {
    let open = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</function>\n</tool_call>";
    let rome = json!({"city": "Rome"});
    assert_eq!(parse(options(false), [open]), call(0, rome.clone()));
    assert_eq!(parse(options(false), [&*format!("{open}\n")]), call(0, rome.clone()));
    // Another call, and text, are no part of the value.
    let mut want = call(0, rome.clone()).to_vec();
    want.extend(call(1, json!({"city": "Rome", "days": 3})));
    assert_eq!(parse(options(false), [&*format!("{open}\n{XML}")]), want);
    want.insert(3, text("And:"));
    assert_eq!(parse(options(false), [&*format!("{open}\nAnd:\n{XML}")]), want);
    let mut want = call(0, rome).to_vec();
    want.push(text("Done."));
    assert_eq!(parse(options(false), [&*format!("{open}\nDone.")]), want);
    // A value that holds the markers and is closed.
    let value = "x\n</function>\n</tool_call>\n</parameter>";
    let closed = format!(
        "<tool_call>\n<function=weather>\n<parameter=city>\n{value} y\n</parameter>\n</function>\n</tool_call>"
    );
    assert_eq!(parse(options(false), [&*closed]), call(0, json!({"city": format!("{value} y")})));
}

#[test]
fn an_end_of_a_thought_without_a_beginning() {
    let want = [text("Hm. Yes."), ReplyEvent::TextWasThinking, text("Answer.")];
    assert_eq!(parse(options(false), ["Hm. Yes.\n</think>\n\nAnswer."]), want);
    assert_eq!(parse(options(false), ["Hm. Yes.</think>Answer."]), want);
    assert_eq!(parse(options(false), ["</think>\n\nAnswer."]), [text("Answer.")]);
    // One thought only, and none in text about markup.
    for reply in ["a\n<think>\nb\n</think>\nc", "The tag `</think>` ends a thought."] {
        assert_eq!(parse(options(false), [reply]), [text(reply)]);
    }
    let twice = parse(options(true), ["Hm.</think>A</think>B"]);
    assert_eq!(twice, [thinking("Hm."), text("A</think>B")]);
}

#[test]
fn replies_that_are_a_call_in_json() {
    let options = |json_calls| ReplyOptions { json_calls, ..options(false) };
    let reply = r#"{"name": "weather", "parameters": {"city": "Rome"}}"#;
    assert_eq!(parse(options(true), [reply]), call(0, json!({"city": "Rome"})));
    let mut want = call(0, json!({"city": "Rome"})).to_vec();
    want.extend(call(1, json!({"city": "Rome"})));
    assert_eq!(parse(options(true), [&*format!("\n{reply}; {reply}\n")]), want);
    assert_eq!(parse(options(false), [reply]), [text(reply)]);
    for other in
        [&format!("Look: {reply}"), &format!("{reply} there"), "{\"name\": \"f\"}", "{\"a\": 1}", "{"]
    {
        assert_eq!(parse(options(true), [other]), [text(other)]);
    }
}

#[test]
fn stop_strings_end_the_answer_alone() {
    let stopped = |reply: &str| {
        let stop = StopStrings::new(vec!["END".into(), "Rome".into()]).unwrap();
        let mut parser = ReplyParser::new(ReplyOptions { stop, ..options(false) });
        let mut events: Vec<ReplyEvent> = reply.chars().flat_map(|c| parser.push(&c.to_string())).collect();
        let is_stopped = parser.is_stopped();
        events.extend(parser.finish());
        let shown = |e: &ReplyEvent| match e {
            ReplyEvent::Text(t) => t.clone(),
            ReplyEvent::Thinking(t) => format!("({t})"),
            ReplyEvent::ToolCall { call, .. } => format!("[{}]", call.arguments),
            _ => String::new(),
        };
        (events.iter().map(shown).collect::<String>().replace(")(", ""), is_stopped)
    };
    assert_eq!(stopped("<think>\nThe END.\n</think>\n\nSo END it is"), ("(The END.)So ".into(), true));
    assert_eq!(stopped("<think>Rome</think>No EN"), ("(Rome)No EN".into(), false));
    let reply = format!("A EN{XML}D ENDE");
    assert_eq!(stopped(&reply), ("A EN[{\"city\":\"Rome\",\"days\":3}]\nD ".into(), true));
}

/// Replies made of the pieces that matter, in any order. Every `#` becomes a word of its own.
fn reply() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<function=weather>",
        "<function=#>",
        "</function>",
        "<parameter=city>",
        "<parameter=days>",
        "<parameter=#>",
        "</parameter>",
        "{\"name\": \"weather\", \"arguments\": {}}",
        "{\"name\": \"weather\", \"#\": {\"#\": \"#\"}}",
        "{",
        "\"",
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "#",
        "#\n",
        "`",
        "é",
        "<",
        "<tool",
        "<function=weather>\n<parameter=city>\n#\n",
        "<function=weather>\n<parameter=city>\n#\n</parameter>\n</function>",
        "\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\n#\n<parameter=days>\n#\n",
        "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"#\"}}\n</tool_call>",
        XML,
        JSON,
    ]);
    prop::collection::vec(pieces, 0..14).prop_map(|pieces| {
        let mut words = 0..;
        let parts: Vec<String> = pieces.concat().split('#').map(str::to_owned).collect();
        parts.into_iter().reduce(|a, b| format!("{a}w{}.{b}", words.next().unwrap_or(0))).unwrap_or_default()
    })
}

/// All that the events hold of a reply, in one text.
fn told(events: &[ReplyEvent]) -> String {
    let one = |e: &ReplyEvent| match e {
        ReplyEvent::Text(t) | ReplyEvent::Thinking(t) => t.clone(),
        ReplyEvent::ToolCall { call, .. } => format!("{}{}", call.name, call.arguments),
        ReplyEvent::BrokenToolCall { text, .. } => text.clone(),
        _ => String::new(),
    };
    events.iter().map(one).collect()
}

/// The pieces of each whole call are its arguments, those of another are no JSON, and none ends as another call.
fn streams_agree(events: &[ReplyEvent]) -> Result<(), TestCaseError> {
    let mut told = String::new();
    for event in events {
        match event {
            ReplyEvent::ToolCallStart { .. } => told.clear(),
            ReplyEvent::ToolCallArguments { text, .. } => told.push_str(text),
            ReplyEvent::ToolCall { call, .. } => prop_assert_eq!(&told, &call.arguments.to_string()),
            ReplyEvent::BrokenToolCall { reason, .. } => {
                prop_assert!(!reason.contains("another call"), "{}", told);
                prop_assert!(Json::parse(&told).is_err(), "{}", told);
            }
            _ => {}
        }
    }
    Ok(())
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
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn chunking_never_shows(
        reply in reply(),
        at in prop::collection::vec(any::<usize>(), 0..12),
        opens_thinking: bool,
        json_calls: bool,
        stop: bool,
    ) {
        let stop = StopStrings::new(if stop { vec!["w1.".into()] } else { Vec::new() }).unwrap();
        let options = || ReplyOptions { json_calls, stop: stop.clone(), ..options(opens_thinking) };
        let whole = parse(options(), [reply.as_str()]);
        prop_assert_eq!(&parse(options(), cut(&reply, &at)), &whole);
        let characters: Vec<&str> = reply.split("").filter(|c| !c.is_empty()).collect();
        prop_assert_eq!(&parse(options(), characters), &whole);
        for (at, _) in reply.char_indices() {
            prop_assert_eq!(&parse(options(), [&reply[..at], &reply[at..]]), &whole, "cut at {}", at);
        }
    }

    /// Whatever a reply is like, every word of it comes out, once and in its order: as text, thought or call.
    #[test]
    fn nothing_is_lost(reply in reply(), opens_thinking: bool, json_calls: bool) {
        let events = parse(ReplyOptions { json_calls, ..options(opens_thinking) }, [reply.as_str()]);
        let words = |text: &str| -> Vec<String> {
            text.split('w').skip(1).filter_map(|w| Some(w.split_once('.')?.0.to_owned())).collect()
        };
        let told = told(&events);
        prop_assert_eq!(words(&told), words(&reply), "{}", told);
        // Without markup that was understood, every character that is not white space comes out.
        let understood = |e: &ReplyEvent| matches!(e, ReplyEvent::ToolCall { .. } | ReplyEvent::Thinking(_));
        streams_agree(&events)?;
        if !events.iter().any(understood) && !reply.contains("</think>") && !reply.trim().starts_with("<think>") {
            let solid = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(solid(&told), solid(&reply));
        }
    }
}
