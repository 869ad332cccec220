//! Chooses the backend.

use std::sync::Arc;
use std::time::Duration;

use files::{Error, ErrorKind, Result};
use kernels::Backend;
use kernels::cpu::{Cpu, CpuOptions};
use kernels::gpu::{self, AdapterKind, Gpu, GpuOptions};
use kernels::ops::Precision;

use crate::doctor::backend_rates;
use crate::model::OpenOptions;

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU where there is one that multiplies faster than the CPU, which is measured; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best GPU.
    Gpu,
}

/// Time to measure a device before it is chosen.
const RATES_TIME: Duration = Duration::from_millis(60);

/// A device, and what there is to say about its choice.
pub(crate) struct Chosen {
    pub(crate) backend: Arc<dyn Backend>,
    /// Why it is not the GPU.
    pub(crate) note: Option<String>,
    /// Whether the CPU may take its place if it fails.
    pub(crate) may_fall_back: bool,
}

impl Chosen {
    fn firm(backend: Arc<dyn Backend>) -> Self {
        Self { backend, note: None, may_fall_back: false }
    }

    /// The CPU, because of `why`.
    fn cpu(options: &OpenOptions, why: String) -> Result<Self> {
        Ok(Self { note: Some(why), ..Self::firm(cpu(options)?) })
    }

    /// What `run` makes on this device, and what there is to say; on the CPU if the GPU was not asked for by name and
    /// fails. `run` must be able to start again.
    pub(crate) fn run<T>(
        self,
        options: &OpenOptions,
        mut run: impl FnMut(&Arc<dyn Backend>) -> Result<T>,
    ) -> Result<(T, Option<String>)> {
        match run(&self.backend) {
            Err(e) if self.may_fall_back && is_of_device(&e) => {
                let name = self.backend.info().name.clone();
                drop(self.backend); // its memory is needed
                let fallen = Self::cpu(options, format!("{name} failed, computing on the CPU: {e}"))?;
                Ok((run(&fallen.backend)?, fallen.note))
            }
            made => Ok((made?, self.note)),
        }
    }
}

/// Whether another device might do better: this one was lost, or has too little memory.
fn is_of_device(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Device | ErrorKind::Memory)
}

/// Opens the backend that `options` ask for.
///
/// # Errors
/// `Device` when there is none.
pub(crate) fn open_device(options: &OpenOptions) -> Result<Chosen> {
    if let Some(backend) = &options.backend {
        return Ok(Chosen::firm(backend.clone()));
    }
    match options.device {
        Device::Cpu => Ok(Chosen::firm(cpu(options)?)),
        Device::Gpu => Ok(Chosen::firm(gpu(options)?)),
        Device::Auto => faster(options),
    }
}

fn precision(options: &OpenOptions) -> Precision {
    if options.exact { Precision::Exact } else { Precision::Fast }
}

fn cpu(options: &OpenOptions) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(Cpu::new(CpuOptions { threads: options.threads, precision: precision(options) })?))
}

fn gpu(options: &OpenOptions) -> Result<Arc<dyn Backend>> {
    // A ceiling of its own is for memory of its own.
    let share = options.vram_bytes.map(|_| false);
    let (precision, cache_dir) = (precision(options), options.pipeline_cache.clone());
    Ok(Arc::new(Gpu::open(&GpuOptions { precision, share, cache_dir, ..GpuOptions::default() })?))
}

/// The GPU if there is a real one that decodes faster than the CPU: a token is one row, and its time is that of reading
/// weights.
fn faster(options: &OpenOptions) -> Result<Chosen> {
    let real = |a: &gpu::AdapterSummary| a.kind != AdapterKind::Software;
    if !gpu::likely() || !gpu::adapters().iter().any(real) {
        return Chosen::cpu(options, "no GPU".into());
    }
    let measured = gpu(options).and_then(|gpu| Ok((backend_rates(&gpu, RATES_TIME)?, gpu)));
    let (gpu_rates, gpu) = match measured {
        Ok(measured) => measured,
        Err(e) => return Chosen::cpu(options, format!("the GPU failed, computing on the CPU: {e}")),
    };
    let cpu = cpu(options)?;
    let cpu_rates = backend_rates(&cpu, RATES_TIME)?;
    let [on_gpu, on_cpu] = [&gpu_rates, &cpu_rates].map(|rates| rates.decode_bytes_per_s / 1e9);
    if on_gpu > on_cpu {
        return Ok(Chosen { may_fall_back: true, ..Chosen::firm(gpu) });
    }
    let note = format!("faster than {}: {on_cpu:.1} against {on_gpu:.1} GB/s of weights", gpu_rates.name);
    Ok(Chosen { note: Some(note), ..Chosen::firm(cpu) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(may_fall_back: bool) -> Chosen {
        Chosen { may_fall_back, ..Chosen::firm(Arc::new(kernels::reference::Reference::default())) }
    }

    /// Fails on every device but the CPU.
    fn only_on_cpu(kind: ErrorKind) -> impl FnMut(&Arc<dyn Backend>) -> Result<String> {
        move |backend| {
            let name = backend.info().name.clone();
            if name.contains("reference") { Err(Error::new(kind, "the device was lost")) } else { Ok(name) }
        }
    }

    #[test]
    fn the_cpu_takes_over_from_a_gpu_that_fails_and_says_why() {
        let options = OpenOptions::default();
        for kind in [ErrorKind::Device, ErrorKind::Memory] {
            let (_, note) = chosen(true).run(&options, only_on_cpu(kind)).unwrap();
            let note = note.unwrap();
            assert!(note.contains("CPU") && note.contains("the device was lost"), "{note}");
            assert_eq!(note.lines().count(), 1);
            let refused = chosen(false).run(&options, only_on_cpu(kind)).unwrap_err();
            assert_eq!(refused.kind(), kind, "a GPU that was asked for");
        }
        let corrupt = chosen(true).run(&options, only_on_cpu(ErrorKind::Corrupt)).unwrap_err();
        assert_eq!(corrupt.kind(), ErrorKind::Corrupt, "no device reads a damaged file");
    }

    #[test]
    fn some_device_opens_by_itself() {
        let chosen = open_device(&OpenOptions::default()).unwrap();
        assert_eq!(chosen.note.is_some(), chosen.backend.info().threads > 0, "{:?}", chosen.note);
    }
}
