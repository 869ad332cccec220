//! Chooses the backend.

use std::sync::Arc;

use files::{Error, ErrorKind, Result};
use kernels::Backend;
use kernels::reference::Reference;

use crate::model::OpenOptions;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// What is fastest on this machine.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU.
    Gpu,
}

/// Opens the backend that `options` ask for.
///
/// # Errors
/// `Device` when there is none.
pub(crate) fn open_device(options: &OpenOptions) -> Result<Arc<dyn Backend>> {
    match options.device {
        Device::Auto | Device::Cpu => Ok(Arc::new(Reference::default())),
        Device::Gpu => Err(Error::new(ErrorKind::Device, "no GPU")),
    }
}
