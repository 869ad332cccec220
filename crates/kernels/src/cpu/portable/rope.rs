//! Norm of heads and rotary position embedding (Su et al. 2021).

use crate::cpu::isa::for_each_isa;
use crate::cpu::math::inverse_rms;
use crate::ops::RopeSpec;

/// Norms and rotates the heads of one row at `position`; see [`crate::Backend::norm_rope`].
pub(in crate::cpu) fn norm_rope(
    isa: crate::cpu::isa::Isa,
    row: &mut [f32],
    position: usize,
    spec: &RopeSpec,
    frequencies: &[f32],
    norm: Option<(&[f32], f32)>,
) {
    // The angles are the same for all heads.
    let (mut sin, mut cos) = (Vec::with_capacity(frequencies.len()), Vec::with_capacity(frequencies.len()));
    for frequency in frequencies {
        let (s, c) = (position as f32 * frequency).sin_cos();
        sin.push(s * spec.amplitude);
        cos.push(c * spec.amplitude);
    }
    heads(isa, row, spec, &sin, &cos, norm);
}

for_each_isa! {
    fn heads(row: &mut [f32], spec: &RopeSpec, sin: &[f32], cos: &[f32], norm: Option<(&[f32], f32)>) {
        for head in row.chunks_exact_mut(spec.head_stride) {
            let head = &mut head[..spec.head_dim];
            if let Some((weight, eps)) = norm {
                let scale = inverse_rms(head, eps);
                for (x, w) in head.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
            let head = &mut head[..spec.rotary_dim];
            if spec.interleaved {
                for ((pair, s), c) in head.chunks_exact_mut(2).zip(sin).zip(cos) {
                    (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                }
            } else {
                let (a, b) = head.split_at_mut(spec.rotary_dim / 2);
                for (((a, b), s), c) in a.iter_mut().zip(b).zip(sin).zip(cos) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    }
}
