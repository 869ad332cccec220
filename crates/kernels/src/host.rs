//! Host memory behind the buffer handles: anonymous pages, zeroed by the system on first touch.

use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;

use files::{Error, Result};

use crate::buffer::{Block, Buffer, DeviceMemory};
use crate::check;

/// Sizes are whole multiples of this.
const PAGE_BYTES: usize = 4096;
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
        let refused =
            |why: &dyn std::fmt::Display| Error::memory(format!("cannot map {bytes} bytes of memory: {why}"));
        let mapped_bytes = bytes.max(1).checked_next_multiple_of(PAGE_BYTES);
        let mapped_bytes = mapped_bytes.ok_or_else(|| refused(&"too many"))?;
        let pointer = map(mapped_bytes).map_err(|e| refused(&e))?;
        #[cfg(target_os = "linux")]
        if mapped_bytes >= HUGE_PAGE_BYTES {
            use rustix::mm::{Advice, madvise};
            // SAFETY: advice on our own mapping; a refusal costs speed only, so its result does not matter.
            let _ = unsafe { madvise(pointer.as_ptr().cast(), mapped_bytes, Advice::LinuxHugepage) };
        }
        Ok(Self { pointer, bytes, mapped_bytes })
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; the handles that could reach it are gone.
        unsafe { unmap(self.pointer, self.mapped_bytes) };
    }
}

#[cfg(unix)]
fn map(bytes: usize) -> std::io::Result<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a fresh anonymous mapping at an address of the system's choice aliases nothing.
    let pointer = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, flags) }?;
    NonNull::new(pointer.cast()).ok_or_else(|| std::io::Error::other("mapped at address zero"))
}

/// # Safety
/// `pointer` and `bytes` are those of one call of [`map`], and nobody uses the memory any more.
#[cfg(unix)]
unsafe fn unmap(pointer: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise. Failure could not be acted on.
    let _ = unsafe { rustix::mm::munmap(pointer.as_ptr().cast(), bytes) };
}

#[cfg(not(unix))]
fn map(bytes: usize) -> std::io::Result<NonNull<u8>> {
    let layout = std::alloc::Layout::from_size_align(bytes, PAGE_BYTES).map_err(std::io::Error::other)?;
    // SAFETY: the size is not zero: `HostMemory::new` asks for at least a page.
    let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
    NonNull::new(pointer).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

/// # Safety
/// `pointer` and `bytes` are those of one call of [`map`], and nobody uses the memory any more.
#[cfg(not(unix))]
unsafe fn unmap(pointer: NonNull<u8>, bytes: usize) {
    if let Ok(layout) = std::alloc::Layout::from_size_align(bytes, PAGE_BYTES) {
        // SAFETY: the caller's promise; `map` allocated with this very layout.
        unsafe { std::alloc::dealloc(pointer.as_ptr(), layout) };
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

/// Copies a range of a block of host memory to another.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when either leaves its block.
pub fn copy(from: &Block, from_range: Range<usize>, to: &mut Block, to_at: usize) -> Result<()> {
    check::copy(from, &from_range, to, to_at)?;
    let from = &from.host::<u8>()?[from_range];
    to.host_mut::<u8>()?[to_at..][..from.len()].copy_from_slice(from);
    Ok(())
}

/// Copies a range of a block of host memory to another place in it.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when either leaves the block, or they overlap.
pub fn copy_within(block: &mut Block, range: Range<usize>, to_at: usize) -> Result<()> {
    check::copy_within(block, &range, to_at)?;
    block.host_mut::<u8>()?.copy_within(range, to_at);
    Ok(())
}

/// Makes a range of a block of host memory zero.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when it leaves the block, or is not in the host's memory.
pub fn clear(block: &mut Block, range: Range<usize>) -> Result<()> {
    check::words("clear", &range, block.bytes())?;
    block.host_mut::<u8>()?[range].fill(0);
    Ok(())
}

/// Whether [`give_back`] does.
pub const GIVES_BACK: bool = cfg!(target_os = "linux");

/// Gives a range of a block of host memory back to the system, as far as it is in whole pages, which read as zero from then
/// on. Memory comes back page by page: a huge page would bring what nobody wrote.
///
/// # Errors
/// [`files::ErrorKind::InvalidRequest`] when it leaves the block.
pub fn give_back(block: &mut Block, range: Range<usize>) -> Result<()> {
    let bytes = block.bytes();
    if range.start > range.end || range.end > bytes {
        return Err(out_of_block(range.len(), range.start, bytes));
    }
    let whole = range.start.next_multiple_of(PAGE_BYTES)..range.end / PAGE_BYTES * PAGE_BYTES;
    if let Some(given) = block.host_mut::<u8>()?.get_mut(whole).filter(|given| !given.is_empty()) {
        let bytes = given.len();
        let pointer: NonNull<u8> = NonNull::from(given).cast();
        #[cfg(target_os = "linux")]
        {
            use rustix::mm::{Advice, madvise};
            // SAFETY: whole pages of our own mapping; a refusal costs memory only.
            let _ = unsafe { madvise(pointer.as_ptr().cast(), bytes, Advice::LinuxNoHugepage) };
        }
        // SAFETY: whole pages of our own mapping, borrowed for writing.
        unsafe { give_back_pages(pointer, bytes) };
    }
    Ok(())
}

/// Gives whole pages back; they read as zero from then on in anonymous memory, and as the file or device has them in any
/// other. Elsewhere than on Linux they stay, and the system compresses or swaps what nobody touches.
///
/// # Safety
/// They are mapped, and nobody else reads or writes them.
pub unsafe fn give_back_pages(pointer: NonNull<u8>, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        use rustix::mm::{Advice, madvise};
        // SAFETY: the caller's promise; what this advice leaves is initialised. A refusal costs memory only.
        let _ = unsafe { madvise(pointer.as_ptr().cast(), bytes, Advice::LinuxDontNeed) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (pointer, bytes);
}

fn out_of_block(offset: usize, len: usize, bytes: usize) -> Error {
    Error::invalid(format!("{len} bytes at {offset} leave a block of {bytes}"))
}
