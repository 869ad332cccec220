//! How a probe chose to read a drive, as an object that outlives the process.

use engine::drive::{DiskChoice, DriveRate, Engine};
use serde_json::{Value, json};

/// As an object.
pub fn to_json(found: &DriveRate) -> Value {
    let engine = match found.choice.engine {
        Engine::Pread => "pread",
        Engine::Uring => "uring",
    };
    json!({
        "engine": engine,
        "direct": found.choice.direct,
        "piece_bytes": found.choice.piece_bytes,
        "depth": found.choice.depth,
        "bytes_per_s": found.bytes_per_s,
    })
}

/// From such an object, if it is one. Without a rate nothing could ever contradict it: such an entry, of an older version,
/// counts as none.
pub fn of_json(value: &Value) -> Option<DriveRate> {
    let engine = match value.get("engine")?.as_str()? {
        "pread" => Engine::Pread,
        "uring" => Engine::Uring,
        _ => return None,
    };
    let number = |name: &str, most: u64| value.get(name)?.as_u64().filter(|n| (1..=most).contains(n));
    let choice = DiskChoice {
        engine,
        direct: value.get("direct")?.as_bool()?,
        piece_bytes: number("piece_bytes", 64 << 20)? as usize,
        depth: number("depth", 256)? as usize,
    };
    let bytes_per_s = value.get("bytes_per_s")?.as_f64().filter(|rate| rate.is_finite() && *rate > 0.0)?;
    Some(DriveRate { choice, bytes_per_s })
}
