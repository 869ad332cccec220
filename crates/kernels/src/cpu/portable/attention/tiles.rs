//! The two products of attention over a chunk of positions, in tiles of queries and keys that stay in registers.
//!
//! A score is one sum over the head in sixteen lanes; an output is one sum over the positions in their order. Neither
//! depends on which queries and positions share a tile, nor on whether the heads were widened before. Many queries'
//! scores are computed by `lanes.rs`, to the same bits.

use half::f16;

use super::CHUNK;
use super::cache::{Bytes, Floats, Halves, Heads, widen_heads};
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
    /// `[count, padded]`, times the factor on the scores; in blocks `[blocks, padded, 16]`, as
    /// [`super::lanes::write_queries`] leaves them.
    pub queries: *const f32,
    /// `[count, CHUNK]`, in blocks `[blocks, CHUNK, 16]`: scores, and then weights.
    pub scores: *mut f32,
    /// `[count, padded]`: sums of weighted values.
    pub values: *mut f32,
    /// `[widened_rows, stride]`
    pub widened: *mut f32,
    pub widened_rows: usize,
    pub count: usize,
    /// Vectors of sixteen queries, or 0 if there are too few for that.
    pub blocks: usize,
    /// Values of a head, rounded up to whole vectors; the rest is zero.
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

/// What is done with heads that have been found.
trait Product {
    /// Takes the positions `from .. from + n` of the chunk; `heads` begins with them.
    unsafe fn take<W: Wide, H: Heads>(job: &Job, heads: H, ahead: Ahead, from: usize, n: usize);
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
    /// Adds the weighted values of the positions that each query sees.
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
                let heads = Floats { start: start.cast(), stride: dim };
                some_positions::<W, P, _>(job, heads, dim, job.padded == dim && job.count <= DIRECT);
            }
            KvFormat::F16 => {
                let heads = Halves { start: start.cast::<f16>(), stride: dim };
                some_positions::<W, P, _>(job, heads, dim, job.padded == dim && job.count <= DIRECT);
            }
            KvFormat::Q8 => {
                let heads = Bytes { start, stride: stored.format.head_bytes(dim), dim };
                some_positions::<W, P, _>(job, heads, dim, job.count <= DIRECT);
            }
        }
    }
}

/// Takes some positions at a time, `direct`ly or widened.
#[inline(always)]
unsafe fn some_positions<W: Wide, P: Product, H: Heads>(job: &Job, heads: H, dim: usize, direct: bool) {
    let mut from = 0;
    while from < job.positions {
        let n = job.widened_rows.min(job.positions - from);
        let ahead = Ahead::new(heads.after(from + job.widened_rows));
        // SAFETY: the caller's promise; `n` rows of `padded` values fit.
        unsafe {
            if direct {
                P::take::<W, _>(job, heads.after(from), ahead, from, n);
            } else {
                widen_heads::<W, H>(heads.after(from), n, dim, job.widened, job.stride());
                let widened = Floats { start: job.widened, stride: job.stride() };
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
    unsafe fn take<W: Wide, H: Heads>(job: &Job, heads: H, ahead: Ahead, from: usize, n: usize) {
        let mut j = 0;
        // SAFETY: tiles stay inside the counts of queries and positions.
        unsafe {
            while j + 4 <= n {
                for k in j..j + 4 {
                    ahead.fetch::<W>(k);
                }
                let mut q = 0;
                while q + W::TILE <= job.count {
                    if W::TILE == 4 {
                        score_tile::<W, H, 4, 4>(job, heads, q, from, j);
                    } else {
                        score_tile::<W, H, 2, 2>(job, heads, q, from, j);
                        score_tile::<W, H, 2, 2>(job, heads, q, from, j + 2);
                    }
                    q += W::TILE;
                }
                while q < job.count {
                    score_tile::<W, H, 1, 4>(job, heads, q, from, j);
                    q += 1;
                }
                j += 4;
            }
            while j < n {
                for q in 0..job.count {
                    score_tile::<W, H, 1, 1>(job, heads, q, from, j);
                }
                j += 1;
            }
        }
    }
}

/// The scores of `Q` queries from `q` on with `K` positions from `j` on.
#[inline(always)]
unsafe fn score_tile<W: Wide, H: Heads, const Q: usize, const K: usize>(
    job: &Job,
    heads: H,
    q: usize,
    from: usize,
    j: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::splat(0.0); K]; Q];
        let mut at = 0;
        while at < job.padded {
            let mut queries = [W::splat(0.0); Q];
            for i in 0..Q {
                queries[i] = W::load(job.queries.add((q + i) * job.padded + at));
            }
            for k in 0..K {
                let key = heads.load::<W>(j + k, at);
                for i in 0..Q {
                    sums[i][k] = queries[i].fma(key, sums[i][k]);
                }
            }
            at += LANES;
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
    unsafe fn take<W: Wide, H: Heads>(job: &Job, heads: H, mut ahead: Ahead, from: usize, n: usize) {
        let mut at = 0;
        // SAFETY: tiles stay inside the heads.
        unsafe {
            while at < job.padded {
                if at + W::TILE * LANES > job.padded {
                    some_values::<W, H, IN_LANES, 1>(job, heads, ahead, [from, n, at]);
                    at += LANES;
                } else if W::TILE == 4 {
                    some_values::<W, H, IN_LANES, 4>(job, heads, ahead, [from, n, at]);
                    at += 4 * LANES;
                } else {
                    some_values::<W, H, IN_LANES, 2>(job, heads, ahead, [from, n, at]);
                    at += 2 * LANES;
                }
                ahead.bytes = 0;
            }
        }
    }
}

/// The outputs `at .. at + D * 16` of all queries, so that the part of the values that is multiplied stays near.
#[inline(always)]
unsafe fn some_values<W: Wide, H: Heads, const IN_LANES: bool, const D: usize>(
    job: &Job,
    heads: H,
    mut ahead: Ahead,
    [from, n, at]: [usize; 3],
) {
    let mut q = 0;
    // SAFETY: tiles stay inside the counts of queries and positions.
    unsafe {
        while q + W::TILE <= job.count {
            // Later queries see no less.
            let all = job.seen(q).saturating_sub(from).min(n);
            if W::TILE == 4 {
                value_tile::<W, H, IN_LANES, 4, D>(job, heads, ahead, [q, from, 0, all], at);
            } else {
                value_tile::<W, H, IN_LANES, 2, D>(job, heads, ahead, [q, from, 0, all], at);
            }
            ahead.bytes = 0;
            for i in q + 1..q + W::TILE {
                let end = job.seen(i).saturating_sub(from).min(n);
                value_tile::<W, H, IN_LANES, 1, D>(job, heads, ahead, [i, from, all, end], at);
            }
            q += W::TILE;
        }
        while q < job.count {
            let end = job.seen(q).saturating_sub(from).min(n);
            value_tile::<W, H, IN_LANES, 1, D>(job, heads, ahead, [q, from, 0, end], at);
            ahead.bytes = 0;
            q += 1;
        }
    }
}

/// The outputs `at .. at + D * 16` of `Q` queries from `q` on, with the positions `start .. end` of `heads`.
#[inline(always)]
unsafe fn value_tile<W: Wide, H: Heads, const IN_LANES: bool, const Q: usize, const D: usize>(
    job: &Job,
    heads: H,
    ahead: Ahead,
    [q, from, start, end]: [usize; 4],
    at: usize,
) {
    if start >= end {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::splat(0.0); D]; Q];
        for i in 0..Q {
            for d in 0..D {
                sums[i][d] = W::load(job.values.add((q + i) * job.padded + at + d * LANES));
            }
        }
        let mut j = start;
        while j < end {
            ahead.fetch::<W>(j);
            let mut values = [W::splat(0.0); D];
            for d in 0..D {
                values[d] = heads.load::<W>(j, at + d * LANES);
            }
            for i in 0..Q {
                let at = if IN_LANES {
                    (q / LANES * CHUNK + from + j) * LANES + q % LANES + i
                } else {
                    (q + i) * CHUNK + from + j
                };
                let weight = W::splat(*job.scores.add(at));
                for d in 0..D {
                    sums[i][d] = weight.fma(values[d], sums[i][d]);
                }
            }
            j += 1;
        }
        for i in 0..Q {
            for d in 0..D {
                sums[i][d].store(job.values.add((q + i) * job.padded + at + d * LANES));
            }
        }
    }
}
