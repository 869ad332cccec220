//! Company on a GPU in fast mode: steps of several sequences multiply with other kernels than steps of one. The difference stays
//! below what fast mode itself rounds.

use std::sync::Arc;

use kernels::gpu::{Gpu, GpuOptions, adapters};
use kernels::ops::Precision;
use tidemill_engine::{Answer, Batch, Logits, Model, OpenOptions, Sequence};

use super::tools::{golden, tokens};
use crate::common::{go, open};

const SETS: [&str; 2] = ["qwen3_5_moe-e32/mlx-4bit", "qwen3_moe-e16/gguf-Q4_0"];
const COMPANY: usize = 8;
const ANSWER: usize = 6;

fn model(set: &str, precision: Precision) -> Arc<Model> {
    let gpu = Gpu::open(&GpuOptions { precision, ..GpuOptions::default() }).expect("the adapter opens");
    let options = OpenOptions {
        exact: precision == Precision::Exact,
        backend: Some(Arc::new(gpu)),
        sessions: Some(COMPANY),
        context: Some(64),
        fixed_slots: true,
        ..OpenOptions::default()
    };
    open(&golden(set), &options)
}

/// The logits after prompts of several lengths and after each token of their answers, of sequences `which`.
fn run(model: &Arc<Model>, which: std::ops::Range<usize>) -> Vec<Vec<f32>> {
    let mut batch = Batch::default();
    let sequence = |i| {
        let mut sequence = Sequence::new(model).expect("the plan has room");
        sequence.extend(&tokens(model, i as u64, 3 + 4 * i)).expect("fits");
        sequence
    };
    let mut sequences: Vec<Sequence> = which.clone().map(sequence).collect();
    let mut all = vec![Vec::new(); sequences.len()];
    for step in 0..=ANSWER {
        let mut sink = |place: usize, answer: Answer<'_>| {
            all[place].extend_from_slice(answer.logits());
            Ok(())
        };
        batch.feed(model, &mut sequences, Logits::Last, &mut go, &mut sink).expect("runs");
        for (i, sequence) in which.clone().zip(&mut sequences) {
            sequence.extend(&tokens(model, (100 * step + i) as u64, 1)).expect("fits");
        }
    }
    all
}

fn relative_rms(seen: &[Vec<f32>], truth: &[Vec<f32>]) -> f64 {
    let pairs = || seen.iter().flatten().zip(truth.iter().flatten());
    let error: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = pairs().map(|(_, b)| f64::from(*b).powi(2)).sum();
    (error / size).sqrt()
}

#[test]
fn company_in_fast_mode_differs_less_than_fast_mode_from_exact() {
    if adapters().is_empty() {
        let why = "SKIP: no Vulkan or Metal adapter (Debian: mesa-vulkan-drivers)";
        assert!(std::env::var("CI").is_err(), "{why}");
        return println!("{why}");
    }
    for set in SETS {
        let (fast, exact) = (model(set, Precision::Fast), model(set, Precision::Exact));
        let alone = |model| (0..COMPANY).flat_map(|i| run(model, i..i + 1)).collect::<Vec<_>>();
        let (fast_alone, exact_alone) = (alone(&fast), alone(&exact));
        let company = relative_rms(&run(&fast, 0..COMPANY), &fast_alone);
        let rounding = relative_rms(&fast_alone, &exact_alone);
        println!("{set}: company {company:.2e}, fast mode {rounding:.2e}");
        assert!(rounding > 0.0, "{set}: fast mode rounds");
        assert!(company <= rounding, "{set}: company {company:e}, fast mode {rounding:e}");
    }
}
