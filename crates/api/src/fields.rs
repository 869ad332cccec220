//! Which fields of a request are honoured, which ask nothing of the answer, and which are refused by name: one table an
//! API. Reading and the documents use the same table, so they cannot disagree.

use engine::text::Json;

use crate::body::{At, shown};
use crate::schema::Shape;
use crate::{ApiError, Limits};

/// A header names at most this many ignored fields.
const IGNORED_MAX: usize = 32;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// It does what the API says.
    Honoured,
    /// It asks nothing of the answer and is taken.
    Inert,
    /// The same while its value is one of these JSON texts; any other is named in the answer's header.
    InertAs(&'static [&'static str]),
    /// The answer would be another one: 400, unless the value is one of these JSON texts, which ask for nothing.
    Refused(&'static [&'static str]),
}

/// A row of an API's table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Field {
    /// Where it stands, as in `stream_options.include_usage`. What is below a field without rows of its own belongs to it.
    pub path: &'static str,
    /// What becomes of it.
    pub kind: FieldKind,
    /// The values that it takes.
    pub shape: Shape,
    /// Whether it must be there.
    pub needed: bool,
    /// For the reader of the table, and of a refusal.
    pub note: &'static str,
}

/// A row of a field that is honoured.
pub const fn honoured(path: &'static str, shape: Shape, note: &'static str) -> Field {
    Field { path, kind: FieldKind::Honoured, shape, needed: false, note }
}

/// A row of a field that is honoured and must be there.
pub const fn needed(path: &'static str, shape: Shape, note: &'static str) -> Field {
    Field { needed: true, ..honoured(path, shape, note) }
}

/// A row of a field whose values are not looked at, or only to refuse it.
const fn unread(path: &'static str, kind: FieldKind, note: &'static str) -> Field {
    Field { path, kind, shape: Shape::Any, needed: false, note }
}

/// A row of a field that asks nothing of the answer.
pub const fn inert(path: &'static str, note: &'static str) -> Field {
    unread(path, FieldKind::Inert, note)
}

/// A row of a field that asks nothing of the answer while it is one of `values`.
pub const fn inert_as(path: &'static str, values: &'static [&'static str], note: &'static str) -> Field {
    unread(path, FieldKind::InertAs(values), note)
}

/// A row of a field that is refused unless it is one of `harmless`. The note says why, after the field's name.
pub const fn refused(path: &'static str, harmless: &'static [&'static str], note: &'static str) -> Field {
    unread(path, FieldKind::Refused(harmless), note)
}

/// Paths that are left out of a request, as its answer's header names them.
#[derive(Debug, Default)]
pub struct Ignored {
    paths: Vec<String>,
    more: usize,
}

impl Ignored {
    /// Adds one. With `limits.strict` it is refused, and `what` says what it is.
    ///
    /// # Errors
    /// `Invalid`, with the path.
    pub fn push(&mut self, at: &At, what: &str, limits: &Limits) -> Result<(), ApiError> {
        let path = shown(at.path());
        if limits.strict {
            let error = ApiError::invalid(path.clone(), format!("`{path}`: {what}."));
            return Err(ApiError { code: Some("unsupported_value"), ..error });
        }
        if self.paths.len() < IGNORED_MAX {
            self.paths.push(path);
        } else {
            self.more += 1;
        }
        Ok(())
    }

    /// The paths, and how many there are no names of.
    pub fn into_paths(mut self) -> Vec<String> {
        if self.more > 0 {
            self.paths.push(format!("and {} more", self.more));
        }
        self.paths
    }
}

/// Goes through all fields of `body`: refuses what `table` refuses, and puts what nobody knows into `ignored`.
///
/// # Errors
/// `Invalid`, with the field's path; `unsupported_value` for what is refused by name.
pub fn check(body: &At, table: &[Field], limits: &Limits, ignored: &mut Ignored) -> Result<(), ApiError> {
    for (key, at) in body.members()? {
        if key.contains('.') || key.trim() != key {
            // Its path would look like another field's.
            ignored.push(&at, "an unknown field", limits)?;
            continue;
        }
        let below = format!("{}.", at.path());
        let has_rows = table.iter().any(|field| field.path.starts_with(&below));
        match table.iter().find(|field| field.path == at.path()) {
            Some(field) => check_field(&at, field, limits, ignored)?,
            None if has_rows => drop(at.object()?),
            None => ignored.push(&at, "an unknown field", limits)?,
        }
        if has_rows && matches!(at.json(), Json::Object(_)) {
            check(&at, table, limits, ignored)?;
        }
    }
    Ok(())
}

fn check_field(at: &At, field: &Field, limits: &Limits, ignored: &mut Ignored) -> Result<(), ApiError> {
    let is_one_of = |values: &[&str]| {
        values.iter().any(|value| Json::parse(value).is_ok_and(|value| value == *at.json()))
    };
    match field.kind {
        FieldKind::Honoured | FieldKind::Inert => Ok(()),
        FieldKind::InertAs(values) if is_one_of(values) => Ok(()),
        FieldKind::InertAs(_) => ignored.push(at, "a value without effect here", limits),
        FieldKind::Refused(harmless) if is_one_of(harmless) => Ok(()),
        FieldKind::Refused(_) => Err(at.unsupported(field.note)),
    }
}

/// The table as Markdown, for the documents.
pub fn markdown(table: &[Field]) -> String {
    let mut text = String::from("| field | what becomes of it | |\n|---|---|---|\n");
    for Field { path, kind, note, .. } in table {
        let values = |values: &[&str]| {
            let quoted: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            quoted.join(", ")
        };
        let kind = match kind {
            FieldKind::Honoured => "honoured".to_owned(),
            FieldKind::Inert => "accepted without effect".to_owned(),
            FieldKind::InertAs(list) => format!("{} accepted without effect, else named", values(list)),
            FieldKind::Refused([]) => "refused".to_owned(),
            FieldKind::Refused(list) => format!("refused unless {}", values(list)),
        };
        text.push_str(&format!("| `{path}` | {kind} | {note} |\n"));
    }
    text
}
