//! The kernels that multiply some vectors of weight rows with rows of x.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::Meta;
use super::{BLOCK, CHUNK, Emit, Source, Unpack};
use crate::cpu::simd::{Kernel, Simd, array};

/// Vectors of a block in a panel: bytes, scales, minimums.
pub(super) const VECTORS: usize = 12;
/// Bytes of a weight that are asked for ahead of time, at least: what memory brings while one request is under way.
const AHEAD: usize = 16 << 10;
/// Bytes of so many bits are narrow: the sum of eight products with signed bytes fits 16 bits.
pub(super) const NARROW: u32 = 5;
/// Rows of x that are multiplied together.
pub(super) const X_ROWS: usize = 4;

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
    /// Dword `c` of block `b`, in all lanes.
    #[inline(always)]
    unsafe fn dword<S: Simd>(&self, b: usize, c: usize) -> S::I {
        // SAFETY: the row has that block.
        unsafe { S::splat(self.q.add(b * BLOCK).cast::<i32>().add(c).read_unaligned()) }
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
unsafe fn share<S: Simd, const HALVES: bool, const MIN: bool>(
    total: S::F,
    meta: &Meta,
    sums: [S::I; 2],
    d: [S::F; 2],
    m: [S::F; 2],
) -> S::F {
    let mut total = total;
    for h in 0..1 + usize::from(HALVES) {
        // SAFETY: as the caller promises.
        unsafe {
            total = S::fma(S::to_f(sums[h]), S::mul(d[h], S::splat_f(meta.scale)), total);
            if MIN {
                total = S::fma(m[h], S::splat_f(meta.sum[h]), total);
            }
        }
    }
    total
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
            let after = Source { rows: self.next, ..self.source };
            let ahead = (AHEAD / (S::LANES * self.source.strides[0])).clamp(1, self.panels);
            for panel in 0..self.panels {
                let source = self.source.below(panel * S::LANES);
                let later = panel + ahead;
                let next = if later < self.panels {
                    self.source.below(later * S::LANES).rows
                } else {
                    after.below((later - self.panels) * S::LANES).rows
                };
                let mut emit = Direct::<S, U> {
                    x: self.x,
                    total: S::splat_f(0.0),
                    residue: self.blocks,
                    rest: S::splat_f(0.0),
                    ahead: Ahead::new::<S>(&source, next, 1, 0..self.blocks, self.blocks),
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

/// Memory that is asked for before its turn, a little with each block.
#[derive(Clone, Copy)]
struct Ahead {
    next: *const u8,
    until: *const u8,
    step: usize,
}

impl Ahead {
    /// The share that `blocks` of `of` have in `panels` panels from `next` on.
    #[inline(always)]
    fn new<S: Simd>(
        source: &Source,
        next: [*const u8; 3],
        panels: usize,
        blocks: Range<usize>,
        of: usize,
    ) -> Self {
        let step = panels * S::LANES * source.strides[0] / of;
        let next = next[0].wrapping_add(blocks.start * step);
        Self { next, until: next, step }
    }

    /// # Safety
    /// The features of `S` are present.
    #[inline(always)]
    unsafe fn block<S: Simd>(&mut self) {
        self.until = self.until.wrapping_add(self.step);
        while self.next < self.until {
            // SAFETY: as the caller promises; a prefetch may name any address.
            unsafe { S::prefetch(self.next) };
            self.next = self.next.wrapping_add(64);
        }
    }
}

/// Asks for the share of `chunk` of `blocks` blocks in the parts that hold scales, from `next` on.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn prefetch_scales<S: Simd>(
    source: &Source,
    next: [*const u8; 3],
    chunk: &Range<usize>,
    blocks: usize,
) {
    for part in 1..3 {
        let bytes = S::LANES * source.strides[part];
        if bytes > 0 {
            for at in (bytes * chunk.start / blocks..bytes * chunk.end / blocks).step_by(64) {
                // SAFETY: as the caller promises; a prefetch may name any address.
                unsafe { S::prefetch(next[part].wrapping_add(at)) };
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
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: [S::F; 2], m: [S::F; 2]) {
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
    unsafe fn add(&self, b: usize, w: [S::I; 8], d: [S::F; 2], m: [S::F; 2], to: S::F) -> S::F {
        // SAFETY: as the caller promises.
        unsafe {
            let meta = self.x.meta(b);
            // Two chains, for the processor's sake.
            let mut sums = [S::splat(meta.start[0]), S::splat(if U::HALVES { meta.start[1] } else { 0 })];
            for h in 0..2 {
                let x = array!(c < 4 => self.x.dword::<S>(b, 4 * h + c));
                let w = array!(c < 4 => w[4 * h + c]);
                sums[h] = dots::<S>(U::BITS, sums[h], w, x);
            }
            if !U::HALVES {
                sums[0] = S::add(sums[0], sums[1]);
            }
            total::<S, U>(to, meta, sums, d, m)
        }
    }
}

/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn plus<S: Simd>(a: S::F, b: S::F) -> S::F {
    // SAFETY: as the caller promises.
    unsafe { S::fma(a, S::splat_f(1.0), b) }
}

/// [`share`], for a format.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn total<S: Simd, U: Unpack>(
    total: S::F,
    meta: &Meta,
    sums: [S::I; 2],
    d: [S::F; 2],
    m: [S::F; 2],
) -> S::F {
    // SAFETY: as the caller promises.
    unsafe {
        match (U::HALVES, U::MIN) {
            (false, false) => share::<S, false, false>(total, meta, sums, d, m),
            (false, true) => share::<S, false, true>(total, meta, sums, d, m),
            (true, false) => share::<S, true, false>(total, meta, sums, d, m),
            (true, true) => share::<S, true, true>(total, meta, sums, d, m),
        }
    }
}

/// Adds the products of four dwords: [`Simd::dot`], together where the instruction set gains from that.
///
/// # Safety
/// The features of `S` are present; the bytes of w have `bits`.
#[inline(always)]
unsafe fn dots<S: Simd>(bits: u32, mut sum: S::I, w: [S::I; 4], x: [S::I; 4]) -> S::I {
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

/// Room for panels.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub(super) panel: *mut f32,
    /// One or two.
    pub(super) panels: usize,
    /// From the first panel to the second.
    pub(super) panel_len: usize,
}

/// Unpacks a chunk of each panel.
pub(super) struct Pack<U> {
    pub(super) source: Source,
    /// Where what is packed next lies in each part.
    pub(super) next: [*const u8; 3],
    pub(super) to: Panels,
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
            for panel in 0..self.to.panels {
                let to = self.to.panel.add(panel * self.to.panel_len);
                let source = self.source.below(panel * S::LANES);
                let next = array!(part < 3 => {
                    self.next[part].wrapping_add(panel * S::LANES * source.strides[part])
                });
                let ahead = Ahead::new::<S>(&source, next, 1, self.blocks.clone(), self.of);
                prefetch_scales::<S>(&source, next, &self.blocks, self.of);
                let mut emit = Stored::<U> { to, first: self.blocks.start, ahead, format: PhantomData };
                U::unpack::<S, _>(&source, self.blocks.clone(), &mut emit);
            }
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
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: [S::F; 2], m: [S::F; 2]) {
        // SAFETY: the panel has room for a chunk.
        unsafe {
            self.ahead.block::<S>();
            let to = self.to.add((b - self.first) * VECTORS * S::LANES);
            for c in 0..8 {
                S::store(w[c], to.add(c * S::LANES).cast());
            }
            for h in 0..1 + usize::from(U::HALVES) {
                S::store_f(d[h], to.add((8 + h) * S::LANES));
                if U::MIN {
                    S::store_f(m[h], to.add((10 + h) * S::LANES));
                }
            }
        }
    }
}

/// Packed panels and all rows of x: adds the chunk's share to the sums.
#[derive(Clone)]
pub(super) struct Several<'a> {
    pub(super) panels: Panels,
    pub(super) blocks: Range<usize>,
    pub(super) x: Rows,
    /// Blocks of a row of x without its residues.
    pub(super) of: usize,
    pub(super) rows: &'a [u32],
    /// `[rows, panels * lanes]`
    pub(super) sums: *mut f32,
}

/// [`Several`], for the formats of one kind.
pub(super) struct Kind<'a, const HALVES: bool, const MIN: bool, const BITS: u32>(pub(super) Several<'a>);

impl<const HALVES: bool, const MIN: bool, const BITS: u32> Kernel for Kind<'_, HALVES, MIN, BITS> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, packed panels, and rows of x and of sums.
        unsafe {
            // Only wide vectors come with registers for two panels.
            if S::PANELS == 2 && self.0.panels.panels == 2 { self.all::<S, 2>() } else { self.all::<S, 1>() }
        }
    }
}

impl<const HALVES: bool, const MIN: bool, const BITS: u32> Kind<'_, HALVES, MIN, BITS> {
    /// # Safety
    /// As [`Kernel::run`]; there are `P` panels.
    #[inline(always)]
    unsafe fn all<S: Simd, const P: usize>(self) {
        let work = self.0;
        for (i, rows) in work.rows.chunks(X_ROWS).enumerate() {
            let last = rows.len() - 1;
            let x = array!(n < X_ROWS => work.x.row(rows[if n < last { n } else { last }]));
            let work = Several { sums: work.sums.wrapping_add(i * X_ROWS * P * S::LANES), ..work.clone() };
            // SAFETY: as the caller promises.
            unsafe {
                match rows.len() {
                    1 => Group::<HALVES, MIN, BITS, 1> { work, x: [x[0]] }.panels::<S, P>(),
                    2 => Group::<HALVES, MIN, BITS, 2> { work, x: [x[0], x[1]] }.panels::<S, P>(),
                    _ => Group::<HALVES, MIN, BITS, X_ROWS> { work, x }.panels::<S, P>(),
                }
            }
        }
        for (i, row) in work.rows.iter().enumerate() {
            let row = work.x.row(*row);
            // SAFETY: as the caller promises.
            unsafe {
                let residues = row.residues(&work.blocks, work.of);
                if !residues.is_empty() {
                    let work = Several { sums: work.sums.wrapping_add(i * P * S::LANES), ..work.clone() };
                    Group::<HALVES, MIN, BITS, 1> { work, x: [row] }.residues::<S, P>(residues);
                }
            }
        }
    }
}

/// `N` rows of x with the panels.
struct Group<'a, const HALVES: bool, const MIN: bool, const BITS: u32, const N: usize> {
    work: Several<'a>,
    x: [Row; N],
}

impl<const HALVES: bool, const MIN: bool, const BITS: u32, const N: usize> Group<'_, HALVES, MIN, BITS, N> {
    /// # Safety
    /// As [`Kernel::run`]; there are `P` panels.
    #[inline(always)]
    unsafe fn panels<S: Simd, const P: usize>(self) {
        // SAFETY: as the caller promises.
        unsafe {
            let sums = self.work.sums;
            let mut totals = array!(p < P => array!(n < N => S::load_f(sums.add((n * P + p) * S::LANES))));
            for (i, b) in self.work.blocks.clone().enumerate() {
                let panel = self.panel::<S, P>(i);
                self.add::<S, P>(panel, b, &mut totals);
            }
            for p in 0..P {
                for n in 0..N {
                    S::store_f(totals[p][n], sums.add((n * P + p) * S::LANES));
                }
            }
        }
    }

    /// Block `i` of the chunk in each panel.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn panel<S: Simd, const P: usize>(&self, i: usize) -> [*const f32; P] {
        let panels = self.work.panels;
        // SAFETY: as the caller promises.
        unsafe {
            array!(p < P => panels.panel.cast_const().add(p * panels.panel_len + i * VECTORS * S::LANES))
        }
    }

    /// Adds the shares that block `b` of the rows has with a packed block.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn add<S: Simd, const P: usize>(
        &self,
        panel: [*const f32; P],
        b: usize,
        totals: &mut [[S::F; N]; P],
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let sums = self.sums::<S, P>(panel, b);
            for p in 0..P {
                let second = usize::from(HALVES);
                let d = array!(h < 2 => S::load_f(panel[p].add((8 + h * second) * S::LANES)));
                let m = if MIN {
                    array!(h < 2 => S::load_f(panel[p].add((10 + h * second) * S::LANES)))
                } else {
                    d
                };
                for n in 0..N {
                    let meta = self.x[n].meta(b);
                    totals[p][n] = share::<S, HALVES, MIN>(totals[p][n], meta, sums[p][n], d, m);
                }
            }
        }
    }

    /// The integer sums of block `b`.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn sums<S: Simd, const P: usize>(&self, panel: [*const f32; P], b: usize) -> [[[S::I; 2]; N]; P] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [array!(n < N => array!(h < 2 => S::splat(self.x[n].meta(b).start[h]))); P];
            if S::FOLDS && BITS <= NARROW {
                for half in 0..2 {
                    let h = if HALVES { half } else { 0 };
                    for p in 0..P {
                        let w = array!(c < 4 => S::load(panel[p].add((4 * half + c) * S::LANES).cast()));
                        for n in 0..N {
                            let x = array!(c < 4 => self.x[n].dword::<S>(b, 4 * half + c));
                            sums[p][n][h] = S::dot_four(sums[p][n][h], w, x);
                        }
                    }
                }
                return sums;
            }
            for c in 0..8 {
                let h = if HALVES { c / 4 } else { 0 };
                let w = array!(p < P => S::load(panel[p].add(c * S::LANES).cast()));
                for n in 0..N {
                    let x = self.x[n].dword::<S>(b, c);
                    for p in 0..P {
                        sums[p][n][h] = if BITS > 7 {
                            S::dot::<true>(sums[p][n][h], w[p], x)
                        } else {
                            S::dot::<false>(sums[p][n][h], w[p], x)
                        };
                    }
                }
            }
            sums
        }
    }
}

impl<const HALVES: bool, const MIN: bool, const BITS: u32> Group<'_, HALVES, MIN, BITS, 1> {
    /// Adds the sum of the shares of some residues of the chunk.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn residues<S: Simd, const P: usize>(self, residues: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut rest = [[S::splat_f(0.0); 1]; P];
            for residue in residues {
                let block = self.x[0].meta(residue).link as usize;
                let panel = self.panel::<S, P>(block - self.work.blocks.start);
                self.add::<S, P>(panel, residue, &mut rest);
            }
            for p in 0..P {
                let to = self.work.sums.add(p * S::LANES);
                S::store_f(plus::<S>(S::load_f(to), rest[p][0]), to);
            }
        }
    }
}
