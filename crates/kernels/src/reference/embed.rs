//! Rows of a table, decoded.

use files::Result;

use crate::buffer::HostWeight;

/// Values that are compared at once.
const LANES: usize = 16;

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

/// The column of the greatest of each row of `cols`, or -1; see [`crate::Backend::best`].
pub fn best(x: &[f32], cols: usize, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(cols).zip(out) {
        // Loops without an exit, which the compiler makes vectors of.
        let finite = row.iter().fold(true, |all, value| all & value.is_finite());
        let mut most = [f32::NEG_INFINITY; LANES];
        for values in row.chunks(LANES) {
            most.iter_mut()
                .zip(values)
                .for_each(|(most, value)| *most = if value > most { *value } else { *most });
        }
        let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
        let at = row.iter().position(|value| *value == most).filter(|_| finite);
        *out = at.map_or(-1.0, |at| at as f32);
    }
}
