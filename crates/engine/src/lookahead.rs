//! Whether to guess the next layer's experts, and how many: measured, never believed.
//!
//! A guess is worth something where the drive would be idle, and harmful where it is the bottleneck, so steps with
//! no guesses, with half as many as the router chooses and with all of them take turns for a while, and the fastest
//! way is kept until the next such trial.

use std::time::Duration;

/// Steps of each kind in a trial.
const TRIAL_STEPS: usize = 10;

/// Guessing must save this share of a step's time.
const GAIN: f64 = 0.02;

/// Steps until the next trial; after one that guessing lost, it is twice as long as before.
const VERDICT_STEPS: usize = 256;
/// The longest such time, in steps.
const VERDICT_STEPS_MAX: usize = 8192;

/// How much of the next router's choice is guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guess {
    /// Nothing.
    #[default]
    None,
    /// The better half.
    Half,
    /// As many experts as the router will choose.
    All,
}

impl Guess {
    const EACH: [Self; 3] = [Self::None, Self::Half, Self::All];

    /// Experts to guess of `top_k`.
    pub(crate) fn experts(self, top_k: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Half => top_k.div_ceil(2),
            Self::All => top_k,
        }
    }
}

/// The gate, over the decode steps of all sessions of a model.
#[derive(Debug)]
pub(crate) struct Lookahead {
    /// What somebody has decided; else trials do.
    fixed: Option<Guess>,
    /// Times of the running trial's steps, for each of [`Guess::EACH`].
    times: [Vec<Duration>; 3],
    verdict: Guess,
    /// Steps for which the verdict still stands; 0 during a trial.
    stands: usize,
    next_stands: usize,
}

impl Lookahead {
    /// Begins with a trial; never guesses unless `enabled`.
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            fixed: (!enabled).then_some(Guess::None),
            times: Default::default(),
            verdict: Guess::None,
            stands: 0,
            next_stands: VERDICT_STEPS,
        }
    }

    /// From now on guesses this much, whatever it costs.
    pub(crate) fn fix(&mut self, guess: Guess) {
        self.fixed = Some(guess);
    }

    /// What the step that begins now guesses.
    pub(crate) fn begin(&self) -> Guess {
        if let Some(guess) = self.fixed {
            return guess;
        }
        if self.stands > 0 {
            return self.verdict;
        }
        // There and back: what drifts slowly falls on all alike.
        let turn = self.times.iter().map(Vec::len).sum::<usize>() % 6;
        Guess::EACH[turn.min(5 - turn)]
    }

    /// The step that began last has succeeded in this time.
    pub(crate) fn end(&mut self, time: Duration) {
        if self.fixed.is_some() {
            return;
        }
        if self.stands > 0 {
            self.stands -= 1;
            return;
        }
        let guessed = self.begin();
        self.times[guessed as usize].push(time);
        if self.times.iter().any(|times| times.len() < TRIAL_STEPS) {
            return;
        }
        let [none, half, all] = std::mem::take(&mut self.times).map(median);
        let (best, guess) = if all < half { (all, Guess::All) } else { (half, Guess::Half) };
        let gains = best.as_secs_f64() < (1.0 - GAIN) * none.as_secs_f64();
        self.verdict = if gains { guess } else { Guess::None };
        self.next_stands = if gains { VERDICT_STEPS } else { (2 * self.next_stands).min(VERDICT_STEPS_MAX) };
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

    /// Runs `steps` steps that take these milliseconds with no, half and all guesses; how many of each there were.
    fn run(gate: &mut Lookahead, steps: usize, costs: [u64; 3]) -> [usize; 3] {
        let mut counts = [0; 3];
        for i in 0..steps {
            let guess = gate.begin() as usize;
            counts[guess] += 1;
            let noise = [0, 3, 1, 40, 2, 0, 1][i % 7];
            gate.end(Duration::from_millis(costs[guess] + noise));
        }
        counts
    }

    #[test]
    fn a_trial_is_fair_and_what_wins_stays_for_a_while() {
        let (mut gate, each) = (Lookahead::new(true), [TRIAL_STEPS; 3]);
        assert_eq!(run(&mut gate, 3 * TRIAL_STEPS, [100, 80, 90]), each);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 80, 90]), [0, VERDICT_STEPS, 0]);
        assert_eq!(run(&mut gate, 3 * TRIAL_STEPS, [100, 80, 70]), each);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 80, 70]), [0, 0, VERDICT_STEPS]);
        // The drive is busy now: the next trial says so.
        assert_eq!(run(&mut gate, 3 * TRIAL_STEPS, [100, 130, 150]), each);
        assert_eq!(run(&mut gate, 2 * VERDICT_STEPS, [100, 130, 150]), [2 * VERDICT_STEPS, 0, 0]);
        assert_eq!(run(&mut gate, 3 * TRIAL_STEPS, [100, 130, 150]), each);
        let long = run(&mut gate, 4 * VERDICT_STEPS, [100, 130, 150]);
        assert_eq!(long, [4 * VERDICT_STEPS, 0, 0], "asked less and less often");
    }

    #[test]
    fn a_tie_is_no_gain_and_what_is_fixed_never_asks() {
        let mut gate = Lookahead::new(true);
        run(&mut gate, 3 * TRIAL_STEPS, [100, 99, 99]);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 99, 99]), [VERDICT_STEPS, 0, 0]);
        gate.fix(Guess::All);
        assert_eq!(run(&mut gate, 1000, [100, 150, 150]), [0, 0, 1000]);
        assert_eq!(run(&mut Lookahead::new(false), 1000, [100, 50, 50]), [1000, 0, 0]);
    }
}
