//! One answer as it is made: which token comes next, what text it makes, and when it ends.

use std::collections::VecDeque;
use std::ops::{Deref, Range};

use files::Result;

use crate::sample::{Logprobs, SampleParams, Sampler, logprobs};
use crate::text::grammar::guide::Guide;
use crate::text::spans::PlacedText;
use crate::text::{Constraint, Detokenizer, ReplyEvent, ReplyOptions, ReplyParser, StopStrings, Tokenizer};

/// How to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SampleParams,
    /// Most tokens to generate; `None` until the context is full.
    pub max_tokens: Option<usize>,
    /// The model does not end the answer before it has so many tokens. A stop string may.
    pub min_tokens: usize,
    /// Tells the log-probabilities of the answer's text, by the model's own logits, and those of so many best tokens at
    /// each place: see [`ReplyEvent::Logprobs`].
    pub top_logprobs: Option<usize>,
    /// Texts that end the answer; they are not part of it. Where replies are taken apart they are looked for in the
    /// answer's text, not in thoughts and calls.
    pub stop: Vec<String>,
    /// What the answer is held to.
    pub constraint: Option<Constraint>,
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
    shown: PlacedText,
    parser: Option<ReplyParser>,
    guide: Option<Guide>,
    ends: Vec<u32>,
    starts: Vec<u32>,
    max_tokens: usize,
    min_tokens: usize,
    top_logprobs: Option<usize>,
    tokens: Vec<u32>,
    /// Where the text of each token begins.
    places: Vec<usize>,
    /// Bytes of text that the tokens made.
    bytes: usize,
    /// Tokens whose text has not been shown.
    untold: VecDeque<(Range<usize>, Logprobs)>,
    /// The logits without the tokens that may not come.
    masked: Vec<f32>,
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
        let constraint = options.constraint.clone().filter(|constraint| !constraint.is_empty());
        let guide = constraint.map(|constraint| Guide::new(constraint, parser.as_ref()));
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX);
        Ok(Self {
            sampler: Sampler::new(&options.sampling)?,
            detokenizer: Detokenizer::new(tokenizer),
            shown: PlacedText::new(stops),
            parser,
            guide,
            ends,
            starts,
            max_tokens,
            min_tokens: options.min_tokens,
            top_logprobs: options.top_logprobs,
            tokens: Vec::new(),
            places: Vec::new(),
            bytes: 0,
            untold: VecDeque::new(),
            masked: Vec::new(),
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
        let Some(token) = self.choose(logits, sequence)? else {
            return Ok(self.end(FinishReason::Stop));
        };
        let logprobs = self.top_logprobs.map(|n| logprobs(logits, token, n)).transpose()?;
        self.take(token, logprobs, sequence, context)
    }

    /// The next token; `None` if none may come.
    fn choose(&mut self, logits: &[f32], sequence: &[u32]) -> Result<Option<u32>> {
        let held = self.guide.as_ref().is_some_and(Guide::holds);
        if !held && !self.must_go_on() {
            return self.sampler.sample(logits, sequence).map(Some);
        }
        let mut masked = std::mem::take(&mut self.masked);
        masked.clear();
        masked.extend_from_slice(logits);
        let may_end = match &mut self.guide {
            Some(guide) if held => guide.forbid(&mut masked)?,
            _ => true,
        };
        // A form that is complete goes before a least number of tokens.
        let ends = self.ends.iter().chain(self.starts.iter().filter(|_| !self.tokens.is_empty()));
        for end in ends.map(|end| *end as usize).filter(|end| *end < logits.len()) {
            let may = may_end && !self.must_go_on();
            masked[end] = if may { logits[end] } else { f32::NEG_INFINITY };
        }
        let any = masked.iter().any(|logit| *logit != f32::NEG_INFINITY);
        let token = if any { self.sampler.sample(&masked, sequence).map(Some) } else { Ok(None) };
        self.masked = masked;
        token
    }

    /// Whether it looks at nothing but which token has the greatest logit, so that [`Self::accept_token`] does as well.
    /// That may change with each token.
    pub fn is_greedy(&self) -> bool {
        let held = self.guide.as_ref().is_some_and(Guide::holds);
        self.sampler.is_greedy() && self.top_logprobs.is_none() && !self.must_go_on() && !held
    }

    /// Whether no token that ends it may come.
    fn must_go_on(&self) -> bool {
        self.tokens.len() < self.min_tokens && !self.ends.is_empty()
    }

    /// [`Self::accept`] where the token was chosen elsewhere.
    ///
    /// # Errors
    /// `InvalidRequest` for a token that the answer's form does not allow.
    pub fn accept_token(&mut self, token: u32, sequence: &[u32], context: usize) -> Result<Vec<ReplyEvent>> {
        self.take(token, None, sequence, context)
    }

    fn take(
        &mut self,
        token: u32,
        logprobs: Option<Logprobs>,
        sequence: &[u32],
        context: usize,
    ) -> Result<Vec<ReplyEvent>> {
        if self.finish.is_some() {
            return Ok(Vec::new());
        }
        // A template that does not begin the model's turn leaves that to the model, as its first token.
        if self.ends.contains(&token) || (!self.tokens.is_empty() && self.starts.contains(&token)) {
            return Ok(self.end(FinishReason::Stop));
        }
        self.tokens.push(token);
        self.places.push(self.bytes);
        let text = self.detokenizer.push(token);
        if let Some(logprobs) = logprobs.filter(|_| self.detokenizer.shows(token)) {
            // One that makes no character of its own belongs to the one that it is part of.
            self.untold.push_back((self.bytes..self.bytes + text.len().max(1), logprobs));
        }
        let mut events = self.show(&text);
        let mut is_over = self.stop_hit().is_some();
        if let Some(guide) = &mut self.guide {
            guide.accept(token, self.parser.as_ref())?;
            is_over |= guide.is_over();
        }
        if is_over {
            events.extend(self.end(FinishReason::Stop));
        } else if sequence.len() >= context {
            events.extend(self.end(FinishReason::Context));
        } else if self.tokens.len() >= self.max_tokens {
            events.extend(self.end(FinishReason::Length));
        }
        Ok(events)
    }

    /// The token whose logits [`Self::accept`] wants next; `None` before the first and after the last.
    pub fn next_token(&self) -> Option<u32> {
        if self.finish.is_some() { None } else { self.tokens.last().copied() }
    }

    /// The tokens of the answer, without the end token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many of them were thoughts, with the markers around these.
    pub fn thought_tokens(&self) -> usize {
        let bytes = self.parser.as_ref().map_or(0, ReplyParser::thought_bytes);
        self.places.partition_point(|place| *place < bytes)
    }

    /// Why it ended, if it has.
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Which of [`GenerateOptions::stop`] ended it, if one did.
    pub fn stop_hit(&self) -> Option<usize> {
        self.parser.as_ref().map_or(self.shown.hit(), ReplyParser::stop_hit)
    }

    /// Ends it, if nothing else has; what was held back until now.
    pub fn end(&mut self, why: FinishReason) -> Vec<ReplyEvent> {
        if self.finish.is_some() {
            return Vec::new();
        }
        self.finish = Some(why);
        let rest = if self.stop_hit().is_none() { self.detokenizer.finish() } else { String::new() };
        let mut events = self.show(&rest);
        let (last, spans) = match &mut self.parser {
            Some(parser) => {
                let last = if why == FinishReason::Stop { parser.finish() } else { parser.cut() };
                (last, parser.take_spans())
            }
            None => {
                let (text, spans) = self.shown.finish();
                (text_event(text), vec![spans])
            }
        };
        events.extend(self.with_logprobs(last, spans));
        events
    }

    fn show(&mut self, text: &str) -> Vec<ReplyEvent> {
        if text.is_empty() {
            return Vec::new();
        }
        self.bytes += text.len();
        let (events, spans) = match &mut self.parser {
            Some(parser) => (parser.push(text), parser.take_spans()),
            None => {
                let (text, spans) = self.shown.push(text, self.bytes);
                (text_event(text), vec![spans])
            }
        };
        self.with_logprobs(events, spans)
    }

    /// Adds what is known of the tokens of each text, which stand at `spans` in the reply.
    fn with_logprobs(&mut self, events: Vec<ReplyEvent>, spans: Vec<Vec<Range<usize>>>) -> Vec<ReplyEvent> {
        if self.top_logprobs.is_none() {
            return events;
        }
        let mut all = Vec::with_capacity(2 * events.len());
        let mut spans = spans.into_iter();
        for event in events {
            let is_text = matches!(event, ReplyEvent::Text(_));
            all.push(event);
            if is_text && let Some(spans) = spans.next() {
                let told = self.tokens_of(&spans);
                all.extend(Some(told).filter(|told| !told.is_empty()).map(ReplyEvent::Logprobs));
            }
        }
        all
    }

    /// The tokens that have a part in `spans`; those before are no part of the text.
    fn tokens_of(&mut self, spans: &[Range<usize>]) -> Vec<Logprobs> {
        let end = spans.last().map_or(0, |span| span.end);
        let mut told = Vec::new();
        while let Some((place, logprobs)) = self.untold.pop_front_if(|(place, _)| place.start < end) {
            if spans.iter().any(|span| place.start < span.end && span.start < place.end) {
                told.push(logprobs);
            }
        }
        told
    }
}

fn text_event(text: String) -> Vec<ReplyEvent> {
    if text.is_empty() { Vec::new() } else { vec![ReplyEvent::Text(text)] }
}
