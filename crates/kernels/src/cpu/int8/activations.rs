//! Rows of x as signed bytes, in the order in which a format's bytes come.
//!
//! The error of a block's products is a part of its scale, and the few blocks with the largest values (some channels of
//! trained models) make a large part of a row's error. What rounding leaves of those is quantised once more, 254 times
//! finer: the *residues*, blocks of their own after the row's.
//!
//! A super-block has one scale for 256 values, so one large value costs all others theirs. Where one block of 32 is far
//! above the other seven, those make the scale, and the large one has a second set of bytes, 127 times coarser: its
//! *excess*, after the row's super-blocks.

use super::steps::{self, Quantise, Steps};
use super::{BLOCK, BLOCKS, SUPER};
use crate::cpu::isa::Isa;
use crate::cpu::shared::Parts;

/// Where the values of a block of 32 lie among the unpacked bytes of a format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cpu) enum Order {
    /// In order.
    #[default]
    Natural,
    /// The even ones, then the odd ones: nibbles side by side.
    EvenOdd,
    /// Of each 16: every fourth from the first, then from the second, ..: four values a byte.
    Quads,
    /// In even blocks each half starts with its last two values; odd blocks in order: blocks whose bytes start in
    /// the middle of a dword.
    Rotated16,
    /// In even blocks the last two values come first.
    Rotated32,
}

/// How a format wants its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Layout {
    /// In blocks of 32.
    Blocks {
        order: Order,
        /// What an integer sum starts with, for each unit of the sum of x.
        correction: i32,
    },
    /// In super-blocks of 256, in order.
    Supers {
        /// Parts of a super-block that have a sum each: 8 or 16.
        parts: usize,
        goes_with: Extra,
    },
}

/// What goes with the parts of a super-block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Extra {
    /// So many times the sum of x: what an integer sum starts with.
    Correction(i32),
    /// The sum of x, for minimums: two words a dword, of parts 4 n and 4 n + 2, then of 4 n + 1 and 4 n + 3.
    Sums,
}

/// A block has a residue if the square of its scale exceeds so many times the row's mean: 2 % of the blocks of a
/// trained model, and never more than one in so many.
const OUTSTANDING: usize = 9;
/// A super-block has an excess if the square of its scale exceeds so many times the mean of what blocks of 32 would have, and
/// one of its blocks is so many times as large as all others: a few large values would cost the others theirs.
const OUTSTANDING_SUPER: f32 = 4.0;
const TIMES: f32 = 2.0;
/// Steps of a super-block in a step of its excess.
const COARSER: f32 = 127.0;
/// Rows behind the last that may be read, and say nothing: as many as a matrix tile has, but one.
const ROWS_BEHIND: usize = 15;
/// Steps of a residue in a step of its block: from half a step down to half a step up in signed bytes.
const FINER: f32 = 254.0;

/// What goes with 32 quantised values.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(in crate::cpu) struct Meta {
    /// `x = scale * q`
    pub(super) scale: f32,
    /// Of a block: where in its row the residues of the blocks after it begin. Of a residue: its block.
    pub(super) link: u32,
    /// What the integer sum starts with.
    pub(super) start: i32,
    /// `scale * sum(q)`
    pub(super) sum: f32,
}

/// What goes with 256 quantised values.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(in crate::cpu) struct SuperMeta {
    /// As [`Meta`]'s.
    pub(super) scale: f32,
    /// Of a super-block: where in its row the excesses of those after it begin. Of an excess: its block in the row.
    pub(super) link: u32,
    /// As the layout's [`Extra`] says; of an excess, with nothing but its block.
    pub(super) extra: [i32; 16],
}

/// Quantised rows, `[rows, cols]`, each followed by room for residues.
#[derive(Debug)]
pub(in crate::cpu) struct Activations {
    pub(super) q: Vec<i8>,
    pub(super) meta: Vec<Meta>,
    pub(super) supers: Vec<SuperMeta>,
    pub(super) cols: usize,
    pub(super) layout: Layout,
}

impl Default for Activations {
    fn default() -> Self {
        let layout = Layout::Blocks { order: Order::Natural, correction: 0 };
        Self { q: Vec::new(), meta: Vec::new(), supers: Vec::new(), cols: 0, layout }
    }
}

impl Activations {
    /// Makes room for `rows` rows of undefined content.
    pub(in crate::cpu) fn resize(&mut self, rows: usize, cols: usize, layout: Layout) {
        (self.cols, self.layout) = (cols, layout);
        let units = rows * self.row_units();
        match layout {
            Layout::Blocks { .. } => self.meta.resize(self.meta.len().max(units), Meta::default()),
            Layout::Supers { .. } => self.supers.resize(self.supers.len().max(units), SuperMeta::default()),
        }
        let bytes = self.pitch() * (rows + self.rows_behind());
        self.q.resize(self.q.len().max(bytes), 0);
    }

    fn rows_behind(&self) -> usize {
        match self.layout {
            Layout::Blocks { .. } => 0,
            Layout::Supers { .. } => ROWS_BEHIND,
        }
    }

    /// Bytes from a row to the next.
    fn pitch(&self) -> usize {
        match self.layout {
            Layout::Blocks { .. } => self.row_units() * BLOCK,
            Layout::Supers { .. } => pitch_of_supers(self.cols / SUPER),
        }
    }

    /// Values that share a scale.
    fn unit(&self) -> usize {
        match self.layout {
            Layout::Blocks { .. } => BLOCK,
            Layout::Supers { .. } => SUPER,
        }
    }

    /// Blocks or super-blocks from a row to the next.
    pub(super) fn row_units(&self) -> usize {
        let units = self.cols / self.unit();
        match self.layout {
            Layout::Blocks { .. } => units + units / OUTSTANDING,
            Layout::Supers { .. } => 2 * units,
        }
    }

    /// Rows that there is room for.
    pub(super) fn rows(&self) -> usize {
        let units = match self.layout {
            Layout::Blocks { .. } => self.meta.len(),
            Layout::Supers { .. } => self.supers.len(),
        };
        (units / self.row_units()).min((self.q.len() / self.pitch()).saturating_sub(self.rows_behind()))
    }

    /// All rows, to be filled by many threads.
    pub(in crate::cpu) fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut {
            units: self.row_units(),
            pitch: self.pitch(),
            cols: self.cols,
            layout: self.layout,
            q: Parts::new(&mut self.q),
            meta: Parts::new(&mut self.meta),
            supers: Parts::new(&mut self.supers),
        }
    }
}

/// Bytes of a row with so many super-blocks, each with room for an excess: an odd number of cache lines, as rows whose
/// distance is a power of two would meet in the cache.
pub(super) fn pitch_of_supers(supers: usize) -> usize {
    ((supers * (SUPER + BLOCK)).div_ceil(64) | 1) * 64
}

/// Rows that are filled by many threads.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct RowsMut<'a> {
    units: usize,
    pitch: usize,
    cols: usize,
    layout: Layout,
    q: Parts<'a, i8>,
    meta: Parts<'a, Meta>,
    supers: Parts<'a, SuperMeta>,
}

impl RowsMut<'_> {
    /// Quantises row `r`, `[cols]`. Panics if there is no room for it.
    ///
    /// # Safety
    /// Nobody else accesses that row.
    pub(in crate::cpu) unsafe fn quantise(&self, isa: Isa, r: usize, x: &[f32]) {
        assert_eq!(x.len(), self.cols);
        let (first, units) = (r * self.units, self.units);
        // SAFETY: as the caller promises.
        unsafe {
            let q = self.q.part(r * self.pitch, self.pitch);
            match self.layout {
                Layout::Blocks { order, correction } => {
                    steps::enter(
                        isa,
                        InBlocks { x, order, correction, q, meta: self.meta.part(first, units) },
                    );
                }
                Layout::Supers { parts, goes_with } => {
                    steps::enter(
                        isa,
                        InSupers { x, parts, goes_with, q, meta: self.supers.part(first, units) },
                    );
                }
            }
        }
    }
}

/// Quantises one row in blocks, with its residues.
struct InBlocks<'a> {
    x: &'a [f32],
    order: Order,
    correction: i32,
    q: &'a mut [i8],
    meta: &'a mut [Meta],
}

impl Quantise for InBlocks<'_> {
    #[inline(always)]
    fn run<S: Steps>(self) {
        let Self { x, order, correction, q, meta } = self;
        let count = x.len() / BLOCK;
        let (q, residues_q) = q.split_at_mut(x.len());
        let (meta, residues) = meta.split_at_mut(count);
        let mut squares = 0.0;
        let blocks = of_32(x).iter().zip(q.as_chunks_mut().0).zip(&mut *meta).enumerate();
        for (b, ((x, q), meta)) in blocks {
            let (inverse, scale) = steps_to(S::largest(x));
            let (natural, sums) = S::bytes(x, inverse);
            S::permute(order, b, &natural, q);
            *meta = meta_of(scale, sums, correction);
            squares += scale * scale;
        }
        let limit = OUTSTANDING as f32 * (squares / count as f32);
        let mut used = 0;
        let blocks = of_32(x).iter().zip(&mut *meta).enumerate();
        for (b, (x, meta)) in blocks {
            if meta.scale * meta.scale > limit && used < residues.len() {
                // The bytes once more, which may lie in another order.
                let (inverse, scale) = steps_to(S::largest(x));
                let (natural, _) = S::bytes(x, inverse);
                let mut rest = [0.0; BLOCK];
                for ((rest, x), q) in rest.iter_mut().zip(x).zip(&natural) {
                    *rest = x - scale * f32::from(*q);
                }
                let (natural, sums) = S::bytes(&rest, FINER * inverse);
                S::permute(order, b, &natural, &mut residues_q.as_chunks_mut().0[used]);
                residues[used] = Meta { link: b as u32, ..meta_of(scale / FINER, sums, correction) };
                used += 1;
            }
            meta.link = (count + used) as u32;
        }
    }
}

/// Quantises one row in super-blocks, with its excesses.
struct InSupers<'a> {
    x: &'a [f32],
    parts: usize,
    goes_with: Extra,
    q: &'a mut [i8],
    meta: &'a mut [SuperMeta],
}

impl Quantise for InSupers<'_> {
    #[inline(always)]
    fn run<S: Steps>(self) {
        let Self { x, parts, goes_with, q, meta } = self;
        let count = x.len() / SUPER;
        let (q, excesses_q) = q.split_at_mut(x.len());
        let (meta, excesses) = meta.split_at_mut(count);
        let mut squares = 0.0;
        for ((x, q), meta) in x.chunks_exact(SUPER).zip(q.chunks_exact_mut(SUPER)).zip(&mut *meta) {
            let mut sizes = [0; BLOCKS];
            for (size, x) in sizes.iter_mut().zip(of_32(x)) {
                *size = S::largest(x);
                let (_, scale) = steps_to(*size);
                squares += scale * scale;
            }
            let (inverse, scale) = steps_to(sizes.into_iter().fold(0, u32::max));
            let sums = super_bytes::<S>(x, inverse, q);
            *meta = SuperMeta { scale, link: 0, extra: extra_of(&sums, parts, goes_with) };
        }
        let limit = OUTSTANDING_SUPER * (squares / (count * BLOCKS) as f32);
        let mut used = 0;
        let supers = x.chunks_exact(SUPER).zip(q.chunks_exact_mut(SUPER)).zip(&mut *meta).enumerate();
        for (s, ((x, q), meta)) in supers {
            let outstanding = if meta.scale * meta.scale > limit { outstanding_block::<S>(x) } else { None };
            if let Some((j, scale)) = outstanding {
                let (at, inverse) = (j * BLOCK, 1.0 / scale);
                let (excess, halves) = S::bytes(&of_32(x)[j], inverse / COARSER);
                let mut rest = [0.0; SUPER];
                rest.copy_from_slice(x);
                for (rest, excess) in rest[at..].iter_mut().zip(&excess) {
                    *rest -= COARSER * scale * f32::from(*excess);
                }
                let sums = super_bytes::<S>(&rest, inverse, q);
                (meta.scale, meta.extra) = (scale, extra_of(&sums, parts, goes_with));
                let mut sums = [0; 16];
                sums[2 * j..][..2].copy_from_slice(&halves);
                excesses[used] = SuperMeta {
                    scale: COARSER * scale,
                    link: (s * BLOCKS + j) as u32,
                    extra: extra_of(&sums, parts, goes_with),
                };
                excesses_q[used * BLOCK..][..BLOCK].copy_from_slice(&excess);
                used += 1;
            }
            meta.link = (count + used) as u32;
        }
    }
}

/// Which block of a super-block is far above the others, and the step that these leave.
#[inline(always)]
fn outstanding_block<S: Steps>(x: &[f32]) -> Option<(usize, f32)> {
    let (mut first, mut second, mut block) = (0, 0, 0);
    for (j, x) in of_32(x).iter().enumerate() {
        let size = S::largest(x);
        if size > first {
            (second, first, block) = (first, size, j);
        } else {
            second = size.max(second);
        }
    }
    let ((_, large), (_, small)) = (steps_to(first), steps_to(second));
    // The excess has signed bytes too; no value, or one that is not finite, stays as it is.
    let step = small.max(large / COARSER);
    (large > TIMES * small && step.is_normal()).then_some((block, step))
}

/// 256 values in steps, and the sums of each 16.
#[inline(always)]
fn super_bytes<S: Steps>(x: &[f32], inverse: f32, q: &mut [i8]) -> [i32; 16] {
    let mut sums = [0; 16];
    for ((x, q), sums) in of_32(x).iter().zip(q.as_chunks_mut().0).zip(sums.as_chunks_mut().0) {
        (*q, *sums) = S::bytes(x, inverse);
    }
    sums
}

#[inline(always)]
fn extra_of(sums: &[i32; 16], parts: usize, goes_with: Extra) -> [i32; 16] {
    let each = 16 / parts;
    let mut of_parts = [0; 16];
    for (part, sums) in of_parts.iter_mut().zip(sums.chunks_exact(each)) {
        *part = sums.iter().sum();
    }
    match goes_with {
        Extra::Correction(correction) => of_parts.map(|sum| correction * sum),
        Extra::Sums => {
            let mut pairs = [0; 16];
            for (pairs, sums) in pairs.chunks_exact_mut(2).zip(of_parts.chunks_exact(4)) {
                pairs[0] = sums[0] & 0xffff | sums[2] << 16;
                pairs[1] = sums[1] & 0xffff | sums[3] << 16;
            }
            pairs
        }
    }
}

#[inline(always)]
fn meta_of(scale: f32, sums: [i32; 2], correction: i32) -> Meta {
    let sum = sums[0] + sums[1];
    Meta { scale, link: 0, start: correction * sum, sum: scale * sum as f32 }
}

/// The blocks of a row.
#[inline(always)]
fn of_32(x: &[f32]) -> &[[f32; BLOCK]] {
    x.as_chunks().0
}

/// Steps in one and the size of a step, for values up to one with these bits.
#[inline(always)]
fn steps_to(largest: u32) -> (f32, f32) {
    const INFINITE: u32 = 0x7f80_0000;
    let max = f32::from_bits(largest);
    // What is not finite must not vanish: it poisons the scale.
    (if max > 0.0 { 127.0 / max } else { 0.0 }, if largest < INFINITE { max / 127.0 } else { f32::NAN })
}
