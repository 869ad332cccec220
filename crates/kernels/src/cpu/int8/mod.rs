//! Integer products: weights as their file holds them, times activations quantised to signed bytes.
//!
//! Activations are quantised in blocks of 32 along a row, `x = scale * q`; the few blocks whose scale is far above the
//! others' have a second one, a *residue*, for what that leaves. A block of weights is `w = d * (u - OFFSET) + m` with
//! unsigned bytes u, one d and one m. Its share of an output is
//! `d * scale * sum(q * (u - OFFSET)) + m * scale * sum(q)`, where the integer sums are exact; the shares are added
//! in the order of the blocks, `fma(sum, d * scale, total)` and then `fma(m, scale * sum(q), total)`; after each
//! [`CHUNK`] comes the sum of its residues, made alike.
//!
//! GGML's k-quants are integers in super-blocks of 256, `w = d * part_scale * (u - OFFSET) - m * part_min` with integer
//! scales and minimums of 32 or 16 values, so activations for them have one scale for 256 too, and a super-block's
//! share is `fma(sum, d * scale, total)` and then `fma(sum of minimums, m * scale, total)`, of integers that are exact
//! ([`supers`]).
//!
//! Those orders and roundings hold on every instruction set and for any number of rows, so all of them agree bit for
//! bit.
//!
//! Weight rows lie in lanes ([`super::simd`]): 16 bytes of each row are loaded and transposed, and a dword of x is
//! multiplied with all rows at once. One row of x takes the unpacked weights from the registers; several rows
//! share a *panel*, which holds 512 unpacked columns in the first cache.

mod activations;
mod affine;
mod ahead;
mod iq;
mod item;
mod k;
mod legacy;
mod panel;
mod steps;
mod supers;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub(super) use activations::{Activations, Layout, Order};
pub(super) use item::{Item, OUTPUTS, Ways, Workspace, layout, products};

use std::ops::Range;

use files::ScaleType;

use super::simd::{Simd, array};

/// Values of a block.
pub(super) const BLOCK: usize = 32;
/// Values of a super-block.
const SUPER: usize = 256;
/// Blocks of a super-block.
const BLOCKS: usize = SUPER / BLOCK;
/// Blocks of a panel; a whole number of every format's units.
pub(super) const CHUNK: usize = 16;
/// Bytes past the end of its row that an unpacker may read.
pub(super) const SLACK: usize = 288;

/// The bytes of some consecutive rows of a weight.
#[derive(Clone, Copy)]
pub(super) struct Source {
    /// Where the first row starts in each part.
    pub(super) rows: [*const u8; 3],
    /// Bytes from a row to the next.
    pub(super) strides: [usize; 3],
    /// Of affine formats: values of a group.
    pub(super) group: usize,
    /// Of affine formats.
    pub(super) scale: ScaleType,
}

impl Source {
    /// The rows from `rows` on.
    #[inline(always)]
    fn below(mut self, rows: usize) -> Self {
        for part in 0..3 {
            self.rows[part] = self.rows[part].wrapping_add(rows * self.strides[part]);
        }
        self
    }

    /// 16 bytes of each row from `offset` of the first part.
    ///
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, offset: usize) -> [S::I; 4] {
        // SAFETY: the caller stays within the rows and their slack.
        unsafe { S::load16(self.rows[0].add(offset), self.strides[0]) }
    }

    /// 32 bytes of each row.
    ///
    /// # Safety
    /// As [`Unpack::unpack`].
    #[inline(always)]
    unsafe fn load_two<S: Simd>(&self, offset: usize) -> [S::I; 8] {
        // SAFETY: the caller stays within the rows and their slack.
        unsafe {
            let (a, b) = (self.load::<S>(offset), self.load::<S>(offset + 16));
            [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
        }
    }
}

/// Takes unpacked blocks.
pub(super) trait Emit<S: Simd> {
    /// Block `b`: 32 bytes of each row in the format's [`Order`], scales and minimums.
    ///
    /// # Safety
    /// The features of `S` are present.
    unsafe fn block(&mut self, b: usize, w: [S::I; 8], d: S::F, m: S::F);
}

/// A number format, unpacked to bytes.
pub(super) trait Unpack: Copy + 'static {
    /// There are minimums.
    const MIN: bool = false;
    /// Bits of the bytes.
    const BITS: u32;
    /// What is subtracted from the bytes.
    const OFFSET: i32 = 0;
    /// Where the values of a block lie in it.
    const ORDER: Order = Order::Natural;
    /// Of rows that have a multiple of so many blocks no byte past the end is read; 0: of no row.
    const WHOLE: usize;

    /// Unpacks `blocks` (from a multiple of [`CHUNK`], at most that many) of [`Simd::LANES`] rows.
    ///
    /// # Safety
    /// The features of `S` are present; the source has that many rows, each with these blocks and, after the last
    /// row, [`SLACK`] readable bytes in each part.
    unsafe fn unpack<S: Simd, E: Emit<S>>(source: &Source, blocks: Range<usize>, emit: &mut E);
}

/// The low nibbles of four dwords, then the high ones.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn nibbles<S: Simd>(x: [S::I; 4]) -> [S::I; 8] {
    // SAFETY: as the caller promises.
    unsafe {
        let (l, h) = (low::<S>(x), high::<S>(x));
        [l[0], l[1], l[2], l[3], h[0], h[1], h[2], h[3]]
    }
}

/// The low nibble of each byte.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn low<S: Simd>(x: [S::I; 4]) -> [S::I; 4] {
    // SAFETY: as the caller promises.
    unsafe { array!(i < 4 => S::and(x[i], S::splat(0x0f0f_0f0f))) }
}

/// The high nibble of each byte.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn high<S: Simd>(x: [S::I; 4]) -> [S::I; 4] {
    // SAFETY: as the caller promises.
    unsafe { array!(i < 4 => S::and(S::shr(x[i], 4), S::splat(0x0f0f_0f0f))) }
}

/// Bits `at ..` of each dword under `mask`, as floats.
///
/// # Safety
/// The features of `S` are present.
#[inline(always)]
unsafe fn field<S: Simd>(x: S::I, at: usize, mask: i32) -> S::I {
    // SAFETY: as the caller promises.
    unsafe { S::and(S::shr(x, at as u32), S::splat(mask)) }
}
