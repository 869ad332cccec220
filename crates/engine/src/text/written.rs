//! Turns of the model in a prompt, with the tokens as which the model wrote them.
//!
//! A tokenizer would cut most sampled texts in another way than they were sampled, and clients bring calls back with other
//! spaces and another order of keys. Either way the prompt departs from what was computed, and is computed again. So where a
//! rendered conversation shows a turn whose tokens are known ([`Message::written`]), those tokens stand there.
//!
//! Where a template shows a turn is found by having it render the conversation once more with marks in place of the turns'
//! texts and of the names of their calls. Only where that is the same text but for the marks, their places count.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use files::Result;

use super::chat::{Message, Role, ToolSpec};
use super::detokenize::Detokenizer;
use super::format::CallFormat;
use super::json::{Json, JsonMap};
use super::special::Fragment;
use super::tokenizer::Tokenizer;
use super::tool_markup::{Block, Call, parse};

/// Ends of a call that are tried.
const MOST_ENDS: usize = 8;

/// A rendered text, cut at its control tokens.
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// Where in the rendered text each begins.
    starts: Vec<usize>,
}

enum Piece {
    Token(u32),
    /// What the users wrote, without stand-ins.
    Text(String),
}

/// A place between two characters or control tokens: in a piece, or before it.
type Place = (usize, usize);

/// Tokens that stand for a part of the text.
pub(super) struct Splice {
    from: Place,
    to: Place,
    tokens: Vec<u32>,
}

impl Pieces {
    /// Cuts `rendered`; `restore` takes stand-ins out.
    pub(super) fn new(tokenizer: &Tokenizer, rendered: &str, restore: &dyn Fn(&str) -> String) -> Self {
        let (mut pieces, mut starts) = (Vec::new(), Vec::new());
        for (start, fragment) in tokenizer.fragments(rendered) {
            starts.push(start);
            pieces.push(match fragment {
                Fragment::Token(id) => Piece::Token(id),
                Fragment::Text(text) => Piece::Text(restore(text)),
            });
        }
        Self { pieces, starts }
    }

    /// The tokens of all of it; those of `splices`, which rise, stand for their parts.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, splices: &[Splice]) -> Result<Vec<u32>> {
        let mut out = Vec::new();
        let mut at = (0, 0);
        for splice in splices {
            self.encode_part(tokenizer, at, splice.from, &mut out)?;
            out.extend(&splice.tokens);
            at = splice.to;
        }
        self.encode_part(tokenizer, at, (self.pieces.len(), 0), &mut out)?;
        Ok(out)
    }

    fn encode_part(&self, tokenizer: &Tokenizer, from: Place, to: Place, out: &mut Vec<u32>) -> Result<()> {
        for (i, piece) in self.pieces.iter().enumerate().take(to.0 + 1).skip(from.0) {
            let start = if i == from.0 { from.1 } else { 0 };
            match piece {
                Piece::Token(id) if i < to.0 => out.push(*id),
                Piece::Token(_) => {}
                Piece::Text(text) => {
                    let part = &text[start..if i == to.0 { to.1 } else { text.len() }];
                    if !part.is_empty() {
                        tokenizer.encode_piece(part, (i, start) == (0, 0), out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The place of a byte of the rendered text.
    fn place(&self, rendered: &str, at: usize, restore: &dyn Fn(&str) -> String) -> Option<Place> {
        let piece = self.starts.partition_point(|start| *start <= at).checked_sub(1)?;
        let inner = at - self.starts[piece];
        match &self.pieces[piece] {
            Piece::Token(_) if inner == 0 => Some((piece, 0)),
            // White space that a control token takes along.
            Piece::Token(_) => Some((piece + 1, 0)),
            Piece::Text(text) => {
                let before = restore(&rendered[self.starts[piece]..at]).len();
                Some(if before == text.len() { (piece + 1, 0) } else { (piece, before) })
            }
        }
    }

    /// The place after a unit of a turn that begins at `at`, if it does.
    fn after(&self, at: Place, turn: &Turn<'_>, unit: &Unit) -> Option<Place> {
        match self.pieces.get(at.0)? {
            Piece::Token(own) => (unit.control == Some(*own)).then_some((at.0 + 1, 0)),
            Piece::Text(text) => {
                let shown = turn.plain(unit)?;
                let rest = text[at.1..].strip_prefix(shown)?;
                Some(if rest.is_empty() { (at.0 + 1, 0) } else { (at.0, at.1 + shown.len()) })
            }
        }
    }

    /// The place before a unit of a turn that ends at `at`, if it does.
    fn before(&self, at: Place, turn: &Turn<'_>, unit: &Unit) -> Option<Place> {
        let (piece, end) = if at.1 > 0 { (at.0, Some(at.1)) } else { (at.0.checked_sub(1)?, None) };
        match &self.pieces[piece] {
            Piece::Token(own) => (unit.control == Some(*own)).then_some((piece, 0)),
            Piece::Text(text) => {
                let before = text[..end.unwrap_or(text.len())].strip_suffix(turn.plain(unit)?)?;
                Some((piece, before.len()))
            }
        }
    }
}

/// What a mark stands for.
struct Mark {
    message: usize,
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Thoughts,
    Content,
    Call(usize),
}

/// A conversation in which the texts of known turns are marks.
pub(super) struct Marked {
    marks: BTreeMap<char, Mark>,
    /// What the template is to render.
    pub(super) context: Json,
}

impl Marked {
    /// `context` is what the template sees; `free` are characters that occur nowhere in it. Nothing where no turn is known.
    pub(super) fn new(
        messages: &[Message],
        context: &JsonMap,
        free: &mut dyn Iterator<Item = char>,
    ) -> Option<Self> {
        let known = |message: &Message| message.role == Role::Assistant && message.written.is_some();
        if !messages.iter().any(known) {
            return None;
        }
        let mut context = context.clone();
        let Some(Json::Array(values)) = context.get_mut("messages") else { return None };
        let mut marks = BTreeMap::new();
        let written = messages.iter().zip(values).enumerate().filter(|(_, (message, _))| known(message));
        for (at, (_, value)) in written {
            let Json::Object(turn) = value else { continue };
            for (key, kind) in [("reasoning_content", Kind::Thoughts), ("content", Kind::Content)] {
                if let Some(Json::String(text)) = turn.get_mut(key) {
                    mark(text, (at, kind), free, &mut marks);
                }
            }
            let Some(Json::Array(calls)) = turn.get_mut("tool_calls") else { continue };
            for (i, call) in calls.iter_mut().enumerate() {
                let Json::Object(call) = call else { continue };
                if let Some(Json::Object(function)) = call.get_mut("function")
                    && let Some(Json::String(name)) = function.get_mut("name")
                {
                    mark(name, (at, Kind::Call(i)), free, &mut marks);
                }
            }
        }
        Some(Self { marks, context: Json::Object(context) })
    }

    /// What each mark stands for, and where in `rendered` that is; nothing where `marked` is another text.
    fn places(&self, rendered: &str, marked: &str) -> Vec<(&Mark, Range<usize>)> {
        let (mut found, mut plain) = (Vec::new(), String::with_capacity(rendered.len()));
        for c in marked.chars() {
            match self.marks.get(&c) {
                Some(mark) => {
                    let start = plain.len();
                    plain.push_str(&mark.text);
                    found.push((mark, start..plain.len()));
                }
                None => plain.push(c),
            }
        }
        if plain == rendered { found } else { Vec::new() }
    }

    /// The tokens of the known turns, where `rendered` shows them; `marked` is what the template made of
    /// `context`.
    pub(super) fn splices(
        &self,
        pieces: &Pieces,
        (rendered, marked): (&str, &str),
        restore: &dyn Fn(&str) -> String,
        turns: &Turns<'_>,
    ) -> Vec<Splice> {
        let places = self.places(rendered, marked);
        let place = |at| pieces.place(rendered, at, restore);
        let mut splices: Vec<Splice> = Vec::new();
        for parts in places.chunk_by(|(a, _), (b, _)| a.message == b.message) {
            let Some(mut turn) = Turn::new(turns, parts[0].0.message) else { continue };
            let span = |name: &Range<usize>| {
                let block = turns.block(rendered, name)?;
                Some(place(block.start)?..place(block.end)?)
            };
            for (mark, name) in parts {
                if let (Kind::Call(call), Some(span)) = (mark.kind, span(name)) {
                    turn.find_call(call, span);
                }
            }
            for (mark, range) in parts {
                let floor = splices.last().map_or((0, 0), |splice| splice.to);
                splices.extend(match mark.kind {
                    Kind::Call(call) => turn.call(pieces, call, floor),
                    Kind::Thoughts | Kind::Content => {
                        let text = restore(&mark.text);
                        place(range.start).and_then(|at| turn.text(pieces, &text, at, floor))
                    }
                });
            }
        }
        splices
    }
}

/// Puts a mark in the place of a text, between its white space, which templates cut off or look at.
fn mark(
    text: &mut String,
    (message, kind): (usize, Kind),
    free: &mut dyn Iterator<Item = char>,
    marks: &mut BTreeMap<char, Mark>,
) {
    let core = text.trim();
    if core.is_empty() {
        return;
    }
    let Some(c) = free.next() else { return };
    let start = text.len() - text.trim_start().len();
    let core = core.to_owned();
    text.replace_range(start..start + core.len(), c.encode_utf8(&mut [0; 4]));
    marks.insert(c, Mark { message, kind, text: core });
}

/// What the turns are of.
pub(super) struct Turns<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) messages: &'a [Message],
    pub(super) tools: &'a [ToolSpec],
    pub(super) format: Option<&'static CallFormat>,
}

impl Turns<'_> {
    /// The block around a call's name.
    fn block(&self, rendered: &str, name: &Range<usize>) -> Option<Range<usize>> {
        let format = self.format?;
        let start = rendered[..name.start].rfind(format.begin)?;
        let end = name.end + rendered[name.end..].find(format.end)? + format.end.len();
        Some(start..end)
    }
}

/// A turn as its model wrote it.
struct Turn<'a> {
    message: &'a Message,
    tokens: Arc<[u32]>,
    /// What its client saw, and the markup.
    text: String,
    units: Vec<Unit>,
    /// Units that stand in the prompt already.
    used: usize,
    /// What could be calls in its text, in their order.
    blocks: Vec<(Range<usize>, Call)>,
    /// Calls whose units are known, in their order.
    calls: Vec<WrittenCall>,
    /// Their blocks are before this byte of the text.
    calls_end: usize,
}

/// As few tokens as make whole characters.
struct Unit {
    /// Of the turn's tokens.
    tokens: Range<usize>,
    /// Of the turn's text.
    text: Range<usize>,
    /// The control token that it is.
    control: Option<u32>,
    /// It has a control token within a character, which no prompt has.
    broken: bool,
}

struct WrittenCall {
    call: usize,
    /// Its block in the prompt.
    span: Range<Place>,
    units: Range<usize>,
}

impl<'a> Turn<'a> {
    fn new(turns: &'a Turns<'a>, message: usize) -> Option<Self> {
        let message = &turns.messages[message];
        let tokens = message.written.clone()?;
        let mut detokenizer = Detokenizer::new(turns.tokenizer);
        let (mut text, mut units, mut broken) = (String::new(), Vec::<Unit>::new(), false);
        let mut add = |tokens_end, text_end, control, broken| {
            let (token, start) = units.last().map_or((0, 0), |unit| (unit.tokens.end, unit.text.end));
            units.push(Unit { tokens: token..tokens_end, text: start..text_end, control, broken });
        };
        for (i, id) in tokens.iter().enumerate() {
            let is_control = turns.tokenizer.is_special(*id);
            broken |= is_control && !detokenizer.is_whole();
            text.push_str(&detokenizer.push(*id));
            if detokenizer.is_whole() {
                let control = Some(*id).filter(|_| is_control && !broken);
                add(i + 1, text.len(), control, broken);
                broken = false;
            }
        }
        if !detokenizer.is_whole() {
            text.push_str(&detokenizer.finish());
            add(tokens.len(), text.len(), None, broken);
        }
        let blocks = turns.format.map_or_else(Vec::new, |format| blocks(&text, format, turns.tools));
        let (calls, calls_end) = (Vec::new(), 0);
        Some(Self { message, tokens, text, units, used: 0, blocks, calls, calls_end })
    }

    /// Where the text of a unit begins.
    fn start(&self, unit: usize) -> usize {
        self.units.get(unit).map_or(self.text.len(), |unit| unit.text.start)
    }

    /// The first unit that begins at `at` or after it.
    fn unit_from(&self, at: usize) -> usize {
        self.units.partition_point(|unit| unit.text.start < at)
    }

    /// The text of a unit that is no control token, if it has any.
    fn plain(&self, unit: &Unit) -> Option<&str> {
        let text = &self.text[unit.text.clone()];
        (unit.control.is_none() && !unit.broken && !text.is_empty()).then_some(text)
    }

    /// The units of a text that stands at `at` in the prompt, and of what is around it as far as that is the same.
    fn text(&mut self, pieces: &Pieces, core: &str, at: Place, floor: Place) -> Option<Splice> {
        let from = self.start(self.used);
        let start = from + self.text[from..].find(core)?;
        let unit = self.unit_from(start);
        let within = self.start(unit) - start;
        if unit == self.units.len() || within >= core.len() || at < floor {
            return None;
        }
        // A text without control tokens is one piece.
        let at = match pieces.pieces.get(at.0)? {
            Piece::Text(text) if text.is_char_boundary(at.1 + within) => (at.0, at.1 + within),
            _ if within == 0 => at,
            _ => return None,
        };
        self.spread(pieces, (unit, at), (unit, at), floor)
    }

    /// Finds the units of the call whose block takes up `span` in the prompt, however the prompt writes it.
    fn find_call(&mut self, call: usize, span: Range<Place>) -> Option<()> {
        let wanted = self.message.tool_calls.get(call)?;
        // Whoever writes the call to the prompt must mean the same as the model did.
        let is_it = |(block, (name, arguments)): &&(Range<usize>, Call)| {
            block.start >= self.calls_end && *name == wanted.name && same(arguments, &wanted.arguments)
        };
        let Range { start, end } = self.blocks.iter().find(is_it)?.0.clone();
        self.calls_end = end;
        let units = self.unit_from(start)..self.unit_from(end);
        let aligned = !units.is_empty()
            && self.start(units.start) == start
            && self.units[units.end - 1].text.end == end;
        if aligned {
            self.calls.push(WrittenCall { call, span, units });
        }
        Some(())
    }

    /// The units of a call that was found.
    fn call(&mut self, pieces: &Pieces, call: usize, floor: Place) -> Option<Splice> {
        let WrittenCall { span, units, .. } = self.calls.iter().find(|found| found.call == call)?;
        if units.start < self.used || span.start < floor {
            return None;
        }
        let (first, last) = ((units.start, span.start), (units.end, span.end));
        self.spread(pieces, first, last, floor)
    }

    /// Spreads a splice to both sides as far as the prompt has the turn's own text there.
    fn spread(
        &mut self,
        pieces: &Pieces,
        (mut first, mut from): (usize, Place),
        (mut last, mut to): (usize, Place),
        floor: Place,
    ) -> Option<Splice> {
        // The next call has its own units.
        let call = self.calls.iter().find(|call| call.units.start >= last && call.span.start >= to);
        let (units_end, end) =
            call.map_or((self.units.len(), None), |call| (call.units.start, Some(call.span.start)));
        while last < units_end
            && let Some(next) = pieces.after(to, self, &self.units[last])
            && end.is_none_or(|end| next <= end)
        {
            (last, to) = (last + 1, next);
        }
        while first > self.used
            && let Some(next) = pieces.before(from, self, &self.units[first - 1])
            && next >= floor
        {
            (first, from) = (first - 1, next);
        }
        if last == first {
            return None;
        }
        self.used = last;
        let tokens = self.units[first].tokens.start..self.units[last - 1].tokens.end;
        let tokens = self.tokens[tokens].to_vec();
        Some(Splice { from, to, tokens })
    }
}

/// What could be calls in a text: a value may hold the marker that ends one, so that several ends can be right.
fn blocks(text: &str, format: &CallFormat, tools: &[ToolSpec]) -> Vec<(Range<usize>, Call)> {
    let ends_of = |(start, begin): (usize, &str)| {
        let inner = start + begin.len();
        let ends = text[inner..].match_indices(format.end).take(MOST_ENDS);
        ends.filter_map(move |(at, end)| {
            let Block { mut calls, .. } = parse(&text[inner..inner + at], tools).ok()?;
            let call = calls.pop().filter(|_| calls.is_empty())?;
            Some((start..inner + at + end.len(), call))
        })
    };
    text.match_indices(format.begin).flat_map(ends_of).collect()
}

/// Whether two values are the same but for the order of keys and the digits of numbers, which clients change.
fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Json::Number(a), Json::Number(b)) => {
            let value = |digits: &str| digits.parse::<f64>().ok();
            a == b || value(a).is_some_and(|a| Some(a) == value(b))
        }
        _ => a == b,
    }
}
