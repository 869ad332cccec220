//! The short convolution and the gated delta rule.

use tidemill_kernels::ops::{DeltaInput, DeltaSpec, Segment};

use super::*;

pub fn short_conv(rig: &Rig) {
    let mut rng = Rng::new(21);
    for round in 0..16 {
        let (channels, kernel, rows) = (rng.within(1..=300), rng.within(1..=5), rng.within(1..=30));
        let (x, weight) = (rng.values(rows * channels, 1.0), rng.values(channels * kernel, 1.0));
        let state = rng.values((kernel - 1) * channels, 1.0);
        // Returns outputs and final state after steps that end at the given rows.
        let run = |rig: &Rig, ends: &[usize]| {
            let b = &*rig.backend;
            let (x, weight) = (tensor(b, rows, channels, &x), tensor(b, channels, kernel, &weight));
            let mut state = tensor(b, kernel - 1, channels, &state);
            let mut out = output(b, rows, channels);
            let mut start = 0;
            for &end in ends {
                let segment = Segment { rows: start..end, position: start };
                b.short_conv(&x, &weight, &segment, &mut state, &mut out).unwrap();
                start = end;
            }
            [values(b, &out), values(b, &state)].concat()
        };
        let (got, want) = (run(rig, &[rows]), run(&Rig::reference(), &[rows]));
        let what = format!("round {round}: {channels} channels, kernel {kernel}, {rows} rows");
        close(rig, &what, &got, &want, |i| 4e-6 * (want[i].abs() + 1.0));
        if rig.batch_invariant {
            let each: Vec<usize> = (1..=rows).collect();
            same(rig, &what, &run(rig, &[rng.within(1..=rows), rows]), &got);
            same(rig, &what, &run(rig, &each), &got);
        }
    }
}

pub fn delta_rule(rig: &Rig) {
    let mut rng = Rng::new(22);
    for round in 0..16 {
        let key_heads = rng.within(1..=3);
        let spec = DeltaSpec {
            key_heads,
            value_heads: key_heads * rng.within(1..=3),
            key_head_dim: 4 * rng.within(1..=16),
            value_head_dim: 4 * rng.within(1..=20),
            tiled: rng.flag(),
        };
        let (rows, heads, dv) = (rng.within(1..=24), spec.value_heads, spec.value_head_dim);
        let qkv = rng.values(rows * spec.channels(), 1.0);
        let (a, b) = (rng.values(rows * heads, 2.0), rng.values(rows * heads, 2.0));
        let decay: Vec<f32> = rng.values(heads, 1.0).iter().map(|v| -v.exp()).collect();
        let dt_bias = rng.values(heads, 1.0);
        let state = rng.values(heads * spec.key_head_dim * dv, 0.3);
        let run = |rig: &Rig, ends: &[usize]| {
            let d = &*rig.backend;
            let (qkv, a) = (tensor(d, rows, spec.channels(), &qkv), tensor(d, rows, heads, &a));
            let (b, decay) = (tensor(d, rows, heads, &b), tensor(d, 1, heads, &decay));
            let dt_bias = tensor(d, 1, heads, &dt_bias);
            let mut state = tensor(d, heads, spec.key_head_dim * dv, &state);
            let mut out = output(d, rows, heads * dv);
            let mut start = 0;
            for &end in ends {
                let segment = Segment { rows: start..end, position: start };
                let (segment, qkv, a, b, decay, dt_bias) = (&segment, &qkv, &a, &b, &decay, &dt_bias);
                let input = DeltaInput { segment, qkv, a, b, decay, dt_bias };
                d.delta_rule(&input, &spec, &mut state, &mut out).unwrap();
                start = end;
            }
            [values(d, &out), values(d, &state)].concat()
        };
        let (got, want) = (run(rig, &[rows]), run(&Rig::reference(), &[rows]));
        let what = format!("round {round}: {spec:?}, {rows} rows");
        close(rig, &what, &got, &want, |i| 2e-5 * (want[i].abs() + 0.5));
        if rig.batch_invariant {
            let each: Vec<usize> = (1..=rows).collect();
            same(rig, &what, &run(rig, &[rng.within(1..=rows), rows]), &got);
            same(rig, &what, &run(rig, &each), &got);
        }
    }
}
