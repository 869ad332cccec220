//! Products: which shader multiplies, and with how many threads a row.

use files::{Format, Result};

use super::encoder::Binding;
use super::source::{self, Wide};
use super::{Call, Gpu, State, binding, folded, weight_parts};
use crate::buffer::{Tensor, Weight};

/// From this many rows on, tiles in shared memory are worth their barriers.
pub(super) const MATMUL_ROWS_MIN: usize = 16;
/// Rows and outputs of a workgroup's block in `matmul.wgsl`.
pub(super) const BLOCK: usize = 64;
/// Threads of the kernels that take four rows of a weight a few lanes.
const TEAM: u32 = source::LINEAR.team;

/// How a kernel steps through rows of weights: one pipeline each.
#[derive(Clone, Copy)]
pub(super) struct Stride {
    /// Rows of activations that share one decoding of the weights.
    pub(super) tokens: u32,
    /// Whether rows of activations must be loaded value by value.
    tail: u32,
    /// Threads that share four rows of weights.
    lanes: u32,
    wide: Wide,
    /// Steps in a row.
    pub(super) chunks: u32,
}

impl Stride {
    /// The values of the constants TOKENS, TAIL, LANES, WIDE.
    pub(super) fn constants(&self) -> [u32; 4] {
        [self.tokens, self.tail, self.lanes, self.wide as u32]
    }

    /// Workgroups for `outputs` rows of weights.
    pub(super) fn groups(&self, outputs: usize) -> usize {
        outputs.div_ceil((TEAM / self.lanes * 4) as usize)
    }
}

/// Rows of activations that share one decoding of the weights.
pub(super) fn tokens_for(rows: usize) -> u32 {
    if rows <= 1 { 1 } else { 4 }
}

/// Whether rows of `cols` values must be loaded one by one.
pub(super) fn tail(cols: usize) -> u32 {
    u32::from(!cols.is_multiple_of(8))
}

/// The largest power of two that divides all of `bases`.
pub(super) fn alignment(bases: impl IntoIterator<Item = u32>) -> u32 {
    let all = bases.into_iter().fold(1 << 12, |all, base| all | base);
    1 << all.trailing_zeros()
}

/// How many of `lanes_max` threads share a row of `chunks` steps: those that leave the fewest idle, but at least 4.
fn lanes(chunks: u32, lanes_max: u32) -> u32 {
    let padded = |lanes: u32| chunks.next_multiple_of(lanes);
    let choices = [32, 16, 8, 4].into_iter().filter(|&lanes| lanes <= lanes_max);
    // The first of equals: more lanes keep more of a row on its way.
    choices.min_by_key(|&lanes| padded(lanes)).unwrap_or(4)
}

impl Gpu {
    /// The stride for rows of `cols` values whose packed parts start at multiples of `alignment` bytes.
    pub(super) fn stride(&self, formats: &[Format], cols: usize, tokens: u32, alignment: u32) -> Stride {
        let lanes_max = if self.device.subgroups { self.device.subgroup_threads.clamp(4, 32) } else { 32 };
        let mut wide = Wide::Not;
        if tokens == 1 && cols.is_multiple_of(32) {
            let all = || formats.iter().map(|&format| source::wide(format, alignment));
            if all().all(|w| w != Wide::Not) {
                wide = all().max().unwrap_or(Wide::Not);
            }
        }
        let width = if wide == Wide::Not { 8 } else { 32 };
        let chunks = cols.div_ceil(width) as u32;
        Stride { tokens, tail: tail(cols), lanes: lanes(chunks, lanes_max), wide, chunks }
    }

    /// `out = x . w^T + bias`; out is f32 `[x.rows, w.rows]`.
    pub(super) fn product(
        &self,
        state: &mut State,
        x: &Tensor,
        w: &Weight,
        bias: Option<&Tensor>,
        out: Binding<'_>,
    ) -> Result<()> {
        let (parts, base) = weight_parts(w)?;
        let (rows, cols, outputs) = (x.rows(), w.cols(), w.rows());
        let shape = [cols as u32, outputs as u32, rows as u32, u32::from(bias.is_some())];
        let mut params = vec![base[0], base[1], base[2]];
        params.extend(shape);
        // A binding must be something: without a bias it is never read, and neither is the table.
        let x = binding(x)?;
        let bias = bias.map(binding).transpose()?.unwrap_or(x);
        let formats = [w.format()];
        if rows >= MATMUL_ROWS_MIN {
            let mut bindings = vec![x, bias, x, out];
            bindings.extend(parts);
            return self.run(
                state,
                &Call {
                    kernel: &source::MATMUL,
                    formats: &formats,
                    constants: &[0, tail(cols)],
                    bindings: &bindings,
                    params: &params,
                    groups: folded(outputs.div_ceil(BLOCK), rows.div_ceil(BLOCK) as u32),
                },
            );
        }
        let stride = self.stride(&formats, cols, tokens_for(rows), alignment([base[0]]));
        params.push(stride.chunks);
        let mut bindings = vec![x, bias, out];
        bindings.extend(parts);
        self.run(
            state,
            &Call {
                kernel: &source::LINEAR,
                formats: &formats,
                constants: &stride.constants(),
                bindings: &bindings,
                params: &params,
                groups: folded(stride.groups(outputs), (rows as u32).div_ceil(stride.tokens)),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_leave_few_idle() {
        // 4096, 2048, 1024, 768, 512, 256, 2560 values of 32 a step.
        for (chunks, want) in
            [(128, 32), (64, 32), (32, 32), (24, 8), (16, 16), (8, 8), (80, 16), (1, 4), (3, 4)]
        {
            assert_eq!(lanes(chunks, 32), want, "{chunks}");
            assert!(lanes(chunks, 8) <= 8);
        }
    }

    #[test]
    fn alignment_is_what_all_bases_share() {
        assert_eq!(alignment([0, 4096]), 4096);
        assert_eq!(alignment([32, 48]), 16);
        assert_eq!(alignment([32, 7]), 1);
    }
}
