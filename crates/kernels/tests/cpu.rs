//! The CPU backend against the reference and against itself, for every instruction set that this machine has.

use crate::common;

use crate::common::attention::{Asked, Case, FORMATS, LONG, SEVERAL};
use crate::common::{Encoded, Rig, Rng, output, same, tensor, values};
use files::Format;
#[cfg(unix)]
use tidemill_kernels::buffer::{Buffer, DeviceMemory, View, Weight};
use tidemill_kernels::cpu::{Cpu, CpuOptions, Isa};
use tidemill_kernels::ops::{ExpertBatch, MlpWeights, Precision, RoutedRow};

fn rigs() -> Vec<Rig> {
    rigs_of(|cpu| cpu)
}

fn rigs_of(change: impl Fn(Cpu) -> Cpu) -> Vec<Rig> {
    let mut rigs = Vec::new();
    for (i, isa) in Isa::available().into_iter().enumerate() {
        for precision in [Precision::Exact, Precision::Fast] {
            let threads = 1 + i % 2;
            let backend = Box::new(change(
                Cpu::with_isa(CpuOptions { threads: Some(threads), precision }, isa).unwrap(),
            ));
            let name = format!("{} {precision:?}, {threads} threads", isa.name());
            rigs.push(Rig { name, backend, batch_invariant: true, align: 1, formats: Format::all() });
        }
    }
    rigs
}

conformance!(rigs, rigs);

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let mut rng = Rng::new(31);
    // Whatever a processor prefers: panels in ones and, as some of x86 do, in twos or by matrix tiles.
    let ways: &[(bool, bool)] = match cfg!(target_arch = "x86_64") {
        true => &[(false, false), (true, false), (false, true)],
        false => &[(false, false)],
    };
    let rigs: Vec<Rig> =
        ways.iter().flat_map(|(pairs, tiles)| rigs_of(|cpu| cpu.with_ways(*pairs, *tiles))).collect();
    for format in Format::all() {
        for rows in [1, 2, 3, 6, 10, 11, 37] {
            let (cols, outputs) = (256 * rng.within(1..=3), rng.within(1..=70));
            let (w, x) = (Encoded::random(format, outputs, cols, &mut rng), rng.activations(rows, cols));
            let mut first: [Option<Vec<f32>>; 2] = [None, None];
            for (i, rig) in rigs.iter().enumerate() {
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

/// Many rows, of experts that got every other one or all: by matrix tiles, where this machine has them, and without.
#[test]
fn many_scattered_rows_of_k_quants_give_the_same_bits() {
    const HIDDEN: usize = 768;
    const INNER: usize = 512;
    let mut rng = Rng::new(33);
    let options = || CpuOptions { threads: Some(2), precision: Precision::Fast };
    let rigs = [false, true].map(|tiles| {
        let backend = Box::new(Cpu::new(options()).unwrap().with_ways(false, tiles));
        Rig {
            name: format!("tiles: {tiles}"),
            backend,
            batch_invariant: true,
            align: 1,
            formats: Format::all(),
        }
    });
    for format in [Format::Q2K, Format::Q3K, Format::Q4K, Format::Q5K, Format::Q6K] {
        // Once more than are multiplied at a time.
        let tokens = if format == Format::Q4K { 530 } else { rng.within(130..=150) };
        let shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)];
        let mlp = shapes.map(|(rows, cols)| Encoded::random(format, rows, cols, &mut rng));
        let x = rng.activations(tokens, HIDDEN);
        // Parts of the first expert come before those of the second.
        let half = tokens.div_ceil(2);
        let row = |row: usize, part: usize| RoutedRow { row: row as u32, part: part as u32 };
        let routed: [Vec<RoutedRow>; 2] =
            [(0..half).map(|i| row(2 * i, i)).collect(), (0..tokens).map(|i| row(i, half + i)).collect()];
        let [want, got] = rigs.each_ref().map(|rig| {
            let b = &*rig.backend;
            let [gate, up, down] = mlp.each_ref().map(|w| w.weight(rig));
            let weights = MlpWeights::new(gate, up, down).unwrap();
            let batches = routed.each_ref().map(|rows| ExpertBatch { weights: &weights, rows });
            let mut parts = output(b, half + tokens, HIDDEN);
            b.expert_mlp(&tensor(b, tokens, HIDDEN, &x), &batches, &mut parts).unwrap();
            values(b, &parts)
        });
        same(&rigs[1], &format!("{format}, {tokens} rows"), &got, &want);
    }
}

/// The same bits whatever the instructions and the number of threads.
#[test]
fn attention_agrees_on_all_instruction_sets_and_threads() {
    let rig = |isa: Isa, threads| {
        let options = CpuOptions { threads: Some(threads), precision: Precision::Fast };
        let backend = Box::new(Cpu::with_isa(options, isa).unwrap());
        Rig {
            name: format!("{}, {threads} threads", isa.name()),
            backend,
            batch_invariant: true,
            align: 1,
            formats: Format::all(),
        }
    };
    let mut rng = Rng::new(31);
    let single = LONG.into_iter().chain([(70, 40)]).map(|(history, rows)| vec![(history, rows, 0)]);
    let several = SEVERAL.into_iter().map(<[_]>::to_vec);
    let all: Vec<Vec<Asked>> = single.chain(several).collect();
    for format in FORMATS {
        for asked in &all {
            let case = Case::random(&mut rng, &Rig::reference(), format, asked);
            let plan = case.work.plan(&mut rng);
            let want = case.run(&rig(Isa::Portable, 1), &plan);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let rig = rig(isa, threads);
                    for (got, want) in case.run(&rig, &plan).iter().zip(&want) {
                        same(&rig, &case.to_string(), got, want);
                    }
                }
            }
        }
    }
}

/// Memory whose end is followed by pages that nobody may read.
#[cfg(unix)]
struct Guarded {
    start: std::ptr::NonNull<u8>,
    mapped: usize,
    bytes: usize,
}

#[cfg(unix)]
impl Guarded {
    const GUARD: usize = 1 << 16;

    fn new(content: &[u8]) -> Self {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
        let readable = content.len().next_multiple_of(Self::GUARD);
        let mapped = readable + Self::GUARD;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping, whose last part is made unreadable before anybody knows it.
        let start = unsafe {
            let start = mmap_anonymous(std::ptr::null_mut(), mapped, access, MapFlags::PRIVATE).unwrap();
            mprotect(start.byte_add(readable), Self::GUARD, MprotectFlags::empty()).unwrap();
            start.cast::<u8>()
        };
        // SAFETY: the content ends where the readable part does.
        unsafe {
            start.add(readable - content.len()).copy_from_nonoverlapping(content.as_ptr(), content.len());
        }
        Self { start: std::ptr::NonNull::new(start).unwrap(), mapped, bytes: content.len() }
    }
}

#[cfg(unix)]
impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped; the handles that could reach it are gone.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped).unwrap() };
    }
}

// SAFETY: the memory belongs to this value alone and is constant.
#[cfg(unix)]
unsafe impl Send for Guarded {}
// SAFETY: as above.
#[cfg(unix)]
unsafe impl Sync for Guarded {}

#[cfg(unix)]
impl DeviceMemory for Guarded {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn host(&self) -> Option<std::ptr::NonNull<u8>> {
        // SAFETY: the content ends before the guard.
        Some(unsafe { self.start.add(self.mapped - Self::GUARD - self.bytes) })
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

/// Unpackers read whole vectors of rows; the last ones of a weight must not be looked for behind it.
#[test]
#[cfg(unix)]
fn nothing_behind_a_weight_is_read() {
    let mut rng = Rng::new(77);
    let rigs = rigs();
    for format in Format::all() {
        for cols in [32, 64, 96, 128, 256, 512, 1024] {
            if format.row_bytes(0, cols).is_err() {
                continue;
            }
            for outputs in [1, 16, 20, 64] {
                let (w, x) = (Encoded::random(format, outputs, cols, &mut rng), rng.values(3 * cols, 1.0));
                let views = w.parts.iter().map(|part| {
                    let buffer = Buffer::new(Guarded::new(part));
                    // SAFETY: nobody writes it.
                    unsafe { View::new(&buffer, 0..part.len()) }.unwrap()
                });
                let guarded = Weight::new(format, outputs, cols, views.collect()).unwrap();
                for rig in &rigs {
                    for rows in [1, 3] {
                        let b = &*rig.backend;
                        let x = tensor(b, rows, cols, &x[..rows * cols]);
                        let (mut out, mut want) = (output(b, rows, outputs), output(b, rows, outputs));
                        b.linear(&x, &guarded, None, &mut out).unwrap();
                        b.linear(&x, &w.weight(rig), None, &mut want).unwrap();
                        same(
                            rig,
                            &format!("{format} [{outputs}, {cols}]"),
                            &values(b, &out),
                            &values(b, &want),
                        );
                    }
                }
            }
        }
    }
}
