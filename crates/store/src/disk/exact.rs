//! The read loop that all engines share: short reads are continued, interrupted ones repeated, early ends named.

use std::io;
use std::ops::Range;

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

/// One exact read on its way: which call comes next, and what its result means. Engines that wait for each call and
/// engines that are told later both run on it.
#[derive(Debug)]
pub(super) struct ExactRead {
    offset: u64,
    lead: usize,
    needed: usize,
    superset: usize,
    direct: bool,
    filled: usize,
    bytes_read: u64,
}

impl ExactRead {
    /// A read after which `memory[lead..needed]` holds the file's bytes from `offset + lead` on, where `memory` has
    /// `superset` bytes. Memory, `offset` and `superset` are page-aligned; direct reads fill all of `memory` as far
    /// as the file goes, buffered ones just what is needed.
    pub(super) fn new(direct: bool, offset: u64, lead: usize, needed: usize, superset: usize) -> Self {
        let filled = if direct { 0 } else { lead };
        Self { offset, lead, needed, superset, direct, filled, bytes_read: 0 }
    }

    /// The next call: the part of the memory, the offset in the file, and whether it is direct.
    pub(super) fn call(&self) -> (Range<usize>, u64, bool) {
        let end = if self.direct { self.superset } else { self.needed };
        (self.filled..end, self.offset + self.filled as u64, self.direct)
    }

    /// Takes in the result of the call; the bytes read in all once nothing is missing.
    ///
    /// # Errors
    /// `Corrupt` when the file ends too early, `Io`.
    pub(super) fn done(&mut self, file: &dyn Source, result: io::Result<usize>) -> Result<Option<u64>> {
        let at = self.offset + self.filled as u64;
        match result {
            Ok(0) => {
                return Err(Error::corrupt(format!(
                    "{}: ends at byte {at} in a read up to byte {}: truncated while running",
                    file.name(),
                    self.offset + self.needed as u64
                )));
            }
            Ok(n) => {
                self.filled += n;
                self.bytes_read += n as u64;
                // A direct read must start on a page: after a ragged one the rest is read buffered.
                self.direct &= self.filled.is_multiple_of(PAGE_BYTES);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                file.refuse_direct();
                self.direct = false;
                self.filled = self.filled.max(self.lead);
            }
            Err(e) => return Err(Error::io(format!("{}: reading at byte {at}", file.name()), e)),
        }
        Ok((self.filled >= self.needed).then_some(self.bytes_read))
    }

    /// Runs the whole read, waiting for each call. `memory` has `superset` bytes.
    ///
    /// # Errors
    /// As [`Self::done`].
    pub(super) fn run(mut self, file: &dyn Source, memory: &mut [u8]) -> Result<u64> {
        loop {
            let (part, offset, direct) = self.call();
            let result = file.read_at(&mut memory[part], offset, direct);
            if let Some(bytes) = self.done(file, result)? {
                return Ok(bytes);
            }
        }
    }
}
