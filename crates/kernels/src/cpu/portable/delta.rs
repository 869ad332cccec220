//! The gated delta rule, token by token (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks").
//!
//! A column of the state depends on no other column, so a head is cut into strips of columns that stay in the
//! first cache over all tokens of a segment.

use crate::cpu::isa::for_each_isa;
use crate::cpu::math::{exp, sigmoid, sum_of_squares};
use crate::cpu::shared::Parts;
use crate::ops::DeltaSpec;
use crate::reference::{L2_EPS, softplus};

/// Columns of a strip.
pub(in crate::cpu) const STRIP: usize = 32;

/// What [`delta_rule`] works on; rows are those of the segment.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Delta<'a> {
    pub spec: &'a DeltaSpec,
    /// `[rows, channels]`
    pub qkv: &'a [f32],
    /// `[rows, value_heads]`
    pub a: &'a [f32],
    /// `[rows, value_heads]`
    pub b: &'a [f32],
    pub decay: &'a [f32],
    pub dt_bias: &'a [f32],
    /// `[value_heads, key_head_dim, value_head_dim]`
    pub state: Parts<'a, f32>,
    /// `[rows, value_heads * value_head_dim]`
    pub out: Parts<'a, f32>,
}

/// Columns `start ..`, at most [`STRIP`] of them, of value head `head` over all rows.
///
/// # Safety
/// Nobody else accesses these columns of the state and the output.
pub(in crate::cpu) unsafe fn delta_rule(
    isa: crate::cpu::isa::Isa,
    delta: Delta<'_>,
    head: usize,
    start: usize,
) {
    if delta.spec.value_head_dim - start >= STRIP {
        strip(isa, delta, head, start, STRIP);
    } else {
        strip(isa, delta, head, start, delta.spec.value_head_dim - start);
    }
}

for_each_isa! {
    fn strip(delta: Delta<'_>, head: usize, start: usize, len: usize) {
        let spec = delta.spec;
        let (dk, dv, heads) = (spec.key_head_dim, spec.value_head_dim, spec.value_heads);
        let (key_head, channels) = (spec.key_head(head), spec.channels());
        let (mut q, mut k) = (vec![0.0; dk], vec![0.0; dk]);
        for (row, qkv) in delta.qkv.chunks_exact(channels).enumerate() {
            normalise(&qkv[key_head * dk..][..dk], 1.0 / (dk as f32).sqrt(), &mut q);
            normalise(&qkv[(spec.key_heads + key_head) * dk..][..dk], 1.0, &mut k);
            let v = &qkv[2 * spec.key_heads * dk + head * dv + start..][..len];
            let at = row * heads + head;
            let beta = sigmoid(delta.b[at]);
            let g = exp(delta.decay[head] * softplus(delta.a[at] + delta.dt_bias[head]));
            let mut memory = [0.0f32; STRIP];
            for (i, k) in k.iter().enumerate() {
                // SAFETY: these columns belong to this call.
                let state = unsafe { delta.state.part((head * dk + i) * dv + start, len) };
                for (m, s) in memory.iter_mut().zip(state) {
                    *s *= g;
                    *m += k * *s;
                }
            }
            for (m, v) in memory.iter_mut().zip(v) {
                *m = (v - *m) * beta;
            }
            let mut sums = [0.0f32; STRIP];
            for (i, (k, q)) in k.iter().zip(&q).enumerate() {
                // SAFETY: these columns belong to this call.
                let state = unsafe { delta.state.part((head * dk + i) * dv + start, len) };
                for ((s, d), sum) in state.iter_mut().zip(&memory).zip(&mut sums) {
                    *s += k * d;
                    *sum += q * *s;
                }
            }
            // SAFETY: these columns belong to this call.
            unsafe { delta.out.part(at * dv + start, len) }.copy_from_slice(&sums[..len]);
        }
    }
}

#[inline(always)]
fn normalise(x: &[f32], factor: f32, out: &mut [f32]) {
    let scale = factor / (sum_of_squares(x) + L2_EPS).sqrt();
    for (o, x) in out.iter_mut().zip(x) {
        *o = x * scale;
    }
}
