//! The kernels that multiply some vectors of weight rows with rows of x.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::Meta;
use super::ahead::{Ahead, later, prefetch_scales};
use super::{BLOCK, CHUNK, Emit, Source, Unpack};
use crate::cpu::simd::{Kernel, Simd, X_ROWS_MAX, array};

/// Vectors of a block in a panel: bytes, scales, minimums.
pub(super) const VECTORS: usize = 10;
/// Bytes of so many bits are narrow: the sum of eight products with signed bytes fits 16 bits.
pub(super) const NARROW: u32 = 5;

/// All quantised rows.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) q: *const i8,
    pub(super) meta: *const Meta,
    /// From a row to the next.
    pub(super) blocks: usize,
}

impl Rows {
    #[inline(always)]
    pub(super) fn row(&self, r: u32) -> Row {
        let first = r as usize * self.blocks;
        Row { q: self.q.wrapping_add(first * BLOCK), meta: self.meta.wrapping_add(first) }
    }
}

/// One quantised row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    q: *const i8,
    meta: *const Meta,
}

impl Row {
    #[inline(always)]
    fn block(&self, b: usize) -> *const i8 {
        self.q.wrapping_add(b * BLOCK)
    }

    #[inline(always)]
    unsafe fn meta(&self, b: usize) -> &Meta {
        // SAFETY: the row has that block.
        unsafe { &*self.meta.add(b) }
    }

    /// Which blocks of the row are the residues of a chunk's, where the row has `blocks` in all.
    #[inline(always)]
    unsafe fn residues(&self, chunk: &Range<usize>, blocks: usize) -> Range<usize> {
        // SAFETY: the row has the chunk's blocks.
        unsafe {
            let start = if chunk.start == 0 { blocks } else { self.meta(chunk.start - 1).link as usize };
            start..self.meta(chunk.end - 1).link as usize
        }
    }
}

/// Adds what a block contributes: THE rounding of sums. Their order: the blocks of a chunk, then the sum of its
/// residues.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn share<S: Simd, const MIN: bool>(total: S::F, meta: &Meta, sum: S::I, d: S::F, m: S::F) -> S::F {
    // SAFETY: as the caller promises.
    unsafe {
        let total = S::fma(S::to_f(sum), S::mul(d, S::splat_f(meta.scale)), total);
        if MIN { S::fma(m, S::splat_f(meta.sum), total) } else { total }
    }
}

/// One row of x: the weights stay in registers.
pub(super) struct One<U> {
    pub(super) source: Source,
    /// Where what is multiplied next lies in each part.
    pub(super) next: [*const u8; 3],
    pub(super) panels: usize,
    pub(super) blocks: usize,
    pub(super) x: Row,
    pub(super) to: *mut f32,
    pub(super) format: PhantomData<U>,
}

impl<U: Unpack> Kernel for One<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            for panel in 0..self.panels {
                let source = self.source.below(panel * S::LANES);
                let next = later::<S>(&self.source, self.next, self.panels, panel);
                let mut emit = Direct::<S, U> {
                    x: self.x,
                    total: S::splat_f(0.0),
                    residue: self.blocks,
                    rest: S::splat_f(0.0),
                    ahead: Ahead::of_panel::<S>(&self.source, self.next, self.panels, panel, self.blocks),
                    format: PhantomData,
                };
                for start in (0..self.blocks).step_by(CHUNK) {
                    let chunk = start..self.blocks.min(start + CHUNK);
                    prefetch_scales::<S>(&source, next, &chunk, self.blocks);
                    let residue = emit.residue;
                    U::unpack::<S, _>(&source, chunk, &mut emit);
                    if emit.residue > residue {
                        emit.total = plus::<S>(emit.total, emit.rest);
                        emit.rest = S::splat_f(0.0);
                    }
                }
                S::store_f(emit.total, self.to.add(panel * S::LANES));
            }
        }
    }
}

struct Direct<S: Simd, U> {
    x: Row,
    total: S::F,
    /// The next residue.
    residue: usize,
    /// Of the chunk's residues.
    rest: S::F,
    ahead: Ahead,
    format: PhantomData<U>,
}

impl<S: Simd, U: Unpack> Emit<S> for Direct<S, U> {
    #[inline(always)]
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: S::F, m: S::F) {
        // SAFETY: the row of x has as many blocks as the weights.
        unsafe {
            self.ahead.block::<S>();
            self.total = self.add(b, w, d, m, self.total);
            if self.x.meta(b).link as usize > self.residue {
                self.rest = self.add(self.residue, w, d, m, self.rest);
                self.residue += 1;
            }
        }
    }
}

impl<S: Simd, U: Unpack> Direct<S, U> {
    /// Adds the share of block `b` of x.
    ///
    /// # Safety
    /// The features of `S` are present; the row has that block.
    #[inline(always)]
    unsafe fn add(&self, b: usize, w: [S::I; 8], d: S::F, m: S::F, to: S::F) -> S::F {
        // SAFETY: as the caller promises.
        unsafe {
            let meta = self.x.meta(b);
            // Two chains, for the processor's sake.
            let mut sums = [S::splat(meta.start), S::splat(0)];
            for h in 0..2 {
                let x = array!(c < 4 => dword::<S>(self.x.block(b), 4 * h + c));
                let w = array!(c < 4 => w[4 * h + c]);
                sums[h] = dots::<S>(U::BITS, sums[h], w, x);
            }
            let sum = S::add(sums[0], sums[1]);
            if U::MIN {
                share::<S, true>(to, meta, sum, d, m)
            } else {
                share::<S, false>(to, meta, sum, d, m)
            }
        }
    }
}

/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn plus<S: Simd>(a: S::F, b: S::F) -> S::F {
    // SAFETY: as the caller promises.
    unsafe { S::fma(a, S::splat_f(1.0), b) }
}

/// Dword `c` of some bytes, in all lanes.
///
/// # Safety
/// The features of `S` are present; the dword exists.
#[inline(always)]
pub(super) unsafe fn dword<S: Simd>(q: *const i8, c: usize) -> S::I {
    // SAFETY: as the caller promises.
    unsafe { S::splat(q.cast::<i32>().add(c).read_unaligned()) }
}

/// Adds the products of four dwords: [`Simd::dot`], together where the instruction set gains from that.
///
/// # Safety
/// The features of `S` are present; the bytes of w have `bits`.
#[inline(always)]
pub(super) unsafe fn dots<S: Simd>(bits: u32, mut sum: S::I, w: [S::I; 4], x: [S::I; 4]) -> S::I {
    // SAFETY: as the caller promises.
    unsafe {
        if S::FOLDS && bits <= NARROW {
            return S::dot_four(sum, w, x);
        }
        for c in 0..4 {
            sum = if bits > 7 { S::dot::<true>(sum, w[c], x[c]) } else { S::dot::<false>(sum, w[c], x[c]) };
        }
        sum
    }
}

/// Unpacks a chunk of a panel.
pub(super) struct Pack<U> {
    pub(super) source: Source,
    /// Where what is packed next lies in each part.
    pub(super) next: [*const u8; 3],
    pub(super) to: *mut f32,
    pub(super) blocks: Range<usize>,
    /// Blocks of a row.
    pub(super) of: usize,
    pub(super) format: PhantomData<U>,
}

impl<U: Unpack> Kernel for Pack<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            let ahead = Ahead::new::<S>(&self.source, self.next, self.blocks.clone(), self.of);
            prefetch_scales::<S>(&self.source, self.next, &self.blocks, self.of);
            let first = self.blocks.start;
            let mut emit = Stored::<U> { to: self.to, first, ahead, format: PhantomData };
            U::unpack::<S, _>(&self.source, self.blocks, &mut emit);
        }
    }
}

struct Stored<U> {
    to: *mut f32,
    first: usize,
    ahead: Ahead,
    format: PhantomData<U>,
}

impl<S: Simd, U: Unpack> Emit<S> for Stored<U> {
    #[inline(always)]
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: S::F, m: S::F) {
        // SAFETY: the panel has room for a chunk.
        unsafe {
            self.ahead.block::<S>();
            let to = self.to.add((b - self.first) * VECTORS * S::LANES);
            for c in 0..8 {
                S::store(w[c], to.add(c * S::LANES).cast());
            }
            S::store_f(d, to.add(8 * S::LANES));
            if U::MIN {
                S::store_f(m, to.add(9 * S::LANES));
            }
        }
    }
}

/// A packed panel and all rows of x: adds the chunk's share to the sums.
#[derive(Clone)]
pub(super) struct Several<'a> {
    pub(super) panel: *const f32,
    pub(super) blocks: Range<usize>,
    pub(super) x: Rows,
    /// Blocks of a row of x without its residues.
    pub(super) of: usize,
    pub(super) rows: &'a [u32],
    pub(super) to: To<'a>,
}

/// Where sums lie: a vector for each row of x.
#[derive(Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) sums: *mut f32,
    /// Those of row i of x are `rows[i] * width` further.
    pub(super) rows: &'a [u32],
    pub(super) width: usize,
}

impl To<'_> {
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> *mut f32 {
        self.sums.wrapping_add(self.rows[i] as usize * self.width)
    }

    #[inline(always)]
    pub(super) fn rows(&self, at: &[usize; X_ROWS_MAX]) -> [*mut f32; X_ROWS_MAX] {
        array!(n < X_ROWS_MAX => self.row(at[n]))
    }
}

/// `P` panels with the same blocks and the same rows of x, which are loaded once for all, for the formats of one kind.
pub(super) struct Kind<'a, const MIN: bool, const BITS: u32, const P: usize>(pub(super) [Several<'a>; P]);

impl<const MIN: bool, const BITS: u32, const P: usize> Kernel for Kind<'_, MIN, BITS, P> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if const { P > 1 && !S::PAIRS } {
            unreachable!("panels are multiplied in pairs where `Isa::has_pairs`");
        }
        // SAFETY: as the caller of the kernel promises.
        unsafe { multiply::<S, MIN, BITS, P>(array!(p < P => &self.0[p])) }
    }
}

/// Adds the share of `P` panels' chunk to the sums of all rows of x.
///
/// # Safety
/// The features of `S` are present; the panels are packed; rows of x and of sums exist.
#[inline(always)]
unsafe fn multiply<S: Simd, const MIN: bool, const BITS: u32, const P: usize>(work: [&Several<'_>; P]) {
    let (all, rows, step) = (work[0].x, work[0].rows, S::X_ROWS);
    for first in (0..rows.len()).step_by(step) {
        // What is beyond the last row repeats it.
        let last = rows.len() - 1 - first;
        let at = array!(n < X_ROWS_MAX => first + if n < last { n } else { last });
        let x = array!(n < X_ROWS_MAX => all.row(rows[at[n]]));
        let to = array!(p < P => work[p].to.rows(&at));
        // SAFETY: as the caller promises.
        unsafe {
            match step.min(rows.len() - first) {
                1 => Group::<MIN, BITS, P, 1>::new(work, &x, &to).chunk::<S>(),
                2 => Group::<MIN, BITS, P, 2>::new(work, &x, &to).chunk::<S>(),
                3 | 4 => Group::<MIN, BITS, P, 4>::new(work, &x, &to).chunk::<S>(),
                _ if const { S::X_ROWS == X_ROWS_MAX } => {
                    Group::<MIN, BITS, P, X_ROWS_MAX>::new(work, &x, &to).chunk::<S>()
                }
                _ => unreachable!("groups have at most S::X_ROWS rows"),
            }
        }
    }
    for work in work {
        for (i, row) in rows.iter().enumerate() {
            let (x, to) = ([all.row(*row); X_ROWS_MAX], [[work.to.row(i); X_ROWS_MAX]]);
            // SAFETY: as above.
            unsafe {
                let residues = x[0].residues(&work.blocks, work.of);
                if !residues.is_empty() {
                    Group::<MIN, BITS, 1, 1>::new([work], &x, &to).residues::<S>(residues);
                }
            }
        }
    }
}

/// `N` rows of x with `P` panels.
struct Group<'a, const MIN: bool, const BITS: u32, const P: usize, const N: usize> {
    work: [&'a Several<'a>; P],
    x: [Row; N],
    to: [[*mut f32; N]; P],
}

impl<'a, const MIN: bool, const BITS: u32, const P: usize, const N: usize> Group<'a, MIN, BITS, P, N> {
    #[inline(always)]
    fn new(work: [&'a Several<'a>; P], x: &[Row; X_ROWS_MAX], to: &[[*mut f32; X_ROWS_MAX]; P]) -> Self {
        let to = array!(p < P => *to[p].first_chunk().expect("N is at most X_ROWS_MAX"));
        Self { work, x: *x.first_chunk().expect("N is at most X_ROWS_MAX"), to }
    }

    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn chunk<S: Simd>(self) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut totals = [[S::splat_f(0.0); N]; P];
            if self.work[0].blocks.start > 0 {
                totals = array!(p < P => array!(n < N => S::load_f(self.to[p][n])));
            }
            for b in self.work[0].blocks.clone() {
                self.add::<S>(b, b, &mut totals);
            }
            for p in 0..P {
                for n in 0..N {
                    S::store_f(totals[p][n], self.to[p][n]);
                }
            }
        }
    }

    /// Adds the shares that block `b` of the rows has with a packed block.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, packed: usize, b: usize, totals: &mut [[S::F; N]; P]) {
        // SAFETY: as the caller promises.
        unsafe {
            let first = (packed - self.work[0].blocks.start) * VECTORS * S::LANES;
            let panels = array!(p < P => self.work[p].panel.add(first));
            let sums = self.sums::<S>(&panels, b);
            for p in 0..P {
                let d = S::load_f(panels[p].add(8 * S::LANES));
                let m = if MIN { S::load_f(panels[p].add(9 * S::LANES)) } else { d };
                for n in 0..N {
                    totals[p][n] = share::<S, MIN>(totals[p][n], self.x[n].meta(b), sums[p][n], d, m);
                }
            }
        }
    }

    /// The integer sums of block `b`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn sums<S: Simd>(&self, panels: &[*const f32; P], b: usize) -> [[S::I; N]; P] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [array!(n < N => S::splat(self.x[n].meta(b).start)); P];
            for half in 0..2 {
                let x = array!(n < N => self.x[n].block(b).wrapping_add(16 * half));
                let w = array!(p < P => panels[p].add(4 * half * S::LANES).cast());
                sums = dots_of::<S, BITS, P, N>(sums, &w, &x);
            }
            sums
        }
    }
}

/// Adds the products of four dwords of `P` panels with four of `N` rows.
///
/// # Safety
/// The features of `S` are present; the dwords exist; the bytes of w have `BITS`.
#[inline(always)]
pub(super) unsafe fn dots_of<S: Simd, const BITS: u32, const P: usize, const N: usize>(
    mut sums: [[S::I; N]; P],
    w: &[*const i32; P],
    x: &[*const i8; N],
) -> [[S::I; N]; P] {
    // SAFETY: as the caller promises.
    unsafe {
        if S::FOLDS && BITS <= NARROW {
            for p in 0..P {
                let w = array!(c < 4 => S::load(w[p].add(c * S::LANES)));
                for n in 0..N {
                    let x = array!(c < 4 => dword::<S>(x[n], c));
                    sums[p][n] = S::dot_four(sums[p][n], w, x);
                }
            }
            return sums;
        }
        for c in 0..4 {
            let w = array!(p < P => S::load(w[p].add(c * S::LANES)));
            for n in 0..N {
                let x = dword::<S>(x[n], c);
                for p in 0..P {
                    sums[p][n] = if BITS > 7 {
                        S::dot::<true>(sums[p][n], w[p], x)
                    } else {
                        S::dot::<false>(sums[p][n], w[p], x)
                    };
                }
            }
        }
        sums
    }
}

impl<const MIN: bool, const BITS: u32> Group<'_, MIN, BITS, 1, 1> {
    /// Adds the sum of the shares of some residues of the chunk.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn residues<S: Simd>(self, residues: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut rest = [[S::splat_f(0.0)]];
            for residue in residues {
                let block = self.x[0].meta(residue).link as usize;
                self.add::<S>(block, residue, &mut rest);
            }
            let to = self.to[0][0];
            S::store_f(plus::<S>(S::load_f(to), rest[0][0]), to);
        }
    }
}
