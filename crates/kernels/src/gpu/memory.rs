//! Device buffers behind the handles of [`crate::buffer`].
//!
//! Memory that the store fills is *shadowed*: the host writes page-aligned anonymous memory, and publishing a range
//! copies it into the device's buffer, in queue order. Where host and device share memory the buffer is those pages
//! ([`super::shared`]), and nothing is copied.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use files::Result;

use super::device::Device;
use super::shared;
use crate::buffer::{Buffer, DeviceMemory};
use crate::host;

/// Bytes after the end of every buffer, so that a shader may load a whole block or word around the last value.
pub(super) const PADDING_BYTES: u64 = 64;

/// Ids of buffers that are gone, for caches that mention them.
pub(super) type Graveyard = Arc<Mutex<Vec<u64>>>;

/// One device buffer.
pub(super) struct GpuMemory {
    /// Unique within the process's life.
    pub(super) id: u64,
    pub(super) buffer: wgpu::Buffer,
    bytes: usize,
    /// What the host writes.
    shadow: Option<Buffer>,
    /// Whether the shadow is the buffer's own memory.
    pub(super) in_place: bool,
    graveyard: Graveyard,
}

impl GpuMemory {
    pub(super) fn new(
        id: u64,
        device: &Device,
        bytes: usize,
        shadowed: bool,
        graveyard: &Graveyard,
    ) -> Result<Self> {
        let graveyard = graveyard.clone();
        if let Some(sharing) = device.sharing.as_ref().filter(|_| shadowed) {
            let (pages, buffer) = shared::allocate(sharing, &device.device, padded(bytes))?;
            return Ok(Self { id, buffer, bytes, shadow: Some(pages), in_place: true, graveyard });
        }
        let shadow = if shadowed { Some(host::alloc_shared(bytes)?) } else { None };
        let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: padded(bytes),
            usage: shared::USAGE,
            mapped_at_creation: false,
        });
        Ok(Self { id, buffer, bytes, shadow, in_place: false, graveyard })
    }
}

/// The device's size of a buffer of `bytes`.
fn padded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(16) + PADDING_BYTES
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        // A poisoned list of ids is still a list of ids.
        self.graveyard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(self.id);
    }
}

impl DeviceMemory for GpuMemory {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn host(&self) -> Option<NonNull<u8>> {
        self.shadow.as_ref().and_then(Buffer::host)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
