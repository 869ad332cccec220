//! Buffers over pages of the host's: where device and host share memory, what the drive writes is what ops read.
//!
//! wgpu has no such buffers: one of its own is mapped or used, never both (`BufferStillMapped`). So these are made
//! below it, by the driver, and handed to it as buffers like any other: `VK_EXT_external_memory_host` on Vulkan,
//! `newBufferWithBytesNoCopy` on Metal. Both take pages that this process allocated, which a drive may write directly;
//! memory that the driver allocates and maps is often no memory that a direct read may go to.
//!
//! Nothing orders the host's writes and the device's reads of such pages: a slot is written while no submission that
//! reads it is under way ([`super::encoder`] keeps leases until then), and a submission sees what was written before it.

#[cfg(target_vendor = "apple")]
mod metal;
#[cfg(not(target_vendor = "apple"))]
mod vulkan;

use files::{Error, Result};

#[cfg(target_vendor = "apple")]
pub(super) use metal::{Sharing, mapped_bytes_max};
#[cfg(not(target_vendor = "apple"))]
pub(super) use vulkan::{Sharing, mapped_bytes_max};

use crate::buffer::Buffer;
use crate::host;

/// Memory to share is allocated in multiples of this: no less than the pages of any system.
pub(super) const PAGES_BYTES: u64 = 64 << 10;

/// What the buffers are used for, as any other of [`super::memory`].
pub(super) const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// Zeroed pages of the host's for at least `bytes` bytes, and a buffer of that many over them.
///
/// # Errors
/// `Memory` when the system or the driver refuses, or for more than the driver's limit on a buffer.
pub(super) fn allocate(
    sharing: &Sharing,
    device: &wgpu::Device,
    bytes: u64,
) -> Result<(Buffer, wgpu::Buffer)> {
    let whole = bytes.next_multiple_of(PAGES_BYTES);
    let most = device.limits().max_buffer_size;
    if whole > most {
        return Err(Error::memory(format!(
            "a buffer of {bytes} bytes takes {whole} of shared memory, more than the driver's {most}"
        )));
    }
    let pages = host::alloc_shared(whole as usize)?;
    let buffer = sharing.over(device, &pages, bytes);
    let refused =
        || Error::memory(format!("the driver does not take {bytes} more bytes of the machine's memory"));
    Ok((pages, buffer.ok_or_else(refused)?))
}

/// Whether the driver does what it says that it can.
pub(super) fn works(sharing: &Sharing, device: &wgpu::Device) -> bool {
    allocate(sharing, device, PAGES_BYTES).is_ok()
}

fn descriptor(bytes: u64) -> wgpu::BufferDescriptor<'static> {
    wgpu::BufferDescriptor { label: None, size: bytes, usage: USAGE, mapped_at_creation: false }
}
