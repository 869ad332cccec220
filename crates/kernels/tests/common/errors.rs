//! What a backend must refuse.

use files::{ErrorKind, Format};
use tidemill_kernels::ops::{ExpertBatch, MlpWeights, RouteSpec, RoutedRow};

use super::*;

#[track_caller]
pub fn refused(rig: &Rig, result: files::Result<()>, word: &str) {
    let error = result.expect_err(&format!("{}: no error that names {word}", rig.name));
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{}: {error}", rig.name);
    assert!(error.to_string().contains(word), "{}: {error} does not name {word}", rig.name);
}

pub fn shapes(rig: &Rig) {
    let b = &*rig.backend;
    let w = Encoded::random(Format::Q8_0, 8, 64, &mut Rng::new(1));
    let (x, mut out) = (output(b, 3, 64), output(b, 3, 8));
    refused(rig, b.linear(&output(b, 3, 32), &w.weight(rig), None, &mut out), "x");
    refused(rig, b.linear(&x, &w.weight(rig), Some(&output(b, 1, 7)), &mut out), "bias");
    refused(rig, b.linear(&x, &w.weight(rig), None, &mut output(b, 2, 8)), "out");
    refused(rig, b.rms_norm(&x, &output(b, 1, 63), 1e-6, &mut output(b, 3, 64)), "weight");
    refused(rig, b.add(&mut output(b, 3, 8), &output(b, 8, 3)), "y");
    refused(rig, b.gather_rows(&x, &[3], &mut output(b, 1, 64)), "row 3");
    refused(rig, b.gated_norm(&mut output(b, 3, 64), &x, &output(b, 1, 48), 1e-6), "64 columns");
    let spec = RouteSpec { top_k: 9, normalise: true };
    refused(rig, b.route(&x, &w.weight(rig), &spec, &mut route_buffers(b, 3, 9)), "top_k 9");
    let square = || Encoded::random(Format::Q8_0, 64, 64, &mut Rng::new(2)).weight(rig);
    let mlp = MlpWeights::new(square(), square(), square()).unwrap();
    refused(rig, b.mlp(&output(b, 3, 32), &mlp, &mut output(b, 3, 64)), "x");
    for routed in [RoutedRow { row: 3, part: 0 }, RoutedRow { row: 0, part: 6 }] {
        let batch = ExpertBatch { weights: &mlp, rows: &[routed] };
        refused(rig, b.expert_mlp(&x, &[batch], &mut output(b, 6, 64)), "leaves 3 rows or 6 parts");
    }
    let twice = [RoutedRow { row: 0, part: 1 }, RoutedRow { row: 1, part: 1 }];
    let batch = ExpertBatch { weights: &mlp, rows: &twice };
    refused(rig, b.expert_mlp(&x, &[batch], &mut output(b, 6, 64)), "part 1 is written twice");
}

pub fn tokens(rig: &Rig) {
    let b = &*rig.backend;
    let table = Encoded::random(Format::BF16, 10, 32, &mut Rng::new(3)).weight(rig);
    refused(rig, b.embed(&table, &[9, 10], &mut output(b, 2, 32)), "token 10");
}

pub fn nan_routes(rig: &Rig) {
    let b = &*rig.backend;
    let mut values = Rng::new(4).values(16 * 32, 1.0);
    values[7 * 32 + 3] = 3e38;
    let mut router = Encoded::new(Format::F32, 16, 32, &values);
    router.parts[0][(7 * 32 + 3) * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let spec = RouteSpec { top_k: 2, normalise: true };
    let mut routes = route_buffers(b, 2, 2);
    let x = tensor(b, 2, 32, &Rng::new(5).values(64, 1.0));
    b.route(&x, &router.weight(rig), &spec, &mut routes).unwrap();
    let error = b.read_routes(&routes, 2, &spec).expect_err(&rig.name);
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}: {error}", rig.name);
}
