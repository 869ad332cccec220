//! How well a model predicts texts that are known: perplexity and exact match, by teacher forcing.

use std::ops::{ControlFlow, Range};

use files::{Error, Result};

use crate::session::{FeedProgress, Session};
use crate::text::{ChatPrompt, ChatRequest, Message, Role, Template, Tokenizer, ToolSpec};

/// How one token was predicted from those before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// -ln of its probability, from a log-softmax over the whole vocabulary.
    pub nats: f64,
    /// Whether it was the most likely token (the lowest id among equals).
    pub is_best: bool,
}

/// A sum of scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Tokens scored.
    pub tokens: usize,
    /// Those that were the most likely ones.
    pub best: usize,
    /// Sum of their -ln p.
    pub nats: f64,
}

impl Tally {
    /// Adds scores.
    pub fn add(&mut self, scores: &[TokenScore]) {
        for score in scores {
            self.tokens += 1;
            self.best += usize::from(score.is_best);
            self.nats += score.nats;
        }
    }

    /// exp of the mean of -ln p; `None` before the first token.
    pub fn perplexity(&self) -> Option<f64> {
        (self.tokens > 0).then(|| (self.nats / self.tokens as f64).exp())
    }

    /// Share of tokens that were the most likely ones; `None` before the first token.
    pub fn accuracy(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.best as f64 / self.tokens as f64)
    }
}

/// Feeds `tokens` to the emptied session and scores those from index `from` on, at least 1: nothing predicts the
/// first token.
///
/// # Errors
/// As [`Session::append`].
pub fn score_tokens(
    session: &mut Session,
    tokens: &[u32],
    from: usize,
    progress: FeedProgress<'_>,
) -> Result<Vec<TokenScore>> {
    session.reset()?;
    let from = from.max(1);
    if tokens.len() <= from {
        return Ok(Vec::new());
    }
    let last = tokens.len() - 1; // its own logits predict nothing that is known
    let head = from - 1;
    if head > 0 {
        session.append(&tokens[..head], progress)?;
    }
    let mut scores = Vec::with_capacity(tokens.len() - from);
    session.score(&tokens[head..last], progress, &mut |position, logits| {
        scores.push(score(logits, tokens[position + 1]));
        Ok(())
    })?;
    Ok(scores)
}

fn score(logits: &[f32], token: u32) -> TokenScore {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    let most = f64::from(logits[best]);
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - most).exp()).sum();
    let nats = most + sum.ln() - f64::from(logits[token as usize]);
    TokenScore { nats, is_best: best == token as usize }
}

/// A conversation as the tokens of its rendering, and where the model's turns are in them.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialog {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// For each turn of the model the tokens it would have had to generate: after what a prompt for the turn ends
    /// with, up to and including the end token.
    pub turns: Vec<Range<usize>>,
}

impl Dialog {
    /// Renders `messages` as far as they go, and again as the prompt of each of the model's turns, to see where
    /// the turns begin.
    ///
    /// # Errors
    /// What the template reports; `Unsupported` for one that rewrites earlier turns, where there is no one token
    /// sequence to score.
    pub fn new(
        template: &Template,
        tokenizer: &Tokenizer,
        messages: &[Message],
        tools: &[ToolSpec],
    ) -> Result<Self> {
        let render = |messages: &[Message], add_generation_prompt: bool| {
            let request = ChatRequest {
                messages: messages.to_vec(),
                tools: tools.to_vec(),
                add_generation_prompt,
                enable_thinking: Some(false),
                ..ChatRequest::default()
            };
            ChatPrompt::new(template, tokenizer, &request).map(|prompt| prompt.tokens)
        };
        let tokens = render(messages, false)?;
        let ends = tokenizer.end_tokens();
        let mut turns = Vec::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            let prompt = render(&messages[..i], true)?;
            let through = render(&messages[..=i], false)?;
            let end = through.iter().rposition(|id| ends.contains(id)).map_or(through.len(), |at| at + 1);
            if !through.starts_with(&prompt) || !tokens.starts_with(&through[..end]) || end <= prompt.len() {
                return Err(Error::unsupported(format!(
                    "message {i}: the chat template renders the turn differently when it is generated and when it \
                     is history, so it cannot be scored"
                )));
            }
            turns.push(prompt.len()..end);
        }
        Ok(Self { tokens, turns })
    }

    /// The tokens up to the end of the last turn.
    pub fn through_last_turn(&self) -> &[u32] {
        &self.tokens[..self.turns.last().map_or(0, |turn| turn.end)]
    }
}

/// Overlapping windows over a text: each of at most `ctx` tokens (at least 2), `stride` (less than `ctx`) further than
/// the one before; returns the window and the index in it from which tokens are scored, so that every token but the
/// first is scored once.
pub fn windows(tokens: usize, ctx: usize, stride: usize) -> Vec<(Range<usize>, usize)> {
    let ctx = ctx.max(2);
    let stride = stride.clamp(1, ctx - 1);
    let mut all = Vec::new();
    let (mut start, mut scored) = (0, 1);
    while scored < tokens {
        let end = tokens.min(start + ctx);
        if end > scored {
            all.push((start..end, scored - start));
            scored = end;
        }
        start += stride;
    }
    all
}

/// Goes on whatever happens, for callers without a progress display.
pub fn no_progress(_: f64, _: usize) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_log_softmax() {
        let scored = score(&[1.0, 3.0, 3.0], 2);
        let sum = 1f64.exp() + 2.0 * 3f64.exp();
        assert!((scored.nats - (sum.ln() - 3.0)).abs() < 1e-12);
        assert!(!scored.is_best && score(&[1.0, 3.0, 3.0], 1).is_best);
        let mut tally = Tally::default();
        assert_eq!((tally.perplexity(), tally.accuracy()), (None, None));
        tally.add(&[
            TokenScore { nats: 8f64.ln(), is_best: true },
            TokenScore { nats: 2f64.ln(), is_best: false },
        ]);
        assert!((tally.perplexity().unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(tally.accuracy(), Some(0.5));
    }

    #[test]
    fn windows_score_every_token_but_the_first_once() {
        for (tokens, ctx, stride) in
            [(10, 4, 2), (10, 4, 4), (3, 8, 4), (9, 8, 1), (1, 4, 2), (0, 4, 2), (17, 8, 5)]
        {
            let mut scored = Vec::new();
            for (window, from) in windows(tokens, ctx, stride) {
                assert!(window.len() <= ctx && from >= 1 && from < window.len(), "{tokens} {ctx} {stride}");
                scored.extend(window.start + from..window.end);
            }
            assert_eq!(scored, (1..tokens).collect::<Vec<_>>(), "{tokens} {ctx} {stride}");
        }
    }
}
