//! Operators as Python has them, and the rewriting of compiled templates that brings them in.

use std::cmp::Ordering;
use std::sync::Arc;

use indexmap::IndexMap;
use minijinja::formatting::{FormatStyle, format};
use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Object, ObjectRepr, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::value::{Digits, as_float, check, is_container, repr_of, text_of, visit};
use super::{BYTES_PER_FUEL, MAX_DEPTH, ensure, ensure_many, fail, methods};

/// Bytes of a value in a list, as `minijinja` counts them.
const SLOT_BYTES: usize = 32;

// Names that no template can write.
const CHECK: &str = "op check";
const FLAT: &str = "op flat";
const SCALAR: &str = "op scalar";

/// Registers the functions that [`rewritten`] instructions call.
pub(super) fn set_up(env: &mut Environment<'_>) {
    env.add_function(CHECK, |state: &State<'_, '_>, value: Value| check(state, &value).map(|()| value));
    env.add_function(FLAT, flat);
    env.add_function(SCALAR, |value: Value| match is_container(&value) {
        true => Err(fail("lists and dicts cannot be part of a chain of comparisons")),
        false => Ok(value),
    });
    env.add_function("op {", map);
    env.add_function("op []", item);
    env.add_function("op [:]", slice);
    env.add_function("op %", remainder);
    env.add_function("op ~", |state: &State<'_, '_>, a: Value, b: Value| {
        let (a, b) = (text_of(state, &a)?, text_of(state, &b)?);
        ensure(state, a.len() + b.len())?;
        Ok::<_, Error>(a + &b)
    });
    env.add_function("op ==", |state: &State<'_, '_>, a: Value, b: Value| equal(state, &a, &b));
    env.add_function("op !=", |state: &State<'_, '_>, a: Value, b: Value| {
        Ok::<_, Error>(!equal(state, &a, &b)?)
    });
    env.add_function("op in", |state: &State<'_, '_>, a: Value, b: Value| contains(state, &b, &a));
    for (name, wanted) in ORDERS {
        env.add_function(name, move |state: &State<'_, '_>, a: Value, b: Value| {
            compare(state, &a, &b).map(|order| wanted.contains(&order))
        });
    }
    for (name, method) in DICT_METHODS {
        env.add_function(name, move |value: Value| attribute(&value, method));
    }
}

/// The orders that make each comparison true.
pub(super) const ORDERS: [(&str, &[Ordering]); 4] = [
    ("op <", &[Ordering::Less]),
    ("op <=", &[Ordering::Less, Ordering::Equal]),
    ("op >", &[Ordering::Greater]),
    ("op >=", &[Ordering::Greater, Ordering::Equal]),
];

/// Python looks for a method before it looks for a key: `x.items` is the method, `x['items']` the value.
const DICT_METHODS: [(&str, &str); 5] = [
    ("op .items", "items"),
    ("op .keys", "keys"),
    ("op .values", "values"),
    ("op .get", "get"),
    ("op .copy", "copy"),
];

/// The function that takes an operator's place.
fn replacement(instruction: &Instruction<'_>) -> Option<(&'static str, u16)> {
    let name = match instruction {
        Instruction::Rem => "op %",
        Instruction::StringConcat => "op ~",
        Instruction::Eq => "op ==",
        Instruction::Ne => "op !=",
        Instruction::Lt => "op <",
        Instruction::Lte => "op <=",
        Instruction::Gt => "op >",
        Instruction::Gte => "op >=",
        Instruction::In => "op in",
        Instruction::GetItem => "op []",
        Instruction::Slice => return Some(("op [:]", 4)),
        Instruction::BuildMap(pairs) => return Some(("op {", u16::try_from(2 * pairs).ok()?)),
        Instruction::GetAttr(name) => {
            return DICT_METHODS.iter().find(|(_, method)| method == name).map(|(op, _)| (*op, 1));
        }
        _ => return None,
    };
    Some((name, 2))
}

/// The same program with the operators of this file, and with checks of what it stores.
pub(crate) fn rewritten<'a>(old: &Instructions<'a>) -> Instructions<'a> {
    let call = |name| Instruction::CallFunction(name, Some(1));
    let mut new = Instructions::new(old.name(), old.source());
    let mut starts = Vec::new();
    let mut at = 0;
    while let Some(instruction) = old.get(at) {
        let (before, after) = match instruction {
            Instruction::StoreLocal(_) => (vec![call(CHECK)], None),
            Instruction::SetAttr(_) => (vec![Instruction::Swap, call(CHECK), Instruction::Swap], None),
            Instruction::CompareAndPreserve(_) => (vec![call(SCALAR)], None),
            Instruction::Add | Instruction::Mul => (Vec::new(), Some(call(FLAT))),
            Instruction::ApplyFilter(..) => (Vec::new(), Some(call(CHECK))),
            _ => (Vec::new(), None),
        };
        let own = match replacement(instruction) {
            Some((name, arguments)) => Instruction::CallFunction(name, Some(arguments)),
            None => instruction.clone(),
        };
        let line = old.get_line(at).and_then(|line| u16::try_from(line).ok()).unwrap_or(0);
        starts.push(0);
        for (i, instruction) in before.into_iter().chain([own]).chain(after).enumerate() {
            let index = new.add_with_line(instruction, line);
            if i == 0 {
                starts[at as usize] = index;
            }
        }
        at += 1;
    }
    // Jumps go to where their targets have moved; one may go to the end.
    let end = starts.len() as u32;
    let last = (0..).find(|i| new.get(*i).is_none()).unwrap_or(0);
    let moved = |target: u32| if target >= end { last } else { starts[target as usize] };
    for i in 0..last {
        if let Some(
            Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::Iterate(target)
            | Instruction::BuildMacro(_, target, _),
        ) = new.get_mut(i)
        {
            *target = moved(*target);
        }
    }
    new
}

/// Lists that `minijinja` makes lazily are made at once, and paid for: chains of them would be as deep as they are
/// long.
fn flat(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let lazy = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !value.is_tuple()
        && value.downcast_object_ref::<Vec<Value>>().is_none();
    if !lazy {
        return Ok(value);
    }
    ensure_many(state, value.len().unwrap_or(0), SLOT_BYTES)?;
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        visit(state)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

/// Keys are what Python can hash: anything but lists and dicts.
fn hashable(key: &Value) -> Result<(), Error> {
    let tuple = key.is_tuple() && key.try_iter()?.all(|item| !is_container(&item));
    if is_container(key) && !tuple { Err(fail(format!("unhashable key: {}", key.kind()))) } else { Ok(()) }
}

fn map(items: Rest<Value>) -> Result<Value, Error> {
    let mut pairs = IndexMap::new();
    for pair in items.chunks(2) {
        let [key, value] = pair else { return Err(fail("a key without a value")) };
        hashable(key)?;
        pairs.insert(key.clone(), value.clone());
    }
    Ok(Value::from_pairs(pairs))
}

/// Pays for reading through a text.
fn scanned(state: &State<'_, '_>, text: &str) -> Result<(), Error> {
    state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)
}

/// `value[key]`
fn item(state: &State<'_, '_>, value: Value, key: Value) -> Result<Value, Error> {
    hashable(&key)?;
    scanned(state, value.as_str().unwrap_or_default())?;
    value.get_item(&key)
}

/// `value[start:stop:step]`
fn slice(
    state: &State<'_, '_>,
    value: Value,
    start: Value,
    stop: Value,
    step: Value,
) -> Result<Value, Error> {
    let number = |value: Value| match value.is_none() {
        true => Ok(None),
        false => i64::try_from(value).map(Some).map_err(|_| fail("the bounds of a slice are whole numbers")),
    };
    let (start, stop, step) = (number(start)?, number(stop)?, number(step)?.unwrap_or(1));
    if let Some(text) = value.as_str() {
        scanned(state, text)?;
        let length = text.chars().count();
        ensure_many(state, length, 12)?;
        let picked = picks(length, start, stop, step)?;
        if let (1, Some(first), Some(last)) = (step, picked.first(), picked.last()) {
            return Ok(text.chars().skip(*first).take(last - first + 1).collect::<String>().into());
        }
        let letters: Vec<char> = text.chars().collect();
        return Ok(picked.into_iter().map(|at| letters[at]).collect::<String>().into());
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(fail(format!("{} has no slices", value.kind())));
    }
    let is_tuple = value.is_tuple();
    let list = match value.downcast_object::<Vec<Value>>() {
        Some(list) => list,
        None => {
            let mut items = Vec::new();
            for item in value.try_iter()?.checked() {
                visit(state)?;
                items.push(item?);
            }
            Arc::new(items)
        }
    };
    ensure_many(state, list.len(), 8)?;
    let picked = picks(list.len(), start, stop, step)?;
    ensure_many(state, picked.len(), SLOT_BYTES)?;
    let items: Vec<Value> = picked.into_iter().map(|at| list[at].clone()).collect();
    Ok(if is_tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

/// The indices that a slice of `length` items picks.
fn picks(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Vec<usize>, Error> {
    let length = length as i64;
    // One before the first, where the steps go back.
    let least = if step < 0 { -1 } else { 0 };
    let bound = |at: Option<i64>, default: i64| match at {
        Some(at) if at < 0 => at.saturating_add(length).max(least),
        Some(at) => at.min(length + least),
        None => default,
    };
    let ends = if step < 0 { (length - 1, -1) } else { (0, length) };
    let (start, stop) = (bound(start, ends.0), bound(stop, ends.1));
    let width = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    match step {
        0 => Err(fail("the step of a slice is 0")),
        1.. => Ok((start..stop).step_by(width).map(|at| at as usize).collect()),
        _ => Ok((stop + 1..=start).rev().step_by(width).map(|at| at as usize).collect()),
    }
}

/// `a + b`, of two numbers or two lists, as `sum` needs it.
pub(super) fn add(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (whole(a), whole(b)) {
        let sum = a.checked_add(b).ok_or_else(|| fail("a sum that is too large"))?;
        return Ok(i64::try_from(sum).map_or(Value::from(sum), Value::from));
    }
    if let (Some(a), Some(b)) = (real(a), real(b)) {
        return Ok(Value::from(a + b));
    }
    let lists = a.kind() == ValueKind::Seq && b.kind() == ValueKind::Seq && a.is_tuple() == b.is_tuple();
    if !lists {
        return Err(fail(format!("{} + {}", a.kind(), b.kind())));
    }
    ensure_many(state, a.len().unwrap_or(0).saturating_add(b.len().unwrap_or(0)), SLOT_BYTES)?;
    let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
    state.consume_fuel(items.len() as u64)?;
    Ok(if a.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) })
}

/// A whole number, or a truth value as one.
fn whole(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    as_float(value).or(whole(value).map(|n| n as f64))
}

/// A method of a dict that is not called yet.
#[derive(Debug)]
struct Method {
    dict: Value,
    name: &'static str,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::call(state, &self.dict, self.name, args)
    }
}

/// Whether a value is a dict, and not something else that has keys.
pub(super) fn is_dict(value: &Value) -> bool {
    value.downcast_object_ref::<IndexMap<Value, Value>>().is_some()
}

fn attribute(value: &Value, name: &'static str) -> Result<Value, Error> {
    if is_dict(value) {
        return Ok(Value::from_object(Method { dict: value.clone(), name }));
    }
    value.get_attr(name)
}

/// Python's `a == b`.
pub(super) fn equal(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    equal_at(state, a, b, 0)
}

fn equal_at(state: &State<'_, '_>, a: &Value, b: &Value, depth: usize) -> Result<bool, Error> {
    if depth > MAX_DEPTH {
        return Err(fail("values nest too deep"));
    }
    visit(state)?;
    if let (Some(a), Some(b)) = (a.downcast_object_ref::<Digits>(), b.downcast_object_ref::<Digits>()) {
        return Ok(a.0 == b.0);
    }
    if !is_container(a) || !is_container(b) {
        return Ok(!is_container(a) && !is_container(b) && a == b);
    }
    let maps = a.kind() == ValueKind::Map;
    if maps != (b.kind() == ValueKind::Map) || a.is_tuple() != b.is_tuple() || a.len() != b.len() {
        return Ok(false);
    }
    let mut others = b.try_iter()?;
    for item in a.try_iter()? {
        let same = if maps {
            let (of_a, of_b) = (a.get_item(&item)?, b.get_item(&item)?);
            !of_b.is_undefined() && equal_at(state, &of_a, &of_b, depth + 1)?
        } else {
            let Some(other) = others.next() else { return Ok(false) };
            equal_at(state, &item, &other, depth + 1)?
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Python's order of `a` and `b`: of two numbers, two texts, or two lists.
pub(super) fn compare(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Ordering, Error> {
    compare_at(state, a, b, 0)
}

fn compare_at(state: &State<'_, '_>, a: &Value, b: &Value, depth: usize) -> Result<Ordering, Error> {
    if depth > MAX_DEPTH {
        return Err(fail("values nest too deep"));
    }
    visit(state)?;
    let number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    let text = |v: &Value| v.kind() == ValueKind::String;
    if (number(a) && number(b)) || (text(a) && text(b)) {
        return Ok(a.cmp(b));
    }
    let lists = a.kind() == ValueKind::Seq && b.kind() == ValueKind::Seq && a.is_tuple() == b.is_tuple();
    if !lists {
        return Err(fail(format!("{} and {} have no order", a.kind(), b.kind())));
    }
    for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
        if !equal_at(state, &a, &b, depth + 1)? {
            return compare_at(state, &a, &b, depth + 1);
        }
    }
    Ok(a.len().cmp(&b.len()))
}

/// Python's `value in container`.
pub(super) fn contains(state: &State<'_, '_>, container: &Value, value: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        scanned(state, text)?;
        let part = value.as_str().ok_or_else(|| fail(format!("{} in a text", value.kind())))?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => {
            hashable(value)?;
            Ok(!container.get_item(value)?.is_undefined())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in container.try_iter()?.checked() {
                if equal_at(state, &item?, value, 0)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        kind => Err(fail(format!("{kind} holds nothing"))),
    }
}

/// `a % b`: formats a text, or divides.
fn remainder(state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    if let Some(pattern) = a.as_str() {
        let args = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b] };
        return percent(state, pattern, &args).map(Value::from);
    }
    if let (Some(a), Some(b)) = (whole(&a), whole(&b)) {
        // The sign is the divisor's.
        let rest = a.checked_rem(b).ok_or_else(|| fail("division by zero"))?;
        let rest = if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest };
        return Ok(i64::try_from(rest).map_or(Value::from(rest), Value::from));
    }
    let (Some(x), Some(y)) = (real(&a), real(&b)) else {
        return Err(fail(format!("{} % {}", a.kind(), b.kind())));
    };
    if y == 0.0 {
        return Err(fail("division by zero"));
    }
    Ok(Value::from(x - y * (x / y).floor()))
}

/// Python's `pattern % args`.
pub(super) fn percent(state: &State<'_, '_>, pattern: &str, args: &[Value]) -> Result<String, Error> {
    let mut args = args.to_vec();
    let mut out = String::with_capacity(pattern.len());
    let (mut rest, mut used, mut named, mut bytes) = (pattern, 0, false, pattern.len());
    while let Some(at) = rest.find('%') {
        let spec = &rest[at + 1..];
        let key = if spec.starts_with('(') { spec.find(')').map_or(0, |end| end + 1) } else { 0 };
        named |= key > 0;
        let flags = |c: char| "#0- +.123456789hlL".contains(c);
        let length = spec[key..].find(|c| !flags(c)).map_or(spec.len(), |n| key + n);
        let digits = |part: &str| part.parse::<usize>().unwrap_or(usize::MAX);
        let widths = spec[key..length].split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
        bytes = widths.map(digits).fold(bytes, usize::saturating_add);
        let kind = spec[length..].chars().next().ok_or_else(|| fail("incomplete format"))?;
        out.push_str(&rest[..=at]);
        out.push_str(&spec[..length]);
        // Texts of values are Python's.
        let text = matches!(kind, 's' | 'r' | 'a');
        out.push(if text { 's' } else { kind });
        if kind != '%' && key == 0 {
            let arg = args.get_mut(used).ok_or_else(|| fail("not enough arguments for the format"))?;
            used += 1;
            if let (Some(x), 'd' | 'i' | 'u') = (as_float(arg), kind) {
                *arg = Value::from(x.trunc() as i128);
            }
            if text {
                *arg = Value::from(if kind == 's' { text_of(state, arg)? } else { repr_of(state, arg)? });
                bytes = bytes.saturating_add(arg.as_str().map_or(0, str::len));
            }
        } else if let (Some(name), Some(dict)) = (spec.get(1..key.saturating_sub(1)), args.first()) {
            let arg = dict.get_item(&Value::from(name))?;
            bytes = bytes.saturating_add(arg.as_str().map_or(0, str::len));
        }
        ensure(state, bytes)?;
        rest = &spec[length + kind.len_utf8()..];
    }
    out.push_str(rest);
    if used < args.len() && !named && args.iter().any(|arg| arg.kind() != ValueKind::Map) {
        return Err(fail("not all arguments are used by the format"));
    }
    // `%%` alone needs no arguments, and one dict is allowed to be left over.
    let args = if named { args } else { args.into_iter().take(used).collect() };
    format(FormatStyle::Printf, &out, &args)
}

/// Python's `(a, b, c)`.
pub(super) fn tuple<const N: usize>(items: [Value; N]) -> Value {
    Value::from(Tuple::from(items))
}
