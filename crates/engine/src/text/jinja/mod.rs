//! Jinja as Python has it, on top of `minijinja`: operators, methods, filters and texts that differ between the
//! two, and a ceiling for the time and the memory that a template may take.
//!
//! Templates come with models and are not trusted. `minijinja` counts *fuel*: one for an instruction, one for 64 bytes
//! that a template makes. It does not guard against values that nest deep, nor count what comparing nested values
//! costs, so compiled templates are rewritten ([`ops::rewritten`]): what a loop could let grow is checked where it is
//! stored, and operators are functions of ours.

mod filters;
mod json;
mod methods;
mod ops;
mod source;
mod value;

use minijinja::{Environment, Error, ErrorKind, State};

pub(super) use filters::Refusal;
pub(super) use ops::rewritten;
pub(super) use source::prepared;
pub(super) use value::{Given, text_of};

/// Values nest at most this deep: what a file's JSON may, and some.
const MAX_DEPTH: usize = 160;

/// Bytes that one unit of fuel pays for.
const BYTES_PER_FUEL: u64 = 64;

/// Sets up what a chat template finds in its environment.
pub(super) fn set_up(env: &mut Environment<'_>) {
    env.set_unknown_method_callback(methods::call);
    filters::set_up(env);
    ops::set_up(env);
}

fn fail(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// How many bytes the template may still make.
fn room(state: &State<'_, '_>) -> usize {
    let fuel = state.fuel_levels().map_or(u64::MAX, |(_, remaining)| remaining);
    usize::try_from(fuel.saturating_mul(BYTES_PER_FUEL)).unwrap_or(usize::MAX)
}

/// Refuses to make `bytes` that the template cannot pay for. What a function returns is paid by `minijinja`.
fn ensure(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    if bytes < room(state) { Ok(()) } else { Err(Error::from(ErrorKind::OutOfFuel)) }
}

/// The same for `count` pieces of `bytes` each.
fn ensure_many(state: &State<'_, '_>, count: usize, bytes: usize) -> Result<(), Error> {
    ensure(state, count.saturating_mul(bytes))
}
