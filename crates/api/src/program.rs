//! Requests of programs that have sessions of their own: the C API, the wheel, batches. What a chat takes in the shape of
//! Chat Completions, or a text, or tokens. What nobody knows is refused. What cannot be kept of a tool's schema is
//! left out and named, as the server does.

use crate::body::{self, At};
use crate::fields::{Field, Ignored, check, honoured};
use crate::openai::{ENDS, FORM, SAMPLING_FIELDS, chat, common, count, joined, max_tokens, tokens};
use crate::request::EFFORT;
use crate::schema::Shape;
use crate::{ApiError, Limits, Parsed, Prompt, TextPrompt};

/// The fields of a program's request.
pub const PROGRAM_FIELDS: &[Field] = &joined::<{ count(ROWS) }>(ROWS);

const ROWS: &[&[Field]] = &[
    &[
        honoured("messages", Shape::Named("ChatMessages"), "text only; `developer` is `system`"),
        honoured("prompt", Shape::Text, "a text to go on from; control tokens in it are obeyed"),
        honoured("tokens", Shape::Tokens, "the same as token ids"),
        honoured("max_tokens", Shape::Whole(1, u64::MAX), "1 or more; until the context is full without it"),
    ],
    ENDS,
    SAMPLING_FIELDS,
    FORM,
    OF_CHAT,
];

/// What makes sense with messages alone.
const OF_CHAT: &[Field] = &[
    honoured("think", Shape::Flag, "whether the model thinks first"),
    honoured("tools", Shape::Named("ChatTools"), "functions"),
    honoured("tool_choice", Shape::Named("ChatToolChoice"), "`auto`, `none`, `required`, a function"),
    honoured("parallel_tool_calls", Shape::Flag, "`false`: at most one call"),
    honoured("reasoning_effort", EFFORT, "`none` to `max`; with `none` the model does not think"),
    honoured("chat_template_kwargs", Shape::Object, "variables of the template"),
    honoured(
        "continue_final_message",
        Shape::Flag,
        "the last turn is the assistant's, and the answer goes on from it",
    ),
];

/// Reads a program's request. Its one prompt is [`Prompt::Chat`] or one text of [`Prompt::Texts`].
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn request(body: &[u8]) -> Result<Parsed, ApiError> {
    let limits = Limits { choices_max: 1, strict: true, completion_tokens: 0 };
    let json = body::parse(body)?;
    let body = At::root(&json);
    let mut ignored = Ignored::default();
    check(&body, PROGRAM_FIELDS, &limits, &mut ignored)?;
    let prompt = prompt(&body, &limits, &mut ignored)?;
    let max_tokens = max_tokens(&body, &["max_tokens"])?;
    let request = common(&body, &limits, prompt, max_tokens, &mut ignored)?;
    Ok(Parsed { request, ignored: ignored.into_paths() })
}

fn prompt(body: &At, limits: &Limits, ignored: &mut Ignored) -> Result<Prompt, ApiError> {
    let given = ["messages", "prompt", "tokens"].map(|key| body.get(key));
    let text = match given {
        [Some(_), None, None] => {
            let mut chat = chat(body, limits, ignored)?;
            if let Some(at) = body.get("think") {
                let thinks = at.flag()?;
                if chat.thinking.is_some_and(|other| other != thinks) {
                    return Err(at.wrong("another field says that the model shall do the opposite"));
                }
                chat.thinking = Some(thinks);
            }
            return Ok(Prompt::Chat(chat));
        }
        [None, Some(text), None] => TextPrompt::Text(text.string()?.to_owned()),
        [None, None, Some(ids)] => tokens(&ids)?,
        _ => {
            let message = "One of `messages`, `prompt` and `tokens` must be given, and no other of them.";
            return Err(ApiError::invalid(None, message));
        }
    };
    match OF_CHAT.iter().find_map(|field| body.get(field.path)) {
        Some(at) => Err(at.wrong("it needs `messages`")),
        None => Ok(Prompt::Texts(vec![text])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> String {
        request(body.as_bytes()).err().unwrap_or_else(|| panic!("{body}")).message
    }

    #[test]
    fn a_program_gives_one_prompt_and_nothing_unknown() {
        let chat =
            request(br#"{"messages": [{"role": "user", "content": "hi"}], "think": false, "seed": 3}"#);
        let chat = chat.unwrap().request;
        assert!(matches!(&chat.prompt, Prompt::Chat(chat) if chat.thinking == Some(false)));
        assert_eq!((chat.sampling.seed, chat.max_tokens), (Some(3), None));
        let tokens = request(br#"{"tokens": [1, 2], "max_tokens": 4}"#).unwrap().request;
        assert!(
            matches!(&tokens.prompt, Prompt::Texts(texts) if texts[..] == [TextPrompt::Tokens(vec![1, 2])])
        );
        for (body, said) in [
            (r#"{"prompt": "a", "tokens": [1]}"#, "no other"),
            ("{}", "must be given"),
            (r#"{"prompt": "a", "think": true}"#, "needs `messages`"),
            (r#"{"prompt": "a", "n": 2}"#, "`n`"),
            (r#"{"prompt": "a", "prompt": "b"}"#, "prompt"),
            (r#"{"prompt": "a", "temperature": 9}"#, "temperature"),
            (r#"{"prompt": 3}"#, "prompt"),
            (r#"{"messages": [{"role": "user", "content": "hi"}], "tools": [{"type": "new"}]}"#, "tools[0]"),
        ] {
            assert!(refused(body).contains(said), "{body}: {}", refused(body));
        }
    }
}
