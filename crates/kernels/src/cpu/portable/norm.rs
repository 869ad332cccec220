//! Root mean square norms (Zhang & Sennrich 2019).

use crate::cpu::isa::for_each_isa;
use crate::cpu::math::{inverse_rms, silu};

for_each_isa! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `weight`'s length.
    pub(in crate::cpu) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let cols = weight.len();
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            let scale = inverse_rms(x, eps);
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }
}

for_each_isa! {
    /// `x = x / sqrt(mean(x^2) + eps) * weight * silu(z)` for each head of `weight`'s length.
    pub(in crate::cpu) fn gated_norm(x: &mut [f32], z: &[f32], weight: &[f32], eps: f32) {
        let cols = weight.len();
        for (x, z) in x.chunks_exact_mut(cols).zip(z.chunks_exact(cols)) {
            let scale = inverse_rms(x, eps);
            for ((x, z), w) in x.iter_mut().zip(z).zip(weight) {
                *x = *x * scale * w * silu(*z);
            }
        }
    }
}
