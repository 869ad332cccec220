//! The read loop that all engines share: short reads are continued, interrupted ones repeated, early ends named.

use std::io;

use files::{Error, Result};

use crate::slab::PAGE_BYTES;

/// A file that can be read at an offset, in one or two ways: buffered always, direct where possible.
pub(super) trait Source {
    /// Its name in messages.
    fn name(&self) -> String;

    /// Whether direct reads are in use.
    fn direct(&self) -> bool;

    /// Called when the system refused a direct read as misaligned: buffered reads from now on.
    fn refuse_direct(&self);

    /// One read call, which may return fewer bytes than asked for, or none at the end of the file. When `direct`,
    /// offset, length and memory are multiples of [`PAGE_BYTES`].
    fn read_at(&self, memory: &mut [u8], offset: u64, direct: bool) -> io::Result<usize>;
}

/// Reads so that `memory[lead..needed]` holds the file's bytes from `offset + lead` on. `memory` and `offset` are
/// page-aligned; direct reads fill all of `memory` as far as the file goes, buffered ones just what is needed.
/// Returns the bytes read.
pub(super) fn read_exact(
    file: &dyn Source,
    memory: &mut [u8],
    offset: u64,
    lead: usize,
    needed: usize,
) -> Result<u64> {
    let mut direct = file.direct();
    let mut filled = if direct { 0 } else { lead };
    let mut bytes_read = 0;
    while filled < needed {
        let end = if direct { memory.len() } else { needed };
        match file.read_at(&mut memory[filled..end], offset + filled as u64, direct) {
            Ok(0) => {
                return Err(Error::corrupt(format!(
                    "{}: ends at byte {} in a read up to byte {}: truncated while running",
                    file.name(),
                    offset + filled as u64,
                    offset + needed as u64
                )));
            }
            Ok(n) => {
                filled += n;
                bytes_read += n as u64;
                // A direct read must start on a page: after a ragged one the rest is read buffered.
                direct &= filled.is_multiple_of(PAGE_BYTES);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if direct && e.kind() == io::ErrorKind::InvalidInput => {
                file.refuse_direct();
                direct = false;
                filled = filled.max(lead);
            }
            Err(e) => {
                let at = offset + filled as u64;
                return Err(Error::io(format!("{}: reading at byte {at}", file.name()), e));
            }
        }
    }
    Ok(bytes_read)
}
