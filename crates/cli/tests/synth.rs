//! `tidemill synth` as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

fn tidemill(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidemill")).args(args).output().expect("runs")
}

fn json(args: &[&str]) -> serde_json::Value {
    let output = tidemill(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_synthetic_model_is_made_once_and_can_be_used() {
    let dir = tempfile::tempdir().expect("a directory");
    for format in ["mlx-4bit", "gguf-q4_k", "gguf-q4_0"] {
        let out = dir.path().join(format);
        let args = ["synth", "qwen3.5-moe-tiny", text(&out), "--layers", "2", "--format", format, "--json"];
        let made = json(&args);
        assert!(made["written_bytes"].as_u64() > Some(1_000_000), "{made}");
        assert_eq!(json(&args)["written_bytes"], 0, "{format}: the second time nothing is left to do");
        let path = made["path"].as_str().expect("a path");
        let found = json(&["inspect", path, "--check", "--json"]);
        assert_eq!(found["layers"], 2, "{found}");
        let answer = json(&["run", path, "-p", "banana", "--max-tokens", "3", "--json"]);
        assert_eq!(answer["lossy"], false, "{answer}");
    }
}

#[test]
fn the_shapes_are_listed_with_their_sizes() {
    let list = json(&["synth", "--list", "--json"]);
    let shapes = list["shapes"].as_array().expect("a list");
    let flagship = shapes.iter().find(|s| s["shape"] == "qwen3.5-397b-a17b").expect("the flagship");
    assert_eq!(flagship["expert_bytes"], 7_077_888);
    assert_eq!(flagship["token_expert_bytes"], 7_077_888u64 * 600);
}

#[test]
fn mistakes_are_one_line_and_an_exit_code() {
    let dir = tempfile::tempdir().expect("a directory");
    for args in [
        ["synth", "qwen9", text(dir.path()), "--layers", "1"],
        ["synth", "qwen3-moe-tiny", text(dir.path()), "--layers", "99"],
        ["synth", "qwen3-moe-tiny", text(dir.path()), "--format", "gguf"],
    ] {
        let output = tidemill(&args);
        assert!(!output.status.success(), "{args:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.starts_with("error: "), "{args:?}: {message}");
    }
    for ignored in [["--layers", "1"], ["--seed", "1"], ["--skew", "1"]] {
        let output = tidemill(&[&["synth", "--list"], &ignored[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{ignored:?}");
    }
    assert_eq!(tidemill(&["synth", "qwen3-moe-tiny", "--list"]).status.code(), Some(2));
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing was written");
}

#[test]
fn a_folder_that_holds_another_model_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |held: &[(&str, &str)], out: &str, format: &str| {
        let folder = dir.path().join("model");
        std::fs::create_dir_all(&folder).expect("made");
        held.iter().for_each(|(name, content)| std::fs::write(folder.join(name), content).expect("writable"));
        let to = dir.path().join(out);
        let output = tidemill(&["synth", "qwen3-moe-tiny", text(&to), "--format", format]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{held:?}: {message}");
        assert!(message.contains("something else"), "{message}");
        for (name, content) in held {
            assert_eq!(&std::fs::read_to_string(folder.join(name)).expect("there"), content, "{name}");
        }
        assert_eq!(std::fs::read_dir(&folder).expect("readable").count(), held.len(), "{held:?}");
        std::fs::remove_dir_all(folder).expect("removed");
    };
    refused(&[("config.json", "{\"model_type\": \"x\"}"), ("tokenizer.json", "{}")], "model", "mlx-4bit");
    refused(&[("tokenizer.json", "{}")], "model", "mlx-4bit");
    refused(&[("weights.gguf", "GGUF\u{3}\0\0\0")], "model", "mlx-4bit");
    refused(&[("model-00001-of-00002.safetensors", "\u{2}\0\0\0\0\0\0\0{}")], "model", "mlx-4bit");
    refused(&[("my.gguf", "GGUF\u{3}\0\0\0")], "model/my.gguf", "gguf-q4_0");
}
