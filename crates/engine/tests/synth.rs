//! Synthetic models open, run, have the sizes that were promised, and survive interruptions.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::{go, open};
use files::TensorIndex;
use tidemill_engine::synth::{Layout, Shape, SynthOptions, Synthesised, sizes, synth};
use tidemill_engine::text::{Specials, Tokenizer};
use tidemill_engine::{ErrorKind, OpenOptions, Result, Session};

const TINY: [&str; 2] = ["qwen3.5-moe-tiny", "qwen3-moe-tiny"];

fn options(name: &str, layout: Layout) -> SynthOptions {
    SynthOptions::new(Shape::find(name).expect("a shape"), layout)
}

fn write(options: &SynthOptions, out: &Path) -> Synthesised {
    synth(options, out, &mut |_, _| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{e}"))
}

/// Breaks off as soon as `bytes` bytes are done.
fn write_until(options: &SynthOptions, out: &Path, bytes: u64) -> Result<Synthesised> {
    synth(options, out, &mut |done, _| {
        if done >= bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("readable").path());
    entries
        .map(|path| (path.file_name().expect("named").into(), std::fs::read(&path).expect("readable")))
        .collect()
}

/// A fixed walk through the vocabulary.
fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let mut state = 12345u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % vocab as u32
    };
    (0..count).map(next).collect()
}

#[test]
fn every_layout_of_every_architecture_runs() {
    for name in TINY {
        for layout in Layout::ALL {
            let dir = tempfile::tempdir().expect("a directory");
            let options = options(name, layout);
            let made = write(&options, dir.path());
            let model = open(&made.path, &OpenOptions::default());
            assert_eq!(model.meta().arch, options.shape.arch(), "{name} {layout}");
            assert_eq!(model.meta().layers, options.shape.layers);
            assert_eq!(model.top_k(), options.shape.top_k);
            let mut session = Session::new(&model).expect("a session");
            session.append(&tokens(12, options.shape.vocab_size), &mut go).expect("runs");
            let logits = session.logits();
            assert!(logits.iter().all(|x| x.is_finite()), "{name} {layout}");
            let std = (logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32).sqrt();
            assert!((1.0..4.0).contains(&std), "{name} {layout}: logits of deviation {std}");

            let tokenizer = Tokenizer::of_model(model.meta()).expect("a tokenizer");
            let ids = tokenizer.encode("<|im_start|>banana split", Specials::Parse).expect("encodes");
            assert_eq!(ids[0] as usize, options.shape.vocab_size - 2);
            // b-a n-a n-a are syllables with merges.
            assert!(ids.len() < 14, "{name} {layout}: {ids:?}");
        }
    }
}

#[test]
fn sizes_are_those_that_were_promised() {
    for name in TINY {
        for layout in Layout::ALL {
            let dir = tempfile::tempdir().expect("a directory");
            let options = options(name, layout);
            let made = write(&options, dir.path());
            let (index, _) = TensorIndex::open(&made.path).expect("opens");
            let is_expert = |n: &str| n.contains("switch_mlp") || n.contains("_exps");
            let bytes = |experts| -> u64 {
                index.iter().filter(|t| is_expert(&t.name) == experts).map(files::Tensor::bytes).sum()
            };
            let sizes = sizes(&options).expect("sizes");
            assert_eq!(sizes.experts_bytes, bytes(true), "{name} {layout}");
            assert_eq!(sizes.resident_bytes, bytes(false), "{name} {layout}");
            let files: u64 = index.files().iter().map(|f| std::fs::metadata(f).expect("there").len()).sum();
            assert_eq!(made.bytes, files);
            assert_eq!(made.written_bytes + header_bytes(&index), files, "{name} {layout}");
        }
    }
}

/// Bytes before the first tensor, over all files.
fn header_bytes(index: &TensorIndex) -> u64 {
    let first = |i: usize| {
        let spans = index.iter().flat_map(|t| &t.spans).filter(|s| s.file.0 as usize == i);
        spans.map(|s| s.offset).min().expect("a tensor")
    };
    (0..index.files().len()).map(first).sum()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    for layout in Layout::ALL {
        let [a, b, c] = [0; 3].map(|_| tempfile::tempdir().expect("a directory"));
        let options = options("qwen3-moe-tiny", layout);
        write(&options, a.path());
        write(&options, b.path());
        assert!(contents(a.path()) == contents(b.path()), "{layout}");
        write(&SynthOptions { seed: 1, ..options }, c.path());
        assert!(contents(a.path()) != contents(c.path()), "{layout}");
    }
}

#[test]
fn experts_that_are_not_written_are_zeros() {
    for layout in Layout::ALL {
        let [whole, holes, parts] = [0; 3].map(|_| tempfile::tempdir().expect("a directory"));
        let options = options("qwen3.5-moe-tiny", layout);
        let few = SynthOptions { expert_layers: 1, ..options };
        write(&options, whole.path());
        let made = write(&few, holes.path());
        let (all, some) = (TensorIndex::open(whole.path()).expect("opens").0, TensorIndex::open(&made.path));
        let some = some.expect("opens").0;
        let bytes_of = |index: &TensorIndex, tensor: &files::Tensor| -> Vec<u8> {
            let span = tensor.spans.iter().map(|span| {
                let file = std::fs::read(&index.files()[span.file.0 as usize]).expect("readable");
                file[span.offset as usize..][..span.bytes as usize].to_vec()
            });
            span.collect::<Vec<_>>().concat()
        };
        let (mut zeros, mut same) = (0, 0);
        for (a, b) in all.iter().zip(some.iter()) {
            assert_eq!((&a.name, a.bytes()), (&b.name, b.bytes()));
            let expert = a.name.contains("switch_mlp") || a.name.contains("_exps");
            if expert && !a.name.contains(".0.") {
                assert!(bytes_of(&some, b).iter().all(|byte| *byte == 0), "{}", b.name);
                zeros += b.bytes();
            } else {
                assert!(bytes_of(&all, a) == bytes_of(&some, b), "{}", b.name);
                same += 1;
            }
        }
        assert!(zeros > 0 && same > 0);
        let unwritten = made.bytes - made.written_bytes;
        assert!(
            (zeros..zeros + header_bytes(&some) + 1).contains(&unwritten),
            "{layout}: {unwritten} of {zeros}"
        );

        for eighth in [2, 5, 7] {
            write_until(&few, parts.path(), made.bytes * eighth / 8).expect_err("breaks off");
        }
        write(&few, parts.path());
        assert!(contents(holes.path()) == contents(parts.path()), "{layout}");
        let model = open(&made.path, &OpenOptions::default());
        let mut session = Session::new(&model).expect("a session");
        session.append(&tokens(4, options.shape.vocab_size), &mut go).expect("runs");
        assert!(session.logits().iter().all(|x| x.is_finite()), "{layout}");
    }
}

#[test]
fn a_run_that_was_broken_off_is_taken_up() {
    for layout in Layout::ALL {
        let [whole, parts] = [0; 2].map(|_| tempfile::tempdir().expect("a directory"));
        let options = options("qwen3.5-moe-tiny", layout);
        let total = write(&options, whole.path()).bytes;
        for eighth in [0, 1, 3, 6] {
            let error = write_until(&options, parts.path(), total * eighth / 8).expect_err("breaks off");
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert!(TensorIndex::open(parts.path()).is_err(), "half a model does not pass for one");
        }
        // A crash may leave any length.
        cut_partial(parts.path(), 12_345);
        let rest = write(&options, parts.path());
        assert!(rest.written_bytes < total / 2 + 12_345 + (1 << 20), "{layout}: {}", rest.written_bytes);
        assert!(contents(whole.path()) == contents(parts.path()), "{layout}");
        assert_eq!(write(&options, parts.path()).written_bytes, 0, "{layout}: nothing is left to do");

        let other = SynthOptions { seed: 9, ..options };
        let error = write_until(&other, parts.path(), u64::MAX).expect_err("another model is there");
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        assert!(contents(whole.path()) == contents(parts.path()), "{layout}: and stays");
    }
}

/// Cuts the tail off the file that is under way.
fn cut_partial(dir: &Path, bytes: u64) {
    let mut files = std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("readable").path());
    let partial = files.find(|p| p.extension().is_some_and(|e| e == "partial")).expect("a partial file");
    let file = std::fs::OpenOptions::new().write(true).open(partial).expect("opens");
    let length = file.metadata().expect("there").len();
    file.set_len(length.saturating_sub(bytes)).expect("shrinks");
}

#[test]
fn fewer_layers_are_the_first_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = options("qwen3.5-moe-tiny", Layout::Mlx4Bit);
    options.shape = options.shape.with_layers(2).expect("two of four");
    let model = open(&write(&options, dir.path()).path, &OpenOptions::default());
    assert_eq!(model.meta().layers, 2);
    assert_eq!(model.meta().delta.as_ref().expect("hybrid").full_attention, [false, false]);
}

/// Mean share of a token's experts that the token before it had used, over layers and tokens.
fn consecutive_overlap(options: &SynthOptions) -> f64 {
    let dir = tempfile::tempdir().expect("a directory");
    let model = open(&write(options, dir.path()).path, &OpenOptions::default());
    let mut session = Session::new(&model).expect("a session");
    session.record_routes();
    session.append(&tokens(128, options.shape.vocab_size), &mut go).expect("runs");
    let (mut shared, mut all) = (0, 0);
    for record in session.take_routes() {
        let rows: Vec<HashSet<u32>> =
            record.routes.ids.chunks_exact(model.top_k()).map(|row| row.iter().copied().collect()).collect();
        for pair in rows.windows(2) {
            shared += pair[0].intersection(&pair[1]).count();
            all += pair[1].len();
        }
    }
    shared as f64 / all as f64
}

#[test]
fn skew_makes_tokens_share_experts() {
    let options = options("qwen3.5-moe-tiny", Layout::GgufQ4_0);
    let chance = options.shape.top_k as f64 / options.shape.experts as f64;
    let even = consecutive_overlap(&SynthOptions { skew: 0.0, ..options }) / chance;
    let skewed = consecutive_overlap(&options) / chance;
    let steep = consecutive_overlap(&SynthOptions { skew: 2.0, ..options }) / chance;
    println!("overlap of consecutive tokens over chance: {even:.2}, {skewed:.2}, {steep:.2}");
    // Not 1: a quarter of so narrow a stream is what all tokens share.
    assert!((0.9..1.6).contains(&even), "{even}");
    assert!(skewed > even + 0.15 && steep > skewed + 0.5, "{even} {skewed} {steep}");
}
