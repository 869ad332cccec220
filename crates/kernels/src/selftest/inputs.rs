//! Seeded inputs, the same for every device.

use files::{Format, Result};

use crate::Backend;
use crate::buffer::{Tensor, View, Weight};
use crate::ops::MlpWeights;

/// SplitMix64, and the device that its numbers go to.
pub(super) struct Inputs<'a> {
    pub(super) backend: &'a dyn Backend,
    state: u64,
}

impl<'a> Inputs<'a> {
    pub(super) fn new(backend: &'a dyn Backend, seed: u64) -> Self {
        Self { backend, state: seed }
    }

    /// A value of about unit variance.
    fn value(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.46
    }

    pub(super) fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.value() * scale).collect()
    }

    pub(super) fn tensor(&mut self, rows: usize, cols: usize, scale: f32) -> Result<Tensor> {
        let values = self.values(rows * cols, scale);
        let mut block = self.backend.alloc(values.len() * 4)?;
        self.backend.write(&mut block, 0, bytemuck::cast_slice(&values))?;
        Tensor::new(block, rows, cols)
    }

    pub(super) fn zeros(&self, rows: usize, cols: usize) -> Result<Tensor> {
        Tensor::new(self.backend.alloc(rows * cols * 4)?, rows, cols)
    }

    /// Random weights: `distinct` rows, over and over.
    pub(super) fn weight(
        &mut self,
        format: Format,
        rows: usize,
        cols: usize,
        distinct: usize,
    ) -> Result<Weight> {
        // The distinct rows, one after the other, a vector of bytes a part.
        let mut parts = vec![Vec::new(); format.parts()];
        let distinct = rows.min(distinct);
        for _ in 0..distinct {
            let values = self.values(cols, 1.0 / (cols as f32).sqrt());
            parts.iter_mut().zip(files::quant::encode(format, &values)?).for_each(|(p, row)| p.extend(row));
        }
        let mut views = Vec::new();
        for part in parts {
            let row_bytes = part.len() / distinct;
            let buffer = self.backend.alloc_shared(rows * row_bytes)?;
            let host =
                buffer.host().ok_or_else(|| files::Error::invalid("shared memory without a host side"))?;
            for (row, bytes) in part.chunks_exact(row_bytes).cycle().take(rows).enumerate() {
                // SAFETY: fresh memory of rows * row_bytes bytes, which nobody else knows, and row < rows.
                unsafe {
                    host.as_ptr().add(row * row_bytes).copy_from_nonoverlapping(bytes.as_ptr(), row_bytes);
                }
            }
            self.backend.publish(&buffer, 0..rows * row_bytes)?;
            // SAFETY: nobody writes it any more.
            views.push(unsafe { View::new(&buffer, 0..rows * row_bytes) }?);
        }
        Weight::new(format, rows, cols, views)
    }

    pub(super) fn mlp(
        &mut self,
        format: Format,
        hidden: usize,
        inner: usize,
        distinct: usize,
    ) -> Result<MlpWeights> {
        MlpWeights::new(
            self.weight(format, inner, hidden, distinct)?,
            self.weight(format, inner, hidden, distinct)?,
            self.weight(format, hidden, inner, distinct)?,
        )
    }

    pub(super) fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; tensor.len()];
        self.backend.read(tensor.block(), 0, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }
}
