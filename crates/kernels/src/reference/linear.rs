//! Matrix product with a weight in any format.

use files::Result;

use crate::buffer::HostWeight;

/// `out[r, n] = sum_k x[r, k] w[n, k] + bias[n]`.
///
/// # Errors
/// As [`files::quant::decode`].
pub fn linear(x: &[f32], w: &HostWeight<'_>, bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
    let mut row = vec![0.0; w.cols];
    for n in 0..w.rows {
        w.decode_row(n, &mut row)?;
        for (x, out) in x.chunks_exact(w.cols).zip(out.chunks_exact_mut(w.rows)) {
            out[n] = dot(x, &row) + bias.map_or(0.0, |b| b[n]);
        }
    }
    Ok(())
}

/// A dot product, summed in f64 so that the reference itself adds no error worth speaking of.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}
