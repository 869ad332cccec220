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
    /// `out += sum_c weights[c] * parts[c]` for one row, in the order of c.
    pub(in crate::cpu) fn add_parts(parts: &[f32], weights: &[f32], out: &mut [f32]) {
        for (part, weight) in parts.chunks_exact(out.len()).zip(weights) {
            for (o, p) in out.iter_mut().zip(part) {
                *o += weight * p;
            }
        }
    }
}

/// `out = gate * shared` for one row, or 0.
pub(in crate::cpu) fn begin_sum(shared: Option<(f32, &[f32])>, out: &mut [f32]) {
    match shared {
        Some((gate, values)) => out.iter_mut().zip(values).for_each(|(o, s)| *o = gate * s),
        None => out.fill(0.0),
    }
}
