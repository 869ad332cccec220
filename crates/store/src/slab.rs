//! Memory the caller hands over, and the exclusive windows into it that reads fill.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use files::{Error, Result};

use crate::memory::AnonymousMemory;

/// The alignment of direct reads in offset, length and memory, in bytes. A multiple of every drive's block size.
pub const PAGE_BYTES: usize = 4096;

/// Told of a slab's number and the bytes of one slot in it that hold nothing for now. Its owner may give the memory
/// behind them back to the system, if the addresses stay valid and initialised; this is the one moment at which
/// somebody but the store may change what is there. The slot is used again without notice after it has returned.
pub type GiveBack = Box<dyn FnMut(usize, Range<usize>) + Send>;

/// A stretch of memory that this crate may fill: a kernel buffer, or anonymous memory.
/// Several of them make a slot pool, because GPUs limit how much one binding covers.
pub struct SlabMemory {
    ptr: NonNull<u8>,
    bytes: usize,
    _keep_alive: Arc<dyn Send + Sync>,
}

// SAFETY: the constructor's contract gives this value the only right to write the memory, from any thread.
unsafe impl Send for SlabMemory {}
// SAFETY: through a shared reference the address is known, but access goes through windows, which are disjoint.
unsafe impl Sync for SlabMemory {}

impl SlabMemory {
    /// Takes over `bytes` bytes at `ptr`, which must be aligned to [`PAGE_BYTES`].
    ///
    /// # Safety
    /// The memory must be initialised, and valid for reads and writes, as long as `keep_alive` lives. Until this
    /// value and everything made from it (stores, leases, reads in flight) is gone, nobody else may write to it
    /// (except in a [`GiveBack`]), and nobody may read it except inside the parts of a live [`crate::Lease`], or, for
    /// [`crate::resident::load`], after that call has returned.
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] when `ptr` is not aligned.
    pub unsafe fn from_raw(ptr: NonNull<u8>, bytes: usize, keep_alive: Arc<dyn Send + Sync>) -> Result<Self> {
        if !(ptr.as_ptr() as usize).is_multiple_of(PAGE_BYTES) {
            return Err(Error::invalid(format!(
                "slab memory at {ptr:p} is not aligned to {PAGE_BYTES} bytes"
            )));
        }
        Ok(Self { ptr, bytes, _keep_alive: keep_alive })
    }

    /// Fresh anonymous memory of at least `bytes` bytes, zeroed.
    ///
    /// # Errors
    /// [`files::ErrorKind::Memory`] when the system refuses.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        let memory = Arc::new(AnonymousMemory::new(bytes)?);
        Ok(Self { ptr: memory.as_ptr(), bytes: memory.bytes(), _keep_alive: memory })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole memory, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: valid and initialised by contract; `&mut self` and the contract exclude every other access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }

    /// A second handle on the same memory.
    ///
    /// # Safety
    /// The two must not write the same bytes, nor one read what the other writes, at the same time.
    pub(crate) unsafe fn alias(&self) -> Self {
        Self { ptr: self.ptr, bytes: self.bytes, _keep_alive: self._keep_alive.clone() }
    }

    /// Copies `from` to byte `offset`, where it must fit.
    ///
    /// # Safety
    /// Nobody else may access those bytes meanwhile.
    pub(crate) unsafe fn write(&self, offset: usize, from: &[u8]) {
        assert!(
            offset.checked_add(from.len()).is_some_and(|end| end <= self.bytes),
            "a copy inside of its slab"
        );
        // SAFETY: inside of the memory by the check, nobody else's by contract, and `from` is other memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr.as_ptr().add(offset), from.len()) };
    }

    /// Cuts the memory into as many disjoint windows of `slot_bytes` as fit; `slab` is the number they report.
    /// `slot_bytes` must be a positive multiple of [`PAGE_BYTES`].
    ///
    /// # Errors
    /// [`files::ErrorKind::InvalidRequest`] otherwise.
    pub fn cut(self, slab: usize, slot_bytes: usize) -> Result<Vec<Window>> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(Error::invalid(format!(
                "a slot of {slot_bytes} bytes is not a multiple of {PAGE_BYTES}"
            )));
        }
        let memory = Arc::new(self);
        let window =
            |i: usize| Window { memory: memory.clone(), slab, offset: i * slot_bytes, bytes: slot_bytes };
        Ok((0..memory.bytes / slot_bytes).map(window).collect())
    }
}

impl std::fmt::Debug for SlabMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SlabMemory({:p}, {} bytes)", self.ptr, self.bytes)
    }
}

/// The exclusive right to a page-aligned piece of a slab. A read in flight owns its window, and gives it back
/// when it completes: this is what keeps late writes out of reused memory.
#[derive(Debug)]
pub struct Window {
    memory: Arc<SlabMemory>,
    slab: usize,
    offset: usize,
    bytes: usize,
}

impl Window {
    /// Index of the slab among those handed over.
    pub fn slab(&self) -> usize {
        self.slab
    }

    /// First byte, within the slab.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Size in bytes, a multiple of [`PAGE_BYTES`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A window onto `bytes` bytes at `offset` of slab number `slab`; both whole pages, inside of it.
    ///
    /// # Safety
    /// Nobody else may access those bytes while the window lives.
    pub(crate) unsafe fn cover(memory: &Arc<SlabMemory>, slab: usize, offset: usize, bytes: usize) -> Self {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= memory.bytes);
        assert!(
            inside && offset.is_multiple_of(PAGE_BYTES) && bytes.is_multiple_of(PAGE_BYTES),
            "windows are whole pages of a slab"
        );
        Self { memory: memory.clone(), slab, offset, bytes }
    }

    /// Cuts it at byte `at` of the slab, which must lie inside of it and on a page; either side may be empty.
    pub(crate) fn split(self, at: usize) -> (Self, Self) {
        let Self { memory, slab, offset, bytes } = self;
        assert!(
            at.is_multiple_of(PAGE_BYTES) && offset <= at && at <= offset + bytes,
            "windows are cut on pages inside of them"
        );
        let head = Self { memory: memory.clone(), slab, offset, bytes: at - offset };
        (head, Self { memory, slab, offset: at, bytes: offset + bytes - at })
    }

    /// Undoes [`Self::split`]: the window of `bytes` bytes at `offset` of which this one and `others` are all parts.
    pub(crate) fn join(self, others: Vec<Self>, offset: usize, bytes: usize) -> Self {
        let parts: usize = others.iter().map(|w| w.bytes).sum();
        let same = |w: &Self| Arc::ptr_eq(&w.memory, &self.memory) && offset <= w.offset;
        assert!(others.iter().all(same) && parts + self.bytes == bytes, "all parts of one window");
        Self { offset, bytes, ..self }
    }

    /// Address of the first byte, aligned to [`PAGE_BYTES`].
    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        // SAFETY: windows are cut inside their slab, so the address stays within one allocation.
        unsafe { self.memory.ptr.add(self.offset) }
    }

    /// Copies all bytes of a window of the same size.
    pub(crate) fn copy_from(&mut self, from: &Self) {
        assert_eq!(self.bytes, from.bytes, "slots of one pool");
        // SAFETY: both are valid for `bytes` by the slab's contract, windows are disjoint, `self` is borrowed
        // mutably, and writers of `from` would own it or borrow it mutably.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().as_ptr(), self.as_ptr().as_ptr(), self.bytes) };
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: valid and initialised by the slab's contract. Writers own the window or borrow it mutably, so
        // none exists while it is borrowed here; others only read, under a lease.
        unsafe { std::slice::from_raw_parts(self.as_ptr().as_ptr(), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_disjoint_and_aligned() {
        let mut slab = SlabMemory::anonymous(5 * 4096).unwrap();
        slab.as_mut_slice()[8192] = 7;
        let windows = slab.cut(3, 8192).unwrap();
        assert_eq!(windows.len(), 2);
        assert_eq!((windows[1].slab(), windows[1].offset(), windows[1].bytes()), (3, 8192, 8192));
        assert_eq!((windows[0].as_slice()[0], windows[1].as_slice()[0]), (0, 7));
    }

    #[test]
    fn misaligned_memory_and_slots_are_refused() {
        let memory = Arc::new(AnonymousMemory::new(8192).unwrap());
        // SAFETY: one byte into a live mapping of 8192 bytes.
        let ptr = unsafe { memory.as_ptr().add(1) };
        // SAFETY: the memory outlives the slab and nobody else touches it.
        let slab = unsafe { SlabMemory::from_raw(ptr, 4096, memory) };
        assert_eq!(slab.unwrap_err().kind(), files::ErrorKind::InvalidRequest);
        for slot in [0, 100] {
            let cut = SlabMemory::anonymous(4096).unwrap().cut(0, slot);
            assert_eq!(cut.unwrap_err().kind(), files::ErrorKind::InvalidRequest);
        }
    }
}
