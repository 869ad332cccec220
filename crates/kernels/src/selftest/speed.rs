//! How fast the products run, on weights that no cache holds.

use std::time::{Duration, Instant};

use files::{Format, Result, ScaleType};

use super::inputs::Inputs;
use super::{Extent, named};
use crate::Backend;
use crate::buffer::Tensor;
use crate::ops::{ExpertBatch, RoutedRow};

/// The rate of one product.
#[derive(Clone, Debug)]
pub struct Speed {
    /// The op, its format and shape.
    pub case: String,
    /// Seconds of one call, of many that follow one another, in the best round.
    pub seconds: f64,
    /// Weights read in a second, in bytes.
    pub bytes_per_s: f64,
    /// Multiplications and additions in a second.
    pub flop_per_s: f64,
}

type Measure = Box<dyn Fn(&dyn Backend, usize) -> Result<Speed>>;

const AFFINE4: Format = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };
/// How long a case is measured.
const TIME: Duration = Duration::from_millis(120);
/// ... and in a quick test.
const QUICK_TIME: Duration = Duration::from_millis(2);
/// Inputs of the matrices, and the shape of the experts (those of Qwen3.5-397B).
const COLS: usize = 4096;
const INNER: usize = 1024;
const TOP_K: usize = 10;

pub(super) fn measurements(extent: Extent) -> Vec<(String, Measure)> {
    let least = if extent == Extent::Full { TIME } else { QUICK_TIME };
    let mut all: Vec<(String, Measure)> = Vec::new();
    let affine8 = Format::Affine { bits: 8, group: 64, scale: ScaleType::BF16 };
    for format in [AFFINE4, affine8, Format::Q4_0, Format::Q8_0, Format::Q4K, Format::Q6K, Format::BF16] {
        all.push((named("linear", format, 1), Box::new(move |b, bytes| vector(b, format, bytes, least))));
    }
    for format in [AFFINE4, Format::Q4K] {
        all.push((
            named("expert_mlp", format, 1),
            Box::new(move |b, bytes| experts(b, format, bytes, least)),
        ));
    }
    for format in [AFFINE4, Format::Q4K, Format::BF16] {
        all.push((named("linear", format, 256), Box::new(move |b, bytes| matrix(b, format, bytes, least))));
    }
    all
}

/// Calls that are recorded together: their tables must fit one submission.
const CALLS_MAX: u32 = 1 << 10;
/// A device that was idle needs work before it runs at its full rate: rounds go on while they gain more than this.
const GAIN: f64 = 0.02;
/// ... but no more than so many.
const ROUNDS_MAX: usize = 12;

/// Seconds of a call of many that follow one another; reading a value of `out` waits for them. Where calls can be
/// recorded first, the time of that is not counted.
fn time(
    r: &Inputs<'_>,
    least: Duration,
    out: &mut Tensor,
    mut call: impl FnMut(&mut Tensor) -> Result<()>,
) -> Result<f64> {
    let mut round = |calls: u32, out: &mut Tensor| -> Result<Duration> {
        let mut all = || (0..calls).try_for_each(|_| call(out));
        let recorded = r.backend.record(&mut all)?;
        let start = Instant::now();
        match recorded {
            Some(recorded) => r.backend.run_recorded(recorded, &[])?,
            None => all()?,
        }
        r.backend.read(out.block(), 0, &mut [0; 4])?;
        Ok(start.elapsed())
    };
    round(2, out)?;
    let mut calls = 1;
    while round(calls, out)? < least && calls < CALLS_MAX {
        calls *= 2;
    }
    let (mut best, start) = (f64::INFINITY, Instant::now());
    for _ in 0..ROUNDS_MAX {
        let seconds = round(calls, out)?.as_secs_f64() / f64::from(calls);
        let gained = seconds < (1.0 - GAIN) * best;
        best = best.min(seconds);
        if !gained && start.elapsed() > least {
            break;
        }
    }
    Ok(best)
}

fn speed(case: String, seconds: f64, bytes: usize, weights: usize, rows: usize) -> Speed {
    let flop = 2.0 * weights as f64 * rows as f64;
    Speed { case, seconds, bytes_per_s: bytes as f64 / seconds, flop_per_s: flop / seconds }
}

fn vector(b: &dyn Backend, format: Format, bytes: usize, least: Duration) -> Result<Speed> {
    let mut r = Inputs::new(b, 21);
    let outputs =
        (bytes.min(b.info().buffer_bytes_max) / format.whole_row_bytes(COLS)?).next_multiple_of(64) - 64;
    let w = r.weight(format, outputs, COLS, 1)?;
    let (x, mut out) = (r.tensor(1, COLS, 1.0)?, r.zeros(1, outputs)?);
    let seconds = time(&r, least, &mut out, |out| b.linear(&x, &w, None, out))?;
    let case = format!("{}, {COLS} -> {outputs}", named("linear", format, 1));
    Ok(speed(case, seconds, w.bytes(), outputs * COLS, 1))
}

fn matrix(b: &dyn Backend, format: Format, bytes: usize, least: Duration) -> Result<Speed> {
    let mut r = Inputs::new(b, 22);
    // A part of the work where it would take minutes.
    let rows = if bytes < 64 << 20 { 64 } else { 256 };
    let outputs = COLS / if bytes < 64 << 20 { 16 } else { 1 };
    let w = r.weight(format, outputs, COLS, 1)?;
    let (x, mut out) = (r.tensor(rows, COLS, 1.0)?, r.zeros(rows, outputs)?);
    let seconds = time(&r, least, &mut out, |out| b.linear(&x, &w, None, out))?;
    let case = format!("{}, {COLS} -> {outputs}", named("linear", format, rows));
    Ok(speed(case, seconds, w.bytes(), outputs * COLS, rows))
}

/// One row through the active experts of a layer in one call; calls take other experts in turn.
fn experts(b: &dyn Backend, format: Format, bytes: usize, least: Duration) -> Result<Speed> {
    let mut r = Inputs::new(b, 23);
    let weights = 3 * INNER * COLS;
    let expert_bytes = 2 * INNER * format.whole_row_bytes(COLS)? + COLS * format.whole_row_bytes(INNER)?;
    let count = (bytes / expert_bytes / TOP_K).max(1) * TOP_K;
    // As a store keeps them: whole experts in one buffer each kind of matrix, so one dispatch serves all.
    let gate = r.weight(format, count * INNER, COLS, 1)?;
    let up = r.weight(format, count * INNER, COLS, 1)?;
    let down = r.weight(format, count * COLS, INNER, 1)?;
    let mut mlps = Vec::new();
    for e in 0..count {
        let part = |w: &crate::Weight, rows: usize| -> Result<crate::Weight> {
            let views = w.parts().iter().map(|view| {
                let each = view.bytes() / count;
                view.slice(e * each..(e + 1) * each)
            });
            crate::Weight::new(format, rows, w.cols(), views.collect::<Result<Vec<_>>>()?)
        };
        mlps.push(crate::ops::MlpWeights::new(part(&gate, INNER)?, part(&up, INNER)?, part(&down, COLS)?)?);
    }
    let rows: Vec<[RoutedRow; 1]> = (0..TOP_K as u32).map(|part| [RoutedRow { row: 0, part }]).collect();
    let (x, mut parts) = (r.tensor(1, COLS, 1.0)?, r.zeros(TOP_K, COLS)?);
    let mut first = 0;
    let seconds = time(&r, least, &mut parts, |parts| {
        let active = mlps[first..].iter().zip(&rows);
        let batches: Vec<_> = active.map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
        first = (first + TOP_K) % count;
        b.expert_mlp(&x, &batches, parts)
    })?;
    let case = format!("{}, {TOP_K} of {count}, {COLS} x {INNER}", named("expert_mlp", format, 1));
    Ok(speed(case, seconds, TOP_K * expert_bytes, TOP_K * weights, 1))
}
