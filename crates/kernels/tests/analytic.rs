//! The reference itself, against values worked out by hand.

use crate::common;

use crate::common::{Encoded, Rig, output, route_buffers, tensor, values};
use files::Format;
use tidemill_kernels::Tensor;
use tidemill_kernels::ops::{
    AttentionSpec, Backend, DeltaInput, DeltaSpec, KvCache, KvFormat, PAGE, RopeSpec, RouteSpec, Segment,
    SharedOutput, rows_of,
};

fn near(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 2e-6 * w.abs().max(1.0), "{got:?} is not {want:?}");
    }
}

/// The first `n` rows of the only sequence.
fn first_rows(n: usize) -> [Segment; 1] {
    [Segment { rows: 0..n, position: 0, pages: vec![0], slot: 0 }]
}

#[test]
fn products_and_norms() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let w = Encoded::new(Format::F32, 2, 3, &[1.0, 2.0, 3.0, -1.0, 0.5, 0.0]).weight(&rig);
    let mut out = output(b, 1, 2);
    b.linear(&tensor(b, 1, 3, &[1.0, 10.0, 100.0]), &w, Some(&tensor(b, 1, 2, &[0.5, 0.25])), &mut out)
        .unwrap();
    near(&values(b, &out), &[321.5, 4.25]);
    let mut out = output(b, 1, 2);
    b.rms_norm(&tensor(b, 1, 2, &[3.0, 4.0]), &tensor(b, 1, 2, &[1.0, 2.0]), 0.0, &mut out).unwrap();
    let rms = 12.5f32.sqrt();
    near(&values(b, &out), &[3.0 / rms, 8.0 / rms]);
    // silu(0) = 0 closes the first gate; silu(large) = large.
    let mut x = tensor(b, 1, 2, &[3.0, 4.0]);
    b.gated_norm(&mut x, &tensor(b, 1, 2, &[0.0, 50.0]), &tensor(b, 1, 2, &[1.0, 1.0]), 0.0).unwrap();
    near(&values(b, &x), &[0.0, 200.0 / rms]);
}

#[test]
fn rope_turns_pairs_by_position_times_frequency() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let quarter = std::f32::consts::FRAC_PI_2;
    for interleaved in [false, true] {
        let spec =
            RopeSpec { heads: 1, head_dim: 4, head_stride: 4, rotary_dim: 4, interleaved, amplitude: 1.0 };
        let mut x = tensor(b, 1, 4, &[1.0, 2.0, 3.0, 4.0]);
        let segment = Segment { rows: 0..1, position: 2, ..Segment::default() };
        // Position 2: the first pair turns by a quarter; the second by a half or not at all.
        let second = if interleaved { 0.0 } else { quarter };
        let frequencies = tensor(b, 1, 2, &[quarter / 2.0, second]);
        b.norm_rope(&mut x, &[segment], &spec, &frequencies, None).unwrap();
        // Halves: pairs (1, 3) by a quarter, (2, 4) by a half. Interleaved: (1, 2) by a quarter, (3, 4) by none.
        let want = if interleaved { [-2.0, 1.0, 3.0, 4.0] } else { [-3.0, -2.0, 1.0, -4.0] };
        near(&values(b, &x), &want);
    }
}

#[test]
fn partial_rope_leaves_the_rest_and_the_gates_alone() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let spec =
        RopeSpec { heads: 1, head_dim: 3, head_stride: 4, rotary_dim: 2, interleaved: false, amplitude: 2.0 };
    let mut x = tensor(b, 1, 4, &[3.0, 0.0, 4.0, 9.0]);
    let norm = tensor(b, 1, 3, &[1.0, 1.0, 1.0]);
    let segment = Segment { rows: 0..1, position: 1, ..Segment::default() };
    let turn = tensor(b, 1, 1, &[std::f32::consts::PI]);
    b.norm_rope(&mut x, &[segment], &spec, &turn, Some((&norm, 0.0))).unwrap();
    let rms = (25.0f32 / 3.0).sqrt();
    near(&values(b, &x), &[-6.0 / rms, 0.0, 4.0 / rms, 9.0]);
}

/// A cache of heads of two values.
fn pages_of_pairs(b: &dyn Backend, pages: usize, kv_heads: usize) -> KvCache {
    let format = KvFormat::F32;
    let block = || b.alloc(pages * KvCache::page_bytes(kv_heads, 2, format) / 2).unwrap();
    KvCache { keys: block(), values: block(), kv_heads, head_dim: 2, pages, format }
}

#[test]
fn positions_lie_in_the_pages_of_their_sequence() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let mut cache = pages_of_pairs(b, 3, 2);
    // The last position of page 2 and the first of page 0; in between a row of another sequence, in page 1.
    let segments = [
        Segment { rows: 0..2, position: PAGE - 1, pages: vec![2, 0], slot: 0 },
        Segment { rows: 2..3, position: 7, pages: vec![1], slot: 0 },
    ];
    let rows: Vec<f32> = (1..=12).map(|i| i as f32).collect();
    let (k, v) = (tensor(b, 3, 4, &rows), tensor(b, 3, 4, &[0.5; 12]));
    b.kv_append(&k, &v, &segments, &mut cache).unwrap();
    let keys: &[f32] = cache.keys.host().unwrap();
    let mut want = vec![0.0; 3 * 2 * PAGE * 2];
    for (head, values) in rows.chunks(2).enumerate() {
        let page_and_position = [(2, PAGE - 1), (0, 0), (1, 7)][head / 2];
        let (page, position) = page_and_position;
        want[((page * 2 + head % 2) * PAGE + position) * 2..][..2].copy_from_slice(values);
    }
    assert!(keys == want);
    assert_eq!(cache.head(&[2, 0], 1, PAGE + 3), PAGE + 3);
    assert_eq!(segments.each_ref().map(Segment::end), [PAGE + 1, 8]);
    assert_eq!(rows_of(&segments), 3);
}

#[test]
fn attention_weighs_values_by_softmax() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let mut cache = pages_of_pairs(b, 1, 1);
    let k = tensor(b, 2, 2, &[0.0, 0.0, 3f32.ln(), 0.0]);
    let v = tensor(b, 2, 2, &[1.0, 2.0, 5.0, 6.0]);
    b.kv_append(&k, &v, &first_rows(2), &mut cache).unwrap();
    let spec = AttentionSpec { heads: 1, head_dim: 2, gated: true, scale: 0.5 };
    // Row 1 scores 0 and ln 3: weights 1/4 and 3/4. Row 0 sees itself alone. Gates: 1 and 1/2.
    let q = tensor(b, 2, 4, &[2.0, 0.0, 99.0, 0.0, 2.0, 0.0, 99.0, 0.0]);
    let mut out = output(b, 2, 2);
    b.attention(&q, &first_rows(2), &cache, &spec, &mut out).unwrap();
    near(&values(b, &out), &[1.0, 1.0, 4.0, 2.5]);
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[test]
fn conv_sees_its_state_and_advances_it() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let weight = tensor(b, 1, 3, &[100.0, 10.0, 1.0]);
    // Two sequences, whose states are not in the order of their rows, and a state of nobody.
    let mut state = tensor(b, 3, 2, &[0.5, 0.6, 7.0, 8.0, 0.1, 0.2]);
    let mut out = output(b, 3, 1);
    let segments = [
        Segment { rows: 0..2, slot: 2, ..Segment::default() },
        Segment { rows: 2..3, slot: 0, ..Segment::default() },
    ];
    b.short_conv(&tensor(b, 3, 1, &[0.3, 0.4, 0.9]), &weight, &segments, &mut state, &mut out).unwrap();
    near(&values(b, &out), &[silu(12.3), silu(23.4), silu(56.9)]);
    near(&values(b, &state), &[0.6, 0.9, 7.0, 8.0, 0.3, 0.4]);
}

/// One key head, one value head, dims 2: runs `tokens` of (q, k, v) with beta = 1 and gate `g`.
fn delta(tokens: &[[f32; 6]], log_g: f32) -> (Vec<f32>, Vec<f32>) {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let rows = tokens.len();
    let spec = DeltaSpec { key_heads: 1, value_heads: 1, key_head_dim: 2, value_head_dim: 2, tiled: false };
    let filled = |v: f32| -> Tensor { tensor(b, rows, 1, &vec![v; rows]) };
    let (qkv, ones) = (tensor(b, rows, 6, &tokens.concat()), filled(100.0));
    // softplus(100 + 0) = 100, so decay / 100 is the log of the gate.
    let (decay, dt_bias) = (tensor(b, 1, 1, &[log_g / 100.0]), tensor(b, 1, 1, &[0.0]));
    let mut state = tensor(b, 1, 4, &[0.0; 4]);
    let mut out = output(b, rows, 2);
    let segments = &first_rows(rows);
    let input = DeltaInput { segments, qkv: &qkv, a: &ones, b: &ones, decay: &decay, dt_bias: &dt_bias };
    b.delta_rule(&input, &spec, &mut state, &mut out).unwrap();
    (values(b, &out), values(b, &state))
}

#[test]
fn delta_rule_stores_replaces_and_forgets() {
    let root = 2f32.sqrt();
    // With beta = 1 a query that equals a stored key reads its value back, over sqrt(dk).
    let (out, state) = delta(&[[0.0, 5.0, 0.0, 3.0, 7.0, 8.0]], 0.0);
    near(&out, &[7.0 / root, 8.0 / root]);
    near(&state, &[0.0, 0.0, 7.0, 8.0]);
    // A second value for the same key replaces the first; an orthogonal key leaves it.
    let (out, state) = delta(
        &[[1.0, 0.0, 1.0, 0.0, 1.0, 2.0], [1.0, 0.0, 0.0, 1.0, 3.0, 4.0], [1.0, 0.0, 2.0, 0.0, 5.0, 6.0]],
        0.0,
    );
    near(&out[2..], &[1.0 / root, 2.0 / root, 5.0 / root, 6.0 / root]);
    near(&state, &[5.0, 6.0, 3.0, 4.0]);
    // The gate halves what was stored before each token.
    let (_, state) = delta(&[[1.0, 0.0, 1.0, 0.0, 1.0, 2.0], [1.0, 0.0, 0.0, 1.0, 3.0, 4.0]], 0.5f32.ln());
    near(&state, &[0.5, 1.0, 3.0, 4.0]);
}

#[test]
fn tiled_value_heads_use_key_heads_in_turn() {
    let spec = |tiled| DeltaSpec { key_heads: 2, value_heads: 4, key_head_dim: 1, value_head_dim: 1, tiled };
    assert_eq!((0..4).map(|h| spec(true).key_head(h)).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert_eq!((0..4).map(|h| spec(false).key_head(h)).collect::<Vec<_>>(), [0, 0, 1, 1]);
}

#[test]
fn routes_are_the_largest_of_a_softmax() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let logits = [1f32, 4.0, 2.0, 3.0].map(f32::ln);
    let router = Encoded::new(Format::F32, 4, 1, &logits).weight(&rig);
    for (normalise, want) in [(false, [0.4, 0.3]), (true, [4.0 / 7.0, 3.0 / 7.0])] {
        let spec = RouteSpec { top_k: 2, normalise };
        let mut routes = route_buffers(b, 1, 2);
        b.route(&tensor(b, 1, 1, &[1.0]), &router, &spec, &mut routes).unwrap();
        let read = b.read_routes(&routes, 1, &spec).unwrap();
        assert_eq!(read.ids, [1, 3]);
        near(&read.weights, &want);
    }
}

#[test]
fn combine_adds_the_gated_shared_expert() {
    let rig = Rig::reference();
    let b = &*rig.backend;
    let mut routes = route_buffers(b, 1, 2);
    routes.weights = tensor(b, 1, 2, &[0.25, 0.75]);
    let (output_, gate) = (tensor(b, 1, 2, &[100.0, 200.0]), tensor(b, 1, 1, &[0.0]));
    let shared = SharedOutput { output: &output_, gate: &gate };
    let parts = tensor(b, 2, 2, &[4.0, 8.0, 12.0, 16.0]);
    let mut out = output(b, 1, 2);
    let spec = RouteSpec { top_k: 2, normalise: true };
    b.combine(&parts, &routes, &spec, Some(shared), &mut out).unwrap();
    near(&values(b, &out), &[60.0, 114.0]);
}

#[test]
fn the_reference_refuses_what_every_backend_refuses() {
    common::errors::shapes(&Rig::reference());
    common::errors::tokens(&Rig::reference());
    common::errors::nan_routes(&Rig::reference());
    common::refusals::segments(&Rig::reference());
    common::refusals::pages(&Rig::reference());
    common::refusals::slots(&Rig::reference());
    common::refusals::ranges(&Rig::reference());
}

/// The reference against itself: the same bits for sequences together and alone, and nothing of strangers is touched.
#[test]
fn the_reference_does_not_depend_on_what_is_computed_together() {
    let rig = Rig::reference();
    common::rope::norm_rope(&rig);
    common::rope::norm_rope_append(&rig);
    common::attention::attention_of_several(&rig);
    common::recurrent::short_conv(&rig);
    common::recurrent::delta_rule(&rig);
    common::copies::copies_of_ranges(&rig);
    common::refusals::empty_segments(&rig);
}
