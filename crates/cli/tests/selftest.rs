//! `selftest`: the kernels of this machine agree with the reference, and the report says so.

use crate::common::{fails, json, tidemill};

#[test]
fn every_instruction_set_agrees() {
    let object = json(&mut tidemill(["selftest", "--quick", "--device", "cpu", "--json"]));
    let devices = object["devices"].as_array().expect("devices");
    assert!(devices.len() >= 2, "fast and exact at least: {object}");
    for device in devices {
        assert!(device["cases"].as_u64().is_some_and(|n| n > 50), "{device}");
        assert_eq!(device["failed"], serde_json::json!([]), "{device}");
        assert!(device["relative_error_max"].as_f64().is_some_and(|e| e > 0.0), "nothing compared: {device}");
    }
    let report = object["report"]["device"].as_array().expect("a line a device");
    assert_eq!(report.len(), devices.len(), "{object}");
    let agree = |line: &serde_json::Value| line.as_str().is_some_and(|line| line.contains("cases agree"));
    assert!(report.iter().all(agree) && object["report"]["processor"].is_string(), "{object}");
    let speeds = devices[0]["speeds"].as_array().expect("speeds");
    assert!(speeds.iter().all(|s| s["weights_bytes_per_s"].as_f64().is_some_and(|r| r > 0.0)), "{object}");
}

#[test]
fn a_device_that_does_not_exist_is_a_mistake() {
    fails(["selftest", "--device", "tpu"], 2, &["tpu"]);
}
