//! The KV cache: writing heads into it, and reading them as vectors of floats.

use files::Result;
use half::f16;

use crate::cpu::isa::Isa;
use crate::cpu::math::{to_bf16, widen};
use crate::cpu::shared::Parts;
use crate::cpu::wide::{LANES, Wide, for_each_width};
use crate::ops::{KvCache, KvFormat, PAGE};

/// What [`append`] works on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Append<'a> {
    /// `[rows, kv_heads * head_dim]`, keys and values.
    rows: [&'a [f32]; 2],
    blocks: [Parts<'a, u8>; 2],
    heads: usize,
    dim: usize,
    format: KvFormat,
    /// Whether halves get values of bf16.
    rounds: bool,
}

impl<'a> Append<'a> {
    /// Rows of keys and values that go into `cache`.
    ///
    /// # Errors
    /// [`files::ErrorKind::Device`] when the cache is not in host memory.
    pub(in crate::cpu) fn new(rows: [&'a [f32]; 2], cache: &'a mut KvCache, rounds: bool) -> Result<Self> {
        Ok(Self {
            rows,
            heads: cache.kv_heads,
            dim: cache.head_dim,
            format: cache.format,
            blocks: [Parts::new(cache.keys.host_mut()?), Parts::new(cache.values.host_mut()?)],
            rounds,
        })
    }
}

/// Stores row number `row` at `position`, which lies in `page`; see [`crate::Backend::kv_append`].
///
/// # Safety
/// Nobody else accesses this position of the page, which is one of the cache's.
pub(in crate::cpu) unsafe fn append(isa: Isa, a: Append<'_>, row: usize, position: usize, page: u32) {
    let bytes = a.format.head_bytes(a.dim);
    for (source, target) in a.rows.iter().zip(a.blocks) {
        for (h, values) in source[row * a.heads * a.dim..][..a.heads * a.dim].chunks_exact(a.dim).enumerate()
        {
            let at = (page as usize * a.heads + h) * PAGE + position % PAGE;
            // SAFETY: this head belongs to this call, and has the bytes that the format says.
            unsafe { store(isa, values, a.format, a.rounds, target.part(at * bytes, bytes)) };
        }
    }
}

for_each_width! {
    /// One head in its format; `to` has [`KvFormat::head_bytes`].
    unsafe fn store<W>(values: &[f32], format: KvFormat, rounds: bool, to: &mut [u8]) {
        match format {
            KvFormat::F32 => {
                for (to, x) in to.chunks_exact_mut(4).zip(values) {
                    to.copy_from_slice(&x.to_le_bytes());
                }
            }
            KvFormat::F16 => {
                let whole = values.len() - values.len() % LANES;
                for d in (0..whole).step_by(LANES) {
                    let mut some = [0.0; LANES];
                    for (to, x) in some.iter_mut().zip(&values[d..]) {
                        *to = if rounds { to_bf16(*x) } else { *x };
                    }
                    // SAFETY: the caller's promise: two bytes for each of sixteen values.
                    unsafe { W::load(some.as_ptr()).store_half(to.as_mut_ptr().add(2 * d).cast()) };
                }
                for (to, x) in to[2 * whole..].chunks_exact_mut(2).zip(&values[whole..]) {
                    let x = if rounds { to_bf16(*x) } else { *x };
                    to.copy_from_slice(&f16::from_f32(x).to_le_bytes());
                }
            }
            KvFormat::Q8 => {
                let (bytes, scales) = to.split_at_mut(values.len());
                let (blocks, _) = values.as_chunks::<{ KvFormat::BLOCK }>();
                let (bytes, _) = bytes.as_chunks_mut::<{ KvFormat::BLOCK }>();
                for ((block, bytes), scale) in blocks.iter().zip(bytes).zip(scales.chunks_exact_mut(2)) {
                    scale.copy_from_slice(&quantise(block, bytes).to_le_bytes());
                }
            }
        }
    }
}

/// Writes the bytes of a block and returns its scale.
#[inline(always)]
fn quantise(values: &[f32; KvFormat::BLOCK], bytes: &mut [u8; KvFormat::BLOCK]) -> f16 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    // Magnitudes compare like their bits, and what is not finite is above all others.
    let mut max = 0;
    for v in values {
        max = max.max(v.to_bits() & 0x7fff_ffff);
    }
    let max = f32::from_bits(max);
    let step = if max.is_finite() { f16::from_f32(max / 127.0) } else { f16::NAN };
    if step.is_nan() || step <= f16::ZERO {
        *bytes = [0; KvFormat::BLOCK];
        return step;
    }
    let divisor = widen(step);
    for i in 0..KvFormat::BLOCK {
        let q = values[i] / divisor;
        let q = if q > 127.0 { 127.0 } else { q };
        let q = if q < -127.0 { -127.0 } else { q };
        bytes[i] = (q + ROUND).to_bits() as u8;
    }
    step
}

/// Heads of consecutive positions.
///
/// # Safety
/// All methods: the positions that are asked for lie in the cache.
pub(super) unsafe trait Heads: Copy {
    /// Values `at .. at + 16` of position `j`, both counted from the start; `at` is a multiple of sixteen.
    unsafe fn load<W: Wide>(self, j: usize, at: usize) -> W;
    /// Value `at` of position `j`.
    unsafe fn value(self, j: usize, at: usize) -> f32;
    /// The heads from position `j` on.
    fn after(self, j: usize) -> Self;
    /// Where they begin.
    fn start(self) -> *const u8;
    /// Bytes of a position.
    fn bytes(self) -> usize;
}

/// Sixteen values of position `j` from `at` on, a multiple of sixteen; zeros after the head's `dim`.
///
/// # Safety
/// As [`Heads`].
#[inline(always)]
pub(super) unsafe fn sixteen<W: Wide, H: Heads>(heads: H, dim: usize, j: usize, at: usize) -> W {
    // SAFETY: the caller's promise.
    unsafe {
        if at + LANES <= dim {
            return heads.load(j, at);
        }
        let mut some = [0.0; LANES];
        for (i, x) in some.iter_mut().enumerate().take(dim.saturating_sub(at)) {
            *x = heads.value(j, at + i);
        }
        W::load(some.as_ptr())
    }
}

/// Heads as f32, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Floats {
    pub start: *const f32,
    pub stride: usize,
}

// SAFETY: reads what the caller promises to lie there.
unsafe impl Heads for Floats {
    #[inline(always)]
    unsafe fn load<W: Wide>(self, j: usize, at: usize) -> W {
        // SAFETY: the trait's contract.
        unsafe { W::load(self.start.add(j * self.stride + at)) }
    }

    #[inline(always)]
    unsafe fn value(self, j: usize, at: usize) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { *self.start.add(j * self.stride + at) }
    }

    #[inline(always)]
    fn after(self, j: usize) -> Self {
        Self { start: self.start.wrapping_add(j * self.stride), ..self }
    }

    #[inline(always)]
    fn start(self) -> *const u8 {
        self.start.cast()
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        4 * self.stride
    }
}

/// Heads as f16, `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    pub start: *const f16,
    pub stride: usize,
}

// SAFETY: as above.
unsafe impl Heads for Halves {
    #[inline(always)]
    unsafe fn load<W: Wide>(self, j: usize, at: usize) -> W {
        // SAFETY: the trait's contract.
        unsafe { W::load_half(self.start.add(j * self.stride + at)) }
    }

    #[inline(always)]
    unsafe fn value(self, j: usize, at: usize) -> f32 {
        // SAFETY: the trait's contract.
        widen(unsafe { *self.start.add(j * self.stride + at) })
    }

    #[inline(always)]
    fn after(self, j: usize) -> Self {
        Self { start: self.start.wrapping_add(j * self.stride), ..self }
    }

    #[inline(always)]
    fn start(self) -> *const u8 {
        self.start.cast()
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        2 * self.stride
    }
}

/// Heads as [`KvFormat::Q8`], `stride` bytes apart, of `dim` values.
#[derive(Clone, Copy)]
pub(super) struct Bytes {
    pub start: *const u8,
    pub stride: usize,
    pub dim: usize,
}

// SAFETY: as above.
unsafe impl Heads for Bytes {
    #[inline(always)]
    unsafe fn load<W: Wide>(self, j: usize, at: usize) -> W {
        // SAFETY: the trait's contract; scales follow the bytes, one for each block.
        unsafe {
            let head = self.start.add(j * self.stride);
            let scale = W::splat_half(head.add(self.dim + 2 * (at / KvFormat::BLOCK)).cast());
            W::load_bytes(head.add(at).cast()).mul(scale)
        }
    }

    #[inline(always)]
    unsafe fn value(self, j: usize, at: usize) -> f32 {
        // SAFETY: as above.
        unsafe {
            let head = self.start.add(j * self.stride);
            let scale = head.add(self.dim + 2 * (at / KvFormat::BLOCK)).cast::<f16>();
            f32::from(*head.add(at).cast::<i8>()) * widen(scale.read_unaligned())
        }
    }

    #[inline(always)]
    fn after(self, j: usize) -> Self {
        Self { start: self.start.wrapping_add(j * self.stride), ..self }
    }

    #[inline(always)]
    fn start(self) -> *const u8 {
        self.start.cast()
    }

    #[inline(always)]
    fn bytes(self) -> usize {
        self.stride
    }
}
