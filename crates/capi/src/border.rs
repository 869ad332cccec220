//! What every function does at the border: panics stop here, NULL is a mistake with a name, and outputs are written on
//! success only.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::status::{Failure, Status, TIDEMILL_INTERNAL, TIDEMILL_OK, TIDEMILL_TOO_SMALL};

/// Runs what a function does. A panic is `INTERNAL`. `error`, where given, gets the message or NULL.
pub(crate) fn guard(
    name: &'static str,
    error: *mut *mut c_char,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Status {
    guard_handle(name, None, error, work)
}

/// The same for a function with a handle, which a panic breaks.
pub(crate) fn guard_handle(
    name: &'static str,
    broken: Option<&AtomicBool>,
    error: *mut *mut c_char,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Status {
    let done = catch_unwind(AssertUnwindSafe(|| {
        plant(name);
        work()
    }));
    let failure = match done {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(panic) => {
            broken.inspect(|broken| broken.store(true, Ordering::Release));
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Some(Failure::new(TIDEMILL_INTERNAL, format!("{name}: a fault of the library: {said}")))
        }
    };
    let status = failure.as_ref().map_or(TIDEMILL_OK, |failure| failure.status);
    if !error.is_null() {
        let message = failure.map_or(std::ptr::null_mut(), |failure| owned(failure.message));
        // SAFETY: the caller gives a place for a pointer, or NULL.
        unsafe { error.write(message) };
    }
    status
}

/// The same for functions that cannot fail: what they answer if they panic all the same.
pub(crate) fn guard_value<T>(name: &'static str, otherwise: T, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(|| {
        plant(name);
        work()
    }))
    .unwrap_or(otherwise)
}

/// Panics where a test wants it.
fn plant(name: &'static str) {
    #[cfg(test)]
    if planted::PLANTED.get() == Some((name, false)) {
        panic!("planted");
    }
    let _ = name;
}

/// The same where a handle is claimed.
pub(crate) fn plant_claimed(name: &'static str) {
    #[cfg(test)]
    if planted::PLANTED.get() == Some((name, true)) {
        panic!("planted");
    }
    let _ = name;
}

/// A text for the caller; what is behind a NUL would be lost, so there is none.
pub(crate) fn owned(text: String) -> *mut c_char {
    let text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    CString::new(text).map_or(std::ptr::null_mut(), CString::into_raw)
}

/// What `pointer` points to.
pub(crate) fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: handles and outputs are valid or NULL, as the header asks.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

fn null(name: &str) -> Failure {
    Failure::invalid(format!("`{name}` is NULL"))
}

/// A place that must be there.
pub(crate) fn place<T>(pointer: *mut T, name: &str) -> Result<Place<T>, Failure> {
    if pointer.is_null() { Err(null(name)) } else { Ok(Place(pointer)) }
}

/// A place that may be missing.
pub(crate) fn place_or_none<T>(pointer: *mut T) -> Option<Place<T>> {
    (!pointer.is_null()).then_some(Place(pointer))
}

/// An output that is NULL on failure, whatever fails.
pub(crate) fn empty<T>(pointer: *mut *mut T) {
    if let Some(place) = place_or_none(pointer) {
        place.put(std::ptr::null_mut());
    }
}

/// Where the caller wants a value.
pub(crate) struct Place<T>(*mut T);

impl<T> Place<T> {
    /// Puts it there; what was there is not looked at.
    pub(crate) fn put(&self, value: T) {
        // SAFETY: it is not NULL, and the caller gives a place for such a value.
        unsafe { self.0.write(value) };
    }
}

/// A text of the caller's.
pub(crate) fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: it ends with NUL, as the header asks.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|e| not_utf8(name, e.valid_up_to()))
}

/// The same, where NULL stands for nothing.
pub(crate) fn text_or_none<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if pointer.is_null() { Ok(None) } else { text(pointer, name).map(Some) }
}

/// A text with a length, which may hold NUL.
pub(crate) fn bytes_as_text<'a>(
    pointer: *const c_char,
    bytes: usize,
    name: &str,
) -> Result<&'a str, Failure> {
    let bytes = slice(pointer.cast::<u8>(), bytes, name)?;
    std::str::from_utf8(bytes).map_err(|e| not_utf8(name, e.valid_up_to()))
}

fn not_utf8(name: &str, at: usize) -> Failure {
    Failure::invalid(format!("`{name}` is not UTF-8: byte {at} does not fit"))
}

/// `count` values of the caller's; NULL is fine for none.
pub(crate) fn slice<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::invalid(format!("`{name}`: {count} are more than memory holds")));
    }
    // SAFETY: so many are there, as the header asks, and nobody changes them during the call.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A buffer of the caller's, with room for `capacity` values.
pub(crate) fn buffer<T: Copy>(pointer: *mut T, capacity: usize, name: &'static str) -> Buffer<T> {
    Buffer { pointer, capacity, name }
}

/// See [`buffer`].
pub(crate) struct Buffer<T> {
    pointer: *mut T,
    capacity: usize,
    name: &'static str,
}

impl<T: Copy> Buffer<T> {
    /// Whether `count` values are to be written; not where NULL with a capacity of 0 only counts them.
    ///
    /// # Errors
    /// `INVALID_REQUEST` for NULL, `TOO_SMALL`.
    pub(crate) fn takes(&self, count: usize) -> Result<bool, Failure> {
        let Self { pointer, capacity, name } = *self;
        if pointer.is_null() {
            return if capacity == 0 { Ok(false) } else { Err(null(name)) };
        }
        if count > capacity {
            let message = format!("`{name}` has room for {capacity}, of {count} that are needed");
            return Err(Failure::new(TIDEMILL_TOO_SMALL, message));
        }
        Ok(true)
    }

    /// Writes `values`, where they are wanted.
    ///
    /// # Errors
    /// As [`Self::takes`].
    pub(crate) fn fill(&self, values: &[T]) -> Result<(), Failure> {
        if self.takes(values.len())? {
            // SAFETY: the buffer has room for so many, and is the caller's own.
            unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.pointer, values.len()) };
        }
        Ok(())
    }

    /// The same, after `count` got how many there are.
    ///
    /// # Errors
    /// As [`Self::takes`].
    pub(crate) fn fill_counted(&self, values: &[T], count: &Place<usize>) -> Result<(), Failure> {
        count.put(values.len());
        self.fill(values)
    }
}

/// Puts JSON where the caller wants it.
pub(crate) fn put_json(place: &Place<*mut c_char>, json: &Value) {
    place.put(owned(json.to_string()));
}

#[cfg(test)]
pub(crate) mod planted {
    std::thread_local! {
        /// The function that shall panic, and whether it shall have its handle then.
        pub(crate) static PLANTED: std::cell::Cell<Option<(&'static str, bool)>> =
            const { std::cell::Cell::new(None) };
    }
}
