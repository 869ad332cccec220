//! What a measurement says: a table for people, an object for programs.

use std::time::Duration;

use engine::{KernelTime, LayerStats, ReadStats};
use serde_json::{Map, Value, json};

use super::Measured;
use super::prompt::PromptFigures;
use crate::load::Loaded;
use crate::out;

/// Columns of the longest bar.
const BAR_COLUMNS: f64 = 24.0;

/// Figures of a time in which experts were read.
struct Reading {
    time_s: f64,
    busy_s: f64,
    stats: ReadStats,
    total: LayerStats,
}

impl Reading {
    fn new(stats: &ReadStats, time: Duration) -> Self {
        let (time_s, busy_s) = (time.as_secs_f64(), stats.busy.as_secs_f64());
        Self { time_s, busy_s, stats: stats.clone(), total: stats.total() }
    }

    fn wait_s(&self) -> f64 {
        self.total.wait.as_secs_f64()
    }

    /// The drive's rate while it worked.
    fn drive_bytes_per_s(&self) -> f64 {
        ratio(self.total.read_bytes as f64, self.busy_s)
    }

    /// The part of the drive's working time in which nobody waited for it.
    fn overlap(&self) -> f64 {
        (1.0 - ratio(self.wait_s(), self.busy_s)).clamp(0.0, 1.0)
    }

    /// What was read and wanted against what the drive could have delivered in the whole time; `None` where nothing was
    /// read, which says nothing about the drive.
    fn drive_fraction(&self, drive_bytes_per_s: f64) -> Option<f64> {
        let wanted_bytes = self.total.wanted_bytes as f64;
        (self.total.read_bytes > 0).then(|| ratio(wanted_bytes, self.time_s * drive_bytes_per_s))
    }

    /// Seconds waited for the drive alone, for speculative reads that came late, for slots.
    fn stalls_s(&self) -> [f64; 3] {
        let [late, slots] = [self.total.wait_guesses, self.total.wait_slots].map(|t| t.as_secs_f64());
        [(self.wait_s() - late - slots).max(0.0), late, slots]
    }
}

impl Measured {
    fn reading(&self) -> Option<Reading> {
        self.reads.as_ref().map(|stats| Reading::new(stats, self.decode))
    }

    fn prompt_reading(&self) -> Option<Reading> {
        self.prompt_reads.as_ref().map(|stats| Reading::new(stats, self.prefill))
    }

    /// Whether experts are streamed, and those of the generated tokens were in memory all the same.
    pub(super) fn read_nothing(&self) -> bool {
        self.drive().is_some() && self.reading().is_some_and(|r| r.total.read_bytes == 0)
    }

    /// The better of the drive's rates before and after: at first it also waits for memory that nobody has used yet.
    pub(super) fn drive(&self) -> Option<f64> {
        self.drive_bytes_per_s.iter().copied().max_by(f64::total_cmp)
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

fn rate(tokens: usize, time: Duration) -> f64 {
    ratio(tokens as f64, time.as_secs_f64())
}

/// A table for people.
pub(super) fn table(loaded: &Loaded, m: &Measured) -> String {
    let mut text = if m.sequences > 1 { format!("sequences  {:>10}\n", m.sequences) } else { String::new() };
    text += &format!(
        "prefill    {:>10.1} tokens/s   {} tokens\ndecode     {:>10.1} tokens/s   {} tokens\n\
         first token{:>10.3} s\n",
        rate(m.prompt_tokens, m.prefill),
        m.prompt_tokens,
        rate(m.gen_tokens, m.decode),
        m.gen_tokens,
        m.time_to_first_token.as_secs_f64(),
    );
    if let Some(r) = m.reading() {
        let per_token = r.total.read_bytes / m.gen_tokens.max(1) as u64;
        text += &format!(
            "reads      {:>10} per token, {} per second while reading\nexperts    {:>10.1} % in memory when wanted{}\n",
            out::bytes(per_token),
            out::bytes(r.drive_bytes_per_s() as u64),
            100.0 * r.stats.hit_rate(),
            loaded.model.vram_slots().map_or(String::new(), |slots| format!(
                ", {:.1} % in the GPU's, which has {slots} slots",
                100.0 * r.stats.device_hit_rate()
            )),
        );
        let [drive, late, slots] = r.stalls_s().map(|s| 100.0 * ratio(s, r.time_s));
        text += &format!(
            "waiting    {:>10.1} % of the time: drive {drive:.1}, late speculative reads {late:.1}, slots {slots:.1}\n\
             overlap    {:>10.1} % of the reading is hidden behind arithmetic\n",
            drive + late + slots,
            100.0 * r.overlap(),
        );
    }
    if let (Some(drive), Some(r), Some(p)) = (m.drive(), m.reading(), m.prompt_reading()) {
        let seen: Vec<_> = m.drive_bytes_per_s.iter().map(|r| format!("{:.2}", r / 1e9)).collect();
        let used = |reading: &Reading| match reading.drive_fraction(drive) {
            Some(fraction) => format!("{:.1} % used", 100.0 * fraction),
            None => "nothing read".to_owned(),
        };
        let (decode, prefill) = (used(&r), used(&p));
        text += &format!(
            "drive      {decode:>12} in decode, {prefill} in prefill, of {} GB/s\n",
            seen.join(" and ")
        );
    }
    if let Some(gpu) = &m.gpu {
        let per_token = |count: u64| ratio(count as f64, m.gen_tokens as f64);
        text += &format!(
            "gpu        {:>10.1} submissions a token, {:.1} read-backs, {} copied to it\n",
            per_token(gpu.submissions),
            per_token(gpu.readbacks),
            out::bytes(per_token(gpu.copied_bytes) as u64),
        );
    }
    text += &PromptFigures::new(loaded, m).map_or_else(String::new, |figures| figures.table());
    text += &kernels("prompt", &m.prompt_kernels, m.prompt_tokens, m.prefill);
    text += &kernels("decode", &m.kernels, m.gen_tokens, m.decode);
    let plan = loaded.model.plan();
    let peak = engine::rss_peak_bytes().map_or("unknown".into(), out::bytes);
    text += &format!("memory     {peak:>10} at most, {} planned\n", out::bytes(plan.total_bytes));
    text + &m.reading().map(|r| layers(&r)).unwrap_or_default()
}

/// A line for each kind of dispatch, with its part of the time.
fn kernels(what: &str, kernels: &[KernelTime], tokens: usize, time: Duration) -> String {
    let line = |k: &KernelTime| {
        format!(
            "  {what} {:<16}{:>8.1} us a token, {:>6.2} us each, {:>5.1} % of the time\n",
            k.name,
            1e6 * ratio(k.seconds, tokens as f64),
            1e6 * ratio(k.seconds, k.calls as f64),
            100.0 * ratio(k.seconds, time.as_secs_f64()),
        )
    };
    kernels.iter().map(line).collect()
}

/// A line for each layer that read something, with a bar of its waiting.
fn layers(r: &Reading) -> String {
    let longest = r.stats.layers.iter().map(|l| l.wait).max().unwrap_or_default().as_secs_f64();
    let mut text = String::new();
    for (i, layer) in r.stats.layers.iter().enumerate().filter(|(_, l)| l.read_bytes > 0) {
        let wait_s = layer.wait.as_secs_f64();
        let bar = "#".repeat((BAR_COLUMNS * ratio(wait_s, longest)).round() as usize);
        let line = format!(
            "layer {i:>3}  {:>5.1} % hits {:>11} read {:>9.1} ms waiting  {bar}",
            100.0 * hit_rate(layer),
            out::bytes(layer.read_bytes),
            1e3 * wait_s
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn hit_rate(layer: &LayerStats) -> f64 {
    let wanted = layer.hits + layer.misses;
    if wanted == 0 { 1.0 } else { layer.hits as f64 / wanted as f64 }
}

/// An object for programs.
pub(super) fn json(loaded: &Loaded, m: &Measured) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.into(), value);
    put("sequences", json!(m.sequences));
    put("prompt_tokens", json!(m.prompt_tokens / m.sequences));
    put("gen_tokens", json!(m.gen_tokens / m.sequences));
    put("prefill_tokens_per_s", json!(rate(m.prompt_tokens, m.prefill)));
    put("decode_tokens_per_s", json!(rate(m.gen_tokens, m.decode)));
    put("time_to_first_token_s", json!(m.time_to_first_token.as_secs_f64()));
    put("probed_drive_bytes_per_s", json!(m.drive_bytes_per_s));
    put("copy_bytes_per_s", json!(m.copy_bytes_per_s));
    if let Some(r) = m.reading() {
        let [drive, late, slots] = r.stalls_s();
        put("read_bytes_per_token", json!(ratio(r.total.read_bytes as f64, m.gen_tokens as f64)));
        put("wanted_bytes_per_token", json!(ratio(r.total.wanted_bytes as f64, m.gen_tokens as f64)));
        put("drive_bytes_per_s", json!(r.drive_bytes_per_s()));
        put("drive_fraction", json!(m.drive().and_then(|d| r.drive_fraction(d))));
        put("expert_hit_rate", json!(r.stats.hit_rate()));
        put("overlap_fraction", json!(r.overlap()));
        put("stall_drive_s", json!(drive));
        put("stall_late_guess_s", json!(late));
        put("stall_slots_s", json!(slots));
        put("decode_s", json!(r.time_s));
        put("evictions", json!(r.stats.evictions));
        put("guessed_reads", json!(r.total.hinted));
        put("guessed_reads_used", json!(r.total.hints_used));
        put("layers", r.stats.layers.iter().enumerate().map(|(i, l)| layer_json(i, l)).collect());
    }
    if let Some(p) = m.prompt_reading() {
        put("prompt_drive_bytes_per_s", json!(p.drive_bytes_per_s()));
        put("prompt_drive_fraction", json!(m.drive().and_then(|d| p.drive_fraction(d))));
        put("prompt_expert_hit_rate", json!(p.stats.hit_rate()));
        put("prompt_stall_s", json!(p.wait_s()));
    }
    if let Some(gpu) = &m.gpu {
        let per_token = |count: u64| json!(ratio(count as f64, m.gen_tokens as f64));
        put("gpu_submissions_per_token", per_token(gpu.submissions));
        put("gpu_readbacks_per_token", per_token(gpu.readbacks));
        put("gpu_copied_bytes_per_token", per_token(gpu.copied_bytes));
    }
    if !m.kernels.is_empty() {
        let busy_s: f64 = m.kernels.iter().map(|k| k.seconds).sum();
        let kernel = |k: &KernelTime| json!({ "name": k.name, "calls": k.calls, "seconds": k.seconds });
        put("gpu_busy_fraction", json!(ratio(busy_s, m.decode.as_secs_f64())));
        put("gpu_kernels", m.kernels.iter().map(kernel).collect());
        put("prompt_gpu_kernels", m.prompt_kernels.iter().map(kernel).collect());
    }
    put("slots", json!(loaded.model.slots()));
    if let Some(slots) = loaded.model.vram_slots() {
        put("vram_slots", json!(slots));
        put("vram_hit_rate", json!(m.reads.as_ref().map(|stats| stats.device_hit_rate())));
        put("prompt_vram_hit_rate", json!(m.prompt_reads.as_ref().map(|stats| stats.device_hit_rate())));
    }
    if let Some(figures) = PromptFigures::new(loaded, m) {
        figures.json(&mut map);
    }
    map.extend(loaded.describe());
    Value::Object(map)
}

fn layer_json(layer: usize, l: &LayerStats) -> Value {
    json!({
        "layer": layer,
        "hits": l.hits,
        "misses": l.misses,
        "read_bytes": l.read_bytes,
        "wait_s": l.wait.as_secs_f64(),
    })
}
