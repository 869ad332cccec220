//! Names: what a user writes, what a repository has, and what a hub sends that would be a path.

use serde_json::json;

use super::Cache;
use super::hub::{Hub, Reply, noise};
use crate::common::{fails_with, json, succeed};

fn files(names: &[&str]) -> Vec<(String, Vec<u8>)> {
    names.iter().enumerate().map(|(i, name)| ((*name).to_owned(), noise(1000 + i, i as u64))).collect()
}

fn honest(names: &[&str]) -> std::sync::Arc<Hub> {
    let files = files(names);
    let files: Vec<(&str, Vec<u8>)> =
        files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    Hub::honest(&files)
}

#[test]
fn a_checksum_or_revision_that_is_a_path_is_refused_before_anything_is_written() {
    let cache = Cache::new();
    let victim = cache.path().join("victim");
    std::fs::write(&victim, "precious").expect("writable");
    let absolute = victim.display().to_string();
    for etag in [&absolute, "../../../../../victim", "..", "a\\b", "C:x", "x.part", "", "ä"] {
        for header in ["ETag", "X-Linked-Etag"] {
            let etag = etag.to_owned();
            let hub = Hub::new(&[("m-Q4_0.gguf", noise(1000, 1))], move |_, asked, reply| {
                if asked.is_file() { reply.with(header, &format!("\"{etag}\"")) } else { reply }
            });
            fails_with(&mut cache.pull(&hub), 4, &["m-Q4_0.gguf", "no checksum"]);
        }
    }
    for commit in ["../../../../../../victim-dir", "/tmp/x", "a/b", ""] {
        let hub = honest(&["m-Q4_0.gguf"]);
        hub.set_commit(commit);
        fails_with(&mut cache.pull(&hub), 4, &["org/mill", "revision"]);
    }
    for strange in [json!({"sha": 1}), json!({"sha": "c"}), json!({"sha": "c", "siblings": [{}]}), json!([])]
    {
        let hub = Hub::new(&[], move |_, _, _| Reply::new(200, strange.to_string()));
        fails_with(&mut cache.pull(&hub), 4, &["org/mill", "HF_ENDPOINT"]);
    }
    assert_eq!(cache.files(), [""; 0]);
    assert_eq!(std::fs::read(&victim).expect("it is there"), b"precious");
}

#[test]
fn a_file_whose_name_leads_elsewhere_is_refused() {
    let cache = Cache::new();
    for name in ["../../../../m-Q4_0.gguf", "/tmp/m-Q4_0.gguf", "a\\m-Q4_0.gguf", "C:m-Q4_0.gguf"] {
        fails_with(&mut cache.pull(&honest(&[name])), 4, &["cannot name a file"]);
    }
    let index = json!({"weight_map": {"a": "../x.safetensors"}}).to_string().into_bytes();
    let hub = Hub::honest(&[
        ("config.json", noise(5, 1)),
        ("x.safetensors", noise(5, 2)),
        ("model.safetensors.index.json", index),
    ]);
    fails_with(&mut cache.at(&hub.address(), &["pull", "org/mill"]), 4, &["../x.safetensors"]);
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn names_of_any_script_and_empty_files_arrive() {
    for name in ["mö del-Q4_0.gguf", "模型 #1?-Q4_0.gguf", "100%_q4_0.gguf", "a b/c+d-Q4_0.gguf"] {
        // `?` is no name of a file everywhere.
        let (name, cache) = (name.replace('?', ""), Cache::new());
        assert_eq!(cache.pulled(&honest(&[&name])), noise(1000, 0), "{name}");
    }
    let weights = ["config.json", "model.safetensors", "tokenizer.json"].map(|name| (name, noise(500, 9)));
    let mut files = weights.to_vec();
    files.push(("special_tokens_map.json", Vec::new()));
    let (hub, cache) = (Hub::honest(&files), Cache::new());
    let object = json(&mut cache.at(&hub.address(), &["pull", "org/mill", "--json"]));
    assert_eq!(object["files"], json!(4));
    let folder = std::path::PathBuf::from(object["path"].as_str().expect("a path"));
    assert_eq!(std::fs::read(folder.join("special_tokens_map.json")).expect("it is there"), b"");
    // A question about an empty file, which has no first byte, is one for all of it.
    assert_eq!(hub.ranges().len(), 2, "equal files are fetched once, an empty one not at all");
}

#[test]
fn of_several_models_none_is_chosen_in_silence() {
    let cache = Cache::new();
    let hub = honest(&["draft-0.6B-Q4_0.gguf", "main-30B-Q4_0.gguf", "main-30B-Q8_0.gguf"]);
    fails_with(&mut cache.pull(&hub), 2, &["say which", "draft-0.6B-Q4_0", "main-30B-Q4_0"]);
    fails_with(&mut cache.at(&hub.address(), &["pull", "org/mill:Q9"]), 3, &["no Q9", "main-30B-Q8_0"]);
    fails_with(&mut cache.at(&hub.address(), &["pull", "org/none:Q4_0"]), 3, &["org/none"]);
    fails_with(&mut cache.at(&hub.address(), &["pull", "nonsense"]), 2, &["org/name"]);
    assert_eq!(hub.ranges(), []);
    let model = "org/mill:main-30B-Q4_0.gguf";
    let object = json(&mut cache.at(&hub.address(), &["pull", model, "--json"]));
    assert_eq!((&object["model"], &object["files"]), (&json!(model), &json!(1)));
    succeed(&mut cache.at("", &["rm", model]));
    assert_eq!(cache.files(), [""; 0]);
}

#[test]
fn a_safetensors_model_is_what_the_loader_reads() {
    let index = json!({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).to_string().into_bytes();
    let names = [
        "config.json",
        "model-00001-of-00001.safetensors",
        "consolidated.safetensors",
        "model.fp32.safetensors",
    ];
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().map(|name| (*name, noise(100, name.len() as u64))).collect();
    files.push(("model.safetensors.index.json", index));
    let cache = Cache::new();
    let hub = Hub::honest(&files);
    let (_, err) = succeed(&mut cache.at(&hub.address(), &["pull", "org/mill"]));
    assert!(err.contains("no tokenizer.json"), "{err}");
    files
        .extend([("tokenizer.json", noise(7, 1)), ("additional_chat_templates/tool_use.jinja", noise(8, 1))]);
    let hub = Hub::honest(&files);
    let (_, err) = succeed(&mut cache.at(&hub.address(), &["pull", "org/mill"]));
    assert_eq!(err, "");
    let snapshot = format!("hub/models--org--mill/snapshots/{}/", "c".repeat(40));
    let got: Vec<String> =
        cache.files().iter().filter_map(|f| f.strip_prefix(&snapshot).map(str::to_owned)).collect();
    let want = [
        "additional_chat_templates/tool_use.jinja",
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(got, want);
}
