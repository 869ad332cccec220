//! State on disk and the network disagree: what has arrived is kept, and what is wrong never stays.

use serde_json::json;

use super::Cache;
use super::hub::{Asked, Hub, Reply, noise, sha256};
use crate::common::{fails_with, golden, json, succeed};

const FILE: &str = "mill-Q4_0.gguf";

/// A hub whose answers to requests for content go through `hook`.
fn hub(
    content: &[u8],
    hook: impl Fn(&Hub, &Asked, Reply) -> Reply + Send + Sync + 'static,
) -> std::sync::Arc<Hub> {
    Hub::new(
        &[(FILE, content.to_vec())],
        move |hub, asked, reply| {
            if asked.is_content() { hook(hub, asked, reply) } else { reply }
        },
    )
}

fn from(start: usize) -> Option<String> {
    Some(format!("bytes={start}-"))
}

#[test]
fn a_model_arrives_whole_over_connections_that_break() {
    let content = std::fs::read(golden("qwen3_moe-e16/gguf-Q4_0").join("model-Q4_0.gguf")).expect("readable");
    let files = [(FILE, content.clone()), ("mill-Q8_0.gguf", noise(100, 1)), ("README.md", noise(9, 2))];
    let piece = content.len() / 5;
    let hub =
        Hub::new(
            &files,
            move |_, asked, reply| {
                if asked.is_content() && asked.earlier < 3 { reply.breaking(piece) } else { reply }
            },
        );
    let cache = Cache::new();
    let object = json(&mut cache.pull(&hub));
    assert_eq!((&object["files"], &object["bytes"]), (&json!(1), &json!(content.len())));
    let path = object["path"].as_str().expect("a path");
    assert!(std::fs::read(path).expect("readable") == content, "not what the hub has");
    assert_eq!(hub.ranges(), [None, from(piece), from(2 * piece), from(3 * piece)]);
    assert_eq!(hub.sent(), content.len(), "nothing is sent twice");
    assert!(!hub.asked().iter().any(|asked| asked.path.contains("Q8_0")));

    let (text, _) = succeed(&mut cache.at("", &["inspect", "org/mill:Q4_0"]));
    assert!(text.contains("qwen3"), "{text}");
    assert_eq!(cache.pulled(&hub), content, "a second time");
    assert_eq!(hub.sent(), content.len(), "what is here is not sent again");
}

#[test]
fn a_refused_first_request_of_a_resumed_download_loses_nothing() {
    let content = noise(50_000, 1);
    for (refusal, bytes) in [(503, 49_000), (429, 1), (500, 49_999), (408, 20_000)] {
        let hub = hub(&content, move |_, asked, reply| {
            if asked.earlier == 0 { Reply::new(refusal, "later").with("Retry-After", "0") } else { reply }
        });
        let cache = Cache::new();
        cache.put_blob(&format!("{}.part", sha256(&content)), &content[..bytes]);
        assert!(cache.pulled(&hub) == content, "{refusal}");
        assert_eq!(hub.ranges(), [from(bytes), from(bytes)], "{refusal}");
        assert_eq!(hub.sent(), "later".len() + content.len() - bytes, "{refusal}");
    }
}

#[test]
fn a_server_without_ranges_sends_all_and_nothing_is_mixed() {
    let content = noise(50_000, 1);
    let whole = content.clone();
    let restarts: [Box<dyn Fn(Reply) -> Reply + Send + Sync>; 4] = [
        Box::new(move |_| Reply::new(200, whole.clone())),
        Box::new(|reply| reply.with("Content-Range", "bytes 0-50/50000")),
        Box::new(|reply| reply.without("Content-Range")),
        Box::new(|_| Reply::new(416, "")),
    ];
    for (i, restart) in restarts.into_iter().enumerate() {
        let hub =
            hub(&content, move |_, asked, reply| if asked.range.is_some() { restart(reply) } else { reply });
        let cache = Cache::new();
        cache.put_blob(&format!("{}.part", sha256(&content)), &content[..20_000]);
        assert!(cache.pulled(&hub) == content, "{i}");
        let asked = if i == 0 { vec![from(20_000)] } else { vec![from(20_000), None] };
        assert_eq!(hub.ranges(), asked, "{i}");
    }
}

#[test]
fn what_an_earlier_run_left_damaged_is_fetched_again_in_the_same_run() {
    let content = noise(50_000, 1);
    let (shorter, longer) = (noise(20_000, 2), noise(60_000, 2));
    let (same, nothing) = (noise(50_000, 2), Vec::new());
    for (left, asked) in [
        (shorter, vec![from(20_000), None]),
        (same, vec![None]), // of the right size
        (longer, vec![None]),
        (nothing, vec![None]),
    ] {
        let hub = Hub::honest(&[(FILE, content.clone())]);
        let cache = Cache::new();
        cache.put_blob(&format!("{}.part", sha256(&content)), &left);
        assert!(cache.pulled(&hub) == content, "{}", left.len());
        assert_eq!(hub.ranges(), asked, "{}", left.len());
    }
    let hub = Hub::honest(&[(FILE, content.clone())]);
    let cache = Cache::new();
    cache.put_blob(&sha256(&content), &content[..100]); // a whole blob that a drive has cut
    assert!(cache.pulled(&hub) == content);
}

#[test]
fn a_file_that_changes_meanwhile_is_begun_anew_and_never_mixed() {
    let (old, new) = (noise(50_000, 1), noise(50_000, 2));
    let changed = new.clone();
    let hub = hub(&old, move |hub, asked, reply| {
        if asked.earlier == 0 && asked.path.contains(&"c".repeat(40)) {
            hub.put(FILE, changed.clone());
            hub.set_commit(&"d".repeat(40));
            return reply.breaking(30_000);
        }
        // A hub that knows no revisions answers with what it has.
        if asked.path.contains(&"c".repeat(40)) {
            let start =
                asked.range.as_deref().and_then(|r| r["bytes=".len()..].strip_suffix('-')?.parse().ok());
            let start: usize = start.unwrap_or(0);
            return Reply::new(206, &changed[start..])
                .with("Content-Range", &format!("bytes {start}-49999/50000"))
                .with("ETag", &format!("\"{}\"", sha256(&changed)));
        }
        reply
    });
    let cache = Cache::new();
    assert!(cache.pulled(&hub) == new, "a mixture");
    let left: Vec<String> = cache.files().into_iter().filter(|file| file.contains(".part")).collect();
    assert_eq!(left, [""; 0], "of the older one nothing is left");

    // One that changes with every request is not pulled for ever.
    let hub = Hub::new(&[(FILE, old)], |hub, asked, reply| {
        if asked.is_file() {
            reply.with("X-Repo-Commit", &format!("{:040}", hub.asked().len()))
        } else {
            reply
        }
    });
    fails_with(&mut Cache::new().pull(&hub), 6, &["another revision", "keeps changing"]);
}

#[test]
fn a_checksum_that_does_not_fit_is_an_error_and_nothing_stays() {
    let sha1 = |content: &[u8]| {
        use sha1::{Digest, Sha1};
        let mut sum = Sha1::new();
        sum.update(format!("blob {}\0", content.len()).as_bytes());
        sum.update(content);
        sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let content = noise(5000, 3);
    for (etag, said) in [(sha256(b"something else"), "SHA-256"), (sha1(b"something else"), "SHA-1")] {
        let hub = Hub::honest(&[(FILE, content.clone())]);
        hub.set_etag(FILE, &etag);
        let cache = Cache::new();
        fails_with(&mut cache.pull(&hub), 4, &[said, "pull again", FILE]);
        assert!(!cache.files().iter().any(|file| file.contains(&etag)), "{:?}", cache.files());
        let (listed, _) = succeed(&mut cache.at("", &["list"]));
        assert!(listed.contains("0 B  org/mill:Q4_0"), "{listed}");
        fails_with(&mut cache.at("", &["inspect", "org/mill:Q4_0"]), 3, &["tidemill pull org/mill:Q4_0"]);
    }
    for etag in [sha1(&content), sha256(&content), "65f1a-5e2c".into(), format!("W/\"{}\"", sha1(&content))] {
        let hub = Hub::new(&[(FILE, content.clone())], move |_, asked, reply| {
            if asked.is_file() { reply.with("ETag", &etag) } else { reply }
        });
        assert!(Cache::new().pulled(&hub) == content);
    }
}

#[test]
fn sizes_that_are_lies_are_errors_and_what_has_arrived_stays() {
    let content = noise(5000, 3);
    let part = format!("{}.part", sha256(&content));
    for (header, value, code) in [
        ("Content-Length", "3001", 4),
        ("Content-Length", "99999999999999", 4),
        ("Content-Range", "bytes 2000-4998/4999", 4),
    ] {
        let hub = hub(&content, move |_, _, reply| reply.with(header, value));
        let cache = Cache::new();
        cache.put_blob(&part, &content[..2000]);
        fails_with(&mut cache.pull(&hub), code, &["promises", "the file has 5000", FILE]);
        assert!(std::fs::read(cache.blob(&part)).expect("it stays") == content[..2000]);
    }
    // More than was promised, by a server that promises nothing: never taken for the file.
    let more = content.clone();
    let hub = hub(&content, move |_, asked, _| {
        let body = if asked.earlier == 0 { [more.clone(), vec![0; 10]].concat() } else { more.clone() };
        Reply::new(200, body).without("Content-Length")
    });
    assert!(Cache::new().pulled(&hub) == content);
}

#[test]
fn a_drive_without_room_is_said_before_anything_arrives() {
    let hub = Hub::new(&[(FILE, noise(10, 1))], |_, asked, reply| {
        let huge = u64::MAX - 1;
        if asked.is_file() { reply.with("Content-Range", &format!("bytes 0-0/{huge}")) } else { reply }
    });
    let cache = Cache::new();
    fails_with(&mut cache.pull(&hub), 6, &["org/mill", "GB free"]);
    assert_eq!(hub.ranges(), [], "nothing was asked for");
}

#[test]
fn a_hub_that_is_busy_or_away_is_said_to_be() {
    let hub = Hub::new(&[(FILE, noise(10, 1))], |_, _, _| Reply::new(429, "{}").with("Retry-After", "4000"));
    fails_with(&mut Cache::new().pull(&hub), 6, &["too many requests", "wait", "4000 s", "token"]);
    assert_eq!(hub.asked().len(), 1, "an hour is not waited for");
    let hub = Hub::new(&[(FILE, noise(10, 1))], |_, asked, reply| {
        if hub_is_busy(asked) { Reply::new(429, "{}").with("RateLimit", "\"api\";r=0;t=0") } else { reply }
    });
    assert_eq!(Cache::new().pulled(&hub), noise(10, 1));

    fails_with(
        &mut Cache::new().at("http://127.0.0.1:1", &["pull", "org/mill"]),
        6,
        &["org/mill", "http://127.0.0.1:1", "HF_ENDPOINT"],
    );
    let hub = Hub::new(&[], |_, _, _| Reply::new(200, "<html>please log in</html>"));
    fails_with(&mut Cache::new().pull(&hub), 4, &["no JSON", "HF_ENDPOINT"]);
}

/// The first question about the model is.
fn hub_is_busy(asked: &Asked) -> bool {
    static FIRST: std::sync::Once = std::sync::Once::new();
    let mut busy = false;
    if asked.path.starts_with("/api/") {
        FIRST.call_once(|| busy = true);
    }
    busy
}
