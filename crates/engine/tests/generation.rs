//! Answers as they are made, without a model: the logits are the test's own.

use files::TensorIndex;
use serde_json::json;
use tidemill_engine::generate::{FinishReason, GenerateOptions, Generation};
use tidemill_engine::sample::SampleParams;
use tidemill_engine::text::{ReplyEvent, ReplyOptions, Specials, Tokenizer, ToolSpec};

use crate::common::root;

/// The demo model's, in which the markers of thoughts and calls are tokens.
fn tokenizer() -> Tokenizer {
    Tokenizer::of_model(&TensorIndex::open(&root().join("models/demo")).unwrap().1).unwrap()
}

fn greedy() -> GenerateOptions {
    GenerateOptions { sampling: SampleParams::greedy(), ..GenerateOptions::default() }
}

/// Logits with `token` first and the token after it second.
fn logits(tokenizer: &Tokenizer, token: u32) -> Vec<f32> {
    let mut logits = vec![0.0; tokenizer.vocab_size()];
    logits[token as usize] = 30.0;
    logits[token as usize + 1] = 20.0;
    logits
}

/// Has `generation` say `tokens` as far as it takes them.
fn say(generation: &mut Generation<&Tokenizer>, tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<ReplyEvent> {
    let mut events = Vec::new();
    for token in tokens {
        if generation.finish().is_some() {
            break;
        }
        events.extend(generation.accept(&logits(tokenizer, *token), &[], usize::MAX).unwrap());
    }
    events.extend(generation.end(FinishReason::Cancelled));
    events
}

/// The text of the answer, and that of the tokens that came with it.
fn text_and_tokens(events: &[ReplyEvent], tokenizer: &Tokenizer) -> (String, String) {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for event in events {
        match event {
            ReplyEvent::Text(more) => text.push_str(more),
            ReplyEvent::TextWasThinking => (text, tokens) = Default::default(),
            ReplyEvent::Logprobs(list) => {
                for logprobs in list {
                    tokens.extend_from_slice(tokenizer.token_bytes(logprobs.token));
                    assert!(logprobs.chosen < 0.0 && logprobs.chosen > -0.001, "{logprobs:?}");
                    assert_eq!(logprobs.top.len(), 2);
                    assert_eq!(logprobs.top[0], (logprobs.token, logprobs.chosen));
                    assert!((logprobs.top[1].1 + 10.0).abs() < 0.1);
                }
            }
            _ => {}
        }
    }
    (text, String::from_utf8(tokens).unwrap())
}

#[test]
fn logprobs_are_those_of_the_text() {
    let tokenizer = tokenizer();
    let function = json!({"name": "f", "parameters": {"properties": {"s": {"type": "string"}}}});
    let tools = vec![ToolSpec::new(json!({"type": "function", "function": function})).unwrap()];
    let call = "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>";
    let options = |stop: &[&str], reply| GenerateOptions {
        top_logprobs: Some(2),
        stop: stop.iter().map(|s| (*s).to_owned()).collect(),
        reply,
        ..greedy()
    };
    let reply = || Some(ReplyOptions { tools: tools.clone(), ..ReplyOptions::default() });
    for (said, stop, reply, text, tokens) in [
        ("Hello, wörld 👩‍👩‍👧!", None, None, "Hello, wörld 👩‍👩‍👧!", "Hello, wörld 👩‍👩‍👧!"),
        ("One two three.", Some("o th"), None, "One tw", "One tw"),
        ("One two three.", Some("two"), reply(), "One ", "One "),
        ("<think>\nHm, é.\n</think>\n\nYes, ö.", None, reply(), "Yes, ö.", "Yes, ö."),
        ("Hm.\n</think>\n\nYes.", None, reply(), "Yes.", "Yes."),
        (&format!("Let me.\n{call}\nDone."), None, reply(), "Let me.\nDone.", "Let me.Done."),
        ("a <tool_cal", None, reply(), "a <tool_cal", "a <tool_cal"),
    ] {
        let stop: Vec<&str> = stop.into_iter().collect();
        let mut generation = Generation::new(&tokenizer, &options(&stop, reply)).unwrap();
        assert!(!generation.is_greedy());
        let ids = tokenizer.encode(said, Specials::Parse).unwrap();
        let events = say(&mut generation, &tokenizer, &ids);
        let (shown, told) = text_and_tokens(&events, &tokenizer);
        assert_eq!(shown, text, "{said}");
        // A token of which a stop string leaves a part is told.
        let longest = tokenizer.encode(said, Specials::Parse).unwrap();
        let longest = longest.iter().map(|id| tokenizer.token_bytes(*id).len()).max().unwrap_or(0);
        // A line end that belongs to a call may be one token with what stands beside it.
        let told = told.replace('\n', "");
        assert!(told.starts_with(tokens) && told.len() < tokens.len() + longest, "{said}: {told}");
        assert!(!stop.is_empty() || told == tokens, "{said}: {told}");
        assert_eq!(generation.stop_hit(), stop.first().map(|_| 0));
    }
}

#[test]
fn thoughts_are_counted() {
    let tokenizer = tokenizer();
    let count = |said: &str, opens_thinking| {
        let reply = Some(ReplyOptions { opens_thinking, ..ReplyOptions::default() });
        let mut generation = Generation::new(&tokenizer, &GenerateOptions { reply, ..greedy() }).unwrap();
        let ids = tokenizer.encode(said, Specials::Parse).unwrap();
        say(&mut generation, &tokenizer, &ids);
        assert_eq!(generation.tokens(), ids);
        generation.thought_tokens()
    };
    let len = |said: &str| tokenizer.encode(said, Specials::Parse).unwrap().len();
    assert_eq!(count("Yes.", false), 0);
    assert_eq!(count("<think>\nWell.\n</think>\n\nYes.", false), len("<think>\nWell.\n</think>"));
    assert_eq!(count("Well.\n</think>\n\nYes.", true), len("Well.\n</think>"));
    assert_eq!(count("Well.\n</think>\n\nYes.", false), len("Well.\n</think>"));
    assert_eq!(count("Well, we", true), len("Well, we"));
}

#[test]
fn an_answer_has_its_least_tokens() {
    let tokenizer = tokenizer();
    let end = tokenizer.end_tokens()[0];
    let options = GenerateOptions { min_tokens: 2, ..greedy() };
    let mut generation = Generation::new(&tokenizer, &options).unwrap();
    let wants_to_end = logits(&tokenizer, end);
    for _ in 0..2 {
        assert!(!generation.is_greedy());
        generation.accept(&wants_to_end, &[], usize::MAX).unwrap();
        assert_eq!(generation.finish(), None);
    }
    assert!(generation.is_greedy());
    generation.accept(&wants_to_end, &[], usize::MAX).unwrap();
    assert_eq!(generation.finish(), Some(FinishReason::Stop));
    // The token after the end is the next best, unless it ends the answer too.
    assert_eq!(generation.tokens().len(), 2);
    assert!(generation.tokens().iter().all(|token| !tokenizer.end_tokens().contains(token)));
}

#[test]
fn the_stop_string_that_was_hit_is_told() {
    let tokenizer = tokenizer();
    for reply in [None, Some(ReplyOptions::default())] {
        let stop = vec!["zz".to_owned(), "two".to_owned()];
        let mut generation =
            Generation::new(&tokenizer, &GenerateOptions { stop, reply, ..greedy() }).unwrap();
        assert_eq!(generation.stop_hit(), None);
        let ids = tokenizer.encode("One two three", Specials::Ignore).unwrap();
        say(&mut generation, &tokenizer, &ids);
        assert_eq!((generation.stop_hit(), generation.finish()), (Some(1), Some(FinishReason::Stop)));
    }
}
