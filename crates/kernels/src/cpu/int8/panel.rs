//! Multiplies a tile of weight rows with rows of x.

use std::marker::PhantomData;

use files::{Format, ScaleType};

use super::activations::Meta;
use super::affine::{Affine2, Affine4, Affine8, AffineStream};
use super::iq::{IQ4NL, IQ4XS, Mxfp4};
use super::k::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::{Activations, BLOCK, CHUNK, Emit, Layout, SLACK, Source, Unpack};
use crate::buffer::HostWeight;
use crate::cpu::isa::Isa;
use crate::cpu::simd::{Kernel, Simd, array};

/// Vectors of a block in a panel: bytes, scales, minimums.
const VECTORS: usize = 12;
/// Bytes of so many bits are narrow: the sum of eight products with signed bytes fits 16 bits.
const NARROW: u32 = 5;
/// Rows of x that are multiplied together.
pub(in crate::cpu) const X_ROWS: usize = 4;

/// Calls `$run` with the type of a format; `$other` for formats that have none.
macro_rules! with_format {
    ($format:expr, $type:ident => $run:expr, $other:expr) => {
        match $format {
            Format::Affine { bits: 2, .. } => with_format!(@ Affine2, $type, $run),
            Format::Affine { bits: 3, .. } => with_format!(@ AffineStream::<3>, $type, $run),
            Format::Affine { bits: 4, .. } => with_format!(@ Affine4, $type, $run),
            Format::Affine { bits: 5, .. } => with_format!(@ AffineStream::<5>, $type, $run),
            Format::Affine { bits: 6, .. } => with_format!(@ AffineStream::<6>, $type, $run),
            Format::Affine { bits: 8, .. } => with_format!(@ Affine8, $type, $run),
            Format::Q4_0 => with_format!(@ Q4_0, $type, $run),
            Format::Q4_1 => with_format!(@ Q4_1, $type, $run),
            Format::Q5_0 => with_format!(@ Q5_0, $type, $run),
            Format::Q5_1 => with_format!(@ Q5_1, $type, $run),
            Format::Q8_0 => with_format!(@ Q8_0, $type, $run),
            Format::Q2K => with_format!(@ Q2K, $type, $run),
            Format::Q3K => with_format!(@ Q3K, $type, $run),
            Format::Q4K => with_format!(@ Q4K, $type, $run),
            Format::Q5K => with_format!(@ Q5K, $type, $run),
            Format::Q6K => with_format!(@ Q6K, $type, $run),
            Format::IQ4NL => with_format!(@ IQ4NL, $type, $run),
            Format::IQ4XS => with_format!(@ IQ4XS, $type, $run),
            Format::MXFP4 => with_format!(@ Mxfp4, $type, $run),
            Format::F32 | Format::F16 | Format::BF16 | Format::Affine { .. } => $other,
        }
    };
    (@ $format:ty, $type:ident, $run:expr) => {{
        type $type = $format;
        $run
    }};
}

fn layout_of<U: Unpack>(isa: Isa) -> Layout {
    let base = if U::BITS > 7 { isa.wide_base() } else { 0 };
    Layout { order: U::ORDER, correction: base - U::OFFSET, halves: U::HALVES }
}

/// How activations for weights in this format must lie; `None` for formats without integer products.
pub(in crate::cpu) fn layout(isa: Isa, format: Format) -> Option<Layout> {
    with_format!(format, U => Some(layout_of::<U>(isa)), None)
}

/// Some consecutive rows of a weight, as many as [`Isa::lanes`] or twice that.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Tile<'a> {
    pub(in crate::cpu) weight: HostWeight<'a>,
    pub(in crate::cpu) first: usize,
    pub(in crate::cpu) rows: usize,
}

/// `sums[i, n] = x[rows[i]] . weight[first + n]` for the rows of a tile; `sums` is `[rows of x, rows of the tile,
/// rounded up to whole vectors]`, with room for whole [`X_ROWS`]. The activations are in the layout of the weight's format.
pub(in crate::cpu) fn products(
    isa: Isa,
    tile: Tile<'_>,
    x: &Activations,
    rows: &[u32],
    sums: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let lanes = isa.lanes();
    let panels = tile.rows.div_ceil(lanes);
    assert!(
        x.cols == tile.weight.cols
            && panels <= 2
            && sums.len() >= rows.len().next_multiple_of(X_ROWS) * panels * lanes
    );
    assert!(rows.iter().all(|r| (*r as usize + 1) * x.cols <= x.q.len()));
    let copy;
    // The unpackers read whole vectors of rows and a little more.
    let source = if tile.first + panels * lanes < tile.weight.rows {
        source_of(&tile.weight, |part| tile.weight.row(part, tile.first).as_ptr())
    } else {
        copy = padded(&tile, panels * lanes);
        source_of(&tile.weight, |part| copy[part].as_ptr())
    };
    with_format!(
        tile.weight.format,
        // SAFETY: the source has the rows and the slack; the rows of x exist.
        U => unsafe { multiply::<U>(isa, source, panels, x, rows, sums, scratch) },
        unreachable!("no activations are laid out for other formats")
    );
}

fn source_of(w: &HostWeight<'_>, row: impl Fn(usize) -> *const u8) -> Source {
    let (group, scale) = match w.format {
        Format::Affine { group, scale, .. } => (usize::from(group), scale),
        _ => (BLOCK, ScaleType::F32),
    };
    let parts = w.format.parts();
    let at = |part: usize| if part < parts { row(part) } else { std::ptr::null() };
    let stride = |part: usize| if part < parts { w.row(part, 0).len() } else { 0 };
    Source { rows: [at(0), at(1), at(2)], strides: [stride(0), stride(1), stride(2)], group, scale }
}

/// The tile's rows in memory that has `rows` of them, and slack.
fn padded(tile: &Tile<'_>, rows: usize) -> [Vec<u8>; 3] {
    std::array::from_fn(|part| {
        if part >= tile.weight.format.parts() {
            return Vec::new();
        }
        let row_bytes = tile.weight.row(part, 0).len();
        let mut copy = vec![0; rows * row_bytes + SLACK];
        for (i, row) in copy.chunks_exact_mut(row_bytes).take(tile.rows).enumerate() {
            row.copy_from_slice(tile.weight.row(part, tile.first + i));
        }
        copy
    })
}

/// # Safety
/// The source has `panels` times as many rows as there are lanes, each as wide as x, and slack.
unsafe fn multiply<U: Unpack>(
    isa: Isa,
    source: Source,
    panels: usize,
    x: &Activations,
    rows: &[u32],
    sums: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    assert_eq!(x.layout, layout_of::<U>(isa));
    let (lanes, blocks) = (isa.lanes(), x.cols / BLOCK);
    let at = |r: u32| Row { q: &x.q[r as usize * x.cols], meta: &x.meta[r as usize * blocks] };
    let shifted = |panel: usize| {
        let mut source = source;
        for (row, stride) in source.rows.iter_mut().zip(source.strides) {
            *row = row.wrapping_add(panel * lanes * stride);
        }
        source
    };
    if let [row] = rows {
        for panel in 0..panels {
            let to = sums[panel * lanes..][..lanes].as_mut_ptr();
            let one = One::<U> { source: shifted(panel), blocks, x: at(*row), to, format: PhantomData };
            // SAFETY: as the caller promises; `to` has a vector's room.
            unsafe { isa.enter(one) };
        }
        return;
    }
    let panel_len = CHUNK * VECTORS * lanes;
    scratch.resize(scratch.len().max(2 * panel_len), 0.0);
    sums[..rows.len().next_multiple_of(X_ROWS) * panels * lanes].fill(0.0);
    for start in (0..blocks).step_by(CHUNK) {
        let chunk = start..blocks.min(start + CHUNK);
        for panel in 0..panels {
            let to = scratch[panel * panel_len..][..panel_len].as_mut_ptr();
            let pack = Pack::<U> { source: shifted(panel), blocks: chunk.clone(), to, format: PhantomData };
            // SAFETY: as the caller promises; `to` has room for a chunk.
            unsafe { isa.enter(pack) };
        }
        let (panel, sums) = (scratch.as_ptr(), sums.as_mut_ptr());
        let work = Work { panel, panels, panel_len, blocks: chunk, sums };
        for (i, rows) in rows.chunks(X_ROWS).enumerate() {
            let x: [Row; X_ROWS] = std::array::from_fn(|n| at(rows[n.min(rows.len() - 1)]));
            let work = Work { sums: work.sums.wrapping_add(i * X_ROWS * panels * lanes), ..work.clone() };
            // SAFETY: the panels are packed, and `sums` has these rows, rounded up.
            unsafe { several::<U>(isa, rows.len(), work, x) };
        }
    }
}

/// # Safety
/// As [`Several`].
unsafe fn several<U: Unpack>(isa: Isa, rows: usize, work: Work, x: [Row; X_ROWS]) {
    // Formats of one kind share this code.
    let kind = (U::HALVES, U::MIN, U::BITS);
    // SAFETY: as the caller promises.
    unsafe {
        match kind {
            (false, false, ..=NARROW) => rows_of::<false, false, NARROW>(isa, rows, work, x),
            (false, false, _) => rows_of::<false, false, 8>(isa, rows, work, x),
            (false, true, ..=NARROW) => rows_of::<false, true, NARROW>(isa, rows, work, x),
            (false, true, ..8) => rows_of::<false, true, 7>(isa, rows, work, x),
            (false, true, _) => rows_of::<false, true, 8>(isa, rows, work, x),
            (true, false, ..=NARROW) => rows_of::<true, false, NARROW>(isa, rows, work, x),
            (true, false, _) => rows_of::<true, false, 7>(isa, rows, work, x),
            (true, true, _) => rows_of::<true, true, NARROW>(isa, rows, work, x),
        }
    }
}

/// # Safety
/// As [`Several`].
unsafe fn rows_of<const HALVES: bool, const MIN: bool, const BITS: u32>(
    isa: Isa,
    rows: usize,
    work: Work,
    x: [Row; X_ROWS],
) {
    let [a, b, ..] = x;
    // SAFETY: as the caller promises.
    unsafe {
        match rows {
            1 => isa.enter(Several::<HALVES, MIN, BITS, 1> { work, x: [a] }),
            2 => isa.enter(Several::<HALVES, MIN, BITS, 2> { work, x: [a, b] }),
            _ => isa.enter(Several::<HALVES, MIN, BITS, 4> { work, x }),
        }
    }
}

/// One quantised row.
#[derive(Clone, Copy)]
struct Row {
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
}

/// Adds what a block contributes: THE order and rounding of sums.
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
struct One<U> {
    source: Source,
    blocks: usize,
    x: Row,
    to: *mut f32,
    format: PhantomData<U>,
}

impl<U: Unpack> Kernel for One<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            let tile_bytes = S::LANES * self.source.strides[0];
            let next = self.source.rows[0].wrapping_add(tile_bytes);
            let mut emit = Direct::<S, U> {
                x: self.x,
                total: S::splat_f(0.0),
                next,
                until: next,
                step: tile_bytes / self.blocks,
                format: PhantomData,
            };
            for start in (0..self.blocks).step_by(CHUNK) {
                let chunk = start..self.blocks.min(start + CHUNK);
                self.prefetch_scales::<S>(&chunk);
                U::unpack::<S, _>(&self.source, chunk, &mut emit);
            }
            S::store_f(emit.total, self.to);
        }
    }
}

impl<U: Unpack> One<U> {
    /// Asks for the next tile's share of the parts that hold scales.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn prefetch_scales<S: Simd>(&self, chunk: &std::ops::Range<usize>) {
        for part in 1..3 {
            let tile_bytes = S::LANES * self.source.strides[part];
            let next = self.source.rows[part].wrapping_add(tile_bytes);
            for at in
                (tile_bytes * chunk.start / self.blocks..tile_bytes * chunk.end / self.blocks).step_by(64)
            {
                // SAFETY: as the caller promises; a prefetch may name any address.
                unsafe { S::prefetch(next.wrapping_add(at)) };
            }
        }
    }
}

struct Direct<S: Simd, U> {
    x: Row,
    total: S::F,
    /// What to prefetch next, up to where, and how much further with each block.
    next: *const u8,
    until: *const u8,
    step: usize,
    format: PhantomData<U>,
}

impl<S: Simd, U: Unpack> Emit<S> for Direct<S, U> {
    #[inline(always)]
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: [S::F; 2], m: [S::F; 2]) {
        // SAFETY: the row of x has as many blocks as the weights.
        unsafe {
            self.until = self.until.wrapping_add(self.step);
            while self.next < self.until {
                S::prefetch(self.next);
                self.next = self.next.wrapping_add(64);
            }
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
            self.total = total::<S, U>(self.total, meta, sums, d, m);
        }
    }
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

/// Unpacks a chunk into a panel.
struct Pack<U> {
    source: Source,
    blocks: std::ops::Range<usize>,
    to: *mut f32,
    format: PhantomData<U>,
}

impl<U: Unpack> Kernel for Pack<U> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and the room.
        unsafe {
            let mut emit = Stored::<U> { to: self.to, first: self.blocks.start, format: PhantomData };
            U::unpack::<S, _>(&self.source, self.blocks, &mut emit);
        }
    }
}

struct Stored<U> {
    to: *mut f32,
    first: usize,
    format: PhantomData<U>,
}

impl<S: Simd, U: Unpack> Emit<S> for Stored<U> {
    #[inline(always)]
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: [S::F; 2], m: [S::F; 2]) {
        // SAFETY: the panel has room for a chunk.
        unsafe {
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

/// One or two packed panels, and the sums so far.
#[derive(Clone)]
struct Work {
    panel: *const f32,
    /// One or two.
    panels: usize,
    /// From the first panel to the second.
    panel_len: usize,
    blocks: std::ops::Range<usize>,
    /// `[rows, panels * lanes]`
    sums: *mut f32,
}

/// `N` rows of x with the panels.
struct Several<const HALVES: bool, const MIN: bool, const BITS: u32, const N: usize> {
    work: Work,
    x: [Row; N],
}

impl<const HALVES: bool, const MIN: bool, const BITS: u32, const N: usize> Kernel
    for Several<HALVES, MIN, BITS, N>
{
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, packed panels, and rows of x and of sums.
        unsafe {
            // Only wide vectors come with registers for two panels.
            if S::PANELS == 2 && self.work.panels == 2 {
                self.panels::<S, 2>()
            } else {
                self.panels::<S, 1>()
            }
        }
    }
}

impl<const HALVES: bool, const MIN: bool, const BITS: u32, const N: usize> Several<HALVES, MIN, BITS, N> {
    /// # Safety
    /// As [`Kernel::run`]; there are `P` panels.
    #[inline(always)]
    unsafe fn panels<S: Simd, const P: usize>(self) {
        // SAFETY: as the caller promises.
        unsafe {
            let sums = self.work.sums;
            let mut totals = array!(p < P => array!(n < N => S::load_f(sums.add((n * P + p) * S::LANES))));
            for (i, b) in self.work.blocks.clone().enumerate() {
                let panel =
                    array!(p < P => self.work.panel.add(p * self.work.panel_len + i * VECTORS * S::LANES));
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
            for p in 0..P {
                for n in 0..N {
                    S::store_f(totals[p][n], sums.add((n * P + p) * S::LANES));
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
