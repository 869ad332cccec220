//! Names the library that programs are linked with, so that one of another ABI is never taken for it.

/// `TIDEMILL_ABI_VERSION`; `src/lib.rs` has the same, and a test compares.
const ABI_VERSION: u32 = 1;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
