//! What a machine will do with a model, before the model is there: rates are measured, the rest is arithmetic.
//!
//! A token costs the bytes that must come from the drive over its rate, while the experts are multiplied, and everything
//! else that is computed, which hides nothing. A prompt chunk costs the drive's time for all experts that it uses, or its
//! arithmetic, whichever is longer. The device is timed in the model's own sizes (`work`).

mod stand;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use files::quant::ScaleType;
use files::{Error, Format, Result};
use kernels::{Backend, Tensor, Weight};
use work::Work;

use crate::device::open_device;
use crate::inspect::Inspection;
use crate::model::OpenOptions;
use crate::synth::{Layout, Shape, SynthOptions, sizes};

pub use work::Times;

pub use store::disk::{DriveProbe, DriveRate, choose, probe};
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
    /// KV cache of one position.
    pub kv_bytes_per_token: u64,
    /// State that does not grow.
    pub recurrent_bytes: u64,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// What its layers compute.
    pub work: Work,
}

impl Demand {
    /// Of the model at `path`; only its headers are read.
    ///
    /// # Errors
    /// As [`Inspection::of`], and when the model cannot run.
    pub fn of_model(path: &Path) -> Result<Self> {
        let model = Inspection::of(path)?;
        let found = model.footprint.map_err(|(kind, message)| Error::new(kind, message))?;
        let meta = &model.meta;
        let (experts, top_k) = meta.moe.as_ref().map_or((0, 0), |moe| (moe.experts, moe.top_k));
        Ok(Self {
            name: meta.name.clone().unwrap_or_else(|| path.display().to_string()),
            resident_bytes: found.resident_bytes,
            experts_bytes: found.experts_bytes,
            token_expert_bytes: found.expert_bytes_per_token,
            experts,
            top_k,
            kv_bytes_per_token: found.kv_bytes_per_token,
            recurrent_bytes: found.recurrent_bytes,
            hidden_size: meta.hidden_size,
            work: Work::of_model(path)?,
        })
    }

    /// Of a published shape.
    ///
    /// # Errors
    /// As [`sizes`].
    pub fn of_shape(shape: Shape, layout: Layout) -> Result<Self> {
        let found = sizes(&SynthOptions::new(shape, layout))?;
        let attention = (0..shape.layers).filter(|l| shape.is_full_attention(*l)).count();
        let delta = shape.delta.map_or(0, |d| 4 * d.value_heads * d.head_dim * d.head_dim);
        Ok(Self {
            name: format!("{} ({layout})", shape.name),
            resident_bytes: found.resident_bytes,
            experts_bytes: found.experts_bytes,
            token_expert_bytes: found.token_expert_bytes,
            experts: shape.experts,
            top_k: shape.top_k,
            kv_bytes_per_token: (attention * 2 * shape.kv_heads * shape.head_dim * 2) as u64,
            recurrent_bytes: ((shape.layers - attention) * delta) as u64,
            hidden_size: shape.hidden_size,
            work: Work::of_shape(shape, layout, found.parameters),
        })
    }

    /// Seconds that the device of `options` computes for a token of a prompt of `prompt_tokens`, and for one after it.
    ///
    /// # Errors
    /// `Device` when there is none or it fails, `Memory` when there is no room.
    pub fn times(&self, options: &OpenOptions, prompt_tokens: usize) -> Result<Times> {
        work::times(&open_device(options)?.backend, &self.work, prompt_tokens)
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

/// What a device reaches with 4-bit weights that are in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceRates {
    /// The device, for people.
    pub name: String,
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

/// The rate at which `threads` threads read memory, in bytes/s.
///
/// # Errors
/// `Memory` when there is no room for the 256 MiB that are read.
pub fn memory_bytes_per_s(threads: usize) -> Result<f64> {
    let mut words: Vec<u64> = Vec::new();
    words.try_reserve_exact(32 << 20).map_err(|e| Error::memory(format!("256 MiB to read: {e}")))?;
    words.resize(32 << 20, 1);
    let part = words.len().div_ceil(threads.max(1));
    let mut best = 0f64;
    for _ in 0..4 {
        let start = Instant::now();
        let sum: u64 = thread::scope(|scope| {
            let sums: Vec<_> = words.chunks(part).map(|c| scope.spawn(|| c.iter().sum::<u64>())).collect();
            sums.into_iter().map(|s| s.join().unwrap_or(0)).sum()
        });
        if std::hint::black_box(sum) > 0 {
            best = best.max((8 * words.len()) as f64 / start.elapsed().as_secs_f64().max(1e-9));
        }
    }
    Ok(best)
}

/// Bytes of the file that a drive is probed with where no model is.
const PROBE_FILE_BYTES: usize = 256 << 20;

/// Probes the drive under the directory `dir` with a file of its own, which is removed again.
///
/// # Errors
/// `Io` naming the directory when it cannot be written, else as [`probe`].
pub fn probe_directory(dir: &Path, time: Duration) -> Result<DriveProbe> {
    struct Scrap(PathBuf);
    impl Drop for Scrap {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0); // nobody could act on it
        }
    }
    let scrap = Scrap(dir.join(format!("probe-{}.tmp", std::process::id())));
    // Noise: drives and file systems that compress would be too good with anything else.
    let (mut random, mut block) = (7u64, vec![0u8; 4 << 20]);
    let written = std::fs::File::create(&scrap.0).and_then(|mut file| {
        for _ in 0..PROBE_FILE_BYTES / block.len() {
            for word in block.chunks_exact_mut(8) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                word.copy_from_slice(&random.to_le_bytes());
            }
            std::io::Write::write_all(&mut file, &block)?;
        }
        file.sync_all()
    });
    written.map_err(|e| Error::io(dir.display(), e))?;
    probe(&scrap.0, time)
}

/// The machine that a prediction is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// What the device needs for a token.
    pub times: Times,
    /// What the drive delivers.
    pub drive_bytes_per_s: f64,
    /// The ceiling of everything in memory.
    pub budget_bytes: u64,
    /// Tokens of context to plan for.
    pub context: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// What a machine will do with a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// The least budget that the model runs with, about.
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
    /// Seconds of the drive for the prompt.
    pub prompt_drive_s: f64,
    /// Seconds of arithmetic for the prompt.
    pub prompt_arithmetic_s: f64,
    /// Reading a prompt.
    pub prefill_tokens_per_s: f64,
}

/// Rows of a prompt chunk.
const CHUNK_TOKENS: usize = 2048;

/// Memory for code, buffers and tables, in bytes.
const OVERHEAD_BYTES: u64 = 160 << 20;

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

/// Predicts the prompt, and the first tokens after it.
pub fn predict(model: &Demand, on: &Conditions) -> Prediction {
    let state_bytes = model.kv_bytes_per_token * on.context as u64 + 4 * model.recurrent_bytes;
    let chunk = on.prompt_tokens.clamp(1, CHUNK_TOKENS);
    let row_bytes = 4 * model.hidden_size * (model.top_k + 8);
    let scratch_bytes = ((chunk * row_bytes) as u64).min(on.budget_bytes / 8);
    let fixed_bytes = model.resident_bytes + state_bytes + scratch_bytes + OVERHEAD_BYTES;
    let floor_bytes = model.resident_bytes + state_bytes + OVERHEAD_BYTES + model.token_expert_bytes;
    if floor_bytes > on.budget_bytes {
        return Prediction { floor_bytes, ..Prediction::default() };
    }
    let pool_bytes = on.budget_bytes.saturating_sub(fixed_bytes) as f64;
    let slots_fraction = match model.experts_bytes {
        0 => 1.0,
        bytes => (pool_bytes / bytes as f64).min(1.0),
    };
    let hit_rate = hits(slots_fraction);
    let Times { resident_s, experts_s, prompt_resident_s, prompt_experts_s } = on.times;
    let token_drive_s = model.token_expert_bytes as f64 * (1.0 - hit_rate) / on.drive_bytes_per_s;
    let prompt_arithmetic_s = on.prompt_tokens as f64 * (prompt_resident_s + prompt_experts_s);
    let chunks = on.prompt_tokens.div_ceil(chunk) as f64;
    // What the pool holds of a layer when a chunk comes to it was pushed out by the others, but for this part.
    let read = model.experts_bytes as f64 * model.coverage(chunk) * (1.0 - slots_fraction);
    let prompt_drive_s = chunks * read / on.drive_bytes_per_s;
    Prediction {
        floor_bytes,
        fits: true,
        slots_fraction,
        hit_rate,
        token_drive_s,
        token_arithmetic_s: resident_s + experts_s,
        decode_tokens_per_s: 1.0 / (resident_s + experts_s.max(token_drive_s)),
        prompt_drive_s,
        prompt_arithmetic_s,
        prefill_tokens_per_s: on.prompt_tokens as f64 / prompt_drive_s.max(prompt_arithmetic_s),
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

/// What would make it faster, by how much in decode and in prefill, the best first; only what is worth a tenth.
pub fn advice(model: &Demand, on: &Conditions) -> Vec<(&'static str, f64, f64)> {
    let now = predict(model, on);
    if !now.fits {
        return Vec::new();
    }
    let fewer = Demand {
        token_expert_bytes: model.token_expert_bytes / 2,
        top_k: model.top_k.div_ceil(2),
        ..model.clone()
    };
    let twice_memory = Conditions { budget_bytes: 2 * on.budget_bytes, ..*on };
    let twice_drive = Conditions { drive_bytes_per_s: 2.0 * on.drive_bytes_per_s, ..*on };
    let twice_arithmetic = Conditions { times: on.times.faster(2.0), ..*on };
    let half_experts = Times {
        experts_s: on.times.experts_s / 2.0,
        prompt_experts_s: on.times.prompt_experts_s / 2.0,
        ..on.times
    };
    let half_experts = Conditions { times: half_experts, ..*on };
    let tries = [
        ("twice the memory budget", predict(model, &twice_memory)),
        ("a drive twice as fast", predict(model, &twice_drive)),
        ("twice the processor", predict(model, &twice_arithmetic)),
        ("half the experts per token, which changes answers", predict(&fewer, &half_experts)),
    ];
    let gain = |p: &Prediction| {
        let decode = p.decode_tokens_per_s / now.decode_tokens_per_s;
        (decode, p.prefill_tokens_per_s / now.prefill_tokens_per_s)
    };
    let gains = tries.iter().map(|(what, p)| (*what, gain(p).0, gain(p).1));
    let mut worth: Vec<_> = gains.filter(|(_, decode, prefill)| decode.max(*prefill) >= 1.1).collect();
    worth.sort_by(|a, b| (b.1 * b.2).total_cmp(&(a.1 * a.2)));
    worth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laptop(budget_gib: u64) -> Conditions {
        Conditions {
            times: Times {
                resident_s: 0.08,
                experts_s: 0.07,
                prompt_resident_s: 4e-3,
                prompt_experts_s: 4e-3,
            },
            drive_bytes_per_s: 7e9,
            budget_bytes: budget_gib << 30,
            context: 8192,
            prompt_tokens: 2048,
        }
    }

    #[test]
    fn the_flagship_on_a_laptop_waits_for_its_drive() {
        let flagship = Demand::of_shape(Shape::find("qwen3.5-397b-a17b").unwrap(), Layout::Mlx4Bit).unwrap();
        assert!((flagship.token_expert_bytes as f64 / 4.25e9 - 1.0).abs() < 0.01, "{flagship:?}");
        let seen = predict(&flagship, &laptop(12));
        // 4.25 GB a token at 7 GB/s, nearly nothing in memory; the experts of a chunk once, 217 GB.
        assert!(seen.fits && (1.4..1.9).contains(&seen.decode_tokens_per_s), "{seen:?}");
        assert!((50.0..80.0).contains(&seen.prefill_tokens_per_s), "{seen:?}");
        let worth = advice(&flagship, &laptop(12));
        assert!(worth.iter().any(|(what, decode, _)| what.contains("drive") && *decode > 1.5), "{worth:?}");
        assert!(!predict(&flagship, &laptop(5)).fits);
        assert!(advice(&flagship, &laptop(5)).is_empty());
    }

    #[test]
    fn what_fits_is_limited_by_arithmetic_and_hits_rise_with_slots() {
        let small = Demand::of_shape(Shape::find("qwen3-30b-a3b").unwrap(), Layout::Mlx4Bit).unwrap();
        let all = predict(&small, &laptop(64));
        assert_eq!(
            (all.slots_fraction, all.hit_rate, all.token_drive_s, all.prompt_drive_s),
            (1.0, 1.0, 0.0, 0.0)
        );
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
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let seen = probe_directory(dir.path(), Duration::from_millis(50)).unwrap();
        assert!(seen.best_bytes_per_s() > 1e6);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file is gone");
        let error = probe_directory(&dir.path().join("none"), Duration::ZERO).unwrap_err();
        assert!(error.message().contains("none"), "{error}");
    }
}
