//! Several rows of x with packed panels.

use std::ops::Range;

use super::super::activations::SuperMeta;
use super::super::panel::{To, dots_of, plus};
use super::super::{BLOCKS, SUPER};
use super::{FLOATS, Floats, MINIMUMS, MINS, SCALES, SuperRow, SuperRows, VECTORS, share, start};
use crate::cpu::simd::{Kernel, Simd, X_ROWS_MAX, array};

/// A packed panel and all rows of x: adds the chunk's share to the sums.
#[derive(Clone)]
pub(in crate::cpu::int8) struct Several<'a> {
    pub(in crate::cpu::int8) panel: *const f32,
    pub(in crate::cpu::int8) supers: Range<usize>,
    pub(in crate::cpu::int8) x: SuperRows,
    pub(in crate::cpu::int8) rows: &'a [u32],
    pub(in crate::cpu::int8) to: To<'a>,
}

/// `P` panels with the same super-blocks and the same rows of x, for the formats of one kind.
pub(in crate::cpu::int8) struct Kind<'a, const PARTS: usize, const MIN: bool, const BITS: u32, const P: usize>(
    pub(in crate::cpu::int8) [Several<'a>; P],
);

impl<const PARTS: usize, const MIN: bool, const BITS: u32, const P: usize> Kernel
    for Kind<'_, PARTS, MIN, BITS, P>
{
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        if const { P > 1 && !S::PAIRS } {
            unreachable!("panels are multiplied in pairs where `Isa::has_pairs`");
        }
        let work = array!(p < P => &self.0[p]);
        let (all, rows) = (work[0].x, work[0].rows);
        for first in (0..rows.len()).step_by(S::X_ROWS) {
            // What is beyond the last row repeats it.
            let last = rows.len() - 1 - first;
            let at = array!(n < X_ROWS_MAX => first + if n < last { n } else { last });
            let x = array!(n < X_ROWS_MAX => all.row(rows[at[n]]));
            let to = array!(p < P => work[p].to.rows(&at));
            // SAFETY: as the caller of the kernel promises.
            unsafe {
                match S::X_ROWS.min(rows.len() - first) {
                    1 => Group::<PARTS, MIN, BITS, P, 1>::new(work, &x, &to).chunk::<S>(),
                    2 => Group::<PARTS, MIN, BITS, P, 2>::new(work, &x, &to).chunk::<S>(),
                    3 | 4 => Group::<PARTS, MIN, BITS, P, 4>::new(work, &x, &to).chunk::<S>(),
                    _ if const { S::X_ROWS == X_ROWS_MAX } => {
                        Group::<PARTS, MIN, BITS, P, X_ROWS_MAX>::new(work, &x, &to).chunk::<S>()
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
                    let excesses = x[0].excesses(&work.supers);
                    if !excesses.is_empty() {
                        Group::<PARTS, MIN, BITS, 1, 1>::new([work], &x, &to).excesses::<S>(excesses);
                    }
                }
            }
        }
    }
}

/// `N` rows of x with `P` panels.
struct Group<'a, const PARTS: usize, const MIN: bool, const BITS: u32, const P: usize, const N: usize> {
    work: [&'a Several<'a>; P],
    x: [SuperRow; N],
    to: [[*mut f32; N]; P],
}

impl<'a, const PARTS: usize, const MIN: bool, const BITS: u32, const P: usize, const N: usize>
    Group<'a, PARTS, MIN, BITS, P, N>
{
    #[inline(always)]
    fn new(work: [&'a Several<'a>; P], x: &[SuperRow; X_ROWS_MAX], to: &[[*mut f32; X_ROWS_MAX]; P]) -> Self {
        let to = array!(p < P => *to[p].first_chunk().expect("N is at most X_ROWS_MAX"));
        Self { work, x: *x.first_chunk().expect("N is at most X_ROWS_MAX"), to }
    }

    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn chunk<S: Simd>(self) {
        // SAFETY: as the caller promises.
        unsafe {
            for s in self.work[0].supers.clone() {
                let sums = self.sums::<S>(s);
                for p in 0..P {
                    let w = self.floats::<S>(p, s);
                    // They wait in memory: registers hold the integers. All are read before one is written, as the
                    // last row may be there twice.
                    let mut totals = [S::splat_f(0.0); N];
                    if s > 0 {
                        totals = array!(n < N => S::load_f(self.to[p][n]));
                    }
                    for n in 0..N {
                        totals[n] = share::<S, PARTS, MIN>(totals[n], self.x[n].meta(s), sums[p][n], &w);
                    }
                    for n in 0..N {
                        S::store_f(totals[n], self.to[p][n]);
                    }
                }
            }
        }
    }

    /// Where packed super-block `s` of panel `p` lies.
    #[inline(always)]
    fn panel<S: Simd>(&self, p: usize, s: usize) -> *const f32 {
        self.work[p].panel.wrapping_add((s - self.work[0].supers.start) * VECTORS * S::LANES)
    }

    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn floats<S: Simd>(&self, p: usize, s: usize) -> Floats<S> {
        let at = self.panel::<S>(p, s);
        // SAFETY: as the caller promises.
        unsafe {
            let mut mins = [S::splat(0); MINS];
            if MIN {
                for k in 0..PARTS / 2 {
                    mins[k] = S::load(at.add((MINIMUMS + k) * S::LANES).cast());
                }
            }
            Floats {
                d: S::load_f(at.add(FLOATS * S::LANES)),
                m: S::load_f(at.add((FLOATS + 1) * S::LANES)),
                mins,
            }
        }
    }

    /// What super-block `s` of the rows makes with the packed one: the sums of the parts, times their scales.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn sums<S: Simd>(&self, s: usize) -> [[S::I; N]; P] {
        // SAFETY: as the caller promises.
        unsafe {
            let panels = array!(p < P => self.panel::<S>(p, s));
            let x = array!(n < N => self.x[n].block(s, 0));
            let meta = array!(n < N => self.x[n].meta(s));
            let mut sums = [[S::splat(0); N]; P];
            for part in 0..PARTS {
                let x = array!(n < N => x[n].wrapping_add(part * (SUPER / PARTS)));
                sums = add_part::<S, PARTS, MIN, BITS, P, N>(sums, part, &panels, &meta, &x);
            }
            sums
        }
    }
}

/// Adds the products of a part, times its scales.
///
/// # Safety
/// The features of `S` are present; the panels are packed; x has these bytes.
#[inline(always)]
unsafe fn add_part<
    S: Simd,
    const PARTS: usize,
    const MIN: bool,
    const BITS: u32,
    const P: usize,
    const N: usize,
>(
    mut totals: [[S::I; N]; P],
    part: usize,
    panels: &[*const f32; P],
    meta: &[&SuperMeta; N],
    x: &[*const i8; N],
) -> [[S::I; N]; P] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [array!(n < N => start::<S>(MIN, meta[n], part)); P];
        // Four dwords are 16 values: two groups of them a part, or one.
        let groups = 16 / PARTS;
        for g in 0..groups {
            let x = array!(n < N => x[n].wrapping_add(16 * g));
            let w = array!(p < P => panels[p].add(4 * (part * groups + g) * S::LANES).cast());
            sums = dots_of::<S, BITS, P, N>(sums, &w, &x);
        }
        for p in 0..P {
            let scale = S::load(panels[p].add((SCALES + part) * S::LANES).cast());
            for n in 0..N {
                totals[p][n] = S::add(totals[p][n], S::mul_low(sums[p][n], scale));
            }
        }
        totals
    }
}

impl<const PARTS: usize, const MIN: bool, const BITS: u32> Group<'_, PARTS, MIN, BITS, 1, 1> {
    /// Adds the sum of the shares of some excesses of the chunk.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn excesses<S: Simd>(self, excesses: Range<usize>) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut rest = S::splat_f(0.0);
            for e in excesses {
                let meta = self.x[0].meta(e);
                let (s, j) = (meta.link as usize / BLOCKS, meta.link as usize % BLOCKS);
                let mut sum = [[S::splat(0)]];
                let each = PARTS / BLOCKS;
                for h in 0..each {
                    let x = self.x[0].excess(e).wrapping_add(16 * h);
                    let panel = [self.panel::<S>(0, s)];
                    sum = add_part::<S, PARTS, MIN, BITS, 1, 1>(sum, each * j + h, &panel, &[meta], &[x]);
                }
                rest = share::<S, PARTS, MIN>(rest, meta, sum[0][0], &self.floats::<S>(0, s));
            }
            let to = self.to[0][0];
            S::store_f(plus::<S>(S::load_f(to), rest), to);
        }
    }
}
