//! Sums of rows: the experts' weighted outputs, and plain addition.

use crate::cpu::isa::for_each_isa;

for_each_isa! {
    /// `x += y`
    pub(in crate::cpu) fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

for_each_isa! {
    /// `out = sum_c weights[c] * parts[c] + gate * shared` for one row, in the order of c.
    pub(in crate::cpu) fn combine(
        parts: &[f32],
        weights: &[f32],
        shared: Option<(f32, &[f32])>,
        out: &mut [f32],
    ) {
        out.fill(0.0);
        for (part, weight) in parts.chunks_exact(out.len()).zip(weights) {
            for (o, p) in out.iter_mut().zip(part) {
                *o += weight * p;
            }
        }
        if let Some((gate, values)) = shared {
            for (o, s) in out.iter_mut().zip(values) {
                *o += gate * s;
            }
        }
    }
}
