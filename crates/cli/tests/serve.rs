//! `tidemill serve` as a user starts and ends it; what it answers is tested in `crates/server`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use crate::common::{fails, tidemill};

/// A server on a free port, and its address.
fn start(more: &[&str]) -> (Child, String) {
    let plain = ["serve", "--port", "0", "--parallel", "2", "--ctx", "512", "--memory", "512MiB"];
    let mut command = tidemill(plain.iter().chain(more));
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    let said = line.clone();
    let address = line.strip_prefix("http://").and_then(|rest| rest.split(' ').next());
    for part in ["demo", "context 512", "2 in parallel", "planned"] {
        assert!(said.contains(part), "{said}");
    }
    (child, address.unwrap_or_else(|| panic!("no address: {said}")).to_owned())
}

fn ask(address: &str, path: &str, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).expect("connects");
    let method = if body.is_empty() { "GET" } else { "POST" };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    let length = body.len();
    write!(connection, "{head}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("sent");
    connection
}

fn all(mut connection: TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("an answer");
    text
}

/// Streams are complete, nothing new is taken, and the status is that of success.
#[cfg(unix)]
#[test]
fn a_signal_lets_answers_finish() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut child, address) = start(&["--temperature", "0"]);
        assert!(all(ask(&address, "/health", "")).starts_with("HTTP/1.1 200"), "it is ready");
        let body = r#"{"messages": [{"role": "user", "content": "Tell me a story."}], "stream": true,
            "max_tokens": 60, "ignore_eos": true}"#;
        let mut stream = BufReader::new(ask(&address, "/v1/chat/completions", body));
        let mut line = String::new();
        while !line.contains("\"content\":\"") {
            line.clear();
            assert!(stream.read_line(&mut line).expect("a line") > 0, "the stream ended");
        }
        // SAFETY: the call takes two numbers, and the process is ours and not waited for yet.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the rest");
        assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        let mut log = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
        let finished =
            log.lines().any(|line| line.contains("generated_tokens=60") && line.contains("end=length"));
        assert!(finished && log.starts_with("listening on http://"), "{log}");
        assert!(TcpStream::connect(&address).is_err(), "nobody listens any more");
    }
}

#[test]
fn what_cannot_be_served_is_said() {
    let (mut child, address) = start(&["--alias", "mine", "--log-format", "json", "--api-key", "k"]);
    assert!(all(ask(&address, "/v1/models", "")).starts_with("HTTP/1.1 401"));
    let port = address.rsplit(':').next().expect("a port");
    fails(["serve", "--port", port], 6, &[&format!("port {port} of 127.0.0.1 is taken"), "--port"]);
    let _ = child.kill();
    let _ = child.wait();
    let mut log = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
    assert!(log.lines().any(|line| line.contains("\"status\":401")), "{log}");
    fails(["serve", "--host", "0.0.0.0", "--port", "0"], 2, &["--api-key", "--open"]);
    fails(["serve", "--port", "0", "--cors", "example"], 2, &["--cors"]);
    fails(["serve", "--port", "0", "--ping", "0"], 2, &["--ping"]);
    fails(["serve", "--port", "0", "--top-p", "7"], 2, &["top_p"]);
    fails(["serve", "no-such-model", "--port", "0"], 3, &["no-such-model"]);
    fails(["serve", "--port", "0", "--api-key-file", "no-such-file"], 3, &["no-such-file"]);
}

#[test]
fn a_screen_needs_a_terminal() {
    fails(["serve", "--tui", "--port", "0"], 2, &["--tui draws on a terminal"]);
}

/// q stops the server, and the terminal is as it was.
#[cfg(target_os = "linux")]
#[test]
fn the_screen_shows_figures_until_q() {
    let program =
        tidemill(["serve", "--tui", "--port", "0", "--parallel", "2", "--ctx", "512", "--memory", "512MiB"]);
    let words = [program.get_program()].into_iter().chain(program.get_args());
    let line: Vec<_> = words.map(|word| format!("'{}'", word.to_str().expect("plain"))).collect();
    // A terminal for a program whose own are pipes.
    let mut script = std::process::Command::new("script");
    script.args(["-qefc", &format!("stty rows 30 cols 100; {}", line.join(" ")), "/dev/null"]);
    script
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("TERM", "xterm-256color");
    let mut child = match script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(e) => {
            assert!(std::env::var("CI").is_err(), "script: {e}");
            return println!("SKIP a terminal: script: {e}");
        }
    };
    let mut shown = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    while !shown.contains("q stops") {
        let mut piece = [0; 4096];
        let count = out.read(&mut piece).expect("reads");
        assert!(count > 0, "it ended: {shown}");
        shown += &String::from_utf8_lossy(&piece[..count]);
    }
    for part in ["\u{1b}[?1049h", "demo", "Answers", "Hit rate", "8 layers down", "planned"] {
        assert!(shown.contains(part), "no {part:?} in {shown:?}");
    }
    child.stdin.as_mut().expect("piped").write_all(b"q").expect("sent");
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("text");
    assert!(rest.contains("\u{1b}[?1049l"), "{rest:?}");
    assert_eq!(child.wait().expect("ends").code(), Some(0), "{rest:?}");
}
