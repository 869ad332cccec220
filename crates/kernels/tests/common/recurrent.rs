//! The short convolution and the gated delta rule.

use tidemill_kernels::ops::{Convolution, DeltaInput, DeltaSpec, Gate, Product};

use super::plan::{Plan, Work, mix, same_apart};
use super::*;

pub fn short_conv(rig: &Rig) {
    let mut rng = Rng::new(21);
    for round in 0..16 {
        let (channels, kernel) = (rng.within(1..=300), rng.within(1..=5));
        let counts = mix(&mut rng, round, 100);
        let work = Work::step(&mut rng, &counts, 5000);
        let x: Vec<Vec<f32>> = counts.iter().map(|rows| rng.values(rows * channels, 1.0)).collect();
        let states: Vec<Vec<f32>> = counts.iter().map(|_| rng.values((kernel - 1) * channels, 1.0)).collect();
        let weight = rng.values(channels * kernel, 1.0);
        // Outputs of each sequence, and its state after them.
        let run = |rig: &Rig, plan: &Plan| {
            let (b, mut answers) = (&*rig.backend, plan.answers());
            let (weight, mut state) = (tensor(b, channels, kernel, &weight), plan.states(b, &states));
            for step in &plan.steps {
                let (x, mut out) = (step.tensor(b, channels, |s| &x[s]), output(b, step.rows, channels));
                b.short_conv(&x, &weight, &step.segments(), &mut state, &mut out).unwrap();
                step.take(rig, &out, OUTPUT, &mut answers);
            }
            plan.take_states(rig, &state, &mut answers);
            answers
        };
        let plan = work.plan(&mut rng);
        let (got, want) = (run(rig, &plan), run(&Rig::reference(), &plan));
        let what = format!("round {round}: {channels} channels, kernel {kernel}, {counts:?} rows");
        for (got, want) in got.iter().zip(&want) {
            close(rig, &what, got, want, |i| 4e-6 * (want[i].abs() + 1.0));
        }
        same_apart(rig, &what, (&mut rng, &work), &got, |plan| run(rig, plan));
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
        // One sequence, then two of them, in one row, in three, and here and there in more.
        let more = if i % 3 == 0 { vec![2, 4] } else { vec![1, 0] };
        let steps = vec![vec![1, 0], vec![0, 1], vec![1, 1], vec![2, 1], more, vec![1, 0]];
        let work = Work { steps, gaps: i % 3 == 0, empty: false, ..Work::step(&mut rng, &[0, 0], 50) };
        let x = [0, 1].map(|_| rng.values(10 * cols, 1.0));
        let conv = rng.values(channels * kernel, 1.0);
        let states: Vec<Vec<f32>> = (0..2).map(|_| rng.values((kernel - 1) * channels, 1.0)).collect();
        let plan = work.plan(&mut rng);
        let run = |rig: &Rig, apart: bool| {
            let (b, mut answers) = (&*rig.backend, plan.answers());
            let weights = match apart_from_others {
                true => all.iter().map(|w| w.weight(rig)).collect(),
                false => Encoded::weights(rig, &all.iter().collect::<Vec<_>>()),
            };
            let conv = tensor(b, channels, kernel, &conv);
            let (mut state, mut others) = (plan.states(b, &states), Vec::new());
            for step in &plan.steps {
                let (x, segments) = (step.tensor(b, cols, |s| &x[s]), step.segments());
                let mut outs: Vec<Tensor> = all.iter().map(|w| output(b, step.rows, w.rows)).collect();
                let mut convolved = output(b, step.rows, channels);
                let mut products: Vec<Product<'_>> = weights
                    .iter()
                    .zip(&mut outs)
                    .map(|(weight, out)| Product { weight, bias: None, out })
                    .collect();
                if apart {
                    b.linears(&x, &mut products).unwrap();
                    b.short_conv(products[0].out, &conv, &segments, &mut state, &mut convolved).unwrap();
                } else {
                    let (segments, state, out) = (&segments, &mut state, &mut convolved);
                    let conv = Convolution { weight: &conv, segments, state, out };
                    b.linears_conv(&x, &mut products, conv).unwrap();
                }
                step.take(rig, &convolved, OUTPUT, &mut answers);
                others.extend(outs[1..].iter().flat_map(|out| values(b, out)));
            }
            plan.take_states(rig, &state, &mut answers);
            [answers.concat(), others].concat()
        };
        let (got, want) = (run(rig, false), run(rig, true));
        let what = format!("{format}, {channels} channels, kernel {kernel}");
        close(rig, &what, &got, &want, |i| 2e-6 * (want[i].abs() + 1.0));
    }
}

/// Inputs of the delta rule for some sequences.
struct Deltas {
    spec: DeltaSpec,
    work: Work,
    /// Of each sequence.
    qkv: Vec<Vec<f32>>,
    a: Vec<Vec<f32>>,
    b: Vec<Vec<f32>>,
    z: Vec<Vec<f32>>,
    states: Vec<Vec<f32>>,
    decay: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Vec<f32>,
}

/// What to compute: the rule alone, or the norm after it too, in one op or two.
#[derive(Clone, Copy, PartialEq)]
enum Ops {
    Plain,
    Gated,
    GatedApart,
}

impl Deltas {
    fn random(rng: &mut Rng, spec: DeltaSpec, counts: &[usize]) -> Self {
        let (heads, dv) = (spec.value_heads, spec.value_head_dim);
        let mut each = |cols: usize, scale: f32| -> Vec<Vec<f32>> {
            counts.iter().map(|rows| rng.values(rows * cols, scale)).collect()
        };
        let (qkv, z) = (each(spec.channels(), 1.0), each(heads * dv, 2.0));
        let (a, b) = (each(heads, 2.0), each(heads, 2.0));
        let states = counts.iter().map(|_| rng.values(heads * spec.key_head_dim * dv, 0.3)).collect();
        let decay = rng.values(heads, 1.0).iter().map(|v| -v.exp()).collect();
        let (dt_bias, norm) = (rng.values(heads, 1.0), rng.values(dv, 1.0));
        let work = Work::step(rng, counts, 5000);
        Self { spec, work, qkv, a, b, z, states, decay, dt_bias, norm }
    }

    /// Outputs of each sequence, and its state after them.
    fn run(&self, rig: &Rig, plan: &Plan, ops: Ops) -> Vec<Vec<f32>> {
        let (d, mut answers, spec) = (&*rig.backend, plan.answers(), &self.spec);
        let (heads, dv) = (spec.value_heads, spec.value_head_dim);
        let (decay, dt_bias) = (tensor(d, 1, heads, &self.decay), tensor(d, 1, heads, &self.dt_bias));
        let (weight, mut state) = (tensor(d, 1, dv, &self.norm), plan.states(d, &self.states));
        for step in &plan.steps {
            let segments = step.segments();
            let qkv = step.tensor(d, spec.channels(), |s| &self.qkv[s]);
            let (a, b) = (step.tensor(d, heads, |s| &self.a[s]), step.tensor(d, heads, |s| &self.b[s]));
            let z = step.tensor(d, heads * dv, |s| &self.z[s]);
            let mut out = output(d, step.rows, heads * dv);
            let (segments, qkv, a, b, decay, dt_bias) = (&segments, &qkv, &a, &b, &decay, &dt_bias);
            let input = DeltaInput { segments, qkv, a, b, decay, dt_bias };
            let gate = Gate { z: &z, weight: &weight, eps: 1e-6 };
            if ops == Ops::Gated {
                d.gated_delta_rule(&input, spec, &mut state, gate, &mut out).unwrap();
            } else {
                d.delta_rule(&input, spec, &mut state, &mut out).unwrap();
            }
            if ops == Ops::GatedApart {
                d.gated_norm(&mut out, gate.z, gate.weight, gate.eps).unwrap();
            }
            step.take(rig, &out, OUTPUT, &mut answers);
        }
        plan.take_states(rig, &state, &mut answers);
        answers
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
        let counts = mix(&mut rng, round, 24);
        let what = format!("round {round}: {spec:?}, {counts:?} rows");
        let case = Deltas::random(&mut rng, spec, &counts);
        let plan = case.work.plan(&mut rng);
        let (got, want) = (case.run(rig, &plan, Ops::Plain), case.run(&Rig::reference(), &plan, Ops::Plain));
        for (got, want) in got.iter().zip(&want) {
            close(rig, &what, got, want, |i| 2e-5 * (want[i].abs() + 0.5));
        }
        same_apart(rig, &what, (&mut rng, &case.work), &got, |plan| case.run(rig, plan, Ops::Plain));
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
        let counts = mix(&mut rng, round, 9);
        let what = format!("round {round}: {spec:?}, {counts:?} rows");
        let mut case = Deltas::random(&mut rng, spec, &counts);
        // Every row is normed.
        case.work.gaps = false;
        let plan = case.work.plan(&mut rng);
        let got = case.run(rig, &plan, Ops::Gated);
        for (got, want) in got.iter().zip(case.run(&Rig::reference(), &plan, Ops::GatedApart)) {
            // The norm divides by as little as a row's own size.
            close_norm(rig, &what, got, &want, 2e-5, 2e-5);
        }
        if rig.batch_invariant {
            for (got, apart) in got.iter().zip(case.run(rig, &plan, Ops::GatedApart)) {
                same(rig, &what, got, &apart);
            }
        }
        same_apart(rig, &what, (&mut rng, &case.work), &got, |plan| case.run(rig, plan, Ops::Gated));
    }
}
