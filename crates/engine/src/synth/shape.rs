//! The published shapes: the numbers of a model's configuration that decide which tensors it has and how large.

use files::{Error, Result};

/// The gated delta net of a hybrid model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaShape {
    /// Key (and query) heads.
    pub key_heads: usize,
    /// Value heads.
    pub value_heads: usize,
    /// Values in a head of either kind.
    pub head_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// Every how many layers one is full attention instead.
    pub full_attention_interval: usize,
}

/// The shape of a Mixture-of-Experts model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The name to ask for it by.
    pub name: &'static str,
    /// What it is the shape of, and how that was verified.
    pub source: &'static str,
    /// Layers, each with routed experts.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Tokens of the vocabulary; embedding and output head are separate.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Query heads of full attention.
    pub heads: usize,
    /// Key and value heads of full attention.
    pub kv_heads: usize,
    /// Values in a head of full attention.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token uses in a layer.
    pub top_k: usize,
    /// Width of an expert.
    pub expert_intermediate_size: usize,
    /// Width of the shared expert, where there is one (Qwen3.5).
    pub shared_intermediate_size: Option<usize>,
    /// Delta net layers (Qwen3.5: `qwen3_5_moe`), or full attention everywhere (Qwen3: `qwen3_moe`).
    pub delta: Option<DeltaShape>,
}

const QWEN3_5_CONTEXT: usize = 262_144;
const QWEN3_5_VOCAB: usize = 248_320;

/// The delta net of Qwen3.5: 16 key heads of 128, four taps, three such layers to one of full attention.
const fn qwen3_5_delta(value_heads: usize) -> Option<DeltaShape> {
    Some(DeltaShape { key_heads: 16, value_heads, head_dim: 128, conv_kernel: 4, full_attention_interval: 4 })
}

/// All shapes by falling size.
const SHAPES: [Shape; 9] = [
    Shape {
        name: "qwen3.5-397b-a17b",
        source: "Qwen3.5-397B-A17B; every number read from the GGUF metadata of public conversions",
        layers: 60,
        hidden_size: 4096,
        vocab_size: QWEN3_5_VOCAB,
        context: QWEN3_5_CONTEXT,
        heads: 32,
        kv_heads: 2,
        head_dim: 256,
        rope_theta: 1e7,
        experts: 512,
        top_k: 10,
        expert_intermediate_size: 1024,
        shared_intermediate_size: Some(1024),
        delta: qwen3_5_delta(64),
    },
    Shape {
        name: "qwen3-235b-a22b",
        source: "Qwen3-235B-A22B; numbers of public training configurations",
        layers: 94,
        hidden_size: 4096,
        vocab_size: 151_936,
        context: 40_960,
        heads: 64,
        kv_heads: 4,
        head_dim: 128,
        rope_theta: 1e6,
        experts: 128,
        top_k: 8,
        expert_intermediate_size: 1536,
        shared_intermediate_size: None,
        delta: None,
    },
    Shape {
        name: "qwen3.5-122b-a10b",
        source: "Qwen3.5-122B-A10B; numbers of public model pages, except the 64 value heads of the delta net, which \
                 are inferred: with them the parameters sum to 122.1 billion, with 32 to 120.7",
        layers: 48,
        hidden_size: 3072,
        vocab_size: QWEN3_5_VOCAB,
        context: QWEN3_5_CONTEXT,
        heads: 32,
        kv_heads: 2,
        head_dim: 256,
        rope_theta: 1e7,
        experts: 256,
        top_k: 8,
        expert_intermediate_size: 1024,
        shared_intermediate_size: Some(1024),
        delta: qwen3_5_delta(64),
    },
    Shape {
        name: "qwen3.5-35b-a3b",
        source: "Qwen3.5-35B-A3B; every number read from the GGUF metadata of public conversions and from a public \
                 training configuration, which agree",
        layers: 40,
        hidden_size: 2048,
        vocab_size: QWEN3_5_VOCAB,
        context: QWEN3_5_CONTEXT,
        heads: 16,
        kv_heads: 2,
        head_dim: 256,
        rope_theta: 1e7,
        experts: 256,
        top_k: 8,
        expert_intermediate_size: 512,
        shared_intermediate_size: Some(512),
        delta: qwen3_5_delta(32),
    },
    Shape {
        name: "qwen3-30b-a3b",
        source: "Qwen3-30B-A3B; two public training configurations, which agree",
        layers: 48,
        hidden_size: 2048,
        vocab_size: 151_936,
        context: 40_960,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        rope_theta: 1e6,
        experts: 128,
        top_k: 8,
        expert_intermediate_size: 768,
        shared_intermediate_size: None,
        delta: None,
    },
    Shape {
        name: "qwen3.5-moe-3.5b",
        source: "no published model: a small Qwen3.5 to measure processors with",
        layers: 16,
        hidden_size: 1024,
        vocab_size: 32_768,
        context: 32_768,
        heads: 8,
        kv_heads: 2,
        head_dim: 256,
        rope_theta: 1e7,
        experts: 128,
        top_k: 8,
        expert_intermediate_size: 512,
        shared_intermediate_size: Some(512),
        delta: qwen3_5_delta(32),
    },
    Shape {
        name: "qwen3-moe-1.7b",
        source: "no published model: a small Qwen3 to measure processors with",
        layers: 16,
        hidden_size: 1024,
        vocab_size: 32_768,
        context: 32_768,
        heads: 16,
        kv_heads: 4,
        head_dim: 128,
        rope_theta: 1e6,
        experts: 64,
        top_k: 8,
        expert_intermediate_size: 512,
        shared_intermediate_size: None,
        delta: None,
    },
    Shape {
        name: "qwen3.5-moe-tiny",
        source: "no published model: a few megabytes of Qwen3.5 to try things with",
        layers: 4,
        hidden_size: 256,
        vocab_size: 512,
        context: 4096,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rope_theta: 1e7,
        experts: 32,
        top_k: 4,
        expert_intermediate_size: 64,
        shared_intermediate_size: Some(64),
        delta: Some(DeltaShape {
            key_heads: 2,
            value_heads: 4,
            head_dim: 64,
            conv_kernel: 4,
            full_attention_interval: 4,
        }),
    },
    Shape {
        name: "qwen3-moe-tiny",
        source: "no published model: a few megabytes of Qwen3 to try things with",
        layers: 4,
        hidden_size: 256,
        vocab_size: 512,
        context: 4096,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rope_theta: 1e6,
        experts: 16,
        top_k: 4,
        expert_intermediate_size: 256,
        shared_intermediate_size: None,
        delta: None,
    },
];

impl Shape {
    /// All shapes by falling size.
    pub fn all() -> &'static [Shape] {
        &SHAPES
    }

    /// The shape of this name.
    ///
    /// # Errors
    /// `NotFound` with the names that there are.
    pub fn find(name: &str) -> Result<Shape> {
        SHAPES.into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
            Error::not_found(format!("no shape {name:?}; these are: {}", names.join(", ")))
        })
    }

    /// The first `layers` layers of it, kinds as in the whole.
    ///
    /// # Errors
    /// `InvalidRequest` for none, or for more than there are.
    pub fn with_layers(self, layers: usize) -> Result<Shape> {
        if layers == 0 || layers > self.layers {
            let have = self.layers;
            return Err(Error::invalid(format!("{layers} layers of {}, which has {have}", self.name)));
        }
        Ok(Shape { layers, ..self })
    }

    /// The architecture's name, as [`crate::ARCHITECTURES`] has it.
    pub fn arch(&self) -> &'static str {
        if self.delta.is_some() { "qwen3_5_moe" } else { "qwen3_moe" }
    }

    /// Whether layer `layer` is full attention.
    pub fn is_full_attention(&self, layer: usize) -> bool {
        self.delta.is_none_or(|delta| (layer + 1).is_multiple_of(delta.full_attention_interval))
    }

    /// Values of a head that turn with the position: a quarter in the hybrid models.
    pub fn rotary_dim(&self) -> usize {
        if self.delta.is_some() { self.head_dim / 4 } else { self.head_dim }
    }
}
