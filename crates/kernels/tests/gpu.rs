//! The GPU backend against the reference.

#![cfg(feature = "gpu")]

mod common;

use common::Rig;
use tidemill_kernels::gpu::{Gpu, GpuOptions, adapters};
use tidemill_kernels::ops::Precision;

/// The best adapter of this machine, or nothing where there is none.
fn open(subgroups: bool) -> Vec<Rig> {
    if adapters().is_empty() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "gpu: no adapter; CI installs lavapipe");
        println!("SKIP gpu: no adapter");
        return Vec::new();
    }
    let options = GpuOptions { precision: Precision::Exact, subgroups, ..GpuOptions::default() };
    let backend = Box::new(Gpu::open(&options).unwrap());
    let name = format!("{}, subgroups {subgroups}", backend.adapter().name);
    vec![Rig { name, backend, batch_invariant: false, align: 1 }]
}

fn rigs() -> Vec<Rig> {
    open(true)
}

conformance!(rigs);

/// Reductions through shared memory alone: for every op that reduces.
#[test]
fn without_subgroups() {
    for rig in open(false) {
        common::dense::rms_norm(&rig);
        common::dense::gated_norm(&rig);
        common::attention::attention(&rig);
        common::recurrent::delta_rule(&rig);
        common::experts::route(&rig);
    }
}
