//! Matrix-vector and matrix-matrix products against the roofs of the machine, measured in the same run.
//!
//! `cargo bench -p tidemill-kernels --bench products [-- <part of a name>]`

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use files::{Format, ScaleType};
use tidemill_kernels::buffer::{Tensor, View, Weight};
use tidemill_kernels::cpu::{Cpu, CpuOptions, read_all};
use tidemill_kernels::ops::{Backend, ExpertBatch, MlpWeights, Precision, RoutedRow};

/// Bytes of weights: larger than a last-level cache, of which some have 300 MiB.
const WEIGHT_BYTES: usize = 512 << 20;
const COLS: usize = 2048;

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), precision: Precision::Fast }).unwrap()
}

fn formats() -> Vec<Format> {
    let affine = |bits, group| Format::Affine { bits, group, scale: ScaleType::BF16 };
    let mut all = vec![affine(4, 64), affine(4, 32), affine(8, 64), affine(2, 64), affine(6, 64)];
    all.extend(Format::PLAIN);
    all
}

/// One encoded row.
fn row(format: Format, cols: usize) -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..cols).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1).collect();
    files::quant::encode(format, &values).unwrap()
}

/// A weight of about `bytes` bytes.
fn weight(cpu: &Cpu, format: Format, bytes: usize) -> Weight {
    let row_bytes = row(format, COLS).iter().map(Vec::len).sum::<usize>();
    weight_of(cpu, format, bytes / row_bytes / 64 * 64, COLS)
}

/// One row, repeated.
fn weight_of(cpu: &Cpu, format: Format, rows: usize, cols: usize) -> Weight {
    weights_of(cpu, format, rows, cols, 1).remove(0)
}

/// Several such matrices side by side in one buffer, as in a slab: memory in small buffers comes in small pages.
fn weights_of(cpu: &Cpu, format: Format, rows: usize, cols: usize, count: usize) -> Vec<Weight> {
    let parts = row(format, cols);
    let filled = parts.iter().map(|part| {
        let buffer = cpu.alloc_shared(count * rows * part.len()).unwrap();
        let start = buffer.host().unwrap().as_ptr();
        for row in 0..count * rows {
            // SAFETY: fresh memory of that size, which nobody else knows.
            unsafe { start.add(row * part.len()).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        }
        (buffer, rows * part.len())
    });
    let filled: Vec<_> = filled.collect();
    let weight = |i| {
        // SAFETY: nobody writes it any more.
        let view = |(buffer, bytes): &(_, usize)| unsafe { View::new(buffer, i * bytes..(i + 1) * bytes) };
        let views = filled.iter().map(|part| view(part).unwrap()).collect();
        Weight::new(format, rows, cols, views).unwrap()
    };
    (0..count).map(weight).collect()
}

fn tensor(cpu: &Cpu, rows: usize, cols: usize) -> Tensor {
    let mut tensor = Tensor::new(cpu.alloc(rows * cols * 4).unwrap(), rows, cols).unwrap();
    for (i, x) in tensor.host_mut().unwrap().iter_mut().enumerate() {
        *x = (i % 97) as f32 / 97.0 - 0.5;
    }
    tensor
}

/// The read roof: sums of all words, on as many threads.
fn read_roof(c: &mut Criterion) {
    let data = vec![1; WEIGHT_BYTES / 4];
    for threads in [1, 2] {
        let mut group = c.benchmark_group("roof read");
        group.throughput(Throughput::Bytes(WEIGHT_BYTES as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| read_all(&data, threads));
        });
        group.finish();
    }
}

/// Integer dots that nothing slows down: instructions in so many independent chains.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

/// `CHAINS * rounds` instructions of 128 operations each.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dots(rounds: usize) -> i32 {
    use std::arch::x86_64::*;
    let (a, b) = std::hint::black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(1)));
    let mut sums = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_epi32(sum)).fold(0, i32::wrapping_add)
}

/// The roof of products in AVX-512 VNNI, the only instruction set that this bench knows one for.
#[cfg(target_arch = "x86_64")]
fn dot_roof(c: &mut Criterion) {
    const ROUNDS: usize = 1 << 18;
    if !is_x86_feature_detected!("avx512vnni") {
        return eprintln!("no roof of integer dots: this processor has no AVX-512 VNNI");
    }
    for threads in [1, 2] {
        let mut group = c.benchmark_group("roof dots");
        group.throughput(Throughput::Elements((threads * ROUNDS * CHAINS * 128) as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                std::thread::scope(|s| {
                    // SAFETY: the processor has the features.
                    let others: Vec<_> = (1..threads).map(|_| s.spawn(|| unsafe { dots(ROUNDS) })).collect();
                    // SAFETY: as above.
                    let own = unsafe { dots(ROUNDS) };
                    others.into_iter().map(|t| t.join().unwrap()).fold(own, i32::wrapping_add)
                })
            });
        });
        group.finish();
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn dot_roof(_: &mut Criterion) {
    eprintln!("no roof of integer dots: this bench knows only that of AVX-512 VNNI");
}

/// Decode: one row of x.
fn matvec(c: &mut Criterion) {
    for threads in [1, 2] {
        let cpu = cpu(threads);
        let mut group = c.benchmark_group(format!("matvec {threads} threads"));
        for format in formats() {
            let w = weight(&cpu, format, WEIGHT_BYTES);
            let (x, mut out) = (tensor(&cpu, 1, COLS), tensor(&cpu, 1, w.rows()));
            group.throughput(Throughput::Bytes(w.bytes() as u64));
            group.bench_function(BenchmarkId::from_parameter(format), |b| {
                b.iter(|| cpu.linear(&x, &w, None, &mut out).unwrap());
            });
        }
        group.finish();
    }
}

/// Prefill: batches of rows; elements are operations (two a weight and row).
fn matmul(c: &mut Criterion) {
    for threads in [1, 2] {
        let cpu = cpu(threads);
        for rows in [1, 2, 3, 4, 8, 16, 64, 512] {
            let mut group = c.benchmark_group(format!("matmul {threads} threads {rows} rows"));
            for format in formats() {
                let w = weight(&cpu, format, 4 << 20);
                let (x, mut out) = (tensor(&cpu, rows, COLS), tensor(&cpu, rows, w.rows()));
                group.throughput(Throughput::Elements((2 * rows * w.rows() * COLS) as u64));
                group.bench_function(BenchmarkId::from_parameter(format), |b| {
                    b.iter(|| cpu.linear(&x, &w, None, &mut out).unwrap());
                });
            }
            group.finish();
        }
    }
}

/// Values of a hidden state, and inside an expert; experts of a layer, and those that a token uses.
const MOE: [usize; 4] = [1024, 512, 64, 8];

/// The routed experts of a layer: bytes for one token, whose experts are others each time; operations for prompts.
fn experts(c: &mut Criterion) {
    let [hidden, inner, count, used] = MOE;
    for threads in [1, 2] {
        let cpu = cpu(threads);
        for format in [formats()[0], Format::Q4_0, Format::Q4K] {
            let gates = weights_of(&cpu, format, inner, hidden, 2 * count);
            let downs = weights_of(&cpu, format, hidden, inner, count);
            let experts = gates.chunks(2).zip(downs);
            let expert =
                |(g, down): (&[Weight], _)| MlpWeights::new(g[0].clone(), g[1].clone(), down).unwrap();
            let all: Vec<MlpWeights> = experts.map(expert).collect();
            let bytes = all[0].gate.bytes() + all[0].up.bytes() + all[0].down.bytes();
            for each in [0, 1, 4, 16, 64] {
                // No rows for all stand for one token.
                let (tokens, chosen, rows) = if each == 0 { (1, used, 1) } else { (each, count, each) };
                let (x, mut parts) = (tensor(&cpu, tokens, hidden), tensor(&cpu, chosen * rows, hidden));
                let rows_of = |e: usize| -> Vec<RoutedRow> {
                    (0..rows).map(|r| RoutedRow { row: r as u32, part: (e * rows + r) as u32 }).collect()
                };
                let routed: Vec<_> = (0..chosen).map(rows_of).collect();
                let mut group = c.benchmark_group(format!("experts {threads} threads {tokens} rows"));
                group.throughput(match each {
                    0 => Throughput::Bytes((used * bytes) as u64),
                    _ => Throughput::Elements((6 * chosen * rows * hidden * inner) as u64),
                });
                let mut first = 0;
                group.bench_function(BenchmarkId::new(format!("{chosen} experts"), format), |b| {
                    b.iter(|| {
                        first = (first + 13) % count;
                        let batches: Vec<_> = routed
                            .iter()
                            .enumerate()
                            .map(|(e, rows)| ExpertBatch { weights: &all[(first + 5 * e) % count], rows })
                            .collect();
                        cpu.expert_mlp(&x, &batches, &mut parts).unwrap();
                    });
                });
                group.finish();
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(15);
    targets = read_roof, dot_roof, matvec, experts, matmul
}
criterion_main!(benches);
