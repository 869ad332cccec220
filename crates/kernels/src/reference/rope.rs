//! Norm of heads and rotary position embedding (Su et al. 2021).

use super::norm::inverse_rms;
use crate::ops::{RopeSpec, Segment};

/// Norms and rotates the heads of the segments' rows in place; see [`crate::Backend::norm_rope`].
pub fn norm_rope(
    x: &mut [f32],
    segments: &[Segment],
    spec: &RopeSpec,
    frequencies: &[f32],
    norm: Option<(&[f32], f32)>,
) {
    let cols = spec.heads * spec.head_stride;
    for (row, position) in segments.iter().flat_map(Segment::positions) {
        let position = position as f32;
        for head in x[row * cols..][..cols].chunks_exact_mut(spec.head_stride) {
            let head = &mut head[..spec.head_dim];
            if let Some((weight, eps)) = norm {
                let scale = inverse_rms(head, eps);
                head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * scale * w);
            }
            rotate(head, position, spec, frequencies);
        }
    }
}

fn rotate(head: &mut [f32], position: f32, spec: &RopeSpec, frequencies: &[f32]) {
    let half = spec.rotary_dim / 2;
    for (i, frequency) in frequencies.iter().enumerate() {
        let (sin, cos) = (position * frequency).sin_cos();
        let (sin, cos) = (sin * spec.amplitude, cos * spec.amplitude);
        let (i, j) = if spec.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (a, b) = (head[i], head[j]);
        head[i] = a * cos - b * sin;
        head[j] = b * cos + a * sin;
    }
}
