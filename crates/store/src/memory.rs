//! Anonymous memory from the operating system: page-aligned, zeroed, given back on drop.

use std::ptr::NonNull;

use files::{Error, Result};

/// A page-aligned zeroed mapping of its own, not backed by any file. Pages become resident when first written.
#[derive(Debug)]
pub struct AnonymousMemory {
    ptr: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping has no thread affinity, and the type hands out its address only.
unsafe impl Send for AnonymousMemory {}
// SAFETY: as above; shared references give no access to the bytes.
unsafe impl Sync for AnonymousMemory {}

impl AnonymousMemory {
    /// Maps `bytes` bytes, rounded up to whole pages (at least one), and asks for huge pages where that exists.
    ///
    /// # Errors
    /// [`files::ErrorKind::Memory`] when the system refuses.
    pub fn new(bytes: usize) -> Result<Self> {
        let rounded = bytes.max(1).checked_next_multiple_of(crate::slab::PAGE_BYTES);
        let Some(bytes) = rounded.filter(|b| *b <= isize::MAX as usize) else {
            return Err(Error::memory(format!("{bytes} bytes exceed the address space")));
        };
        Ok(Self { ptr: map(bytes)?, bytes })
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Size, in whole pages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(unix)]
fn map(bytes: usize) -> Result<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh private mapping at an address of the kernel's choosing touches no existing memory.
    let ptr = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, prot, MapFlags::PRIVATE) }
        .map_err(|e| Error::memory(format!("cannot map {bytes} bytes: {e}")).with_source(e))?;
    #[cfg(target_os = "linux")]
    if bytes >= 2 << 20 {
        // SAFETY: the range is the mapping just made; the advice changes no content. Refusal only costs speed.
        let _ = unsafe { rustix::mm::madvise(ptr, bytes, rustix::mm::Advice::LinuxHugepage) };
    }
    NonNull::new(ptr.cast())
        .ok_or_else(|| Error::memory(format!("mapping {bytes} bytes gave a null address")))
}

#[cfg(unix)]
impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever uses its address keeps this value alive.
        // Unmapping a whole mapping of ours cannot fail in a way that could be acted on.
        let _ = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(not(unix))]
fn layout(bytes: usize) -> Result<std::alloc::Layout> {
    std::alloc::Layout::from_size_align(bytes, crate::slab::PAGE_BYTES)
        .map_err(|e| Error::memory(format!("{bytes} bytes")).with_source(e))
}

#[cfg(not(unix))]
fn map(bytes: usize) -> Result<NonNull<u8>> {
    // SAFETY: the layout has a nonzero size: `new` asks for at least one page.
    let ptr = unsafe { std::alloc::alloc_zeroed(layout(bytes)?) };
    NonNull::new(ptr).ok_or_else(|| Error::memory(format!("cannot allocate {bytes} bytes")))
}

#[cfg(not(unix))]
impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        if let Ok(layout) = layout(self.bytes) {
            // SAFETY: allocated by `map` with this very layout.
            unsafe { std::alloc::dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_pages_and_absurd_ones_are_refused() {
        let memory = AnonymousMemory::new(4097).unwrap();
        assert_eq!((memory.bytes(), memory.as_ptr().as_ptr() as usize % 4096), (8192, 0));
        for bytes in [usize::MAX, isize::MAX as usize - 5000] {
            assert_eq!(AnonymousMemory::new(bytes).unwrap_err().kind(), files::ErrorKind::Memory);
        }
    }
}
