//! Whether matrix instructions agree with the scalar reference, asked before a device's are used that nobody of us has seen.

use files::{Format, Result};

use super::Gpu;
use crate::buffer::{Tensor, View, Weight};
use crate::ops::{Backend, Precision};
use crate::reference::Reference;

/// A product with rows that fill no block, outputs that fill no block, and several steps.
const ROWS: usize = 41;
const COLS: usize = 160;
const OUTPUTS: usize = 71;

/// Values with so few bits that f16 holds them and f32 the sums of their products, in any order; `step` tells rows from
/// columns.
fn values(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * step) % 61) as f32 - 30.0).collect()
}

fn product(b: &dyn Backend) -> Result<Vec<f32>> {
    let bytes = OUTPUTS * COLS * 4;
    let buffer = b.alloc_shared(bytes)?;
    let host = buffer.host().ok_or_else(|| files::Error::invalid("shared memory without a host side"))?;
    let weights = values(OUTPUTS * COLS, 17);
    // SAFETY: fresh memory of that many bytes, which nobody else knows.
    unsafe { host.as_ptr().copy_from_nonoverlapping(weights.as_ptr().cast(), bytes) };
    b.publish(&buffer, 0..bytes)?;
    // SAFETY: nobody writes the buffer any more.
    let part = unsafe { View::new(&buffer, 0..bytes) }?;
    let weight = Weight::new(Format::F32, OUTPUTS, COLS, vec![part])?;
    let mut x = Tensor::new(b.alloc(ROWS * COLS * 4)?, ROWS, COLS)?;
    b.write(x.block_mut(), 0, bytemuck::cast_slice(&values(ROWS * COLS, 23)))?;
    let mut out = Tensor::new(b.alloc(ROWS * OUTPUTS * 4)?, ROWS, OUTPUTS)?;
    b.linear(&x, &weight, None, &mut out)?;
    let mut answer = vec![0.0f32; ROWS * OUTPUTS];
    b.read(out.block(), 0, bytemuck::cast_slice_mut(&mut answer))?;
    Ok(answer)
}

impl Gpu {
    /// Does without Metal's matrix instructions, and says so, if a product with them is not the reference's, bit for bit.
    pub(super) fn checked(mut self) -> Result<Self> {
        if self.device.matrix != super::source::METAL_MATRIX || self.info.precision != Precision::Fast {
            return Ok(self);
        }
        let want = product(&Reference::default())?;
        let why = match product(&self) {
            Ok(got) if got == want => return Ok(self),
            Ok(got) => {
                let wrong = got.iter().zip(&want).filter(|(got, want)| got != want).count();
                format!("{wrong} of {} values of a product differ from the reference's", want.len())
            }
            Err(error) => error.to_string(),
        };
        self.device.matrix = 0;
        self.device.notes.push(format!("matrix instructions are not used: {why}"));
        Ok(self)
    }
}
