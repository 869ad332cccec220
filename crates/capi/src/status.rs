//! How calls end.

use std::ffi::{CStr, CString, c_char};

use api::{ApiError, ErrorClass};
use engine::{Error, ErrorKind};

use crate::border::guard_value;

/// The ABI that this header describes. Within it functions, statuses, event kinds, flags and JSON keys are only added.
pub const TIDEMILL_ABI_VERSION: u32 = 1;

/// How a call ended: 0 to 9 and 130 are the command line's exit codes. Unknown ones mean failure.
pub type Status = i32;

/// Done.
pub const TIDEMILL_OK: i32 = 0;
/// A fault of the library. The handle it happened on answers the same from then on; others live.
pub const TIDEMILL_INTERNAL: i32 = 1;
/// A wrong argument, option or request.
pub const TIDEMILL_INVALID_REQUEST: i32 = 2;
/// No such file.
pub const TIDEMILL_NOT_FOUND: i32 = 3;
/// A damaged file, or numbers that are none.
pub const TIDEMILL_CORRUPT: i32 = 4;
/// A file or option that this version cannot take.
pub const TIDEMILL_UNSUPPORTED: i32 = 5;
/// The drive or the file system failed.
pub const TIDEMILL_IO: i32 = 6;
/// Not enough memory; the message has what is needed.
pub const TIDEMILL_MEMORY: i32 = 7;
/// The context is full, or a prompt is longer than it.
pub const TIDEMILL_CONTEXT_FULL: i32 = 8;
/// The GPU failed, or there is none.
pub const TIDEMILL_DEVICE: i32 = 9;
/// Another call runs on this session or sampler; nothing has changed.
pub const TIDEMILL_BUSY: i32 = 10;
/// The buffer is too small; the count says what is needed, and nothing was written.
pub const TIDEMILL_TOO_SMALL: i32 = 11;
/// A callback or a cancel token stopped the call.
pub const TIDEMILL_CANCELLED: i32 = 130;

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(TIDEMILL_INVALID_REQUEST, message)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(TIDEMILL_CANCELLED, "cancelled")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidRequest => TIDEMILL_INVALID_REQUEST,
            ErrorKind::NotFound => TIDEMILL_NOT_FOUND,
            ErrorKind::Corrupt => TIDEMILL_CORRUPT,
            ErrorKind::Unsupported => TIDEMILL_UNSUPPORTED,
            ErrorKind::Io => TIDEMILL_IO,
            ErrorKind::Memory => TIDEMILL_MEMORY,
            ErrorKind::ContextFull => TIDEMILL_CONTEXT_FULL,
            ErrorKind::Device => TIDEMILL_DEVICE,
            ErrorKind::Cancelled => TIDEMILL_CANCELLED,
            _ => TIDEMILL_INTERNAL,
        };
        let mut message = error.message().to_owned();
        if let Some(cause) = std::error::Error::source(&error).map(ToString::to_string)
            && !message.contains(&cause)
        {
            message = format!("{message}: {cause}");
        }
        Self { status, message }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let status = match (error.class, error.code) {
            (ErrorClass::Invalid, Some("context_length_exceeded")) => TIDEMILL_CONTEXT_FULL,
            (ErrorClass::Server | ErrorClass::Unavailable, _) => TIDEMILL_INTERNAL,
            _ => TIDEMILL_INVALID_REQUEST,
        };
        Self { status, message: error.message }
    }
}

/// The ABI of the library that was loaded: a program compares it with the header's `TIDEMILL_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn tidemill_abi_version() -> u32 {
    guard_value("tidemill_abi_version", 0, || TIDEMILL_ABI_VERSION)
}

/// The version of the library that was loaded, with its commit, target and features, such as
/// `0.2.0 (9fceb02d0ae5, x86_64-unknown-linux-gnu, gpu)`. It lives as long as the program.
#[unsafe(no_mangle)]
pub extern "C" fn tidemill_version() -> *const c_char {
    const VERSION: &CStr = {
        let text = concat!(
            env!("CARGO_PKG_VERSION"),
            " (",
            env!("TIDEMILL_COMMIT"),
            ", ",
            env!("TIDEMILL_TARGET"),
            ", gpu)\0"
        );
        match CStr::from_bytes_with_nul(text.as_bytes()) {
            Ok(text) => text,
            Err(_) => c"unknown",
        }
    };
    guard_value("tidemill_version", VERSION.as_ptr(), || VERSION.as_ptr())
}

/// The name of a status, such as `CONTEXT_FULL`; `UNKNOWN` for one that this version does not have. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn tidemill_status_name(status: Status) -> *const c_char {
    let name = match status {
        TIDEMILL_OK => c"OK",
        TIDEMILL_INTERNAL => c"INTERNAL",
        TIDEMILL_INVALID_REQUEST => c"INVALID_REQUEST",
        TIDEMILL_NOT_FOUND => c"NOT_FOUND",
        TIDEMILL_CORRUPT => c"CORRUPT",
        TIDEMILL_UNSUPPORTED => c"UNSUPPORTED",
        TIDEMILL_IO => c"IO",
        TIDEMILL_MEMORY => c"MEMORY",
        TIDEMILL_CONTEXT_FULL => c"CONTEXT_FULL",
        TIDEMILL_DEVICE => c"DEVICE",
        TIDEMILL_BUSY => c"BUSY",
        TIDEMILL_TOO_SMALL => c"TOO_SMALL",
        TIDEMILL_CANCELLED => c"CANCELLED",
        _ => c"UNKNOWN",
    };
    guard_value("tidemill_status_name", name.as_ptr(), || name.as_ptr())
}

/// Frees a text that this library made. NULL is nothing.
///
/// # Safety
/// `text` is NULL or came from this library and was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_string_free(text: *mut c_char) {
    guard_value("tidemill_string_free", (), || {
        if !text.is_null() {
            // SAFETY: it came from `CString::into_raw`, as the caller promises.
            drop(unsafe { CString::from_raw(text) });
        }
    });
}
