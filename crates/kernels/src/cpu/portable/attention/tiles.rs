//! The two products of attention over a chunk of positions, in tiles of queries and keys that stay in registers.
//!
//! A score is one sum over the head in sixteen lanes; an output is one sum over the positions. Both go by pairs, of values 16
//! apart and of neighbouring positions, the odd one first, so that a processor that multiplies pairs of bf16 makes the same
//! bits as one that multiplies floats. Neither depends on which queries and positions share a tile, nor on whether the heads
//! were widened before. Many queries' scores are computed by `lanes.rs`, to the same bits.

use half::f16;

use super::CHUNK;
use super::cache::{Bytes, Floats, Halves, Heads, sixteen};
use crate::cpu::wide::{LANES, Wide, for_each_width};
use crate::ops::KvFormat;

/// What a prefetch brings.
const LINE_BYTES: usize = 64;
/// Heads are widened to f32 before they are multiplied with more queries than these.
const DIRECT: usize = 4;

/// Heads of consecutive positions as the cache holds them.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    /// From the first of the positions on.
    pub bytes: &'a [u8],
    pub format: KvFormat,
    /// Values of a head.
    pub dim: usize,
}

/// Queries of a tile and what is known of them, over one chunk of positions.
#[derive(Clone, Copy)]
pub(super) struct Job {
    /// Pairs in `[count, padded]`, times the factor on the scores; in blocks `[blocks, padded, 16]`, as
    /// [`super::lanes::write_queries`] leaves them.
    pub queries: *const f32,
    /// `[count, CHUNK]`, in blocks `[blocks, CHUNK, 16]`: scores, and then weights, in pairs.
    pub scores: *mut f32,
    /// `[count, padded]`: sums of weighted values.
    pub values: *mut f32,
    /// `[widened_rows, stride]`; values in pairs of rows.
    pub widened: *mut f32,
    pub widened_rows: usize,
    pub count: usize,
    /// Vectors of sixteen queries, or 0 if there are too few for that.
    pub blocks: usize,
    /// Values of a head, rounded up to whole vectors of pairs; the rest is zero.
    pub padded: usize,
    /// Queries of a row, which see the same positions.
    pub group: usize,
    /// Positions of the chunk that the first row sees; may be negative. Each row sees one more than the one before.
    pub first_sees: isize,
    /// Positions of the chunk that the last row sees.
    pub positions: usize,
}

impl Job {
    /// Values from one widened head to the next: not a power of two, so that parts of them share the cache's sets.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.padded + LANES
    }

    /// Positions of the chunk that query `q` sees.
    #[inline(always)]
    pub(super) fn seen(&self, q: usize) -> usize {
        (self.first_sees + (q / self.group) as isize).clamp(0, self.positions as isize) as usize
    }
}

/// Pairs of heads, as the products take them.
///
/// # Safety
/// The positions that are asked for lie in the cache.
trait Pairs: Copy {
    /// Sixteen pairs of position `j`, of the values `at ..` and those 16 after them.
    unsafe fn of_values<W: Wide>(self, j: usize, at: usize) -> W::Pair;
    /// The values `at .. at + 16` of position `j`, which is even, and of the next one.
    unsafe fn of_positions<W: Wide>(self, j: usize, at: usize) -> W::Pair;
}

/// Where they lie in the cache; the first `n` positions count.
#[derive(Clone, Copy)]
struct Direct<H> {
    heads: H,
    n: usize,
}

impl<H: Heads> Pairs for Direct<H> {
    #[inline(always)]
    unsafe fn of_values<W: Wide>(self, j: usize, at: usize) -> W::Pair {
        // SAFETY: the trait's contract.
        unsafe { W::pair(self.heads.load(j, at), self.heads.load(j, at + LANES)) }
    }

    #[inline(always)]
    unsafe fn of_positions<W: Wide>(self, j: usize, at: usize) -> W::Pair {
        // SAFETY: the trait's contract.
        unsafe {
            let odd = if j + 1 < self.n { self.heads.load(j + 1, at) } else { W::splat(0.0) };
            W::pair(self.heads.load(j, at), odd)
        }
    }
}

/// As [`widen_keys`] or [`widen_values`] have left them, so many words apart.
#[derive(Clone, Copy)]
struct Widened {
    start: *const f32,
    stride: usize,
}

impl Pairs for Widened {
    #[inline(always)]
    unsafe fn of_values<W: Wide>(self, j: usize, at: usize) -> W::Pair {
        // SAFETY: the trait's contract.
        unsafe { W::load_pair(self.start.add(j * self.stride + at / 2 * W::PAIR)) }
    }

    #[inline(always)]
    unsafe fn of_positions<W: Wide>(self, j: usize, at: usize) -> W::Pair {
        // SAFETY: the trait's contract.
        unsafe { W::load_pair(self.start.add(j * self.stride + at * W::PAIR)) }
    }
}

/// Writes the keys of `n` positions as pairs of values.
///
/// # Safety
/// As [`Heads`], and there is room for them.
#[inline(always)]
pub(super) unsafe fn widen_keys<W: Wide, H: Heads>(heads: H, n: usize, dim: usize, job: &Job) {
    for j in 0..n {
        for at in (0..job.padded).step_by(2 * LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let pair = W::pair(sixteen(heads, dim, j, at), sixteen(heads, dim, j, at + LANES));
                W::store_pair(pair, job.widened.add(j * job.stride() + at / 2 * W::PAIR));
            }
        }
    }
}

/// Writes the values of `n` positions as pairs of positions; after an odd number come zeros.
///
/// # Safety
/// As [`widen_keys`].
#[inline(always)]
unsafe fn widen_values<W: Wide, H: Heads>(heads: H, n: usize, dim: usize, job: &Job) {
    for j in (0..n).step_by(2) {
        for at in (0..job.padded).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe {
                let odd = if j + 1 < n { sixteen(heads, dim, j + 1, at) } else { W::splat(0.0) };
                let pair = W::pair(sixteen(heads, dim, j, at), odd);
                W::store_pair(pair, job.widened.add(j * job.stride() + at * W::PAIR));
            }
        }
    }
}

/// What is done with heads that have been found.
trait Product {
    /// Prepares `n` positions for many queries.
    unsafe fn widen<W: Wide, H: Heads>(heads: H, n: usize, dim: usize, job: &Job);
    /// Takes the positions `from .. from + n` of the chunk; `pairs` begins with them.
    unsafe fn take<W: Wide, P: Pairs>(job: &Job, pairs: P, ahead: Ahead, from: usize, n: usize);
}

struct Scores;
/// With weights as [`Job::scores`] has them: `IN_LANES` for blocks.
struct Values<const IN_LANES: bool>;

for_each_width! {
    /// The scores of all queries with all positions, also those that a query does not see.
    ///
    /// # Safety
    /// `keys` holds the job's positions; the job's pointers are valid for their shapes and nobody else uses them.
    pub(super) unsafe fn scores<W>(keys: Stored<'_>, job: Job) {
        // SAFETY: the caller's promise.
        unsafe { all_positions::<W, Scores>(keys, &job) }
    }
}

for_each_width! {
    /// Adds the weighted values of the positions that each query sees. Others of the chunk may be added too, with weights of
    /// zero: they must be finite, as all must be for an answer.
    ///
    /// # Safety
    /// As [`scores`].
    pub(super) unsafe fn values<W>(values: Stored<'_>, job: Job) {
        // SAFETY: the caller's promise.
        unsafe {
            if job.blocks > 0 {
                all_positions::<W, Values<true>>(values, &job);
            } else {
                all_positions::<W, Values<false>>(values, &job);
            }
        }
    }
}

#[inline(always)]
unsafe fn all_positions<W: Wide, P: Product>(stored: Stored<'_>, job: &Job) {
    let (start, dim) = (stored.bytes.as_ptr(), stored.dim);
    // SAFETY: the caller's promise; the cache is aligned for its format.
    unsafe {
        match stored.format {
            KvFormat::F32 => {
                some_positions::<W, P, _>(job, Floats { start: start.cast(), stride: dim }, dim);
            }
            KvFormat::F16 => {
                some_positions::<W, P, _>(job, Halves { start: start.cast::<f16>(), stride: dim }, dim);
            }
            KvFormat::Q8 => {
                let heads = Bytes { start, stride: stored.format.head_bytes(dim), dim };
                some_positions::<W, P, _>(job, heads, dim);
            }
        }
    }
}

/// Takes some positions at a time, as they are or widened.
#[inline(always)]
unsafe fn some_positions<W: Wide, P: Product, H: Heads>(job: &Job, heads: H, dim: usize) {
    let direct = job.padded == dim && job.count <= DIRECT;
    let mut from = 0;
    while from < job.positions {
        let n = job.widened_rows.min(job.positions - from);
        let ahead = Ahead::new(heads.after(from + job.widened_rows));
        // SAFETY: the caller's promise; `n` rows of `padded` values fit.
        unsafe {
            if direct {
                P::take::<W, _>(job, Direct { heads: heads.after(from), n }, ahead, from, n);
            } else {
                P::widen::<W, H>(heads.after(from), n, dim, job);
                let widened = Widened { start: job.widened, stride: job.stride() };
                P::take::<W, _>(job, widened, ahead, from, n);
            }
        }
        from += n;
    }
}

/// The heads that come after those at work, as the cache holds them: memory fetches them meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    /// Of a position; 0 for nothing to fetch.
    bytes: usize,
}

impl Ahead {
    #[inline(always)]
    pub(super) fn new<H: Heads>(heads: H) -> Self {
        Self { start: heads.start(), bytes: heads.bytes() }
    }

    #[inline(always)]
    pub(super) unsafe fn fetch<W: Wide>(self, j: usize) {
        let mut at = 0;
        while at < self.bytes {
            // SAFETY: the caller's promise.
            unsafe { W::prefetch(self.start.wrapping_add(j * self.bytes + at)) };
            at += LINE_BYTES;
        }
    }
}

impl Product for Scores {
    #[inline(always)]
    unsafe fn widen<W: Wide, H: Heads>(heads: H, n: usize, dim: usize, job: &Job) {
        // SAFETY: the caller's promise.
        unsafe { widen_keys::<W, H>(heads, n, dim, job) }
    }

    // NEON is there wherever the target is, so that a call costs no feature; and LLVM takes minutes for all formats in one.
    #[cfg_attr(target_arch = "aarch64", inline(never))]
    #[cfg_attr(not(target_arch = "aarch64"), inline(always))]
    unsafe fn take<W: Wide, P: Pairs>(job: &Job, pairs: P, ahead: Ahead, from: usize, n: usize) {
        let mut j = 0;
        // SAFETY: tiles stay inside the counts of queries and positions.
        unsafe {
            while j + 4 <= n {
                for k in j..j + 4 {
                    ahead.fetch::<W>(k);
                }
                let mut q = 0;
                while const { W::TILE > 1 } && q + W::TILE <= job.count {
                    if const { W::TILE == 4 } {
                        score_tile::<W, P, 4, 4>(job, pairs, q, from, j);
                    } else {
                        score_tile::<W, P, 2, 2>(job, pairs, q, from, j);
                        score_tile::<W, P, 2, 2>(job, pairs, q, from, j + 2);
                    }
                    q += W::TILE;
                }
                while q < job.count {
                    score_tile::<W, P, 1, 4>(job, pairs, q, from, j);
                    q += 1;
                }
                j += 4;
            }
            while j < n {
                for q in 0..job.count {
                    score_tile::<W, P, 1, 1>(job, pairs, q, from, j);
                }
                j += 1;
            }
        }
    }
}

/// The scores of `Q` queries from `q` on with `K` positions from `j` on.
#[inline(always)]
unsafe fn score_tile<W: Wide, P: Pairs, const Q: usize, const K: usize>(
    job: &Job,
    pairs: P,
    q: usize,
    from: usize,
    j: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::splat(0.0); K]; Q];
        let mut at = 0;
        while at < job.padded {
            let query = job.queries.add(q * job.padded + at / 2 * W::PAIR);
            let mut queries = [W::load_pair(query); Q];
            for i in 1..Q {
                queries[i] = W::load_pair(query.add(i * job.padded));
            }
            for k in 0..K {
                let key = pairs.of_values::<W>(j + k, at);
                for i in 0..Q {
                    sums[i][k] = W::fma_pair(queries[i], key, sums[i][k]);
                }
            }
            at += 2 * LANES;
        }
        let mut first = 0;
        while first < Q * K {
            let mut four = [W::splat(0.0); 4];
            for f in 0..4 {
                if first + f < Q * K {
                    four[f] = sums[(first + f) / K][(first + f) % K];
                }
            }
            let four = W::sums(four);
            if K == 4 {
                let to = job.scores.add((q + first / K) * CHUNK + from + j);
                to.cast::<[f32; 4]>().write_unaligned(four);
                first += 4;
                continue;
            }
            for f in 0..4 {
                if first + f < Q * K {
                    let (i, k) = ((first + f) / K, (first + f) % K);
                    *job.scores.add((q + i) * CHUNK + from + j + k) = four[f];
                }
            }
            first += 4;
        }
    }
}

impl<const IN_LANES: bool> Product for Values<IN_LANES> {
    #[inline(always)]
    unsafe fn widen<W: Wide, H: Heads>(heads: H, n: usize, dim: usize, job: &Job) {
        // SAFETY: the caller's promise.
        unsafe { widen_values::<W, H>(heads, n, dim, job) }
    }

    // NEON is there wherever the target is, so that a call costs no feature; and LLVM takes minutes for all formats in one.
    #[cfg_attr(target_arch = "aarch64", inline(never))]
    #[cfg_attr(not(target_arch = "aarch64"), inline(always))]
    unsafe fn take<W: Wide, P: Pairs>(job: &Job, pairs: P, mut ahead: Ahead, from: usize, n: usize) {
        let mut at = 0;
        // SAFETY: tiles stay inside the heads.
        unsafe {
            while at < job.padded {
                if const { W::TILE == 1 } || at + W::TILE * LANES > job.padded {
                    some_values::<W, P, IN_LANES, 1>(job, pairs, ahead, [from, n, at]);
                    at += LANES;
                } else if const { W::TILE == 4 } {
                    some_values::<W, P, IN_LANES, 4>(job, pairs, ahead, [from, n, at]);
                    at += 4 * LANES;
                } else if const { W::TILE == 2 } {
                    some_values::<W, P, IN_LANES, 2>(job, pairs, ahead, [from, n, at]);
                    at += 2 * LANES;
                }
                ahead.bytes = 0;
            }
        }
    }
}

/// The outputs `at .. at + D * 16` of all queries, so that the part of the values that is multiplied stays near.
#[inline(always)]
unsafe fn some_values<W: Wide, P: Pairs, const IN_LANES: bool, const D: usize>(
    job: &Job,
    pairs: P,
    mut ahead: Ahead,
    [from, n, at]: [usize; 3],
) {
    let mut q = 0;
    // SAFETY: tiles stay inside the counts of queries and positions.
    unsafe {
        while const { W::TILE > 1 } && q + W::TILE <= job.count {
            // Later queries see no less; what earlier ones do not see weighs nothing.
            let end = job.seen(q + W::TILE - 1).saturating_sub(from).min(n);
            if const { W::TILE == 4 } {
                value_tile::<W, P, IN_LANES, 4, D>(job, pairs, ahead, [q, from, end], at);
            } else {
                value_tile::<W, P, IN_LANES, 2, D>(job, pairs, ahead, [q, from, end], at);
            }
            ahead.bytes = 0;
            q += W::TILE;
        }
        while q < job.count {
            let end = job.seen(q).saturating_sub(from).min(n);
            value_tile::<W, P, IN_LANES, 1, D>(job, pairs, ahead, [q, from, end], at);
            ahead.bytes = 0;
            q += 1;
        }
    }
}

/// The outputs `at .. at + D * 16` of `Q` queries from `q` on, with the first `end` positions of `pairs`, and one more if
/// that is odd.
#[inline(always)]
unsafe fn value_tile<W: Wide, P: Pairs, const IN_LANES: bool, const Q: usize, const D: usize>(
    job: &Job,
    pairs: P,
    ahead: Ahead,
    [q, from, end]: [usize; 3],
    at: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::splat(0.0); D]; Q];
        for i in 0..Q {
            for d in 0..D {
                sums[i][d] = W::load(job.values.add((q + i) * job.padded + at + d * LANES));
            }
        }
        let mut j = 0;
        while j < end {
            ahead.fetch::<W>(j);
            ahead.fetch::<W>(j + 1);
            let mut values = [pairs.of_positions::<W>(j, at); D];
            for d in 1..D {
                values[d] = pairs.of_positions::<W>(j, at + d * LANES);
            }
            let pair = (from + j) / 2 * W::PAIR;
            for i in 0..Q {
                let weight = if IN_LANES {
                    let block = q / LANES * CHUNK;
                    W::splat_pair::<LANES>(job.scores.add((block + pair) * LANES + q % LANES + i))
                } else {
                    W::splat_pair::<1>(job.scores.add((q + i) * CHUNK + pair))
                };
                for d in 0..D {
                    sums[i][d] = W::fma_pair(weight, values[d], sums[i][d]);
                }
            }
            j += 2;
        }
        for i in 0..Q {
            for d in 0..D {
                sums[i][d].store(job.values.add((q + i) * job.padded + at + d * LANES));
            }
        }
    }
}

for_each_width! {
    /// Makes pairs of a query's values `[padded]`, those 16 apart.
    ///
    /// # Safety
    /// There are so many, and nobody else uses them.
    pub(super) unsafe fn pair_values<W>(query: *mut f32, padded: usize) {
        for at in (0..padded * usize::from(W::PAIR == 1)).step_by(2 * LANES) {
            // SAFETY: the caller's promise; what is written was read.
            unsafe {
                let made = W::pair(W::load(query.add(at)), W::load(query.add(at + LANES)));
                W::store_pair(made, query.add(at / 2));
            }
        }
    }
}

for_each_width! {
    /// Makes pairs of a query's weights, those of neighbouring positions.
    pub(super) unsafe fn pair_weights<W>(weights: &mut [f32]) {
        for pair in 0..weights.len() / 2 * usize::from(W::PAIR == 1) {
            let [even, odd] = [weights[2 * pair], weights[2 * pair + 1]].map(f32::to_bits);
            // Rounded already: the upper halves are all there is.
            weights[pair] = f32::from_bits(even >> 16 | odd & 0xffff_0000);
        }
    }
}
