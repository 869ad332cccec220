//! Samplers: how a token is chosen by logits.

use std::ffi::c_char;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use engine::sample::Sampler;

use crate::border::{empty, given, guard, guard_value, place, slice};
use crate::model::{ModelHandle, Shared, release, with_model};
use crate::options;
use crate::session::{SessionHandle, claim, with_session};
use crate::status::{Failure, Status};

/// How tokens are chosen, and where in its random numbers that is. From any thread, one call at a time.
pub struct SamplerHandle {
    shared: Arc<Shared>,
    sampler: Mutex<Sampler>,
}

/// A new sampler. Options: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
/// `logit_bias`, `seed`; NULL is `{}`. What is not given is as the model's makers recommend.
///
/// `*out` is the caller's, freed with `tidemill_sampler_free`; NULL on failure. Errors: `INVALID_REQUEST`. Any thread. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_sampler_new(
    model: *const ModelHandle,
    options_json: *const c_char,
    out: *mut *mut SamplerHandle,
    error: *mut *mut c_char,
) -> Status {
    empty(out);
    with_model("tidemill_sampler_new", model, error, |shared| {
        let out = place(out, "out")?;
        let params = options::sampler(options_json)?.params(shared.model.meta())?;
        let sampler = Mutex::new(Sampler::new(&params)?);
        out.put(Box::into_raw(Box::new(SamplerHandle { shared: shared.clone(), sampler })));
        Ok(())
    })
}

/// Frees a sampler. NULL is nothing.
///
/// # Safety
/// `sampler` is NULL or was not freed, and no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_sampler_free(sampler: *mut SamplerHandle) {
    guard_value("tidemill_sampler_free", (), || {
        if !sampler.is_null() {
            // SAFETY: it came from `tidemill_sampler_new` and was not freed, as the caller promises.
            release(unsafe { Box::from_raw(sampler) }.shared);
        }
    });
}

/// Chooses the token that comes after those of `session`, and does not append it.
/// Errors: `INVALID_REQUEST` for an empty session, `CORRUPT` for logits that are no numbers, `BUSY`, and those of
/// `tidemill_session_logits`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_sampler_sample(
    sampler: *mut SamplerHandle,
    session: *mut SessionHandle,
    token: *mut u32,
    error: *mut *mut c_char,
) -> Status {
    with_session("tidemill_sampler_sample", session, error, |shared, session| {
        let sampler = given(sampler, "sampler")?;
        let token = place(token, "token")?;
        if !Arc::ptr_eq(&sampler.shared, shared) {
            return Err(Failure::invalid("the sampler is of another model than the session"));
        }
        let mut sampler = claim(&sampler.sampler, "sampler")?;
        session.compute_logits(&mut |_, _| ControlFlow::Continue(()))?;
        token.put(sampler.sample(session.logits(), session.tokens())?);
        Ok(())
    })
}

/// Chooses a token by the caller's own logits, of which there is at least one; `history` is all that came before.
/// Errors: `INVALID_REQUEST`, `CORRUPT` for NaN, `BUSY`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_sampler_sample_logits(
    sampler: *mut SamplerHandle,
    logits: *const f32,
    count: usize,
    history: *const u32,
    history_count: usize,
    token: *mut u32,
    error: *mut *mut c_char,
) -> Status {
    guard("tidemill_sampler_sample_logits", error, || {
        let sampler = given(sampler, "sampler")?;
        let token = place(token, "token")?;
        sampler.shared.check()?;
        let logits = slice(logits, count, "logits")?;
        if logits.is_empty() {
            return Err(Failure::invalid("`logits`: there are none"));
        }
        let history = slice(history, history_count, "history")?;
        let mut sampler = claim(&sampler.sampler, "sampler")?;
        token.put(sampler.sample(logits, history)?);
        Ok(())
    })
}
