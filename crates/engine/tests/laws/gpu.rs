//! What a GPU is asked to do: each expert is copied once, and nobody waits for ids where all experts are there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::gpu::{Gpu, GpuOptions, adapters};
use kernels::ops::{Backend, DeviceCounts, Precision};
use tidemill_engine::{Answer, Batch, ErrorKind, LayerStats, Logits, Model, OpenOptions, Sequence, Session};

use super::tools::{Bits, bits, golden, tokens};
use crate::common::{go, open, try_open};

const SET: &str = "qwen3_5_moe-e32/mlx-4bit";

/// A GPU with memory of its own, or one that reads the host's.
fn gpu_of(share: bool) -> Option<Arc<dyn Backend>> {
    if adapters().is_empty() {
        let why = "SKIP: no Vulkan or Metal adapter (Debian: mesa-vulkan-drivers)";
        assert!(std::env::var("CI").is_err(), "{why}");
        println!("{why}");
        return None;
    }
    let options = GpuOptions { precision: Precision::Exact, share: Some(share), ..GpuOptions::default() };
    Some(Arc::new(Gpu::open(&options).expect("the adapter opens")))
}

fn gpu() -> Option<Arc<dyn Backend>> {
    gpu_of(false)
}

/// Options with a device of their own, so that nobody else moves its counts; it has memory of its own.
fn options(slots_max: Option<usize>) -> Option<OpenOptions> {
    options_of(false, slots_max)
}

/// The same, with a device that reads the host's memory if `share` says so.
fn options_of(share: bool, slots_max: Option<usize>) -> Option<OpenOptions> {
    let backend = Some(gpu_of(share)?);
    // Whatever other tests need: what is resident must stay so.
    let fixed_slots = true;
    Some(OpenOptions {
        exact: true,
        backend,
        slots_max,
        fixed_slots,
        context: Some(160),
        ..OpenOptions::default()
    })
}

fn counted<T>(model: &Model, run: impl FnOnce() -> T) -> (T, DeviceCounts) {
    let before = model.device_counts().expect("a GPU counts");
    let done = run();
    (done, model.device_counts().expect("a GPU counts").since(&before))
}

fn decode(session: &mut Session, answer: &[u32]) -> Vec<Bits> {
    decode_rows(session, answer, 1)
}

/// What a session of its own says.
fn fresh(model: &Arc<Model>, answer: &[u32]) -> Vec<Bits> {
    decode(&mut Session::new(model).expect("a session"), answer)
}

fn decode_rows(session: &mut Session, answer: &[u32], rows: usize) -> Vec<Bits> {
    let next = |tokens: &[u32]| {
        session.append(tokens, &mut go).expect("runs");
        bits(session.logits())
    };
    answer.chunks(rows).map(next).collect()
}

fn moe_layers(model: &Model) -> u64 {
    // Every layer of this set has experts.
    model.meta().layers as u64
}

#[test]
fn an_expert_is_copied_once_for_as_long_as_it_stays_in_its_slot() {
    // Without recurrent layers, whose snapshots are read back. One slot less than experts: everything that the answer
    // needs is cached, and nothing becomes resident.
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let Some(all) = options(None) else { return };
    let slots = open(&path, &all).plan().total_experts as usize - 1;
    let model = open(&path, &options(Some(slots)).expect("there was a GPU"));
    // Two rows a step: steps of one would also try to guess the next layer's experts, which waits once more.
    let answer = tokens(&model, 3, 12);
    let mut session = Session::new(&model).expect("a session");
    let first = decode_rows(&mut session, &answer, 2);
    session.reset().expect("resets");
    model.reset_read_stats();
    let (again, counts) = counted(&model, || decode_rows(&mut session, &answer, 2));
    assert_eq!(again, first);
    assert_eq!(model.read_stats().expect("counts").hit_rate(), 1.0, "all are cached by now");
    let steps = first.len() as u64;
    let layers = moe_layers(&model);
    assert_eq!(counts.copies, 0, "{counts:?}");
    assert!(counts.copied_bytes / steps < model.plan().slot_bytes, "only ids and tables: {counts:?}");
    assert_eq!(counts.readbacks, steps * (layers + 1), "ids of each layer, and logits");
    assert!(counts.submissions <= steps * (2 * layers + 1), "{counts:?}");
}

/// A prompt that uses experts for the first time must not wait for their copies: they were made while nobody asked.
#[test]
fn what_fits_is_copied_before_it_is_asked_for() {
    let Some(all) = options(None) else { return };
    let model = open(&golden(SET), &all);
    let mut session = Session::new(&model).expect("a session");
    session.append(&tokens(&model, 1, 1), &mut go).expect("runs");
    while model.warm_up() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let prompt = tokens(&model, 2, 60);
    let (_, counts) = counted(&model, || session.append(&prompt, &mut go).expect("runs"));
    assert!(counts.copied_bytes < model.plan().slot_bytes, "{counts:?}");
}

#[test]
fn a_slot_that_is_filled_anew_is_copied_again() {
    let Some(all) = options(None) else { return };
    let all = open(&golden(SET), &all);
    let answer = tokens(&all, 4, 10);
    let expected = fresh(&all, &answer);
    for slots in [1, 4, 9] {
        let model = open(&golden(SET), &options(Some(slots)).expect("there was a GPU"));
        let mut session = Session::new(&model).expect("a session");
        assert_eq!(decode(&mut session, &answer), expected, "{slots} slots");
        session.reset().expect("resets");
        model.use_slots(slots.div_ceil(2));
        assert_eq!(decode(&mut session, &answer), expected, "fewer than {slots} slots");
    }
}

/// Where host and device share memory, experts are read to where ops find them, with any number of slots.
#[test]
fn a_device_that_reads_the_hosts_memory_copies_nothing_and_says_the_same() {
    let Some(fixed) = options_of(true, None) else { return };
    let fixed = OpenOptions { chunk_tokens: Some(40), ..fixed };
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let backend = gpu_of(false);
    let copies = open(&path, &OpenOptions { backend, ..fixed.clone() });
    let (total, text) = (copies.plan().total_experts as usize, tokens(&copies, 3, 40));
    for (rows, len) in [(1, 12), (12, 12), (40, 40)] {
        let answer = &text[..len];
        let expected = twice(&copies, answer, rows).0;
        // A chunk uses more experts of a layer than the fewest slots hold.
        for slots in [1, copies.top_k(), total / 2, total] {
            let few = OpenOptions { backend: gpu_of(true), slots_max: Some(slots), ..fixed.clone() };
            let model = open(&path, &few);
            assert_eq!((model.slots(), model.vram_slots()), (slots, None), "one kind of slots");
            let (logits, counts, _) = twice(&model, answer, rows);
            assert_eq!(logits, expected, "{slots} slots, {rows} rows");
            // Ids, and tables of experts that became resident.
            let steps = logits.len() as u64;
            assert!(counts.copies <= moe_layers(&model), "{slots} slots, {rows} rows: {counts:?}");
            assert!(counts.copied_bytes / steps < model.plan().slot_bytes, "{rows} rows: {counts:?}");
            model.use_slots(slots.div_ceil(2));
            assert_eq!(twice(&model, answer, rows).0, expected, "fewer than {slots} slots, {rows} rows");
        }
    }
}

#[test]
fn nothing_is_read_back_but_logits_where_all_experts_are_resident() {
    let Some(few) = options(Some(40)) else { return };
    let few = open(&golden(SET), &few);
    let answer = tokens(&few, 5, 8);
    let expected = fresh(&few, &answer);
    for share in [false, true] {
        only_logits_are_read_back(share, &answer, &expected);
    }
}

fn only_logits_are_read_back(share: bool, answer: &[u32], expected: &[Bits]) {
    let model = open(&golden(SET), &options_of(share, None).expect("there is a GPU"));
    let mut session = Session::new(&model).expect("a session");
    let tokens = answer.len() as u64;
    let give_up = Instant::now() + Duration::from_secs(120);
    // Experts that nobody asked for are read while the drive is idle.
    let counts = loop {
        session.reset().expect("resets");
        // The thread that looks after the pool copies them too, and would be counted.
        while model.warm_up() {}
        model.reset_read_stats();
        let (logits, counts) = counted(&model, || decode(&mut session, answer));
        assert_eq!(logits, expected, "the device finds the same experts");
        if counts.readbacks == tokens {
            break counts;
        }
        assert!(Instant::now() < give_up, "still {counts:?}");
    };
    assert_eq!(counts.copies, 0, "{counts:?}");
    // The first is submitted in parts; each of the others was recorded before, and its logits are fetched.
    assert!(counts.submissions <= moe_layers(&model) + 1 + 2 * tokens, "{counts:?}");
    let stats = model.read_stats().expect("counts").total();
    assert_eq!(stats.hits, tokens * moe_layers(&model) * model.top_k() as u64);
    assert_eq!(stats.misses, 0);

    // Nor between the layers of a prompt.
    session.reset().expect("resets");
    let (_, counts) = counted(&model, || decode_rows(&mut session, answer, answer.len()));
    assert_eq!((counts.readbacks, counts.copies), (1, 0), "{counts:?}");

    // Who records routes gets them, and the same answer.
    session.record_routes();
    session.reset().expect("resets");
    assert_eq!(decode(&mut session, answer), expected);
    let routes = session.take_routes();
    assert_eq!(routes.len() as u64, tokens * moe_layers(&model));
    assert!(routes.iter().all(|r| r.routes.ids.len() == model.top_k()));

    // A pool that shrinks takes its slots back.
    model.use_slots(12);
    session.reset().expect("resets");
    assert_eq!(decode(&mut session, answer), expected, "after the pool shrank");
    assert_eq!(model.slots(), 12);
}

/// A model all of whose experts the device looks up.
fn resident(share: bool) -> Option<Arc<Model>> {
    let model = open(&golden(SET), &options_of(share, None)?);
    let answer = tokens(&model, 6, 2);
    let mut session = Session::new(&model).expect("a session");
    let give_up = Instant::now() + Duration::from_secs(120);
    loop {
        let (_, counts) = counted(&model, || decode(&mut session, &answer));
        if counts.readbacks == answer.len() as u64 {
            return Some(model);
        }
        assert!(Instant::now() < give_up, "still {counts:?}");
        session.reset().expect("resets");
    }
}

#[test]
fn a_step_recorded_ahead_runs_for_nobody_else_and_nowhere_else() {
    for share in [false, true] {
        a_step_recorded_ahead_runs_for_nobody_else(share);
    }
}

fn a_step_recorded_ahead_runs_for_nobody_else(share: bool) {
    let Some(model) = resident(share) else { return };
    let (one, other) = (tokens(&model, 7, 12), tokens(&model, 8, 12));
    // Where experts are read there is nothing to record.
    let few = open(&golden(SET), &options(Some(40)).expect("there is a GPU"));
    let expected = fresh(&few, &one);
    let mut session = Session::new(&model).expect("a session");
    assert_eq!(decode(&mut session, &one), expected);

    // Nor for what the sequence takes over at the same place, in other pages.
    let taken_over = [&model, &few].map(|model| {
        let mut first = Session::new(model).expect("a session");
        first.set_prompt(&other[..11], &mut go).expect("runs");
        let mut session = Session::new(model).expect("a session");
        decode(&mut session, &one[..11]);
        assert_eq!(session.set_prompt(&other, &mut go).expect("runs"), 11);
        bits(session.logits())
    });
    assert_eq!(taken_over[0], taken_over[1]);

    // It goes with a place, not with what was there: a file leads to the same place.
    let file = std::env::temp_dir().join(format!("tidemill-ahead-{}", std::process::id()));
    session.reset().expect("resets");
    let expected_other = decode(&mut session, &other);
    session.reset().expect("resets");
    decode(&mut session, &other[..5]);
    session.save(&file).expect("saves");
    session.reset().expect("resets");
    decode(&mut session, &one[..5]);
    session.load(&file).expect("loads");
    assert_eq!(decode(&mut session, &other[5..]), expected_other[5..]);
    std::fs::remove_file(file).expect("was written");
    session.reset().expect("resets");
    decode(&mut session, &one[..4]);
    session.set_prompt(&other[..5], &mut go).expect("runs");
    session.reset().expect("resets");
    assert_eq!(decode(&mut session, &one), expected);

    // A pool that shrinks between two tokens.
    session.reset().expect("resets");
    let mut again = decode(&mut session, &one[..6]);
    model.use_slots(12);
    again.extend(decode(&mut session, &one[6..]));
    assert_eq!(again, expected);
}

/// The device says which token is best; steps recorded ahead too.
#[test]
fn the_device_finds_the_greatest_logit() {
    let Some(all) = options_of(false, None) else { return };
    let model = open(&golden(SET), &OpenOptions { sessions: Some(2), ..all });
    let answers = [Logits::Last, Logits::Best].map(|wanted| {
        let mut sequences = [0, 1].map(|_| Sequence::new(&model).expect("there is room"));
        let (mut batch, mut next) = (Batch::default(), [3, 4]);
        let mut answer = Vec::new();
        for _ in 0..30 {
            sequences.iter_mut().zip(next).for_each(|(s, token)| s.extend(&[token]).expect("fits"));
            let mut sink = |i: usize, given: Answer<'_>| {
                next[i] = match given {
                    Answer::Best(token) => token,
                    Answer::Logits(logits) => {
                        let best = |best, id| if logits[id] > logits[best] { id } else { best };
                        (0..logits.len()).fold(0, best) as u32
                    }
                };
                Ok(())
            };
            batch.feed(&model, &mut sequences, wanted, &mut go, &mut sink).expect("runs");
            answer.extend(next);
        }
        answer
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn sessions_that_take_turns_do_not_run_each_others_steps() {
    let Some(all) = options_of(true, None) else { return };
    let model = open(&golden(SET), &OpenOptions { sessions: Some(2), ..all });
    let answers = [tokens(&model, 9, 40), tokens(&model, 10, 40)];
    let expected = answers.each_ref().map(|answer| fresh(&model, answer));
    let mut sessions = answers.each_ref().map(|_| Session::new(&model).expect("a session"));
    let mut got = [Vec::new(), Vec::new()];
    for turn in (0..40).step_by(4) {
        for s in 0..2 {
            got[s].extend(decode(&mut sessions[s], &answers[s][turn..turn + 4]));
        }
    }
    assert_eq!(got, expected);
}

#[test]
fn a_session_that_starts_over_is_not_caught_in_what_another_thread_records() {
    let Some(all) = options(None) else { return };
    let model = open(&golden(SET), &OpenOptions { sessions: Some(2), ..all });
    let answers = [tokens(&model, 11, 9), tokens(&model, 12, 9)];
    let expected = answers.each_ref().map(|answer| fresh(&model, answer));
    std::thread::scope(|scope| {
        for (answer, expected) in answers.iter().zip(&expected) {
            let model = &model;
            scope.spawn(move || {
                let mut session = Session::new(model).expect("a session");
                for _ in 0..12 {
                    assert_eq!(&decode(&mut session, answer), expected);
                    session.reset().expect("resets");
                }
            });
        }
    });
}

/// Options for as many slots of the device as `slots`, beside those of the host, by `all`, the options of `model`.
fn with_vram(model: &Model, slots: usize, all: OpenOptions) -> OpenOptions {
    let p = model.plan();
    let fixed_bytes = p.resident_bytes + p.state_bytes + p.scratch_bytes;
    OpenOptions { vram_bytes: Some(fixed_bytes + slots as u64 * p.slot_bytes), ..all }
}

/// What chunks of `rows` tokens say, twice, with counts of the second time.
fn twice(model: &Arc<Model>, answer: &[u32], rows: usize) -> (Vec<Bits>, DeviceCounts, LayerStats) {
    let mut session = Session::new(model).expect("a session");
    let first = decode_rows(&mut session, answer, rows);
    session.reset().expect("resets");
    model.reset_read_stats();
    let (again, counts) = counted(model, || decode_rows(&mut session, answer, rows));
    assert_eq!(again, first);
    (again, counts, model.read_stats().expect("counts").total())
}

#[test]
fn what_a_gpu_has_no_room_for_comes_from_memory_and_not_from_the_drive() {
    let Some(fixed) = options(None) else { return };
    let fixed = OpenOptions { chunk_tokens: Some(40), ..fixed };
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let all = open(&path, &fixed);
    let (top_k, total) = (all.top_k(), all.plan().total_experts as usize);
    let text = tokens(&all, 3, 40);
    for (rows, len) in [(1, 12), (12, 12), (40, 40)] {
        let answer = &text[..len];
        // The second time the device has all experts, and sorts rows by them itself.
        let expected = twice(&all, answer, rows).0;
        // A chunk uses more experts of a layer than the fewest slots hold.
        for slots in [top_k, top_k + 3, total / 2] {
            let backend = gpu();
            let few = with_vram(&all, slots, OpenOptions { backend, ..fixed.clone() });
            let model = open(&path, &few);
            let vram = *model.vram_plan().expect("a ceiling was given");
            assert_eq!((vram.slots as usize, model.vram_slots()), (slots, Some(slots)));
            assert!(Some(vram.total_bytes) <= few.vram_bytes, "{vram}");
            assert_eq!(model.slots(), total, "the host's memory holds all");
            let (logits, counts, stats) = twice(&model, answer, rows);
            assert_eq!(logits, expected, "{slots} slots, {rows} rows");
            assert_eq!((stats.misses, stats.read_bytes), (0, 0), "nothing is read again: {stats:?}");
            let copies = stats.hits - stats.device_hits;
            assert!(copies > 0, "{slots} slots do not hold all");
            assert_eq!(counts.copies, copies, "one for each expert that the device does not have");
        }
    }
}

#[test]
fn what_a_gpu_has_is_not_read_again_when_memory_has_no_room_for_it() {
    let Some(fixed) = options(Some(4)) else { return };
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let all = open(&path, &options(None).expect("there was a GPU"));
    let total = all.plan().total_experts as usize;
    let answer = tokens(&all, 3, 12);
    for rows in [1, 2] {
        let model = open(&path, &with_vram(&all, total, OpenOptions { backend: gpu(), ..fixed.clone() }));
        assert_eq!((model.slots(), model.vram_slots()), (4, Some(total)));
        let (logits, counts, stats) = twice(&model, &answer, rows);
        assert_eq!(logits, twice(&all, &answer, rows).0);
        assert_eq!((stats.misses, counts.copies), (0, 0), "{stats:?}");
        assert_eq!(stats.hits, stats.device_hits);
    }
}

#[test]
fn a_ceiling_below_what_a_gpu_must_hold_is_refused_with_the_figures() {
    let Some(all) = options(None) else { return };
    let opened = try_open(&golden(SET), &OpenOptions { vram_bytes: Some(4096), ..all });
    let error = opened.map(|_| ()).expect_err("4 KiB hold nothing");
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(
        error.to_string().contains("a GPU's memory") && error.to_string().contains("give at least"),
        "{error}"
    );
}

/// A driver that says how much a GPU may map: that is the ceiling of the plan, whatever was given, and it is said.
#[test]
fn what_a_gpu_may_map_is_the_ceiling_of_the_pool() {
    let Some(all) = options_of(true, None) else { return };
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let free = open(&path, &OpenOptions { memory_bytes: Some(1 << 30), ..all.clone() });
    let plan = *free.plan();
    assert_eq!(free.memory_note(), None);
    // Room for half of the experts.
    let mapped = plan.resident_bytes + plan.state_bytes + plan.scratch_bytes + plan.slot_pool_bytes / 2;
    let limited = |mapped: u64| {
        let precision = Precision::Exact;
        let options = GpuOptions {
            precision,
            share: Some(true),
            mapped_bytes_max: Some(mapped),
            ..GpuOptions::default()
        };
        let backend: Arc<dyn Backend> = Arc::new(Gpu::open(&options).expect("the adapter opens"));
        OpenOptions { backend: Some(backend), memory_bytes: Some(1 << 30), ..all.clone() }
    };
    let model = open(&path, &limited(mapped));
    let half = *model.plan();
    let used = half.total_bytes - half.overhead_bytes;
    assert!((mapped - plan.slot_bytes + 1..=mapped).contains(&used), "{used} of {mapped}: {half}");
    // Where experts stream, activations take less.
    assert!((plan.slots / 2..plan.slots).contains(&half.slots), "{half}");
    let note = model.memory_note().expect("less is planned than was given");
    assert!(note.contains("1.00 GiB") && note.contains("the GPU may map"), "{note}");
    let answer = tokens(&free, 3, 6);
    assert_eq!(fresh(&model, &answer), fresh(&free, &answer));
    // Enough for all of it, and too little for anything.
    let enough = open(&path, &limited(1 << 30));
    assert_eq!((enough.plan().slots, enough.memory_note()), (plan.slots, None));
    let error = try_open(&path, &limited(1 << 16)).map(|_| ()).expect_err("64 KiB hold nothing");
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("the GPU maps at most"), "{error}");
}

/// A GPU's pipelines are compiled while the weights load: no prompt and no answer waits for one.
#[test]
fn no_step_waits_for_a_pipeline() {
    let Some(all) = options(None) else { return };
    for (set, share, slots) in [
        (SET, false, None),
        (SET, false, Some(40)),
        ("qwen3_5_moe-e32/gguf-Q4_K_M", true, None),
        ("llama-dense/gguf-Q4_0", true, None),
    ] {
        let options = GpuOptions { share: Some(share), compiles_ahead: Some(true), ..GpuOptions::default() };
        let backend: Arc<dyn Backend> = Arc::new(Gpu::open(&options).expect("the adapter opens"));
        let all = OpenOptions { backend: Some(backend), exact: false, slots_max: slots, ..all.clone() };
        let model = open(&golden(set), &all);
        let ready = model.device_counts().expect("a GPU counts").pipelines;
        assert!(ready > 12, "{set}: {ready}");
        let text = tokens(&model, 3, 60);
        let mut session = Session::new(&model).expect("a session");
        // Prompts of all kinds, and answers: until all experts are where the device finds them, and after that.
        for _ in 0..2 {
            for rows in [60, 20, 5, 3, 2, 1] {
                session.reset().expect("resets");
                decode_rows(&mut session, &text, rows);
            }
            while model.warm_up() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let used = model.device_counts().expect("a GPU counts").pipelines;
        assert_eq!(used, ready, "{set}, share {share}, slots {slots:?}: pipelines that nobody foresaw");
    }
}
