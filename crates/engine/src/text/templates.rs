//! Which of a model's chat templates a conversation gets.

use files::{Meta, Result};

use super::template::Template;

/// A model's chat templates.
pub struct Templates {
    plain: Template,
    /// For conversations with tools, where the model has one of its own for them.
    tools: Option<Template>,
}

impl Templates {
    /// Those that a model's files bring. `model` names the model in errors.
    ///
    /// # Errors
    /// `Unsupported` when there is none, `Corrupt` when one cannot be read.
    pub fn of_model(meta: &Meta, model: &str) -> Result<Self> {
        let plain = Template::of_model(meta.chat_template.as_deref(), model)?;
        let tools = meta.tool_template.as_deref().filter(|source| !source.trim().is_empty());
        let tools = tools.map(|source| Template::of_model(Some(source), model)).transpose()?;
        Ok(Self { plain, tools })
    }

    /// The text of one template for all conversations. `name` names it in errors.
    ///
    /// # Errors
    /// `Corrupt` when it cannot be read.
    pub fn of_source(source: &str, name: &str) -> Result<Self> {
        Ok(Self { plain: Template::of_model(Some(source), name)?, tools: None })
    }

    /// The one for a conversation with or without tools.
    pub fn pick(&self, tools: bool) -> &Template {
        self.tools.as_ref().filter(|_| tools).unwrap_or(&self.plain)
    }
}
