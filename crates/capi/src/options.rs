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

const ANY_WHOLE: Shape = Shape::Whole(0, u64::MAX);
const POSITIVE: Shape = Shape::Whole(1, u64::MAX);

/// The options of a model.
const MODEL_FIELDS: &[Field] = &[
    honoured("memory_bytes", ANY_WHOLE, "the ceiling for everything"),
    honoured("vram_bytes", ANY_WHOLE, "the ceiling for what a GPU has in memory of its own"),
    honoured("threads", POSITIVE, ""),
    honoured("context", POSITIVE, "positions of a session"),
    honoured("sessions", Shape::Whole(1, SESSIONS_MAX), "that live at once"),
    honoured("device", Shape::OneOf(&DEVICES), ""),
    honoured("exact", Shape::Flag, ""),
    honoured("kv", Shape::OneOf(&KV_FORMATS), ""),
    honoured("experts_per_token", POSITIVE, ""),
    honoured("chunk_tokens", POSITIVE, ""),
    honoured("cache", Shape::OneOf(&CACHES), ""),
    honoured("disk", Shape::OneOf(&DISKS), ""),
    honoured("mirror", Shape::Text, "a directory"),
    honoured("throttle_bytes_per_s", Shape::Number(1.0, 1e15), ""),
    honoured("drive", Shape::Any, "what `info` said of the drive"),
    honoured("state_dir", Shape::Text, "a directory"),
    honoured("state_space_bytes", ANY_WHOLE, ""),
    honoured("chat_template", Shape::Text, "in place of the model's own"),
];

const DEVICES: [&str; 3] = ["auto", "cpu", "gpu"];
const KV_FORMATS: [&str; 2] = ["f16", "q8"];
const CACHES: [&str; 2] = ["slots", "os"];
const DISKS: [&str; 4] = ["auto", "uring", "pread", "buffered"];

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
    known(&body, MODEL_FIELDS)?;
    let states = states(&body)?;
    let count = |key: &str, least| body.optional(key, |at| at.count(least..=u64::MAX));
    let bytes = |key: &str| body.optional(key, |at| at.whole(0..=u64::MAX));
    let [device, kv, cache, disk] =
        [("device", &DEVICES[..]), ("kv", &KV_FORMATS), ("cache", &CACHES), ("disk", &DISKS)]
            .map(|(key, names)| body.optional(key, |at| one_of(at, names)));
    let open = OpenOptions {
        device: [Device::Auto, Device::Cpu, Device::Gpu][device?.unwrap_or(0)],
        exact: body.flag_or("exact", false)?,
        memory_bytes: bytes("memory_bytes")?,
        vram_bytes: bytes("vram_bytes")?,
        cache: [CacheKind::Slots, CacheKind::Os][cache?.unwrap_or(0)],
        kv_format: kv?.map(|kv| [KvFormat::F16, KvFormat::Q8][kv]),
        threads: count("threads", 1)?,
        context: count("context", 1)?,
        experts_per_token: count("experts_per_token", 1)?,
        chunk_tokens: count("chunk_tokens", 1)?,
        sessions: Some(body.optional_count("sessions", 1..=SESSIONS_MAX)?.unwrap_or(SESSIONS)),
        kept_bytes: if states.is_some() { None } else { Some(0) },
        serves: true,
        logits_per_session: LOGITS_PER_SESSION,
        drive: DriveOptions {
            kind: [DiskKind::Auto, DiskKind::Uring, DiskKind::Pread, DiskKind::Buffered][disk?.unwrap_or(0)],
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

fn one_of(at: &At, names: &[&str]) -> Result<usize, ApiError> {
    let name = at.string()?;
    let found = names.iter().position(|other| *other == name);
    found.ok_or_else(|| at.wrong(format_args!("it is none of {}", names.join(", "))))
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
