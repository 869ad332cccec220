//! What an answer is held to.

use engine::text::{AnswerForm, CallRules, Constraint, ConstraintRequest, Tokenizer, ToolChoice as Choice};

use crate::Constraint as Asked;
use crate::prompts::Made;
use crate::{ApiError, Chat, ErrorClass, Prompt, Request, ToolChoice};

/// What holds the answer to `made`, where anything does. Takes time. `form_field` is where the client's API has the form of
/// an answer.
///
/// # Errors
/// `Invalid` for what cannot be kept.
pub(crate) fn constraint(
    tokenizer: &Tokenizer,
    request: &Request,
    made: &Made,
    form_field: &str,
) -> Result<Option<Constraint>, ApiError> {
    let answer = request.constraint.as_ref().map(form);
    let (calls, may_think) = match &request.prompt {
        Prompt::Chat(chat) => (calls(chat, made)?, may_think(chat, made)),
        Prompt::Texts(_) => (None, false),
    };
    if answer.is_none() && calls.is_none() {
        return Ok(None);
    }
    let has_answer = answer.is_some();
    let asked = ConstraintRequest { answer, calls, may_think };
    let constraint = Constraint::new(tokenizer, &asked).map_err(|e| {
        let refused = ApiError::of_engine(&e);
        let of_tools = !has_answer || refused.message.starts_with("tools");
        let param = if of_tools { "tools" } else { form_field };
        match refused.class {
            ErrorClass::Invalid => ApiError::schema(param, refused.message),
            _ => refused,
        }
    })?;
    Ok(Some(constraint).filter(|constraint| !constraint.is_empty()))
}

fn form(asked: &Asked) -> AnswerForm {
    match asked.clone() {
        Asked::JsonObject => AnswerForm::JsonObject,
        Asked::JsonSchema(schema) => AnswerForm::JsonSchema(schema.into()),
        Asked::Regex(regex) => AnswerForm::Regex(regex),
        Asked::Choice(texts) => AnswerForm::Choice(texts),
        Asked::Lark(grammar) => AnswerForm::Lark(grammar),
    }
}

/// Which calls may come. Where nobody knows how the model writes them they are free, if they need not come.
fn calls(chat: &Chat, made: &Made) -> Result<Option<CallRules>, ApiError> {
    let choice = match &chat.tool_choice {
        ToolChoice::None => return Ok(None),
        ToolChoice::Auto => Choice::Auto,
        ToolChoice::Required => Choice::Required,
        ToolChoice::Function(name) => Choice::Tool(name.clone()),
    };
    let tools = made.reply.as_ref().map(|reply| reply.tools.clone()).unwrap_or_default();
    match made.call_format {
        _ if tools.is_empty() => Ok(None),
        Some(format) => Ok(Some(CallRules { format, tools, choice, parallel: chat.parallel_calls })),
        None if choice == Choice::Auto => Ok(None),
        None => {
            let message =
                "the model's chat template does not show how it writes calls, so none can be made it to";
            let refused = ApiError::invalid(Some("tool_choice".to_owned()), message);
            Err(ApiError { code: Some("unsupported_value"), ..refused })
        }
    }
}

/// Whether the model may begin a thought of its own: not where the prompt has closed it already.
fn may_think(chat: &Chat, made: &Made) -> bool {
    chat.thinking != Some(false) && !made.text.trim_end().ends_with("</think>")
}
