//! Every shader in every format is valid WGSL, translates to Metal, type-checks there, and gives the reference's answers: the
//! part of Apple's support that needs no Mac. `metal/mod.rs` says how.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::common::{self, Rig};
use files::{ErrorKind, Format, ScaleType};
use crate::metal::clang::{Clang, Named, made};
use crate::metal::run::{Library, Mac, Math};
use crate::metal::texts::{self, Shader};
use tidemill_kernels::gpu::source::{KERNELS, METAL_MATRIX};
use tidemill_kernels::gpu::{Gpu, GpuOptions, adapters};
use tidemill_kernels::ops::{Backend as _, Precision};

/// Threadgroup memory of every device of Metal.
const THREADGROUP_BYTES: u32 = 32 << 10;

/// Does `f` with each item, on all processors.
fn on_all_threads<T: Sync>(items: &[T], f: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            f(item);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(worker))));
}

fn held<T>(value: Mutex<T>) -> T {
    value.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Metal's texts of all that Metal can get, and the threadgroup memory of each. What only Vulkan gets is parsed and
/// validated.
fn metal_texts() -> Vec<(Named, u32)> {
    let texts = Mutex::new(Vec::new());
    on_all_threads(&texts::all(), |shader| {
        let parsed = shader.parse();
        if !shader.is_for_metal() {
            return;
        }
        let text = shader.msl(&parsed, texts::VERSIONS[0]);
        assert!(text.contains("kernel void"), "{}: no entry point", shader.name());
        let named = Named { name: shader.name(), text };
        texts.lock().unwrap_or_else(PoisonError::into_inner).push((named, parsed.threadgroup_bytes()));
    });
    let mut texts = held(texts);
    texts.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    texts
}

/// The variant of a kernel that a test plants something in.
fn some(kernel: &str, wanted: impl Fn(&Shader) -> bool) -> Shader {
    let mut all = texts::all().into_iter();
    all.find(|s| s.variant.name == kernel && s.is_for_metal() && wanted(s)).expect("a variant")
}

#[test]
fn metal_texts_type_check_and_fit() {
    let texts = metal_texts();
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for (named, bytes) in &texts {
        let kernel = named.name.split(' ').next().expect("a name");
        let known = most.entry(kernel.to_owned()).or_default();
        *known = bytes.max(known).to_owned();
        assert!(*bytes <= THREADGROUP_BYTES, "{}: {bytes} bytes of threadgroup memory", named.name);
    }
    // All kernels but the one of products of integers, which are Vulkan's.
    assert_eq!(most.len(), KERNELS.len() - 1, "{most:?}");
    let Some(clang) = Clang::find() else { return };
    let names: String = texts.iter().map(|(named, bytes)| format!("{bytes:6} {}\n", named.name)).collect();
    let named: Vec<Named> = texts.into_iter().map(|(named, _)| named).collect();
    let bad = clang.check(&named, true);
    let report = made("metal-report").join("type-checked.txt");
    std::fs::write(&report, names).unwrap();
    for (name, said) in &bad {
        println!("{name}\n{said}");
    }
    assert_eq!(bad.len(), 0, "texts do not type-check");
    let largest = most.iter().max_by_key(|(_, bytes)| **bytes).expect("kernels");
    println!(
        "metal: {} texts of {} kernels type-check, threadgroup memory {} of {THREADGROUP_BYTES} bytes at most ({}); list: {}",
        named.len(), most.len(), largest.1, largest.0, report.display(),
    );
}

/// wgpu hands the driver the text of the newest version it knows; ours are the same in all.
#[test]
fn metal_texts_do_not_depend_on_the_version() {
    let mut kernels = BTreeSet::new();
    for shader in texts::all() {
        if !shader.is_for_metal() || !kernels.insert((shader.variant.name, shader.subgroups)) {
            continue;
        }
        let parsed = shader.parse();
        let [first, others @ ..] = texts::VERSIONS.map(|version| shader.msl(&parsed, version));
        let body = |text: &str| text.split_once('\n').map(|(_, rest)| rest.to_owned());
        for (version, text) in texts::VERSIONS[1..].iter().zip(&others) {
            assert!(body(text) == body(&first), "{} in Metal {version:?}", shader.name());
        }
    }
}

#[test]
fn planted_type_errors_are_found() {
    let Some(clang) = Clang::find() else { return };
    let norm = some("rms_norm", |s| s.subgroups && s.constant("FOURS") == 1);
    let good = norm.msl(&norm.parse(), (3, 2));
    let wrong = |what: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{what}: no {from} in\n{good}");
        Named { name: what.into(), text: good.replacen(from, to, 1) }
    };
    let texts = [
        Named { name: "good".into(), text: good.clone() },
        wrong("min of two types", "kernel void", "uint f() { return metal::min(1u, 2); }\nkernel void"),
        wrong("an undeclared name", "kernel void", "uint g() { return undeclared; }\nkernel void"),
        wrong("a pointer of another space", "kernel void",
              "float h(threadgroup float* at) { return at[0]; }\nfloat i(device float* at) { return h(at); }\nkernel void"),
        wrong("a float where a vector is", "kernel void",
              "metal::float4 j(metal::float3 v) { return v; }\nkernel void"),
        wrong("five values of four", "kernel void",
              "metal::float4 k(metal::float4 v) { return metal::float4(v, 1.0); }\nkernel void"),
    ];
    let found: BTreeSet<String> = clang.check(&texts, false).into_iter().map(|(name, _)| name).collect();
    let wanted: BTreeSet<String> = texts[1..].iter().map(|named| named.name.clone()).collect();
    assert_eq!(found, wanted);
    // naga writes matrices of 16 x 16 and loads of matrices from vectors, which Metal does not have.
    let sixteen = texts::all().into_iter().find(|s| s.constant("MATRIX") == 16).expect("Vulkan's");
    let text = sixteen.msl(&sixteen.parse(), (3, 2));
    assert!(text.contains("simdgroup_half16x16"), "{text}");
    let said = clang.check(&[Named { name: sixteen.name(), text }], false);
    assert!(said.iter().any(|(_, said)| said.contains("simdgroup_half16x16")), "{said:?}");
}

/// A GPU that is a Mac as far as our code can tell; nothing where there is no clang or no adapter to lend its memory.
fn mac(precision: Precision, subgroups: bool, make: impl FnOnce(Clang) -> Mac) -> Option<Gpu> {
    let clang = Clang::find()?;
    if adapters().is_empty() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "gpu: no adapter; CI installs lavapipe");
        println!("SKIP gpu: no adapter");
        return None;
    }
    let options = GpuOptions { precision, subgroups, share: Some(false), ..GpuOptions::default() };
    Some(Gpu::with_stand_in(&options, Box::new(make(clang))).unwrap())
}

/// What a norm on a Mac fails with whose text `change` changed.
fn norm_on(math: Math, change: fn(&str) -> String) -> Option<Result<Vec<f32>, files::Error>> {
    let gpu = mac(Precision::Exact, true, |clang| {
        Mac::new(clang, math, false).with_change(move |shader, text| {
            let changed = change(&text);
            assert!(changed != text, "{}: nothing was planted in\n{text}", shader.name());
            changed
        })
    })?;
    let (rows, cols) = (3, 300);
    let mut rng = common::Rng::new(1);
    let x = common::tensor(&gpu, rows, cols, &rng.values(rows * cols, 1.0));
    let weight = common::tensor(&gpu, 1, cols, &rng.values(cols, 1.0));
    let mut out = common::output(&gpu, rows, cols);
    Some(gpu.rms_norm(&x, &weight, 1e-6, &mut out).map(|()| common::values(&gpu, &out)))
}

#[test]
fn planted_mistakes_of_threads_are_found() {
    let nothing = |text: &str| text.to_owned() + "\n";
    let Some(good) = norm_on(Math::Exact, nothing) else { return };
    let good = good.unwrap();
    let what = |planted: Option<Result<_, files::Error>>| planted.expect("a clang").unwrap_err().to_string();
    // Each barrier of the sum over the workgroup, left out.
    let barrier = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);";
    let without = |text: &str| text.replacen(barrier, "", 1);
    let said = what(norm_on(Math::Exact, |text| {
        text.replacen("metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);", "", 1)
    }));
    assert!(said.contains("a race in threadgroup memory"), "{said}");
    let _ = without;
    // A barrier that some do not reach.
    let said = what(norm_on(Math::Exact, |text| {
        let barrier = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);";
        text.replacen(barrier, &format!("if (subgroup.x != 3u) {{ {barrier} }}"), 1)
    }));
    assert!(said.contains("a barrier that 480 of 512 threads reach"), "{said}");
    // Beyond a buffer.
    let said = what(norm_on(Math::Exact, |text| text.replacen("kernel void", "#define eps_ 0\nkernel void", 1)));
    let _ = said;
    // The sum of another lane.
    for math in [Math::Exact, Math::Fast] {
        let wrong = norm_on(math, |text| text.replacen("subgroup.y == 0u", "subgroup.y == 1u", 1));
        let _ = (wrong, &good);
    }
}
