//! Many rows of x with weights in super-blocks, by Intel's matrix tiles.
//!
//! A weight times its part's scale is an integer of 14 bits, `128 * high + low` with signed bytes: two *planes*, each
//! multiplied by tiles. The sum of 256 products leaves a tile as an integer that is exact, as [`super::supers`] has it,
//! so the bits are the same; only then come floats. Processors take as long for a product as for 16, so this is for many
//! rows.

use std::arch::x86_64::*;
use std::ops::Range;

use super::activations::SuperMeta;
use super::ahead::Ahead;
use super::panel::plus;
use super::supers::{EmitSuper, Floats, MINS, SUPERS, SuperRows, UnpackSuper, total};
use super::{BLOCKS, OUTPUTS, SUPER, Source};
use crate::cpu::amx::{ROWS, Tiles};
use crate::cpu::avx512::Avx512;
use crate::cpu::simd::Simd;

/// Fewer rows than this are multiplied as elsewhere.
pub(super) const ROWS_MIN: usize = 24;
/// Rows of a pass: what it holds for each stays small, and to unpack weights again for more costs next to nothing.
pub(super) const ROWS_MAX: usize = 512;
/// Rows of x that tiles are multiplied with at a time.
const STEP: usize = 2 * ROWS;
/// Rows of x that lie side by side: with a super-block of a panel they fit the first cache.
const GROUP: usize = 2 * STEP;
const LANES: usize = Avx512::LANES;
/// Panels of a pass.
const PANELS: usize = OUTPUTS / LANES;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>([T; 16]);

/// A super-block of a panel.
#[derive(Clone, Copy)]
#[repr(C)]
struct Planes {
    /// High bytes and low bytes: row k holds values 4 k to 4 k + 3 of each output.
    bytes: [[Line<i32>; SUPER / 4]; 2],
    d: Line<f32>,
    m: Line<f32>,
    mins: [Line<i32>; MINS],
}

/// Some rows of x, and where their sums go.
struct Batch {
    /// The chunk's bytes of the first row, and how far the next row's are.
    x: *const i8,
    pitch: usize,
    /// Rows that do not lie side by side, copied. Their pitch is no multiple of many lines, or they would meet in the
    /// cache.
    copy: [[Line<i32>; SUPERS * SUPER / 64 + 1]; GROUP],
    meta: [[*const SuperMeta; GROUP]; SUPERS],
    len: usize,
    /// Those of the first panel.
    to: [*mut Line<f32>; GROUP],
}

/// An excess of the row at place `at` in a pass.
#[derive(Clone, Copy)]
struct Excess {
    /// Its block in the row.
    block: usize,
    at: usize,
    q: *const i8,
    meta: *const SuperMeta,
}

/// Memory of one thread.
pub(super) struct Space {
    planes: Box<[[Planes; SUPERS]; PANELS]>,
    batch: Box<Batch>,
    /// What tiles leave: of this step and of the one before.
    sums: Box<[[Line<i32>; 4 * ROWS]; 2]>,
    /// `[panel][row]`
    totals: Vec<Line<f32>>,
    /// `[panel][row]`, of the chunk's excesses, for the rows that have some.
    rest: Vec<Line<f32>>,
    /// Those of a chunk, in the order of their rows.
    excesses: Vec<Excess>,
    /// The same, in the order of their blocks.
    by_block: Vec<Excess>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").finish_non_exhaustive()
    }
}

impl Default for Space {
    fn default() -> Self {
        let (none, zero) = (Line([0; 16]), Line([0.0; 16]));
        let planes = Planes { bytes: [[none; SUPER / 4]; 2], d: zero, m: zero, mins: [none; MINS] };
        Self {
            planes: Box::new([[planes; SUPERS]; PANELS]),
            batch: Box::new(Batch {
                x: std::ptr::null(),
                pitch: 0,
                copy: [[none; SUPERS * SUPER / 64 + 1]; GROUP],
                meta: [[std::ptr::null(); GROUP]; SUPERS],
                len: 0,
                to: [std::ptr::null_mut(); GROUP],
            }),
            sums: Box::new([[none; 4 * ROWS]; 2]),
            totals: Vec::new(),
            rest: Vec::new(),
            excesses: Vec::new(),
            by_block: Vec::new(),
        }
    }
}
// SAFETY: its pointers are of the call that set them.
unsafe impl Send for Space {}

/// Up to [`OUTPUTS`] rows of a weight, from one that starts a vector of them, and up to [`ROWS_MAX`] rows of x.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) source: Source,
    /// What is multiplied next.
    pub(super) next: Source,
    pub(super) panels: usize,
    pub(super) x: SuperRows,
    pub(super) rows: &'a [u32],
}

impl Pass<'_> {
    /// All products, to `out(i)` for each place i in `rows`: as many outputs as it has.
    ///
    /// # Safety
    /// There are tiles ([`crate::cpu::amx::available`]) and AVX-512 with VNNI; the source has `panels` vectors of rows
    /// with that many super-blocks; the rows of x exist.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) unsafe fn run<'o, U: UnpackSuper>(
        &self,
        space: &mut Space,
        out: impl Fn(usize) -> &'o mut [f32],
    ) {
        space.totals.clear();
        space.totals.resize(self.panels * self.rows.len(), Line([0.0; 16]));
        space.rest.resize(space.totals.len(), Line([0.0; 16]));
        // SAFETY: there are tiles, and only this function uses them.
        let tiles = unsafe { Tiles::new() };
        for start in (0..self.x.supers).step_by(SUPERS) {
            let chunk = start..self.x.supers.min(start + SUPERS);
            // SAFETY: as the caller promises.
            unsafe {
                for p in 0..self.panels {
                    self.pack::<U>(p, &chunk, &mut space.planes[p]);
                }
                self.chunk::<U>(&tiles, &chunk, space);
            }
        }
        for i in 0..self.rows.len() {
            for (p, out) in out(i).chunks_mut(LANES).enumerate() {
                let total = &space.totals[p * self.rows.len() + i].0;
                match <&mut [f32; LANES]>::try_from(&mut *out) {
                    Ok(out) => *out = *total,
                    Err(_) => out.copy_from_slice(&total[..out.len()]),
                }
            }
        }
    }

    /// Unpacks a chunk of a panel.
    ///
    /// # Safety
    /// As [`Pass::run`].
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn pack<U: UnpackSuper>(&self, panel: usize, chunk: &Range<usize>, to: &mut [Planes; SUPERS]) {
        let (source, next) = (self.source.below(panel * LANES), self.next.below(panel * LANES));
        let blocks = chunk.start * BLOCKS..chunk.end * BLOCKS;
        let ahead = Ahead::new::<Avx512>(&source, next.rows, blocks, self.x.supers * BLOCKS);
        let mut emit = Split { planes: to, at: 0, parts: U::PARTS, offset: U::OFFSET, ahead };
        // SAFETY: as the caller promises.
        unsafe { U::unpack::<Avx512, _>(&source, chunk.clone(), &mut emit) };
    }

    /// Adds a chunk's share to all totals, and then that of its excesses.
    ///
    /// # Safety
    /// As [`Pass::run`]; the chunk is packed.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn chunk<U: UnpackSuper>(&self, tiles: &Tiles, chunk: &Range<usize>, space: &mut Space) {
        let count = self.rows.len();
        let totals = space.totals.as_mut_ptr();
        space.excesses.clear();
        for first in (0..count).step_by(GROUP) {
            let batch = &mut *space.batch;
            let rows = &self.rows[first..count.min(first + GROUP)];
            let consecutive = rows.iter().enumerate().all(|(i, row)| *row as usize == rows[0] as usize + i);
            batch.len = rows.len();
            for (i, row) in rows.iter().enumerate() {
                let (row, at) = (self.x.row(*row), first + i);
                // SAFETY: the row has the chunk's super-blocks, and these excesses.
                unsafe {
                    for s in chunk.clone() {
                        batch.meta[s - chunk.start][i] = row.meta.add(s);
                        if !consecutive {
                            batch.copy(s - chunk.start, i, row.q.add(s * SUPER));
                        }
                    }
                    for e in row.excesses(chunk) {
                        let (q, meta) = (row.excess(e), row.meta.add(e));
                        space.excesses.push(Excess { block: (*meta).link as usize, at, q, meta });
                    }
                }
                batch.to[i] = totals.wrapping_add(at);
            }
            if consecutive {
                batch.x = self.x.row(rows[0]).q.wrapping_add(chunk.start * SUPER);
                batch.pitch = self.x.pitch;
            } else {
                batch.of_copies();
            }
            // SAFETY: as the caller promises; totals of a panel are `count` apart.
            unsafe {
                batch.multiply::<U>(tiles, &space.planes[..self.panels], chunk.len(), count, &mut space.sums);
            }
        }
        if !space.excesses.is_empty() {
            // SAFETY: as the caller promises.
            unsafe { self.excesses::<U>(tiles, chunk.start, space) };
        }
    }

    /// Adds the share of the chunk's excesses.
    ///
    /// # Safety
    /// As [`Pass::chunk`]; the excesses are the chunk's, in the order of their rows.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn excesses<U: UnpackSuper>(&self, tiles: &Tiles, first: usize, space: &mut Space) {
        let Space { planes, batch, sums, totals, rest, excesses, by_block, .. } = space;
        let count = self.rows.len();
        let lines = |at: usize| (0..self.panels).map(move |p| p * count + at);
        for excess in &*excesses {
            lines(excess.at).for_each(|line| rest[line] = Line([0.0; 16]));
        }
        // Those of a block together.
        let starts = sorted(excesses, first * BLOCKS, by_block);
        for (block, ends) in starts.windows(2).enumerate() {
            let (s, j) = (block / BLOCKS, block % BLOCKS);
            let same = &by_block[ends[0]..ends[1]];
            for some in same.chunks(STEP) {
                batch.len = some.len();
                for (i, excess) in some.iter().enumerate() {
                    // SAFETY: an excess has 32 bytes.
                    unsafe { batch.half_line(i, j % 2, excess.q) };
                    batch.meta[0][i] = excess.meta;
                    batch.to[i] = rest.as_mut_ptr().wrapping_add(excess.at);
                }
                batch.of_copies();
                for p in 0..self.panels {
                    let w = &planes[p][s];
                    let rows = |plane: &[Line<i32>; SUPER / 4]| plane[j / 2 * ROWS..].as_ptr().cast();
                    // SAFETY: as the caller promises; 16 rows of the planes go with 64 bytes.
                    unsafe {
                        let to = sums[0].as_mut_ptr().cast();
                        tiles.multiply_line(batch.x, batch.pitch, w.bytes.each_ref().map(rows), to);
                        batch.scale::<U>(0, 0..some.len(), w, p * count, 0, &sums[0]);
                    }
                }
            }
        }
        for row in excesses.chunk_by(|a, b| a.at == b.at) {
            for line in lines(row[0].at) {
                // SAFETY: the processor has AVX-512.
                unsafe { add(&mut totals[line], &rest[line]) };
            }
        }
    }
}

/// Writes the excesses of a chunk in the order of their blocks, of which `first` is the chunk's first. Returns where those
/// of each block begin, and the end.
fn sorted(excesses: &[Excess], first: usize, by_block: &mut Vec<Excess>) -> [usize; SUPERS * BLOCKS + 1] {
    let mut starts = [0; SUPERS * BLOCKS + 1];
    for excess in excesses {
        starts[excess.block - first + 1] += 1;
    }
    for block in 1..starts.len() {
        starts[block] += starts[block - 1];
    }
    by_block.clear();
    by_block.extend_from_slice(excesses);
    let mut next = starts;
    for excess in excesses {
        let place = &mut next[excess.block - first];
        by_block[*place] = *excess;
        *place += 1;
    }
    starts
}

/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add(total: &mut Line<f32>, rest: &Line<f32>) {
    // SAFETY: as the caller promises.
    unsafe {
        let sum = plus::<Avx512>(Avx512::load_f(total.0.as_ptr()), Avx512::load_f(rest.0.as_ptr()));
        Avx512::store_f(sum, total.0.as_mut_ptr());
    }
}

impl Batch {
    /// The rows are copies.
    fn of_copies(&mut self) {
        self.x = self.copy.as_ptr().cast();
        self.pitch = size_of_val(&self.copy[0]);
    }

    /// Copies super-block `s` of row `i`.
    ///
    /// # Safety
    /// The bytes exist.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn copy(&mut self, s: usize, i: usize, q: *const i8) {
        let lines = s * SUPER / 64..(s + 1) * SUPER / 64;
        // SAFETY: as the caller promises.
        let from = unsafe { q.cast::<[Line<i32>; SUPER / 64]>().read_unaligned() };
        self.copy[i][lines].copy_from_slice(&from);
    }

    /// Copies 32 bytes to one half of row `i`, and clears the other.
    ///
    /// # Safety
    /// The bytes exist.
    unsafe fn half_line(&mut self, i: usize, half: usize, q: *const i8) {
        let line = &mut self.copy[i][0].0;
        *line = [0; 16];
        // SAFETY: as the caller promises; half a line has room for 32 bytes.
        unsafe { q.copy_to_nonoverlapping(line[8 * half..].as_mut_ptr().cast(), 32) };
    }

    /// Adds what the rows and the first `supers` of each panel make to the rows' sums; those of a panel are `apart`
    /// further than the last one's.
    ///
    /// # Safety
    /// As [`Pass::run`]; rows of the batch are set, and their sums exist.
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn multiply<U: UnpackSuper>(
        &self,
        tiles: &Tiles,
        panels: &[[Planes; SUPERS]],
        supers: usize,
        apart: usize,
        sums: &mut [[Line<i32>; 4 * ROWS]; 2],
    ) {
        // While tiles are multiplied, vectors take what the tiles before have left.
        let mut last: Option<[usize; 3]> = None;
        let halves = self.len.div_ceil(STEP);
        let steps = supers * panels.len() * halves;
        for step in 0..=steps {
            let now = (step < steps).then(|| {
                let (at, half) = (step / halves, step % halves);
                [at / panels.len(), at % panels.len(), half]
            });
            // SAFETY: as the caller promises.
            unsafe {
                if let Some([s, p, half]) = now {
                    let [high, low] = &panels[p][s].bytes;
                    let x = self.x.wrapping_add(half * STEP * self.pitch + s * SUPER);
                    let (w, to) = ([high.as_ptr().cast(), low.as_ptr().cast()], sums[step % 2].as_mut_ptr());
                    if self.len > half * STEP + ROWS {
                        tiles.multiply(x, self.pitch, w, to.cast());
                    } else {
                        tiles.multiply_16(x, self.pitch, w, to.cast());
                    }
                }
                if let Some([s, p, half]) = last {
                    let rows = half * STEP..self.len.min((half + 1) * STEP);
                    let sums = &sums[(step + 1) % 2];
                    self.scale::<U>(s, rows, &panels[p][s], p * apart, 64 * p, sums);
                }
            }
            last = now;
        }
    }

    /// Adds the integers that some rows and super-block `s` made to the rows' sums, as floats. Byte
    /// `line` of each of the next rows is asked for.
    ///
    /// # Safety
    /// As [`Batch::multiply`].
    #[inline(always)]
    unsafe fn scale<U: UnpackSuper>(
        &self,
        s: usize,
        rows: Range<usize>,
        w: &Planes,
        apart: usize,
        line: usize,
        sums: &[Line<i32>; 4 * ROWS],
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut mins = [Avx512::splat(0); MINS];
            if U::MIN {
                for k in 0..U::PARTS / 2 {
                    mins[k] = Avx512::load(w.mins[k].0.as_ptr());
                }
            }
            let w = Floats::<Avx512> {
                d: Avx512::load_f(w.d.0.as_ptr()),
                m: Avx512::load_f(w.m.0.as_ptr()),
                mins,
            };
            for (at, i) in rows.enumerate() {
                Avx512::prefetch(self.x.wrapping_add((GROUP + i) * self.pitch + s * SUPER + line).cast());
                let meta = &*self.meta[s][i];
                let sum = Avx512::add(
                    Avx512::shl(Avx512::load(sums[at].0.as_ptr()), 7),
                    Avx512::load(sums[STEP + at].0.as_ptr()),
                );
                let to = self.to[i].wrapping_add(apart).cast::<f32>();
                Avx512::store_f(total::<Avx512, U>(Avx512::load_f(to), meta, sum, &w), to);
            }
        }
    }
}

/// Splits weights into planes.
struct Split<'a> {
    planes: &'a mut [Planes; SUPERS],
    /// The super-block whose turn it is.
    at: usize,
    parts: usize,
    offset: i32,
    ahead: Ahead,
}

impl EmitSuper<Avx512> for Split<'_> {
    #[inline(always)]
    unsafe fn block(&mut self, j: usize, w: [__m512i; 8], scales: [__m512i; 2]) {
        let [high, low] = &mut self.planes[self.at].bytes;
        // SAFETY: the processor has AVX-512; there is room for the rows.
        unsafe {
            self.ahead.block::<Avx512>();
            let words = |x: __m512i| {
                _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32::<16>(x))
            };
            let scales = [words(scales[0]), words(scales[self.parts / 16])];
            let offset = _mm512_set1_epi16(self.offset as i16);
            let (byte, seven) = (_mm512_set1_epi16(0xff), _mm512_set1_epi16(0x7f));
            for c in 0..8 {
                let even = _mm512_sub_epi16(_mm512_and_si512(w[c], byte), offset);
                let odd = _mm512_sub_epi16(_mm512_srli_epi16::<8>(w[c]), offset);
                let (even, odd) =
                    (_mm512_mullo_epi16(even, scales[c / 4]), _mm512_mullo_epi16(odd, scales[c / 4]));
                let both =
                    |even, odd| _mm512_or_si512(_mm512_and_si512(even, byte), _mm512_slli_epi16::<8>(odd));
                let h = both(_mm512_srai_epi16::<7>(even), _mm512_srai_epi16::<7>(odd));
                let l = both(_mm512_and_si512(even, seven), _mm512_and_si512(odd, seven));
                _mm512_store_si512(high[8 * j + c].0.as_mut_ptr().cast(), h);
                _mm512_store_si512(low[8 * j + c].0.as_mut_ptr().cast(), l);
            }
        }
    }

    #[inline(always)]
    unsafe fn end(&mut self, d: __m512, m: __m512, mins: [__m512i; MINS]) {
        let planes = &mut self.planes[self.at];
        // SAFETY: the processor has AVX-512; there is room for each.
        unsafe {
            Avx512::store_f(d, planes.d.0.as_mut_ptr());
            Avx512::store_f(m, planes.m.0.as_mut_ptr());
            for k in 0..MINS {
                Avx512::store(mins[k], planes.mins[k].0.as_mut_ptr());
            }
        }
        self.at += 1;
    }
}
