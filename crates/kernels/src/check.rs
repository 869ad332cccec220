//! Shape checks that every backend makes before it trusts its arguments.

use std::ops::Range;

use files::{Error, Result};

use crate::buffer::{Block, Tensor, Weight};
use crate::ops::{
    AttentionSpec, Convolution, DeltaInput, DeltaSpec, ExpertBatch, ExpertTable, Gate, KvCache, PAGE,
    Product, RopeSpec, RouteBuffers, RouteSpec, RoutedLayer, RoutedOutput, Segment, SharedOutput, WindowRow,
    rows_of,
};

fn fail<T>(op: &str, what: String) -> Result<T> {
    Err(Error::invalid(format!("{op}: {what}")))
}

fn want(op: &str, name: &str, t: &Tensor, rows: usize, cols: usize) -> Result<()> {
    if (t.rows(), t.cols()) == (rows, cols) {
        return Ok(());
    }
    fail(op, format!("{name} is [{}, {}], expected [{rows}, {cols}]", t.rows(), t.cols()))
}

fn want_vector(op: &str, name: &str, t: &Tensor, len: usize) -> Result<()> {
    if t.len() == len { Ok(()) } else { fail(op, format!("{name} has {} values, expected {len}", t.len())) }
}

/// Segments in the order of their rows, each row in one of them.
fn want_segments(op: &str, segments: &[Segment], rows: usize) -> Result<()> {
    let mut end = 0;
    for segment in segments {
        if segment.rows.start > segment.rows.end || segment.rows.end > rows {
            return fail(op, format!("segment {:?} leaves {rows} rows", segment.rows));
        }
        if segment.rows.start < end {
            return fail(op, format!("segment {:?} comes after row {end}", segment.rows));
        }
        end = segment.rows.end;
    }
    Ok(())
}

/// Pages for all positions of all segments.
fn want_pages(op: &str, segments: &[Segment], cache: &KvCache) -> Result<()> {
    cache.format.check(cache.head_dim)?;
    let bytes = cache.pages * KvCache::page_bytes(cache.kv_heads, cache.head_dim, cache.format) / 2;
    let least = cache.keys.bytes().min(cache.values.bytes());
    if least < bytes {
        return fail(op, format!("{least} bytes do not hold a cache of {bytes}"));
    }
    for segment in segments {
        let Some(pages) = segment.pages.get(..segment.end().div_ceil(PAGE)) else {
            return fail(op, format!("position {} is past {} pages", segment.end(), segment.pages.len()));
        };
        if let Some(page) = pages.iter().find(|&&page| page as usize >= cache.pages) {
            return fail(op, format!("page {page} of {}", cache.pages));
        }
    }
    Ok(())
}

/// Numbers of which none may be there twice: rows of several threads would be written over each other.
fn want_distinct(op: &str, what: &str, mut numbers: Vec<u32>) -> Result<()> {
    numbers.sort_unstable();
    match numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => fail(op, format!("{what} {} is written by two sequences", pair[0])),
        None => Ok(()),
    }
}

/// A state for each segment that has rows.
fn want_slots(op: &str, segments: &[Segment], slots: usize) -> Result<()> {
    let used: Vec<u32> = segments.iter().filter(|s| !s.rows.is_empty()).map(|s| s.slot).collect();
    if let Some(slot) = used.iter().find(|&&slot| slot as usize >= slots) {
        return fail(op, format!("state {slot} of {slots}"));
    }
    want_distinct(op, "state", used)
}

/// Checks [`crate::Backend::embed`].
pub fn embed(table: &Weight, ids: &[u32], out: &Tensor) -> Result<()> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= table.rows()) {
        return fail("embed", format!("token {id} is outside a vocabulary of {}", table.rows()));
    }
    want("embed", "out", out, ids.len(), table.cols())
}

/// Checks [`crate::Backend::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
    if weight.is_empty() {
        return fail("rms_norm", "the rows are empty".into());
    }
    want_vector("rms_norm", "weight", weight, x.cols())?;
    want("rms_norm", "out", out, x.rows(), x.cols())
}

/// Checks [`crate::Backend::linear`].
pub fn linear(x: &Tensor, w: &Weight, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    want("linear", "x", x, x.rows(), w.cols())?;
    if let Some(bias) = bias {
        want_vector("linear", "bias", bias, w.rows())?;
    }
    want("linear", "out", out, x.rows(), w.rows())
}

/// Checks [`crate::Backend::add`].
pub fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    want("add", "y", y, x.rows(), x.cols())
}

/// Checks [`crate::Backend::gather_rows`].
pub fn gather_rows(x: &Tensor, rows: &[u32], out: &Tensor) -> Result<()> {
    if let Some(row) = rows.iter().find(|&&row| row as usize >= x.rows()) {
        return fail("gather_rows", format!("row {row} of {}", x.rows()));
    }
    want("gather_rows", "out", out, rows.len(), x.cols())
}

/// Checks [`crate::Backend::best`].
pub fn best(x: &Tensor, out: &Tensor) -> Result<()> {
    // All of them are floats.
    if x.cols() == 0 || x.cols() >= 1 << 24 {
        return fail("best", format!("the greatest of {}", x.cols()));
    }
    want("best", "out", out, x.rows(), 1)
}

/// Checks [`crate::Backend::norm_rope`].
pub fn norm_rope(
    x: &Tensor,
    segments: &[Segment],
    spec: &RopeSpec,
    frequencies: &Tensor,
    norm: Option<(&Tensor, f32)>,
) -> Result<()> {
    want_segments("norm_rope", segments, x.rows())?;
    want("norm_rope", "x", x, x.rows(), spec.heads * spec.head_stride)?;
    if spec.head_dim == 0
        || spec.head_dim > spec.head_stride
        || spec.rotary_dim > spec.head_dim
        || !spec.rotary_dim.is_multiple_of(2)
    {
        return fail("norm_rope", format!("{spec:?} does not describe a head"));
    }
    want_vector("norm_rope", "frequencies", frequencies, spec.rotary_dim / 2)?;
    if let Some((weight, _)) = norm {
        want_vector("norm_rope", "norm", weight, spec.head_dim)?;
    }
    Ok(())
}

/// Checks [`crate::Backend::kv_append`].
pub fn kv_append(k: &Tensor, v: &Tensor, segments: &[Segment], cache: &KvCache) -> Result<()> {
    let op = "kv_append";
    want_segments(op, segments, k.rows())?;
    want(op, "k", k, k.rows(), cache.kv_heads * cache.head_dim)?;
    want(op, "v", v, k.rows(), cache.kv_heads * cache.head_dim)?;
    want_pages(op, segments, cache)?;
    let written = segments.iter().filter(|s| !s.rows.is_empty());
    let written = written.flat_map(|s| &s.pages[s.position / PAGE..s.end().div_ceil(PAGE)]);
    want_distinct(op, "page", written.copied().collect())
}

/// Checks [`crate::Backend::attention`].
pub fn attention(
    q: &Tensor,
    segments: &[Segment],
    cache: &KvCache,
    spec: &AttentionSpec,
    out: &Tensor,
) -> Result<()> {
    want_segments("attention", segments, q.rows())?;
    if cache.kv_heads == 0
        || spec.head_dim == 0
        || spec.head_dim != cache.head_dim
        || !spec.heads.is_multiple_of(cache.kv_heads)
    {
        return fail("attention", format!("{spec:?} does not fit {} heads of the cache", cache.kv_heads));
    }
    want_pages("attention", segments, cache)?;
    let stride = spec.head_dim * (1 + usize::from(spec.gated));
    want("attention", "q", q, q.rows(), spec.heads * stride)?;
    want("attention", "out", out, q.rows(), spec.heads * spec.head_dim)
}

/// Checks [`crate::Backend::short_conv`].
pub fn short_conv(
    x: &Tensor,
    weight: &Tensor,
    segments: &[Segment],
    state: &Tensor,
    out: &Tensor,
) -> Result<()> {
    want_segments("short_conv", segments, x.rows())?;
    let kernel = weight.cols();
    if kernel == 0 {
        return fail("short_conv", "the kernel is empty".into());
    }
    want("short_conv", "weight", weight, x.cols(), kernel)?;
    want("short_conv", "state", state, state.rows(), (kernel - 1) * x.cols())?;
    want_slots("short_conv", segments, state.rows())?;
    want("short_conv", "out", out, x.rows(), x.cols())
}

/// Checks [`crate::Backend::linears_conv`].
pub fn linears_conv(x: &Tensor, products: &[Product<'_>], conv: &Convolution<'_>) -> Result<()> {
    for product in products {
        linear(x, product.weight, product.bias, product.out)?;
    }
    let Some(first) = products.first() else { return fail("linears_conv", "there is no product".into()) };
    short_conv(first.out, conv.weight, conv.segments, conv.state, conv.out)
}

/// Checks [`crate::Backend::delta_rule`].
pub fn delta_rule(input: &DeltaInput<'_>, spec: &DeltaSpec, state: &Tensor, out: &Tensor) -> Result<()> {
    let op = "delta_rule";
    let rows = input.qkv.rows();
    want_segments(op, input.segments, rows)?;
    if spec.key_heads == 0 || !spec.value_heads.is_multiple_of(spec.key_heads) {
        return fail(op, format!("{spec:?}: value heads must be a multiple of key heads"));
    }
    if spec.key_head_dim == 0 {
        return fail(op, format!("{spec:?}: heads without values"));
    }
    want(op, "qkv", input.qkv, rows, spec.channels())?;
    want(op, "a", input.a, rows, spec.value_heads)?;
    want(op, "b", input.b, rows, spec.value_heads)?;
    want_vector(op, "decay", input.decay, spec.value_heads)?;
    want_vector(op, "dt_bias", input.dt_bias, spec.value_heads)?;
    want(op, "state", state, state.rows(), spec.value_heads * spec.key_head_dim * spec.value_head_dim)?;
    want_slots(op, input.segments, state.rows())?;
    want(op, "out", out, rows, spec.value_heads * spec.value_head_dim)
}

/// Checks [`crate::Backend::gated_delta_rule`].
pub fn gated_delta_rule(
    input: &DeltaInput<'_>,
    spec: &DeltaSpec,
    state: &Tensor,
    gate: Gate<'_>,
    out: &Tensor,
) -> Result<()> {
    let op = "gated_delta_rule";
    delta_rule(input, spec, state, out)?;
    if rows_of(input.segments) != out.rows() {
        return fail(op, format!("{} rows of {} are in a segment", rows_of(input.segments), out.rows()));
    }
    if gate.weight.len() != spec.value_head_dim {
        return fail(op, format!("a norm of {} values for {spec:?}", gate.weight.len()));
    }
    gated_norm(out, gate.z, gate.weight)
}

/// Checks [`crate::Backend::gated_norm`].
pub fn gated_norm(x: &Tensor, z: &Tensor, weight: &Tensor) -> Result<()> {
    if weight.is_empty() || !x.cols().is_multiple_of(weight.len()) {
        return fail("gated_norm", format!("{} columns are not heads of {}", x.cols(), weight.len()));
    }
    want("gated_norm", "z", z, x.rows(), x.cols())
}

/// Checks [`crate::Backend::mlp`].
pub fn mlp(x: &Tensor, weights: &crate::ops::MlpWeights, out: &Tensor) -> Result<()> {
    want("mlp", "x", x, x.rows(), weights.gate.cols())?;
    want("mlp", "out", out, x.rows(), weights.gate.cols())
}

/// Checks [`crate::Backend::route`].
pub fn route(x: &Tensor, router: &Weight, spec: &RouteSpec, out: &RouteBuffers) -> Result<()> {
    want("route", "x", x, x.rows(), router.cols())?;
    if spec.top_k == 0 || spec.top_k > router.rows() {
        return fail("route", format!("top_k {} of {} experts", spec.top_k, router.rows()));
    }
    want("route", "weights", &out.weights, x.rows(), spec.top_k)?;
    if out.ids.bytes() < x.rows() * spec.top_k * 4 {
        return fail("route", format!("{} bytes do not hold the ids", out.ids.bytes()));
    }
    Ok(())
}

/// Checks [`crate::Backend::expert_mlp`].
pub fn expert_mlp(x: &Tensor, experts: &[ExpertBatch<'_>], parts: &Tensor) -> Result<()> {
    let op = "expert_mlp";
    let Some(first) = experts.first() else { return Ok(()) };
    let shape = (first.weights.gate.rows(), first.weights.gate.cols());
    // Parts are written by several threads at once: one part twice would be a race.
    let mut taken = vec![false; parts.rows()];
    for expert in experts {
        if (expert.weights.gate.rows(), expert.weights.gate.cols()) != shape {
            return fail(op, "experts of different shapes in one call".into());
        }
        if let Some(r) =
            expert.rows.iter().find(|r| r.row as usize >= x.rows() || r.part as usize >= parts.rows())
        {
            return fail(op, format!("{r:?} leaves {} rows or {} parts", x.rows(), parts.rows()));
        }
        if let Some(r) = expert.rows.iter().find(|r| std::mem::replace(&mut taken[r.part as usize], true)) {
            return fail(op, format!("part {} is written twice", r.part));
        }
    }
    want(op, "x", x, x.rows(), shape.1)?;
    want(op, "parts", parts, parts.rows(), shape.1)
}

/// Checks [`crate::Backend::copy`].
pub fn copy(from: &Block, from_range: &Range<usize>, to: &Block, to_at: usize) -> Result<()> {
    words("copy", from_range, from.bytes())?;
    words("copy", &(to_at..to_at.saturating_add(from_range.len())), to.bytes())
}

/// Checks [`crate::Backend::copy_within`].
pub fn copy_within(block: &Block, range: &Range<usize>, to_at: usize) -> Result<()> {
    let to = to_at..to_at.saturating_add(range.len());
    words("copy_within", range, block.bytes())?;
    words("copy_within", &to, block.bytes())?;
    if range.start < to.end && to.start < range.end {
        return fail("copy_within", format!("{range:?} overlaps {to:?}"));
    }
    Ok(())
}

/// Whole words within so many bytes: what devices copy and clear.
pub fn words(op: &str, range: &Range<usize>, bytes: usize) -> Result<()> {
    if range.start > range.end || range.end > bytes {
        return fail(op, format!("{range:?} leaves {bytes} bytes"));
    }
    if !range.start.is_multiple_of(4) || !range.end.is_multiple_of(4) {
        return fail(op, format!("{range:?} is not whole words of 4 bytes"));
    }
    Ok(())
}

/// Checks [`crate::Backend::routed_mlp`].
pub fn routed_mlp(
    x: &Tensor,
    table: &ExpertTable,
    routes: &RouteBuffers,
    spec: &RouteSpec,
    parts: &Tensor,
) -> Result<()> {
    let op = "routed_mlp";
    // A table has at least one expert.
    let hidden = table.experts()[0].gate.cols();
    want(op, "x", x, x.rows(), hidden)?;
    want(op, "parts", parts, x.rows() * spec.top_k, hidden)?;
    if routes.ids.bytes() < x.rows() * spec.top_k * 4 {
        return fail(op, format!("{} bytes do not hold the ids", routes.ids.bytes()));
    }
    Ok(())
}

/// Checks [`crate::Backend::routed_layer`], apart from what [`route`] and [`routed_mlp`] check.
fn shared_expert(x: &Tensor, layer: &RoutedLayer<'_>, to: &RoutedOutput<'_>) -> Result<()> {
    let op = "routed_layer";
    match (layer.shared, &to.shared) {
        (Some((weights, gate_weight)), Some((output, gate))) => {
            mlp(x, weights, output)?;
            linear(x, gate_weight, None, gate)
        }
        (None, None) => Ok(()),
        _ => fail(op, "a shared expert needs an output, and an output needs one".into()),
    }
}

/// Checks [`crate::Backend::routed_layer`].
pub fn routed_layer(x: &Tensor, layer: &RoutedLayer<'_>, to: &RoutedOutput<'_>) -> Result<()> {
    route(x, layer.router, layer.spec, to.routes)?;
    routed_mlp(x, layer.table, to.routes, layer.spec, to.parts)?;
    if layer.router.rows() != layer.table.experts().len() {
        let (rows, experts) = (layer.router.rows(), layer.table.experts().len());
        return fail("routed_layer", format!("a router of {rows} rows for {experts} experts"));
    }
    shared_expert(x, layer, to)
}

/// Checks [`crate::Backend::combine`].
pub fn combine(
    parts: &Tensor,
    routes: &RouteBuffers,
    spec: &RouteSpec,
    shared: Option<SharedOutput<'_>>,
    out: &Tensor,
) -> Result<()> {
    let op = "combine";
    want(op, "weights", &routes.weights, out.rows(), spec.top_k)?;
    want(op, "parts", parts, out.rows() * spec.top_k, out.cols())?;
    want_shared(op, shared, out)
}

fn want_shared(op: &str, shared: Option<SharedOutput<'_>>, out: &Tensor) -> Result<()> {
    if let Some(shared) = shared {
        want(op, "shared output", shared.output, out.rows(), out.cols())?;
        want(op, "shared gate", shared.gate, out.rows(), 1)?;
    }
    Ok(())
}

/// Checks [`crate::Backend::begin_sum`].
pub fn begin_sum(shared: Option<SharedOutput<'_>>, sum: &Tensor) -> Result<()> {
    want_shared("begin_sum", shared, sum)
}

/// Checks [`crate::Backend::add_window`].
pub fn add_window(parts: &Tensor, weights: &[f32], rows: &[WindowRow], sum: &Tensor) -> Result<()> {
    let op = "add_window";
    want(op, "parts", parts, parts.rows(), sum.cols())?;
    let outputs = parts.rows().min(weights.len());
    let mut seen = vec![false; sum.rows()];
    for &WindowRow { row, first, count } in rows {
        match seen.get_mut(row as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return fail(op, format!("row {row} comes twice")),
            None => return fail(op, format!("row {row} of {}", sum.rows())),
        }
        if first as usize + count as usize > outputs {
            return fail(op, format!("outputs {first} and {count} of {outputs}"));
        }
    }
    Ok(())
}
