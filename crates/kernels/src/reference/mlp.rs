//! Gated MLPs (SwiGLU, Shazeer 2020): dense, and for the rows routed to an expert.

use files::Result;

use super::{linear, silu};
use crate::ops::{ExpertBatch, MlpWeights, RoutedRow};

/// `out = down(silu(gate(x)) * up(x))` for every row of `x`.
///
/// # Errors
/// As [`files::quant::decode`].
pub fn mlp(x: &[f32], weights: &MlpWeights, out: &mut [f32]) -> Result<()> {
    let rows = x.len() / weights.gate.cols();
    let mut gate = vec![0.0; rows * weights.gate.rows()];
    let mut up = gate.clone();
    linear(x, &weights.gate.host()?, None, &mut gate)?;
    linear(x, &weights.up.host()?, None, &mut up)?;
    gate.iter_mut().zip(&up).for_each(|(g, u)| *g = silu(*g) * u);
    linear(&gate, &weights.down.host()?, None, out)
}

/// `parts[part] = mlp(x[row])` for every expert and each of its rows.
///
/// # Errors
/// As [`files::quant::decode`].
pub fn expert_mlp(x: &[f32], experts: &[ExpertBatch<'_>], parts: &mut [f32]) -> Result<()> {
    for expert in experts {
        let hidden = expert.weights.gate.cols();
        for routed in expert.rows {
            let x = &x[routed.row as usize * hidden..][..hidden];
            mlp(x, expert.weights, &mut parts[routed.part as usize * hidden..][..hidden])?;
        }
    }
    Ok(())
}

/// `parts[p] = mlp_(ids[p])(x[p / top_k])` for every part; an id beyond the last expert is the last one's.
///
/// # Errors
/// As [`files::quant::decode`].
pub fn routed_mlp(
    x: &[f32],
    experts: &[MlpWeights],
    ids: &[u32],
    top_k: usize,
    parts: &mut [f32],
) -> Result<()> {
    for (p, id) in ids.iter().enumerate().take(parts.len() / experts[0].gate.cols()) {
        let row = RoutedRow { row: (p / top_k) as u32, part: p as u32 };
        let weights = &experts[(*id as usize).min(experts.len() - 1)];
        expert_mlp(x, &[ExpertBatch { weights, rows: &[row] }], parts)?;
    }
    Ok(())
}
