//! Every golden set: logits, routes and greedy continuations against fp32 Hugging Face on the same weights.

use crate::common;

use std::path::Path;
use std::sync::Arc;

use crate::common::{Reader, all_logits, go, golden_dirs, model_path, open};
use kernels::Backend;
use kernels::gpu::{Gpu, GpuOptions};
use kernels::ops::Precision;
use tidemill_engine::{OpenOptions, RouteRecord, Session};

/// The tolerances that the goldens' README states for an fp32 engine.
const MAX_ABS: f32 = 5e-4;
const REL_RMS: f64 = 3e-5;
/// Below this gap between the last chosen and the first rejected expert, a swap is legitimate.
const ROUTER_MARGIN: f32 = 1e-3;

fn numbers(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| v.as_u64().expect("a number") as u32).collect()
}

/// Compares the stored positions; returns (max abs, rel rms).
fn compare_logits(logits: &[Vec<f32>], positions: &[u32], golden: &[f32]) -> (f32, f64) {
    let vocab = golden.len() / positions.len();
    let (mut max, mut error, mut norm) = (0f32, 0f64, 0f64);
    for (p, golden) in positions.iter().zip(golden.chunks_exact(vocab)) {
        for (a, b) in logits[*p as usize].iter().zip(golden) {
            max = max.max((a - b).abs());
            error += f64::from(a - b).powi(2);
            norm += f64::from(*b).powi(2);
        }
    }
    (max, (error / norm).sqrt())
}

fn check_routes(records: &[RouteRecord], prompt: &str, golden: &Reader) {
    let Some((ids, shape)) = golden.ints(&format!("{prompt}.router_ids")) else { return };
    let (weights, _) = golden.floats(&format!("{prompt}.router_weights")).expect("weights with the ids");
    let (margins, _) = golden.floats(&format!("{prompt}.router_margin")).expect("margins with the ids");
    let [layers, rows, k] = shape[..] else { panic!("router_ids is {shape:?}") };
    let mut compared = 0;
    for (l, layer) in distinct_layers(records).into_iter().enumerate() {
        for record in records.iter().filter(|r| r.layer.0 == layer) {
            for (i, mine) in record.routes.ids.chunks_exact(k).enumerate() {
                let row = record.position + i;
                let at = (l * rows + row) * k;
                if margins[l * rows + row] <= ROUTER_MARGIN {
                    continue;
                }
                let mut theirs: Vec<u32> = ids[at..at + k].iter().map(|&e| e as u32).collect();
                let mut sorted = mine.to_vec();
                sorted.sort_unstable();
                theirs.sort_unstable();
                assert_eq!(sorted, theirs, "{prompt}: layer {layer}, token {row}");
                for (e, w) in mine.iter().zip(&record.routes.weights[i * k..]) {
                    let golden = ids[at..at + k].iter().position(|&id| id as u32 == *e).expect("same set");
                    let difference = (w - weights[at + golden]).abs();
                    assert!(
                        difference < 1e-4,
                        "{prompt}: layer {layer}, token {row}, expert {e}: {difference}"
                    );
                }
                compared += 1;
            }
        }
    }
    assert!(compared * 10 >= layers * rows * 9, "{prompt}: only {compared} of {layers} x {rows} compared");
}

fn distinct_layers(records: &[RouteRecord]) -> Vec<u16> {
    let mut layers: Vec<u16> = records.iter().map(|r| r.layer.0).collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}

fn check_greedy(session: &mut Session, golden: &serde_json::Value, measured: f32) {
    let greedy = &golden["greedy"];
    let prompt = greedy["prompt"].as_str().expect("a prompt's name");
    session.reset().expect("resets");
    session.append(&numbers(&golden["prompts"][prompt]["ids"]), &mut go).expect("feeds");
    for (i, step) in greedy["steps"].as_array().expect("steps").iter().enumerate() {
        let logits = session.logits();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        let token = step["token"].as_u64().expect("a token") as u32;
        let top = step["top5_logits"].as_array().expect("logits");
        let gap = top[0].as_f64().expect("a number") - top[1].as_f64().expect("a number");
        if gap > 2.0 * f64::from(measured) {
            assert_eq!(best, Some(token as usize), "greedy step {i}, gap {gap}");
        }
        session.append(&[token], &mut go).expect("feeds");
    }
}

fn check_set(dir: &Path, backend: Option<&Arc<dyn Backend>>) -> (f32, f64) {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("golden.json")).expect("golden.json")).expect("JSON");
    let tensors = Reader::open(&dir.join("golden.safetensors"));
    let options = OpenOptions { exact: true, backend: backend.cloned(), ..OpenOptions::default() };
    let model = open(&model_path(dir), &options);
    let mut session = Session::new(&model).expect("a session");
    session.record_routes();
    let mut worst = (0f32, 0f64);
    for (name, prompt) in golden["prompts"].as_object().expect("prompts") {
        session.reset().expect("resets");
        let logits = all_logits(&mut session, &numbers(&prompt["ids"])).expect("runs");
        let (expected, _) = tensors.floats(&format!("{name}.logits")).expect("logits");
        let (max, rel) = compare_logits(&logits, &numbers(&prompt["positions"]), &expected);
        assert!(max <= MAX_ABS && rel <= REL_RMS, "{}: {name}: max {max:e}, rel {rel:e}", dir.display());
        worst = (worst.0.max(max), worst.1.max(rel));
        check_routes(&session.take_routes(), name, &tensors);
    }
    check_greedy(&mut session, &golden, worst.0);
    worst
}

fn check_all(backend: Option<Arc<dyn Backend>>, wanted: impl Fn(&str) -> bool) {
    for dir in golden_dirs() {
        let set =
            dir.strip_prefix(common::root().join("testdata/goldens")).unwrap_or(&dir).display().to_string();
        if wanted(&set) {
            let (max, rel) = check_set(&dir, backend.as_ref());
            println!("{set:<32} max abs {max:.1e}  rel rms {rel:.1e}");
        }
    }
}

/// The same on slots that the store fills and the device reads: the seam between drive and GPU.
fn check_on_the_gpu(wanted: impl Fn(&str) -> bool) {
    if kernels::gpu::adapters().is_empty() {
        let why = "SKIP goldens on the GPU: no Vulkan or Metal adapter (Debian: mesa-vulkan-drivers)";
        assert!(std::env::var("CI").is_err(), "{why}");
        println!("{why}");
        return;
    }
    let options = GpuOptions { precision: Precision::Exact, ..GpuOptions::default() };
    check_all(Some(Arc::new(Gpu::open(&options).expect("the adapter opens"))), wanted);
}

#[test]
fn goldens_hold_in_every_format() {
    check_all(None, |_| true);
}

// Two tests, since a software driver compiles shaders for minutes, on one core.

#[test]
fn goldens_in_gguf_hold_on_the_gpu() {
    check_on_the_gpu(|set| set.contains("/gguf-"));
}

#[test]
fn goldens_in_safetensors_hold_on_the_gpu() {
    check_on_the_gpu(|set| !set.contains("/gguf-"));
}
