//! The CPU backend against the reference, for every instruction set that this machine has.

mod common;

use common::Rig;
use tidemill_kernels::cpu::{Cpu, CpuOptions, Isa};
use tidemill_kernels::ops::Precision;

fn rigs() -> Vec<Rig> {
    let mut rigs = Vec::new();
    for (i, isa) in Isa::available().into_iter().enumerate() {
        for precision in [Precision::Exact, Precision::Fast] {
            let threads = 1 + i % 2;
            let backend =
                Box::new(Cpu::with_isa(CpuOptions { threads: Some(threads), precision }, isa).unwrap());
            let name = format!("{} {precision:?}, {threads} threads", isa.name());
            rigs.push(Rig { name, backend, batch_invariant: true, align: 1 });
        }
    }
    rigs
}

conformance!(rigs);
