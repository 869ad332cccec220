//! Sessions: one sequence of tokens each, one call at a time.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};

use engine::Session;
use engine::sample::{SampleParams, Sampler, logprobs};

use crate::border::{
    buffer, empty, given, guard, guard_value, place, place_or_none, plant_claimed, slice, text,
};
use crate::cancel::{CancelHandle, Stop};
use crate::model::{ModelHandle, Progress, Shared, Teller, release, with_model};
use crate::status::{Failure, Status, TIDEMILL_BUSY, TIDEMILL_INTERNAL};
use crate::text::check_ids;

/// A sequence of tokens over a model. From any thread, one call at a time.
pub struct SessionHandle {
    pub(crate) shared: Arc<Shared>,
    session: Mutex<Session>,
}

/// What a handle has, unless another call has it.
pub(crate) fn claim<'a, T>(of: &'a Mutex<T>, name: &str) -> Result<std::sync::MutexGuard<'a, T>, Failure> {
    of.try_lock().map_err(|e| match e {
        TryLockError::WouldBlock => {
            Failure::new(TIDEMILL_BUSY, format!("another call runs on this {name}; it takes one at a time"))
        }
        TryLockError::Poisoned(_) => {
            Failure::new(TIDEMILL_INTERNAL, format!("an earlier call on this {name} failed of a fault"))
        }
    })
}

/// A session of the caller's, for a function that has it alone. A panic breaks it.
pub(crate) fn with_session(
    name: &'static str,
    session: *const SessionHandle,
    error: *mut *mut c_char,
    work: impl FnOnce(&Arc<Shared>, &mut Session) -> Result<(), Failure>,
) -> Status {
    guard(name, error, || {
        let handle = given(session, "session")?;
        handle.shared.check()?;
        let mut session = claim(&handle.session, "session")?;
        handle.shared.check_free()?;
        // The test's panic comes while it is claimed, as a real one would.
        plant_claimed(name);
        work(&handle.shared, &mut session)
    })
}

/// A new, empty session. `*out` is the caller's, freed with `tidemill_session_free`; NULL on failure.
/// Errors: `MEMORY` where as many live as the model was opened for (`sessions`), `DEVICE`. Any thread. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_new(
    model: *mut ModelHandle,
    out: *mut *mut SessionHandle,
    error: *mut *mut c_char,
) -> Status {
    empty(out);
    with_model("tidemill_session_new", model, error, |shared| {
        let out = place(out, "out")?;
        shared.check_free()?;
        let session = Mutex::new(Session::new(&shared.model)?);
        out.put(Box::into_raw(Box::new(SessionHandle { shared: shared.clone(), session })));
        Ok(())
    })
}

/// Frees a session. NULL is nothing.
///
/// # Safety
/// `session` is NULL or was not freed, and no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_free(session: *mut SessionHandle) {
    guard_value("tidemill_session_free", (), || {
        if session.is_null() {
            return;
        }
        // SAFETY: it came from `tidemill_session_new` and was not freed, as the caller promises.
        let SessionHandle { shared, session } = *unsafe { Box::from_raw(session) };
        if !shared.is_own() {
            std::mem::forget(session);
        } else if shared.check_free().is_err() {
            // What it leaves can be taken when the step is over, which waits for this thread.
            let _ = std::thread::Builder::new().spawn(move || drop(session));
        } else {
            drop(session);
        }
        release(shared);
    });
}

/// How many tokens a session has; 0 for NULL, and while another call runs on it. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_length(session: *const SessionHandle) -> usize {
    guard_value("tidemill_session_length", 0, || {
        let handle = given(session, "session").ok().filter(|handle| handle.shared.check().is_ok());
        let session = handle.and_then(|handle| claim(&handle.session, "session").ok());
        session.map_or(0, |session| session.tokens().len())
    })
}

/// The tokens of a session. Buffers as `tidemill_tokenize`. Errors: `INVALID_REQUEST`, `BUSY`, `TOO_SMALL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_tokens(
    session: *const SessionHandle,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_session_tokens", session, error, |_, session| {
        buffer(tokens, capacity, "tokens").fill_counted(session.tokens(), &place(count, "count")?)
    })
}

/// Makes `tokens` the sequence and computes only what differs from the tokens so far; none make it empty. `*reused`, where
/// wanted, gets how many of them the session held. `progress` counts tokens. Stopped or failed, the session has what the two
/// sequences share and the parts that were finished, so that the same call goes on from there.
/// Errors: `INVALID_REQUEST`, `CONTEXT_FULL` (nothing has changed), `IO`, `DEVICE`, `MEMORY`, `BUSY`, `CANCELLED`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_sync(
    session: *mut SessionHandle,
    tokens: *const u32,
    count: usize,
    progress: Progress,
    user: *mut c_void,
    cancel: *const CancelHandle,
    reused: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    with_session("tidemill_session_sync", session, error, |shared, session| {
        let tokens = slice(tokens, count, "tokens")?;
        let teller = Teller { shared, progress, user, stop };
        let held = session.tokens().iter().zip(tokens).take_while(|(own, new)| own == new).count();
        if tokens.is_empty() {
            session.reset()?;
        } else {
            session.set_prompt(tokens, &mut |done, total| teller.tell(done, total as f64))?;
        }
        place_or_none(reused).iter().for_each(|place| place.put(held));
        Ok(())
    })
}

/// Computes `tokens` after those so far. Stopped or failed, the session is as before.
/// Errors: as `tidemill_session_sync`, and `INVALID_REQUEST` for no tokens. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_append(
    session: *mut SessionHandle,
    tokens: *const u32,
    count: usize,
    progress: Progress,
    user: *mut c_void,
    cancel: *const CancelHandle,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    with_session("tidemill_session_append", session, error, |shared, session| {
        let tokens = slice(tokens, count, "tokens")?;
        let teller = Teller { shared, progress, user, stop };
        Ok(session.append(tokens, &mut |done, total| teller.tell(done, total as f64))?)
    })
}

/// As `tidemill_session_append`, and says how likely the tokens were: `logprobs`, with room for `count`, gets the natural
/// log-probability of each after all before it, and `best`, NULL or with room for `count`, the likeliest token there. The first
/// of an empty session has NaN and `UINT32_MAX`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_score(
    session: *mut SessionHandle,
    tokens: *const u32,
    count: usize,
    logprobs: *mut f32,
    best: *mut u32,
    progress: Progress,
    user: *mut c_void,
    cancel: *const CancelHandle,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    with_session("tidemill_session_score", session, error, |shared, session| {
        let tokens = slice(tokens, count, "tokens")?;
        place(logprobs, "logprobs")?;
        if tokens.is_empty() {
            return Err(Failure::invalid("there are no tokens to compute"));
        }
        check_ids(shared, tokens)?;
        let teller = Teller { shared, progress, user, stop };
        let (own, likeliest) = score(session, tokens, &teller)?;
        if !best.is_null() {
            buffer(best, count, "best").fill(&likeliest)?;
        }
        buffer(logprobs, count, "logprobs").fill(&own)
    })
}

/// Each token's log-probability, and the likeliest in its place.
fn score(session: &mut Session, tokens: &[u32], teller: &Teller) -> Result<(Vec<f32>, Vec<u32>), Failure> {
    let mut progress = |done, total| teller.tell(done, total as f64);
    let before = session.tokens().len();
    let (mut own, mut likeliest) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(tokens.len()));
    let mut greedy = Sampler::new(&SampleParams::greedy())?;
    let mut add = |logits: &[f32], token: u32| {
        own.push(logprobs(logits, token, 0)?.chosen);
        likeliest.push(greedy.sample(logits, &[])?);
        Ok(())
    };
    if before > 0 {
        session.compute_logits(&mut progress)?;
        add(session.logits(), tokens[0])?;
    }
    session.score(tokens, &mut progress, &mut |position, logits| {
        tokens.get(position + 1 - before).map_or(Ok(()), |next| add(logits, *next))
    })?;
    if before == 0 {
        own.insert(0, f32::NAN);
        likeliest.insert(0, u32::MAX);
    }
    Ok((own, likeliest))
}

/// Goes back to the first `length` tokens. Errors: `INVALID_REQUEST` where there are fewer, `BUSY`, `DEVICE`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_truncate(
    session: *mut SessionHandle,
    length: usize,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_session_truncate", session, error, |_, session| Ok(session.truncate(length)?))
}

/// The logits after the last token, `[vocab]`. They are computed again where they are not at hand, as after
/// `tidemill_session_truncate` and `tidemill_session_load`. Buffers as `tidemill_tokenize`.
/// Errors: `INVALID_REQUEST` for an empty session, `TOO_SMALL`, `BUSY`, `IO`, `DEVICE`, `MEMORY`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_logits(
    session: *mut SessionHandle,
    logits: *mut f32,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_session_logits", session, error, |shared, session| {
        let count = place(count, "count")?;
        if session.tokens().is_empty() {
            return Err(Failure::invalid("there are no logits before the first token"));
        }
        let buffer = buffer(logits, capacity, "logits");
        count.put(shared.model.meta().vocab_size);
        if buffer.takes(shared.model.meta().vocab_size)? {
            session.compute_logits(&mut |_, _| std::ops::ControlFlow::Continue(()))?;
            buffer.fill(session.logits())?;
        }
        Ok(())
    })
}

/// Writes tokens and state to the file `path`, for `tidemill_session_load`; where that fails, an older file is untouched.
/// Errors: `INVALID_REQUEST`, `NOT_FOUND`, `IO`, `DEVICE`, `BUSY`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_save(
    session: *mut SessionHandle,
    path: *const c_char,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_session_save", session, error, |_, session| {
        Ok(session.save(Path::new(text(path, "path")?))?)
    })
}

/// Replaces the sequence by a saved one. Where that fails the session is empty.
/// Errors: `NOT_FOUND`, `IO`, `CORRUPT`, `INVALID_REQUEST` for a state of another model or one that is
/// longer than the context, `BUSY`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_session_load(
    session: *mut SessionHandle,
    path: *const c_char,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_session_load", session, error, |_, session| {
        Ok(session.load(Path::new(text(path, "path")?))?)
    })
}
