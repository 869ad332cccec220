//! `tidemill serve` with as little memory as it takes, under clients that leave, lie, dawdle and send garbage: whoever asks
//! rightly is answered as if nobody else were there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::tidemill;

/// What is waited for has to come within this time, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

const CLIENTS: usize = 9;
const PARALLEL: usize = 4;

const ARGS: [&str; 10] =
    ["serve", "--port", "0", "--parallel", "4", "--ctx", "512", "--max-body", "1MiB", "--threads"];

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// A server under test; it is killed when it is dropped.
struct Storm {
    child: Child,
    address: String,
    memory_bytes: u64,
}

/// The least memory that these arguments take, as the refusal of less says.
fn floor_mib() -> u64 {
    let output = tidemill(ARGS).args(["1", "--memory", "1MiB"]).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let floor = said.split_once("floor of ").and_then(|(_, rest)| rest.split_once(" MiB"));
    let floor = floor.and_then(|(number, _)| number.parse::<f64>().ok());
    floor.unwrap_or_else(|| panic!("no floor in {said}")).ceil() as u64
}

impl Storm {
    fn start() -> Self {
        let mib = floor_mib() + 4;
        let mut command = tidemill(ARGS);
        command.args(["1", "--queue", "1000", "--ping", "0.2", "--memory", &format!("{mib}MiB")]);
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.strip_prefix("http://").and_then(|rest| rest.split(' ').next());
        let address = address.unwrap_or_else(|| panic!("no address: {line}")).to_owned();
        Self { child, address, memory_bytes: mib << 20 }
    }

    fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(&self.address).expect("connects");
        connection.set_read_timeout(Some(LONG)).expect("set");
        connection
    }

    fn request(&self, path: &str, body: &str) -> String {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}",
            self.address
        )
    }

    /// A request whose answer is still to come.
    fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut connection = self.connect();
        connection.write_all(self.request(path, &body.to_string()).as_bytes()).expect("sent");
        connection
    }

    /// The value of a line of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let mut connection = self.connect();
        let head = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        connection.write_all(head.as_bytes()).expect("sent");
        let (_, text) = answer(connection);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Waits until nothing runs or waits.
    fn settle(&self) {
        let begun = Instant::now();
        let busy = ["tidemill_requests_running", "tidemill_requests_waiting"];
        while busy.iter().any(|name| self.metric(name) > 0.0) {
            assert!(begun.elapsed() < LONG, "something still runs");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A field of the process's status, in bytes; none where the system has none.
    fn status_bytes(&self, field: &str) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let kib = text.lines().find_map(|line| line.strip_prefix(field))?;
        Some(kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10)
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Status and body of an answer, chunks joined.
fn answer(mut connection: TcpStream) -> (u16, String) {
    let mut all = Vec::new();
    connection.read_to_end(&mut all).expect("an answer");
    let all = String::from_utf8(all).expect("UTF-8");
    let (head, body) = all.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {all}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut joined, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        if size == 0 {
            return (status, joined);
        }
        joined += &after[..size];
        rest = &after[size + 2..];
    }
    panic!("the stream was cut: {joined}");
}

/// The text of a right answer, whole or streamed.
fn text_of(body: &str) -> String {
    let whole = serde_json::from_str::<Value>(body);
    let pieces: Vec<Value> = match whole {
        Ok(whole) => vec![whole],
        Err(_) => {
            let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
            data.filter(|data| *data != "[DONE]")
                .map(|data| serde_json::from_str(data).expect(data))
                .collect()
        }
    };
    let places = [
        "/choices/0/message/content",
        "/choices/0/delta/content",
        "/choices/0/text",
        "/output/0/content/0/text",
        "/content/0/text",
        "/delta/text",
        "/delta",
    ];
    let text =
        |piece: &Value| places.iter().find_map(|place| piece.pointer(place)?.as_str().map(str::to_owned));
    // What tells the whole answer again at a stream's end is no more text.
    pieces.iter().filter_map(text).collect()
}

/// Whether a stream has come to its own end.
fn is_complete(body: &str) -> bool {
    ["[DONE]", "event: message_stop", "event: response.completed", "event: response.incomplete"]
        .iter()
        .any(|end| body.contains(end))
}

/// A question of each API, greedy and seeded.
fn asks() -> Vec<(&'static str, Value)> {
    let messages = |text: &str| json!([{"role": "user", "content": text}]);
    let mut asks = Vec::new();
    for (i, text) in
        ["Tell me a story.", "What is the capital of France?", "Count to ten."].iter().enumerate()
    {
        let (warm, cold) = (json!({"temperature": 0.9, "seed": i}), json!({"temperature": 0}));
        asks.push((CHAT, with(&warm, json!({"messages": messages(text), "max_tokens": 12 + i}))));
        asks.push((COMPLETIONS, with(&warm, json!({"prompt": text, "max_tokens": 9 + i}))));
        asks.push((RESPONSES, with(&cold, json!({"input": text, "max_output_tokens": 14 - i}))));
        asks.push((MESSAGES, with(&cold, json!({"messages": messages(text), "max_tokens": 10 + i}))));
    }
    asks
}

fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Numbers that look like chance and are the same in each run.
fn chance(seed: usize) -> usize {
    let mut x = (seed as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 8) as usize
}

/// A client that leaves: before its request is whole, while it waits, or in the midst of the answer.
fn leave(server: &Storm, n: usize, path: &str, body: &Value) {
    let long = match path {
        RESPONSES => json!({"max_output_tokens": 300}),
        MESSAGES => json!({"max_tokens": 300}),
        _ => json!({"max_tokens": 300, "ignore_eos": true}),
    };
    let body = with(&with(body, long), json!({"stream": !n.is_multiple_of(3)}));
    let request = server.request(path, &body.to_string());
    let mut connection = server.connect();
    if n.is_multiple_of(4) {
        let cut = chance(n) % request.len();
        let _ = connection.write_all(&request.as_bytes()[..cut]);
        return;
    }
    connection.write_all(request.as_bytes()).expect("sent");
    thread::sleep(Duration::from_millis((chance(n + 1) % 60) as u64));
    let mut read = vec![0; chance(n + 2) % 2000];
    connection.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let _ = connection.read_exact(&mut read); // as far as there is something
}

/// A client that sends what is no request, or sends it as slowly as it can; it may be refused, and nothing else.
fn disturb(server: &Storm, n: usize, path: &str, body: &Value) {
    let text = body.to_string();
    let whole = server.request(path, &text);
    let mut connection = server.connect();
    let mut send = |bytes: &[u8]| _ = connection.write_all(bytes); // the server may have seen enough
    let refused = match n % 7 {
        0 => server.request(path, &text[..chance(n) % text.len()]),
        1 => server.request(path, &with(body, json!({"temperature": "hot", "stream": [1]})).to_string()),
        2 => server.request(path, "{\"a\":".repeat(200).as_str()),
        // More was promised than comes.
        3 => whole.replace("content-length: ", "content-length: 9"),
        // Less was.
        4 => whole.replace(&format!("content-length: {}", text.len()), "content-length: 3"),
        5 => {
            for byte in whole.as_bytes().chunks(whole.len() / 8 + 1) {
                send(byte);
                thread::sleep(Duration::from_millis(5));
            }
            let (status, _) = answer(connection);
            return assert_eq!(status, 200, "slow, and right");
        }
        _ => {
            send(&(0..300).map(|i| chance(n + i) as u8).collect::<Vec<_>>());
            String::new()
        }
    };
    send(refused.as_bytes());
    let _ = connection.shutdown(Shutdown::Write); // the server may have ended it
    let mut all = Vec::new();
    let _ = connection.read_to_end(&mut all); // or a reset
    let head = String::from_utf8_lossy(&all).into_owned();
    assert!(all.is_empty() || head.starts_with("HTTP/1.1 4"), "{head}");
}

/// Requests `from..to`, from many clients at once.
fn rage(server: &Storm, asks: &[(&str, Value)], alone: &[String], from: usize, to: usize) {
    let next = AtomicUsize::new(from);
    let client = || loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= to {
            return;
        }
        let at = chance(n) % asks.len();
        let (path, body) = &asks[at];
        match n % 6 {
            0 | 3 => leave(server, n / 3, path, body),
            1 => disturb(server, n / 6, path, body),
            _ => {
                let stream = n.is_multiple_of(2);
                let (status, body) = answer(server.send(path, &with(body, json!({"stream": stream}))));
                assert_eq!(status, 200, "{body}");
                assert_eq!(stream, is_complete(&body), "{body}");
                assert_eq!(text_of(&body), alone[at], "request {n}, {path}, streamed: {stream}\n{body}");
            }
        }
    };
    thread::scope(|scope| {
        (0..CLIENTS).for_each(|_| _ = scope.spawn(client));
    });
}

/// Bodies with as many values as fit, from all clients at once: what they take is planned.
fn crowd(server: &Storm, asks: &[(&str, Value)]) {
    let client = |(path, body): &(&str, Value)| {
        // Responses repeat their metadata, and so take little of it.
        let field = if *path == RESPONSES { "client_metadata" } else { "metadata" };
        let (status, text) = answer(server.send(path, &with(body, json!({field: vec![1; 400_000]}))));
        assert_eq!(status, 200, "{text}");
    };
    thread::scope(|scope| {
        asks.iter().for_each(|ask| _ = scope.spawn(move || client(ask)));
    });
}

/// What a heap may take and not give back of what it was lent for a moment.
const NOISE_BYTES: u64 = 6 << 20;

fn storm(requests: usize) {
    let mut server = Storm::start();
    let asks = asks();
    let text = |(path, body): &(&str, Value)| {
        let (status, body) = answer(server.send(path, body));
        assert_eq!(status, 200, "{body}");
        text_of(&body)
    };
    let alone: Vec<String> = asks.iter().map(text).collect();
    assert!(alone.iter().all(|text| text.len() > 5), "{alone:?}");
    rage(&server, &asks, &alone, 0, requests / 2);
    server.settle();
    let half = server.status_bytes("VmRSS:");
    rage(&server, &asks, &alone, requests / 2, requests);
    server.settle();
    let end = server.status_bytes("VmRSS:");
    crowd(&server, &asks);
    server.settle();
    if let (Some(half), Some(end), Some(peak)) = (half, end, server.status_bytes("VmHWM:")) {
        println!("resident: {half} at half, {end} at the end, {peak} at most of {}", server.memory_bytes);
        assert!(end <= half + NOISE_BYTES, "it grows: {half} at half, {end} at the end");
        assert!(peak <= server.memory_bytes, "{peak} at its peak, {} planned", server.memory_bytes);
    }
    stop_in_the_midst(&mut server, &asks);
}

/// A signal while all places are taken by streams: they end as they would have, and so does the program.
fn stop_in_the_midst(server: &mut Storm, asks: &[(&str, Value)]) {
    let ask = |(path, body): &(&str, Value)| {
        let mut connection = server.send(path, &with(body, json!({"stream": true})));
        // Its head: the answer is under way.
        connection.read_exact(&mut [0; 16]).expect("a head");
        connection
    };
    let streams: Vec<TcpStream> = asks.iter().take(PARALLEL).map(ask).collect();
    #[cfg(unix)]
    // SAFETY: the call takes two numbers, and the process is ours and not waited for yet.
    assert_eq!(unsafe { libc::kill(server.child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    for mut stream in streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the rest");
        assert!(is_complete(&rest) && rest.ends_with("0\r\n\r\n"), "{rest}");
    }
    #[cfg(unix)]
    assert_eq!(server.child.wait().expect("ends").code(), Some(0));
}

#[test]
fn who_asks_rightly_is_answered_in_a_storm() {
    storm(150);
}

#[test]
#[ignore = "takes minutes; `cargo xtask soak cases` runs it"]
fn who_asks_rightly_is_answered_in_a_long_storm() {
    storm(1000);
}
