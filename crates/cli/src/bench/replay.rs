//! `bench --trace`: how each eviction policy would have done with recorded routing.

use std::path::Path;

use engine::{Trace, TraceReplay, replay_all};
use serde_json::json;

use crate::failure::Result;
use crate::out;

/// Pool sizes to try, in percent of all experts.
const PERCENTS: [u64; 9] = [2, 5, 10, 15, 20, 30, 50, 75, 100];

/// Replays `file` with pools of `slots` experts, or of usual shares of all.
///
/// # Errors
/// As [`Trace::read`].
pub(super) fn main(file: &Path, slots: &[usize], as_json: bool) -> Result<()> {
    let trace = Trace::read(file)?;
    let total = trace.total_experts();
    let mut sizes: Vec<usize> = match slots {
        [] => PERCENTS.iter().map(|p| (total * p / 100).max(1) as usize).collect(),
        given => given.to_vec(),
    };
    sizes.dedup();
    let rows: Vec<_> = sizes.iter().map(|&slots| replay_all(&trace, slots)).collect();
    if as_json {
        let results: Vec<_> = rows.iter().flatten().map(|r| result(r, total)).collect();
        return out::json(&json!({
            "trace": file.display().to_string(),
            "steps": trace.steps.len(),
            "experts": total,
            "slot_bytes": trace.slot_bytes,
            "results": results,
        }));
    }
    out::print(&table(&trace, &rows), false)
}

fn result(r: &TraceReplay, total: u64) -> serde_json::Value {
    let rate = |replay: &engine::Replay| (replay.wanted > 0).then(|| replay.hit_rate());
    json!({
        "policy": r.policy,
        "slots": r.slots,
        "slots_fraction": r.slots as f64 / total.max(1) as f64,
        "prompt_hit_rate": rate(&r.prompt),
        "decode_hit_rate": rate(&r.decode),
    })
}

/// Hit rates in percent: a row for each pool size, a column for each policy.
fn table(trace: &Trace, rows: &[Vec<TraceReplay>]) -> String {
    let prompts = trace.steps.iter().filter(|step| step.rows > 1).count();
    let total = trace.total_experts();
    let mut text = format!(
        "{} prompt chunks and {} tokens, {total} experts of {}; percent found in memory, of the tokens\n",
        prompts,
        trace.steps.len() - prompts,
        out::bytes(trace.slot_bytes)
    );
    for row in rows.iter().take(1) {
        text += &format!("{:>8} {:>6} {:>11}", "slots", "share", "memory");
        text += &row.iter().map(|r| format!(" {:>8}", r.policy)).collect::<String>();
        text.push('\n');
    }
    for row in rows {
        let Some(first) = row.first() else { continue };
        let share = 100.0 * first.slots as f64 / total.max(1) as f64;
        let memory = out::bytes(trace.slot_bytes.saturating_mul(first.slots as u64));
        text += &format!("{:>8} {share:>4.0} % {memory:>11}", first.slots);
        text += &row.iter().map(|r| format!(" {:>8.1}", 100.0 * r.decode.hit_rate())).collect::<String>();
        text.push('\n');
    }
    text
}
