//! What becomes of each field.

use super::request::{BIASES_MAX, CHOICES_LISTED_MAX};
use crate::fields::{Field, honoured, inert, inert_as, needed, refused};
use crate::request::{EFFORT, SHARE, STOPS, TEMPERATURE, TOP_LOGPROBS};
use crate::schema::Shape;

const PENALTY: Shape = Shape::Number(-2.0, 2.0);
const BIASES: Shape = Shape::Biases(BIASES_MAX, -100.0, 100.0);

/// How tokens are chosen.
pub const SAMPLING_FIELDS: &[Field] = &[
    honoured("temperature", TEMPERATURE, "0 to 2"),
    honoured("top_p", SHARE, "0 to 1"),
    honoured("top_k", Shape::WholeOrNone, "0 or -1 keeps all"),
    honoured("min_p", SHARE, "0 to 1"),
    honoured("repetition_penalty", Shape::Above0(2.0), "above 0, up to 2"),
    honoured("presence_penalty", PENALTY, "-2 to 2"),
    honoured("frequency_penalty", PENALTY, "-2 to 2"),
    honoured("seed", Shape::Seed, ""),
    honoured("logit_bias", BIASES, "-100 to 100; at most 4096 tokens"),
];

/// When an answer ends.
pub(crate) const ENDS: &[Field] = &[
    honoured("min_tokens", Shape::Whole(0, u64::MAX), "not above `max_tokens`"),
    honoured("ignore_eos", Shape::Flag, "the model's own end tokens end nothing"),
    honoured("stop", STOPS, "a string or a list; at most 64 of 1 KB"),
];

/// What both say of the form of the answer.
pub(crate) const FORM: &[Field] = &[
    honoured("response_format", Shape::Named("ResponseFormat"), "`text`, `json_object`, `json_schema`"),
    honoured("structured_outputs.json", Shape::Schema, "a schema"),
    honoured("structured_outputs.json_object", Shape::Flag, "any object"),
    honoured("structured_outputs.regex", Shape::Text, ""),
    honoured("structured_outputs.choice", Shape::SomeTexts(CHOICES_LISTED_MAX), "one of these texts"),
    honoured("structured_outputs.grammar", Shape::Text, "Lark"),
];

/// What has no effect in both. Between these, the table of Chat has rows of its own.
const INERT: [&[Field]; 4] = [
    &[inert("stream_options.include_obfuscation", ""), inert("metadata", ""), inert("user", "")],
    &[
        inert("service_tier", ""),
        inert("safety_identifier", ""),
        inert("prompt_cache_key", "prompts are found by their text"),
        inert("prompt_cache_retention", ""),
        inert("prompt_cache_options", ""),
    ],
    &[inert("client_metadata", ""), inert("diagnostics", "")],
    &[inert("cache_control", "prompts are kept without it")],
];

/// The fields of `POST /v1/chat/completions`.
pub const CHAT_FIELDS: &[Field] = &joined::<{ count(CHAT) }>(CHAT);

/// The fields of `POST /v1/completions`.
pub const COMPLETION_FIELDS: &[Field] = &joined::<{ count(COMPLETION) }>(COMPLETION);

const CHAT: &[&[Field]] = &[
    &[
        honoured("model", Shape::Text, "any name is served"),
        needed("messages", Shape::Named("ChatMessages"), "text only; `developer` is `system`"),
        honoured("stream", Shape::Flag, ""),
        honoured("stream_options.include_usage", Shape::Flag, "a chunk with the usage before `[DONE]`"),
        honoured("max_tokens", Shape::Whole(1, u64::MAX), "1 or more; until the context is full without it"),
        honoured("max_completion_tokens", Shape::Whole(1, u64::MAX), "the same; the smaller one holds"),
    ],
    ENDS,
    SAMPLING_FIELDS,
    &[
        honoured("logprobs", Shape::Flag, "`true` or `false`"),
        honoured("top_logprobs", TOP_LOGPROBS, "0 to 20, with `logprobs`"),
        honoured("n", Shape::Choices, "at most four times the sequences that the server decodes together"),
        honoured("tools", Shape::Named("ChatTools"), "functions; other tools are left out and named"),
        honoured(
            "tool_choice",
            Shape::Named("ChatToolChoice"),
            "`auto`, `none`, `required`, a function, `allowed_tools`",
        ),
        honoured("parallel_tool_calls", Shape::Flag, "`false`: at most one call"),
    ],
    FORM,
    &[
        refused("structured_outputs.structural_tag", &[], "structural tags are not supported; use tools"),
        honoured("reasoning_effort", EFFORT, "`none` to `max`; with `none` the model does not think"),
        honoured(
            "chat_template_kwargs",
            Shape::Object,
            "variables of the template; `enable_thinking` says whether the model thinks",
        ),
        honoured(
            "continue_final_message",
            Shape::Flag,
            "the last turn is the assistant's, and the answer goes on from it",
        ),
        inert_as("add_generation_prompt", &["true", "false"], "follows from `continue_final_message`"),
        honoured("cache_prompt", Shape::Flag, "`false`: all is computed, and nothing kept"),
        honoured("return_progress", Shape::Flag, "chunks with `prompt_progress` while the prompt is read"),
    ],
    INERT[0],
    &[inert_as("store", &["false"], "answers are not stored")],
    INERT[1],
    &[inert("include", "")],
    INERT[2],
    &[inert("verbosity", ""), inert("prediction", "it may only make an answer faster")],
    INERT[3],
    &[
        inert_as("context_management", &["[]", "{}"], "nothing is left out of a conversation"),
        inert_as("speed", &["\"standard\""], ""),
        inert_as("moderation", &["{}"], "nothing is moderated"),
        refused("audio", &[], "audio is not supported, only text"),
        refused("modalities", &["[\"text\"]", "[]"], "only text can be answered"),
        refused("web_search_options", &["{}"], "there is no web search"),
        refused("background", &["false"], "answers are not made in the background"),
        refused("conversation", &[], "conversations are not stored; send all messages"),
        refused("best_of", &["1"], "several answers are not compared; use n"),
        refused("suffix", &["\"\""], "text cannot be filled in"),
        refused("functions", &["[]"], "it was replaced; use tools"),
        refused("function_call", &["\"none\"", "\"auto\""], "it was replaced; use tool_choice"),
    ],
];

const COMPLETION: &[&[Field]] = &[
    &[
        honoured("model", Shape::Text, "any name is served"),
        needed("prompt", Shape::Named("Prompts"), "a text, texts, token ids, or lists of them"),
        honoured("echo", Shape::Flag, "the answer begins with the prompt"),
        honoured("stream", Shape::Flag, ""),
        honoured("stream_options.include_usage", Shape::Flag, "a chunk with the usage before `[DONE]`"),
        honoured("max_tokens", Shape::Whole(1, u64::MAX), "1 or more; 16 without it"),
    ],
    ENDS,
    SAMPLING_FIELDS,
    &[
        honoured("logprobs", TOP_LOGPROBS, "0 to 20: so many of the likeliest tokens"),
        honoured("n", Shape::Choices, "at most four times the sequences that the server decodes together"),
    ],
    FORM,
    &[
        refused("structured_outputs.structural_tag", &[], "structural tags are not supported"),
        honoured("cache_prompt", Shape::Flag, "`false`: all is computed, and nothing kept"),
    ],
    INERT[0],
    INERT[1],
    INERT[2],
    INERT[3],
    &[
        refused("best_of", &["1"], "several answers are not compared; use n"),
        refused("suffix", &["\"\""], "text cannot be filled in"),
        refused("background", &["false"], "answers are not made in the background"),
        refused("conversation", &[], "conversations are not stored"),
    ],
];

/// How many rows `parts` have.
pub(crate) const fn count(parts: &[&[Field]]) -> usize {
    let (mut rows, mut part) = (0, 0);
    while part < parts.len() {
        rows += parts[part].len();
        part += 1;
    }
    rows
}

/// The rows of all parts, of which there are `N`.
pub(crate) const fn joined<const N: usize>(parts: &[&[Field]]) -> [Field; N] {
    let mut rows = [inert("", ""); N];
    let (mut part, mut end) = (0, 0);
    while part < parts.len() {
        let mut row = 0;
        while row < parts[part].len() {
            rows[end] = parts[part][row];
            (row, end) = (row + 1, end + 1);
        }
        part += 1;
    }
    rows
}
