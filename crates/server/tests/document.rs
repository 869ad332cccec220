//! `/openapi.json`: it is one, it leads to paths that are there, and the server keeps what it says.

use std::process::Command;

use serde_json::{Value, json};

use crate::clients::packages_for;
use crate::support::{Running, options, start};

fn document(server: &Running) -> Value {
    server.get("/openapi.json").ok()
}

#[test]
fn every_path_is_there_and_says_how_it_refuses() {
    let server = start(options(), 1);
    let document = document(&server);
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 10);
    for (path, operations) in paths {
        let (method, operation) = operations.as_object().expect("operations").iter().next().expect("one");
        let statuses = &operation["responses"];
        let path = path.replace("{id}", "demo");
        for spelling in [path.as_str(), path.strip_prefix("/v1").unwrap_or(&path)] {
            // Of a stream without an end the head is enough.
            let status = server.open(&method.to_uppercase(), spelling, &[], b"{}").status;
            assert!([200, 400].contains(&status), "{method} {spelling}: {status}");
            assert!(statuses.get(status.to_string()).is_some(), "{method} {spelling}: {status}");
            let other = server.ask("DELETE", spelling, &[], b"").status;
            assert!(other == 405 && statuses.get("405").is_some(), "{spelling}: {other}");
        }
        let foreign = server.ask(&method.to_uppercase(), &path, &[("host", "evil.example")], b"").status;
        assert!(foreign == 403 && statuses.get("403").is_some(), "{path}: {foreign}");
    }
    let chat = &document["paths"]["/v1/chat/completions"]["post"];
    for status in [200, 400, 401, 403, 404, 405, 413, 415, 429, 500, 503] {
        assert!(chat["responses"].get(status.to_string()).is_some(), "{status}");
    }
    let fields = &chat["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(fields["properties"]["n"]["maximum"], 4, "four times the sequences");
    assert_eq!(fields["required"], json!(["messages"]));
}

#[test]
fn it_is_an_openapi_document() {
    let Some(packages) = packages_for("the OpenAPI validator") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("openapi.json");
    std::fs::write(&path, document(&start(options(), 1)).to_string()).expect("written");
    let output = Command::new(packages.join("bin/python"))
        .args(["-m", "openapi_spec_validator"])
        .arg(&path)
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("OK"), "{said}");
}

/// Requests that are made of the document, right and wrong ones: none fails in the server or hangs, and each answer is one
/// that the document has.
fn keeps_its_word(examples: &str) {
    let Some(packages) = packages_for("schemathesis") else { return };
    let server = start(options(), 4);
    let mut command = Command::new(packages.join("bin/schemathesis"));
    command.args([
        "run",
        &format!("http://{}/openapi.json", server.address),
        "--seed",
        "1",
        "--workers",
        "2",
        // It has no end.
        "--exclude-path",
        "/events",
    ]);
    command.args(["--max-examples", examples, "--request-timeout", "100", "--warnings", "off", "--phases"]);
    command.args(["fuzzing", "--checks"]);
    command.arg(
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    );
    // A proxy of the machine is not for itself, and what it keeps belongs nowhere else.
    let folder = tempfile::tempdir().expect("a folder");
    command.env("NO_PROXY", "127.0.0.1").current_dir(folder.path());
    let output = command.output().expect("schemathesis runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    for gauge in ["tidemill_requests_running", "tidemill_requests_waiting"] {
        server.wait_for(gauge, 0.0);
    }
}

#[test]
fn answers_are_those_that_it_has() {
    keeps_its_word("3");
}

#[test]
#[ignore = "takes minutes; `cargo xtask soak cases` runs it"]
fn answers_are_those_that_it_has_for_long() {
    keeps_its_word("300");
}
