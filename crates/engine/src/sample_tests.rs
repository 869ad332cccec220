//! Tests of the sampler.

use super::*;
use files::ErrorKind;
use proptest::prelude::*;

fn sample(params: &SampleParams, logits: &[f32], history: &[u32]) -> Result<u32> {
    Sampler::new(params)?.sample(logits, history)
}

/// The tokens that come up in many draws.
fn support(params: SampleParams, logits: &[f32]) -> Vec<u32> {
    let mut sampler = Sampler::new(&SampleParams { seed: Some(7), ..params }).unwrap();
    let draws = (0..2000).map(|_| sampler.sample(logits, &[]).unwrap());
    draws.collect::<std::collections::BTreeSet<u32>>().into_iter().collect()
}

#[test]
fn the_generator_is_xoshiro() {
    // The authors' C programs, splitmix64 from seed 0 into xoshiro256++, print these.
    let mut random = Xoshiro::new(0);
    assert_eq!(random.state[0], 0xE220_A839_7B1D_CDAF);
    assert_eq!([random.next(), random.next()], [0x5317_5D61_490B_23DF, 0x61DA_6F3D_C380_D507]);
}

#[test]
fn greedy_takes_the_lowest_id_of_the_best() {
    assert_eq!(sample(&SampleParams::greedy(), &[1.0, 3.0, 3.0, 2.0], &[]).unwrap(), 1);
    let top_1 = SampleParams { top_k: 1, temperature: 5.0, ..SampleParams::default() };
    assert_eq!(sample(&top_1, &[1.0, 3.0, 3.0, 2.0], &[]).unwrap(), 1);
}

#[test]
fn cuts_keep_what_they_promise() {
    // Probabilities 0.5, 0.25, 0.15, 0.1.
    let logits = [0.25f32.ln(), 0.1f32.ln(), 0.5f32.ln(), 0.15f32.ln()];
    let p = SampleParams::default();
    assert_eq!(support(p.clone(), &logits), [0, 1, 2, 3]);
    assert_eq!(support(SampleParams { top_k: 2, ..p.clone() }, &logits), [0, 2]);
    assert_eq!(support(SampleParams { top_p: 0.5, ..p.clone() }, &logits), [2]);
    assert_eq!(support(SampleParams { top_p: 0.8, ..p.clone() }, &logits), [0, 2, 3]);
    assert_eq!(support(SampleParams { min_p: 0.4, ..p.clone() }, &logits), [0, 2]);
    // At half the temperature the probabilities square: 0.72 of the sum is the best token's.
    assert_eq!(support(SampleParams { top_p: 0.7, temperature: 0.5, ..p }, &logits), [2]);
    let masked = [0.0, f32::NEG_INFINITY, 0.0];
    assert_eq!(support(SampleParams::default(), &masked), [0, 2]);
}

#[test]
fn frequencies_follow_the_distribution() {
    let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
    let mut sampler = Sampler::new(&SampleParams { seed: Some(1), ..SampleParams::default() }).unwrap();
    let mut counts = [0u32; 3];
    for _ in 0..20_000 {
        counts[sampler.sample(&logits, &[]).unwrap() as usize] += 1;
    }
    for (count, p) in counts.iter().zip([0.6_f64, 0.3, 0.1]) {
        // Five standard deviations.
        let sigma = (20_000.0 * p * (1.0 - p)).sqrt();
        assert!((f64::from(*count) - 20_000.0 * p).abs() < 5.0 * sigma, "{counts:?}");
    }
}

#[test]
fn penalties_and_bias() {
    let base = SampleParams::greedy();
    let repetition = SampleParams { repetition_penalty: 2.0, ..base.clone() };
    assert_eq!(sample(&repetition, &[3.0, 2.0], &[0]).unwrap(), 1);
    assert_eq!(sample(&repetition, &[-1.0, -1.5], &[0]).unwrap(), 1);
    let window = SampleParams { penalty_window: Some(1), ..repetition };
    assert_eq!(sample(&window, &[3.0, 2.0], &[0, 5]).unwrap(), 0);
    let presence = SampleParams { presence_penalty: 0.6, ..base.clone() };
    assert_eq!(sample(&presence, &[3.0, 2.5], &[0, 0, 0]).unwrap(), 1);
    assert_eq!(sample(&presence, &[4.0, 2.5], &[0, 0, 0]).unwrap(), 0);
    let frequency = SampleParams { frequency_penalty: 0.6, ..base.clone() };
    assert_eq!(sample(&frequency, &[4.0, 2.5], &[0, 0, 0]).unwrap(), 1);
    let bias = SampleParams { logit_bias: vec![(1, 100.0)], ..base };
    assert_eq!(sample(&bias, &[4.0, 2.5], &[]).unwrap(), 1);
    assert_eq!(sample(&bias, &[4.0], &[]).unwrap_err().kind(), ErrorKind::InvalidRequest);
}

#[test]
fn bad_logits_and_parameters_are_named() {
    let p = SampleParams::default();
    for bad in [f32::NAN, f32::INFINITY] {
        let e = sample(&p, &[0.0, bad], &[]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.message().contains("token 1"), "{e}");
    }
    assert!(sample(&p, &[f32::NEG_INFINITY; 3], &[]).is_err());
    assert!(sample(&p, &[], &[]).is_err());
    for (field, params) in [
        ("temperature", SampleParams { temperature: -1.0, ..p.clone() }),
        ("temperature", SampleParams { temperature: f32::NAN, ..p.clone() }),
        ("top_p", SampleParams { top_p: 0.0, ..p.clone() }),
        ("min_p", SampleParams { min_p: 1.5, ..p.clone() }),
        ("repetition_penalty", SampleParams { repetition_penalty: 0.0, ..p.clone() }),
        ("presence_penalty", SampleParams { presence_penalty: f32::INFINITY, ..p.clone() }),
        ("frequency_penalty", SampleParams { frequency_penalty: f32::NAN, ..p.clone() }),
        ("logit_bias", SampleParams { logit_bias: vec![(0, f32::NAN)], ..p.clone() }),
    ] {
        let e = Sampler::new(&params).err().unwrap();
        assert_eq!(e.kind(), ErrorKind::InvalidRequest);
        assert!(e.message().starts_with(field), "{e}");
    }
}

#[test]
fn a_seed_repeats_the_choices() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.7).sin()).collect();
    let draws = |seed| {
        let mut sampler = Sampler::new(&SampleParams { seed, ..SampleParams::default() }).unwrap();
        let list: Vec<u32> = (0..20).map(|_| sampler.sample(&logits, &[]).unwrap()).collect();
        (list, sampler.seed())
    };
    let (random, seed) = draws(None);
    assert_eq!(draws(Some(seed)).0, random);
    assert_ne!(draws(Some(3)).0, draws(Some(4)).0);
}

#[test]
fn logprobs_are_log_softmax() {
    let logits = [0.5f32.ln() + 3.0, 0.125f32.ln() + 3.0, 0.375f32.ln() + 3.0];
    let got = logprobs(&logits, 1, 2).unwrap();
    assert!((got.chosen - 0.125f32.ln()).abs() < 1e-6);
    assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 2]);
    assert!((got.top[1].1 - 0.375f32.ln()).abs() < 1e-6);
    assert!(logprobs(&logits, 9, 2).is_err());
    assert_eq!(logprobs(&logits, 0, 99).unwrap().top.len(), 3);
}

#[test]
fn the_chosen_one_comes_before_its_equals() {
    let logits = [1.0, 2.0, 1.0, 1.0, f32::NEG_INFINITY];
    let top =
        |chosen, n| logprobs(&logits, chosen, n).unwrap().top.into_iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(top(2, 4), [1, 2, 0, 3]);
    assert_eq!(top(3, 2), [1, 3]);
    assert_eq!(top(3, 1), [1]);
    assert_eq!(top(1, 3), [1, 0, 2]);
    assert_eq!(top(4, 5), [1, 0, 2, 3]);
    assert!(top(0, 0).is_empty());
}

proptest! {
    /// Sorting only a part keeps the same tokens as sorting all.
    #[test]
    fn the_shared_prefix_is_exact(seed in any::<u64>(), n in 1usize..3000, share in 0.01f64..1.0) {
        let mut random = Xoshiro::new(seed);
        let mut list: Vec<Candidate> = (0..n as u32)
            .map(|id| {
                let logit = (random.unit() * 6.0).floor() as f32;
                Candidate { id, logit, weight: f64::from(logit).exp() }
            })
            .collect();
        let enough = share * list.iter().map(|c| c.weight).sum::<f64>();
        let mut all = list.clone();
        all.sort_by(Candidate::order);
        let mut sum = 0.0;
        let count = all.iter().take_while(|c| { let open = sum < enough; sum += c.weight; open }).count();
        keep_share(&mut list, enough);
        let ids = |l: &[Candidate]| l.iter().map(|c| c.id).collect::<Vec<_>>();
        prop_assert_eq!(ids(&list), ids(&all[..count]));
    }

    /// Keeping the best while reading is sorting everything.
    #[test]
    fn the_best_are_found_in_one_pass(seed in any::<u64>(), len in 1usize..2500, n in 1usize..40) {
        let mut random = Xoshiro::new(seed);
        let logits: Vec<f32> = (0..len)
            .map(|_| if random.unit() < 0.1 { f32::NEG_INFINITY } else { (random.unit() * 50.0).floor() as f32 })
            .collect();
        let mut list = Vec::new();
        best_of(&logits, n, &mut list);
        let mut all: Vec<u32> = (0..len as u32).filter(|id| logits[*id as usize] > f32::NEG_INFINITY).collect();
        all.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        all.truncate(n);
        prop_assert_eq!(list.iter().map(|c| c.id).collect::<Vec<_>>(), all);
        let first = (0..len).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        let best = argmax(&logits).ok();
        prop_assert_eq!(best, first.filter(|id| logits[*id] > f32::NEG_INFINITY));
    }
}
