//! The CPU backend against the reference and against itself, for every instruction set that this machine has.

mod common;

use common::{Encoded, Rig, Rng, output, same, tensor, values};
use files::Format;
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

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let mut rng = Rng::new(31);
    for format in Format::all() {
        for rows in [1, 2, 3, 6] {
            let (cols, outputs) = (256 * rng.within(1..=3), rng.within(1..=70));
            let (w, x) = (Encoded::random(format, outputs, cols, &mut rng), rng.values(rows * cols, 1.0));
            let mut first: [Option<Vec<f32>>; 2] = [None, None];
            for (i, rig) in rigs().iter().enumerate() {
                let b = &*rig.backend;
                let mut out = output(b, rows, outputs);
                b.linear(&tensor(b, rows, cols, &x), &w.weight(rig), None, &mut out).unwrap();
                let got = values(b, &out);
                let want = first[i % 2].get_or_insert_with(|| got.clone());
                same(rig, &format!("{format} [{rows}, {cols}] -> {outputs}"), &got, want);
            }
        }
    }
}

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
