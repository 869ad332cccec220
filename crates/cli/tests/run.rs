//! `run` on the built-in model: what a fresh install does.

use std::io::Read;
use std::process::Stdio;

use crate::common::{fails, golden, json, piped, root, succeed, tidemill};
use serde_json::json;

const STORY: &str = "Tell me a story about a brave hedgehog named Luca and a magic whistle.";

/// What Hugging Face's class writes with the same weights, decoded greedily (the model's EVAL.json).
const STORY_BEGINS: &str = "Once upon a time, there was a brave hedgehog named Luca. He lived in a small village and \
                            loved to play with his friends. One day, he heard a strange whistling sound coming from a nearby tree.";

const WEATHER: &str = r#"[{"type": "function", "function": {"name": "get_weather", "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."},
    "days": {"type": "integer", "description": "Number of days."}}, "required": ["city", "days"]}}}]"#;

#[test]
fn a_story_is_the_reference_one_with_any_threads_and_chunks() {
    let plain = ["run", "-p", STORY, "--temperature", "0", "--exact", "--max-tokens", "40"];
    let (story, statistics) = succeed(&mut tidemill(plain));
    assert!(STORY_BEGINS.starts_with(story.trim_end()) && story.len() > 120, "{story}");
    assert!(statistics.contains("40 tokens") && statistics.contains("--max-tokens"), "{statistics}");
    let other = ["--threads", "1", "--chunk-tokens", "7", "--cache", "os", "--quiet"];
    assert_eq!(succeed(&mut tidemill(plain.iter().chain(&other))), (story, String::new()));
}

#[test]
fn json_is_one_object_with_the_documented_keys() {
    let object =
        json(&mut tidemill(["run", "-p", "What is 7 plus 5?", "--temperature", "0", "--exact", "--json"]));
    assert_eq!(object["text"], "7 + 5 = 12.");
    assert_eq!(object["finish_reason"], "stop");
    assert_eq!(
        (&object["model"], &object["experts_per_token"], &object["lossy"]),
        (&json!("demo"), &json!(4), &json!(false))
    );
    for key in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "time_to_first_token_s",
        "drive_bytes_per_s",
        "read_bytes_per_token",
        "rss_peak_bytes",
        "plan_bytes",
        "stall_s",
    ] {
        assert!(object[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {object}");
    }
    assert!(object["expert_hit_rate"].as_f64().is_some_and(|v| (0.0..=1.0).contains(&v)), "{object}");
    assert!(object["rss_peak_bytes"].as_u64() <= object["plan_bytes"].as_u64(), "{object}");
}

#[test]
fn a_tool_is_called_with_typed_arguments() {
    let folder = tempfile::tempdir().expect("a folder");
    let tools = folder.path().join("tools.json");
    std::fs::write(&tools, WEATHER).expect("written");
    let ask =
        ["run", "-p", "Get the weather in Lisbon with days 3.", "--temperature", "0", "--exact", "--tools"];
    let tools = tools.to_str().expect("UTF-8").to_owned();
    let ask: Vec<&str> = ask.into_iter().chain([tools.as_str()]).collect();
    let object = json(tidemill(&ask).arg("--json"));
    assert_eq!(object["finish_reason"], "tool_calls");
    let call = &object["tool_calls"][0]["function"];
    assert_eq!(call, &json!({"name": "get_weather", "arguments": "{\"city\":\"Lisbon\",\"days\":3}"}));
    let (text, _) = succeed(&mut tidemill(&ask));
    assert_eq!(text, "get_weather({\"city\":\"Lisbon\",\"days\":3})\n");
}

#[test]
fn plain_text_goes_on_where_it_ends() {
    let args = [
        "run",
        "--raw",
        "-p",
        "-",
        "--temperature",
        "0",
        "--exact",
        "--max-tokens",
        "12",
        "--stop",
        " named",
    ];
    let (text, _) = piped(&mut tidemill(args), "Once upon a time\n", 0);
    assert_eq!(text, ", there was a little girl\n");
}

#[test]
fn a_seed_repeats_an_answer() {
    let args = ["run", "-p", "Hello!", "--temperature", "1.5", "--max-tokens", "12", "--json", "--seed"];
    let of = |seed: &str| {
        let object = json(tidemill(args).arg(seed));
        (object["text"].clone(), object["seed"].clone())
    };
    assert_eq!(of("7"), of("7"));
    assert_ne!(of("7").0, of("8").0);
    let drawn = json(&mut tidemill(&args[..args.len() - 1]));
    assert!(drawn["seed"].is_u64(), "{drawn}");
}

#[test]
fn fewer_experts_are_named_as_lossy() {
    let args = ["run", "-p", "Hi", "--max-tokens", "1", "--experts-per-token", "2", "--json"];
    let output = tidemill(args).output().expect("runs");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.starts_with("lossy: 2 experts per token"), "{err}");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&object["experts_per_token"], &object["lossy"]), (&json!(2), &json!(true)));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = tidemill(["run", "-p", STORY, "--max-tokens", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("a first letter");
    drop(stdout);
    let output = child.wait_with_output().expect("the program ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !err.contains("panicked"), "{:?} {err}", output.status);
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_an_answer_with_130() {
    let mut child = tidemill(["run", "-p", STORY, "--temperature", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("a first letter");
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill runs").success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("UTF-8");
    let output = child.wait_with_output().expect("the program ends");
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("stopped") && err.ends_with("error: interrupted\n"), "{err}");
}

#[test]
fn bench_measures_what_it_names() {
    let object = json(&mut tidemill(["bench", "--prompt-tokens", "24", "--gen-tokens", "4", "--json"]));
    assert_eq!((&object["prompt_tokens"], &object["gen_tokens"]), (&json!(24), &json!(4)));
    for key in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "time_to_first_token_s",
        "rss_peak_bytes",
        "plan_bytes",
    ] {
        assert!(object[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {object}");
    }
    assert!(object["drive_fraction"].is_null() && object["read_bytes_per_token"].is_number(), "{object}");
    assert_eq!((&object["prompt_chunks"], &object["prompt_chunk_tokens"]), (&json!(1), &json!(24)));
    fails(["bench", "--ctx", "16"], 2, &["--ctx 16"]);
}

/// The bounds of the prompt's layers.
fn bounds(object: &serde_json::Value) -> Vec<&str> {
    let layers = object["prompt_layers"].as_array().expect("a list");
    layers.iter().map(|layer| layer["bound"].as_str().expect("a name")).collect()
}

#[test]
fn bench_of_a_prompt_whose_experts_are_in_memory_is_bound_by_arithmetic() {
    let args = ["bench", "--prompt-tokens", "60", "--warm-up-prompt", "60", "--gen-tokens", "1", "--device"];
    let object = json(tidemill(args).args(["cpu", "--chunk-tokens", "25", "--json"]));
    assert_eq!((&object["prompt_chunks"], &object["prompt_chunk_tokens"]), (&json!(3), &json!(25)));
    assert_eq!((&object["prompt_experts_read"], &object["prompt_read_bytes"]), (&json!(0), &json!(0)));
    assert!(object["prompt_experts_used"].as_u64() > Some(8 * 4), "4 of each layer at least: {object}");
    assert!(object["copy_bytes_per_s"].is_null(), "{object}");
    assert_eq!(bounds(&object), ["arithmetic"; 8]);
    for layer in object["prompt_layers"].as_array().expect("a list") {
        let [time, drive, arithmetic] =
            ["time_s", "drive_s", "arithmetic_s"].map(|key| layer[key].as_f64().expect(key));
        assert!(drive == 0.0 && time > 0.0 && time == arithmetic, "{layer}");
    }
    let (table, _) = succeed(tidemill(args).args(["cpu"]));
    assert!(table.contains("1 chunk of 60 tokens; 0 experts read, "), "{table}");
    assert!(table.contains("  8 layers ") && table.contains("bound by arithmetic: drive 0.0,"), "{table}");
}

#[test]
fn bench_from_a_slow_drive_says_where_the_time_went() {
    let model = golden("qwen3_5_moe-e512/mlx-4bit");
    let model = model.to_str().expect("UTF-8");
    let common = ["--prompt-tokens", "24", "--gen-tokens", "8", "--max-slots", "30", "--throttle", "0.02"];
    let object = json(tidemill(["bench", model, "--json", "--exact", "--ctx", "64"]).args(common));
    let number = |key: &str| object[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"));
    assert!(number("slots") > 0.0 && number("read_bytes_per_token") > 0.0, "{object}");
    assert!(number("drive_fraction") > 0.05 && number("drive_fraction") < 1.3, "{object}");
    assert!(number("drive_bytes_per_s") < 25e6 && number("stall_drive_s") > 0.0, "{object}");
    assert!((0.0..=1.0).contains(&number("overlap_fraction")), "{object}");
    let layers = object["layers"].as_array().expect("a list");
    let read: f64 = layers.iter().filter_map(|l| l["read_bytes"].as_f64()).sum();
    assert!((read / 8.0 - number("read_bytes_per_token")).abs() < 1.0, "{object}");
    let (table, _) = succeed(tidemill(["bench", model, "--ctx", "64"]).args(common));
    // Of the experts that a prompt uses some are in memory before, and some are read again.
    let [read, used, bytes, used_bytes] = ["experts_read", "experts_used", "read_bytes", "used_bytes"]
        .map(|key| number(&format!("prompt_{key}")));
    assert!(0.5 * used < read && read < 3.0 * used && used > 30.0, "{object}");
    assert!((bytes / read / (used_bytes / used) - 1.0).abs() < 0.1, "{object}");
    assert!(bounds(&object).len() > 1 && bounds(&object).iter().all(|bound| *bound == "drive"), "{object}");
    for line in ["waiting ", "overlap ", "drive ", "layer   0 ", "bound by drive: ", "the slowest"] {
        assert!(table.contains(line), "{line:?} is not in:\n{table}");
    }
    fails(["bench", "--throttle", "fast"], 2, &["--throttle", "3.5 GB/s"]);
    fails(["bench", "--mirror", "/nonexistent"], 3, &["/nonexistent"]);
}

#[test]
fn a_recorded_trace_replays_through_every_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let trace = dir.path().join("run.trace");
    let record = ["bench", "--prompt-tokens", "24", "--gen-tokens", "20", "--json", "--record-trace"];
    json(tidemill(record).arg(&trace));
    let object = json(tidemill(["bench", "--json", "--trace"]).arg(&trace));
    let results = object["results"].as_array().expect("a list");
    assert_eq!((results.len(), &object["steps"]), (36, &json!(21)));
    let all_fit = results.last().expect("not empty");
    assert_eq!((&all_fit["policy"], &all_fit["slots"]), (&json!("optimum"), &object["experts"]));
    for result in results {
        let rate = result["decode_hit_rate"].as_f64().expect("a number");
        assert!(rate <= all_fit["decode_hit_rate"].as_f64().expect("a number"), "{result}");
    }
    let (table, _) = succeed(tidemill(["bench", "--slots", "3,20", "--trace"]).arg(&trace));
    assert!(table.lines().count() == 4 && table.contains("s3fifo"), "{table}");
    std::fs::write(&trace, "nonsense").expect("writes");
    fails(["bench", "--trace", trace.to_str().expect("UTF-8")], 4, &["run.trace", "not a routing trace"]);
}

#[test]
fn perplexity_counts_what_each_protocol_scores() {
    let text = root().join("testdata/text/stories.txt");
    let eval = |more: &[&str]| {
        let args = ["eval", "ppl", "demo"];
        let ppl = json(
            tidemill(args).arg(&text).args(["--json", "--exact", "--ctx", "32", "--chunks", "3"]).args(more),
        );
        let value = ppl["perplexity"].as_f64().expect("a number");
        assert!(value > 1.5 && value < 60.0, "{ppl}");
        (ppl["tokens"].as_u64(), ppl["chunks"].as_u64())
    };
    assert_eq!(eval(&["--protocol", "llama.cpp"]), (Some(3 * 15), Some(3)));
    assert_eq!(eval(&[]), (Some(31 + 16 + 16), Some(3)));
    assert_eq!(eval(&["--stride", "8"]), (Some(31 + 8 + 8), Some(3)));
    let texts = root().join("models/demo-eval/chat.jsonl");
    let object = json(tidemill(["eval", "ppl", "demo"]).arg(texts).args(["--json", "--limit", "2"]));
    assert_eq!(object["answer_tokens"].as_u64(), object["text_tokens"].as_u64().map(|n| n + 4));
    assert_eq!(object["perplexity"], object["answer_ppl"]);
}

#[test]
fn tool_calls_are_counted() {
    let cases = root().join("models/demo-eval/tool_prompts.jsonl");
    let object =
        json(tidemill(["eval", "tools", "demo"]).arg(cases).args(["--json", "--limit", "1", "--exact"]));
    assert_eq!(object["tool_n"], 1);
    let exact = object["tool_exact"].as_f64().expect("a share");
    assert!([0.0, 1.0].contains(&exact) && object["tool_token_acc"].as_f64() > Some(0.8), "{object}");
}

/// llama-perplexity's figure on the same weights in float32, for the first chunk (testdata/text/ppl-smollm2.json).
#[test]
fn perplexity_of_a_foreign_gguf_is_llama_cpps() {
    let model = root().join("target/testdata/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !model.is_file() {
        let why = format!("SKIP: {} is missing (cargo xtask fetch smollm2)", model.display());
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{why}");
        println!("{why}");
        return;
    }
    let args = ["--protocol", "llama.cpp", "--ctx", "128", "--chunks", "1", "--exact", "--json"];
    let text = root().join("testdata/text/stories.txt");
    let object = json(tidemill(["eval", "ppl"]).arg(model).arg(text).args(args));
    let perplexity = object["perplexity"].as_f64().expect("a number");
    assert!((perplexity / 10.3017 - 1.0).abs() < 0.003, "{object}");
}

/// Models whose greedy answer is a given text, and what comes of it.
#[test]
fn replies_are_taken_apart() {
    let dir = root().join("testdata/faults/replies");
    let path = |name: &str| dir.join(name).display().to_string();
    let run = |name: &str, more: &[&str]| {
        let model = path(name);
        let args = ["run", &model, "-p", "hi", "--temperature", "0", "--device", "cpu"];
        tidemill(args.iter().chain(more))
    };
    let tools = path("tools.json");

    // Text after a call begins on a line of its own.
    let call = json(&mut run("after-call.gguf", &["--tools", &tools, "--json"]));
    assert_eq!(call["text"], "A.\nB.");
    assert_eq!(call["tool_calls"][0]["function"]["arguments"], "{\"a\":\"1\"}");
    let (shown, _) = succeed(&mut run("after-call.gguf", &["--tools", &tools, "--quiet"]));
    assert_eq!(shown, "A.\nf({\"a\":\"1\"})\nB.\n");

    // Llama 3 writes nothing around a call; digits stay as they are.
    let call = json(&mut run("llama3.gguf", &["--tools", &tools, "--json"]));
    let arguments = &call["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, "{\"a\":\"x\",\"n\":98765432109876543210}");
    assert_eq!((&call["text"], &call["finish_reason"]), (&json!(""), &json!("tool_calls")));
    let (text, _) = succeed(&mut run("llama3.gguf", &["--quiet"]));
    assert!(text.starts_with("{\"name\": \"f\""), "without tools it is text: {text}");

    // A stop string in a thought ends nothing.
    let stopped = json(&mut run("stop.gguf", &["--stop", "END", "--json"]));
    assert_eq!((&stopped["text"], &stopped["thinking"]), (&json!("So it "), &json!("The END is near.")));
    assert_eq!(stopped["finish_reason"], "stop");

    // A thought that only ends.
    let thought = json(&mut run("end-of-thought.gguf", &["--json"]));
    assert_eq!((&thought["text"], &thought["thinking"]), (&json!("Four."), &json!("Hm. Let me see.")));
    let (shown, said) = succeed(&mut run("end-of-thought.gguf", &["--quiet"]));
    assert_eq!(shown, "Hm. Let me see.\nFour.\n");
    assert!(said.contains("</think>"), "{said}");

    // Another's turn is not the model's to write.
    let (text, _) = succeed(&mut run("another-turn.gguf", &["--quiet"]));
    assert_eq!(text, "Hello.\n");

    let empty = path("empty-template.gguf");
    fails(["run", &empty, "-p", "hi"], 5, &["no chat template", "--raw"]);
}
