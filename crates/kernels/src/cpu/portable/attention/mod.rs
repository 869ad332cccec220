//! Causal attention over a KV cache.
//!
//! A row's softmax is put together from chunks of absolute positions, each with a maximum, a sum and weighted values of
//! its own (Milakov & Gimelshein 2018; Dao et al. 2023), merged in the order of the positions. What a chunk yields
//! and how it is merged depends neither on the rows that are computed together nor on who computes it: a long context
//! of one row is shared by all threads, and the result is the same bits.

mod cache;
mod lanes;
mod tiles;

use std::ops::Range;

use files::Result;

pub(in crate::cpu) use cache::{Append, append};

use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{exp, exp_of_negative, sigmoid, sum_of, to_bf16};
use crate::cpu::pool::Pool;
use crate::cpu::scratch::Scratch;
use crate::cpu::shared::Parts;
use crate::cpu::wide::LANES;
use crate::ops::{AttentionSpec, KvCache, PAGE, Segment, rows_of};
use lanes::KEYS;
use tiles::{Job, Stored};

/// Positions of a chunk: those of a page, whose heads lie side by side.
const CHUNK: usize = PAGE;
/// Queries that share the reading and widening of keys and values, if the rows give that many.
const QUERIES: usize = 128;
/// The same if there are too few rows for [`ITEMS`].
const FEW_QUERIES: usize = 32;
/// Values that are widened at a time: as many bytes as a first-level cache, half of which is used at a time.
const WIDENED: usize = 8192;
/// With fewer items than this for each thread, chunks become items too.
const ITEMS: usize = 4;
/// Values of chunks' results that are held before they are merged.
const PARTIALS: usize = 1 << 19;

/// What [`attention`] works on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Attention<'a> {
    pub isa: Isa,
    pub q: &'a [f32],
    pub spec: &'a AttentionSpec,
    pub cache: &'a KvCache,
    pub out: Parts<'a, f32>,
    /// Whether queries, and keys and values in halves, are multiplied as bf16.
    pub rounds: bool,
    /// One buffer for each item at work.
    pub scratch: &'a Scratch<Vec<f32>>,
    /// One buffer for a whole op.
    pub partials: &'a Scratch<Vec<f32>>,
}

/// Rows of a sequence that are worked on together, and the KV head whose queries are.
#[derive(Clone)]
struct Tile<'a> {
    rows: Range<usize>,
    /// Of the first row.
    position: usize,
    kv_head: usize,
    pages: &'a [u32],
}

/// The rows of a segment in tiles.
struct Tiles<'a> {
    segment: &'a Segment,
    tile_rows: usize,
    /// The first of its items, one for each tile and KV head.
    first: usize,
}

impl<'a> Tiles<'a> {
    fn count(&self) -> usize {
        self.segment.rows.len().div_ceil(self.tile_rows)
    }

    /// Item number `item` of `heads` for each tile. Late rows see the most positions: they come first, so that no thread
    /// ends with one of them.
    fn tile(&self, item: usize, heads: usize) -> Tile<'a> {
        let Segment { rows, position, pages, .. } = self.segment;
        let from = (self.count() - 1 - item / heads) * self.tile_rows;
        let rows = rows.start + from..rows.end.min(rows.start + from + self.tile_rows);
        Tile { rows, position: position + from, kv_head: item % heads, pages }
    }
}

/// All rows of all segments; see [`crate::Backend::attention`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when the cache is not in host memory.
pub(in crate::cpu) fn attention(pool: &Pool, a: Attention<'_>, segments: &[Segment]) -> Result<()> {
    let heads = a.cache.kv_heads;
    let fair = rows_of(segments) * heads / (ITEMS * pool.threads());
    let tile_rows = fair.clamp(FEW_QUERIES / a.group(), QUERIES / a.group()).max(1);
    let mut items = 0;
    let mut all: Vec<Tiles<'_>> = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|segment| !segment.rows.is_empty()) {
        let tiles = Tiles { segment, tile_rows, first: items };
        items += tiles.count() * heads;
        all.push(tiles);
    }
    let tile = |item: usize| {
        let tiles = &all[all.partition_point(|tiles| tiles.first <= item) - 1];
        tiles.tile(item - tiles.first, heads)
    };
    let chunks = segments.iter().map(Segment::end).max().unwrap_or(0).div_ceil(CHUNK);
    if chunks > 1 && pool.threads() > 1 && items < ITEMS * pool.threads() {
        return by_chunks(pool, a, items, chunks, tile);
    }
    pool.run(items, |item| whole(a, &tile(item)))
}

/// A tile, chunk after chunk.
fn whole(a: Attention<'_>, tile: &Tile<'_>) -> Result<()> {
    let sizes = Sizes::new(a, tile);
    a.scratch.with(|buffer| {
        let (work, results) = at_least(buffer, sizes.work + 2 * sizes.result).split_at_mut(sizes.work);
        let (total, part) = results.split_at_mut(sizes.result);
        sizes.clear(total);
        let (queries, work) = work.split_at_mut(sizes.queries());
        scale(a, tile, &sizes, queries);
        for chunk in 0..tile.chunks() {
            one_chunk(a, tile, &sizes, chunk, queries, work, part)?;
            merge(a.isa, total, part, sizes.count);
        }
        finish_tile(a, tile, total);
        Ok(())
    })
}

/// Few tiles and a long context: chunks are computed by all threads, and merged in their order.
fn by_chunks<'a>(
    pool: &Pool,
    a: Attention<'_>,
    items: usize,
    chunks: usize,
    tile: impl Fn(usize) -> Tile<'a> + Sync,
) -> Result<()> {
    let most = (0..items).map(|item| Sizes::new(a, &tile(item)).result).max().unwrap_or(0);
    let round = (PARTIALS / (items * most)).clamp(1, chunks);
    a.partials.with(|buffer| {
        let buffer = at_least(buffer, items * (round + 1) * most);
        let (totals, parts) = buffer.split_at_mut(items * most);
        let (totals, parts) = (Parts::new(totals), Parts::new(parts));
        for first in (0..chunks).step_by(round) {
            let here = round.min(chunks - first);
            pool.run(items * here, |i| {
                let (tile, chunk) = (tile(i / here), first + i % here);
                let sizes = Sizes::new(a, &tile);
                if chunk >= tile.chunks() {
                    return Ok(());
                }
                // SAFETY: each chunk of each tile has a place of its own.
                let part = unsafe { parts.part((i / here * round + i % here) * most, sizes.result) };
                a.scratch.with(|work| {
                    let (queries, work) = at_least(work, sizes.work).split_at_mut(sizes.queries());
                    scale(a, &tile, &sizes, queries);
                    one_chunk(a, &tile, &sizes, chunk, queries, work, part)
                })
            })?;
            pool.run(items, |item| {
                let tile = tile(item);
                let sizes = Sizes::new(a, &tile);
                // SAFETY: each tile has places of its own, and the chunks have been computed.
                let total = unsafe { totals.part(item * most, sizes.result) };
                if first == 0 {
                    sizes.clear(total);
                }
                for chunk in first..tile.chunks().min(first + here) {
                    // SAFETY: as above.
                    let part = unsafe { parts.part((item * round + chunk - first) * most, sizes.result) };
                    merge(a.isa, total, part, sizes.count);
                }
                if (first..first + here).contains(&(tile.chunks() - 1)) {
                    finish_tile(a, &tile, total);
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

impl Attention<'_> {
    /// Who multiplies pairs.
    fn pairs(&self) -> Isa {
        if self.rounds { self.isa } else { self.isa.exact_pairs() }
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.spec.heads / self.cache.kv_heads
    }

    /// Values of a query, and of its gate.
    fn stride(&self) -> usize {
        self.spec.head_dim * (1 + usize::from(self.spec.gated))
    }

    /// The number of query `q` of a tile among all heads of all rows.
    fn head(&self, tile: &Tile<'_>, q: usize) -> usize {
        let group = self.group();
        (tile.rows.start + q / group) * self.spec.heads + tile.kv_head * group + q % group
    }
}

impl Tile<'_> {
    /// Chunks that its last row sees.
    fn chunks(&self) -> usize {
        (self.position + self.rows.len()).div_ceil(CHUNK)
    }
}

/// How a tile's buffers are laid out, in values.
struct Sizes {
    /// Queries.
    count: usize,
    /// See [`Job::blocks`].
    blocks: usize,
    /// A head, in whole vectors.
    padded: usize,
    widened_rows: usize,
    /// Queries, scores, widened heads.
    work: usize,
    /// Weighted values of all queries, then their maxima, then their sums.
    result: usize,
}

impl Sizes {
    fn new(a: Attention<'_>, tile: &Tile<'_>) -> Self {
        let count = tile.rows.len() * a.group();
        let padded = a.spec.head_dim.next_multiple_of(2 * LANES);
        let blocks = if count < LANES { 0 } else { count.div_ceil(LANES) };
        // Multiples of whole tiles.
        let widened_rows = (WIDENED / padded / KEYS * KEYS).clamp(KEYS, CHUNK);
        let work = count.max(blocks * LANES) * (padded + CHUNK) + widened_rows * (padded + LANES);
        Self { count, blocks, padded, widened_rows, work, result: count * (padded + 2) }
    }

    /// Values of all queries.
    fn queries(&self) -> usize {
        self.count.max(self.blocks * LANES) * self.padded
    }

    /// The result of no positions.
    fn clear(&self, result: &mut [f32]) {
        let (values, rest) = result.split_at_mut(self.count * self.padded);
        let (max, sum) = rest.split_at_mut(self.count);
        values.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
    }
}

/// `len` values of a buffer that grows to hold them, from the start of a cache line on: a vector that lies in two lines
/// takes two loads.
fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LANES {
        buffer.resize(len + LANES, 0.0);
    }
    let from = buffer.as_ptr().align_offset(LANES * size_of::<f32>()).min(LANES);
    &mut buffer[from..from + len]
}

/// Writes a tile's queries, times the factor on the scores, as [`Job::queries`] has them.
fn scale(a: Attention<'_>, tile: &Tile<'_>, sizes: &Sizes, queries: &mut [f32]) {
    let (dim, padded) = (a.spec.head_dim, sizes.padded);
    let query = |q: usize| &a.q[a.head(tile, q) * a.stride()..][..dim];
    for (block, to) in queries.chunks_exact_mut(padded * LANES).take(sizes.blocks).enumerate() {
        let first = block * LANES;
        let some = std::array::from_fn(|i| if first + i < sizes.count { query(first + i) } else { &[] });
        lanes::write_queries(some, a.spec.scale, padded, to);
        round(a, to);
        // SAFETY: a block has `padded` rows.
        unsafe { lanes::pair_rows(a.pairs(), to.as_mut_ptr(), padded) };
    }
    if sizes.blocks == 0 {
        for (q, to) in queries.chunks_exact_mut(padded).enumerate() {
            for (to, x) in to.iter_mut().zip(query(q)) {
                *to = a.spec.scale * x;
            }
            to[dim..].fill(0.0);
            round(a, to);
            // SAFETY: these are `padded` values.
            unsafe { tiles::pair_values(a.pairs(), to.as_mut_ptr(), padded) };
        }
    }
}

/// Rounds queries that are multiplied as bf16.
fn round(a: Attention<'_>, queries: &mut [f32]) {
    if a.rounds {
        to_bf16s(a.isa, queries);
    }
}

for_each_isa! {
    fn to_bf16s(values: &mut [f32]) {
        for x in values {
            *x = to_bf16(*x);
        }
    }
}

/// The result of one chunk of positions for the queries of a tile.
fn one_chunk(
    a: Attention<'_>,
    tile: &Tile<'_>,
    sizes: &Sizes,
    chunk: usize,
    queries: &[f32],
    work: &mut [f32],
    result: &mut [f32],
) -> Result<()> {
    let (dim, first) = (a.spec.head_dim, chunk * CHUNK);
    let positions = CHUNK.min(tile.position + tile.rows.len() - first);
    let bytes = a.cache.format.head_bytes(dim);
    let start = a.cache.head(tile.pages, tile.kv_head, first) * bytes;
    let span = start..start + positions * bytes;
    let (keys, values) = (&a.cache.keys.host::<u8>()?[span.clone()], &a.cache.values.host::<u8>()?[span]);
    let (scores, widened) = work.split_at_mut(sizes.count.max(sizes.blocks * LANES) * CHUNK);
    sizes.clear(result);
    let isa = a.pairs();
    let job = Job {
        queries: queries.as_ptr(),
        scores: scores.as_mut_ptr(),
        values: result.as_mut_ptr(),
        widened: widened.as_mut_ptr(),
        widened_rows: sizes.widened_rows,
        count: sizes.count,
        blocks: sizes.blocks,
        padded: sizes.padded,
        group: a.group(),
        first_sees: tile.position as isize + 1 - first as isize,
        positions,
    };
    let stored = |bytes| Stored { bytes, format: a.cache.format, dim };
    let (max, sum) = result[sizes.count * sizes.padded..].split_at_mut(sizes.count);
    if sizes.blocks > 0 {
        // SAFETY: the slices hold these positions; the buffers were cut to these shapes and are not used meanwhile.
        unsafe { lanes::scores(isa, stored(keys), job) };
        for (block, scores) in scores.as_chunks_mut().0.chunks_exact_mut(CHUNK).enumerate() {
            let first = block * LANES;
            let count = LANES.min(sizes.count - first);
            for i in 0..count {
                for scores in &mut scores[job.seen(first + i)..positions] {
                    scores[i] = f32::NEG_INFINITY;
                }
            }
            let [most, total] = lanes::weigh(a.isa, &mut scores[..positions], a.rounds);
            max[first..][..count].copy_from_slice(&most[..count]);
            sum[first..][..count].copy_from_slice(&total[..count]);
            let paired = positions.next_multiple_of(2);
            scores[positions..paired].fill([0.0; LANES]);
            // SAFETY: these are so many rows.
            unsafe { lanes::pair_rows(isa, scores.as_mut_ptr().cast(), paired) };
        }
    } else {
        // SAFETY: as above.
        unsafe { tiles::scores(isa, stored(keys), job) };
        for (q, scores) in scores.chunks_exact_mut(CHUNK).enumerate() {
            let seen = job.seen(q);
            // Whole vectors: what is not seen weighs nothing.
            let whole = seen.next_multiple_of(LANES);
            if seen > 0 {
                scores[seen..whole].fill(f32::NEG_INFINITY);
                [max[q], sum[q]] = weigh(a.isa, &mut scores[..whole], a.rounds);
            }
            let paired = positions.next_multiple_of(2).max(whole);
            scores[whole..paired].fill(0.0);
            // SAFETY: nothing is asked of the caller.
            unsafe { tiles::pair_weights(isa, &mut scores[..paired]) };
        }
    }
    // SAFETY: as above.
    unsafe { tiles::values(isa, stored(values), job) };
    Ok(())
}

for_each_isa! {
    /// Turns scores into weights, in bf16 if `rounds`; returns their maximum and their sum.
    fn weigh(scores: &mut [f32], rounds: bool) -> [f32; 2] {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for scores in scores.chunks_exact(LANES) {
            for i in 0..LANES {
                // A NaN must reach the output: it fails the comparison and is seen by `exp` below.
                lanes[i] = if scores[i] > lanes[i] { scores[i] } else { lanes[i] };
            }
        }
        let mut max = f32::NEG_INFINITY;
        for lane in lanes {
            max = if lane > max { lane } else { max };
        }
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        for s in scores.iter_mut() {
            *s = exp_of_negative(*s - shift);
            *s = if rounds { to_bf16(*s) } else { *s };
        }
        [shift, sum_of(scores)]
    }
}

for_each_isa! {
    /// Takes a chunk's result into the total of the chunks before it.
    fn merge(total: &mut [f32], part: &[f32], count: usize) {
        let values = total.len() - 2 * count;
        let padded = values / count;
        for q in 0..count {
            let (max, sum) = (part[values + q], part[values + count + q]);
            if sum == 0.0 {
                continue; // no position of the chunk is seen
            }
            let old = total[values + q];
            let new = if max > old { max } else { old };
            let (keep, add) = (exp(old - new), exp(max - new));
            total[values + q] = new;
            total[values + count + q] = total[values + count + q] * keep + sum * add;
            let part = &part[q * padded..][..padded];
            for (t, p) in total[q * padded..][..padded].iter_mut().zip(part) {
                *t = *t * keep + p * add;
            }
        }
    }
}

/// Writes the outputs of a tile.
fn finish_tile(a: Attention<'_>, tile: &Tile<'_>, total: &[f32]) {
    let (dim, count) = (a.spec.head_dim, tile.rows.len() * a.group());
    let values = total.len() - 2 * count;
    for (q, sums) in total[..values].chunks_exact(values / count).enumerate() {
        let head = a.head(tile, q);
        let gate = if a.spec.gated { &a.q[head * a.stride() + dim..][..dim] } else { &[] };
        // SAFETY: this head of this row belongs to this tile.
        let out = unsafe { a.out.part(head * dim, dim) };
        finish(a.isa, sums, total[values + count + q], gate, out);
    }
}

for_each_isa! {
    fn finish(values: &[f32], sum: f32, gate: &[f32], out: &mut [f32]) {
        for (o, v) in out.iter_mut().zip(values) {
            *o = v / sum;
        }
        for (o, g) in out.iter_mut().zip(gate) {
            *o *= sigmoid(*g);
        }
    }
}
