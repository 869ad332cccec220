//! What the page cache holds of a file. A drive's rate can only be measured with what is not in it.
//!
//! Sources: `posix_fadvise(2)` (POSIX_FADV_DONTNEED keeps dirty and mapped pages), `preadv2(2)` (RWF_NOWAIT ends with
//! EAGAIN where it would have to wait for the drive).

use std::fs::File;

/// Places of a range that are looked at: whoever uses a file at all rarely leaves gaps.
#[cfg(target_os = "linux")]
const PLACES: u64 = 8;

/// The pages of one file.
pub(super) struct PageCache<'a> {
    file: &'a File,
}

/// What is left of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux tells"))]
pub(super) enum Left {
    Nothing,
    Something,
    /// The system does not tell.
    Unknown,
}

impl<'a> PageCache<'a> {
    /// Of a file that is open for buffered reads.
    pub(super) fn of(file: &'a File) -> Self {
        Self { file }
    }

    /// Drops a range, as far as the system lets go of it.
    pub(super) fn forget(&self, offset: u64, bytes: u64) {
        #[cfg(target_os = "linux")]
        {
            // Advice: what becomes of it is asked afterwards by whoever must know.
            let length = std::num::NonZeroU64::new(bytes);
            let _ = rustix::fs::fadvise(self.file, offset, length, rustix::fs::Advice::DontNeed);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (self.file, offset, bytes);
    }

    /// What it holds of a range, without reading from the drive.
    pub(super) fn left(&self, offset: u64, bytes: u64) -> Left {
        #[cfg(target_os = "linux")]
        {
            use rustix::io::{Errno, ReadWriteFlags, preadv2};
            let mut byte = [0u8];
            for place in 0..PLACES {
                let at = offset + place * bytes.saturating_sub(1) / (PLACES - 1);
                let buffers = &mut [std::io::IoSliceMut::new(&mut byte)];
                match preadv2(self.file, buffers, at, ReadWriteFlags::NOWAIT) {
                    Ok(_) => return Left::Something,
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => return Left::Unknown,
                }
            }
            Left::Nothing
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (self.file, offset, bytes);
            Left::Unknown
        }
    }

    /// Writes back what is dirty: only clean pages can be dropped, and direct reads wait for others.
    pub(super) fn write_back(&self) {
        let _ = self.file.sync_data(); // a file system without it has nothing to write back
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_written_is_there_until_it_is_written_back_and_dropped() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        let cache = PageCache::of(&file);
        if cache.left(0, 1 << 20) == Left::Unknown {
            return;
        }
        assert_eq!(cache.left(0, 1 << 20), Left::Something);
        cache.write_back();
        cache.forget(0, 1 << 20);
        assert_eq!(cache.left(0, 1 << 20), Left::Nothing);
        std::fs::read(&path).unwrap();
        assert_eq!(cache.left(1 << 19, 4096), Left::Something);
    }
}
