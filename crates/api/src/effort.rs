//! How much a model shall think.

use crate::body::{At, shown};
use crate::{ApiError, Chat};

pub(crate) const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Tells the template of the effort that `at` names; templates that know none take no notice.
///
/// # Errors
/// `Invalid`: no effort.
pub fn tell<'a>(at: &At<'a>, chat: &mut Chat) -> Result<&'a str, ApiError> {
    let effort = at.string()?;
    if !EFFORTS.contains(&effort) {
        return Err(at.wrong(format_args!("{} is none of {}", shown(effort), EFFORTS.join(", "))));
    }
    chat.template_variables.entry("reasoning_effort").or_insert_with(|| effort.into());
    Ok(effort)
}

/// The same, where an effort alone decides whether the model thinks: all but `none` say that it shall.
///
/// # Errors
/// As [`tell`].
pub fn think(at: &At, chat: &mut Chat) -> Result<(), ApiError> {
    let effort = tell(at, chat)?;
    chat.thinking.get_or_insert(effort != "none");
    Ok(())
}
