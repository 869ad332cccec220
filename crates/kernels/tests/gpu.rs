//! The GPU backend against the reference.

use crate::common;

use crate::common::Rig;
use files::Format;
use tidemill_kernels::gpu::{Gpu, GpuOptions, adapters, source};
use tidemill_kernels::ops::Precision;

/// The best adapter of this machine, or nothing where there is none.
fn open(subgroups: bool, align: usize) -> Vec<Rig> {
    if adapters().is_empty() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "gpu: no adapter; CI installs lavapipe");
        println!("SKIP gpu: no adapter");
        return Vec::new();
    }
    let options = GpuOptions { precision: Precision::Exact, subgroups, ..GpuOptions::default() };
    let backend = Box::new(Gpu::open(&options).unwrap());
    let name = format!("{}, subgroups {subgroups}, weights at multiples of {align}", backend.adapter().name);
    vec![Rig { name, backend, batch_invariant: false, align, formats: Format::all() }]
}

fn rigs() -> Vec<Rig> {
    open(true, 1)
}

conformance!(rigs);

/// Products of many rows in fast mode: where the device has matrix units, these round their inputs to half precision.
/// A product of two rounded values is off by 2^-10 of it at most, and values below the normal range of halves, which
/// begins at 2^-9 for activations (divided by 32) and at 2^-19 for weights (multiplied), by half a step there:
/// |error| <= 2^-10 sum |x w| + 2^-20 sum |w| + 2^-30 sum |x|, and a little for the sums, which are single.
#[test]
fn products_on_matrix_units() {
    if adapters().is_empty() {
        println!("SKIP gpu: no adapter");
        return;
    }
    let options = GpuOptions { precision: Precision::Fast, ..GpuOptions::default() };
    for align in [1, 16] {
        let backend = Box::new(Gpu::open(&options).unwrap());
        let name = format!("{}, fast, weights at multiples of {align}", backend.adapter().name);
        let rig = Rig { name, backend, batch_invariant: false, align, formats: Format::all() };
        common::dense::many_rows(&rig);
        common::experts::many_rows(&rig);
        if align == 16 {
            common::experts::routed_mlp(&rig);
        }
    }
}

/// Products of a row in fast mode: where the device multiplies bytes, activations are integers of 14 bits or
/// more.
#[test]
fn products_of_integers() {
    if adapters().is_empty() {
        println!("SKIP gpu: no adapter");
        return;
    }
    for (subgroups, align) in [(true, 16), (false, 16), (true, 8), (true, 4)] {
        let options = GpuOptions { precision: Precision::Fast, subgroups, ..GpuOptions::default() };
        let backend = Box::new(Gpu::open(&options).unwrap());
        let name = format!("{}, fast, subgroups {subgroups}, align {align}", backend.adapter().name);
        let rig = Rig { name, backend, batch_invariant: false, align, formats: Format::all() };
        // Those that are loaded in steps, and otherwise than with the alignment before.
        let loads = |format: Format, align: usize| source::wide(format, align as u32);
        let in_steps = |&format: &Format| {
            loads(format, align) != source::Wide::Not
                && (align == 16 || loads(format, align) != loads(format, 2 * align))
        };
        let formats: Vec<Format> = Format::all().into_iter().filter(in_steps).collect();
        common::dense::single_row(&rig, &formats, 16256.0);
        if subgroups && align == 16 {
            common::experts::routed_layer(&rig);
        }
    }
}

/// Reductions through shared memory alone: for every op that reduces.
#[test]
fn without_subgroups() {
    for rig in open(false, 16) {
        common::dense::linear(&rig);
        common::dense::linears(&rig);
        common::dense::rms_norm(&rig);
        common::dense::add_norm(&rig);
        common::dense::gated_norm(&rig);
        common::attention::norm_rope_append(&rig);
        common::attention::attention(&rig);
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
    for rig in [16, 8, 4].into_iter().flat_map(|align| open(true, align)) {
        common::dense::linear(&rig);
        common::dense::linears(&rig);
        common::experts::mlp(&rig);
        common::experts::expert_mlp(&rig);
        common::experts::route(&rig);
        common::experts::routed_layer(&rig);
    }
}

/// Submissions as short as they can be: every dispatch that can be divided is, each part is a submission of its own, and
/// uploads stay for the parts that follow.
#[test]
fn the_shortest_submissions() {
    if adapters().is_empty() {
        println!("SKIP gpu: no adapter");
        return;
    }
    for precision in [Precision::Exact, Precision::Fast] {
        let options = GpuOptions { precision, submission_s: 1e-7, ..GpuOptions::default() };
        let backend = Box::new(Gpu::open(&options).unwrap());
        let name = format!("{}, {precision:?}, the shortest submissions", backend.adapter().name);
        let rig = Rig { name, backend, batch_invariant: false, align: 16, formats: Format::all() };
        common::dense::many_rows(&rig);
        common::experts::many_rows(&rig);
        common::experts::routed_mlp(&rig);
        common::attention::attention(&rig);
    }
}
