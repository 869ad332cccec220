//! What a machine will do with a model, before the model is there: rates are measured, the rest is arithmetic.
//!
//! A token costs the bytes that must come from the drive over its rate, while the experts are multiplied, and everything
//! else that is computed, which hides nothing. A prompt chunk costs the drive's time for all experts that it uses, or its
//! arithmetic with the copies to a GPU, whichever is longer (`prompt`). The device is timed in the model's own sizes (`work`).

mod memory;
mod prompt;
mod scrap;
mod stand;
mod work;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use files::quant::ScaleType;
use files::{Error, Format, Result, TensorIndex};
use kernels::cpu::{Isa, read_all};
use kernels::gpu;
use kernels::reference::Reference;
use kernels::{Backend, Tensor, Weight};
use store::PAGE_BYTES;
use store::plan::Plan;
use work::Work;

use crate::device::open_device;
use crate::inspect::Footprint;
use crate::limits;
use crate::model::OpenOptions;
use crate::models;
use crate::synth::{Layout, Shape, SynthOptions, sizes};

pub use crate::bound::Bound;
pub use memory::Memory;
pub use prompt::{Prompt, PromptPrediction, predict_prompt};
pub use scrap::probe_directory;
pub use work::Times;

pub use store::disk::{DriveProbe, DriveRate, choose, chosen_rate, probe};
pub use store::plan::{MachineMemory, default_budget_bytes, machine_memory};

/// What a model asks of a machine.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Its name.
    pub name: String,
    /// Weights that every token needs, the embedding table included.
    pub resident_bytes: u64,
    /// All routed experts; 0 for a dense model.
    pub experts_bytes: u64,
    /// Routed experts that one token uses.
    pub token_expert_bytes: u64,
    /// Routed experts of a layer.
    pub experts: usize,
    /// Those that one token uses.
    pub top_k: usize,
    /// Those that the model was made to use.
    pub own_top_k: usize,
    /// Tokens of the longest prompt.
    pub prompt_tokens_max: usize,
    /// What it keeps in memory.
    pub memory: Memory,
    /// What its layers compute.
    pub work: Work,
}

impl Demand {
    /// Of the model at `path`, opened with `options`; only its headers are read.
    ///
    /// # Errors
    /// `InvalidRequest` for options that the model cannot have, else as [`crate::Model::open`] when it cannot run.
    pub fn of_model(path: &Path, options: &OpenOptions) -> Result<Self> {
        let (index, meta) = TensorIndex::open(path)?;
        meta.check()?;
        let (experts, own_top_k) = meta.moe.as_ref().map_or((0, 0), |moe| (moe.experts, moe.top_k));
        let top_k = limits::top_k(&meta.arch, experts, own_top_k, options.experts_per_token)?;
        let reference: Arc<dyn Backend> = Arc::new(Reference::default());
        let bound = models::bind(&index, &meta, &reference, options.experts_per_token)?;
        let found = Footprint::of(&bound)?;
        Ok(Self {
            name: meta.name.clone().unwrap_or_else(|| path.display().to_string()),
            resident_bytes: found.resident_bytes,
            experts_bytes: found.experts_bytes,
            token_expert_bytes: found.expert_bytes_per_token,
            experts,
            top_k,
            own_top_k,
            prompt_tokens_max: options.context.unwrap_or(meta.context),
            memory: Memory::of_model(&bound, &index, &meta, options)?,
            work: Work { top_k, ..Work::of_model(&index, &meta) },
        })
    }

    /// Of a published shape, opened with `options`.
    ///
    /// # Errors
    /// `InvalidRequest` for options that the model cannot have, else as [`sizes`].
    pub fn of_shape(shape: Shape, layout: Layout, options: &OpenOptions) -> Result<Self> {
        let top_k = limits::top_k(shape.name, shape.experts, shape.top_k, options.experts_per_token)?;
        let context = limits::context(shape.context, options.context)?;
        let found = sizes(&SynthOptions::new(shape, layout))?;
        let work = Work { top_k, ..Work::of_shape(shape, layout, found.parameters) };
        Ok(Self {
            name: format!("{} ({layout})", shape.name),
            resident_bytes: found.resident_bytes,
            experts_bytes: found.experts_bytes,
            token_expert_bytes: found.token_expert_bytes / shape.top_k as u64 * top_k as u64,
            experts: shape.experts,
            top_k,
            own_top_k: shape.top_k,
            prompt_tokens_max: options.context.unwrap_or(shape.context),
            memory: Memory::of_shape(&shape, layout, &work, &found, context, options)?,
            work,
        })
    }

    /// The least memory that runs.
    pub fn floor_bytes(&self) -> u64 {
        self.memory.floor_bytes()
    }

    /// How `options` divide the memory, as [`crate::Model::open`] would.
    ///
    /// # Errors
    /// `Memory` when there is too little.
    pub fn plan(&self) -> Result<Plan> {
        self.memory.plan_as_opened()
    }

    /// Times the device of `options` with a token after `position` others.
    ///
    /// # Errors
    /// `Device` when there is none or it fails, `Memory` when there is no room.
    pub fn time_token(&self, options: &OpenOptions, position: usize) -> Result<Times> {
        work::token_times(&open_device(options)?.backend, &self.work, position)
    }

    /// The part of all experts that so many slots hold.
    fn slots_fraction(&self, slots: u64) -> f64 {
        match self.memory.total_experts() {
            0 => 1.0,
            all => slots as f64 / all as f64,
        }
    }

    /// Experts that a chunk of `rows` tokens uses, as a part of all, if they choose independently and evenly: what
    /// real routers choose is less.
    fn coverage(&self, rows: usize) -> f64 {
        if self.experts == 0 {
            return 0.0;
        }
        1.0 - (1.0 - self.top_k as f64 / self.experts as f64).powi(rows as i32)
    }
}

/// Opens the device that `options` ask for, once for all that is measured on it.
///
/// # Errors
/// `Device` when there is none.
pub fn with_device(options: &OpenOptions) -> Result<OpenOptions> {
    Ok(OpenOptions { backend: Some(open_device(options)?.backend), ..options.clone() })
}

/// The instructions that the CPU's kernels use on this machine.
pub fn instruction_set() -> &'static str {
    Isa::detect().name()
}

/// The GPUs of this machine with their drivers, for people. Drivers are asked only where there is a sign of a GPU.
pub fn gpus() -> Vec<String> {
    let found = if gpu::likely() { gpu::adapters() } else { Vec::new() };
    found.into_iter().map(|adapter| format!("{} ({})", adapter.name, adapter.driver)).collect()
}

/// What a device reaches with 4-bit weights that are in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRates {
    /// The device, for people.
    pub name: String,
    /// What it offers, as name and value.
    pub features: Vec<(&'static str, String)>,
    /// Threads that compute; 0 for a GPU.
    pub threads: usize,
    /// Weights multiplied with one row, in bytes/s.
    pub decode_bytes_per_s: f64,
    /// Multiply-adds with the rows that an expert gets of a prompt chunk.
    pub prefill_macs_per_s: f64,
}

/// Rows and columns of the matrices to measure with, and how many: together larger than caches.
const ROWS: usize = 8192;
const COLS: usize = 2048;
const MATRICES: usize = 16;
/// Rows of activations that stand for a prompt.
const PROMPT_ROWS: usize = 64;

/// Measures the device that `options` ask for, for about `time`. Takes 150 MB meanwhile.
///
/// # Errors
/// `Device` when there is none, `Memory` when there is no room.
pub fn device_rates(options: &OpenOptions, time: Duration) -> Result<DeviceRates> {
    backend_rates(&open_device(options)?.backend, time)
}

/// The same for an open device.
///
/// # Errors
/// `Device` when it fails, `Memory` when there is no room.
pub(crate) fn backend_rates(backend: &Arc<dyn Backend>, time: Duration) -> Result<DeviceRates> {
    let format = Format::Affine { bits: 4, group: 64, scale: ScaleType::F16 };
    let mut weights = Vec::with_capacity(MATRICES);
    for _ in 0..MATRICES {
        weights.push(work::weight(backend, format, ROWS, COLS)?);
    }
    let bytes = weights.first().map_or(0, Weight::bytes);
    let one = passes_per_s(backend, &weights, 1, time / 2)?;
    let many = passes_per_s(backend, &weights, PROMPT_ROWS, time / 2)?;
    let info = backend.info();
    Ok(DeviceRates {
        name: info.name.clone(),
        features: backend.features(),
        threads: info.threads,
        decode_bytes_per_s: one * bytes as f64,
        prefill_macs_per_s: many * (ROWS * COLS * PROMPT_ROWS) as f64,
    })
}

/// Matrices multiplied in a second with `rows` rows.
fn passes_per_s(backend: &Arc<dyn Backend>, weights: &[Weight], rows: usize, time: Duration) -> Result<f64> {
    let x = Tensor::new(backend.alloc(4 * rows * COLS)?, rows, COLS)?;
    let mut out = Tensor::new(backend.alloc(4 * rows * ROWS)?, rows, ROWS)?;
    let mut run = |count: usize| -> Result<Duration> {
        let start = Instant::now();
        for weight in weights.iter().cycle().take(count) {
            backend.linear(&x, weight, None, &mut out)?;
        }
        backend.read(out.block(), 0, &mut [0; 4])?; // waits for a device that is still at work
        Ok(start.elapsed())
    };
    run(weights.len().min(4))?; // pages, threads, clocks
    let (mut passes, mut spent) = (0, Duration::ZERO);
    while spent < time {
        spent += run(4)?;
        passes += 4;
    }
    Ok(passes as f64 / spent.as_secs_f64().max(1e-9))
}

/// Copies are measured with pieces of so many bytes, about an expert's, and with as many as fill the buffers that they go
/// through a few times.
const COPY_BYTES: usize = 8 << 20;
const COPIES: usize = 24;

/// The rate at which experts are copied to the device of `options`, measured for about `time`; `None` where it reads the
/// machine's memory.
///
/// # Errors
/// `Device` when there is none or it fails, `Memory` when there is no room.
pub fn copy_bytes_per_s(options: &OpenOptions, time: Duration) -> Result<Option<f64>> {
    backend_copy_rate(&open_device(options)?.backend, time)
}

/// The same for an open device.
///
/// # Errors
/// `Device` when it fails, `Memory` when there is no room.
pub(crate) fn backend_copy_rate(backend: &Arc<dyn Backend>, time: Duration) -> Result<Option<f64>> {
    let info = backend.info();
    if info.unified_memory {
        return Ok(None);
    }
    let bytes = COPY_BYTES.min(info.buffer_bytes_max) / PAGE_BYTES * PAGE_BYTES;
    let (host, block) = (vec![0x11; bytes], backend.alloc(bytes)?);
    let copy = || -> Result<f64> {
        let start = Instant::now();
        (0..COPIES).try_for_each(|_| backend.upload(block.buffer(), 0, &host))?;
        backend.read(&block, 0, &mut [0; 4])?; // waits for the device
        Ok(start.elapsed().as_secs_f64())
    };
    copy()?; // its buffers are made
    let (start, mut best_s) = (Instant::now(), copy()?);
    while start.elapsed() < time {
        best_s = best_s.min(copy()?);
    }
    Ok(Some((COPIES * bytes) as f64 / best_s.max(1e-9)))
}

/// The rate at which `threads` threads read memory, in bytes/s.
///
/// # Errors
/// `Memory` when there is no room for the 256 MiB that are read.
pub fn memory_bytes_per_s(threads: usize) -> Result<f64> {
    let mut words: Vec<i32> = Vec::new();
    words.try_reserve_exact(64 << 20).map_err(|e| Error::memory(format!("256 MiB to read: {e}")))?;
    words.resize(64 << 20, 1);
    let mut best = 0f64;
    for _ in 0..4 {
        let start = Instant::now();
        if std::hint::black_box(read_all(&words, threads)) != 0 {
            best = best.max((4 * words.len()) as f64 / start.elapsed().as_secs_f64().max(1e-9));
        }
    }
    Ok(best)
}

/// The machine that a prediction is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// What the device needs for a generated token.
    pub token: Times,
    /// What the drive delivers.
    pub drive_bytes_per_s: f64,
    /// What goes to a GPU that has memory of its own; without limits where there is none.
    pub copy_bytes_per_s: f64,
    /// The ceiling of everything in memory.
    pub budget_bytes: u64,
}

/// What a machine will do with a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The least budget that the model runs with; for a published shape about.
    pub floor_bytes: u64,
    /// Whether the budget is above it; else the rates are 0.
    pub fits: bool,
    /// Experts that have a slot, 0 to 1.
    pub slots_fraction: f64,
    /// Wanted experts that will be in memory, 0 to 1.
    pub hit_rate: f64,
    /// Seconds of the drive for a token.
    pub token_drive_s: f64,
    /// Seconds of arithmetic for a token.
    pub token_arithmetic_s: f64,
    /// Generation.
    pub decode_tokens_per_s: f64,
}

/// Hit rates of the default policy in pools of some parts of all experts: replays of the bundled model's recorded
/// routing (`bench --trace testdata/traces/…`, the mean of both).
const HITS: [(f64, f64); 9] = [
    (0.0, 0.0),
    (0.05, 0.07),
    (0.1, 0.18),
    (0.15, 0.28),
    (0.2, 0.37),
    (0.3, 0.52),
    (0.5, 0.76),
    (0.75, 0.92),
    (1.0, 1.0),
];

/// Predicts the first tokens after a prompt.
pub fn predict(model: &Demand, on: &Conditions) -> Prediction {
    let floor_bytes = model.memory.floor_bytes();
    let Some(planned) = model.memory.plan(on.budget_bytes) else {
        return Prediction { floor_bytes, ..Prediction::default() };
    };
    let slots_fraction = model.slots_fraction(planned.slots);
    let hit_rate = hits(slots_fraction);
    let Times { resident_s, experts_s } = on.token;
    let token_drive_s = model.token_expert_bytes as f64 * (1.0 - hit_rate) / on.drive_bytes_per_s;
    Prediction {
        floor_bytes,
        fits: true,
        slots_fraction,
        hit_rate,
        token_drive_s,
        token_arithmetic_s: resident_s + experts_s,
        decode_tokens_per_s: 1.0 / (resident_s + experts_s.max(token_drive_s)),
    }
}

/// The hit rate of a pool with this part of all experts.
fn hits(slots_fraction: f64) -> f64 {
    let between = HITS.windows(2).find(|pair| slots_fraction <= pair[1].0);
    between.map_or(1.0, |pair| {
        let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
        y0 + (y1 - y0) * (slots_fraction - x0) / (x1 - x0)
    })
}

/// What would make it faster, by how much in decode and in the prompt, the best first; only what is worth a tenth.
pub fn advice(model: &Demand, on: &Conditions, prompt: &Prompt) -> Vec<(&'static str, f64, f64)> {
    let rates = |model: &Demand, on: &Conditions, prompt: &Prompt| {
        let decode = Some(predict(model, on)).filter(|seen| seen.fits)?.decode_tokens_per_s;
        Some((decode, predict_prompt(model, on, prompt)?.tokens_per_s))
    };
    let Some(now) = rates(model, on, prompt) else { return Vec::new() };
    let top_k = model.top_k.div_ceil(2);
    let fewer = Demand {
        token_expert_bytes: model.token_expert_bytes / 2,
        top_k,
        memory: model.memory.with_top_k(top_k),
        ..model.clone()
    };
    let twice_memory = Conditions { budget_bytes: 2 * on.budget_bytes, ..*on };
    let twice_drive = Conditions { drive_bytes_per_s: 2.0 * on.drive_bytes_per_s, ..*on };
    let faster = Conditions { token: on.token.faster(2.0), ..*on };
    let faster_prompt = Prompt { times: prompt.times.faster(2.0), ..*prompt };
    let half = Conditions { token: on.token.with_half_the_experts(), ..*on };
    let half_prompt = Prompt { times: prompt.times.with_half_the_experts(), ..*prompt };
    let tries = [
        ("twice the memory budget", rates(model, &twice_memory, prompt)),
        ("a drive twice as fast", rates(model, &twice_drive, prompt)),
        ("twice the processor", rates(model, &faster, &faster_prompt)),
        ("half the experts per token, which changes answers", rates(&fewer, &half, &half_prompt)),
    ];
    let gains = tries
        .into_iter()
        .filter_map(|(what, rates)| rates.map(|(decode, prompt)| (what, decode / now.0, prompt / now.1)));
    let mut worth: Vec<_> = gains.filter(|(_, decode, prompt)| decode.max(*prompt) >= 1.1).collect();
    worth.sort_by(|a, b| (b.1 * b.2).total_cmp(&(a.1 * a.2)));
    worth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(name: &str) -> Demand {
        Demand::of_shape(Shape::find(name).unwrap(), Layout::Mlx4Bit, &OpenOptions::default()).unwrap()
    }

    fn laptop(budget_gib: u64) -> Conditions {
        Conditions {
            token: Times { resident_s: 0.08, experts_s: 0.07 },
            drive_bytes_per_s: 7e9,
            copy_bytes_per_s: f64::INFINITY,
            budget_bytes: budget_gib << 30,
        }
    }

    fn prompt(tokens: usize, token_s: f64) -> Prompt {
        Prompt { tokens, times: Times { resident_s: token_s / 2.0, experts_s: token_s / 2.0 } }
    }

    #[test]
    fn the_flagship_on_a_laptop_waits_for_its_drive() {
        let flagship = shape("qwen3.5-397b-a17b");
        assert!((flagship.token_expert_bytes as f64 / 4.25e9 - 1.0).abs() < 0.01, "{flagship:?}");
        let (on, short) = (laptop(12), prompt(2048, 8e-3));
        let seen = predict(&flagship, &on);
        // 4.25 GB a token at 7 GB/s, nearly nothing in memory; the experts of a chunk once, 217 GB.
        assert!(seen.fits && (1.4..1.9).contains(&seen.decode_tokens_per_s), "{seen:?}");
        let read = predict_prompt(&flagship, &on, &short).unwrap();
        assert!((50.0..80.0).contains(&read.tokens_per_s), "{read:?}");
        let worth = advice(&flagship, &on, &short);
        assert!(worth.iter().any(|(what, decode, _)| what.contains("drive") && *decode > 1.5), "{worth:?}");
        assert!(!predict(&flagship, &laptop(5)).fits);
        assert_eq!(predict_prompt(&flagship, &laptop(5), &short), None);
        assert!(advice(&flagship, &laptop(5), &short).is_empty());
    }

    #[test]
    fn a_longer_prompt_reads_the_experts_no_more_often_until_its_chunk_has_no_room() {
        let flagship = shape("qwen3.5-397b-a17b");
        let lengths = flagship.prompts(&[]).unwrap();
        assert_eq!(lengths, [2048, 8192, 32_768]);
        let of = |on: &Conditions, tokens, token_s| {
            predict_prompt(&flagship, on, &prompt(tokens, token_s)).unwrap()
        };
        let fast = lengths.iter().map(|tokens| of(&laptop(12), *tokens, 8e-4)).collect::<Vec<_>>();
        assert_eq!([fast[0].chunks, fast[1].chunks, fast[2].chunks], [1, 1, 1], "{fast:?}");
        assert!(fast.iter().all(|seen| seen.chunk_tokens * seen.chunks >= seen.prompt_tokens), "{fast:?}");
        assert!(fast.iter().all(|seen| (seen.drive_s / fast[0].drive_s - 1.0).abs() < 0.02), "{fast:?}");
        assert!(fast.iter().all(|seen| seen.bound == Bound::Drive && seen.seconds == seen.drive_s));
        assert!(fast[1].tokens_per_s > 3.9 * fast[0].tokens_per_s, "{fast:?}");
        // On a machine that computes 125 tokens a second only the shortest waits for its drive.
        let slow = lengths.iter().map(|tokens| of(&laptop(12), *tokens, 8e-3).bound).collect::<Vec<_>>();
        assert_eq!(slow, [Bound::Drive, Bound::Arithmetic, Bound::Arithmetic]);
        // Copies are made in turn with arithmetic, beside reads.
        let gpu = Conditions { copy_bytes_per_s: 6e9, ..laptop(12) };
        let seen = of(&gpu, 2048, 1e-3);
        assert_eq!((seen.bound, seen.seconds), (Bound::Copies, seen.copies_s + seen.arithmetic_s));
        let little = of(&laptop(8), 32_768, 8e-4);
        assert!(little.chunks > 1 && little.drive_s > 1.9 * fast[0].drive_s, "{little:?}");
    }

    #[test]
    fn prompts_fit_the_context() {
        let options = OpenOptions { context: Some(4096), ..OpenOptions::default() };
        let short =
            Demand::of_shape(Shape::find("qwen3-30b-a3b").unwrap(), Layout::Mlx4Bit, &options).unwrap();
        assert_eq!(short.prompts(&[]).unwrap(), [2048]);
        assert_eq!(short.prompts(&[4096, 7]).unwrap(), [4096, 7]);
        let error = short.prompts(&[100, 4097]).unwrap_err();
        assert!(error.message().contains("4097 tokens does not fit a context of 4096"), "{error}");
        let tiny = Demand { prompt_tokens_max: 100, ..short };
        assert_eq!(tiny.prompts(&[]).unwrap(), [100]);
    }

    #[test]
    fn what_fits_is_limited_by_arithmetic_and_hits_rise_with_slots() {
        let small = shape("qwen3-30b-a3b");
        let all = predict(&small, &laptop(64));
        assert_eq!((all.slots_fraction, all.hit_rate, all.token_drive_s), (1.0, 1.0, 0.0));
        let read = predict_prompt(&small, &laptop(64), &prompt(8192, 1e-3)).unwrap();
        assert_eq!((read.drive_s, read.bound), (0.0, Bound::Arithmetic));
        let mut before = 0.0;
        for budget in 3..24 {
            let seen = predict(&small, &laptop(budget));
            assert!(seen.hit_rate >= before && seen.hit_rate <= 1.0, "{budget} GiB: {seen:?}");
            assert!(seen.decode_tokens_per_s <= all.decode_tokens_per_s);
            before = seen.hit_rate;
        }
        assert!(hits(0.1) == 0.18 && hits(2.0) == 1.0 && hits(0.0) == 0.0);
    }

    #[test]
    fn a_device_a_memory_and_a_directory_can_be_measured() {
        let rates = device_rates(&OpenOptions::default(), Duration::from_millis(40)).unwrap();
        assert!(rates.decode_bytes_per_s > 1e7 && rates.prefill_macs_per_s > 1e7, "{rates:?}");
        assert!(memory_bytes_per_s(2).unwrap() > 1e8);
        let cpu = OpenOptions { device: crate::Device::Cpu, ..OpenOptions::default() };
        assert_eq!(copy_bytes_per_s(&cpu, Duration::ZERO).unwrap(), None, "it reads the same memory");
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let seen = probe_directory(dir.path(), Duration::from_millis(50)).unwrap();
        assert!(seen.best_bytes_per_s() > 1e6);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file is gone");
        let error = probe_directory(&dir.path().join("none"), Duration::ZERO).unwrap_err();
        assert!(error.message().contains("none"), "{error}");
    }
}
