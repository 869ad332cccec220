//! Products: which shader multiplies, and with how many threads a row.

use std::sync::Arc;

use files::{Format, Result};

use super::blocks::{Halved, UNITS_FILLED};
use super::device::EIGHT;
use super::encoder::Binding;
use super::memory::GpuMemory;
use super::mixer::with_rows;
use super::source::{self, Wide};
use super::{Call, Gpu, State, binding, folded, weight_parts};
use crate::buffer::{Tensor, Weight};
use crate::check;
use crate::ops::{Convolution, Precision, Product};

/// From this many rows on, tiles in shared memory are worth their barriers.
pub(super) const MATMUL_ROWS_MIN: usize = 16;
/// But not where integers multiply up to as many rows, and blocks would be too few to fill a large device.
pub(super) const INTEGERS_ROWS_MAX: usize = 32;
/// Products that `linears.wgsl` takes at once.
const JOBS_MAX: usize = 4;
/// Buffers that `linears_conv.wgsl` needs at most.
const CONV_BINDINGS: usize = JOBS_MAX + 7;
/// Fewer threads than these do not fill a large device: 16 groups of 32 on each of 128 processors.
const THREADS_WANTED: usize = 1 << 16;
/// Threads of the kernels that take four rows of a weight a few lanes.
const THREADS: u32 = source::LINEAR.threads;
/// Fewer outputs than these gain nothing from integers. So are a router's, whose choice shall not depend on rounding.
const INTEGERS_MIN: usize = 1024;
/// Columns of activations that all workgroups of a product would prepare together, from which on it is better to do that
/// once, in a dispatch of its own: that costs 2.7 us on an H100.
const PREPARE_MIN: usize = 3 << 19;
/// Bytes of a prepared step: high and low halves of thirty-two integers, a scale and two sums.
const PREPARED_BYTES: usize = 80;
/// Most threads that share four rows of a weight: a workgroup.
const LANES_MAX: u32 = THREADS;
/// The same for integers: steps of x that `x_integers.wgsl` has at a time.
const LANES_MAX_INTEGERS: u32 = 128;
/// In a product of integers a row of so few steps gets one thread for four of them: what a thread does before and after
/// its steps would be most of its work.
const STEPS_FEW: u32 = 32;

/// How a kernel steps through rows of weights: one pipeline each.
#[derive(Clone, Copy)]
pub(super) struct Stride {
    /// Rows of activations that share one decoding of the weights. Sums do not depend on it.
    pub(super) tokens: u32,
    /// Whether rows of activations must be loaded value by value.
    tail: u32,
    /// Threads that share four rows of weights.
    lanes: u32,
    wide: Wide,
    /// The constant SPLIT: not 0 for products of integers.
    pub(super) split: u32,
    /// Steps in a row.
    pub(super) chunks: u32,
}

impl Stride {
    /// The values of the constants TOKENS, TAIL, LANES, WIDE, SPLIT.
    pub(super) fn constants(&self) -> [u32; 5] {
        [self.tokens, self.tail, self.lanes, self.wide as u32, self.split]
    }

    /// Workgroups for `outputs` rows of weights.
    pub(super) fn groups(&self, outputs: usize) -> usize {
        outputs.div_ceil((THREADS / self.lanes * 4) as usize)
    }
}

/// How many of `rows` rows of activations share one decoding of the weights. More do not fit registers.
pub(super) fn tokens_for(rows: usize) -> u32 {
    rows.next_power_of_two().clamp(1, 4) as u32
}

/// Whether rows of `cols` values must be loaded one by one.
pub(super) fn tail(cols: usize) -> u32 {
    u32::from(!cols.is_multiple_of(8))
}

/// The largest power of two that divides where all packed values start, for weights whose parts start at `bases`; 1 if
/// one of their scales does not start at an even byte.
pub(super) fn alignment(bases: impl IntoIterator<Item = [u32; 3]>) -> u32 {
    let all = bases.into_iter().fold(1 << 12, |all, [packed, a, b]| all | packed | ((a | b) & 1));
    1 << all.trailing_zeros()
}

/// How many threads share four of `outputs` rows of `chunks` steps. First those of `lanes_max` that leave the fewest
/// idle, but at least 4; fewer for short rows of integers. Then twice as many, as long as each has a whole step, while the
/// device has threads to spare: what bounds a small product is how many of its bytes are on their way at once.
fn lanes(chunks: u32, outputs: usize, lanes_max: u32, integers: bool) -> u32 {
    // Integers leave a thread so little to do that what all of them do first counts.
    let (most, threads_wanted) =
        if integers { (LANES_MAX_INTEGERS, THREADS_WANTED / 2) } else { (LANES_MAX, THREADS_WANTED) };
    let padded = |lanes: u32| chunks.next_multiple_of(lanes);
    let choices = [32, 16, 8, 4].into_iter().filter(|&lanes| lanes <= lanes_max);
    // The first of equals: more lanes keep more of a row on its way.
    let mut lanes = choices.min_by_key(|&lanes| padded(lanes)).unwrap_or(4);
    while integers && chunks <= STEPS_FEW && lanes > 4 && chunks < 4 * lanes {
        lanes /= 2;
    }
    while lanes < most
        && chunks.is_multiple_of(2 * lanes)
        && outputs.div_ceil(4) * (lanes as usize) < threads_wanted
    {
        lanes *= 2;
    }
    lanes
}

/// One of several products with the same x.
pub(super) struct Job<'a> {
    pub(super) weight: &'a Weight,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) out: Binding<'a>,
}

/// Products as jobs.
pub(super) fn jobs<'a>(x: &Tensor, products: &'a [Product<'_>]) -> Result<Vec<Job<'a>>> {
    let job = |Product { weight, bias, out }: &'a Product<'_>| {
        check::linear(x, weight, *bias, out)?;
        Ok(Job { weight, bias: *bias, out: binding(out)? })
    };
    products.iter().map(job).collect()
}

/// Whether one pipeline and one binding of parts serve both.
fn same_buffers(a: &Weight, b: &Weight) -> bool {
    let ids = |w: &Weight| weight_parts(w).map(|(parts, _)| parts.into_iter().map(|(id, _)| id).collect());
    let (a_ids, b_ids): (Result<Vec<u64>>, Result<Vec<u64>>) = (ids(a), ids(b));
    a.format() == b.format() && matches!((a_ids, b_ids), (Ok(a), Ok(b)) if a == b)
}

impl Gpu {
    /// The stride for `outputs` rows of `cols` values whose packed parts start at multiples of `alignment` bytes, and `rows` rows
    /// of activations.
    pub(super) fn stride(
        &self,
        formats: &[Format],
        [cols, outputs]: [usize; 2],
        rows: usize,
        alignment: u32,
    ) -> Stride {
        let lanes_max = if self.device.subgroups { self.device.subgroup_threads.clamp(4, 32) } else { 32 };
        let mut wide = Wide::Not;
        if cols.is_multiple_of(32) {
            let all = || formats.iter().map(|&format| source::wide(format, alignment));
            if all().all(|w| w != Wide::Not) {
                wide = all().max().unwrap_or(Wide::Not);
            }
        }
        let width = if wide == Wide::Not { 8 } else { 32 };
        let chunks = cols.div_ceil(width) as u32;
        let split = if outputs < INTEGERS_MIN { 0 } else { self.split(formats, wide) };
        let tokens = tokens_for(rows);
        // Of integers each group of rows of activations has threads of its own to fill the device with.
        let groups = if split == 0 { 1 } else { rows.div_ceil(tokens as usize) };
        let lanes = lanes(chunks, outputs * groups, lanes_max, split != 0);
        Stride { tokens, tail: tail(cols), lanes, wide, split, chunks }
    }

    /// The constant SPLIT: integers where activations may be rounded and the device multiplies bytes, for weights that
    /// meet their columns in one order.
    fn split(&self, formats: &[Format], wide: Wide) -> u32 {
        let mut splits = formats.iter().map(|&format| source::split(format));
        let first = splits.next().unwrap_or(0);
        let rounds = self.device.byte_products && self.info.precision == Precision::Fast;
        if rounds && wide != Wide::Not && splits.all(|split| split == first) { first } else { 0 }
    }

    /// Whether `rows` rows are multiplied with a weight block by block. A router's logits are not, as long as rows may be tokens
    /// of several sequences: they shall not be rounded.
    pub(super) fn by_blocks(&self, rows: usize, w: &Weight) -> bool {
        if !(MATMUL_ROWS_MIN..=INTEGERS_ROWS_MAX).contains(&rows) {
            return rows >= MATMUL_ROWS_MIN;
        }
        let (cols, outputs) = (w.cols(), w.rows());
        let base = weight_parts(w).map_or([0; 3], |(_, base)| base);
        let integers = self.stride(&[w.format()], [cols, outputs], rows, alignment([base])).split != 0;
        outputs >= INTEGERS_MIN && !(integers && (!self.on_units() || outputs < UNITS_FILLED))
    }

    /// The activations of a product of integers by `workgroups` workgroups, `[rows, cols]` of them, prepared for all, if that is
    /// better than that each workgroup prepares the row that it needs.
    pub(super) fn prepared(
        &self,
        state: &mut State,
        x: Binding<'_>,
        [rows, cols]: [usize; 2],
        stride: &mut Stride,
        workgroups: usize,
    ) -> Result<Option<Arc<GpuMemory>>> {
        if stride.split == 0 || stride.tokens == 1 && workgroups * cols < PREPARE_MIN {
            return Ok(None);
        }
        let kernel = &source::INTEGERS;
        let steps = cols / 32;
        let out = self.scratch(state, "integers", rows * steps * PREPARED_BYTES)?;
        self.run(
            state,
            &Call {
                kernel,
                formats: &[],
                constants: &[stride.split, EIGHT],
                bindings: &[x, out.binding()],
                params: &[cols as u32],
                groups: [(8 * steps).div_ceil(kernel.threads as usize) as u32, rows as u32, 1],
            },
        )?;
        stride.tail = source::PREPARED;
        Ok(Some(out))
    }

    /// Products with the same x: those whose weights share a format and buffers in one dispatch, if the rows are few.
    pub(super) fn products(
        &self,
        state: &mut State,
        x: &Tensor,
        jobs: &[Job<'_>],
        halved: &mut Halved,
    ) -> Result<()> {
        let alone = |job: &Job<'_>| {
            job.bias.is_some() || job.weight.rows() == 0 || self.by_blocks(x.rows(), job.weight)
        };
        let mut done = vec![false; jobs.len()];
        for (first, job) in jobs.iter().enumerate() {
            if done[first] {
                continue;
            }
            let mut members = vec![first];
            if !alone(job) {
                let alike = |other: &Job<'_>| !alone(other) && same_buffers(job.weight, other.weight);
                members.extend((first + 1..jobs.len()).filter(|&i| !done[i] && alike(&jobs[i])));
                members.truncate(JOBS_MAX);
            }
            members.iter().for_each(|&i| done[i] = true);
            if let [_] = members[..] {
                self.product(state, x, job.weight, job.bias, job.out, halved)?;
            } else {
                let members: Vec<&Job<'_>> = members.iter().map(|&i| &jobs[i]).collect();
                self.products_at_once(state, x, &members, None)?;
            }
        }
        Ok(())
    }

    /// [`crate::Backend::linears_conv`]: a row of each sequence in one dispatch, if one takes all products.
    pub(super) fn products_and_conv(
        &self,
        x: &Tensor,
        products: &mut [Product<'_>],
        conv: Convolution<'_>,
    ) -> Result<()> {
        let all = jobs(x, products)?;
        let fits = all.len() <= JOBS_MAX && self.device.bindings_max >= CONV_BINDINGS;
        let alike = |job: &Job<'_>| {
            let goes = job.bias.is_none() && job.weight.rows() > 0 && !self.by_blocks(x.rows(), job.weight);
            goes && same_buffers(all[0].weight, job.weight)
        };
        let segments = with_rows(conv.segments);
        let each = x.rows() == segments.len() && (0..).zip(&segments).all(|(i, s)| s.rows == (i..i + 1));
        let mut state = self.lock();
        // Rows of a rehearsal are one sequence's, and stand for as many sequences too.
        let rehearses = state.rehearses();
        if (each || rehearses) && fits && all.iter().all(alike) {
            let first = Job { weight: all[0].weight, bias: None, out: binding(conv.out)? };
            let all: Vec<&Job<'_>> = std::iter::once(&first).chain(&all[1..]).collect();
            self.products_at_once(&mut state, x, &all, Some(&conv))?;
            if each {
                return Ok(());
            }
        }
        self.products(&mut state, x, &all, &mut Halved::default())?;
        drop(state);
        self.convolve(products[0].out, conv.weight, conv.segments, conv.state, conv.out)
    }

    /// Up to [`JOBS_MAX`] products without bias, of weights in the same buffers, and a convolution of the first.
    fn products_at_once(
        &self,
        state: &mut State,
        x: &Tensor,
        jobs: &[&Job<'_>],
        conv: Option<&Convolution<'_>>,
    ) -> Result<()> {
        let first = jobs[0].weight;
        let mut params = Vec::with_capacity(4 * JOBS_MAX + 4);
        let mut packed = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (_, base) = weight_parts(job.weight)?;
            params.extend(base);
            params.push(job.weight.rows() as u32);
            packed.push(base);
        }
        params.resize(4 * JOBS_MAX, 0);
        let outputs: usize = jobs.iter().map(|job| job.weight.rows()).sum();
        let formats = [first.format()];
        let cols = first.cols();
        let mut stride = self.stride(&formats, [cols, outputs], x.rows(), alignment(packed));
        // Immediates of four are at multiples of their size.
        params.extend([cols as u32, x.rows() as u32, stride.chunks, 0]);
        let groups: usize = jobs.iter().map(|job| stride.groups(job.weight.rows())).sum();
        let unused = self.unused(state)?;
        let prepared = self.prepared(state, binding(x)?, [x.rows(), cols], &mut stride, groups)?;
        let mut bindings = vec![prepared.as_ref().map_or(binding(x)?, |x| x.binding())];
        bindings.extend((0..JOBS_MAX).map(|i| jobs.get(i).map_or(unused[i].binding(), |job| job.out)));
        let mut constants = stride.constants().to_vec();
        let mut kernel = &source::LINEARS;
        let places = conv.map(|conv| self.place_segments(state, &with_rows(conv.segments))).transpose()?;
        if let (Some(conv), Some(places)) = (conv, &places) {
            kernel = &source::LINEARS_CONV;
            constants.push(conv.weight.cols() as u32);
            params.extend(places.params(&[]));
            bindings.extend([binding(conv.weight)?, binding(conv.state)?, places.binding()]);
        }
        bindings.extend(weight_parts(first)?.0);
        self.run(
            state,
            &Call {
                kernel,
                formats: &formats,
                constants: &constants,
                bindings: &bindings,
                params: &params,
                groups: folded(groups, (x.rows() as u32).div_ceil(stride.tokens)),
            },
        )
    }

    /// Memory for bindings that a pipeline declares and never touches.
    pub(super) fn unused(&self, state: &mut State) -> Result<[Arc<GpuMemory>; JOBS_MAX]> {
        let mut one = |usage| self.scratch(state, usage, 16);
        Ok([one("unused 0")?, one("unused 1")?, one("unused 2")?, one("unused 3")?])
    }

    /// `out = x . w^T + bias`; out is f32 `[x.rows, w.rows]`.
    pub(super) fn product(
        &self,
        state: &mut State,
        x: &Tensor,
        w: &Weight,
        bias: Option<&Tensor>,
        out: Binding<'_>,
        halved: &mut Halved,
    ) -> Result<()> {
        let (rows, cols, outputs) = (x.rows(), w.cols(), w.rows());
        if self.by_blocks(rows, w) {
            return self.block_product(state, x, w, bias, out, halved);
        }
        let (parts, base) = weight_parts(w)?;
        let shape = [cols as u32, outputs as u32, rows as u32, u32::from(bias.is_some())];
        let mut params = vec![base[0], base[1], base[2]];
        params.extend(shape);
        // A binding must be something: without a bias it is never read.
        let x = binding(x)?;
        let bias = bias.map(binding).transpose()?.unwrap_or(x);
        let formats = [w.format()];
        let mut stride = self.stride(&formats, [cols, outputs], rows, alignment([base]));
        let groups = stride.groups(outputs);
        params.push(stride.chunks);
        let prepared = self.prepared(state, x, [rows, cols], &mut stride, groups)?;
        let mut bindings = vec![prepared.as_ref().map_or(x, |x| x.binding()), bias, out];
        bindings.extend(parts);
        self.run(
            state,
            &Call {
                kernel: &source::LINEAR,
                formats: &formats,
                constants: &stride.constants(),
                bindings: &bindings,
                params: &params,
                groups: folded(groups, (rows as u32).div_ceil(stride.tokens)),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_leave_few_idle() {
        // 4096, 2048, 1024, 768, 512, 256, 2560 values of 32 a step.
        for (chunks, want) in
            [(128, 32), (64, 32), (32, 32), (24, 8), (16, 16), (8, 8), (80, 16), (1, 4), (3, 4)]
        {
            assert_eq!(lanes(chunks, 1 << 20, 32, false), want, "{chunks}");
            assert!(lanes(chunks, 1 << 20, 8, false) <= 8);
        }
    }

    #[test]
    fn small_products_get_more_lanes() {
        // 2048 and 4096 values, 2048 outputs; experts of 2048 x 512 as if eight were active; a head; a router.
        for (chunks, outputs, want) in [
            (64, 2048, 64),
            (128, 2048, 128),
            (64, 4096, 64),
            (16, 16384, 16),
            (64, 151_936, 32),
            (80, 64, 16),
            (256, 257, 256),
        ] {
            assert_eq!(lanes(chunks, outputs, 32, false), want, "{chunks} {outputs}");
        }
    }

    #[test]
    fn short_rows_of_integers_get_fewer_lanes() {
        // Down of experts of 1024 and 512 values as if eight were active; rows of 4096 and 2048.
        for (chunks, outputs, want) in
            [(32, 32768, 8), (16, 16384, 8), (128, 32768, 32), (128, 2048, 64), (64, 151_936, 32)]
        {
            assert_eq!(lanes(chunks, outputs, 32, true), want, "{chunks} {outputs}");
        }
    }

    #[test]
    fn alignment_is_what_all_bases_share() {
        let at = |packed: u32| [packed, 2, 6];
        assert_eq!(alignment([0, 4096].map(at)), 4096);
        assert_eq!(alignment([32, 48].map(at)), 16);
        assert_eq!(alignment([32, 7].map(at)), 1);
        assert_eq!(alignment([[32, 16, 7]]), 1);
    }
}
