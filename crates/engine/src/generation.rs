//! One answer as it is made: which token comes next, what text it makes, and when it ends.

use std::ops::Deref;

use files::Result;

use crate::sample::{SampleParams, Sampler};
use crate::text::{Detokenizer, ReplyEvent, ReplyOptions, ReplyParser, StopStrings, Tokenizer};

/// How to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// Most tokens to generate; `None` until the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it. Where replies are taken apart they are looked for in the
    /// answer's text, not in thoughts and calls.
    pub stop: Vec<String>,
    /// Takes the reply apart into thoughts, text and calls; `None` leaves all of it text.
    pub reply: Option<ReplyOptions>,
    /// Go on after the model's own end tokens, to measure speed.
    pub ignore_end: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, by an end token or by the beginning of another's turn, or a stop string did.
    Stop,
    /// `max_tokens`.
    Length,
    /// The context is full.
    Context,
    /// The caller broke off.
    Cancelled,
}

/// Control tokens with which a turn begins. A model that writes one has ended its own turn: what would follow is made
/// up, another's words. (`<|start|>` of gpt-oss is none of them: its own messages begin so.)
const TURN_STARTS: [&str; 14] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|header_start|>",
    "<start_of_turn>",
    "<|turn>",
    "<|start_of_role|>",
    "<|START_OF_TURN_TOKEN|>",
    "<|user|>",
    "<|system|>",
    "<|observation|>",
    "<|im_user|>",
    "<|im_system|>",
    "<｜User｜>",
    "]~b]",
];

/// Those of them that the tokenizer has.
fn turn_starts(tokenizer: &Tokenizer) -> Vec<u32> {
    let known = TURN_STARTS.iter().filter_map(|name| tokenizer.token_id(name));
    known.filter(|id| tokenizer.is_special(*id)).collect()
}

/// An answer on its way. It computes nothing and is *pulled*: whoever has the logits of the last token gives them to
/// [`Self::accept`], shows the events, and computes [`Self::next_token`], until that is `None`.
pub struct Generation<T> {
    sampler: Sampler,
    detokenizer: Detokenizer<T>,
    /// Of all that is generated; the parser looks for its own.
    stops: StopStrings,
    parser: Option<ReplyParser>,
    ends: Vec<u32>,
    starts: Vec<u32>,
    max_tokens: usize,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
}

impl<T: Deref<Target = Tokenizer>> Generation<T> {
    /// An answer before its first token.
    ///
    /// # Errors
    /// `InvalidRequest` for sampling values out of range or an empty stop string.
    pub fn new(tokenizer: T, options: &GenerateOptions) -> Result<Self> {
        let (ends, starts) = match options.ignore_end {
            true => Default::default(),
            false => (tokenizer.end_tokens(), turn_starts(&tokenizer)),
        };
        let stops = StopStrings::new(options.stop.clone())?;
        let (stops, parser) = match &options.reply {
            Some(reply) => (
                StopStrings::default(),
                Some(ReplyParser::new(ReplyOptions { stop: stops, ..reply.clone() })),
            ),
            None => (stops, None),
        };
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            sampler: Sampler::new(&options.sampling)?,
            detokenizer: Detokenizer::new(tokenizer),
            stops,
            parser,
            ends,
            starts,
            max_tokens,
            tokens: Vec::new(),
            finish: (max_tokens == 0).then_some(FinishReason::Length),
        })
    }

    /// Chooses a token from the `logits` after `sequence`, the prompt and the answer so far, of which a context of
    /// `context` positions holds one more or none. What can be shown since the last call.
    ///
    /// # Errors
    /// What the sampler answers to broken logits.
    pub fn accept(&mut self, logits: &[f32], sequence: &[u32], context: usize) -> Result<Vec<ReplyEvent>> {
        if self.finish.is_some() {
            return Ok(Vec::new());
        }
        let token = self.sampler.sample(logits, sequence)?;
        Ok(self.accept_token(token, sequence, context))
    }

    /// Whether it looks at nothing but which token has the greatest logit, so that [`Self::accept_token`] does as well.
    pub fn is_greedy(&self) -> bool {
        self.sampler.is_greedy()
    }

    /// [`Self::accept`] where the token was chosen elsewhere.
    pub fn accept_token(&mut self, token: u32, sequence: &[u32], context: usize) -> Vec<ReplyEvent> {
        if self.finish.is_some() {
            return Vec::new();
        }
        // A template that does not begin the model's turn leaves that to the model, as its first token.
        if self.ends.contains(&token) || (!self.tokens.is_empty() && self.starts.contains(&token)) {
            return self.end(FinishReason::Stop);
        }
        self.tokens.push(token);
        let text = self.detokenizer.push(token);
        let mut events = self.show(&text);
        if self.stops.hit().is_some() || self.parser.as_ref().is_some_and(ReplyParser::is_stopped) {
            events.extend(self.end(FinishReason::Stop));
        } else if sequence.len() >= context {
            events.extend(self.end(FinishReason::Context));
        } else if self.tokens.len() >= self.max_tokens {
            events.extend(self.end(FinishReason::Length));
        }
        events
    }

    /// The token whose logits [`Self::accept`] wants next; `None` before the first and after the last.
    pub fn next_token(&self) -> Option<u32> {
        if self.finish.is_some() { None } else { self.tokens.last().copied() }
    }

    /// The tokens of the answer, without the end token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Why it ended, if it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Ends it, if nothing else has; what was held back until now.
    pub fn end(&mut self, why: FinishReason) -> Vec<ReplyEvent> {
        if self.finish.is_some() {
            return Vec::new();
        }
        self.finish = Some(why);
        let mut events = Vec::new();
        if self.stops.hit().is_none() {
            let rest = self.detokenizer.finish();
            events = self.show(&rest);
            let held = self.stops.finish();
            events.extend(self.parse(held));
        }
        if let Some(parser) = &mut self.parser {
            events.extend(parser.finish());
        }
        events
    }

    fn show(&mut self, text: &str) -> Vec<ReplyEvent> {
        let text = self.stops.push(text);
        self.parse(text)
    }

    fn parse(&mut self, text: String) -> Vec<ReplyEvent> {
        match &mut self.parser {
            _ if text.is_empty() => Vec::new(),
            Some(parser) => parser.push(&text),
            None => vec![ReplyEvent::Text(text)],
        }
    }
}
