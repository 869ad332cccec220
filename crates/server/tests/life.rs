//! From the start to the end: loading, waiting, clients that leave or do not read, and the stop.

use std::thread;
use std::time::Duration;

use serde_json::json;
use server::{Options, Patience};

use crate::support::{endless, loading, options, question, start, with};

const CHAT: &str = "/v1/chat/completions";
const RUNNING: &str = "tidemill_requests_running";

#[test]
fn while_the_model_loads() {
    let server = loading(options());
    let health = server.get("/health");
    assert_eq!((health.status, health.json()), (503, json!({"status": "loading"})));
    let refused = server.post(CHAT, &question("hi"));
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (503, &json!("service_unavailable")));
    assert!(refused.header("retry-after").is_some());
    let refused = server.post("/v1/messages", &json!({}));
    assert_eq!(refused.json()["error"]["type"], "overloaded_error");
    server.load(1, 512);
    assert_eq!(server.get("/health").status, 200);
    server.post(CHAT, &question("hi")).ok();
}

#[test]
fn a_client_that_leaves_ends_its_answer() {
    let server = start(options(), 1);
    let stream = server.stream(CHAT, &endless("Tell me a story."));
    server.wait_for(RUNNING, 1.0);
    drop(stream);
    server.wait_for(RUNNING, 0.0);
    server.logged(&["path=/chat/completions", "end=\"client left\""]);
    // One that waits for the whole answer.
    let whole = json!({"stream": false, "n": 4, "temperature": 1});
    let body = with(&endless("Tell me a story."), whole).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = std::net::TcpStream::connect(server.address).expect("connects");
    std::io::Write::write_all(&mut connection, head.as_bytes()).expect("sent");
    server.wait_for(RUNNING, 1.0);
    drop(connection);
    server.wait_for(RUNNING, 0.0);
    server.post(CHAT, &question("hi")).ok();
}

#[test]
fn who_waits_hears_so_and_who_comes_too_late_is_refused() {
    let options = Options { queue: 1, ping: Duration::from_millis(50), ..options() };
    let server = start(options, 1);
    let first = server.stream(CHAT, &endless("Tell me a story."));
    server.wait_for(RUNNING, 1.0);
    let mut second = server.stream(CHAT, &with(&question("hi"), json!({"stream": true, "max_tokens": 3})));
    second.read_until(": ping");
    server.wait_for("tidemill_requests_waiting", 1.0);
    let refused = server.post(CHAT, &question("hi"));
    let error = refused.json()["error"].clone();
    assert_eq!((refused.status, &error["code"]), (429, &json!("queue_full")));
    assert!(refused.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
    drop(first);
    let events = second.events();
    assert_eq!(events.last().expect("some").1, "[DONE]");
    server.post(CHAT, &question("hi")).ok();
}

#[test]
fn signs_of_life_are_of_the_kind_that_clients_count() {
    let options = Options { ping: Duration::from_millis(50), ..options() };
    let server = start(options, 1);
    let first = server.stream(CHAT, &endless("Tell me a story."));
    server.wait_for(RUNNING, 1.0);
    let asked = json!({"model": "m", "max_tokens": 2, "stream": true, "messages": [{"role": "user", "content": "a"}]});
    let mut messages = server.stream("/v1/messages", &asked);
    messages.read_until("event: ping\ndata: ");
    let asked = json!({"model": "m", "max_output_tokens": 2, "stream": true, "input": "a"});
    let mut responses = server.stream("/v1/responses", &asked);
    responses.read_until("\"sequence_number\":4");
    drop(first);
    assert_eq!(messages.events().last().expect("some").0, "message_stop");
    assert!(responses.events().last().expect("some").0.starts_with("response."));
}

/// Its own answer waits; nobody else's does.
#[test]
fn a_slow_reader_holds_its_own_answer() {
    let server = start(options(), 2);
    let asked = with(&endless("Tell me a story."), json!({"max_tokens": 350}));
    let quick = server.stream(CHAT, &asked).events();
    let slow = server.stream(CHAT, &asked);
    // Longer than the slow one would be, were it not held.
    let narrow = json!({"stream": false, "logprobs": false, "top_logprobs": null, "max_tokens": 500});
    let other = with(&endless("Tell me another one."), narrow);
    assert_eq!(server.post(CHAT, &other).ok()["usage"]["completion_tokens"], 500);
    let rows = || server.metric("tidemill_rows_per_step_sum");
    let before = rows();
    let data = |events: &[(String, String)]| {
        let pieces = events.iter().filter(|(_, data)| data != "[DONE]");
        let pieces = pieces.map(|(_, data)| {
            let chunk: serde_json::Value = serde_json::from_str(data).expect("JSON");
            chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
        });
        pieces.collect::<String>()
    };
    let slow = slow.events();
    assert_eq!(data(&slow), data(&quick));
    server.wait_for(RUNNING, 0.0);
    assert!(rows() > before + 30.0, "it was not held: {before} of {} rows", rows());
    assert_eq!(slow.last().expect("some").1, "[DONE]");
}

#[test]
fn a_reader_that_takes_nothing_for_too_long_is_given_up() {
    let patience = Patience { reader: Duration::from_millis(300), ..Patience::default() };
    let server = start(Options { patience, ..options() }, 1);
    let slow = server.stream(CHAT, &endless("Tell me a story."));
    server.logged(&["path=/chat/completions", "end=\"client left\""]);
    server.wait_for(RUNNING, 0.0);
    drop(slow);
}

#[test]
fn a_stop_lets_answers_finish() {
    let server = start(options(), 1);
    let asked = with(&endless("Tell me a story."), json!({"max_tokens": 100}));
    let mut stream = server.stream(CHAT, &asked);
    stream.read_until("\"content\":\"");
    server.server().stop();
    let ended = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let rest = stream.read_until("[DONE]");
            (rest, stream.is_closed())
        });
        server.wait();
        reader.join().expect("reads")
    });
    assert!(ended.0.contains("\"finish_reason\":\"length\""), "{}", ended.0);
}

#[test]
fn answers_that_take_too_long_do_not_keep_the_server() {
    let patience = Patience { ending: Duration::from_millis(100), ..Patience::default() };
    let server = start(Options { patience, ..options() }, 1);
    let stream = server.stream(CHAT, &endless("Tell me a story."));
    server.wait_for(RUNNING, 1.0);
    server.server().stop();
    server.wait();
    drop(stream);
}
