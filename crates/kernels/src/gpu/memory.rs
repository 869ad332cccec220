//! Device buffers behind the handles of [`crate::buffer`].
//!
//! Memory that the store fills is *shadowed*: the host writes page-aligned anonymous memory, and publishing a range
//! copies it into the device's buffer, in queue order. Where host and device share memory, this file is the only
//! place that changes: a shadow that is the device's own memory needs no copy.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use files::Result;

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
    shadow: Option<Buffer>,
    graveyard: Graveyard,
}

impl GpuMemory {
    pub(super) fn new(
        id: u64,
        device: &wgpu::Device,
        bytes: usize,
        shadowed: bool,
        graveyard: &Graveyard,
    ) -> Result<Self> {
        let shadow = if shadowed { Some(host::alloc_shared(bytes)?) } else { None };
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: padded(bytes),
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Ok(Self { id, buffer, bytes, shadow, graveyard: graveyard.clone() })
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
