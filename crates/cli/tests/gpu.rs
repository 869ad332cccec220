//! The built-in model on a GPU: the CPU's words, and counts of what the GPU was asked to do.

use crate::common::{fails, json, succeed, tidemill};

/// Whether `--device gpu` can be tried here.
fn has_gpu() -> bool {
    let open = tidemill(["run", "-p", "x", "--max-tokens", "1", "--device", "gpu"]).output();
    let output = open.expect("the program starts");
    // 9 is what the program ends with where there is no device.
    if output.status.code() != Some(9) {
        return true;
    }
    let why = "SKIP: no Vulkan or Metal adapter (Debian: mesa-vulkan-drivers)";
    assert!(std::env::var("CI").is_err(), "{why}");
    println!("{why}");
    false
}

/// One after the other: what the first compiles, the others find in the driver's cache.
#[test]
fn on_a_gpu() {
    if has_gpu() {
        greedy_text_is_the_same_as_on_the_cpu();
        bench_counts_what_the_gpu_was_asked_to_do();
        drivers_say_nothing_where_all_went_well();
    }
}

fn greedy_text_is_the_same_as_on_the_cpu() {
    for prompt in
        ["Tell me a story about a brave hedgehog named Luca and a magic whistle.", "What is 7 plus 5?"]
    {
        let plain = ["run", "-p", prompt, "--temperature", "0", "--max-tokens", "24", "--quiet", "--exact"];
        let on = |device: &str, more: &[&str]| {
            let device = ["--device", device];
            succeed(&mut tidemill(plain.iter().chain(&device).chain(more))).0
        };
        let cpu = on("cpu", &[]);
        assert!(cpu.len() > 8, "{cpu}");
        assert_eq!(on("gpu", &[]), cpu, "{prompt}");
        assert_eq!(on("gpu", &["--max-slots", "20"]), cpu, "{prompt}, few slots");
    }
}

fn bench_counts_what_the_gpu_was_asked_to_do() {
    let args = ["bench", "--prompt-tokens", "16", "--gen-tokens", "4", "--json", "--device"];
    let bench = |more: &[&str]| json(&mut tidemill(args.iter().chain(more)));
    let gpu = bench(&["gpu"]);
    for key in ["gpu_submissions_per_token", "gpu_readbacks_per_token", "gpu_copied_bytes_per_token"] {
        assert!(gpu[key].as_f64().is_some_and(|v| v > 0.0), "{key}: {gpu}");
        assert!(bench(&["cpu"]).get(key).is_none(), "{key} on the CPU");
    }
    assert!(gpu["gpu_readbacks_per_token"].as_f64() <= gpu["gpu_submissions_per_token"].as_f64());
    let capped = bench(&["gpu", "--vram", "20MiB"]);
    // The host's memory still holds all experts; the GPU's holds some.
    assert_eq!(capped["slots"], gpu["slots"]);
    assert!(capped["vram_slots"].as_u64() < gpu["slots"].as_u64(), "{capped}");
    // Without a ceiling a card has as many; a GPU that shares the host's memory needs none.
    assert!(gpu.get("vram_slots").is_none_or(|slots| slots == &gpu["slots"]), "{gpu}");
    let rate = |object: &serde_json::Value, key: &str| object[key].as_f64().expect(key);
    let [in_vram, in_memory] = ["vram_hit_rate", "expert_hit_rate"].map(|key| rate(&capped, key));
    assert!(0.0 < in_vram && in_vram <= in_memory && in_vram < 1.0, "{capped}");
    assert!(bench(&["cpu"]).get("vram_hit_rate").is_none());
    // What it has no room for is copied to it, layer by layer.
    assert!(rate(&capped, "copy_bytes_per_s") > 0.0, "{capped}");
    let layers = capped["prompt_layers"].as_array().expect("a list");
    assert!(layers.len() == 8 && layers.iter().any(|layer| rate(layer, "copies_s") > 0.0), "{capped}");
}

#[test]
fn a_ceiling_for_a_gpu_is_no_use_on_the_cpu() {
    fails(["run", "-p", "x", "--device", "cpu", "--vram", "4GiB"], 2, &["GPU's memory"]);
}

fn drivers_say_nothing_where_all_went_well() {
    let mut run = tidemill(["run", "-p", "x", "--max-tokens", "1", "--device", "gpu", "-q"]);
    // What drivers of some desktops complain about.
    let (_, err) = succeed(run.env_remove("XDG_RUNTIME_DIR"));
    assert_eq!(err, "");
}
