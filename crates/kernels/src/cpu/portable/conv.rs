//! The short causal convolution in front of the delta rule.

use crate::cpu::isa::for_each_isa;
use crate::cpu::math::silu;
use crate::cpu::shared::Parts;

/// Channels that are worked on together.
const WIDTH: usize = 64;

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
        // Taps of neighbouring channels side by side.
        let mut taps = vec![[0.0f32; WIDTH]; kernel];
        for (i, taps) in taps.iter_mut().enumerate() {
            for (c, tap) in taps[..len].iter_mut().enumerate() {
                *tap = conv.weight[(start + c) * kernel + i];
            }
        }
        let input = |t: usize| {
            // Time counts from the oldest input in the state.
            if t < kernel - 1 {
                // SAFETY: these channels belong to this call, and `set` below comes after the reads.
                unsafe { &*conv.state.part(t * stride + start, len) }
            } else {
                &conv.x[(t + 1 - kernel) * stride + start..][..len]
            }
        };
        for t in 0..rows {
            let mut sums = [0.0f32; WIDTH];
            for (i, taps) in taps.iter().enumerate() {
                for ((sum, tap), x) in sums.iter_mut().zip(taps).zip(input(t + i)) {
                    *sum += tap * x;
                }
            }
            // SAFETY: these channels belong to this call.
            let out = unsafe { conv.out.part(t * stride + start, len) };
            for (o, sum) in out.iter_mut().zip(sums) {
                *o = silu(sum);
            }
        }
        for i in 0..kernel - 1 {
            for c in 0..len {
                let value = input(rows + i)[c];
                // SAFETY: these channels belong to this call; rows move towards the front, so none is read after
                // it was overwritten.
                unsafe { conv.state.set(i * stride + start + c, value) };
            }
        }
    }
}
