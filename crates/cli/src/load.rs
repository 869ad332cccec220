//! From what the user calls a model to a model that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::report::{is_lossy, of_model};
use engine::text::{Templates, Tokenizer};
use engine::{Error, ErrorKind, Meta, Model};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

use crate::args::{ComputeArgs, DeviceArg, StateArgs};
use crate::drivers::DriverTalk;
use crate::failure::{Result, one_line};
use crate::interrupt::Work;
use crate::{bundled, out, pull, remembered};

/// What the built-in model is called.
const BUNDLED: &str = "demo";

/// The path of a model: what is given if that exists, else a model of that name in the cache directory; the
/// built-in one without a name. On the disk after this call, not yet opened.
///
/// # Errors
/// `NotFound` saying what a MODEL can be, `Io` when the built-in model cannot be unpacked.
pub(crate) fn resolve(model: Option<&str>) -> Result<PathBuf> {
    let cache =
        || bundled::cache_dir(|name| std::env::var_os(name)).map_err(|e| Error::io("cache directory", e));
    if let Some(given) = model {
        let path = Path::new(given);
        if path.exists() {
            return Ok(path.to_path_buf());
        }
        if given != BUNDLED {
            let by_hand = |cache: PathBuf| Some(cache.join("models").join(given)).filter(|p| p.exists());
            let pulled = cache().map(|cache| (pull::find(&cache, given), by_hand(cache)));
            let found = match pulled {
                Ok((Ok(pulled), by_hand)) => pulled.or(by_hand),
                Ok((Err(_), Some(by_hand))) => Some(by_hand),
                Ok((Err(not_whole), None)) => return Err(not_whole.into()),
                Err(_) => None,
            };
            return found.ok_or_else(|| {
                Error::not_found(format!(
                    "no model {given:?}: no such file or directory, and no model of that name in the cache; MODEL is a \
                     .gguf file, a directory with config.json and safetensors files, or `{BUNDLED}`"
                ))
                .into()
            });
        }
    }
    Ok(bundled::unpack(&cache()?).map_err(|e| Error::io("unpacking the built-in model", e))?)
}

/// The files that a command with these options reads, as far as they are on the disk already.
pub(crate) fn inputs(model: Option<&str>, compute: &ComputeArgs) -> Vec<PathBuf> {
    let cache = || bundled::cache_dir(|name| std::env::var_os(name)).ok();
    let model = match model {
        Some(given) if Path::new(given).exists() => Some(PathBuf::from(given)),
        Some(given) if given != BUNDLED => cache().and_then(|cache| pull::find(&cache, given).ok().flatten()),
        _ => cache().map(|cache| bundled::place(&cache)),
    };
    model.into_iter().chain(compute.mirror.clone()).collect()
}

/// A model with what it takes to talk to it.
pub(crate) struct Loaded {
    /// The model.
    pub(crate) model: Arc<Model>,
    /// What the user called it.
    pub(crate) name: String,
    /// Whether reading is as a probe chose it, so that its rate speaks of the drive.
    as_probed: bool,
}

impl Loaded {
    /// Opens a model with a progress bar, and says so if its answers will not be its own.
    ///
    /// # Errors
    /// As [`resolve`] and [`Model::open`]; `Cancelled` on Ctrl-C.
    pub(crate) fn open(model: Option<&str>, compute: &ComputeArgs) -> Result<Self> {
        let work = Work::begin();
        let path = resolve(model)?;
        let bar = bytes_bar("loading");
        let mut options = compute.open_options();
        options.drive.known = remembered::drive(&path);
        options.pipeline_cache = remembered::pipelines();
        let mut talk = (compute.machine.device != DeviceArg::Cpu).then(DriverTalk::keep);
        let opened = Model::open(&path, &options, &mut |done, total| {
            // The device is open when weights are loaded.
            talk.iter_mut().for_each(DriverTalk::drop_it);
            bar.set_length(total);
            bar.set_position(done);
            work.flow()
        });
        bar.finish_and_clear();
        let model_name = model.unwrap_or(BUNDLED).to_owned();
        if opened.as_ref().err().is_none_or(|e| e.kind() != ErrorKind::Device) {
            talk.iter_mut().for_each(DriverTalk::drop_it);
        }
        drop(talk);
        let model = opened?;
        if let Some(choice) = model.probed_drive() {
            remembered::keep_drive(&path, &choice);
        }
        model.notes().iter().for_each(|note| out::note(format_args!("note: {note}")));
        // That there is none is no news.
        if let Some(note) = model.device_note().filter(|note| note.contains("failed")) {
            out::note(note);
        }
        if let Some(note) = model.memory_note() {
            out::note(note);
        }
        for unused in without_effect(compute, &model) {
            out::note(unused);
        }
        if let Some(moe) = model.meta().moe.as_ref().filter(|_| is_lossy(&model)) {
            let (k, own) = (model.top_k(), moe.top_k);
            out::note(format_args!("lossy: {k} experts per token, the model was made for {own}"));
        }
        let as_probed = compute.reads_as_probed();
        Ok(Self { model, name: model_name, as_probed })
    }

    /// From now on keeps what the model computes in the state directory, if one was named. That it cannot be used is said,
    /// and nothing more.
    pub(crate) fn store_states(&self, args: &StateArgs) {
        if let Some(directory) = &args.state_dir
            && let Err(e) = self.model.store_states(directory, args.state_space)
        {
            out::note(format_args!("states are not kept beyond this run: {}", one_line(&e)));
        }
    }

    /// Waits until the state directory holds what was computed.
    pub(crate) fn flush_states(&self) {
        if let Some(e) = self.model.flush_states() {
            out::note(format_args!("some states are not kept beyond this run: {}", one_line(&e)));
        }
    }

    /// Remembers what was read of the drive in `busy_s` seconds of reading, if it contradicts what a probe saw.
    pub(crate) fn judge_drive(&self, read_bytes: u64, busy_s: f64) {
        if self.as_probed {
            remembered::judge_drive(self.model.path(), read_bytes, busy_s);
        }
    }

    /// What the files say.
    pub(crate) fn meta(&self) -> &Meta {
        self.model.meta()
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// Names the model, and what is wrong with its tokenizer.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer =
            Tokenizer::of_model(self.meta()).map_err(|e| e.context(self.model.path().display()))?;
        tokenizer.notes().iter().for_each(|note| out::note(format_args!("note: {note}")));
        Ok(tokenizer)
    }

    /// The chat templates.
    ///
    /// # Errors
    /// `Unsupported` when the model has none, `Corrupt` when it cannot be read.
    pub(crate) fn templates(&self) -> Result<Templates> {
        let shown = self.model.path().display().to_string();
        let templates = Templates::of_model(self.meta(), &shown);
        Ok(templates.map_err(|e| match e.kind() {
            ErrorKind::Unsupported => {
                Error::unsupported(format!("{}; `tidemill run --raw` continues plain text", e.message()))
            }
            _ => e,
        })?)
    }

    /// What every JSON object says about the model and how it runs.
    pub(crate) fn describe(&self) -> Map<String, Value> {
        of_model(&self.model, &self.name)
    }
}

/// What was asked for and means nothing on the device that was chosen.
fn without_effect(compute: &ComputeArgs, model: &Model) -> Vec<&'static str> {
    let on_gpu = model.device_counts().is_some();
    let mut notes = Vec::new();
    if compute.vram.is_some() && !on_gpu {
        notes.push("--vram has no effect: the CPU computes");
    }
    if compute.machine.threads.is_some() && on_gpu {
        notes.push("--threads has no effect: the GPU computes");
    }
    notes
}

/// A bar over bytes on stderr; nothing where stderr is not a terminal.
pub(crate) fn bytes_bar(what: &str) -> ProgressBar {
    bar(what, "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar over pieces of work on stderr; nothing where stderr is not a terminal.
pub(crate) fn count_bar(what: &str, total: u64) -> ProgressBar {
    let bar = bar(what, "{prefix} {wide_bar} {pos}/{len} {msg} {eta}");
    bar.set_length(total);
    bar
}

/// Drawn when there is news: a ticker would be a thread, and its library panics where none can be started.
fn bar(what: &str, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(out::visible(what).into_owned());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
