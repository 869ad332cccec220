//! What C cannot show: that a panic in any function stops at the border.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use files::TensorIndex;
use store::Range;
use store::disk::{Fault, FaultKind, SimDisk, SimOptions};

use crate::border::planted::PLANTED;
use crate::*;

fn demo() -> CString {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    CString::new(path.to_str().unwrap()).unwrap()
}

fn open() -> *mut ModelHandle {
    let options = c"{\"device\": \"cpu\", \"threads\": 1, \"context\": 128, \"sessions\": 2}";
    let (mut out, mut error) = (null_mut(), null_mut());
    // SAFETY: all pointers are valid or NULL.
    let status = unsafe {
        tidemill_model_open(demo().as_ptr(), options.as_ptr(), None, null_mut(), null(), &mut out, &mut error)
    };
    assert_eq!(status, TIDEMILL_OK, "{}", taken(error));
    out
}

fn taken(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: it came from the library, and is freed once.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        tidemill_string_free(text);
        copy
    }
}

/// Runs `call` with a panic planted in the function `name`; its status and message.
fn planted(name: &'static str, claimed: bool, call: impl FnOnce(*mut *mut c_char) -> i32) -> (i32, String) {
    let mut error = null_mut();
    PLANTED.set(Some((name, claimed)));
    let status = call(&mut error);
    PLANTED.set(None);
    (status, taken(error))
}

fn check(name: &'static str, got: (i32, String)) {
    assert_eq!(got.0, TIDEMILL_INTERNAL, "{name}");
    assert!(got.1.contains(name) && got.1.contains("planted"), "{name}: {}", got.1);
}

macro_rules! of_model {
    ($name:ident, $($argument:expr),*) => {{
        let (model, mut session) = (open(), null_mut());
        // SAFETY: all pointers are valid or NULL.
        unsafe { assert_eq!(tidemill_session_new(model, &mut session, null_mut()), TIDEMILL_OK) };
        // SAFETY: as above.
        check(stringify!($name), planted(stringify!($name), false, |error| unsafe { $name(model, $($argument,)* error) }));
        let mut json = null_mut();
        // SAFETY: as above.
        unsafe {
            assert_eq!(tidemill_model_info(model, &mut json, null_mut()), TIDEMILL_INTERNAL);
            assert_eq!(tidemill_session_truncate(session, 0, null_mut()), TIDEMILL_OK, "the session lives");
            tidemill_session_free(session);
            tidemill_model_free(model);
        }
    }};
}

macro_rules! of_session {
    ($name:ident, $($argument:expr),*) => {{
        let (model, mut session, mut other) = (open(), null_mut(), null_mut());
        // SAFETY: all pointers are valid or NULL.
        unsafe {
            assert_eq!(tidemill_session_new(model, &mut session, null_mut()), TIDEMILL_OK);
            assert_eq!(tidemill_session_new(model, &mut other, null_mut()), TIDEMILL_OK);
            check(stringify!($name), planted(stringify!($name), true, |error| $name(session, $($argument,)* error)));
            assert_eq!(tidemill_session_truncate(session, 0, null_mut()), TIDEMILL_INTERNAL, "it is broken");
            assert_eq!(tidemill_session_truncate(other, 0, null_mut()), TIDEMILL_OK, "the other lives");
            tidemill_session_free(session);
            tidemill_session_free(other);
            tidemill_model_free(model);
        }
    }};
}

#[test]
fn a_panic_in_a_function_of_a_model_breaks_the_model() {
    let (mut count, mut more) = (0, 0);
    of_model!(tidemill_model_info, null_mut());
    of_model!(tidemill_model_stats, 0, null_mut());
    of_model!(tidemill_model_heat, null_mut(), 0, &mut count, &mut more);
    of_model!(tidemill_tokenize, c"a".as_ptr(), 1, 0, null_mut(), 0, &mut count);
    of_model!(tidemill_detokenize, null(), 0, 0, null_mut(), 0, &mut count);
    of_model!(tidemill_chat_prompt, c"{}".as_ptr(), null_mut(), 0, &mut count);
    of_model!(tidemill_session_new, null_mut());
    of_model!(tidemill_sampler_new, null(), null_mut());
    of_model!(tidemill_batch, null(), 0, None, null_mut(), null());
}

#[test]
fn a_panic_in_a_function_of_a_session_breaks_the_session() {
    let (mut count, mut token) = (0, 0);
    of_session!(tidemill_session_tokens, null_mut(), 0, &mut count);
    of_session!(tidemill_session_sync, null(), 0, None, null_mut(), null(), null_mut());
    of_session!(tidemill_session_append, null(), 0, None, null_mut(), null());
    of_session!(tidemill_session_score, null(), 0, null_mut(), null_mut(), None, null_mut(), null());
    of_session!(tidemill_session_truncate, 0);
    of_session!(tidemill_session_logits, null_mut(), 0, &mut count);
    of_session!(tidemill_session_save, null());
    of_session!(tidemill_session_load, null());
    of_session!(tidemill_generate, null(), None, null_mut(), null(), null_mut());
    let mut sample = |session, error| {
        // SAFETY: all pointers are valid or NULL.
        unsafe { tidemill_sampler_sample(null_mut(), session, &mut token, error) }
    };
    let (model, mut session) = (open(), null_mut());
    // SAFETY: as above.
    unsafe {
        assert_eq!(tidemill_session_new(model, &mut session, null_mut()), TIDEMILL_OK);
        let name = "tidemill_sampler_sample";
        check(name, planted(name, true, |error| sample(session, error)));
        tidemill_session_free(session);
        tidemill_model_free(model);
    }
}

#[test]
fn a_panic_in_a_function_without_a_handle_is_its_own() {
    let mut json = null_mut();
    // SAFETY: all pointers are valid or NULL.
    unsafe {
        let name = "tidemill_plan";
        check(name, planted(name, false, |error| tidemill_plan(null(), null(), &mut json, error)));
        let (name, mut out) = ("tidemill_model_open", null_mut());
        let open = |error| tidemill_model_open(null(), null(), None, null_mut(), null(), &mut out, error);
        check(name, planted(name, false, open));
        let (name, mut token) = ("tidemill_sampler_sample_logits", 0);
        let sample =
            |error| tidemill_sampler_sample_logits(null_mut(), null(), 0, null(), 0, &mut token, error);
        check(name, planted(name, false, sample));
    }
    let quiet: [(&'static str, fn()); 9] = [
        ("tidemill_abi_version", || assert_eq!(tidemill_abi_version(), 0)),
        ("tidemill_version", || assert!(!tidemill_version().is_null())),
        ("tidemill_status_name", || assert!(!tidemill_status_name(0).is_null())),
        ("tidemill_cancel_new", || assert!(tidemill_cancel_new().is_null())),
        // SAFETY: NULL is nothing.
        ("tidemill_cancel_set", || unsafe { tidemill_cancel_set(null_mut()) }),
        // SAFETY: NULL is nothing.
        ("tidemill_cancel_free", || unsafe { tidemill_cancel_free(null_mut()) }),
        // SAFETY: NULL is nothing.
        ("tidemill_string_free", || unsafe { tidemill_string_free(null_mut()) }),
        // SAFETY: NULL is nothing.
        ("tidemill_model_free", || unsafe { tidemill_model_free(null_mut()) }),
        // SAFETY: NULL is nothing.
        ("tidemill_session_free", || unsafe { tidemill_session_free(null_mut()) }),
    ];
    for (name, call) in quiet {
        PLANTED.set(Some((name, false)));
        call();
        PLANTED.set(None);
    }
}

/// The bundled model on a simulated drive, with so few slots that it reads all the time.
fn on_a_drive() -> (Arc<SimDisk>, *mut ModelHandle) {
    let path = demo();
    let (index, _) = TensorIndex::open(Path::new(path.to_str().unwrap())).unwrap();
    let bytes = index.files().iter().map(|file| std::fs::read(file).unwrap()).collect();
    let disk = Arc::new(SimDisk::new(bytes, SimOptions::default()));
    let mut options =
        options::model(c"{\"device\": \"cpu\", \"threads\": 1, \"context\": 128, \"sessions\": 2}".as_ptr())
            .unwrap();
    options.open.disk = Some(disk.clone());
    options.open.slots_max = Some(16);
    let mut go = |_, _| std::ops::ControlFlow::Continue(());
    let shared = model::open(path.to_str().unwrap(), options, &mut go).unwrap();
    (disk, ModelHandle::new(shared))
}

#[test]
fn a_read_that_fails_is_io_and_the_next_call_goes_on() {
    let (disk, model) = on_a_drive();
    let (mut session, mut error, mut logits, mut count) = (null_mut(), null_mut(), vec![0.0_f32; 8192], 0);
    let tokens: Vec<u32> = (0..60).map(|at| 1000 + at * 37 % 5000).collect();
    let fault =
        |times| Fault { range: Range { file: 0, offset: 0, bytes: u64::MAX }, kind: FaultKind::Io, times };
    let mut failed = 0;
    // SAFETY: all pointers are valid or NULL.
    unsafe {
        assert_eq!(tidemill_session_new(model, &mut session, null_mut()), TIDEMILL_OK);
        for (at, token) in tokens.iter().enumerate() {
            disk.inject(fault(1));
            let mut append =
                || tidemill_session_append(session, token, 1, None, null_mut(), null(), &mut error);
            let status = append();
            disk.clear_faults();
            if status != TIDEMILL_OK {
                assert_eq!((status, tidemill_session_length(session)), (TIDEMILL_IO, at));
                assert_eq!(append(), TIDEMILL_OK);
                failed += 1;
            }
        }
        assert!(failed > 10, "{failed}");
        assert_eq!(
            tidemill_session_logits(session, logits.as_mut_ptr(), 8192, &mut count, null_mut()),
            TIDEMILL_OK
        );
        // A prompt, and an answer.
        disk.inject(fault(1000));
        let sync = |from: usize| {
            let new = &tokens[from..];
            tidemill_session_sync(
                session,
                new.as_ptr(),
                new.len(),
                None,
                null_mut(),
                null(),
                null_mut(),
                null_mut(),
            )
        };
        assert_eq!(sync(7), TIDEMILL_IO);
        disk.clear_faults();
        assert_eq!(sync(7), TIDEMILL_OK);
        disk.inject(fault(1000));
        let (request, mut result) = (c"{\"prompt\": \"Once upon a time\", \"max_tokens\": 4}", null_mut());
        let mut generate = || {
            tidemill_generate(session, request.as_ptr(), None, null_mut(), null(), &mut result, null_mut())
        };
        assert_eq!(generate(), TIDEMILL_IO);
        disk.clear_faults();
        assert_eq!(generate(), TIDEMILL_OK);
        let mut calm = null_mut();
        assert_eq!(tidemill_session_new(model, &mut calm, null_mut()), TIDEMILL_OK);
        let status = tidemill_session_sync(
            calm,
            tokens.as_ptr(),
            60,
            None,
            null_mut(),
            null(),
            null_mut(),
            null_mut(),
        );
        assert_eq!(status, TIDEMILL_OK);
        let mut expected = vec![0.0_f32; 8192];
        assert_eq!(
            tidemill_session_logits(calm, expected.as_mut_ptr(), 8192, &mut count, null_mut()),
            TIDEMILL_OK
        );
        assert!(logits == expected, "what failed left something behind");
        taken(result);
        tidemill_session_free(calm);
        tidemill_session_free(session);
        tidemill_model_free(model);
    }
}

#[test]
fn the_plan_has_the_logits_of_each_session() {
    let overhead_bytes = |sessions: usize| {
        let options =
            format!("{{\"device\": \"cpu\", \"threads\": 1, \"context\": 128, \"sessions\": {sessions}}}");
        let (options, mut plan) = (CString::new(options).unwrap(), null_mut());
        // SAFETY: all pointers are valid or NULL.
        let status = unsafe { tidemill_plan(demo().as_ptr(), options.as_ptr(), &mut plan, null_mut()) };
        assert_eq!(status, TIDEMILL_OK);
        let plan: serde_json::Value = serde_json::from_str(&taken(plan)).unwrap();
        plan["overhead_bytes"].as_u64().unwrap()
    };
    assert!(overhead_bytes(9) - overhead_bytes(1) >= 8 * 8 * 8192 * 4);
}

#[test]
fn the_document_has_every_key() {
    let document = include_str!("../../../docs/c-api.md");
    let fields = api::program::PROGRAM_FIELDS.iter().map(|field| field.path);
    for key in options::MODEL_KEYS.into_iter().chain(fields) {
        let key = key.split('.').next().unwrap_or(key);
        assert!(document.contains(&format!("`{key}`")), "{key} is not in docs/c-api.md");
    }
}

#[test]
fn the_build_script_names_the_same_abi() {
    assert_eq!(env!("TIDEMILL_ABI_OF_BUILD"), TIDEMILL_ABI_VERSION.to_string());
}
