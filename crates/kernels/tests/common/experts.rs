//! MLPs, the router, the experts and their sum.

use files::Format;
use tidemill_kernels::ops::{
    ExpertBatch, MlpWeights, Precision, Residual, RouteSpec, RoutedLayer, RoutedOutput, RoutedRow,
    SharedOutput, WindowRow,
};

use super::*;

/// Three matrices, encoded. The formats of a real model's gate and up may differ from down's.
struct Mlp([Encoded; 3]);

impl Mlp {
    fn random(format: Format, down: Format, hidden: usize, inner: usize, rng: &mut Rng) -> Self {
        let mut matrix = |f, r, c| Encoded::random(f, r, c, rng);
        Self([matrix(format, inner, hidden), matrix(format, inner, hidden), matrix(down, hidden, inner)])
    }

    fn weights(&self, rig: &Rig) -> MlpWeights {
        let [gate, up, down] = self.0.each_ref().map(|w| w.weight(rig));
        MlpWeights::new(gate, up, down).unwrap()
    }

    /// Several with all their parts in one buffer, as a slab holds them.
    fn together(rig: &Rig, all: &[Self]) -> Vec<MlpWeights> {
        let mut weights =
            Encoded::weights(rig, &all.iter().flat_map(|m| &m.0).collect::<Vec<_>>()).into_iter();
        let mut next = || weights.next().expect("three for each");
        all.iter().map(|_| MlpWeights::new(next(), next(), next()).unwrap()).collect()
    }
}

pub fn mlp(rig: &Rig) {
    let mut rng = Rng::new(31);
    for &format in &rig.formats {
        for rows in [1, rng.within(2..=20)] {
            let mlp = Mlp::random(format, format, 256, 256, &mut rng);
            let x = rng.values(rows * 256, 1.0);
            let run = |rig: &Rig, x: &[f32]| {
                let b = &*rig.backend;
                let rows = x.len() / 256;
                let mut out = output(b, rows, 256);
                b.mlp(&tensor(b, rows, 256, x), &mlp.weights(rig), &mut out).unwrap();
                values(b, &out)
            };
            let (got, want) = (run(rig, &x), run(&Rig::reference(), &x));
            close_norm(rig, &format!("{format} {rows} rows"), &got, &want, 3e-6, 2e-2);
            if rig.batch_invariant {
                let cut = 256 * rng.within(0..=rows - 1);
                let first = if cut > 0 { run(rig, &x[..cut]) } else { Vec::new() };
                let apart = [first, run(rig, &x[cut..])].concat();
                same(rig, &format!("{format} {rows} rows apart"), &apart, &got);
            }
        }
    }
}

pub fn expert_mlp(rig: &Rig) {
    let mut rng = Rng::new(32);
    let formats = &rig.formats;
    for (i, &format) in formats.iter().enumerate() {
        let rows = if i % 3 == 0 { rng.within(30..=50) } else { rng.within(1..=8) };
        let (k, experts) = (rng.within(1..=3), rng.within(3..=4));
        let down = formats[(i + 1) % formats.len()];
        let mlps: Vec<Mlp> = (0..experts).map(|_| Mlp::random(format, down, 256, 256, &mut rng)).collect();
        let x = rng.values(rows * 256, 1.0);
        // Each row picks k different experts; some get most of the rows.
        let mut routed: Vec<Vec<RoutedRow>> = vec![Vec::new(); experts];
        for row in 0..rows {
            let first = if row % 6 == 0 { rng.within(0..=experts - 1) } else { 0 };
            for c in 0..k {
                let part = (row * k + c) as u32;
                routed[(first + c) % experts].push(RoutedRow { row: row as u32, part });
            }
        }
        let run = |rig: &Rig, together: bool| {
            let b = &*rig.backend;
            let weights: Vec<MlpWeights> = mlps.iter().map(|m| m.weights(rig)).collect();
            let batches: Vec<ExpertBatch<'_>> =
                weights.iter().zip(&routed).map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
            let x = tensor(b, rows, 256, &x);
            let mut parts = output(b, rows * k, 256);
            if together {
                b.expert_mlp(&x, &batches, &mut parts).unwrap();
            } else {
                // As experts arrive from the drive: one by one, in another order.
                for batch in batches.iter().rev() {
                    b.expert_mlp(&x, &[*batch], &mut parts).unwrap();
                }
            }
            values(b, &parts)
        };
        let (got, want) = (run(rig, true), run(&Rig::reference(), true));
        close_norm(rig, &format!("{format} then {down}"), &got, &want, 3e-6, 2e-2);
        same(rig, &format!("{format} one by one"), &run(rig, false), &got);
    }
}

pub fn route(rig: &Rig) {
    let mut rng = Rng::new(33);
    for &format in &rig.formats {
        let (rows, experts) = (rng.within(1..=30), rng.within(8..=70));
        let spec = RouteSpec { top_k: rng.within(1..=8), normalise: rng.flag() };
        let router = Encoded::random(format, experts, 256, &mut rng);
        let x = rng.values(rows * 256, 1.0);
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let mut routes = route_buffers(b, rows, spec.top_k);
            b.route(&tensor(b, rows, 256, &x), &router.weight(rig), &spec, &mut routes).unwrap();
            b.read_routes(&routes, rows, &spec).unwrap()
        };
        let (got, want) = (run(rig), run(&Rig::reference()));
        let what = format!("{format} {rows} rows {experts} experts {spec:?}");
        assert_eq!(got.top_k, spec.top_k);
        // f32 activations in every mode: routers never round. Logits of experts that change places are equal
        // within rounding, so the weights agree in any case.
        close(rig, &what, &got.weights, &want.weights, |i| 2e-5 * want.weights[i]);
        let differ = got.ids.iter().zip(&want.ids).filter(|(g, w)| g != w).count();
        assert!(differ * 100 <= got.ids.len(), "{}: {what}: {differ} other experts", rig.name);
    }
    ties(rig);
}

/// Experts in the order of the router's ids, looked up by the device: what `expert_mlp` computes, bit for bit.
pub fn routed_mlp(rig: &Rig) {
    if !rig.backend.info().looks_up_experts {
        return;
    }
    let mut rng = Rng::new(35);
    let formats = &rig.formats;
    for (i, &format) in formats.iter().enumerate() {
        let down = formats[(i + 1) % formats.len()];
        let rows = [1, rng.within(2..=32), 40][i % 3];
        let spec = RouteSpec { top_k: rng.within(1..=4), normalise: true };
        let experts = rng.within(5..=9);
        let mlps: Vec<Mlp> = (0..experts).map(|_| Mlp::random(format, down, 256, 256, &mut rng)).collect();
        let router = Encoded::random(Format::F32, experts, 256, &mut rng);
        let x = rng.values(rows * 256, 1.0);
        let run = |rig: &Rig, by_host: bool| {
            let b = &*rig.backend;
            // Each in buffers of its own: the device has to tell groups apart.
            let weights: Vec<MlpWeights> = mlps.iter().map(|m| m.weights(rig)).collect();
            let x = tensor(b, rows, 256, &x);
            let mut routes = route_buffers(b, rows, spec.top_k);
            b.route(&x, &router.weight(rig), &spec, &mut routes).unwrap();
            let mut parts = output(b, rows * spec.top_k, 256);
            if by_host {
                let chosen = b.read_routes(&routes, rows, &spec).unwrap();
                for (e, weights) in weights.iter().enumerate() {
                    let row = |p| RoutedRow { row: (p / spec.top_k) as u32, part: p as u32 };
                    let own = (0..chosen.ids.len()).filter(|&p| chosen.ids[p] as usize == e);
                    let rows: Vec<RoutedRow> = own.map(row).collect();
                    b.expert_mlp(&x, &[ExpertBatch { weights, rows: &rows }], &mut parts).unwrap();
                }
            } else {
                let all: Vec<&MlpWeights> = weights.iter().collect();
                let table = b.expert_table(&all).unwrap().unwrap();
                b.routed_mlp(&x, &table, &routes, &spec, &mut parts).unwrap();
            }
            values(b, &parts)
        };
        let what = format!("{format} then {down}, {rows} rows, {experts} experts");
        let got = run(rig, false);
        same(rig, &what, &got, &run(rig, true));
        // On matrix units, which round, routers may choose otherwise.
        if rig.backend.info().precision == Precision::Exact {
            close_norm(rig, &what, &got, &run(&Rig::reference(), false), 3e-6, 2e-2);
        }
    }
}

/// A whole layer in one op: what its steps compute one by one, bit for bit.
pub fn routed_layer(rig: &Rig) {
    if !rig.backend.info().looks_up_experts {
        return;
    }
    let mut rng = Rng::new(36);
    let formats = &rig.formats;
    for (i, &format) in formats.iter().enumerate() {
        // On matrix units, which round, routers may choose otherwise.
        let most = if rig.backend.info().precision == Precision::Exact { 40 } else { 32 };
        let rows = [1, rng.within(2..=4), rng.within(5..=15), rng.within(16..=most)][i % 4];
        let spec = RouteSpec { top_k: rng.within(1..=4), normalise: rng.flag() };
        let (experts, one_buffer, with_shared) = (rng.within(5..=9), i % 3 < 2, i % 5 < 4);
        let mlps: Vec<Mlp> = (0..experts).map(|_| Mlp::random(format, format, 256, 256, &mut rng)).collect();
        // As an expert, or narrower.
        let inner = if i % 4 == 1 { 512 } else { 256 };
        let shared = Mlp::random(format, format, 256, inner, &mut rng);
        let router = Encoded::random(Format::F32, experts, 256, &mut rng);
        let gate = Encoded::random(Format::F32, 1, 256, &mut rng);
        let x = rng.values(rows * 256, 1.0);
        let run = |rig: &Rig, at_once: bool| {
            let b = &*rig.backend;
            let weights = match one_buffer {
                true => Mlp::together(rig, &mlps),
                false => mlps.iter().map(|m| m.weights(rig)).collect(),
            };
            let table = b.expert_table(&weights.iter().collect::<Vec<_>>()).unwrap().unwrap();
            let resident = Encoded::weights(rig, &[&router, &gate]);
            let (shared, x) = (shared.weights(rig), tensor(b, rows, 256, &x));
            let mut routes = route_buffers(b, rows, spec.top_k);
            let mut parts = output(b, rows * spec.top_k, 256);
            let (mut out, mut gate) = (output(b, rows, 256), output(b, rows, 1));
            if at_once {
                let (router, shared) = (&resident[0], with_shared.then_some((&shared, &resident[1])));
                let layer = RoutedLayer { router, spec: &spec, table: &table, shared };
                let outputs = with_shared.then_some((&mut out, &mut gate));
                let to = RoutedOutput { routes: &mut routes, parts: &mut parts, shared: outputs };
                b.routed_layer(&x, &layer, to).unwrap();
            } else {
                b.route(&x, &resident[0], &spec, &mut routes).unwrap();
                b.routed_mlp(&x, &table, &routes, &spec, &mut parts).unwrap();
                if with_shared {
                    b.mlp(&x, &shared, &mut out).unwrap();
                    b.linear(&x, &resident[1], None, &mut gate).unwrap();
                }
            }
            let chosen = b.read_routes(&routes, rows, &spec).unwrap();
            let ids = chosen.ids.iter().map(|&id| 1.0 + id as f32).collect();
            [ids, chosen.weights, values(b, &parts), values(b, &out), values(b, &gate)]
        };
        let (got, apart, want) = (run(rig, true), run(rig, false), run(&Rig::reference(), true));
        for (n, ((got, apart), want)) in got.iter().zip(&apart).zip(&want).enumerate() {
            let what =
                format!("{format}, {rows} rows, {experts} experts, one buffer {one_buffer}, result {n}");
            same(rig, &what, got, apart);
            close_norm(rig, &what, got, want, 3e-6, 2e-2);
        }
    }
}

/// Equal logits: the lower id comes first.
fn ties(rig: &Rig) {
    let b = &*rig.backend;
    let mut values = vec![0.25; 64 * 32];
    values[5 * 32..6 * 32].fill(0.5);
    values[9 * 32..10 * 32].fill(0.5);
    let router = Encoded::new(Format::F32, 64, 32, &values).weight(rig);
    let spec = RouteSpec { top_k: 4, normalise: true };
    let mut routes = route_buffers(b, 1, 4);
    b.route(&tensor(b, 1, 32, &[1.0; 32]), &router, &spec, &mut routes).unwrap();
    assert_eq!(b.read_routes(&routes, 1, &spec).unwrap().ids, [0, 1, 5, 9], "{}", rig.name);
}

pub fn combine(rig: &Rig) {
    let mut rng = Rng::new(34);
    for round in 0..12 {
        let (rows, k, cols) = (rng.within(1..=30), rng.within(1..=8), rng.within(1..=500));
        let (parts, weights) = (rng.values(rows * k * cols, 1.0), rng.values(rows * k, 0.5));
        let shared = rng.flag().then(|| (rng.values(rows * cols, 1.0), rng.values(rows, 2.0)));
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let mut routes = route_buffers(b, rows, k);
            routes.weights = tensor(b, rows, k, &weights);
            let shared = shared.as_ref().map(|(o, g)| (tensor(b, rows, cols, o), tensor(b, rows, 1, g)));
            let shared = shared.as_ref().map(|(output, gate)| SharedOutput { output, gate });
            let mut out = output(b, rows, cols);
            let spec = RouteSpec { top_k: k, normalise: true };
            b.combine(&tensor(b, rows * k, cols, &parts), &routes, &spec, shared, &mut out).unwrap();
            values(b, &out)
        };
        let want = run(&Rig::reference());
        close(rig, &format!("round {round}"), &run(rig), &want, |i| 2e-6 * (want[i].abs() + 1.0));
    }
}

/// Outputs of experts that come in windows, as `combine` sums them all at once; on the CPU bit for bit.
pub fn windows(rig: &Rig) {
    let mut rng = Rng::new(38);
    for round in 0..8 {
        let (rows, k, cols) = (rng.within(1..=30), rng.within(1..=8), rng.within(1..=500));
        let (parts, weights) = (rng.values(rows * k * cols, 1.0), rng.values(rows * k, 0.5));
        let shared = rng.flag().then(|| (rng.values(rows * cols, 1.0), rng.values(rows, 2.0)));
        // Output c of row r is in this window: later ones in later windows.
        let window_of: Vec<usize> = (0..rows)
            .flat_map(|_| {
                let mut of_row: Vec<usize> = (0..k).map(|_| rng.within(0..=2)).collect();
                of_row.sort_unstable();
                of_row
            })
            .collect();
        let run = |rig: &Rig, whole: bool| {
            let b = &*rig.backend;
            let shared = shared.as_ref().map(|(o, g)| (tensor(b, rows, cols, o), tensor(b, rows, 1, g)));
            let shared = shared.as_ref().map(|(output, gate)| SharedOutput { output, gate });
            let mut sum = output(b, rows, cols);
            if whole {
                let mut routes = route_buffers(b, rows, k);
                routes.weights = tensor(b, rows, k, &weights);
                let spec = RouteSpec { top_k: k, normalise: true };
                b.combine(&tensor(b, rows * k, cols, &parts), &routes, &spec, shared, &mut sum).unwrap();
                return values(b, &sum);
            }
            b.begin_sum(shared, &mut sum).unwrap();
            for window in 0..3 {
                let inside: Vec<usize> = (0..rows * k).filter(|&i| window_of[i] == window).collect();
                let mut entries: Vec<WindowRow> = Vec::new();
                for (first, &i) in inside.iter().enumerate() {
                    match entries.last_mut().filter(|entry| entry.row as usize == i / k) {
                        Some(entry) => entry.count += 1,
                        None => {
                            entries.push(WindowRow { row: (i / k) as u32, first: first as u32, count: 1 })
                        }
                    }
                }
                if inside.is_empty() {
                    continue;
                }
                let own: Vec<f32> = inside.iter().flat_map(|&i| parts[i * cols..][..cols].to_vec()).collect();
                let own_weights: Vec<f32> = inside.iter().map(|&i| weights[i]).collect();
                b.add_window(&tensor(b, inside.len(), cols, &own), &own_weights, &entries, &mut sum).unwrap();
            }
            values(b, &sum)
        };
        let (got, want) = (run(rig, false), run(&Rig::reference(), true));
        close(rig, &format!("round {round}"), &got, &want, |i| 2e-6 * (want[i].abs() + 1.0));
        if rig.batch_invariant {
            same(rig, &format!("round {round}"), &got, &run(rig, true));
        }
    }
}

/// What `combine`, `add` and `rms_norm` do; on the CPU bit for bit.
pub fn combine_norm(rig: &Rig) {
    let mut rng = Rng::new(37);
    for round in 0..12 {
        let (rows, k, cols) = (rng.within(1..=20), rng.within(1..=8), rng.within(1..=500));
        let (parts, weights) = (rng.values(rows * k * cols, 1.0), rng.values(rows * k, 0.5));
        let shared = rng.flag().then(|| (rng.values(rows * cols, 1.0), rng.values(rows, 2.0)));
        let (residual, norm) = (rng.values(rows * cols, 2.0), rng.values(cols, 1.0));
        let run = |rig: &Rig, apart: bool| {
            let b = &*rig.backend;
            let mut routes = route_buffers(b, rows, k);
            routes.weights = tensor(b, rows, k, &weights);
            let shared = shared.as_ref().map(|(o, g)| (tensor(b, rows, cols, o), tensor(b, rows, 1, g)));
            let shared = shared.as_ref().map(|(output, gate)| SharedOutput { output, gate });
            let (mut x, weight) = (tensor(b, rows, cols, &residual), tensor(b, 1, cols, &norm));
            let (parts, mut out) = (tensor(b, rows * k, cols, &parts), output(b, rows, cols));
            let spec = RouteSpec { top_k: k, normalise: true };
            if apart {
                b.combine(&parts, &routes, &spec, shared, &mut out).unwrap();
                b.add(&mut x, &out).unwrap();
                b.rms_norm(&x, &weight, 1e-6, &mut out).unwrap();
            } else {
                let to = Residual { x: &mut x, weight: &weight, eps: 1e-6, out: &mut out };
                b.combine_norm(&parts, &routes, &spec, shared, to).unwrap();
            }
            [values(b, &x), values(b, &out)].concat()
        };
        let (got, want) = (run(rig, false), run(&Rig::reference(), true));
        close(rig, &format!("round {round}"), &got, &want, |i| 6e-6 * (want[i].abs() + 1.0));
        if rig.batch_invariant {
            same(rig, &format!("round {round}"), &got, &run(rig, true));
        }
    }
}

/// Experts with many rows each, whose products may round both sides to half precision.
pub fn many_rows(rig: &Rig) {
    let mut rng = Rng::new(38);
    let a4 = Format::Affine { bits: 4, group: 64, scale: files::ScaleType::BF16 };
    let formats = [Format::BF16, Format::Q4_0, Format::Q4K, Format::Q6K, a4, Format::Q8_0, Format::Q5_0];
    for (i, &format) in formats.iter().enumerate() {
        let (rows, experts) = ([20, 70, 150, 400][i % 4] + rng.within(0..=20), 3);
        // Formats that meet their columns in one order, and in two.
        let down = formats[(i + i % 2) % formats.len()];
        let mlps: Vec<Mlp> = (0..experts).map(|_| Mlp::random(format, down, 256, 256, &mut rng)).collect();
        let x = rng.values(rows * 256, 1.0);
        let mut routed: Vec<Vec<RoutedRow>> = vec![Vec::new(); experts];
        for row in 0..rows as u32 {
            routed[rng.within(0..=experts - 1)].push(RoutedRow { row, part: row });
        }
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let weights = Mlp::together(rig, &mlps);
            let batches: Vec<ExpertBatch<'_>> =
                weights.iter().zip(&routed).map(|(weights, rows)| ExpertBatch { weights, rows }).collect();
            let mut parts = output(b, rows, 256);
            b.expert_mlp(&tensor(b, rows, 256, &x), &batches, &mut parts).unwrap();
            values(b, &parts)
        };
        let what = format!("{format} then {down}, {rows} rows");
        close_norm(rig, &what, &run(rig), &run(&Rig::reference()), 3e-6, 1e-3);
    }
}
