//! Memory: what the process really took, against what the plan said, in a process of its own for each case.
//!
//! Without the usual test harness: its threads and buffers would be measured too.

#[path = "../common/mod.rs"]
mod common;
mod models;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{go, open, root, try_open};
use models::{Shape, expert_bytes, write_many_tensors, write_tokenizer_json};
use tidemill_engine::sample::{SampleParams, Sampler};
use tidemill_engine::text::{CivilTime, Json, Template, Tokenizer};
use tidemill_engine::{Batch, CacheKind, ErrorKind, Logits, Model, OpenOptions, Sequence, Session};

/// One measurement: how the model is opened, in a form that goes through a command line.
struct Case {
    name: &'static str,
    model: PathBuf,
    budget: Budget,
    options: OpenOptions,
}

/// What `memory_bytes` is.
#[derive(Clone, Copy)]
enum Budget {
    /// The smallest that is accepted.
    Floor,
    Bytes(u64),
}

const MIB: u64 = 1 << 20;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, mode, rest @ ..] = &args[..]
        && mode == "measure"
    {
        return measure(rest);
    }
    if args.get(1).is_some_and(|mode| mode == "templates") {
        return templates();
    }
    if args.iter().any(|a| a == "--list") {
        return;
    }
    if !cfg!(target_os = "linux") {
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI measures memory on Linux");
        return println!("SKIP the peak of a process is read from /proc/self/status");
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let cases = cases(dir.path());
    let mut over = Vec::new();
    // Children do not disturb each other, and the templates take as long as all cases.
    std::thread::scope(|scope| {
        let templates = scope.spawn(check_templates);
        over.extend(cases.iter().filter_map(|case| check(case).err()));
        over.extend(templates.join().expect("the templates are checked").err());
    });
    assert!(over.is_empty(), "more memory than planned:\n{}", over.join("\n"));
}

fn cases(dir: &Path) -> Vec<Case> {
    let moe = dir.join("moe.gguf");
    let shape = Shape {
        delta_heads: 0,
        layers: 16,
        hidden: 512,
        vocab: 8192,
        context: 8192,
        experts: 256,
        top_k: 4,
        intermediate: 256,
    };
    shape.write_gguf(&moe, None);
    let hybrid = dir.join("hybrid.gguf");
    let recurrent = Shape { delta_heads: 32, layers: 8, hidden: 128, experts: 16, intermediate: 64, ..shape };
    recurrent.write_gguf(&hybrid, None);
    let wide = dir.join("vocabulary.gguf");
    let vocabulary = root().join("testdata/text/vocab/ggml-vocab-qwen35.gguf");
    let dense = Shape { layers: 2, hidden: 64, vocab: 151_936, experts: 0, intermediate: 128, ..shape };
    dense.write_gguf(&wide, Some(&vocabulary));
    let many = dir.join("many-tensors");
    std::fs::create_dir(&many).expect("writable");
    write_many_tensors(&many, 48, 128, 512);
    let json = dir.join("tokenizer-json");
    std::fs::create_dir(&json).expect("writable");
    write_many_tensors(&json, 1, 8, 151_936);
    write_tokenizer_json(
        &json,
        &vocabulary,
        &root().join("testdata/goldens/qwen3_moe-e16/mlx-4bit/tokenizer.json"),
    );
    let wide_mlp = dir.join("wide-mlp.gguf");
    Shape { hidden: 128, intermediate: 8192, vocab: 512, ..dense }.write_gguf(&wide_mlp, None);
    let demo = root().join("models/demo");

    let budget = expert_bytes(&moe) / 4;
    let exact = OpenOptions { exact: true, ..OpenOptions::default() };
    // A short context, since what is planned for positions that nobody uses would hide what was forgotten.
    let case = |name, model: &Path, budget, options: &OpenOptions| Case {
        name,
        model: model.to_path_buf(),
        budget,
        options: OpenOptions {
            context: options.context.or(Some(256)),
            sessions: options.sessions.or(Some(1)),
            ..options.clone()
        },
    };
    let fast = OpenOptions::default();
    let long = OpenOptions { chunk_tokens: Some(50), ..exact.clone() };
    let small = OpenOptions { chunk_tokens: Some(7), threads: Some(1), ..fast.clone() };
    let eight = OpenOptions { sessions: Some(8), ..fast.clone() };
    let trades = OpenOptions { sessions: Some(4), context: Some(1600), ..fast.clone() };
    let page_cache = OpenOptions { cache: CacheKind::Os, ..fast.clone() };
    vec![
        case("experts 4x the budget", &moe, Budget::Bytes(budget), &fast),
        case("experts, at the floor", &moe, Budget::Floor, &exact),
        case("experts, page cache", &moe, Budget::Bytes(budget), &page_cache),
        case("experts, 8 sequences", &moe, Budget::Bytes(budget), &eight),
        case("experts, pages take slots", &moe, Budget::Bytes(budget), &trades),
        case("recurrent, 8 sequences", &hybrid, Budget::Floor, &eight),
        case("recurrent, 8 and kept", &hybrid, Budget::Bytes(400 * MIB), &eight),
        case("recurrent", &hybrid, Budget::Floor, &fast),
        case("recurrent, exact", &hybrid, Budget::Floor, &long),
        case("151,936 tokens", &wide, Budget::Floor, &fast),
        case("151,936 tokens, chunks of 7", &wide, Budget::Floor, &small),
        case("151,936 tokens, JSON", &json, Budget::Floor, &fast),
        case("a wide MLP", &wide_mlp, Budget::Floor, &exact),
        case("18,432 expert tensors", &many, Budget::Floor, &fast),
        case("the bundled model", &demo, Budget::Floor, &fast),
    ]
}

/// The smallest budget that the model accepts, from what the refusal of less says; one byte less is refused.
fn floor_bytes(case: &Case) -> u64 {
    let refusal = |bytes: u64| {
        let error = try_open(&case.model, &OpenOptions { memory_bytes: Some(bytes), ..case.options.clone() });
        let error = error.map(|_| ()).expect_err(case.name);
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        error.message().to_string()
    };
    let said = refusal(1);
    let mebibytes = said.split("at least ").nth(1).and_then(|rest| rest.split("MiB").next());
    let floor =
        mebibytes.and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("no floor in: {said}")) * MIB;
    assert!(refusal(floor - MIB).contains("below the floor"), "{}", case.name);
    floor
}

/// Runs one case in a process of its own.
fn check(case: &Case) -> Result<(), String> {
    let budget = match case.budget {
        Budget::Floor => floor_bytes(case),
        Budget::Bytes(bytes) => bytes,
    };
    let o = &case.options;
    let number = |n: Option<usize>| n.map_or("-".to_string(), |n| n.to_string());
    let start = std::time::Instant::now();
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args(["measure", &case.model.display().to_string(), &budget.to_string(), &o.exact.to_string()])
        .args([
            (o.cache == CacheKind::Os).to_string(),
            number(o.threads),
            number(o.context),
            number(o.chunk_tokens),
            number(o.sessions),
        ])
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{}: {said}{}", case.name, String::from_utf8_lossy(&child.stderr));
    let numbers: Vec<u64> =
        said.lines().last().unwrap_or_default().split(' ').map(|n| n.parse().expect("a number")).collect();
    let [peak, plan] = numbers[..] else { panic!("{}: {said}", case.name) };
    let line = format!(
        "{:<28} peak {:>6.1}  plan {:>6.1}  budget {:>6.1} MiB  {:.1} s",
        case.name,
        peak as f64 / MIB as f64,
        plan as f64 / MIB as f64,
        budget as f64 / MIB as f64,
        start.elapsed().as_secs_f64(),
    );
    println!("{line}");
    if peak > plan {
        println!("{said}");
    }
    assert!(plan <= budget, "{line}");
    if peak <= plan { Ok(()) } else { Err(line) }
}

/// In the child: everything that a session may do, then `peak plan` in bytes on the last line.
fn measure(args: &[String]) {
    let [model, budget, exact, os, threads, context, chunk, sessions] = args else { panic!("{args:?}") };
    let number = |text: &String| text.parse::<usize>().ok();
    let options = OpenOptions {
        memory_bytes: budget.parse().ok(),
        exact: exact == "true",
        cache: if os == "true" { CacheKind::Os } else { CacheKind::Slots },
        threads: number(threads),
        context: number(context),
        chunk_tokens: number(chunk),
        sessions: number(sessions),
        ..OpenOptions::default()
    };
    report("start");
    let model = open(Path::new(model), &options);
    report("opened");
    let tokenizer = Tokenizer::of_model(model.meta()).ok();
    report("tokenizer");
    let mut session = Session::new(&model).expect("a session");
    let vocab = model.meta().vocab_size as u32;
    let prompt: Vec<u32> = (0..160).map(|i| (i * 7919 + 13) % vocab).collect();
    for len in [30, 90, 120, 160] {
        session.set_prompt(&prompt[..len], &mut go).expect("runs");
    }
    report("prompts");
    let mut sampler =
        Sampler::new(&SampleParams { temperature: 0.8, ..SampleParams::default() }).expect("valid");
    for _ in 0..8 {
        let token = sampler.sample(session.logits(), session.tokens()).expect("samples");
        session.append(&[token], &mut go).expect("runs");
    }
    report("decoded");
    let scored: Vec<u32> = prompt.iter().rev().copied().take(40).collect();
    let mut rows = 0;
    session
        .score(&scored, &mut go, &mut |_, _| {
            rows += 1;
            Ok(())
        })
        .expect("runs");
    assert_eq!(rows, scored.len());
    report("scored");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let saved = dir.path().join("state");
    session.save(&saved).expect("saves");
    session.load(&saved).expect("loads");
    let cancelled = session.append(&prompt[..30], &mut |_, _| ControlFlow::Break(()));
    assert_eq!(cancelled.expect_err("was cancelled").kind(), ErrorKind::Cancelled);
    report("saved and loaded");
    drop(session);
    model.store_states(&dir.path().join("states"), 1 << 30).expect("it is nobody else's");
    company(&model, vocab);
    assert!(model.flush_states().is_none());
    report("all sequences");
    if let Some(tokenizer) = &tokenizer {
        tokenizer.encode_document(&"a text of some length, ".repeat(2000)).expect("encodes");
    }
    report("text");
    let plan = model.plan();
    println!(
        "overhead {:.1} of {:.1} MiB, scratch {:.1}, chunk {}",
        (status("VmHWM") + plan.overhead_bytes).saturating_sub(plan.total_bytes) as f64 / MIB as f64,
        plan.overhead_bytes as f64 / MIB as f64,
        plan.scratch_bytes as f64 / MIB as f64,
        model.chunk_tokens(),
    );
    println!("{} {}", status("VmHWM"), plan.total_bytes);
}

/// As many sequences as may live, twice, with borders that are kept and stored.
fn company(model: &Arc<Model>, vocab: u32) {
    let mut batch = Batch::default();
    // Longer than what has its memory at any time, where that can be.
    let long = (model.context() as u32 - 16).clamp(150, 1200);
    for round in 0..2 {
        let sequences = (0..model.sequences_max() as u32).map(|i| {
            let mut sequence = Sequence::new(model).expect("the plan has room");
            let prompt: Vec<u32> = (0..long).map(|t| (t * 7919 + i + round) % vocab).collect();
            sequence.extend(&prompt).expect("fits");
            sequence.name_borders([40, 90, 150]);
            sequence
        });
        let mut sequences: Vec<Sequence> = sequences.collect();
        for _ in 0..10 {
            batch.feed(model, &mut sequences, Logits::Last, &mut go, &mut |_, _| Ok(())).expect("runs");
            for sequence in &mut sequences {
                sequence.extend(&[1]).expect("fits");
            }
        }
        sequences.iter().for_each(|sequence| sequence.keep().expect("copies"));
    }
}

/// What chat templates may take, all in one process: the ceiling of one, twice over.
const TEMPLATES_BYTES: u64 = 128 * MIB;

fn check_templates() -> Result<(), String> {
    let child = Command::new(std::env::current_exe().expect("this program")).arg("templates").output();
    let child = child.expect("starts");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "templates: {said}{}", String::from_utf8_lossy(&child.stderr));
    let (name, peak) = said.lines().last().and_then(|line| line.split_once(' ')).expect("a line");
    let peak: u64 = peak.parse().expect("a number");
    let line =
        format!("chat templates               peak {:>6.1} MiB, reached by {name}", peak as f64 / MIB as f64);
    println!("{line}");
    if peak <= TEMPLATES_BYTES { Ok(()) } else { Err(line) }
}

/// In the child: templates that would take all memory; then which took most, and the peak in bytes.
fn templates() {
    let text = std::fs::read_to_string(root().join("testdata/text/costly_templates.json")).expect("is there");
    let (mut most, mut peak) = (String::new(), 0);
    for case in Json::parse(&text).expect("JSON").as_array().expect("a list") {
        // Those of parts are about the stack.
        let [name, source] = case.as_array().expect("a list") else { continue };
        let Some(source) = source.as_str() else { continue };
        let template = Template::new(source);
        let context = serde_json::json!({"messages": []}).into();
        let rendered = template.and_then(|t| t.render(&context, Some(CivilTime::from_unix(0))));
        assert!(!rendered.is_ok_and(|text| text.len() >= 1000), "{name}");
        let now = status("VmHWM");
        if now > peak {
            (most, peak) = (name.as_str().expect("text").to_owned(), now);
        }
    }
    println!("{most} {peak}");
}

fn report(stage: &str) {
    let mib = |key| status(key) as f64 / MIB as f64;
    println!(
        "{stage:<18} peak {:>6.1}  now {:>6.1}  of it files {:>5.1} MiB",
        mib("VmHWM"),
        mib("VmRSS"),
        mib("RssFile")
    );
}

/// A line of `/proc/self/status`, in bytes (proc(5): kB are KiB).
fn status(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("no {key}"));
    let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number");
    kib * 1024
}
