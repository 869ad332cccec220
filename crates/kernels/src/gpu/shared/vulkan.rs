//! `VK_EXT_external_memory_host`: device memory that is imported from pages of this process.

use ash::ext::external_memory_host;
use ash::vk;
use wgpu::hal::api::Vulkan;

use super::descriptor;
use crate::buffer::Buffer;

/// The one kind of memory that is imported here.
const PAGES: vk::ExternalMemoryHandleTypeFlags = vk::ExternalMemoryHandleTypeFlags::HOST_ALLOCATION_EXT;

/// Nothing that limits: a heap's size is the machine's memory, or what a driver takes for a share of it.
pub(crate) fn mapped_bytes_max(_device: &wgpu::Device) -> Option<u64> {
    None
}

/// What importing needs.
pub(crate) struct Sharing {
    extension: external_memory_host::Device,
    memory: vk::PhysicalDeviceMemoryProperties,
    /// Addresses and sizes are multiples of this.
    align_bytes: u64,
}

/// A buffer over imported memory, until wgpu has no use for it.
struct Imported {
    device: ash::Device,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    // Given back last.
    _pages: Buffer,
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: both were made from this device, which outlives its buffers, and belong to this value alone; null
        // handles are ignored. Whoever made the value sees to it that no work that uses them is under way.
        unsafe {
            self.device.destroy_buffer(self.buffer, None);
            self.device.free_memory(self.memory, None);
        }
    }
}

impl Sharing {
    /// Opens an adapter with the extension; `None` where it has none.
    pub(crate) fn open(
        adapter: &wgpu::Adapter,
        descriptor: &wgpu::DeviceDescriptor<'_>,
    ) -> Option<Result<(wgpu::Device, wgpu::Queue, Self), wgpu::RequestDeviceError>> {
        let (open, align_bytes, memory) = {
            // SAFETY: no handle of the adapter's is destroyed.
            let hal = unsafe { adapter.as_hal::<Vulkan>() }?;
            let instance = hal.shared_instance();
            let capabilities = hal.physical_device_capabilities();
            let versions = [instance.instance_api_version(), capabilities.properties().api_version];
            let lacks = !capabilities.supports_extension(external_memory_host::NAME);
            if lacks || versions.iter().any(|&version| version < vk::API_VERSION_1_1) {
                return None;
            }
            let mut pages = vk::PhysicalDeviceExternalMemoryHostPropertiesEXT::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut pages);
            let (raw, physical) = (instance.raw_instance(), hal.raw_physical_device());
            // SAFETY: the physical device is this instance's, and both are of version 1.1 at least.
            unsafe { raw.get_physical_device_properties2(physical, &mut properties) };
            // SAFETY: as above.
            let memory = unsafe { raw.get_physical_device_memory_properties(physical) };
            let extend: Box<wgpu::hal::vulkan::CreateDeviceCallback<'_>> =
                Box::new(|device| device.extensions.push(external_memory_host::NAME));
            let (features, limits) = (descriptor.required_features, &descriptor.required_limits);
            // SAFETY: wgpu has checked nothing yet, but features and limits are those that the adapter told; one extension
            // is added, which it has.
            let open =
                unsafe { hal.open_with_callback(features, limits, &descriptor.memory_hints, Some(extend)) };
            // What fails here fails again where it is reported: without the extension.
            (open.ok()?, pages.min_imported_host_pointer_alignment.max(1), memory)
        };
        // SAFETY: opened just now from this adapter, with the features of the descriptor.
        let opened = unsafe { adapter.create_device_from_hal::<Vulkan>(open, descriptor) };
        let (device, queue) = match opened {
            Ok(opened) => opened,
            Err(error) => return Some(Err(error)),
        };
        let extension = {
            // SAFETY: no handle of the device's is destroyed.
            let hal = unsafe { device.as_hal::<Vulkan>() }?;
            external_memory_host::Device::new(hal.shared_instance().raw_instance(), hal.raw_device())
        };
        Some(Ok((device, queue, Self { extension, memory, align_bytes })))
    }

    /// A buffer of `bytes` over `pages`, which it keeps. `None` if the driver refuses.
    pub(crate) fn over(&self, device: &wgpu::Device, pages: &Buffer, bytes: u64) -> Option<wgpu::Buffer> {
        let (pointer, size) = (pages.host()?.as_ptr(), bytes.next_multiple_of(self.align_bytes));
        if size > pages.bytes() as u64 || !(pointer as u64).is_multiple_of(self.align_bytes) {
            return None;
        }
        let imported = {
            // SAFETY: no handle of the device's is destroyed.
            let hal = unsafe { device.as_hal::<Vulkan>() }?;
            self.import(hal.raw_device(), pages, size)?
        };
        let buffer = imported.buffer;
        let keep: wgpu::hal::DropCallback = Box::new(move || drop(imported));
        // SAFETY: the buffer lives until wgpu runs `keep`, which it does when no work that uses it is left.
        let buffer = unsafe { wgpu::hal::vulkan::Buffer::from_raw_externally_owned(buffer, keep) };
        // SAFETY: made from this device, as large as the descriptor says or larger and for the same use; its memory is
        // initialised, since pages of the system's are.
        Some(unsafe { device.create_buffer_from_hal::<Vulkan>(buffer, &descriptor(bytes)) })
    }

    fn import(&self, device: &ash::Device, pages: &Buffer, size: u64) -> Option<Imported> {
        let usage = vk::BufferUsageFlags::STORAGE_BUFFER
            | vk::BufferUsageFlags::TRANSFER_SRC
            | vk::BufferUsageFlags::TRANSFER_DST;
        let mut external = vk::ExternalMemoryBufferCreateInfo::default().handle_types(PAGES);
        let info = vk::BufferCreateInfo::default()
            .size(size)
            .usage(usage)
            .sharing_mode(vk::SharingMode::EXCLUSIVE)
            .push_next(&mut external);
        // SAFETY: a valid description of a buffer without memory.
        let buffer = unsafe { device.create_buffer(&info, None) }.ok()?;
        let (device, memory) = (device.clone(), vk::DeviceMemory::null());
        let mut made = Imported { device, buffer, memory, _pages: pages.clone() };
        // SAFETY: the buffer is this device's.
        let needs = unsafe { made.device.get_buffer_memory_requirements(buffer) };
        let pointer = pages.host()?.as_ptr().cast();
        let kinds = needs.memory_type_bits & self.kinds_of(pointer)?;
        let kind = self.coherent(kinds)?;
        if needs.size > pages.bytes() as u64 {
            return None;
        }
        let size = needs.size.next_multiple_of(self.align_bytes).min(pages.bytes() as u64);
        let mut import =
            vk::ImportMemoryHostPointerInfoEXT::default().handle_type(PAGES).host_pointer(pointer);
        let info = vk::MemoryAllocateInfo::default()
            .allocation_size(size)
            .memory_type_index(kind)
            .push_next(&mut import);
        // SAFETY: address and size are aligned as the driver asks, the pages are `size` bytes long and stay until the
        // memory is freed, and the kind is one that the driver named for them.
        made.memory = unsafe { made.device.allocate_memory(&info, None) }.ok()?;
        // SAFETY: both are new and this device's, and the memory is as large as the buffer needs.
        unsafe { made.device.bind_buffer_memory(buffer, made.memory, 0) }.ok()?;
        Some(made)
    }

    /// The kinds of memory that pages can be imported as, one bit each.
    fn kinds_of(&self, pointer: *mut std::ffi::c_void) -> Option<u32> {
        let mut properties = vk::MemoryHostPointerPropertiesEXT::default();
        // SAFETY: the extension's function, called for the device that it was loaded for, with an aligned address.
        let answer = unsafe {
            (self.extension.fp().get_memory_host_pointer_properties_ext)(
                self.extension.device(),
                PAGES,
                pointer,
                &mut properties,
            )
        };
        (answer == vk::Result::SUCCESS).then_some(properties.memory_type_bits)
    }

    /// The first of `kinds` that needs no flushing: a submission then sees what the host wrote before it.
    fn coherent(&self, kinds: u32) -> Option<u32> {
        let coherent = vk::MemoryPropertyFlags::HOST_COHERENT;
        let types = self.memory.memory_types_as_slice().iter().zip(0u32..);
        let mut fit = types.filter(|(t, i)| kinds >> i & 1 == 1 && t.property_flags.contains(coherent));
        fit.next().map(|(_, i)| i)
    }
}
