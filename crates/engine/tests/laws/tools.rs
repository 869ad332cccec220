//! What these tests share: models by name, prompts, simulated drives, bits to compare.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use files::TensorIndex;
use store::disk::{SimDisk, SimOptions};
use tidemill_engine::{Model, OpenOptions, Session};

use crate::common::{all_logits, go, model_path, open, root};

/// Chunks of 64 leave a rest, and 512 experts are not all used.
pub(crate) const PROMPT_TOKENS: usize = 70;

/// A set whose heads fit an 8-bit KV cache.
pub(crate) const EIGHT_BIT: &str = "qwen3_5_moe-e32/mlx-4bit";

/// The model of a golden set, as `qwen3_moe-e16/mlx-4bit`.
pub(crate) fn golden(set: &str) -> PathBuf {
    model_path(&root().join("testdata/goldens").join(set))
}

/// A simulated drive with the model's files.
pub(crate) fn sim(path: &Path, options: SimOptions) -> Arc<SimDisk> {
    let (index, _) = TensorIndex::open(path).expect("opens");
    let files = index.files().iter().map(|f| std::fs::read(f).expect("readable")).collect();
    Arc::new(SimDisk::new(files, options))
}

/// Options with this precision, on a simulated drive.
pub(crate) fn on_sim(path: &Path, seed: u64, exact: bool) -> (Arc<SimDisk>, OpenOptions) {
    let disk = sim(path, SimOptions { seed, ..SimOptions::default() });
    (disk.clone(), OpenOptions { exact, disk: Some(disk), ..OpenOptions::default() })
}

/// A stream of numbers that is the same on every machine (xorshift64*, Marsaglia 2003).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// `count` tokens of the model's vocabulary, different for every seed.
pub(crate) fn tokens(model: &Model, seed: u64, count: usize) -> Vec<u32> {
    let mut dice = Dice(seed + 1);
    (0..count).map(|_| dice.below(model.meta().vocab_size) as u32).collect()
}

/// Logits to compare bit for bit, and to print in one line.
#[derive(Clone, PartialEq)]
pub(crate) struct Bits(Vec<u32>);

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sum = self.0.iter().fold(0u32, |sum, bits| sum.rotate_left(5) ^ bits);
        write!(f, "{} logits {sum:08x}", self.0.len())
    }
}

pub(crate) fn bits(logits: &[f32]) -> Bits {
    Bits(logits.iter().map(|l| l.to_bits()).collect())
}

/// The bits of the logits after each of `tokens`, fed to an empty session in chunks.
pub(crate) fn all_bits(model: &Arc<Model>, tokens: &[u32]) -> Vec<Bits> {
    let mut session = Session::new(model).expect("a session");
    all_logits(&mut session, tokens).expect("runs").iter().map(|l| bits(l)).collect()
}

/// The bits of the logits after the last of `tokens`, from an empty session.
pub(crate) fn last_bits(model: &Arc<Model>, tokens: &[u32]) -> Bits {
    let mut session = Session::new(model).expect("a session");
    session.append(tokens, &mut go).expect("runs");
    bits(session.logits())
}

/// A small recurrent model with experts, in chunks of 8, on a simulated drive.
pub(crate) fn hybrid() -> (Arc<SimDisk>, Arc<Model>) {
    let path = golden("qwen3_5_moe-e32/mlx-4bit");
    let (disk, options) = on_sim(&path, 1, true);
    let options = OpenOptions { chunk_tokens: Some(8), context: Some(96), slots_max: Some(24), ..options };
    (disk, open(&path, &options))
}

/// A small model with experts and attention only, otherwise as [`hybrid`].
pub(crate) fn attention_only() -> (Arc<SimDisk>, Arc<Model>) {
    let path = golden("qwen3_moe-e16/gguf-Q4_0");
    let (disk, options) = on_sim(&path, 1, true);
    let options = OpenOptions { chunk_tokens: Some(8), context: Some(96), slots_max: Some(12), ..options };
    (disk, open(&path, &options))
}
