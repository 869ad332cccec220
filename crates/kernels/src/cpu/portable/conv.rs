//! The short causal convolution in front of the delta rule.

use crate::cpu::isa::for_each_isa;
use crate::cpu::math::silu;
use crate::cpu::shared::Parts;

/// Channels that are worked on together.
const WIDTH: usize = 64;
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
        channels(isa, conv, c, WIDTH.min(start + len - c));
    }
}

for_each_isa! {
    fn channels(conv: Conv<'_>, start: usize, len: usize) {
        let (kernel, stride) = (conv.kernel, conv.channels);
        let rows = conv.x.len() / stride;
        let mut taps = [[0.0f32; WIDTH]; TAPS];
        for i in 0..kernel.min(TAPS) {
            taps[i] = taps_of(&conv, start, len, i);
        }
        for t in 0..rows {
            let mut sums = [0.0f32; WIDTH];
            for i in 0..kernel {
                let x = input(&conv, start, len, t + i);
                if i < TAPS {
                    accumulate(&mut sums, &taps[i], x);
                } else {
                    accumulate(&mut sums, &taps_of(&conv, start, len, i), x);
                }
            }
            for sum in &mut sums {
                *sum = silu(*sum);
            }
            // SAFETY: these channels belong to this call.
            unsafe { conv.out.part(t * stride + start, len) }.copy_from_slice(&sums[..len]);
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
    for (tap, weights) in
        taps[..len].iter_mut().zip(conv.weight[start * conv.kernel..].chunks_exact(conv.kernel))
    {
        *tap = weights[i];
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

/// `sums += taps * x`
#[inline(always)]
fn accumulate(sums: &mut [f32; WIDTH], taps: &[f32; WIDTH], x: &[f32]) {
    if let Ok(x) = <&[f32; WIDTH]>::try_from(x) {
        for i in 0..WIDTH {
            sums[i] += taps[i] * x[i];
        }
        return;
    }
    for ((sum, tap), x) in sums.iter_mut().zip(taps).zip(x) {
        *sum += tap * x;
    }
}
