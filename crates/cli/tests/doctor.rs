//! `doctor`: a machine, a model that is here, a shape that is not.

use crate::common::{fails, json, succeed, tidemill};

#[test]
fn a_shape_is_judged_before_it_is_downloaded() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let base = ["doctor", "qwen3.5-397b-a17b", "--device", "cpu", "--throttle", "0.001", "--dir"];
    let object = json(tidemill(base).arg(dir.path()).args(["--json", "--memory", "12GiB"]));
    let seen = &object["prediction"];
    let number = |key: &str| seen[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"));
    assert!(seen["fits"] == true && number("token_drive_s") > 3000.0, "a megabyte a second: {object}");
    assert!((number("decode_tokens_per_s") * number("token_drive_s") - 1.0).abs() < 0.1, "{object}");
    let prompts = object["prompts"].as_array().expect("a list");
    let of = |key: &str| prompts.iter().map(|p| p[key].as_f64().expect(key)).collect::<Vec<_>>();
    assert_eq!((of("prompt_tokens"), of("chunks")), (vec![2048.0, 8192.0, 32_768.0], vec![1.0, 1.0, 1.0]));
    assert!(prompts.iter().all(|p| p["bound"] == "drive" && p["prefill_s"] == p["drive_s"]), "{object}");
    let seconds = of("prefill_s");
    assert!(seconds.iter().all(|s| (s / seconds[0] - 1.0).abs() < 0.02), "the same experts once: {object}");
    assert!((of("prefill_tokens_per_s")[1] * seconds[1] / 8192.0 - 1.0).abs() < 1e-6, "{object}");
    assert!(object["drive_rates"].as_array().is_some_and(|rates| rates.len() >= 6), "{object}");
    let (text, _) = succeed(tidemill(base).arg(dir.path()).args(["--memory", "2GiB"]));
    assert!(text.contains("does not fit") && text.contains("chosen"), "{text}");
    let report = object["report"].as_object().expect("a report");
    for key in ["version", "system", "processor", "instructions", "memory", "gpu", "drive", "device", "model"]
    {
        let value = report[key].as_str().or(report[key][0].as_str()).unwrap_or_default();
        assert!(!value.is_empty() && text.contains(&format!("\n{key}")), "{key}: {object}\n{text}");
    }
    let block: Vec<_> = text.lines().skip_while(|line| *line != "```text").collect();
    assert!(block.len() > 9 && block.last() == Some(&"```"), "at the end, to be pasted: {text}");
    assert!(!block.join("").contains(dir.path().to_str().expect("UTF-8")), "no paths: {text}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn a_model_that_is_here_fits() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (text, _) = succeed(tidemill(["doctor", "demo", "--device", "cpu", "--dir"]).arg(dir.path()));
    assert!(text.contains("decode ") && text.contains("limited by arithmetic"), "{text}");
    let prompts: Vec<_> = text.lines().filter(|line| line.starts_with("prompt ")).collect();
    assert!(prompts.len() == 1 && prompts[0].contains("2048 tokens "), "its context is 4096: {text}");
    assert!(prompts[0].ends_with("limited by arithmetic, 1 chunk"), "{text}");
    fails(["doctor", "demo", "--prompt-tokens", "100,4097"], 2, &["4097 tokens", "4096"]);
}

#[test]
fn little_memory_makes_more_chunks() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut doctor = tidemill(["doctor", "demo", "--json", "--memory", "112MiB", "--device", "cpu"]);
    let object =
        json(doctor.args(["--prompt-tokens", "300,1000", "--throttle", "0.001", "--dir"]).arg(dir.path()));
    for (prompt, tokens) in object["prompts"].as_array().expect("a list").iter().zip([300u64, 1000]) {
        let [of, chunk, chunks] =
            ["prompt_tokens", "chunk_tokens", "chunks"].map(|key| prompt[key].as_u64().expect(key));
        assert_eq!((of, chunks), (tokens, tokens.div_ceil(chunk)), "{object}");
        assert!(chunks > 1 && prompt["bound"] == "drive", "{object}");
    }
}

#[test]
fn what_it_needs_is_what_a_run_needs() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let options = ["--device", "cpu", "--experts-per-token", "1", "--kv", "q8", "--memory"];
    let mut doctor = tidemill(["doctor", "demo", "--json", "--dir"]);
    let (out, err) = succeed(doctor.arg(dir.path()).args(options).arg("105MiB"));
    let object: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(err, "lossy: 1 experts per token, the model was made for 4\n");
    let seen = (&object["prediction"]["fits"], &object["token_expert_bytes"], &object["lossy"]);
    assert_eq!(seen, (&true.into(), &(8 * 82944).into(), &true.into()), "{object}");
    let floor = object["prediction"]["floor_bytes"].as_u64().expect("bytes").div_ceil(1 << 20);
    let run = ["run", "-p", "x"].iter().chain(&options).chain(&["8MiB"]);
    fails(run, 7, &[&format!("give at least {floor}MiB")]);
}

#[test]
fn what_a_run_refuses_is_refused() {
    for model in ["demo", "qwen3-30b-a3b"] {
        fails(["doctor", model, "--experts-per-token", "1000"], 2, &["1000 experts per token"]);
        fails(["doctor", model, "--ctx", "999999"], 2, &["999999 tokens", "exceeds"]);
    }
    fails(["doctor", "demo", "--mirror", "/nosuch"], 2, &["--mirror"]);
    fails(["doctor", "no-such-model"], 3, &["no-such-model", "synth --list"]);
    fails(["doctor", "qwen3.5-397b"], 3, &["such as qwen3.5-397b-a17b, "]);
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_by_one_that_is_killed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    std::fs::write(dir.path().join("probe-4000000000.tmp"), "of one that was killed").expect("writable");
    let names = || std::fs::read_dir(dir.path()).expect("readable").count();
    let mut child = tidemill(["doctor", "--device", "cpu", "--dir"]).arg(dir.path()).spawn().expect("starts");
    // It tidies up before it writes; what it writes has no name.
    while names() > 0 && child.try_wait().expect("a state").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(names(), 0);
}
