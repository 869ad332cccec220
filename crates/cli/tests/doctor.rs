//! `doctor`: a machine, a model that is here, a shape that is not.

mod common;

use common::{fails, json, succeed, tidemill};

#[test]
fn a_shape_is_judged_before_it_is_downloaded() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let base = ["doctor", "qwen3.5-397b-a17b", "--throttle", "0.001", "--dir"];
    let object = json(tidemill(base).arg(dir.path()).args(["--json", "--memory", "12GiB"]));
    let seen = &object["prediction"];
    let number = |key: &str| seen[key].as_f64().unwrap_or_else(|| panic!("{key}: {object}"));
    assert!(seen["fits"] == true && number("token_drive_s") > 3000.0, "a megabyte a second: {object}");
    assert!((number("decode_tokens_per_s") * number("token_drive_s") - 1.0).abs() < 0.1, "{object}");
    assert!(object["drive_rates"].as_array().is_some_and(|rates| rates.len() >= 6), "{object}");
    let (text, _) = succeed(tidemill(base).arg(dir.path()).args(["--memory", "2GiB"]));
    assert!(text.contains("does not fit") && text.contains("chosen"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left behind");
}

#[test]
fn a_model_that_is_here_fits() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (text, _) = succeed(tidemill(["doctor", "demo", "--dir"]).arg(dir.path()));
    assert!(text.contains("decode ") && text.contains("limited by arithmetic"), "{text}");
    fails(["doctor", "no-such-model"], 3, &["no-such-model"]);
}
