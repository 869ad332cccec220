//! Names the library that programs are linked with, so that one of another ABI is never taken for it.

/// `TIDEMILL_ABI_VERSION`; `src/lib.rs` has the same, and a test compares.
const ABI_VERSION: u32 = 1;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-env=TIDEMILL_COMMIT={}", commit().as_deref().unwrap_or("no commit"));
    println!("cargo::rustc-env=TIDEMILL_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=TIDEMILL_ABI_OF_BUILD={ABI_VERSION}");
    match std::env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux" | "android" | "freebsd") => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libtidemill.so.{ABI_VERSION}");
            // What dependencies export to C is not ours to promise.
            println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
        }
        Ok("macos") => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libtidemill.{ABI_VERSION}.dylib");
        }
        _ => {}
    }
}

/// The commit that is built, where there is a repository.
fn commit() -> Option<String> {
    let head = "../../.git/logs/HEAD";
    if std::path::Path::new(head).exists() {
        println!("cargo::rerun-if-changed={head}");
    }
    let output = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
