//! The sequences that are measured: they read their prompts and make their answers in the same steps.

use std::sync::Arc;

use engine::{Answer, Batch, FeedProgress, Logits, Model, Result, RouteRecord, Sequence};

/// Sequences, and what the model likes best after the last token of each.
pub(super) struct Company {
    model: Arc<Model>,
    batch: Batch,
    sequences: Vec<Sequence>,
    best: Vec<u32>,
}

impl Company {
    /// As many empty sequences.
    pub(super) fn new(model: &Arc<Model>, sequences: usize) -> Result<Self> {
        Ok(Self {
            model: model.clone(),
            batch: Batch::default(),
            sequences: (0..sequences).map(|_| Sequence::new(model)).collect::<Result<_>>()?,
            best: vec![0; sequences],
        })
    }

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Keeps what the routers choose for the first.
    pub(super) fn record_routes(&mut self) {
        self.sequences[0].record_routes();
    }

    /// What was kept since.
    pub(super) fn take_routes(&mut self) -> Vec<RouteRecord> {
        self.sequences[0].take_routes()
    }

    /// Forgets all tokens.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.sequences.iter_mut().try_for_each(|sequence| sequence.truncate(0))
    }

    /// Adds tokens to each sequence, and computes them.
    pub(super) fn feed<'a>(
        &mut self,
        tokens: impl Fn(usize) -> &'a [u32],
        progress: FeedProgress<'_>,
    ) -> Result<()> {
        for (i, sequence) in self.sequences.iter_mut().enumerate() {
            sequence.extend(tokens(i))?;
        }
        let best = &mut self.best;
        self.batch.feed(&self.model, &mut self.sequences, Logits::Best, progress, &mut |i, answer| {
            if let Answer::Best(token) = answer {
                best[i] = token;
            }
            Ok(())
        })
    }

    /// What the model likes best after each sequence.
    pub(super) fn best(&self) -> Vec<u32> {
        self.best.clone()
    }
}
