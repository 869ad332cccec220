//! Any text as a model's reply, whole and cut in two: the same events, and a call is never made of nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemill_engine::text::{ReplyEvent, ReplyOptions, ReplyParser, ToolSpec};

fn options(opens_thinking: bool) -> ReplyOptions {
    let parameters = serde_json::json!({"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}});
    let tool = serde_json::json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    let tools = ToolSpec::new(tool).into_iter().collect();
    ReplyOptions { opens_thinking, tools, ..ReplyOptions::default() }
}

/// Texts and thoughts joined, and how many calls there were.
fn read(chunks: &[&str], opens_thinking: bool) -> (String, String, usize) {
    let mut parser = ReplyParser::new(options(opens_thinking));
    let mut events: Vec<ReplyEvent> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
    events.extend(parser.finish());
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), 0);
    for event in events {
        match event {
            ReplyEvent::Text(part) => text.push_str(&part),
            ReplyEvent::Thinking(part) => thinking.push_str(&part),
            ReplyEvent::ToolCall { .. } => calls += 1,
            _ => {}
        }
    }
    (text, thinking, calls)
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, reply)) = input.split_first() else { return };
    let Ok(reply) = std::str::from_utf8(reply) else { return };
    let opens_thinking = flags & 1 == 1;
    let mut cut = usize::from(flags >> 1) * reply.len() / 128;
    while !reply.is_char_boundary(cut) {
        cut += 1;
    }
    let whole = read(&[reply], opens_thinking);
    assert_eq!(read(&[&reply[..cut], &reply[cut..]], opens_thinking), whole, "cut at {cut}");
    assert!(whole.0.len() + whole.1.len() <= reply.len() + 2 * reply.matches('<').count() + 1);
});
