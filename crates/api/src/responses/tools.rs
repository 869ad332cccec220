//! Tools: functions, and namespaces of functions.

use std::collections::BTreeMap;

use engine::text::Json;

use crate::body::{At, shown};
use crate::fields::Ignored;
use crate::openai::mode;
use crate::tools::{NO_FUNCTION, Tools, check_choice, function};
use crate::{ApiError, Chat, Limits, ToolChoice};

/// The functions on offer.
#[derive(Default)]
pub(super) struct Offer {
    tools: Tools,
    namespaced: BTreeMap<String, (String, String)>,
}

/// What a function of a namespace is offered as.
pub(super) fn full_name(namespace: &str, name: &str) -> String {
    format!("{namespace}.{name}")
}

impl Offer {
    /// Adds what a list of tools holds.
    pub(super) fn list(&mut self, list: &At, limits: &Limits, ignored: &mut Ignored) -> Result<(), ApiError> {
        for tool in Tools::items(list)? {
            match tool.need("type")?.string()? {
                "function" => {
                    self.tools.push(&tool, function(&tool, None, "parameters")?, limits, ignored)?;
                }
                "namespace" => self.namespace(&tool, limits, ignored)?,
                _ => ignored.push(&tool, NO_FUNCTION, limits)?,
            }
        }
        Ok(())
    }

    fn namespace(&mut self, at: &At, limits: &Limits, ignored: &mut Ignored) -> Result<(), ApiError> {
        let namespace = at.need("name")?.string()?;
        for tool in Tools::items(&at.need("tools")?)? {
            if tool.need("type")?.string()? != "function" {
                ignored.push(&tool, NO_FUNCTION, limits)?;
                continue;
            }
            let name = tool.need("name")?.string()?;
            let full = full_name(namespace, name);
            let spec = function(&tool, Some(full.clone()), "parameters")?;
            if self.tools.push(&tool, spec, limits, ignored)? {
                self.namespaced.insert(full, (namespace.to_owned(), name.to_owned()));
            }
        }
        Ok(())
    }

    /// Puts the functions into `chat`, those of `choice` alone where it names some, and what of them must be called.
    pub(super) fn choose(self, choice: Option<&At>, chat: &mut Chat) -> Result<(), ApiError> {
        chat.tools = self.tools.into_specs();
        chat.namespaced = self.namespaced;
        let Some(at) = choice else { return Ok(()) };
        chat.tool_choice = match at.json() {
            Json::String(_) => mode(at)?,
            _ => match at.need("type")?.string()? {
                "function" => ToolChoice::Function(named(at)?),
                "allowed_tools" => {
                    let allowed = allowed(at)?;
                    chat.tools.retain(|tool| allowed.iter().any(|name| name == tool.name()));
                    mode(&at.need("mode")?)?
                }
                other => {
                    return Err(
                        at.unsupported(format_args!("a choice of type {} names no tool", shown(other)))
                    );
                }
            },
        };
        check_choice(at, &chat.tool_choice, &chat.tools)
    }
}

/// The functions among the tools that a choice allows.
fn allowed(at: &At) -> Result<Vec<String>, ApiError> {
    let tools = at.need("tools")?;
    let named_ones = Tools::items(&tools)?.filter(|tool| tool.get("name").is_some());
    named_ones.map(|tool| named(&tool)).collect()
}

/// The offered name of the function that `at` names.
fn named(at: &At) -> Result<String, ApiError> {
    let name = at.need("name")?.string()?;
    Ok(match at.get("namespace") {
        Some(namespace) => full_name(namespace.string()?, name),
        None => name.to_owned(),
    })
}
