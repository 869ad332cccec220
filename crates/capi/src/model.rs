//! Models: opened once, used by any number of threads.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use api::ids::Ids;
use api::prepare::Defaults;
use api::prompts::Prompts;
use api::report::{is_lossy, of_model};
use engine::doctor::Demand;
use engine::text::{Templates, Tokenizer};
use engine::{ErrorKind, LoadProgress, Model, Plan};
use serde_json::{Map, Value, json};

use crate::border::{buffer, empty, given, guard, guard_handle, guard_value, place, put_json, text};
use crate::cancel::{CancelHandle, Stop};
use crate::options;
use crate::status::{Failure, Status, TIDEMILL_BUSY, TIDEMILL_INTERNAL};

/// Told how far a call is: bytes while a model opens, tokens elsewhere. Not 0 stops the call. It runs on the calling thread,
/// and must neither throw nor `longjmp`.
pub type Progress = Option<unsafe extern "C" fn(user: *mut c_void, done: f64, total: f64) -> i32>;

/// A model that is open. Its sessions and samplers keep what they need of it.
pub struct ModelHandle {
    pub(crate) shared: Arc<Shared>,
    /// Whether a call with this handle has panicked.
    broken: AtomicBool,
}

impl ModelHandle {
    /// For the caller.
    pub(crate) fn new(shared: Shared) -> *mut Self {
        Box::into_raw(Box::new(Self { shared: Arc::new(shared), broken: AtomicBool::new(false) }))
    }
}

/// What a model and its sessions share.
pub(crate) struct Shared {
    pub(crate) model: Arc<Model>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) prompts: Prompts,
    pub(crate) defaults: Defaults,
    pub(crate) ids: Ids,
    /// What it is called.
    pub(crate) name: String,
    /// Whether states outlive the process.
    pub(crate) keeps_states: bool,
    /// The process that opened it: its threads are not there in a forked one.
    process: u32,
    /// The thread that computes now and tells its caller of it: what waits for the step would wait for itself.
    telling: Mutex<Option<ThreadId>>,
    /// One batch at a time has the places that sessions leave.
    pub(crate) batch: Mutex<()>,
}

impl Shared {
    /// Whether a call may use it.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if !self.is_own() {
            let message = "the handle is of the process before a fork: open the model again in this one";
            return Err(Failure::invalid(message));
        }
        Ok(())
    }

    /// Whether a call may compute: not within a callback of one that does.
    ///
    /// # Errors
    /// `BUSY`.
    pub(crate) fn check_free(&self) -> Result<(), Failure> {
        let telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        if *telling == Some(thread::current().id()) {
            let message = "a call on this model computes in this thread: its callback cannot compute too";
            return Err(Failure::new(TIDEMILL_BUSY, message));
        }
        Ok(())
    }

    /// Calls what is the caller's, from within a computation.
    pub(crate) fn tell<T>(&self, call: impl FnOnce() -> T) -> T {
        let set = |thread| *self.telling.lock().unwrap_or_else(PoisonError::into_inner) = thread;
        set(Some(thread::current().id()));
        let answer = call();
        set(None);
        answer
    }

    /// Whether it was opened by this process.
    pub(crate) fn is_own(&self) -> bool {
        self.process == std::process::id()
    }

    /// The answer's and the model's numbers.
    pub(crate) fn describe(&self, mut map: Map<String, Value>) -> Value {
        map.extend(of_model(&self.model, &self.name));
        Value::Object(map)
    }

    /// Waits until what was computed is on the disk, where that was asked for. What cannot be written is no one's loss now.
    pub(crate) fn flush(&self) {
        if self.keeps_states {
            let _ = self.model.flush_states();
        }
    }
}

/// A model of the caller's, for a function that anybody may call at any time. A panic breaks it.
pub(crate) fn with_model(
    name: &'static str,
    model: *const ModelHandle,
    error: *mut *mut c_char,
    work: impl FnOnce(&Arc<Shared>) -> Result<(), Failure>,
) -> Status {
    // SAFETY: it is NULL or alive, as the header asks.
    let broken = unsafe { model.as_ref() }.map(|model| &model.broken);
    guard_handle(name, broken, error, || {
        let handle = given(model, "model")?;
        handle.shared.check()?;
        if handle.broken.load(Ordering::Acquire) {
            return Err(Failure::new(TIDEMILL_INTERNAL, "an earlier call with this model failed of a fault"));
        }
        work(&handle.shared)
    })
}

/// How `user`'s function is told while something is computed, and what stops it.
pub(crate) struct Teller<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) progress: Progress,
    pub(crate) user: *mut c_void,
    pub(crate) stop: Stop,
}

impl Teller<'_> {
    pub(crate) fn tell(&self, done: f64, total: f64) -> ControlFlow<()> {
        self.shared.tell(|| tell(self.progress, self.user, done, total))?;
        self.stop.flow()
    }
}

fn tell(progress: Progress, user: *mut c_void, done: f64, total: f64) -> ControlFlow<()> {
    // SAFETY: the caller's function, with the caller's pointer, on the caller's thread.
    match progress.map_or(0, |progress| unsafe { progress(user, done, total) }) {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

fn plan_json(plan: &Plan) -> Map<String, Value> {
    let rows = [
        ("budget_bytes", plan.budget_bytes),
        ("total_bytes", plan.total_bytes),
        ("resident_bytes", plan.resident_bytes),
        ("state_bytes", plan.state_bytes),
        ("state_more_bytes", plan.state_more_bytes),
        ("scratch_bytes", plan.scratch_bytes),
        ("overhead_bytes", plan.overhead_bytes),
        ("slot_bytes", plan.slot_bytes),
        ("slots", plan.slots),
        ("total_experts", plan.total_experts),
    ];
    rows.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// How the memory of a model would be divided. Only headers are read. `*plan_json` is an object with `fits`, `floor_bytes` (the
/// least that runs), and where it fits `budget_bytes`, `total_bytes` and the parts of these. A budget below the floor is no
/// error: then `fits` is false.
///
/// Errors: `INVALID_REQUEST`, `NOT_FOUND`, `CORRUPT`, `UNSUPPORTED`, `IO`. Since 1.
///
/// # Safety
/// As the header says: texts end with NUL, outputs are places for a pointer or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_plan(
    model: *const c_char,
    options_json: *const c_char,
    plan_json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    guard("tidemill_plan", error, || {
        let out = place(plan_json, "plan_json")?;
        let options = options::model(options_json)?;
        let demand = Demand::of_model(Path::new(text(model, "model")?), &options.open)?;
        let (mut map, fits) = match demand.plan() {
            Ok(plan) => (self::plan_json(&plan), true),
            Err(e) if e.kind() == ErrorKind::Memory => (Map::new(), false),
            Err(e) => return Err(e.into()),
        };
        map.insert("fits".into(), json!(fits));
        map.insert("floor_bytes".into(), json!(demand.floor_bytes()));
        put_json(&out, &Value::Object(map));
        Ok(())
    })
}

/// Opens the model at the path `model`: a `.gguf` file or a directory of safetensors files. Options are those of the command
/// line, as JSON; NULL is `{}`. `progress` counts bytes.
///
/// `*out` is the caller's, freed with `tidemill_model_free`; NULL on failure. Any thread.
/// Errors: all but `TOO_SMALL`, `BUSY`, `CONTEXT_FULL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_model_open(
    model: *const c_char,
    options_json: *const c_char,
    progress: Progress,
    user: *mut c_void,
    cancel: *const CancelHandle,
    out: *mut *mut ModelHandle,
    error: *mut *mut c_char,
) -> Status {
    let stop = Stop::of(cancel);
    empty(out);
    guard("tidemill_model_open", error, || {
        let out = place(out, "out")?;
        let path = text(model, "model")?;
        let options = options::model(options_json)?;
        let mut loaded = |done: u64, total: u64| {
            tell(progress, user, done as f64, total as f64)?;
            stop.flow()
        };
        let opened = open(path, options, &mut loaded)?;
        if stop.is_set() {
            return Err(Failure::cancelled());
        }
        out.put(ModelHandle::new(opened));
        Ok(())
    })
}

pub(crate) fn open(
    path: &str,
    options: options::ModelOptions,
    progress: LoadProgress<'_>,
) -> Result<Shared, Failure> {
    let model = Model::open(Path::new(path), &options.open, progress)?;
    let tokenizer = Arc::new(Tokenizer::of_model(model.meta()).map_err(|e| e.context(path))?);
    let templates = match options.chat_template {
        Some(source) => Some(Templates::of_source(&source, "`chat_template`")?),
        // Without one, texts can be continued.
        None => match Templates::of_model(model.meta(), path) {
            Err(e) if e.kind() == ErrorKind::Unsupported => None,
            templates => Some(templates?),
        },
    };
    let keeps_states = options.states.is_some();
    if let Some((directory, space_bytes)) = &options.states {
        model.store_states(directory, *space_bytes)?;
    }
    Ok(Shared {
        prompts: Prompts::new(tokenizer.clone(), templates, model.context()),
        defaults: Defaults::default(),
        ids: Ids::default(),
        name: path.to_owned(),
        keeps_states,
        process: std::process::id(),
        telling: Mutex::new(None),
        batch: Mutex::new(()),
        model,
        tokenizer,
    })
}

/// Frees a model. Its sessions and samplers go on; its threads end with the last of them. NULL is nothing.
///
/// # Safety
/// `model` is NULL or was not freed, and no call uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_model_free(model: *mut ModelHandle) {
    guard_value("tidemill_model_free", (), || {
        if model.is_null() {
            return;
        }
        // SAFETY: it came from `tidemill_model_open` and was not freed, as the caller promises.
        let model = unsafe { Box::from_raw(model) };
        release(model.shared);
    });
}

/// Lets go of a model. In a forked process there are no threads to wait for, and the memory stays where it is.
pub(crate) fn release(shared: Arc<Shared>) {
    if shared.is_own() {
        drop(shared);
    } else {
        std::mem::forget(shared);
    }
}

/// What is known of a model: an object with `name`, `architecture`, `layers`, `vocab_size`, `context`, `end_tokens`,
/// `device`, `sessions`, `chunk_tokens`, `plan`, `experts_per_token`, `lossy`, `notes`, `fingerprint`, and `drive` where the drive
/// was probed: handed back in `options_json` next time, it spares the probe. Any thread. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_model_info(
    model: *const ModelHandle,
    json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_model_info", model, error, |shared| {
        let out = place(json, "json")?;
        put_json(&out, &info(shared));
        Ok(())
    })
}

fn info(shared: &Shared) -> Value {
    let (model, meta) = (&shared.model, shared.model.meta());
    let notes =
        model.notes().iter().map(String::as_str).chain(model.device_note()).chain(model.memory_note());
    let mut info = json!({
        "name": shared.name,
        "architecture": meta.arch,
        "layers": meta.layers,
        "vocab_size": meta.vocab_size,
        "context": model.context(),
        "end_tokens": shared.tokenizer.end_tokens(),
        "device": model.describe(),
        "sessions": model.sequences_max(),
        "chunk_tokens": model.chunk_tokens(),
        "plan": plan_json(model.plan()),
        "lossy": is_lossy(model),
        "notes": notes.collect::<Vec<_>>(),
        "fingerprint": format!("{:016x}", model.fingerprint()),
    });
    if model.top_k() > 0 {
        info["experts_per_token"] = json!(model.top_k());
    }
    if let Some(found) = model.probed_drive() {
        info["drive"] = api::drive::to_json(&found);
    }
    info
}

/// What a model has read since it was opened, or since `reset` was not 0: an object with `experts_wanted`, `experts_in_memory`,
/// `read_bytes`, `read_s`, `wait_s`, `slots`, `rss_peak_bytes`; counts are null for a model without experts. Any thread. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_model_stats(
    model: *const ModelHandle,
    reset: i32,
    json: *mut *mut c_char,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_model_stats", model, error, |shared| {
        let out = place(json, "json")?;
        shared.check_free()?;
        let stats = shared.model.read_stats();
        let total = stats.as_ref().map(engine::ReadStats::total);
        if reset != 0 {
            shared.model.reset_read_stats();
        }
        let value = json!({
            "experts_wanted": total.as_ref().map(|total| total.hits + total.misses),
            "experts_in_memory": total.as_ref().map(|total| total.hits),
            "read_bytes": total.as_ref().map(|total| total.read_bytes),
            "read_s": stats.as_ref().map(|stats| stats.busy.as_secs_f64()),
            "wait_s": total.as_ref().map(|total| total.wait.as_secs_f64()),
            "slots": shared.model.slots(),
            "rss_peak_bytes": engine::rss_peak_bytes(),
        });
        put_json(&out, &value);
        Ok(())
    })
}

/// How often each expert was chosen: `[layers, experts]`, row by row, into `uses`, which has room for `capacity` values. `*layers`
/// and `*experts` always get the sizes; NULL with a capacity of 0 only asks for them. Any thread.
/// Errors: `INVALID_REQUEST`, `TOO_SMALL`. Since 1.
///
/// # Safety
/// As the header says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tidemill_model_heat(
    model: *const ModelHandle,
    uses: *mut u64,
    capacity: usize,
    layers: *mut usize,
    experts: *mut usize,
    error: *mut *mut c_char,
) -> Status {
    with_model("tidemill_model_heat", model, error, |shared| {
        let [layers, experts] = [place(layers, "layers")?, place(experts, "experts")?];
        let heat = shared.model.expert_heat();
        layers.put(heat.layers);
        experts.put(heat.experts);
        buffer(uses, capacity, "uses").fill(&heat.uses)
    })
}
