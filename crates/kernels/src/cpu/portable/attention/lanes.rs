//! Scores and weights of many queries, with a query in each lane of a vector: nothing is summed across lanes, and a
//! key's value is spread to all of them.
//!
//! A score is put together from the same sums in the same order as in [`super::tiles`], and so is the sum of weights.

use std::mem::MaybeUninit;

use super::CHUNK;
use super::cache::{Bytes, Floats, Halves, Heads};
use super::tiles::{Ahead, Job, Stored, widen_keys};
use crate::cpu::isa::for_each_isa;
use crate::cpu::math::{exp_of_negative, to_bf16, tree_sum};
use crate::cpu::wide::{LANES, Wide, for_each_width};
use crate::ops::KvFormat;

/// Positions whose keys are widened at a time.
pub(super) const KEYS: usize = 16;

/// Lanes of a sum in the order in which [`tree_sum`] adds them.
const ORDER: [usize; LANES] = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15];

/// Writes a block of queries, times `scale`, as `[padded, 16]`, values in the order in which their products are summed: those
/// of a pair are neighbours.
pub(super) fn write_queries(queries: [&[f32]; LANES], scale: f32, padded: usize, to: &mut [f32]) {
    let mut to = to.as_chunks_mut::<LANES>().0.iter_mut();
    for lane in ORDER {
        for (at, to) in (lane..padded).step_by(LANES).zip(&mut to) {
            for i in 0..LANES {
                to[i] = queries[i].get(at).map_or(0.0, |x| scale * x);
            }
        }
    }
}

for_each_width! {
    /// The scores of all queries with all positions, also those that a query does not see; those up to a multiple of
    /// [`KEYS`] after them are anything.
    ///
    /// # Safety
    /// As [`super::tiles::scores`].
    pub(super) unsafe fn scores<W>(keys: Stored<'_>, job: Job) {
        let (start, dim) = (keys.bytes.as_ptr(), keys.dim);
        // SAFETY: the caller's promise; the cache is aligned for its format.
        unsafe {
            match keys.format {
                KvFormat::F32 => all_positions::<W, _>(&job, Floats { start: start.cast(), stride: dim }, dim),
                KvFormat::F16 => all_positions::<W, _>(&job, Halves { start: start.cast(), stride: dim }, dim),
                KvFormat::Q8 => {
                    let stride = keys.format.head_bytes(dim);
                    all_positions::<W, _>(&job, Bytes { start, stride, dim }, dim);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn all_positions<W: Wide, H: Heads>(job: &Job, heads: H, dim: usize) {
    let mut from = 0;
    while from < job.positions {
        let n = KEYS.min(job.positions - from);
        // SAFETY: the caller's promise; `KEYS` rows of `padded` values fit, and there is room for their scores.
        unsafe {
            widen_keys::<W, H>(heads.after(from), n, dim, job);
            let ahead = Ahead::new(heads.after(from + KEYS));
            let mut block = 0;
            while block < job.blocks {
                let two = W::TILE == 4 && block + 2 <= job.blocks;
                for k in (0..n).step_by(4) {
                    for k in k..k + 4 * usize::from(block == 0) {
                        ahead.fetch::<W>(k);
                    }
                    if two {
                        tile::<W, 2, 4>(job, from, k, block);
                    } else {
                        tile::<W, 1, 4>(job, from, k, block);
                    }
                }
                block += 1 + usize::from(two);
            }
        }
        from += n;
    }
}

/// The scores of `V` blocks of queries with `K` positions from number `k` of those that are widened.
#[inline(always)]
unsafe fn tile<W: Wide, const V: usize, const K: usize>(job: &Job, from: usize, k: usize, block: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let keys = job.widened.add(k * job.stride());
        let mut queries = job.queries.add(block * job.padded * LANES);
        // Sums of four and of eight lanes, which wait for their neighbours. Sums of one and two wait in registers:
        // stores keep multiply-adds from running.
        let mut waiting = [const { MaybeUninit::<[[W; K]; V]>::uninit() }; 2];
        for i in 0..4 {
            let lane = ORDER.as_ptr().add(4 * i);
            let each = job.padded / 2 * W::PAIR;
            let mut two = lane_sums::<W, V, K>(job, queries, keys.add(*lane));
            two = sum(two, lane_sums(job, queries.add(each), keys.add(*lane.add(1))));
            let mut others = lane_sums::<W, V, K>(job, queries.add(2 * each), keys.add(*lane.add(2)));
            others = sum(others, lane_sums(job, queries.add(3 * each), keys.add(*lane.add(3))));
            let mut sums = sum(two, others);
            queries = queries.add(4 * each);
            if i % 2 == 0 {
                waiting[i / 2].write(sums);
                continue;
            }
            sums = sum(waiting[i / 2].assume_init(), sums);
            if i == 1 {
                waiting[0].write(sums);
                continue;
            }
            sums = sum(waiting[0].assume_init(), sums);
            for v in 0..V {
                for n in 0..K {
                    sums[v][n].store(job.scores.add(((block + v) * CHUNK + from + k + n) * LANES));
                }
            }
        }
    }
}

/// The sums of one lane of each score; `keys` begins with the lane.
#[inline(always)]
unsafe fn lane_sums<W: Wide, const V: usize, const K: usize>(
    job: &Job,
    queries: *const f32,
    keys: *const f32,
) -> [[W; K]; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[W::splat(0.0); K]; V];
        let (mut at, mut queries) = (0, queries);
        while at < job.padded / 2 * W::PAIR {
            let mut query = [W::load_pair(queries); V];
            for v in 1..V {
                query[v] = W::load_pair(queries.add(v * job.padded * LANES));
            }
            for k in 0..K {
                let key = W::splat_pair::<LANES>(keys.add(k * job.stride() + at));
                for v in 0..V {
                    sums[v][k] = W::fma_pair(query[v], key, sums[v][k]);
                }
            }
            queries = queries.add(LANES * W::PAIR);
            at += LANES * W::PAIR;
        }
        sums
    }
}

#[inline(always)]
unsafe fn sum<W: Wide, const V: usize, const K: usize>(mut a: [[W; K]; V], b: [[W; K]; V]) -> [[W; K]; V] {
    for v in 0..V {
        for k in 0..K {
            // SAFETY: the caller's promise.
            a[v][k] = unsafe { a[v][k].add(b[v][k]) };
        }
    }
    a
}

for_each_width! {
    /// Makes pairs of a block's rows `[rows, 16]`, an even number of them: of queries, or of weights.
    ///
    /// # Safety
    /// There are so many rows, and nobody else uses them.
    pub(super) unsafe fn pair_rows<W>(block: *mut f32, rows: usize) {
        for pair in 0..rows / 2 * usize::from(W::PAIR == 1) {
            // SAFETY: the caller's promise; what is written was read.
            unsafe {
                let from = block.add(2 * pair * LANES);
                let made = W::pair(W::load(from), W::load(from.add(LANES)));
                W::store_pair(made, block.add(pair * LANES));
            }
        }
    }
}

for_each_isa! {
    /// Turns a block's scores `[positions, 16]` into weights, in bf16 if `rounds`; returns the maximum and the sum of each query.
    pub(super) fn weigh(scores: &mut [[f32; LANES]], rounds: bool) -> [[f32; LANES]; 2] {
        let mut max = [f32::NEG_INFINITY; LANES];
        for scores in scores.iter() {
            for i in 0..LANES {
                // A NaN must reach the output: it fails the comparison and is seen by `exp_of_negative` below.
                max[i] = if scores[i] > max[i] { scores[i] } else { max[i] };
            }
        }
        for i in 0..LANES {
            max[i] = if max[i] == f32::NEG_INFINITY { 0.0 } else { max[i] };
        }
        // Position `p` belongs to lane `p % 16` of a sum.
        let mut sums = [[0.0; LANES]; LANES];
        for (p, scores) in scores.iter_mut().enumerate() {
            let sums = &mut sums[p % LANES];
            for i in 0..LANES {
                scores[i] = exp_of_negative(scores[i] - max[i]);
            }
            if rounds {
                for i in 0..LANES {
                    scores[i] = to_bf16(scores[i]);
                }
            }
            for i in 0..LANES {
                sums[i] += scores[i];
            }
        }
        let mut sum = [0.0; LANES];
        for i in 0..LANES {
            let mut lanes = [0.0; LANES];
            for lane in 0..LANES {
                lanes[lane] = sums[lane][i];
            }
            sum[i] = tree_sum(lanes);
        }
        [max, sum]
    }
}
