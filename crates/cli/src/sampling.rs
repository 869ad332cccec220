//! Sampling options, and what a model's makers recommend where they are not given.

use engine::generate::GenerateOptions;
use engine::sample::{SampleRequest, random_seed};

/// How to choose tokens. What is not given comes from the model's generation_config.json (or GGUF
/// general.sampling keys): sampled if that says so, else the best token each time.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Choosing tokens")]
pub(crate) struct SamplingArgs {
    /// Randomness; 0 always takes the best token [default: the model's own]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep the K best tokens; 0 keeps all [default: the model's own]
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Keep the fewest best tokens that hold this share of the probability [default: the model's own]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the best one [default: the model's own]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,
    /// Divides the logits of tokens seen before; 1 is off [default: the model's own]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted once from the logit of a token seen before
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was seen
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Added to the logit of a token; can be given more than once
    #[arg(long, value_name = "ID:VALUE", value_parser = parse_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Makes the choices repeatable; default: another one each time, named in the statistics
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Text that ends an answer, not part of it; thoughts and tool calls are not searched; can be given more than once
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Longest answer, in tokens; default: until the model ends it or the context is full
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
}

impl SamplingArgs {
    /// Options for the engine: what was given, else what the model's makers recommend. The seed is always set, so
    /// that it can be told.
    ///
    /// # Errors
    /// `InvalidRequest` naming the option that is out of range.
    pub(crate) fn options(&self, model: &engine::Meta) -> engine::Result<GenerateOptions> {
        let seed = Some(self.seed.unwrap_or_else(random_seed));
        let request = SampleRequest { seed, ..self.request() };
        let sampling = request.params(model)?;
        Ok(GenerateOptions {
            sampling,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ..GenerateOptions::default()
        })
    }

    /// What was given.
    pub(crate) fn request(&self) -> SampleRequest {
        SampleRequest {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: Some(self.presence_penalty),
            frequency_penalty: Some(self.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        }
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let bad = || format!("{text:?} is not ID:VALUE, such as 42:-3.5");
    let (id, value) = text.split_once(':').ok_or_else(bad)?;
    let value: f32 = value.parse().map_err(|_| bad())?;
    if !value.is_finite() {
        return Err(bad());
    }
    Ok((id.parse().map_err(|_| bad())?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(do_sample: Option<bool>) -> engine::Meta {
        let mut meta = engine::Meta::default();
        meta.generation.do_sample = do_sample;
        meta.generation.temperature = Some(0.7);
        meta.generation.top_p = Some(0.95);
        meta
    }

    #[test]
    fn the_models_advice_is_the_default_and_options_win() {
        let plain = SamplingArgs::default();
        assert_eq!(plain.options(&meta(Some(true))).unwrap().sampling.temperature, 0.7);
        assert_eq!(plain.options(&meta(None)).unwrap().sampling.temperature, 0.0);
        let gguf = engine::Meta { dialect: engine::Dialect::Gguf, ..meta(None) };
        let advised = plain.options(&gguf).unwrap().sampling;
        assert_eq!((advised.temperature, advised.top_p), (0.7, 0.95));
        assert!(advised.seed.is_some());
        let asked = SamplingArgs { top_k: Some(5), ..SamplingArgs::default() };
        assert_eq!(asked.options(&meta(None)).unwrap().sampling.temperature, 0.7);
        let greedy = SamplingArgs { temperature: Some(0.0), ..SamplingArgs::default() };
        assert_eq!(greedy.options(&gguf).unwrap().sampling.temperature, 0.0);
        let bad = SamplingArgs { top_p: Some(1.5), ..SamplingArgs::default() };
        assert!(bad.options(&gguf).unwrap_err().message().contains("top_p"));
    }

    #[test]
    fn biases_are_an_id_and_a_value() {
        assert_eq!(parse_bias("42:-3.5"), Ok((42, -3.5)));
        for bad in ["42", ":1", "42:", "-1:2", "1:nan", "1:inf", "a:b"] {
            assert!(parse_bias(bad).is_err(), "{bad}");
        }
    }
}
