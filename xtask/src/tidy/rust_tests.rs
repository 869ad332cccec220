//! Each law with a sample that breaks it and one that keeps it.

use super::*;

const STORE: &str = "crates/store/src/a.rs";
const CLI: &str = "crates/cli/src/a.rs";

fn broken(path: &str, text: &str, message: &str) {
    let findings = check_rust(path, text);
    assert_eq!(findings.len(), 1, "{text}\n{findings:?}");
    assert!(findings[0].message.contains(message), "{findings:?}");
}

fn kept(path: &str, text: &str) {
    assert_eq!(check_rust(path, text), [], "{text}");
}

#[test]
fn function_length() {
    let body = |lines| format!("/// Doc.\nfn long() {{\n{}}}\n", "    step();\n".repeat(lines));
    kept(STORE, &body(78));
    broken(STORE, &body(79), "81 lines");
    broken(STORE, &format!("impl A {{ {} }}", body(79)), "81 lines");
    broken(STORE, &format!("trait A {{ {} }}", body(79)), "81 lines");
    broken(CLI, &format!("fn outer() {{ {} }}", body(79)).replace("fn outer() {", "mod m {"), "81 lines");
}

#[test]
fn environment_below_the_command_line() {
    for text in [
        "fn f() { std::env::var(\"X\"); }",
        "fn f() { env::var_os(X) }",
        "use std::env::{args, temp_dir};",
        "fn f() { assert!(std::env::vars().count() > 1); }",
    ] {
        broken(STORE, text, "environment");
        kept(CLI, text);
        kept("crates/store/tests/a.rs", text);
        kept(STORE, &format!("#[cfg(test)] mod tests {{ {text} }}"));
    }
    kept(STORE, "fn f() { env!(\"CARGO_PKG_VERSION\"); std::env::current_dir(); }");
}

#[test]
fn printing_and_exits_below_the_command_line() {
    for name in ["println", "eprintln", "print", "eprint"] {
        broken(STORE, &format!("fn f() {{ {name}!(\"x\"); }}"), "printing");
        kept(CLI, &format!("fn f() {{ {name}!(\"x\"); }}"));
    }
    broken(STORE, "fn f() { std::process::exit(1) }", "ends the process");
    broken(STORE, "fn f() { process::abort() }", "ends the process");
    kept(CLI, "fn f() { std::process::exit(1) }");
    broken(CLI, "fn f() { dbg!(1); }", "desk");
}

#[test]
fn globals() {
    broken(CLI, "static mut A: u8 = 1;", "global state");
    broken(STORE, "static A: AtomicUsize = AtomicUsize::new(0);", "global state");
    broken(STORE, "fn f() { static A: std::sync::OnceLock<u8> = OnceLock::new(); }", "global state");
    broken(STORE, "static A: [Mutex<u8>; 2] = X;", "global state");
    broken(STORE, "thread_local! { static A: u8 = 1; }", "global");
    broken(STORE, "// tidy: allow \nstatic A: LazyLock<u8> = X;", "global state");
    kept(STORE, "// tidy: allow the CPU does not change while we run\nstatic A: LazyLock<u8> = X;");
    kept(STORE, "static A: [u8; 2] = [1, 2];");
    kept(CLI, "static A: AtomicBool = AtomicBool::new(false);");
}

#[test]
fn async_only_in_the_server() {
    broken("crates/engine/src/a.rs", "async fn f() {}", "async");
    broken(CLI, "fn f() { async { 1 }; }", "async");
    broken("crates/cli/src/serve.rs", "async fn f() {}", "async");
    kept("crates/server/src/http.rs", "async fn f() {}");
}

#[test]
fn unsafe_needs_its_reason() {
    broken(STORE, "fn f() {\n    unsafe { g() }\n}", "SAFETY");
    broken(STORE, "unsafe impl Send for A {}", "SAFETY");
    broken(
        STORE,
        "fn f() {\n    // SAFETY: checked.\n    let a = unsafe { g() };\n    let b = unsafe { g() };\n}",
        "SAFETY",
    );
    kept(STORE, "fn f() {\n    // SAFETY: g has no contract,\n    // none at all.\n    unsafe { g() }\n}");
    kept(STORE, "fn f() {\n    // SAFETY: ok.\n    let x =\n        unsafe { g() };\n}");
    kept(STORE, "// SAFETY: plain bytes.\nunsafe impl Send for A {}");
    kept(STORE, "/// # Safety\n/// The caller's.\npub unsafe fn f() {}");
}

#[test]
fn unsafe_only_in_its_rooms() {
    let text = "fn f() {\n    // SAFETY: ok.\n    unsafe { g() }\n}";
    broken("crates/files/src/a.rs", text, "outside the rooms");
    broken("crates/engine/src/open.rs", text, "outside the rooms");
    kept("crates/engine/src/bridge.rs", text);
    kept("crates/kernels/src/a.rs", text);
    broken("crates/files/src/lib.rs", "//! Doc.", "forbid(unsafe_code)");
    kept("crates/files/src/lib.rs", "#![forbid(unsafe_code)]");
}

#[test]
fn what_does_not_parse_is_said() {
    broken(STORE, "fn (", "does not parse");
}

#[test]
fn texts_that_users_read_have_the_words_of_the_field() {
    let text = "fn f() -> Error { Error::memory(format!(\"the card has {n} bytes\")) }";
    broken(STORE, text, "discrete GPU");
    broken(CLI, text, "discrete GPU");
    kept("crates/kernels/src/a.rs", text);
    kept(STORE, &format!("#[cfg(test)] mod tests {{ {text} }}"));
    kept(STORE, "/// A card, as the code says.\nfn f() {}");
    kept(STORE, &format!("// tidy: allow a name of the file's own\n{text}"));
}
