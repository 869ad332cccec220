//! `logits` against the goldens: the hook by which outsiders check us.

use std::collections::BTreeSet;

use crate::common::{Tensors, fails, fails_with, golden, succeed, tidemill};
use serde_json::Value;

#[test]
fn logits_and_routes_are_the_golden_ones() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q8_0"] {
        compare(set);
    }
}

fn compare(set: &str) {
    let dir = golden(set);
    let golden: Value =
        serde_json::from_slice(&std::fs::read(dir.join("golden.json")).expect("there")).expect("JSON");
    let truth = Tensors::open(&dir.join("golden.safetensors"));
    let ids: Vec<String> =
        golden["prompts"]["p7"]["ids"].as_array().expect("ids").iter().map(ToString::to_string).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let (npy, routes) = (folder.path().join("out.npy"), folder.path().join("routes.json"));
    let mut command = tidemill(["logits"]);
    command
        .arg(&dir)
        .args(["--exact", "--tokens", &ids.join(","), "--npy"])
        .arg(&npy)
        .arg("--routes")
        .arg(&routes);
    let (out, _) = succeed(&mut command);
    assert_eq!(out, "", "stdout is for JSON");

    let bytes = std::fs::read(&npy).expect("written");
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 10;
    let text = String::from_utf8_lossy(&bytes[10..header]).into_owned();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00") && text.contains("'<f4'"), "{text}");
    let float = |word: &[u8]| f32::from_le_bytes(word.try_into().expect("4 bytes"));
    let ours: Vec<f32> = bytes[header..].chunks_exact(4).map(float).collect();
    let theirs: Vec<f32> = truth.words("p7.logits").iter().map(|w| float(w)).collect();
    assert_eq!(ours.len(), theirs.len(), "{text}");
    let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 5e-4, "{set}: {worst}");

    let routes: Value = serde_json::from_slice(&std::fs::read(&routes).expect("written")).expect("JSON");
    let layers = routes["layers"].as_array().expect("layers");
    let number = |w: &[u8; 4]| i64::from(i32::from_le_bytes(*w));
    let chosen: Vec<i64> = truth.words("p7.router_ids").iter().map(number).collect();
    let margins: Vec<f32> = truth.words("p7.router_margin").iter().map(|w| float(w)).collect();
    let top_k = chosen.len() / margins.len();
    assert_eq!(layers.len() * ids.len(), margins.len());
    for (row, margin) in margins.iter().enumerate().filter(|(_, margin)| **margin > 1e-3) {
        let ours = &layers[row / ids.len()]["ids"][row % ids.len()];
        let ours: BTreeSet<i64> = ours.as_array().expect("ids").iter().filter_map(Value::as_i64).collect();
        let theirs: BTreeSet<i64> = chosen[row * top_k..][..top_k].iter().copied().collect();
        assert_eq!(ours, theirs, "{set}: row {row}, margin {margin}");
    }
}

#[test]
fn what_cannot_be_computed_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let npy = folder.path().join("out.npy");
    let npy = npy.to_str().expect("UTF-8");
    fails(["logits", "--tokens", "1,8192", "--npy", npy], 2, &["token 8192", "8192"]);
    fails(["logits", "--tokens", "1,two", "--npy", npy], 2, &["--tokens", "two"]);
    fails(
        ["logits", "--tokens", "1,2,3", "--ctx", "2", "--npy", npy],
        8,
        &["3 tokens", "context of 2", "--ctx"],
    );
    fails(["logits", "--tokens", "1", "--npy", "/nowhere/out.npy"], 3, &["/nowhere/out.npy"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[cfg(unix)]
#[test]
fn pipes_and_links_stay_what_they_are() {
    use std::fs::{self, File};
    use std::io::Read;
    use std::os::unix::fs::FileTypeExt;

    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let write = |out: &std::path::Path| {
        let model = golden("qwen3_moe-e16/mlx-4bit");
        succeed(tidemill(["logits"]).arg(model).args(["--tokens", "1", "--npy"]).arg(out));
    };
    let bytes = 128 + 4 * 512;
    fs::write(at("old.npy"), "old").expect("writable");
    for (link, target) in [("to-old", "old.npy"), ("to-new", "new.npy")] {
        std::os::unix::fs::symlink(target, at(link)).expect("a link");
        write(&at(link));
        assert!(fs::symlink_metadata(at(link)).expect("there").is_symlink(), "{link}");
        assert_eq!(fs::metadata(at(target)).expect("there").len(), bytes, "{target}");
    }

    let pipe = at("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
    // Opened for both, so that nobody waits for the other side; the pipe has room for it all.
    let mut reader = File::options().read(true).write(true).open(&pipe).expect("opens");
    write(&pipe);
    assert!(fs::symlink_metadata(&pipe).expect("there").file_type().is_fifo());
    let mut first = [0; 6];
    reader.read_exact(&mut first).expect("readable");
    assert_eq!(&first, b"\x93NUMPY");
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 5, "nothing lies beside them");
    let locked = folder.path().join("none/out.npy");
    let err = tidemill(["logits", "--tokens", "1", "--npy"]).arg(&locked).output().expect("runs").stderr;
    assert!(!String::from_utf8_lossy(&err).contains(".partial"));
}

#[test]
fn outputs_never_lie_over_what_is_read_or_over_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let original = std::fs::read(golden("qwen3_moe-e16/gguf-Q4_0/model-Q4_0.gguf")).expect("readable");
    std::fs::write(at("model.gguf"), &original).expect("writable");
    std::fs::write(at("other"), &original).expect("writable");
    std::fs::write(at("ids"), "1,2").expect("writable");
    std::fs::hard_link(at("model.gguf"), at("linked")).expect("linked");
    let refused = |command: &str, outputs: &[(&str, &str)], said: &str| {
        let mut run = tidemill([command]);
        run.arg(at("model.gguf")).args(["--device", "cpu"]);
        for (option, name) in outputs {
            let at = if *option == "--tokens" { format!("@{}", at(name).display()).into() } else { at(name) };
            run.arg(option).arg(at);
        }
        fails_with(&mut run, 2, &[said]);
        assert!(std::fs::read(at("model.gguf")).expect("there") == original, "{outputs:?}");
        assert!(std::fs::read(at("other")).expect("there") == original, "{outputs:?}");
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("readable").count(),
            4,
            "{outputs:?}: nothing is left"
        );
    };
    let ids = ("--tokens", "ids");
    for name in ["model.gguf", "./linked"] {
        refused("logits", &[ids, ("--npy", name)], "same file");
        refused("logits", &[ids, ("--npy", "new"), ("--routes", name)], "same file");
        refused("bench", &[("--record-trace", name)], "same file");
    }
    refused("logits", &[ids, ("--npy", "other")], "part of a model");
    refused("logits", &[ids, ("--npy", "ids")], "same file");
    refused("logits", &[ids, ("--npy", "new"), ("--routes", "./new")], "same file");
    refused("bench", &[("--text", "ids"), ("--record-trace", "ids")], "same file");
}

#[test]
fn a_command_that_fails_leaves_older_outputs_and_no_new_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let (npy, routes) = (folder.path().join("out.npy"), folder.path().join("nowhere/routes.json"));
    let logits = |tokens: &str| {
        let mut command = tidemill(["logits", "demo", "--device", "cpu", "--tokens", tokens, "--npy"]);
        command.arg(&npy);
        command
    };
    fails_with(logits("1").arg("--routes").arg(&routes), 3, &["nowhere/routes.json"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0, "no logits without routes");
    std::fs::write(&npy, "older").expect("writable");
    fails_with(&mut logits("99999"), 2, &["99999"]);
    assert_eq!(std::fs::read(&npy).expect("there"), b"older");
    succeed(&mut logits("1"));
    assert!(std::fs::read(&npy).expect("there").starts_with(b"\x93NUMPY"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 1);
    // A trace cannot be written for lack of routers: said before anything runs.
    let dense = golden("llama-dense/bf16");
    let trace = folder.path().join("run.trace");
    let bench = ["bench", dense.to_str().expect("UTF-8"), "--device", "cpu", "--record-trace"];
    fails_with(tidemill(bench).arg(&trace), 2, &["--record-trace", "no routers"]);
    assert!(!trace.exists());
}
