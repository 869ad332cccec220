//! From a request and its prompts to how answers are generated.

use engine::Meta;
use engine::generate::GenerateOptions;
use engine::sample::SampleRequest;
use engine::text::{Constraint, Tokenizer};

use crate::body::shown;
use crate::constraint::constraint;
use crate::prompts::Made;
use crate::{ApiError, Request};

/// What a request gets that does not say.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// How tokens are chosen; what is not given here comes from the model's makers.
    pub sampling: SampleRequest,
    /// Most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

impl Defaults {
    /// `asked`, and what is here where it says nothing.
    pub fn sampling(&self, asked: &SampleRequest) -> SampleRequest {
        let own = &self.sampling;
        SampleRequest {
            temperature: asked.temperature.or(own.temperature),
            top_k: asked.top_k.or(own.top_k),
            top_p: asked.top_p.or(own.top_p),
            min_p: asked.min_p.or(own.min_p),
            repetition_penalty: asked.repetition_penalty.or(own.repetition_penalty),
            presence_penalty: asked.presence_penalty.or(own.presence_penalty),
            frequency_penalty: asked.frequency_penalty.or(own.frequency_penalty),
            logit_bias: [&own.logit_bias, &asked.logit_bias].into_iter().flatten().copied().collect(),
            seed: asked.seed.or(own.seed),
        }
    }
}

/// How the answers to `made` are generated, but for what each takes its reply apart with. Takes time. `form_field` is where
/// the client's API has the form of an answer. What of a tool's schema cannot be kept is added to `ignored`.
///
/// # Errors
/// `Invalid`, with the field's path.
pub fn options(
    (meta, tokenizer): (&Meta, &Tokenizer),
    defaults: &Defaults,
    (request, made): (&Request, &[Made]),
    form_field: &str,
    ignored: &mut Vec<String>,
) -> Result<GenerateOptions, ApiError> {
    let sampling = defaults.sampling(&request.sampling);
    let sampling = sampling.params(meta).map_err(|e| ApiError::of_engine(&e))?;
    // All texts are held to the same, and a conversation is one.
    let constraint = match made.first() {
        Some(made) => constraint(tokenizer, request, made, form_field)?,
        None => None,
    };
    ignored.extend(constraint.iter().flat_map(Constraint::left_out).map(|path| shown(path)));
    let stop = if request.stop.is_empty() { &defaults.stop } else { &request.stop };
    Ok(GenerateOptions {
        sampling,
        max_tokens: request.max_tokens.or(defaults.max_tokens),
        min_tokens: request.min_tokens,
        top_logprobs: request.top_logprobs,
        stop: stop.clone(),
        ignore_end: request.ignore_end,
        constraint,
        ..GenerateOptions::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_says_counts_also_where_it_is_nothing() {
        let sampling = SampleRequest {
            presence_penalty: Some(1.0),
            temperature: Some(0.7),
            logit_bias: vec![(1, 2.0)],
            ..SampleRequest::default()
        };
        let defaults = Defaults { sampling, ..Defaults::default() };
        let asked = SampleRequest {
            presence_penalty: Some(0.0),
            logit_bias: vec![(3, 4.0)],
            ..SampleRequest::default()
        };
        let both = defaults.sampling(&asked);
        assert_eq!((both.presence_penalty, both.temperature, both.seed), (Some(0.0), Some(0.7), None));
        assert_eq!(both.logit_bias, [(1, 2.0), (3, 4.0)]);
    }
}
