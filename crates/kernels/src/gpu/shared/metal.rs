//! `newBufferWithBytesNoCopy`: a buffer in shared storage over pages of this process.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Mutex;

use block2::RcBlock;
use objc2_metal::{MTLDevice, MTLResourceOptions};
use wgpu::hal::api::Metal;

use super::{PAGES_BYTES, descriptor};
use crate::buffer::Buffer;

/// What the driver recommends that all buffers take together at most: beyond it, a command buffer may fail for lack of
/// memory.
pub(crate) fn mapped_bytes_max(device: &wgpu::Device) -> Option<u64> {
    // SAFETY: no handle of the device's is destroyed.
    let hal = unsafe { device.as_hal::<Metal>() }?;
    Some(hal.raw_device().recommendedMaxWorkingSetSize()).filter(|&bytes| bytes > 0)
}

/// Nothing has to be asked for.
pub(crate) struct Sharing;

impl Sharing {
    /// Opens an adapter. As on Vulkan the answer may be `None`, but every adapter of Metal's makes such buffers.
    pub(crate) fn open(
        adapter: &wgpu::Adapter,
        descriptor: &wgpu::DeviceDescriptor<'_>,
    ) -> Option<Result<(wgpu::Device, wgpu::Queue, Self), wgpu::RequestDeviceError>> {
        let opened = super::super::device::block_on(adapter.request_device(descriptor));
        Some(opened.map(|(device, queue)| (device, queue, Self)))
    }

    /// A buffer of `bytes` over `pages`, which it keeps. `None` if the driver refuses.
    pub(crate) fn over(&self, device: &wgpu::Device, pages: &Buffer, bytes: u64) -> Option<wgpu::Buffer> {
        let pointer: NonNull<c_void> = pages.host()?.cast();
        let size = bytes.next_multiple_of(PAGES_BYTES);
        if size > pages.bytes() as u64 {
            return None;
        }
        let buffer = {
            // SAFETY: no handle of the device's is destroyed.
            let hal = unsafe { device.as_hal::<Metal>() }?;
            let kept = Mutex::new(Some(pages.clone()));
            let let_go = RcBlock::new(move |_: NonNull<c_void>, _: usize| {
                // Another thread of the driver's cannot have panicked in here.
                drop(kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
            });
            let shared = MTLResourceOptions::StorageModeShared;
            // SAFETY: whole pages of an anonymous mapping, which stay until Metal calls the block, from whatever thread:
            // what the block holds may be dropped by any.
            unsafe {
                hal.raw_device().newBufferWithBytesNoCopy_length_options_deallocator(
                    pointer,
                    size as usize,
                    shared,
                    Some(&let_go),
                )
            }?
        };
        // SAFETY: a live buffer of at least this size.
        let buffer = unsafe { wgpu::hal::metal::Device::buffer_from_raw(buffer, bytes) };
        // SAFETY: made from this device, for any use, and initialised, since pages of the system's are.
        Some(unsafe { device.create_buffer_from_hal::<Metal>(buffer, &descriptor(bytes)) })
    }
}
