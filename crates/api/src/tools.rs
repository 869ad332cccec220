//! Tools on offer, and whether they must be called.

use std::collections::HashSet;

use engine::text::{Json, JsonMap, ToolSpec};
use serde_json::Value;

use crate::body::{At, shown};
use crate::fields::Ignored;
use crate::{ApiError, Limits, ToolChoice};

/// A request may offer this many tools.
pub const TOOLS_MAX: usize = 2000;

/// A schema has at most so many bytes as JSON text.
pub const SCHEMA_BYTES_MAX: usize = 1 << 20;

pub(crate) const NAME_BYTES_MAX: usize = 256;

/// A kind of tool that is left out, for the error of a strict server.
pub(crate) const NO_FUNCTION: &str = "a tool that is no function";

/// The functions of a list of tools, in their order.
#[derive(Debug, Default)]
pub struct Tools {
    specs: Vec<ToolSpec>,
    names: HashSet<String>,
}

impl Tools {
    /// The items of a list of tools.
    ///
    /// # Errors
    /// `Invalid`: no list, or longer than [`TOOLS_MAX`].
    pub fn items<'a>(list: &At<'a>) -> Result<impl ExactSizeIterator<Item = At<'a>> + use<'a>, ApiError> {
        let items = list.items()?;
        match items.len() {
            0..=TOOLS_MAX => Ok(items),
            many => Err(list.wrong(format_args!("{many} tools, at most {TOOLS_MAX} can be offered"))),
        }
    }

    /// Adds the function that stands at `at`. A second one of the same name could not be told from the first in a call: it
    /// is left out and named, and the answer is `false`.
    ///
    /// # Errors
    /// `Invalid`: too many, or with `limits.strict` a name that is there already.
    pub fn push(
        &mut self,
        at: &At,
        spec: ToolSpec,
        limits: &Limits,
        ignored: &mut Ignored,
    ) -> Result<bool, ApiError> {
        if !self.names.insert(spec.name().to_owned()) {
            ignored.push(at, "another tool has this name", limits)?;
            return Ok(false);
        }
        if self.specs.len() >= TOOLS_MAX {
            return Err(at.wrong(format_args!("more than {TOOLS_MAX} tools")));
        }
        self.specs.push(spec);
        Ok(true)
    }

    /// The functions.
    pub fn into_specs(self) -> Vec<ToolSpec> {
        self.specs
    }
}

/// A function as templates see it, from the members of `at` as OpenAI names them: `name`, `description`, `parameters`, `strict`.
/// `name` replaces the function's own, and `schema` is the key of its parameters.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn function(at: &At, name: Option<String>, schema: &str) -> Result<ToolSpec, ApiError> {
    at.object()?;
    let own = at.need("name")?;
    let name = match name {
        Some(name) => name,
        None => own.string()?.to_owned(),
    };
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(own
            .wrong(format_args!("a tool's name has 1 to {NAME_BYTES_MAX} bytes and no control characters")));
    }
    let mut function = JsonMap::new();
    function.insert("name".into(), name.into());
    if let Some(description) = at.get("description") {
        function.insert("description".into(), description.string()?.into());
    }
    if let Some(parameters) = at.get(schema) {
        parameters.object()?;
        check_schema_size(&parameters)?;
        function.insert("parameters".into(), parameters.json().clone());
    }
    if let Some(strict) = at.get("strict") {
        function.insert("strict".into(), strict.flag()?.into());
    }
    let mut tool = JsonMap::new();
    tool.insert("type".into(), "function".into());
    tool.insert("function".into(), Json::Object(function));
    ToolSpec::new(Json::Object(tool)).map_err(|e| at.wrong(e.message()))
}

/// A schema that an answer must fit: an object, or `true` or `false`.
///
/// # Errors
/// `Invalid`, with the schema's path.
pub fn schema(at: &At) -> Result<Value, ApiError> {
    if !matches!(at.json(), Json::Object(_) | Json::Bool(_)) {
        return Err(at.wrong_type("a JSON schema"));
    }
    check_schema_size(at)?;
    at.value()
}

fn check_schema_size(at: &At) -> Result<(), ApiError> {
    match at.json().to_string().len() {
        0..=SCHEMA_BYTES_MAX => Ok(()),
        bytes => Err(at.wrong(format_args!("a schema of {bytes} bytes, at most {SCHEMA_BYTES_MAX}"))),
    }
}

/// Refuses a choice that no tool can satisfy. `at` is the `tool_choice`.
///
/// # Errors
/// `unsupported_value`.
pub fn check_choice(at: &At, choice: &ToolChoice, tools: &[ToolSpec]) -> Result<(), ApiError> {
    match choice {
        ToolChoice::Function(name) if !tools.iter().any(|tool| tool.name() == name) => {
            Err(at.unsupported(format_args!("no tool is named {}", shown(name))))
        }
        ToolChoice::Required if tools.is_empty() => {
            Err(at.unsupported("a call is required, and there is no function to call"))
        }
        _ => Ok(()),
    }
}
