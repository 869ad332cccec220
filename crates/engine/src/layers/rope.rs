//! Rotary frequencies, with the scalings that released models use.

use std::f64::consts::TAU;

use files::meta::{RopeMeta, RopeScaling};
use files::{Error, Result};
use kernels::Tensor;

/// Rotation of queries and keys by position, the same in all layers.
pub(crate) struct Rope {
    /// `[1, rotary_dim / 2]`, radians per position.
    pub(crate) frequencies: Tensor,
    /// Values of a head that rotate.
    pub(crate) rotary_dim: usize,
    /// Pairs are adjacent instead of halves.
    pub(crate) interleaved: bool,
    /// Factor on cos and sin.
    pub(crate) amplitude: f32,
}

/// The frequencies of `meta`, `[rotary_dim / 2]`, scaled, and the factor on cos and sin.
///
/// # Errors
/// `Corrupt` for a scaling without sense.
pub(crate) fn frequencies(meta: &RopeMeta, factors: Option<&[f32]>) -> Result<(Vec<f32>, f32)> {
    let mut amplitude = 1.0;
    let dim = meta.rotary_dim;
    let plain = (0..dim / 2).map(|i| meta.theta.powf(-2.0 * i as f64 / dim as f64));
    let scaled: Vec<f64> = match &meta.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let (factor, low, high) = (*factor, *low_freq_factor, *high_freq_factor);
            let scaling = Llama3 { factor, low, high, context: *original_context as f64 };
            plain.map(|f| scaling.apply(f)).collect()
        }
        RopeScaling::Factors { tensor } => {
            let factors = factors.filter(|f| f.len() == dim / 2);
            let factors =
                factors.ok_or_else(|| Error::corrupt(format!("{tensor} has not {} values", dim / 2)))?;
            plain.zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect()
        }
        RopeScaling::Yarn { .. } => {
            amplitude = yarn_amplitude(&meta.scaling);
            yarn(meta, plain)
        }
    };
    if !(amplitude.is_finite() && amplitude > 0.0) {
        return Err(Error::corrupt(format!("rope scaling by a factor of {amplitude}")));
    }
    if let Some(bad) = scaled.iter().find(|f| !f.is_finite()) {
        return Err(Error::corrupt(format!("rope frequency {bad} is not a number one can rotate by")));
    }
    Ok((scaled.into_iter().map(|f| f as f32).collect(), amplitude as f32))
}

/// YaRN (Peng et al. 2023, arXiv:2309.00071): a pair that turns more than `beta_fast` times in the original context keeps
/// its frequency, one that turns less than `beta_slow` times has it divided, with a ramp between.
fn yarn(meta: &RopeMeta, plain: impl Iterator<Item = f64>) -> Vec<f64> {
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } = meta.scaling
    else {
        return plain.collect();
    };
    let dim = meta.rotary_dim as f64;
    // The pair that turns so often in the original context.
    let pair = |turns: f64| dim * (original_context as f64 / (turns * TAU)).ln() / (2.0 * meta.theta.ln());
    let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
    plain.enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
}

/// What YaRN multiplies cos and sin by: what the file says, or what the paper does, in DeepSeek's variant where the file
/// has both of its numbers.
fn yarn_amplitude(scaling: &RopeScaling) -> f64 {
    let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = *scaling else {
        return 1.0;
    };
    let by = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let given = |scale: Option<f64>| scale.filter(|s| *s != 0.0);
    match (attention_factor, given(mscale), given(mscale_all_dim)) {
        (Some(own), ..) => own,
        (None, Some(mscale), Some(all)) => by(mscale) / by(all),
        _ => by(1.0),
    }
}

/// The scaling of Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = TAU / frequency;
        if wavelength < self.context / self.high {
            frequency
        } else if wavelength > self.context / self.low {
            frequency / self.factor
        } else {
            let smooth = (self.context / wavelength - self.low) / (self.high - self.low);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yarn() -> RopeScaling {
        RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        }
    }

    #[track_caller]
    fn check(scaling: RopeScaling, expected: [f32; 8], amplitude: f32) {
        let meta = RopeMeta { theta: 1e4, rotary_dim: 16, interleaved: false, scaling };
        let (frequencies, found) = frequencies(&meta, None).unwrap();
        for (f, e) in frequencies.iter().zip(expected) {
            assert!((f / e - 1.0).abs() < 1e-6, "{frequencies:?}");
        }
        assert!((found / amplitude - 1.0).abs() < 1e-6, "{found}");
    }

    /// Numbers of transformers 5.24, `_compute_yarn_parameters`.
    #[test]
    #[allow(clippy::excessive_precision)] // as printed there
    fn yarn_is_that_of_transformers() {
        let tail = [0.00790569415, 0.0025, 0.000790569415, 0.00025, 7.90569415e-05];
        let with = |head: [f32; 3]| std::array::from_fn(|i| if i < 3 { head[i] } else { tail[i - 3] });
        check(yarn(), with([1.0, 0.237170825, 0.05]), 1.138_629_4);
        let other = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 64,
            beta_fast: 16.0,
            beta_slow: 2.0,
            attention_factor: None,
            mscale: Some(0.707),
            mscale_all_dim: Some(1.4),
            truncate: false,
        };
        check(other, with([1.0, 0.148490247, 0.025]), 0.919_544_67);
    }

    #[test]
    fn a_file_may_say_the_amplitude() {
        let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } = yarn()
        else {
            unreachable!()
        };
        let own = |attention_factor| RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale: None,
            mscale_all_dim: None,
            truncate,
        };
        let meta = |scaling| RopeMeta { theta: 1e4, rotary_dim: 16, interleaved: false, scaling };
        assert_eq!(frequencies(&meta(own(Some(1.5))), None).unwrap().1, 1.5);
        for absurd in [f64::NAN, 0.0, -1.0] {
            assert!(frequencies(&meta(own(Some(absurd))), None).is_err());
        }
    }
}
