//! Answers that are held to a form: JSON of a schema, a regular expression, a choice, a grammar; and calls of tools whose
//! names and arguments are those that were offered.
//!
//! A [`Constraint`] is compiled before anything is computed, so that what cannot be kept is refused first. It holds what
//! comes after the thoughts. In `auto`, text is free, and a call is held from the marker on that begins it.

mod calls;
pub(crate) mod guide;
mod mask;
mod schema;
pub(crate) mod tokens;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use files::{Error, Result};
use llguidance::api::TopLevelGrammar;

use self::calls::Keep;
use self::mask::GrammarMask;
use self::schema::{Unkept, prepared, with_options};
use self::tokens::GrammarTokens;
use super::chat::ToolSpec;
use super::format::CallFormat;
use super::json::Json;
use super::tokenizer::Tokenizer;

/// Texts of schemas and grammars are at most this long.
const MAX_BYTES: usize = 1 << 20;

/// Grammars are shorter, and have no more rules, nor nest deeper, since the compiler's stack grows with them.
const MAX_LARK_BYTES: usize = 128 << 10;
const MOST_RULES: usize = 2_000;
const MAX_NESTING: usize = 100;

/// What an answer's text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerForm {
    /// Any object of JSON.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Json),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// Whether calls may or must come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Text, calls, or both.
    #[default]
    Auto,
    /// Calls, and nothing else after the thoughts.
    Required,
    /// Calls of this tool, and nothing else after the thoughts.
    Tool(String),
}

/// Which calls may come.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRules {
    /// How the model writes them: see [`Template::call_format`](super::Template::call_format).
    pub format: &'static CallFormat,
    /// The tools that were offered.
    pub tools: Vec<ToolSpec>,
    /// Whether they may or must be called.
    pub choice: ToolChoice,
    /// Whether there may be several calls. If not, the answer ends with the first.
    pub parallel: bool,
}

/// What to hold an answer to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConstraintRequest {
    /// What its text must be. With calls beside it, the answer is this or calls.
    pub answer: Option<AnswerForm>,
    /// Which calls may come; `None` leaves them free, or is for a conversation without tools.
    pub calls: Option<CallRules>,
    /// Whether the model may begin with a `<think>` of its own. Where the prompt has opened the thought, it may anyway.
    pub may_think: bool,
}

/// What an answer is held to, ready for use. A copy shares what it has learned.
#[derive(Clone)]
pub struct Constraint {
    inner: Arc<Inner>,
}

struct Inner {
    tokens: Arc<GrammarTokens>,
    /// Of all that comes after the thoughts.
    whole: Option<Mutex<GrammarMask>>,
    /// Of what follows the marker that begins a call.
    call: Option<Mutex<GrammarMask>>,
    parallel: bool,
    may_think: bool,
    left_out: Vec<String>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("left_out", &self.inner.left_out).finish_non_exhaustive()
    }
}

impl Constraint {
    /// Compiles what `request` asks for, over the vocabulary of `tokenizer`. Takes milliseconds, and a second or two for
    /// the first one: see [`Tokenizer::prepare_grammars`].
    ///
    /// # Errors
    /// `InvalidRequest` for a schema or grammar that is none, that cannot be kept, that nothing fits, or that costs too
    /// much; for a choice of a tool that was not offered.
    pub fn new(tokenizer: &Tokenizer, request: &ConstraintRequest) -> Result<Self> {
        let tokens = tokenizer.grammar_tokens()?;
        let mut left_out = Vec::new();
        let answer = request.answer.as_ref().map(answer_rules).transpose()?;
        let calls = request.calls.as_ref().filter(|calls| !calls.tools.is_empty());
        let (mut whole, mut call) = (None, None);
        match (answer, calls) {
            (None, None) => {}
            (Some(Rules::Whole(grammar)), None) => whole = Some(compile(&tokens, grammar, ANSWER)?),
            (Some(Rules::Lark(rules)), None) => {
                whole = Some(compile(&tokens, lark(format!("start: answer\n{rules}")), ANSWER)?);
            }
            (_, Some(calls)) if calls.choice != ToolChoice::Auto => {
                let start = format!("start: {}\n", all_calls(calls));
                whole = Some(with_blocks(&tokens, calls, &start, TOOLS, &mut left_out)?);
            }
            (Some(Rules::Whole(_)), Some(_)) => {
                return Err(Error::invalid("an answer's grammar and tools cannot be asked for together"));
            }
            (Some(Rules::Lark(answer)), Some(calls)) => {
                let start = format!("start: answer | {}\n{answer}", all_calls(calls));
                whole = Some(with_blocks(&tokens, calls, &start, ANSWER, &mut left_out)?);
            }
            (None, Some(calls)) => {
                call = Some(with_blocks(&tokens, calls, "start: block\n", TOOLS, &mut left_out)?);
            }
        }
        let (whole, call) = (whole.map(Mutex::new), call.map(Mutex::new));
        let parallel = calls.is_none_or(|calls| calls.parallel);
        let inner = Inner { tokens, whole, call, parallel, may_think: request.may_think, left_out };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What of the tools' schemas cannot be kept and was left out, by its place.
    pub fn left_out(&self) -> &[String] {
        &self.inner.left_out
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.inner.whole.is_none() && self.inner.call.is_none()
    }
}

const ANSWER: &str = "the answer's form";
const TOOLS: &str = "tools";
const NOTHING_FITS: &str = "nothing fits";

/// A grammar, whole or as the rules of `answer`.
enum Rules {
    Whole(TopLevelGrammar),
    Lark(String),
}

fn lark(text: String) -> TopLevelGrammar {
    TopLevelGrammar::from_lark(text)
}

fn answer_rules(form: &AnswerForm) -> Result<Rules> {
    let json = |schema: &Json| -> Result<Rules> {
        let at = "schema";
        let schema = prepared(schema, at, Unkept::Refuse)?;
        Ok(Rules::Lark(format!("answer: %json {}\n", with_options(schema, false))))
    };
    let size = match form {
        AnswerForm::JsonSchema(schema) => schema.to_string().len(),
        AnswerForm::Regex(text) | AnswerForm::Lark(text) => text.len(),
        AnswerForm::Choice(list) => list.iter().map(String::len).sum(),
        AnswerForm::JsonObject => 0,
    };
    if size > MAX_BYTES {
        return Err(Error::invalid(format!("{ANSWER}: {size} bytes, at most {MAX_BYTES}")));
    }
    match form {
        AnswerForm::JsonObject => {
            let object = [("type".to_owned(), Json::from("object"))].into_iter().collect();
            json(&Json::Object(object))
        }
        AnswerForm::JsonSchema(schema) => json(schema),
        AnswerForm::Regex(regex) => Ok(Rules::Whole(TopLevelGrammar::from_regex(regex))),
        AnswerForm::Lark(text) => {
            check_lark(text)?;
            Ok(Rules::Whole(lark(text.clone())))
        }
        AnswerForm::Choice(list) if list.is_empty() => Err(Error::invalid("choice: the list is empty")),
        AnswerForm::Choice(list) => {
            let choices: Vec<String> = list.iter().map(|text| calls::quoted(text)).collect();
            Ok(Rules::Lark(format!("answer: {}\n", choices.join(" | "))))
        }
    }
}

/// Refuses a grammar that would cost too much to compile.
fn check_lark(text: &str) -> Result<()> {
    let rules = text.lines().filter(|line| line.contains(':')).count();
    let nesting = text.chars().scan(0usize, |depth, c| {
        match c {
            '(' | '[' | '{' => *depth += 1,
            ')' | ']' | '}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    let what = match () {
        () if text.len() > MAX_LARK_BYTES => format!("more than {MAX_LARK_BYTES} bytes"),
        () if rules > MOST_RULES => format!("more than {MOST_RULES} rules"),
        () if nesting.max() > Some(MAX_NESTING) => format!("brackets nest deeper than {MAX_NESTING}"),
        () => return Ok(()),
    };
    Err(Error::invalid(format!("grammar: too large: {what}")))
}

/// One or more calls, with their markers.
fn all_calls(calls: &CallRules) -> String {
    let begin = calls::quoted(calls.format.begin);
    if calls.parallel {
        format!("{begin} block ({} {begin} block)*", calls::quoted(calls.format.between))
    } else {
        format!("{begin} block")
    }
}

/// The grammar of `start`, which names the rule `block`: what follows the marker of a call, of any tool that may be called.
/// `at` is named if what `start` says is refused.
fn with_blocks(
    tokens: &GrammarTokens,
    calls: &CallRules,
    start: &str,
    at: &str,
    left_out: &mut Vec<String>,
) -> Result<GrammarMask> {
    let may = |tool: &&ToolSpec| !matches!(&calls.choice, ToolChoice::Tool(name) if tool.name() != name);
    let tools: Vec<&ToolSpec> = calls.tools.iter().filter(may).collect();
    if let (ToolChoice::Tool(name), true) = (&calls.choice, tools.is_empty()) {
        return Err(Error::invalid(format!("tool_choice: no tool is called {name:?}")));
    }
    let write = |keep: &dyn Fn(usize) -> Keep, left_out: &mut Vec<String>| -> Result<TopLevelGrammar> {
        let (mut names, mut all) = (Vec::new(), calls::terminals());
        for (i, tool) in tools.iter().enumerate() {
            names.push(format!("t{i}"));
            all.push_str(&calls::rules(calls.format, tool, &names[i], keep(i), left_out)?);
        }
        Ok(lark(format!("{start}block: {}\n{all}", names.join(" | "))))
    };
    let mut all_left_out = Vec::new();
    let whole = write(&|_| Keep::All, &mut all_left_out)?;
    if let Ok(mask) = tokens.compile(whole) {
        left_out.append(&mut all_left_out);
        return Ok(mask);
    }
    // Some tool asks for too much: which one, and for what, each shows alone.
    let mut keeps = Vec::new();
    for tool in &tools {
        keeps.push(most_that_is_kept(tokens, calls, tool, left_out)?);
    }
    compile(tokens, write(&|i| keeps[i], left_out)?, at)
}

/// How much of a tool's schema the compiler takes.
fn most_that_is_kept(
    tokens: &GrammarTokens,
    calls: &CallRules,
    tool: &ToolSpec,
    left_out: &mut Vec<String>,
) -> Result<Keep> {
    let mut first = None;
    for keep in [Keep::All, Keep::Structure, Keep::Nothing] {
        let rules = calls::rules(calls.format, tool, "t0", keep, &mut Vec::new())?;
        match tokens.compile(lark(format!("start: t0\n{}{rules}", calls::terminals()))) {
            Ok(_) => {
                if let Some(reason) = first {
                    let what =
                        if keep == Keep::Nothing { "all of it" } else { "patterns, formats and bounds" };
                    left_out.push(format!("tools: {}: parameters: {what}: {reason}", tool.name()));
                }
                return Ok(keep);
            }
            Err(reason) => {
                let reason = short(&reason);
                if tool.is_strict() || fits_nothing(&reason) {
                    return Err(Error::invalid(format!("tools: {}: parameters: {reason}", tool.name())));
                }
                first.get_or_insert(reason);
            }
        }
    }
    Err(Error::invalid(format!("tools: {}: {}", tool.name(), first.unwrap_or_default())))
}

fn compile(tokens: &GrammarTokens, grammar: TopLevelGrammar, at: &str) -> Result<GrammarMask> {
    tokens.compile(grammar).map_err(|reason| Error::invalid(format!("{at}: {}", short(&reason))))
}

/// Whether the compiler says that no text fits.
fn fits_nothing(reason: &str) -> bool {
    reason.contains("nsatisfiable") || reason.contains(NOTHING_FITS)
}

/// The compiler's message without the grammar, of which it may show all.
fn short(reason: &str) -> String {
    const MOST: usize = 300;
    let lines = reason.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('<'));
    let own = lines.clone().filter(|line| !line.contains('|') && *line != "^").collect::<Vec<_>>().join("; ");
    let text = if own.is_empty() { lines.collect::<Vec<_>>().join("; ") } else { own };
    let text =
        if fits_nothing(&text) && text != NOTHING_FITS { format!("{NOTHING_FITS}: {text}") } else { text };
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn copy(mask: &Mutex<GrammarMask>) -> GrammarMask {
    mask.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
