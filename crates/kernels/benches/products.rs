//! Matrix-vector and matrix-matrix products against the roofs of the machine, measured in the same run.
//!
//! `cargo bench -p tidemill-kernels --bench products [-- <part of a name>]`

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use files::{Format, ScaleType};
use tidemill_kernels::buffer::{Tensor, View, Weight};
use tidemill_kernels::cpu::{Cpu, CpuOptions};
use tidemill_kernels::ops::{Backend, Precision};

/// Bytes of weights: larger than a last-level cache.
const WEIGHT_BYTES: usize = 192 << 20;
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

/// A weight of about `bytes` bytes: one encoded row, repeated.
fn weight(cpu: &Cpu, format: Format, bytes: usize) -> Weight {
    let values: Vec<f32> = (0..COLS).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1).collect();
    let parts = files::quant::encode(format, &values).unwrap();
    let rows = bytes / parts.iter().map(Vec::len).sum::<usize>() / 64 * 64;
    let views = parts
        .iter()
        .map(|part| {
            let buffer = cpu.alloc_shared(rows * part.len()).unwrap();
            let start = buffer.host().unwrap().as_ptr();
            for row in 0..rows {
                // SAFETY: fresh memory of that size, which nobody else knows.
                unsafe { start.add(row * part.len()).copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            }
            // SAFETY: nobody writes it any more.
            unsafe { View::new(&buffer, 0..rows * part.len()) }.unwrap()
        })
        .collect();
    Weight::new(format, rows, COLS, views).unwrap()
}

fn tensor(cpu: &Cpu, rows: usize, cols: usize) -> Tensor {
    let mut tensor = Tensor::new(cpu.alloc(rows * cols * 4).unwrap(), rows, cols).unwrap();
    for (i, x) in tensor.host_mut().unwrap().iter_mut().enumerate() {
        *x = (i % 97) as f32 / 97.0 - 0.5;
    }
    tensor
}

/// The read roof: sums of all dwords, on as many threads.
fn read_roof(c: &mut Criterion) {
    let data = vec![1u64; WEIGHT_BYTES / 8];
    for threads in [1, 2] {
        let mut group = c.benchmark_group("roof read");
        group.throughput(Throughput::Bytes(WEIGHT_BYTES as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                std::thread::scope(|s| {
                    let run = |part: &[u64]| part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
                    let mut parts = data.chunks(data.len().div_ceil(threads));
                    let own = parts.next().unwrap();
                    let others: Vec<_> = parts.map(|part| s.spawn(move || run(part))).collect();
                    run(own) + others.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
                })
            });
        });
        group.finish();
    }
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(800))
        .sample_size(15);
    targets = read_roof, matvec, matmul
}
criterion_main!(benches);
