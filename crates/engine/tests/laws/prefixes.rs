//! Beginnings that were computed before: found again in memory and on the disk, and never different from computed ones.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_engine::text::{ChatPrompt, ChatRequest, Message, Role, Template, Tokenizer};
use tidemill_engine::{ConversationKey, ErrorKind, KvFormat, Model, OpenOptions, Session};

use super::tools::{EIGHT_BIT, bits, golden, last_bits, tokens};
use crate::common::{go, open, root};

pub(super) const SETS: [&str; 2] = ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"];

/// Space for all states of these tests.
pub(super) const MUCH: u64 = 1 << 30;

fn model(set: &str) -> Arc<Model> {
    open(&golden(set), &OpenOptions { context: Some(1200), ..OpenOptions::default() })
}

/// Whether every turn can be cut where it likes.
pub(super) fn is_hybrid(set: &str) -> bool {
    set.contains("qwen3_5")
}

/// Computes a prompt in a new session; how much of it was computed before.
pub(super) fn ask(model: &Arc<Model>, prompt: &[u32], borders: &[usize]) -> usize {
    let mut session = Session::new(model).expect("a session");
    session.name_borders(borders);
    let reused = session.set_prompt(prompt, &mut go).expect("runs");
    assert_eq!(bits(session.logits()), last_bits(model, prompt), "{reused} of {} reused", prompt.len());
    reused
}

/// A preamble, then questions that differ: with a border where they part, and without.
#[test]
fn prompts_go_on_from_the_borders_of_others() {
    for set in SETS {
        let model = model(set);
        let text = tokens(&model, 1, 900);
        let question = |seed| [&text[..700], &tokens(&model, seed, 40)[..]].concat();
        assert_eq!(ask(&model, &question(2), &[700]), 0, "{set}");
        assert_eq!(ask(&model, &question(3), &[]), 700, "{set}: a border of a session that has ended");
        assert_eq!(ask(&model, &question(3), &[]), if is_hybrid(set) { 700 } else { 739 }, "{set}");
        let longer = [&question(3)[..], &tokens(&model, 4, 30)].concat();
        assert_eq!(ask(&model, &longer, &[]), 740, "{set}: the end of a prompt is a border");
        // Within what a border is of, only keys and values can be cut.
        let shorter = [&text[..600], &tokens(&model, 5, 9)[..]].concat();
        assert_eq!(ask(&model, &shorter, &[]), if is_hybrid(set) { 0 } else { 600 }, "{set}");
        model.forget_kept();
        assert_eq!(ask(&model, &longer, &[]), 0, "{set}: forgotten");
    }
}

/// Sequences that share a preamble share its pages, and go on in the page where it ends without a copy each.
#[test]
fn a_shared_preamble_is_held_once() {
    for set in SETS {
        let options = OpenOptions { context: Some(1200), sessions: Some(8), ..OpenOptions::default() };
        let model = open(&golden(set), &options);
        let (all, _) = model.free_states();
        let text = tokens(&model, 1, 1024);
        let mut sessions: Vec<Session> =
            (0..8).map(|_| Session::new(&model).expect("there is room")).collect();
        for (i, session) in sessions.iter_mut().enumerate() {
            session.name_borders(&[1024]);
            let prompt = [&text[..], &tokens(&model, 7 + i as u64, 20)].concat();
            let reused = session.set_prompt(&prompt, &mut go).expect("runs");
            assert_eq!(reused, if i == 0 { 0 } else { 1024 }, "{set}");
        }
        assert_eq!(all - model.free_states().0, 2 + 8, "{set}: two pages of all, and one of each");
    }
}

/// Eight conversations with the same long preamble have room where each of them alone would take half of it.
#[test]
fn a_long_preamble_of_eight_sequences_is_held_once() {
    const PREAMBLE: usize = 4000;
    for set in SETS {
        let context = Some(4096);
        let judge = open(&golden(set), &OpenOptions { context, exact: true, ..OpenOptions::default() });
        // Eight pages for one, and one for each of the others.
        let options = OpenOptions {
            context,
            exact: true,
            sessions: Some(8),
            pages_bytes: Some(1),
            kept_bytes: Some(1),
            ..OpenOptions::default()
        };
        let model = open(&golden(set), &options);
        assert_eq!(model.free_states(), (15, 8), "{set}");
        let text = tokens(&model, 1, PREAMBLE);
        let mut sessions: Vec<Session> = Vec::new();
        for i in 0..8 {
            let mut session = Session::new(&model).expect("there is room");
            session.name_borders(&[PREAMBLE]);
            let prompt = [&text[..], &tokens(&model, 7 + i, 20)].concat();
            let reused = session.set_prompt(&prompt, &mut go).expect("runs");
            assert_eq!(reused, if i == 0 { 0 } else { PREAMBLE }, "{set}");
            sessions.push(session);
            // Seven full pages are everybody's; of the last one each has its own.
            assert_eq!(model.free_states(), (8 - sessions.len(), 8 - sessions.len()), "{set}");
        }
        for session in &mut sessions {
            session.append(&[1, 2], &mut go).expect("goes on");
        }
        for session in [&sessions[0], &sessions[7]] {
            assert_eq!(bits(session.logits()), last_bits(&judge, session.tokens()), "{set}");
        }
        drop(sessions);
        model.forget_kept();
        assert_eq!(model.free_states(), (15, 8), "{set}: all came back");
    }
}

/// A long prompt that is broken off, or parts where nobody knew, goes on from the grid.
#[test]
fn long_prompts_have_borders_of_their_own() {
    let options = OpenOptions { context: Some(4096), chunk_tokens: Some(512), ..OpenOptions::default() };
    let model = open(&golden(SETS[0]), &options);
    let text = tokens(&model, 1, 4000);
    let mut first = Session::new(&model).expect("a session");
    let mut stop = |done: f64, _| match done > 3200.0 {
        true => std::ops::ControlFlow::Break(()),
        false => std::ops::ControlFlow::Continue(()),
    };
    first.set_prompt(&text, &mut stop).expect_err("broken off");
    drop(first);
    let other = [&text[..3000], &tokens(&model, 2, 50)[..]].concat();
    for (prompt, expected) in [(&text, 2048), (&other, 2048)] {
        let mut session = Session::new(&model).expect("a session");
        assert_eq!(session.set_prompt(prompt, &mut go).expect("runs"), expected);
    }
}

/// A loop of calls and the questions after it, with a template that drops thoughts when the next question comes: no turn
/// computes many more tokens than are new.
#[test]
fn a_loop_of_calls_is_never_computed_twice() {
    let source =
        fs::read_to_string(root().join("testdata/text/templates/Qwen3.5-4B.jinja")).expect("is there");
    let template = Template::new(&source).expect("a template");
    let demo = root().join("models/demo");
    for path in [demo.clone(), golden(SETS[1])] {
        for thinking in [true, false] {
            let options = OpenOptions { context: Some(2048), ..OpenOptions::default() };
            let model = open(&path, &options);
            let tokenizer =
                Tokenizer::of_model(open(&demo, &OpenOptions::default()).meta()).expect("has one");
            let vocab = model.meta().vocab_size as u32;
            let mut talk = Talk { model, tokenizer, vocab, template: &template, thinking, seen: Vec::new() };
            let tool = r#"{"type":"function","function":{"name":"look","parameters":{"type":"object","properties":{}}}}"#;
            let mut request = ChatRequest {
                messages: vec![
                    Message::new(Role::System, "You look things up, again and again, until you know."),
                    Message::new(Role::User, "How many hens are in the barn, and who counted them?"),
                ],
                tools: vec![serde_json::from_str(tool).expect("a tool")],
                add_generation_prompt: true,
                enable_thinking: Some(thinking),
                ..ChatRequest::default()
            };
            for call in 0..6 {
                let mut turn = Message::new(Role::Assistant, "");
                turn.reasoning_content = thinking.then(|| format!("I should look for the {call}. time."));
                turn.tool_calls = vec![
                    serde_json::from_str(
                        r#"{"id":"1","type":"function","function":{"name":"look","arguments":{}}}"#,
                    )
                    .expect("a call"),
                ];
                talk.answer(&mut request, turn);
                let mut result = Message::new(Role::Tool, format!("{call} hens, says the farmer"));
                result.tool_call_id = Some("1".into());
                request.messages.push(result);
            }
            for question in ["And the cows?", "And the moon?"] {
                let mut turn = Message::new(Role::Assistant, "There are five, as far as the farmer knows.");
                turn.reasoning_content = thinking.then(|| "The last answer says so.".into());
                talk.answer(&mut request, turn);
                request.messages.push(Message::new(Role::User, question));
            }
            talk.answer(&mut request, Message::new(Role::Assistant, "No."));
        }
    }
}

/// A conversation whose answers are given.
struct Talk<'a> {
    model: Arc<Model>,
    tokenizer: Tokenizer,
    vocab: u32,
    template: &'a Template,
    thinking: bool,
    /// All sequences so far.
    seen: Vec<Vec<u32>>,
}

impl Talk<'_> {
    fn tokens(&self, prompt: &ChatPrompt) -> Vec<u32> {
        prompt.tokens.iter().map(|id| id % self.vocab).collect()
    }

    /// Reads the prompt, and answers with `turn`.
    fn answer(&mut self, request: &mut ChatRequest, turn: Message) {
        let prompt = ChatPrompt::new(self.template, &self.tokenizer, request).expect("renders");
        let ids = self.tokens(&prompt);
        let mut session = Session::new(&self.model).expect("a session");
        session.name_borders(&prompt.borders(self.template, &self.tokenizer, request));
        let computed = ids.len() - session.set_prompt(&ids, &mut go).expect("runs");
        assert_eq!(bits(session.logits()), last_bits(&self.model, &ids));
        let known = |seen: &Vec<u32>| seen.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let new = ids.len() - self.seen.iter().map(known).max().unwrap_or(0);
        let (thinking, turns) = (self.thinking, request.messages.len());
        assert!(computed <= new + 24, "thinking {thinking}, {turns} turns: {computed} computed, {new} new");
        request.messages.push(turn);
        // What the model would have written: the rest of its turn, up to its end.
        let whole = ChatRequest { add_generation_prompt: false, ..request.clone() };
        let whole = ChatPrompt::new(self.template, &self.tokenizer, &whole).expect("renders");
        let whole = self.tokens(&whole);
        if whole.starts_with(&ids) {
            session.append(&whole[ids.len()..whole.len() - 2], &mut go).expect("runs");
        }
        session.keep().expect("copies");
        self.seen.push(session.tokens().to_vec());
    }
}

pub(super) fn with_states(set: &str, directory: &Path, space_bytes: u64) -> Arc<Model> {
    let model = model(set);
    let give_up = Instant::now() + Duration::from_secs(20);
    // A thread of the model before may still end.
    while let Err(error) = model.store_states(directory, space_bytes) {
        assert!(Instant::now() < give_up, "{error}");
    }
    model
}

fn stored_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("is there").map(|entry| entry.expect("is there"));
    entries
        .map(|entry| match entry.file_type().expect("is there").is_dir() {
            true => stored_bytes(&entry.path()),
            false => entry.metadata().expect("is there").len(),
        })
        .sum()
}

/// All files of states, by rising size.
pub(super) fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut entries = fs::read_dir(directory).expect("is there").map(|entry| entry.expect("is there").path());
    let folder = entries.find(|path| path.is_dir() && !path.ends_with("other")).expect("the model's");
    let files = fs::read_dir(folder).expect("is there").map(|entry| entry.expect("is there").path());
    let mut files: Vec<_> =
        files.filter(|file| file.file_name().is_some_and(|name| name != "lock")).collect();
    files.sort_by_key(|file| (fs::metadata(file).expect("is there").len(), file.clone()));
    files
}

#[test]
fn states_survive_the_process() {
    for set in SETS {
        let directory = tempfile::tempdir().expect("a directory");
        let first = with_states(set, directory.path(), MUCH);
        let text = tokens(&first, 1, 1100);
        ask(&first, &text[..1050], &[700]);
        assert!(first.flush_states().is_none());
        let bytes = stored_bytes(directory.path());
        // A page is a file that all borders share.
        let pages =
            files(directory.path()).iter().filter(|f| f.extension().is_some_and(|e| e == "page")).count();
        assert_eq!(pages, 2, "{set}");
        ask(&first, &text[..1050], &[]);
        assert!(first.flush_states().is_none());
        assert_eq!(stored_bytes(directory.path()), bytes, "{set}: nothing is written twice");
        drop(first);

        let second = with_states(set, directory.path(), MUCH);
        assert_eq!(ask(&second, &text, &[]), 1050, "{set}");
        let other = [&text[..700], &tokens(&second, 9, 20)[..]].concat();
        assert_eq!(ask(&second, &other, &[]), 700, "{set}");
        #[cfg(unix)]
        for file in files(directory.path()) {
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &fs::metadata(&file).expect("is there").permissions(),
            );
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
    }
}

/// Whatever happened to a file, a prompt gets its own logits.
#[test]
fn damaged_files_are_misses_and_go() {
    for set in SETS {
        let directory = tempfile::tempdir().expect("a directory");
        let text = {
            let model = with_states(set, directory.path(), MUCH);
            let text = tokens(&model, 1, 1100);
            ask(&model, &text[..1050], &[700]);
            assert!(model.flush_states().is_none());
            text
        };
        let whole: Vec<_> =
            files(directory.path()).into_iter().map(|f| (fs::read(&f).expect("is there"), f)).collect();
        for damage in [
            (|bytes| flip(bytes)) as fn(&mut Vec<u8>),
            |bytes| bytes.truncate(bytes.len() / 2),
            |bytes| bytes.clear(),
        ] {
            for (bytes, file) in &whole {
                whole.iter().for_each(|(bytes, file)| fs::write(file, bytes).expect("writable"));
                let mut bad = bytes.clone();
                damage(&mut bad);
                fs::write(file, &bad).expect("writable");
                let model = with_states(set, directory.path(), MUCH);
                let reused = ask(&model, &text, &[]);
                assert!([0, 512, 700, 1024, 1050].contains(&reused), "{set}: {reused}");
                // Not every file is wanted; one that is and was damaged is gone, or another has its name.
                if reused < 1050 {
                    assert_ne!(fs::read(file).ok(), Some(bad), "{set}: {} stays", file.display());
                }
            }
        }
    }
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 4;
}

#[test]
fn a_directory_keeps_within_its_space() {
    for set in SETS {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("other")).expect("a folder");
        fs::write(directory.path().join("other/file"), vec![0; 100_000]).expect("writable");
        let space = 100_000 + stored_of_one(set) * 5 / 2;
        let model = with_states(set, directory.path(), space);
        for seed in 0..5 {
            ask(&model, &tokens(&model, seed, 600), &[]);
            model.remember(ConversationKey::default(), "said", &[], &[seed as u32; 3000]);
            assert!(model.flush_states().is_none());
            let bytes = stored_bytes(directory.path());
            assert!(bytes <= space, "{set}: {bytes} of {space}");
        }
        drop(model);
        let model = with_states(set, directory.path(), space);
        assert_eq!(ask(&model, &tokens(&model, 0, 600), &[]), 0, "{set}: the oldest is gone");
        let last = [tokens(&model, 4, 600), vec![1]].concat();
        assert_eq!(ask(&model, &last, &[]), 600, "{set}: the last one is there");
        assert!(directory.path().join("other/file").exists());
    }
}

/// Where others leave no room, nothing of the model's own is given up for nothing.
#[test]
fn a_directory_that_others_fill_keeps_what_it_has() {
    let set = SETS[0];
    let directory = tempfile::tempdir().expect("a directory");
    let text = {
        let model = with_states(set, directory.path(), MUCH);
        let text = tokens(&model, 0, 600);
        ask(&model, &text, &[]);
        assert!(model.flush_states().is_none());
        text
    };
    fs::write(directory.path().join("file"), vec![0; 100_000]).expect("writable");
    let bytes = stored_bytes(directory.path());
    let model = with_states(set, directory.path(), 100_000);
    ask(&model, &tokens(&model, 1, 600), &[]);
    model.remember(ConversationKey::default(), "said", &[], &[1, 2, 3]);
    assert!(model.flush_states().is_none());
    assert_eq!(stored_bytes(directory.path()), bytes, "there is room for nothing more");
    assert_eq!(ask(&model, &[&text[..], &[1]].concat(), &[]), 600);
}

/// Keys and values in other formats lie side by side, and none is taken for the other.
#[test]
fn each_number_format_has_states_of_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = |kv_format| {
        let options =
            OpenOptions { kv_format: Some(kv_format), context: Some(1200), ..OpenOptions::default() };
        let model = open(&golden(EIGHT_BIT), &options);
        let give_up = Instant::now() + Duration::from_secs(20);
        while let Err(error) = model.store_states(directory.path(), MUCH) {
            assert!(Instant::now() < give_up, "{error}");
        }
        model
    };
    for expected in [0, 600] {
        for format in [KvFormat::F16, KvFormat::Q8] {
            let model = open(format);
            let text = tokens(&model, 0, 601);
            assert_eq!(ask(&model, &text[..600 + expected / 600], &[]), expected, "{format:?}");
            assert!(model.flush_states().is_none());
        }
    }
    let model = open(KvFormat::Q8);
    let again = model.store_states(directory.path(), MUCH).expect_err("one directory a model");
    assert_eq!(again.kind(), ErrorKind::InvalidRequest, "{again}");
}

fn stored_of_one(set: &str) -> u64 {
    let directory = tempfile::tempdir().expect("a directory");
    let model = with_states(set, directory.path(), MUCH);
    ask(&model, &tokens(&model, 0, 600), &[]);
    assert!(model.flush_states().is_none());
    stored_bytes(directory.path())
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = with_states(SETS[0], directory.path(), MUCH);
    let second = model(SETS[0]);
    let error = second.store_states(directory.path(), MUCH).expect_err("the first has it");
    assert!(
        error.kind() == ErrorKind::Io && error.message().contains("in use by another process"),
        "{error}"
    );
    drop(first);
    let file = directory.path().join("file");
    fs::write(&file, "").expect("writable");
    let error = second.store_states(&file, MUCH).expect_err("it is a file");
    assert!(error.message().contains("file"), "{error}");
    second.store_states(directory.path(), 0).expect("no space is no error");
    ask(&second, &tokens(&second, 0, 600), &[]);
    assert!(second.flush_states().is_none());
    assert!(files(directory.path()).is_empty());
}
