//! How models write calls: a table, from whose rows both the reader of replies and the grammar that holds them take their
//! markers.

use super::json::Json;

pub(crate) const CALL: &str = "<tool_call>";
pub(crate) const CALL_END: &str = "</tool_call>";
pub(crate) const FUNCTION: &str = "<function=";
pub(crate) const FUNCTION_END: &str = "</function>";
pub(crate) const PARAMETER: &str = "<parameter=";
pub(crate) const PARAMETER_END: &str = "</parameter>";

/// How a model writes calls: a row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct CallFormat {
    name: &'static str,
    /// What a block begins and ends with.
    pub(crate) begin: &'static str,
    pub(crate) end: &'static str,
    /// What stands between two blocks.
    pub(crate) between: &'static str,
    pub(crate) body: CallBody,
}

/// How name and arguments are written in a block, which holds one call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CallBody {
    /// A line of JSON, `{"name": …, "arguments": {…}}`.
    Json,
    /// Tags around the name and around each argument. A string is written as it is, everything else as JSON.
    Tags,
}

/// The rows: Hermes and Qwen2.5 to Qwen3; Qwen3-Coder and Qwen3.5.
static FORMATS: [CallFormat; 2] = [
    CallFormat { name: "json", begin: CALL, end: CALL_END, between: "\n", body: CallBody::Json },
    CallFormat { name: "xml", begin: CALL, end: CALL_END, between: "\n", body: CallBody::Tags },
];

impl CallFormat {
    /// The format's name: `json` or `xml`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The format of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.name == name)
    }

    /// The format in which `text`, a rendered conversation, ends with a call of `tool`.
    pub(crate) fn of_text(text: &str, tool: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| {
            let block = text.rsplit_once(format.begin).and_then(|(_, block)| block.split_once(format.end));
            let Some((inner, _)) = block else { return false };
            match format.body {
                CallBody::Tags => inner.trim_start().starts_with(&format!("{FUNCTION}{tool}>")),
                CallBody::Json => {
                    let call = Json::parse(inner).ok();
                    let name = call.as_ref().and_then(|call| call.get("name")?.as_str());
                    name == Some(tool) && call.as_ref().is_some_and(|call| call.get("arguments").is_some())
                }
            }
        })
    }
}
