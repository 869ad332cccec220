//! Segments and ranges that a backend must refuse: whoever took them would write where others read.

use std::ops::Range;

use files::{ErrorKind, Format, Result};
use tidemill_kernels::ops::{
    AttentionSpec, Convolution, DeltaInput, DeltaSpec, Gate, Heads, KvCache, KvFormat, PAGE, Product,
    RopeSpec, Segment, Turn,
};

use super::errors::refused;
use super::*;

/// Rows of the tensors, pages of the cache and states that there are.
const ROWS: usize = 4;
const PAGES: usize = 3;
const STATES: usize = 3;

const ROPE: RopeSpec =
    RopeSpec { heads: 2, head_dim: 8, head_stride: 8, rotary_dim: 8, interleaved: false, amplitude: 1.0 };
const ATTENTION: AttentionSpec = AttentionSpec { heads: 2, head_dim: 8, gated: false, scale: 1.0 };
const DELTA: DeltaSpec =
    DeltaSpec { key_heads: 1, value_heads: 2, key_head_dim: 4, value_head_dim: 4, tiled: false };

/// An op, and the ops that may be named when it refuses: it may be made of them.
type Op = (&'static str, &'static [&'static str]);

const POSITIONS: [Op; 1] = [("norm_rope", &["norm_rope"])];
/// Those that write pages, and then those that use some.
const WRITE_PAGES: [Op; 2] =
    [("kv_append", &["kv_append"]), ("norm_rope_append", &["norm_rope", "kv_append"])];
const READ_PAGES: [Op; 1] = [("attention", &["attention"])];
const USE_STATES: [Op; 4] = [
    ("short_conv", &["short_conv"]),
    ("linears_conv", &["linears_conv", "short_conv"]),
    ("delta_rule", &["delta_rule"]),
    ("gated_delta_rule", &["delta_rule"]),
];

/// Calls an op with tensors that fit.
fn call(rig: &Rig, op: &str, segments: &[Segment]) -> Result<()> {
    let b = &*rig.backend;
    let x = || output(b, ROWS, 16);
    let bytes = PAGES * KvCache::page_bytes(2, 8, KvFormat::F32) / 2;
    let block = || b.alloc(bytes).unwrap();
    let mut cache = KvCache {
        keys: block(),
        values: block(),
        kv_heads: 2,
        head_dim: 8,
        pages: PAGES,
        format: KvFormat::F32,
    };
    let frequencies = tensor(b, 1, 4, &[0.1; 4]);
    match op {
        "norm_rope" => b.norm_rope(&mut x(), segments, &ROPE, &frequencies, None),
        "kv_append" => b.kv_append(&x(), &x(), segments, &mut cache),
        "norm_rope_append" => {
            let heads = Heads { q: &mut x(), k: &mut x(), v: &x() };
            let turn = Turn { spec: &ROPE, norm: None };
            b.norm_rope_append(heads, segments, [turn, turn], &frequencies, &mut cache)
        }
        "attention" => b.attention(&x(), segments, &cache, &ATTENTION, &mut x()),
        "short_conv" => {
            b.short_conv(&x(), &output(b, 16, 3), segments, &mut output(b, STATES, 2 * 16), &mut x())
        }
        "linears_conv" => {
            let weight = Encoded::random(Format::BF16, 16, 32, &mut Rng::new(1)).weight(rig);
            let mut products = [Product { weight: &weight, bias: None, out: &mut x() }];
            let (state, out) = (&mut output(b, STATES, 2 * 16), &mut x());
            let conv = Convolution { weight: &output(b, 16, 3), segments, state, out };
            b.linears_conv(&output(b, ROWS, 32), &mut products, conv)
        }
        _ => delta(rig, op, segments),
    }
}

fn delta(rig: &Rig, op: &str, segments: &[Segment]) -> Result<()> {
    let d = &*rig.backend;
    let (qkv, a, b) = (&output(d, ROWS, 16), &output(d, ROWS, 2), &output(d, ROWS, 2));
    let (decay, dt_bias) = (&output(d, 1, 2), &output(d, 1, 2));
    let input = DeltaInput { segments, qkv, a, b, decay, dt_bias };
    let (mut state, mut out) = (output(d, STATES, 2 * 4 * 4), output(d, ROWS, 8));
    if op == "delta_rule" {
        return d.delta_rule(&input, &DELTA, &mut state, &mut out);
    }
    let gate = Gate { z: &output(d, ROWS, 8), weight: &output(d, 1, 4), eps: 1e-6 };
    d.gated_delta_rule(&input, &DELTA, &mut state, gate, &mut out)
}

/// Whether it is refused as a request, by name.
#[track_caller]
fn refuse(rig: &Rig, ops: &[Op], segments: &[Segment], word: &str) {
    for (op, names) in ops {
        let error = call(rig, op, segments).expect_err(&format!("{}: {op} {segments:?}", rig.name));
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{}: {op}: {error}", rig.name);
        let text = error.to_string();
        assert!(names.iter().any(|name| text.contains(name)), "{}: {error} does not name {op}", rig.name);
        assert!(text.contains(word), "{}: {op}: {error} does not name {word}", rig.name);
    }
}

/// Two segments that every op takes: first and last rows, pages and states of their own.
fn good() -> [Segment; 2] {
    [
        Segment { rows: 0..2, position: PAGE - 1, pages: vec![2, 0], slot: 2 },
        Segment { rows: 2..4, position: 5, pages: vec![1], slot: 0 },
    ]
}

fn changed(change: impl Fn(&mut [Segment; 2])) -> [Segment; 2] {
    let mut segments = good();
    change(&mut segments);
    segments
}

fn all() -> Vec<Op> {
    [&POSITIONS[..], &WRITE_PAGES, &READ_PAGES, &USE_STATES].concat()
}

pub fn segments(rig: &Rig) {
    // What is refused below is refused for what is wrong with it.
    for (op, _) in all() {
        call(&Rig::reference(), op, &good()).unwrap();
    }
    let with = |first: Range<usize>, second: Range<usize>| {
        changed(|segments| {
            segments[0].rows = first.clone();
            segments[1].rows = second.clone();
        })
    };
    refuse(rig, &all(), &with(0..2, 1..3), "1..3");
    refuse(rig, &all(), &with(2..4, 0..2), "0..2");
    refuse(rig, &all(), &with(0..2, 3..5), "4 rows");
    refuse(rig, &all(), &with(0..2, Range { start: 3, end: 2 }), "3..2");
    refuse(rig, &USE_STATES[3..], &with(0..2, 3..4), "3 rows of 4");
    refuse(rig, &USE_STATES[3..], &[], "0 rows of 4");
    let heads = AttentionSpec { heads: 3, ..ATTENTION };
    let b = &*rig.backend;
    let block = || b.alloc(KvCache::page_bytes(2, 8, KvFormat::F32) / 2).unwrap();
    let (keys, values, format) = (block(), block(), KvFormat::F32);
    let cache = KvCache { keys, values, kv_heads: 2, head_dim: 8, pages: 1, format };
    refused(rig, b.attention(&output(b, 1, 24), &[], &cache, &heads, &mut output(b, 1, 24)), "2 heads");
}

pub fn pages(rig: &Rig) {
    let use_pages = [&WRITE_PAGES[..], &READ_PAGES].concat();
    refuse(rig, &use_pages, &changed(|s| s[0].pages = vec![2, 3]), "page 3 of 3");
    refuse(rig, &use_pages, &changed(|s| s[1].pages = vec![u32::MAX]), "of 3");
    refuse(rig, &use_pages, &changed(|s| s[0].pages = vec![2]), "position 513 is past 1 pages");
    refuse(rig, &use_pages, &changed(|s| s[1].pages = vec![]), "past 0 pages");
    refuse(rig, &use_pages, &changed(|s| s[1].position = PAGE), "position 514");
    refuse(rig, &WRITE_PAGES, &changed(|s| s[1].pages = vec![0]), "page 0 is written by two");
    refuse(rig, &WRITE_PAGES, &changed(|s| s[1].pages = vec![2]), "page 2 is written by two");
    let b = &*rig.backend;
    let block = |pages: usize| b.alloc(pages * KvCache::page_bytes(2, 8, KvFormat::F16) / 2).unwrap();
    for (keys, values) in [(1, 2), (2, 1)] {
        let (keys, values, format) = (block(keys), block(values), KvFormat::F16);
        let mut cache = KvCache { keys, values, kv_heads: 2, head_dim: 8, pages: 2, format };
        let x = output(b, 1, 16);
        refused(rig, b.kv_append(&x, &x, &[], &mut cache), "do not hold a cache");
        refused(rig, b.attention(&x, &[], &cache, &ATTENTION, &mut output(b, 1, 16)), "do not hold a cache");
    }
}

pub fn slots(rig: &Rig) {
    refuse(rig, &USE_STATES, &changed(|s| s[1].slot = 2), "state 2 is written by two");
    refuse(rig, &USE_STATES, &changed(|s| s[1].slot = 3), "state 3 of 3");
    refuse(rig, &USE_STATES, &changed(|s| s[0].slot = u32::MAX), "of 3");
}

pub fn ranges(rig: &Rig) {
    let b = &*rig.backend;
    let (from, mut to, mut odd) = (b.alloc(64).unwrap(), b.alloc(32).unwrap(), b.alloc(30).unwrap());
    let mut copy = |range: Range<usize>, at: usize, word: &str| {
        let result = b.copy(&from, range, &mut to, at);
        let text = result.as_ref().map_or_else(ToString::to_string, |()| String::new());
        assert!(text.contains("copy"), "{}: {text}", rig.name);
        refused(rig, result, word);
    };
    copy(0..68, 0, "0..68 leaves 64 bytes");
    copy(0..36, 0, "0..36 leaves 32 bytes");
    copy(0..8, 28, "28..36 leaves 32 bytes");
    copy(0..8, usize::MAX - 3, "leaves 32 bytes");
    copy(usize::MAX - 3..usize::MAX, 0, "leaves 64 bytes");
    copy(Range { start: 8, end: 4 }, 0, "8..4");
    for (range, at) in [(2..8, 0), (0..6, 0), (0..8, 2), (1..5, 3)] {
        copy(range, at, "whole words");
    }
    let mut within = b.alloc(64).unwrap();
    let ranges = [(0..8, 4, "overlaps"), (8..16, 8, "overlaps"), (8..20, 0, "overlaps")];
    let leaving = [(60..68, 0, "leaves 64 bytes"), (0..8, 60, "leaves"), (0..8, usize::MAX - 3, "leaves")];
    let parts_of_words = [(2..4, 8, "whole words"), (0..4, 6, "whole words")];
    for (range, at, word) in ranges.into_iter().chain(leaving).chain(parts_of_words) {
        let result = b.copy_within(&mut within, range, at);
        refused(rig, result, word);
    }
    let outside = [(60..68, "leaves 64 bytes"), (68..72, "leaves"), (Range { start: 8, end: 4 }, "8..4")];
    let parts_of_words = [(2..8, "whole words"), (0..7, "whole words")];
    for (range, word) in outside.into_iter().chain(parts_of_words) {
        refused(rig, b.clear(&mut within, range.clone()), word);
        refused(rig, b.clear(&mut within, range), "clear");
    }
    refused(rig, b.clear(&mut odd, 0..30), "whole words");
    refused(rig, b.copy(&from, 0..30, &mut odd, 0), "copy");
    refused(rig, b.copy_within(&mut odd, 0..16, 16), "copy_within");
}

/// A segment without rows needs no state, and leaves those of others alone: it may name one of theirs, or none.
pub fn empty_segments(rig: &Rig) {
    let (b, reference) = (&*rig.backend, Rig::reference());
    let empty = |row: usize, slot: u32| Segment { rows: row..row, slot, ..Segment::default() };
    let [first, second] = good();
    let with = [empty(0, 2), first, empty(2, 0), second, empty(4, 99)];
    let mut rng = Rng::new(18);
    let (x, weight) = (rng.values(ROWS * 16, 1.0), rng.values(16 * 3, 1.0));
    let state = rng.values(STATES * 32, 1.0);
    let run = |rig: &Rig, segments: &[Segment]| {
        let b = &*rig.backend;
        let (mut state, mut out) = (tensor(b, STATES, 32, &state), output(b, ROWS, 16));
        let (x, weight) = (tensor(b, ROWS, 16, &x), tensor(b, 16, 3, &weight));
        b.short_conv(&x, &weight, segments, &mut state, &mut out).unwrap();
        [values(b, &out), values(b, &state)].concat()
    };
    let want = run(&reference, &good());
    close(rig, "short_conv", &run(rig, &with), &want, |i| 4e-6 * (want[i].abs() + 1.0));
    for segments in [&with[..1], &[]] {
        let untouched = [vec![OUTPUT; ROWS * 16], state.clone()].concat();
        same(rig, "short_conv of nothing", &run(rig, segments), &untouched);
    }
    for segments in [&with[..], &with[..1], &[]] {
        let mut x = tensor(b, ROWS, 16, &x);
        b.norm_rope(&mut x, segments, &ROPE, &tensor(b, 1, 4, &[0.1; 4]), None).unwrap();
        call(rig, "attention", segments).unwrap();
        call(rig, "kv_append", segments).unwrap();
        call(rig, "delta_rule", segments).unwrap();
    }
}
