//! The answer of a plain completion, whole and as a stream.

use serde_json::{Map, Value, json};

use super::figures::{Tally, data, end, failure, heading, is_cut, logprob_value, token_text};
use crate::{
    ApiError, Ending, Event, EventKind, Frame, Prompt, ReplyHead, ReplyWriter, Request, TokenLogprob,
};

/// The writer of a plain completion. Where the answer begins with the prompt (`echo`), the prompt's text is the first
/// `Text` of each answer: ids cannot be made text here.
pub fn completion_reply(head: ReplyHead, request: &Request) -> Box<dyn ReplyWriter> {
    let prompts = match &request.prompt {
        Prompt::Texts(texts) => texts.len().max(1),
        Prompt::Chat(_) => 1,
    };
    let per_prompt = request.choices.max(1);
    Box::new(Reply {
        head,
        include_usage: request.include_usage,
        logprobs: request.top_logprobs.is_some(),
        choices: (0..prompts * per_prompt).map(|_| Choice::default()).collect(),
        tally: Tally::new(per_prompt),
    })
}

struct Reply {
    head: ReplyHead,
    include_usage: bool,
    logprobs: bool,
    choices: Vec<Choice>,
    tally: Tally,
}

#[derive(Default)]
struct Choice {
    text: String,
    logprobs: Logprobs,
    /// Characters before the next token.
    offset: usize,
    ending: Option<Ending>,
}

/// Lists that go side by side, an entry a token.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f64>,
    top_logprobs: Vec<Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn push(&mut self, token: &TokenLogprob, offset: usize) {
        let own = std::iter::once(token).filter(|own| token.top.iter().all(|top| top.id != own.id));
        let mut top = Map::new();
        // The likeliest comes first; a later one may look like it.
        for entry in token.top.iter().chain(own) {
            top.entry(token_text(&entry.bytes)).or_insert_with(|| json!(logprob_value(entry.logprob)));
        }
        self.tokens.push(token_text(&token.bytes));
        self.token_logprobs.push(logprob_value(token.logprob));
        self.top_logprobs.push(top);
        self.text_offset.push(offset);
    }

    fn extend(&mut self, other: &Self) {
        self.tokens.extend_from_slice(&other.tokens);
        self.token_logprobs.extend_from_slice(&other.token_logprobs);
        self.top_logprobs.extend_from_slice(&other.top_logprobs);
        self.text_offset.extend_from_slice(&other.text_offset);
    }

    fn value(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

impl Choice {
    /// Takes more text; what its tokens add to the lists.
    fn text(&mut self, text: &str, tokens: &[TokenLogprob]) -> Logprobs {
        self.text.push_str(text);
        let mut added = Logprobs::default();
        for token in tokens {
            added.push(token, self.offset);
            // Bytes that begin a character; a token may hold the rest of one only.
            self.offset += token.bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        }
        if tokens.is_empty() {
            self.offset += text.chars().count();
        }
        self.logprobs.extend(&added);
        added
    }

    fn finish_reason(&self) -> Option<&'static str> {
        Some(match self.ending.as_ref()? {
            Ending::Stop | Ending::StopString(_) => "stop",
            Ending::Length | Ending::Context | Ending::Cancelled => "length",
        })
    }
}

impl Reply {
    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let mut chunk = heading(&self.head, "cmpl-", "text_completion");
        chunk.insert("choices".into(), choices);
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn piece(&self, choice: usize, text: &str, logprobs: &Value, reason: Option<&str>) -> Map<String, Value> {
        self.chunk(json!([{"text": text, "index": choice, "logprobs": logprobs, "finish_reason": reason}]))
    }
}

impl ReplyWriter for Reply {
    fn begin(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    fn event(&mut self, event: &Event) -> Vec<Frame> {
        let Some(choice) = self.choices.get_mut(event.choice) else { return Vec::new() };
        match &event.kind {
            EventKind::Text { text, logprobs } => {
                let added = choice.text(text, logprobs);
                if text.is_empty() && logprobs.is_empty() {
                    return Vec::new();
                }
                let logprobs = if self.logprobs { added.value() } else { Value::Null };
                vec![data(self.piece(event.choice, text, &logprobs, None))]
            }
            EventKind::Ended { ending, usage, timings } => {
                choice.ending = Some(ending.clone());
                let reason = choice.finish_reason().filter(|_| *ending != Ending::Cancelled);
                self.tally.add(event.choice, *usage, *timings);
                let Some(reason) = reason else { return Vec::new() };
                let mut chunk = self.piece(event.choice, "", &Value::Null, Some(reason));
                if !self.include_usage && self.tally.ended() == self.choices.len() {
                    chunk.insert("timings".into(), self.tally.timings());
                }
                vec![data(chunk)]
            }
            // A plain text has no turns, so it has neither thoughts nor calls.
            _ => Vec::new(),
        }
    }

    fn ping(&mut self) -> Vec<Frame> {
        vec![Frame::Comment("ping")]
    }

    fn end(&mut self) -> Vec<Frame> {
        if self.choices.iter().any(|choice| is_cut(choice.ending.as_ref())) {
            return failure(&ApiError::cancelled());
        }
        end(self.include_usage.then(|| self.chunk(json!([]))), &self.tally)
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Frame> {
        failure(error)
    }

    fn whole(&mut self) -> Value {
        let choices: Vec<Value> = self
            .choices
            .iter()
            .enumerate()
            .map(|(index, choice)| {
                let logprobs = if self.logprobs { choice.logprobs.value() } else { Value::Null };
                json!({
                    "text": choice.text,
                    "index": index,
                    "logprobs": logprobs,
                    "finish_reason": choice.finish_reason(),
                })
            })
            .collect();
        let mut whole = heading(&self.head, "cmpl-", "text_completion");
        whole.insert("choices".into(), choices.into());
        self.tally.add_to(&mut whole);
        Value::Object(whole)
    }
}
