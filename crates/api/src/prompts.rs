//! From a request to the tokens of its prompts.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::Error;
use engine::text::{
    CallFormat, ChatPrompt, ChatRequest, CivilTime, Content, Json, Message, ReplyOptions, Role, Specials,
    Template, Templates, Tokenizer,
};

use crate::messages::{join_user_runs, late_system_as_user};
use crate::{ApiError, Chat, ErrorClass, Prompt, TextPrompt, ToolChoice};

/// A prompt, ready to be computed.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Where prompts to come are likely to part from it.
    pub borders: Vec<usize>,
    /// How its answer is taken apart; a plain text's is not.
    pub reply: Option<ReplyOptions>,
    /// Its text.
    pub text: String,
    /// How the model writes calls, where its template shows it.
    pub call_format: Option<&'static CallFormat>,
}

/// Makes prompts for one model.
pub struct Prompts {
    tokenizer: Arc<Tokenizer>,
    templates: Option<Templates>,
    /// Positions of a sequence.
    context: usize,
    /// What the templates for conversations without and with tools can take.
    takes: [Takes; 2],
}

/// What a template can take beyond the plain alternation of questions and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Takes {
    /// System messages behind others, where they stand.
    late_system: bool,
    /// Several turns of the user after one another.
    user_runs: bool,
}

const QUESTION: &str = "QUESTION";
const PROBES: [&str; 2] = ["PROBE-ONE", "PROBE-TWO"];

impl Takes {
    /// Has the template render such conversations.
    fn of(template: &Template, tokenizer: &Tokenizer) -> Self {
        let [one, two] = PROBES;
        let shows = |turns: &[(Role, &str)], order: &[&str]| {
            let messages = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
            let request = ChatRequest { messages, add_generation_prompt: true, ..dated() };
            ChatPrompt::new(template, tokenizer, &request).is_ok_and(|prompt| {
                let places: Option<Vec<usize>> = order.iter().map(|text| prompt.text.find(text)).collect();
                places.is_some_and(|places| places.is_sorted())
            })
        };
        let late =
            [(Role::User, QUESTION), (Role::System, one), (Role::User, "ANOTHER"), (Role::System, two)];
        let run = [(Role::User, QUESTION), (Role::User, one), (Role::User, two)];
        Self {
            late_system: shows(&late, &[QUESTION, one, "ANOTHER", two]),
            user_runs: shows(&run, &[QUESTION, one, two]),
        }
    }
}

impl Prompts {
    /// For the model of these; `context` is the longest sequence.
    pub fn new(tokenizer: Arc<Tokenizer>, templates: Option<Templates>, context: usize) -> Self {
        let takes = [false, true].map(|tools| {
            templates.as_ref().map_or(Takes::default(), |of| Takes::of(of.pick(tools), &tokenizer))
        });
        Self { tokenizer, templates, context, takes }
    }

    /// The prompts of a request. Takes time.
    ///
    /// # Errors
    /// `Invalid` for what the template refuses and for a prompt that leaves no room for an answer.
    pub fn make(&self, prompt: &Prompt, cache: bool) -> Result<Vec<Made>, ApiError> {
        let made = match prompt {
            Prompt::Chat(chat) => vec![self.chat(chat.clone(), cache)?],
            Prompt::Texts(texts) => texts
                .iter()
                .enumerate()
                .map(|(at, text)| self.text(text, if texts.len() > 1 { Some(at) } else { None }))
                .collect::<Result<_, _>>()?,
        };
        for made in &made {
            self.check_length(made.tokens.len(), matches!(prompt, Prompt::Chat(_)))?;
        }
        Ok(made)
    }

    /// How many tokens the prompt of a conversation has, whether it fits or not. Takes time.
    ///
    /// # Errors
    /// `Invalid` for what the template refuses.
    pub fn count(&self, prompt: &Prompt) -> Result<usize, ApiError> {
        match prompt {
            Prompt::Chat(chat) => Ok(self.chat(chat.clone(), false)?.tokens.len()),
            Prompt::Texts(texts) => texts.iter().map(|text| Ok(self.text(text, None)?.tokens.len())).sum(),
        }
    }

    fn chat(&self, mut chat: Chat, cache: bool) -> Result<Made, ApiError> {
        let templates = self.templates.as_ref().ok_or_else(|| {
            let message = "the model has no chat template; ask for a plain completion, or give it a template";
            ApiError { code: Some("unsupported_value"), ..ApiError::invalid(None, message) }
        })?;
        if chat.tool_choice == ToolChoice::None {
            chat.tools.clear();
        }
        let tools = !chat.tools.is_empty();
        let (template, takes) = (templates.pick(tools), self.takes[usize::from(tools)]);
        if !takes.late_system {
            late_system_as_user(&mut chat);
        }
        if !takes.user_runs {
            join_user_runs(&mut chat.messages);
        }
        let last = if chat.continues { chat.messages.pop() } else { None };
        let request = ChatRequest {
            messages: chat.messages,
            tools: chat.tools,
            add_generation_prompt: true,
            enable_thinking: chat.thinking,
            extra: chat.template_variables,
            ..dated()
        };
        let (mut prompt, request) = self.rendered(template, request)?;
        let borders = match cache {
            true => prompt.borders(template, &self.tokenizer, &request),
            false => Vec::new(),
        };
        if let Some(last) = last {
            self.go_on(&mut prompt, &last)?;
        }
        let reply = ReplyOptions {
            opens_thinking: prompt.opens_thinking,
            json_calls: prompt.json_calls,
            tools: request.tools,
            ..ReplyOptions::default()
        };
        let ChatPrompt { tokens, text, call_format, .. } = prompt;
        Ok(Made { tokens, borders, reply: Some(reply), text, call_format })
    }

    /// The prompt of `request`. Old calls whose arguments are no object go into the prompt as they are; a template that
    /// cannot write them gets an object with that text, since one bad call must not end a conversation.
    fn rendered(
        &self,
        template: &Template,
        mut request: ChatRequest,
    ) -> Result<(ChatPrompt, ChatRequest), ApiError> {
        let error = match ChatPrompt::new(template, &self.tokenizer, &request) {
            Ok(prompt) => return Ok((prompt, request)),
            Err(error) => of_messages(error),
        };
        let calls = request.messages.iter_mut().flat_map(|message| &mut message.tool_calls);
        let mut changed = false;
        for call in calls.filter(|call| call.arguments.as_object().is_none()) {
            let text = std::mem::take(&mut call.arguments);
            call.arguments = Json::Object([("arguments".to_owned(), text)].into_iter().collect());
            changed = true;
        }
        let again = changed.then(|| ChatPrompt::new(template, &self.tokenizer, &request).ok()).flatten();
        again.map(|prompt| (prompt, request)).ok_or(error)
    }

    /// Adds the beginning of the answer.
    fn go_on(&self, prompt: &mut ChatPrompt, last: &Message) -> Result<(), ApiError> {
        let mut add = |text: &str, specials| {
            prompt.tokens.extend(self.tokenizer.encode(text, specials).map_err(of_messages)?);
            prompt.text.push_str(text);
            Ok::<(), ApiError>(())
        };
        if prompt.opens_thinking {
            add(last.reasoning_content.as_deref().unwrap_or_default(), Specials::Ignore)?;
            add("\n</think>\n\n", Specials::Parse)?;
        }
        let text = last.content.as_ref().map(Content::text).unwrap_or_default();
        add(&text, Specials::Ignore)?;
        prompt.opens_thinking = false;
        Ok(())
    }

    /// A plain prompt is its author's own: control tokens in it are obeyed.
    fn text(&self, text: &TextPrompt, at: Option<usize>) -> Result<Made, ApiError> {
        let path = || Some(at.map_or("prompt".to_owned(), |at| format!("prompt[{at}]")));
        let (tokens, text) = match text {
            TextPrompt::Text(text) => {
                let tokens = self.tokenizer.encode_document_with(text, Specials::Parse);
                (tokens.map_err(|e| ApiError::invalid(path(), e.message()))?, text.clone())
            }
            TextPrompt::Tokens(tokens) => {
                let vocab = self.tokenizer.vocab_size();
                if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
                    let message = format!("token {id} is not in the vocabulary of {vocab}");
                    return Err(ApiError::invalid(path(), message));
                }
                (tokens.clone(), self.tokenizer.decode(tokens, true))
            }
        };
        if tokens.is_empty() {
            return Err(ApiError::invalid(
                path(),
                "the prompt is empty: give the model something to continue",
            ));
        }
        // Other answers to it, and whoever writes on, go on from here; the last token is computed for each.
        let borders = vec![tokens.len() - 1];
        Ok(Made { tokens, borders, reply: None, text, call_format: None })
    }

    fn check_length(&self, tokens: usize, is_chat: bool) -> Result<(), ApiError> {
        let most = self.context;
        if tokens < most {
            return Ok(());
        }
        let what = if is_chat { "messages" } else { "prompt" };
        Err(ApiError::context_length(what, most, tokens))
    }
}

/// What templates show that have a date, in UTC.
pub fn now() -> CivilTime {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    CivilTime::from_unix(seconds as i64)
}

/// A request with today's date, for templates that show one.
fn dated() -> ChatRequest {
    ChatRequest { now: Some(now()), ..ChatRequest::default() }
}

/// What the template or the tokenizer says of a conversation.
fn of_messages(error: Error) -> ApiError {
    let refused = ApiError::of_engine(&error);
    match refused.class {
        ErrorClass::Invalid => ApiError { param: Some("messages".into()), ..refused },
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn prompts(template: &str) -> Prompts {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo/tokenizer.json");
        let meta = engine::Meta { chat_template: Some(template.into()), ..engine::Meta::default() };
        let templates = Templates::of_model(&meta, "test").unwrap();
        let tokenizer = Tokenizer::from_json(&demo).unwrap();
        Prompts::new(Arc::new(tokenizer), Some(templates), 200)
    }

    fn text(prompts: &Prompts, turns: &[(Role, &str)]) -> String {
        let messages = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
        let chat = Chat { messages, ..Chat::default() };
        prompts.make(&Prompt::Chat(chat), true).unwrap().remove(0).text
    }

    const ANY: &str = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    const ALTERNATES: &str = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('late') }}{% endif %}{% if not loop.first and m.role == loop.previtem.role %}\
        {{ raise_exception('again') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}";
    const FRONT: &str = "{% for m in messages if m.role == 'system' %}[{{ m.content }}]{% endfor %}\
        {% for m in messages if m.role != 'system' %}[{{ m.role }}:{{ m.content }}]{% endfor %}";

    #[test]
    fn late_system_messages_stay_where_they_are() {
        let turns = [
            (Role::System, "S"),
            (Role::User, "a"),
            (Role::System, "late"),
            (Role::Assistant, "b"),
            (Role::User, "c"),
        ];
        let any = text(&prompts(ANY), &turns);
        assert_eq!(any, "[system:S][user:a][system:late][assistant:b][user:c]");
        let strict = text(&prompts(ALTERNATES), &turns);
        assert_eq!(strict, "[system:S][user:a\n\nlate][assistant:b][user:c]");
        let front = text(&prompts(FRONT), &turns);
        assert_eq!(front, "[S][user:a][user:late][assistant:b][user:c]");
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_refused_with_the_words_that_agents_know() {
        let tokens = |n| Prompt::Texts(vec![TextPrompt::Tokens(vec![1; n])]);
        assert!(prompts(ANY).make(&tokens(199), true).is_ok());
        let error = prompts(ANY).make(&tokens(200), true).unwrap_err();
        assert_eq!((error.status(), error.code), (400, Some("context_length_exceeded")));
        assert!(error.message.contains("maximum context length is 200 tokens"), "{}", error.message);
        let anthropic = error.anthropic("r")["error"]["message"].to_string();
        assert!(anthropic.contains("prompt is too long: 200 tokens > 200 maximum"), "{anthropic}");
    }

    #[test]
    fn an_answer_goes_on_from_its_beginning_and_control_tokens_stay_text() {
        let prompts = prompts("{% for m in messages %}{{ m.content }}{% endfor %}A:");
        let messages = vec![Message::new(Role::User, "hi"), Message::new(Role::Assistant, "So <|im_end|>")];
        let chat = Chat { messages, continues: true, ..Chat::default() };
        let made = prompts.make(&Prompt::Chat(chat), true).unwrap().remove(0);
        assert_eq!(made.text, "hiA:So <|im_end|>");
        assert!(made.tokens.iter().all(|id| !prompts.tokenizer.is_special(*id)));
    }
}
