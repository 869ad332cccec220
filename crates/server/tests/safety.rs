//! Who is answered, and what clients may do to the server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;
use server::{Log, Options, Patience, Server};

use crate::support::{Running, options, question, start, until, with};

const CHAT: &str = "/v1/chat/completions";

fn status(server: &Running, headers: &[(&str, &str)]) -> u16 {
    let body = with(&question("hi"), json!({"max_tokens": 1}));
    server.ask("POST", CHAT, headers, body.to_string().as_bytes()).status
}

#[test]
fn without_a_key_only_own_names_and_own_pages() {
    let server = start(options(), 1);
    assert_eq!(status(&server, &[("host", "localhost:1")]), 200);
    assert_eq!(status(&server, &[("host", "evil.example")]), 403);
    assert_eq!(status(&server, &[("origin", "https://evil.example")]), 403);
    assert_eq!(status(&server, &[("content-type", "text/plain")]), 415);
    assert_eq!(status(&server, &[("content-encoding", "br")]), 415);
    let plain = server.get("/v1/models");
    assert!(!plain.headers.iter().any(|(name, _)| name.starts_with("access-control")), "{:?}", plain.headers);
}

#[test]
fn with_a_key_nobody_else() {
    let server = start(Options { keys: vec!["one".into(), "two".into()], ..options() }, 1);
    assert_eq!(status(&server, &[]), 401);
    assert_eq!(status(&server, &[("authorization", "Bearer on")]), 401);
    assert_eq!(status(&server, &[("authorization", "Bearer two"), ("host", "box.example")]), 200);
    assert_eq!(status(&server, &[("x-api-key", "one")]), 200);
    assert_eq!(server.get("/health").status, 200);
    let refused = server.ask("POST", "/v1/messages", &[], b"{}");
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (401, &json!("authentication_error")));
    assert_eq!(server.get("/metrics").status, 401);
    assert!(!server.logged(&["status=401"]).contains("two"));
}

#[test]
fn pages_that_were_named_may_ask() {
    let server = start(Options { cors: vec!["https://chat.example".into()], ..options() }, 1);
    let asks = [
        ("origin", "https://chat.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "content-type, x-new"),
    ];
    let preflight = server.ask("OPTIONS", CHAT, &asks, b"");
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://chat.example"));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("content-type, x-new"));
    assert_eq!(status(&server, &[("origin", "https://chat.example")]), 200);
    assert_eq!(status(&server, &[("origin", "https://evil.example")]), 403);
}

#[test]
fn bodies_have_a_limit_packed_and_unpacked() {
    let server = start(Options { body_bytes_max: 2000, ..options() }, 1);
    let body =
        with(&question("hi"), json!({"max_tokens": 1, "metadata": {"x": "y".repeat(1500)}})).to_string();
    assert_eq!(server.ask("POST", CHAT, &[], body.as_bytes()).status, 200);
    let large = with(&question("hi"), json!({"metadata": {"x": "y".repeat(3000)}})).to_string();
    let refused = server.ask("POST", CHAT, &[], large.as_bytes());
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (413, &json!("request_too_large")));
    let gzip = |text: &str| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(text.as_bytes()).expect("packed");
        out.finish().expect("packed")
    };
    let packed = [("content-encoding", "gzip")];
    assert_eq!(server.ask("POST", CHAT, &packed, &gzip(&body)).status, 200);
    assert_eq!(server.ask("POST", CHAT, &packed, &gzip(&large)).status, 413);
    assert_eq!(server.ask("POST", CHAT, &packed, body.as_bytes()).status, 400);
}

#[test]
fn slow_heads_and_bodies_end() {
    let patience = Patience {
        head: Duration::from_millis(200),
        body: Duration::from_millis(200),
        ..Patience::default()
    };
    let server = start(Options { patience, ..options() }, 1);
    let mut slow = TcpStream::connect(server.address).expect("connects");
    slow.write_all(b"POST /v1/chat").expect("sent");
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest); // an end, or a reset
    let refused = server.ask("POST", CHAT, &[("content-length", "100")], b"{");
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("no byte of the body"), "{}", refused.text());
}

/// A large body that comes slowly keeps its place as long as nobody wants it.
#[test]
fn slow_large_bodies_make_room_for_others() {
    let patience = Patience { large: Duration::from_secs(1), ..Patience::default() };
    let server = start(Options { body_bytes_max: 100_000, patience, ..options() }, 1);
    let body = |letter: &str| {
        let body = with(&question("hi"), json!({"max_tokens": 1, "metadata": {"x": letter.repeat(90_000)}}));
        body.to_string()
    };
    let slow = |text: &str| {
        let mut connection = TcpStream::connect(server.address).expect("connects");
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let length = text.len();
        let head = format!("{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        connection.write_all(head.as_bytes()).expect("sent");
        connection.write_all(&text.as_bytes()[..50_000]).expect("sent");
        connection
    };
    let answer = |mut connection: TcpStream| {
        let mut text = String::new();
        connection.read_to_string(&mut text).expect("an answer");
        text
    };
    let text = body("y");
    let mut alone = slow(&text);
    thread::sleep(Duration::from_millis(1500));
    alone.write_all(&text.as_bytes()[50_000..]).expect("sent");
    let kept = answer(alone);
    assert!(kept.starts_with("HTTP/1.1 200"), "{kept}");
    let many = [(); 4].map(|()| slow(&text)).map(|slow| thread::spawn(move || answer(slow)));
    let quick = body("z");
    // In which order they get the place is not said, and the last one keeps it until somebody else wants it.
    until("the end of the slow ones", || {
        let quick = server.ask("POST", CHAT, &[], quick.as_bytes());
        assert_eq!(quick.status, 200, "{}", quick.text());
        many.iter().all(JoinHandle::is_finished)
    });
    for slow in many {
        let refused = slow.join().expect("an answer");
        assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("came too slowly"), "{refused}");
    }
}

#[test]
fn ids_of_clients_come_back_if_they_are_fit_for_it() {
    let server = start(options(), 1);
    let id = |given: &[(&str, &str)]| {
        server.ask("GET", "/health", given, b"").header("x-request-id").expect("an id").to_owned()
    };
    assert_eq!(id(&[("x-request-id", "mine-1")]), "mine-1");
    assert!(server.logged(&["id=mine-1"]).contains("path=/health status=200"));
    let (one, two) = (id(&[]), id(&[("x-request-id", &"x".repeat(500))]));
    assert!(one.starts_with("req_") && two.starts_with("req_") && one != two, "{one} {two}");
}

#[test]
fn what_would_open_the_machine_by_mistake_is_refused() {
    let start = |options: Options| {
        let log: Log = Box::new(|_| ());
        Server::start(options, log).map(|server| {
            server.stop();
            server.wait()
        })
    };
    let refused = |options: Options| start(options).expect_err("refused").message().to_owned();
    let everywhere = Options { host: "0.0.0.0".into(), ..options() };
    assert!(refused(everywhere.clone()).contains("--api-key"));
    assert!(start(Options { open: true, ..everywhere.clone() }).is_ok());
    assert!(start(Options { keys: vec!["k".into()], ..everywhere }).is_ok());
    assert!(refused(Options { keys: vec![String::new()], ..options() }).contains("empty"));
    assert!(refused(Options { cors: vec!["chat.example".into()], ..options() }).contains("--cors"));
    let taken = crate::support::loading(options());
    let port = taken.address.port();
    assert!(refused(Options { port, ..options() }).contains(&format!("port {port} of 127.0.0.1 is taken")));
}

/// A flood of connections that say nothing leaves room, after their time.
#[test]
fn silent_connections_do_not_last() {
    let patience = Patience { head: Duration::from_millis(300), ..Patience::default() };
    let server = start(Options { patience, ..options() }, 1);
    let mut silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(server.address).expect("connects")).collect();
    assert_eq!(server.get("/health").status, 200);
    until("the silent ones are closed", || {
        silent.iter_mut().all(|of| matches!(of.read(&mut [0]), Ok(0) | Err(_)))
    });
}

/// Clients use a connection again after a while; who begins a head has to end it.
#[test]
fn a_connection_may_rest_between_requests() {
    let rests = |patience: Patience| {
        let server = start(Options { patience, ..options() }, 1);
        let mut connection = TcpStream::connect(server.address).expect("connects");
        let head = format!("GET /health HTTP/1.1\r\nhost: {}\r\n", server.address);
        let mut ask = |rest: &str| {
            let sent = connection.write_all(format!("{head}{rest}").as_bytes());
            let mut answer = [0; 4096];
            sent.and_then(|()| connection.read(&mut answer))
                .is_ok_and(|read| answer[..read].starts_with(b"HTTP/1.1 200"))
        };
        assert!(ask("\r\n"));
        thread::sleep(Duration::from_millis(1500));
        ask("\r\n")
    };
    let short = Duration::from_secs(1);
    assert!(rests(Patience { head: short, ..Patience::default() }));
    assert!(!rests(Patience { idle: short, ..Patience::default() }));
}
