//! Chooses the backend.

use std::sync::Arc;

use files::Result;
use kernels::Backend;
use kernels::cpu::{Cpu, CpuOptions};
use kernels::gpu::{Gpu, GpuOptions};
use kernels::ops::Precision;

use crate::model::OpenOptions;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// What is fastest as far as we have measured: the CPU, until the GPU path is tuned.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best GPU.
    Gpu,
}

/// Opens the backend that `options` ask for.
///
/// # Errors
/// `Device` when there is none.
pub(crate) fn open_device(options: &OpenOptions) -> Result<Arc<dyn Backend>> {
    let precision = if options.exact { Precision::Exact } else { Precision::Fast };
    match options.device {
        Device::Auto | Device::Cpu => {
            Ok(Arc::new(Cpu::new(CpuOptions { threads: options.threads, precision })?))
        }
        Device::Gpu => Ok(Arc::new(Gpu::open(&GpuOptions { precision, ..GpuOptions::default() })?)),
    }
}
