//! Host memory behind the buffer handles: anonymous pages, zeroed by the system on first touch.

use std::any::Any;
use std::ptr::NonNull;

use files::{Error, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::buffer::{Block, Buffer, DeviceMemory};

/// Allocations from here on ask for huge pages.
#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// One anonymous mapping.
struct HostMemory {
    pointer: NonNull<u8>,
    bytes: usize,
    mapped_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone; access to its bytes is governed by the handles in `buffer`.
unsafe impl Send for HostMemory {}
// SAFETY: as above; this type itself offers no access.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn new(bytes: usize) -> Result<Self> {
        let mapped_bytes = bytes.max(1).next_multiple_of(4096);
        // SAFETY: a fresh anonymous mapping at an address of the system's choice aliases nothing.
        let pointer = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }
        .map_err(|e| Error::memory(format!("cannot map {bytes} bytes of memory: {e}")))?;
        #[cfg(target_os = "linux")]
        if mapped_bytes >= HUGE_PAGE_BYTES {
            use rustix::mm::{Advice, madvise};
            // SAFETY: advice on our own mapping; a refusal costs speed only, so its result does not matter.
            let _ = unsafe { madvise(pointer, mapped_bytes, Advice::LinuxHugepage) };
        }
        let pointer = NonNull::new(pointer.cast()).ok_or_else(|| Error::memory("mapped at address zero"))?;
        Ok(Self { pointer, bytes, mapped_bytes })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; the handles that could reach it are gone.
        let _ = unsafe { munmap(self.pointer.as_ptr().cast(), self.mapped_bytes) };
    }
}

impl DeviceMemory for HostMemory {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn host(&self) -> Option<NonNull<u8>> {
        Some(self.pointer)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Zeroed, page-aligned host memory.
///
/// # Errors
/// [`files::ErrorKind::Memory`] when the system refuses.
pub fn alloc_shared(bytes: usize) -> Result<Buffer> {
    Ok(Buffer::new(HostMemory::new(bytes)?))
}

/// Zeroed host memory with one owner.
///
/// # Errors
/// [`files::ErrorKind::Memory`] when the system refuses.
pub fn alloc(bytes: usize) -> Result<Block> {
    Block::new(alloc_shared(bytes)?)
}

/// Copies into a block of host memory.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when the range leaves the block.
pub fn write(block: &mut Block, offset: usize, data: &[u8]) -> Result<()> {
    let bytes = block.bytes();
    let target = block.host_mut::<u8>()?.get_mut(offset..offset.saturating_add(data.len()));
    target.ok_or_else(|| out_of_block(offset, data.len(), bytes))?.copy_from_slice(data);
    Ok(())
}

/// Copies out of a block of host memory.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when the range leaves the block.
pub fn read(block: &Block, offset: usize, out: &mut [u8]) -> Result<()> {
    let source = block.host::<u8>()?.get(offset..offset.saturating_add(out.len()));
    out.copy_from_slice(source.ok_or_else(|| out_of_block(offset, out.len(), block.bytes()))?);
    Ok(())
}

fn out_of_block(offset: usize, len: usize, bytes: usize) -> Error {
    Error::invalid(format!("{len} bytes at {offset} leave a block of {bytes}"))
}
