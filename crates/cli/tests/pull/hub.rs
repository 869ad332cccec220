//! A hub on this machine, for tests: one model, `org/mill`, and a hook that makes it drop, redirect, refuse, change and lie.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

/// What was asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The path, decoded.
    pub path: String,
    pub host: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub token: Option<String>,
    /// How many requests for the same content came before; questions for the size do not count.
    pub earlier: usize,
}

impl Asked {
    /// Whether content is wanted, and not what the hub knows about it.
    pub fn is_content(&self) -> bool {
        self.is_file() && self.range.as_deref() != Some("bytes=0-0")
    }

    pub fn is_file(&self) -> bool {
        self.path.contains("/resolve/") || self.path.starts_with("/cdn/")
    }
}

/// An answer, honest until a hook changes it.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Bytes of the body after which the connection ends.
    pub break_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body: Vec<u8> = body.into();
        let headers = vec![("Content-Length".into(), body.len().to_string())];
        Self { status, headers, body, break_after: None }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(302, "").with("Location", to)
    }

    pub fn breaking(self, after: usize) -> Self {
        Self { break_after: Some(after), ..self }
    }
}

/// A file that the hub has.
#[derive(Clone, Debug)]
pub struct HubFile {
    pub content: Vec<u8>,
    pub etag: String,
}

type Hook = Box<dyn Fn(&Hub, &Asked, Reply) -> Reply + Send + Sync>;

/// The hub.
pub struct Hub {
    pub files: Mutex<BTreeMap<String, HubFile>>,
    pub commit: Mutex<String>,
    pub asked: Mutex<Vec<Asked>>,
    /// Bytes of content that were sent.
    pub sent: Mutex<usize>,
    pub port: u16,
    hook: Hook,
}

pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes without a pattern that a shift would keep.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

impl Hub {
    /// A hub with these files, that answers as it should.
    pub fn honest(files: &[(&str, Vec<u8>)]) -> Arc<Self> {
        Self::new(files, |_, _, reply| reply)
    }

    /// A hub whose answers go through `hook`. It serves until the tests end.
    pub fn new(
        files: &[(&str, Vec<u8>)],
        hook: impl Fn(&Hub, &Asked, Reply) -> Reply + Send + Sync + 'static,
    ) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let hub = Arc::new(Self {
            files: Mutex::default(),
            commit: Mutex::new("c".repeat(40)),
            asked: Mutex::default(),
            sent: Mutex::default(),
            port: listener.local_addr().expect("an address").port(),
            hook: Box::new(hook),
        });
        files.iter().for_each(|(name, content)| hub.put(name, content.clone()));
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = serving.clone();
                std::thread::spawn(move || hub.answer(stream));
            }
        });
        hub
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn put(&self, name: &str, content: Vec<u8>) {
        let etag = sha256(&content);
        self.files.lock().expect("not poisoned").insert(name.into(), HubFile { content, etag });
    }

    pub fn set_etag(&self, name: &str, etag: &str) {
        self.files.lock().expect("not poisoned").get_mut(name).expect("it is there").etag = etag.into();
    }

    pub fn set_commit(&self, commit: &str) {
        *self.commit.lock().expect("not poisoned") = commit.into();
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("not poisoned").clone()
    }

    pub fn sent(&self) -> usize {
        *self.sent.lock().expect("not poisoned")
    }

    /// Where content was asked for from, in order.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.asked().into_iter().filter(Asked::is_content).map(|asked| asked.range).collect()
    }

    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        let mut asked = Asked { path: decoded(request.split(' ').nth(1)?)?, ..Asked::default() };
        for line in lines.map_while(|line| line.ok().filter(|line| !line.is_empty())) {
            let (name, value) = line.split_once(": ")?;
            let value = value.to_owned();
            match name.to_ascii_lowercase().as_str() {
                "host" => asked.host = value,
                "range" => asked.range = Some(value),
                "if-range" => asked.if_range = Some(value),
                "authorization" => asked.token = Some(value),
                _ => {}
            }
        }
        {
            let mut all = self.asked.lock().expect("not poisoned");
            let same = |other: &&Asked| other.is_content() && other.path == asked.path;
            asked.earlier = all.iter().filter(same).count();
            all.push(asked.clone());
        }
        let reply = (self.hook)(self, &asked, self.honest_reply(&asked));
        let mut head = format!("HTTP/1.1 {} Some Reason\r\nConnection: close\r\n", reply.status);
        reply.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        let body = &reply.body[..reply.break_after.unwrap_or(reply.body.len()).min(reply.body.len())];
        if asked.is_content() {
            *self.sent.lock().expect("not poisoned") += body.len();
        }
        stream.write_all(body).ok()?;
        stream.shutdown(Shutdown::Write).ok() // the connection ends, early or not
    }

    fn honest_reply(&self, asked: &Asked) -> Reply {
        let (files, commit) =
            (self.files.lock().expect("not poisoned"), self.commit.lock().expect("not poisoned"));
        if asked.path == "/api/models/org/mill/revision/main" {
            let siblings: Vec<_> = files.keys().map(|name| json!({"rfilename": name})).collect();
            return Reply::new(200, json!({"sha": *commit, "siblings": siblings}).to_string());
        }
        let of_hub = format!("/org/mill/resolve/{commit}/");
        let name = asked.path.strip_prefix(&of_hub).or_else(|| asked.path.strip_prefix("/cdn/"));
        let Some(file) = name.and_then(|name| files.get(name)) else { return Reply::new(404, "") };
        let total = file.content.len();
        let range = asked.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
        let mut reply = match range {
            None => Reply::new(200, file.content.clone()),
            Some((start, end)) => {
                let start: usize = start.parse().expect("a number");
                let end = end.parse().map_or(total, |end: usize| (end + 1).min(total));
                if start >= total {
                    Reply::new(416, "").with("Content-Range", &format!("bytes */{total}"))
                } else {
                    let range = format!("bytes {start}-{}/{total}", end - 1);
                    Reply::new(206, &file.content[start..end]).with("Content-Range", &range)
                }
            }
        };
        if asked.path.starts_with(&of_hub) && reply.status != 416 {
            reply = reply.with("ETag", &format!("\"{}\"", file.etag)).with("X-Repo-Commit", &commit);
        }
        reply
    }
}

fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            assert!(byte.is_ascii_graphic(), "{byte} in an address");
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}
