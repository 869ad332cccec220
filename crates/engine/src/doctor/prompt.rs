//! What a prompt will take. It goes through the layers in chunks, as many rows each as the plan has memory for, and each
//! chunk reads every expert that its rows use once.

use super::work::{self, Times};
use super::{Conditions, Demand};
use crate::bound::Bound;
use crate::device::open_device;
use crate::limits;
use crate::model::OpenOptions;
use files::{Error, Result};

/// Prompts to predict where nobody says which, in tokens.
const PROMPTS: [usize; 3] = [2048, 8192, 32_768];

/// A prompt to predict.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prompt {
    /// Its length.
    pub tokens: usize,
    /// What the device needs for each.
    pub times: Times,
}

/// What a machine will do with a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptPrediction {
    /// Its length.
    pub prompt_tokens: usize,
    /// Rows of a chunk, at most.
    pub chunk_tokens: usize,
    /// How often experts are read, each once.
    pub chunks: usize,
    /// Seconds of the drive.
    pub drive_s: f64,
    /// Seconds of copies to a GPU that has memory of its own.
    pub copies_s: f64,
    /// Seconds of arithmetic.
    pub arithmetic_s: f64,
    /// Seconds in all: the drive works beside the others.
    pub seconds: f64,
    /// Tokens in a second.
    pub tokens_per_s: f64,
    /// What would have to be faster.
    pub bound: Bound,
}

impl Demand {
    /// Lengths of prompts to predict: `asked`, or some that the model takes.
    ///
    /// # Errors
    /// `InvalidRequest` for one that does not fit the model, or the context that was asked for.
    pub fn prompts(&self, asked: &[usize]) -> Result<Vec<usize>> {
        let most = self.prompt_tokens_max;
        if let Some(tokens) = asked.iter().find(|tokens| **tokens > most) {
            return Err(Error::invalid(format!(
                "a prompt of {tokens} tokens does not fit a context of {most}"
            )));
        }
        let some: Vec<usize> = PROMPTS.into_iter().filter(|tokens| *tokens <= most).collect();
        Ok(match (asked, some.is_empty()) {
            ([], false) => some,
            ([], true) => vec![most],
            (asked, _) => asked.to_vec(),
        })
    }

    /// Times the device of `options` with a prompt of `tokens`, in chunks as the plan cuts it; `None` where the budget is too
    /// small for it.
    ///
    /// # Errors
    /// `Device` when there is none or it fails, `Memory` when there is no room.
    pub fn time_prompt(
        &self,
        options: &OpenOptions,
        budget_bytes: u64,
        tokens: usize,
    ) -> Result<Option<Prompt>> {
        let Some(planned) = self.memory.for_prompt(tokens).plan(budget_bytes) else { return Ok(None) };
        let backend = open_device(options)?.backend;
        let times = work::prompt_times(&backend, &self.work, tokens, planned.chunk_tokens)?;
        Ok(Some(Prompt { tokens, times }))
    }
}

/// Predicts a prompt; `None` where the budget is too small for it.
pub fn predict_prompt(model: &Demand, on: &Conditions, prompt: &Prompt) -> Option<PromptPrediction> {
    let planned = model.memory.for_prompt(prompt.tokens).plan(on.budget_bytes)?;
    // What slots hold of a layer when a chunk comes to it was evicted for the others, but for this part.
    let missed = 1.0 - model.slots_fraction(planned.slots_beside_prompt);
    let (mut chunks, mut seconds) = (0, 0.0);
    let [mut drive_s, mut copies_s] = [0.0; 2];
    for rows in limits::cut(prompt.tokens, planned.chunk_tokens) {
        let bytes = model.experts_bytes as f64 * model.coverage(rows) * missed;
        let (drive, copies) = (bytes / on.drive_bytes_per_s, bytes / on.copy_bytes_per_s);
        chunks += 1;
        seconds += drive.max(copies + rows as f64 * prompt.times.all_s());
        drive_s += drive;
        copies_s += copies;
    }
    let arithmetic_s = prompt.tokens as f64 * prompt.times.all_s();
    Some(PromptPrediction {
        prompt_tokens: prompt.tokens,
        chunk_tokens: planned.chunk_tokens,
        chunks,
        drive_s,
        copies_s,
        arithmetic_s,
        seconds,
        tokens_per_s: prompt.tokens as f64 / seconds,
        bound: Bound::of(drive_s, copies_s, arithmetic_s),
    })
}
