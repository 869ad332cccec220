//! Token mixers and small ops against the roofs of the machine, measured in the same run: bytes of cache or state
//! against the read roof, operations against the f32 multiply-add roof.
//!
//! `cargo bench -p tidemill-kernels --bench mixers [-- <part of a name>]`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use files::Format;
use tidemill_kernels::buffer::{Tensor, View, Weight};
use tidemill_kernels::cpu::{Cpu, CpuOptions};
use tidemill_kernels::ops::{
    AttentionSpec, Backend, DeltaInput, DeltaSpec, KvCache, KvFormat, PAGE, Precision, RopeSpec,
    RouteBuffers, RouteSpec, Segment,
};

/// Bytes that the read roof is measured with: larger than a last-level cache.
const ROOF_BYTES: usize = 192 << 20;

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), precision: Precision::Fast }).unwrap()
}

fn tensor(cpu: &Cpu, rows: usize, cols: usize) -> Tensor {
    let mut tensor = Tensor::new(cpu.alloc((rows * cols * 4).max(4)).unwrap(), rows, cols).unwrap();
    for (i, x) in tensor.host_mut().unwrap().iter_mut().enumerate() {
        *x = (i % 97) as f32 / 97.0 - 0.5;
    }
    tensor
}

/// All rows, of one sequence, in as many pages as it needs.
fn all(rows: usize, position: usize) -> [Segment; 1] {
    let pages = (0..(position + rows).div_ceil(PAGE) as u32).collect();
    [Segment { rows: 0..rows, position, pages, slot: 0 }]
}

/// One row each of several sequences, in whose pages no neighbours follow one another.
fn each(sequences: usize, position: usize) -> Vec<Segment> {
    let own = position / PAGE + 1;
    let pages = |s: usize| (0..own).map(|page| (page * sequences + s) as u32).collect();
    (0..sequences).map(|s| Segment { rows: s..s + 1, position, pages: pages(s), slot: s as u32 }).collect()
}

/// Calls `run` with each of as many equal parts of `data` as there are threads, each on its own thread.
fn on_threads<R: Send + std::iter::Sum>(threads: usize, data: &[u64], run: impl Fn(&[u64]) -> R + Sync) -> R {
    std::thread::scope(|s| {
        let mut parts = data.chunks(data.len().div_ceil(threads));
        let own = parts.next().unwrap();
        let run = &run;
        let others: Vec<_> = parts.map(|part| s.spawn(move || run(part))).collect();
        [run(own)].into_iter().chain(others.into_iter().map(|t| t.join().unwrap())).sum()
    })
}

/// The read roof: sums of all dwords.
fn read_roof(c: &mut Criterion) {
    let data = vec![1u64; ROOF_BYTES / 8];
    for threads in [1, 2] {
        let mut group = c.benchmark_group("roof read");
        group.throughput(Throughput::Bytes(ROOF_BYTES as u64));
        group.bench_function(BenchmarkId::from_parameter(threads), |b| {
            b.iter(|| {
                on_threads(threads, &data, |part| part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)))
            });
        });
        group.finish();
    }
}

/// Makes multiply-adds of vectors in registers.
#[cfg(target_arch = "x86_64")]
macro_rules! multiply_adds {
    ($name:ident, $features:literal, $splat:ident, $fma:ident, $first:ident) => {
        #[target_feature(enable = $features)]
        fn $name(rounds: usize) -> f32 {
            use std::arch::x86_64::{$first, $fma, $splat};
            let (a, b) = ($splat(black_box(0.999)), $splat(black_box(1e-3)));
            let mut sums = [$splat(1.0); 12];
            for _ in 0..black_box(rounds) {
                for sum in &mut sums {
                    *sum = $fma(*sum, a, b);
                }
            }
            sums.iter().map(|s| $first(*s)).sum()
        }
    };
}

#[cfg(target_arch = "x86_64")]
multiply_adds!(eight_lanes, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32);
#[cfg(target_arch = "x86_64")]
multiply_adds!(sixteen_lanes, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32);

/// The roof of multiply-adds; elements are operations, two for each.
#[cfg(target_arch = "x86_64")]
fn multiply_add_roof(c: &mut Criterion) {
    const ROUNDS: usize = 1 << 20;
    let mut group = c.benchmark_group("roof multiply-add");
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        group.throughput(Throughput::Elements((ROUNDS * 12 * 8 * 2) as u64));
        // SAFETY: the features were just detected.
        group.bench_function("8 lanes", |b| b.iter(|| unsafe { eight_lanes(ROUNDS) }));
    }
    if is_x86_feature_detected!("avx512f") {
        group.throughput(Throughput::Elements((ROUNDS * 12 * 16 * 2) as u64));
        // SAFETY: as above.
        group.bench_function("16 lanes", |b| b.iter(|| unsafe { sixteen_lanes(ROUNDS) }));
    }
    group.finish();
}

#[cfg(not(target_arch = "x86_64"))]
fn multiply_add_roof(_: &mut Criterion) {}

/// Heads, KV heads, head size: as in the large hybrids, and as in most dense models.
const HEADS: [(usize, usize, usize); 3] = [(32, 2, 256), (32, 8, 128), (16, 16, 64)];

fn cache(cpu: &Cpu, kv_heads: usize, head_dim: usize, positions: usize, format: KvFormat) -> KvCache {
    let pages = positions.div_ceil(PAGE);
    let bytes = pages * KvCache::page_bytes(kv_heads, head_dim, format) / 2;
    let (keys, values) = (cpu.alloc(bytes).unwrap(), cpu.alloc(bytes).unwrap());
    let mut cache = KvCache { keys, values, kv_heads, head_dim, pages, format };
    let (k, v) = (tensor(cpu, PAGE, kv_heads * head_dim), tensor(cpu, PAGE, kv_heads * head_dim));
    for page in 0..pages as u32 {
        let segment = Segment { rows: 0..PAGE, pages: vec![page], ..Segment::default() };
        cpu.kv_append(&k, &v, &[segment], &mut cache).unwrap();
    }
    cache
}

fn attention_spec(heads: usize, head_dim: usize) -> AttentionSpec {
    AttentionSpec { heads, head_dim, gated: false, scale: 1.0 / (head_dim as f32).sqrt() }
}

/// One row of one sequence, or of each of four, over a long context: bytes of the cache.
fn attention_decode(c: &mut Criterion) {
    for threads in [1, 2] {
        let cpu = cpu(threads);
        for (sequences, positions) in [(1, 1 << 10), (1, 8 << 10), (1, 32 << 10), (4, 2 << 10)] {
            let of = if sequences == 1 { String::new() } else { format!(" of {sequences}") };
            let name = format!("attention decode{of} {threads} threads {positions}");
            let mut group = c.benchmark_group(name);
            for (heads, kv_heads, dim) in HEADS {
                for format in FORMATS {
                    let cache = cache(&cpu, kv_heads, dim, sequences * positions, format);
                    let (q, mut out) =
                        (tensor(&cpu, sequences, heads * dim), tensor(&cpu, sequences, heads * dim));
                    let (segments, spec) = (each(sequences, positions - 1), attention_spec(heads, dim));
                    let bytes = sequences * positions / PAGE * KvCache::page_bytes(kv_heads, dim, format);
                    group.throughput(Throughput::Bytes(bytes as u64));
                    let id = BenchmarkId::new(format!("{heads}x{kv_heads}x{dim}"), format!("{format:?}"));
                    group.bench_function(id, |b| {
                        b.iter(|| cpu.attention(&q, &segments, &cache, &spec, &mut out).unwrap());
                    });
                }
            }
            group.finish();
        }
    }
}

const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

/// 512 rows after 1024 positions: operations (two a multiply-add, keys and values).
fn attention_prefill(c: &mut Criterion) {
    let (rows, before) = (512, 1024);
    for threads in [1, 2] {
        let cpu = cpu(threads);
        let mut group = c.benchmark_group(format!("attention prefill {threads} threads"));
        for (heads, kv_heads, dim) in HEADS {
            for format in FORMATS {
                let cache = cache(&cpu, kv_heads, dim, before + rows, format);
                let (q, mut out) = (tensor(&cpu, rows, heads * dim), tensor(&cpu, rows, heads * dim));
                let (segments, spec) = (all(rows, before), attention_spec(heads, dim));
                let pairs = rows * before + rows * (rows + 1) / 2;
                group.throughput(Throughput::Elements((4 * pairs * heads * dim) as u64));
                let id = BenchmarkId::new(format!("{heads}x{kv_heads}x{dim}"), format!("{format:?}"));
                group.bench_function(id, |b| {
                    b.iter(|| cpu.attention(&q, &segments, &cache, &spec, &mut out).unwrap());
                });
            }
        }
        group.finish();
    }
}

/// The delta rule: bytes of state read and written for one row of each sequence, operations (seven a state value) for
/// many. The state is that of 32 layers, as a model has them, so that one row finds none of it in a cache.
fn delta_rule(c: &mut Criterion) {
    let spec =
        DeltaSpec { key_heads: 16, value_heads: 32, key_head_dim: 128, value_head_dim: 128, tiled: false };
    let values = spec.value_heads * spec.key_head_dim * spec.value_head_dim;
    for threads in [1, 2] {
        let cpu = cpu(threads);
        let mut states: Vec<Tensor> = (0..32).map(|_| tensor(&cpu, 4, values)).collect();
        for (sequences, rows) in [(1, 1), (4, 1), (1, 4), (1, 256)] {
            let all_rows = sequences * rows;
            let qkv = tensor(&cpu, all_rows, spec.channels());
            let (a, b) = (tensor(&cpu, all_rows, spec.value_heads), tensor(&cpu, all_rows, spec.value_heads));
            let mut decay = tensor(&cpu, 1, spec.value_heads);
            decay.host_mut().unwrap().fill(-0.3);
            let dt_bias = tensor(&cpu, 1, spec.value_heads);
            let mut out = tensor(&cpu, all_rows, spec.value_heads * spec.value_head_dim);
            let segments = if rows == 1 { each(sequences, 0) } else { all(rows, 0).to_vec() };
            let input =
                DeltaInput { segments: &segments, qkv: &qkv, a: &a, b: &b, decay: &decay, dt_bias: &dt_bias };
            let mut group = c.benchmark_group(format!("delta rule {threads} threads"));
            group.throughput(match rows {
                1 => Throughput::Bytes((2 * 4 * sequences * values) as u64),
                _ => Throughput::Elements((7 * rows * values) as u64),
            });
            let of = if sequences == 1 { String::new() } else { format!(" of {sequences} sequences") };
            let mut layer = 0;
            group.bench_function(BenchmarkId::from_parameter(format!("{rows} rows{of}")), |bench| {
                bench.iter(|| {
                    layer = (layer + 1) % states.len();
                    cpu.delta_rule(&input, &spec, &mut states[layer], &mut out).unwrap();
                });
            });
            group.finish();
        }
    }
}

/// Norms, rope, the short convolution, appending to the cache: values, in rows of decode and prefill.
fn small_ops(c: &mut Criterion) {
    let cpu = cpu(1);
    for rows in [1, 256] {
        let mut group = c.benchmark_group(format!("small ops {rows} rows"));
        let (x, weight, mut out) =
            (tensor(&cpu, rows, 4096), tensor(&cpu, 1, 4096), tensor(&cpu, rows, 4096));
        group.throughput(Throughput::Elements((rows * 4096) as u64));
        group.bench_function("rms_norm", |b| b.iter(|| cpu.rms_norm(&x, &weight, 1e-6, &mut out).unwrap()));
        // Ops in place run again and again on their own result: factors of one keep it from fading away.
        let (mut head_weight, mut gate) = (tensor(&cpu, 1, 128), tensor(&cpu, rows, 4096));
        head_weight.host_mut().unwrap().fill(1.0);
        gate.host_mut().unwrap().fill(1.25);
        group.bench_function("gated_norm", |b| {
            b.iter(|| cpu.gated_norm(&mut out, &gate, &head_weight, 1e-6).unwrap());
        });
        let spec = RopeSpec {
            heads: 32,
            head_dim: 128,
            head_stride: 128,
            rotary_dim: 128,
            interleaved: false,
            amplitude: 1.0,
        };
        let frequencies = tensor(&cpu, 1, 64);
        group.bench_function("norm_rope", |b| {
            b.iter(|| {
                let norm = Some((&head_weight, 1e-6));
                cpu.norm_rope(&mut out, &all(rows, 5000), &spec, &frequencies, norm).unwrap();
            });
        });
        let (taps, mut state) = (tensor(&cpu, 4096, 4), tensor(&cpu, 1, 3 * 4096));
        group.bench_function("short_conv", |b| {
            b.iter(|| cpu.short_conv(&x, &taps, &all(rows, 0), &mut state, &mut out).unwrap());
        });
        for format in FORMATS {
            let mut cache = cache(&cpu, 32, 128, 512, format);
            group.bench_function(BenchmarkId::new("kv_append", format!("{format:?}")), |b| {
                b.iter(|| cpu.kv_append(&x, &x, &all(rows, 7), &mut cache).unwrap());
            });
        }
        group.finish();
    }
}

/// The router of 512 experts, top 10: rows.
fn route(c: &mut Criterion) {
    let (experts, hidden, spec) = (512, 2048, RouteSpec { top_k: 10, normalise: true });
    let values: Vec<f32> = (0..hidden).map(|i| (i * 7919 % 1009) as f32 / 1009.0 - 0.5).collect();
    for format in [Format::F32, Format::BF16, Format::Q8_0] {
        let row = files::quant::encode(format, &values).unwrap().remove(0);
        let cpu = cpu(1);
        let buffer = cpu.alloc_shared(experts * row.len()).unwrap();
        for e in 0..experts {
            let start = buffer.host().unwrap().as_ptr();
            // SAFETY: fresh memory of that size, which nobody else knows.
            unsafe { start.add(e * row.len()).copy_from_nonoverlapping(row.as_ptr(), row.len()) };
        }
        // SAFETY: nobody writes it any more.
        let view = unsafe { View::new(&buffer, 0..experts * row.len()) }.unwrap();
        let router = Weight::new(format, experts, hidden, vec![view]).unwrap();
        for rows in [1, 64] {
            let x = tensor(&cpu, rows, hidden);
            let mut out = RouteBuffers {
                ids: cpu.alloc(rows * spec.top_k * 4).unwrap(),
                weights: tensor(&cpu, rows, spec.top_k),
            };
            let mut group = c.benchmark_group(format!("route {rows} rows"));
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(BenchmarkId::from_parameter(format), |b| {
                b.iter(|| cpu.route(&x, &router, &spec, &mut out).unwrap());
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .sample_size(10);
    targets = read_roof, multiply_add_roof, attention_decode, attention_prefill, delta_rule, small_ops, route
}
criterion_main!(benches);
