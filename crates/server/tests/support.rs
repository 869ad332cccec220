//! A server with the bundled model, and a plain client: what goes over the wire is what is tested.
#![allow(unreachable_pub)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use engine::text::{Templates, Tokenizer};
use engine::{Device, Meta, Model, OpenOptions};
use serde_json::{Value, json};
use server::{Defaults, Options, Served, Server};

/// What is waited for has to come within this time, on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

/// The bundled model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// Options for a test: a free port.
pub fn options() -> Options {
    Options { port: 0, ..Options::default() }
}

/// The same for a server that wants a key.
pub fn keyed() -> Options {
    Options { keys: vec!["secret".into()], ..options() }
}

/// A server under test; it stops when it is dropped.
pub struct Running {
    server: Option<Server>,
    pub address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
}

/// A server with the bundled model for `parallel` sequences of 1024 positions.
pub fn start(options: Options, parallel: usize) -> Running {
    let running = loading(options);
    running.load(parallel, 1024);
    running
}

/// How the bundled model is served.
#[derive(Default)]
pub struct Setup {
    pub parallel: usize,
    pub context: usize,
    /// In place of the model's own.
    pub template: Option<String>,
    /// Where states survive.
    pub states: Option<PathBuf>,
}

/// A server without a model.
pub fn loading(options: Options) -> Running {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = lines.clone();
    let log = Box::new(move |line: &str| kept.lock().expect("whole").push(line.to_owned()));
    let server = Server::start(options, log).expect("starts");
    Running { address: server.address(), server: Some(server), lines }
}

impl Running {
    pub fn load(&self, parallel: usize, context: usize) {
        self.load_as(&Setup { parallel, context, ..Setup::default() });
    }

    pub fn load_as(&self, setup: &Setup) {
        let Setup { parallel, context, .. } = *setup;
        let options = OpenOptions {
            device: Device::Cpu,
            threads: Some(1),
            sessions: Some(parallel),
            context: Some(context),
            memory_bytes: Some(512 << 20),
            exact: true,
            ..OpenOptions::default()
        };
        let model = Model::open(&demo(), &options, &mut |_, _| ControlFlow::Continue(())).expect("opens");
        let tokenizer = Arc::new(Tokenizer::of_model(model.meta()).expect("has a tokenizer"));
        let text = setup.template.clone().or(model.meta().chat_template.clone());
        let meta = Meta { chat_template: text.clone(), ..Meta::default() };
        let templates = Templates::of_model(&meta, "demo").expect("has a template");
        if let Some(folder) = &setup.states {
            // The server before may be on its way out.
            until("the states", || model.store_states(folder, 1 << 30).is_ok());
        }
        let served = Served {
            template_text: text,
            model,
            tokenizer,
            templates: Some(templates),
            alias: "demo".into(),
            parallel,
            parameters: 7,
            size_bytes: 8,
            defaults: Defaults::default(),
        };
        self.server().serve(served).expect("serves");
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("runs")
    }

    /// Waits for the end after [`Server::stop`].
    pub fn wait(mut self) {
        self.server.take().expect("runs").wait().expect("ends well");
    }

    /// The whole answer to a request with any head.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.open(method, path, headers, body).reply()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.ask("POST", path, &[], body.to_string().as_bytes())
    }

    /// The beginning of an answer, with its head read. A test that says nothing of host and type gets the usual ones.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Open {
        let mut connection = TcpStream::connect(self.address).expect("connects");
        connection.set_read_timeout(Some(LONG)).expect("set");
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        let has = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        if !has("host") {
            head += &format!("host: {}\r\n", self.address);
        }
        if method == "POST" && !has("content-type") {
            head += "content-type: application/json\r\n";
        }
        if !has("content-length") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        connection.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
        let _ = connection.write_all(body); // one that is too large may not be read to its end
        Open::new(connection)
    }

    /// A stream of events, with its head read.
    pub fn stream(&self, path: &str, body: &Value) -> Open {
        let open = self.open("POST", path, &[], body.to_string().as_bytes());
        assert_eq!(open.status, 200, "{:?}", open.headers);
        assert_eq!(open.header("content-type"), Some("text/event-stream"));
        open
    }

    /// The value of a line of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }

    /// Waits until a line of `/metrics` has this value.
    pub fn wait_for(&self, name: &str, value: f64) {
        until(&format!("{name} {value}"), || self.metric(name) == value);
    }

    /// Waits for a line of the log that has all of these.
    pub fn logged(&self, parts: &[&str]) -> String {
        let mut found = None;
        until(&format!("{parts:?} in the log"), || {
            let lines = self.lines.lock().expect("whole");
            found = lines.iter().find(|line| parts.iter().all(|part| line.contains(part))).cloned();
            found.is_some()
        });
        found.expect("found")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            let ended = server.wait();
            if !thread::panicking() {
                ended.expect("ends well");
            }
        }
    }
}

/// Waits until something holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An answer whose head was read.
pub struct Open {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    from: BufReader<TcpStream>,
}

impl Open {
    fn new(connection: TcpStream) -> Self {
        let mut from = BufReader::new(connection);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).expect("a head");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines.first().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let header = |line: &String| {
            let (name, value) = line.split_once(':').expect("a header");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        let headers = lines.iter().skip(1).map(header).collect();
        Self { status: status.unwrap_or_else(|| panic!("no status: {lines:?}")), headers, from }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The next piece of a body in chunks; `None` after the last.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut size = String::new();
        self.from.read_line(&mut size).expect("a size");
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|e| panic!("{e}: {size:?}"));
        let mut bytes = vec![0; size + 2];
        self.from.read_exact(&mut bytes).expect("a chunk");
        bytes.truncate(size);
        (size > 0).then_some(bytes)
    }

    /// Reads until the body has this text.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            let chunk = self.chunk().unwrap_or_else(|| panic!("no {text:?} in {all}"));
            all += &String::from_utf8(chunk).expect("UTF-8");
        }
        all
    }

    pub fn reply(mut self) -> Reply {
        let mut body = Vec::new();
        if self.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else {
            let length = self.header("content-length").map_or(0, |text| text.parse().expect("a number"));
            body.resize(length, 0);
            self.from.read_exact(&mut body).expect("a body");
        }
        Reply { status: self.status, headers: self.headers, body }
    }

    /// The rest of a stream of events: the name and the data of each; comments are left out.
    pub fn events(self) -> Vec<(String, String)> {
        self.reply().events()
    }

    /// Whether the other side has ended the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.from.read(&mut [0]), Ok(0))
    }
}

/// A whole answer.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The JSON of an answer that is right.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub fn events(&self) -> Vec<(String, String)> {
        let text = self.text();
        assert!(text.is_empty() || text.ends_with("\n\n"), "{text}");
        let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
        let field = |block: &str, name: &str| {
            let found = block.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
            found.unwrap_or_default()
        };
        blocks.map(|block| (field(block, "event: "), field(block, "data: "))).collect()
    }
}

/// A chat of one question, greedy.
pub fn question(text: &str) -> Value {
    json!({"model": "demo", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24})
}

/// `body` with more fields.
pub fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    let (Value::Object(map), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
    map.extend(more);
    body
}

/// A stream that goes on until it is given up: so wide that it is held when nobody reads on.
pub fn endless(text: &str) -> Value {
    let wide = json!({"stream": true, "logprobs": true, "top_logprobs": 20});
    with(&with(&question(text), wide), json!({"max_tokens": 900, "ignore_eos": true}))
}
