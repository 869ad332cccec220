//! The CPU backend against the reference, for every instruction set that this machine has.

mod common;

use common::Rig;
use tidemill_kernels::cpu::{Cpu, CpuOptions, Isa};
use tidemill_kernels::ops::{KvFormat, Precision};

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

/// The same bits whatever the instructions and the number of threads.
#[test]
fn attention_agrees_on_all_instruction_sets_and_threads() {
    let rig = |isa: Isa, threads| {
        let options = CpuOptions { threads: Some(threads), precision: Precision::Fast };
        let backend = Box::new(Cpu::with_isa(options, isa).unwrap());
        Rig { name: format!("{}, {threads} threads", isa.name()), backend, batch_invariant: true, align: 1 }
    };
    let mut rng = common::Rng::new(31);
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
        for (history, rows) in common::attention::LONG.into_iter().chain([(70, 40)]) {
            let case = common::attention::Case::random(&mut rng, format, history, rows);
            let want = case.run(&rig(Isa::Portable, 1), &[rows]);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let rig = rig(isa, threads);
                    common::same(
                        &rig,
                        &format!("{format:?} {history} + {rows}"),
                        &case.run(&rig, &[rows]),
                        &want,
                    );
                }
            }
        }
    }
}
