//! Which tokens may come next, between the logits and the sampler.

use files::{Error, ErrorKind, Result};
use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::TokEnv;

/// Says which tokens a text may go on with.
pub(crate) trait TokenMask: Send {
    /// Sets the logits of all tokens that may not come to negative infinity. Whether the text may end here.
    ///
    /// # Errors
    /// `InvalidRequest` for a grammar that has become too complex.
    fn forbid(&mut self, logits: &mut [f32]) -> Result<bool>;

    /// Goes on with a token, one that may come.
    ///
    /// # Errors
    /// As [`Self::forbid`].
    fn accept(&mut self, token: u32) -> Result<()>;

    /// Goes on with text that is no token's; false, and nothing is done, if that may not come.
    ///
    /// # Errors
    /// As [`Self::forbid`].
    fn accept_text(&mut self, text: &str) -> Result<bool>;

    /// Whether nothing more may come.
    fn is_over(&self) -> bool;
}

/// A grammar of llguidance, somewhere in a text.
#[derive(Clone)]
pub(crate) struct GrammarMask {
    matcher: Matcher,
    env: TokEnv,
}

impl GrammarMask {
    /// Refuses a grammar that no text fits.
    pub(super) fn new(matcher: Matcher, env: TokEnv) -> Result<Self, String> {
        let mut own = Self { matcher, env };
        let first = own.matcher.compute_mask();
        match (first, own.matcher.stop_reason()) {
            (Ok(_), _) => Ok(own),
            (Err(_), StopReason::NoExtension | StopReason::NoExtensionBias) => {
                Err(super::NOTHING_FITS.into())
            }
            (Err(e), _) => Err(e.to_string()),
        }
    }
}

fn too_complex(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("the grammar has become too complex: {e}"))
}

impl TokenMask for GrammarMask {
    fn forbid(&mut self, logits: &mut [f32]) -> Result<bool> {
        let end = self.env.tok_trie().vocab_size() - 1;
        let mask = self.matcher.compute_mask_or_eos().map_err(too_complex)?;
        let words = mask.as_slice();
        for (at, logits) in logits.chunks_mut(32).enumerate() {
            let word = words.get(at).copied().unwrap_or(0);
            for (bit, logit) in logits.iter_mut().enumerate().filter(|_| word != u32::MAX) {
                if word & (1 << bit) == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(logit) = logits.get_mut(end) {
            *logit = f32::NEG_INFINITY; // a place that only pads the model's vocabulary
        }
        Ok(mask.is_allowed(end as u32))
    }

    fn accept(&mut self, token: u32) -> Result<()> {
        self.matcher.consume_token(token).map_err(too_complex)
    }

    fn accept_text(&mut self, text: &str) -> Result<bool> {
        if text.is_empty() {
            return Ok(true);
        }
        let tokens = self.env.tok_trie().greedy_tokenize(text.as_bytes());
        let may = self.matcher.validate_tokens(&tokens).map_err(too_complex)? == tokens.len();
        if may {
            self.matcher.consume_tokens(&tokens).map_err(too_complex)?;
        }
        Ok(may)
    }

    fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}
