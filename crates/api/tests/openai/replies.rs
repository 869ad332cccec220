//! Answers, whole and streamed.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tidemill_api::openai::{chat_reply, completion_reply};
use tidemill_api::{ApiError, Ending, ErrorClass, Event, EventKind, Frame, Timings, Usage};

use super::{completion, taken, with};
use crate::support::{
    call, ended, event, events, frames, frames_with, head, lines, logprob, places, started, text, thinking,
    whole,
};

fn of_choice(choice: usize, events: Vec<Event>) -> Vec<Event> {
    events.into_iter().map(|event| Event { choice, ..event }).collect()
}

fn answer() -> Vec<Event> {
    let mut events = vec![started(), thinking("hm"), text("I loo"), text("k. é")];
    events.extend(call(0, "ls", &["{\"p\":", "\".\"}"]));
    events.extend(call(1, "pwd", &[]));
    events.push(ended(Ending::Stop));
    events
}

#[test]
fn a_streamed_answer() {
    let request = taken(with(json!({"stream": true, "stream_options": {"include_usage": true}})));
    let mut writer = chat_reply(head(), &request);
    insta::assert_snapshot!(lines(&frames(writer.as_mut(), &answer())), @r#"
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"I loo"},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"k. é"},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_C0","type":"function","function":{"name":"ls","arguments":""},"index":0}]},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"p\":"}}]},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\".\"}"}}]},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"tool_calls":[{"id":"call_C1","type":"function","function":{"name":"pwd","arguments":""},"index":1}]},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]},"logprobs":null,"finish_reason":null}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":5,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":8},"completion_tokens_details":{"reasoning_tokens":2}},"timings":{"cache_n":8,"prompt_n":12,"prompt_ms":0.0,"prompt_per_second":0.0,"predicted_n":5,"predicted_ms":0.0,"predicted_per_second":0.0,"expert_hit_rate":null,"drive_read_bytes":0}}
    - [DONE]
    "#);
}

#[test]
fn a_whole_answer() {
    let mut writer = chat_reply(head(), &taken(with(json!({}))));
    insta::assert_snapshot!(serde_json::to_string_pretty(&whole(writer.as_mut(), &answer())).unwrap(), @r#"
    {
      "id": "chatcmpl-X1",
      "object": "chat.completion",
      "created": 1700000000,
      "model": "demo",
      "system_fingerprint": "fp",
      "choices": [
        {
          "index": 0,
          "message": {
            "role": "assistant",
            "content": "I look. é",
            "refusal": null,
            "reasoning_content": "hm",
            "tool_calls": [
              {
                "id": "call_C0",
                "type": "function",
                "function": {
                  "name": "ls",
                  "arguments": "{\"p\":\".\"}"
                }
              },
              {
                "id": "call_C1",
                "type": "function",
                "function": {
                  "name": "pwd",
                  "arguments": "{}"
                }
              }
            ]
          },
          "logprobs": null,
          "finish_reason": "tool_calls"
        }
      ],
      "usage": {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 25,
        "prompt_tokens_details": {
          "cached_tokens": 8
        },
        "completion_tokens_details": {
          "reasoning_tokens": 2
        }
      },
      "timings": {
        "cache_n": 8,
        "prompt_n": 12,
        "prompt_ms": 0.0,
        "prompt_per_second": 0.0,
        "predicted_n": 5,
        "predicted_ms": 0.0,
        "predicted_per_second": 0.0,
        "expert_hit_rate": null,
        "drive_read_bytes": 0
      }
    }
    "#);
}

/// Without usage the times come with the last finish.
#[test]
fn times_come_once_at_the_end() {
    let request = taken(with(json!({"n": 2})));
    let mut writer = chat_reply(head(), &request);
    let mut events = of_choice(0, vec![started(), text("a"), ended(Ending::Length)]);
    events.extend(of_choice(1, vec![started(), text("b"), ended(Ending::StopString("x".into()))]));
    let frames = frames(writer.as_mut(), &events);
    let with_times: Vec<usize> =
        (0..frames.len()).filter(|i| lines(&frames[*i..=*i]).contains("\"timings\"")).collect();
    assert_eq!(with_times, [frames.len() - 2]);
    assert_eq!(frames.last(), Some(&Frame::Data { event: None, data: "[DONE]".into() }));
    assert!(!lines(&frames).contains("usage"));
}

#[test]
fn logprobs_of_a_chat() {
    let request = taken(with(json!({"logprobs": true, "top_logprobs": 2})));
    let events = [
        started(),
        event(EventKind::Text { text: String::new(), logprobs: vec![logprob(&[0xc3], -0.5)] }),
        event(EventKind::Text { text: "é".into(), logprobs: vec![logprob(&[0xa9], -0.25)] }),
        ended(Ending::Stop),
    ];
    let mut writer = chat_reply(head(), &request);
    let stream = frames(writer.as_mut(), &events);
    insta::assert_snapshot!(lines(&stream[1..3]), @r#"
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":""},"logprobs":{"content":[{"token":"bytes:\\xc3","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"bytes:\\xc3","logprob":-0.5,"bytes":[195]},{"token":"bytes:\\xc3","logprob":-9999.0,"bytes":[195]}]}],"refusal":null},"finish_reason":null}]}
    - {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"é"},"logprobs":{"content":[{"token":"bytes:\\xa9","logprob":-0.25,"bytes":[169],"top_logprobs":[{"token":"bytes:\\xa9","logprob":-0.25,"bytes":[169]},{"token":"bytes:\\xc3","logprob":-9999.0,"bytes":[195]}]}],"refusal":null},"finish_reason":null}]}
    "#);
    let whole = writer.whole();
    assert_eq!(whole["choices"][0]["logprobs"]["content"].as_array().map(Vec::len), Some(2));
    assert_eq!(whole["choices"][0]["message"]["content"], "é");
}

#[test]
fn progress_is_shown_to_who_asks() {
    let progress = event(EventKind::Progress {
        done_tokens: 512,
        total_tokens: 2000,
        cached_tokens: 100,
        elapsed: Duration::from_micros(1_500_250),
    });
    let silent = taken(with(json!({})));
    assert_eq!(chat_reply(head(), &silent).event(&progress), []);
    let asked = taken(with(json!({"return_progress": true})));
    insta::assert_snapshot!(lines(&chat_reply(head(), &asked).event(&progress)), @r#"- {"id":"chatcmpl-X1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[],"prompt_progress":{"total":2000,"cache":100,"processed":512,"time_ms":1500.25}}"#);
}

#[test]
fn reasons_of_an_end() {
    let reason = |events: Vec<Event>| {
        let mut writer = chat_reply(head(), &taken(with(json!({}))));
        whole(writer.as_mut(), &events)["choices"][0]["finish_reason"].clone()
    };
    assert_eq!(reason(vec![text("a"), ended(Ending::Stop)]), "stop");
    assert_eq!(reason(vec![ended(Ending::StopString("x".into()))]), "stop");
    assert_eq!(reason(vec![ended(Ending::Length)]), "length");
    assert_eq!(reason(vec![ended(Ending::Context)]), "length");
    let mut calls = call(0, "f", &["{}"]);
    calls.push(ended(Ending::Length));
    assert_eq!(reason(calls.clone()), "tool_calls");
    // Without its end the call is cut off.
    calls.remove(2);
    assert_eq!(reason(calls), "length");
}

#[test]
fn signs_of_life_and_failures() {
    let request = taken(with(json!({"stream_options": {"include_usage": true}})));
    for mut writer in [chat_reply(head(), &request), completion_reply(head(), &request)] {
        assert_eq!(writer.ping(), [Frame::Comment("ping")]);
        let failed = writer.fail(&ApiError::new(ErrorClass::Server, "the drive failed"));
        assert_eq!(
            lines(&failed),
            r#"- {"error":{"message":"the drive failed","type":"server_error","param":null,"code":null}}"#
        );
        writer.event(&ended(Ending::Cancelled));
        let end = lines(&writer.end());
        assert!(end.contains("cancelled") && !end.contains("DONE"), "{end}");
    }
}

/// Choices of one prompt share it.
#[test]
fn usage_counts_a_prompt_once() {
    let end = |choice: usize, cached_tokens: usize, completion_tokens: usize| Event {
        choice,
        kind: EventKind::Ended {
            ending: Ending::Stop,
            usage: Usage { prompt_tokens: 100, cached_tokens, completion_tokens, reasoning_tokens: 1 },
            timings: Timings {
                prompt: Duration::from_millis(50),
                predicted: Duration::from_millis(10 * completion_tokens as u64),
                expert_hit_rate: Some(0.5),
                drive_read_bytes: 7,
            },
        },
    };
    let request = completion(json!({"prompt": ["a", "b"], "n": 2})).unwrap().request;
    let mut writer = completion_reply(head(), &request);
    let events = [end(0, 20, 5), end(1, 100, 6), end(2, 0, 7), end(3, 100, 8)];
    let whole = whole(writer.as_mut(), &events);
    assert_eq!(whole["choices"].as_array().map(Vec::len), Some(4));
    insta::assert_snapshot!(format!("{}\n{}", whole["usage"], whole["timings"]), @r#"
    {"prompt_tokens":200,"completion_tokens":26,"total_tokens":226,"prompt_tokens_details":{"cached_tokens":20},"completion_tokens_details":{"reasoning_tokens":4}}
    {"cache_n":20,"prompt_n":180,"prompt_ms":50.0,"prompt_per_second":3600.0,"predicted_n":26,"predicted_ms":80.0,"predicted_per_second":275.0,"expert_hit_rate":0.5,"drive_read_bytes":7}
    "#);
}

#[test]
fn a_plain_completion() {
    let request = completion(json!({"logprobs": 2, "stream": true})).unwrap().request;
    let events = [
        started(),
        event(EventKind::Text { text: "né".into(), logprobs: vec![logprob("né".as_bytes(), -0.5)] }),
        event(EventKind::Text { text: "e".into(), logprobs: vec![logprob(b"e", -0.25)] }),
        ended(Ending::Length),
    ];
    let mut writer = completion_reply(head(), &request);
    insta::assert_snapshot!(lines(&frames(writer.as_mut(), &events)), @r#"
    - {"id":"cmpl-X1","object":"text_completion","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"text":"né","index":0,"logprobs":{"tokens":["né"],"token_logprobs":[-0.5],"top_logprobs":[{"né":-0.5,"bytes:\\xc3":-9999.0}],"text_offset":[0]},"finish_reason":null}]}
    - {"id":"cmpl-X1","object":"text_completion","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"text":"e","index":0,"logprobs":{"tokens":["e"],"token_logprobs":[-0.25],"top_logprobs":[{"e":-0.25,"bytes:\\xc3":-9999.0}],"text_offset":[2]},"finish_reason":null}]}
    - {"id":"cmpl-X1","object":"text_completion","created":1700000000,"model":"demo","system_fingerprint":"fp","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"timings":{"cache_n":8,"prompt_n":12,"prompt_ms":0.0,"prompt_per_second":0.0,"predicted_n":5,"predicted_ms":0.0,"predicted_per_second":0.0,"expert_hit_rate":null,"drive_read_bytes":0}}
    - [DONE]
    "#);
    insta::assert_snapshot!(writer.whole()["choices"], @r#"[{"text":"née","index":0,"logprobs":{"tokens":["né","e"],"token_logprobs":[-0.5,-0.25],"top_logprobs":[{"né":-0.5,"bytes:\\xc3":-9999.0},{"e":-0.25,"bytes:\\xc3":-9999.0}],"text_offset":[0,2]},"finish_reason":"length"}]"#);
}

/// What a client puts together from the deltas of a stream, as the official packages do.
fn joined(frames: &[Frame]) -> Value {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut reason = Value::Null;
    for (i, frame) in frames.iter().enumerate() {
        let Frame::Data { event: None, data } = frame else {
            assert_eq!(*frame, Frame::Comment("ping"));
            continue;
        };
        if data == "[DONE]" {
            assert_eq!(i, frames.len() - 1);
            break;
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        assert!(chunk["id"].as_str().unwrap().starts_with("chatcmpl-"));
        let Some(choice) = chunk["choices"].get(0) else { continue };
        assert_eq!(reason, Value::Null, "a delta after the last");
        reason = choice["finish_reason"].clone();
        let delta = choice["delta"].as_object().unwrap();
        assert_eq!(i == 0, delta.contains_key("role"));
        assert_eq!(delta.is_empty(), !reason.is_null());
        for key in ["content", "reasoning_content"] {
            if let Some(piece) = delta.get(key) {
                message[key] = (message[key].as_str().unwrap().to_owned() + piece.as_str().unwrap()).into();
            }
        }
        for piece in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let (index, calls) =
                (piece["index"].as_u64().unwrap(), message["tool_calls"].as_array_mut().unwrap());
            if let Some(id) = piece.get("id") {
                assert_eq!((index as usize, &piece["function"]["arguments"]), (calls.len(), &json!("")));
                let function = json!({"name": piece["function"]["name"], "arguments": ""});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            } else {
                let arguments = &mut calls[index as usize]["function"]["arguments"];
                let more = piece["function"]["arguments"].as_str().unwrap();
                assert!(!more.is_empty());
                *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
            }
        }
    }
    json!({"message": message, "finish_reason": reason})
}

proptest! {
    #[test]
    fn deltas_are_the_answer(events in events(), usage: bool, pings in places(20)) {
        let options = json!({"stream_options": {"include_usage": usage}, "return_progress": true});
        let mut writer = chat_reply(head(), &taken(with(options)));
        let stream = frames_with(writer.as_mut(), &events, &pings);
        prop_assert!(lines(&stream).ends_with("- [DONE]"));
        let streamed = joined(&stream);
        let whole = writer.whole();
        let choice = &whole["choices"][0];
        prop_assert_eq!(&streamed["finish_reason"], &choice["finish_reason"]);
        for (key, nothing) in [("content", json!("")), ("reasoning_content", json!("")), ("tool_calls", json!([]))] {
            let one = choice["message"].get(key).filter(|value| !value.is_null()).unwrap_or(&nothing);
            prop_assert_eq!(&streamed["message"][key], one);
        }
        let cut = choice["finish_reason"] == "length";
        for call in choice["message"]["tool_calls"].as_array().into_iter().flatten() {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
            prop_assert!(cut || serde_json::from_str::<serde_json::Map<String, Value>>(arguments).is_ok());
        }
    }

    #[test]
    fn pieces_are_the_text(events in events()) {
        let mut writer = completion_reply(head(), &completion(json!({})).unwrap().request);
        let stream = frames(writer.as_mut(), &events);
        let mut text = String::new();
        for frame in &stream[..stream.len() - 1] {
            let Frame::Data { data, .. } = frame else { panic!("{frame:?}") };
            let chunk: Value = serde_json::from_str(data).unwrap();
            text += chunk["choices"][0]["text"].as_str().unwrap();
        }
        prop_assert_eq!(&writer.whole()["choices"][0]["text"], &json!(text));
    }
}
