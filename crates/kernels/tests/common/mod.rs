//! The conformance harness: every op of a backend against the scalar reference.
//!
//! A test file of a backend says `mod common; fn rigs() -> Vec<common::Rig> {..} common::conformance!(rigs, rigs);`.
//! Shapes and values come from a seeded generator: a failure repeats.

#![allow(dead_code, unreachable_pub)] // each test binary uses a part of this module

pub mod attention;
pub mod copies;
pub mod dense;
pub mod errors;
pub mod experts;
pub mod plan;
pub mod recurrent;
pub mod refusals;
pub mod rope;

use files::Format;
use tidemill_kernels::buffer::{Tensor, View, Weight};
use tidemill_kernels::ops::{Backend, Precision, RouteBuffers};

/// A backend under test.
pub struct Rig {
    pub name: String,
    pub backend: Box<dyn Backend>,
    /// Rows computed together or apart give the same bits.
    pub batch_invariant: bool,
    /// What the offset of a weight's part in its buffer is a multiple of.
    pub align: usize,
    /// Number formats to test.
    pub formats: Vec<Format>,
}

impl Rig {
    /// A shape as it was drawn, or one of a few on a device, which compiles a shader for each.
    pub fn shape<T: Copy>(&self, rng: &mut Rng, drawn: T, few: &[T]) -> T {
        if self.batch_invariant { drawn } else { few[rng.within(0..=few.len() - 1)] }
    }

    pub fn exact(&self) -> bool {
        self.backend.info().precision == Precision::Exact
    }

    /// The reference, as a rig.
    pub fn reference() -> Self {
        let backend = Box::new(tidemill_kernels::reference::Reference::default());
        Self { name: "reference".into(), backend, batch_invariant: true, align: 1, formats: Format::all() }
    }
}

/// Whether there is a GPU to test. CI has a software one.
#[cfg(feature = "gpu")]
pub fn has_gpu() -> bool {
    let has = !tidemill_kernels::gpu::adapters().is_empty();
    if !has {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "gpu: no adapter; CI installs lavapipe");
        println!("SKIP gpu: no adapter");
    }
    has
}

/// Makes one test of each op for the rigs that `$rigs()` returns; ops that show a format by itself, for those of `$every()`.
#[macro_export]
macro_rules! conformance {
    ($rigs:ident, $every:ident) => {
        $crate::conformance!($every, dense: embed linear);
        $crate::conformance!($rigs, dense: linears rms_norm add add_norm gather_rows best gated_norm);
        $crate::conformance!($rigs, copies: copies copies_of_ranges);
        $crate::conformance!($rigs, rope: norm_rope norm_rope_append);
        $crate::conformance!($rigs, attention: attention long_attention attention_of_several);
        $crate::conformance!($rigs, attention: eight_bit_cache eight_bit_bytes);
        $crate::conformance!($rigs, recurrent: short_conv linears_conv delta_rule gated_delta_rule);
        $crate::conformance!($rigs, experts: mlp route expert_mlp routed_mlp routed_layer combine windows combine_norm);
        $crate::conformance!($rigs, errors: shapes tokens nan_routes);
        $crate::conformance!($rigs, refusals: segments pages slots ranges empty_segments);
    };
    ($rigs:ident, $module:ident: $($op:ident)*) => {
        $(#[test]
        fn $op() {
            for rig in $rigs() {
                common::$module::$op(&rig);
            }
        })*
    };
}

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An integer in `range`.
    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + (self.next() % (range.end() - range.start() + 1) as u64) as usize
    }

    pub fn flag(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// Any order of `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.within(0..=i));
        }
    }

    /// A value of about unit variance, bell-shaped.
    pub fn value(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum();
        sum * 1.7
    }

    pub fn values(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.value() * scale).collect()
    }

    /// Rows of activations, in every other one of which 32 values are far above the others, as a trained model's are.
    pub fn activations(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let mut x = self.values(rows * cols, 1.0);
        let first = self.within(0..=1);
        for row in x.chunks_mut(cols).skip(first).step_by(2) {
            let group = self.within(0..=cols / 32 - 1);
            row[32 * group..][..32].iter_mut().for_each(|x| *x *= 300.0);
        }
        x
    }
}

/// Uploads activations.
pub fn tensor(b: &dyn Backend, rows: usize, cols: usize, values: &[f32]) -> Tensor {
    assert_eq!(values.len(), rows * cols);
    let mut block = b.alloc(rows * cols * 4).unwrap();
    b.write(&mut block, 0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    Tensor::new(block, rows, cols).unwrap()
}

/// A value that no op leaves behind by chance.
pub const OUTPUT: f32 = -777.25;

/// A tensor full of it.
pub fn output(b: &dyn Backend, rows: usize, cols: usize) -> Tensor {
    tensor(b, rows, cols, &vec![OUTPUT; rows * cols])
}

/// Downloads activations.
pub fn values(b: &dyn Backend, t: &Tensor) -> Vec<f32> {
    let mut bytes = vec![0; t.len() * 4];
    b.read(t.block(), 0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]])).collect()
}

/// Encoded values of a matrix: one vector of bytes a part.
pub struct Encoded {
    pub format: Format,
    pub rows: usize,
    pub cols: usize,
    pub parts: Vec<Vec<u8>>,
}

impl Encoded {
    pub fn new(format: Format, rows: usize, cols: usize, values: &[f32]) -> Self {
        let mut parts = vec![Vec::new(); format.parts()];
        for row in values.chunks_exact(cols) {
            for (part, bytes) in parts.iter_mut().zip(files::quant::encode(format, row).unwrap()) {
                part.extend(bytes);
            }
        }
        Self { format, rows, cols, parts }
    }

    pub fn random(format: Format, rows: usize, cols: usize, rng: &mut Rng) -> Self {
        Self::new(format, rows, cols, &rng.values(rows * cols, 1.0 / (cols as f32).sqrt()))
    }

    /// The matrix in memory of the rig's backend, its parts at odd offsets where the rig allows that.
    pub fn weight(&self, rig: &Rig) -> Weight {
        Self::weights(rig, &[self]).remove(0)
    }

    /// Several matrices in one buffer.
    pub fn weights(rig: &Rig, all: &[&Self]) -> Vec<Weight> {
        let mut offset = 0;
        let mut bytes = Vec::new();
        let mut ranges = Vec::new();
        for part in all.iter().flat_map(|one| &one.parts) {
            offset = (offset + 7usize).next_multiple_of(rig.align);
            bytes.resize(offset, 0xff);
            bytes.extend(part);
            ranges.push(offset..offset + part.len());
            offset += part.len();
        }
        let buffer = rig.backend.alloc_shared(bytes.len()).unwrap();
        // SAFETY: fresh memory of that size, which nobody else knows.
        unsafe { std::slice::from_raw_parts_mut(buffer.host().unwrap().as_ptr(), bytes.len()) }
            .copy_from_slice(&bytes);
        rig.backend.publish(&buffer, 0..bytes.len()).unwrap();
        // SAFETY: nobody writes the buffer any more.
        let view = |range| unsafe { View::new(&buffer, range) }.unwrap();
        let mut views = ranges.into_iter().map(view);
        let weight = |one: &&Self| {
            let parts = views.by_ref().take(one.parts.len()).collect();
            Weight::new(one.format, one.rows, one.cols, parts).unwrap()
        };
        all.iter().map(weight).collect()
    }

    /// Row `row`, decoded.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.cols];
        let parts: Vec<&[u8]> = self
            .parts
            .iter()
            .map(|p| {
                let n = p.len() / self.rows;
                &p[row * n..(row + 1) * n]
            })
            .collect();
        files::quant::decode(self.format, &parts, &mut out).unwrap();
        out
    }
}

/// Whether the format has super-blocks of integer scales.
pub fn k_quant(format: Format) -> bool {
    matches!(format, Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K)
}

/// The most that a product may be off, given what was summed: `sum |x w|` times a few roundings in exact mode; in
/// fast mode half a step of x, which is quantised to signed bytes in groups of 32, or of 256 for k-quants, for each
/// weight; groups whose steps are far above the row's have steps 254 times finer, of 256 those that seven of the eight
/// blocks make alone.
pub fn product_bound(rig: &Rig, x: &[f32], format: Format, w: &[f32]) -> f32 {
    let sum: f32 = x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
    let rounding = 4e-6 * sum + 1e-30;
    if rig.exact() {
        return rounding;
    }
    let steps: Vec<f32> =
        x.chunks(32).map(|x| x.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0).collect();
    let mean = steps.iter().map(|step| step * step).sum::<f32>() / steps.len() as f32;
    let sizes = |w: &[f32]| w.iter().map(|w| w.abs()).sum::<f32>();
    // A processor may round comparisons otherwise.
    let steps: f32 = if k_quant(format) {
        let step = |steps: &[f32]| {
            let mut sorted = steps.to_vec();
            sorted.sort_by(f32::total_cmp);
            let (large, small) = (sorted[7], sorted[6]);
            let outstanding = large * large > 4.001 * mean && large > 2.001 * small;
            if outstanding { small.max(large / 127.0) } else { large }
        };
        steps.chunks(8).zip(w.chunks(256)).map(|(steps, w)| step(steps) * sizes(w)).sum()
    } else {
        let finer = |step: f32| if step * step > 9.001 * mean { step / 254.0 } else { step };
        steps.iter().zip(w.chunks(32)).map(|(step, w)| finer(*step) * sizes(w)).sum()
    };
    rounding + 0.505 * steps
}

/// Fails unless all values are within `bound` of what is wanted.
#[track_caller]
pub fn close(rig: &Rig, what: &str, got: &[f32], want: &[f32], bound: impl Fn(usize) -> f32) {
    assert_eq!(got.len(), want.len(), "{}: {what}", rig.name);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs();
        assert!(error <= bound(i), "{}: {what}: value {i} is {g}, not {w}; bound {}", rig.name, bound(i));
    }
}

/// Fails unless the error is below `exact` or `fast` times the norm of what is wanted.
#[track_caller]
pub fn close_norm(rig: &Rig, what: &str, got: &[f32], want: &[f32], exact: f64, fast: f64) {
    assert_eq!(got.len(), want.len(), "{}: {what}", rig.name);
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let norm: f64 = want.iter().map(|w| square(*w)).sum();
    let (relative, bound) = ((error / norm).sqrt(), if rig.exact() { exact } else { fast });
    assert!(relative <= bound, "{}: {what}: relative error {relative:e}, bound {bound:e}", rig.name);
}

/// Fails unless both are the same bits.
#[track_caller]
pub fn same(rig: &Rig, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{}: {what}", rig.name);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{}: {what}: value {i} is {g}, not {w}", rig.name);
    }
}

/// Room for a router's answer.
pub fn route_buffers(b: &dyn Backend, rows: usize, k: usize) -> RouteBuffers {
    RouteBuffers { ids: b.alloc(rows * k * 4).unwrap(), weights: output(b, rows, k) }
}
