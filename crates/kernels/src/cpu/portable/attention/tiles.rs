//! The two products of attention over a chunk of positions, in tiles of queries and keys that stay in registers.
//!
//! A score is one sum over the head in sixteen lanes; an output is one sum over the positions in their order. Neither
//! depends on which queries and positions share a tile, nor on whether the heads were widened before.

use half::f16;

use super::CHUNK;
use super::cache::{Bytes, Floats, Halves, Heads};
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
    /// `[count, padded]`, times the factor on the scores.
    pub queries: *const f32,
    /// `[count, CHUNK]`: scores, and then weights.
    pub scores: *mut f32,
    /// `[count, padded]`: sums of weighted values.
    pub values: *mut f32,
    /// `[widened_rows, padded]`
    pub widened: *mut f32,
    pub widened_rows: usize,
    pub count: usize,
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
struct Values;

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
        unsafe { all_positions::<W, Values>(values, &job) }
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
    let whole = dim - dim % LANES;
    let mut from = 0;
    while from < job.positions {
        let n = job.widened_rows.min(job.positions - from);
        let ahead = Ahead { start: heads.after(from + job.widened_rows).start(), bytes: heads.bytes() };
        // SAFETY: the caller's promise; `n` rows of `padded` values fit.
        unsafe {
            if direct {
                P::take::<W, _>(job, heads.after(from), ahead, from, n);
            } else {
                for j in 0..n {
                    let row = job.widened.add(j * job.padded);
                    for at in (0..whole).step_by(LANES) {
                        heads.load::<W>(from + j, at).store(row.add(at));
                    }
                    for at in whole..job.padded {
                        *row.add(at) = if at < dim { heads.value(from + j, at) } else { 0.0 };
                    }
                }
                let widened = Floats { start: job.widened, stride: job.padded };
                P::take::<W, _>(job, widened, ahead, from, n);
            }
        }
        from += n;
    }
}

/// The heads that come after those at work, as the cache holds them: memory fetches them meanwhile.
#[derive(Clone, Copy)]
struct Ahead {
    start: *const u8,
    /// Of a position; 0 for nothing to fetch.
    bytes: usize,
}

impl Ahead {
    #[inline(always)]
    unsafe fn fetch<W: Wide>(self, j: usize) {
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

impl Product for Values {
    #[inline(always)]
    unsafe fn take<W: Wide, H: Heads>(job: &Job, heads: H, ahead: Ahead, from: usize, n: usize) {
        let nothing = Ahead { bytes: 0, ..ahead };
        let mut q = 0;
        // SAFETY: tiles stay inside the counts of queries and positions.
        unsafe {
            while q + W::TILE <= job.count {
                let ahead = if q == 0 { ahead } else { nothing };
                // Later queries see no less.
                let all = job.seen(q).saturating_sub(from).min(n);
                if W::TILE == 4 {
                    value_tiles::<W, H, 4, 4>(job, heads, ahead, [q, from, 0, all]);
                } else {
                    value_tiles::<W, H, 2, 2>(job, heads, ahead, [q, from, 0, all]);
                }
                for i in q..q + W::TILE {
                    let end = job.seen(i).saturating_sub(from).min(n);
                    value_tiles::<W, H, 1, 4>(job, heads, nothing, [i, from, all, end]);
                }
                q += W::TILE;
            }
            while q < job.count {
                let end = job.seen(q).saturating_sub(from).min(n);
                let ahead = if q == 0 { ahead } else { nothing };
                value_tiles::<W, H, 1, 4>(job, heads, ahead, [q, from, 0, end]);
                q += 1;
            }
        }
    }
}

/// The outputs of `Q` queries from `q` on, with the positions `start .. end` of `heads`; `D` vectors at a time.
#[inline(always)]
unsafe fn value_tiles<W: Wide, H: Heads, const Q: usize, const D: usize>(
    job: &Job,
    heads: H,
    mut ahead: Ahead,
    [q, from, start, end]: [usize; 4],
) {
    if start >= end {
        return;
    }
    let mut at = 0;
    // SAFETY: the caller's promise.
    unsafe {
        while at + D * LANES <= job.padded {
            value_tile::<W, H, Q, D>(job, heads, ahead, [q, from, start, end], at);
            ahead.bytes = 0;
            at += D * LANES;
        }
        while at < job.padded {
            value_tile::<W, H, Q, 1>(job, heads, ahead, [q, from, start, end], at);
            ahead.bytes = 0;
            at += LANES;
        }
    }
}

#[inline(always)]
unsafe fn value_tile<W: Wide, H: Heads, const Q: usize, const D: usize>(
    job: &Job,
    heads: H,
    ahead: Ahead,
    [q, from, start, end]: [usize; 4],
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
        let mut j = start;
        while j < end {
            ahead.fetch::<W>(j);
            let mut values = [W::splat(0.0); D];
            for d in 0..D {
                values[d] = heads.load::<W>(j, at + d * LANES);
            }
            for i in 0..Q {
                let weight = W::splat(*job.scores.add((q + i) * CHUNK + from + j));
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
