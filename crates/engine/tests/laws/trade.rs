//! Pages of sequences and expert slots trade memory: who needs it has it, the sum stays, and no bit changes.

use std::sync::Arc;

use tidemill_engine::{Answer, Batch, ErrorKind, Logits, Model, OpenOptions, Sequence, Session};

use super::identity::floor_bytes;
use super::tools::{Bits, bits, golden, last_bits, tokens};
use crate::common::{go, open};

const SETS: [&str; 2] = ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"];

const SEQUENCES: usize = 4;

/// A model whose sequences together want more pages than there is memory for beside all slots; a page is as large as some
/// slots.
fn model(set: &str, kept_bytes: u64) -> Arc<Model> {
    let options = OpenOptions {
        sessions: Some(SEQUENCES),
        context: Some(4096),
        chunk_tokens: Some(256),
        kept_bytes: Some(kept_bytes),
        fixed_slots: true,
        ..OpenOptions::default()
    };
    let memory_bytes = floor_bytes(&golden(set), &options) + (1 << 20);
    open(&golden(set), &OpenOptions { memory_bytes: Some(memory_bytes), ..options })
}

/// Computes a prompt of `len` tokens in each of several new sequences.
fn fill(model: &Arc<Model>, len: usize, seed: u64) -> Vec<Sequence> {
    let begin = |i| {
        let mut sequence = Sequence::new(model).expect("the plan has room");
        sequence.extend(&tokens(model, seed + i, len)).expect("fits");
        sequence
    };
    let mut sequences: Vec<Sequence> = (0..SEQUENCES as u64).map(begin).collect();
    let mut seen: Vec<Option<Bits>> = vec![None; SEQUENCES];
    let mut sink = |place: usize, answer: Answer<'_>| {
        seen[place] = Some(bits(answer.logits()));
        Ok(())
    };
    Batch::default().feed(model, &mut sequences, Logits::Last, &mut go, &mut sink).expect("there are pages");
    let judge = open(model.path(), &OpenOptions { context: Some(4096), ..OpenOptions::default() });
    for (sequence, seen) in sequences.iter().zip(&seen) {
        assert_eq!(*seen, Some(last_bits(&judge, sequence.tokens())));
    }
    sequences
}

#[test]
fn slots_make_room_for_pages_and_come_back() {
    for set in SETS {
        let model = model(set, 0);
        let (plan, free) = (*model.plan(), model.free_states());
        assert!(plan.slots_min < plan.slots, "{set}: {plan}");
        assert_eq!(model.slots() as u64, plan.slots, "{set}: nobody needs a page");
        let sequences = fill(&model, 1100, 1);
        let few = model.slots() as u64;
        assert!((plan.slots_min..plan.slots).contains(&few), "{set}: {few} slots of {plan}");
        assert_eq!(free.0 - model.free_states().0, SEQUENCES * 3, "{set}: pages that hold 1100 positions");
        drop(sequences);
        // Of pages that were taken a part stays for who comes next.
        drop(fill(&model, 20, 9));
        let many = model.slots() as u64;
        assert!(few < many && many <= plan.slots, "{set}: {few}, then {many} slots of {plan}");
        assert_eq!(model.free_states(), free, "{set}");
    }
}

/// A chunk of more rows than a block takes memory of slots while it runs, and the bits are those of a model that has enough.
#[test]
fn a_long_chunk_borrows_of_the_slots_and_gives_back() {
    for set in SETS {
        let options = OpenOptions {
            sessions: Some(1),
            context: Some(512),
            block_tokens: Some(32),
            kept_bytes: Some(0),
            fixed_slots: true,
            ..OpenOptions::default()
        };
        let one = OpenOptions { chunk_tokens: Some(32), ..options.clone() };
        let floor_bytes = floor_bytes(&golden(set), &one);
        let with = |more: u64| {
            let memory_bytes = Some(floor_bytes + (more << 16));
            open(&golden(set), &OpenOptions { memory_bytes, ..options.clone() })
        };
        let borrows = |model: &Arc<Model>| {
            let plan = model.plan();
            plan.slots_beside(plan.lent_bytes) < plan.slots
        };
        let model = (1..64).map(with).find(borrows).expect("one that borrows");
        let plan = *model.plan();
        let mut session = Session::new(&model).expect("a session");
        let prompt = tokens(&model, 3, model.chunk_tokens().min(500));
        session.set_prompt(&prompt, &mut go).expect("runs");
        let few = model.slots() as u64;
        assert!(
            few <= plan.slots_beside(plan.lent_bytes) && few < plan.slots,
            "{set}: {few} slots of {plan}"
        );
        let judge = open(&golden(set), &OpenOptions { context: Some(2048), ..OpenOptions::default() });
        assert_eq!(bits(session.logits()), last_bits(&judge, &prompt), "{set}");
        session.append(&tokens(&model, 4, 1), &mut go).expect("runs");
        let many = model.slots() as u64;
        assert!(many > few, "{set}: {few}, then {many} slots");
    }
}

/// What is kept for prompts to come goes before slots do, and gives back what living sequences leave.
#[test]
fn kept_beginnings_go_before_slots() {
    for set in SETS {
        let model = model(set, 1);
        let plan = *model.plan();
        fill(&model, 500, 1).iter().for_each(|sequence| sequence.keep().expect("copies"));
        let free = model.free_states().0;
        let sequences = fill(&model, 500, 11);
        assert!(model.free_states().0 + SEQUENCES > free, "{set}: kept ones went");
        assert_eq!(model.slots() as u64, plan.slots, "{set}: {plan}");
        drop(sequences);
    }
}

/// With all slots gone that may go, pages are short, and what lives goes on.
#[test]
fn pages_end_where_the_fewest_slots_begin() {
    let set = SETS[1];
    let model = model(set, 0);
    let mut sequences = fill(&model, 900, 1);
    for (i, sequence) in sequences.iter_mut().enumerate() {
        sequence.extend(&tokens(&model, 20 + i as u64, 3000)).expect("fits the context");
    }
    let mut batch = Batch::default();
    let short = batch.feed(&model, &mut sequences, Logits::Last, &mut go, &mut |_, _| Ok(()));
    assert_eq!(short.expect_err("four cannot all be the largest").kind(), ErrorKind::Memory);
    assert!(model.slots() as u64 >= model.plan().slots_min, "{}", model.plan());
    sequences.truncate(1);
    batch.feed(&model, &mut sequences, Logits::Last, &mut go, &mut |_, _| Ok(())).expect("one always can");
    assert_eq!(sequences[0].position(), 3900);
}
