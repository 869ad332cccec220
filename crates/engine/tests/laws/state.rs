//! A session's state: appending, going back, prefixes, files. Whatever the way, the same tokens give the same bits.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tidemill_engine::{ErrorKind, KvFormat, Model, OpenOptions, Session};

use super::tools::{EIGHT_BIT, attention_only, bits, golden, hybrid, last_bits, on_sim, tokens};
use crate::common::{all_logits, go, open};

/// What a user of a session may do.
#[derive(Clone, Debug)]
enum Act {
    /// Keep some of the tokens, add others, ask for all of them.
    Prompt {
        keep: usize,
        add: Vec<u32>,
    },
    Append(Vec<u32>),
    Score(Vec<u32>),
    Truncate(usize),
    SaveAndLoad,
    Cancel(Vec<u32>),
    Reset,
}

fn act(vocab: u32) -> impl Strategy<Value = Act> {
    let some = |most| proptest::collection::vec(0..vocab, 1..most);
    prop_oneof![
        4 => (0..60usize, some(20)).prop_map(|(keep, add)| Act::Prompt { keep, add }),
        3 => some(3).prop_map(Act::Append),
        1 => some(20).prop_map(Act::Append),
        1 => some(12).prop_map(Act::Score),
        2 => (0..60usize).prop_map(Act::Truncate),
        1 => Just(Act::SaveAndLoad),
        2 => some(20).prop_map(Act::Cancel),
        1 => Just(Act::Reset),
    ]
}

/// Does one thing, and returns whether logits of the last token must be there afterwards.
fn perform(session: &mut Session, act: &Act, dir: &Path) -> bool {
    let before = session.tokens().to_vec();
    let room = session.model().context() - before.len();
    match act {
        Act::Prompt { keep, add } => {
            let kept = &before[..before.len().min(*keep)];
            let prompt: Vec<u32> = kept.iter().chain(add).copied().collect();
            let reused = session.set_prompt(&prompt, &mut go).expect("runs");
            assert!(reused < prompt.len() || before == prompt, "{reused} of {} reused", prompt.len());
            assert_eq!(session.tokens(), prompt);
            true
        }
        Act::Append(add) if add.len() <= room => {
            session.append(add, &mut go).expect("runs");
            assert_eq!(session.tokens(), [before, add.clone()].concat());
            true
        }
        Act::Score(add) if add.len() <= room => {
            let logits = all_logits(session, add).expect("runs");
            assert_eq!(logits.len(), add.len());
            let all = [before, add.clone()].concat();
            assert_eq!(session.tokens(), all);
            assert_eq!(bits(&logits[add.len() - 1]), last_bits(session.model(), &all), "scoring {add:?}");
            false
        }
        Act::Append(_) | Act::Score(_) => false,
        Act::Truncate(len) => {
            let len = before.len().min(*len);
            session.truncate(len).expect("goes back");
            assert_eq!(session.tokens(), &before[..len]);
            false
        }
        Act::SaveAndLoad => {
            let path = dir.join("state.bin");
            session.save(&path).expect("saves");
            session.reset().expect("resets");
            session.load(&path).expect("loads");
            assert_eq!(session.tokens(), before);
            false
        }
        Act::Cancel(add) if add.len() <= room => {
            let mut calls = 0;
            let error = session.append(add, &mut |_, _| {
                calls += 1;
                if calls == 5 {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            });
            assert!(calls < 5 || error.is_err_and(|e| e.kind() == ErrorKind::Cancelled));
            assert!(calls < 5 || session.tokens() == before);
            false
        }
        Act::Cancel(_) => false,
        Act::Reset => {
            session.reset().expect("resets");
            assert!(session.tokens().is_empty() && session.logits().is_empty());
            false
        }
    }
}

fn any_history_equals_none(model: &Arc<Model>, acts: &[Act]) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut session = Session::new(model).expect("a session");
    for act in acts {
        let computed = perform(&mut session, act, dir.path());
        let tokens = session.tokens().to_vec();
        if !session.logits().is_empty() {
            assert_eq!(bits(session.logits()), last_bits(model, &tokens), "logits after {act:?}");
        }
        assert!(!computed || !session.logits().is_empty(), "no logits after {act:?}");
    }
    let mut all = session.tokens().to_vec();
    all.truncate(model.context() - 1);
    all.push(1);
    session.set_prompt(&all, &mut go).expect("runs");
    assert_eq!(bits(session.logits()), last_bits(model, &all), "at the end");
}

fn property(model: &Arc<Model>) {
    let vocab = model.meta().vocab_size as u32;
    let config = ProptestConfig {
        cases: ProptestConfig::default().cases / 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(acts in proptest::collection::vec(act(vocab), 1..10))| {
        any_history_equals_none(model, &acts);
    });
}

#[test]
fn any_history_gives_the_bits_of_a_fresh_start_with_recurrent_layers() {
    property(&hybrid().1);
}

#[test]
fn any_history_gives_the_bits_of_a_fresh_start_with_attention_only() {
    property(&attention_only().1);
}

#[test]
fn a_longer_prompt_reuses_what_is_known() {
    for model in [hybrid().1, attention_only().1] {
        let mut session = Session::new(&model).expect("a session");
        let prompt = tokens(&model, 3, 40);
        assert_eq!(session.set_prompt(&prompt[..30], &mut go).expect("runs"), 0);
        assert_eq!(session.set_prompt(&prompt, &mut go).expect("runs"), 30);
        assert_eq!(session.set_prompt(&prompt, &mut go).expect("runs"), 40, "the same prompt again is free");
        let mut other = prompt.clone();
        other[35] ^= 1;
        let reused = session.set_prompt(&other, &mut go).expect("runs");
        assert!((30..=35).contains(&reused), "{reused} tokens reused: the last prompt's end is kept");
        assert_eq!(bits(session.logits()), last_bits(&model, &other));
    }
}

/// The state that is left after a failure half way is of other tokens than the next ones.
#[test]
fn tokens_appended_after_a_cancelled_prompt_see_nothing_of_it() {
    for model in [hybrid().1, attention_only().1] {
        let mut session = Session::new(&model).expect("a session");
        let (first, second) = (tokens(&model, 1, 40), tokens(&model, 2, 36));
        let mut stop_late = |done: f64, _| {
            if done > 25.0 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        };
        let error = session.append(&first, &mut stop_late).expect_err("was cancelled");
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(session.tokens().is_empty() && session.logits().is_empty());
        session.append(&second, &mut go).expect("runs");
        assert_eq!(bits(session.logits()), last_bits(&model, &second));
    }
}

/// The snapshot of a prompt's last chunk is of no use once the prompt is gone.
#[test]
fn a_token_that_fails_after_another_prompt_goes_back_to_its_own_beginning() {
    for model in [hybrid().1, attention_only().1] {
        let mut session = Session::new(&model).expect("a session");
        session.set_prompt(&tokens(&model, 1, 40), &mut go).expect("runs");
        session.reset().expect("resets");
        let others = tokens(&model, 2, 36);
        others[..35].iter().for_each(|token| session.append(&[*token], &mut go).expect("runs"));
        let mut calls = 0;
        let broken = session.append(&others[35..], &mut |_, _| {
            calls += 1;
            if calls == 2 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        });
        assert_eq!(broken.expect_err("was cancelled").kind(), ErrorKind::Cancelled);
        session.append(&others[35..], &mut go).expect("runs");
        assert_eq!(bits(session.logits()), last_bits(&model, &others));
    }
}

#[test]
fn logits_are_never_those_of_other_tokens() {
    let (_, model) = attention_only();
    let mut session = Session::new(&model).expect("a session");
    let prompt = tokens(&model, 1, 12);
    session.set_prompt(&prompt, &mut go).expect("runs");
    session.truncate(8).expect("goes back");
    assert!(session.logits().is_empty());
    all_logits(&mut session, &tokens(&model, 2, 4)).expect("runs");
    assert_eq!(session.tokens().len(), 12);
    assert!(session.logits().is_empty() || bits(session.logits()) == last_bits(&model, session.tokens()));
}

#[test]
fn an_empty_prompt_is_refused_and_nothing_appended_is_nothing_done() {
    let (_, model) = hybrid();
    let mut session = Session::new(&model).expect("a session");
    for empty in [session.set_prompt(&[], &mut go).map(|_| ()), session.append(&[], &mut go)] {
        assert_eq!(empty.expect_err("there is nothing to compute").kind(), ErrorKind::InvalidRequest);
    }
    assert!(all_logits(&mut session, &[]).expect("no logits are fine").is_empty());
    let prompt = tokens(&model, 5, 9);
    session.append(&prompt, &mut go).expect("runs");
    assert_eq!(bits(session.logits()), last_bits(&model, &prompt));
}

#[test]
fn a_saved_state_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chat.state");
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3-dense/gguf-Q8_0"] {
        let model = open(&golden(set), &on_sim(&golden(set), 2, false).1);
        let prompt = tokens(&model, 4, 50);
        let mut first = Session::new(&model).expect("a session");
        first.append(&prompt[..44], &mut go).expect("runs");
        first.save(&path).expect("saves");
        let mut second = Session::new(&model).expect("a session");
        second.load(&path).expect("loads");
        assert_eq!(second.tokens(), &prompt[..44]);
        assert_eq!(
            second.set_prompt(&prompt, &mut go).expect("runs"),
            44,
            "{set}: nothing is computed again"
        );
        assert_eq!(bits(second.logits()), last_bits(&model, &prompt), "{set}");
    }
}

/// Loads `content` and expects a refusal of this kind that names the file, and a session that still works.
fn refused(session: &mut Session, path: &Path, content: &[u8], kind: ErrorKind, why: &str) {
    fs::write(path, content).expect("writable");
    let error = session.load(path).expect_err(why);
    assert_eq!(error.kind(), kind, "{why}: {error}");
    assert!(error.message().contains("chat.state"), "{why}: {error}");
    assert!(session.tokens().is_empty() && session.logits().is_empty(), "{why}: the session is empty");
    let model = session.model().clone();
    let prompt = tokens(&model, 6, 10);
    session.append(&prompt, &mut go).expect("still works");
    assert_eq!(bits(session.logits()), last_bits(&model, &prompt), "{why}: and as before");
}

#[test]
fn a_damaged_foreign_or_cut_state_is_refused_and_the_session_stays_usable() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chat.state");
    let (_, model) = hybrid();
    let mut session = Session::new(&model).expect("a session");
    session.append(&tokens(&model, 4, 20), &mut go).expect("runs");
    session.save(&path).expect("saves");
    let good = fs::read(&path).expect("is there");
    for at in [0, 7, 60, 66, 100, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&mut session, &path, &bad, ErrorKind::Corrupt, &format!("byte {at} flipped"));
    }
    for len in [0, 3, 8, 23, 55, 70, good.len() / 3, good.len() - 1] {
        refused(&mut session, &path, &good[..len], ErrorKind::Corrupt, &format!("cut at {len}"));
    }
    refused(&mut session, &path, &[&good[..], &[0]].concat(), ErrorKind::Corrupt, "a byte too many");
    let mut absurd = good.clone();
    absurd[40..48].copy_from_slice(&(1u64 << 23).to_le_bytes());
    refused(&mut session, &path, &absurd, ErrorKind::InvalidRequest, "absurd count");
    absurd[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&mut session, &path, &absurd, ErrorKind::Corrupt, "more than any context");
    let (_, other) = attention_only();
    let mut foreign = Session::new(&other).expect("a session");
    foreign.append(&tokens(&other, 4, 20), &mut go).expect("runs");
    foreign.save(&path).expect("saves");
    let foreign = fs::read(&path).expect("is there");
    refused(&mut session, &path, &foreign, ErrorKind::InvalidRequest, "of another model");
    fs::remove_file(&path).expect("is there");
    assert_eq!(session.load(&path).expect_err("is gone").kind(), ErrorKind::NotFound);
    fs::write(&path, &good).expect("writable");
    session.load(&path).expect("the good one still loads");
}

/// A checksum finds damage, not malice: token ids of a file are checked as those of a request are.
#[test]
fn a_state_with_tokens_outside_the_vocabulary_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chat.state");
    let (_, model) = hybrid();
    let mut session = Session::new(&model).expect("a session");
    session.append(&tokens(&model, 4, 20), &mut go).expect("runs");
    session.save(&path).expect("saves");
    let mut bad = fs::read(&path).expect("is there");
    bad[56..60].copy_from_slice(&u32::MAX.to_le_bytes());
    let end = bad.len() - 8;
    let sum = twox_hash::XxHash3_64::oneshot(&bad[..end]);
    bad[end..].copy_from_slice(&sum.to_le_bytes());
    refused(&mut session, &path, &bad, ErrorKind::Corrupt, "a token outside the vocabulary");
}

/// Same names, same shapes, other weights: another training of one architecture.
#[test]
fn a_state_of_the_same_shapes_but_other_weights_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chat.state");
    let original = golden("qwen3-dense/gguf-Q8_0");
    let (index, _) = files::TensorIndex::open(&original).expect("opens");
    let span = index.get("blk.1.attn_q.weight").expect("is there").spans[0];
    let mut bytes = fs::read(&original).expect("readable");
    let weights = &mut bytes[span.offset as usize..][..span.bytes as usize];
    weights.chunks_exact_mut(34).for_each(|block| block[2..].reverse());
    let other = dir.path().join("other.gguf");
    fs::write(&other, bytes).expect("writable");

    let model = open(&original, &Default::default());
    let mut session = Session::new(&model).expect("a session");
    session.append(&tokens(&model, 4, 20), &mut go).expect("runs");
    session.save(&path).expect("saves");
    let mut foreign = Session::new(&open(&other, &Default::default())).expect("a session");
    let error = foreign.load(&path).expect_err("other weights");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    let moved = dir.path().join("moved.gguf");
    fs::copy(&original, &moved).expect("writable");
    let mut same = Session::new(&open(&moved, &Default::default())).expect("a session");
    same.load(&path).expect("the same weights under another name");
}

/// The number format of keys and values is part of a state, and of its size.
#[test]
fn a_state_with_another_kv_format_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("chat.state");
    let with = |kv_format| {
        let options = OpenOptions { kv_format: Some(kv_format), context: Some(64), ..OpenOptions::default() };
        open(&golden(EIGHT_BIT), &options)
    };
    let (half, bytes) = (with(KvFormat::F16), with(KvFormat::Q8));
    assert!(bytes.plan().state_bytes < half.plan().state_bytes, "{:?} {:?}", bytes.plan(), half.plan());
    let mut session = Session::new(&bytes).expect("a session");
    session.append(&tokens(&bytes, 4, 20), &mut go).expect("runs");
    session.save(&path).expect("saves");
    let mut other = Session::new(&half).expect("a session");
    let error = other.load(&path).expect_err("8 bits are not 16");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    assert!(error.message().contains("number format"), "{error}");
    let mut same = Session::new(&bytes).expect("a session");
    same.load(&path).expect("the same format");
    same.append(&[1], &mut go).expect("runs");
    session.append(&[1], &mut go).expect("runs");
    assert_eq!(bits(same.logits()), bits(session.logits()));
}

/// What cannot be written aside leaves the old state as it was, whatever its name.
#[test]
fn a_save_that_fails_leaves_the_older_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, model) = hybrid();
    let mut session = Session::new(&model).expect("a session");
    for name in ["chat.state", "chat.partial"] {
        let path = dir.path().join(name);
        session.set_prompt(&tokens(&model, 4, 20), &mut go).expect("runs");
        session.save(&path).expect("saves");
        // A folder with something in it is in the way.
        fs::create_dir_all(dir.path().join(format!("{name}.partial/own"))).expect("a folder");
        let tokens_before = session.tokens().to_vec();
        session.append(&[1, 2, 3], &mut go).expect("runs");
        let error = session.save(&path).expect_err("it cannot be written");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(error.message().contains(name), "{error}");
        session.load(&path).expect("the older file");
        assert_eq!(session.tokens(), tokens_before);
    }
}
