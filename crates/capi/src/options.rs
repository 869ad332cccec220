//! Options as JSON: the command line's names and units. What nobody knows, and what is given twice, is refused.

use std::ffi::c_char;
use std::path::PathBuf;

use api::body::{At, parse};
use api::drive;
use api::fields::{Field, Ignored, check, honoured};
use api::openai::{SAMPLING_FIELDS, sampling};
use api::schema::Shape;
use api::{ApiError, Limits};
use engine::drive::{DiskKind, DriveOptions};
use engine::sample::SampleRequest;
use engine::text::Json;
use engine::{CacheKind, Device, KvFormat, OpenOptions};

use crate::border::text_or_none;
use crate::status::Failure;

/// Sequences that live at once where nothing else is asked for, as `--parallel` has it.
const SESSIONS: usize = 4;

const SESSIONS_MAX: u64 = 4096;

/// A session has its logits, the next and those of a step; a sampler for it has what it changed, and candidates of 16 bytes.
const LOGITS_PER_SESSION: usize = 3 + 1 + 4;

/// What states may take on the disk, as `--state-space` has it.
const STATE_SPACE_BYTES: u64 = 16 << 30;

/// The options of a model.
pub(crate) const MODEL_KEYS: [&str; 18] = [
    "memory_bytes",
    "vram_bytes",
    "threads",
    "context",
    "sessions",
    "device",
    "exact",
    "kv",
    "experts_per_token",
    "chunk_tokens",
    "cache",
    "disk",
    "mirror",
    "throttle_bytes_per_s",
    "drive",
    "state_dir",
    "state_space_bytes",
    "chat_template",
];

const DEVICES: &[(&str, Device)] = &[("auto", Device::Auto), ("cpu", Device::Cpu), ("gpu", Device::Gpu)];
const KV_FORMATS: &[(&str, KvFormat)] = &[("f16", KvFormat::F16), ("q8", KvFormat::Q8)];
const CACHES: &[(&str, CacheKind)] = &[("slots", CacheKind::Slots), ("os", CacheKind::Os)];
const DISKS: &[(&str, DiskKind)] = &[
    ("auto", DiskKind::Auto),
    ("uring", DiskKind::Uring),
    ("pread", DiskKind::Pread),
    ("buffered", DiskKind::Buffered),
];

/// How a model is opened, and what the engine is not asked for.
pub(crate) struct ModelOptions {
    pub(crate) open: OpenOptions,
    /// Where states outlive the process, and what they may take.
    pub(crate) states: Option<(PathBuf, u64)>,
    pub(crate) chat_template: Option<String>,
}

/// The options of a model.
pub(crate) fn model(json: *const c_char) -> Result<ModelOptions, Failure> {
    let json = object(json)?;
    let body = At::root(&json);
    known(&body, &MODEL_KEYS.map(|key| honoured(key, Shape::Any, "")))?;
    let states = states(&body)?;
    let count = |key: &str, least| body.optional(key, |at| at.count(least..=u64::MAX));
    let bytes = |key: &str| body.optional(key, |at| at.whole(0..=u64::MAX));
    let open = OpenOptions {
        device: one_of(&body, "device", DEVICES)?.unwrap_or_default(),
        exact: body.flag_or("exact", false)?,
        memory_bytes: bytes("memory_bytes")?,
        vram_bytes: bytes("vram_bytes")?,
        cache: one_of(&body, "cache", CACHES)?.unwrap_or_default(),
        kv_format: one_of(&body, "kv", KV_FORMATS)?,
        threads: count("threads", 1)?,
        context: count("context", 1)?,
        experts_per_token: count("experts_per_token", 1)?,
        chunk_tokens: count("chunk_tokens", 1)?,
        sessions: Some(body.optional_count("sessions", 1..=SESSIONS_MAX)?.unwrap_or(SESSIONS)),
        kept_bytes: if states.is_some() { None } else { Some(0) },
        serves: true,
        logits_per_session: LOGITS_PER_SESSION,
        drive: DriveOptions {
            kind: one_of(&body, "disk", DISKS)?.unwrap_or_default(),
            known: body.optional("drive", known_drive)?.map(|found| found.choice),
            throttle_bytes_per_s: body
                .optional("throttle_bytes_per_s", |at| at.number_in(1.0..=1e15))?
                .map(f64::from),
            mirror: body.optional_text("mirror")?.map(PathBuf::from),
        },
        ..OpenOptions::default()
    };
    if open.exact && open.kv_format.is_some() {
        return Err(Failure::invalid("`kv`: `exact` keeps keys and values in float32"));
    }
    Ok(ModelOptions { open, states, chat_template: body.optional_text("chat_template")? })
}

fn states(body: &At) -> Result<Option<(PathBuf, u64)>, Failure> {
    let directory = body.optional_text("state_dir")?.map(PathBuf::from);
    let space_bytes = body.optional("state_space_bytes", |at| at.whole(0..=u64::MAX))?;
    match (directory, space_bytes) {
        (None, Some(_)) => Err(Failure::invalid("`state_space_bytes`: it needs `state_dir`")),
        (directory, space_bytes) => {
            Ok(directory.map(|directory| (directory, space_bytes.unwrap_or(STATE_SPACE_BYTES))))
        }
    }
}

fn known_drive(at: &At) -> Result<engine::drive::DriveRate, ApiError> {
    drive::of_json(&at.value()?).ok_or_else(|| at.wrong("it is not what a model said of its drive"))
}

/// What the member `key` names.
fn one_of<T: Copy>(body: &At, key: &str, names: &[(&str, T)]) -> Result<Option<T>, ApiError> {
    body.optional(key, |at| {
        let name = at.string()?;
        let found = names.iter().find(|(other, _)| *other == name);
        let all = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        found.map(|(_, value)| *value).ok_or_else(|| at.wrong(format_args!("it is none of {}", all())))
    })
}

/// The options of a sampler.
pub(crate) fn sampler(json: *const c_char) -> Result<SampleRequest, Failure> {
    let json = object(json)?;
    let body = At::root(&json);
    known(&body, SAMPLING_FIELDS)?;
    Ok(sampling(&body)?)
}

/// The object that `json` is; NULL is one without members.
fn object(json: *const c_char) -> Result<Json, Failure> {
    Ok(parse(text_or_none(json, "options_json")?.unwrap_or("{}").as_bytes())?)
}

fn known(body: &At, fields: &[Field]) -> Result<(), Failure> {
    let limits = Limits { choices_max: 1, strict: true, completion_tokens: 0 };
    Ok(check(body, fields, &limits, &mut Ignored::default())?)
}
