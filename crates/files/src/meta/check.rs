//! What must hold before a model is built from its metadata.

use super::{DeltaMeta, MAX_SIZE, Meta, MoeMeta, RopeScaling};
use crate::{Error, Result};

impl Meta {
    /// Errors unless the metadata describes a model: every size is there, and sizes fit each other.
    ///
    /// # Errors
    /// The first of [`Meta::issues`], or the first contradiction between fields.
    pub fn check(&self) -> Result<()> {
        if let Some(issue) = self.issues.first() {
            return Err(Error::new(issue.kind, issue.message.clone()));
        }
        for (name, size) in [
            ("hidden_size", self.hidden_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("context", self.context),
        ] {
            at_least_one(name, size)?;
        }
        divides("kv_heads", self.kv_heads, "heads", self.heads)?;
        small("heads * head_dim", &[self.heads, self.head_dim, 2])?;
        small("hidden_size * head_dim", &[self.hidden_size, self.head_dim])?;
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(Error::corrupt(format!("rms_norm_eps is {}", self.rms_norm_eps)));
        }
        self.check_rope()?;
        self.check_tokens()?;
        match &self.moe {
            Some(moe) => moe.check(self.layers)?,
            None if self.intermediate_size.is_none() => {
                return Err(Error::corrupt("neither a dense MLP's width nor experts are given"));
            }
            None => {}
        }
        if let Some(delta) = &self.delta {
            delta.check(self.layers)?;
        }
        if let Some(window) = self.sliding_window {
            return Err(Error::unsupported(format!("sliding-window attention (of {window} positions)")));
        }
        Ok(())
    }

    fn check_rope(&self) -> Result<()> {
        let rope = &self.rope;
        if !(rope.theta.is_finite() && rope.theta > 0.0) {
            return Err(Error::corrupt(format!("the rotary base is {}", rope.theta)));
        }
        if rope.rotary_dim == 0 || rope.rotary_dim > self.head_dim || !rope.rotary_dim.is_multiple_of(2) {
            let (dim, head_dim) = (rope.rotary_dim, self.head_dim);
            return Err(Error::corrupt(format!("{dim} rotated values in a head of {head_dim}")));
        }
        match rope.scaling {
            RopeScaling::Llama3 { low_freq_factor: low, high_freq_factor: high, .. } if low >= high => {
                Err(Error::corrupt(format!("rope scaling: low_freq_factor {low}, high_freq_factor {high}")))
            }
            RopeScaling::Yarn { beta_fast: fast, beta_slow: slow, .. } if !(slow > 0.0 && fast >= slow) => {
                Err(Error::corrupt(format!("YaRN rope scaling: beta_fast {fast}, beta_slow {slow}")))
            }
            RopeScaling::Yarn { original_context: context, .. }
            | RopeScaling::Llama3 { original_context: context, .. } => {
                at_least_one("rope scaling's original context", context)
            }
            _ => Ok(()),
        }
    }

    /// The other special tokens are none where they lie outside: a model runs without them, but it must end.
    fn check_tokens(&self) -> Result<()> {
        match self.eos.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => {
                Err(Error::corrupt(format!("end-of-text token {id} in a vocabulary of {}", self.vocab_size)))
            }
            None => Ok(()),
        }
    }
}

impl MoeMeta {
    fn check(&self, layers: usize) -> Result<()> {
        at_least_one("experts", self.experts)?;
        at_least_one("experts per token", self.top_k)?;
        at_least_one("expert width", self.intermediate_size)?;
        if self.top_k > self.experts {
            return Err(Error::corrupt(format!("{} of {} experts per token", self.top_k, self.experts)));
        }
        if self.sparse_layers.len() != layers {
            return Err(Error::corrupt(format!("{} layers, {} MLP kinds", layers, self.sparse_layers.len())));
        }
        Ok(())
    }
}

impl DeltaMeta {
    fn check(&self, layers: usize) -> Result<()> {
        for (name, size) in [
            ("linear key heads", self.key_heads),
            ("linear value heads", self.value_heads),
            ("linear key head width", self.key_head_dim),
            ("linear value head width", self.value_head_dim),
            ("linear convolution taps", self.conv_kernel),
        ] {
            at_least_one(name, size)?;
        }
        divides("linear key heads", self.key_heads, "linear value heads", self.value_heads)?;
        small("linear value heads' state", &[self.value_heads, self.value_head_dim, self.key_head_dim])?;
        small("linear key heads' width", &[self.key_heads, self.key_head_dim, self.conv_kernel])?;
        if self.full_attention.len() != layers {
            return Err(Error::corrupt(format!(
                "{} layers, {} layer kinds",
                layers,
                self.full_attention.len()
            )));
        }
        Ok(())
    }
}

fn at_least_one(name: &str, size: usize) -> Result<()> {
    if size == 0 { Err(Error::corrupt(format!("{name} is zero"))) } else { Ok(()) }
}

fn divides(a_name: &str, a: usize, b_name: &str, b: usize) -> Result<()> {
    if b.is_multiple_of(a) { Ok(()) } else { Err(Error::corrupt(format!("{b} {b_name} over {a} {a_name}"))) }
}

fn small(name: &str, factors: &[usize]) -> Result<()> {
    let product = factors.iter().try_fold(1u64, |p, &f| p.checked_mul(f as u64));
    match product {
        Some(product) if product <= MAX_SIZE => Ok(()),
        _ => Err(Error::corrupt(format!("{name} of {factors:?} is absurd"))),
    }
}
