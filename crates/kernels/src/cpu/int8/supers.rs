//! The kernels for weights in super-blocks: 256 values whose scales are small integers under one float.
//!
//! With activations that have one scale for 256 values too, all that a super-block contributes to an output is an
//! integer times two floats. Each part's sum of products is multiplied with the part's scale, and minimums with the
//! part's sum of x: exact, however it is computed.

mod several;

pub(super) use several::{Kind, Several};

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::SuperMeta;
use super::ahead::Ahead;
use super::panel::{dots, dword, plus};
use super::{BLOCKS, CHUNK, SUPER, Source};
use crate::cpu::simd::{Kernel, Simd, array};

/// Vectors of a super-block in a panel: bytes, scales, two floats and minimums.
pub(super) const VECTORS: usize = BYTES + 16 + 2 + MINS;
/// Those that hold bytes.
const BYTES: usize = SUPER / 4;
/// Where the others begin.
const SCALES: usize = BYTES;
const FLOATS: usize = SCALES + 16;
const MINIMUMS: usize = FLOATS + 2;
/// Vectors of minimums, two words a dword; where there are 8 parts, the second half is empty.
pub(super) const MINS: usize = 8;
/// Super-blocks of a chunk.
pub(super) const SUPERS: usize = CHUNK * super::BLOCK / SUPER;

/// A number format in super-blocks, unpacked to bytes.
pub(super) trait UnpackSuper: Copy + 'static {
    /// Parts of a super-block that have a scale of their own: 8 or 16.
    const PARTS: usize;
    /// There are minimums, and then no [`UnpackSuper::OFFSET`].
    const MIN: bool = false;
    /// Bits of the bytes, at most 7.
    const BITS: u32;
    /// What is subtracted from the bytes.
    const OFFSET: i32 = 0;

    /// Unpacks `supers` of [`Simd::LANES`] rows.
    ///
    /// # Safety
    /// The features of `S` are present; the source has that many rows, each with these super-blocks.
    unsafe fn unpack<S: Simd, E: EmitSuper<S>>(source: &Source, supers: Range<usize>, emit: &mut E);
}

/// Takes unpacked super-blocks.
pub(super) trait EmitSuper<S: Simd> {
    /// Values `32 j ..` of the super-block whose turn it is: bytes of each row, in order, and the scales of both
    /// halves; j from 0 to 7.
    ///
    /// # Safety
    /// The features of `S` are present.
    unsafe fn block(&mut self, j: usize, w: [S::I; 8], scales: [S::I; 2]);

    /// The end of a super-block: what its sums of products and its minimums are multiplied with, and the minimums, two
    /// words a dword as [`super::activations::Extra::Sums`] has the sums.
    ///
    /// # Safety
    /// The features of `S` are present.
    unsafe fn end(&mut self, d: S::F, m: S::F, mins: [S::I; MINS]);
}

/// All rows quantised in super-blocks.
#[derive(Clone, Copy)]
pub(super) struct SuperRows {
    pub(super) q: *const i8,
    pub(super) meta: *const SuperMeta,
    /// Super-blocks of a row.
    pub(super) supers: usize,
    /// Bytes from a row to the next.
    pub(super) pitch: usize,
}

impl SuperRows {
    #[inline(always)]
    pub(super) fn row(&self, r: u32) -> SuperRow {
        let (r, supers) = (r as usize, self.supers);
        let meta = self.meta.wrapping_add(r * 2 * supers);
        SuperRow { q: self.q.wrapping_add(r * self.pitch), meta, supers }
    }
}

/// One such row.
#[derive(Clone, Copy)]
pub(super) struct SuperRow {
    pub(super) q: *const i8,
    pub(super) meta: *const SuperMeta,
    supers: usize,
}

impl SuperRow {
    /// Bytes `32 j ..` of super-block `s`.
    #[inline(always)]
    fn block(&self, s: usize, j: usize) -> *const i8 {
        self.q.wrapping_add(s * SUPER + j * super::BLOCK)
    }

    #[inline(always)]
    unsafe fn meta(&self, s: usize) -> &SuperMeta {
        // SAFETY: the row has that super-block.
        unsafe { &*self.meta.add(s) }
    }

    /// The bytes of an excess.
    #[inline(always)]
    pub(super) fn excess(&self, e: usize) -> *const i8 {
        self.q.wrapping_add(self.supers * SUPER + (e - self.supers) * super::BLOCK)
    }

    /// The excesses of a chunk's super-blocks.
    ///
    /// # Safety
    /// The row has the chunk's super-blocks.
    #[inline(always)]
    pub(super) unsafe fn excesses(&self, chunk: &Range<usize>) -> Range<usize> {
        // SAFETY: as the caller promises.
        unsafe {
            let start = if chunk.start == 0 { self.supers } else { self.meta(chunk.start - 1).link as usize };
            start..self.meta(chunk.end - 1).link as usize
        }
    }
}

/// What goes with a super-block of a panel.
#[derive(Clone, Copy)]
pub(super) struct Floats<S: Simd> {
    pub(super) d: S::F,
    pub(super) m: S::F,
    pub(super) mins: [S::I; MINS],
}

/// Adds what a super-block, or an excess, contributes: THE rounding of sums. Their order: the super-blocks of a chunk,
/// then the sum of its excesses.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn share<S: Simd, const PARTS: usize, const MIN: bool>(
    total: S::F,
    meta: &SuperMeta,
    sum: S::I,
    w: &Floats<S>,
) -> S::F {
    // SAFETY: as the caller promises.
    unsafe {
        let scale = S::splat_f(meta.scale);
        let total = S::fma(S::to_f(sum), S::mul(w.d, scale), total);
        if !MIN {
            return total;
        }
        let mut mins = S::splat(0);
        for k in 0..PARTS / 2 {
            mins = S::dot_words(mins, w.mins[k], S::splat(meta.extra[k]));
        }
        S::fma(S::to_f(mins), S::mul(w.m, scale), total)
    }
}

/// What the sum of a part starts with.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn start<S: Simd>(min: bool, meta: &SuperMeta, part: usize) -> S::I {
    // SAFETY: as the caller promises.
    unsafe { S::splat(if min { 0 } else { meta.extra[part] }) }
}

/// One row of x: the weights stay in registers.
pub(super) struct One<U> {
    pub(super) source: Source,
    /// Where what is multiplied next lies.
    pub(super) next: [*const u8; 3],
    pub(super) panels: usize,
    pub(super) supers: usize,
    pub(super) x: SuperRow,
    pub(super) to: *mut f32,
    pub(super) format: PhantomData<U>,
}

impl<U: UnpackSuper> Kernel for One<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            let blocks = self.supers * BLOCKS;
            for panel in 0..self.panels {
                let source = self.source.below(panel * S::LANES);
                let none = S::splat(0);
                let mut emit = Direct::<S, U> {
                    x: self.x,
                    at: 0,
                    sum: none,
                    total: S::splat_f(0.0),
                    excess: self.supers,
                    rest_sum: none,
                    rest: S::splat_f(0.0),
                    ahead: Ahead::of_panel::<S>(&self.source, self.next, self.panels, panel, blocks),
                    format: PhantomData,
                };
                for start in (0..self.supers).step_by(SUPERS) {
                    let excess = emit.excess;
                    U::unpack::<S, _>(&source, start..self.supers.min(start + SUPERS), &mut emit);
                    if emit.excess > excess {
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
    x: SuperRow,
    /// The super-block whose turn it is.
    at: usize,
    sum: S::I,
    total: S::F,
    /// The next excess.
    excess: usize,
    rest_sum: S::I,
    /// Of the chunk's excesses.
    rest: S::F,
    ahead: Ahead,
    format: PhantomData<U>,
}

impl<S: Simd, U: UnpackSuper> EmitSuper<S> for Direct<S, U> {
    #[inline(always)]
    unsafe fn block(&mut self, j: usize, w: [S::I; 8], scales: [S::I; 2]) {
        // SAFETY: the row of x has as many super-blocks as the weights.
        unsafe {
            self.ahead.block::<S>();
            let (x, at) = (self.x, self.at);
            self.sum = Self::add(x.block(at, j), x.meta(at), j, w, scales, self.sum);
            if self.outstanding() {
                let meta = x.meta(self.excess);
                if meta.link as usize % BLOCKS == j {
                    self.rest_sum = Self::add(x.excess(self.excess), meta, j, w, scales, self.rest_sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, d: S::F, m: S::F, mins: [S::I; MINS]) {
        // SAFETY: as above.
        unsafe {
            let w = Floats { d, m, mins };
            self.total = total::<S, U>(self.total, self.x.meta(self.at), self.sum, &w);
            self.sum = S::splat(0);
            if self.outstanding() {
                self.rest = total::<S, U>(self.rest, self.x.meta(self.excess), self.rest_sum, &w);
                self.rest_sum = S::splat(0);
                self.excess += 1;
            }
            self.at += 1;
        }
    }
}

impl<S: Simd, U: UnpackSuper> Direct<S, U> {
    /// Whether the super-block has an excess.
    ///
    /// # Safety
    /// The row has that super-block.
    #[inline(always)]
    unsafe fn outstanding(&self) -> bool {
        // SAFETY: as the caller promises.
        unsafe { self.x.meta(self.at).link as usize > self.excess }
    }

    /// Adds the products with 32 bytes of x, which have place j in their super-block.
    ///
    /// # Safety
    /// The features of `S` are present; there are these bytes.
    #[inline(always)]
    unsafe fn add(
        q: *const i8,
        meta: &SuperMeta,
        j: usize,
        w: [S::I; 8],
        scales: [S::I; 2],
        to: S::I,
    ) -> S::I {
        // SAFETY: as the caller promises.
        unsafe {
            // Two chains, for the processor's sake.
            let two = U::PARTS == 16;
            let first = if two { 2 * j } else { j };
            let second = if two && !U::MIN { meta.extra[2 * j + 1] } else { 0 };
            let mut sums = [start::<S>(U::MIN, meta, first), S::splat(second)];
            for h in 0..2 {
                let x = array!(c < 4 => dword::<S>(q, 4 * h + c));
                sums[h] = dots::<S>(U::BITS, sums[h], array!(c < 4 => w[4 * h + c]), x);
            }
            if two {
                S::add(S::add(to, S::mul_low(sums[0], scales[0])), S::mul_low(sums[1], scales[1]))
            } else {
                S::add(to, S::mul_low(S::add(sums[0], sums[1]), scales[0]))
            }
        }
    }
}

/// [`share`], for a format.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
pub(super) unsafe fn total<S: Simd, U: UnpackSuper>(
    to: S::F,
    meta: &SuperMeta,
    sum: S::I,
    w: &Floats<S>,
) -> S::F {
    // SAFETY: as the caller promises.
    unsafe {
        match (U::PARTS, U::MIN) {
            (8, _) => share::<S, 8, true>(to, meta, sum, w),
            (_, true) => share::<S, 16, true>(to, meta, sum, w),
            (_, false) => share::<S, 16, false>(to, meta, sum, w),
        }
    }
}

/// Unpacks a chunk of a panel.
pub(super) struct Pack<U> {
    pub(super) source: Source,
    /// Where what is packed next lies.
    pub(super) next: [*const u8; 3],
    pub(super) to: *mut f32,
    pub(super) supers: Range<usize>,
    /// Super-blocks of a row.
    pub(super) of: usize,
    pub(super) format: PhantomData<U>,
}

impl<U: UnpackSuper> Kernel for Pack<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            let Range { start, end } = self.supers;
            let blocks = start * BLOCKS..end * BLOCKS;
            let ahead = Ahead::new::<S>(&self.source, self.next, blocks, self.of * BLOCKS);
            let mut emit = Stored::<U> { to: self.to, ahead, format: PhantomData };
            U::unpack::<S, _>(&self.source, self.supers, &mut emit);
        }
    }
}

struct Stored<U> {
    /// The super-block whose turn it is.
    to: *mut f32,
    ahead: Ahead,
    format: PhantomData<U>,
}

impl<S: Simd, U: UnpackSuper> EmitSuper<S> for Stored<U> {
    #[inline(always)]
    unsafe fn block(&mut self, j: usize, w: [S::I; 8], scales: [S::I; 2]) {
        // SAFETY: the panel has room for a chunk.
        unsafe {
            self.ahead.block::<S>();
            for c in 0..8 {
                S::store(w[c], self.to.add((8 * j + c) * S::LANES).cast());
            }
            let each = U::PARTS / 8;
            for h in 0..each {
                S::store(scales[h], self.to.add((SCALES + each * j + h) * S::LANES).cast());
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, d: S::F, m: S::F, mins: [S::I; MINS]) {
        // SAFETY: as above.
        unsafe {
            S::store_f(d, self.to.add(FLOATS * S::LANES));
            S::store_f(m, self.to.add((FLOATS + 1) * S::LANES));
            if U::MIN {
                for k in 0..U::PARTS / 2 {
                    S::store(mins[k], self.to.add((MINIMUMS + k) * S::LANES).cast());
                }
            }
            self.to = self.to.add(VECTORS * S::LANES);
        }
    }
}
