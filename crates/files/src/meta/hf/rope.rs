//! Rotary position embedding in `config.json`.

use serde_json::{Map, Value};

use super::Keys;
use crate::ErrorKind;
use crate::gguf::short_text;
use crate::meta::{RopeMeta, RopeScaling, is_hybrid};

impl Keys<'_> {
    pub(super) fn rope(&mut self, arch: &str, head_dim: usize) -> RopeMeta {
        let section = self.rope_section();
        let theta = self.rope_number(&section, "rope_theta").unwrap_or(10_000.0);
        let default_partial = if is_hybrid(arch) { 0.25 } else { 1.0 };
        let partial = self.rope_number(&section, "partial_rotary_factor").unwrap_or(default_partial);
        RopeMeta {
            theta,
            rotary_dim: (head_dim as f64 * partial) as usize,
            // MLX's word for pairs that are neighbours.
            interleaved: self.flag("rope_traditional").unwrap_or(false),
            scaling: self.rope_scaling(&section),
        }
    }

    /// transformers 5 gathers in `rope_parameters` what `rope_theta`, `rope_scaling` and `partial_rotary_factor` were
    /// before. A file may have both, if they agree.
    fn rope_section(&mut self) -> Map<String, Value> {
        let mut section = self.object("rope_parameters");
        // One section for each kind of layer; only one kind of attention is computed.
        if let Some(Value::Object(full)) = section.get("full_attention") {
            section = full.clone();
        } else if let Some(kind) =
            section.iter().find(|(_, v)| v.is_object()).map(|(kind, _)| short_text(kind))
        {
            self.issue(ErrorKind::Unsupported, format!("rope_parameters for {kind} are not supported"));
        }
        for (key, value) in self.object("rope_scaling") {
            match section.get(&key) {
                Some(other) if *other != value && !value.is_null() => {
                    let what = format!("rope_scaling and rope_parameters differ in {}", short_text(&key));
                    self.issue(ErrorKind::Corrupt, what);
                }
                _ => drop(section.insert(key, value)),
            }
        }
        section
    }

    /// A number of the section, or of the config itself.
    fn rope_number(&mut self, section: &Map<String, Value>, key: &str) -> Option<f64> {
        let Some(value) = section.get(key).filter(|v| !v.is_null()) else {
            return self.number(key);
        };
        let number = value.as_f64().filter(|n| n.is_finite());
        if number.is_none() {
            self.corrupt_value(key, "a number", value);
        }
        number
    }

    fn rope_scaling(&mut self, section: &Map<String, Value>) -> RopeScaling {
        let kind =
            ["rope_type", "type"].into_iter().find_map(|key| section.get(key).filter(|v| !v.is_null()));
        let kind = match kind {
            None => "default".to_string(),
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => {
                self.corrupt_value("rope_type", "text", other);
                return RopeScaling::None;
            }
        };
        match kind.as_str() {
            // Text positions are equal in all sections of a multimodal rope, so it is the plain one.
            "default" | "mrope" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.rope_factor(section, "factor") },
            "llama3" => RopeScaling::Llama3 {
                factor: self.rope_factor(section, "factor"),
                low_freq_factor: self.rope_factor(section, "low_freq_factor"),
                high_freq_factor: self.rope_factor(section, "high_freq_factor"),
                original_context: self.rope_factor(section, "original_max_position_embeddings") as usize,
            },
            "yarn" => self.yarn(section),
            other => {
                let what = format!("rope scaling {:?} is not supported", short_text(other));
                self.issue(ErrorKind::Unsupported, what);
                RopeScaling::None
            }
        }
    }

    /// A number above zero that must be there.
    fn rope_factor(&mut self, section: &Map<String, Value>, key: &str) -> f64 {
        let number = section.get(key).and_then(Value::as_f64);
        number.filter(|n| n.is_finite() && *n > 0.0).unwrap_or_else(|| {
            self.issue(ErrorKind::Corrupt, format!("rope scaling: {key} is missing or absurd"));
            1.0
        })
    }

    fn yarn(&mut self, section: &Map<String, Value>) -> RopeScaling {
        let factor = self.rope_factor(section, "factor");
        let mut optional = |key: &str| self.rope_number(section, key);
        // A key outside of the section goes before one in it, as in transformers.
        let own_context = optional("max_position_embeddings");
        let original = optional("original_max_position_embeddings").or(own_context).unwrap_or(0.0);
        let (beta_fast, beta_slow) = (optional("beta_fast"), optional("beta_slow"));
        let (mscale, mscale_all_dim) = (optional("mscale"), optional("mscale_all_dim"));
        let attention_factor = optional("attention_factor");
        let truncate = match section.get("truncate").filter(|v| !v.is_null()).cloned() {
            Some(value) => self.as_flag("truncate", &value).unwrap_or(true),
            None => true,
        };
        let outer = self.number("original_max_position_embeddings");
        // A zero stands for "as the paper has it".
        let or = |value: Option<f64>, default: f64| value.filter(|n| *n != 0.0).unwrap_or(default);
        RopeScaling::Yarn {
            factor,
            original_context: outer.unwrap_or(original) as usize,
            beta_fast: or(beta_fast, 32.0),
            beta_slow: or(beta_slow, 1.0),
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        }
    }
}
