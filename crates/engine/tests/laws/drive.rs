//! Same bits whoever reads, whoever is evicted, however large the pool is from token to token; and an interrupted
//! prompt goes on where it stopped.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use store::disk::SimDisk;
use tidemill_engine::drive::{DiskKind, DriveOptions};
use tidemill_engine::{ErrorKind, ExpertMemory, Guess, Model, OpenOptions, PolicyKind, Session, trace_of};

use super::tools::{Bits, Dice, attention_only, bits, golden, hybrid, last_bits, on_sim, tokens};
use crate::common::{go, open, try_open};

/// The bits after each of `answer`, fed one by one after `prompt`; `before` is called ahead of each.
fn decode(model: &Arc<Model>, prompt: &[u32], answer: &[u32], before: &mut dyn FnMut()) -> Vec<Bits> {
    let mut session = Session::new(model).expect("a session");
    for chunk in prompt.chunks(11) {
        before();
        session.append(chunk, &mut go).expect("runs");
    }
    let mut all = vec![bits(session.logits())];
    for token in answer {
        before();
        session.append(&[*token], &mut go).expect("runs");
        all.push(bits(session.logits()));
    }
    all
}

/// A model of a golden set with few slots, on a simulated drive.
fn small(set: &str, change: impl Fn(&mut OpenOptions)) -> Arc<Model> {
    let path = golden(set);
    let (_, mut options) = on_sim(&path, 3, true);
    (options.chunk_tokens, options.context, options.slots_max) = (Some(8), Some(128), Some(24));
    options.fixed_slots = true;
    change(&mut options);
    open(&path, &options)
}

#[test]
fn the_pool_may_have_any_size_from_token_to_token() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"] {
        let model = small(set, |_| {});
        let (prompt, answer) = (tokens(&model, 1, 30), tokens(&model, 2, 40));
        let expected = decode(&model, &prompt, &answer, &mut || {});
        for kind in PolicyKind::ALL {
            let model = small(set, |o| o.policy = kind);
            let mut dice = Dice(kind as u64 + 9);
            let resized = decode(&model, &prompt, &answer, &mut || model.use_slots(dice.below(26)));
            assert_eq!(resized, expected, "{set}, {kind:?}");
        }
    }
}

#[test]
fn every_way_to_read_gives_the_same_bits() {
    let set = "qwen3_5_moe-e32/gguf-Q4_K_M";
    let path = golden(set);
    let copies = path.parent().expect("a directory").to_path_buf();
    let base = OpenOptions { exact: true, context: Some(64), slots_max: Some(20), ..OpenOptions::default() };
    let with = |drive: DriveOptions| OpenOptions { drive, ..base.clone() };
    let model = open(&path, &base);
    let prompt = tokens(&model, 5, 24);
    let expected = last_bits(&model, &prompt);
    for kind in [DiskKind::Auto, DiskKind::Pread, DiskKind::Buffered, DiskKind::Uring] {
        let options = with(DriveOptions { kind, ..DriveOptions::default() });
        let model = match try_open(&path, &options) {
            Ok(model) => model,
            Err(e) if kind == DiskKind::Uring && e.kind() == ErrorKind::Unsupported => {
                println!("SKIP {e}");
                continue;
            }
            Err(e) => panic!("{kind:?}: {e}"),
        };
        assert_eq!(last_bits(&model, &prompt), expected, "{kind:?}");
    }
    let throttle = DriveOptions { throttle_bytes_per_s: Some(50e6), ..DriveOptions::default() };
    let model = open(&path, &with(throttle));
    assert!(model.describe().contains("at most 0.05 GB/s"), "{}", model.describe());
    assert_eq!(last_bits(&model, &prompt), expected);
    let mirror = DriveOptions { mirror: Some(copies), ..DriveOptions::default() };
    let model = open(&path, &with(mirror));
    assert!(model.describe().contains("from a copy"), "{}", model.describe());
    assert_eq!(last_bits(&model, &prompt), expected);
    let nowhere = DriveOptions { mirror: Some("/nonexistent".into()), ..DriveOptions::default() };
    let error = try_open(&path, &with(nowhere)).map(|_| ()).expect_err("no copy there");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn guesses_are_tried_and_change_nothing() {
    let set = "qwen3_5_moe-e32/mlx-4bit";
    let model = small(set, |_| {});
    let answer = tokens(&model, 2, 60);
    let expected = decode(&model, &[1], &answer, &mut || {});
    let hinted = model.read_stats().expect("counts").total().hinted;
    assert!(hinted > 0, "a trial reads ahead in half of its steps");
    let all = open(&golden(set), &OpenOptions { exact: true, context: Some(128), ..OpenOptions::default() });
    assert_eq!(decode(&all, &[1], &answer, &mut || {}), expected);
    assert_eq!(all.read_stats().expect("counts").total().hinted, 0, "where everything fits nobody guesses");
}

#[test]
fn a_trace_says_what_was_wanted_and_a_warm_set_what_was_kept() {
    let model = small("qwen3_5_moe-e32/mlx-4bit", |_| {});
    // A guess that was given up leaves a slot with nothing in it.
    model.fix_guess(Guess::None);
    let mut session = Session::new(&model).expect("a session");
    session.record_routes();
    session.set_prompt(&tokens(&model, 1, 20), &mut go).expect("runs");
    session.append(&[7], &mut go).expect("runs");
    let trace = trace_of(&model, &session.take_routes());
    let rows: Vec<_> = trace.steps.iter().map(|step| step.rows).collect();
    assert_eq!(rows, [8, 8, 4, 1]);
    let layers = trace.experts.iter().filter(|n| **n > 0).count();
    assert!(trace.steps.iter().all(|step| step.wants.len() == layers));
    let total = model.read_stats().expect("counts").total();
    let wanted: usize = trace.wants().map(|want| want.experts.len()).sum();
    assert_eq!(total.hits + total.misses, wanted as u64);

    let warm = model.warm_set().expect("more experts than slots");
    assert_eq!(warm.wants().map(|want| want.experts.len()).sum::<usize>(), 24);
    let other = small("qwen3_5_moe-e32/mlx-4bit", |_| {});
    other.warm(&warm);
    // Nobody but the pool's own thread reads it; the simulated drive works only when a want waits.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let prompt = tokens(&model, 4, 30);
    assert_eq!(last_bits(&other, &prompt), last_bits(&model, &prompt));
    assert!(small("qwen3_5_moe-e32/mlx-4bit", |o| o.slots_max = None).warm_set().is_none(), "all fit");
}

#[test]
fn heat_counts_each_choice_and_a_step_shows_its_memory_while_it_runs() {
    // One step of several blocks, whose experts come in windows, and many of one block.
    for (chunk, block) in [(64, 9), (8, 8)] {
        let change = |o: &mut OpenOptions| (o.chunk_tokens, o.block_tokens) = (Some(chunk), Some(block));
        let model = small("qwen3_5_moe-e32/mlx-4bit", change);
        assert!(model.expert_heat().uses.iter().all(|uses| *uses == 0));
        let mut session = Session::new(&model).expect("a session");
        session.record_routes();
        let mut seen = Vec::new();
        let mut look = |_: f64, _: usize| {
            seen.push(model.expert_memory());
            ControlFlow::Continue(())
        };
        session.set_prompt(&tokens(&model, 1, 60), &mut look).expect("runs");
        let heat = model.expert_heat();
        let mut uses = vec![0; heat.layers * heat.experts];
        for record in session.take_routes() {
            let row = usize::from(record.layer.0) * heat.experts;
            record.routes.ids.iter().for_each(|id| uses[row + *id as usize] += 1);
        }
        assert_eq!((heat.uses, heat.experts), (uses, 32));

        let (after, total) = (model.expert_memory(), model.read_stats().expect("counts").total());
        assert_eq!(
            (after.hits, after.misses, after.read_bytes),
            (total.hits, total.misses, total.read_bytes)
        );
        assert_eq!((after.held.iter().filter(|held| **held).count(), after.slots), (24, 24));
        let within = |seen: &&ExpertMemory| seen.read_bytes > 0 && seen.read_bytes < after.read_bytes;
        assert!(seen.iter().filter(within).count() > 2, "{chunk}: {} looks", seen.len());
    }
}

#[test]
fn a_prompt_counts_its_chunks_and_what_they_used_and_read() {
    let run = |chunk, block| {
        let change = |o: &mut OpenOptions| (o.chunk_tokens, o.block_tokens) = (Some(chunk), Some(block));
        let model = small("qwen3_5_moe-e32/mlx-4bit", change);
        let mut session = Session::new(&model).expect("a session");
        session.record_routes();
        let start = Instant::now();
        session.set_prompt(&tokens(&model, 1, 60), &mut go).expect("runs");
        let (time, stats) = (start.elapsed(), model.read_stats().expect("counts"));
        let mut used = vec![BTreeSet::new(); stats.layers.len()];
        for want in trace_of(&model, &session.take_routes()).wants() {
            used[want.layer.0 as usize].extend(want.experts.iter().copied());
        }
        for (layer, used) in stats.layers.iter().zip(&used) {
            assert_eq!(layer.union, used.len() as u64, "{layer:?}");
            assert_eq!(layer.steps, 60u64.div_ceil(chunk as u64), "{layer:?}");
            assert!(layer.steps > 1 || layer.union_bytes == layer.wanted_bytes, "{layer:?}");
            assert!(layer.wait <= layer.time && layer.copied_bytes == 0, "{layer:?}");
        }
        assert!(stats.total().time <= time, "{stats:?} of {time:?}");
        stats.total()
    };
    // Slots for less than a layer: each chunk reads what it uses, whatever the one before has read.
    let [once, often] = [run(64, 9), run(8, 8)];
    assert_eq!(once.union, often.union);
    assert!(once.reads >= once.union && 10 * once.reads <= 11 * once.union, "{once:?}");
    assert!(often.reads > 3 * often.union, "{often:?}");
}

fn interrupted(model: &Arc<Model>, prompt: &[u32], call: usize) -> (Session, usize) {
    model.forget_kept(); // nobody else's
    let mut session = Session::new(model).expect("a session");
    let mut calls = 0;
    let result = session.set_prompt(prompt, &mut |_, _| {
        calls += 1;
        if calls == call { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(result.expect_err("interrupted").kind(), ErrorKind::Cancelled);
    let kept = session.tokens().len();
    assert_eq!(session.tokens(), &prompt[..kept]);
    (session, kept)
}

#[test]
fn an_interrupted_prompt_keeps_its_finished_chunks() {
    let models: [(Arc<SimDisk>, Arc<Model>); 2] = [hybrid(), attention_only()];
    for (_, model) in models {
        let prompt = tokens(&model, 1, 40);
        let expected = last_bits(&model, &prompt);
        let layers = model.meta().layers;
        for (call, chunks) in [(1, 0), (layers, 0), (layers + 1, 1), (3 * layers + 2, 3), (5 * layers, 4)] {
            let (mut session, kept) = interrupted(&model, &prompt, call);
            assert_eq!(kept, 8 * chunks, "interrupted at {call}");
            assert!(session.logits().is_empty());
            assert_eq!(session.set_prompt(&prompt, &mut go).expect("goes on"), kept);
            assert_eq!(bits(session.logits()), expected, "interrupted at {call}");
            let (mut session, _) = interrupted(&model, &prompt, call);
            let other = tokens(&model, 9, 20);
            session.set_prompt(&other, &mut go).expect("another prompt");
            assert_eq!(bits(session.logits()), last_bits(&model, &other));
        }
    }
}
