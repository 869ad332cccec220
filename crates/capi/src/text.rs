//! From texts to tokens and back.

use std::ffi::c_char;

use api::Prompt;
use engine::text::Specials;

use crate::border::{buffer, bytes_as_text, place, slice, text};
use crate::model::{ModelHandle, Shared, with_model};
use crate::status::{Failure, Status};

/// `tidemill_tokenize`: the text is a document, so the model's beginning comes first.
pub const TIDEMILL_TOKENIZE_DOCUMENT: u32 = 1;
/// `tidemill_tokenize`: control tokens that are written in the text are obeyed; else they are text.
pub const TIDEMILL_TOKENIZE_SPECIALS: u32 = 2;
/// `tidemill_detokenize`: control tokens are shown.
pub const TIDEMILL_DETOKENIZE_SPECIALS: u32 = 1;

fn check_flags(flags: u32, known: u32) -> Result<(), Failure> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Failure::invalid(format!("`flags`: nobody knows the bits {unknown:#x}"))),
    }
}

/// The tokens of a text of `bytes` bytes, into `tokens`, which has room for `capacity`. `*count` always gets how many there are;
/// NULL with a capacity of 0 only counts. Any thread. Errors: `INVALID_REQUEST`, `TOO_SMALL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_tokenize(
    model: *const ModelHandle,
    text: *const c_char,
    bytes: usize,
    flags: u32,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_tokenize", model, error, |shared| {
        let count = place(count, "count")?;
        check_flags(flags, TIDEMILL_TOKENIZE_DOCUMENT | TIDEMILL_TOKENIZE_SPECIALS)?;
        let text = bytes_as_text(text, bytes, "text")?;
        let specials =
            if flags & TIDEMILL_TOKENIZE_SPECIALS == 0 { Specials::Ignore } else { Specials::Parse };
        let all = match flags & TIDEMILL_TOKENIZE_DOCUMENT {
            0 => shared.tokenizer.encode(text, specials)?,
            _ => shared.tokenizer.encode_document_with(text, specials)?,
        };
        buffer(tokens, capacity, "tokens").fill_counted(&all, &count)
    })
}

/// The text of tokens, into `text`, which has room for `capacity` bytes; no NUL follows. `*bytes` always gets how many there are;
/// NULL with a capacity of 0 only counts. Tokens that end in the midst of a character end in U+FFFD. Any thread.
/// Errors: `INVALID_REQUEST` for an id outside the vocabulary, `TOO_SMALL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_detokenize(
    model: *const ModelHandle,
    tokens: *const u32,
    count: usize,
    flags: u32,
    text: *mut c_char,
    capacity: usize,
    bytes: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_detokenize", model, error, |shared| {
        let bytes = place(bytes, "bytes")?;
        check_flags(flags, TIDEMILL_DETOKENIZE_SPECIALS)?;
        let tokens = slice(tokens, count, "tokens")?;
        check_ids(shared, tokens)?;
        let shown = shared.tokenizer.decode(tokens, flags & TIDEMILL_DETOKENIZE_SPECIALS != 0);
        buffer(text.cast::<u8>(), capacity, "text").fill_counted(shown.as_bytes(), &bytes)
    })
}

/// Whether all are in the vocabulary.
pub(crate) fn check_ids(shared: &Shared, tokens: &[u32]) -> Result<(), Failure> {
    let vocab = shared.model.meta().vocab_size;
    match tokens.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(Failure::invalid(format!("token {id} is not in the vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

/// The tokens of the prompt of a request with `messages`, as `tidemill_generate` would compute it. Buffers as
/// `tidemill_tokenize`. Any thread. Errors: `INVALID_REQUEST`, `CONTEXT_FULL`, `TOO_SMALL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_chat_prompt(
    model: *const ModelHandle,
    request_json: *const c_char,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_chat_prompt", model, error, |shared| {
        let count = place(count, "count")?;
        let request = api::program::request(text(request_json, "request_json")?.as_bytes())?.request;
        let Prompt::Chat(mut chat) = request.prompt else {
            return Err(Failure::invalid("`request_json`: it has no `messages`"));
        };
        shared.model.recall(&mut chat.messages);
        let made = shared.prompts.make(&Prompt::Chat(chat), false)?;
        let all = made.first().map_or(&[][..], |made| &made.tokens);
        buffer(tokens, capacity, "tokens").fill_counted(all, &count)
    })
}
