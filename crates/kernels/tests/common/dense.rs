//! Products, norms and plumbing.

use files::Format;
use tidemill_kernels::Tensor;
use tidemill_kernels::ops::{Product, Residual};

use super::*;

pub fn embed(rig: &Rig) {
    let mut rng = Rng::new(1);
    for &format in &rig.formats {
        let (vocab, cols) = (rng.within(2..=40), 256 * rng.within(1..=2));
        let table = Encoded::random(format, vocab, cols, &mut rng);
        let ids: Vec<u32> = (0..rng.within(1..=20)).map(|_| rng.within(0..=vocab - 1) as u32).collect();
        let b = &*rig.backend;
        let mut out = output(b, ids.len(), cols);
        b.embed(&table.weight(rig), &ids, &mut out).unwrap();
        let want: Vec<f32> = ids.iter().flat_map(|&id| table.row(id as usize)).collect();
        // A device may fuse the product and the sum of a decode.
        let bound = |i: usize| if rig.batch_invariant { 0.0 } else { 1e-6 * want[i].abs() + 1e-7 };
        close(rig, &format!("{format}"), &values(b, &out), &want, bound);
    }
}

fn product(rig: &Rig, x: &[f32], w: &Encoded, bias: Option<&[f32]>) -> Vec<f32> {
    let b = &*rig.backend;
    let rows = x.len() / w.cols;
    let mut out = output(b, rows, w.rows);
    let bias = bias.map(|v| tensor(b, 1, v.len(), v));
    b.linear(&tensor(b, rows, w.cols, x), &w.weight(rig), bias.as_ref(), &mut out).unwrap();
    values(b, &out)
}

pub fn linear(rig: &Rig) {
    let mut rng = Rng::new(2);
    for &format in &rig.formats {
        for rows in [1, rng.within(2..=9), rng.within(10..=70)] {
            let (cols, outputs) = (256 * rng.within(1..=3), rng.within(1..=90));
            let w = Encoded::random(format, outputs, cols, &mut rng);
            let x = rng.activations(rows, cols);
            let bias = rng.flag().then(|| rng.values(outputs, 1.0));
            let what = format!("{format} [{rows}, {cols}] -> {outputs}");
            let got = product(rig, &x, &w, bias.as_deref());
            let want = product(&Rig::reference(), &x, &w, bias.as_deref());
            let decoded: Vec<Vec<f32>> = (0..outputs).map(|n| w.row(n)).collect();
            close(rig, &what, &got, &want, |i| {
                let x = &x[i / outputs * cols..][..cols];
                product_bound(rig, x, format, &decoded[i % outputs]) + 1e-6 * want[i].abs()
            });
            if rig.batch_invariant {
                let cut = rng.within(0..=rows - 1) * cols;
                let mut apart = product(rig, &x[cut..], &w, bias.as_deref());
                if cut > 0 {
                    apart = [product(rig, &x[..cut], &w, bias.as_deref()), apart].concat();
                }
                same(rig, &what, &apart, &got);
            }
        }
    }
}

/// Products of few rows where fast mode makes integers of the activations, 32 with a scale each and the largest of
/// them at least `most`; of large matrices too.
pub fn few_rows(rig: &Rig, formats: &[Format], most: f32) {
    let mut rng = Rng::new(40);
    for (i, &format) in formats.iter().enumerate() {
        for cols in [256, 256 * rng.within(17..=20)] {
            let (outputs, size) = (rng.within(1024..=1100), [1.0, 1e-3, 100.0][i % 3]);
            some(rig, format, &rng.values(cols, size), [1, outputs], most, &mut rng);
        }
        let rows = [2, 3, 4, 5, 8, 9, 16, 17, 32][(i + rng.within(0..=1)) % 9];
        some(rig, format, &rng.values(512 * rows, 1.0), [rows, 1030], most, &mut rng);
        // So much that x is prepared once for all workgroups.
        if i % 4 == 0 {
            some(rig, format, &rng.values(4096, 1.0), [1, 12_700], most, &mut rng);
        }
    }
}

fn some(rig: &Rig, format: Format, x: &[f32], [rows, outputs]: [usize; 2], most: f32, rng: &mut Rng) {
    let (mut x, cols) = (x.to_vec(), x.len() / rows);
    let w = Encoded::random(format, outputs, cols, rng);
    x[cols / 2] = 1e4;
    x[..32].fill(0.0);
    let what = format!("{format} [{rows}, {cols}] -> {outputs}");
    let (got, want) = (product(rig, &x, &w, None), product(&Rig::reference(), &x, &w, None));
    // Whatever rows share the decoding of weights.
    let alone = rng.within(0..=rows - 1);
    let own = product(rig, &x[alone * cols..][..cols], &w, None);
    same(rig, &format!("{what}, row {alone}"), &own, &got[alone * outputs..][..outputs]);
    close(rig, &what, &got, &want, |i| {
        let (x, w) = (&x[i / outputs * cols..][..cols], w.row(i % outputs));
        let largest = |x: &[f32]| x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let sizes = |w: &[f32]| w.iter().map(|w| w.abs()).sum::<f32>();
        let steps: f32 = x.chunks(32).zip(w.chunks(32)).map(|(x, w)| largest(x) * sizes(w)).sum();
        let products: f32 = x.iter().zip(&w).map(|(x, w)| (x * w).abs()).sum();
        0.505 * steps / most + 4e-6 * products + 1e-6 * want[i].abs()
    });
    for bad in [f32::INFINITY, f32::NAN] {
        x[cols - 3] = bad;
        let got = product(rig, &x, &w, None);
        let finite = got[..outputs].iter().filter(|v| v.is_finite()).count();
        assert_eq!(finite, 0, "{}: {what}: {bad} in x did not show", rig.name);
    }
}

/// Several products of one x, some in the same buffers and of the same format, some not.
pub fn linears(rig: &Rig) {
    let mut rng = Rng::new(7);
    let formats = &rig.formats;
    for (i, &format) in formats.iter().enumerate() {
        let rows = [1, 3, 17, 2, 8][i % 5];
        let cols = 256 * rng.within(1..=3);
        let others = formats[(i + 1) % formats.len()];
        // In fast mode so many outputs that integers are worth it.
        let most = if rig.exact() { 70 } else { 600 };
        let all: Vec<Encoded> = [format, others, format, format, format, format, format]
            .into_iter()
            .map(|f| Encoded::random(f, rng.within(1..=most), cols, &mut rng))
            .collect();
        let x = rng.values(rows * cols, 1.0);
        let bias = rng.values(all[3].rows, 1.0);
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let mut weights = Encoded::weights(rig, &all.iter().take(6).collect::<Vec<_>>());
            weights.push(all[6].weight(rig)); // in a buffer of its own
            let bias = tensor(b, 1, bias.len(), &bias);
            let mut outs: Vec<Tensor> = all.iter().map(|w| output(b, rows, w.rows)).collect();
            let mut products: Vec<Product<'_>> = weights
                .iter()
                .zip(&mut outs)
                .enumerate()
                .map(|(i, (weight, out))| Product { weight, bias: (i == 3).then_some(&bias), out })
                .collect();
            b.linears(&tensor(b, rows, cols, &x), &mut products).unwrap();
            outs.iter().map(|out| values(b, out)).collect::<Vec<_>>()
        };
        let (got, want) = (run(rig), run(&Rig::reference()));
        for (n, ((got, want), w)) in got.iter().zip(&want).zip(&all).enumerate() {
            let decoded: Vec<Vec<f32>> = (0..w.rows).map(|r| w.row(r)).collect();
            close(rig, &format!("{format} {rows} rows, product {n}"), got, want, |i| {
                let x = &x[i / w.rows * cols..][..cols];
                product_bound(rig, x, w.format, &decoded[i % w.rows]) + 1e-6 * want[i].abs()
            });
        }
    }
}

/// What `add` and then `rms_norm` do; on the CPU bit for bit.
pub fn add_norm(rig: &Rig) {
    let mut rng = Rng::new(8);
    for _ in 0..12 {
        let (rows, cols) = (rng.within(1..=40), rng.within(1..=700));
        let (x, y, w) = (rng.values(rows * cols, 3.0), rng.values(rows * cols, 1.0), rng.values(cols, 1.0));
        let run = |rig: &Rig, apart: bool| {
            let b = &*rig.backend;
            let (mut x, y) = (tensor(b, rows, cols, &x), tensor(b, rows, cols, &y));
            let (weight, mut out) = (tensor(b, 1, cols, &w), output(b, rows, cols));
            if apart {
                b.add(&mut x, &y).unwrap();
                b.rms_norm(&x, &weight, 1e-6, &mut out).unwrap();
            } else {
                let to = Residual { x: &mut x, weight: &weight, eps: 1e-6, out: &mut out };
                b.add_norm(&y, to).unwrap();
            }
            (values(b, &x), values(b, &out))
        };
        let (x, out) = run(rig, false);
        let (x_want, out_want) = run(&Rig::reference(), true);
        same(rig, "add_norm: x", &x, &x_want);
        close(rig, "add_norm", &out, &out_want, |i| 4e-6 * out_want[i].abs() + 1e-30);
        if rig.batch_invariant {
            same(rig, "add_norm", &out, &run(rig, true).1);
        }
    }
}

pub fn rms_norm(rig: &Rig) {
    let mut rng = Rng::new(3);
    for _ in 0..12 {
        let (rows, cols) = (rng.within(1..=70), rng.within(1..=700));
        let (x, w) = (rng.values(rows * cols, 3.0), rng.values(cols, 1.0));
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let mut out = output(b, rows, cols);
            b.rms_norm(&tensor(b, rows, cols, &x), &tensor(b, 1, cols, &w), 1e-6, &mut out).unwrap();
            values(b, &out)
        };
        let want = run(&Rig::reference());
        close(rig, "rms_norm", &run(rig), &want, |i| 4e-6 * want[i].abs() + 1e-30);
    }
}

pub fn add(rig: &Rig) {
    let mut rng = Rng::new(4);
    for _ in 0..8 {
        let (rows, cols) = (rng.within(1..=70), rng.within(1..=700));
        let (x, y) = (rng.values(rows * cols, 1.0), rng.values(rows * cols, 1.0));
        let b = &*rig.backend;
        let mut got = tensor(b, rows, cols, &x);
        b.add(&mut got, &tensor(b, rows, cols, &y)).unwrap();
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        same(rig, "add", &values(b, &got), &want);
    }
}

pub fn gather_rows(rig: &Rig) {
    let mut rng = Rng::new(5);
    for _ in 0..8 {
        let (rows, cols) = (rng.within(1..=50), rng.within(1..=300));
        let x = rng.values(rows * cols, 1.0);
        let pick: Vec<u32> = (0..rng.within(1..=60)).map(|_| rng.within(0..=rows - 1) as u32).collect();
        let b = &*rig.backend;
        let mut out = output(b, pick.len(), cols);
        b.gather_rows(&tensor(b, rows, cols, &x), &pick, &mut out).unwrap();
        let want: Vec<f32> = pick.iter().flat_map(|&r| x[r as usize * cols..][..cols].to_vec()).collect();
        same(rig, "gather_rows", &values(b, &out), &want);
    }
}

pub fn gated_norm(rig: &Rig) {
    let mut rng = Rng::new(6);
    for _ in 0..12 {
        let (rows, heads, dim) = (rng.within(1..=40), rng.within(1..=8), rng.within(1..=130));
        let n = rows * heads * dim;
        let (x, z, w) = (rng.values(n, 2.0), rng.values(n, 3.0), rng.values(dim, 1.0));
        let run = |rig: &Rig| {
            let b = &*rig.backend;
            let upload = |v: &[f32]| -> Tensor { tensor(b, rows, heads * dim, v) };
            let mut x = upload(&x);
            b.gated_norm(&mut x, &upload(&z), &tensor(b, 1, dim, &w), 1e-5).unwrap();
            values(b, &x)
        };
        let want = run(&Rig::reference());
        close(rig, "gated_norm", &run(rig), &want, |i| 6e-6 * want[i].abs() + 1e-30);
    }
}

/// Products of many rows that may have rounded both sides to half precision, and large activations.
pub fn many_rows(rig: &Rig) {
    let mut rng = Rng::new(9);
    for (i, &format) in rig.formats.iter().enumerate() {
        let (rows, cols, outputs) = (rng.within(16..=150), 256 * rng.within(1..=3), rng.within(1..=150));
        let w = Encoded::random(format, outputs, cols, &mut rng);
        let mut x = rng.values(rows * cols, [1.0, 1e-3, 100.0][i % 3]);
        x[cols / 2] = 1e6;
        let bias = rng.flag().then(|| rng.values(outputs, 1.0));
        let got = product(rig, &x, &w, bias.as_deref());
        let want = product(&Rig::reference(), &x, &w, bias.as_deref());
        let decoded: Vec<Vec<f32>> = (0..outputs).map(|n| w.row(n)).collect();
        close(rig, &format!("{format} [{rows}, {cols}] -> {outputs}"), &got, &want, |i| {
            let (x, w) = (&x[i / outputs * cols..][..cols], &decoded[i % outputs]);
            let sum = |f: &dyn Fn((&f32, &f32)) -> f32| x.iter().zip(w).map(f).sum::<f32>();
            let products = sum(&|(x, w)| (x * w).abs());
            let rounded = 2f32.powi(-10) * products
                + 2f32.powi(-20) * sum(&|(_, w)| w.abs())
                + 2f32.powi(-30) * sum(&|(x, _)| x.abs());
            rounded + 4e-6 * products + 1e-6 * want[i].abs()
        });
    }
}

pub fn best(rig: &Rig) {
    let mut rng = Rng::new(6);
    let b = &*rig.backend;
    for cols in [1, 3, 64, 700, 9000, 20_000] {
        let rows = rng.within(1..=5);
        let mut x = rng.values(rows * cols, 1.0);
        let mut want = Vec::new();
        for (row, values) in x.chunks_exact_mut(cols).enumerate() {
            // All negative, equal in two places, or broken.
            let at = rng.within(0..=cols - 1);
            match row {
                0 => values.iter_mut().for_each(|v| *v = -v.abs() - 1.0),
                1 => (values[cols - 1], values[at]) = (7.0, 7.0),
                2 => values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.within(0..=2)],
                3 => (0..).zip(values.iter_mut()).for_each(|(i, v)| *v = if i == at { 0.0 } else { -0.0 }),
                _ => {}
            }
            let mut most = 0;
            (0..cols).for_each(|i| most = if values[i] > values[most] { i } else { most });
            want.push(if values.iter().all(|v| v.is_finite()) { most as f32 } else { -1.0 });
        }
        let mut out = output(b, rows, 1);
        b.best(&tensor(b, rows, cols, &x), &mut out).unwrap();
        assert_eq!(values(b, &out), want, "{}: {rows} rows of {cols}", rig.name);
    }
}
