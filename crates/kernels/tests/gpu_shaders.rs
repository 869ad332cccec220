//! Every shader in every format is valid WGSL, translates to Metal, type-checks there, and gives the reference's answers: the
//! part of Apple's support that needs no Mac. `metal/mod.rs` says how.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::common::{self, Rig};
use crate::metal::clang::{Clang, Named, made};
use crate::metal::run::{Mac, Math};
use crate::metal::texts::{self, Shader};
use files::{Format, ScaleType};
use tidemill_kernels::gpu::source::KERNELS;
use tidemill_kernels::gpu::{Gpu, GpuOptions};
use tidemill_kernels::ops::{Backend as _, Precision};
use tidemill_kernels::selftest;

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
        named.len(),
        most.len(),
        largest.1,
        largest.0,
        report.display(),
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
        wrong(
            "a pointer of another space",
            "kernel void",
            "float h(threadgroup float* at) { return at[0]; }\nfloat i(device float* at) { return h(at); }\nkernel void",
        ),
        wrong(
            "a float where a vector is",
            "kernel void",
            "metal::float4 j(metal::float3 v) { return v; }\nkernel void",
        ),
        wrong(
            "five values of four",
            "kernel void",
            "metal::float4 k(metal::float4 v) { return metal::float4(v, 1.0); }\nkernel void",
        ),
    ];
    let found: BTreeSet<String> = clang.check(&texts, true).into_iter().map(|(name, _)| name).collect();
    let wanted: BTreeSet<String> = texts[1..].iter().map(|named| named.name.clone()).collect();
    assert_eq!(found, wanted);
    // naga writes matrices of 16 x 16 and loads of matrices from vectors, which Metal does not have.
    let sixteen = texts::all().into_iter().find(|s| s.constant("MATRIX") == 16).expect("Vulkan's");
    let text = sixteen.msl(&sixteen.parse(), (3, 2));
    assert!(text.contains("simdgroup_half16x16"), "{text}");
    let said = clang.check(&[Named { name: sixteen.name(), text }], true);
    assert!(said.iter().any(|(_, said)| said.contains("simdgroup_half16x16")), "{said:?}");
}

/// A GPU that is a Mac as far as our code can tell; nothing where there is no clang or no adapter to lend its memory.
fn mac(precision: Precision, subgroups: bool, make: impl FnOnce(Clang) -> Mac) -> Option<Gpu> {
    let clang = Clang::find()?;
    if !common::has_gpu() {
        return None;
    }
    let options = GpuOptions { precision, subgroups, share: Some(false), ..GpuOptions::default() };
    Some(Gpu::with_stand_in(&options, Box::new(make(clang))).unwrap())
}

const BARRIER: &str = "metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);";

/// A change of a text, and what it is in.
type Plant = fn(&str) -> String;

/// What a norm and then a product are on a Mac whose texts `plant` changed; its answers, or what was wrong.
fn planted(math: Math, plant: Plant) -> Option<Result<Vec<f32>, String>> {
    let gpu = mac(Precision::Exact, true, |clang| {
        Mac::new(clang, math, false).with_change(move |_, text| plant(&text))
    })?;
    let (rows, cols, outputs) = (3, 256, 40);
    let mut rng = common::Rng::new(1);
    let x = common::tensor(&gpu, rows, cols, &rng.values(rows * cols, 1.0));
    let weight = common::tensor(&gpu, 1, cols, &rng.values(cols, 1.0));
    let matrix = common::Encoded::random(Format::Q4_0, outputs, cols, &mut rng);
    let (mut normed, mut out) = (common::output(&gpu, rows, cols), common::output(&gpu, rows, outputs));
    let rig = rig(gpu, vec![Format::Q4_0], 1);
    let ops = rig.backend.rms_norm(&x, &weight, 1e-6, &mut normed);
    let ops = ops.and_then(|()| rig.backend.linear(&normed, &matrix.weight(&rig), None, &mut out));
    Some(ops.map(|()| common::values(&*rig.backend, &out)).map_err(|error| error.to_string()))
}

fn rig(gpu: Gpu, formats: Vec<Format>, align: usize) -> Rig {
    Rig { name: "a Mac".into(), backend: Box::new(gpu), batch_invariant: false, align, formats }
}

/// Replaces the first of what follows a function's name.
fn within(text: &str, function: &str, from: &str, to: &str) -> String {
    let Some((before, after)) = text.split_once(function) else { return text.into() };
    format!("{before}{function}{}", after.replacen(from, to, 1))
}

#[test]
fn planted_mistakes_of_threads_are_found() {
    let Some(good) = planted(Math::Exact, str::to_owned) else { return };
    let good = good.unwrap();
    let said = |plant: Plant| planted(Math::Exact, plant).expect("a clang").expect_err("a mistake");
    let missing = said(|text| within(text, "float workgroup_sum(", BARRIER, ""));
    assert!(missing.contains("rms_norm") && missing.contains("a race in threadgroup memory 0"), "{missing}");
    let divergent = said(|text| {
        let some = format!("{BARRIER} if (subgroup.x != 3u) {{ {BARRIER} }}");
        within(text, "float workgroup_sum(", BARRIER, &some)
    });
    assert!(divergent.contains("a barrier that 480 of 512 threads reach"), "{divergent}");
    let outside = said(|text| within(text, "kernel void main_(", "    out[", "    out[240u + "));
    assert!(outside.contains("a write out of bounds"), "{outside}");
    let overlapping = said(|text| within(text, "kernel void main_(", "    out[", "    out[0u * "));
    assert!(overlapping.contains("a race in buffer 3"), "{overlapping}");
    // The sum with another lane than the neighbour's.
    for math in [Math::Exact, Math::Fast] {
        let plant: Plant = |text| within(text, " lanes_sums(", "simd_shuffle_xor(", "simd_shuffle(");
        let wrong = planted(math, plant).expect("a clang").unwrap();
        let far = wrong.iter().zip(&good).filter(|(a, b)| (*a - *b).abs() >= 1e-3 || a.is_nan()).count();
        assert!(far > good.len() / 2, "{math:?}: {far} of {} values are off", good.len());
        let right = planted(math, str::to_owned).expect("a clang").unwrap();
        assert!(right.iter().zip(&good).all(|(a, b)| (a - b).abs() < 1e-5), "{math:?}");
    }
}

/// Metal's matrix instructions are used where they agree with the reference, and only there.
#[test]
fn matrix_instructions_that_disagree_are_not_used() {
    let features = |plant: Plant| {
        let gpu = mac(Precision::Fast, true, |clang| {
            Mac::new(clang, Math::Fast, true).with_change(move |_, text| plant(&text))
        })?;
        let features = gpu.features();
        let of = |name: &str| {
            let found = features.iter().find(|(known, _)| *known == name);
            found.map_or_else(String::new, |(_, value)| value.clone())
        };
        let answer = (of("matrix_instructions"), of("note"));
        common::dense::many_rows(&rig(gpu, vec![Format::Q4_0], 1));
        Some(answer)
    };
    let Some(right) = features(str::to_owned) else { return };
    assert_eq!(right, ("8 x 8".into(), String::new()));
    let wrong = features(|text| text.replace("accumulate(d,a,b,c)", "accumulate(d,b,a,c)")).expect("a clang");
    assert_eq!(wrong.0, "none");
    assert!(wrong.1.starts_with("matrix instructions are not used: "), "{}", wrong.1);
    let broken = features(|text| text.replace("accumulate(d,a,b,c)", "accumulate(d,a,b)")).expect("a clang");
    assert_eq!(broken.0, "none");
    assert!(broken.1.contains("matmul_units"), "{}", broken.1);
}

/// What ran on a Mac, as lines of the report.
type Ran = Arc<Mutex<BTreeMap<String, usize>>>;

/// Says what ran, and fails if a kernel that Metal gets did not.
fn report(file: &str, ran: &[(String, Ran)]) {
    let mut kernels = BTreeSet::new();
    let (mut text, mut shaders, mut dispatches) = (String::new(), 0, 0);
    for (set, ran) in ran {
        for (shader, count) in &*ran.lock().unwrap_or_else(PoisonError::into_inner) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{set}: {count:6} {shader}");
            kernels.insert(shader.split(' ').next().unwrap_or(shader).to_owned());
            shaders += 1;
            dispatches += count;
        }
    }
    let path = made("metal-report").join(file);
    std::fs::write(&path, text).unwrap();
    // `stream` measures memory and `tally` counts passes, and neither is an op; products of integers are Vulkan's.
    let missing: Vec<&str> = KERNELS
        .iter()
        .map(|k| k.name)
        .filter(|k| !kernels.contains(*k) && !["stream", "tally", "integers"].contains(k))
        .collect();
    assert!(missing.is_empty(), "did not run: {missing:?}");
    println!(
        "metal: {} kernels ran in {} sets, {shaders} texts, {dispatches} dispatches; list: {}",
        kernels.len(),
        ran.len(),
        path.display(),
    );
}

/// A set of features: how texts are compiled, what rounds, and whether there are subgroups.
type Set = (Math, Precision, bool);

/// Every op once, in one format, against the reference: with exact math and subgroups, with fast math and without.
#[test]
fn metal_texts_give_the_references_answers() {
    let format = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };
    let sets: [Set; 3] = [
        (Math::Exact, Precision::Exact, true),
        (Math::Fast, Precision::Exact, false),
        (Math::Fast, Precision::Fast, true),
    ];
    let ran = Mutex::new(Vec::new());
    on_all_threads(&sets, |&(math, precision, subgroups)| {
        let mut counts = Ran::default();
        let gpu = mac(precision, subgroups, |clang| {
            let mac = Mac::new(clang, math, true);
            counts = mac.ran.clone();
            mac
        });
        let Some(gpu) = gpu else { return };
        let name = format!("{math:?} math, {precision:?}, subgroups {subgroups}");
        if precision == Precision::Fast {
            let rig = rig(gpu, vec![format], 16);
            common::dense::many_rows(&rig);
            common::experts::many_rows(&rig);
        } else {
            let report = selftest::examine_open(&gpu, &[format]).unwrap();
            assert!(report.failed.is_empty(), "{name}: {:#?}", report.failed);
            println!(
                "metal: {name}: {} cases, worst {:.1e} in {}",
                report.cases, report.worst.0, report.worst.1
            );
            let rig = rig(gpu, vec![format], 1);
            common::attention::eight_bit_bytes(&rig);
            common::dense::linears(&rig);
            common::recurrent::delta_rule(&rig);
        }
        ran.lock().unwrap_or_else(PoisonError::into_inner).push((name, counts));
    });
    let ran = held(ran);
    if ran.len() == sets.len() {
        report("ran.txt", &ran);
    }
}

/// The whole conformance harness on a Mac, with functions as inaccurate as Metal permits too; each text type-checked by itself.
/// Half an hour: `cargo test -p tidemill-kernels --test it -- --ignored --nocapture metal_soak`.
#[test]
#[ignore = "half an hour; a part of the soak"]
fn metal_soak() {
    let Some(clang) = Clang::find() else { return };
    let named: Vec<Named> = metal_texts().into_iter().map(|(named, _)| named).collect();
    let bad = clang.check(&named, false);
    assert!(bad.is_empty(), "{bad:#?}");
    println!("metal: {} texts type-check one by one", named.len());
    // Of the affine ones every width, and every size of groups and kind of scales once.
    let once = |format: &Format| match *format {
        Format::Affine { bits, group, scale } => {
            group == 64 && scale == ScaleType::BF16 || bits == 4 && (group == 64 || scale == ScaleType::BF16)
        }
        _ => true,
    };
    let formats: Vec<Format> = Format::all().into_iter().filter(once).collect();
    let ran = Mutex::new(Vec::new());
    let mut jobs: Vec<(Set, usize, &[(&str, Op)])> = Vec::new();
    for math in [Math::Exact, Math::Fast, Math::Worst] {
        for (subgroups, align) in [(true, 1), (true, 16), (false, 16)] {
            let ops = if align == 1 || !subgroups { &OPS[..] } else { &OPS[..OPS_WITH_WEIGHTS] };
            jobs.extend(ops.chunks(4).map(|ops| ((math, Precision::Exact, subgroups), align, ops)));
        }
        jobs.extend(ON_MATRICES.chunks(1).map(|ops| ((math, Precision::Fast, true), 16, ops)));
    }
    on_all_threads(&jobs, |&((math, precision, subgroups), align, ops)| {
        let mut counts = Ran::default();
        let gpu = mac(precision, subgroups, |clang| {
            let mac = Mac::new(clang, math, true);
            counts = mac.ran.clone();
            mac
        });
        let Some(gpu) = gpu else { return };
        let mut rig = rig(gpu, formats.clone(), align);
        rig.name = format!("{math:?} math, {precision:?}, subgroups {subgroups}, align {align}");
        for (name, op) in ops {
            println!("metal: {}: {name}", rig.name);
            op(&rig);
        }
        ran.lock().unwrap_or_else(PoisonError::into_inner).push((rig.name.clone(), counts));
    });
    report("soak.txt", &held(ran));
}

type Op = fn(&Rig);

/// Ops that load weights come first.
const OPS_WITH_WEIGHTS: usize = 8;
const OPS: [(&str, Op); 32] = [
    ("linear", common::dense::linear),
    ("linears", common::dense::linears),
    ("linears_conv", common::recurrent::linears_conv),
    ("mlp", common::experts::mlp),
    ("expert_mlp", common::experts::expert_mlp),
    ("route", common::experts::route),
    ("routed_mlp", common::experts::routed_mlp),
    ("routed_layer", common::experts::routed_layer),
    ("copies", common::copies::copies),
    ("copies_of_ranges", common::copies::copies_of_ranges),
    ("embed", common::dense::embed),
    ("rms_norm", common::dense::rms_norm),
    ("add", common::dense::add),
    ("add_norm", common::dense::add_norm),
    ("gather_rows", common::dense::gather_rows),
    ("best", common::dense::best),
    ("gated_norm", common::dense::gated_norm),
    ("norm_rope", common::rope::norm_rope),
    ("norm_rope_append", common::rope::norm_rope_append),
    ("attention", common::attention::attention),
    ("attention_of_several", common::attention::attention_of_several),
    ("long_attention", common::attention::long_attention),
    ("eight_bit_cache", common::attention::eight_bit_cache),
    ("eight_bit_bytes", common::attention::eight_bit_bytes),
    ("short_conv", common::recurrent::short_conv),
    ("delta_rule", common::recurrent::delta_rule),
    ("gated_delta_rule", common::recurrent::gated_delta_rule),
    ("combine", common::experts::combine),
    ("windows", common::experts::windows),
    ("combine_norm", common::experts::combine_norm),
    ("tokens", common::errors::tokens),
    ("nan_routes", common::errors::nan_routes),
];
const ON_MATRICES: [(&str, Op); 3] = [
    ("many_rows", common::dense::many_rows),
    ("many_rows of experts", common::experts::many_rows),
    ("routed_mlp", common::experts::routed_mlp),
];
