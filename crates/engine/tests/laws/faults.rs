//! Faults of the drive and interruptions: a typed error that names the thing, and a session that goes on.

use std::ops::ControlFlow;
use std::sync::Arc;

use files::TensorIndex;
use store::Range;
use store::disk::{Fault, FaultKind, SimDisk, SimOptions};
use tidemill_engine::{Error, ErrorKind, Model, OpenOptions, Session};

use super::tools::{Dice, attention_only, bits, golden, hybrid, last_bits, on_sim, tokens};
use crate::common::{go, open, try_open};

/// Fails every read of the first file from now on, `times` times.
fn break_drive(disk: &SimDisk, times: u32) {
    disk.inject(Fault { range: Range { file: 0, offset: 0, bytes: u64::MAX }, kind: FaultKind::Io, times });
}

fn names_the_place(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    for part in ["sim-0", "layer ", "expert "] {
        assert!(error.message().contains(part), "{part:?} is not in: {error}");
    }
    assert!(!error.message().contains('\n'), "one line: {error}");
}

/// Feeds tokens one by one until the drive is asked for something and fails.
fn fail_in_answer(session: &mut Session, disk: &SimDisk, answer: &[u32]) -> Option<(usize, Error)> {
    break_drive(disk, 1);
    for (i, token) in answer.iter().enumerate() {
        if let Err(error) = session.append(&[*token], &mut go) {
            return Some((i, error));
        }
    }
    None
}

#[test]
fn a_read_error_in_mid_answer_names_the_expert_and_the_answer_goes_on() {
    for (disk, model) in [hybrid(), attention_only()] {
        let mut session = Session::new(&model).expect("a session");
        let (prompt, answer) = (tokens(&model, 1, 20), tokens(&model, 2, 30));
        let expected = last_bits(&model, &[&prompt[..], &answer].concat());
        session.append(&prompt, &mut go).expect("runs");
        let mut fed = 0;
        let mut failures = 0;
        while let Some((done, error)) = fail_in_answer(&mut session, &disk, &answer[fed..]) {
            names_the_place(&error);
            fed += done;
            failures += 1;
            assert_eq!(session.tokens(), [&prompt[..], &answer[..fed]].concat(), "as before the failed call");
            assert!(!session.logits().is_empty(), "and its logits are still there");
            disk.clear_faults();
            session.append(&[answer[fed]], &mut go).expect("the next call succeeds");
            fed += 1;
        }
        disk.clear_faults();
        assert!(failures >= 3, "only {failures} reads failed: the cache is too large for this test");
        assert_eq!(bits(session.logits()), expected);
    }
}

#[test]
fn a_read_error_in_mid_prompt_leaves_the_session_as_it_was() {
    for (disk, model) in [hybrid(), attention_only()] {
        let (before, prompt) = (tokens(&model, 1, 13), tokens(&model, 2, 50));
        let all = [&before[..], &prompt].concat();
        let expected = last_bits(&model, &all);
        for stop in [1.0, 9.0, 20.0, 49.0] {
            model.forget_kept(); // what is computed again can fail again
            let mut session = Session::new(&model).expect("a session");
            session.append(&before, &mut go).expect("runs");
            let mut broken = false;
            let error = session.append(&prompt, &mut |done, _| {
                if done >= stop && !broken {
                    broken = true;
                    break_drive(&disk, u32::MAX);
                }
                ControlFlow::Continue(())
            });
            disk.clear_faults();
            if let Err(error) = error {
                names_the_place(&error);
                assert_eq!(session.tokens(), before);
            } else {
                assert!(stop > 48.0, "stop at {stop} met no read");
                session.truncate(before.len()).expect("goes back");
            }
            assert_eq!(session.set_prompt(&all, &mut go).map(|reused| reused <= 13).ok(), Some(true));
            assert_eq!(bits(session.logits()), expected, "stop at {stop}");
        }
    }
}

fn cancelled_at(model: &Arc<Model>, call: usize, prompt: &[u32]) -> Option<Session> {
    let mut session = Session::new(model).expect("a session");
    let mut calls = 0;
    let result = session.append(prompt, &mut |_, _| {
        calls += 1;
        if calls == call { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let error = result.err()?;
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert!(session.tokens().is_empty());
    Some(session)
}

#[test]
fn a_cancelled_prompt_can_be_asked_again() {
    for model in [hybrid().1, attention_only().1] {
        let (prompt, other) = (tokens(&model, 1, 40), tokens(&model, 2, 30));
        let (expected, expected_other) = (last_bits(&model, &prompt), last_bits(&model, &other));
        let mut cancelled = 0;
        for call in 1.. {
            let Some(mut session) = cancelled_at(&model, call, &prompt) else { break };
            cancelled += 1;
            if call % 2 == 0 {
                session.append(&other, &mut go).expect("another one");
                assert_eq!(bits(session.logits()), expected_other, "cancelled at {call}");
            }
            session.set_prompt(&prompt, &mut go).expect("the same again");
            assert_eq!(bits(session.logits()), expected, "cancelled at {call}");
        }
        assert_eq!(cancelled, 5 * model.meta().layers, "after every layer of five chunks");
    }
}

#[test]
fn progress_rises_from_layer_to_layer_up_to_the_whole() {
    let (_, model) = hybrid();
    let mut session = Session::new(&model).expect("a session");
    let mut seen = Vec::new();
    session
        .append(&tokens(&model, 1, 40), &mut |done, total| {
            seen.push((done, total));
            ControlFlow::Continue(())
        })
        .expect("runs");
    assert!(seen.windows(2).all(|w| w[0].0 < w[1].0), "{seen:?}");
    assert!(seen.iter().all(|s| s.1 == 40), "{seen:?}");
    assert!(seen.last().is_some_and(|s| (s.0 - 40.0).abs() < 1e-9), "{seen:?}");
}

#[test]
fn a_file_cut_while_running_is_an_error_that_names_it() {
    for (disk, model) in [hybrid(), attention_only()] {
        let prompt = tokens(&model, 1, 40);
        let mut session = Session::new(&model).expect("a session");
        disk.truncate(0, 1000);
        let error = session.append(&prompt, &mut go).expect_err("the file is gone");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        for part in ["sim-0", "layer ", "expert "] {
            assert!(error.message().contains(part), "{part:?} is not in: {error}");
        }
        let error = session.append(&prompt, &mut go).expect_err("and stays so");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(session.tokens().is_empty());
    }
}

#[test]
fn a_drive_that_fails_or_is_interrupted_while_loading_gives_no_model() {
    let path = golden("qwen3_moe-e16/mlx-4bit");
    let (disk, options) = on_sim(&path, 1, true);
    break_drive(&disk, 1);
    let error = try_open(&path, &options).map(|_| ()).expect_err("a read fails");
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.message().contains("sim-0"), "{error}");
    let error = Model::open(&path, &options, &mut |_, _| ControlFlow::Break(())).map(|_| ());
    assert_eq!(error.expect_err("interrupted").kind(), ErrorKind::Cancelled);
    let model = open(&path, &options);
    let prompt = tokens(&model, 1, 20);
    let undisturbed = open(&path, &OpenOptions { exact: true, ..OpenOptions::default() });
    assert_eq!(last_bits(&model, &prompt), last_bits(&undisturbed, &prompt));
}

/// Faults at random times on a drive that also stalls: each call succeeds with the right bits, or is an error.
#[test]
fn random_faults_never_change_a_bit() {
    for (disk, model) in [hybrid(), attention_only()] {
        let mut dice = Dice(99);
        let mut session = Session::new(&model).expect("a session");
        let (mut failed, mut succeeded) = (0, 0);
        for round in 0..40 {
            let keep = dice.below(session.tokens().len() + 1);
            let add = tokens(&model, round, 1 + dice.below(20));
            let mut prompt = session.tokens()[..keep].to_vec();
            prompt.extend(add);
            prompt.truncate(90);
            let stall = FaultKind::Stall(std::time::Duration::from_millis(50));
            let range = Range { file: 0, offset: dice.below(1 << 20) as u64, bytes: 1 << 16 };
            disk.inject(Fault { range, kind: stall, times: 2 });
            if round % 2 == 0 {
                disk.inject(Fault { range, kind: FaultKind::Io, times: 1 });
            }
            match session.set_prompt(&prompt, &mut go) {
                Ok(_) => {
                    succeeded += 1;
                    disk.clear_faults();
                    assert_eq!(bits(session.logits()), last_bits(&model, &prompt), "round {round}");
                }
                Err(error) => {
                    failed += 1;
                    names_the_place(&error);
                    assert!(prompt.starts_with(session.tokens()), "round {round}");
                }
            }
            disk.clear_faults();
        }
        assert!(failed >= 5 && succeeded >= 5, "{failed} failed, {succeeded} succeeded");
    }
}

#[test]
fn a_logit_that_is_no_number_is_named_and_the_session_is_as_before() {
    let path = golden("qwen3_moe-e16/gguf-Q4_0");
    let (index, _) = TensorIndex::open(&path).expect("opens");
    let head = index.require("output.weight").expect("a head of its own");
    let mut file = std::fs::read(&index.files()[0]).expect("readable");
    // The scale of the last row's first block becomes NaN.
    let (rows, row_bytes) = (head.rows(), head.bytes() as usize / head.rows());
    let at = head.spans[0].offset as usize + (rows - 1) * row_bytes;
    file[at..at + 2].copy_from_slice(&[0x00, 0x7E]);
    let disk = Arc::new(SimDisk::new(vec![file], SimOptions::default()));
    let model = open(&path, &OpenOptions { disk: Some(disk), ..OpenOptions::default() });
    let mut session = Session::new(&model).expect("a session");
    let prompt = tokens(&model, 1, 5);
    let error = session.append(&prompt, &mut go).expect_err("not a number");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for part in [format!("token {}", rows - 1), "position 4".into(), "NaN".into()] {
        assert!(error.message().contains(&part), "{part:?} is not in: {error}");
    }
    assert!(session.tokens().is_empty() && session.logits().is_empty(), "as before the call");
    let mut seen = 0;
    let scored = session.score(&prompt, &mut go, &mut |_, _| {
        seen += 1;
        Ok(())
    });
    assert!(scored.expect_err("not a number").message().contains("position 0"));
    assert_eq!(seen, 0, "nobody is given such logits");
}
