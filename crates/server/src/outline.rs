//! Where in a conversation its prompt departs from the nearest one that is kept: the log says why it had to be computed.

use engine::text::{Content, Message, Role, Tokenizer};

/// Messages that may be missing in a prompt: each is looked for in all of it.
const MISSES: usize = 8;

/// Where in a prompt its messages are.
#[derive(Clone, Debug)]
pub(crate) struct Outline {
    tokens: Vec<u32>,
    /// Who speaks, and the byte of the prompt's text at which the message's content begins.
    messages: Vec<(Role, usize)>,
}

impl Outline {
    /// Of a prompt that shows these messages, as far as it shows them in their order.
    pub(crate) fn new(messages: &[Message], text: &str, tokens: &[u32]) -> Self {
        let (mut from, mut misses) = (0, 0);
        let place = |message: &Message| {
            let content = message.content.as_ref().map(Content::text).unwrap_or_default();
            let content = content.trim();
            let found = if misses < MISSES { text[from..].find(content) } else { None };
            let start = from + found.unwrap_or(0);
            match found {
                Some(_) => from = start + content.len(),
                None => misses += 1,
            }
            (message.role, start)
        };
        Self { messages: messages.iter().map(place).collect(), tokens: tokens.to_vec() }
    }

    /// Where the token `at` is, without any text of the prompt.
    pub(crate) fn place(&self, tokenizer: &Tokenizer, at: usize) -> String {
        let before = tokenizer.decode(&self.tokens[..at.min(self.tokens.len())], true);
        let found = self.messages.iter().rposition(|(_, start)| *start <= before.len());
        match found {
            None => "before message 0".into(),
            Some(index) => {
                let (role, start) = self.messages[index];
                let characters = before.get(start..).map_or(0, |within| within.chars().count());
                format!("message {index} ({}) + {characters}", role.name())
            }
        }
    }
}
