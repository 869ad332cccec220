//! The gated delta rule, token by token (Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks").

use files::Result;

use super::sigmoid;
use crate::ops::{DeltaInput, DeltaSpec};

/// What keeps the norm of a query or key of zeros finite, as the published models do.
pub(crate) const L2_EPS: f32 = 1e-6;

/// `ln(1 + e^x)` without overflow.
pub(crate) fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The recurrence over each segment's rows; see [`crate::Backend::delta_rule`].
///
/// # Errors
/// [`files::ErrorKind::Device`] when a tensor is not in host memory.
pub fn delta_rule(
    input: &DeltaInput<'_>,
    spec: &DeltaSpec,
    state: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    let (qkv, a, b) = (input.qkv.host()?, input.a.host()?, input.b.host()?);
    let (decay, dt_bias) = (input.decay.host()?, input.dt_bias.host()?);
    let (dk, dv, heads) = (spec.key_head_dim, spec.value_head_dim, spec.value_heads);
    for (segment, row) in input.segments.iter().flat_map(|s| s.rows.clone().map(move |row| (s, row))) {
        let state = &mut state[segment.slot as usize * heads * dk * dv..][..heads * dk * dv];
        let qkv = &qkv[row * spec.channels()..][..spec.channels()];
        let (queries, rest) = qkv.split_at(spec.key_heads * dk);
        let (keys, values) = rest.split_at(spec.key_heads * dk);
        for h in 0..heads {
            let key_head = spec.key_head(h);
            let q = normalised(&queries[key_head * dk..][..dk], 1.0 / (dk as f32).sqrt());
            let k = normalised(&keys[key_head * dk..][..dk], 1.0);
            let beta = sigmoid(b[row * heads + h]);
            let g = (decay[h] * softplus(a[row * heads + h] + dt_bias[h])).exp();
            let out = &mut out[(row * heads + h) * dv..][..dv];
            step(&q, &k, &values[h * dv..][..dv], g, beta, &mut state[h * dk * dv..][..dk * dv], out);
        }
    }
    Ok(())
}

/// One token of one head; state `[dk, dv]`.
fn step(q: &[f32], k: &[f32], v: &[f32], g: f32, beta: f32, state: &mut [f32], out: &mut [f32]) {
    let dv = v.len();
    state.iter_mut().for_each(|s| *s *= g);
    let mut memory = vec![0.0; dv];
    for (k, s) in k.iter().zip(state.chunks_exact(dv)) {
        memory.iter_mut().zip(s).for_each(|(m, s)| *m += k * s);
    }
    let delta: Vec<f32> = v.iter().zip(&memory).map(|(v, m)| (v - m) * beta).collect();
    out.fill(0.0);
    for ((k, q), s) in k.iter().zip(q).zip(state.chunks_exact_mut(dv)) {
        for ((s, d), o) in s.iter_mut().zip(&delta).zip(out.iter_mut()) {
            *s += k * d;
            *o += q * *s;
        }
    }
}

fn normalised(x: &[f32], factor: f32) -> Vec<f32> {
    let sum: f32 = x.iter().map(|v| v * v).sum();
    let scale = factor / (sum + L2_EPS).sqrt();
    x.iter().map(|v| v * scale).collect()
}
