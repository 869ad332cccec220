//! `include/tidemill.h`, made of the C API's source: what users must know stands in its comments.

use std::fs;
use std::path::{Path, PathBuf};

use cbindgen::{Builder, Config, DocumentationStyle, Language, Style};
use files::{Error, Result};

/// The source files, in the order of the header.
const SOURCES: [&str; 8] = ["status", "cancel", "model", "text", "session", "sampler", "generate", "batch"];

/// What types are called in C.
const NAMES: [(&str, &str); 8] = [
    ("Status", "tidemill_status"),
    ("ModelHandle", "tidemill_model"),
    ("SessionHandle", "tidemill_session"),
    ("SamplerHandle", "tidemill_sampler"),
    ("CancelHandle", "tidemill_cancel"),
    ("Progress", "tidemill_progress"),
    ("OnEvent", "tidemill_on_event"),
    ("OnResult", "tidemill_on_result"),
];

const HEAD: &str = "\
/*
 * Tidemill's C API, C99 and C++11. This file is generated: `cargo xtask header` makes it of crates/capi/src.
 *
 * Ownership. Every `char **` result is the caller's, freed with tidemill_string_free. `error` may be NULL; it is set to NULL on
 * success and to a message on failure. Other outputs are written on success only, but handles are NULL on failure.
 * Buffers are the caller's: counts always say what is needed; a buffer that is too small is TIDEMILL_TOO_SMALL and untouched.
 * `progress`, `on`, `user`, `cancel`, `reused`, `best`, `error` and the argument of a _free may be NULL; any other NULL is
 * TIDEMILL_INVALID_REQUEST, unless a count of 0 says that nothing is there.
 *
 * Texts are UTF-8. Options and requests are JSON objects: a key that nobody knows, a key given twice, a wrong type and a value out
 * of range are TIDEMILL_INVALID_REQUEST with a message that names it. docs/c-api.md has the keys.
 *
 * Threads. Functions of a model: any threads at once. A session and a sampler take one call at a time, from any thread; a second
 * one, also from within a callback, gets TIDEMILL_BUSY and changes nothing. So does whatever computes, from within a callback that
 * tells of a computation (`progress`, TIDEMILL_PROMPT): the model is at work in this thread. A forked process cannot use handles of its parent: it
 * gets TIDEMILL_INVALID_REQUEST.
 *
 * A fault of the library is TIDEMILL_INTERNAL; the handle answers so from then on. \"Since\" is the ABI version that has a function
 * first.
 */";

/// Where the header is.
pub fn path(root: &Path) -> PathBuf {
    root.join("crates/capi/include/tidemill.h")
}

/// The header as the source has it now.
///
/// # Errors
/// `Io` naming a file, `Corrupt` where the source cannot be understood.
pub fn make(root: &Path) -> Result<String> {
    let mut config = Config {
        language: Language::C,
        style: Style::Type,
        include_guard: Some("TIDEMILL_H".into()),
        header: Some(HEAD.into()),
        cpp_compat: true,
        no_includes: true,
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        usize_is_size_t: true,
        documentation_style: DocumentationStyle::C99,
        line_length: 130,
        ..Config::default()
    };
    config.export.rename = NAMES.iter().map(|(rust, c)| ((*rust).to_owned(), (*c).to_owned())).collect();
    let mut builder = Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(root.join(format!("crates/capi/src/{name}.rs")));
    }
    let bindings = builder.generate().map_err(|e| Error::corrupt(format!("crates/capi/src: {e}")))?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).map_err(|e| Error::corrupt(format!("the header: {e}")))?;
    Ok(without_safety(&text))
}

/// Rust's promises of a caller are the ones at the top of the header.
fn without_safety(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut skips = false;
    for line in text.lines() {
        skips = (skips || line.trim() == "// # Safety") && line.starts_with("//");
        if skips {
            continue;
        }
        // The empty line before what was left out.
        if !line.starts_with("//") && out.ends_with("\n//\n") {
            out.truncate(out.len() - "//\n".len());
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Writes the header.
///
/// # Errors
/// As [`make`].
pub fn write(root: &Path) -> Result<()> {
    let path = path(root);
    fs::write(&path, make(root)?).map_err(|e| Error::io(path.display(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_the_source() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let there = fs::read_to_string(path(&root)).unwrap();
        assert!(there == make(&root).unwrap(), "run `cargo xtask header` and look at what has changed");
    }
}
