//! Rows of a table, decoded.

use files::Result;

use crate::buffer::HostWeight;

/// `out[r] = table[ids[r]]`; out `[ids, cols]`.
///
/// # Errors
/// As [`files::quant::decode`].
pub fn embed(table: &HostWeight<'_>, ids: &[u32], out: &mut [f32]) -> Result<()> {
    for (id, row) in ids.iter().zip(out.chunks_exact_mut(table.cols)) {
        table.decode_row(*id as usize, row)?;
    }
    Ok(())
}

/// `out[i] = x[rows[i]]`, rows of `cols`.
pub fn gather_rows(x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(cols)) {
        out.copy_from_slice(&x[*row as usize * cols..][..cols]);
    }
}
