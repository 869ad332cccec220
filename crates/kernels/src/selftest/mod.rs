//! Every kernel of every device of this machine against the scalar reference, and how fast the products run.
//!
//! The same cases, from the same seeds, run on [`crate::reference`] and on the device; what differs beyond rounding
//! is a failure with a name. The command line prints what comes back.

mod cases;
mod inputs;
mod speed;

use std::ops::ControlFlow;

use files::{Error, Format, Result};

use crate::Backend;
use crate::cpu::{Cpu, CpuOptions, Isa};
use crate::ops::Precision;
use crate::reference::Reference;
use cases::{Case, cases};
pub use speed::Speed;

/// Which devices to examine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All of them.
    All,
    /// The CPU's instruction sets.
    Cpu,
    /// The graphics adapters.
    Gpu,
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every op in every number format, and rates on weights that no cache holds.
    Full,
    /// Every op in some number formats, and rates of small weights, which say little: a check that all of it works.
    Quick,
}

/// An op of a device that gave another answer than the reference, or none.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The op, with shape and format.
    pub case: String,
    /// What was wrong.
    pub what: String,
}

/// What is known of one device after its tests.
#[derive(Clone, Debug)]
pub struct Report {
    /// The device, with its driver or instruction set.
    pub device: String,
    /// What it supports, as name and value.
    pub features: Vec<(&'static str, String)>,
    /// Cases that ran.
    pub cases: usize,
    /// Those that failed.
    pub failed: Vec<Failed>,
    /// The largest error of a case, relative to the norm of the answer, and that case.
    pub worst: (f64, String),
    /// Rates of the device itself, as name with its unit and value.
    pub rates: Vec<(&'static str, f64)>,
    /// Rates of products.
    pub speeds: Vec<Speed>,
}

/// A device, closed until its turn comes.
struct Candidate {
    name: String,
    open: Box<dyn Fn() -> Result<Opened>>,
}

struct Opened {
    backend: Box<dyn Backend>,
    features: Vec<(&'static str, String)>,
    rates: Vec<(&'static str, f64)>,
    /// Bytes of weights that no cache of the device holds.
    weight_bytes: usize,
}

/// Examines the devices one after the other. `progress` hears what is being done and can end it.
///
/// # Errors
/// [`files::ErrorKind::Cancelled`] when `progress` says so, [`files::ErrorKind::Device`] when there is no device of
/// that kind. What a device itself does wrong is in its report.
pub fn run(
    devices: Devices,
    extent: Extent,
    progress: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Vec<Report>> {
    let candidates = candidates(devices);
    if candidates.is_empty() {
        return Err(Error::new(
            files::ErrorKind::Device,
            "no usable GPU: no Vulkan or Metal driver offers one",
        ));
    }
    let mut step = |text: String| match progress(&text) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::new(files::ErrorKind::Cancelled, "interrupted")),
    };
    let mut truths = Vec::new();
    for case in cases(extent) {
        step(format!("reference: {}", case.name))?;
        let want = (case.run)(&Reference::default())?;
        truths.push((case, want));
    }
    candidates.iter().map(|candidate| examine(candidate, &truths, extent, &mut step)).collect()
}

/// Runs the cases on a backend that is open, those with weights in `formats`, and no measurements.
///
/// # Errors
/// Those of the reference; what the backend itself does wrong is in the report.
pub fn examine_open(backend: &dyn Backend, formats: &[Format]) -> Result<Report> {
    let mut report = Report::of(backend.info().name.clone());
    for case in cases::of_formats(formats) {
        let want = (case.run)(&Reference::default())?;
        report.cases += 1;
        check(&case, &want, backend, &mut report);
    }
    Ok(report)
}

impl Report {
    fn of(device: String) -> Self {
        Self {
            device,
            features: Vec::new(),
            cases: 0,
            failed: Vec::new(),
            worst: (0.0, String::new()),
            rates: Vec::new(),
            speeds: Vec::new(),
        }
    }
}

fn candidates(devices: Devices) -> Vec<Candidate> {
    let mut all = Vec::new();
    if devices != Devices::Gpu {
        for isa in Isa::available() {
            for precision in [Precision::Fast, Precision::Exact] {
                let name = format!("CPU {} {precision:?}", isa.name());
                all.push(Candidate { name, open: Box::new(move || open_cpu(isa, precision)) });
            }
        }
    }
    #[cfg(feature = "gpu")]
    if devices != Devices::Cpu {
        // The first of several adapters with one name stands for all of them.
        let mut names: Vec<String> = crate::gpu::adapters().into_iter().map(|a| a.name).collect();
        names.dedup();
        all.extend(names.into_iter().map(|name| {
            let adapter = name.clone();
            Candidate { name: format!("GPU {name}"), open: Box::new(move || open_gpu(&adapter)) }
        }));
    }
    all
}

fn open_cpu(isa: Isa, precision: Precision) -> Result<Opened> {
    let cpu = Cpu::with_isa(CpuOptions { threads: None, precision }, isa)?;
    let features = cpu.features();
    Ok(Opened { backend: Box::new(cpu), features, rates: Vec::new(), weight_bytes: 128 << 20 })
}

#[cfg(feature = "gpu")]
fn open_gpu(adapter: &str) -> Result<Opened> {
    use crate::gpu::{AdapterKind, Gpu, GpuOptions};
    let gpu = Gpu::open(&GpuOptions { adapter: Some(adapter.to_owned()), ..GpuOptions::default() })?;
    let software = gpu.adapter().kind == AdapterKind::Software;
    let weight_bytes = if software { 16 << 20 } else { 384 << 20 };
    let rates = gpu.rates(weight_bytes.min(gpu.info().buffer_bytes_max))?;
    let rates = vec![
        ("stream_bytes_per_s", rates.stream_bytes_per_s()),
        ("read_bytes_per_s", rates.read_bytes_per_s),
        ("copy_bytes_per_s", rates.copy_bytes_per_s),
        ("upload_bytes_per_s", rates.upload_bytes_per_s),
        ("upload_expert_bytes_per_s", rates.upload_expert_bytes_per_s),
        ("upload_fill_bytes_per_s", rates.upload_fill_bytes_per_s),
        ("dispatch_s", rates.dispatch_s),
        ("submit_and_wait_s", rates.submit_and_wait_s),
    ];
    let mut features = gpu.features();
    features.push(("device_features", format!("{:?}", gpu.wgpu_features())));
    features.push(("kernels", crate::gpu::source::KERNELS.len().to_string()));
    Ok(Opened { features, backend: Box::new(gpu), rates, weight_bytes })
}

fn examine(
    candidate: &Candidate,
    truths: &[(Case, Vec<f32>)],
    extent: Extent,
    step: &mut dyn FnMut(String) -> Result<()>,
) -> Result<Report> {
    let mut report = Report::of(candidate.name.clone());
    step(format!("{}: opening", candidate.name))?;
    let opened = match (candidate.open)() {
        Ok(opened) => opened,
        Err(error) => {
            report.failed.push(Failed { case: "opening".into(), what: error.to_string() });
            return Ok(report);
        }
    };
    report.device = opened.backend.info().name.clone();
    report.features = opened.features;
    report.features.push(("precision", format!("{:?}", opened.backend.info().precision)));
    report.rates = opened.rates;
    for (case, want) in truths {
        step(format!("{}: {}", candidate.name, case.name))?;
        report.cases += 1;
        check(case, want, &*opened.backend, &mut report);
    }
    if opened.backend.info().precision == Precision::Fast && report.failed.is_empty() {
        let weight_bytes = match extent {
            Extent::Full => opened.weight_bytes,
            Extent::Quick => opened.weight_bytes.min(2 << 20),
        };
        for (name, measure) in speed::measurements(extent) {
            step(format!("{}: {name}", candidate.name))?;
            match measure(&*opened.backend, weight_bytes) {
                Ok(speed) => report.speeds.push(speed),
                Err(error) => report.failed.push(Failed { case: name, what: error.to_string() }),
            }
        }
    }
    Ok(report)
}

fn check(case: &Case, want: &[f32], device: &dyn Backend, report: &mut Report) {
    let got = match (case.run)(device) {
        Ok(got) => got,
        Err(error) => {
            report.failed.push(Failed { case: case.name.clone(), what: error.to_string() });
            return;
        }
    };
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let norm: f64 = want.iter().map(|w| square(*w)).sum::<f64>().max(1e-30);
    let relative = (error / norm).sqrt();
    let bound = if device.info().precision == Precision::Exact { case.exact } else { case.fast };
    // Not a number is a failure too.
    if got.len() != want.len() || relative.is_nan() || relative > bound {
        let what = format!("relative error {relative:.1e}, bound {bound:.0e}");
        report.failed.push(Failed { case: case.name.clone(), what });
    } else if relative > report.worst.0 {
        report.worst = (relative, case.name.clone());
    }
}

/// A name for a case of a format.
fn named(op: &str, format: Format, rows: usize) -> String {
    format!("{op} {format} {rows} {}", if rows == 1 { "row" } else { "rows" })
}
