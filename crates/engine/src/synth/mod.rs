//! Models of random weights in published shapes, to measure with: what a model costs to read and to compute depends
//! on its shape and format, not on what it has learnt, and these need no download.
//!
//! A file says what it is in its own metadata, so a run that was broken off is taken up by the next one, and a
//! finished file is recognised. The same options always give the same bytes.
//!
//! # Routing
//! What an expert cache gains depends on how uneven the routers' choices are. Here all embeddings share a direction,
//! along which every router row is shifted by `skew` times the expert's popularity (a standard normal number); the
//! shift is relative to the deviation of the router's logits, so 0 makes all experts alike.
//! The default was chosen so that the cache statistics are those of the trained demo model, over all layers, with its
//! 32 experts of which a token uses 4 (demo: mean of its stories and its tool dialogues; here: 400 random tokens):
//!
//! | | demo | skew 0.4 |
//! |---|---|---|
//! | experts shared by consecutive tokens, over chance | 1.71 (1.29 to 2.26) | 1.72 (1.25 to 2.14) |
//! | hit rate of an LRU cache for 1/8 of a layer | 0.15 | 0.15 |
//! | ... 1/4 | 0.34 | 0.35 |
//! | ... 1/2 | 0.65 | 0.66 |
//! | entropy of the experts' shares, in bits of 5 | 4.79 | 4.58 |
//!
//! The demo model's shares are more even: half of what its tokens share comes from neighbours being about the same
//! thing, which random weights do not know. The fewer of its experts a token uses, the steeper the same skew is: with
//! 8 of 256 consecutive tokens share 1.9 times as many as by chance, with 10 of 512 twice as many.

mod config;
mod fill;
mod shape;
mod tensors;
mod vocab;
mod write;

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use files::{Error, Result};

pub use shape::{DeltaShape, Shape};
pub use write::check_free_space;

use tensors::Weights;

/// The skew of the routers where none is asked for.
pub const DEFAULT_SKEW: f64 = 0.4;

/// Changes whenever the same options would give other bytes.
const GENERATOR: u32 = 1;

/// How the weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A directory as mlx-lm writes it: affine, group 64, 4 bits, routers and shared expert gates at 8.
    Mlx4Bit,
    /// A GGUF file with the formats that `llama-quantize` picks for Q4_K_M.
    GgufQ4K,
    /// A GGUF file with the formats that `llama-quantize` picks for Q4_0.
    GgufQ4_0,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 3] = [Layout::Mlx4Bit, Layout::GgufQ4K, Layout::GgufQ4_0];
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Mlx4Bit => "mlx-4bit",
            Layout::GgufQ4K => "gguf-q4_k",
            Layout::GgufQ4_0 => "gguf-q4_0",
        })
    }
}

impl FromStr for Layout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|layout| layout.to_string() == name).ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Layout::to_string).collect();
            Error::invalid(format!("no layout {name:?}; these are: {}", names.join(", ")))
        })
    }
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SynthOptions {
    /// The shape.
    pub shape: Shape,
    /// How it is stored.
    pub layout: Layout,
    /// Which of the random models.
    pub seed: u64,
    /// How uneven the routers' choices are; see the module's text.
    pub skew: f64,
    /// Layers from the first on whose experts are written. Those of the others are zeros, and holes of the file where
    /// the file system has holes: a model too large for a drive is then read as if it were there.
    pub expert_layers: usize,
}

impl SynthOptions {
    /// The model of seed 0 with the default skew.
    pub fn new(shape: Shape, layout: Layout) -> Self {
        Self { shape, layout, seed: 0, skew: DEFAULT_SKEW, expert_layers: shape.layers }
    }

    /// Whether the experts of this layer are zeros.
    fn is_hole(&self, layer: Option<usize>) -> bool {
        layer.is_some_and(|layer| layer >= self.expert_layers)
    }

    fn check(&self) -> Result<()> {
        if !self.skew.is_finite() || !(0.0..=8.0).contains(&self.skew) {
            return Err(Error::invalid(format!("a skew of {} is not in 0..=8", self.skew)));
        }
        Ok(())
    }

    /// Everything that decides the bytes; stands in the metadata of every file.
    fn describe(&self) -> String {
        let Self { shape, layout, seed, skew, expert_layers } = self;
        let experts = match *expert_layers < shape.layers {
            true => format!(", experts in {expert_layers}"),
            false => String::new(),
        };
        format!(
            "random weights by tidemill synth: {}, {} layers{experts}, {layout}, seed {seed}, skew {skew}, \
             generator {GENERATOR}",
            shape.name, shape.layers
        )
    }
}

/// How large a model is, by its parts; from the shape alone, nothing is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynthSizes {
    /// Tensors.
    pub tensors: usize,
    /// Weights, as they are counted in a model's name.
    pub parameters: u64,
    /// Tensor bytes that every token needs.
    pub resident_bytes: u64,
    /// Tensor bytes of all routed experts.
    pub experts_bytes: u64,
    /// Tensor bytes of the largest expert.
    pub expert_bytes: u64,
    /// Tensor bytes of the routed experts that one token uses.
    pub token_expert_bytes: u64,
}

/// The sizes of a shape in a layout.
///
/// # Errors
/// `InvalidRequest` for options that no model can have.
pub fn sizes(options: &SynthOptions) -> Result<SynthSizes> {
    options.check()?;
    let shape = &options.shape;
    let mut sizes = SynthSizes::default();
    // The three matrices of a layer's experts are neighbours in no layout, so they are summed by layer.
    let mut layers = vec![0u64; shape.layers];
    for tensor in tensors::tensors(options) {
        let bytes = tensor_bytes(&tensor)?;
        sizes.tensors += 1;
        sizes.parameters += tensor.values();
        match tensor.layer().filter(|_| tensor.is_expert) {
            Some(layer) => layers[layer] += bytes,
            None => sizes.resident_bytes += bytes,
        }
    }
    let experts = shape.experts as u64;
    sizes.experts_bytes = layers.iter().sum();
    sizes.expert_bytes = layers.iter().max().copied().unwrap_or(0) / experts;
    sizes.token_expert_bytes = sizes.experts_bytes / experts * shape.top_k as u64;
    Ok(sizes)
}

fn tensor_bytes(tensor: &Weights) -> Result<u64> {
    Ok(tensor.rows() as u64 * tensor.format().whole_row_bytes(tensor.filler.cols)? as u64)
}

/// Called with bytes done and bytes in all; may break off, and the next run goes on from there.
pub type SynthProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthesised {
    /// What to open: the directory, or the GGUF file.
    pub path: PathBuf,
    /// Bytes of all weight files.
    pub bytes: u64,
    /// Bytes that this run wrote; the others were there.
    pub written_bytes: u64,
}

/// Writes a model to `out`: the directory (MLX), or the GGUF file or a directory to put it in.
///
/// What a run that was broken off has left is gone on with, as far as it is of the same options. Files under way end
/// in `.partial`.
///
/// # Errors
/// `Cancelled` when `progress` broke off; `Io` when the drive has no room (before anything is written, where the
/// system tells) or fails; `InvalidRequest` when `out` holds another model, or for options that no model can have.
pub fn synth(options: &SynthOptions, out: &Path, progress: SynthProgress<'_>) -> Result<Synthesised> {
    options.check()?;
    match options.layout {
        Layout::Mlx4Bit => write::mlx(options, out, progress),
        Layout::GgufQ4K | Layout::GgufQ4_0 => write::gguf(options, &gguf_path(options, out), progress),
    }
}

fn gguf_path(options: &SynthOptions, out: &Path) -> PathBuf {
    if out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return out.to_path_buf();
    }
    let kind = if options.layout == Layout::GgufQ4K { "Q4_K_M" } else { "Q4_0" };
    out.join(format!("{}-{kind}.gguf", options.shape.name))
}

#[cfg(test)]
mod tests {
    use files::Format;

    use super::*;

    /// 3 x (2,097,152 + 131,072 + 131,072) bytes an expert, 512 of them in each of 60 layers.
    #[test]
    fn the_flagship_has_the_published_sizes() {
        let shape = Shape::find("Qwen3.5-397B-A17B").unwrap();
        let sizes = sizes(&SynthOptions::new(shape, Layout::Mlx4Bit)).unwrap();
        assert_eq!(sizes.expert_bytes, 7_077_888);
        assert_eq!(sizes.experts_bytes, 60 * 512 * 7_077_888);
        assert_eq!(sizes.token_expert_bytes, 60 * 10 * 7_077_888);
        // 5.5 GB with the vision tower, which is left out here.
        assert!((4.6e9..5.6e9).contains(&(sizes.resident_bytes as f64)), "{}", sizes.resident_bytes);
        assert!((396e9..398e9).contains(&(sizes.parameters as f64)), "{}", sizes.parameters);
    }

    #[test]
    fn parameters_are_those_of_the_names() {
        for (name, billions) in [
            ("qwen3-235b-a22b", 235.1),
            ("qwen3.5-122b-a10b", 122.1),
            ("qwen3.5-35b-a3b", 34.7),
            ("qwen3-30b-a3b", 30.5),
            ("qwen3.5-moe-3.5b", 3.55),
            ("qwen3-moe-1.7b", 1.76),
        ] {
            for layout in Layout::ALL {
                let options = SynthOptions::new(Shape::find(name).unwrap(), layout);
                let found = sizes(&options).unwrap().parameters as f64 / 1e9;
                assert!((found / billions - 1.0).abs() < 0.01, "{name} {layout}: {found}");
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = Shape::find("qwen9").unwrap_err();
        assert!(error.message().contains("qwen3.5-35b-a3b"), "{error}");
        assert!("gguf".parse::<Layout>().unwrap_err().message().contains("gguf-q4_0"));
        let shape = Shape::find("qwen3-moe-tiny").unwrap();
        assert!(shape.with_layers(0).is_err() && shape.with_layers(5).is_err());
        let options = SynthOptions { skew: f64::NAN, ..SynthOptions::new(shape, Layout::Mlx4Bit) };
        assert!(sizes(&options).is_err());
    }

    #[test]
    fn affine_is_group_64_throughout() {
        for shape in Shape::all() {
            for tensor in tensors::tensors(&SynthOptions::new(*shape, Layout::Mlx4Bit)) {
                if let Format::Affine { .. } = tensor.format() {
                    assert!(tensor.filler.cols.is_multiple_of(64), "{}", tensor.name);
                }
            }
        }
    }
}
