//! A prompt that breaks off between two layers: who asks for the same tokens again goes on there, and gets the same bits.

use std::ops::ControlFlow;
use std::sync::Arc;

use tidemill_engine::{ErrorKind, Model, OpenOptions, Session};

use super::prefixes::SETS;
use super::tools::{bits, golden, last_bits, tokens};
use crate::common::{go, open};

const ROWS: usize = 40;

fn model(set: &str) -> Arc<Model> {
    let (block_tokens, slots_max) = (Some(9), Some(5));
    let context = Some(1200);
    open(&golden(set), &OpenOptions { block_tokens, slots_max, context, ..OpenOptions::default() })
}

/// Reads a prompt in a new session until `layers` layers of its chunk are done.
fn break_off(model: &Arc<Model>, prompt: &[u32], layers: usize) {
    let mut session = Session::new(model).expect("a session");
    let all = model.meta().layers;
    let mut until = |done: f64, _: usize| match done * all as f64 >= (layers * prompt.len()) as f64 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let error = session.set_prompt(prompt, &mut until).expect_err("broken off");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
}

/// Reads a prompt in a new session; what its first layer was.
fn first_layer(model: &Arc<Model>, prompt: &[u32]) -> usize {
    let mut session = Session::new(model).expect("a session");
    let mut first = None;
    let mut progress = |done: f64, total: usize| {
        first.get_or_insert(done / total.min(ROWS) as f64);
        ControlFlow::Continue(())
    };
    session.set_prompt(prompt, &mut progress).expect("runs");
    assert_eq!(bits(session.logits()), last_bits(model, prompt));
    (first.expect("heard of") * model.meta().layers as f64).round() as usize - 1
}

#[test]
fn a_chunk_goes_on_from_every_layer() {
    for set in SETS {
        let model = model(set);
        let layers = model.meta().layers;
        for done in 1..=layers {
            let prompt = tokens(&model, done as u64, ROWS);
            break_off(&model, &prompt, done);
            if done < layers {
                assert_eq!(first_layer(&model, &prompt), done, "{set}");
            }
            // A longer prompt begins with it.
            let prompt = tokens(&model, 100 + done as u64, ROWS);
            break_off(&model, &prompt, done);
            let longer = [&prompt[..], &tokens(&model, 7, 5)[..]].concat();
            let mut session = Session::new(&model).expect("a session");
            session.set_prompt(&longer, &mut go).expect("runs");
            assert_eq!(bits(session.logits()), last_bits(&model, &longer), "{set}, layer {done}");
        }
        let free = model.free_states();
        model.forget_kept();
        assert!(model.free_states().0 >= free.0);
    }
}

#[test]
fn another_prompt_and_a_forgotten_one_begin_again() {
    for set in SETS {
        let model = model(set);
        let prompt = tokens(&model, 1, ROWS);
        break_off(&model, &prompt, 2);
        let other = [&prompt[..4], &tokens(&model, 2, ROWS - 4)[..]].concat();
        assert_eq!(first_layer(&model, &other), 0, "{set}: other tokens");
        assert_eq!(first_layer(&model, &prompt), 2, "{set}: still there");
        let prompt = tokens(&model, 3, ROWS);
        break_off(&model, &prompt, 2);
        model.forget_kept();
        assert_eq!(first_layer(&model, &prompt), 0, "{set}: forgotten");
        // A chunk that needs the memory.
        break_off(&model, &tokens(&model, 6, ROWS), 2);
        let long = tokens(&model, 4, 1100);
        let mut session = Session::new(&model).expect("a session");
        session.set_prompt(&long, &mut go).expect("runs");
        assert_eq!(bits(session.logits()), last_bits(&model, &long), "{set}");
    }
}

/// It goes on twice, and what it goes on with is its own.
#[test]
fn a_chunk_may_break_off_again() {
    for set in SETS {
        let model = model(set);
        let prompt = tokens(&model, 5, ROWS);
        for layers in 1..model.meta().layers {
            break_off(&model, &prompt, layers);
        }
        assert_eq!(first_layer(&model, &prompt), model.meta().layers - 1, "{set}");
    }
}
