//! Who has a page, a place or a snapshot after something failed: copies that break, steps that cannot be, beginnings that
//! are in the way.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidemill_engine::{Batch, ErrorKind, Logits, Model, OpenOptions, Part, Pause, Result, Sequence};

use super::faulty::{Faulty, Op};
use super::tools::{Bits, bits, golden, last_bits, tokens};
use crate::common::open;

const HYBRID: &str = "qwen3_5_moe-e32/mlx-4bit";
const ATTENTION_ONLY: &str = "qwen3_moe-e16/gguf-Q4_0";

/// A sequence with these tokens, of which nothing is computed.
fn sequence(model: &Arc<Model>, tokens: &[u32]) -> Sequence {
    let mut sequence = Sequence::new(model).expect("there is room");
    sequence.extend(tokens).expect("fits");
    sequence
}

/// One step of `rows` of each, which breaks off after so many layers.
fn step_until(
    model: &Arc<Model>,
    sequences: &mut [&mut Sequence],
    rows: usize,
    before_break: Option<(usize, &dyn Fn())>,
) -> Result<Vec<Bits>> {
    let part = |sequence| Part { sequence, rows, logits: Logits::Last };
    let mut parts: Vec<Part<'_>> = sequences.iter_mut().map(|sequence| part(&mut **sequence)).collect();
    let mut last = Vec::new();
    let mut between = |pause: &mut Pause<'_>| match before_break {
        Some((layers, prepare)) if pause.layers_done() == layers => {
            prepare();
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    };
    Batch::default().run(model, &mut parts, &mut between, &mut |_, _, answer| {
        last.push(bits(answer.logits()));
        Ok(())
    })?;
    Ok(last)
}

fn step(model: &Arc<Model>, sequences: &mut [&mut Sequence], rows: usize) -> Result<Vec<Bits>> {
    step_until(model, sequences, rows, None)
}

/// Computes all that is pending of a sequence, alone: the logits after its last token.
fn rest(model: &Arc<Model>, sequence: &mut Sequence) -> Bits {
    let rows = sequence.pending();
    step(model, &mut [sequence], rows).expect("nothing fails any more").remove(0)
}

/// The same of each, where they must be its own.
fn finish(model: &Arc<Model>, judge: &Arc<Model>, sequences: &mut [Sequence], why: &str) {
    for sequence in sequences {
        let got = rest(model, sequence);
        assert_eq!(got, last_bits(judge, sequence.tokens()), "{why}: {} tokens", sequence.tokens().len());
    }
}

/// Sequences that have begun alike and parted: one shares its page with a fork at its end and one within it, which must be
/// copied before two of them write; and one of its own tokens that goes on from its border.
fn company(model: &Arc<Model>) -> Vec<Sequence> {
    let text = tokens(model, 5, 40);
    let mut first = sequence(model, &text);
    first.name_borders([30, 40]);
    step(model, &mut [&mut first], 40).expect("runs");
    let mut forks = [30, 40].map(|len| first.fork(len).expect("there is room"));
    let mut other = sequence(model, &tokens(model, 6, 20));
    step(model, &mut [&mut other], 20).expect("runs");
    for (i, fork) in forks.iter_mut().enumerate() {
        fork.extend(&tokens(model, 10 + i as u64, 8)).expect("fits");
    }
    let [cut, mut whole] = forks;
    // The first has moved on: what a fork has of its page was written further.
    first.extend(&tokens(model, 12, 2)).expect("fits");
    step(model, &mut [&mut first], 2).expect("runs");
    first.extend(&tokens(model, 13, 8)).expect("fits");
    other.extend(&tokens(model, 14, 8)).expect("fits");
    whole.name_borders([44]);
    vec![first, cut, whole, other]
}

/// Has copy `nth` of a step of them all fail, before its layers or after so many of them, when it is broken off and goes back.
/// Whether there were as many.
fn fail_copy(model: &Arc<Model>, device: &Arc<Faulty>, at: (Op, usize, Option<usize>), own: &[Bits]) -> bool {
    let (op, nth, breaks) = at;
    let mut sequences = company(model);
    let before: Vec<usize> = sequences.iter().map(Sequence::position).collect();
    let mut parts: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let seen = RefCell::<Arc<AtomicUsize>>::default();
    let arm = || *seen.borrow_mut() = device.fail(op, nth);
    if breaks.is_none() {
        arm();
    }
    let ran = step_until(model, &mut parts, 8, breaks.map(|layers| (layers, &arm as &dyn Fn())));
    device.unwatch();
    let failed = match ran {
        Ok(got) => {
            assert_eq!(got, own, "{at:?}");
            return false;
        }
        // What the broken chunk would leave to others is not missed.
        Err(error) if error.kind() == ErrorKind::Cancelled => seen.borrow().load(Ordering::Relaxed) > nth,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Device, "{at:?}: {error}");
            true
        }
    };
    for ((sequence, before), own) in sequences.iter_mut().zip(before).zip(own) {
        assert!(sequence.position() <= before, "{at:?}: at {}, was at {before}", sequence.position());
        assert_eq!(rest(model, sequence), *own, "{at:?}: {} tokens", sequence.tokens().len());
    }
    failed
}

/// Whichever copy of a page or of a snapshot fails, wherever: the sequences of the step are as before it or have nothing
/// computed, never something between; nothing is lost, and all that others have is whole.
#[test]
fn a_copy_that_fails_leaves_every_sequence_whole() {
    for (set, op, least) in
        [(HYBRID, Op::Copy, 6), (HYBRID, Op::CopyWithin, 2), (ATTENTION_ONLY, Op::CopyWithin, 12)]
    {
        let device = Faulty::new();
        let options = OpenOptions { context: Some(96), sessions: Some(5), ..OpenOptions::default() };
        let model = open(&golden(set), &device.with(options));
        let free = model.free_states();
        let own: Vec<Bits> = company(&model).iter().map(|own| last_bits(&model, own.tokens())).collect();
        // Snapshots are made, or pages copied, before the step; snapshots are put back after one that broke off.
        for breaks in [None, Some(1), Some(model.meta().layers)] {
            let fails = |nth: &usize| {
                model.forget_kept();
                fail_copy(&model, &device, (op, *nth, breaks), &own)
            };
            let failed = (0..64).take_while(fails).count();
            let expected = if breaks.is_none() || op == Op::Copy { least..64 } else { 0..1 };
            assert!(
                expected.contains(&failed),
                "{set}: {op:?} failed {failed} times, after {breaks:?} layers"
            );
        }
        model.forget_kept();
        assert_eq!(model.free_states(), free, "{set}: all pages and places came back");
    }
}

/// Memory of snapshots that could not be had is to be had later.
#[test]
fn memory_that_is_wanting_is_asked_for_again() {
    let device = Faulty::new();
    let options = OpenOptions { context: Some(96), kept_bytes: Some(1), ..OpenOptions::default() };
    let model = open(&golden(HYBRID), &device.with(options));
    let own = sequence(&model, &tokens(&model, 1, 30));
    let bits = last_bits(&model, own.tokens());
    // More often than there can be snapshots.
    for _ in 0..20 {
        let mut sequence = sequence(&model, own.tokens());
        sequence.name_borders([20]);
        device.fail(Op::Alloc, 0);
        let error = step(&model, &mut [&mut sequence], 30).expect_err("no memory for the border");
        device.unwatch();
        assert_eq!((error.kind(), sequence.position()), (ErrorKind::Device, 0), "{error}");
    }
    let mut sequence = sequence(&model, own.tokens());
    sequence.name_borders([20, 25]);
    assert_eq!(rest(&model, &mut sequence), bits);
}

/// A model with this many pages for so many sequences of up to three pages each, and one that judges.
fn few_pages(sessions: usize, kept_bytes: u64) -> (Arc<Model>, Arc<Model>) {
    let options = OpenOptions { context: Some(1100), exact: true, ..OpenOptions::default() };
    let judge = open(&golden(ATTENTION_ONLY), &options);
    // Three pages for one, and one for each of the others.
    let few = OpenOptions {
        sessions: Some(sessions),
        pages_bytes: Some(1),
        kept_bytes: Some(kept_bytes),
        ..options
    };
    let model = open(&golden(ATTENTION_ONLY), &Faulty::new().with(few));
    assert_eq!(model.free_states(), (2 + sessions, sessions));
    (model, judge)
}

fn free_pages(model: &Model) -> usize {
    model.free_states().0
}

/// A sequence of which all is computed.
fn computed(model: &Arc<Model>, tokens: &[u32]) -> Sequence {
    let mut sequence = sequence(model, tokens);
    step(model, &mut [&mut sequence], tokens.len()).expect("runs");
    sequence
}

/// Where one of a step has no page, the others give back those that they took for it.
#[test]
fn a_step_without_pages_for_all_takes_none() {
    let (model, judge) = few_pages(2, 0);
    let text = tokens(&model, 1, 1040);
    let mut sequences = [computed(&model, &text[..500]), computed(&model, &text[..1020])];
    for sequence in &mut sequences {
        sequence.extend(&text[..20]).expect("fits");
    }
    assert_eq!(free_pages(&model), 1, "both want it");
    let [short, long] = &mut sequences;
    for _ in 0..3 {
        let error = step(&model, &mut [short, long], 20).expect_err("there is one page for two");
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        assert_eq!((short.position(), long.position(), free_pages(&model)), (500, 1020, 1));
    }
    finish(&model, &judge, &mut sequences[1..], "it is free for the other");
    let [mut short, long] = sequences;
    drop(long);
    assert_eq!(free_pages(&model), 3);
    finish(&model, &judge, std::slice::from_mut(&mut short), "what was given up is free");
}

/// A page that both go on in is nobody's after a step that could not be: whoever is alone then needs no copy.
#[test]
fn a_shared_page_that_was_claimed_in_vain_is_unclaimed() {
    let (model, judge) = few_pages(2, 0);
    let text = tokens(&model, 1, 1080);
    let mut first = computed(&model, &text[..600]);
    let mut second = first.fork(600).expect("there is room");
    assert_eq!(free_pages(&model), 2, "both have the same two");
    first.extend(&text[600..]).expect("fits");
    second.extend(&text[..480]).expect("fits");
    // The first goes on in their page and takes one, the second needs a copy and one.
    let error = step(&model, &mut [&mut first, &mut second], 480).expect_err("three for two");
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    assert_eq!(free_pages(&model), 2, "all are as before");
    step(&model, &mut [&mut first], 10).expect("runs");
    assert_eq!(free_pages(&model), 2, "it goes on without a copy");
    step(&model, &mut [&mut second], 10).expect("runs");
    assert_eq!(free_pages(&model), 1, "and the other one with a copy");
    first.truncate(640).expect("goes back");
    second.truncate(640).expect("goes back");
    finish(&model, &judge, &mut [first, second], "in company");
}

/// A page that was copied for a step which then could not be is as whole as the one it is a copy of.
#[test]
fn a_copy_for_a_step_that_cannot_be_is_whole() {
    let (model, judge) = few_pages(3, 0);
    let text = tokens(&model, 1, 1080);
    let mut first = computed(&model, &text[..600]);
    let mut second = first.fork(600).expect("there is room");
    second.extend(&text[..10]).expect("fits");
    finish(&model, &judge, std::slice::from_mut(&mut second), "in the page of both");
    let other = computed(&model, &text[..600]);
    first.extend(&text[600..]).expect("fits");
    assert_eq!(free_pages(&model), 1);
    let error = step(&model, &mut [&mut first], 480).expect_err("a copy and another page");
    assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
    drop(other);
    let mut third = first.fork(550).expect("there is room");
    third.extend(&text[..10]).expect("fits");
    finish(&model, &judge, std::slice::from_mut(&mut third), "from within");
    drop((second, third));
    finish(&model, &judge, &mut [first], "after somebody has gone on from within");
}

/// A page that only a kept beginning shares is copied as long as there is room, and else the beginning goes: nobody waits
/// for what is kept.
#[test]
fn no_page_is_wanting_that_a_kept_beginning_has() {
    for (others, more) in [(600, 10), (500, 10), (500, 420)] {
        let (model, judge) = few_pages(2, 1);
        let text = tokens(&model, 1, 1100);
        let mut sequence = sequence(&model, &text[..700]);
        sequence.name_borders([700]);
        step(&model, &mut [&mut sequence], 700).expect("runs");
        sequence.truncate(650).expect("goes back");
        let _other = computed(&model, &tokens(&model, 2, others));
        let free = free_pages(&model);
        assert_eq!(free, if others > 512 { 0 } else { 1 }, "a page for a copy, or for more tokens, or none");
        sequence.extend(&text[..more]).expect("fits");
        let why = format!("{free} pages are free, {more} tokens more");
        finish(&model, &judge, std::slice::from_mut(&mut sequence), &why);
        assert_eq!(free_pages(&model), 0, "{why}");
    }
}
