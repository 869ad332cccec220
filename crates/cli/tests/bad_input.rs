//! Bad models, options and files: one line that names the thing, and an exit code.

use std::path::Path;

use crate::common::{Tensors, copy_model, edit, fails, fails_with, golden, json, piped, succeed, tidemill};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn damaged_models_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let gguf = folder.path().join("model.gguf");
    let copy = |change: &dyn Fn(&mut Vec<u8>)| {
        std::fs::copy(golden("qwen3_moe-e16/gguf-Q4_0/model-Q4_0.gguf"), &gguf).expect("copied");
        edit(&gguf, change);
    };
    let run = ["run", text(&gguf), "-p", "x"];
    copy(&|bytes| bytes.truncate(bytes.len() / 2));
    fails(run, 4, &["model.gguf"]);
    copy(&|bytes| bytes.truncate(100));
    fails(run, 4, &["model.gguf"]);
    copy(&|bytes| bytes[0] ^= 0xff);
    fails(run, 4, &["model.gguf"]);
    copy(&|bytes| bytes[4] = 99);
    fails(run, 5, &["model.gguf", "99"]);
    copy(&|bytes| bytes[15] = 0x7f); // the tensor count
    fails(run, 4, &["model.gguf"]);

    let hf = folder.path().join("hf");
    copy_model(&golden("qwen3_5_moe-e32/bf16"), &hf);
    std::fs::remove_file(hf.join("model-00002-of-00002.safetensors")).expect("was there");
    fails(["run", text(&hf), "-p", "x"], 3, &["model-00002-of-00002.safetensors"]);
    fails(["inspect", text(&hf)], 3, &["model-00002-of-00002.safetensors"]);
}

#[test]
fn a_flipped_byte_anywhere_in_the_header_never_panics() {
    let folder = tempfile::tempdir().expect("a folder");
    let mlx = folder.path().join("mlx");
    copy_model(&golden("qwen3_moe-e16/mlx-4bit"), &mlx);
    let weights = mlx.join("model.safetensors");
    let npy = folder.path().join("out.npy");
    let clean = std::fs::read(&weights).expect("readable");
    for at in [0, 3, 7, 8, 9, 30, 60, 100, 200, 400] {
        edit(&weights, |bytes| bytes[at] ^= 0x15);
        let output =
            tidemill(["logits", text(&mlx), "--tokens", "1", "--npy", text(&npy)]).output().expect("runs");
        let err = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code().expect("no signal");
        // A byte in a name of metadata may be harmless; what is refused is refused in one line.
        assert!(
            code == 0 || (err.starts_with("error: ") && err.lines().count() == 1),
            "byte {at}: {code} {err}"
        );
        assert!([0, 3, 4, 5].contains(&code), "byte {at}: {code} {err}");
        std::fs::write(&weights, &clean).expect("writable");
    }
}

#[test]
fn models_that_do_not_fit_together_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mlx = folder.path().join("mlx");
    copy_model(&golden("qwen3_5_moe-e32/mlx-4bit"), &mlx);
    let demo = crate::common::root().join("models/demo");
    std::fs::copy(demo.join("tokenizer.json"), mlx.join("tokenizer.json")).expect("copied");
    fails(["run", text(&mlx), "-p", "x"], 4, &["wrong tokenizer", "8192", "512"]);

    let config = mlx.join("config.json");
    let original = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, original.replace("qwen3_5_moe", "gpt_oss")).expect("writable");
    fails(["run", text(&mlx), "-p", "x"], 5, &["gpt_oss"]);

    let bf16 = folder.path().join("bf16");
    copy_model(&golden("qwen3_5_moe-e32/bf16"), &bf16);
    edit(&bf16.join("tokenizer_config.json"), |bytes| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        value.as_object_mut().expect("an object").remove("chat_template").expect("there is one");
        *bytes = value.to_string().into_bytes();
    });
    fails(["run", text(&bf16), "-p", "x"], 5, &["no chat template", "--raw"]);
    fails(["chat", text(&bf16)], 5, &["no chat template"]);
    let (answer, _) = succeed(&mut tidemill(["run", text(&bf16), "--raw", "-p", "abc", "--max-tokens", "2"]));
    assert!(answer.ends_with('\n'), "{answer:?}");
}

#[test]
fn bad_options_are_one_line() {
    fails(["run", "no-such-model", "-p", "x"], 3, &["no-such-model", "MODEL is"]);
    fails(["run", "-p", "x", "--memory", "12XB"], 2, &["--memory", "12XB", "12GiB"]);
    fails(["run", "-p", "x", "--memory", "8MiB"], 7, &["floor", "give at least"]);
    fails(["run", "-p", "x", "--threads", "0"], 2, &["--threads"]);
    fails(["run", "-p", "x", "--temperature", "-1"], 2, &["temperature", "-1"]);
    fails(["run", "-p", "x", "--top-p", "7"], 2, &["top_p", "above 0 and at most 1"]);
    fails(["run", "-p", "x", "--logit-bias", "7"], 2, &["--logit-bias", "ID:VALUE"]);
    fails(["run", "-p", "x", "--logit-bias", "9999999:1"], 2, &["9999999"]);
    fails(["run", "-p", "x", "--stop", ""], 2, &["stop"]);
    fails(["run", "-p", "x", "--experts-per-token", "33"], 2, &["33 experts", "32"]);
    fails(["run", "-p", "x", "--ctx", "99999"], 2, &["99999", "4096"]);
    fails(["run", "-p", "x", "--kv", "q3"], 2, &["--kv", "f16, q8"]);
    fails(["run", "-p", "x", "--kv", "q8", "--exact"], 2, &["--kv", "--exact"]);
    let narrow = golden("llama-dense/bf16");
    fails(["run", text(&narrow), "-p", "x", "--kv", "q8"], 5, &["8-bit KV cache", "32", "16"]);
    fails(["run", "-p", "x", "--device", "tpu"], 2, &["--device", "auto, cpu, gpu"]);
    fails(["eval", "ppl", "demo", "x.txt", "--protocol", "llama.cpp", "--stride", "7"], 2, &["--stride"]);
    fails(["eval", "ppl", "demo", "x.jsonl", "--stride", "7"], 2, &["--stride"]);
    for ignored in [["--lookahead", "all"], ["--gen-tokens", "5"], ["--memory", "1GiB"], ["--cache", "os"]] {
        fails(["bench", "--trace", "x.trace"].iter().chain(&ignored), 2, &["--trace", ignored[0]]);
    }
    fails(["bench", "--trace", "x.trace", "--slots", "5,0"], 2, &["--slots", "at least 1"]);
    for model in [&["bench"][..], &["bench", "demo"], &["bench", "--prompt-tokens", "4"]] {
        fails(model.iter().chain(&["--slots", "5"]), 2, &["--slots", "--trace"]);
    }
    let text = text(&crate::common::root().join("testdata/text/stories.txt")).to_owned();
    for stride in ["32", "33", "4000000000"] {
        let eval = ["eval", "ppl", "demo", &text, "--ctx", "32", "--stride", stride];
        fails(eval, 2, &["--stride", stride, "below --ctx"]);
    }
    for ignored in [["--prompt-tokens", "5"], ["--ctx", "64"], ["--kv", "q8"], ["--experts-per-token", "2"]] {
        fails(["doctor"].iter().chain(&ignored), 2, &[ignored[0], "only with a MODEL"]);
    }
    fails(["run", "-p", "x", "--raw", "--system", "y"], 2, &["--raw", "--system"]);
    fails(["run", "-p", "", "--raw"], 2, &["prompt is empty"]);
    fails(["run"], 2, &["--prompt"]);
    fails(["runn"], 2, &["runn", "run"]);
    fails(["run", "-p", &"word ".repeat(40), "--ctx", "16"], 8, &["context of 16"]);
}

#[test]
fn bad_files_are_named_with_their_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bad.jsonl");
    let write = |content: &str| std::fs::write(&file, content).expect("writable");
    write("{\"prompt\": \"a\", \"text\": \"b\"}\n{\"prompt\"\n");
    fails(["eval", "ppl", "demo", text(&file)], 2, &["bad.jsonl", "line 2"]);
    write("\n{\"prompt\": \"a\", \"text\": \"b\"}\n\n{\"prompt\": \"a\"}\n");
    fails(["eval", "ppl", "demo", text(&file)], 2, &["bad.jsonl, line 4", "`text`"]);
    let long = "word ".repeat(5000);
    write("{}\n");
    fails(["eval", "ppl", "demo", text(&file)], 2, &["line 1", "\"prompt\", \"text\"", "\"messages\""]);
    write(&format!("\n{{\"prompt\": \"a\", \"text\": {long:?}}}\n"));
    fails(["eval", "ppl", "demo", text(&file)], 8, &["bad.jsonl, line 2", "context"]);
    write(&format!("\n\n{{\"messages\": [], \"tools\": [], \"expected_text\": {long:?}}}\n"));
    fails(["eval", "tools", "demo", text(&file)], 8, &["bad.jsonl, line 3", "context"]);
    write("\n");
    fails(["eval", "tools", "demo", text(&file)], 2, &["bad.jsonl", "no lines"]);
    write("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
    fails(["eval", "ppl", "demo", text(&file)], 2, &["bad.jsonl", "line 1", "assistant"]);
    fails(["eval", "ppl", "demo", "/nowhere.txt"], 3, &["/nowhere.txt"]);
    let short = folder.path().join("short.txt");
    std::fs::write(&short, "Once upon a time.").expect("writable");
    fails(["eval", "ppl", "demo", text(&short), "--protocol", "llama.cpp"], 2, &["short.txt", "two chunks"]);
    std::fs::write(&short, "").expect("writable");
    fails(["eval", "ppl", "demo", text(&short)], 2, &["short.txt", "fewer than 2 tokens"]);
    write("{\"name\": 1}");
    fails(["run", "-p", "x", "--tools", text(&file)], 2, &["bad.jsonl"]);
    fails(["chat", "--tools", "/nowhere.json"], 3, &["/nowhere.json"]);
}

#[test]
fn weights_that_are_not_finite_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let mlx = folder.path().join("mlx");
    copy_model(&golden("qwen3_5_moe-e32/mlx-4bit"), &mlx);
    let (clean, _) = succeed(&mut tidemill(["inspect", text(&mlx), "--check"]));
    assert!(clean.contains("all weights are finite"), "{clean}");
    let weights = mlx.join("model.safetensors");
    let name = "language_model.model.layers.1.mlp.switch_mlp.up_proj.scales";
    let scales = Tensors::open(&weights).range(name);
    edit(&weights, |bytes| bytes[scales.end - 2..scales.end].copy_from_slice(&[0xc0, 0x7f])); // bf16 NaN
    let output = tidemill(["inspect", text(&mlx), "--check", "--json"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(4));
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bad = object["bad_tensors"][0].as_str().expect("a message");
    for said in ["layers.1.mlp.switch_mlp.up_proj.weight", "row", "block"] {
        assert!(bad.contains(said), "{bad}");
    }
}

#[test]
fn inspect_knows_the_built_in_model() {
    let object = json(&mut tidemill(["inspect", "--json"]));
    let expect = [
        ("architecture", serde_json::json!("qwen3_5_moe")),
        ("layers", 8.into()),
        ("experts_per_layer", 32.into()),
        ("experts_per_token", 4.into()),
        ("vocab_size", 8192.into()),
        // 3 matrices of 384 x 128 values: half a byte each, and a scale and a bias of 2 bytes for 64 of them
        ("expert_bytes", (3 * 384 * 128 * (32 + 4) / 64).into()),
        ("expert_bytes_per_token", (8 * 4 * 82944).into()),
        ("experts_bytes", (8 * 32 * 82944).into()),
        ("kv_bytes_per_token", (2 * 2 * 2 * 64 * 2).into()),
        ("runs", true.into()),
        ("chat_template", true.into()),
    ];
    for (key, value) in expect {
        assert_eq!(object[key], value, "{key}");
    }
    let weights = object["weights"].as_f64().expect("a count");
    assert!((52.6e6..52.8e6).contains(&weights), "{weights}");
}

#[test]
fn inspect_tries_the_chat_template() {
    let folder = tempfile::tempdir().expect("a folder");
    let hf = folder.path().join("hf");
    copy_model(&golden("qwen3_5_moe-e32/bf16"), &hf);
    edit(&hf.join("tokenizer_config.json"), |bytes| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        value["chat_template"] = "{{ raise_exception('no such role') }}".into();
        *bytes = value.to_string().into_bytes();
    });
    fails(["run", text(&hf), "-p", "x"], 2, &["no such role"]);
    let (shown, _) = succeed(&mut tidemill(["inspect", text(&hf)]));
    let line = shown.lines().find(|line| line.starts_with("chat template")).expect("a line");
    assert!(line.contains("not usable: ") && line.contains("no such role"), "{line}");
    let object = json(&mut tidemill(["inspect", text(&hf), "--json"]));
    assert!(
        object["chat_template_problem"].as_str().is_some_and(|why| why.contains("no such role")),
        "{object}"
    );
}

#[test]
fn standard_input_that_is_no_text_is_refused() {
    let mut command = tidemill(["chat"]);
    let (_, err) = piped(&mut command, "/think perhaps\n", 2);
    assert_eq!(err, "error: /think: write on or off\n");
}

#[test]
fn what_is_not_utf8_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, b"caf\xe9\n").expect("writable");
        path
    };
    let (txt, jsonl) = (file("bad.txt"), file("bad.jsonl"));
    let said = ["bad.", "not UTF-8"];
    fails(["eval", "ppl", "demo", text(&txt)], 2, &said);
    fails(["eval", "ppl", "demo", text(&jsonl)], 2, &said);
    fails(["bench", "--text", text(&txt)], 2, &said);
    fails(["run", "-p", "x", "--tools", text(&jsonl)], 2, &said);
    fails(["logits", "--tokens", &format!("@{}", text(&txt)), "--npy", "/nowhere/out.npy"], 2, &said);
    let utf16 = folder.path().join("utf16.json");
    std::fs::write(&utf16, b"\xff\xfe[\0]\0").expect("writable");
    fails(["run", "-p", "x", "--tools", text(&utf16)], 2, &["utf16.json", "UTF-16"]);
    let marked = folder.path().join("marked.json");
    std::fs::write(&marked, "\u{feff}[]").expect("writable");
    succeed(&mut tidemill(["run", "-p", "x", "--max-tokens", "1", "--tools", text(&marked)]));
    let input = std::fs::File::open(&txt).expect("readable");
    fails_with(tidemill(["run", "-p", "-"]).stdin(input), 2, &["standard input", "not UTF-8"]);
}

/// What sets a window's title.
const ESCAPE: &str = "\x1b]0;";

#[cfg(target_os = "linux")]
#[test]
fn what_a_file_says_is_shown_and_not_obeyed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = std::fs::read(golden("qwen3_moe-e16/gguf-Q4_0/model-Q4_0.gguf")).expect("readable");
    let at = bytes.windows(6).position(|part| part == b"golden").expect("its name");
    bytes[at..at + 6].copy_from_slice(b"\x1b]0;X\x07");
    let named = folder.path().join("named.gguf");
    std::fs::write(&named, bytes).expect("writable");
    let path = folder.path().join(format!("{ESCAPE}X\x07.gguf"));
    std::fs::write(&path, b"GGUF").expect("writable");
    for model in [&named, &path] {
        // The name of a model stands before what is wrong with its plan.
        let run = ["run", text(model), "-p", "x", "-q", "--memory", "8MiB"];
        for command in [["inspect", text(model)].as_slice(), &run] {
            let (_, shown) = crate::common::in_terminal(tidemill(command), &[]);
            assert!(!shown.contains(ESCAPE) && shown.contains("\\u{1b}]0;X\\u{7}"), "{command:?}: {shown:?}");
        }
    }
}

/// A model that thinks an escape sequence and says nothing else of interest.
#[cfg(target_os = "linux")]
#[test]
fn what_a_model_thinks_is_shown_and_not_obeyed() {
    let model = crate::common::root().join("testdata/faults/m15-escapes-from-files/thought.gguf");
    let run = ["run", text(&model), "-p", "hi", "--device", "cpu", "-q"];
    for no_color in [None, Some("1")] {
        let mut command = tidemill(run);
        command.envs(no_color.map(|value| ("NO_COLOR", value)));
        let (code, shown) = crate::common::in_terminal(command, &[]);
        assert_eq!(code, Some(0), "{shown:?}");
        // Each token is written by itself, and dimmed.
        assert!(!shown.contains(ESCAPE) && shown.contains("\\u{1b}"), "{no_color:?}: {shown:?}");
    }
    let (_, thoughts) = succeed(&mut tidemill(run));
    assert!(thoughts.contains(ESCAPE), "to a program they go as they are: {thoughts:?}");
}
