//! Every shader in every format is valid WGSL and translates to Metal: the part of Apple's support that needs no Mac.

use files::Format;
use naga::back::msl;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use tidemill_kernels::gpu::source::{
    CONSTANTS_MAX, KERNELS, Kernel, Variant, WEIGHTS_MAX, split, wgsl, wide,
};

/// Values for the constants of a kernel.
fn constants(kernel: &Kernel, tail: u32, kv_format: u32, wide: u32, split: u32) -> [u32; CONSTANTS_MAX] {
    let mut all = [0; CONSTANTS_MAX];
    for (slot, name) in all.iter_mut().zip(kernel.constants) {
        *slot = match *name {
            "TAIL" => tail,
            "TOKENS" if wide > 0 => 1,
            "WIDE" => wide,
            "SPLIT" if kernel.weights.is_empty() => 1,
            "SPLIT" => split,
            "LANES" if kernel.name == "attention" => 32,
            "LANES" => 8,
            "TOKENS" | "KERNEL" | "TOP_K" | "HEADS" => 4,
            "HEAD_DIM" | "KEY_DIM" => 128,
            "FOURS" => kv_format,
            "EXPERTS" => 512,
            "ROWS" => 128,
            "SPAN" => 32,
            "FORMAT" => kv_format,
            "SPANS_MAX" => 64,
            _ => 1,
        };
    }
    all
}

fn translate(kernel: &Kernel, variant: &Variant, subgroups: bool) {
    let what = format!("{variant:?}, subgroups {subgroups}");
    let source = wgsl(kernel, variant, subgroups);
    let module = naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&source)));
    let mut capabilities =
        Capabilities::IMMEDIATES | Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    // Metal's matrices are 8 x 8: there, `matmul` takes its place.
    let on_units = kernel.source.contains("enable wgpu_cooperative_matrix");
    if on_units {
        capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
    }
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{what}: {}", e.emit_to_string(&source)));
    if on_units {
        return;
    }
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(text.contains("kernel void"), "{what}: no entry point in the Metal source");
    let reduces = kernel.source.contains("$TEAM_SETUP") || !kernel.parts.is_empty();
    assert_eq!(text.contains("simd_"), subgroups && reduces, "{what}");
}

#[test]
fn all_shaders_translate_to_metal() {
    for kernel in KERNELS {
        let formats = if kernel.weights.is_empty() { vec![Format::F32] } else { Format::all() };
        for format in formats {
            let mut all = [None; WEIGHTS_MAX];
            all.iter_mut().zip(kernel.weights).for_each(|(slot, _)| *slot = Some(format));
            // Only floats have rows that are no multiple of eight.
            let tail = u32::from(matches!(format, Format::F32 | Format::F16 | Format::BF16));
            let kv_formats = match kernel.constants {
                constants if constants.contains(&"FORMAT") => 0..3,
                constants if constants.contains(&"FOURS") => 0..2,
                _ => 0..1,
            };
            // Loads of a step, with products of floats, and of integers that the kernel or another prepares.
            let mut steps = vec![(0, 0, tail)];
            if kernel.constants.contains(&"WIDE") {
                let widths = [4, 8, 16].map(|alignment| wide(format, alignment) as u32);
                steps.extend(
                    widths
                        .iter()
                        .filter(|&&w| w > 0)
                        .flat_map(|&w| [(w, 0, tail), (w, split(format), tail), (w, split(format), 2)]),
                );
            }
            for (kv_format, (wide, split, tail)) in
                kv_formats.flat_map(|f| steps.iter().map(move |&s| (f, s)))
            {
                let constants = constants(kernel, tail, kv_format, wide, split);
                let mut variant = Variant { name: kernel.name, formats: all, constants };
                translate(kernel, &variant, true);
                translate(kernel, &variant, false);
                // Blocks on matrix units have several sizes.
                if kernel.source.contains("$SUMS") {
                    for rows in [32, 64] {
                        variant.constants[1] = rows;
                        translate(kernel, &variant, true);
                    }
                }
                // Kernels that serve a shared expert too do without one.
                if let Some(own) = kernel.weights.iter().position(|name| name.starts_with("shared_")) {
                    let shared = kernel.constants.iter().position(|name| *name == "SHARED");
                    let mut variant = variant;
                    variant.constants[shared.expect("says whether there is one")] = 0;
                    variant.formats[own..].fill(None);
                    translate(kernel, &variant, true);
                    translate(kernel, &variant, false);
                }
            }
        }
    }
}
