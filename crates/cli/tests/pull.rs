//! `pull` against a hub of our own, on this machine, that drops connections.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::{fails_with, golden, json, succeed, tidemill};
use serde_json::json;
use sha2::{Digest, Sha256};

/// A file that the hub has.
struct HubFile {
    content: Vec<u8>,
    etag: String,
}

/// A hub with one model, `org/mill`.
struct Hub {
    files: HashMap<String, HubFile>,
    /// Bytes after which a connection breaks; 0 never.
    break_after: usize,
    breaks_left: AtomicUsize,
    /// Bytes of file content that were sent.
    sent: AtomicUsize,
    requests: Mutex<Vec<String>>,
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Hub {
    fn new(files: Vec<(&str, Vec<u8>)>, break_after: usize, breaks: usize) -> Self {
        let file = |(name, content): (&str, Vec<u8>)| {
            let etag = sha256(&content);
            (name.to_owned(), HubFile { content, etag })
        };
        Self {
            files: files.into_iter().map(file).collect(),
            break_after,
            breaks_left: AtomicUsize::new(breaks),
            sent: AtomicUsize::new(0),
            requests: Mutex::default(),
        }
    }

    /// Serves until the test ends; returns the address.
    fn serve(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let hub = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = hub.clone();
                std::thread::spawn(move || hub.answer(stream));
            }
        });
        address
    }

    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        let path = request.split(' ').nth(1)?.to_owned();
        let headers: Vec<String> = lines.by_ref().map_while(|l| l.ok().filter(|l| !l.is_empty())).collect();
        self.requests.lock().expect("not poisoned").push(path.clone());
        if path.starts_with("/api/models/org/mill") {
            let siblings: Vec<_> = self.files.keys().map(|name| json!({"rfilename": name})).collect();
            let body = json!({"sha": "c0ffee", "siblings": siblings}).to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            return stream.write_all(format!("{head}{body}").as_bytes()).ok();
        }
        let Some(file) = path.strip_prefix("/org/mill/resolve/main/").and_then(|name| self.files.get(name))
        else {
            return stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .ok();
        };
        let range = headers
            .iter()
            .find_map(|h| h.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (start, end) = range.as_deref().and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
        let total = file.content.len();
        let start: usize = start.parse().ok()?;
        let end = end.parse().map_or(total, |end: usize| (end + 1).min(total));
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\n\
             ETag: \"{}\"\r\nX-Repo-Commit: c0ffee\r\nConnection: close\r\n\r\n",
            end - start,
            end - 1,
            file.etag
        );
        stream.write_all(head.as_bytes()).ok()?;
        let whole = &file.content[start..end];
        let breaks = self.break_after > 0
            && whole.len() > self.break_after
            && self
                .breaks_left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                .is_ok();
        let part = if breaks { &whole[..self.break_after] } else { whole };
        self.sent.fetch_add(part.len(), Ordering::SeqCst);
        stream.write_all(part).ok() // and the connection closes, early or not
    }
}

/// The program with this hub and a cache of its own.
fn at(hub: &str, cache: &Path, args: &[&str]) -> Command {
    let mut command = tidemill(args);
    command.env("HF_ENDPOINT", hub).env("HF_HOME", cache.join("hf")).env("XDG_CACHE_HOME", cache);
    for variable in
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"]
    {
        command.env_remove(variable);
    }
    command
}

fn model_bytes() -> Vec<u8> {
    let mut content = Vec::new();
    let path = golden("qwen3_moe-e16/gguf-Q4_0").join("model-Q4_0.gguf");
    std::fs::File::open(path).and_then(|mut f| f.read_to_end(&mut content)).expect("readable");
    content
}

#[test]
fn a_model_arrives_whole_over_connections_that_break() {
    let content = model_bytes();
    let files = vec![
        ("mill-Q4_0.gguf", content.clone()),
        ("mill-Q8_0.gguf", vec![1; 100]),
        ("README.md", vec![2; 9]),
    ];
    let hub = Arc::new(Hub::new(files, content.len() / 5, 3));
    let address = hub.serve();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let model = "org/mill:Q4_0";
    let object = json(&mut at(&address, dir.path(), &["pull", model, "--json"]));
    assert_eq!((&object["files"], &object["bytes"]), (&json!(1), &json!(content.len())));
    let path = object["path"].as_str().expect("a path");
    assert!(std::fs::read(path).expect("readable") == content, "not what the hub has");
    assert_eq!(hub.breaks_left.load(Ordering::SeqCst), 0, "it met the broken connections");
    let again = hub.sent.load(Ordering::SeqCst);
    assert!(again < content.len() + 100, "{again} bytes sent: it goes on where it stopped");
    assert!(!hub.requests.lock().expect("not poisoned").iter().any(|path| path.contains("Q8_0")));

    let (text, _) = succeed(&mut at(&address, dir.path(), &["inspect", model]));
    assert!(text.contains("qwen3"), "{text}");
    let listed = json(&mut at(&address, dir.path(), &["list", "--json"]));
    assert_eq!(listed["models"][0]["model"], json!(model));
    assert_eq!(listed["models"][0]["bytes"], json!(content.len()));
    succeed(&mut at(&address, dir.path(), &["rm", model]));
    assert!(!Path::new(path).exists());
    assert_eq!(succeed(&mut at(&address, dir.path(), &["list"])).0, "");
    fails_with(&mut at(&address, dir.path(), &["rm", model]), 3, &[model, "tidemill list"]);
}

#[test]
fn a_download_that_ended_is_taken_up_by_the_next_run() {
    let content = model_bytes();
    // More breaks than one run has patience for.
    let hub = Arc::new(Hub::new(vec![("mill-Q4_0.gguf", content.clone())], content.len() / 20, 11));
    let address = hub.serve();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    fails_with(&mut at(&address, dir.path(), &["pull", "org/mill:Q4_0"]), 6, &["mill-Q4_0.gguf"]);
    let before = hub.sent.load(Ordering::SeqCst);
    let object = json(&mut at(&address, dir.path(), &["pull", "org/mill:Q4_0", "--json"]));
    let path = object["path"].as_str().expect("a path");
    assert!(std::fs::read(path).expect("readable") == content, "not what the hub has");
    let second = hub.sent.load(Ordering::SeqCst) - before;
    assert!(second < content.len() * 3 / 4, "{second} of {} bytes again", content.len());
}

#[test]
fn damage_and_strange_names_are_refused() {
    let mut hub = Hub::new(vec![("mill-Q4_0.gguf", vec![3; 5000])], 0, 0);
    hub.files.values_mut().for_each(|file| file.etag = sha256(b"something else"));
    let address = Arc::new(hub).serve();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    fails_with(&mut at(&address, dir.path(), &["pull", "org/mill:Q4_0"]), 4, &["SHA-256", "pull again"]);
    assert_eq!(succeed(&mut at(&address, dir.path(), &["list"])).0, "");
    fails_with(&mut at(&address, dir.path(), &["pull", "org/mill:Q9"]), 3, &["no Q9", "mill-Q4_0.gguf"]);
    fails_with(&mut at(&address, dir.path(), &["pull", "org/none:Q4_0"]), 3, &["org/none"]);
    fails_with(&mut at(&address, dir.path(), &["pull", "nonsense"]), 2, &["org/name"]);
    fails_with(
        &mut at("http://127.0.0.1:1", dir.path(), &["pull", "org/mill"]),
        6,
        &["org/mill", "http://127.0.0.1:1", "HF_ENDPOINT"],
    );
}
