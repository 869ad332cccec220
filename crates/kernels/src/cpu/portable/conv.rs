//! The short causal convolution in front of the delta rule.

use crate::cpu::math::silu;
use crate::cpu::shared::Parts;
use crate::cpu::wide::{LANES, for_each_width};

/// Channels that are worked on together.
pub(in crate::cpu) const WIDTH: usize = 64;
/// Taps that are laid out for them once; more than models have.
const TAPS: usize = 8;

/// What [`short_conv`] works on.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Conv<'a> {
    /// Rows of the segment, `[rows, channels]`.
    pub x: &'a [f32],
    /// `[channels, kernel]`
    pub weight: &'a [f32],
    pub kernel: usize,
    pub channels: usize,
    /// `[kernel - 1, channels]`
    pub state: Parts<'a, f32>,
    /// `[rows, channels]`
    pub out: Parts<'a, f32>,
}

/// Channels `start .. start + len` of [`crate::Backend::short_conv`], token after token.
///
/// # Safety
/// Nobody else accesses these channels of the state and the output.
pub(in crate::cpu) unsafe fn short_conv(isa: crate::cpu::isa::Isa, conv: Conv<'_>, start: usize, len: usize) {
    for c in (start..start + len).step_by(WIDTH) {
        // SAFETY: the caller's promise.
        unsafe { channels(isa, conv, c, WIDTH.min(start + len - c)) };
    }
}

for_each_width! {
    unsafe fn channels<W>(conv: Conv<'_>, start: usize, len: usize) {
        let (kernel, stride) = (conv.kernel, conv.channels);
        let rows = conv.x.len() / stride;
        let mut taps = [[0.0f32; WIDTH]; TAPS];
        for i in 0..kernel.min(TAPS) {
            taps[i] = taps_of(&conv, start, len, i);
        }
        for t in 0..rows {
            // SAFETY: arrays of whole vectors; inputs are as long, or copied to one that is.
            let sums = unsafe {
                let mut sums = [W::splat(0.0); WIDTH / LANES];
                for i in 0..kernel {
                    let late;
                    let taps = if i < TAPS {
                        &taps[i]
                    } else {
                        late = taps_of(&conv, start, len, i);
                        &late
                    };
                    let x = input(&conv, start, len, t + i);
                    let mut padded = [0.0f32; WIDTH];
                    let x = if len == WIDTH {
                        x.as_ptr()
                    } else {
                        padded[..len].copy_from_slice(x);
                        padded.as_ptr()
                    };
                    for n in 0..WIDTH / LANES {
                        let tap = W::load(taps.as_ptr().add(n * LANES));
                        sums[n] = W::load(x.add(n * LANES)).fma(tap, sums[n]);
                    }
                }
                let mut values = [0.0f32; WIDTH];
                for n in 0..WIDTH / LANES {
                    sums[n].store(values.as_mut_ptr().add(n * LANES));
                }
                values
            };
            // SAFETY: these channels belong to this call.
            let out = unsafe { conv.out.part(t * stride + start, len) };
            for (o, sum) in out.iter_mut().zip(&sums) {
                *o = silu(*sum);
            }
        }
        for i in 0..kernel - 1 {
            let mut values = [0.0f32; WIDTH];
            values[..len].copy_from_slice(input(&conv, start, len, rows + i));
            // SAFETY: these channels belong to this call; rows move towards the front, so none is read after it was
            // overwritten.
            unsafe { conv.state.part(i * stride + start, len) }.copy_from_slice(&values[..len]);
        }
    }
}

/// Tap `i` of neighbouring channels, side by side.
#[inline(always)]
fn taps_of(conv: &Conv<'_>, start: usize, len: usize, i: usize) -> [f32; WIDTH] {
    let mut taps = [0.0f32; WIDTH];
    let weights = &conv.weight[start * conv.kernel..][..len * conv.kernel];
    for c in 0..len {
        taps[c] = weights[c * conv.kernel + i];
    }
    taps
}

/// The channels' input at time `t`, counted from the oldest in the state.
#[inline(always)]
fn input<'a>(conv: &Conv<'a>, start: usize, len: usize, t: usize) -> &'a [f32] {
    if t < conv.kernel - 1 {
        // SAFETY: these channels belong to the caller, who writes them only after this result is gone.
        unsafe { conv.state.part(t * conv.channels + start, len) }
    } else {
        &conv.x[(t + 1 - conv.kernel) * conv.channels + start..][..len]
    }
}
