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

/// The frequencies of `meta`, `[rotary_dim / 2]`, scaled.
///
/// # Errors
/// [`files::ErrorKind::Unsupported`] for a scaling that is not implemented; `Corrupt` for one without sense.
pub(crate) fn frequencies(meta: &RopeMeta, factors: Option<&[f32]>) -> Result<Vec<f32>> {
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
        other => return Err(Error::unsupported(format!("rope scaling {other:?} is not supported"))),
    };
    if let Some(bad) = scaled.iter().find(|f| !f.is_finite()) {
        return Err(Error::corrupt(format!("rope frequency {bad} is not a number one can rotate by")));
    }
    Ok(scaled.into_iter().map(|f| f as f32).collect())
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
