//! What is counted, and the line that each request leaves in the log.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::{Ending, Event, EventKind};
use engine::KeptCounts;
use engine::generate::Generated;
use engine::scheduler::SchedulerCounts;
use serde_json::{Map, Value, json};

use crate::options::LogFormat;

/// Takes the lines of the log.
pub type Log = Box<dyn Fn(&str) + Send + Sync>;

/// Upper ends of the classes of a histogram of times, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

#[derive(Debug, Default)]
struct Histogram {
    classes: [u64; SECONDS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn add(&mut self, seconds: f64) {
        let at = SECONDS.iter().position(|end| seconds <= *end);
        self.classes.iter_mut().skip(at.unwrap_or(SECONDS.len())).take(1).for_each(|class| *class += 1);
        self.count += 1;
        self.sum += seconds;
    }
}

/// Counts of all requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    cached_prompts: AtomicU64,
    generated_tokens: AtomicU64,
    first_token: Mutex<Histogram>,
    per_token: Mutex<Histogram>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Metrics {
    /// Counts a request whose head was answered.
    pub(crate) fn request(&self, path: &'static str, status: u16) {
        *lock(&self.requests).entry((path, status)).or_default() += 1;
    }

    /// Counts an answer.
    pub(crate) fn answered(&self, answer: &Generated) {
        self.prompt_tokens.fetch_add(answer.prompt_tokens as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(answer.reused_tokens as u64, Ordering::Relaxed);
        self.cached_prompts.fetch_add(u64::from(answer.reused_tokens > 0), Ordering::Relaxed);
        self.generated_tokens.fetch_add(answer.tokens.len() as u64, Ordering::Relaxed);
        if !answer.tokens.is_empty() {
            lock(&self.first_token).add(answer.time_to_first_token.as_secs_f64());
        }
        if let Some(rate) = Some(answer.decode_tokens_per_s()).filter(|rate| *rate > 0.0) {
            lock(&self.per_token).add(1.0 / rate);
        }
    }

    /// All of it, as Prometheus reads it.
    pub(crate) fn text(&self, counts: &SchedulerCounts, kept: &KeptCounts, plan_bytes: u64) -> String {
        let mut page = Page(String::new());
        page.head("requests_total", "counter", "Requests answered, by path and status.");
        for ((path, status), count) in lock(&self.requests).iter() {
            page.line(&format!("requests_total{{path=\"{path}\",status=\"{status}\"}}"), *count as f64);
        }
        let gauges = [
            ("requests_running", "Sequences that are computed.", counts.running as u64),
            ("requests_waiting", "Sequences that wait for their turn.", counts.waiting as u64),
            ("slots", "Expert slots in use.", counts.slots as u64),
            ("plan_bytes", "Memory that the plan divides.", plan_bytes),
            ("kept_beginnings", "Beginnings of prompts that are kept in memory.", kept.beginnings),
        ];
        for (name, help, value) in gauges {
            page.one(name, "gauge", help, value);
        }
        page.head("state_bytes", "gauge", "What is kept of prompts, in memory and in the state directory.");
        for (place, bytes) in [("memory", kept.memory_bytes), ("disk", kept.disk_bytes)] {
            page.line(&format!("state_bytes{{where=\"{place}\"}}"), bytes as f64);
        }
        if let Some(bytes) = engine::rss_bytes() {
            page.one("memory_bytes", "gauge", "Memory that the process has now.", bytes);
        }
        if let Some(bytes) = engine::rss_peak_bytes() {
            page.one("memory_peak_bytes", "gauge", "The most memory that the process has had.", bytes);
        }
        let all = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts, cached ones included.", all(&self.prompt_tokens)),
            ("prompt_tokens_cached_total", "Those that were not computed.", all(&self.cached_tokens)),
            ("cache_hits_total", "Answers whose prompt began like a kept one.", all(&self.cached_prompts)),
            ("cache_evictions_total", "Kept beginnings that made way for others.", kept.evicted),
            ("generated_tokens_total", "Tokens of answers.", all(&self.generated_tokens)),
            ("expert_hits_total", "Wanted experts that were in memory.", counts.expert_hits),
            ("expert_misses_total", "Wanted experts that had to be read.", counts.expert_misses),
            ("drive_read_bytes_total", "Bytes read from the drive for experts.", counts.read_bytes),
            ("set_aside_total", "Sequences computed again for want of memory.", counts.set_aside),
        ];
        for (name, help, value) in counters {
            page.one(name, "counter", help, value);
        }
        page.histogram(
            "time_to_first_token_seconds",
            "From the request to its first token.",
            &self.first_token,
        );
        page.histogram("time_per_token_seconds", "Each token after the first.", &self.per_token);
        page.rows(counts);
        page.0
    }
}

/// The text of `/metrics`.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP tidemill_{name} {help}\n# TYPE tidemill_{name} {kind}");
    }

    fn line(&mut self, name: &str, value: f64) {
        let _ = writeln!(self.0, "tidemill_{name} {value}"); // a text takes all that is written
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, of: &Mutex<Histogram>) {
        let of = lock(of);
        self.head(name, "histogram", help);
        let mut below = 0;
        for (end, class) in SECONDS.iter().zip(of.classes) {
            below += class;
            self.line(&format!("{name}_bucket{{le=\"{end}\"}}"), below as f64);
        }
        self.line(&format!("{name}_bucket{{le=\"+Inf\"}}"), of.count as f64);
        self.line(&format!("{name}_sum"), of.sum);
        self.line(&format!("{name}_count"), of.count as f64);
    }

    fn rows(&mut self, counts: &SchedulerCounts) {
        self.head("rows_per_step", "histogram", "Rows of the steps: tokens of answers and of prompts.");
        let (mut below, last) = (0, counts.steps_by_rows.len() - 1);
        for (class, count) in counts.steps_by_rows.iter().enumerate().take(last) {
            below += count;
            self.line(&format!("rows_per_step_bucket{{le=\"{}\"}}", 1_u64 << class), below as f64);
        }
        self.line("rows_per_step_bucket{le=\"+Inf\"}", counts.steps as f64);
        self.line("rows_per_step_sum", (counts.prompt_tokens + counts.answer_tokens) as f64);
        self.line("rows_per_step_count", counts.steps as f64);
    }
}

/// What is known of a request; its line goes to the log when the last who has it lets it go.
pub(crate) struct Record {
    id: String,
    path: &'static str,
    arrived: Instant,
    format: LogFormat,
    log: Arc<Log>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    status: Option<u16>,
    answers: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    first_token: Option<Duration>,
    decode: Duration,
    hit_rate: Option<f64>,
    end: Option<String>,
    ignored: Vec<String>,
    departs: Option<String>,
    prompt: Option<String>,
}

impl Record {
    /// Of a request that came now.
    pub(crate) fn new(id: String, path: &'static str, format: LogFormat, log: Arc<Log>) -> Self {
        Self { id, path, arrived: Instant::now(), format, log, known: Mutex::default() }
    }

    /// The request's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Its path, without what is variable in it.
    pub(crate) fn path(&self) -> &'static str {
        self.path
    }

    /// When it came.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// Its head was answered.
    pub(crate) fn status(&self, status: u16) {
        lock(&self.known).status = Some(status);
    }

    /// What of it is not honoured.
    pub(crate) fn ignored(&self, paths: &[String]) {
        lock(&self.known).ignored = paths.to_vec();
    }

    /// Where its prompt departs from the nearest that is kept.
    pub(crate) fn departs(&self, place: String) {
        lock(&self.known).departs = Some(place);
    }

    /// Its prompt, where prompts are logged.
    pub(crate) fn prompt(&self, text: String) {
        lock(&self.known).prompt = Some(text);
    }

    /// One of its answers is made; the prompt counts with the first of them.
    pub(crate) fn answered(&self, answer: &Generated, first_of_prompt: bool) {
        let mut known = lock(&self.known);
        known.answers += 1;
        if first_of_prompt {
            known.prompt_tokens += answer.prompt_tokens;
            known.cached_tokens += answer.reused_tokens;
        }
        known.generated_tokens += answer.tokens.len();
        let first = answer.time_to_first_token;
        known.first_token = Some(known.first_token.map_or(first, |known| known.min(first)));
        known.decode = known.decode.max(answer.decode);
    }

    /// The last event of one of its answers.
    pub(crate) fn ended(&self, event: &Event) {
        let EventKind::Ended { ending, timings, .. } = &event.kind else { return };
        let mut known = lock(&self.known);
        known.hit_rate = timings.expert_hit_rate;
        let name = match ending {
            Ending::Stop => "stop",
            Ending::StopString(_) => "stop_string",
            Ending::Length => "length",
            Ending::Context => "context",
            Ending::Cancelled => "cancelled",
        };
        known.end.get_or_insert_with(|| name.into());
    }

    /// It failed after its head was answered.
    pub(crate) fn failed(&self, message: &str) {
        lock(&self.known).end = Some(format!("error: {message}"));
    }

    /// Its answer was given up before it ended.
    pub(crate) fn left(&self) {
        lock(&self.known).end.get_or_insert_with(|| "client left".into());
    }

    fn fields(&self) -> Map<String, Value> {
        let known = lock(&self.known);
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        put("id", json!(self.id));
        put("path", json!(self.path));
        put("status", json!(known.status));
        put("s", json!(rounded(self.arrived.elapsed().as_secs_f64())));
        if known.answers > 0 {
            put("prompt_tokens", json!(known.prompt_tokens));
            put("cached_tokens", json!(known.cached_tokens));
            put("generated_tokens", json!(known.generated_tokens));
            put("first_token_s", json!(known.first_token.map(|time| rounded(time.as_secs_f64()))));
            let after_first = known.generated_tokens.saturating_sub(known.answers) as f64;
            if !known.decode.is_zero() {
                put("tokens_per_s", json!(rounded(after_first / known.decode.as_secs_f64())));
            }
        }
        if let Some(rate) = known.hit_rate {
            put("expert_hit_rate", json!(rounded(rate)));
        }
        if let Some(place) = &known.departs {
            put("departs", json!(place));
        }
        if let Some(end) = &known.end {
            put("end", json!(end));
        }
        if !known.ignored.is_empty() {
            put("ignored", json!(known.ignored.join(", ")));
        }
        if let Some(prompt) = &known.prompt {
            put("prompt", json!(prompt));
        }
        map
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let fields = self.fields();
        let line = match self.format {
            LogFormat::Json => Value::Object(fields).to_string(),
            LogFormat::Text => {
                let shown = |value: &Value| match value {
                    Value::String(text) if !text.contains(char::is_whitespace) => text.clone(),
                    other => other.to_string(),
                };
                let fields = fields.iter().map(|(key, value)| format!("{key}={}", shown(value)));
                fields.collect::<Vec<_>>().join(" ")
            }
        };
        (self.log)(&line);
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_leaves_one_line_without_its_texts() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        for format in [LogFormat::Text, LogFormat::Json] {
            let kept = lines.clone();
            let log: Arc<Log> = Arc::new(Box::new(move |line: &str| lock(&kept).push(line.to_owned())));
            let record = Record::new("req_1".into(), "/v1/models", format, log);
            record.status(404);
            record.ignored(&["a".into(), "b".into()]);
            drop(record);
        }
        let lines = lock(&lines);
        assert!(lines[0].starts_with("id=req_1 path=/v1/models status=404 s=0"), "{}", lines[0]);
        assert!(lines[0].ends_with(" ignored=\"a, b\""), "{}", lines[0]);
        let json: Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!((&json["status"], &json["ignored"]), (&json!(404), &json!("a, b")));
    }

    #[test]
    fn classes_of_a_histogram_add_up() {
        let metrics = Metrics::default();
        for seconds in [0.004, 0.005, 0.3, 1e6] {
            lock(&metrics.first_token).add(seconds);
        }
        metrics.request("/health", 200);
        let mut counts = SchedulerCounts { steps: 3, ..SchedulerCounts::default() };
        (counts.steps_by_rows[0], counts.steps_by_rows[3]) = (2, 1);
        let text = metrics.text(&counts, &KeptCounts { memory_bytes: 9, ..KeptCounts::default() }, 7);
        for line in [
            "tidemill_time_to_first_token_seconds_bucket{le=\"0.005\"} 2",
            "tidemill_time_to_first_token_seconds_bucket{le=\"0.5\"} 3",
            "tidemill_time_to_first_token_seconds_bucket{le=\"300\"} 3",
            "tidemill_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "tidemill_requests_total{path=\"/health\",status=\"200\"} 1",
            "tidemill_rows_per_step_bucket{le=\"4\"} 2",
            "tidemill_rows_per_step_bucket{le=\"8\"} 3",
            "tidemill_plan_bytes 7",
            "tidemill_state_bytes{where=\"memory\"} 9",
            "tidemill_state_bytes{where=\"disk\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
