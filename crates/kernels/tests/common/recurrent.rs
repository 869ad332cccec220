//! The short convolution and the gated delta rule.

use tidemill_kernels::ops::{Convolution, DeltaInput, DeltaSpec, Gate, Product, Segment};

use super::*;

pub fn short_conv(rig: &Rig) {
    let mut rng = Rng::new(21);
    for round in 0..16 {
        let (channels, kernel, rows) = (rng.within(1..=300), rng.within(1..=5), rng.within(1..=100));
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

/// What `linears` and then `short_conv` do, step after step.
pub fn linears_conv(rig: &Rig) {
    let mut rng = Rng::new(23);
    let formats = &rig.formats;
    for (i, &format) in formats.iter().enumerate() {
        let (cols, kernel) = (256 * rng.within(1..=3), rng.within(1..=5));
        // Some are large enough for integers, some have weights in buffers of their own.
        let channels = if i % 4 == 0 { 1024 + rng.within(1..=70) } else { rng.within(1..=70) };
        let apart_from_others = i % 5 == 4;
        let all: Vec<Encoded> = [channels, rng.within(1..=40), rng.within(1..=40)]
            .into_iter()
            .map(|rows| Encoded::random(format, rows, cols, &mut rng))
            .collect();
        let steps = [1, 1, 3, 1];
        let x = rng.values(6 * cols, 1.0);
        let (conv, state) = (rng.values(channels * kernel, 1.0), rng.values((kernel - 1) * channels, 1.0));
        let run = |rig: &Rig, apart: bool| {
            let b = &*rig.backend;
            let weights = match apart_from_others {
                true => all.iter().map(|w| w.weight(rig)).collect(),
                false => Encoded::weights(rig, &all.iter().collect::<Vec<_>>()),
            };
            let conv = tensor(b, channels, kernel, &conv);
            let mut state = tensor(b, kernel - 1, channels, &state);
            let (mut answers, mut start) = (Vec::new(), 0);
            for rows in steps {
                let x = tensor(b, rows, cols, &x[start * cols..][..rows * cols]);
                let mut outs: Vec<Tensor> = all.iter().map(|w| output(b, rows, w.rows)).collect();
                let mut convolved = output(b, rows, channels);
                let mut products: Vec<Product<'_>> = weights
                    .iter()
                    .zip(&mut outs)
                    .map(|(weight, out)| Product { weight, bias: None, out })
                    .collect();
                let segment = Segment { rows: 0..rows, position: start };
                if apart {
                    b.linears(&x, &mut products).unwrap();
                    b.short_conv(products[0].out, &conv, &segment, &mut state, &mut convolved).unwrap();
                } else {
                    let (segment, state, out) = (&segment, &mut state, &mut convolved);
                    let conv = Convolution { weight: &conv, segment, state, out };
                    b.linears_conv(&x, &mut products, conv).unwrap();
                }
                answers.extend([&convolved, &outs[1], &outs[2]].map(|t| values(b, t)));
                start += rows;
            }
            answers.push(values(b, &state));
            answers.concat()
        };
        let (got, want) = (run(rig, false), run(rig, true));
        let what = format!("{format}, {channels} channels, kernel {kernel}");
        close(rig, &what, &got, &want, |i| 2e-6 * (want[i].abs() + 1.0));
    }
}

pub fn delta_rule(rig: &Rig) {
    let mut rng = Rng::new(22);
    for round in 0..16 {
        let key_heads = rng.within(1..=3);
        // Real models have multiples of 32, which a device may treat apart.
        let key_dim = if round % 2 == 0 { 32 * rng.within(1..=4) } else { 4 * rng.within(1..=16) };
        let drawn = (key_dim, rng.flag());
        let (key_head_dim, tiled) = rig.shape(&mut rng, drawn, &[(128, true), (64, false), (20, true)]);
        let spec = DeltaSpec {
            key_heads,
            value_heads: key_heads * rng.within(1..=3),
            key_head_dim,
            value_head_dim: 4 * rng.within(1..=20),
            tiled,
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

/// What `delta_rule` and `gated_norm` do; on the CPU bit for bit.
pub fn gated_delta_rule(rig: &Rig) {
    let mut rng = Rng::new(23);
    for round in 0..10 {
        let key_heads = rng.within(1..=3);
        let key_dim = if round % 2 == 0 { 32 * rng.within(1..=4) } else { 4 * rng.within(1..=40) };
        let drawn = (key_dim, rng.flag());
        let (key_head_dim, tiled) = rig.shape(&mut rng, drawn, &[(128, true), (84, false)]);
        let spec = DeltaSpec {
            key_heads,
            value_heads: key_heads * rng.within(1..=3),
            key_head_dim,
            // Heads of more columns than a workgroup has, too.
            value_head_dim: if round == 0 { 132 } else { 4 * rng.within(1..=32) },
            tiled,
        };
        let (rows, heads, dv) = (rng.within(1..=9), spec.value_heads, spec.value_head_dim);
        let qkv = rng.values(rows * spec.channels(), 1.0);
        let (a, b) = (rng.values(rows * heads, 2.0), rng.values(rows * heads, 2.0));
        let decay: Vec<f32> = rng.values(heads, 1.0).iter().map(|v| -v.exp()).collect();
        let (dt_bias, z) = (rng.values(heads, 1.0), rng.values(rows * heads * dv, 2.0));
        let (state, weight) = (rng.values(heads * spec.key_head_dim * dv, 0.3), rng.values(dv, 1.0));
        let run = |rig: &Rig, apart: bool| {
            let d = &*rig.backend;
            let (qkv, a) = (tensor(d, rows, spec.channels(), &qkv), tensor(d, rows, heads, &a));
            let (b, decay) = (tensor(d, rows, heads, &b), tensor(d, 1, heads, &decay));
            let (dt_bias, z) = (tensor(d, 1, heads, &dt_bias), tensor(d, rows, heads * dv, &z));
            let mut state = tensor(d, heads, spec.key_head_dim * dv, &state);
            let (weight, mut out) = (tensor(d, 1, dv, &weight), output(d, rows, heads * dv));
            let segment = Segment { rows: 0..rows, position: 0 };
            let (segment, qkv, a, b, decay, dt_bias) = (&segment, &qkv, &a, &b, &decay, &dt_bias);
            let input = DeltaInput { segment, qkv, a, b, decay, dt_bias };
            if apart {
                d.delta_rule(&input, &spec, &mut state, &mut out).unwrap();
                d.gated_norm(&mut out, &z, &weight, 1e-6).unwrap();
            } else {
                let gate = Gate { z: &z, weight: &weight, eps: 1e-6 };
                d.gated_delta_rule(&input, &spec, &mut state, gate, &mut out).unwrap();
            }
            [values(d, &out), values(d, &state)].concat()
        };
        let (got, want) = (run(rig, false), run(&Rig::reference(), true));
        let what = format!("round {round}: {spec:?}, {rows} rows");
        // The norm divides by as little as a row's own size.
        close_norm(rig, &what, &got, &want, 2e-5, 2e-5);
        if rig.batch_invariant {
            same(rig, &what, &got, &run(rig, true));
        }
    }
}
