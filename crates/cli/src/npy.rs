//! NPY version 1.0, as NumPy documents it (`numpy.lib.format`): a header padded to 64 bytes, then the values.

use engine::Result;

use crate::output::Output;

/// Writes a float32 matrix row by row.
pub(crate) struct NpyWriter {
    out: Output,
}

impl NpyWriter {
    /// Begins a matrix of shape `[rows, cols]`.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub(crate) fn new(mut out: Output, rows: usize, cols: usize) -> Result<Self> {
        out.put(&header(rows, cols))?;
        Ok(Self { out })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn row(&mut self, values: &[f32]) -> Result<()> {
        values.iter().try_for_each(|value| self.out.put(&value.to_le_bytes()))
    }

    /// The file, with all rows.
    pub(crate) fn into_output(self) -> Output {
        self.out
    }
}

fn header(rows: usize, cols: usize) -> Vec<u8> {
    let mut dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
    let unpadded = 10 + dictionary.len() + 1;
    dictionary += &" ".repeat(unpadded.next_multiple_of(64) - unpadded);
    dictionary.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(dictionary.len() as u16).to_le_bytes());
    bytes.extend_from_slice(dictionary.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Outputs;

    #[test]
    fn the_header_is_the_documented_one() {
        for (rows, cols) in [(0, 8192), (7, 512), (123_456, 248_320)] {
            let header = header(rows, cols);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            let text = String::from_utf8(header[10..].to_vec()).unwrap();
            assert!(text.contains(&format!("'shape': ({rows}, {cols})")) && text.ends_with('\n'), "{text}");
        }
    }

    #[test]
    fn the_values_follow_the_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut npy = NpyWriter::new(Outputs::default().create(&path).unwrap(), 1, 2).unwrap();
        npy.row(&[1.0, -2.5]).unwrap();
        npy.into_output().finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes[bytes.len() - 8..], [0, 0, 128, 63, 0, 0, 32, 192]);
    }
}
