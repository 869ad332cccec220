//! Matrix products with f32 activations: a weight row is decoded once and multiplied with every row of x.

use std::marker::PhantomData;
use std::ops::Range;

use files::{Format, Result, ScaleType};

use crate::buffer::HostWeight;
use crate::cpu::isa::{Isa, for_each_isa};
use crate::cpu::math::{LANES, silu, tree_sum};
use crate::cpu::simd::{Kernel, Simd, array};

/// Weight rows that are multiplied together.
const ROWS: usize = 4;

/// Partial sums of a dot product: value `k` goes to sum `k % SUMS`, and they are added as a tree.
const SUMS: usize = LANES;
/// The most vectors that hold them.
const VECTORS: usize = 4;

/// A plain number format.
trait Float: Copy {
    const BYTES: usize;

    /// Values `at ..`, a vector full.
    ///
    /// # Safety
    /// The features of `S` are present, and the values exist.
    unsafe fn load<S: Simd>(from: *const u8, at: usize) -> S::F;
}

#[derive(Clone, Copy)]
struct Single;
#[derive(Clone, Copy)]
struct Half;
#[derive(Clone, Copy)]
struct Brain;

impl Float for Single {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8, at: usize) -> S::F {
        // SAFETY: as the caller promises.
        unsafe { S::load_f(from.cast::<f32>().wrapping_add(at)) }
    }
}

impl Float for Half {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8, at: usize) -> S::F {
        // SAFETY: as the caller promises.
        unsafe { S::half_to_f(S::load_words(from.wrapping_add(2 * at))) }
    }
}

impl Float for Brain {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8, at: usize) -> S::F {
        // SAFETY: as the caller promises.
        unsafe { S::bits_to_f(S::shl(S::load_words(from.wrapping_add(2 * at)), 16)) }
    }
}

/// Dot products of [`ROWS`] rows of w with `N` rows of x, all of `len` values.
struct Dots<T, const N: usize> {
    w: [*const u8; ROWS],
    x: [*const f32; N],
    len: usize,
    sums: *mut [f32; ROWS],
    format: PhantomData<T>,
}

impl<T: Float, const N: usize> Kernel for Dots<T, N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller of the kernel promises the features, the rows and room for N results.
        unsafe {
            let mut sums = [[[S::splat_f(0.0); VECTORS]; ROWS]; N];
            let whole = self.len - self.len % SUMS;
            let mut k = 0;
            while k < whole {
                for v in 0..SUMS / S::LANES {
                    let at = k + v * S::LANES;
                    let w = array!(n < ROWS => T::load::<S>(self.w[n], at));
                    for i in 0..N {
                        let x = S::load_f(self.x[i].add(at));
                        for n in 0..ROWS {
                            sums[i][n][v] = S::fma(w[n], x, sums[i][n][v]);
                        }
                    }
                }
                k += SUMS;
            }
            for i in 0..N {
                let of_x = &mut *self.sums.add(i);
                for n in 0..ROWS {
                    let mut parts = [0.0f32; SUMS];
                    for v in 0..SUMS / S::LANES {
                        S::store_f(sums[i][n][v], parts.as_mut_ptr().add(v * S::LANES));
                    }
                    for k in whole..self.len {
                        let mut w = [0u8; 64];
                        let from = self.w[n].add(k * T::BYTES);
                        w.as_mut_ptr().copy_from_nonoverlapping(from, T::BYTES);
                        let mut value = [0.0f32; SUMS];
                        S::store_f(T::load::<S>(w.as_ptr(), 0), value.as_mut_ptr());
                        parts[k - whole] = value[0].mul_add(*self.x[i].add(k), parts[k - whole]);
                    }
                    of_x[n] = tree_sum(parts);
                }
            }
        }
    }
}

/// `sums[i][n] = x[rows[i]] . w[n]` for [`ROWS`] rows of w, in the format's bytes.
fn dots<T: Float>(
    isa: Isa,
    w: [&[u8]; ROWS],
    x: &[f32],
    rows: &[u32],
    cols: usize,
    sums: &mut [[f32; ROWS]],
) {
    assert!(w.iter().all(|w| w.len() == cols * T::BYTES) && sums.len() >= rows.len());
    let w = w.map(<[u8]>::as_ptr);
    let row = |i: usize| x[rows[i] as usize * cols..][..cols].as_ptr();
    // Four rows of x need the registers of wide vectors.
    let together = if isa.lanes() == SUMS { 4 } else { 1 };
    let mut i = 0;
    while i < rows.len() {
        let (len, to) = (cols, &raw mut sums[i]);
        // SAFETY: the slices have `cols` values, and `sums` as many entries as there are rows.
        unsafe {
            if together == 4 && i + 4 <= rows.len() {
                let x = [row(i), row(i + 1), row(i + 2), row(i + 3)];
                isa.enter(Dots::<T, 4> { w, x, len, sums: sums[i..i + 4].as_mut_ptr(), format: PhantomData });
                i += 4;
            } else {
                isa.enter(Dots::<T, 1> { w, x: [row(i)], len, sums: to, format: PhantomData });
                i += 1;
            }
        }
    }
}

/// Calls `take(i, n, sums)`, where `sums` are `x[rows[i]] . w[n ..]`, until all rows have all `outputs`.
///
/// # Errors
/// As [`files::quant::decode`].
pub(in crate::cpu) fn products_of(
    isa: Isa,
    x: &[f32],
    rows: &[u32],
    w: &HostWeight<'_>,
    outputs: Range<usize>,
    mut take: impl FnMut(usize, usize, &[f32]),
) -> Result<()> {
    let (cols, plain) = (w.cols, matches!(w.format, Format::F32 | Format::F16 | Format::BF16));
    let mut decoded = vec![0.0f32; if plain { 0 } else { ROWS * cols }];
    let mut sums = vec![[0.0; ROWS]; rows.len()];
    for first in outputs.clone().step_by(ROWS) {
        let count = ROWS.min(outputs.end - first);
        if !plain {
            for (n, row) in decoded.chunks_exact_mut(cols).take(count).enumerate() {
                decode_row(isa, w, first + n, row)?;
            }
        }
        let bytes: &[u8] = bytemuck::cast_slice(&decoded);
        let of: [&[u8]; ROWS] = std::array::from_fn(|n| match plain {
            // The last row stands in for those that would follow.
            true => w.row(0, (first + n).min(w.rows - 1)),
            false => &bytes[n * cols * 4..][..cols * 4],
        });
        match w.format {
            Format::F16 => dots::<Half>(isa, of, x, rows, cols, &mut sums),
            Format::BF16 => dots::<Brain>(isa, of, x, rows, cols, &mut sums),
            _ => dots::<Single>(isa, of, x, rows, cols, &mut sums),
        }
        for (i, sums) in sums.iter().enumerate() {
            take(i, first, &sums[..count]);
        }
    }
    Ok(())
}

/// One row of w as floats: [`HostWeight::decode_row`], with vectors for the formats that routers come in.
///
/// # Errors
/// As [`files::quant::decode`].
fn decode_row(isa: Isa, w: &HostWeight<'_>, row: usize, out: &mut [f32]) -> Result<()> {
    let Format::Affine { bits: bits @ (4 | 8), group, scale: ScaleType::BF16 } = w.format else {
        return w.decode_row(row, out);
    };
    let (packed, scales, biases) = (w.row(0, row), w.row(1, row), w.row(2, row));
    match bits {
        4 => decode_affine4(isa, packed, scales, biases, usize::from(group), out),
        _ => decode_affine8(isa, packed, scales, biases, usize::from(group), out),
    }
    Ok(())
}

/// A bf16 scale or bias.
#[inline(always)]
fn brain(bytes: &[u8]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
}

for_each_isa! {
    /// `out = q * scale + bias` for groups of bytes.
    fn decode_affine8(packed: &[u8], scales: &[u8], biases: &[u8], group: usize, out: &mut [f32]) {
        let of_group = scales.chunks_exact(2).zip(biases.chunks_exact(2));
        let values = packed.chunks_exact(group).zip(out.chunks_exact_mut(group));
        for ((scale, bias), (packed, out)) in of_group.zip(values) {
            let (scale, bias) = (brain(scale), brain(bias));
            for (out, &q) in out.iter_mut().zip(packed) {
                *out = f32::from(q) * scale + bias;
            }
        }
    }
}

for_each_isa! {
    /// The same for nibbles, low ones first.
    fn decode_affine4(packed: &[u8], scales: &[u8], biases: &[u8], group: usize, out: &mut [f32]) {
        let of_group = scales.chunks_exact(2).zip(biases.chunks_exact(2));
        let values = packed.chunks_exact(group / 2).zip(out.chunks_exact_mut(group));
        for ((scale, bias), (packed, out)) in of_group.zip(values) {
            let (scale, bias) = (brain(scale), brain(bias));
            for (out, &q) in out.chunks_exact_mut(2).zip(packed) {
                out[0] = f32::from(q & 15) * scale + bias;
                out[1] = f32::from(q >> 4) * scale + bias;
            }
        }
    }
}

for_each_isa! {
    /// `gate = silu(gate) * up`
    pub(in crate::cpu) fn silu_mul(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = silu(*gate) * up;
        }
    }
}
