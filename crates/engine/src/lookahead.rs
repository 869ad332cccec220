//! Whether to guess the next layer's experts: measured, never believed.
//!
//! A guess is worth something where the drive would be idle, and may cost where it is the bottleneck or a device has to be
//! waited for. It has won on every model that streams from a drive, so it begins on; steps with and without it take turns
//! until one of both is clearly ahead, and that stands until the next such trial.

use std::time::Duration;

/// A trial ends when one way has won so many more pairs of steps than the other ...
const LEAD: i32 = 3;
/// ... or after so many pairs: then it makes no difference.
const PAIRS_MAX: usize = 8;

/// A step with guesses wins if it saves this share of the time.
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
    /// Pairs that the running trial has had.
    pairs: usize,
    /// Of the first step of a pair whose second is to come, its rows and its time.
    first: Option<(usize, Duration)>,
    /// How many more of the pairs were won with guesses than without.
    lead: i32,
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
            pairs: 0,
            first: None,
            lead: 0,
            verdict: Guess::None,
            stands: 0,
            next_stands: VERDICT_STEPS,
        }
    }

    /// From now on guesses this much, whatever it costs.
    pub(crate) fn fix(&mut self, guess: Guess) {
        self.fixed = Some(guess);
    }

    /// What the step of `rows` rows that begins now guesses.
    pub(crate) fn begin(&mut self, rows: usize) -> Guess {
        if let Some(guess) = self.fixed {
            return guess;
        }
        if self.stands > 0 {
            return self.verdict;
        }
        // Only steps of equal widths compare.
        self.first.take_if(|(first_rows, _)| *first_rows != rows);
        // With, without; without, with: what drifts slowly falls on both alike.
        match self.first.is_none() == self.guesses_first() {
            true => Guess::All,
            false => Guess::None,
        }
    }

    /// Whether the first step of the pair guesses.
    fn guesses_first(&self) -> bool {
        self.pairs.is_multiple_of(2)
    }

    /// The step that began last, of `rows` rows, has succeeded in this time.
    pub(crate) fn end(&mut self, rows: usize, time: Duration) {
        if self.fixed.is_some() {
            return;
        }
        if self.stands > 0 {
            self.stands -= 1;
            return;
        }
        let Some((_, first)) = self.first.take() else {
            self.first = Some((rows, time));
            return;
        };
        let (with, without) = if self.guesses_first() { (first, time) } else { (time, first) };
        let gains = with.as_secs_f64() < (1.0 - GAIN) * without.as_secs_f64();
        self.lead += if gains { 1 } else { -1 };
        self.pairs += 1;
        if self.lead.abs() < LEAD && self.pairs < PAIRS_MAX {
            return;
        }
        let wins = self.lead > 0;
        self.verdict = if wins { Guess::All } else { Guess::None };
        self.next_stands = if wins { VERDICT_STEPS } else { (2 * self.next_stands).min(VERDICT_STEPS_MAX) };
        (self.pairs, self.lead, self.stands) = (0, 0, self.next_stands);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` steps that take these milliseconds without guesses and with them, each with some of `noise` more;
    /// how many of each there were.
    fn run(gate: &mut Lookahead, steps: usize, costs: [u64; 2], noise: &[u64]) -> [usize; 2] {
        let mut counts = [0; 2];
        for i in 0..steps {
            let guess = usize::from(gate.begin(1) == Guess::All);
            counts[guess] += 1;
            gate.end(1, Duration::from_millis(costs[guess] + noise[i % noise.len()]));
        }
        counts
    }

    const CLEAR: usize = 2 * LEAD as usize;

    #[test]
    fn a_clear_trial_is_short_and_what_wins_stays_for_a_while() {
        let mut gate = Lookahead::new(true);
        assert_eq!(gate.begin(1), Guess::All, "the first token of a short answer has its guesses");
        for _ in 0..2 {
            assert_eq!(run(&mut gate, CLEAR, [100, 80], &[0, 3, 1]), [CLEAR / 2; 2]);
            assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 80], &[0]), [0, VERDICT_STEPS]);
        }
        // The drive is busy now: the next trial says so.
        for longer in [2, 4, 8] {
            assert_eq!(run(&mut gate, CLEAR, [100, 130], &[0, 3, 1]), [CLEAR / 2; 2]);
            let steps = longer * VERDICT_STEPS;
            assert_eq!(run(&mut gate, steps, [100, 130], &[0]), [steps, 0], "asked less and less often");
        }
        // It is idle again.
        run(&mut gate, CLEAR, [100, 80], &[0]);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 80], &[0]), [0, VERDICT_STEPS]);
        assert_eq!(run(&mut gate, CLEAR, [100, 80], &[0]), [CLEAR / 2; 2], "and soon asked again");
    }

    #[test]
    fn one_slow_step_decides_nothing() {
        for (costs, wins) in [([100, 80], true), ([100, 120], false)] {
            for slow in 0..CLEAR {
                let (mut gate, mut noise) = (Lookahead::new(true), [0; 4 * PAIRS_MAX]);
                noise[slow] = 500;
                run(&mut gate, CLEAR + 4, costs, &noise);
                let stands = run(&mut gate, 100, costs, &[0]);
                assert_eq!(stands, if wins { [0, 100] } else { [100, 0] }, "{costs:?}, step {slow}");
            }
        }
    }

    #[test]
    fn a_tie_is_no_gain_and_no_trial_is_long() {
        let mut gate = Lookahead::new(true);
        run(&mut gate, CLEAR, [100, 99], &[0]);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 99], &[0]), [VERDICT_STEPS, 0]);
        // Each pair says the opposite of the one before.
        let mut gate = Lookahead::new(true);
        let toss = [0, 100, 0, 100];
        assert_eq!(run(&mut gate, 2 * PAIRS_MAX, [100, 100], &toss), [PAIRS_MAX; 2]);
        assert_eq!(run(&mut gate, VERDICT_STEPS, [100, 100], &toss), [VERDICT_STEPS, 0]);
    }

    #[test]
    fn what_is_fixed_never_asks_and_a_step_that_failed_is_tried_again() {
        let mut gate = Lookahead::new(true);
        gate.end(1, Duration::from_millis(80));
        let asked = [gate.begin(1), gate.begin(1)];
        assert_eq!(asked, [Guess::None; 2], "only a step that succeeded counts");
        gate.fix(Guess::All);
        assert_eq!(run(&mut gate, 1000, [100, 150], &[0]), [0, 1000]);
        assert_eq!(run(&mut Lookahead::new(false), 1000, [100, 50], &[0]), [1000, 0]);
    }
}
