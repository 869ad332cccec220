//! Where in an answer its [`Constraint`] holds.

use files::Result;

use super::mask::TokenMask;
use super::{Constraint, copy};
use crate::text::reply::{ReplyParser, ReplyPlace};

/// A constraint on its way through an answer.
pub(crate) struct Guide {
    constraint: Constraint,
    place: Place,
}

enum Place {
    /// A thought, which is free.
    Thought,
    /// Text, in which a call may begin.
    Text,
    /// What is held.
    Held(Held),
    /// Nothing more may come.
    Over,
}

struct Held {
    mask: Box<dyn TokenMask>,
    /// It is one call, after which text may come.
    is_call: bool,
    /// Nothing of it has come, so that a thought may, or so many line ends after one.
    may_think: bool,
    line_ends: usize,
}

/// Line ends that may stand between a thought and what is held.
const LINE_ENDS: usize = 2;

impl Guide {
    /// At the beginning of an answer, which `parser` takes apart.
    pub(crate) fn new(constraint: Constraint, parser: Option<&ReplyParser>) -> Self {
        let mut own = Self { constraint, place: Place::Thought };
        if parser.is_none_or(|parser| parser.place() != ReplyPlace::Thought) {
            own.place = own.begin(parser.is_some(), 0);
        }
        own
    }

    /// Whether the next token is not free.
    pub(crate) fn holds(&self) -> bool {
        matches!(self.place, Place::Held(_))
    }

    /// Whether nothing more may come.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.place, Place::Over)
    }

    /// Forbids what may not come. Whether the answer may end here.
    ///
    /// # Errors
    /// As [`TokenMask::forbid`].
    pub(crate) fn forbid(&mut self, logits: &mut [f32]) -> Result<bool> {
        let Place::Held(held) = &mut self.place else { return Ok(true) };
        let tokens = &self.constraint.inner.tokens;
        let line_ends = tokens.line_ends(held.line_ends).map(|(id, _)| id);
        let also = line_ends.chain(tokens.think().filter(|_| held.may_think));
        let also: Vec<(usize, f32)> =
            also.filter_map(|id| Some((id as usize, *logits.get(id as usize)?))).collect();
        let may_end = held.mask.forbid(logits)? && !held.is_call;
        for (id, logit) in also {
            logits[id] = logit;
        }
        Ok(may_end)
    }

    /// Goes on with a token, which `parser` has seen.
    ///
    /// # Errors
    /// As [`TokenMask::accept`].
    pub(crate) fn accept(&mut self, token: u32, parser: Option<&ReplyParser>) -> Result<()> {
        let tokens = &self.constraint.inner.tokens;
        match &mut self.place {
            Place::Over => {}
            Place::Thought => {
                if parser.is_none_or(|parser| parser.place() != ReplyPlace::Thought) {
                    self.place = self.begin(false, LINE_ENDS);
                    let rest = parser.map_or("", |parser| parser.pending().trim_start_matches('\n'));
                    return self.go_on(rest);
                }
            }
            Place::Text => {
                if let Some(parser) = parser
                    && parser.place() == ReplyPlace::Call
                {
                    return self.begin_call(parser.pending());
                }
            }
            Place::Held(held) => {
                let first = std::mem::take(&mut held.may_think);
                if first && tokens.think() == Some(token) {
                    self.place = Place::Thought;
                    return Ok(());
                }
                let most = std::mem::take(&mut held.line_ends);
                if let Some((_, line_ends)) = tokens.line_ends(most).find(|(id, _)| *id == token) {
                    held.line_ends = most - line_ends;
                    return Ok(());
                }
                held.mask.accept(token)?;
                self.step();
            }
        }
        Ok(())
    }

    /// What holds after the thoughts.
    fn begin(&self, may_think: bool, line_ends: usize) -> Place {
        let inner = &self.constraint.inner;
        match &inner.whole {
            Some(whole) => Place::Held(Held {
                mask: Box::new(copy(whole)),
                is_call: false,
                may_think: may_think && inner.may_think,
                line_ends,
            }),
            None => Place::Text,
        }
    }

    /// A call has begun; `rest` came in one token with its marker. If that cannot be the call's, the call is not held.
    fn begin_call(&mut self, rest: &str) -> Result<()> {
        let Some(call) = &self.constraint.inner.call else { return Ok(()) };
        let mut mask = Box::new(copy(call));
        if mask.accept_text(rest)? {
            self.place = Place::Held(Held { mask, is_call: true, may_think: false, line_ends: 0 });
            self.step();
        }
        Ok(())
    }

    /// Goes on with text that came in one token with the end of a thought.
    fn go_on(&mut self, rest: &str) -> Result<()> {
        if let Place::Held(held) = &mut self.place
            && held.mask.accept_text(rest)?
        {
            if !rest.is_empty() {
                held.line_ends = 0;
            }
            self.step();
        }
        Ok(())
    }

    /// Leaves what has ended.
    fn step(&mut self) {
        if let Place::Held(held) = &self.place
            && held.mask.is_over()
        {
            let goes_on = held.is_call && self.constraint.inner.parallel;
            self.place = if goes_on { Place::Text } else { Place::Over };
        }
    }
}
