//! The tokens of answers, so that a conversation that goes on has them as they were sampled: see [`Message::written`].
//!
//! An answer is found by the id of one of its calls, which nobody guesses, or by its text and the turns before it. In a
//! [state directory](crate::Model::store_states) answers outlive the process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use twox_hash::xxhash3_128;

use crate::text::{Content, Message, Role};

/// Most answers.
const ANSWERS_MAX: usize = 100_000;

/// What an answer takes besides its tokens and the ids of its calls.
const ANSWER_BYTES: usize = 160;

/// An answer, as the model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AnswerRecord {
    /// What its turn is found by: the turns before it and its text.
    pub(crate) turn: u128,
    /// What else it is found by: ids of its calls.
    pub(crate) calls: Vec<u128>,
    pub(crate) tokens: Arc<[u32]>,
}

impl AnswerRecord {
    fn keys(&self) -> impl Iterator<Item = u128> {
        self.calls.iter().copied().chain([self.turn])
    }

    fn bytes(&self) -> usize {
        ANSWER_BYTES + size_of_val(&*self.tokens) + 2 * size_of_val(self.calls.as_slice())
    }
}

/// The latest answers of a model: 100,000 at most, in 8 MiB.
#[derive(Default)]
pub(crate) struct Answers {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The number of the latest answer with each key.
    numbers: HashMap<u128, u64>,
    /// The oldest first; the first one's number is `first`.
    answers: VecDeque<AnswerRecord>,
    first: u64,
    bytes: usize,
    /// So many of the latest are in no file yet.
    unstored: usize,
}

impl Answers {
    /// Most bytes of what is remembered.
    pub(crate) const BYTES_MAX: usize = 8 << 20;

    /// See [`Model::remember`](crate::Model::remember).
    pub(crate) fn remember(&self, before: ConversationKey, text: &str, calls: &[String], tokens: &[u32]) {
        let calls = calls.iter().map(|id| call_key(id)).collect();
        let known = &mut *self.lock();
        known.add(AnswerRecord { turn: before.key(text), calls, tokens: tokens.into() });
        known.unstored = (known.unstored + 1).min(known.answers.len());
    }

    /// See [`Model::recall`](crate::Model::recall).
    pub(crate) fn recall(&self, messages: &mut [Message]) -> ConversationKey {
        let mut turns = ConversationKey::default();
        let known = self.lock();
        for message in messages {
            turns.add(message);
            if message.role == Role::Assistant {
                let calls = message.tool_calls.iter().map(|call| call_key(&call.id));
                message.written = calls.chain([turns.0]).find_map(|key| known.find(key));
            }
        }
        turns
    }

    /// Adds one that a file has.
    pub(crate) fn add_stored(&self, answer: AnswerRecord) {
        self.lock().add(answer);
    }

    /// Puts those of a file before its own, which are younger.
    pub(crate) fn restore(&self, older: Self) {
        let known = &mut *self.lock();
        let own = std::mem::replace(known, older.known.into_inner().unwrap_or_else(PoisonError::into_inner));
        let unstored = own.unstored;
        own.answers.into_iter().for_each(|answer| known.add(answer));
        known.unstored = unstored.min(known.answers.len());
    }

    /// Those that are in no file yet, which counts as done.
    pub(crate) fn take_unstored(&self) -> Vec<AnswerRecord> {
        let known = &mut *self.lock();
        let from = known.answers.len() - std::mem::take(&mut known.unstored);
        known.answers.iter().skip(from).cloned().collect()
    }

    /// All; the oldest first.
    pub(crate) fn all(&self) -> Vec<AnswerRecord> {
        self.lock().answers.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn add(&mut self, answer: AnswerRecord) {
        let number = self.first + self.answers.len() as u64;
        self.numbers.extend(answer.keys().map(|key| (key, number)));
        self.bytes += answer.bytes();
        self.answers.push_back(answer);
        while (self.answers.len() > ANSWERS_MAX || self.bytes > Answers::BYTES_MAX)
            && let Some(oldest) = self.answers.pop_front()
        {
            for key in oldest.keys() {
                if self.numbers.get(&key) == Some(&self.first) {
                    self.numbers.remove(&key);
                }
            }
            self.first += 1;
            self.bytes -= oldest.bytes();
        }
    }

    fn find(&self, key: u128) -> Option<Arc<[u32]>> {
        let number = self.numbers.get(&key)?;
        let answer = self.answers.get((number - self.first) as usize)?;
        Some(answer.tokens.clone())
    }
}

/// A call by its id; what APIs put before it is not a part of it.
fn call_key(id: &str) -> u128 {
    let id = id.rsplit('_').next().unwrap_or(id);
    xxhash3_128::Hasher::oneshot_with_seed(1, id.as_bytes())
}

/// Stands for the turns of a conversation, up to one of them. System messages are left out: agents change them with each
/// request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConversationKey(u128);

impl ConversationKey {
    fn add(&mut self, message: &Message) {
        if !matches!(message.role, Role::System | Role::Developer) {
            let text = message.content.as_ref().map(Content::text).unwrap_or_default();
            self.0 = self.after(message.role, &text);
        }
    }

    /// Where an answer with this text comes next.
    fn key(&self, text: &str) -> u128 {
        self.after(Role::Assistant, text)
    }

    fn after(&self, role: Role, text: &str) -> u128 {
        let text = xxhash3_128::Hasher::oneshot(text.trim().as_bytes());
        let mut bytes = [0; 33];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&text.to_le_bytes());
        bytes[32] = role as u8;
        xxhash3_128::Hasher::oneshot(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, text: &str) -> Message {
        Message::new(role, text)
    }

    #[test]
    fn a_turn_is_known_by_its_text_where_it_was_said() {
        let answers = Answers::default();
        let mut before = [turn(Role::System, "be brief"), turn(Role::User, "hi")];
        let key = answers.recall(&mut before);
        answers.remember(key, "\n\nHello", &[], &[1, 2, 3]);
        let mut again = [
            turn(Role::System, "be long"),
            turn(Role::User, " hi"),
            turn(Role::Assistant, "Hello\n"),
            turn(Role::User, "Hello"),
            turn(Role::Assistant, "Hello"),
        ];
        answers.recall(&mut again);
        let written: Vec<bool> = again.iter().map(|message| message.written.is_some()).collect();
        assert_eq!(written, [false, false, true, false, false]);
        let mut other = [turn(Role::User, "ho"), turn(Role::Assistant, "Hello")];
        answers.recall(&mut other);
        assert!(other[1].written.is_none());
    }

    #[test]
    fn a_call_is_known_by_its_id_wherever_it_is() {
        let answers = Answers::default();
        answers.remember(ConversationKey::default(), "", &["abc".into(), "def".into()], &[7]);
        let call: Message = serde_json::from_value(serde_json::json!({
            "role": "assistant", "content": "other",
            "tool_calls": [{"id": "call_def", "function": {"name": "f", "arguments": "{}"}}],
        }))
        .unwrap();
        let mut messages = [turn(Role::User, "x"), call];
        answers.recall(&mut messages);
        assert_eq!(messages[1].written.as_deref(), Some([7].as_slice()));
    }

    #[test]
    fn the_oldest_go_and_what_no_file_has_is_told_once() {
        let answers = Answers::default();
        let tokens = vec![5; Answers::BYTES_MAX / 16];
        for i in 0..6 {
            answers.remember(ConversationKey::default(), &format!("{i}"), &[], &tokens);
        }
        assert_eq!(answers.take_unstored().len(), 3, "of 6, 3 are left");
        assert_eq!(answers.take_unstored(), []);
        answers.remember(ConversationKey::default(), "last", &[], &[1]);
        assert_eq!(answers.take_unstored().len(), 1);
        let known = |text: &str| {
            let mut messages = [turn(Role::Assistant, text)];
            answers.recall(&mut messages);
            messages[0].written.is_some()
        };
        assert_eq!(["0", "2", "4", "5", "last"].map(known), [false, false, true, true, true]);
        let restored = Answers::default();
        restored.remember(ConversationKey::default(), "own", &[], &[2]);
        restored.restore(answers);
        assert_eq!(restored.all().last().unwrap().tokens[..], [2]);
        assert_eq!(restored.take_unstored().len(), 1, "what came from the file is in it");
    }
}
