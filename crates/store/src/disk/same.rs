//! Whether a copy of a file is a copy.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use files::{Error, Result};

/// Compared at the beginning, where a header is, and at the end, which a copy that broke off does not have.
const ENDS_BYTES: u64 = 1 << 20;

/// Blocks that are compared between them, one in each of as many equal parts, and their size: a hole, or a part of another
/// file, that is as large as two such parts is found.
const BLOCKS: u64 = 256;
const BLOCK_BYTES: u64 = 4096;

/// Compares `copy` with `path`: length, both ends, and blocks spread over all between. That finds a copy that is not
/// finished, of another version, or of another model; it does not find a few changed bytes.
///
/// # Errors
/// `InvalidRequest` naming the copy and the first place that differs; `NotFound` or `Io` naming the file.
pub fn same_content(path: &Path, copy: &Path) -> Result<()> {
    let open = |path: &Path| {
        let named = |e| Error::io(path.display(), e);
        let file = File::open(path).map_err(named)?;
        let bytes = file.metadata().map_err(named)?.len();
        Ok((file, bytes))
    };
    let ((mut first, bytes), (mut second, of_copy)) = (open(path)?, open(copy)?);
    let differs = |what: String| {
        let (path, copy) = (path.display(), copy.display());
        Error::invalid(format!("{copy}: is not a copy of {path}: {what}; copy it again"))
    };
    if of_copy != bytes {
        return Err(differs(format!("{of_copy} bytes, it has {bytes}")));
    }
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (offset, length) in places(bytes) {
        for (file, name, block) in [(&mut first, path, &mut a), (&mut second, copy, &mut b)] {
            block.clear();
            let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(length).read_to_end(block));
            read.map_err(|e| Error::io(name.display(), e))?;
        }
        if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
            return Err(differs(format!("they differ at byte {}", offset + at as u64)));
        }
    }
    Ok(())
}

/// What is compared of a file of so many bytes, as offset and length.
fn places(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= 2 * ENDS_BYTES + BLOCKS * BLOCK_BYTES {
        return vec![(0, bytes)];
    }
    let between = (bytes - 2 * ENDS_BYTES) / BLOCKS;
    let mut random = bytes;
    let mut all = vec![(0, ENDS_BYTES), (bytes - ENDS_BYTES, ENDS_BYTES)];
    all.extend((0..BLOCKS).map(|part| {
        // Not at the same place of each: tensors are laid out evenly too.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let within = (random >> 33) % (between - BLOCK_BYTES + 1);
        (ENDS_BYTES + part * between + within, BLOCK_BYTES)
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_not_finished_or_of_another_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("model"), dir.path().join("copy"));
        for bytes in [0, 1, 5000, 3 << 20, 40 << 20] {
            let data: Vec<u8> = (0..bytes).map(|i: usize| (i / 7 + i / 4099) as u8 | 1).collect();
            std::fs::write(&path, &data).unwrap();
            let said = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut changed = data.clone();
                change(&mut changed);
                std::fs::write(&copy, changed).unwrap();
                same_content(&path, &copy).err().map(|e| e.message().to_owned())
            };
            assert_eq!(said(&|_| {}), None, "{bytes}");
            if bytes == 0 {
                continue;
            }
            assert!(said(&|data| data.truncate(bytes - 1)).unwrap().contains("it has"), "{bytes}");
            let half = said(&|data| data[bytes / 2..].fill(0)).unwrap();
            assert!(half.contains("copy: is not a copy") && half.contains("differ at byte"), "{half}");
            let hole = bytes / 128 + 2 * BLOCK_BYTES as usize;
            let holes = (0..bytes.saturating_sub(hole)).step_by(hole.max(bytes / 5));
            for at in holes.filter(|_| bytes > 1 << 20) {
                assert!(said(&|data| data[at..at + hole].fill(0)).is_some(), "{bytes}: zeros from {at}");
            }
        }
        let error = same_content(&path, &dir.path().join("none")).unwrap_err();
        assert!(error.kind() == files::ErrorKind::NotFound && error.message().contains("none"), "{error}");
    }
}
