//! From logits to a token.
//!
//! The order of the steps is that of Hugging Face `generate`: bias, penalties, temperature, top-k, top-p, min-p.
//! Temperature comes before the cuts because the values that model cards recommend were tuned that way (other
//! engines cut first, which for temperatures other than 1 keeps a different set of tokens).
//! A grammar, or anything else that forbids tokens, sets their logits to negative infinity before.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use files::{Dialect, Error, Meta, Result};

/// How tokens are chosen. The default is the model's own distribution: temperature 1, nothing cut.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleParams {
    /// Divides the logits; 0 always takes the best token. At least 0.
    pub temperature: f32,
    /// Keep the `top_k` best tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest best tokens that hold this share of the probability; above 0, up to 1 (all).
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the best one; 0 (all) up to 1.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen before (Keskar et al., 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of a token seen before.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was seen.
    pub frequency_penalty: f32,
    /// How many of the last tokens count as seen; `None` is the whole history.
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the choices repeatable; `None` takes a random seed.
    pub seed: Option<u64>,
}

/// What somebody asks for. What is not given comes from the model's makers: generation_config.json, or GGUF's
/// general.sampling keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRequest {
    /// As in [`SampleParams`]; so are all that follow.
    pub temperature: Option<f32>,
    /// Keep the best tokens.
    pub top_k: Option<usize>,
    /// Keep a share of the probability.
    pub top_p: Option<f32>,
    /// Keep what is about as likely as the best one.
    pub min_p: Option<f32>,
    /// Against tokens seen before.
    pub repetition_penalty: Option<f32>,
    /// The same, subtracted once.
    pub presence_penalty: Option<f32>,
    /// The same, subtracted each time.
    pub frequency_penalty: Option<f32>,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the choices repeatable.
    pub seed: Option<u64>,
}

impl SampleRequest {
    /// With what the makers of the model recommend: sampled if they say so, else the best token each time.
    ///
    /// # Errors
    /// `InvalidRequest` naming the value that is out of range.
    pub fn params(&self, model: &Meta) -> Result<SampleParams> {
        let advice = &model.generation;
        // Hugging Face samples only where `do_sample` says so; GGUF has no such key, and gives a temperature.
        let samples =
            advice.do_sample.unwrap_or(model.dialect == Dialect::Gguf && advice.temperature.is_some());
        let asked = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let temperature = match self.temperature {
            Some(given) => given,
            None if samples || asked => advice.temperature.unwrap_or(1.0),
            None => 0.0,
        };
        let params = SampleParams {
            temperature,
            top_k: self.top_k.unwrap_or(advice.top_k.unwrap_or(0) as usize),
            top_p: self.top_p.unwrap_or(advice.top_p.filter(|p| *p > 0.0).unwrap_or(1.0)),
            min_p: self.min_p.unwrap_or(advice.min_p.unwrap_or(0.0)),
            repetition_penalty: self.repetition_penalty.unwrap_or(advice.repetition_penalty.unwrap_or(1.0)),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            penalty_window: None,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        params.check()?;
        Ok(params)
    }
}

impl Default for SampleParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// The standard library's hash keys are the one source of randomness without a dependency or a global.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A seed that can be told to people: short enough to be typed.
pub fn random_seed() -> u64 {
    random() & 0xffff_ffff
}

impl SampleParams {
    /// The seed, where tokens are drawn.
    pub fn seed_in_use(&self) -> Option<u64> {
        self.seed.filter(|_| self.temperature > 0.0)
    }

    /// Always the best token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values out of range, naming the field.
    pub fn check(&self) -> Result<()> {
        let finite = |x: f32| x.is_finite();
        let fields = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "at least 0",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "above 0",
            ),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a number"),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a number"),
        ];
        for (name, value, ok, range) in fields {
            if !ok {
                return Err(Error::invalid(format!("{name}: {value} is out of range, it must be {range}")));
            }
        }
        match self.logit_bias.iter().find(|(_, bias)| !bias.is_finite()) {
            Some((id, bias)) => Err(Error::invalid(format!("logit_bias: {bias} for token {id}"))),
            None => Ok(()),
        }
    }
}

/// Values that are looked at together.
const LANES: usize = 16;
/// Values after which it is noted where the best one was.
const BLOCK: usize = 1024;
/// Up to so many best tokens are kept sorted while the logits are read.
const SORTED_MOST: usize = 256;
/// A token less likely than e to the minus this, beside the best, is never drawn: a vocabulary of such tokens weighs less
/// than the last bit of a random number.
const NEGLIGIBLE: f64 = 60.0;

/// Chooses tokens one after the other.
pub struct Sampler {
    params: SampleParams,
    seed: u64,
    random: Xoshiro,
    candidates: Vec<Candidate>,
    /// The logits with bias and penalties.
    changed: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Likelihood relative to the best token.
    weight: f64,
}

impl Candidate {
    /// Best first; the lower id among equals, so that the order never depends on the sort.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

impl Sampler {
    /// A sampler at the beginning of its random sequence. `InvalidRequest` for parameters out of range.
    pub fn new(params: &SampleParams) -> Result<Self> {
        params.check()?;
        let seed = params.seed.unwrap_or_else(random);
        let random = Xoshiro::new(seed);
        Ok(Self { params: params.clone(), seed, random, candidates: Vec::new(), changed: Vec::new() })
    }

    /// The seed in use, with which the same choices come again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Chooses the next token by `logits`, `[vocab]`; `history` is everything before, prompt included.
    ///
    /// # Errors
    /// `Corrupt` for logits that are NaN or positive infinity, or all forbidden; `InvalidRequest` for a bias on
    /// a token outside the vocabulary.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        // A large vocabulary is a megabyte: worth a copy only if something changes.
        if self.params.logit_bias.is_empty() && !self.penalises() {
            return self.choose(logits);
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        self.add_bias(&mut changed)?;
        if self.penalises() {
            self.penalise(&mut changed, history);
        }
        let chosen = self.choose(&changed);
        self.changed = changed;
        chosen
    }

    /// Whether it looks at nothing but which token has the greatest logit.
    pub fn is_greedy(&self) -> bool {
        self.takes_best() && self.params.logit_bias.is_empty() && !self.penalises()
    }

    fn takes_best(&self) -> bool {
        self.params.temperature == 0.0 || self.params.top_k == 1
    }

    fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let best = argmax(logits)?;
        if self.takes_best() {
            return Ok(best as u32);
        }
        self.keep_likely(logits, logits[best]);
        Ok(self.draw().unwrap_or(best as u32))
    }

    fn add_bias(&self, logits: &mut [f32]) -> Result<()> {
        for (id, bias) in &self.params.logit_bias {
            let logit = logits.get_mut(*id as usize).ok_or_else(|| {
                Error::invalid(format!("logit_bias: token {id} is outside the model's vocabulary"))
            })?;
            *logit += bias;
        }
        Ok(())
    }

    fn penalises(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0
    }

    fn penalise(&self, logits: &mut [f32], history: &[u32]) {
        let p = &self.params;
        let from = p.penalty_window.map_or(0, |window| history.len().saturating_sub(window));
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for id in &history[from..] {
            *counts.entry(*id).or_default() += 1;
        }
        for (id, count) in counts {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / p.repetition_penalty } else { *logit * p.repetition_penalty };
            *logit -= p.presence_penalty + p.frequency_penalty * count as f32;
        }
    }

    /// Fills `candidates` with what temperature, top-k, top-p and min-p leave.
    fn keep_likely(&mut self, logits: &[f32], best: f32) {
        let p = &self.params;
        let temperature = f64::from(p.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(best)) / temperature).exp();
        let list = &mut self.candidates;
        list.clear();
        if (1..=SORTED_MOST).contains(&p.top_k) {
            best_of(logits, p.top_k, list);
        } else {
            let least = ((f64::from(best) - NEGLIGIBLE * temperature) as f32).max(f32::MIN);
            let likely = (0u32..).zip(logits).filter(|(_, logit)| **logit >= least);
            list.extend(likely.map(|(id, &logit)| Candidate { id, logit, weight: 0.0 }));
            if p.top_k > 0 && p.top_k < list.len() {
                best_first(list, p.top_k);
                list.truncate(p.top_k);
            }
        }
        for candidate in list.iter_mut() {
            candidate.weight = weight(candidate.logit);
        }
        if p.top_p < 1.0 {
            let enough = f64::from(p.top_p) * list.iter().map(|c| c.weight).sum::<f64>();
            keep_share(list, enough);
        }
        if p.min_p > 0.0 {
            let least = f64::from(p.min_p);
            list.retain(|c| c.weight >= least);
        }
    }

    fn draw(&mut self) -> Option<u32> {
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        let mut rest = self.random.unit() * total;
        for candidate in &self.candidates {
            rest -= candidate.weight;
            if rest < 0.0 {
                return Some(candidate.id);
            }
        }
        // Rounding can leave a crumb after the last one.
        self.candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.id)
    }
}

/// The best token, the lowest id among equals.
pub(crate) fn argmax(logits: &[f32]) -> Result<usize> {
    let (mut max, mut from, mut is_bad) = (f32::NEG_INFINITY, 0, false);
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let (best, bad) = max_of(values);
        is_bad |= bad;
        if best > max {
            (max, from) = (best, block * BLOCK);
        }
    }
    if is_bad && let Some(id) = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY) {
        return Err(Error::corrupt(format!("the logit of token {id} is {}", logits[id])));
    }
    let allowed = max > f32::NEG_INFINITY;
    let best = logits[from..].iter().position(|logit| allowed && *logit == max);
    best.map(|id| from + id)
        .ok_or_else(|| Error::corrupt("every token is forbidden: all logits are negative infinity"))
}

/// The largest value, and whether one is NaN or positive infinity.
fn max_of(values: &[f32]) -> (f32, bool) {
    // Maxima of lanes, which the compiler makes vectors of.
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut is_bad = false;
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (max, value) in max.iter_mut().zip(chunk) {
            is_bad |= value.is_nan() | (*value == f32::INFINITY);
            *max = if *value > *max { *value } else { *max };
        }
    }
    for value in rest {
        is_bad |= value.is_nan() | (*value == f32::INFINITY);
        max[0] = if *value > max[0] { *value } else { max[0] };
    }
    (max.into_iter().fold(f32::NEG_INFINITY, f32::max), is_bad)
}

/// Fills `list` with the `n` best tokens that are not forbidden, best first, without a list of all.
fn best_of(logits: &[f32], n: usize, list: &mut Vec<Candidate>) {
    for (at, chunk) in logits.chunks(LANES).enumerate() {
        // Almost all chunks hold nothing better than the worst that is kept.
        let worst = if list.len() == n { list[n - 1].logit } else { f32::NEG_INFINITY };
        if !chunk.iter().fold(false, |any, logit| any | (*logit > worst)) {
            continue;
        }
        for (id, &logit) in ((at * LANES) as u32..).zip(chunk) {
            let candidate = Candidate { id, logit, weight: 0.0 };
            let place = list.partition_point(|c| c.logit >= logit);
            if logit > f32::NEG_INFINITY && place < n {
                list.truncate(n - 1);
                list.insert(place, candidate);
            }
        }
    }
}

/// Sorts the `n` best to the front.
fn best_first(list: &mut [Candidate], n: usize) {
    if n < list.len() {
        list.select_nth_unstable_by(n, Candidate::order);
    }
    let n = n.min(list.len());
    list[..n].sort_unstable_by(Candidate::order);
}

/// Keeps the fewest best candidates that weigh `enough` together. Sorting a whole vocabulary for a handful of
/// tokens would cost more than a small model's layer, so only as much is sorted as is needed.
fn keep_share(list: &mut Vec<Candidate>, enough: f64) {
    let mut sorted = 64;
    loop {
        best_first(list, sorted);
        let mut sum = 0.0;
        let crossing = list.iter().take(sorted).position(|c| {
            sum += c.weight;
            sum >= enough
        });
        match crossing {
            Some(last) => return list.truncate(last + 1),
            None if sorted >= list.len() => return,
            None => sorted *= 8,
        }
    }
}

/// The log-probabilities of a position.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The chosen token.
    pub token: u32,
    /// Its log-probability.
    pub chosen: f32,
    /// The best tokens with theirs, best first; among equals the chosen one, then the lowest id.
    pub top: Vec<(u32, f32)>,
}

/// Natural log-softmax of `logits`, `[vocab]`, at `chosen` and at the `n` best tokens.
pub fn logprobs(logits: &[f32], chosen: u32, n: usize) -> Result<Logprobs> {
    let best = logits[argmax(logits)?];
    let sum: f64 = logits.iter().map(|l| (f64::from(*l) - f64::from(best)).exp()).sum();
    let normaliser = f64::from(best) + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let own = *logits
        .get(chosen as usize)
        .ok_or_else(|| Error::invalid(format!("logprobs: token {chosen} is outside the vocabulary")))?;
    let mut list = Vec::new();
    if n > 0 {
        best_of(logits, n, &mut list);
    }
    // It comes before its equals, also before those that left it no place.
    let place = list.partition_point(|c| c.logit > own);
    if place < list.len() && own == list[place].logit {
        let from = list[place..].iter().position(|c| c.id == chosen).map_or(list.len() - 1, |at| place + at);
        list[place..=from].rotate_right(1);
        list[place].id = chosen;
    }
    let top = list.iter().map(|c| (c.id, logprob(c.logit))).collect();
    Ok(Logprobs { token: chosen, chosen: logprob(own), top })
}

/// xoshiro256++ 1.0, seeded by splitmix64 (Blackman & Vigna, 2019): the same numbers on every platform.
struct Xoshiro {
    state: [u64; 4],
}

impl Xoshiro {
    fn new(seed: u64) -> Self {
        let mut x = seed;
        let state = std::array::from_fn(|_| {
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        });
        Self { state }
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
