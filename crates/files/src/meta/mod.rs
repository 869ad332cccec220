//! One typed view over GGUF keys and `config.json`.
//!
//! Reading is lenient, so that a file of an unknown architecture can still be inspected: what is missing or absurd
//! becomes zero or `None` and is noted in [`Meta::issues`]. [`Meta::check`] turns the first of them into an error,
//! and must pass before a model is built.

mod check;
mod gguf;
pub(crate) mod hf;
mod neutral;
mod tokenizer;

pub(crate) use gguf::from_gguf;
pub use tokenizer::{ChatTemplates, GgufVocab, TokenizerConfig, TokenizerSource};

use crate::ErrorKind;

/// No model has more layers; a larger number is damage. Per-layer lists are allocated from it.
pub(crate) const MAX_LAYERS: usize = 4096;

/// No dimension or count of a model is larger.
pub(crate) const MAX_SIZE: u64 = 1 << 31;

/// Whose naming and layout the tensors have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Hugging Face transformers checkpoints.
    #[default]
    Hf,
    /// Checkpoints that mlx-lm converted.
    Mlx,
    /// GGUF files.
    Gguf,
}

/// What a model file says about its model. Sizes are counts of values.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Naming and layout of the tensors.
    pub dialect: Dialect,
    /// Hugging Face's name where Tidemill knows the architecture (`qwen3_5_moe`, `qwen3_5`, `qwen3_next`,
    /// `qwen3_moe`, `qwen3`, `qwen2`, `llama`), else the file's own.
    pub arch: String,
    /// The model's name, if the file gives one.
    pub name: Option<String>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Decoder layers, without multi-token-prediction layers.
    pub layers: usize,
    /// Layers of multi-token prediction that the files number on after the model's own. They are left out.
    pub predicted_layers: usize,
    /// Query heads of full attention.
    pub heads: usize,
    /// Key and value heads of full attention.
    pub kv_heads: usize,
    /// Width of a query, key or value head.
    pub head_dim: usize,
    /// Width of the dense MLP.
    pub intermediate_size: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub context: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeMeta,
    /// Routed experts, if the model has them.
    pub moe: Option<MoeMeta>,
    /// Gated delta rule layers, if the model has them.
    pub delta: Option<DeltaMeta>,
    /// Whether the projections of queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether `q_proj` also yields a sigmoid gate for the attention output.
    pub attn_output_gate: bool,
    /// Whether queries and keys are RMS-normalised per head.
    pub qk_norm: bool,
    /// Whether the output head is the embedding.
    pub tie_embeddings: bool,
    /// Width of an attention window that some layer really uses.
    pub sliding_window: Option<usize>,
    /// Activation of the MLPs: `silu` for every family Tidemill runs.
    pub hidden_act: String,
    /// Token that begins a text, if it is one of the vocabulary.
    pub bos: Option<u32>,
    /// Tokens that end an answer, in the order found, each once.
    pub eos: Vec<u32>,
    /// Padding token, if it is one of the vocabulary.
    pub pad: Option<u32>,
    /// Sampling that the model's makers recommend.
    pub generation: GenerationDefaults,
    /// Where the vocabulary is.
    pub tokenizer: TokenizerSource,
    /// Special tokens by text, and what the tokenizer adds around a text.
    pub tokenizer_config: TokenizerConfig,
    /// The chat template in Jinja: the default one where there are several.
    pub chat_template: Option<String>,
    /// The template for conversations with tools, where it is a separate one.
    pub tool_template: Option<String>,
    /// Every key of the file and a short form of its value, in the file's order.
    pub raw: Vec<(String, String)>,
    /// What a user should know about how the files were read: nothing that keeps the model from running.
    pub notes: Vec<String>,
    /// What was missing, absurd or not supported.
    pub issues: Vec<Issue>,
}

/// Something wrong with the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// [`ErrorKind::Corrupt`] or [`ErrorKind::Unsupported`].
    pub kind: ErrorKind,
    /// Names the file and the key.
    pub message: String,
}

/// Rotary position embedding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeMeta {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many of a head's values are rotated.
    pub rotary_dim: usize,
    /// Whether value `2i` pairs with `2i + 1` (GGUF's llama layout) rather than `i` with `i + rotary_dim / 2`.
    pub interleaved: bool,
    /// How the frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

/// Changed rotary frequencies.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// `theta ^ (-2i / rotary_dim)` as it is.
    #[default]
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the first training.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// Context extension.
        factor: f64,
        /// Context length of the first training.
        original_context: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Scale of cosine and sine; `None`: from `factor` (and `mscale`) as the paper has it.
        attention_factor: Option<f64>,
        /// DeepSeek's variant of the attention factor.
        mscale: Option<f64>,
        /// DeepSeek's variant of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// Every frequency divided by an element of this F32 tensor `[rotary_dim / 2]` (GGUF).
    Factors {
        /// The tensor's name.
        tensor: String,
    },
}

/// Routed experts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoeMeta {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts of a token.
    pub top_k: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Width of the shared expert, if there is one.
    pub shared_intermediate_size: Option<usize>,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalise_top_k: bool,
    /// For each layer whether its MLP is routed.
    pub sparse_layers: Vec<bool>,
}

/// Gated delta rule layers (Qwen3-Next, Qwen3.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeltaMeta {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a query or key head.
    pub key_head_dim: usize,
    /// Width of a value head.
    pub value_head_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// For each layer whether it is full attention rather than a delta layer.
    pub full_attention: Vec<bool>,
    /// Whether value head `v` belongs to key head `v % key_heads` (GGUF) rather than `v / (value_heads / key_heads)`.
    pub tiled_value_heads: bool,
}

/// Sampling defaults of the model's makers (`generation_config.json`, `general.sampling.*`).
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)] // the names are the keys' own
pub struct GenerationDefaults {
    pub do_sample: Option<bool>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl GenerationDefaults {
    /// Drops values that are no sampling parameters (NaN, negative), which must not reach the sampler.
    fn sanitised(mut self) -> Self {
        let sane = |v: Option<f32>, max: f32| v.filter(|v| v.is_finite() && *v >= 0.0 && *v <= max);
        self.temperature = sane(self.temperature, 100.0);
        self.top_p = sane(self.top_p, 1.0);
        self.min_p = sane(self.min_p, 1.0);
        self.repetition_penalty = sane(self.repetition_penalty, 100.0).filter(|v| *v > 0.0);
        self
    }
}

/// The architecture's name in Tidemill, from GGUF's or Hugging Face's.
fn canonical_arch(own: &str) -> String {
    let own = own.strip_suffix("_text").unwrap_or(own);
    match own {
        "qwen35moe" => "qwen3_5_moe",
        "qwen35" => "qwen3_5",
        "qwen3next" => "qwen3_next",
        "qwen3moe" => "qwen3_moe",
        other => other,
    }
    .to_string()
}

/// Whether queries and keys have norms, for architectures where the name says so.
fn has_qk_norm(arch: &str) -> Option<bool> {
    match arch {
        "qwen3_5_moe" | "qwen3_5" | "qwen3_next" | "qwen3_moe" | "qwen3" => Some(true),
        "qwen2" | "llama" => Some(false),
        _ => None,
    }
}

/// Whether the architecture has gated delta rule layers.
fn is_hybrid(arch: &str) -> bool {
    matches!(arch, "qwen3_5_moe" | "qwen3_5" | "qwen3_next")
}

/// Every `interval`-th layer is full attention.
fn every_nth(layers: usize, interval: usize) -> Vec<bool> {
    (1..=layers).map(|l| l.is_multiple_of(interval)).collect()
}
