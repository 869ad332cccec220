//! The router's choice: softmax and the largest k, without sorting all experts.

use crate::cpu::math::exp;
use crate::ops::RouteSpec;

/// The `top_k` largest of a softmax over `logits`, the lower id on a tie, by ascending id. A NaN makes the weights NaN,
/// which [`crate::Backend::read_routes`] reports.
pub(in crate::cpu) fn choose(logits: &[f32], spec: &RouteSpec, ids: &mut [u32], weights: &mut [f32]) {
    let k = spec.top_k;
    let before = |a: f32, b: f32| a.total_cmp(&b).is_gt();
    let mut found = 0;
    for (e, &logit) in logits.iter().enumerate() {
        if found == k && !before(logit, weights[k - 1]) {
            continue;
        }
        // Equal logits keep their order: the lower id came first.
        let mut at = found.min(k - 1);
        while at > 0 && before(logit, weights[at - 1]) {
            (weights[at], ids[at]) = (weights[at - 1], ids[at - 1]);
            at -= 1;
        }
        (weights[at], ids[at]) = (logit, e as u32);
        found = (found + 1).min(k);
    }
    // A NaN may sort last; it must not go unseen.
    let max = logits.iter().fold(weights[0], |max, l| if l.is_nan() { *l } else { max });
    let sum: f32 = if spec.normalise {
        weights.iter().map(|l| exp(l - max)).sum()
    } else {
        logits.iter().map(|l| exp(l - max)).sum()
    };
    for weight in weights.iter_mut() {
        *weight = exp(*weight - max) / sum;
    }
    // They are few.
    for last in 1..k {
        let mut at = last;
        while at > 0 && ids[at - 1] > ids[at] {
            ids.swap(at - 1, at);
            weights.swap(at - 1, at);
            at -= 1;
        }
    }
}
