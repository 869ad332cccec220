//! Products of some rows of a weight with rows of x: picks the kernels and gives them memory that they may read.

use std::marker::PhantomData;
use std::ops::Range;

use files::{Format, ScaleType};

use super::affine::{Affine2, Affine4, Affine8, AffineStream};
use super::iq::{IQ4NL, IQ4XS, Mxfp4};
use super::k::{Q2K, Q3K, Q4K, Q5K, Q6K};
use super::legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::panel::{Kind, NARROW, One, Pack, Pair, Rows, Several, To, VECTORS};
use super::{Activations, BLOCK, CHUNK, Layout, SLACK, Source, Unpack};
use crate::buffer::HostWeight;
use crate::cpu::isa::Isa;
use crate::cpu::shared::Sums;

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

/// Memory that [`products`] uses and forgets.
#[derive(Debug, Default)]
pub(in crate::cpu) struct Workspace {
    /// Panels are multiplied in twos.
    pairs: bool,
    sums: Vec<f32>,
    panel: Vec<Line>,
    /// For who calls it.
    pub(in crate::cpu) ups: Vec<f32>,
    copy: [Vec<u8>; 3],
}

impl Workspace {
    /// `pairs`: panels are multiplied in twos. Results are the same bits either way.
    pub(in crate::cpu) fn new(pairs: bool) -> Self {
        Self { pairs, ..Self::default() }
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
    assert!(rows.iter().all(|r| (*r as usize + 1) * x.row_blocks() <= x.meta.len()));
    let in_place = start + (end.min(rows_in_place(isa, w)).saturating_sub(start)) / lanes * lanes;
    let mut copy = std::mem::take(&mut work.copy);
    let mut run = |first: usize, count: usize, at: &dyn Fn(usize) -> *const u8| {
        let next = match item.next {
            Some((next, row)) => std::array::from_fn(|part| start_of(&next, part, row)),
            // What is in the cache already costs least.
            None => std::array::from_fn(|part| start_of(w, part, start)),
        };
        let outputs = first..first + count;
        let work = Run { isa, source: source_of(w, at), outputs, next, x, rows, work: &mut *work, sums };
        with_format!(
            w.format,
            // SAFETY: the source has these rows, rounded up to whole vectors, and what their unpacker reads beyond;
            // the rows of x exist; the sums are as the caller promises.
            U => unsafe { work.multiply::<U>() },
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

/// Enters a kernel of packed panels, which formats of one kind share.
macro_rules! enter {
    ($format:ident, $isa:expr, $kernel:ident, $work:expr) => {
        match ($format::HALVES, $format::MIN, $format::BITS) {
            (false, false, ..=NARROW) => $isa.enter($kernel::<false, false, NARROW>($work)),
            (false, false, _) => $isa.enter($kernel::<false, false, 8>($work)),
            (false, true, ..=NARROW) => $isa.enter($kernel::<false, true, NARROW>($work)),
            (false, true, ..8) => $isa.enter($kernel::<false, true, 7>($work)),
            (false, true, _) => $isa.enter($kernel::<false, true, 8>($work)),
            (true, false, ..=NARROW) => $isa.enter($kernel::<true, false, NARROW>($work)),
            (true, false, _) => $isa.enter($kernel::<true, false, 7>($work)),
            (true, true, _) => $isa.enter($kernel::<true, true, NARROW>($work)),
        }
    };
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
    work: &'a mut Workspace,
    sums: Sums<'a>,
}

impl Run<'_> {
    /// # Safety
    /// The source has the rows, rounded up to whole vectors, each as wide as x, and beyond them what [`Unpack`] reads.
    /// Nobody else accesses the sums.
    unsafe fn multiply<U: Unpack>(self) {
        let Self { isa, source, outputs, next, x, rows, work, sums } = self;
        assert_eq!(x.layout, layout_of::<U>(isa));
        let (lanes, blocks) = (isa.lanes(), x.cols / BLOCK);
        let panels = outputs.len().div_ceil(lanes);
        let all = Rows { q: x.q.as_ptr(), meta: x.meta.as_ptr(), blocks: x.row_blocks() };
        if let [row] = rows {
            at_least(&mut work.sums, panels * lanes);
            let (x, to) = (all.row(*row), work.sums.as_mut_ptr());
            // SAFETY: as the caller promises; `to` has room for all panels.
            unsafe {
                isa.enter(One::<U> { source, next, panels, blocks, x, to, format: PhantomData });
                sums.part(0, outputs.start, outputs.len()).copy_from_slice(&work.sums[..outputs.len()]);
            }
            return;
        }
        let Workspace { pairs, sums: aside, panel, .. } = work;
        let together = 1 + usize::from(*pairs);
        let panel_len = CHUNK * VECTORS * lanes;
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
            let after =
                if end < panels { source.below(end * lanes) } else { Source { rows: next, ..source } };
            for start in (0..blocks).step_by(CHUNK) {
                let chunk = start..blocks.min(start + CHUNK);
                let several = |p: usize, slot: usize| {
                    let panel = packed.wrapping_add(slot * panel_len);
                    let pack = Pack::<U> {
                        source: source.below(p * lanes),
                        next: after.below((p - first) * lanes).rows,
                        to: panel,
                        blocks: chunk.clone(),
                        of: blocks,
                        format: PhantomData,
                    };
                    // SAFETY: as the caller promises; there is room for a chunk of each panel.
                    unsafe { isa.enter(pack) };
                    Several { panel, blocks: chunk.clone(), x: all, of: blocks, rows, to: to(p) }
                };
                for p in (first..end).step_by(together) {
                    // SAFETY: as the caller promises; the panels are packed; there is room for a vector aside.
                    unsafe {
                        if *pairs && p + 1 < end {
                            enter!(U, isa, Pair, [several(p, 0), several(p + 1, 1)]);
                        } else {
                            enter!(U, isa, Kind, several(p, 0));
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
