//! Whether to guess the next layer's experts: measured, never believed.
//!
//! A guess is worth something where the drive would be idle, and harmful where it is the bottleneck, so steps with
//! and without it take turns for a while, and the faster way is kept until the next such trial.

use std::time::Duration;

/// Steps of each kind in a trial.
const TRIAL_STEPS: usize = 12;

/// Guessing must save this share of a step's time.
const GAIN: f64 = 0.02;

/// Steps until the next trial; after one that guessing lost, it is twice as long as before.
const VERDICT_STEPS: usize = 256;
/// The longest such time, in steps.
const VERDICT_STEPS_MAX: usize = 8192;

/// The gate, over the decode steps of all sessions of a model.
#[derive(Debug)]
pub(crate) struct Lookahead {
    enabled: bool,
    /// Times of the running trial's steps, without and with guesses.
    times: [Vec<Duration>; 2],
    verdict: bool,
    /// Steps for which the verdict still stands; 0 during a trial.
    stands: usize,
    next_stands: usize,
}

impl Lookahead {
    /// Begins with a trial; never guesses unless `enabled`.
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            enabled,
            times: [Vec::new(), Vec::new()],
            verdict: false,
            stands: 0,
            next_stands: VERDICT_STEPS,
        }
    }

    /// Whether the step that begins now guesses.
    pub(crate) fn begin(&self) -> bool {
        if !self.enabled {
            return false;
        }
        if self.stands > 0 {
            return self.verdict;
        }
        // off on on off: what drifts slowly falls on both alike.
        matches!((self.times[0].len() + self.times[1].len()) % 4, 1 | 2)
    }

    /// The step that began last has succeeded in this time.
    pub(crate) fn end(&mut self, time: Duration) {
        if !self.enabled {
            return;
        }
        if self.stands > 0 {
            self.stands -= 1;
            return;
        }
        let guessed = self.begin();
        self.times[usize::from(guessed)].push(time);
        if self.times.iter().any(|times| times.len() < TRIAL_STEPS) {
            return;
        }
        let [off, on] = std::mem::take(&mut self.times).map(median);
        self.verdict = on.as_secs_f64() < (1.0 - GAIN) * off.as_secs_f64();
        self.next_stands = match self.verdict {
            true => VERDICT_STEPS,
            false => (2 * self.next_stands).min(VERDICT_STEPS_MAX),
        };
        self.stands = self.next_stands;
    }
}

/// Of times that are not none.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` steps that take these milliseconds without and with guesses; how many guessed.
    fn run(gate: &mut Lookahead, steps: usize, [off, on]: [u64; 2]) -> usize {
        let mut guessed = 0;
        for i in 0..steps {
            let guesses = gate.begin();
            guessed += usize::from(guesses);
            let noise = [0, 3, 1, 40, 2][i % 5];
            gate.end(Duration::from_millis(if guesses { on } else { off } + noise));
        }
        guessed
    }

    #[test]
    fn a_trial_is_fair_and_what_wins_stays_for_a_while() {
        let mut gate = Lookahead::new(true);
        assert_eq!(run(&mut gate, 2 * TRIAL_STEPS, [100, 80]), TRIAL_STEPS);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 80]), VERDICT_STEPS);
        // The drive is busy now: the next trial says so.
        assert_eq!(run(&mut gate, 2 * TRIAL_STEPS, [100, 130]), TRIAL_STEPS);
        assert_eq!(run(&mut gate, 2 * VERDICT_STEPS, [100, 130]), 0);
        assert_eq!(run(&mut gate, 2 * TRIAL_STEPS, [100, 130]), TRIAL_STEPS);
        assert_eq!(run(&mut gate, 4 * VERDICT_STEPS, [100, 130]), 0, "asked less and less often");
    }

    #[test]
    fn a_tie_is_no_gain_and_what_is_not_enabled_never_guesses() {
        let mut gate = Lookahead::new(true);
        run(&mut gate, 2 * TRIAL_STEPS, [100, 99]);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 99]), 0);
        assert_eq!(run(&mut Lookahead::new(false), 1000, [100, 50]), 0);
    }
}
