//! The cases: every op, and every number format where an op has weights.

use std::ops::Range;

use files::{Format, Result, ScaleType};

use super::inputs::Inputs;
use super::{Extent, named};
use crate::Backend;
use crate::ops::{
    AttentionSpec, Convolution, DeltaInput, DeltaSpec, ExpertBatch, Gate, KvCache, KvFormat, PAGE, Product,
    Residual, RopeSpec, RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput, RoutedRow, Segment, SharedOutput,
    WindowRow,
};

/// What a case computes on a device.
type Run = Box<dyn Fn(&dyn Backend) -> Result<Vec<f32>>>;
/// An op without weights.
type Plain = fn(&dyn Backend) -> Result<Vec<f32>>;

/// One case: what it computes on a device, and how far from the reference that may be.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) run: Run,
    /// Largest error relative to the answer's norm, with float32 activations and in fast mode.
    pub(super) exact: f64,
    pub(super) fast: f64,
}

const ROUNDING: f64 = 1e-5;
/// Activations as signed bytes in groups of 32.
const EIGHT_BITS: f64 = 2e-2;

/// A format of each kind: plain, affine, blocks with and without a table, blocks of blocks.
const SOME_FORMATS: [Format; 5] = [
    Format::BF16,
    Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 },
    Format::Q8_0,
    Format::Q4K,
    Format::MXFP4,
];

pub(super) fn cases(extent: Extent) -> Vec<Case> {
    of_formats(&if extent == Extent::Full { Format::all() } else { SOME_FORMATS.to_vec() })
}

/// Every op, those with weights in each of `formats`.
pub(super) fn of_formats(formats: &[Format]) -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: String, bound: f64, run: Run| {
        all.push(Case { name, run, exact: ROUNDING, fast: bound });
    };
    for &format in formats {
        add(named("embed", format, 5), ROUNDING, Box::new(move |b| embed(b, format)));
        for rows in [1, 3, 70] {
            let run = Box::new(move |b: &dyn Backend| linear(b, format, rows));
            add(named("linear", format, rows), EIGHT_BITS, run);
        }
        add(named("mlp", format, 2), EIGHT_BITS, Box::new(move |b| mlp(b, format)));
        for rows in [1, 2, 40] {
            let run = Box::new(move |b: &dyn Backend| experts(b, format, rows));
            add(named("expert_mlp", format, rows), EIGHT_BITS, run);
        }
        add(named("route", format, 6), ROUNDING, Box::new(move |b| route(b, format)));
        add(named("linears", format, 2), EIGHT_BITS, Box::new(move |b| linears(b, format)));
        for rows in [1, 2, 40] {
            let run = Box::new(move |b: &dyn Backend| routed_layer(b, format, rows));
            add(named("routed_layer", format, rows), EIGHT_BITS, run);
        }
    }
    add("linears_conv".into(), EIGHT_BITS, Box::new(linears_conv));
    let plain: [(&str, Plain); 11] = [
        ("rms_norm", rms_norm),
        ("add", add_rows),
        ("add_norm", add_norm),
        ("gather_rows", gather_rows),
        ("best", best),
        ("gated_norm", gated_norm),
        ("norm_rope", norm_rope),
        ("short_conv", short_conv),
        ("delta_rule", delta_rule),
        ("combine", combine),
        ("add_window", add_window),
    ];
    for (name, run) in plain {
        add(name.into(), ROUNDING, Box::new(run));
    }
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
        for rows in [1, 45] {
            let run = Box::new(move |b: &dyn Backend| attention(b, format, rows));
            // A CPU rounds what goes with halves to bf16: 2^-9 for each of four factors.
            let bound = if format == KvFormat::F16 { 8e-3 } else { 1e-3 };
            add(format!("attention {format:?} {rows}"), bound, run);
        }
    }
    all
}

fn embed(b: &dyn Backend, format: Format) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 1);
    let (table, mut out) = (r.weight(format, 40, 256, 40)?, r.zeros(5, 256)?);
    b.embed(&table, &[3, 0, 39, 3, 17], &mut out)?;
    r.read(&out)
}

fn linear(b: &dyn Backend, format: Format, rows: usize) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 2);
    let (x, w, bias) = (r.tensor(rows, 768, 1.0)?, r.weight(format, 67, 768, 67)?, r.tensor(1, 67, 1.0)?);
    let mut out = r.zeros(rows, 67)?;
    b.linear(&x, &w, Some(&bias), &mut out)?;
    r.read(&out)
}

fn mlp(b: &dyn Backend, format: Format) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 3);
    let (x, weights, mut out) = (r.tensor(2, 256, 1.0)?, r.mlp(format, 256, 512, 512)?, r.zeros(2, 256)?);
    b.mlp(&x, &weights, &mut out)?;
    r.read(&out)
}

/// Three experts; row `i` goes to experts `i` and `i + 1`.
fn experts(b: &dyn Backend, format: Format, rows: usize) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 4);
    let x = r.tensor(rows, 256, 1.0)?;
    let weights = (0..3).map(|_| r.mlp(format, 256, 256, 64)).collect::<Result<Vec<_>>>()?;
    let mut routed = vec![Vec::new(); 3];
    for part in 0..2 * rows {
        let row = part / 2;
        routed[(row + part % 2) % 3].push(RoutedRow { row: row as u32, part: part as u32 });
    }
    let batches: Vec<_> =
        weights.iter().zip(&routed).map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
    let mut parts = r.zeros(2 * rows, 256)?;
    b.expert_mlp(&x, &batches, &mut parts)?;
    r.read(&parts)
}

/// Two products of the same x.
fn linears(b: &dyn Backend, format: Format) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 16);
    let (x, first) = (r.tensor(2, 256, 1.0)?, r.weight(format, 40, 256, 40)?);
    let (second, mut out, mut other) = (r.weight(format, 70, 256, 70)?, r.zeros(2, 40)?, r.zeros(2, 70)?);
    let product = Product { weight: &first, bias: None, out: &mut out };
    b.linears(&x, &mut [product, Product { weight: &second, bias: None, out: &mut other }])?;
    Ok([r.read(&out)?, r.read(&other)?].concat())
}

/// A router (in F32, which no device rounds), its experts and a shared one; on a device that looks experts up, first the experts
/// alone.
fn routed_layer(b: &dyn Backend, format: Format, rows: usize) -> Result<Vec<f32>> {
    let (mut r, experts, hidden) = (Inputs::new(b, 17), 6, 256);
    let (x, router) = (r.tensor(rows, hidden, 1.0)?, r.weight(Format::F32, experts, hidden, experts)?);
    let weights = (0..experts).map(|_| r.mlp(format, hidden, 256, 64)).collect::<Result<Vec<_>>>()?;
    let (shared, gate) = (r.mlp(format, hidden, 256, 64)?, r.weight(Format::F32, 1, hidden, 1)?);
    let spec = RouteSpec { top_k: 2, normalise: true };
    let mut routes = RouteBuffers { ids: b.alloc(rows * 2 * 4)?, weights: r.zeros(rows, 2)? };
    let (mut parts, mut output, mut gates) =
        (r.zeros(2 * rows, hidden)?, r.zeros(rows, hidden)?, r.zeros(rows, 1)?);
    b.route(&x, &router, &spec, &mut routes)?;
    let Some(table) = b.expert_table(&weights.iter().collect::<Vec<_>>())? else {
        // The same, step by step.
        let chosen = b.read_routes(&routes, rows, &spec)?;
        let mut batches = vec![Vec::new(); experts];
        for (part, &id) in chosen.ids.iter().enumerate() {
            batches[id as usize].push(RoutedRow { row: (part / 2) as u32, part: part as u32 });
        }
        let batches: Vec<_> =
            weights.iter().zip(&batches).map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
        b.expert_mlp(&x, &batches, &mut parts)?;
        b.mlp(&x, &shared, &mut output)?;
        b.linear(&x, &gate, None, &mut gates)?;
        let parts = r.read(&parts)?;
        return Ok([parts.clone(), parts, r.read(&output)?, r.read(&gates)?, chosen.weights].concat());
    };
    b.routed_mlp(&x, &table, &routes, &spec, &mut parts)?;
    let first = r.read(&parts)?;
    let layer = RoutedLayer { router: &router, spec: &spec, table: &table, shared: Some((&shared, &gate)) };
    let to = RoutedOutput { routes: &mut routes, parts: &mut parts, shared: Some((&mut output, &mut gates)) };
    b.routed_layer(&x, &layer, to)?;
    let chosen = b.read_routes(&routes, rows, &spec)?;
    Ok([first, r.read(&parts)?, r.read(&output)?, r.read(&gates)?, chosen.weights].concat())
}

/// The weights alone: experts with equal logits may change places.
fn route(b: &dyn Backend, format: Format) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 5);
    let (x, router) = (r.tensor(6, 256, 1.0)?, r.weight(format, 64, 256, 64)?);
    let spec = RouteSpec { top_k: 4, normalise: true };
    let mut routes = RouteBuffers { ids: b.alloc(6 * 4 * 4)?, weights: r.zeros(6, 4)? };
    b.route(&x, &router, &spec, &mut routes)?;
    Ok(b.read_routes(&routes, 6, &spec)?.weights)
}

fn rms_norm(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 6);
    let (x, w, mut out) = (r.tensor(7, 2050, 3.0)?, r.tensor(1, 2050, 1.0)?, r.zeros(7, 2050)?);
    b.rms_norm(&x, &w, 1e-6, &mut out)?;
    r.read(&out)
}

fn add_rows(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 7);
    let (mut x, y) = (r.tensor(7, 333, 1.0)?, r.tensor(7, 333, 1.0)?);
    b.add(&mut x, &y)?;
    r.read(&x)
}

fn add_norm(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 15);
    let (mut x, y) = (r.tensor(7, 333, 1.0)?, r.tensor(7, 333, 1.0)?);
    let (weight, mut out) = (r.tensor(1, 333, 1.0)?, r.zeros(7, 333)?);
    b.add_norm(&y, Residual { x: &mut x, weight: &weight, eps: 1e-6, out: &mut out })?;
    Ok([r.read(&x)?, r.read(&out)?].concat())
}

fn gather_rows(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 8);
    let (x, mut out) = (r.tensor(9, 100, 1.0)?, r.zeros(4, 100)?);
    b.gather_rows(&x, &[8, 0, 3, 3], &mut out)?;
    r.read(&out)
}

fn best(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 10);
    let (x, mut out) = (r.tensor(9, 1000, 1.0)?, r.zeros(9, 1)?);
    b.best(&x, &mut out)?;
    r.read(&out)
}

fn gated_norm(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 9);
    let (mut x, z, w) = (r.tensor(5, 4 * 128, 2.0)?, r.tensor(5, 4 * 128, 2.0)?, r.tensor(1, 128, 1.0)?);
    b.gated_norm(&mut x, &z, &w, 1e-5)?;
    r.read(&x)
}

/// Rows of a sequence that begin at `position`.
fn segment(rows: Range<usize>, position: usize, pages: &[u32], slot: u32) -> Segment {
    Segment { rows, position, pages: pages.to_vec(), slot }
}

fn norm_rope(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 10);
    let spec = RopeSpec {
        heads: 4,
        head_dim: 64,
        head_stride: 64,
        rotary_dim: 32,
        interleaved: false,
        amplitude: 1.0,
    };
    let frequencies: Vec<f32> = (0..16).map(|i| 1e4f32.powf(-(i as f32) / 16.0)).collect();
    let mut rates = r.zeros(1, 16)?;
    b.write(rates.block_mut(), 0, bytemuck::cast_slice(&frequencies))?;
    let (mut x, w) = (r.tensor(6, 256, 1.0)?, r.tensor(1, 64, 1.0)?);
    let segments = [segment(1..4, 3, &[], 0), segment(5..6, 1000, &[], 1)];
    b.norm_rope(&mut x, &segments, &spec, &rates, Some((&w, 1e-6)))?;
    r.read(&x)
}

fn short_conv(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 11);
    let (x, w, mut state) = (r.tensor(10, 130, 1.0)?, r.tensor(130, 4, 0.5)?, r.tensor(3, 3 * 130, 1.0)?);
    let mut out = r.zeros(10, 130)?;
    let segments = [segment(0..1, 5, &[], 2), segment(1..10, 5, &[], 0)];
    b.short_conv(&x, &w, &segments, &mut state, &mut out)?;
    Ok([r.read(&out)?, r.read(&state)?].concat())
}

fn linears_conv(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 14);
    let weight = r.weight(Format::Q4_0, 130, 256, 130)?;
    let (conv, mut state) = (r.tensor(130, 4, 0.5)?, r.tensor(3, 3 * 130, 1.0)?);
    let mut answers = Vec::new();
    // A sequence alone, and two of them.
    for segments in [vec![segment(0..1, 5, &[], 1)], vec![segment(0..1, 7, &[], 2), segment(1..2, 6, &[], 1)]]
    {
        let rows = segments.len();
        let (x, mut product, mut out) = (r.tensor(rows, 256, 1.0)?, r.zeros(rows, 130)?, r.zeros(rows, 130)?);
        let to = Convolution { weight: &conv, segments: &segments, state: &mut state, out: &mut out };
        b.linears_conv(&x, &mut [Product { weight: &weight, bias: None, out: &mut product }], to)?;
        answers.extend(r.read(&out)?);
    }
    answers.extend(r.read(&state)?);
    Ok(answers)
}

fn delta_rule(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 12);
    let spec = DeltaSpec { key_heads: 2, value_heads: 4, key_head_dim: 64, value_head_dim: 48, tiled: false };
    let rows = 7;
    let qkv = r.tensor(rows, spec.channels(), 1.0)?;
    let (gate_a, gate_b) = (r.tensor(rows, 4, 1.0)?, r.tensor(rows, 4, 1.0)?);
    let mut decays = r.values(4, 1.0);
    decays.iter_mut().for_each(|v| *v = -v.abs());
    let mut decay = r.zeros(1, 4)?;
    b.write(decay.block_mut(), 0, bytemuck::cast_slice(&decays))?;
    let dt_bias = r.tensor(1, 4, 1.0)?;
    let (mut state, mut out) = (r.tensor(3, 4 * 64 * 48, 0.3)?, r.zeros(rows, 4 * 48)?);
    let segments = &[segment(0..1, 9, &[], 2), segment(1..rows, 0, &[], 0)];
    let (qkv, a, b_, decay, dt_bias) = (&qkv, &gate_a, &gate_b, &decay, &dt_bias);
    let input = DeltaInput { segments, qkv, a, b: b_, decay, dt_bias };
    b.delta_rule(&input, &spec, &mut state, &mut out)?;
    let plain = r.read(&out)?;
    let (z, weight) = (r.tensor(rows, 4 * 48, 1.0)?, r.tensor(1, 48, 1.0)?);
    b.gated_delta_rule(&input, &spec, &mut state, Gate { z: &z, weight: &weight, eps: 1e-6 }, &mut out)?;
    Ok([plain, r.read(&out)?, r.read(&state)?].concat())
}

/// A sequence of 70 positions, the last `rows` of them asked about, and one row of a sequence that goes on to a second page.
fn attention(b: &dyn Backend, format: KvFormat, rows: usize) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 13);
    let (totals, kv_heads, head_dim, heads) = ([70, PAGE + 8], 2, 64, 8);
    let pages = 4;
    let bytes = pages * KvCache::page_bytes(kv_heads, head_dim, format) / 2;
    let (keys, values) = (b.alloc(bytes)?, b.alloc(bytes)?);
    let mut cache = KvCache { keys, values, kv_heads, head_dim, pages, format };
    let all = totals[0] + totals[1];
    let (k, v) = (r.tensor(all, kv_heads * head_dim, 1.0)?, r.tensor(all, kv_heads * head_dim, 1.0)?);
    let (first, second) = (&[2][..], &[3, 0][..]);
    let history = [segment(0..totals[0], 0, first, 0), segment(totals[0]..all, 0, second, 0)];
    b.kv_append(&k, &v, &history, &mut cache)?;
    let spec = AttentionSpec { heads, head_dim, gated: true, scale: 0.125 };
    let (q, mut out) = (r.tensor(rows + 1, 2 * heads * head_dim, 1.0)?, r.zeros(rows + 1, heads * head_dim)?);
    let asked =
        [segment(0..rows, totals[0] - rows, first, 0), segment(rows..rows + 1, totals[1] - 1, second, 0)];
    b.attention(&q, &asked, &cache, &spec, &mut out)?;
    r.read(&out)
}

fn combine(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 14);
    let (rows, top_k, cols) = (5, 4, 300);
    let parts = r.tensor(rows * top_k, cols, 1.0)?;
    let routes = RouteBuffers { ids: b.alloc(rows * top_k * 4)?, weights: r.tensor(rows, top_k, 0.5)? };
    let (output, gate, mut out) = (r.tensor(rows, cols, 1.0)?, r.tensor(rows, 1, 1.0)?, r.zeros(rows, cols)?);
    let shared = SharedOutput { output: &output, gate: &gate };
    let spec = RouteSpec { top_k, normalise: true };
    b.combine(&parts, &routes, &spec, Some(shared), &mut out)?;
    let plain = r.read(&out)?;
    let (mut x, weight) = (r.tensor(rows, cols, 1.0)?, r.tensor(1, cols, 1.0)?);
    let to = Residual { x: &mut x, weight: &weight, eps: 1e-6, out: &mut out };
    b.combine_norm(&parts, &routes, &spec, Some(shared), to)?;
    Ok([plain, r.read(&x)?, r.read(&out)?].concat())
}

/// The same experts in two windows.
fn add_window(b: &dyn Backend) -> Result<Vec<f32>> {
    let mut r = Inputs::new(b, 15);
    let (rows, cols) = (5, 300);
    let (output, gate) = (r.tensor(rows, cols, 1.0)?, r.tensor(rows, 1, 1.0)?);
    let mut sum = r.zeros(rows, cols)?;
    b.begin_sum(Some(SharedOutput { output: &output, gate: &gate }), &mut sum)?;
    let row = |row, first, count| WindowRow { row, first, count };
    for rows in [&[row(3, 0, 2), row(0, 2, 4)][..], &[row(1, 1, 1), row(3, 3, 3), row(4, 0, 1)]] {
        let parts = r.tensor(6, cols, 1.0)?;
        b.add_window(&parts, &[0.5, 0.25, -1.0, 0.125, 0.3, 0.7], rows, &mut sum)?;
    }
    r.read(&sum)
}
