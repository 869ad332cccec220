//! Products of some rows of a weight with rows of x: picks the kernels and gives them memory that they may read.

use std::marker::PhantomData;
use std::ops::Range;

use files::{Format, ScaleType};

use super::activations::{Extra, pitch_of_supers};
use super::affine::{Affine2, Affine4, Affine8, AffineStream};
use super::iq::{IQ4NL, IQ4XS, Mxfp4};
use super::k::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::panel::{self, NARROW, To};
use super::supers::{self, UnpackSuper};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Activations, BLOCK, BLOCKS, CHUNK, Layout, SLACK, SUPER, Source, Unpack};
use crate::buffer::HostWeight;
use crate::cpu::isa::Isa;
use crate::cpu::shared::Sums;

/// Calls `$run` with the type of a format; `$other` for formats that have none.
macro_rules! with_format {
    ($format:expr, $type:ident => $run:expr, $other:expr) => {
        match $format {
            Format::Affine { bits: 2, .. } => with_format!(@ Blocks<Affine2>, $type, $run),
            Format::Affine { bits: 3, .. } => with_format!(@ Blocks<AffineStream<3>>, $type, $run),
            Format::Affine { bits: 4, .. } => with_format!(@ Blocks<Affine4>, $type, $run),
            Format::Affine { bits: 5, .. } => with_format!(@ Blocks<AffineStream<5>>, $type, $run),
            Format::Affine { bits: 6, .. } => with_format!(@ Blocks<AffineStream<6>>, $type, $run),
            Format::Affine { bits: 8, .. } => with_format!(@ Blocks<Affine8>, $type, $run),
            Format::Q4_0 => with_format!(@ Blocks<Q4_0>, $type, $run),
            Format::Q4_1 => with_format!(@ Blocks<Q4_1>, $type, $run),
            Format::Q5_0 => with_format!(@ Blocks<Q5_0>, $type, $run),
            Format::Q5_1 => with_format!(@ Blocks<Q5_1>, $type, $run),
            Format::Q8_0 => with_format!(@ Blocks<Q8_0>, $type, $run),
            Format::Q2K => with_format!(@ Supers<Q2K>, $type, $run),
            Format::Q3K => with_format!(@ Supers<Q3K>, $type, $run),
            Format::Q4K => with_format!(@ Supers<Q4K>, $type, $run),
            Format::Q5K => with_format!(@ Supers<Q5K>, $type, $run),
            Format::Q6K => with_format!(@ Supers<Q6K>, $type, $run),
            Format::IQ4NL => with_format!(@ Blocks<IQ4NL>, $type, $run),
            Format::IQ4XS => with_format!(@ Blocks<IQ4XS>, $type, $run),
            Format::MXFP4 => with_format!(@ Blocks<Mxfp4>, $type, $run),
            Format::F32 | Format::F16 | Format::BF16 | Format::Affine { .. } => $other,
        }
    };
    (@ $format:ty, $type:ident, $run:expr) => {{
        type $type = $format;
        $run
    }};
}

/// How activations for weights in this format must lie; `None` for formats without integer products.
pub(in crate::cpu) fn layout(isa: Isa, format: Format) -> Option<Layout> {
    with_format!(format, U => Some(U::layout(isa)), None)
}

/// Some consecutive rows of a weight, the first at a multiple of [`Isa::lanes`].
#[derive(Clone)]
pub(in crate::cpu) struct Item<'a> {
    pub(in crate::cpu) weight: HostWeight<'a>,
    pub(in crate::cpu) outputs: Range<usize>,
    /// What will probably be multiplied next: a row, from which on the memory is asked for some.
    pub(in crate::cpu) next: Option<(HostWeight<'a>, usize)>,
}

/// Outputs that are multiplied with a chunk of x before the next chunk.
pub(in crate::cpu) const OUTPUTS: usize = 64;

/// A cache line: vectors of a panel do not straddle two.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// How [`products`] goes about several rows. Results are the same bits either way.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct Ways {
    /// Panels are multiplied in twos.
    pub(in crate::cpu) pairs: bool,
    /// By matrix tiles, where the format allows it and there are many rows: only if this machine has them
    /// ([`Isa::tiles`]).
    pub(in crate::cpu) tiles: bool,
}

/// Memory that [`products`] uses and forgets.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Workspace {
    ways: Ways,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<tiles::Space>,
    sums: Vec<f32>,
    panel: Vec<Line>,
    /// For who calls it.
    pub(in crate::cpu) ups: Vec<f32>,
    copy: [Vec<u8>; 3],
}

impl Workspace {
    pub(in crate::cpu) fn new(ways: Ways) -> Self {
        Self { ways, ..Self::default() }
    }
}

/// `x[rows[i]] . weight[n]`, to the sums of row i, for all rows and all outputs n of the item. The activations are in the
/// layout of the weight's format.
///
/// # Safety
/// Nobody else accesses these sums. Rows of x have theirs for themselves.
pub(in crate::cpu) unsafe fn products(
    isa: Isa,
    item: &Item<'_>,
    x: &Activations,
    rows: &[u32],
    work: &mut Workspace,
    sums: Sums<'_>,
) {
    let (w, lanes, Range { start, end }) = (&item.weight, isa.lanes(), item.outputs.clone());
    assert!(x.cols == w.cols && start.is_multiple_of(lanes) && start < end && end <= w.rows);
    assert!(sums.rows.len() == rows.len() && end - sums.base <= sums.width);
    assert!(rows.iter().all(|r| (*r as usize) < x.rows()));
    let in_place = start + (end.min(rows_in_place(isa, w)).saturating_sub(start)) / lanes * lanes;
    let mut copy = std::mem::take(&mut work.copy);
    let mut run = |first: usize, count: usize, at: &dyn Fn(usize) -> *const u8| {
        let next = match item.next {
            Some((next, row)) => std::array::from_fn(|part| start_of(&next, part, row)),
            // What is in the cache already costs least.
            None => std::array::from_fn(|part| start_of(w, part, start)),
        };
        let outputs = first..first + count;
        let run = Run { isa, source: source_of(w, at), outputs, next, x, rows, sums };
        with_format!(
            w.format,
            // SAFETY: the source has these rows, rounded up to whole vectors, and what their unpacker reads beyond;
            // the rows of x exist; the sums are as the caller promises.
            U => unsafe { run.multiply::<U>(work) },
            unreachable!("no activations are laid out for other formats")
        );
    };
    if in_place > start {
        run(start, in_place - start, &|part| start_of(w, part, start));
    }
    if in_place < end {
        pad(w, in_place..end, lanes, &mut copy);
        run(in_place, end - in_place, &|part| copy[part].as_ptr());
    }
    work.copy = copy;
}

/// How many of a weight's rows, in whole vectors from the first, may be read where they lie: unpackers read whole
/// vectors of rows and, of most rows, a little more.
fn rows_in_place(isa: Isa, w: &HostWeight<'_>) -> usize {
    let blocks = w.cols / BLOCK;
    let whole = with_format!(w.format, U => U::WHOLE, 0);
    let scales_whole = match w.format {
        // Scales are read 16 bytes at a time.
        Format::Affine { group, scale, .. } => {
            let vector = 16 / scale.bytes() * usize::from(group);
            w.cols.is_multiple_of(vector) && (CHUNK * BLOCK).is_multiple_of(vector)
        }
        _ => true,
    };
    let beyond = if whole > 0 && blocks.is_multiple_of(whole) && scales_whole {
        0
    } else {
        (0..w.format.parts()).map(|part| SLACK.div_ceil(w.row(part, 0).len())).max().unwrap_or(0)
    };
    w.rows.saturating_sub(beyond) / isa.lanes() * isa.lanes()
}

/// Where row `row` of a part begins; null if there is no such row or part.
fn start_of(w: &HostWeight<'_>, part: usize, row: usize) -> *const u8 {
    if part < w.format.parts() && row < w.rows { w.row(part, row).as_ptr() } else { std::ptr::null() }
}

fn source_of(w: &HostWeight<'_>, row: &dyn Fn(usize) -> *const u8) -> Source {
    let (group, scale) = match w.format {
        Format::Affine { group, scale, .. } => (usize::from(group), scale),
        _ => (BLOCK, ScaleType::F32),
    };
    let parts = w.format.parts();
    let at = |part: usize| if part < parts { row(part) } else { std::ptr::null() };
    let stride = |part: usize| if part < parts { w.row(part, 0).len() } else { 0 };
    Source { rows: [at(0), at(1), at(2)], strides: [stride(0), stride(1), stride(2)], group, scale }
}

/// Copies rows to memory that has whole vectors of them, and slack.
fn pad(w: &HostWeight<'_>, rows: Range<usize>, lanes: usize, copy: &mut [Vec<u8>; 3]) {
    for (part, copy) in copy.iter_mut().enumerate().take(w.format.parts()) {
        let row_bytes = w.row(part, 0).len();
        copy.clear();
        rows.clone().for_each(|row| copy.extend_from_slice(w.row(part, row)));
        copy.resize(rows.len().next_multiple_of(lanes) * row_bytes + SLACK, 0);
    }
}

/// Formats of one way to lie, as [`Run`] needs them.
trait Kernels {
    /// As [`Unpack::WHOLE`].
    const WHOLE: usize;
    /// Vectors of a chunk in a panel.
    const VECTORS: usize;

    fn layout(isa: Isa) -> Layout;

    /// One row of x with `panels` vectors of rows from `source` on.
    ///
    /// # Safety
    /// As [`Run::multiply`]; there is room for all sums.
    unsafe fn one(run: &Run<'_>, row: u32, panels: usize, to: *mut f32);

    /// Unpacks a chunk of the vector of rows at `source` to `panel`; `next` is unpacked later.
    ///
    /// # Safety
    /// As [`Run::multiply`]; there is room for the chunk.
    unsafe fn pack(run: &Run<'_>, source: Source, next: [*const u8; 3], chunk: Range<usize>, panel: *mut f32);

    /// Adds what a chunk of packed panels makes with all rows of x.
    ///
    /// # Safety
    /// As [`Run::multiply`]; there is room for the sums.
    unsafe fn several<const P: usize>(run: &Run<'_>, chunk: Range<usize>, panels: [(*const f32, To<'_>); P]);

    /// All products by matrix tiles, if that is a way to make them.
    ///
    /// # Safety
    /// As [`Run::multiply`]; there are tiles.
    unsafe fn by_tiles(_: &Run<'_>, _: &mut Workspace) -> bool {
        false
    }
}

/// Those with a scale for each block.
struct Blocks<U>(PhantomData<U>);

impl<U: Unpack> Kernels for Blocks<U> {
    const WHOLE: usize = U::WHOLE;
    const VECTORS: usize = CHUNK * panel::VECTORS;

    fn layout(isa: Isa) -> Layout {
        let base = if U::BITS > 7 { isa.wide_base() } else { 0 };
        Layout::Blocks { order: U::ORDER, correction: base - U::OFFSET }
    }

    unsafe fn one(run: &Run<'_>, row: u32, panels: usize, to: *mut f32) {
        let (source, next, blocks) = (run.source, run.next, run.x.cols / BLOCK);
        let x = rows_of(run.x).row(row);
        // SAFETY: as the caller promises.
        unsafe {
            run.isa.enter(panel::One::<U> { source, next, panels, blocks, x, to, format: PhantomData });
        }
    }

    unsafe fn pack(
        run: &Run<'_>,
        source: Source,
        next: [*const u8; 3],
        chunk: Range<usize>,
        panel: *mut f32,
    ) {
        let of = run.x.cols / BLOCK;
        // SAFETY: as the caller promises.
        unsafe {
            run.isa.enter(panel::Pack::<U> {
                source,
                next,
                to: panel,
                blocks: chunk,
                of,
                format: PhantomData,
            });
        }
    }

    unsafe fn several<const P: usize>(run: &Run<'_>, chunk: Range<usize>, panels: [(*const f32, To<'_>); P]) {
        let (x, of) = (rows_of(run.x), run.x.cols / BLOCK);
        let work = panels.map(|(panel, to)| panel::Several {
            panel,
            blocks: chunk.clone(),
            x,
            of,
            rows: run.rows,
            to,
        });
        // SAFETY: as the caller promises.
        unsafe {
            match (U::MIN, U::BITS) {
                (false, ..=NARROW) => run.isa.enter(panel::Kind::<false, NARROW, P>(work)),
                (false, _) => run.isa.enter(panel::Kind::<false, 8, P>(work)),
                (true, ..=NARROW) => run.isa.enter(panel::Kind::<true, NARROW, P>(work)),
                (true, ..8) => run.isa.enter(panel::Kind::<true, 7, P>(work)),
                (true, _) => run.isa.enter(panel::Kind::<true, 8, P>(work)),
            }
        }
    }
}

fn rows_of(x: &Activations) -> panel::Rows {
    panel::Rows { q: x.q.as_ptr(), meta: x.meta.as_ptr(), blocks: x.row_units() }
}

/// Those in super-blocks.
struct Supers<U>(PhantomData<U>);

impl<U: UnpackSuper> Kernels for Supers<U> {
    const WHOLE: usize = 1;
    const VECTORS: usize = supers::SUPERS * supers::VECTORS;

    fn layout(_: Isa) -> Layout {
        let goes_with = if U::MIN { Extra::Sums } else { Extra::Correction(-U::OFFSET) };
        Layout::Supers { parts: U::PARTS, goes_with }
    }

    unsafe fn one(run: &Run<'_>, row: u32, panels: usize, to: *mut f32) {
        let (source, next, supers) = (run.source, run.next, run.x.cols / SUPER);
        let x = super_rows_of(run.x).row(row);
        // SAFETY: as the caller promises.
        unsafe {
            run.isa.enter(supers::One::<U> { source, next, panels, supers, x, to, format: PhantomData });
        }
    }

    unsafe fn pack(
        run: &Run<'_>,
        source: Source,
        next: [*const u8; 3],
        chunk: Range<usize>,
        panel: *mut f32,
    ) {
        let (supers, of) = (chunk.start / BLOCKS..chunk.end / BLOCKS, run.x.cols / SUPER);
        // SAFETY: as the caller promises.
        unsafe {
            run.isa.enter(supers::Pack::<U> { source, next, to: panel, supers, of, format: PhantomData });
        }
    }

    unsafe fn several<const P: usize>(run: &Run<'_>, chunk: Range<usize>, panels: [(*const f32, To<'_>); P]) {
        let x = super_rows_of(run.x);
        let work = panels.map(|(panel, to)| supers::Several {
            panel,
            supers: chunk.start / BLOCKS..chunk.end / BLOCKS,
            x,
            rows: run.rows,
            to,
        });
        // SAFETY: as the caller promises.
        unsafe {
            match (U::PARTS, U::MIN, U::BITS) {
                (8, _, _) => run.isa.enter(supers::Kind::<8, true, NARROW, P>(work)),
                (_, true, _) => run.isa.enter(supers::Kind::<16, true, NARROW, P>(work)),
                (_, false, ..=NARROW) => run.isa.enter(supers::Kind::<16, false, NARROW, P>(work)),
                (_, false, _) => run.isa.enter(supers::Kind::<16, false, 7, P>(work)),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn by_tiles(run: &Run<'_>, work: &mut Workspace) -> bool {
        if run.rows.len() < tiles::ROWS_MIN {
            return false;
        }
        // SAFETY: as the caller promises.
        unsafe { by_tiles::<U>(run, work.tiles.get_or_insert_default()) };
        true
    }
}

/// As [`Kernels::by_tiles`].
#[cfg(target_arch = "x86_64")]
unsafe fn by_tiles<U: UnpackSuper>(run: &Run<'_>, space: &mut tiles::Space) {
    let Run { outputs, sums, .. } = run;
    let lanes = run.isa.lanes();
    let panels = outputs.len().div_ceil(lanes);
    for first in (0..panels).step_by(OUTPUTS / lanes) {
        let end = panels.min(first + OUTPUTS / lanes);
        let pass = tiles::Pass {
            source: run.source.below(first * lanes),
            next: run.after(end),
            panels: end - first,
            x: super_rows_of(run.x),
            rows: &[],
        };
        let n = outputs.start + first * lanes;
        for (chunk, rows) in run.rows.chunks(tiles::ROWS_MAX).enumerate() {
            let (pass, start) = (tiles::Pass { rows, ..pass }, chunk * tiles::ROWS_MAX);
            // SAFETY: as the caller promises.
            unsafe { pass.run::<U>(space, |i| sums.part(start + i, n, OUTPUTS.min(outputs.end - n))) };
        }
    }
}

fn super_rows_of(x: &Activations) -> supers::SuperRows {
    let supers = x.cols / SUPER;
    supers::SuperRows { q: x.q.as_ptr(), meta: x.supers.as_ptr(), supers, pitch: pitch_of_supers(supers) }
}

/// What [`products`] does with rows that lie side by side.
struct Run<'a> {
    isa: Isa,
    source: Source,
    /// The rows, of which the last vector may have some too many.
    outputs: Range<usize>,
    next: [*const u8; 3],
    x: &'a Activations,
    rows: &'a [u32],
    sums: Sums<'a>,
}

impl Run<'_> {
    /// What follows so many vectors of rows.
    fn after(&self, panels: usize) -> Source {
        let rows = panels * self.isa.lanes();
        if rows < self.outputs.len() {
            self.source.below(rows)
        } else {
            Source { rows: self.next, ..self.source }
        }
    }

    /// # Safety
    /// The source has the rows, rounded up to whole vectors, each as wide as x, and beyond them what [`Unpack`] reads.
    /// Nobody else accesses the sums.
    unsafe fn multiply<K: Kernels>(&self, work: &mut Workspace) {
        let Self { isa, outputs, rows, sums, .. } = self;
        assert_eq!(self.x.layout, K::layout(*isa));
        let (lanes, blocks) = (isa.lanes(), self.x.cols / BLOCK);
        let panels = outputs.len().div_ceil(lanes);
        if let [row] = rows {
            at_least(&mut work.sums, panels * lanes);
            // SAFETY: as the caller promises; there is room for all panels.
            unsafe {
                K::one(self, *row, panels, work.sums.as_mut_ptr());
                sums.part(0, outputs.start, outputs.len()).copy_from_slice(&work.sums[..outputs.len()]);
            }
            return;
        }
        // SAFETY: as the caller promises.
        if work.ways.tiles && unsafe { K::by_tiles(self, work) } {
            return;
        }
        let Workspace { ways, sums: aside, panel, .. } = work;
        let together = 1 + usize::from(ways.pairs);
        let panel_len = K::VECTORS * lanes;
        at_least(panel, (together * panel_len).div_ceil(size_of::<Line>() / 4));
        at_least(aside, rows.len() * lanes);
        let packed = panel.as_mut_ptr().cast::<f32>();
        // The last vector, where it has some too many, has its sums beside the others first.
        let own: Vec<u32> = (0..rows.len() as u32).collect();
        let whole = outputs.start + outputs.len() / lanes * lanes;
        let beside = To { sums: aside.as_mut_ptr(), rows: &own, width: lanes };
        let to = |panel: usize| match outputs.start + panel * lanes {
            n if n < whole => To { sums: sums.column(n), rows: sums.rows, width: sums.width },
            _ => beside,
        };
        for first in (0..panels).step_by(OUTPUTS / lanes) {
            let end = panels.min(first + OUTPUTS / lanes);
            let after = self.after(end);
            for start in (0..blocks).step_by(CHUNK) {
                let chunk = start..blocks.min(start + CHUNK);
                let several = |p: usize, slot: usize| {
                    let panel = packed.wrapping_add(slot * panel_len);
                    let (source, next) =
                        (self.source.below(p * lanes), after.below((p - first) * lanes).rows);
                    // SAFETY: as the caller promises; there is room for a chunk of each panel.
                    unsafe { K::pack(self, source, next, chunk.clone(), panel) };
                    (panel.cast_const(), to(p))
                };
                for p in (first..end).step_by(together) {
                    // SAFETY: as the caller promises; the panels are packed; there is room for a vector aside.
                    unsafe {
                        if ways.pairs && p + 1 < end {
                            K::several(self, chunk.clone(), [several(p, 0), several(p + 1, 1)]);
                        } else {
                            K::several(self, chunk.clone(), [several(p, 0)]);
                        }
                    }
                }
            }
        }
        for (i, beside) in aside.chunks_exact(lanes).take(rows.len()).enumerate() {
            // SAFETY: as the caller promises.
            let rest = unsafe { sums.part(i, whole, outputs.end - whole) };
            rest.copy_from_slice(&beside[..rest.len()]);
        }
    }
}

fn at_least<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.len() < len {
        values.resize(len, T::default());
    }
}
