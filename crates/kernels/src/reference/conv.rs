//! The short causal convolution in front of the delta rule.

use super::silu;
use crate::ops::Segment;

/// `out[t, c] = silu(sum_i weight[c, i] * input[t - kernel + 1 + i, c])`; weight `[channels, kernel]`; see
/// [`crate::Backend::short_conv`].
pub fn short_conv(
    x: &[f32],
    weight: &[f32],
    kernel: usize,
    segments: &[Segment],
    state: &mut [f32],
    out: &mut [f32],
) {
    let channels = weight.len() / kernel;
    let each = (kernel - 1) * channels;
    for segment in segments.iter().filter(|segment| !segment.rows.is_empty()) {
        let state = &mut state[segment.slot as usize * each..][..each];
        one(x, weight, kernel, segment, state, out);
    }
}

/// One segment, with its state `[kernel - 1, channels]`.
fn one(x: &[f32], weight: &[f32], kernel: usize, segment: &Segment, state: &mut [f32], out: &mut [f32]) {
    let channels = weight.len() / kernel;
    let rows = segment.rows.len();
    let x = &x[segment.rows.start * channels..][..rows * channels];
    let out = &mut out[segment.rows.start * channels..][..rows * channels];
    // The input at time t of the segment; negative times are in the state.
    let input = |state: &[f32], t: isize, c: usize| {
        if t < 0 {
            state[(kernel as isize - 1 + t) as usize * channels + c]
        } else {
            x[t as usize * channels + c]
        }
    };
    for t in 0..rows {
        for c in 0..channels {
            let mut sum = 0.0;
            for i in 0..kernel {
                sum +=
                    weight[c * kernel + i] * input(state, t as isize + i as isize + 1 - kernel as isize, c);
            }
            out[t * channels + c] = silu(sum);
        }
    }
    let old = state.to_vec();
    for i in 0..kernel - 1 {
        for c in 0..channels {
            state[i * channels + c] = input(&old, (rows + i) as isize + 1 - kernel as isize, c);
        }
    }
}
