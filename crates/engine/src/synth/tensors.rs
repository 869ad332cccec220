//! Which tensors a shape has in a layout: names, number formats, and how large their values are.
//!
//! The sizes keep activations finite and the residual stream alive: a matrix has deviation `gain / sqrt(columns)`,
//! and every block adds about [`BRANCH`] of the embedding's deviation to the stream. Adjacent layers then see
//! similar states, as in trained models, and depth dilutes what all tokens share; the router makes up for that.

use files::{Format, ScaleType};

use super::fill::{Fill, Filler, Stream};
use super::{Layout, Shape, SynthOptions};

/// What a mixer or an MLP adds to the residual stream, relative to the embedding.
const BRANCH: f32 = 0.25;

/// Deviation of router logits within a row of tokens, the popularity of experts left out.
const ROUTER_LOGIT: f32 = 1.5;

/// Mean of the embedding's common columns, relative to its deviation.
const COMMON_MEAN: f32 = 0.82;

/// A tensor of the model, whatever the files split it into.
pub(super) struct Weights {
    /// In the layout's dialect, `.weight` included.
    pub(super) name: String,
    /// In values, outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// Whether it belongs to routed experts, one for each index of the first dimension.
    pub(super) is_expert: bool,
    /// Its bytes.
    pub(super) filler: Filler,
    layer: Option<usize>,
}

impl Weights {
    pub(super) fn format(&self) -> Format {
        self.filler.format
    }

    /// Rows of the matrix, all outer dimensions together.
    pub(super) fn rows(&self) -> usize {
        self.shape.iter().product::<usize>() / self.filler.cols
    }

    /// The layer it is in.
    pub(super) fn layer(&self) -> Option<usize> {
        self.layer
    }

    pub(super) fn values(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// What decides a tensor's number format.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// An ordinary matrix.
    Plain,
    /// A matrix that `llama-quantize` gives more bits in some layers: values, and all that ends in a residual.
    Sensitive,
    /// The output head.
    Output,
    /// Chooses or gates experts.
    Gate,
    /// A vector or a convolution.
    Vector,
    /// Kept in single precision everywhere.
    Single,
}

/// All tensors, in the order in which they are written.
pub(super) fn tensors(options: &SynthOptions) -> Vec<Weights> {
    let shape = &options.shape;
    let mut plan = Planner { options, weights: Vec::new(), layer: None };
    let (hidden, vocab) = (shape.hidden_size, shape.vocab_size);
    let embedding = Fill::Embedding { sigma: 1.0, common: common_cols(shape) };
    plan.add("embed_tokens.weight", "token_embd.weight", &[vocab, hidden], Role::Plain, embedding);
    for layer in 0..shape.layers {
        plan.layer = Some(layer);
        plan.norm("input_layernorm.weight", "attn_norm.weight", hidden);
        if shape.is_full_attention(layer) {
            plan.attention();
        } else {
            plan.delta_net();
        }
        let after = if shape.delta.is_some() { "post_attention_norm.weight" } else { "ffn_norm.weight" };
        plan.norm("post_attention_layernorm.weight", after, hidden);
        plan.experts(layer);
    }
    plan.layer = None;
    plan.norm("norm.weight", "output_norm.weight", hidden);
    let head = Fill::Matrix { sigma: 2.0 / (hidden as f32).sqrt() };
    plan.add("lm_head.weight", "output.weight", &[vocab, hidden], Role::Output, head);
    if options.layout != Layout::Mlx4Bit {
        // llama-quantize's order.
        plan.weights.sort_by_cached_key(|w| (w.layer.map_or(0, |l| l + 1), w.name.clone()));
    }
    plan.weights
}

/// Columns of the residual stream in which all tokens are alike: whole groups of 64, about one in 32.
fn common_cols(shape: &Shape) -> usize {
    (shape.hidden_size / 32).next_multiple_of(64)
}

/// Where Hugging Face names of the language model begin.
pub(super) fn prefix(shape: &Shape) -> &'static str {
    if shape.delta.is_some() { "language_model." } else { "" }
}

struct Planner<'a> {
    options: &'a SynthOptions,
    weights: Vec<Weights>,
    layer: Option<usize>,
}

impl Planner<'_> {
    fn add(&mut self, hf: &str, gguf: &str, shape: &[usize], role: Role, fill: Fill) {
        let (mlx, gguf) = (self.options.layout == Layout::Mlx4Bit, gguf.to_string());
        let prefix = prefix(&self.options.shape);
        let name = match (mlx, self.layer) {
            (true, Some(layer)) => format!("{prefix}model.layers.{layer}.{hf}"),
            (true, None) if hf.starts_with("lm_head") => format!("{prefix}{hf}"),
            (true, None) => format!("{prefix}model.{hf}"),
            (false, Some(layer)) => format!("blk.{layer}.{gguf}"),
            (false, None) => gguf,
        };
        let mut cols = shape.last().copied().unwrap_or(1);
        let format = self.format(role, cols);
        let shape = match (role, mlx) {
            // mlx-lm keeps a convolution as [channels, taps, 1].
            (Role::Vector, true) if shape.len() == 2 => {
                cols = 1;
                vec![shape[0], shape[1], 1]
            }
            // GGUF holds a matrix of one row as a vector.
            (Role::Gate, false) if shape[0] == 1 => vec![shape[1]],
            _ => shape.to_vec(),
        };
        // Both dialects of a seed draw from the Hugging Face name.
        let key = format!("{:?}.{hf}", self.layer);
        let filler = Filler { format, fill, cols, stream: Stream::new(self.options.seed, &key) };
        let is_expert = hf.contains("switch_mlp");
        self.weights.push(Weights { name, shape, is_expert, filler, layer: self.layer });
    }

    fn format(&self, role: Role, cols: usize) -> Format {
        let affine = |bits| Format::Affine { bits, group: 64, scale: ScaleType::BF16 };
        let more_bits = self.layer.is_some_and(|l| more_bits(l, self.options.shape.layers));
        let format = match (self.options.layout, role) {
            (_, Role::Single) => Format::F32,
            (Layout::Mlx4Bit, Role::Vector) => Format::BF16,
            (Layout::Mlx4Bit, Role::Gate) => affine(8),
            (Layout::Mlx4Bit, _) => affine(4),
            (_, Role::Gate | Role::Vector) => Format::F32,
            (_, Role::Output) => Format::Q6K,
            (Layout::GgufQ4K, Role::Sensitive) if more_bits => Format::Q6K,
            (Layout::GgufQ4K, _) => Format::Q4K,
            (Layout::GgufQ4_0, _) => Format::Q4_0,
        };
        // What llama-quantize takes for rows that are no whole number of 256-value blocks.
        match format {
            Format::Q4K if !cols.is_multiple_of(256) => Format::Q5_0,
            Format::Q6K if !cols.is_multiple_of(256) => Format::Q8_0,
            format => format,
        }
    }

    /// A matrix `[rows, cols]` that gives unit inputs the deviation `gain`.
    fn matrix(&mut self, hf: &str, gguf: &str, shape: [usize; 2], role: Role, gain: f32) {
        let sigma = gain / (shape[1] as f32).sqrt();
        self.add(hf, gguf, &shape, role, Fill::Matrix { sigma });
    }

    fn norm(&mut self, hf: &str, gguf: &str, len: usize) {
        self.add(hf, gguf, &[len], Role::Vector, Fill::Vector { mean: 1.0, spread: 0.1 });
    }

    fn attention(&mut self) {
        let shape = self.options.shape;
        let (hidden, dim) = (shape.hidden_size, shape.head_dim);
        let gated = if shape.delta.is_some() { 2 } else { 1 };
        let (q, kv) = (shape.heads * dim, shape.kv_heads * dim);
        self.matrix("self_attn.q_proj.weight", "attn_q.weight", [gated * q, hidden], Role::Plain, 1.0);
        self.matrix("self_attn.k_proj.weight", "attn_k.weight", [kv, hidden], Role::Plain, 1.0);
        self.matrix("self_attn.v_proj.weight", "attn_v.weight", [kv, hidden], Role::Sensitive, 1.0);
        self.norm("self_attn.q_norm.weight", "attn_q_norm.weight", dim);
        self.norm("self_attn.k_norm.weight", "attn_k_norm.weight", dim);
        // Random queries look everywhere alike, so what remains of the values is what all tokens share. More gain
        // would let it take over the stream.
        self.matrix("self_attn.o_proj.weight", "attn_output.weight", [hidden, q], Role::Plain, BRANCH);
    }

    fn delta_net(&mut self) {
        let shape = self.options.shape;
        let Some(delta) = shape.delta else { return };
        let (hidden, heads, dim) = (shape.hidden_size, delta.value_heads, delta.head_dim);
        let values = heads * dim;
        let channels = 2 * delta.key_heads * dim + values;
        let qkv = "linear_attn.in_proj_qkv.weight";
        self.matrix(qkv, "attn_qkv.weight", [channels, hidden], Role::Sensitive, 1.0);
        self.matrix("linear_attn.in_proj_z.weight", "attn_gate.weight", [values, hidden], Role::Plain, 1.0);
        self.matrix("linear_attn.in_proj_a.weight", "ssm_alpha.weight", [heads, hidden], Role::Plain, 1.0);
        self.matrix("linear_attn.in_proj_b.weight", "ssm_beta.weight", [heads, hidden], Role::Plain, 1.0);
        let taps = Fill::Vector { mean: 0.0, spread: 0.87 };
        let conv = [channels, delta.conv_kernel];
        self.add("linear_attn.conv1d.weight", "ssm_conv1d.weight", &conv, Role::Vector, taps);
        let decay = Fill::Decay { logarithm: self.options.layout == Layout::Mlx4Bit };
        self.add("linear_attn.A_log", "ssm_a", &[heads], Role::Single, decay);
        let step = Fill::Vector { mean: -3.0, spread: 1.0 };
        self.add("linear_attn.dt_bias", "ssm_dt.bias", &[heads], Role::Vector, step);
        self.norm("linear_attn.norm.weight", "ssm_norm.weight", dim);
        // Its input is a normed vector times silu of a unit one, whose deviation is 0.6.
        let out = [hidden, values];
        self.matrix("linear_attn.out_proj.weight", "ssm_out.weight", out, Role::Plain, BRANCH / 0.6);
    }

    fn experts(&mut self, layer: usize) {
        let shape = self.options.shape;
        let (hidden, experts, width) = (shape.hidden_size, shape.experts, shape.expert_intermediate_size);
        let common = common_cols(&shape);
        let sigma = ROUTER_LOGIT / (hidden as f32).sqrt();
        let growth = (1.0 + (2 * layer + 1) as f32 * BRANCH * BRANCH).sqrt();
        let shift = self.options.skew as f32 * ROUTER_LOGIT * growth / (common as f32 * COMMON_MEAN);
        let router = Fill::Router { sigma, common, shift };
        self.add("mlp.gate.weight", "ffn_gate_inp.weight", &[experts, hidden], Role::Gate, router);
        // silu(unit) * unit has deviation 0.6, and a weighted mean of experts about half of that.
        let down_gain = BRANCH / 0.3;
        let matrix = |rows: usize, cols: usize, gain: f32| {
            ([experts, rows, cols], Fill::Matrix { sigma: gain / (cols as f32).sqrt() })
        };
        for (hf, gguf, role, (shape, fill)) in [
            ("gate", "ffn_gate_exps.weight", Role::Plain, matrix(width, hidden, 1.0)),
            ("up", "ffn_up_exps.weight", Role::Plain, matrix(width, hidden, 1.0)),
            ("down", "ffn_down_exps.weight", Role::Sensitive, matrix(hidden, width, down_gain)),
        ] {
            self.add(&format!("mlp.switch_mlp.{hf}_proj.weight"), gguf, &shape, role, fill);
        }
        let Some(width) = shape.shared_intermediate_size else { return };
        for (hf, gguf, role, shape, gain) in [
            ("gate", "ffn_gate_shexp.weight", Role::Plain, [width, hidden], 1.0),
            ("up", "ffn_up_shexp.weight", Role::Plain, [width, hidden], 1.0),
            ("down", "ffn_down_shexp.weight", Role::Sensitive, [hidden, width], down_gain),
        ] {
            self.matrix(&format!("mlp.shared_expert.{hf}_proj.weight"), gguf, shape, role, gain);
        }
        self.matrix(
            "mlp.shared_expert_gate.weight",
            "ffn_gate_inp_shexp.weight",
            [1, hidden],
            Role::Gate,
            1.0,
        );
    }
}

/// The layers in which `llama-quantize`'s Q4_K_M spends more bits: the first and the last eighth, and every third.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
