//! What `list` shows is what `run` opens and `rm` removes, and nothing of it stays behind.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc::channel;

use serde_json::{Value, json};

use super::Cache;
use super::hub::{Hub, noise, sha256};
use crate::common::{fails_with, json, succeed};

const MODEL: &str = "org/mill:Q4_0";
const FILE: &str = "mill-Q4_0.gguf";

fn honest() -> Arc<Hub> {
    Hub::honest(&[(FILE, noise(5000, 1)), ("mill-Q8_0.gguf", noise(6000, 2))])
}

impl Cache {
    /// The one model of `list --json`.
    fn listed(&self) -> Value {
        let models = json(&mut self.at("", &["list", "--json"]));
        assert_eq!(models["models"].as_array().map(Vec::len), Some(1), "{models}");
        models["models"][0].clone()
    }

    fn rm(&self, model: &str) -> String {
        succeed(&mut self.at("", &["rm", model])).0
    }
}

#[test]
fn a_pulled_model_is_listed_found_and_removed() {
    let (hub, cache) = (honest(), Cache::new());
    let content = cache.pulled(&hub);
    assert_eq!(content, noise(5000, 1));
    let listed = cache.listed();
    assert_eq!(
        (&listed["model"], &listed["bytes"], &listed["state"]),
        (&json!(MODEL), &json!(5000), &json!("whole"))
    );
    let path = listed["path"].as_str().expect("a path").to_owned();
    fails_with(&mut cache.at("", &["inspect", "org/mill:q4_0"]), 4, &[&path]); // found, though it is noise
    assert!(cache.rm("org/mill:q4_0").contains("4.88 KiB removed"));
    assert_eq!(cache.files(), [""; 0]);
    assert_eq!(succeed(&mut cache.at("", &["list"])).0, "");
    fails_with(&mut cache.at("", &["rm", MODEL]), 3, &[MODEL, "tidemill list"]);
    fails_with(&mut cache.at("", &["rm", "nonsense"]), 3, &["nonsense", "tidemill list"]);
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn half_a_model_is_listed_and_removed() {
    // What an older Tidemill has left: bytes, and no record of them.
    let (hub, cache) = (honest(), Cache::new());
    cache.put_blob(&format!("{}.part", sha256(&noise(5000, 1))), &noise(5000, 1)[..900]);
    let listed = cache.listed();
    assert_eq!((&listed["model"], &listed["bytes"]), (&json!("org/mill"), &json!(900)));
    assert!(succeed(&mut cache.at("", &["list"])).0.contains("tidemill rm org/mill"));
    fails_with(&mut cache.at("", &["inspect", MODEL]), 3, &["left a part", "tidemill pull org/mill:Q4_0"]);
    assert!(cache.rm(MODEL).contains("900 B removed"));
    assert_eq!(cache.files(), [""; 0]);

    // What a pull leaves that does not end.
    let broken = Hub::new(&[(FILE, noise(5000, 1))], |_, asked, reply| {
        if asked.is_content() { reply.with("Content-Encoding", "gzip") } else { reply }
    });
    fails_with(&mut cache.pull(&broken), 5, &["encoded"]);
    cache.put_blob(&format!("{}.part", sha256(&noise(5000, 1))), &noise(5000, 1)[..900]);
    let listed = cache.listed();
    assert_eq!(
        (&listed["model"], &listed["bytes"], &listed["of_bytes"]),
        (&json!(MODEL), &json!(900), &json!(5000))
    );
    assert_eq!((&listed["state"], &listed["path"]), (&json!("partial"), &Value::Null));
    fails_with(
        &mut cache.at("", &["run", MODEL, "-p", "x"]),
        3,
        &["900 B of 4.88 KiB", "tidemill pull org/mill:Q4_0"],
    );
    // Another quantisation is none of its business.
    succeed(&mut cache.at(&hub.address(), &["pull", "org/mill:Q8_0"]));
    cache.rm("org/mill:Q8_0");
    assert_eq!(cache.listed()["bytes"], json!(900));
    assert_eq!(cache.pulled(&hub), noise(5000, 1));
    cache.rm(MODEL);
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn of_an_older_revision_nothing_stays() {
    let (hub, cache) = (honest(), Cache::new());
    succeed(&mut cache.at(&hub.address(), &["pull", "org/mill:Q8_0"]));
    cache.pulled(&hub);
    hub.put(FILE, noise(7000, 3));
    hub.set_commit(&"d".repeat(40));
    fails_with(&mut cache.at("", &["inspect", "org/mill"]), 3, &["org/mill:Q4_0, org/mill:Q8_0"]);
    // The older one is there until the newer one is.
    let path = cache.at("", &["list", "--json"]).output().expect("runs").stdout;
    assert!(String::from_utf8_lossy(&path).contains(&"c".repeat(40)));
    assert_eq!(cache.pulled(&hub), noise(7000, 3));
    let blobs: Vec<String> = cache.files().into_iter().filter(|file| file.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 2, "the older content is gone, the other quantisation is not: {blobs:?}");
    assert!(cache.rm(MODEL).contains("6.84 KiB"));
    assert_eq!(cache.listed()["model"], json!("org/mill:Q8_0"));
    assert_eq!(cache.listed()["state"], json!("whole"));
    cache.rm("org/mill:Q8_0");
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn revisions_that_an_older_tidemill_kept_go_with_the_model() {
    let (hub, cache) = (honest(), Cache::new());
    cache.pulled(&hub);
    let old = cache.own().join("hub/models--org--mill/snapshots/0ld");
    fs::create_dir_all(&old).expect("writable");
    cache.put_blob("0ldb10b", b"old content");
    cache.put_blob("0ldb10b.lock", b"");
    fs::write(old.join("link"), "as good as one").expect("writable");
    cache.rm(MODEL);
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn records_of_an_older_tidemill_still_count_and_a_moved_cache_is_found() {
    let (hub, cache) = (honest(), Cache::new());
    cache.pulled(&hub);
    let record = cache.own().join("models/org--mill@Q4_0.json");
    let path = cache.own().join(format!("hub/models--org--mill/snapshots/{}/{FILE}", "c".repeat(40)));
    let old = json!({"model": MODEL, "path": path, "files": [path]});
    fs::write(&record, old.to_string()).expect("writable");
    assert_eq!((&cache.listed()["state"], &cache.listed()["bytes"]), (&json!("whole"), &json!(5000)));
    assert_eq!(cache.pulled(&hub), noise(5000, 1));
    assert_eq!(hub.sent(), 5000, "it is there");

    let other = Cache::new();
    fs::rename(cache.own(), other.own()).expect("on one drive");
    assert_eq!((&other.listed()["state"], &other.listed()["bytes"]), (&json!("whole"), &json!(5000)));
    fs::write(other.own().join("models/org--mill@Q4_0.json"), old.to_string()).expect("writable");
    assert_eq!(other.listed()["state"], json!("damaged"), "an absolute path is dead");
    other.rm(MODEL);
    assert_eq!(other.files(), [""; 0]);
}

#[test]
fn what_is_damaged_is_listed_and_can_be_removed_or_pulled_again() {
    let (hub, cache) = (honest(), Cache::new());
    let record = cache.own().join("models/org--mill@Q4_0.json");
    for damage in
        ["", "{", "[]", "{\"model\": 1}", "{\"model\": \"org/other\", \"path\": \"x\", \"files\": [\"x\"]}"]
    {
        cache.pulled(&hub);
        fs::write(&record, damage).expect("writable");
        let listed = cache.listed();
        assert_eq!((&listed["model"], &listed["state"]), (&json!(MODEL), &json!("damaged")), "{damage}");
        fails_with(&mut cache.at("", &["inspect", MODEL]), 3, &[MODEL, "record", "tidemill pull"]);
        assert_eq!(cache.pulled(&hub), noise(5000, 1));
        fs::write(&record, damage).expect("writable");
        cache.rm(MODEL);
        assert_eq!(cache.files(), [""; 0], "{damage}");
    }
    // The content is gone, and its record is not.
    cache.pulled(&hub);
    fs::remove_file(cache.blob(&sha256(&noise(5000, 1)))).expect("it is there");
    let (text, _) = succeed(&mut cache.at("", &["list"]));
    assert!(text.contains(MODEL) && text.contains("is gone") && text.contains("tidemill pull"), "{text}");
    fails_with(&mut cache.at("", &["chat", MODEL]), 3, &[MODEL, "is gone", "tidemill pull org/mill:Q4_0"]);
    assert_eq!(cache.pulled(&hub), noise(5000, 1));
    fs::remove_file(cache.blob(&sha256(&noise(5000, 1)))).expect("it is there");
    cache.rm(MODEL);
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn a_damaged_record_of_another_model_costs_that_model_nothing() {
    let (hub, cache) = (honest(), Cache::new());
    cache.pulled(&hub);
    succeed(&mut cache.at(&hub.address(), &["pull", "org/mill:Q8_0"]));
    let record = cache.own().join("models/org--mill@Q8_0.json");
    let whole = fs::read(&record).expect("readable");
    fs::write(&record, "{").expect("writable");
    assert!(cache.rm(MODEL).contains("4.88 KiB"));
    fs::write(&record, whole).expect("writable");
    assert_eq!(cache.listed()["state"], json!("whole"));
    cache.rm("org/mill:Q8_0");
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn files_of_others_in_the_folder_of_records_are_none() {
    let cache = Cache::new();
    let folder = cache.own().join("models");
    fs::create_dir_all(folder.join("dir.json")).expect("writable");
    for name in ["by-hand.gguf", "notes.json", "a b@c.json", "org--mill.json.writing"] {
        fs::write(folder.join(name), "mine").expect("writable");
    }
    assert_eq!(succeed(&mut cache.at("", &["list"])).0, "");
}

#[test]
fn a_second_pull_says_that_another_is_running_and_a_killed_one_is_in_nobodys_way() {
    let (came, comes) = channel();
    let came = std::sync::Mutex::new(came);
    let hub = Hub::new(&[(FILE, noise(5000, 1))], move |hub, asked, reply| {
        if asked.is_content() && asked.earlier == 0 {
            came.lock().expect("not poisoned").send(hub.port).expect("the test waits");
            loop {
                std::thread::park(); // an answer that never comes
            }
        }
        reply
    });
    let cache = Cache::new();
    let mut first = cache.pull(&hub).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    comes.recv().expect("the first pull asks for content");
    for args in [vec!["pull", MODEL], vec!["pull", "org/mill:Q8_0"], vec!["rm", MODEL]] {
        fails_with(&mut cache.at(&hub.address(), &args), 6, &["org/mill", "another", "is running"]);
    }
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    assert_eq!(cache.listed()["state"], json!("partial"));
    assert_eq!(cache.pulled(&hub), noise(5000, 1));
    cache.rm(MODEL);
    assert_eq!(cache.files(), [""; 0]);
}
