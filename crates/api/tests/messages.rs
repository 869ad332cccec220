//! What becomes of messages, whichever API they come by.

use engine::text::{Json, Message, Role, ToolCall};
use tidemill_api::messages::{
    call_arguments, content, late_system_as_user, of_texts, settle, steady_billing,
};
use tidemill_api::{Chat, body};

fn message(role: Role, text: &str) -> Message {
    Message::new(role, text)
}

fn result(id: &str) -> Message {
    Message { tool_call_id: Some(id.into()), ..message(Role::Tool, id) }
}

fn calls(ids: &[&str]) -> Message {
    let call = |id: &&str| ToolCall { id: (*id).into(), name: "f".into(), arguments: call_arguments(None) };
    Message { tool_calls: ids.iter().map(call).collect(), ..message(Role::Assistant, "") }
}

/// A line a turn.
fn shown(messages: &[Message]) -> Vec<String> {
    let text = |message: &Message| message.content.as_ref().map(|content| content.text()).unwrap_or_default();
    messages.iter().map(|message| format!("{} {}", message.role.name(), text(message))).collect()
}

#[test]
fn leading_system_messages_are_joined_and_later_ones_stay() {
    let messages = settle(vec![
        message(Role::System, "a"),
        message(Role::Developer, "b"),
        Message { content: Some(of_texts(&["c", "d"])), ..message(Role::System, "") },
        message(Role::System, ""),
        message(Role::User, "hi"),
        message(Role::Developer, "9 tokens left"),
        message(Role::User, "go on"),
    ]);
    let expected =
        ["system a\n\nb\n\nc\nd", "user hi", "system 9 tokens left", "user go on"].map(str::to_owned);
    assert_eq!(shown(&messages), expected);
    let mut chat = Chat { messages, ..Chat::default() };
    let late = |chat: &Chat| chat.messages[1..].iter().any(|message| message.role == Role::System);
    assert!(late(&chat));
    late_system_as_user(&mut chat);
    assert!(!late(&chat));
    assert_eq!(shown(&chat.messages)[2], "user 9 tokens left");
    assert_eq!(shown(&chat.messages)[0], expected[0]);
}

/// A prefix that was found once must be found again, whatever comes after it.
#[test]
fn what_comes_after_changes_nothing_before() {
    let all = [
        message(Role::System, "a"),
        message(Role::System, "b"),
        message(Role::User, "hi"),
        calls(&["1", "2"]),
        result("2"),
        result("1"),
        message(Role::System, "late"),
        message(Role::User, "more"),
    ];
    let full = settle(all.to_vec());
    for length in [3, 6, 7] {
        let part = settle(all[..length].to_vec());
        assert_eq!(part[..], full[..part.len()]);
    }
}

#[test]
fn results_stand_in_the_order_of_their_calls() {
    let messages = settle(vec![
        calls(&["1", "2", "3"]),
        result("3"),
        result("stray"),
        result("1"),
        result("2"),
        message(Role::User, "and"),
        calls(&["5", "4"]),
        result("4"),
        result("5"),
    ]);
    let ids: Vec<&str> = messages.iter().filter_map(|message| message.tool_call_id.as_deref()).collect();
    assert_eq!(ids, ["1", "2", "3", "stray", "5", "4"]);
}

#[test]
fn results_without_ids_stay_as_they_came() {
    let unnamed = |text: &str| message(Role::Tool, text);
    let messages = settle(vec![calls(&["", ""]), unnamed("x"), unnamed("y")]);
    assert_eq!(shown(&messages)[1..], ["tool x", "tool y"].map(str::to_owned));
}

#[test]
fn the_billing_line_is_the_same_in_each_request() {
    let line = |cch: &str| {
        format!(
            "x-anthropic-billing-header: cc_version=2.1.7; cc_entrypoint=cli; cch={cch};\nYou code. cch=1;"
        )
    };
    assert_eq!(steady_billing(&line("a1b2c")), steady_billing(&line("ff")));
    assert_eq!(steady_billing(&line("a1b2c")), line("00000"));
    // No such line, or nothing in it that changes.
    for text in [
        "You code. cch=1;",
        "x-anthropic-billing-header: a=b;",
        "x-anthropic-billing-header: cch=open",
        "x-anthropic-billing-header: xcch=a1;",
        "See\nx-anthropic-billing-header: cch=a1;",
        "",
    ] {
        assert_eq!(steady_billing(text), text);
    }
    let first = settle(vec![message(Role::System, &line("a")), message(Role::User, "hi")]);
    let second = settle(vec![message(Role::System, &line("b")), message(Role::User, "hi")]);
    assert_eq!(first, second);
    // A user may quote it.
    let quoted = settle(vec![message(Role::User, &line("a"))]);
    assert_eq!(shown(&quoted), [format!("user {}", line("a"))]);
}

#[test]
fn arguments_that_are_no_object_stay_text() {
    let read = |value: Json| call_arguments(Some(&body::At::root(&value)));
    for text in ["{\"a\": 1", "not json", "[1]", "{\"a\":1,\"a\":2}", "12"] {
        assert_eq!(read(text.into()), Json::String(text.into()));
    }
    assert_eq!(read(" ".into()).to_string(), "{}");
    let digits = r#"{"n":98765432109876543210.0}"#;
    assert_eq!(read(digits.into()).to_string(), digits);
    assert_eq!(read(Json::parse(digits).unwrap()).to_string(), digits);
    assert_eq!(call_arguments(None).to_string(), "{}");
}

#[test]
fn content_is_text() {
    let read = |json: &str| {
        let json = Json::parse(json).unwrap();
        content(Some(&body::At::root(&json))).map(|content| content.map(|content| content.text()))
    };
    assert_eq!(content(None), Ok(None));
    assert_eq!(read("null"), Ok(None));
    assert_eq!(read("\"a\""), Ok(Some("a".into())));
    assert_eq!(read("[]"), Ok(Some(String::new())));
    let parts = r#"[{"type":"text","text":"a","cache_control":{}},{"type":"input_text","text":"b"},
        {"type":"output_text","text":"c"},{"type":"refusal","refusal":"d"},"e"]"#;
    assert_eq!(read(parts), Ok(Some("abcde".into())));
    let image =
        read(r#"[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"x"}}]"#).unwrap_err();
    assert_eq!((image.param.as_deref(), image.code), (Some("[1].type"), Some("unsupported_value")));
    assert!(image.message.contains("image_url"), "{}", image.message);
    for wrong in ["1", "{}", "[1]", "[{\"text\":\"a\"}]", "[{\"type\":\"text\",\"text\":1}]"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
