//! NPY version 1.0, as NumPy documents it (`numpy.lib.format`): a header padded to 64 bytes, then the values.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use engine::{Error, Result};

/// Writes a float32 matrix row by row. A file is written beside its place, and is there once it is whole; a pipe or a
/// device gets the values as they come.
pub(crate) struct NpyWriter {
    /// What the user called it.
    path: PathBuf,
    /// Where the values go until all are there, and where then.
    moves: Option<(PathBuf, PathBuf)>,
    out: BufWriter<File>,
}

impl NpyWriter {
    /// Begins a matrix of shape `[rows, cols]`.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub(crate) fn create(path: &Path, rows: usize, cols: usize) -> Result<Self> {
        let named = |e| Error::io(path.display(), e);
        let moves = place(path).map_err(named)?.map(|target| {
            let mut aside = target.as_os_str().to_owned();
            aside.push(".partial");
            (PathBuf::from(aside), target)
        });
        let file = File::create(moves.as_ref().map_or(path, |(aside, _)| aside)).map_err(named)?;
        let mut own = Self { path: path.to_path_buf(), moves, out: BufWriter::new(file) };
        own.put(&header(rows, cols))?;
        Ok(own)
    }

    /// Adds a row.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn row(&mut self, values: &[f32]) -> Result<()> {
        for value in values {
            self.put(&value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(crate) fn finish(mut self) -> Result<()> {
        let named = |e| Error::io(self.path.display(), e);
        self.out.flush().map_err(named)?;
        self.moves.as_ref().map_or(Ok(()), |(aside, target)| fs::rename(aside, target)).map_err(named)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io(self.path.display(), e))
    }
}

impl Drop for NpyWriter {
    fn drop(&mut self) {
        if let Some((aside, _)) = &self.moves {
            let _ = fs::remove_file(aside); // gone already if the file was finished
        }
    }
}

/// The file that `path` leads to through links, there or not; `None` for what must not be replaced, a pipe or a device.
fn place(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => return Ok(None),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut target = path.to_path_buf();
    while let Ok(link) = fs::read_link(&target) {
        target = target.parent().unwrap_or(Path::new("")).join(link);
    }
    Ok(Some(target))
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
    fn an_unfinished_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let mut npy = NpyWriter::create(&path, 2, 1).unwrap();
        npy.row(&[1.0]).unwrap();
        drop(npy);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut npy = NpyWriter::create(&path, 1, 2).unwrap();
        npy.row(&[1.0, -2.5]).unwrap();
        npy.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[bytes.len() - 8..], [0, 0, 128, 63, 0, 0, 32, 192]);
    }
}
