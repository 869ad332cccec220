//! The GPU backend against the reference.

use crate::common;

use crate::common::Rig;
use files::{Format, ScaleType};
use tidemill_kernels::gpu::{Gpu, GpuOptions, source};
use tidemill_kernels::ops::Precision;

const AFFINE_3: Format = Format::Affine { bits: 3, group: 64, scale: ScaleType::BF16 };
const AFFINE_4: Format = Format::Affine { bits: 4, group: 64, scale: ScaleType::BF16 };

/// Formats for kernels of several weights: of each way to store scales, one. A shader takes lavapipe most of a second, and
/// there is one for each kernel in each format: [`every_op_in_every_format`] is a part of the soak.
const SOME: [Format; 8] =
    [Format::BF16, Format::Q4_0, Format::Q5_1, Format::Q4K, Format::Q6K, Format::MXFP4, AFFINE_3, AFFINE_4];
/// Affine formats that are loaded in steps: each width, and each type of scale.
const AFFINE: [Format; 3] = [
    AFFINE_4,
    Format::Affine { bits: 4, group: 64, scale: ScaleType::F16 },
    Format::Affine { bits: 8, group: 32, scale: ScaleType::BF16 },
];
/// For what does not depend on the format.
const FEW: [Format; 3] = [Format::BF16, Format::Q4K, AFFINE_4];

/// The best adapter of this machine, or nothing where there is none.
fn open(options: GpuOptions, align: usize, formats: &[Format]) -> Vec<Rig> {
    if !common::has_gpu() {
        return Vec::new();
    }
    let backend = Box::new(Gpu::open(&options).unwrap());
    let name = format!(
        "{}, {:?}, subgroups {}, weights at multiples of {align}",
        backend.adapter().name,
        options.precision,
        options.subgroups
    );
    vec![Rig { name, backend, batch_invariant: false, align, formats: formats.to_vec() }]
}

fn options(precision: Precision, subgroups: bool) -> GpuOptions {
    GpuOptions { precision, subgroups, ..GpuOptions::default() }
}

fn rigs() -> Vec<Rig> {
    open(options(Precision::Exact, true), 1, &SOME)
}

fn rigs_of_every_format() -> Vec<Rig> {
    open(options(Precision::Exact, true), 1, &Format::all())
}

conformance!(rigs, rigs_of_every_format);

/// Whether weights of a format are loaded in steps at an alignment, and otherwise than with the alignment before.
fn is_loaded_otherwise(format: Format, align: usize) -> bool {
    let loads = |align: usize| source::wide(format, align as u32);
    loads(align) != source::Wide::Not && (align == 16 || loads(align) != loads(2 * align))
}

fn loaded_otherwise(formats: &[Format], align: usize) -> Vec<Format> {
    formats.iter().copied().filter(|&format| is_loaded_otherwise(format, align)).collect()
}

/// Products of many rows in fast mode: where the device has matrix units, these round their inputs to half precision.
/// A product of two rounded values is off by 2^-10 of it at most, and values below the normal range of halves, which
/// begins at 2^-9 for activations (divided by 32) and at 2^-19 for weights (multiplied), by half a step there:
/// |error| <= 2^-10 sum |x w| + 2^-20 sum |w| + 2^-30 sum |x|, and a little for the sums, which are single.
#[test]
fn products_on_matrix_units() {
    for rig in open(options(Precision::Fast, true), 1, &FEW) {
        common::dense::many_rows(&rig);
    }
    for rig in open(options(Precision::Fast, true), 16, &SOME) {
        common::dense::many_rows(&rig);
        common::experts::many_rows(&rig);
        common::experts::routed_mlp(&rig);
    }
}

/// Products of few rows in fast mode: where the device multiplies bytes, activations are integers of 14 bits or
/// more.
#[test]
fn products_of_integers() {
    for (subgroups, align) in [(true, 16), (false, 16), (true, 8), (true, 4)] {
        // Without subgroups only sums are otherwise.
        let formats = loaded_otherwise(if subgroups { &Format::PLAIN[..] } else { &SOME[..4] }, align);
        for rig in open(options(Precision::Fast, subgroups), align, &SOME) {
            common::dense::few_rows(&rig, &[&formats[..], &AFFINE[..]].concat(), 16256.0);
            if subgroups && align == 16 {
                common::dense::linears(&rig);
                common::recurrent::linears_conv(&rig);
                common::experts::mlp(&rig);
                common::experts::expert_mlp(&rig);
                common::experts::routed_layer(&rig);
            }
        }
    }
}

/// Reductions through shared memory alone: for every op that reduces.
#[test]
fn without_subgroups() {
    for rig in open(options(Precision::Exact, false), 16, &FEW) {
        common::dense::linear(&rig);
        common::dense::linears(&rig);
        common::dense::rms_norm(&rig);
        common::dense::add_norm(&rig);
        common::dense::gated_norm(&rig);
        common::rope::norm_rope_append(&rig);
        common::attention::attention(&rig);
        common::attention::attention_of_several(&rig);
        common::recurrent::delta_rule(&rig);
        common::recurrent::gated_delta_rule(&rig);
        common::experts::route(&rig);
        common::experts::routed_layer(&rig);
        common::experts::combine_norm(&rig);
    }
}

/// Weights where the loads of thirty-two values work, by vectors, by pairs and by words.
#[test]
fn aligned_weights() {
    for align in [16, 8, 4] {
        let formats = loaded_otherwise(&[&Format::PLAIN[..], &AFFINE[..]].concat(), align);
        for mut rig in open(options(Precision::Exact, true), align, &formats) {
            common::dense::linear(&rig);
            rig.formats = if align == 16 { loaded_otherwise(&SOME, align) } else { vec![AFFINE_4] };
            each_op_with_weights(&rig);
        }
    }
}

fn each_op_with_weights(rig: &Rig) {
    common::dense::linears(rig);
    common::experts::mlp(rig);
    common::experts::expert_mlp(rig);
    common::experts::route(rig);
    common::experts::routed_layer(rig);
}

/// Submissions as short as they can be: every dispatch that can be divided is, each part is a submission of its own, and
/// uploads stay for the parts that follow.
#[test]
fn the_shortest_submissions() {
    for precision in [Precision::Exact, Precision::Fast] {
        let options = GpuOptions { submission_s: 1e-7, ..options(precision, true) };
        for rig in open(options, 16, &FEW) {
            common::dense::many_rows(&rig);
            common::experts::many_rows(&rig);
            common::experts::routed_mlp(&rig);
            common::attention::attention(&rig);
            common::attention::attention_of_several(&rig);
        }
    }
}

/// Every kernel with weights in every format, at every alignment, with subgroups and without.
#[test]
#[ignore = "half an hour; a part of the soak"]
fn every_op_in_every_format() {
    let all = Format::all();
    for (align, subgroups) in [(1, true), (16, true), (8, true), (4, true), (16, false)] {
        for rig in open(options(Precision::Exact, subgroups), align, &all) {
            common::dense::linear(&rig);
            common::experts::routed_mlp(&rig);
            common::recurrent::linears_conv(&rig);
            each_op_with_weights(&rig);
        }
        for rig in open(options(Precision::Fast, subgroups), align, &all) {
            common::dense::many_rows(&rig);
            common::dense::few_rows(&rig, &loaded_otherwise(&all, align), 16256.0);
            common::experts::routed_mlp(&rig);
            common::experts::routed_layer(&rig);
        }
    }
}
