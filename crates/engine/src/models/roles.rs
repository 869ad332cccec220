//! What a text model may leave alone, known by what it is for.
//!
//! A tensor that has no place in a model is refused, since a model that drops weights answers wrongly. These have no
//! place because text needs none of them, whatever the converter called the tree that they hang in.

use files::Dialect;

/// Where the tensors of a text model end.
#[derive(Clone, Copy)]
pub(super) struct Roles {
    pub(super) dialect: Dialect,
    /// What the names of the language model begin with.
    pub(super) prefix: &'static str,
    /// The model's own layers.
    pub(super) layers: usize,
    /// Layers of multi-token prediction, numbered on.
    pub(super) predicted_layers: usize,
    /// Whether the output head is the embedding.
    pub(super) tied: bool,
}

/// Roles that text does not need, for people.
const PREDICTION: &str = "multi-token prediction";
const VISION: &str = "vision tower";
const AUDIO: &str = "audio tower";
const ROTARY: &str = "rotary tables";
const HEAD: &str = "output head that is the embedding";
const BUFFERS: &str = "buffers of training";

impl Roles {
    /// What a tensor is for, if a text model does not need it.
    pub(super) fn spare(&self, name: &str) -> Option<&'static str> {
        match self.dialect {
            Dialect::Gguf => self.spare_gguf(name),
            Dialect::Hf | Dialect::Mlx => self.spare_hf(name),
        }
    }

    fn is_predicted(&self, layer: &str) -> bool {
        let range = self.layers..self.layers.saturating_add(self.predicted_layers);
        layer.parse::<usize>().is_ok_and(|layer| range.contains(&layer))
    }

    fn spare_gguf(&self, name: &str) -> Option<&'static str> {
        let mut parts = name.split('.');
        match (parts.next()?, parts.next()?) {
            ("blk", layer) if self.is_predicted(layer) => Some(PREDICTION),
            ("blk", _) if matches!(parts.next(), Some("attn_rot_embd" | "rope_freqs")) => Some(ROTARY),
            ("mtp", _) => Some(PREDICTION),
            // Projectors that were put into the model's own file.
            ("v" | "mm" | "vision", _) => Some(VISION),
            ("a", _) => Some(AUDIO),
            _ => None,
        }
    }

    fn spare_hf(&self, name: &str) -> Option<&'static str> {
        let own = name.strip_prefix(self.prefix).unwrap_or(name);
        if let Some(layer) = own.strip_prefix("layers.").and_then(|rest| rest.split('.').next())
            && self.is_predicted(layer)
        {
            return Some(PREDICTION);
        }
        let is_head = |part: &str| part == "lm_head";
        if self.tied && name.split('.').any(is_head) {
            return Some(HEAD);
        }
        if name.ends_with("._extra_state") || name.starts_with("v_head.") {
            return Some(BUFFERS);
        }
        name.split('.').find_map(|part| match part {
            "mtp" | "mtp_layers" | "mtp_block" => Some(PREDICTION),
            "visual"
            | "vision"
            | "vision_tower"
            | "vision_model"
            | "vision_encoder"
            | "image_newline"
            | "multi_modal_projector"
            | "mm_projector"
            | "embed_vision" => Some(VISION),
            "audio_tower" | "audio_model" | "audio_encoder" | "embed_audio" => Some(AUDIO),
            "rotary_emb" | "rotary_pos_emb" => Some(ROTARY),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HF: Roles = Roles {
        dialect: Dialect::Hf,
        prefix: "model.language_model.",
        layers: 4,
        predicted_layers: 1,
        tied: false,
    };

    #[test]
    fn names_of_converters_have_the_same_roles() {
        for (name, role) in [
            ("mtp.layers.0.mlp.gate_proj.weight", Some(PREDICTION)),
            ("model.language_model.mtp.fc.weight", Some(PREDICTION)),
            ("language_model.mtp.norm.weight", Some(PREDICTION)),
            ("model.language_model.layers.4.eh_proj.weight", Some(PREDICTION)),
            ("model.language_model.layers.5.eh_proj.weight", None),
            ("model.language_model.layers.3.self_attn.q_proj.weight", None),
            ("model.language_model.layers.0.self_attn.rotary_emb.inv_freq", Some(ROTARY)),
            ("model.visual.blocks.0.attn.qkv.weight", Some(VISION)),
            ("vision_tower.blocks.0.attn.qkv.weight", Some(VISION)),
            ("model.multi_modal_projector.linear.weight", Some(VISION)),
            ("model.layers.0.self_attn.q_proj._extra_state", Some(BUFFERS)),
            ("lm_head.weight", None),
            ("model.language_model.layers.0.mlp.experts.0.gate_proj.lora_A", None),
            ("revision.weight", None),
        ] {
            assert_eq!(HF.spare(name), role, "{name}");
        }
        let tied = Roles { tied: true, ..HF };
        assert_eq!(tied.spare("language_model.lm_head.weight"), Some(HEAD));
    }

    #[test]
    fn gguf_blocks_after_the_model_are_for_prediction() {
        let gguf = Roles { dialect: Dialect::Gguf, prefix: "", ..HF };
        for (name, role) in [
            ("blk.4.nextn.eh_proj.weight", Some(PREDICTION)),
            ("blk.4.attn_q.weight", Some(PREDICTION)),
            ("blk.5.attn_q.weight", None),
            ("blk.3.nextn.eh_proj.weight", None),
            ("blk.0.attn_rot_embd.weight", Some(ROTARY)),
            ("v.blk.0.attn_q.weight", Some(VISION)),
            ("mm.0.weight", Some(VISION)),
            ("output.weight", None),
            ("token_types.weight", None),
        ] {
            assert_eq!(gguf.spare(name), role, "{name}");
        }
        assert_eq!(Roles { predicted_layers: 0, ..gguf }.spare("blk.4.attn_q.weight"), None);
    }
}
