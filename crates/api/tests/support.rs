//! What the tests of several APIs share: a head, a request, an answer's events, frames as text.

use std::time::Duration;

use api::{
    Chat, Ending, Event, EventKind, Frame, Limits, Prompt, ReplyHead, ReplyWriter, Request, Timings,
    TokenLogprob, Usage,
};
use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::Value;

/// The limits of a server with its defaults.
pub(crate) fn limits() -> Limits {
    Limits { choices_max: 16, strict: false, completion_tokens: 16 }
}

/// The same, where what nobody knows is refused.
pub(crate) fn strict() -> Limits {
    Limits { strict: true, ..limits() }
}

/// The head of an answer.
pub(crate) fn head() -> ReplyHead {
    ReplyHead {
        id: "X1".into(),
        request_id: "req_1".into(),
        created_unix_s: 1_700_000_000,
        model: "demo".into(),
        fingerprint: "fp".into(),
    }
}

/// An event of the first answer.
pub(crate) fn event(kind: EventKind) -> Event {
    Event { choice: 0, kind }
}

/// The beginning of an answer.
pub(crate) fn started() -> Event {
    event(EventKind::Started { prompt_tokens: 20, cached_tokens: 8 })
}

/// A piece of its text.
pub(crate) fn text(text: &str) -> Event {
    event(EventKind::Text { text: text.into(), logprobs: Vec::new() })
}

/// A piece of its thoughts.
pub(crate) fn thinking(text: &str) -> Event {
    event(EventKind::Thinking(text.into()))
}

/// A call, whose arguments come in pieces.
pub(crate) fn call(index: usize, name: &str, arguments: &[&str]) -> Vec<Event> {
    let start = EventKind::CallStart { index, id: format!("C{index}"), name: name.into() };
    let pieces = arguments.iter().map(|text| EventKind::CallArguments { index, text: (*text).into() });
    let kinds = [start].into_iter().chain(pieces).chain([EventKind::CallEnd { index }]);
    kinds.map(event).collect()
}

/// Its end.
pub(crate) fn ended(ending: Ending) -> Event {
    let usage = Usage { prompt_tokens: 20, cached_tokens: 8, completion_tokens: 5, reasoning_tokens: 2 };
    event(EventKind::Ended { ending, usage, timings: Timings::default() })
}

/// A request's conversation.
pub(crate) fn chat(request: &Request) -> &Chat {
    match &request.prompt {
        Prompt::Chat(chat) => chat,
        Prompt::Texts(_) => panic!("no chat"),
    }
}

/// A line a turn, as a template sees it.
pub(crate) fn turns(chat: &Chat) -> String {
    let lines: Vec<String> =
        chat.messages.iter().map(|message| message.template_value().to_string()).collect();
    lines.join("\n")
}

/// All frames of an answer.
pub(crate) fn frames(writer: &mut dyn ReplyWriter, events: &[Event]) -> Vec<Frame> {
    frames_with(writer, events, &[])
}

/// All frames of an answer, with a sign of life before each event that `pings` counts.
pub(crate) fn frames_with(writer: &mut dyn ReplyWriter, events: &[Event], pings: &[usize]) -> Vec<Frame> {
    let mut frames = writer.begin();
    for (i, event) in events.iter().enumerate() {
        if pings.contains(&i) {
            frames.extend(writer.ping());
        }
        frames.extend(writer.event(event));
    }
    frames.extend(writer.end());
    frames
}

/// The whole answer.
pub(crate) fn whole(writer: &mut dyn ReplyWriter, events: &[Event]) -> Value {
    for event in events {
        writer.event(event);
    }
    writer.whole()
}

/// The bodies of named frames, each of which says its name twice.
pub(crate) fn bodies(frames: &[Frame]) -> Vec<Value> {
    let body = |frame: &Frame| match frame {
        Frame::Data { event: Some(name), data } => {
            let body: Value = serde_json::from_str(data).unwrap();
            assert_eq!(body["type"], *name, "{data}");
            assert!(!data.contains('\n'), "{data}");
            body
        }
        other => panic!("{other:?}"),
    };
    frames.iter().map(body).collect()
}

/// A line a frame, for snapshots.
pub(crate) fn lines(frames: &[Frame]) -> String {
    let line = |frame: &Frame| match frame {
        Frame::Data { event, data } => format!("{} {data}", event.unwrap_or("-")),
        Frame::Comment(text) => format!(": {text}"),
    };
    frames.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What an answer is made of, before it is cut into events.
#[derive(Clone, Debug)]
enum Part {
    Thinking(Vec<String>),
    Text(Vec<String>),
    Call { arguments: Vec<String>, ends: bool },
}

fn pieces() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("[a-z \"\\\\\n\u{0}é漢👩‍👧]{0,6}", 0..5)
}

fn part() -> impl Strategy<Value = Part> {
    let arguments = (prop::collection::btree_map("[a-zé\"]{1,4}", any::<i32>(), 0..4), any::<[u8; 3]>());
    let arguments = arguments.prop_map(|(map, cuts)| {
        let text = serde_json::to_string(&map).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| usize::from(*cut) % (text.len() + 1)).collect();
        cuts.retain(|cut| text.is_char_boundary(*cut));
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| text[pair[0]..pair[1]].to_owned()).collect::<Vec<_>>()
    });
    let arguments = prop_oneof![4 => arguments, 1 => Just(Vec::new())];
    prop_oneof![
        pieces().prop_map(Part::Thinking),
        pieces().prop_map(Part::Text),
        (arguments, prop::bool::weighted(0.9)).prop_map(|(arguments, ends)| Part::Call { arguments, ends }),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Stop),
        Just(Ending::StopString("END".into())),
        Just(Ending::Length),
        Just(Ending::Context),
    ]
}

/// The events of any answer.
pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    let progress = prop::collection::vec(0usize..100, 0..3);
    (progress, prop::collection::vec(part(), 0..6), ending()).prop_map(|(progress, parts, ending)| {
        let mut events = vec![started()];
        events.extend(progress.into_iter().map(|done_tokens| {
            let elapsed = Duration::from_millis(5);
            event(EventKind::Progress { done_tokens, total_tokens: 100, cached_tokens: 8, elapsed })
        }));
        let (mut calls, last) = (0, parts.len());
        for (i, part) in parts.into_iter().enumerate() {
            match part {
                Part::Thinking(pieces) => events.extend(pieces.iter().map(|piece| thinking(piece))),
                Part::Text(pieces) => events.extend(pieces.iter().map(|piece| text(piece))),
                Part::Call { arguments, ends } => {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    let mut of_call = call(calls, "f", &arguments);
                    // Only what ends an answer cuts a call off.
                    if !ends && i + 1 == last && ending == Ending::Length {
                        of_call.pop();
                    }
                    events.extend(of_call);
                    calls += 1;
                }
            }
        }
        events.push(ended(ending));
        events
    })
}

/// A token and the likeliest at its place.
pub(crate) fn logprob(bytes: &[u8], logprob: f32) -> TokenLogprob {
    let own = TokenLogprob { id: 1, bytes: bytes.to_vec(), logprob, top: Vec::new() };
    let other = TokenLogprob { id: 2, bytes: vec![0xc3], logprob: f32::NEG_INFINITY, top: Vec::new() };
    TokenLogprob { top: vec![own.clone(), other], ..own }
}

/// JSON bodies of which some are nearly requests: values of any kind under the names that `bodies` have.
pub(crate) fn near(bodies: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let examples: Vec<Value> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    let mut words = Vec::new();
    examples.iter().for_each(|example| collect(example, &mut words));
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(words.clone()).prop_map(Value::from),
        ".{0,4}".prop_map(Value::from),
    ];
    let any_value = leaf.prop_recursive(3, 24, 4, move |inner| {
        let key = prop::sample::select(words.clone());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    (prop::sample::select(examples), prop::collection::vec((any::<prop::sample::Index>(), any_value), 0..4))
        .prop_map(|(mut body, changes)| {
            for (place, value) in changes {
                replace(&mut body, place, value);
            }
            body
        })
}

/// All keys and strings of a value.
fn collect(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::String(text) => words.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|item| collect(item, words)),
        Value::Object(map) => map.iter().for_each(|(key, member)| {
            words.push(key.clone());
            collect(member, words);
        }),
        _ => {}
    }
}

/// Puts `with` at a place of `value`, which is anywhere in it.
fn replace(value: &mut Value, place: prop::sample::Index, with: Value) {
    let mut at = place.index(count(value));
    put(value, &mut at, &with);
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn put(value: &mut Value, at: &mut usize, with: &Value) {
    if *at == 0 {
        *value = with.clone();
        *at = usize::MAX;
        return;
    }
    *at = at.saturating_sub(1);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|item| descend(item, at, with)),
        Value::Object(map) => map.values_mut().for_each(|member| descend(member, at, with)),
        _ => {}
    }
}

fn descend(value: &mut Value, at: &mut usize, with: &Value) {
    if *at < usize::MAX / 2 {
        put(value, at, with);
    }
}

/// Places in a stream of `len` events where signs of life come.
pub(crate) fn places(len: usize) -> impl Strategy<Value = Vec<usize>> {
    subsequence((0..len).collect::<Vec<_>>(), 0..=len.min(4))
}
