//! The page and what it shows: its files, the figures that it follows, and all of it in a real browser.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use server::Options;

use crate::clients::{packages_for, run_checks, skip};
use crate::support::{Running, endless, keyed, options, question, start, until, with};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn the_files_are_for_everybody_and_nothing_else_is() {
    let server = start(keyed(), 1);
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        let header = |name| reply.header(name).unwrap_or_else(|| panic!("{path} without {name}"));
        assert!(header("content-type").starts_with(kind), "{path}");
        assert_eq!((header("x-content-type-options"), header("cache-control")), ("nosniff", "no-cache"));
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");

        let head = server.open("HEAD", path, &[], b"");
        assert_eq!((head.status, head.header("etag")), (200, Some(header("etag"))));
        let known = [("if-none-match", header("etag"))];
        let again = server.open("GET", path, &known, b"");
        assert_eq!((again.status, again.header("content-length")), (304, None));
    }
    assert_eq!(server.get("/events").status, 401);
    assert_eq!(server.ask("POST", "/", &[], b"{}").status, 405);
    let without = start(Options { page: false, ..options() }, 1);
    assert!(["/", "/page.css", "/page.js"].iter().all(|path| without.get(path).status == 404));
    let hidden = start(Options { page: false, ..keyed() }, 1);
    assert_eq!(hidden.get("/").status, 401);
}

/// The next sample of a stream.
fn sample(stream: &mut crate::support::Open) -> Value {
    let text = stream.read_until("\n\n");
    let data = text.strip_prefix("data: ").unwrap_or_else(|| panic!("{text}"));
    serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"))
}

#[test]
fn events_tell_all_at_first_and_then_what_changed() {
    let server = start(options(), 2);
    server.post(CHAT, &question("Tell me a story.")).ok();
    let mut stream = server.open("GET", "/events", &[], b"");
    assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")));
    let first = sample(&mut stream);
    let experts = &first["experts"];
    assert_eq!((&experts["layers"], &experts["experts"]), (&json!(8), &json!(32)));
    let list = |value: &Value| -> Vec<u64> {
        let numbers = value.as_array().expect("a list").iter();
        numbers.map(|number| number.as_u64().expect("a count")).collect()
    };
    let mut uses = list(&experts["uses"]);
    assert_eq!(uses.len(), 8 * 32);
    // Each token chooses 4 experts in each layer.
    let total = uses.iter().sum::<u64>();
    assert!(total > 0 && total.is_multiple_of(8 * 4), "{total}");
    let digits = experts["held"].as_str().expect("digits");
    let ones: u32 = digits.chars().map(|digit| digit.to_digit(16).expect("a digit").count_ones()).sum();
    assert!(digits.len() == 64 && ones > 100, "{digits}");
    let memory = &first["memory"];
    assert!(memory["rss_bytes"].as_u64() > Some(1 << 20), "{memory}");
    assert!(memory["plan_bytes"].as_u64() <= memory["budget_bytes"].as_u64(), "{memory}");
    assert_eq!(memory["budget_bytes"], 512 << 20);

    let tokens = |name: &str| server.metric(name) as u64;
    let rows = |of: &str| tokens(&format!("tidemill_{of}"));
    let before = rows("rows_per_step_sum");
    let answer = with(&endless("Tell me another."), json!({"stream": false, "max_tokens": 100}));
    server.post(CHAT, &with(&answer, json!({"logprobs": false, "top_logprobs": null}))).ok();
    let expected = total + (rows("rows_per_step_sum") - before) * 8 * 4;
    let mut answered = false;
    until("the uses of that answer", || {
        let next = sample(&mut stream);
        assert!(next["experts"].get("uses").is_none(), "all of it again");
        answered |= next["answer_tokens_per_s"].as_f64() > Some(0.0);
        let mut at = 0;
        for pair in list(&next["experts"]["changed"]).chunks(2) {
            at += pair[0] as usize;
            uses[at] += pair[1];
            at += 1;
        }
        uses.iter().sum::<u64>() == expected
    });
    assert!(answered, "no rate");
    assert_eq!(server.get("/metrics").header("content-type"), Some("text/plain; version=0.0.4"));
}

#[test]
fn who_looks_on_does_not_keep_the_server_and_is_not_one_of_too_many() {
    let server = start(options(), 1);
    let look = || server.open("GET", "/events", &[], b"");
    let mut streams: Vec<_> = (0..16).map(|_| look()).collect();
    streams.iter_mut().for_each(|stream| _ = sample(stream));
    assert_eq!(look().status, 429);
    streams.pop();
    until("a free place", || {
        let mut stream = look();
        let free = stream.status == 200;
        if free {
            sample(&mut stream);
        }
        free
    });
    server.server().stop();
    // Within less than answers are waited for.
    let ended = std::thread::scope(|scope| {
        let ends = scope.spawn(|| server.wait());
        streams.into_iter().for_each(|stream| _ = stream.events());
        ends.join()
    });
    ended.expect("ends");
}

/// Where a system's packages put it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

fn browser() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&folders).flat_map(|dir| BROWSERS.map(|name| dir.join(name)));
    places.find(|path| path.is_file())
}

#[test]
fn people_use_the_page() {
    let what = "the page in a browser";
    let Some(browser) = browser() else { return skip(what, "there is no chromium") };
    let Some(packages) = packages_for(what) else { return };
    let (open, locked) = (start(options(), 2), start(keyed(), 1));
    let at = |server: &Running| format!("http://{}", server.address);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page.py");
    let mut command = Command::new(packages.join("bin/python"));
    run_checks(command.arg(script).args([at(&open), at(&locked)]).arg(browser), 13);
}
