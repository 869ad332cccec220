//! Keys that change a model's numbers in a way that nothing here computes, and the values at which they change nothing.
//!
//! A file that has such a key with another value is refused by the key's name: run without it, the model would answer
//! wrongly and nobody would know. A key that is computed has no row here.

use super::Meta;

/// When a key changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
    /// Not given, or nothing: null, an empty list or object.
    Absent,
    /// Zero or false, for each layer where there is a list.
    Zero,
    /// A factor of one.
    One,
    /// One, or zero where that means that there is none.
    ZeroOrOne,
    /// True.
    True,
    /// One of these words, in any case.
    Words(&'static [&'static str]),
    /// Whether queries and keys are normed.
    QkNorm,
    /// The width of a head.
    HeadDim,
    /// The rotated values of a head.
    RotaryDim,
    /// The plain scale of attention scores, `head_dim ^ -0.5`.
    Scale,
    /// The same, or zero where that means the plain one.
    ZeroOrScale,
}

use Neutral::*;

type Row = (&'static str, Neutral);

/// SiLU, by its names.
const SILU: Neutral = Words(&["silu", "swish"]);
const SOFTMAX: Neutral = Words(&["softmax"]);
const RMS: Neutral = Words(&["rmsnorm", "rms_norm", "rms"]);

/// Keys of `config.json`.
pub(super) const HF: &[Row] = &[
    // activations and biases
    ("hidden_act", SILU),
    ("hidden_activation", SILU),
    ("activation_function", SILU),
    ("mlp_bias", Zero),
    // attention
    ("is_causal", True),
    ("use_bidirectional_attention", Zero),
    ("attn_logit_softcapping", Zero),
    ("attention_multiplier", Scale),
    ("query_pre_attn_scalar", HeadDim),
    ("attn_temperature_tuning", Zero),
    ("clip_qkv", Zero),
    ("alibi", Zero),
    ("use_alibi", Zero),
    ("position_embedding_type", Words(&["rope", "rotary"])),
    ("rope_interleave", Zero),
    ("rope_interleaved", Zero),
    ("rope_local_base_freq", Absent),
    ("rope_ratio", One),
    ("rope_scaling_factor", One),
    ("rotary_pct", One),
    ("rotary_dim", RotaryDim),
    ("no_rope_layers", Absent),
    ("no_rope_layer_interval", Zero),
    ("use_dynamic_ntk", Zero),
    ("use_logn_attn", Zero),
    ("attention_chunk_size", Absent),
    ("num_kv_shared_layers", Zero),
    ("cla_share_factor", ZeroOrOne),
    ("use_qk_norm", QkNorm),
    ("qk_norm", QkNorm),
    ("qk_layernorm", QkNorm),
    // norms and the residual stream
    ("norm_type", RMS),
    ("normalization_type", RMS),
    ("layer_norm_type", RMS),
    ("use_post_norm", Zero),
    ("sandwich_norm", Zero),
    ("apply_residual_connection_post_layernorm", Zero),
    ("use_parallel_residual", Zero),
    ("parallel_attn", Zero),
    ("embedding_multiplier", One),
    ("residual_multiplier", One),
    ("logits_scaling", One),
    ("logit_scale", One),
    ("lm_head_multiplier", One),
    ("scale_emb", One),
    ("scale_depth", Absent),
    ("dim_model_base", Absent),
    ("embed_scale", One),
    ("scale_embedding", Zero),
    ("scale_embeddings", Zero),
    ("final_logit_softcapping", Zero),
    ("logits_soft_cap", Zero),
    ("mup_enabled", Zero),
    ("use_mup", Zero),
    ("hidden_size_per_layer_input", Zero),
    // experts
    ("scoring_func", SOFTMAX),
    ("score_function", SOFTMAX),
    ("score_func", SOFTMAX),
    ("moe_router_score_function", SOFTMAX),
    ("topk_method", Words(&["greedy"])),
    ("routed_scaling_factor", One),
    ("moe_routed_scaling_factor", One),
    ("moe_router_topk_scaling_factor", One),
    ("n_group", ZeroOrOne),
    ("topk_group", ZeroOrOne),
    ("num_expert_group", ZeroOrOne),
    ("moe_router_enable_expert_bias", Zero),
    ("use_expert_bias", Zero),
    ("router_logit_softcapping", Zero),
    ("zero_expert_num", Zero),
    ("swiglu_limit", Zero),
    ("swiglu_alpha", ZeroOrOne),
];

/// Keys of GGUF files, after the architecture's name.
pub(super) const GGUF: &[Row] = &[
    ("hidden_act", SILU),
    ("hidden_activation", SILU),
    ("use_parallel_residual", Zero),
    ("swin_norm", Zero),
    ("logit_scale", ZeroOrOne),
    ("residual_scale", ZeroOrOne),
    ("embedding_scale", ZeroOrOne),
    ("attn_logit_softcapping", Zero),
    ("router_logit_softcapping", Zero),
    ("final_logit_softcapping", Zero),
    ("activation_sparsity_scale", Zero),
    ("embedding_length_per_layer_input", Zero),
    ("token_shift_count", Zero),
    ("attention.causal", True),
    ("attention.clamp_kqv", Zero),
    ("attention.max_alibi_bias", Zero),
    ("attention.scale", ZeroOrScale),
    ("attention.output_scale", ZeroOrOne),
    ("attention.temperature_scale", Zero),
    ("attention.temperature_length", Zero),
    ("attention.value_length", HeadDim),
    ("attention.q_lora_rank", Zero),
    ("attention.kv_lora_rank", Zero),
    ("attention.shared_kv_layers", Zero),
    ("attention.relative_buckets_count", Zero),
    ("attention.indexer.top_k", Zero),
    ("rope.scaling.alpha", ZeroOrOne),
    ("rope.scaling.attn_factor", One),
    ("rope.scaling.yarn_ext_factor", One),
    ("rope.scaling.yarn_attn_factor", One),
    ("rope.scaling.yarn_log_multiplier", Zero),
    ("expert_weights_scale", ZeroOrOne),
    ("expert_gating_func", ZeroOrOne),
    ("expert_group_count", ZeroOrOne),
    ("expert_group_used_count", ZeroOrOne),
    ("expert_group_scale", ZeroOrOne),
    ("moe_latent_size", Zero),
    ("swiglu_clamp_exp", Zero),
    ("swiglu_clamp_shexp", Zero),
    ("ssm.dt_b_c_rms", Zero),
    ("ssm.v_head_reordered", True),
];

/// A key's value, whichever kind of file it is from.
#[derive(Debug)]
pub(super) enum Given {
    /// Null, or an empty list or object.
    Nothing,
    Flag(bool),
    Number(f64),
    Word(String),
    /// Numbers and flags, for each layer.
    List(Vec<f64>),
    /// Anything else.
    Other,
}

impl Neutral {
    /// Whether `given` changes nothing in the model of `meta`.
    pub(super) fn holds(self, given: &Given, meta: &Meta) -> bool {
        let scale = (meta.head_dim as f64).powf(-0.5);
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
        match (self, given) {
            (_, Given::Nothing) => true,
            (Absent, _) => false,
            (Zero, Given::Flag(flag)) => !flag,
            (Zero, Given::List(list)) => list.iter().all(|&n| n == 0.0),
            (True, Given::Flag(flag)) => *flag,
            (QkNorm, Given::Flag(flag)) => *flag == meta.qk_norm,
            (Words(words), Given::Word(word)) => words.iter().any(|w| w.eq_ignore_ascii_case(word)),
            (_, Given::Number(n)) => match self {
                Zero => *n == 0.0,
                One => *n == 1.0,
                ZeroOrOne => *n == 0.0 || *n == 1.0,
                True => *n == 1.0,
                HeadDim => *n == meta.head_dim as f64,
                RotaryDim => *n == meta.rope.rotary_dim as f64,
                Scale => near(*n, scale),
                ZeroOrScale => *n == 0.0 || near(*n, scale),
                QkNorm => *n == f64::from(u8::from(meta.qk_norm)),
                Absent | Words(_) => false,
            },
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_change_nothing() {
        let meta = Meta { head_dim: 64, qk_norm: true, ..Meta::default() };
        let holds = |neutral: Neutral, given: Given| neutral.holds(&given, &meta);
        let number = Given::Number;
        assert!(holds(Absent, Given::Nothing) && !holds(Absent, number(0.0)));
        assert!(
            holds(Zero, number(0.0)) && holds(Zero, Given::Flag(false)) && !holds(Zero, number(f64::NAN))
        );
        assert!(holds(Zero, Given::List(vec![0.0, 0.0])) && !holds(Zero, Given::List(vec![0.0, 1.0])));
        assert!(holds(One, number(1.0)) && !holds(One, number(0.0)) && holds(ZeroOrOne, number(0.0)));
        assert!(holds(True, Given::Flag(true)) && !holds(True, Given::Flag(false)));
        assert!(holds(SILU, Given::Word("SiLU".into())) && !holds(SILU, Given::Word("relu".into())));
        assert!(
            !holds(SILU, number(1.0)) && !holds(One, Given::Word("one".into())) && !holds(Zero, Given::Other)
        );
        assert!(holds(QkNorm, Given::Flag(true)) && !holds(QkNorm, Given::Flag(false)));
        assert!(holds(HeadDim, number(64.0)) && !holds(HeadDim, number(32.0)));
        assert!(holds(Scale, number(0.125)) && !holds(Scale, number(0.0)) && holds(ZeroOrScale, number(0.0)));
    }

    #[test]
    fn no_key_has_two_rows() {
        for table in [HF, GGUF] {
            let mut keys: Vec<&str> = table.iter().map(|(key, _)| *key).collect();
            keys.sort_unstable();
            assert!(keys.windows(2).all(|w| w[0] != w[1]));
        }
    }
}
