//! Adapters: which there are, what they can do, and how one is opened.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use files::{Error, ErrorKind, Result};

use super::memory::PADDING_BYTES;
use super::shared::{self, PAGES_BYTES, Sharing};
use super::work::{SUBMISSION_S, SlowRates};
use crate::ops::Precision;

/// What an adapter is, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with memory of its own.
    Discrete,
    /// Shares the machine's memory.
    Integrated,
    /// Something virtual or unknown.
    Other,
    /// A driver that computes on the CPU (lavapipe): for tests.
    Software,
}

/// An adapter of this machine.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Its name, as the driver says.
    pub name: String,
    /// Driver and version, for reports.
    pub driver: String,
    /// What it is.
    pub kind: AdapterKind,
}

/// How to open a GPU.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Part of the adapter's name; `None` for the best one.
    pub adapter: Option<String>,
    /// What [`crate::ops::DeviceInfo::precision`] shall say.
    pub precision: Precision,
    /// Use subgroup operations where the device has them. Without, reductions go through shared memory.
    pub subgroups: bool,
    /// Whether ops read weights in the host's memory ([`crate::ops::DeviceInfo::unified_memory`]); `None` where the device has no
    /// other. Without, and where the driver cannot, they are copied.
    pub share: Option<bool>,
    /// Less than the driver's limit on a buffer, in bytes.
    pub buffer_bytes_max: Option<u64>,
    /// Instead of what the driver says of [`crate::ops::DeviceInfo::mapped_bytes_max`].
    pub mapped_bytes_max: Option<u64>,
    /// Where what drivers compile is kept between runs.
    pub cache_dir: Option<PathBuf>,
    /// Whether [`crate::Backend::prepare`] compiles; `None` for all but software drivers.
    pub compiles_ahead: Option<bool>,
    /// Seconds that a submission takes at most, at the rates of a slow device of its kind.
    pub submission_s: f64,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            adapter: None,
            precision: Precision::Fast,
            subgroups: true,
            share: None,
            buffer_bytes_max: None,
            mapped_bytes_max: None,
            cache_dir: None,
            compiles_ahead: None,
            submission_s: SUBMISSION_S,
        }
    }
}

/// An opened device.
pub(super) struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) summary: AdapterSummary,
    pub(super) adapter: wgpu::AdapterInfo,
    pub(super) subgroups: bool,
    /// Rows and columns of the matrices of f16 whose products subgroups of 32 sum as f32: 16, or Metal's 8, or 0 for none.
    pub(super) matrix: u32,
    /// What a user should know of how the device is used.
    pub(super) notes: Vec<String>,
    /// Whether activations may become integers: the products of four bytes are one instruction on Vulkan and many on
    /// Metal, and eight neighbours must be of one subgroup.
    pub(super) byte_products: bool,
    /// The fewest threads that a subgroup may have.
    pub(super) subgroup_threads: u32,
    /// Most buffers of a dispatch.
    pub(super) bindings_max: usize,
    /// Largest buffer that one binding can show whole, less the padding.
    pub(super) buffer_bytes_max: usize,
    /// What makes buffers over the host's pages, where these are as good as any.
    pub(super) sharing: Option<Sharing>,
    /// The most of the machine's memory that the device may map, in bytes, where the driver says.
    pub(super) mapped_bytes_max: Option<u64>,
    /// What bounds a submission.
    pub(super) slow: SlowRates,
    failure: Arc<Mutex<Option<(ErrorKind, String)>>>,
}

/// The features that are used where they exist.
const WANTED: wgpu::Features =
    wgpu::Features::SUBGROUP.union(wgpu::Features::PIPELINE_CACHE).union(super::profile::FEATURES);
/// The features that every supported device has.
const NEEDED: wgpu::Features = wgpu::Features::IMMEDIATES;
/// What matrix instructions need.
const MATRIX_FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);
/// Memory of a workgroup of `matmul_units.wgsl`, for blocks of 128 rows, or of 64 with Metal's matrices.
const MATRIX_STORAGE_BYTES: u32 = 48 << 10;
const METAL_MATRIX_STORAGE_BYTES: u32 = 20 << 10;
/// Memory of a workgroup that multiplies integers and ranks experts.
const INTEGERS_STORAGE_BYTES: u32 = 20 << 10;
/// Threads that find the largest value of a block of activations together.
pub(super) const EIGHT: u32 = 8;
/// The shaders address bytes with 32 bits.
const ADDRESSABLE_BYTES: u64 = 1 << 32;

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

/// The fewest and the most threads of a subgroup. Of Metal wgpu says 4 to 64, which is every device that it runs on; all of
/// Apple's own GPUs, which name themselves, have 32 (the `threadExecutionWidth` of every pipeline there).
fn subgroup_threads(info: &wgpu::AdapterInfo) -> (u32, u32) {
    if info.backend == wgpu::Backend::Metal && info.name.starts_with("Apple") {
        return (32, 32);
    }
    (info.subgroup_min_size, info.subgroup_max_size)
}

/// The size of the matrices that the shaders multiply through a backend, if it has such: on Metal 8 x 8 is all there is, and
/// naga would write a text of 16 x 16 without complaint.
fn matrix_of(backend: wgpu::Backend, offered: &[wgpu::CooperativeMatrixProperties]) -> u32 {
    let size = if backend == wgpu::Backend::Metal { super::source::METAL_MATRIX } else { 16 };
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        (p.m_size, p.n_size, p.k_size) == (size, size, size)
            && p.ab_type == wgpu::CooperativeScalarType::F16
            && p.cr_type == wgpu::CooperativeScalarType::F32
    };
    if offered.iter().any(fits) { size } else { 0 }
}

/// [`matrix_of`] an adapter that has all else that `matmul_units.wgsl` needs.
fn matrix_size(adapter: &wgpu::Adapter) -> u32 {
    let info = adapter.get_info();
    let size = matrix_of(info.backend, &adapter.cooperative_matrix_properties());
    let bytes = if size == 16 { MATRIX_STORAGE_BYTES } else { METAL_MATRIX_STORAGE_BYTES };
    let fits = adapter.features().contains(MATRIX_FEATURES)
        && adapter.limits().max_compute_workgroup_storage_size >= bytes
        && subgroup_threads(&info) == (32, 32);
    if fits { size } else { 0 }
}

/// Runs a future that a native driver answers at once.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        std::thread::yield_now();
    }
}

fn summary(adapter: &wgpu::Adapter) -> AdapterSummary {
    let info = adapter.get_info();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::Cpu => AdapterKind::Software,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => AdapterKind::Other,
    };
    let driver = format!("{:?} {} {}", info.backend, info.driver, info.driver_info);
    AdapterSummary { name: info.name, driver, kind }
}

/// The usable adapters of a machine, best first.
fn ranked() -> Vec<(AdapterSummary, wgpu::Adapter)> {
    let instance = instance();
    let all = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN | wgpu::Backends::METAL));
    let mut usable: Vec<_> = all
        .into_iter()
        .filter(|a| a.features().contains(NEEDED))
        .map(|adapter| (summary(&adapter), adapter))
        .collect();
    usable.sort_by_key(|(summary, _)| summary.kind);
    usable
}

/// Whether this machine shows signs of a real GPU. Costs a look at files: asking a driver takes tens of milliseconds
/// and the memory of whatever drivers are installed.
pub fn likely() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    // NVIDIA, every driver of the kernel's own, Windows' subsystem for Linux.
    ["/dev/nvidiactl", "/dev/dri/renderD128", "/dev/dxg"]
        .iter()
        .any(|node| std::path::Path::new(node).exists())
}

/// The adapters of this machine that can run the shaders, best first.
pub fn adapters() -> Vec<AdapterSummary> {
    ranked().into_iter().map(|(summary, _)| summary).collect()
}

/// Opens an adapter, such that it reads the host's pages if that is to be and works.
fn open_device(
    adapter: &wgpu::Adapter,
    descriptor: &wgpu::DeviceDescriptor<'_>,
    share: bool,
) -> std::result::Result<(wgpu::Device, wgpu::Queue, Option<Sharing>), wgpu::RequestDeviceError> {
    if share && let Some(opened) = Sharing::open(adapter, descriptor) {
        let (device, queue, sharing) = opened?;
        let sharing = Some(sharing).filter(|sharing| shared::works(sharing, &device));
        return Ok((device, queue, sharing));
    }
    let (device, queue) = block_on(adapter.request_device(descriptor))?;
    Ok((device, queue, None))
}

impl Device {
    /// Opens the best adapter, or the best that has the wanted name.
    pub(super) fn open(options: &GpuOptions) -> Result<Self> {
        let name = options.adapter.as_deref();
        let wanted = |summary: &AdapterSummary| name.is_none_or(|name| summary.name.contains(name));
        let Some((summary, adapter)) = ranked().into_iter().find(|(summary, _)| wanted(summary)) else {
            let which = name.map_or_else(String::new, |name| format!(" named {name}"));
            return Err(device_error(format!("no usable GPU{which}: no Vulkan or Metal driver offers one")));
        };
        let mut features = NEEDED | (adapter.features() & WANTED);
        let mut experimental = wgpu::ExperimentalFeatures::disabled();
        let matrix = matrix_size(&adapter);
        if matrix != 0 {
            features |= MATRIX_FEATURES;
            // SAFETY: what may misbehave are cooperative matrices; one shader of ours uses them, in the manner that
            // wgpu documents, and the tests compare its answers.
            experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let mut limits = adapter.limits();
        let most = options.buffer_bytes_max.unwrap_or(u64::MAX);
        limits.max_buffer_size = limits.max_buffer_size.min(most);
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(most);
        let descriptor = wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        };
        let no_other = matches!(summary.kind, AdapterKind::Integrated | AdapterKind::Software);
        let share = options.share.unwrap_or(no_other);
        let (device, queue, sharing) = open_device(&adapter, &descriptor, share)
            .map_err(|e| device_error(format!("{} does not open", summary.name)).with_source(e))?;
        let failure = Arc::new(Mutex::new(None));
        watch(&device, &failure);
        let largest =
            limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(ADDRESSABLE_BYTES);
        // Shared memory comes in whole pages, which must not exceed the limit either; a small page less leaves room for
        // the padding.
        let whole = if sharing.is_some() { largest / PAGES_BYTES * PAGES_BYTES } else { largest };
        let buffer_bytes_max = whole.saturating_sub(PADDING_BYTES.next_multiple_of(4096)) as usize;
        let mapped_bytes_max = options.mapped_bytes_max.or_else(|| shared::mapped_bytes_max(&device));
        let subgroups = features.contains(wgpu::Features::SUBGROUP) && options.subgroups;
        let info = adapter.get_info();
        let (subgroup_threads, _) = subgroup_threads(&info);
        let byte_products = info.backend == wgpu::Backend::Vulkan
            && subgroup_threads >= EIGHT
            && limits.max_compute_workgroup_storage_size >= INTEGERS_STORAGE_BYTES;
        let slow = SlowRates::of(summary.kind, options.submission_s);
        Ok(Self {
            device,
            queue,
            summary,
            adapter: info,
            subgroups,
            matrix,
            notes: Vec::new(),
            byte_products,
            subgroup_threads,
            bindings_max: limits.max_storage_buffers_per_shader_stage as usize,
            buffer_bytes_max,
            sharing,
            mapped_bytes_max,
            slow,
            failure,
        })
    }

    /// For [`crate::ops::Backend::features`].
    pub(super) fn features(&self) -> Vec<(&'static str, String)> {
        let memory = if self.sharing.is_some() { "the host's" } else { "its own" };
        let matrix = match self.matrix {
            0 => "none".to_string(),
            size => format!("{size} x {size}"),
        };
        let mut features = vec![
            ("kind", format!("{:?}", self.summary.kind)),
            ("memory", memory.to_string()),
            ("subgroups", self.subgroups.to_string()),
            ("subgroup_threads_min", self.subgroup_threads.to_string()),
            ("matrix_instructions", matrix),
            ("byte_products", self.byte_products.to_string()),
            ("buffer_bytes_max", self.buffer_bytes_max.to_string()),
            ("pipeline_cache", self.device.features().contains(wgpu::Features::PIPELINE_CACHE).to_string()),
        ];
        features.extend(self.mapped_bytes_max.map(|bytes| ("mapped_bytes_max", bytes.to_string())));
        features.extend(self.notes.iter().map(|note| ("note", note.clone())));
        features
    }

    /// The first failure that the driver reported since the last call, if any.
    pub(super) fn check(&self) -> Result<()> {
        let first = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or(Ok(()), |(kind, message)| {
            Err(Error::new(kind, format!("{}: {message}", self.summary.name)))
        })
    }
}

pub(super) fn device_error(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Device, message)
}

/// Keeps the first failure of the device for [`Device::check`]; without a handler wgpu would end the process.
fn watch(device: &wgpu::Device, failure: &Arc<Mutex<Option<(ErrorKind, String)>>>) {
    let keep = |slot: &Mutex<Option<(ErrorKind, String)>>, kind, message: String| {
        slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((kind, message));
    };
    let slot = failure.clone();
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| match error {
        wgpu::Error::OutOfMemory { .. } => keep(&slot, ErrorKind::Memory, "out of device memory".into()),
        other => keep(&slot, ErrorKind::Device, other.to_string()),
    }));
    let slot = failure.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            keep(&slot, ErrorKind::Device, format!("the device was lost: {message}"));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, backend: wgpu::Backend, min: u32, max: u32) -> wgpu::AdapterInfo {
        let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, backend);
        (info.name, info.subgroup_min_size, info.subgroup_max_size) = (name.into(), min, max);
        info
    }

    #[test]
    fn subgroups_of_apple_have_32_threads() {
        let metal = wgpu::Backend::Metal;
        assert_eq!(subgroup_threads(&info("Apple M2 Pro", metal, 4, 64)), (32, 32));
        assert_eq!(subgroup_threads(&info("AMD Radeon Pro 5500M", metal, 4, 64)), (4, 64));
        assert_eq!(subgroup_threads(&info("Apple M1 (G13G B1)", wgpu::Backend::Vulkan, 8, 16)), (8, 16));
    }

    #[test]
    fn metal_multiplies_matrices_of_eight_alone() {
        let of = |size, cr_type| wgpu::CooperativeMatrixProperties {
            m_size: size,
            n_size: size,
            k_size: size,
            ab_type: wgpu::CooperativeScalarType::F16,
            cr_type,
            saturating_accumulation: false,
        };
        use wgpu::CooperativeScalarType::{F16, F32};
        assert_eq!(matrix_of(wgpu::Backend::Metal, &[of(8, F16), of(8, F32)]), 8);
        assert_eq!(matrix_of(wgpu::Backend::Metal, &[of(16, F32), of(8, F16)]), 0);
        assert_eq!(matrix_of(wgpu::Backend::Vulkan, &[of(8, F32), of(16, F32)]), 16);
        assert_eq!(matrix_of(wgpu::Backend::Vulkan, &[of(8, F32), of(16, F16)]), 0);
    }
}
