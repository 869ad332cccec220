//! Limits: the context, the vocabulary, the budget. Past each is an error that says the numbers.

use std::ops::ControlFlow;

use tidemill_engine::generate::{FinishReason, GenerateEvent, GenerateOptions, generate};
use tidemill_engine::sample::SampleParams;
use tidemill_engine::text::{ReplyEvent, Tokenizer};
use tidemill_engine::{CacheKind, Error, ErrorKind, Model, OpenOptions, Session};

use super::identity::floor_bytes;
use super::tools::{attention_only, bits, golden, hybrid, last_bits, tokens};
use crate::common::{all_logits, go, open, root, try_open};

fn says(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn past_the_context_is_an_error_with_both_numbers_and_nothing_happens() {
    for model in [hybrid().1, attention_only().1] {
        let mut session = Session::new(&model).expect("a session");
        let prompt = tokens(&model, 1, 97);
        let numbers = ["97 tokens", "context of 96", "--ctx", "allows 4096"];
        says(&session.set_prompt(&prompt, &mut go).expect_err("97 of 96"), ErrorKind::ContextFull, &numbers);
        says(&session.append(&prompt, &mut go).expect_err("97 of 96"), ErrorKind::ContextFull, &numbers);
        says(&all_logits(&mut session, &prompt).expect_err("97 of 96"), ErrorKind::ContextFull, &numbers);
        session.set_prompt(&prompt[..96], &mut go).expect("exactly full");
        let full = bits(session.logits());
        says(&session.append(&[1], &mut go).expect_err("one too many"), ErrorKind::ContextFull, &numbers);
        assert_eq!((session.tokens().len(), bits(session.logits())), (96, full), "as before");
        session.truncate(50).expect("goes back");
        session.append(&prompt[50..60], &mut go).expect("there is room again");
        assert_eq!(bits(session.logits()), last_bits(&model, &prompt[..60]));
    }
}

#[test]
fn a_context_longer_than_the_models_or_empty_is_refused() {
    let path = golden("qwen3_moe-e16/gguf-Q4_0");
    for (context, parts) in [(4097, ["4097", "4096"]), (0, ["0 tokens", "nothing"])] {
        let options = OpenOptions { context: Some(context), ..OpenOptions::default() };
        let error = try_open(&path, &options).map(|_| ()).expect_err("refused");
        says(&error, ErrorKind::InvalidRequest, &parts);
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_refused_before_anything_happens() {
    let (_, model) = hybrid();
    let vocab = model.meta().vocab_size as u32;
    let mut session = Session::new(&model).expect("a session");
    let prompt = tokens(&model, 1, 20);
    session.append(&prompt, &mut go).expect("runs");
    for bad in [vocab, u32::MAX] {
        let parts = [bad.to_string(), vocab.to_string()];
        let parts = [parts[0].as_str(), parts[1].as_str()];
        let list = [1, bad, 2];
        says(&session.append(&list, &mut go).expect_err("bad"), ErrorKind::InvalidRequest, &parts);
        says(&session.set_prompt(&list, &mut go).expect_err("bad"), ErrorKind::InvalidRequest, &parts);
        says(&all_logits(&mut session, &list).expect_err("bad"), ErrorKind::InvalidRequest, &parts);
        assert_eq!(session.tokens(), prompt);
        assert_eq!(bits(session.logits()), last_bits(&model, &prompt));
    }
}

#[test]
fn an_answer_ends_where_the_context_does() {
    let path = root().join("models/demo");
    let model = open(&path, &OpenOptions { context: Some(40), ..OpenOptions::default() });
    let tokenizer = Tokenizer::of_model(model.meta()).expect("a tokenizer");
    let mut session = Session::new(&model).expect("a session");
    let prompt = tokenizer.encode_document("Once upon a time").expect("encodes");
    let options = GenerateOptions { ignore_end: true, ..GenerateOptions::default() };
    let mut text = String::new();
    let answer = generate(&mut session, &tokenizer, &prompt, &options, &mut |event| {
        if let GenerateEvent::Reply(ReplyEvent::Text(more)) = event {
            text += &more;
        }
        ControlFlow::Continue(())
    })
    .expect("runs");
    assert_eq!(answer.finish, FinishReason::Context);
    assert_eq!(prompt.len() + answer.tokens.len(), 41, "the token after the last position is still sampled");
    assert_eq!(session.tokens().len(), 40);
    assert_eq!(text, tokenizer.decode(&answer.tokens, false));
    let error = generate(&mut session, &tokenizer, &[1; 41], &options, &mut |_| ControlFlow::Continue(()));
    says(&error.expect_err("too long"), ErrorKind::ContextFull, &["41 tokens", "context of 40"]);
}

/// Both of the model's own and of a raw prompt: the first token may begin the model's turn, a later one is another's.
#[test]
fn an_answer_ends_where_another_turn_begins() {
    let model =
        open(&root().join("models/demo"), &OpenOptions { context: Some(40), ..OpenOptions::default() });
    let tokenizer = Tokenizer::of_model(model.meta()).expect("a tokenizer");
    let mut session = Session::new(&model).expect("a session");
    let start = tokenizer.token_id("<|im_start|>").expect("the model's template has it");
    let sampling = SampleParams { logit_bias: vec![(start, 1e6)], ..SampleParams::default() };
    for ignore_end in [false, true] {
        let options = GenerateOptions {
            sampling: sampling.clone(),
            max_tokens: Some(5),
            ignore_end,
            ..GenerateOptions::default()
        };
        let mut go = |_: GenerateEvent| ControlFlow::Continue(());
        let answer = generate(&mut session, &tokenizer, &[1, 2, 3], &options, &mut go).expect("runs");
        let want = if ignore_end { (FinishReason::Length, 5) } else { (FinishReason::Stop, 1) };
        assert_eq!((answer.finish, answer.tokens.len()), want);
    }
}

#[test]
fn a_prompt_that_is_broken_off_says_what_was_done() {
    let options = OpenOptions { context: Some(256), chunk_tokens: Some(16), ..OpenOptions::default() };
    let model = open(&root().join("models/demo"), &options);
    let tokenizer = Tokenizer::of_model(model.meta()).expect("a tokenizer");
    let mut session = Session::new(&model).expect("a session");
    let prompt = tokens(&model, 1, 200);
    let until = |session: &mut Session, most: f64| {
        let answer = generate(session, &tokenizer, &prompt, &GenerateOptions::default(), &mut |event| {
            let GenerateEvent::Prompt { done_tokens, .. } = event else { return ControlFlow::Continue(()) };
            if done_tokens >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let answer = answer.expect("no error");
        assert_eq!(answer.finish, FinishReason::Cancelled);
        (answer.prompt_tokens, answer.reused_tokens, answer.prefill_tokens_per_s() > 0.0)
    };
    let first = until(&mut session, 40.0);
    assert_eq!(first, (session.tokens().len(), 0, true));
    assert!((32..=64).contains(&first.0), "{first:?}");
    let second = until(&mut session, 40.0);
    assert_eq!(second, (session.tokens().len(), first.0, true));
}

#[test]
fn a_budget_below_the_floor_is_refused_with_the_floor_and_the_floor_is_enough() {
    for set in ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q8_0", "llama-dense/mlx-4bit"] {
        let path = golden(set);
        for cache in [CacheKind::Slots, CacheKind::Os] {
            let options = OpenOptions { cache, context: Some(64), ..OpenOptions::default() };
            let floor = floor_bytes(&path, &options);
            let at = |bytes| try_open(&path, &OpenOptions { memory_bytes: Some(bytes), ..options.clone() });
            let parts =
                ["below the floor of", "resident weights", "state", "scratch", "overhead", "give at least"];
            says(&at(floor - (1 << 20)).map(|_| ()).expect_err("too little"), ErrorKind::Memory, &parts);
            let model = at(floor).expect("the floor is enough");
            assert!(model.plan().total_bytes <= floor);
            assert!(model.plan().slots as usize >= model.top_k());
        }
    }
}

#[test]
fn each_session_needs_room_in_the_budget() {
    let path = golden("qwen3_5_moe-e32/mlx-4bit");
    let kept_bytes = Some(0);
    let options =
        OpenOptions { context: Some(4096), sessions: Some(1), kept_bytes, ..OpenOptions::default() };
    let one =
        open(&path, &OpenOptions { memory_bytes: Some(floor_bytes(&path, &options)), ..options.clone() });
    let first = Session::new(&one).expect("the plan has one");
    let error = Session::new(&one).map(|_| ()).expect_err("and no other");
    says(&error, ErrorKind::Memory, &["1 sequences live", "no room"]);
    drop(first);
    drop(Session::new(&one).expect("its place is free again"));

    let options = OpenOptions { sessions: Some(3), ..options };
    let three =
        open(&path, &OpenOptions { memory_bytes: Some(floor_bytes(&path, &options)), ..options.clone() });
    // A place to go on from and one to go back to for each, but pages for one that is the largest.
    let states = |model: &Model| model.plan().state_bytes + model.plan().state_more_bytes;
    assert!(states(&one) < states(&three) && states(&three) < 3 * states(&one));
    let much = open(&path, &OpenOptions { memory_bytes: Some(256 << 20), ..options.clone() });
    assert_eq!(states(&much), 3 * states(&one));
    let all: Vec<_> = (0..3).map(|_| Session::new(&three).expect("the plan has three")).collect();
    assert_eq!(Session::new(&three).map(|_| ()).expect_err("a fourth").kind(), ErrorKind::Memory);
    drop(all);
    let none = OpenOptions { sessions: Some(0), ..OpenOptions::default() };
    says(&try_open(&path, &none).map(|_| ()).expect_err("none"), ErrorKind::InvalidRequest, &["0 sessions"]);
}

#[test]
fn experts_need_a_slot() {
    let options = OpenOptions { slots_max: Some(0), ..OpenOptions::default() };
    let error = try_open(&golden("qwen3_moe-e16/mlx-4bit"), &options).map(|_| ()).expect_err("no slots");
    says(&error, ErrorKind::InvalidRequest, &["at least one slot"]);
    open(&golden("qwen3-dense/mlx-4bit"), &options);
}
